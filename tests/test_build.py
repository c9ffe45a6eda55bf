"""Builds that are killed, that run at the same time, and that fill the disk: the cache is whole in the end."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import osmium
import pytest
from conftest import inputs_of, snapshot

from geobacter_core.errors import TileCacheError
from geobacter_core.files import orphans
from geobacter_core.geo import Tile
from geobacter_core.osm.extract import fetch_extract, load_extract
from geobacter_core.osm.features import build_features, load_features
from geobacter_core.regions import Region
from geobacter_core.tiles import locks
from geobacter_core.tiles.build import build_cache
from geobacter_core.tiles.cache import TileCache, verify_cache
from geobacter_core.tiles.chunk import chunk_file, write_chunk
from geobacter_core.tiles.mapnik import MapnikSource
from geobacter_core.tiles.style import all_keys, load_style

BUILD = """
import json, pickle, sys
from geobacter_core.tiles.build import build_cache
arguments = pickle.load(sys.stdin.buffer)
print("begun", flush=True)
result = build_cache(*arguments)
print(json.dumps([result.n_rendered, result.n_reused, result.manifest.digest]), flush=True)
"""


class Country:
    """A made-up country of 16 chunks, built up to its map features, and how to build its tiles in a style."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.extract = load_extract(folder / "extract")[0]
        self.features, self.files = load_features(folder / "features")

    def arguments(self, tiles):
        style = load_style("carto")
        source = MapnikSource(style, self.files)
        return tiles, "country", self.extract.ground, style, source, inputs_of(self.features)

    def build(self, tiles):
        return build_cache(*self.arguments(tiles))

    def verify(self, tiles):
        return verify_cache(tiles, self.extract.ground)


@pytest.fixture(scope="module")
def country(tmp_path_factory):
    """A grid of roads and woods over 0.26° × 0.17°, at 47° north."""
    folder = tmp_path_factory.mktemp("country")
    writer = osmium.SimpleWriter(str(folder / "country.osm.pbf"))
    columns, rows = 34, 22
    for row in range(rows):
        for column in range(columns):
            place = (9.02 + 0.008 * column, 47.0 + 0.008 * row)
            writer.add_node(osmium.osm.mutable.Node(id=1 + row * columns + column, version=1, location=place))
    for row in range(rows):
        nodes = [1 + row * columns + column for column in range(columns)]
        writer.add_way(osmium.osm.mutable.Way(id=1 + row, version=1, nodes=nodes, tags={"highway": "primary"}))
    for row in range(0, rows - 1, 2):
        for column in range(0, columns - 1, 2):
            first = 1 + row * columns + column
            ring = [first, first + 1, first + columns + 1, first + columns, first]
            id_ = 1000 + row * columns + column
            writer.add_way(osmium.osm.mutable.Way(id=id_, version=1, nodes=ring, tags={"landuse": "forest"}))
    writer.close()
    extract = fetch_extract(Region(name="country", extract=str(folder / "country.osm.pbf")), folder / "extract")
    build_features(extract, load_extract(folder / "extract")[1], all_keys(), folder / "features")
    return Country(folder)


@pytest.fixture(scope="module")
def uninterrupted(country):
    """The country's cache as one build makes it."""
    tiles = country.folder / "tiles"
    assert country.build(tiles).n_rendered == 16
    return tiles


def content(folder):
    return {name: data for name, (data, _) in snapshot(folder).items()}


def start_build(country, tiles):
    """A build in a process group of its own, with everything imported."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    pickle.dump(country.arguments(tiles), process.stdin)
    process.stdin.flush()
    assert process.stdout.readline() == b"begun\n"
    return process


@contextmanager
def build_process(country, tiles):
    """A build that is gone when the block ends, with its workers."""
    process = start_build(country, tiles)
    try:
        yield process
    finally:
        end(process)


def end(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()


def result_of(process):
    """Chunks made, chunks kept, and the digest of the cache."""
    return json.loads(process.communicate(timeout=120)[0])


def test_a_build_killed_25_times_and_run_to_its_end_equals_an_uninterrupted_one(country, uninterrupted, tmp_path):
    """Killed with its workers, or without them: these then finish what they are at, beside the next build."""
    tiles, draw = tmp_path / "tiles", random.Random(20)
    with build_process(country, tmp_path / "timed") as process:
        begun = time.monotonic()
        assert result_of(process)[0] == 16
        usual_s = time.monotonic() - begun
    assert content(tmp_path / "timed") == content(uninterrupted)
    processes, n_chunks = [], []
    for n in range(25):
        process = start_build(country, tiles)
        processes.append(process)
        time.sleep(draw.uniform(0, usual_s))
        if n % 2:
            end(process)
        else:
            process.kill()
        chunks = sorted(tiles.glob("12-*.parquet"))
        n_chunks.append(len(chunks))
        if len(chunks) > 11:  # so that there is always something left to kill
            for path in draw.sample(chunks, 8):
                path.unlink()
    assert country.build(tiles).manifest == TileCache(uninterrupted).manifest
    for process in processes:
        end(process)
    assert any(0 < n < 16 for n in n_chunks)
    country.build(tiles)
    assert content(tiles) == content(uninterrupted)
    assert country.verify(tiles).problems == []


def test_two_builds_at_once_share_the_work(country, uninterrupted, tmp_path):
    tiles = tmp_path / "tiles"
    with build_process(country, tiles) as one, build_process(country, tiles) as other:
        results = [result_of(process) for process in (one, other)]
    assert sum(n_rendered for n_rendered, _, _ in results) == 16
    assert all(n_rendered + n_reused == 16 for n_rendered, n_reused, _ in results)
    assert content(tiles) == content(uninterrupted)


def test_a_build_from_other_inputs_waits_for_the_one_under_way(country, uninterrupted, tmp_path):
    """It can be killed while it waits, and goes ahead when the other has ended."""
    tiles = tmp_path / "tiles"
    tiles.mkdir()
    with locks.building(tiles, "0" * 64):
        with build_process(country, tiles) as process:
            time.sleep(0.5)
            assert process.poll() is None
        process = start_build(country, tiles)
        time.sleep(0.5)
        assert process.poll() is None
        assert list(tiles.glob("12-*.parquet")) == []
    n_made, _, digest = result_of(process)
    assert (n_made, digest) == (16, TileCache(uninterrupted).manifest.digest)


def test_a_chunk_has_one_maker_at_a_time(tmp_path):
    chunk = Tile(12, 5, 7)
    program = (
        "import sys; from pathlib import Path; from geobacter_core.geo import Tile; "
        "from geobacter_core.tiles.locks import making\n"
        "with making(Path(sys.argv[1]), Tile(12, 5, int(sys.argv[2])), wait=False) as ours: print(ours)"
    )

    def elsewhere(row):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path), str(row)], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    with locks.making(tmp_path, chunk, wait=False) as ours:
        assert ours
        assert elsewhere(7) == "False"
        assert elsewhere(8) == "True"
    assert elsewhere(7) == "True"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_ends_in_a_clear_error_and_a_cache_that_verifies(country, uninterrupted, small_disk, tmp_path):
    tiles = small_disk / "tiles"
    with pytest.raises(TileCacheError, match=r"the disk is full. \d+ of 16 chunks are done, whole and kept. Free some"):
        country.build(tiles)
    found = country.verify(tiles)
    assert 0 < found.n_sound < 16
    assert len(found.missing) == 16 - found.n_sound
    assert (found.damaged, found.strangers, found.leftovers) == ({}, {}, ())
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    result = country.build(tiles)
    assert (result.n_rendered, result.n_reused) == (16 - found.n_sound, found.n_sound)
    assert content(tiles) == content(uninterrupted)


def test_a_folder_that_cannot_be_written_is_named(country, tmp_path):
    (tmp_path / "tiles").write_text("a file where a folder should be")
    with pytest.raises(TileCacheError, match=r"tiles: (File exists|Not a directory).*materialise tile_cache again"):
        country.build(tmp_path / "tiles")


def test_verifying_names_everything_that_is_wrong(country, uninterrupted, tmp_path):
    tiles = tmp_path / "tiles"
    shutil.copytree(uninterrupted, tiles)
    chunks = [summary.tile for summary in TileCache(tiles).manifest.chunks]
    chunk_file(tiles, chunks[0]).unlink()
    data = bytearray(chunk_file(tiles, chunks[1]).read_bytes())
    data[len(data) // 2] ^= 1
    chunk_file(tiles, chunks[1]).write_bytes(data)
    write_chunk(chunk_file(tiles, chunks[2]), chunks[2], np.zeros((16, 16, 256, 256, 3), np.uint8), {})
    (tiles / "12-1-1.parquet").write_bytes(b"x")
    leftover = tiles / f".tmp-{'0' * 8}-1-abcd-12-1-1.parquet"
    leftover.write_bytes(b"x")
    os.utime(leftover, (0, 0))  # of another machine, and long ago
    seen = []
    found = verify_cache(tiles, country.extract.ground, lambda done, total: seen.append((done, total)))
    assert seen == [(n, 16) for n in range(1, 17)]
    assert (found.n_wanted, found.n_sound) == (16, 13)
    assert found.missing == (chunks[0],)
    assert list(found.damaged) == [chunk_file(tiles, chunks[1])]
    assert set(found.strangers) == {chunk_file(tiles, chunks[2]), tiles / "12-1-1.parquet"}
    assert list(found.leftovers) == orphans(tiles) == [leftover]
    assert len(found.problems) == 5
    assert country.build(tiles).n_rendered == 3
    assert content(tiles) == content(uninterrupted)
    assert country.verify(tiles).problems == []
