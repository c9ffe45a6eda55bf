"""`geobacter samples`: triplets, with the options of the original Geobacter."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from geobacter_core.cli.common import CONTEXT, Bar, RegionName, StyleName, examples, known_region, missing_cache
from geobacter_core.settings import Settings

app = typer.Typer(help="Triplets of places that an encoder learns from.", no_args_is_help=True)


@app.callback()
def _samples() -> None:
    """Make Typer keep the group although it has one command."""


@app.command(
    "generate",
    context_settings=CONTEXT,
    epilog=examples(
        "geobacter samples generate helsinki",
        "geobacter samples generate porto --buffer 100 --context 0 --distance 500 --seed 7",
        "geobacter samples generate porto --path triplets.parquet",
    ),
)
def generate(
    region: RegionName,
    sample_count: Annotated[
        int | None,
        typer.Option(
            min=10,
            max=20_000_000,
            metavar="N",
            help="Triplets to draw.",
            show_default="1,500 per km² of ground, 4,000 to 100,000",
        ),
    ] = None,
    buffer_m: Annotated[
        float,
        typer.Option(
            "--buffer",
            min=10,
            max=1000,
            metavar="METRES",
            help="How far a window reaches from its place to each side: windows are twice as wide.",
        ),
    ] = 50,
    context_m: Annotated[
        float | None,
        typer.Option(
            "--context",
            min=0,
            max=4000,
            metavar="METRES",
            help="Side of the wider window around the same place that goes with each window; 0 for none.",
            show_default="400, or 200 in a region less than 2 km wide or high",
        ),
    ] = None,
    distance_m: Annotated[
        float | None,
        typer.Option(
            "--distance",
            min=1,
            max=50_000,
            metavar="METRES",
            help="Largest distance of the near place from the anchor. The far place is at least twice as far.",
            show_default="100, or a tenth of the region's side if that is less",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**31 - 1, metavar="N", help="Of every random choice; the same, the same triplets."),
    ] = 1,
    path: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            metavar="FILE",
            help="Parquet file to write.",
            show_default="the region's own, samples/REGION/triplets.parquet in the data folder",
        ),
    ] = None,
    style: StyleName = None,
) -> None:
    """Draw triplets from a region's tiles into a Parquet file.

    Places with nothing to see are mostly left out, and train and test places lie in separate blocks of ground. The
    tiles must be there: `geobacter tiles build REGION`.
    """
    from geobacter_core.osm.extract import load_extract
    from geobacter_core.samples.settings import SampleSettings
    from geobacter_core.samples.triplets import build_triplets
    from geobacter_core.tiles.cache import MANIFEST, open_cache
    from geobacter_core.tiles.style import load_style

    settings = Settings.from_environment()
    settings = dataclasses.replace(settings, style=load_style(style or settings.style).name)
    known = known_region(settings, region)
    if not (settings.tiles_folder(region, settings.style) / MANIFEST).is_file():
        raise missing_cache(region, settings.style)
    cache = open_cache(settings, known)
    extract, _ = load_extract(settings.extract_folder(region))
    drawing = SampleSettings(
        sample_count=sample_count, size_m=2 * buffer_m, context_m=context_m, distance_m=distance_m, seed=seed
    )
    file = path.resolve() if path else settings.triplets_file(region)
    with Bar(f"{region} {settings.style}", "triplets") as bar:
        triplets = build_triplets(file, cache, extract.box, extract.ground, drawing, bar)
    found = triplets.metadata
    context = f" in {triplets.context_m:g} m" if triplets.context_m else ""
    typer.echo(
        f"{region} {found['style']}: {len(triplets.table):,} triplets ({found['n_train']:,} train, "
        f"{found['n_test']:,} test), windows {triplets.size_m:g} m wide{context}, near within "
        f"{found['distance_m']:g} m, seed {found['seed']}\n{file}"
    )
