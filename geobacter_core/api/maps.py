"""Slippy tiles: a base map drawn from a region's features, and its cells in the colours of their embeddings."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import mapnik
import numpy as np
import shapely
from numpy.typing import NDArray

from geobacter_core.embeddings.mapped import MappedTable
from geobacter_core.errors import FeaturesError
from geobacter_core.geo import TILE_PX, TILE_ZOOM, WORLD_PX, Floats, Tile, lonlat_to_pixel
from geobacter_core.osm.features import load_features
from geobacter_core.plots.arrange import component_colours, principal_components, sampled_rows
from geobacter_core.tiles.mapnik import open_maps
from geobacter_core.tiles.source import Pixels
from geobacter_core.tiles.style import Style, load_style

MIN_ZOOM, MAX_ZOOM = 10, 18
PAPER = (242, 239, 233)
_BUFFER_PX = 64
_POINTS_FROM = 15
"""Marks of single points would cover the map at smaller zooms."""
_MIN_WIDTH, _MAX_WIDTH = 0.25, 2.5
"""Lines are as wide as on the ground, but neither invisible nor clumsy."""
_REMEMBERED_TILES = 2000
_POINT_PX = 1.5
_N_SEEN, _N_MEASURED = 300, 50
_DISC_PX = 5


def base_map_style(style: Style) -> Style:
    """The style of the base map: the installation's if that is made for eyes, else `carto`."""
    return style if len(style.maps) == 1 and not style.masks else load_style("carto")


class BaseMap:
    """Draws a region's map features with Mapnik at any zoom; one tile at a time, the last ones remembered."""

    def __init__(self, files: Path, style: Style) -> None:
        """Draw the features in a folder, whose name tells its content, in a style that has red, green and blue."""
        self.files = files
        self._style = style
        self._opened: tuple[mapnik.Map, ...] = ()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, features: Path, style: Style) -> "BaseMap | None":
        """The map of a region's features, `features/<region>`, if it has any."""
        try:
            _, files = load_features(features)
        except FeaturesError:
            return None
        return cls(files, style)

    def draw(self, tile: Tile) -> Pixels:
        """A tile as uint8 `[256, 256, 3]`."""
        with self._lock:
            self._opened = self._opened or open_maps(self._style, self.files)
            map_ = self._opened[0]
            map_.resize(TILE_PX, TILE_PX)
            map_.buffer_size = _BUFFER_PX
            map_.zoom_to_box(mapnik.Box2d(*tile.mercator_box))
            for layer in map_.layers:
                if layer.name == "points":
                    layer.active = tile.z >= _POINTS_FROM
            image = mapnik.Image(TILE_PX, TILE_PX)
            width = float(np.clip(2.0 ** (tile.z - TILE_ZOOM), _MIN_WIDTH, _MAX_WIDTH))
            mapnik.render(map_, image, width)
            rgba = np.frombuffer(image.to_string(), np.uint8).reshape(TILE_PX, TILE_PX, 4)
        return np.ascontiguousarray(rgba[..., :3])


class CellMap:
    """Draws the cells of a table in the colours of their embeddings, as the report's map has them."""

    def __init__(self, table: MappedTable, window_colours: Callable[[Floats, Floats], Pixels]) -> None:
        """Prepare to draw; the colours are found when the first tile is asked for.

        Args:
            table: The table.
            window_colours: The mean colours of windows at places in degrees, sRGB uint8 `[N, 3]`.
        """
        self.table = table
        self._window_colours = window_colours
        self._known_colours: Pixels | None = None
        self._lock = threading.Lock()
        self._x, self._y = lonlat_to_pixel(*np.asarray(table.lonlat).T)
        # Cells of a user's grid may differ; the largest of a few is as good a guess as any of how far one reaches.
        some = sampled_rows(np.arange(len(table)), _N_MEASURED)
        self._half_px = max(max(float(np.ptp(x)), 1.0) for row in some for x, _ in _rings(table, int(row))) / 2

    @property
    def colours(self) -> Pixels:
        """Of every row, sRGB uint8 `[N, 3]`."""
        with self._lock:
            if self._known_colours is None:
                rows = sampled_rows(np.arange(len(self.table)), _N_SEEN)
                lonlat = np.asarray(self.table.lonlat[rows])
                seen = self._window_colours(lonlat[:, 0], lonlat[:, 1])
                components = principal_components(np.asarray(self.table.embeddings))
                self._known_colours = component_colours(components, rows, seen)
            return self._known_colours

    def draw(self, tile: Tile) -> Pixels | None:
        """A tile as uint8 `[256, 256, 4]`, transparent where no cell is; None where it has none at all."""
        scale = 2.0 ** (tile.z - TILE_ZOOM)
        side = WORLD_PX / (1 << tile.z)
        west, north = tile.x * side, tile.y * side
        room = 2 * self._half_px
        rows = np.flatnonzero(
            (self._x > west - room)
            & (self._x < west + side + room)
            & (self._y > north - room)
            & (self._y < north + side + room)
        )
        if not len(rows):
            return None
        pixels, colours = np.zeros((TILE_PX, TILE_PX, 4), np.uint8), self.colours
        if self._half_px * scale < _POINT_PX:
            column = ((self._x[rows] - west) * scale).astype(np.int64)
            row = ((self._y[rows] - north) * scale).astype(np.int64)
            inside = (column >= 0) & (column < TILE_PX) & (row >= 0) & (row < TILE_PX)
            return _dots(pixels, column[inside], row[inside], colours[rows[inside]])
        for each in rows:
            colour = (*(int(band) for band in colours[each]), 255)
            for x, y in _rings(self.table, int(each)):
                points = np.round(np.stack([(x - west) * scale, (y - north) * scale], axis=1) * 16).astype(np.int32)
                if len(points) == 1:
                    cv2.circle(pixels, points[0].tolist(), _DISC_PX * 16, colour, cv2.FILLED, cv2.LINE_8, 4)
                else:
                    cv2.fillPoly(pixels, [points], colour, cv2.LINE_8, 4)
        return pixels


def _dots(pixels: Pixels, column: NDArray[np.int64], row: NDArray[np.int64], colours: Pixels) -> Pixels:
    """Cells smaller than a few pixels: each of them colours the pixels around its centre, which closes gaps."""
    pixels[row, column, :3], pixels[row, column, 3] = colours, 255
    for _ in range(2):
        is_free = pixels[..., 3] == 0
        grown = np.asarray(cv2.dilate(pixels, np.ones((3, 3), np.uint8)))
        pixels = np.where(is_free[..., None], grown, pixels)
    return pixels


def _rings(table: MappedTable, row: int) -> Iterator[tuple[Floats, Floats]]:
    """A cell's outlines in pixels of zoom 16; of a point the point."""
    for part in shapely.get_parts(table.geometry(row)):
        ring = part.exterior if isinstance(part, shapely.Polygon) else part
        yield lonlat_to_pixel(*shapely.get_coordinates(ring).T)


class Remembered:
    """The last answers to some question, by key; thread-safe."""

    def __init__(self, n: int = _REMEMBERED_TILES) -> None:
        """Remember `n` of them."""
        self._n = n
        self._lock = threading.Lock()
        self._known: OrderedDict[object, bytes | None] = OrderedDict()

    def get(self, key: object, make: Callable[[], bytes | None]) -> bytes | None:
        """What is known, or else is made now."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        made = make()
        with self._lock:
            self._known[key] = made
            while len(self._known) > self._n:
                self._known.popitem(last=False)
        return made
