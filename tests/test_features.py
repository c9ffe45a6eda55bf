"""Map features: what the FlatGeobuf files hold, geometries that are broken, and the sea, which OSM does not map."""

import math
import shutil

import numpy as np
import pyogrio
import pytest
import shapely

from geobacter_core.errors import FeaturesError, GeobacterError
from geobacter_core.osm.coastline import sea_polygons
from geobacter_core.osm.extract import fetch_extract, load_extract
from geobacter_core.osm.features import LAYERS, build_features, load_features
from geobacter_core.regions import Region
from geobacter_core.tiles.style import all_keys


@pytest.fixture
def build(tmp_path):
    """Fetch a made-up extract and build its features with the keys that the styles read."""

    def run(path, keys=None, folder=None):
        extract = fetch_extract(Region(name="made-up", extract=str(path)), tmp_path / "extract")
        pbf = load_extract(tmp_path / "extract")[1]
        return build_features(extract, pbf, keys or all_keys(), folder or tmp_path / "features")

    return run


def read(folder, layer):
    files = load_features(folder)[1]
    return pyogrio.read_dataframe(files / f"{layer}.fgb")


def test_two_builds_have_one_digest(helsinki, tmp_path, snapshot):
    again = build_features(helsinki.extract, helsinki.pbf, all_keys(), tmp_path)
    assert again == helsinki.features
    there = helsinki.settings.features_folder("helsinki")
    assert {name: data for name, (data, _) in snapshot(tmp_path).items()} == {
        name: data for name, (data, _) in snapshot(there).items()
    }


def test_a_second_build_changes_no_file(own_helsinki, snapshot):
    folder = own_helsinki.settings.features_folder("helsinki")
    before = snapshot(folder)
    build_features(own_helsinki.extract, own_helsinki.pbf, all_keys(), folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize("layer", LAYERS)
def test_files_are_indexed_flatgeobuf_in_web_mercator_with_the_styles_keys(helsinki, layer):
    features, files = load_features(helsinki.settings.features_folder("helsinki"))
    info = pyogrio.read_info(files / f"{layer}.fgb")
    assert info["driver"] == "FlatGeobuf"
    assert info["crs"] == "EPSG:3857"
    assert info["capabilities"]["fast_spatial_filter"]
    assert list(info["fields"]) == [*all_keys(), "layer"]
    assert set(info["dtypes"]) == {"object", "int32"}
    assert info["features"] == features.counts[layer]
    assert info["geometry_type"] == {"points": "Point", "lines": "LineString", "polygons": "MultiPolygon"}[layer]


def test_helsinki_has_what_the_extract_holds(helsinki):
    folder = helsinki.settings.features_folder("helsinki")
    polygons = read(folder, "polygons")
    assert 400 < polygons["building"].notna().sum() < 1500
    assert (read(folder, "lines")["railway"] == "tram").sum() > 20
    west, south, east, north = polygons.total_bounds
    # Within 3 km of the bounds, which is about 6 km in mercator metres at 60° north.
    assert 2.770e6 < west < east < 2.784e6
    assert 8.425e6 < south < north < 8.446e6


SQUARE = {1: (10.0, 50.0), 2: (10.01, 50.0), 3: (10.01, 50.01), 4: (10.0, 50.01), 5: (10.005, 50.005)}


def test_tags_become_columns_and_layer_a_number(write_pbf, build, tmp_path):
    path = write_pbf(
        "a.osm.pbf",
        SQUARE,
        {
            10: ([1, 2, 3, 4, 1], {"building": "yes", "name": "not a key"}),
            11: ([1, 3], {"highway": "primary", "layer": "-1"}),
            12: ([2, 4], {"highway": "path", "layer": "99"}),
            13: ([1, 2], {"highway": "track", "layer": "ground floor"}),
            14: ([1, 2, 3, 1], {"highway": "residential"}),
        },
        node_tags={5: {"amenity": "cafe"}},
    )
    features = build(path)
    assert features.counts == {"points": 1, "lines": 4, "sea": 0, "polygons": 2}
    assert features.broken == {}
    lines = read(tmp_path / "features", "lines").set_index("highway")
    assert lines["layer"].to_dict() == {"primary": -1, "path": 5, "track": 0, "residential": 0}
    assert "name" not in lines
    (point,) = read(tmp_path / "features", "points").geometry
    assert (point.x, point.y) == pytest.approx((1113751.5054, 6447141.7980), abs=1e-3)


def test_a_closed_road_is_a_line_and_a_closed_wood_is_not(write_pbf, build):
    ring = [1, 2, 3, 4, 1]
    assert build(write_pbf("r.osm.pbf", SQUARE, {1: (ring, {"highway": "service"})})).counts["lines"] == 1
    assert build(write_pbf("w.osm.pbf", SQUARE, {1: (ring, {"landuse": "forest"})})).counts["lines"] == 0


def test_a_multipolygon_keeps_its_hole(write_pbf, build, tmp_path):
    nodes = SQUARE | {6: (10.002, 50.002), 7: (10.004, 50.002), 8: (10.004, 50.004)}
    path = write_pbf(
        "m.osm.pbf",
        nodes,
        {1: ([1, 2, 3, 4, 1], {}), 2: ([6, 7, 8, 6], {})},
        {1: ([("w", 1, "outer"), ("w", 2, "inner")], {"type": "multipolygon", "landuse": "forest"})},
    )
    assert build(path).counts["polygons"] == 1
    (geometry,) = read(tmp_path / "features", "polygons").geometry
    assert len(geometry.geoms[0].interiors) == 1


BROKEN = {
    "way with one node": ({1: ([1], {"highway": "path"})}, {}),
    "way with an unknown node": ({1: ([1, 2, 99], {"highway": "path"})}, {}),
    "way whose nodes are one place": ({1: ([1, 1], {"highway": "path"})}, {}),
    "closed building that crosses itself": ({1: ([1, 3, 2, 4, 1], {"building": "yes"})}, {}),
    "closed building with an unknown node": ({1: ([1, 2, 99, 4, 1], {"building": "yes"})}, {}),
    "multipolygon that is not closed": (
        {1: ([1, 2, 3], {})},
        {1: ([("w", 1, "outer")], {"type": "multipolygon", "landuse": "forest"})},
    ),
    "multipolygon with an unknown way": (
        {1: ([1, 2, 3], {})},
        {1: ([("w", 1, "outer"), ("w", 99, "outer")], {"type": "multipolygon", "landuse": "forest"})},
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_geometry_is_counted_and_the_rest_is_kept(name, write_pbf, build):
    ways, relations = BROKEN[name]
    ways = ways | {50: ([4, 5], {"highway": "primary"})}
    features = build(write_pbf("b.osm.pbf", SQUARE, ways, relations))
    assert sum(features.broken.values()) == 1, features.broken
    assert features.counts["lines"] >= 1
    assert features.counts["polygons"] == 0


def test_the_known_part_of_a_way_cut_at_the_edge_is_drawn(write_pbf, build):
    features = build(write_pbf("e.osm.pbf", SQUARE, {1: ([98, 1, 2, 99, 3, 4], {"highway": "primary"})}))
    assert features.counts["lines"] == 2
    assert features.broken == {"line with missing nodes": 1}


@pytest.mark.parametrize("ways", [{}, {1: ([1, 2], {"note": "no key that a style reads"})}])
def test_nothing_to_draw_is_refused_and_the_earlier_features_stay(ways, write_pbf, build, own_helsinki, snapshot):
    folder = own_helsinki.settings.features_folder("helsinki")
    before = snapshot(folder)
    with pytest.raises(FeaturesError, match="nothing in it can be drawn") as caught:
        build(write_pbf("n.osm.pbf", SQUARE, ways), folder=folder)
    assert "region 'made-up'" in str(caught.value)
    assert "another extract" in str(caught.value)
    assert snapshot(folder) == before


def test_a_disk_without_room_for_the_nodes_is_named(own_helsinki, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(GeobacterError, match=r"24,260 nodes need 0.0 GB of disk .* Make room"):
        build_features(own_helsinki.extract, own_helsinki.pbf, all_keys(), tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []


def test_missing_features_are_named(own_helsinki, tmp_path):
    with pytest.raises(FeaturesError, match=r"features.json does not exist. Materialise map_features"):
        load_features(tmp_path)
    folder = own_helsinki.settings.features_folder("helsinki")
    (load_features(folder)[1] / "lines.fgb").unlink()
    with pytest.raises(FeaturesError, match=r"lines.fgb is missing. Materialise map_features"):
        load_features(folder)
    rebuilt = build_features(own_helsinki.extract, own_helsinki.pbf, all_keys(), folder)
    assert load_features(folder)[0] == rebuilt


def test_what_a_killed_build_left_is_removed(own_helsinki):
    folder = own_helsinki.settings.features_folder("helsinki")
    (folder / "building-dead").mkdir()
    (folder / "building-dead" / "lines.fgb").write_bytes(b"half")
    build_features(own_helsinki.extract, own_helsinki.pbf, ["building", "highway"], folder)
    assert len(list(folder.iterdir())) == 2


# The sea: coastlines have land on their left and water on their right. The box is 10 × 10 km.
BOX = (0.0, 0.0, 10_000.0, 10_000.0)


def sea_of(*lines):
    coastlines = np.array([shapely.LineString(line) for line in lines], dtype=object)
    pieces, n_open = sea_polygons(coastlines, BOX)
    return shapely.union_all(pieces), n_open, pieces


ISLAND = [(4000, 4000), (6000, 4000), (6000, 6000), (4000, 6000), (4000, 4000)]


def test_an_island_lies_in_the_sea():
    sea, n_open, _ = sea_of(ISLAND)
    assert sea.area == pytest.approx(100e6 - 4e6)
    assert not sea.contains(shapely.Point(5000, 5000))
    assert n_open == 0


def test_an_island_the_other_way_round_is_a_sea_within_land():
    sea, n_open, _ = sea_of(ISLAND[::-1])
    assert sea.area == pytest.approx(4e6)
    assert n_open == 0


def test_an_island_of_several_ways_is_one_island():
    sea, n_open, _ = sea_of(ISLAND[:3], ISLAND[2:])
    assert sea.area == pytest.approx(96e6)
    assert n_open == 0


def test_a_coast_from_edge_to_edge_has_sea_on_its_right():
    eastward = [(-500, 5000), (10_500, 5000)]
    sea, n_open, _ = sea_of(eastward)
    assert sea.bounds == pytest.approx((0, 0, 10_000, 5000))
    assert n_open == 0
    sea, _, _ = sea_of(eastward[::-1])
    assert sea.bounds == pytest.approx((0, 5000, 10_000, 10_000))


def test_a_bay_that_enters_and_leaves_by_one_edge():
    # Enters at the south, goes round a bay of 4 × 3 km, leaves at the south; water on the right, so inside is land.
    peninsula = [(7000, -100), (7000, 3000), (3000, 3000), (3000, -100)]
    sea, n_open, _ = sea_of(peninsula)
    assert sea.area == pytest.approx(100e6 - 12e6)
    sea, n_open, _ = sea_of(peninsula[::-1])
    assert sea.area == pytest.approx(12e6)
    assert n_open == 0


def test_a_coast_cut_100_m_short_of_the_edge_is_led_on():
    sea, n_open, _ = sea_of([(100, 5000), (9900, 5000)])
    assert sea.area == pytest.approx(50e6)
    assert n_open == 0


def test_a_coast_with_open_ends_separates_nothing_and_is_counted():
    sea, n_open, pieces = sea_of([(3000, 5000), (7000, 5000)])
    assert (pieces, n_open) == ([], 2)
    assert sea.is_empty


@pytest.mark.parametrize("seed", range(8))
def test_a_winding_coast_with_open_ends_separates_nothing(seed):
    north = 5000 + np.cumsum(np.random.default_rng(seed).normal(0, 30, 50))
    _, n_open, pieces = sea_of(np.stack([np.linspace(3000, 7000, 50), north], axis=1))
    assert (pieces, n_open) == ([], 2)


def test_coast_and_island_together():
    sea, _, _ = sea_of([(-1, 8000), (10_001, 8000)], ISLAND)
    assert sea.area == pytest.approx(80e6 - 4e6)


def test_a_coast_outside_the_box_or_none_makes_no_sea():
    assert sea_polygons(np.array([], dtype=object), BOX) == ([], 0)
    assert sea_of([(20_000, 0), (20_000, 9000)])[2] == []


def test_sea_is_cut_at_chunk_borders():
    side_m = 2 * math.pi * 6378137 / 4096
    _, _, pieces = sea_of(ISLAND)
    # The box reaches 216 m into the next chunks: four pieces.
    assert len(pieces) == 4
    assert max(piece.bounds[2] - piece.bounds[0] for piece in pieces) <= side_m + 1e-6


def test_a_large_sea_is_cut_into_chunks_without_loss():
    box = (-3e5, -2e5, 3e5, 2e5)
    north = 1e4 * np.sin(np.linspace(0, 40, 3000))
    coast = shapely.LineString(np.stack([np.linspace(-3.1e5, 3.1e5, 3000), north], axis=1))
    pieces, _ = sea_polygons(np.array([coast], dtype=object), box)
    sides = np.array([piece.bounds for piece in pieces])
    assert (sides[:, 2:] - sides[:, :2]).max() <= 2 * math.pi * 6378137 / 4096 + 1e-6
    south = shapely.Polygon([*coast.coords, (4e5, -4e5), (-4e5, -4e5)]).intersection(shapely.box(*box))
    assert sum(piece.area for piece in pieces) == pytest.approx(south.area)
    assert shapely.union_all(pieces).symmetric_difference(south).area < 1


def test_helsinki_has_its_bay(helsinki):
    polygons = read(helsinki.settings.features_folder("helsinki"), "polygons")
    sea = polygons[polygons["natural"] == "sea"].to_crs("EPSG:4326").geometry.union_all()
    assert sea.contains(shapely.Point(24.9435, 60.1776))
    assert not sea.contains(shapely.Point(24.9406, 60.1716))
