"""`geobacter tiles verify`: can the tile caches be trusted, and mending those that cannot."""

from textwrap import indent
from typing import Annotated

import typer

from geobacter_core.cli.common import Bar, build_tiles, known_region, missing_cache, told
from geobacter_core.errors import GeobacterError
from geobacter_core.settings import Settings


def verify(
    regions: Annotated[
        list[str] | None, typer.Argument(metavar="REGION", help="Regions.", show_default="all that have tiles")
    ] = None,
    style: Annotated[
        str | None, typer.Option(metavar="NAME", help="Map style.", show_default="all that there are")
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Make what is missing or damaged, remove what is left over, and verify again."),
    ] = False,
) -> None:
    """Read every tile of the caches and say which files are wrong.

    Tiles are held against their digests. Named are chunks that the region needs and lacks, chunks that are damaged,
    were made from something else or are of no use to the region, and temporary files of builds that were killed. The
    exit status is 1 if there are any.
    """
    settings = Settings.from_environment()
    caches = _chosen(settings, regions, style)
    if not caches:
        typer.echo(f"No tiles in {settings.data / 'tiles'}. Make some: geobacter tiles build REGION", err=True)
    broken = [cache for cache in caches if not _is_sound(settings, *cache)]
    if repair:
        broken = [cache for cache in broken if not _mended(settings, *cache)]
    elif broken:
        names = " ".join(dict.fromkeys(region for region, _ in broken))
        of_style = f" --style {style}" if style else ""
        typer.echo(f"Mend it: geobacter tiles verify {names}{of_style} --repair", err=True)
    if broken:
        raise typer.Exit(1)


def _chosen(settings: Settings, regions: list[str] | None, style_name: str | None) -> list[tuple[str, str]]:
    """Region and style of the caches that were asked for.

    Raises:
        GeobacterError: A region is unknown or has no tiles, or the style is unknown.
    """
    from geobacter_core.tiles.style import load_style

    style = load_style(style_name).name if style_name else None
    folders = sorted(path for path in (settings.data / "tiles").glob("*/*") if path.is_dir())
    there = [(folder.parent.name, folder.name) for folder in folders if style in (None, folder.name)]
    for name in regions or ():
        if not any(region == name for region, _ in there):
            known_region(settings, name)
            raise missing_cache(name, style or settings.style)
    return [cache for cache in there if not regions or cache[0] in regions]


def _is_sound(settings: Settings, region: str, style: str) -> bool:
    """Verify a cache and tell what was found."""
    from geobacter_core.osm.extract import load_extract
    from geobacter_core.tiles.cache import verify_cache
    from geobacter_core.tiles.chunk import REMEDY

    try:
        extract, _ = load_extract(settings.extract_folder(region))
        with Bar(f"{region} {style}", "chunks") as bar:
            found = verify_cache(settings.tiles_folder(region, style), extract.ground, bar)
    except GeobacterError as problem:
        typer.echo(f"{region} {style}: cannot be verified")
        typer.echo(indent(told(problem), "  "))
        return False
    counts = {
        "missing": len(found.missing),
        "damaged": len(found.damaged),
        "strange": len(found.strangers),
        "left over": len(found.leftovers),
    }
    wrong = "".join(f", {n:,} {what}" for what, n in counts.items() if n)
    typer.echo(f"{region} {style}: {found.n_sound:,} of {found.n_wanted:,} chunks sound{wrong}")
    for sentence in found.problems:
        typer.echo(f"  {sentence.removesuffix(REMEDY).rstrip()}")
    return not found.problems


def _mended(settings: Settings, region: str, style: str) -> bool:
    """Build what a cache lacks and verify it again."""
    try:
        built = build_tiles(settings, known_region(settings, region), style)
    except GeobacterError as problem:
        typer.echo(f"{region} {style}: cannot be mended")
        typer.echo(indent(told(problem), "  "))
        return False
    typer.echo(f"{region} {style}: {built.n_rendered:,} of {len(built.manifest.chunks):,} chunks made anew")
    return _is_sound(settings, region, style)
