"""`geobacter tiles`: building, listing, verifying and looking at tile caches."""

import time

import typer

from geobacter_core.cli.common import (
    CONTEXT,
    RegionName,
    StyleName,
    build_tiles,
    examples,
    known_region,
    size_text,
    table,
)
from geobacter_core.cli.coverage import coverage
from geobacter_core.cli.show import show
from geobacter_core.cli.verify import verify
from geobacter_core.settings import Settings

app = typer.Typer(
    help="Map tiles at zoom 16, kept by region and style in chunks.",
    no_args_is_help=True,
)


@app.command("list", context_settings=CONTEXT)
def list_caches() -> None:
    """List the tile caches, their sizes and what they were made from.

    "one colour" is the share of tiles with nothing on them, "map of" the date of the OpenStreetMap data.
    """
    from geobacter_core.tiles.cache import TileCache, caches_in

    folder = Settings.from_environment().data / "tiles"
    rows: list[tuple[str, ...]] = []
    broken: list[str] = []
    for cache in caches_in(folder):
        if not isinstance(cache, TileCache):
            broken.append(str(cache))
            continue
        found = cache.manifest
        n_tiles = max(found.n_tiles, 1)
        rows.append(
            (
                found.region,
                found.style_label,
                f"{len(found.chunks):,}",
                f"{found.n_tiles:,}",
                f"{found.n_blank / n_tiles:.0%}",
                size_text(found.size_bytes),
                f"{found.size_bytes / n_tiles:,.0f}",
                found.osm_timestamp[:10],
                found.source,
            )
        )
    if rows:
        header = ("region", "style", ">chunks", ">tiles", ">one colour", ">size", ">B/tile", "map of", "source")
        typer.echo(table(header, rows))
    elif not broken:
        typer.echo(f"No tiles in {folder}. Make some: geobacter tiles build REGION", err=True)
    for trouble in broken:
        typer.echo(f"broken: {trouble}", err=True)


@app.command(
    "build",
    context_settings=CONTEXT,
    epilog=examples(
        "geobacter tiles build liechtenstein",
        "geobacter tiles build liechtenstein --style thematic",
        "geobacter tiles build liechtenstein --style osm-carto",
    ),
)
def build(region: RegionName, style: StyleName = None) -> None:
    """Draw a region's tiles; whatever they need is made first.

    That is its extract, which is fetched if it is not there, and its map features. For a style that a tile server draws
    (osm-carto) the tiles come from the region's tile_server.

    Chunks that are there and whole are kept, so a build that was broken off goes on where it stopped, and several at
    once share the work.
    """
    settings = Settings.from_environment()
    known = known_region(settings, region)
    begun = time.monotonic()
    built = build_tiles(settings, known, style or settings.style)
    found = built.manifest
    typer.echo(
        f"{region} {found.style_label}: {built.n_rendered:,} of {len(found.chunks):,} chunks made, "
        f"{found.n_tiles:,} tiles, {size_text(found.size_bytes)}, {time.monotonic() - begun:.1f} s\n"
        f"{settings.tiles_folder(region, found.style)}"
    )


app.command(
    "verify",
    context_settings=CONTEXT,
    epilog=examples("geobacter tiles verify", "geobacter tiles verify liechtenstein --style thematic --repair"),
)(verify)
app.command(
    "show",
    # Western and southern places have coordinates that look like options.
    context_settings={**CONTEXT, "ignore_unknown_options": True},
    epilog=examples(
        "geobacter tiles show 24.9414 60.1719",
        "geobacter tiles show -8.61 41.15 --style thematic --size-m 500 --output porto.png",
    ),
)(show)
app.command(
    "coverage",
    context_settings=CONTEXT,
    epilog=examples("geobacter tiles coverage liechtenstein", "geobacter tiles coverage liechtenstein --tags 100"),
)(coverage)
