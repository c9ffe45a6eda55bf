"""Mapnik in this process: the default tile source. One call renders three channels of a whole chunk."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from xml.sax.saxutils import escape

import mapnik
import numpy as np

from geobacter_core.errors import StyleError
from geobacter_core.geo import CHUNK_PX, CHUNK_TILES, TILE_PX, Tile
from geobacter_core.tiles.source import Pixels
from geobacter_core.tiles.style import Style

_spare: list[mapnik.Image] = []
"""Images of a chunk's size that are not in use: to come by the 64 MiB of a new one takes longer than to draw on it."""


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

    def strips(self, chunk: Tile) -> Iterator[Pixels]:
        """Render a chunk, an image for every three channels, and cut it, strip by strip, into tiles.

        Raises:
            StyleError: Mapnik cannot read the style or the features.
        """
        with rendered(_open_maps(self.style, self.features), chunk) as images:
            yield from cut_into_strips(images, self.n_channels)


@contextmanager
def rendered(maps: Sequence[mapnik.Map], chunk: Tile) -> Iterator[list[mapnik.Image]]:
    """The bare Mapnik calls: one chunk as one RGBA image per map, to be used within the `with` block only."""
    images: list[mapnik.Image] = []
    try:
        for map_ in maps:
            images.append(_spare.pop() if _spare else mapnik.Image(CHUNK_PX, CHUNK_PX))
            if map_.background is None:
                images[-1].fill(mapnik.Color("transparent"))
            map_.zoom_to_box(mapnik.Box2d(*chunk.mercator_box))
            mapnik.render(map_, images[-1])
        yield images
    finally:
        _spare.extend(images)


def cut_into_strips(images: Sequence[mapnik.Image], n_channels: int) -> Iterator[Pixels]:
    """Cut a chunk's RGBA images into strips of tiles, uint8 `[16, 256, 256, C]`: red, green, blue of one, of the next.

    Tile by tile and into the same memory, so that the copies stay in the processor's cache; channel by channel, because
    numpy copies runs of three bytes at less than half that speed. Tiles of one colour, of which most regions have many
    of few colours, are copied whole.
    """
    tiles = np.empty((CHUNK_TILES, TILE_PX, TILE_PX, n_channels), np.uint8)
    of_colour: dict[tuple[int, ...], Pixels] = {}
    for row in range(CHUNK_TILES):
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
