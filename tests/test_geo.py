"""Tile arithmetic against mercantile, projection against pyproj, cells against h3, and coordinates that are refused."""

import math

import h3
import mercantile
import numpy as np
import pyproj
import pytest
import shapely

from geobacter_core.errors import PlaceError, RegionGeometryError
from geobacter_core.geo import (
    Bounds,
    Place,
    Tile,
    Window,
    cells_within,
    ground_distance_m,
    lonlat_to_mercator,
    lonlat_to_pixel,
    mercator_to_lonlat,
    pixel_to_lonlat,
)

N_POINTS = 2000
GEOD = pyproj.Geod(ellps="WGS84")
NAN, INF = math.nan, math.inf


def random_places(seed: int, max_lat: float = 84.9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.uniform(-180, 180, N_POINTS), rng.uniform(-max_lat, max_lat, N_POINTS)], axis=1)


@pytest.mark.parametrize("zoom", [12, 16])
def test_tile_of_a_place_is_mercantiles(zoom):
    for lon, lat in random_places(zoom):
        expected = mercantile.tile(lon, lat, zoom)
        assert Tile.at(Place(lon, lat), zoom) == Tile(expected.z, expected.x, expected.y)


def test_chunk_of_a_tile_is_mercantiles_parent():
    for lon, lat in random_places(1):
        parent = mercantile.parent(mercantile.tile(lon, lat, 16), zoom=12)
        chunk = Tile.at(Place(lon, lat), 12)
        tile = Tile.at(Place(lon, lat), 16)
        assert (chunk.x, chunk.y) == (parent.x, parent.y) == (tile.x // 16, tile.y // 16)


def test_bounds_of_a_tile_are_mercantiles():
    for lon, lat in random_places(2):
        tile = Tile.at(Place(lon, lat), 16)
        expected = mercantile.bounds(tile.x, tile.y, 16)
        np.testing.assert_allclose(
            tile.polygon.bounds,
            [expected.west, expected.south, expected.east, expected.north],
            rtol=0,
            atol=1e-9,
        )
        box = mercantile.xy_bounds(tile.x, tile.y, 16)
        np.testing.assert_allclose(tile.mercator_box, [box.left, box.bottom, box.right, box.top], rtol=0, atol=1e-6)


@pytest.mark.parametrize("lat", [84.9999, -84.9999])
def test_the_outermost_chunk_of_a_region_that_is_allowed_has_bounds(lat):
    _, south, _, north = Tile.at(Place(10.0, lat), 12).polygon.bounds
    assert south < lat < north


def test_tiles_of_a_box_are_mercantiles():
    box = Bounds(24.9351762, 60.164155, 24.9534145, 60.179113)
    for zoom in (12, 16):
        expected = {(t.x, t.y) for t in mercantile.tiles(box.west, box.south, box.east, box.north, zoom)}
        assert {(tile.x, tile.y) for tile in box.tiles(zoom)} == expected


def test_projection_is_pyprojs():
    lon, lat = random_places(3, max_lat=85.05).T
    x, y = lonlat_to_mercator(lon, lat)
    expected = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True).transform(lon, lat)
    np.testing.assert_allclose(x, expected[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(y, expected[1], rtol=0, atol=1e-5)


def test_projections_come_back():
    lon, lat = random_places(4, max_lat=85.05).T
    for there, back in ((lonlat_to_mercator, mercator_to_lonlat), (lonlat_to_pixel, pixel_to_lonlat)):
        np.testing.assert_allclose(back(*there(lon, lat)), [lon, lat], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "place",
    [
        Place(24.9414, 60.1719),
        Place(-78.5, 0.0),
        Place(20.0, 84.0),
        Place(151.2, -33.87),
        Place(-60.0, -84.0),
    ],
    ids=["helsinki", "equator", "84 north", "sydney", "84 south"],
)
def test_a_window_of_200_m_is_200_m_on_the_ground(place):
    west, north, east, south = Window(place, 200.0).pixel_box
    middle_x, middle_y = (west + east) / 2, (north + south) / 2
    lon, lat = pixel_to_lonlat(np.array([west, east, middle_x, middle_x]), np.array([middle_y, middle_y, north, south]))
    _, _, width_m = GEOD.inv(lon[0], lat[0], lon[1], lat[1])
    _, _, height_m = GEOD.inv(lon[2], lat[2], lon[3], lat[3])
    assert width_m == pytest.approx(200, rel=1e-3)
    assert height_m == pytest.approx(200, rel=1e-3)


def test_ground_distance_is_within_0_6_percent_of_the_ellipsoids():
    a, b = random_places(5), random_places(6)
    _, _, expected = GEOD.inv(a[:, 0], a[:, 1], b[:, 0], b[:, 1])
    np.testing.assert_allclose(ground_distance_m(*a.T, *b.T), expected, rtol=0.006)


@pytest.mark.parametrize(
    ("lon", "lat", "says"),
    [
        (NAN, 0.0, "not a finite number. Give degrees"),
        (0.0, NAN, "not a finite number"),
        (INF, 0.0, "not a finite number"),
        (0.0, -INF, "not a finite number"),
        (180.5, 0.0, "longitude must be within -180 to 180"),
        (60.17, 124.94, "swapped?"),
        (0.0, -85.06, "latitude must be within ±85.051128"),
    ],
)
def test_places_that_are_nowhere_are_refused(lon, lat, says):
    with pytest.raises(PlaceError) as caught:
        Place(lon, lat)
    assert says in str(caught.value)
    assert f"lon={lon} lat={lat}" in str(caught.value)


@pytest.mark.parametrize(
    ("corners", "says"),
    [
        ((NAN, 0.0, 1.0, 1.0), "not finite numbers. Give degrees"),
        ((0.0, 0.0, INF, 1.0), "not finite numbers"),
        ((0.0, 0.0, 181.0, 1.0), "within -180 to 180 degrees"),
        ((0.0, 2.0, 1.0, 1.0), "south lies north of north. Give west, south, east, north"),
        ((179.0, -18.0, -179.0, -16.0), "crosses the antimeridian"),
        ((-179.9, -18.0, 179.9, -16.0), "Split the extract at 180° into two regions"),
        ((0.0, 84.0, 1.0, 85.01), "past 85° latitude"),
        ((0.0, -86.0, 1.0, -80.0), "Give the region `bounds` that stay within"),
        ((1.0, 1.0, 1.0, 2.0), "no extent"),
    ],
)
def test_boxes_that_cannot_be_mapped_are_refused(corners, says):
    with pytest.raises(RegionGeometryError) as caught:
        Bounds(*corners)
    assert says in str(caught.value)
    assert f"west={corners[0]}" in str(caught.value)


@pytest.mark.parametrize("size_m", [0.0, -200.0, NAN, INF, 10_001.0])
def test_windows_without_a_sensible_size_are_refused(size_m):
    with pytest.raises(PlaceError, match="the size must be within 0 to 10,000 metres"):
        Window(Place(0, 0), size_m)


def test_tiles_that_do_not_exist_are_refused():
    for z, x, y in ((12, 4096, 0), (12, 0, -1), (-1, 0, 0)):
        with pytest.raises(PlaceError, match=f"Tile {z}/{x}/{y} does not exist"):
            Tile(z, x, y)


PENTAGON_LAT, PENTAGON_LON = h3.cell_to_latlng(h3.get_pentagons(7)[0])
GROUNDS = {
    "helsinki 10": (shapely.box(24.935, 60.164, 24.953, 60.179), 10),
    "helsinki 11": (shapely.box(24.935, 60.164, 24.953, 60.179), 11),
    "equator 9": (shapely.box(-78.55, -0.05, -78.45, 0.05), 9),
    "sydney 8": (shapely.box(151.0, -34.0, 151.4, -33.7), 8),
    "82 north 10": (shapely.box(-40.1, 82.0, -40.0, 82.01), 10),
    "coarse 4": (shapely.box(5.0, 45.0, 11.0, 48.0), 4),
    "around a pentagon": (
        shapely.box(PENTAGON_LON - 0.1, PENTAGON_LAT - 0.05, PENTAGON_LON + 0.1, PENTAGON_LAT + 0.05),
        9,
    ),
    "two parts, one with a hole": (
        shapely.MultiPolygon(
            [
                shapely.box(9.50, 47.05, 9.56, 47.10).difference(shapely.box(9.52, 47.06, 9.54, 47.08)),
                shapely.box(9.60, 47.20, 9.62, 47.21),
            ]
        ),
        10,
    ),
    "smaller than a cell": (shapely.box(24.94, 60.17, 24.9401, 60.1701), 9),
}


@pytest.mark.parametrize("name", GROUNDS)
def test_cells_are_those_that_h3_finds_sorted_and_unique(name):
    ground, resolution = GROUNDS[name]
    batches = list(cells_within(ground, resolution))
    found = [cell for cells in batches for cell in cells.names]
    assert found == sorted(set(found))
    assert set(found) == set(h3.h3shape_to_cells(h3.geo_to_h3shape(ground), resolution))
    assert all(len(cells) <= 7**4 for cells in batches)
    for cells in batches:
        assert shapely.contains_xy(ground, cells.lon, cells.lat).all()


def test_ground_smaller_than_a_cell_has_the_cell_whose_centre_it_holds_or_none():
    cell = h3.latlng_to_cell(60.17, 24.94, 9)
    lat, lon = h3.cell_to_latlng(cell)
    around = shapely.box(lon - 1e-4, lat - 1e-4, lon + 1e-4, lat + 1e-4)
    assert [cells.names for cells in cells_within(around, 9)] == [[cell]]
    beside = shapely.box(lon + 2e-4, lat - 1e-4, lon + 4e-4, lat + 1e-4)
    assert list(cells_within(beside, 9)) == []


def test_cells_have_their_centre_and_boundary():
    (cells,) = cells_within(shapely.box(24.94, 60.17, 24.943, 60.172), 11)
    for name, lon, lat, polygon in zip(cells.names, cells.lon, cells.lat, cells.geometries, strict=True):
        assert (lat, lon) == h3.cell_to_latlng(name)
        assert polygon.contains(shapely.Point(lon, lat))
        assert len(polygon.exterior.coords) == 7
