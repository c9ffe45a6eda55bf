"""`geobacter tiles coverage`: what a thematic style's channels take of a region's map features."""

from typing import Annotated

import typer

from geobacter_core.cli.common import RegionName, known_region, table
from geobacter_core.settings import DEFAULT_STYLE, Settings


def coverage(
    region: RegionName,
    style: Annotated[str, typer.Option(metavar="NAME", help="A style of thematic channels.")] = DEFAULT_STYLE,
    n_tags: Annotated[
        int, typer.Option("--tags", min=0, max=1000, metavar="N", help="Tags to list of what no channel takes.")
    ] = 20,
) -> None:
    """Count what each thematic channel takes of the map features.

    "share" is of all that can be drawn; an object may be in several channels. The most frequent tags of what no channel
    takes follow. The map features must be there: `geobacter tiles build REGION`.
    """
    from geobacter_core.osm.features import load_features
    from geobacter_core.tiles.coverage import measure_coverage
    from geobacter_core.tiles.style import load_style

    settings = Settings.from_environment()
    name = known_region(settings, region).name
    _, files = load_features(settings.features_folder(name))
    found = measure_coverage(load_style(style), files, n_tags)
    counts = [*found.channels.items(), ("no channel", found.untaken), ("all", found.objects)]
    rows = [
        (
            channel,
            *(f"{n:,}" for n in (count.points, count.lines, count.polygons, count.total)),
            f"{found.share(count):.1%}",
        )
        for channel, count in counts
    ]
    typer.echo(table((found.style, ">points", ">lines", ">polygons", ">objects", ">share"), rows))
    if found.untaken_tags:
        tags = [(untaken.tag, untaken.geometry, f"{untaken.n_objects:,}") for untaken in found.untaken_tags]
        typer.echo("\n" + table(("in no channel", "geometry", ">objects"), tags))
