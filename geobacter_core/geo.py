"""Places, windows, tiles, chunks and cells: small immutable types in which the whole package speaks.

Order is lon, lat everywhere; degrees are EPSG:4326, mercator metres are EPSG:3857, ground metres are metres on the
WGS 84 ellipsoid. A pixel is a zoom-16 tile pixel, counted east and south from the map's north-west corner.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import h3
import numpy as np
import shapely
from numpy.typing import NDArray

from geobacter_core.errors import PlaceError, RegionGeometryError

TILE_PX = 256
TILE_ZOOM = 16
CHUNK_ZOOM = 12
CHUNK_TILES = 1 << (TILE_ZOOM - CHUNK_ZOOM)
"""Tiles along a chunk's side."""
CHUNK_PX = CHUNK_TILES * TILE_PX
WORLD_PX = TILE_PX << TILE_ZOOM
"""Pixels along the side of the zoom-16 world."""

_A_M = 6378137.0
_F = 1 / 298.257223563
_E2 = _F * (2 - _F)
WORLD_M = 2 * math.pi * _A_M
"""Side of the EPSG:3857 square, in mercator metres."""
MERCATOR_MAX_LAT = 85.051128
REGION_MAX_LAT = 85.0

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Place:
    """A point on the ground. `lon` in [-180, 180], `lat` within web mercator (±85.0511), both in degrees."""

    lon: float
    lat: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lon) and math.isfinite(self.lat)):
            raise PlaceError(f"Place lon={self.lon} lat={self.lat}: not a finite number. Give degrees.")
        if not -180 <= self.lon <= 180:
            raise PlaceError(f"Place lon={self.lon} lat={self.lat}: longitude must be within -180 to 180 degrees.")
        if not -MERCATOR_MAX_LAT <= self.lat <= MERCATOR_MAX_LAT:
            raise PlaceError(
                f"Place lon={self.lon} lat={self.lat}: latitude must be within ±{MERCATOR_MAX_LAT} degrees, "
                "where web mercator ends. Are longitude and latitude swapped?"
            )


@dataclass(frozen=True, slots=True)
class Bounds:
    """A box in degrees that crosses neither the antimeridian nor ±85° latitude."""

    west: float
    south: float
    east: float
    north: float

    def __post_init__(self) -> None:
        corners = (self.west, self.south, self.east, self.north)
        where = f"Bounds west={self.west} south={self.south} east={self.east} north={self.north}"
        if not all(math.isfinite(corner) for corner in corners):
            raise RegionGeometryError(f"{where}: not finite numbers. Give degrees.")
        if not (-180 <= self.west <= 180 and -180 <= self.east <= 180):
            raise RegionGeometryError(f"{where}: longitudes must be within -180 to 180 degrees.")
        if self.west > self.east or self.east - self.west > 180:
            raise RegionGeometryError(
                f"{where}: the region crosses the antimeridian, which tiles and blocks cannot. "
                "Split the extract at 180° into two regions."
            )
        if self.south > self.north:
            raise RegionGeometryError(f"{where}: south lies north of north. Give west, south, east, north.")
        if self.south < -REGION_MAX_LAT or self.north > REGION_MAX_LAT:
            raise RegionGeometryError(
                f"{where}: the region reaches past {REGION_MAX_LAT:.0f}° latitude, where web mercator ends. "
                "Give the region `bounds` that stay within."
            )
        if self.west == self.east or self.south == self.north:
            raise RegionGeometryError(f"{where}: the region has no extent. Give `bounds`, or another extract.")

    @property
    def polygon(self) -> shapely.Polygon:
        """The box as a polygon in degrees, lon first."""
        return shapely.box(self.west, self.south, self.east, self.north)

    @property
    def size_m(self) -> tuple[float, float]:
        """Width (along the middle parallel) and height in ground metres."""
        lat = np.array([(self.south + self.north) / 2])
        scale_x, scale_y = mercator_scale(lat)
        x, y = lonlat_to_mercator(np.array([self.west, self.east]), np.array([self.south, self.north]))
        return float((x[1] - x[0]) / scale_x[0]), float((y[1] - y[0]) / scale_y[0])

    def tile_range(self, zoom: int, margin_m: float = 0.0) -> tuple[int, int, int, int]:
        """First column, first row, last column, last row of the tiles that the box, widened by a margin, touches."""
        x, y = lonlat_to_mercator(np.array([self.west, self.east]), np.array([self.south, self.north]))
        scale_x, scale_y = mercator_scale(np.array([self.south, self.north]))
        x += np.array([-1, 1]) * margin_m * scale_x.max()
        y += np.array([-1, 1]) * margin_m * scale_y.max()
        side_m = WORLD_M / (1 << zoom)
        last = (1 << zoom) - 1
        columns = np.clip(np.floor((x + WORLD_M / 2) / side_m), 0, last)
        rows = np.clip(np.floor((WORLD_M / 2 - y[::-1]) / side_m), 0, last)
        return int(columns[0]), int(rows[0]), int(columns[1]), int(rows[1])

    def tiles(self, zoom: int, margin_m: float = 0.0) -> Iterator["Tile"]:
        """The tiles that the box, widened by `margin_m` ground metres, touches: row by row from the north-west."""
        left, top, right, bottom = self.tile_range(zoom, margin_m)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                yield Tile(zoom, column, row)


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """A slippy-map tile. A chunk is a tile at zoom 12."""

    z: int
    x: int
    y: int

    def __post_init__(self) -> None:
        if not (0 <= self.z <= 30 and 0 <= self.x < 1 << self.z and 0 <= self.y < 1 << self.z):
            raise PlaceError(f"Tile {self.z}/{self.x}/{self.y} does not exist: x and y must be within 0 to 2^z - 1.")

    def __str__(self) -> str:
        return f"{self.z}/{self.x}/{self.y}"

    @property
    def mercator_box(self) -> tuple[float, float, float, float]:
        """West, south, east, north in mercator metres."""
        side_m = WORLD_M / (1 << self.z)
        west = self.x * side_m - WORLD_M / 2
        north = WORLD_M / 2 - self.y * side_m
        return west, north - side_m, west + side_m, north

    @property
    def polygon(self) -> shapely.Polygon:
        """The tile's box in degrees, lon first; the outermost reach past the ±85° that end a region."""
        west, south, east, north = self.mercator_box
        lon, lat = mercator_to_lonlat(np.array([west, east]), np.array([south, north]))
        return shapely.box(float(lon[0]), float(lat[0]), float(lon[1]), float(lat[1]))

    @classmethod
    def at(cls, place: Place, zoom: int) -> "Tile":
        """The tile that holds a place."""
        x, y = lonlat_to_pixel(np.array([place.lon]), np.array([place.lat]))
        side_px = WORLD_PX >> zoom
        last = (1 << zoom) - 1
        return cls(zoom, min(int(x[0] // side_px), last), min(int(y[0] // side_px), last))


@dataclass(frozen=True, slots=True)
class Window:
    """A square of ground, `size_m` metres wide, centred on a place, north up."""

    place: Place
    size_m: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.size_m) and 0 < self.size_m <= 10_000):
            raise PlaceError(f"Window of {self.size_m} m at {self.place}: the size must be within 0 to 10,000 metres.")

    @property
    def pixel_box(self) -> tuple[float, float, float, float]:
        """West, north, east, south in zoom-16 pixels, fractional: `size_m` ground metres along each side."""
        lon, lat = np.array([self.place.lon]), np.array([self.place.lat])
        x, y = lonlat_to_pixel(lon, lat)
        half_x, half_y = window_half_px(lat, self.size_m)
        return (
            float(x[0] - half_x[0]),
            float(y[0] - half_y[0]),
            float(x[0] + half_x[0]),
            float(y[0] + half_y[0]),
        )


def lonlat_to_mercator(lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """Degrees to EPSG:3857 metres."""
    x = np.radians(lon) * _A_M
    y = _A_M * np.log(np.tan(np.pi / 4 + np.radians(lat) / 2))
    return x, y


def mercator_to_lonlat(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """EPSG:3857 metres to degrees."""
    return np.degrees(x / _A_M), np.degrees(2 * np.arctan(np.exp(y / _A_M)) - np.pi / 2)


def mercator_scale(lat: Floats) -> tuple[Floats, Floats]:
    """Mercator metres per ground metre, eastward and northward, at latitudes in degrees.

    EPSG:3857 projects ellipsoidal degrees with the sphere's formulas, so the two differ by up to 0.67 %:
    a/(N cos φ) and a/(M cos φ) with the ellipsoid's radii of curvature N (prime vertical) and M (meridian).
    """
    phi = np.radians(lat)
    w2 = 1 - _E2 * np.sin(phi) ** 2
    return np.sqrt(w2) / np.cos(phi), w2**1.5 / ((1 - _E2) * np.cos(phi))


def window_half_px(lat: Floats, size_m: float | Floats) -> tuple[Floats, Floats]:
    """Half width and half height, in zoom-16 pixels, of windows of `size_m` ground metres at latitudes in degrees."""
    scale_x, scale_y = mercator_scale(lat)
    px_per_m = WORLD_PX / WORLD_M
    return size_m / 2 * scale_x * px_per_m, size_m / 2 * scale_y * px_per_m


def lonlat_to_pixel(lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """Degrees to fractional zoom-16 pixels, x east and y south."""
    x, y = lonlat_to_mercator(lon, lat)
    return (x / WORLD_M + 0.5) * WORLD_PX, (0.5 - y / WORLD_M) * WORLD_PX


def chunk_numbers(lonlat: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The chunks, x and y, that hold places `[N, 2]` in degrees."""
    x, y = lonlat_to_pixel(*lonlat.T)
    return (x // CHUNK_PX).astype(np.int64), (y // CHUNK_PX).astype(np.int64)


def pixel_to_lonlat(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Fractional zoom-16 pixels to degrees."""
    return mercator_to_lonlat((x / WORLD_PX - 0.5) * WORLD_M, (0.5 - y / WORLD_PX) * WORLD_M)


def ground_distance_m(lon_a: Floats, lat_a: Floats, lon_b: Floats, lat_b: Floats) -> Floats:
    """Great-circle distance in metres (haversine on the mean sphere; within 0.6 % of the ellipsoid's)."""
    phi_a, phi_b = np.radians(lat_a), np.radians(lat_b)
    a = np.sin((phi_b - phi_a) / 2) ** 2 + np.cos(phi_a) * np.cos(phi_b) * np.sin(np.radians(lon_b - lon_a) / 2) ** 2
    return np.asarray(2 * 6371008.8 * np.arcsin(np.sqrt(np.clip(a, 0, 1))))


@dataclass(frozen=True, slots=True)
class H3Cells:
    """A batch of H3 cells in ascending order of index.

    Attributes:
        index: uint64 `[N]`.
        lon: Cell centres, degrees, `[N]`.
        lat: Cell centres, degrees, `[N]`.
    """

    index: NDArray[np.uint64]
    lon: Floats
    lat: Floats

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: NDArray[np.int64]) -> "H3Cells":
        """Some of them."""
        return H3Cells(self.index[rows], self.lon[rows], self.lat[rows])

    @property
    def names(self) -> list[str]:
        """The cells' H3 strings, which sort as their indexes do."""
        return [h3.int_to_str(int(index)) for index in self.index]

    @property
    def geometries(self) -> NDArray[Any]:
        """The cells' boundaries as shapely polygons, degrees, lon first."""
        return h3_polygons(self.names)

    @property
    def along_ground(self) -> NDArray[np.int64]:
        """The rows in an order that follows the ground, which their own does."""
        return np.arange(len(self))


def h3_polygons(names: Sequence[str]) -> NDArray[Any]:
    """The boundaries of H3 cells as shapely polygons, degrees, lon first."""
    boundaries = [h3.cell_to_boundary(name) for name in names]
    if not boundaries:
        return np.empty(0, object)
    of_cell = np.repeat(np.arange(len(boundaries)), [len(boundary) for boundary in boundaries])
    rings = shapely.linearrings(np.concatenate(boundaries)[:, ::-1], indices=of_cell)
    return np.asarray(shapely.polygons(rings), object)


_FINER_BY = 4
MAX_BATCH = 7**_FINER_BY
"""2,401: so many descendants a cell has at most."""


def cells_within(ground: shapely.Geometry, resolution: int) -> Iterator[H3Cells]:
    """The H3 cells whose centre lies within `ground` (degrees), in ascending order, in batches of at most `MAX_BATCH`.

    A batch is the descendants of one coarse cell, so memory stays flat however large the ground is.
    """
    for coarse in coarse_cells(ground, resolution):
        cells = cells_of(coarse, ground, resolution)
        if len(cells):
            yield cells


def coarse_resolution(resolution: int) -> int:
    """Of the cells whose descendants are a batch."""
    return max(resolution - _FINER_BY, 0)


def coarse_cells(ground: shapely.Geometry, resolution: int) -> list[str]:
    """The coarse cells, H3 strings in ascending order, that can have descendants within `ground` (degrees)."""
    shape = h3.geo_to_h3shape(ground)
    overlapping = h3.polygon_to_cells_experimental(shape, coarse_resolution(resolution), contain="overlap")
    # A child's centre may lie outside its parent's hexagon, by less than one parent.
    return sorted({neighbour for cell in overlapping for neighbour in h3.grid_disk(cell, 1)})


def cells_of(coarse: str, ground: shapely.Geometry, resolution: int) -> H3Cells:
    """The descendants of a coarse cell whose centre lies within `ground` (degrees), in ascending order."""
    shapely.prepare(ground)
    names, centres = [coarse], np.empty((1, 2))
    for finer in range(h3.get_resolution(coarse) + 1, resolution + 1):
        children = [child for name in names for child in h3.cell_to_children(name, finer)]
        centres = np.array([h3.cell_to_latlng(child) for child in children]).reshape(-1, 2)
        if finer < resolution:  # most children of a cell at the edge lie far outside, and so do theirs
            near = shapely.dwithin(ground, shapely.points(centres[:, ::-1]), _reach_deg(finer, centres[:, 0]))
        else:
            near = shapely.contains_xy(ground, centres[:, 1], centres[:, 0])
        names, centres = [children[index] for index in np.flatnonzero(near)], centres[near]
        if not names:
            break
    order = np.argsort(names)
    index = np.array([h3.str_to_int(names[row]) for row in order], dtype=np.uint64)
    return H3Cells(index, centres[order, 1], centres[order, 0])


def reach_m(resolution: int) -> float:
    """How far from a cell's centre those of its descendants lie at most, metres, with room to spare.

    They lie in a fractal around its hexagon that sticks out by less than an edge; edges are up to 1.3 times the mean.
    """
    return float(3 * h3.average_hexagon_edge_length(resolution, unit="m"))


def _reach_deg(resolution: int, lat: Floats) -> Floats:
    """`reach_m` in degrees of any direction, at latitudes."""
    return np.asarray(np.degrees(reach_m(resolution) / 6371008.8 / np.cos(np.radians(np.clip(np.abs(lat) + 1, 0, 89)))))
