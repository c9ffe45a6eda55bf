"""How near Geobacter comes to its limits: rendering to bare Mapnik calls, training and encoding to bare networks.

    .venv/bin/python benchmarks/throughput.py EXTRACT.osm.pbf [--only training] [--styles carto] [--repeats 9]

Every ratio is measured in one run, limit and product in turn, so that a machine whose speed drifts does not bend it.
Rendering: in each style, the same chunks, by the same number of processes, once with `mapnik.render` alone and once
through the tile cache (render, cut, digest, compress, write). Training: the same learner, optimiser and loss, with its
mask of false negatives, on windows cut from the cache as in training, and on one augmented batch that stays in memory.
Encoding: the cells of a region a second, from the tiles to the table on disk, and windows of that region in memory: by
the network as it is registered, called on batches with all of torch's threads, and by the passes of our own that the
table's are, by as many threads. Turns are short and many: on a
machine that others use, two turns of the same work differ by a tenth.
"""

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bare import N_BARE, Bare, seconds
from default_encoder import network_for

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
    import shapely

    from geobacter_core.encoder.data import Batch, RegionData
    from geobacter_core.encoder.settings import TrainSettings

STYLES = ("carto", "thematic", "detailed")
PARTS = ("rendering", "encoding", "places", "training")
HELD_WARM_UP = 4
CUT_WARM_UP = 16
"""Steps before the time is taken: batches come in groups, cut at the group's beginning; so it begins in their midst."""
N_PLACES = 512

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


def prepared(folder: Path, extract_folder: Path, styles: Sequence[str]) -> Path:
    """Map features, and each style's tile cache in `folder`; where the features' files are."""
    extract, pbf = load_extract(extract_folder)
    begun = time.perf_counter()
    build_features(extract, pbf, all_keys(), folder / "features")
    features, files = load_features(folder / "features")
    print(f"map features: {time.perf_counter() - begun:.1f} s, {features.counts}")
    inputs = Inputs(features.digest, features.extract_sha256, features.osm_timestamp)
    for name in styles:
        style = load_style(name)
        begun = time.perf_counter()
        built = build_cache(folder / name, "bench", extract.ground, style, MapnikSource(style, files), inputs)
        print(
            f"{name}: build_cache, cold, starting its processes included: "
            f"{built.manifest.n_tiles / (time.perf_counter() - begun):,.0f} tiles/s, "
            f"{built.manifest.size_bytes / 1e6:.0f} MB"
        )
    return files


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


def encoding(folder: Path, extract_folder: Path, styles: Sequence[str], repeats: int, resolution: int) -> None:
    """Print how near a region's table comes to the bare default network on windows in memory, by style."""
    ground = load_extract(extract_folder)[0].ground
    for name in styles:
        _encoding(folder, ground, name, repeats, resolution)


def _encoding(folder: Path, ground: "shapely.Geometry", name: str, repeats: int, resolution: int) -> None:
    import numpy as np
    import torch

    from geobacter_core.cells import H3Grid
    from geobacter_core.embeddings.embed import embed_region, windows_at_once
    from geobacter_core.encoder.exported import ready
    from geobacter_core.geo import cells_within
    from geobacter_core.tiles.window import WindowReader

    cache = TileCache(folder / name)
    version, network = network_for(name)
    encoder = ready(version, network)
    cells = max(cells_within(ground, resolution), key=len)
    some = np.random.default_rng(0).permutation(len(cells))[:N_BARE]
    reader = WindowReader(cache, version.size_m, version.size_px, version.scales.wider_m)
    held = torch.from_numpy(reader.windows(cells.lon[some], cells.lat[some]))
    bare = Bare(encoder, network, held, windows_at_once(version))
    n_cells = H3Grid(ground, resolution).count()

    def table(repeat: int) -> None:
        path = folder / f"table-{name}-{repeat}" / "embeddings.parquet"
        embed_region(path, cache, H3Grid(ground, resolution), version, lambda _: encoder)

    rates: dict[str, list[float]] = {"plain": [], "passes": [], "table": []}
    for repeat in range(repeats):
        rates["plain"].append(bare.by_network())
        rates["passes"].append(bare.by_passes())
        rates["table"].append(n_cells / seconds(partial(table, repeat)))
    plainly, passing, full = (statistics.median(rates[kind]) for kind in ("plain", "passes", "table"))
    to_plain, to_passes = (
        statistics.median(t / b for t, b in zip(rates["table"], rates[kind], strict=True))
        for kind in ("plain", "passes")
    )
    print(
        f"encoding: {name}, {version.network}, {n_cells:,} cells of resolution {resolution}, 3 windows of "
        f"{version.size_px} px each, to their table: {full:,.0f} cells/s. On windows in memory: the network as it is "
        f"registered, in the best of batches, {plainly:,.0f} cells/s, ratio {to_plain:.3f}; "
        f"our own passes, by as many threads, {passing:,.0f} cells/s, ratio {to_passes:.3f}",
        flush=True,
    )


def places(folder: Path, extract_folder: Path, styles: Sequence[str]) -> None:
    """Print how long windows of places anywhere take to cut, by style: the first time, and again.

    In batches as the API's, by its memory, which then has all of them if the machine has enough; the limit is what
    windows take one after the other along the ground.
    """
    import numpy as np

    from geobacter_core.embeddings.places import Ground, memory_for_tiles
    from geobacter_core.encoder.device import keep_freed_memory
    from geobacter_core.geo import cells_within
    from geobacter_core.tiles.mosaic import ChunkMemory
    from geobacter_core.tiles.window import WindowReader

    keep_freed_memory()
    ground = load_extract(extract_folder)[0].ground
    batches = list(cells_within(ground, 10))
    lon, lat = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("lon", "lat"))
    anywhere = np.random.default_rng(0).permutation(len(lon))[:N_PLACES]
    along_ground = np.arange(N_PLACES) + len(lon) // 2
    for name in styles:
        version, _ = network_for(name)
        cache, memory = TileCache(folder / name), ChunkMemory(memory_for_tiles())
        window = version.size_m, version.size_px, version.scales.wider_m
        by_strips = Ground("bench", ground, cache).reader(*window, memory=memory)
        by_chunks = WindowReader(cache, *window, memory=ChunkMemory(8 << 30))
        ways = {
            "the first time": (by_strips, anywhere),
            "again": (by_strips, anywhere),
            "": (by_chunks, along_ground),
            "along the ground": (by_chunks, along_ground),
        }
        took = {}
        for way, (reader, rows) in ways.items():
            begun = time.perf_counter()
            for some in np.array_split(rows, len(rows) // 32):
                reader.windows(lon[some], lat[some])
            took[way] = (time.perf_counter() - begun) / len(rows) * 1000
        took.pop("")  # until the chunks were decoded
        print(
            f"places: {name}, {N_PLACES} windows of 3 scales, {len(cache.manifest.chunks)} chunks: "
            + ", ".join(f"{way} {each:.2f} ms" for way, each in took.items())
            + f"; {memory.used_bytes >> 20:,} of {memory.budget_bytes >> 20:,} MB in use",
            flush=True,
        )


def training(
    folder: Path, extract_folder: Path, styles: Sequence[str], networks: Sequence[Any], repeats: int, steps: int
) -> None:
    """Print how near training on cut windows comes to one batch in memory, by style and network."""
    from geobacter_core.encoder.data import RegionData
    from geobacter_core.encoder.settings import TrainSettings
    from geobacter_core.samples.settings import SampleSettings
    from geobacter_core.samples.triplets import build_triplets

    extract, _ = load_extract(extract_folder)
    for style in styles:
        cache = TileCache(folder / style)
        path = folder / f"{style}.parquet"
        triplets = build_triplets(path, cache, extract.box, extract.ground, SampleSettings(sample_count=20_000))
        for network in networks:
            _training(RegionData("bench", triplets, cache), TrainSettings(network=network), repeats, steps)


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

    def timed(batches: "Iterator[Batch]", warm_up: int) -> float:
        begun = 0.0
        for number, batch in enumerate(itertools.islice(batches, warm_up + steps)):
            if number == warm_up:
                begun = time.perf_counter()
            float(take_step(learner, optimiser, batch, settings, settings.learning_rate).loss)
        return time.perf_counter() - begun

    with closing(data.batches(0, settings, n_roles(settings), device)) as batches:
        held = next(batches)
        timed(batches, CUT_WARM_UP)  # chunks decoded, kernels chosen
    seconds: dict[str, list[float]] = {"held": [], "cut": []}
    for repeat in range(repeats):
        before = timed(itertools.repeat(held), HELD_WARM_UP)
        with closing(data.batches(repeat * steps, settings, n_roles(settings), device)) as batches:
            seconds["cut"].append(timed(batches, CUT_WARM_UP))
        # Before and after, so that a machine that grows slower favours neither.
        seconds["held"].append((before + timed(itertools.repeat(held), HELD_WARM_UP)) / 2)
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
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=STYLES)
    parser.add_argument("--networks", nargs="+", choices=("small", "resnet18"), default=("small",), help="to train")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=16, help="of training in each turn; a multiple of 16")
    parser.add_argument("--resolution", type=int, default=10, help="of the cells that are encoded")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, extract = Path(name), Path(name) / "extract"
        fetch_extract(Region(name="bench", extract=str(options.extract.resolve())), extract)
        files = prepared(folder, extract, options.styles)
        if "rendering" in options.only:
            for style in options.styles:
                _rendering(folder, style, files, chunks_of(load_extract(extract)[0].ground), options.repeats)
        if "encoding" in options.only:
            encoding(folder, extract, options.styles, options.repeats, options.resolution)
        if "places" in options.only:
            places(folder, extract, options.styles)
        if "training" in options.only:
            training(folder, extract, options.styles, options.networks, options.repeats, options.steps)


if __name__ == "__main__":
    main()
