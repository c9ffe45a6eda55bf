"""Mapnik in this process: the default tile source. One call renders three channels of a whole chunk."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from xml.sax.saxutils import escape

import mapnik
import numpy as np

from geobacter_core.errors import StyleError
from geobacter_core.files import n_processors
from geobacter_core.geo import CHUNK_PX, CHUNK_TILES, TILE_PX, WORLD_M, Tile
from geobacter_core.tiles.source import ALL_ROWS, Pixels
from geobacter_core.tiles.style import Style

_spare: list[mapnik.Image] = []
"""Images of a chunk's size that are not in use: to come by the 64 MiB of a new one takes longer than to draw on it."""
_MAX_STEP = 4
_WORLD = mapnik.Box2d(-WORLD_M / 2, -WORLD_M / 2, WORLD_M / 2, WORLD_M / 2)


@dataclass(frozen=True, slots=True)
class MapnikSource:
    """Renders map features with a style.

    Attributes:
        style: How the features look.
        features: Folder with `points.fgb`, `lines.fgb` and `polygons.fgb`.
    """

    style: Style
    features: Path

    @property
    def name(self) -> str:
        """Mapnik with its version: another version may place a pixel differently."""
        return f"mapnik {mapnik.version_string()}"

    @property
    def n_channels(self) -> int:
        """One per channel of the style."""
        return len(self.style.channels)

    @property
    def max_processes(self) -> None:
        """As many as there are processors."""
        return None

    def strips(self, chunk: Tile, rows: Sequence[int] = ALL_ROWS) -> Iterator[Pixels]:
        """Render a chunk, or some rows of its tiles, an image for every three channels, and cut it into strips.

        Raises:
            StyleError: Mapnik cannot read the style or the features.
        """
        maps = _open_maps(self.style, self.features)
        for some in _near_each_other(rows):
            around = range(some[0], some[-1] + 1)
            with rendered(maps, chunk, around, self.style.reach_px) as images:
                yield from cut_into_strips(images, self.n_channels, some)


@contextmanager
def rendered(
    maps: Sequence[mapnik.Map], chunk: Tile, rows: range = ALL_ROWS, reach_px: float = 0.0
) -> Iterator[list[mapnik.Image]]:
    """The bare Mapnik calls: one chunk as one RGBA image per map, to be used within the `with` block only.

    Where some rows of tiles are enough, the image is that of the whole chunk all the same, but only features within
    `reach_px` of these rows are read and drawn. A smaller image would not do: Mapnik cuts lines off at its edge, and
    the rounding there shows all along the line.
    """
    west, south, east, north = chunk.mercator_box
    px = (north - south) / CHUNK_PX
    top, bottom = rows.start * TILE_PX - reach_px, rows.stop * TILE_PX + reach_px
    read = mapnik.Box2d(west - reach_px * px, north - bottom * px, east + reach_px * px, north - top * px)
    images = [_spare.pop() if _spare else mapnik.Image(CHUNK_PX, CHUNK_PX) for _ in maps]

    def render(map_: mapnik.Map, image: mapnik.Image) -> None:
        if map_.background is None:
            image.fill(mapnik.Color("transparent"))
        map_.maximum_extent = _WORLD  # the zoom would end at that of the last call
        map_.zoom_to_box(mapnik.Box2d(west, south, east, north))
        if rows != ALL_ROWS:
            map_.maximum_extent = read
        mapnik.render(map_, image)

    # A worker of a build shares the processors with others; Mapnik lets go of Python's lock.
    n_threads = 1 if multiprocessing.parent_process() else min(n_processors(), len(maps))
    try:
        if n_threads == 1:
            for map_, image in zip(maps, images, strict=True):
                render(map_, image)
        else:
            with ThreadPoolExecutor(n_threads, "rendering") as pool:
                list(pool.map(render, maps, images))
        yield images
    finally:
        _spare.extend(images)


def _near_each_other(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    """Rows, ascending, that are rendered in one call: to draw a few rows in between costs less than another call."""
    first = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or rows[index] - rows[index - 1] > _MAX_STEP:
            yield rows[first:index]
            first = index


def cut_into_strips(
    images: Sequence[mapnik.Image], n_channels: int, rows: Sequence[int] = ALL_ROWS
) -> Iterator[Pixels]:
    """Cut rows of a chunk's RGBA images into strips, uint8 `[16, 256, 256, C]`: red, green, blue of one, of the next.

    Tile by tile and into the same memory, so that the copies stay in the processor's cache; channel by channel, because
    numpy copies runs of three bytes at less than half that speed. Tiles of one colour, of which most regions have many
    of few colours, are copied whole.
    """
    tiles = np.empty((CHUNK_TILES, TILE_PX, TILE_PX, n_channels), np.uint8)
    of_colour: dict[tuple[int, ...], Pixels] = {}
    for row in rows:
        for column in range(CHUNK_TILES):
            views = [image.view(column * TILE_PX, row * TILE_PX, TILE_PX, TILE_PX) for image in images]
            pixels = [np.frombuffer(view.to_string(), np.uint32).reshape(TILE_PX, TILE_PX) for view in views]
            is_blank = all((words == words[0, 0]).all() for words in pixels)
            colour = tuple(int(words[0, 0]) for words in pixels)
            if is_blank and colour in of_colour:
                tiles[column] = of_colour[colour]
                continue
            for channel in range(n_channels):
                tiles[column, ..., channel] = pixels[channel // 3].view(np.uint8)[:, channel % 3 :: 4]
            if is_blank:
                of_colour[colour] = tiles[column].copy()
        yield tiles


@lru_cache(maxsize=2)
def _open_maps(style: Style, features: Path) -> tuple[mapnik.Map, ...]:
    """The maps of a style over a folder of features, kept open: a process renders many chunks of one region."""
    return open_maps(style, features)


def open_maps(style: Style, features: Path) -> tuple[mapnik.Map, ...]:
    """Load a style's Mapnik XML over a folder of features, ready for chunks.

    Raises:
        StyleError: Mapnik says that the XML is wrong or a file cannot be opened.
    """
    return tuple(_open_map(style, features, xml) for xml in style.maps)


def _open_map(style: Style, features: Path, xml: str) -> mapnik.Map:
    for name, folder in (("features", features), ("style", style.folder)):
        xml = xml.replace("${" + name + "}", escape(str(folder), {'"': "&quot;"}))
    map_ = mapnik.Map(CHUNK_PX, CHUNK_PX)
    try:
        mapnik.load_map_from_string(map_, xml, True, str(style.folder))
    except RuntimeError as problem:
        raise StyleError(
            f"Mapnik cannot load style '{style.name}' in {style.folder} over {features}: {problem}. "
            "Mend the style, or materialise map_features."
        ) from None
    return map_
