"""A cold tile cache from the embedded renderer and from a real OSM tile server, side by side.

    .venv/bin/python benchmarks/tile_server.py EXTRACT.osm.pbf [--repeats 3]

Both make the same chunks, in turn, with as many rendering processes or threads as there are processors, and write them
into an empty cache. Both are up when the clock starts: processes run, maps are loaded, the server's database is
imported and the embedded renderer's features are built; but the server has no rendered tile. It is renderd, mod_tile
and OSM Carto over PostgreSQL, from Debian's packages (installed if need be, by root).

Rates are given by the clock and by the processor seconds that all processes of a build spent, the server's included:
the second do not change with what else the machine is doing.
"""

import argparse
import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from geobacter_core.files import n_processors
from geobacter_core.geo import Tile
from geobacter_core.osm.extract import Extract, fetch_extract, load_extract
from geobacter_core.osm.features import build_features, load_features
from geobacter_core.regions import Region
from geobacter_core.tiles.build import Inputs, build_cache
from geobacter_core.tiles.cache import chunks_of
from geobacter_core.tiles.chunk import chunk_file, write_chunk
from geobacter_core.tiles.mapnik import MapnikSource
from geobacter_core.tiles.server import ServerSource
from geobacter_core.tiles.style import all_keys, load_style

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from tileserver.debian import unavailable
from tileserver.stack import TileServer


@dataclass(frozen=True, slots=True)
class Cost:
    """What a cold build took: seconds by the clock, and processor seconds of all processes together."""

    wall_s: float
    cpu_s: float


def _make(folder: Path, source: MapnikSource, chunk: Tile) -> float:
    """Make a chunk; processor seconds."""
    begun = time.process_time()
    write_chunk(chunk_file(folder, chunk), chunk, source.strips(chunk), {})
    return time.process_time() - begun


def embedded_build(pool: ProcessPoolExecutor, source: MapnikSource, chunks: list[Tile]) -> Cost:
    """Make the chunks in the pool, in a folder that goes away."""
    with tempfile.TemporaryDirectory() as name:
        begun = time.perf_counter()
        cpu_s = sum(pool.map(partial(_make, Path(name), source), chunks))
        return Cost(time.perf_counter() - begun, cpu_s)


def server_build(server: TileServer, extract: Extract) -> Cost:
    """Fill a cache of the extract's ground, in a folder that goes away, from the server without rendered tiles."""
    server.forget_tiles()
    style, inputs = load_style("osm-carto"), Inputs(extract.sha256, extract.sha256, extract.osm_timestamp)
    with tempfile.TemporaryDirectory() as name:
        begun, cpu_begun = time.perf_counter(), time.process_time() + server.cpu_seconds()
        build_cache(Path(name), "bench", extract.ground, style, ServerSource(server.url), inputs)
        return Cost(time.perf_counter() - begun, time.process_time() + server.cpu_seconds() - cpu_begun)


def compare(folder: Path, extract: Extract, pbf: Path, repeats: int) -> None:
    """Print the rates of both builds, repeat by repeat and per core, and their ratio."""
    build_features(extract, pbf, all_keys(), folder / "features")
    source = MapnikSource(load_style("carto"), load_features(folder / "features")[1])
    chunks, cores = chunks_of(extract.ground), n_processors()
    n_tiles = 256 * len(chunks)
    costs: list[tuple[Cost, Cost]] = []
    with (
        ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool,
        TileServer(pbf, render_threads=cores) as server,
    ):
        embedded_build(pool, source, chunks)  # opens the maps
        for _ in range(repeats):
            costs.append((embedded_build(pool, source, chunks), server_build(server, extract)))
            embedded, served = costs[-1]
            print(
                f"{n_tiles} tiles, {cores} cores: embedded {embedded.wall_s:.1f} s ({embedded.cpu_s:.1f} processor "
                f"seconds), tile server {served.wall_s:.1f} s ({served.cpu_s:.1f} processor seconds)"
            )
    for clock, unit in (("wall_s", cores), ("cpu_s", 1)):
        seconds = [[getattr(cost, clock) * unit for cost in pair] for pair in costs]
        embedded_rate, server_rate = (n_tiles / statistics.median(column) for column in zip(*seconds, strict=True))
        ratio = statistics.median(served / embedded for embedded, served in seconds)
        basis = "second and core" if clock == "wall_s" else "processor second"
        print(
            f"cold tiles per {basis}: embedded {embedded_rate:,.0f}, tile server {server_rate:,.0f}, ratio {ratio:.1f}"
        )


def main() -> None:
    """Measure on an extract, in a folder that goes away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extract", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if reason := unavailable():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fetch_extract(Region(name="bench", extract=str(options.extract.resolve())), folder / "extract")
        compare(folder, *load_extract(folder / "extract"), options.repeats)


if __name__ == "__main__":
    main()
