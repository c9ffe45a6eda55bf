"""How near Geobacter comes to its limits: rendering to bare Mapnik calls, training to one batch held in memory.

    .venv/bin/python benchmarks/throughput.py EXTRACT.osm.pbf [--repeats 5] [--steps 30]

Both ratios are measured in one run, limit and product in turn, so that a machine whose speed drifts does not bend them.
Rendering: the same chunks, by the same number of processes, once with `mapnik.render` alone and once through the tile
cache (render, cut, digest, compress, write). Training: the same network and optimiser, on windows cut from the cache as
in training, and on one augmented batch that stays in memory.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from geobacter_core.osm.extract import fetch_extract, load_extract
from geobacter_core.osm.features import build_features, load_features
from geobacter_core.regions import Region
from geobacter_core.tiles import cache as tile_cache
from geobacter_core.tiles.mapnik import MapnikSource, open_map, render
from geobacter_core.tiles.style import all_keys, load_style

_map = None


def _open(style_name: str, files: Path) -> None:
    """Open the map once per process, as the cache's workers do."""
    global _map  # noqa: PLW0603 - a process's own
    _map = open_map(load_style(style_name), files)


def _bare(chunk: object) -> None:
    render(_map, chunk)  # type: ignore[arg-type]


def _render_job(job: "tile_cache._Job", chunk: object) -> None:
    outcome = tile_cache._render(job, chunk)  # type: ignore[arg-type]
    if isinstance(outcome, Exception):
        raise outcome


def rendering(folder: Path, extract_folder: Path, repeats: int) -> None:
    """Print tiles per second of bare calls and of the cache, and their ratio."""
    extract, pbf = load_extract(extract_folder)
    begun = time.perf_counter()
    build_features(extract, pbf, all_keys(), folder / "features")
    features, files = load_features(folder / "features")
    print(f"map features: {time.perf_counter() - begun:.1f} s, {features.counts}")
    style = load_style("carto")
    source = MapnikSource(style, files)
    chunks = tile_cache.chunks_of(extract.ground)
    n_tiles, workers = 256 * len(chunks), tile_cache.n_workers()
    context = multiprocessing.get_context("spawn")
    rates: dict[str, list[float]] = {"bare": [], "cache": []}
    job = tile_cache._Job(folder / "tiles", source, {})
    job.folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, context, _open, ("carto", files)) as pool:
        list(pool.map(_render_job, [job] * len(chunks), chunks))  # warm: maps open, files in the page cache
        list(pool.map(_bare, chunks))
        for _ in range(repeats):
            begun = time.perf_counter()
            list(pool.map(_bare, chunks))
            rates["bare"].append(n_tiles / (time.perf_counter() - begun))
            begun = time.perf_counter()
            list(pool.map(_render_job, [job] * len(chunks), chunks))
            rates["cache"].append(n_tiles / (time.perf_counter() - begun))
    ratio = statistics.median(c / b for c, b in zip(rates["cache"], rates["bare"], strict=True))
    bare, cached = (statistics.median(rates[kind]) for kind in ("bare", "cache"))
    print(
        f"rendering: {len(chunks)} chunks, {workers} processes: bare Mapnik {bare:,.0f} tiles/s, "
        f"tile cache {cached:,.0f} tiles/s, ratio {ratio:.2f}"
    )
    begun = time.perf_counter()
    built = tile_cache.build_cache(folder / "cold", "bench", extract.ground, style, source, features)
    print(
        f"build_cache, cold, starting its processes included: {n_tiles / (time.perf_counter() - begun):,.0f} tiles/s, "
        f"{sum(chunk.size_bytes for chunk in built.manifest.chunks) / 1e6:.0f} MB"
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
    cache = tile_cache.TileCache(folder / "cold")
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
