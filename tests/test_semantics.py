"""Labels from the map and baselines from it: cells, classes, presences, counts and pixels, by numbers known by hand."""

import math

import h3
import numpy as np
import pytest
import shapely
from sketch import Sketch

from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation.hidden import AMENITIES, LAND_USE
from geobacter_core.evaluation.labels import Places
from geobacter_core.evaluation.pixels import pixel_shares
from geobacter_core.evaluation.semantics import probe_cells, semantics
from geobacter_core.evaluation.tags import coordinates, tag_counts
from geobacter_core.geo import cells_within, ground_distance_m
from geobacter_core.osm.features import load_features

BOX = (9.50, 47.04, 9.56, 47.08)
GROUND = shapely.box(*BOX)
RESOLUTION = 10


@pytest.fixture(scope="module")
def cells():
    """Every third cell of the middle of the box, in ascending order."""
    inner = shapely.box(9.505, 47.045, 9.555, 47.075)
    return [name for batch in cells_within(inner, RESOLUTION) for name in batch.names][::3]


def centre(cell):
    lat, lon = h3.cell_to_latlng(cell)
    return lon, lat


def outline(cell, share=1.0):
    """The corners of a hexagon with this share of the cell's area, around the cell's centre."""
    lon, lat = centre(cell)
    side = math.sqrt(share)
    return [(lon + (x - lon) * side, lat + (y - lat) * side) for y, x in h3.cell_to_boundary(cell)]


def framed():
    """A sketch whose extract covers the box."""
    sketch = Sketch()
    sketch.line([BOX[:2], BOX[2:]], highway="track")
    return sketch


def test_all_cells_of_the_ground_are_probed_where_they_are_few():
    everything = [name for batch in cells_within(GROUND, RESOLUTION) for name in batch.names]
    assert len(everything) > 1000
    assert probe_cells(GROUND, RESOLUTION, most=len(everything), seed=1) == everything


def test_a_thinned_out_draw_is_in_order_the_same_for_a_seed_and_spread_evenly():
    everything = [name for batch in cells_within(GROUND, RESOLUTION) for name in batch.names]
    drawn = probe_cells(GROUND, RESOLUTION, most=400, seed=1)
    assert len(drawn) == len(set(drawn)) == 400
    assert drawn == sorted(drawn)
    assert set(drawn) < set(everything)
    assert drawn == probe_cells(GROUND, RESOLUTION, most=400, seed=1)
    assert len(set(drawn) & set(probe_cells(GROUND, RESOLUTION, most=400, seed=2))) < 250
    middle = np.mean([centre(cell) for cell in everything], axis=0)
    assert np.mean([centre(cell) for cell in drawn], axis=0) == pytest.approx(middle, abs=0.002)


def test_a_draw_goes_through_batches_of_cells():
    """At resolution 13 the box has more cells than fit into one batch."""
    small = shapely.box(9.50, 47.04, 9.512, 47.048)
    drawn = probe_cells(small, 13, most=50, seed=3)
    assert sum(1 for _ in cells_within(small, 13)) > 1
    assert len({h3.cell_to_parent(cell, 8) for cell in drawn}) > 1
    assert len(drawn) == 50


def test_a_ground_without_a_cell_centre_is_refused():
    with pytest.raises(EvaluationError, match="No H3 cell of resolution 7 has its centre in the region"):
        probe_cells(shapely.box(9.5, 47.0, 9.5001, 47.0001), 7, most=10, seed=1)


def test_a_thing_is_present_where_a_point_lies_or_an_area_touches(cells, write_pbf, tmp_path):
    sketch = framed()
    for cell in cells[:20]:
        sketch.point(centre(cell), shop="bakery")
    for cell in cells[30:40]:
        sketch.polygon(outline(cell, 0.1), shop="mall", building="yes")
    for cell in cells[50:60]:
        sketch.point(centre(cell), shop="vacant")
    labels, left_out = semantics(sketch.map(write_pbf, tmp_path / "a", BOX).files, cells, AMENITIES)
    (shop,) = labels
    assert (shop.name, shop.kind, shop.classes) == ("shop", "presence", ())
    assert np.flatnonzero(shop.values).tolist() == [*range(20), *range(30, 40)]
    assert left_out["school"] == f"0 cells have it and {len(cells)} do not; at least 25 of each are needed"
    assert "shop" not in left_out


def test_an_area_on_the_border_is_in_both_cells(write_pbf, tmp_path):
    cell, neighbour = "8a1f8e51c6dffff", h3.grid_ring("8a1f8e51c6dffff", 1)[0]
    others = [c for c in h3.grid_disk(cell, 12) if c not in h3.grid_disk(cell, 3)]
    (west, south), (east, north) = sorted((centre(cell), centre(neighbour)))
    sketch = Sketch()
    sketch.polygon([(west, south), (east, north), (east, north + 1e-5)], amenity="parking")
    for other in others[:23]:
        sketch.point(centre(other), amenity="parking_entrance")
    box = (west - 0.05, south - 0.05, east + 0.05, north + 0.05)
    files = sketch.map(write_pbf, tmp_path / "a", box).files
    (parking,), _ = semantics(files, [cell, neighbour, *others], AMENITIES)
    assert np.flatnonzero(parking.values).tolist() == [0, 1, *range(2, 25)]


def test_bus_stops_of_helsinki_are_where_h3_says(helsinki):
    """The other opinion: H3's own cell of every bus stop in the extract."""
    import osmium

    cells = probe_cells(helsinki.extract.ground, RESOLUTION, most=10_000, seed=0)
    expected = {
        h3.latlng_to_cell(node.location.lat, node.location.lon, RESOLUTION)
        for node in osmium.FileProcessor(str(helsinki.pbf), osmium.osm.NODE)
        if node.tags.get("highway") == "bus_stop"
    }
    files = load_features(helsinki.settings.features_folder("helsinki"))[1]
    labels, _ = semantics(files, cells, AMENITIES)
    found = {label.name: label for label in labels}
    assert {cell for cell, has in zip(cells, found["bus stop"].values, strict=True) if has} == expected & set(cells)
    assert {"restaurant", "shop", "office"} <= set(found)


def test_the_class_is_that_of_the_largest_share_and_unknown_below_a_quarter(cells, write_pbf, tmp_path):
    sketch = framed()
    for cell in cells[:30]:
        sketch.polygon(outline(cell, 0.24), landuse="forest")
    for cell in cells[30:60]:
        sketch.polygon(outline(cell, 0.26), natural="wood")
    for cell in cells[60:85]:
        sketch.polygon(outline(cell, 0.9), landuse="farmland")
    for cell in cells[85:104]:
        sketch.polygon(outline(cell, 0.9), landuse="industrial")
    (label,), left_out = semantics(sketch.map(write_pbf, tmp_path / "a", BOX).files, cells, LAND_USE)
    assert (label.name, label.kind, label.classes) == ("land use", "class", ("farmland", "forest"))
    assert np.flatnonzero(label.values == 1).tolist() == list(range(30, 60))
    assert np.flatnonzero(label.values == 0).tolist() == list(range(60, 85))
    assert np.isnan(label.values).sum() == len(cells) - 55
    assert left_out["land use: industry and transport"] == "19 cells are of this class; 20 are needed"


def test_the_smaller_of_two_areas_that_overlap_counts(cells, write_pbf, tmp_path):
    """A town over everything, with parks of 60 % of a cell, gardens of 40 % and in some parks a pitch of 50 %."""
    sketch = framed()
    sketch.box(9.502, 47.042, 9.558, 47.078, landuse="residential")
    for cell in cells[:30]:
        sketch.polygon(outline(cell, 0.6), leisure="park")
    for cell in cells[30:60]:
        sketch.polygon(outline(cell, 0.4), leisure="garden")
    for cell in cells[60:90]:
        sketch.polygon(outline(cell, 0.9), landuse="forest")
        sketch.polygon(outline(cell, 0.5), leisure="pitch")
    (label,), _ = semantics(sketch.map(write_pbf, tmp_path / "a", BOX).files, cells, LAND_USE)
    assert label.classes == ("residential", "park and leisure")
    is_park = [*range(30), *range(60, 90)]
    assert np.flatnonzero(label.values == 1).tolist() == is_park
    assert (label.values == 0).sum() == len(cells) - len(is_park)


def test_areas_of_one_class_are_not_counted_twice(cells, write_pbf, tmp_path):
    """A wood of 40 % that is mapped three times is less than a field of 45 % beside it."""
    sketch = framed()
    for cell in cells[:25]:
        corners = outline(cell)
        lon, lat = centre(cell)
        for _ in range(3):
            sketch.polygon(
                [(lon, lat), *corners[:3], ((corners[2][0] + lon) / 2, (corners[2][1] + lat) / 2)], natural="wood"
            )
        sketch.polygon([(lon, lat), *corners[3:], corners[0]], landuse="farmland")
    for cell in cells[25:50]:
        sketch.polygon(outline(cell), natural="wood")
    (label,), _ = semantics(sketch.map(write_pbf, tmp_path / "a", BOX).files, cells, LAND_USE)
    assert label.classes == ("farmland", "forest")
    assert label.values[:50].tolist() == [0] * 25 + [1] * 25


def test_one_class_alone_is_no_question(cells, write_pbf, tmp_path):
    sketch = framed()
    sketch.box(9.502, 47.042, 9.558, 47.078, landuse="forest")
    labels, left_out = semantics(sketch.map(write_pbf, tmp_path / "a", BOX).files, cells, LAND_USE)
    assert labels == []
    assert left_out["land use"] == "1 classes have 20 cells or more; two are needed"


def test_tags_are_counted_where_their_objects_touch(cells, write_pbf, tmp_path):
    sketch = Sketch()
    for _ in range(3):
        sketch.point(centre(cells[0]), natural="tree")
    sketch.polygon(outline(cells[1], 0.5), building="house", amenity="school")
    sketch.line([centre(cells[2]), centre(cells[3])], highway="path")
    files = sketch.map(write_pbf, tmp_path / "a", BOX).files
    counts, names = tag_counts(files, cells, None)
    assert names == ("natural=tree", "amenity=school", "building=house", "highway=path")
    assert counts.dtype == np.float32
    assert np.expm1(counts[:4]) == pytest.approx(
        np.array([[3, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]]), abs=1e-6
    )


def test_hidden_tags_are_not_counted(cells, write_pbf, tmp_path):
    sketch = framed()
    sketch.point(centre(cells[0]), amenity="bench")
    sketch.polygon(outline(cells[1], 0.5), building="kindergarten", amenity="kindergarten")
    counts, names = tag_counts(sketch.map(write_pbf, tmp_path / "a", BOX).files, cells, AMENITIES)
    assert names == ("building=yes", "highway=track")
    assert np.flatnonzero(counts[:, 0]).tolist() == [1]


def test_helsinki_has_the_150_most_frequent_tags(helsinki):
    cells = probe_cells(helsinki.extract.ground, RESOLUTION, most=10_000, seed=0)
    files = load_features(helsinki.settings.features_folder("helsinki"))[1]
    counts, names = tag_counts(files, cells, LAND_USE)
    assert counts.shape == (len(cells), 150)
    assert {name for name in names if name.startswith(("landuse=", "leisure="))} <= {"landuse=basin", "landuse=pond"}
    assert counts.sum(axis=0)[:20].min() > 0


def test_coordinates_are_ground_metres_around_the_middle():
    lon, lat = np.array([24.90, 24.95, 24.94]), np.array([60.16, 60.18, 60.20])
    xy = coordinates(Places(lon, lat))
    assert xy.mean(axis=0) == pytest.approx([0, 0], abs=0.01)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        expected = ground_distance_m(lon[one], lat[one], lon[other], lat[other])
        assert np.hypot(*(xy[one] - xy[other])) == pytest.approx(expected, rel=0.005)
    assert xy[1, 0] > xy[0, 0]
    assert xy[2, 1] > xy[1, 1]


def test_colours_of_a_road_map_are_shares_of_its_windows():
    white, red, blue = (255, 255, 255), (200, 0, 0), (0, 0, 200)
    windows = np.empty((2, 3, 4, 4), np.uint8)
    windows[:] = np.array(white)[None, :, None, None]
    windows[0, :, :2] = np.array(red)[:, None, None]
    windows[0, :, 0, 0] = blue
    windows[1, :, 3, 3] = (203, 3, 3)
    shares = pixel_shares(windows)
    assert shares.dtype == np.float32
    assert shares.tolist() == [[8 / 16, 7 / 16, 1 / 16], [15 / 16, 1 / 16, 0]]


def test_more_than_32_colours_are_left_out():
    rng = np.random.default_rng(1)
    windows = rng.integers(0, 256, (300, 3, 8, 8), np.uint8)
    windows[:, :, :4] = 0
    shares = pixel_shares(windows)
    assert shares.shape == (300, 32)
    assert shares[:, 0].min() >= 0.5
    assert shares.sum(axis=1).max() < 0.7


def test_masks_give_their_share_and_its_deviation():
    windows = np.zeros((600, 12, 4, 4), np.uint8)
    windows[0, 4, :2] = 255
    windows[599, 7, 0, 0] = 255
    shares = pixel_shares(windows)
    assert shares.shape == (600, 24)
    assert shares[0, [4, 16]] == pytest.approx([1 / 2, 1 / 2])
    assert shares[599, [7, 19]] == pytest.approx([1 / 16, math.sqrt(1 / 16 * 15 / 16)])
    assert np.count_nonzero(shares) == 4
