"""A month of Monaco through Dagster, day by day from a replication server on loopback, against builds from scratch.

    .venv/bin/python benchmarks/month.py ../shared/osm/monaco [--days 30] [--scratch 12] [--style detailed]

For each day the server publishes one change file, and the job `reembed_region` runs. Of so many days (the largest files
among them), and of each on which a cell changed, features, tiles and table are also made from that day's extract in an
empty folder, and their digests compared.
The encoder is trained at the beginning, for a few steps: it is the real network, and no good one.
"""

import argparse
import functools
import http.server
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg

    from geobacter_core.regions import Region

REGION = "monaco"
ASSETS = ("osm_extract", "map_features", "tile_cache", "region_embeddings")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return


def serve(folder: Path) -> str:
    """A folder on loopback; its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def publish(folder: Path, change: Path, number: int, day: int) -> None:
    """Make a change file the newest of a server's folder; sequence 3047 is the 1st of August 2021."""
    path = folder / f"{number // 1_000_000:03}" / f"{number // 1000 % 1000:03}" / f"{number % 1000:03}.osc.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(change, path)
    when = time.strftime("%Y-%m-%dT20\\:21\\:22Z", time.gmtime(1627776000 + 86400 * day))
    for state in (path.with_name(f"{number % 1000:03}.state.txt"), folder / "state.txt"):
        state.write_text(f"sequenceNumber={number}\ntimestamp={when}\n")


class Month:
    """A Geobacter of its own, with one region."""

    def __init__(self, folder: Path, extract: Path, address: str, style: str) -> None:
        """Set the environment, which is read when the pipeline is imported."""
        regions = folder / "regions.toml"
        regions.write_text(
            f'[regions.{REGION}]\nextract = "{extract}"\nupdates = "{address}"\ncell_resolution = 11\ntrain = true\n'
        )
        os.environ.update(
            GEOBACTER_DATA=str(folder / "data"),
            GEOBACTER_REGIONS=str(regions),
            GEOBACTER_STYLE=style,
            DAGSTER_HOME=str(folder / "dagster"),
        )
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        (folder / "dagster").mkdir()
        (folder / "dagster" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        import dagster as dg

        from geobacter_core.settings import Settings

        self.instance = dg.DagsterInstance.from_config(str(folder / "dagster"))
        self.settings = Settings.from_environment()
        self.folder = folder

    def run(
        self, job: str, region: str | None, assets: tuple[str, ...] | None = None, **config: dict[str, int]
    ) -> "dg.ExecuteInProcessResult":
        """Run a job, or some of its assets, as the daemon would: its result."""
        import dagster as dg

        from geobacter_pipeline.definitions import defs

        result = defs.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            partition_key=region,
            run_config={"ops": {asset: {"config": values} for asset, values in config.items()}},
            asset_selection=None if assets is None else [dg.AssetKey(asset) for asset in assets],
            raise_on_error=job != "train_encoder",
        )
        failed = [check for check in result.get_asset_check_evaluations() if not check.passed]
        if failed and job != "train_encoder":
            sys.exit(f"{job}: {failed[0].check_name}: {failed[0].description}")
        return result

    def train(self) -> None:
        """An encoder of a few steps, made champion whether or not it would pass the gate."""
        from geobacter_core.encoder.registry import CHALLENGER, Registry

        self.run("build_region", REGION, triplet_samples={"sample_count": 500})
        self.run("train_encoder", None, location_encoder={"max_steps": 30, "batch_size": 32})
        registry = Registry(self.settings)
        if registry.find_champion() is None:
            challenger = registry.version(CHALLENGER)
            assert challenger is not None
            registry.promote(challenger)

    def refresh(self) -> tuple[Mapping[str, Any], float]:
        """A day's run: the metadata of what it made, and its seconds."""
        begun = time.perf_counter()
        result = self.run("reembed_region", REGION, ("champion_encoder", *ASSETS))
        found: dict[str, Any] = {}
        for asset in ASSETS:
            (made,) = result.asset_materializations_for_node(asset)
            found |= {name: value.value for name, value in made.metadata.items()}
        return found, time.perf_counter() - begun

    def digests(self) -> tuple[str, str, str]:
        """Of map features, tiles and table."""
        from geobacter_core.embeddings.table import read_metadata
        from geobacter_core.osm.features import load_features
        from geobacter_core.tiles.cache import open_cache

        cache = open_cache(self.settings, self._region())
        table = read_metadata(self.settings.embeddings_file(REGION))
        return load_features(self.settings.features_folder(REGION))[0].digest, cache.manifest.digest, table["digest"]

    def from_scratch(self) -> tuple[str, str, str]:
        """The same of a build from the present extract in an empty folder."""
        from dataclasses import replace

        from geobacter_core.cells import grid_of
        from geobacter_core.embeddings.embed import embed_region
        from geobacter_core.encoder.registry import Registry
        from geobacter_core.osm.extract import fetch_extract, load_extract
        from geobacter_core.osm.features import build_features
        from geobacter_core.tiles.cache import open_cache
        from geobacter_core.tiles.region import build_region
        from geobacter_core.tiles.style import all_keys

        registry = Registry(self.settings)
        champion = registry.champion()
        _, pbf = load_extract(self.settings.extract_folder(REGION))
        settings = replace(self.settings, data=self.folder / "scratch")
        shutil.rmtree(settings.data, ignore_errors=True)
        region = self._region().model_copy(update={"extract": str(pbf), "updates": None})
        extract = fetch_extract(region, settings.extract_folder(REGION))
        _, path = load_extract(settings.extract_folder(REGION))
        features = build_features(extract, path, all_keys(), settings.features_folder(REGION))
        build_region(settings, region, settings.style)
        cache = open_cache(settings, region)
        table = settings.embeddings_file(REGION)
        made = embed_region(table, cache, grid_of(region, extract.ground), champion, registry.load)
        return features.digest, cache.manifest.digest, made.digest

    def _region(self) -> "Region":
        from geobacter_core.regions import load_regions

        return load_regions(self.settings.regions_file)[REGION]


def main() -> None:
    """Go through the month, and print a line a day."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("monaco", type=Path, help="the folder with the extract and the change files")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--scratch", type=int, default=12, help="days that are also built from scratch")
    parser.add_argument("--style", default="detailed")
    options = parser.parse_args()
    (extract,) = options.monaco.resolve().glob("*.osm.pbf")
    numbers = {int(re.findall(r"\d+", file.name)[0]): file for file in sorted(options.monaco.glob("*.osc.gz"))}
    first = int(re.findall(r"seq(\d+)", extract.name)[0])
    days = [number for number in sorted(numbers) if number > first][: options.days]
    largest = sorted(days, key=lambda number: -numbers[number].stat().st_size)
    compared = {*largest[: -(-options.scratch // 2)], *days[:: max(1, len(days) // (options.scratch // 2 or 1))]}
    unequal = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (server := folder / "server").mkdir()
        publish(server, numbers[min(numbers)], first, 0)
        month = Month(folder, extract, serve(server), options.style)
        month.train()
        _, seconds = month.refresh()
        print(f"built in {seconds:.1f} s; then, day by day:")
        print("sequence  objects  chunks  tiles  checked  changed  encoded  moved      s  as from scratch")
        for day, number in enumerate(days, 1):
            publish(server, numbers[number], number, day)
            found, seconds = month.refresh()
            said = "not compared"
            if number in compared or found["cells changed"]:
                is_equal = month.digests() == month.from_scratch()
                unequal += not is_equal
                said = "features, tiles, table" if is_equal else "NO"
            columns = (
                "objects changed", "chunks rendered", "tiles changed", "cells checked", "cells changed",
                "windows encoded", "rows in the change table",
            )  # fmt: skip
            widths = (9, 8, 7, 9, 9, 9, 7)
            figures = "".join(f"{found[column]!s:>{width}}" for column, width in zip(columns, widths, strict=True))
            print(f"{number:8}{figures}{seconds:7.1f}  {said}", flush=True)
    sys.exit(f"{unequal} days differ." if unequal else 0)


if __name__ == "__main__":
    main()
