"""How near Geobacter comes to its limits: rendering to bare Mapnik calls, training to one batch held in memory.

    .venv/bin/python benchmarks/throughput.py EXTRACT.osm.pbf [--repeats 5] [--steps 30]

Every ratio is measured in one run, limit and product in turn, so that a machine whose speed drifts does not bend it.
Rendering: in both styles, the same chunks, by the same number of processes, once with `mapnik.render` alone and once
through the tile cache (render, cut, digest, compress, write). Training: the same network and optimiser, on windows cut
from the cache as in training, and on one augmented batch that stays in memory.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

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

STYLES = ("carto", "thematic")

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


def training(folder: Path, extract_folder: Path, steps: int) -> None:
    """Print images per second of training on cut windows and on one batch in memory, and their ratio."""
    import numpy as np
    import torch

    from geobacter_core.encoder.data import RegionData, TripletWindows
    from geobacter_core.encoder.device import best_device
    from geobacter_core.encoder.network import random_network
    from geobacter_core.encoder.settings import TrainSettings
    from geobacter_core.encoder.train import _step
    from geobacter_core.samples.settings import SampleSettings
    from geobacter_core.samples.triplets import build_triplets

    extract, _ = load_extract(extract_folder)
    cache = TileCache(folder / "carto")
    settings = TrainSettings()
    wanted = SampleSettings(sample_count=max(4000, 3 * steps * settings.batch_size))
    triplets = build_triplets(folder / "triplets.parquet", cache, extract.box, extract.ground, wanted)
    data = TripletWindows([RegionData("bench", triplets, cache)], "train", settings.size_px, 2 << 30)
    device = best_device()
    network = random_network(cache.n_channels, settings.embedding_dim, 1).to(device).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
    rng = np.random.default_rng(1)
    batches = data.batches(settings.batch_size, rng, device, settings.max_shift)
    held = next(batches)
    for _ in range(4):
        _step(network, optimiser, next(batches), settings.margin, device)
    # Step by step in turn, so that both see the same machine; the loader works while either computes.
    seconds = {"held": 0.0, "cut": 0.0}
    for _ in range(steps):
        for kind in seconds:
            begun = time.perf_counter()
            _step(network, optimiser, held if kind == "held" else next(batches), settings.margin, device)
            seconds[kind] += time.perf_counter() - begun
    rates = {kind: steps * len(held) / taken for kind, taken in seconds.items()}
    print(
        f"training: {settings.size_px} px, batches of {settings.batch_size} triplets on {device}: one batch in memory "
        f"{rates['held']:,.0f} images/s, cut from the cache {rates['cut']:,.0f} images/s, "
        f"ratio {rates['cut'] / rates['held']:.2f}"
    )


def main() -> None:
    """Measure on an extract, in a folder that goes away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extract", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fetch_extract(Region(name="bench", extract=str(options.extract.resolve())), folder / "extract")
        rendering(folder, folder / "extract", options.repeats)
        training(folder, folder / "extract", options.steps)


if __name__ == "__main__":
    main()
