"""How near Geobacter comes to its limits: rendering to bare Mapnik calls, training to one batch held in memory.

    .venv/bin/python benchmarks/throughput.py EXTRACT.osm.pbf [--repeats 5] [--steps 30]

Every ratio is measured in one run, limit and product in turn, so that a machine whose speed drifts does not bend it.
Rendering: in each style, the same chunks, by the same number of processes, once with `mapnik.render` alone and once
through the tile cache (render, cut, digest, compress, write). Training: the same learner, optimiser and loss, with its
mask of false negatives, on windows cut from the cache as in training, and on one augmented batch that stays in memory.
"""

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from geobacter_core.files import n_processors
from geobacter_core.geo import Tile
from geobacter_core.osm.extract import fetch_extract, load_extract
from geobacter_core.osm.features import build_features, load_features
from geobacter_core.regions import Region
from geobacter_core.tiles.build import Inputs, build_cache
from geobacter_core.tiles.cache import TileCache, chunks_of
from geobacter_core.tiles.chunk import chunk_file, write_chunk
from geobacter_core.tiles.mapnik import MapnikSource, open_maps, rendered
from geobacter_core.tiles.style import all_keys, load_style

if TYPE_CHECKING:
    from geobacter_core.encoder.data import Batch, RegionData
    from geobacter_core.encoder.settings import TrainSettings

STYLES = ("carto", "thematic", "detailed")
WARM_UP = 16
"""Steps before the time is taken: batches come in groups, cut at the group's beginning; so it begins in their midst."""
CONTEXT_M = 400.0

_maps = ()


def _open(style_name: str, files: Path) -> None:
    """Open the maps once per process, as the cache's workers do."""
    global _maps  # noqa: PLW0603 - a process's own
    _maps = open_maps(load_style(style_name), files)


def _bare(chunk: Tile) -> None:
    with rendered(_maps, chunk):
        pass


def _cached(folder: Path, source: MapnikSource, chunk: Tile) -> None:
    write_chunk(chunk_file(folder, chunk), chunk, source.strips(chunk), {})


def rendering(folder: Path, extract_folder: Path, repeats: int) -> None:
    """Print, for each style, tiles per second of bare calls and of the cache, and their ratio."""
    extract, pbf = load_extract(extract_folder)
    begun = time.perf_counter()
    build_features(extract, pbf, all_keys(), folder / "features")
    features, files = load_features(folder / "features")
    print(f"map features: {time.perf_counter() - begun:.1f} s, {features.counts}")
    inputs = Inputs(features.digest, features.extract_sha256, features.osm_timestamp)
    for name in STYLES:
        _rendering(folder, name, files, chunks_of(extract.ground), repeats)
        style = load_style(name)
        begun = time.perf_counter()
        built = build_cache(folder / name, "bench", extract.ground, style, MapnikSource(style, files), inputs)
        print(
            f"{name}: build_cache, cold, starting its processes included: "
            f"{built.manifest.n_tiles / (time.perf_counter() - begun):,.0f} tiles/s, "
            f"{built.manifest.size_bytes / 1e6:.0f} MB"
        )


def _rendering(folder: Path, style_name: str, files: Path, chunks: list[Tile], repeats: int) -> None:
    style = load_style(style_name)
    cached = partial(_cached, folder / "tiles", MapnikSource(style, files))
    rates: dict[str, list[float]] = {"bare": [], "cache": []}
    with ProcessPoolExecutor(n_processors(), multiprocessing.get_context("spawn"), _open, (style_name, files)) as pool:
        for repeat in range(repeats + 1):
            for kind, render_one in (("bare", _bare), ("cache", cached)):
                begun = time.perf_counter()
                list(pool.map(render_one, chunks))
                if repeat:  # the first warms up: maps open, files in the page cache
                    rates[kind].append(256 * len(chunks) / (time.perf_counter() - begun))
    ratio = statistics.median(c / b for c, b in zip(rates["cache"], rates["bare"], strict=True))
    bare, full = (statistics.median(rates[kind]) for kind in ("bare", "cache"))
    print(
        f"{style_name}: {len(chunks)} chunks, {len(style.channels)} channels, {n_processors()} processes: bare Mapnik "
        f"{bare:,.0f} tiles/s, tile cache {full:,.0f} tiles/s, ratio {ratio:.2f}"
    )


def training(folder: Path, extract_folder: Path, repeats: int, steps: int) -> None:
    """Print how near training on cut windows comes to one batch in memory, by style, context and network."""
    from geobacter_core.encoder.data import RegionData
    from geobacter_core.encoder.settings import TrainSettings
    from geobacter_core.samples.settings import SampleSettings
    from geobacter_core.samples.triplets import build_triplets

    extract, _ = load_extract(extract_folder)
    for style in STYLES:
        cache = TileCache(folder / style)
        for context_m in (0.0, CONTEXT_M):
            samples = SampleSettings(sample_count=20_000, context_m=context_m)
            path = folder / f"{style}-{context_m}.parquet"
            triplets = build_triplets(path, cache, extract.box, extract.ground, samples)
            for network in ("resnet18", "small"):
                settings = TrainSettings(network=network, size_px=64)
                _training(RegionData("bench", triplets, cache), settings, repeats, steps)


def _training(region: "RegionData", settings: "TrainSettings", repeats: int, steps: int) -> None:
    """The same steps on one batch in memory, and on batches as they are cut, by turns.

    The loading thread starts with its turn and ends with it: what it does in the other turn would be time stolen there.
    """
    import torch

    from geobacter_core.encoder.data import TripletWindows, check_regions
    from geobacter_core.encoder.device import best_device
    from geobacter_core.encoder.learner import new_learner, take_step
    from geobacter_core.encoder.losses import n_roles

    device = best_device()
    spec = check_regions([region]).seen_by(settings)
    data = TripletWindows([region], "train", settings.size_px, settings.window_memory_mb << 20, spec.scales)
    learner = new_learner(spec, settings, data, device).train()
    optimiser = torch.optim.AdamW(learner.parameters(), lr=settings.learning_rate)

    def timed(batches: "Iterator[Batch]") -> float:
        begun = 0.0
        for number, batch in enumerate(itertools.islice(batches, WARM_UP + steps)):
            if number == WARM_UP:
                begun = time.perf_counter()
            float(take_step(learner, optimiser, batch, settings, settings.learning_rate).loss)
        return time.perf_counter() - begun

    with closing(data.batches(0, settings, n_roles(settings), device)) as batches:
        held = next(batches)
        timed(batches)  # warms up: chunks decoded, kernels chosen
    seconds: dict[str, list[float]] = {"held": [], "cut": []}
    for repeat in range(repeats):
        seconds["held"].append(timed(itertools.repeat(held)))
        with closing(data.batches(repeat * steps, settings, n_roles(settings), device)) as batches:
            seconds["cut"].append(timed(batches))
    ratio = statistics.median(h / c for h, c in zip(seconds["held"], seconds["cut"], strict=True))
    rates = {kind: steps * len(held.windows) / statistics.median(taken) for kind, taken in seconds.items()}
    context = f" with a context of {region.triplets.context_m:g} m" if region.triplets.context_m else ""
    print(
        f"training: {region.cache.manifest.style}{context}, {settings.network}, {settings.size_px} px, "
        f"{len(held.windows)} windows a step on {device}: one batch in memory {rates['held']:,.0f} windows/s, "
        f"cut from the cache {rates['cut']:,.0f} windows/s, ratio {ratio:.3f}",
        flush=True,
    )


def main() -> None:
    """Measure on an extract, in a folder that goes away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extract", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=48, help="in each turn; a multiple of 16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fetch_extract(Region(name="bench", extract=str(options.extract.resolve())), folder / "extract")
        rendering(folder, folder / "extract", options.repeats)
        training(folder, folder / "extract", options.repeats, options.steps)


if __name__ == "__main__":
    main()
