"""Decoded chunks, or single tiles of them: reduced by powers of two, and kept in a memory of bounded size."""

import threading
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from geobacter_core.geo import CHUNK_PX, CHUNK_TILES, CHUNK_ZOOM, TILE_PX, Tile
from geobacter_core.tiles.source import Chunks, Pixels

GROUP = 4
"""Channels that are kept side by side: OpenCV warps four at once in the time of one."""
Block = Sequence[Pixels | None]
"""A square of ground in groups of four channels, uint8 `[side, side, 4]` each; the last has some of 0.

A group of one colour takes up a pixel, and is None where that is 0: most ground at a region's edge, and most channels
of a style of masks, are such.
"""
_BY_HALVING = (4, 8, 16)
"""Reductions that OpenCV's mean of 2 × 2 pixels, again and again, comes to in a third of the time."""
Number = TypeVar("Number", np.uint8, np.uint16)
cv2.setNumThreads(1)  # pictures are small: its other threads would only wait for work, and keep a processor busy


def n_groups(n_channels: int) -> int:
    """How many groups hold so many channels."""
    return -(-n_channels // GROUP)


def block_px(reduction: int) -> int:
    """Side of a block of a chunk, reduced pixels."""
    return min(TILE_PX, CHUNK_PX // reduction)


def blocks_per_side(reduction: int) -> int:
    """How many blocks lie along a chunk's side."""
    return CHUNK_PX // reduction // block_px(reduction)


@dataclass(frozen=True, slots=True)
class Mosaic:
    """A chunk as a grid of blocks.

    Attributes:
        blocks: Rows of blocks, north to south.
        n_bytes: What the blocks take up.
    """

    blocks: list[list[Block]]
    n_bytes: int


def in_groups(strip: Pixels, reductions: Collection[int]) -> dict[int, list[Sequence[Pixels]]]:
    """For each reduction the tiles of a strip, uint8 `[16, 256, 256, C]`, reduced, in groups of channels."""
    tiles = [[_reduced_group(group, reductions) for group in _grouped(tile)] for tile in strip]
    return {reduction: [[group[reduction] for group in groups] for groups in tiles] for reduction in reductions}


def mosaics(rows: Iterable[Mapping[int, list[Sequence[Pixels]]]]) -> dict[int, Mosaic]:
    """A chunk, reduced in one or more ways by the mean of r × r pixels, rounded, from its strips by `in_groups`."""
    strips = list(rows)
    return {
        reduction: _in_blocks([strip[reduction] for strip in strips], blocks_per_side(reduction))
        for reduction in strips[0]
    }


def _grouped(tile: Pixels) -> Sequence[Pixels]:
    """A tile's channels in fours, uint8 `[256, 256, 4]` each; a group of one colour is a view of one pixel."""
    return [_group(tile, first) for first in range(0, tile.shape[-1], GROUP)]


def _group(tile: Pixels, first: int) -> Pixels:
    group = np.zeros((TILE_PX, TILE_PX, GROUP), np.uint8)
    as_numbers = group.view(np.uint32)[..., 0]
    n_own = min(GROUP, tile.shape[-1] - first)
    if n_own == GROUP:
        pixels = np.ndarray(as_numbers.shape, np.uint32, tile, first * tile.strides[2], tile.strides[:2])
    else:
        cv2.mixChannels([tile], [group], [number for own in range(n_own) for number in (first + own, own)])
        pixels = as_numbers
    if (pixels[0] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all():
        return np.broadcast_to(np.array([pixels[0, 0]]).view(np.uint8), group.shape)
    as_numbers[:] = pixels  # four bytes at once: a fifth of the time
    return group


def _reduced_group(group: Pixels, reductions: Collection[int]) -> dict[int, Pixels]:
    """A group of a tile by reduction: the mean of r × r pixels, rounded."""
    if group.strides[0] == 0:
        return {reduction: group[: TILE_PX // reduction, : TILE_PX // reduction] for reduction in reductions}
    found = {reduction: _mean(group, reduction) for reduction in reductions if reduction not in _BY_HALVING}
    left = set(reductions) & set(_BY_HALVING)
    if left:
        # As the sums of all: with 8 bits more, each mean of four numbers is exact.
        halved = _mean(np.multiply(group, 256, dtype=np.uint16), 2)
        for reduction in _BY_HALVING:
            halved = _mean(halved, 2)
            if reduction in left:
                found[reduction] = np.asarray(cv2.convertScaleAbs(halved, alpha=1 / 256), np.uint8)
            if reduction == max(left):
                break
    return found


def _mean(pixels: NDArray[Number], reduction: int) -> NDArray[Number]:
    """The mean of r × r pixels, rounded; the pixels themselves for 1."""
    if reduction == 1:
        return pixels
    side = len(pixels) // reduction
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), pixels.dtype)


def _in_blocks(tiles: list[list[Sequence[Pixels]]], n_columns: int) -> Mosaic:
    n = CHUNK_TILES // n_columns

    def block(top: int, left: int) -> Block:
        parts = [tile for row in tiles[top : top + n] for tile in row[left : left + n]]
        return [_joined(group) for group in zip(*parts, strict=True)]

    blocks = [[block(top, left) for left in range(0, CHUNK_TILES, n)] for top in range(0, len(tiles), n)]
    return Mosaic(blocks, sum(_n_bytes(block) for row in blocks for block in row))


def _n_bytes(block: Block) -> int:
    return sum(group.nbytes for group in block if group is not None and group.strides[0])


def _joined(parts: Sequence[Pixels]) -> Pixels | None:
    """Square parts of a square block, row by row; one pixel where all are of one colour, None where that is 0."""
    n = round(len(parts) ** 0.5)
    if n == 1 and parts[0].strides[0]:
        return parts[0]
    colour = parts[0][0, 0]
    if all(part.strides[0] == 0 and np.array_equal(part[0, 0], colour) for part in parts):
        return np.broadcast_to(colour, (n * len(parts[0]), n * len(parts[0]), GROUP)) if colour.any() else None
    return np.concatenate([np.concatenate(parts[first : first + n], axis=1) for first in range(0, len(parts), n)])


def reduced(strips: Iterable[Pixels], reduction: int) -> Pixels:
    """A chunk's strips of tiles as one image `[4096 / r, 4096 / r, C]`, the mean of r × r pixels, rounded."""
    side = TILE_PX // reduction
    rows = []
    for strip in strips:
        tiles = strip if reduction == 1 else [_reduced_tile(tile, side) for tile in strip]
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows)


def _reduced_tile(tile: Pixels, side: int) -> Pixels:
    resized = np.asarray(cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    return resized.reshape(side, side, tile.shape[-1])  # OpenCV drops a channel axis of one


class _Entry:
    """What is known of a chunk or of a strip of it, and the lock of who finds out more.

    Attributes:
        mosaics: The chunk, by reduction.
        strip: The strip, uint8 `[16, 256, 256, C]`.
        groups: The channels in fours of those of its tiles that were asked for, by column.
        tiles: These tiles, by column and reduction.
        n_bytes: What all of it takes up.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.mosaics: dict[int, Mosaic] = {}
        self.strip: Pixels | None = None
        self.groups: dict[int, Sequence[Pixels]] = {}
        self.tiles: dict[tuple[int, int], Block] = {}
        self.n_bytes = 0


_Key = tuple[Hashable, Tile, int | None]
"""Of an entry: what has the chunk, which chunk, and which strip of it, if not all."""


class ChunkMemory:
    """The chunks and strips that were used last, decoded, of any number of caches, up to so many bytes; thread-safe."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()

    def mosaic(self, cache: Chunks, chunk: Tile, reduction: int, wanted: Collection[int] = ()) -> Mosaic:
        """A chunk, from memory or else from its file; one at least is always kept.

        Args:
            cache: What has it.
            chunk: Which.
            reduction: By which it is wanted now.
            wanted: Other reductions by which it will be: to read a file once for all of them takes little longer.

        Raises:
            GeobacterError: The chunk cannot be had.
        """
        key = cache.key, chunk, None
        entry = self._entry(key)
        with entry.lock:
            if reduction not in entry.mosaics:
                new = {reduction, *wanted} - entry.mosaics.keys()
                made = mosaics(cache.map_strips(chunk, partial(in_groups, reductions=new)))
                entry.mosaics.update(made)
                self._account(key, entry, sum(mosaic.n_bytes for mosaic in made.values()))
            return entry.mosaics[reduction]

    def tile(self, cache: Chunks, number: Tile, reduction: int) -> Block:
        """A tile, of whose chunk no more is read than the strip that has it.

        Raises:
            GeobacterError: The chunk cannot be had.
        """
        chunk = Tile(CHUNK_ZOOM, number.x // CHUNK_TILES, number.y // CHUNK_TILES)
        row, column = number.y % CHUNK_TILES, number.x % CHUNK_TILES
        key = cache.key, chunk, row
        entry = self._entry(key)
        with entry.lock:
            strip = self._strip(cache, chunk, row, entry)
            if column not in entry.groups:
                entry.groups[column] = _grouped(strip[column])
                self._account(key, entry, _n_bytes(entry.groups[column]))
            if (column, reduction) not in entry.tiles:
                tile = [_joined([_reduced_group(group, [reduction])[reduction]]) for group in entry.groups[column]]
                entry.tiles[column, reduction] = tile
                self._account(key, entry, _n_bytes(tile) if reduction > 1 else 0)
            return entry.tiles[column, reduction]

    def read_ahead(self, cache: Chunks, strips: Iterable[tuple[Tile, int]]) -> None:
        """Read strips, chunk and row of each, that no other thread is reading; for these, `tile` waits.

        So threads that want the same strips share the reading, where they would wait for each other at every one. No
        more are read than fill a fourth of the memory, lest they push each other out before they are used.

        Raises:
            GeobacterError: A chunk cannot be had.
        """
        room = self.budget_bytes // 4
        for chunk, row in strips:
            if room <= 0:
                return
            entry = self._entry((cache.key, chunk, row))
            if entry.lock.acquire(blocking=False):
                try:
                    room -= self._strip(cache, chunk, row, entry).nbytes
                finally:
                    entry.lock.release()

    def _strip(self, cache: Chunks, chunk: Tile, row: int, entry: _Entry) -> Pixels:
        """A strip, whose entry's lock the caller has."""
        if entry.strip is None:
            (entry.strip,) = cache.map_strips(chunk, lambda strip: strip, range(row, row + 1))
            self._account((cache.key, chunk, row), entry, entry.strip.nbytes)
        return entry.strip

    def _entry(self, key: _Key) -> _Entry:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            return entry

    def _account(self, key: _Key, entry: _Entry, n_bytes: int) -> None:
        with self._lock:
            if self._entries.get(key) is entry:  # else it was forgotten meanwhile
                entry.n_bytes += n_bytes
                self.used_bytes += n_bytes
            while self.used_bytes > self.budget_bytes and len(self._entries) > 1:
                self.used_bytes -= self._entries.popitem(last=False)[1].n_bytes
