"""Mapnik in this process: the default tile source. One call renders a whole chunk."""

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

    def chunk(self, chunk: Tile) -> Pixels:
        """Render a chunk in one call and cut it into tiles, uint8 `[16, 16, 256, 256, C]`.

        Raises:
            StyleError: Mapnik cannot read the style or the features.
        """
        image = render(_open_map(self.style, self.features), chunk)
        rgba = np.frombuffer(image.to_string(), np.uint8)
        return cut_into_tiles(rgba.reshape(CHUNK_TILES, TILE_PX, CHUNK_TILES, TILE_PX, 4), self.n_channels)


def render(map_: mapnik.Map, chunk: Tile) -> mapnik.Image:
    """The bare Mapnik call: one chunk as one RGBA image."""
    map_.zoom_to_box(mapnik.Box2d(*chunk.mercator_box))
    image = mapnik.Image(CHUNK_PX, CHUNK_PX)
    mapnik.render(map_, image)
    return image


def cut_into_tiles(image: Pixels, n_channels: int) -> Pixels:
    """Reorder `[16, 256, 16, 256, ≥C]` into tiles `[16, 16, 256, 256, C]`.

    Row by row and channel by channel: numpy copies runs of three bytes at less than half that speed.
    """
    tiles = np.empty((CHUNK_TILES, CHUNK_TILES, TILE_PX, TILE_PX, n_channels), np.uint8)
    for row in range(CHUNK_TILES):
        for channel in range(n_channels):
            tiles[row, ..., channel] = image[row, ..., channel].transpose(1, 0, 2)
    return tiles


@lru_cache(maxsize=2)
def _open_map(style: Style, features: Path) -> mapnik.Map:
    """The map of a style over a folder of features, kept open: a process renders many chunks of one region."""
    return open_map(style, features)


def open_map(style: Style, features: Path) -> mapnik.Map:
    """Load a style's Mapnik XML over a folder of features, ready for chunks.

    Raises:
        StyleError: Mapnik says that the XML is wrong or a file cannot be opened.
    """
    xml = style.map_file.read_text(encoding="utf-8")
    for name, folder in (("features", features), ("style", style.folder)):
        xml = xml.replace("${" + name + "}", escape(str(folder), {'"': "&quot;"}))
    map_ = mapnik.Map(CHUNK_PX, CHUNK_PX)
    try:
        mapnik.load_map_from_string(map_, xml, True, str(style.folder))
    except RuntimeError as problem:
        raise StyleError(
            f"Mapnik cannot load {style.map_file} over {features}: {problem}. Mend the style, or materialise map_features."
        ) from None
    return map_
