"""`geobacter embed` and `geobacter similar`: embeddings of people's own places, and cells that are like one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from geobacter_core.cli.common import Bar, known_region, table
from geobacter_core.errors import EmbeddingsError, TileCacheError
from geobacter_core.settings import Settings

if TYPE_CHECKING:
    from geobacter_core.embeddings.mapped import MappedTable
    from geobacter_core.embeddings.places import Places
    from geobacter_core.embeddings.search import Hit, Near


def embed(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="CSV, TSV or Parquet, with columns lon and lat in degrees."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", dir_okay=False, metavar="FILE.parquet", help="Parquet file to write.")
    ],
    outside: Annotated[
        Literal["error", "skip"], typer.Option(help="What to do with a place that lies in no region.")
    ] = "error",
) -> None:
    """Give each place of a file its embedding, by the champion.

    All other columns are carried along; the new one, embedding, is a list of float32. The places may lie in any of the
    regions that have tiles, or map features to draw them from.
    """
    if output.suffix.lower() not in (".parquet", ".geoparquet"):
        raise typer.BadParameter(f"{output} does not end in .parquet", param_hint="--output")
    from geobacter_core.embeddings.points import embed_file

    places = _champions_places(Settings.from_environment())
    with Bar(source.name, "places") as bar:
        done = embed_file(source, output, places, outside, bar)
    skipped = f", {done.n_outside:,} outside all regions left out" if done.n_outside else ""
    typer.echo(f"{output}: {done.n_rows:,} places embedded by {places.encoder.version.name}{skipped}")


def similar(
    lon: Annotated[float, typer.Argument(metavar="LON", help="Longitude in degrees, negative in the west.")],
    lat: Annotated[float, typer.Argument(metavar="LAT", help="Latitude in degrees, negative in the south.")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many cells.")] = 10,
    region: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where to search.", show_default="in all that have a table")
    ] = None,
    min_distance: Annotated[
        float, typer.Option(min=0, metavar="METRES", help="Cells are so far from the place, and from each other.")
    ] = 0,
) -> None:
    """List the cells that are most like a place, by their embeddings.

    The tables that the champion made are searched. "similarity" is the cosine of the embeddings, "ground m" the
    distance from the place.
    """
    import numpy as np

    from geobacter_core.embeddings.search import Near, nearest
    from geobacter_core.geo import Place

    settings = Settings.from_environment()
    place = Place(lon, lat)
    places = _champions_places(settings)
    tables = _tables(settings, places.encoder.version.name, region)
    vector = places.embed(np.array([lon]), np.array([lat]))[0]
    near = Near((place,), min_distance)
    hits = nearest(tables, vector, k, near, min_distance)
    header = (">similarity", ">ground m", "region", "cell", ">lon", ">lat")
    typer.echo(table(header, (_row(hit, near) for hit in hits)))


def _row(hit: "Hit", near: "Near") -> tuple[str, ...]:
    here = hit.place
    return (
        f"{hit.similarity:.3f}",
        f"{hit.away_m(near):,.0f}",
        hit.table.region,
        hit.cell,
        f"{here.lon:.5f}",
        f"{here.lat:.5f}",
    )


def _champions_places(settings: Settings) -> "Places":
    """The champion, and all ground of the installation that it can embed.

    Raises:
        GeobacterError: There is no champion, or no tiles in its style.
    """
    from geobacter_core.embeddings.places import Places, style_of
    from geobacter_core.embeddings.sources import installed_grounds
    from geobacter_core.encoder.registry import Registry

    registry = Registry(settings)
    version = registry.champion()
    style = style_of(version)
    grounds = installed_grounds(settings.data, style)
    if not grounds:
        raise TileCacheError(
            f"No region in {settings.data} has tiles or map features for style {style.label} of {version.name}. Make "
            "some: geobacter tiles build REGION"
        )
    return Places(registry.load(version), grounds)


def _tables(settings: Settings, encoder: str, region: str | None) -> "list[MappedTable]":
    """The tables of an encoder, of one region or all.

    Raises:
        GeobacterError: There is none.
    """
    from geobacter_core.embeddings.mapped import map_table
    from geobacter_core.embeddings.table import read_metadata
    from geobacter_core.regions import load_regions

    names = [known_region(settings, region).name] if region else list(load_regions(settings.regions_file))
    there = [name for name in names if settings.embeddings_file(name).exists()]
    made = {name: str(read_metadata(settings.embeddings_file(name)).get("encoder")) for name in there}
    chosen = [name for name in there if made[name] == encoder]
    if not chosen:
        others = ", ".join(f"{name} by {by}" for name, by in made.items()) or "none"
        raise EmbeddingsError(
            f"No embedding table of {', '.join(names)} was made by {encoder} (there are: {others}). Materialise "
            "region_embeddings, or: make embed REGION=name"
        )
    return [map_table(settings.embeddings_file(name), settings.serving_folder(name)) for name in chosen]
