"""A refresh that is killed at random moments, and two at once: what comes out in the end is what one refresh makes.

    .venv/bin/python benchmarks/kills.py ../shared/osm/liechtenstein/li_2019-11-18_seq2434.osm.pbf [--moments 25]

The change files lie beside the extract (`*_2435.osc.gz` and so on); a server on loopback has them. Each refresh runs in
a process of its own: extract, map features, tiles, table, with the default network. It gets SIGKILL at a moment drawn
evenly from the time that it takes, and then runs once more.
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from default_encoder import encoder_for
from month import publish, serve

Digests = tuple[str, ...]


def refresh(data: Path, extract: Path, address: str, style: str, resolution: int) -> Digests:
    """The chain of a region, brought up to date; digests of extract, features, tiles and table."""
    from geobacter_core.cells import H3Grid
    from geobacter_core.embeddings.embed import embed_region
    from geobacter_core.osm.changes import update_extract
    from geobacter_core.osm.extract import load_extract
    from geobacter_core.osm.features import build_features
    from geobacter_core.regions import Region
    from geobacter_core.settings import Settings
    from geobacter_core.tiles.cache import open_cache
    from geobacter_core.tiles.region import build_region
    from geobacter_core.tiles.style import all_keys

    encoder = encoder_for(style)
    settings = Settings.from_environment({"GEOBACTER_DATA": str(data), "GEOBACTER_STYLE": style})
    region = Region(name="bench", extract=str(extract), updates=address, cell_resolution=resolution)
    print("begins", flush=True)  # libraries are imported: from here on the moments count
    sys.stdin.readline()
    update = update_extract(region, settings.extract_folder(region.name))
    _, pbf = load_extract(settings.extract_folder(region.name))
    features = build_features(update.extract, pbf, all_keys(), settings.features_folder(region.name))
    tiles = build_region(settings, region, style).manifest
    table = settings.embeddings_file(region.name)
    grid = H3Grid(update.extract.ground, resolution)
    made = embed_region(table, open_cache(settings, region), grid, encoder.version, lambda _: encoder)
    return update.extract.sha256, features.digest, tiles.digest, made.digest


class Refresh:
    """A refresh in a process of its own."""

    def __init__(self, data: Path, options: argparse.Namespace, address: str) -> None:
        """Start the process, which imports its libraries and waits."""
        command = [
            sys.executable, __file__, str(options.extract), "--style", options.style,
            "--resolution", str(options.resolution), "--refresh", str(data), "--address", address,
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._out = self._process.stdout
        assert self._out.readline() == "begins\n"

    def go(self) -> "Refresh":
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self

    def kill(self, after_s: float) -> bool:
        """SIGKILL after so many seconds; whether it was still at work."""
        try:
            self._process.wait(after_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return True
        return False

    def digests(self) -> Digests:
        """What it made, when it is done."""
        lines = self._out.read().split()
        if self._process.wait() != 0:
            sys.exit("A refresh failed; see above.")
        return tuple(lines[-4:])


def main() -> None:
    """Kill, go on, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extract", type=Path)
    parser.add_argument("--moments", type=int, default=25)
    parser.add_argument("--style", default="carto")
    parser.add_argument("--resolution", type=int, default=9)
    parser.add_argument("--refresh", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.extract = options.extract.resolve()
    if options.refresh:
        print(*refresh(options.refresh, options.extract, options.address, options.style, options.resolution))
        return
    first = int(re.findall(r"seq(\d+)", options.extract.name)[0])
    numbers = {int(re.findall(r"(\d+)\.osc", file.name)[0]): file for file in options.extract.parent.glob("*.osc.gz")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (server := folder / "server").mkdir()
        address = serve(server)
        publish(server, numbers[min(numbers)], first, 0)
        before = Refresh(folder / "base", options, address).go().digests()
        for number in sorted(numbers):
            publish(server, numbers[number], number, number - first)
        shutil.copytree(folder / "base", folder / "whole")
        whole = Refresh(folder / "whole", options, address)
        begun = time.perf_counter()
        whole.go()
        expected = whole.digests()
        took_s = time.perf_counter() - begun
        n_changed = sum(map(str.__ne__, before, expected))
        print(f"an uninterrupted refresh takes {took_s:.1f} s and changes {n_changed} of 4 digests")
        moments = random.Random(0)
        n_wrong = n_killed = 0
        for _ in range(options.moments):
            shutil.rmtree(folder / "own", ignore_errors=True)
            shutil.copytree(folder / "base", folder / "own")
            after_s = moments.uniform(0, took_s)
            was_killed = Refresh(folder / "own", options, address).go().kill(after_s)
            is_equal = Refresh(folder / "own", options, address).go().digests() == expected
            n_killed += was_killed
            n_wrong += not is_equal
            done = "" if was_killed else " (it was done)"
            print(f"killed after {after_s:5.2f} s{done}: {'equal' if is_equal else 'NOT EQUAL'}", flush=True)
        shutil.rmtree(folder / "own", ignore_errors=True)
        shutil.copytree(folder / "base", folder / "own")
        both = [Refresh(folder / "own", options, address) for _ in range(2)]
        at_once = [one.digests() == expected for one in [one.go() for one in both]]
        print(f"{n_killed} of {options.moments} were killed at work, {n_wrong} did not end equal.")
        print(f"Two at once: {'both end equal' if all(at_once) else 'NOT EQUAL'}.")
        sys.exit(n_wrong + at_once.count(False))


if __name__ == "__main__":
    main()
