"""`geobacter regions`: what is defined, what of it is there, and extracts for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geobacter_core.cli.common import CONTEXT, RegionName, examples, known_region, ready_extract, table
from geobacter_core.settings import Settings, without_secrets

if TYPE_CHECKING:
    from geobacter_core.regions import Region

app = typer.Typer(help="Named areas, each with an OpenStreetMap extract.", no_args_is_help=True)


@app.command("list", context_settings=CONTEXT)
def list_regions() -> None:
    """List the regions of the regions file, and what is there of each.

    "old" is what was made from another extract than the present one, or is an extract from another source than the
    regions file states.
    """
    from geobacter_core.regions import load_regions

    settings = Settings.from_environment()
    rows: list[tuple[str, ...]] = []
    for region in load_regions(settings.regions_file).values():
        cells = str(region.cell_resolution) if region.cells is None else Path(region.cells).name
        train = _yes(region.train)
        source = _source(region, settings.regions_file.parent)
        rows.append((region.name, cells, train, *_what_is_there(settings, region), source))
        if region.tile_server is not None:
            rows.append(("",) * 6 + (f"tile server {without_secrets(region.tile_server)}",))
    typer.echo(table(("region", ">cells", "train", "extract", "features", "tiles", "source"), rows))


@app.command(
    "extract",
    context_settings=CONTEXT,
    epilog=examples(
        "geobacter regions extract liechtenstein",
        'EXTRACT="$(geobacter regions extract liechtenstein)" docker compose run --rm import',
    ),
)
def extract_path(region: RegionName) -> None:
    """Print the path of a region's extract and nothing else.

    The extract is an .osm.pbf file, and is fetched first if it is not there.
    """
    settings = Settings.from_environment()
    typer.echo(str(ready_extract(settings, known_region(settings, region))[1]))


@app.command("check", context_settings=CONTEXT)
def check(
    online: Annotated[bool, typer.Option("--online", help="Ask the servers, too: one small request each.")] = False,
) -> None:
    """Check that what the regions file names is there.

    Ends with status 1 if something is wrong. Regions are listed, too, that are in the file no more and left data.
    """
    from geobacter_core.osm.check import problems_of
    from geobacter_core.regions import load_regions
    from geobacter_core.retired import retired_regions

    settings = Settings.from_environment()
    regions = load_regions(settings.regions_file)
    n_wrong = 0
    for region in regions.values():
        problems = problems_of(region, online)
        n_wrong += bool(problems)
        typer.echo(f"{region.name}: {' '.join(problems) or 'well'}")
    for left in retired_regions(settings, regions):
        typer.echo(
            f"{left.name}: not in {settings.regions_file} any more. Kept: {_size(left.table_bytes)} of tables and "
            f"reports, {_size(left.cache_bytes)} of what can be made again (geobacter regions retire {left.name})."
        )
    if n_wrong:
        typer.echo(f"{n_wrong} of {len(regions)} regions cannot be made as they are.", err=True)
        raise typer.Exit(1)


@app.command(
    "retire", context_settings=CONTEXT, epilog=examples("geobacter regions retire liechtenstein --remove-caches")
)
def retire(
    region: Annotated[str, typer.Argument(metavar="REGION", help="A region that is in the regions file no more.")],
    caches: Annotated[
        bool, typer.Option("--remove-caches", help="Remove extract, map features, tiles, samples and evaluations.")
    ] = False,
) -> None:
    """Say what is left of a region, or remove its caches.

    The region was taken out of the regions file before. Its embedding table, history and report are kept in any case.
    """
    from geobacter_core.errors import RegionsFileError, UnknownRegionError
    from geobacter_core.regions import load_regions
    from geobacter_core.retired import remove_caches, retired_regions

    settings = Settings.from_environment()
    regions = load_regions(settings.regions_file)
    if region in regions:
        raise RegionsFileError(
            f"Region '{region}' is in {settings.regions_file}. Take its table out of that file first: until then the "
            "schedule would make again what is removed."
        )
    left = next((left for left in retired_regions(settings, regions) if left.name == region), None)
    if left is None:
        raise UnknownRegionError(f"There is nothing of a region '{region}' in {settings.data}.")
    if caches:
        typer.echo(f"{region}: {_size(remove_caches(settings, region))} removed")
    else:
        typer.echo(f"{region}: {_size(left.cache_bytes)} can be made again; --remove-caches removes that")
    typer.echo(f"{region}: {_size(left.table_bytes)} of tables and reports kept")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _source(region: "Region", folder: Path) -> str:
    """The extract's source without secrets; a path within the regions file's folder as it is written there."""
    source = Path(region.extract)
    if source.is_absolute():
        return str(source.relative_to(folder) if source.is_relative_to(folder) else source)
    return without_secrets(region.extract)


def _what_is_there(settings: Settings, region: "Region") -> tuple[str, str, str]:
    """Extract, features and tiles: `yes`, `no` or `old`; tiles by style."""
    from geobacter_core.errors import ExtractError, FeaturesError
    from geobacter_core.osm.extract import load_extract
    from geobacter_core.osm.features import load_features
    from geobacter_core.tiles.cache import TileCache, caches_in

    try:
        extract = load_extract(settings.extract_folder(region.name))[0]
        present, extract_is = extract.sha256, "yes" if extract.is_of(region) else "old"
    except ExtractError:
        present, extract_is = None, "no"
    try:
        features = load_features(settings.features_folder(region.name))[0]
        features_are = "yes" if present in (None, features.extract_sha256) else "old"
    except FeaturesError:
        features_are = "no"
    manifests = [cache.manifest for cache in caches_in(settings.data / "tiles") if isinstance(cache, TileCache)]
    styles = [
        manifest.style + ("" if present in (None, manifest.extract_sha256) else " (old)")
        for manifest in manifests
        if manifest.region == region.name
    ]
    return extract_is, features_are, ", ".join(styles) or "no"
