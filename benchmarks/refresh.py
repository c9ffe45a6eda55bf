"""What a refresh costs: time to render and to encode against that of a full build, by the share of cells that changed.

    .venv/bin/python benchmarks/refresh.py EXTRACT.osm.pbf [--style detailed] [--resolution 10] [--repeats 3]

Edits are made up: the buildings nearest to one place are taken away, one or a village's or a town's; `scattered` takes
as many single buildings all over the region, which is the dearest way to change little. Each refresh begins with the
same full build, and with the default network (random weights are as fast as any). The fastest of the repeats counts.
"""

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from default_encoder import encoder_for

if TYPE_CHECKING:
    from geobacter_core.embeddings.embed import EmbedResult
    from geobacter_core.encoder.version import Encoder

NEAR = (0, 1, 10, 100, 500, 1000, 4000)
SCATTERED = (3, 10, 30)


@dataclass(frozen=True)
class Times:
    """Seconds of each step."""

    features: float
    tiles: float
    table: float

    @property
    def counted(self) -> float:
        """Rendering and encoding together."""
        return self.tiles + self.table


def without(source: Path, target: Path, ways: Collection[int]) -> None:
    """A copy of an extract without some ways, a day later."""
    import osmium

    with osmium.io.Reader(str(source)) as reader:
        header = reader.header()
    header.set("osmosis_replication_timestamp", "2099-01-01T00:00:00Z" if ways else "2098-01-01T00:00:00Z")
    with osmium.SimpleWriter(str(target), header=header, overwrite=True) as writer:
        for item in osmium.FileProcessor(str(source)):
            if not (item.is_way() and item.id in ways):
                writer.add(item)


def buildings(source: Path) -> list[tuple[int, float, float]]:
    """Way, longitude and latitude of each building."""
    import osmium

    ways = osmium.FileProcessor(str(source)).with_locations().with_filter(osmium.filter.KeyFilter("building"))
    return [
        (way.id, way.nodes[0].location.lon, way.nodes[0].location.lat)
        for way in ways
        if way.is_way() and way.nodes[0].location.valid()
    ]


def brought_up_to_date(data: Path, pbf: Path, encoder: "Encoder", resolution: int) -> "tuple[EmbedResult, int, Times]":
    """The chain of a region from a file: its table, the chunks that were rendered, and the seconds of each step."""
    from geobacter_core.cells import H3Grid
    from geobacter_core.embeddings.embed import embed_region
    from geobacter_core.osm.extract import fetch_extract, load_extract
    from geobacter_core.osm.features import build_features
    from geobacter_core.regions import Region
    from geobacter_core.settings import Settings
    from geobacter_core.tiles.cache import open_cache
    from geobacter_core.tiles.region import build_region
    from geobacter_core.tiles.style import all_keys

    style = encoder.version.style
    settings = Settings.from_environment({"GEOBACTER_DATA": str(data), "GEOBACTER_STYLE": style})
    region = Region(name="bench", extract=str(pbf), cell_resolution=resolution)
    fetch_extract(region, settings.extract_folder(region.name))
    extract, path = load_extract(settings.extract_folder(region.name))
    at = [time.perf_counter()]
    build_features(extract, path, all_keys(), settings.features_folder(region.name))
    at.append(time.perf_counter())
    built = build_region(settings, region, style)
    at.append(time.perf_counter())
    cache, table = open_cache(settings, region), settings.embeddings_file(region.name)
    made = embed_region(table, cache, H3Grid(extract.ground, resolution), encoder.version, lambda _: encoder)
    at.append(time.perf_counter())
    return made, built.n_rendered, Times(*(end - begin for begin, end in pairwise(at)))


def main() -> None:
    """Print the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extract", type=Path)
    parser.add_argument("--style", default="detailed")
    parser.add_argument("--resolution", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    encoder = encoder_for(options.style)
    all_buildings = buildings(options.extract)
    # From the building in whose neighbourhood there are most.
    centre = max(
        all_buildings[:: max(1, len(all_buildings) // 200)],
        key=lambda one: sum(abs(one[1] - other[1]) + abs(one[2] - other[2]) < 0.01 for other in all_buildings),
    )
    nearest = sorted(all_buildings, key=lambda one: math.hypot(one[1] - centre[1], 1.5 * (one[2] - centre[2])))
    edits = [(f"{n} together" if n else "nothing", [way for way, _, _ in nearest[:n]]) for n in NEAR]
    edits += [
        (f"{n} scattered", [way for way, _, _ in all_buildings[:: len(all_buildings) // n][:n]]) for n in SCATTERED
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        full = []
        for _ in range(options.repeats):
            shutil.rmtree(folder / "base", ignore_errors=True)
            made, n_chunks, times = brought_up_to_date(folder / "base", options.extract, encoder, options.resolution)
            full.append(times)
        limit = min(times.counted for times in full)
        print(
            f"{options.style}, {made.n_cells:,} cells, {n_chunks} chunks: full build {limit:.1f} s of rendering and "
            f"encoding, {min(times.features for times in full):.1f} s of map features"
        )
        print("buildings gone   chunks  tiles  checked  changed   share   features  tiles  table  to a full build")
        for what, ways in edits:
            without(options.extract, folder / "edited.osm.pbf", set(ways))
            found = []
            for _ in range(options.repeats):
                shutil.rmtree(folder / "own", ignore_errors=True)
                shutil.copytree(folder / "base", folder / "own")
                made, n_rendered, times = brought_up_to_date(
                    folder / "own", folder / "edited.osm.pbf", encoder, options.resolution
                )
                found.append(times)
            best = min(found, key=lambda times: times.counted)
            print(
                f"{what:15} {n_rendered:7} {made.n_tiles_changed:6} {made.n_checked:8} {made.n_changed:8} "
                f"{made.n_changed / made.n_cells:7.2%} {best.features:8.2f} s {best.tiles:5.2f}  {best.table:5.2f} "
                f"{best.counted / limit:11.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
