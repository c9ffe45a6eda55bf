"""Decoded chunks: reduced by powers of two, cut into blocks, and kept in a memory of bounded size."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geobacter_core.geo import CHUNK_PX, TILE_PX, Tile
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.source import Pixels


@dataclass(frozen=True, slots=True)
class Mosaic:
    """A chunk as a grid of square blocks.

    Blocks of one colour, which most chunks at a region's edge are made of, take up a pixel each.

    Attributes:
        blocks: Rows of blocks, north to south, uint8 `[side, side, C]` each.
        side: Of a block, reduced pixels.
        n_bytes: What the blocks take up.
    """

    blocks: list[list[Pixels]]
    side: int
    n_bytes: int

    @classmethod
    def of(cls, strips: Iterable[Pixels], reduction: int) -> "Mosaic":
        """From a chunk's strips of tiles, uint8 `[16, 256, 256, C]` each, one at a time."""
        side = min(TILE_PX, CHUNK_PX // reduction)
        blocks = [
            [_kept(band[:, left : left + side]) for left in range(0, band.shape[1], side)]
            for band in _bands(strips, reduction, side)
        ]
        return cls(blocks, side, sum(block.nbytes for row in blocks for block in row if block.flags.owndata))


def _bands(strips: Iterable[Pixels], reduction: int, height: int) -> Iterator[Pixels]:
    """The chunk in bands of `height` reduced pixels, uint8 `[height, 4096 / r, C]`."""
    rows: list[Pixels] = []
    for strip in strips:
        rows.append(_reduced_strip(strip, reduction))
        if sum(len(row) for row in rows) == height:
            yield rows[0] if len(rows) == 1 else np.concatenate(rows)
            rows = []


def _kept(block: Pixels) -> Pixels:
    """A copy of a block, or of its one colour."""
    colour = block[0, 0]
    if (block[0] == colour).all() and (block == colour).all():
        return np.broadcast_to(colour.copy(), block.shape)
    return block.copy()


def reduced(strips: Iterable[Pixels], reduction: int) -> Pixels:
    """A chunk's strips of tiles as one image `[4096 / r, 4096 / r, C]`, the mean of r × r pixels, rounded."""
    return np.concatenate([_reduced_strip(strip, reduction) for strip in strips])


def _reduced_strip(strip: Pixels, reduction: int) -> Pixels:
    """A row of tiles `[T, 256, 256, C]` as an image `[256 / r, T · 256 / r, C]`, the mean of r × r pixels, rounded."""
    mosaic = strip.swapaxes(0, 1)
    height, columns, width, channels = mosaic.shape
    if reduction == 1:
        return mosaic.reshape(height, columns * width, channels)
    total = np.zeros((height // reduction, columns, width // reduction, channels), np.uint16)
    if reduction > 16:
        total = total.astype(np.uint32)
    for dy in range(reduction):
        for dx in range(reduction):
            total += mosaic[dy::reduction, :, dx::reduction]
    mean = ((total + reduction**2 // 2) // reduction**2).astype(np.uint8)
    return mean.reshape(height // reduction, columns * width // reduction, channels)


class ChunkMemory:
    """The chunks that were used last, decoded, of any number of caches, up to a number of bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._mosaics: OrderedDict[tuple[Path, Tile, int], Mosaic] = OrderedDict()

    def mosaic(self, cache: TileCache, chunk: Tile, reduction: int) -> Mosaic:
        """A chunk, from memory or else from its file; one at least is always kept.

        Raises:
            TileCacheError: The chunk is not in the cache, missing or damaged.
        """
        key = (cache.folder, chunk, reduction)
        if key in self._mosaics:
            self._mosaics.move_to_end(key)
            return self._mosaics[key]
        mosaic = Mosaic.of(cache.strips(chunk), reduction)
        self._mosaics[key] = mosaic
        self.used_bytes += mosaic.n_bytes
        while self.used_bytes > self.budget_bytes and len(self._mosaics) > 1:
            self.used_bytes -= self._mosaics.popitem(last=False)[1].n_bytes
        return mosaic
