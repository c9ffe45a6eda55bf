"""How time and memory grow with a region: an extract laid side by side 1, 4, 16 and 64 times, stage by stage.

    .venv/bin/python benchmarks/scale.py [EXTRACT.osm.pbf] [--sizes 1 4 16 64] [--style carto] [--keep FOLDER]

Every stage of every size runs in a process of its own. Time is that of the stage's call. Memory is the largest resident
set of any one process; of the stage's own process also the largest anonymous part, which the kernel cannot take back as
it can the pages of files (osmium's table of node locations is one). Size 0 is a region of nine hamlets in nine chunks:
what a stage takes to import libraries and to start workers however large the region is. In the time of a small region
that is a large share, which makes growth look slower than it is: exponents are given with and without it.

64 × Liechtenstein has 20 million nodes, takes two minutes to lay out, and 3 GB of disk while it is measured.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

# Other imports are in the functions. On Linux a process starts with the peak memory of the one that started it as its
# own, so that the one that starts the stages must be small.

LIECHTENSTEIN = Path(__file__).parents[2] / "shared/osm/liechtenstein/li_2024-03-04_seq3988.osm.pbf"
STAGES = ("fetch_extract", "map_features", "tile_cache", "triplet_samples", "training")
START = 0
REPEATS = {START: 3, 1: 3, 4: 2}
"""Short runs are repeated and the fastest counts: a moment of a busy machine would bend the fit."""
N_STEPS = 20
WINDOW_MEMORY_MB = 256
"""Of a training: room for few of the larger regions' chunks."""
_ID_BITS = 16


def lay_out(source: Path, target: Path, n_copies: int) -> None:
    """Write copies of an extract in a square, as one extract: sorted by type and id, with a header box.

    Copies are whole chunks apart in web mercator: each has the same pixels on as many chunks, and only its scale on the
    ground changes, by a tenth over the eight rows of 64 Liechtensteins. They are as far apart as their nodes reach,
    which is further than the extract's own box, because extracts keep ways whole that leave it. The header's box is all
    of that, also for one copy, which would otherwise lose at its edge what a copy among others keeps.
    """
    import numpy as np
    import osmium
    from tqdm import tqdm

    from geobacter_core.geo import CHUNK_PX, lonlat_to_pixel, pixel_to_lonlat

    side = math.isqrt(n_copies)
    nodes: Any = osmium.FileProcessor(str(source), osmium.osm.NODE)
    lon, lat = np.array([(node.location.lon, node.location.lat) for node in nodes]).T
    chunks = np.stack(lonlat_to_pixel(lon, lat)) / CHUNK_PX
    low, high = np.floor(chunks.min(axis=1)), np.floor(chunks.max(axis=1)) + 1
    apart = (high - low)[:, None] * CHUNK_PX
    shifts = (np.stack(np.divmod(np.arange(n_copies), side)) - side // 2) * apart
    (west, east), (north, south) = pixel_to_lonlat(
        *(np.stack([low, high], axis=1) * CHUNK_PX + np.stack([shifts[:, 0], shifts[:, -1]], axis=1))
    )
    header = osmium.io.Header()
    header.set("generator", "geobacter benchmarks/scale.py")
    header.set("sorting", "Type_then_ID")
    # Without a time there, fetch_extract looks for the newest object.
    header.set("osmosis_replication_timestamp", "2024-01-01T00:00:00Z")
    header.add_box(osmium.osm.Box(west, south, east, north))

    def moved(id_: int, copy: int) -> int:
        # Of each 65,536 ids in turn, all copies follow one another. So the file is sorted without sorting, and mixed as
        # a country's is: what was mapped in one go lies together, a town and its neighbour do not.
        return ((id_ >> _ID_BITS) * n_copies + copy) << _ID_BITS | id_ & ((1 << _ID_BITS) - 1)

    with (
        osmium.SimpleWriter(str(target), header=header, overwrite=True) as writer,
        tqdm(desc=target.name, unit=" objects", unit_scale=True, disable=None) as bar,
    ):
        for kind, block in _blocks(source):
            ids = [item.id for item, _ in block]
            if kind == "n":
                x, y = lonlat_to_pixel(*np.array([place for _, place in block]).T)
                lon, lat = pixel_to_lonlat(x + shifts[0][:, None], y + shifts[1][:, None])
            for copy in range(n_copies):
                if kind == "n":
                    places = zip(lon[copy].tolist(), lat[copy].tolist(), strict=True)
                    for (node, _), id_, place in zip(block, ids, places, strict=True):
                        node.id, node.location = moved(id_, copy), place
                        writer.add_node(node)
                elif kind == "w":
                    for (way, refs), id_ in zip(block, ids, strict=True):
                        way.id, way.nodes = moved(id_, copy), [moved(ref, copy) for ref in refs]
                        writer.add_way(way)
                else:
                    for (relation, members), id_ in zip(block, ids, strict=True):
                        relation.id = moved(id_, copy)
                        relation.members = [(type_, moved(ref, copy), role) for type_, ref, role in members]
                        writer.add_relation(relation)
            bar.update(n_copies * len(block))


def _blocks(source: Path) -> Iterator[tuple[str, list[tuple[Any, Any]]]]:
    """Of each 65,536 ids in turn, the kind (n, w, r) and the objects: copies to change, and what they consist of."""
    import osmium

    def objects() -> Iterator[tuple[str, Any, Any]]:
        item: Any
        for item in osmium.FileProcessor(str(source)):
            copy = item.replace(tags=dict(item.tags))
            if item.is_node():
                yield "n", copy, (item.location.lon, item.location.lat)
            elif item.is_way():
                yield "w", copy, [node.ref for node in item.nodes]
            else:
                yield "r", copy, [(member.type, member.ref, member.role) for member in item.members]

    for (kind, _), block in groupby(objects(), key=lambda found: (found[0], found[1].id >> _ID_BITS)):
        yield kind, [found[1:] for found in block]


def write_hamlet(target: Path) -> None:
    """Write an extract of one house, one road and one tree in the middle of a chunk."""
    import osmium

    from geobacter_core.geo import CHUNK_ZOOM, Place, Tile

    middle = Tile.at(Place(9.5, 47.1), CHUNK_ZOOM).polygon.centroid
    corners = ((0.0, 0.0), (0.0002, 0.0), (0.0002, 0.0001), (0.0, 0.0001))
    Node, Way = osmium.osm.mutable.Node, osmium.osm.mutable.Way  # noqa: N806 - classes
    with osmium.SimpleWriter(str(target), overwrite=True) as writer:
        for id_, (lon, lat) in enumerate(corners, start=1):
            writer.add_node(Node(id=id_, location=(middle.x + lon, middle.y + lat), tags={"natural": "tree"}))
        writer.add_way(Way(id=1, nodes=[1, 2, 3, 4, 1], tags={"building": "yes"}))
        writer.add_way(Way(id=2, nodes=[1, 3], tags={"highway": "residential"}))


def run_stage(stage: str, data: Path, style: str) -> str:
    """Run one stage on the extract `data/extract.osm.pbf`; returns what it made, in words."""
    from geobacter_core.osm.extract import fetch_extract, load_extract
    from geobacter_core.regions import Region
    from geobacter_core.settings import Settings

    settings = Settings.from_environment({"GEOBACTER_DATA": str(data)})
    region = Region(name="scale", extract=str(data / "extract.osm.pbf"))
    if stage == "fetch_extract":
        return f"{fetch_extract(region, settings.extract_folder(region.name)).counts.nodes:,} nodes"
    if stage == "map_features":
        from geobacter_core.osm.features import build_features
        from geobacter_core.tiles.style import all_keys

        extract, pbf = load_extract(settings.extract_folder(region.name))
        features = build_features(extract, pbf, all_keys(), settings.features_folder(region.name))
        return f"{sum(features.counts.values()):,} features"
    if stage == "tile_cache":
        from geobacter_core.tiles.region import build_region

        return f"{len(build_region(settings, region, style).manifest.chunks):,} chunks"
    from geobacter_core.samples.triplets import load_triplets
    from geobacter_core.tiles.cache import TileCache

    cache, path = TileCache(settings.tiles_folder(region.name, style)), settings.triplets_file(region.name)
    if stage == "triplet_samples":
        from geobacter_core.samples.settings import SampleSettings
        from geobacter_core.samples.triplets import build_triplets

        extract, _ = load_extract(settings.extract_folder(region.name))
        triplets = build_triplets(path, cache, extract.box, extract.ground, SampleSettings())
        return f"{len(triplets.table):,} triplets"
    from geobacter_core.encoder.data import RegionData
    from geobacter_core.encoder.settings import TrainSettings
    from geobacter_core.encoder.train import train

    limits = TrainSettings(max_steps=N_STEPS, window_memory_mb=WINDOW_MEMORY_MB)
    return f"{train([RegionData(region.name, load_triplets(path), cache)], limits).n_steps} steps"


def measure(stage: str, data: Path, style: str) -> dict[str, Any]:
    """Run one stage in this process: what it made, its time in seconds, and peaks of memory in MB."""
    with _watched() as anonymous_mb:
        begun = time.perf_counter()
        made = run_stage(stage, data, style)
        seconds = time.perf_counter() - begun
    own, worker = (resource.getrusage(who).ru_maxrss / 1e3 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"made": made, "seconds": seconds, "own": own, "worker": worker, "anonymous": anonymous_mb()}


@contextmanager
def _watched() -> Iterator[Callable[[], float]]:
    """Look at this process's anonymous memory 20 times a second; gives its peak so far, in MB."""
    peak_kb = 0
    is_over = threading.Event()

    def look() -> None:
        nonlocal peak_kb
        while not is_over.wait(0.05):
            status = Path("/proc/self/status").read_text(encoding="ascii")
            peak_kb = max(peak_kb, int(status.partition("RssAnon:")[2].split()[0]))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield lambda: peak_kb / 1e3
    finally:
        is_over.set()
        watcher.join()


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """The slope of log time over log size, by least squares."""
    logs = [(math.log(size), math.log(taken)) for size, taken in zip(sizes, seconds, strict=True)]
    x_mean, y_mean = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    return sum((x - x_mean) * (y - y_mean) for x, y in logs) / sum((x - x_mean) ** 2 for x, _ in logs)


def _in_own_process(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "--step", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def step(name: str, *arguments: str) -> dict[str, Any]:
    """What `_in_own_process` asks for: an extract to be laid out, or a stage to be measured."""
    if name in STAGES:
        data, style = arguments
        return measure(name, Path(data), style)
    source, target, n_copies = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    unfinished = target.with_name(f"unfinished-{target.name}")
    if n_copies == START:
        source, n_copies = target.with_name("hamlet.osm.pbf"), 9
        write_hamlet(source)
    lay_out(source, unfinished, n_copies)
    unfinished.replace(target)
    return {}


def report(results: dict[str, dict[int, dict[str, Any]]], sizes: list[int]) -> None:
    """Print how each stage grows: exponents of time, ratios of memory."""
    print(f"\n{'time grows by the power':44}{'memory of a process':>26}")
    span, step_up = f"{sizes[0]}x to {sizes[-1]}x", f"{sizes[-2]}x to {sizes[-1]}x"
    print(f"{'':16}{span:>14}{'net of 0x':>14}{step_up:>14}{span:>14}{'anonymous':>12}")
    for stage, of_size in results.items():
        seconds = [of_size[size]["seconds"] for size in sizes]
        net = [taken - of_size[START]["seconds"] for taken in seconds]
        first, last = of_size[sizes[0]], of_size[sizes[-1]]
        memory = max(last["own"], last["worker"]) / max(first["own"], first["worker"])
        anonymous = last["anonymous"] / first["anonymous"]
        print(
            f"{stage:16}{exponent(sizes, seconds):>14.2f}{exponent(sizes, net):>14.2f}"
            f"{exponent(sizes[-2:], seconds[-2:]):>14.2f}{f'x {memory:.2f}':>14}"
            f"{f'x {anonymous:.2f}':>12}"
        )


def main() -> None:
    """Lay out, measure, print; or, asked to by itself, one step of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extract", type=Path, nargs="?", default=LIECHTENSTEIN)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16, 64], help="square numbers of copies")
    parser.add_argument("--style", default="carto")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="lay extracts out here, or find them, and keep them"
    )
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(*options.step)))
        return
    sizes = sorted(set(options.sizes))
    if any(size < 1 or math.isqrt(size) ** 2 != size for size in sizes):
        parser.error("sizes are square numbers")
    results: dict[str, dict[int, dict[str, Any]]] = {stage: {} for stage in STAGES}
    print(f"{'':16}{'size':>6}{'made':>20}{'seconds':>10}{'own MB':>10}{'anonymous':>10}{'worker':>10}")
    with tempfile.TemporaryDirectory(dir=options.keep) as name:
        for size in (START, *sizes):
            target = (options.keep or Path(name)) / f"{size}x.osm.pbf"
            if not target.exists():
                _in_own_process("lay_out", options.extract.resolve(), target.resolve(), size)
            for _ in range(REPEATS.get(size, 1)):
                with tempfile.TemporaryDirectory(dir=name) as data:
                    (Path(data) / "extract.osm.pbf").symlink_to(target.resolve())
                    for stage in STAGES:
                        found = _in_own_process(stage, data, options.style)
                        results[stage].setdefault(size, found)
                        if found["seconds"] < results[stage][size]["seconds"]:
                            results[stage][size] = found
            for stage in STAGES:
                row = results[stage][size]
                print(
                    f"{stage:16}{size:>5}x{row['made']:>20}{row['seconds']:>10.1f}{row['own']:>10.0f}"
                    f"{row['anonymous']:>10.0f}{row['worker']:>10.0f}",
                    flush=True,
                )
    if len(sizes) > 1:
        report(results, sizes)


if __name__ == "__main__":
    main()
