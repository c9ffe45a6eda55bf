"""Decoded chunks, or single tiles of them: reduced by powers of two, and kept in a memory of bounded size."""

import threading
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
of a style of masks, are such, where blocks are no larger than a tile.
"""
_OF_THREE = np.array([255, 255, 255, 0], np.uint8).view(np.int32)
"""Bits of a pixel of three channels in a group of four."""
_BY_HALVING = (4, 8, 16)
"""Reductions that OpenCV's mean of 2 × 2 pixels, again and again, comes to in a third of the time."""
_WHOLE_FROM = 4
"""Reduction from which a chunk is one block, in which windows lie whole: it takes up a 16th of the chunk at most."""
_Number = TypeVar("_Number", np.uint8, np.uint16)
cv2.setNumThreads(1)  # pictures are small: its other threads would only wait for work, and keep a processor busy


def n_groups(n_channels: int) -> int:
    """How many groups hold so many channels."""
    return -(-n_channels // GROUP)


def block_px(reduction: int) -> int:
    """Side of a block of a chunk, reduced pixels: a tile's, or that of all of the chunk where this is not much more."""
    return TILE_PX if reduction < _WHOLE_FROM else CHUNK_PX // reduction


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


def _grouped(tile: Pixels) -> list[Pixels]:
    """A tile's channels in fours, uint8 `[256, 256, 4]` each; a group of one colour is a view of one pixel."""
    n_channels = tile.shape[-1]
    if n_channels % GROUP == 0:
        return [_group(np.asarray(numbers)) for numbers in cv2.split(tile.view(np.int32))]
    return [_group(_numbers(tile, first)) for first in range(0, n_channels, GROUP)]


def _numbers(tile: Pixels, first: int) -> NDArray[np.int32]:
    """Four channels of a tile, from the first, as a number a pixel, `[256, 256]`; 0 follows where it has fewer."""
    n_channels = tile.shape[-1]
    if first + GROUP <= n_channels:
        return np.ndarray(tile.shape[:2], np.int32, tile, first * tile.strides[2], tile.strides[:2])
    if n_channels == 3:  # in a fourth of the time
        numbers = cv2.cvtColor(tile, cv2.COLOR_BGR2BGRA).view(np.int32)[..., 0]
        numbers &= _OF_THREE
        return numbers
    group = np.zeros((*tile.shape[:2], GROUP), np.uint8)
    n_own = n_channels - first
    cv2.mixChannels([tile], [group], [number for own in range(n_own) for number in (first + own, own)])
    return group.view(np.int32)[..., 0]


def _group(numbers: NDArray[np.int32]) -> Pixels:
    colour = numbers[0, 0]
    shape = *numbers.shape, GROUP
    if (numbers[0] == colour).all() and (numbers == colour).all():
        return np.broadcast_to(np.array([colour]).view(np.uint8), shape)
    return np.ascontiguousarray(numbers).view(np.uint8).reshape(shape)


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


def _mean(pixels: NDArray[_Number], reduction: int) -> NDArray[_Number]:
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
    lines = [np.concatenate(parts[first : first + n], axis=1) for first in range(0, len(parts), n)]
    return np.ascontiguousarray(np.concatenate(lines))  # of views of one pixel NumPy makes it in another order


def reduced(strips: Iterable[Pixels], reduction: int) -> Pixels:
    """A chunk's strips of tiles as one image `[4096 / r, 4096 / r, C]`, the mean of r × r pixels, rounded."""
    side = TILE_PX // reduction
    rows = []
    for strip in strips:
        tiles = [_mean(tile, reduction).reshape(side, side, -1) for tile in strip]  # OpenCV drops a channel axis of one
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows)


class _Entry:
    """What is known of a chunk or of a tile.

    Attributes:
        lock: Of who finds out more of a chunk.
        mosaics: The chunk, by reduction.
        blocks: The tile, by reduction.
        n_bytes: What all of it takes up.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.mosaics: dict[int, Mosaic] = {}
        self.blocks: dict[int, Block] = {}
        self.n_bytes = 0


_Key = tuple[Hashable, ...]
"""Of an entry: what has the chunk, and which chunk, or column and row of the tile."""
_Strip = tuple[int, int]
"""Row of the strip's tiles, and column of its chunk."""
_SHARE_AHEAD = 4
"""So small a part of a memory is filled ahead, lest tiles push each other out before they are used."""
_ENTRY_BYTES = 1024
"""Of a tile that shows nothing, about."""


class ChunkMemory:
    """The chunks and tiles that were used last, decoded, of any number of caches, up to so many bytes; thread-safe."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._reading: dict[_Key, threading.Lock] = {}

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
        key = cache.key, chunk
        entry = self._entry(key)
        with entry.lock:
            if reduction not in entry.mosaics:
                new = {reduction, *wanted} - entry.mosaics.keys()
                made = mosaics(cache.map_strips(chunk, partial(in_groups, reductions=new)))
                entry.mosaics.update(made)
                self._account(key, entry, sum(mosaic.n_bytes for mosaic in made.values()))
            return entry.mosaics[reduction]

    def tile(self, cache: Chunks, column: int, row: int, reduction: int, wanted: Collection[int] = ()) -> Block:
        """A tile by its column and row of the map, of whose chunk no more is read than the strip that has it.

        It is made by other reductions that are wanted, too, but not as it is if that is not asked for: this takes up
        nearly all of the room, and most tiles lie around a window, where they are wanted reduced.

        Raises:
            GeobacterError: The chunk cannot be had.
        """
        key = cache.key, column, row
        block = self._blocks(key).get(reduction)
        if block is not None:
            return block
        strip = _strip_of(column, row)
        with self._only_reader(cache, strip):
            known = self._blocks(key)  # another thread may have read it
            if reduction in known:
                return known[reduction]
            asked = {reduction, *(other for other in wanted if other > 1)}
            return self._read(cache, strip, {column: asked - known.keys()})[column][reduction]

    def read_ahead(self, cache: Chunks, tiles: Iterable[tuple[int, int, int]]) -> None:
        """Read tiles, by column, row and reduction, that are not known yet, strip by strip.

        Strips that no other thread is reading come first. So threads that want the same share the work, where they
        would wait for each other at every one.

        Raises:
            GeobacterError: A chunk cannot be had.
        """
        missing: dict[_Strip, dict[int, set[int]]] = {}
        for column, row, reduction in tiles:
            if reduction not in self._blocks((cache.key, column, row)):
                missing.setdefault(_strip_of(column, row), {}).setdefault(column, set()).add(reduction)
        if not missing:
            return
        room = self.budget_bytes // _SHARE_AHEAD
        for waits in (False, True):
            for strip in sorted(missing):
                if room <= 0:
                    return
                with self._only_reader(cache, strip, waits) as is_only:
                    if not is_only:
                        continue
                    wanted = {
                        column: new
                        for column, each in missing.pop(strip).items()
                        if (new := each - self._blocks((cache.key, column, strip[0])).keys())
                    }
                    if wanted:
                        made = self._read(cache, strip, wanted)
                        room -= sum(_n_bytes(block) for tile in made.values() for block in tile.values())

    def _read(
        self, cache: Chunks, strip: _Strip, wanted: Mapping[int, Collection[int]]
    ) -> Mapping[int, Mapping[int, Block]]:
        """Some tiles of a strip, by column and reduction, for its only reader; while there is room, all its tiles.

        To read a strip takes longer than to take tiles from it, and much more room than they do.
        """
        row, chunk_column = strip
        first = chunk_column * CHUNK_TILES
        own = row % CHUNK_TILES

        def blocks(pixels: Pixels) -> Mapping[int, Mapping[int, Block]]:
            asked = {column: set(reductions) for column, reductions in wanted.items()}
            if self.used_bytes + pixels.nbytes <= self.budget_bytes:
                every = set().union(*asked.values())
                for column in range(first, first + CHUNK_TILES):
                    known = self._blocks((cache.key, column, row)).keys()
                    asked[column] = (every - known) | asked.get(column, set())
            found: dict[int, Mapping[int, Block]] = {}
            for column, reductions in asked.items():
                if not reductions:
                    continue
                groups = in_groups(pixels[column - first][None], reductions)
                found[column] = {each: [_joined([group]) for group in groups[each][0]] for each in reductions}
            return found

        (made,) = cache.map_strips(Tile(CHUNK_ZOOM, chunk_column, row // CHUNK_TILES), blocks, range(own, own + 1))
        for column, by_reduction in made.items():
            key = cache.key, column, row
            entry = self._entry(key)
            is_new = not entry.blocks
            entry.blocks.update(by_reduction)
            self._account(key, entry, is_new * _ENTRY_BYTES + sum(map(_n_bytes, by_reduction.values())))
        return made

    @contextmanager
    def _only_reader(self, cache: Chunks, strip: _Strip, waits: bool = True) -> Iterator[bool]:
        """Whether this thread is the one that reads a strip; it waits until it is, or does not."""
        key = cache.key, *strip
        while True:
            with self._lock:
                lock = self._reading.setdefault(key, threading.Lock())
            is_only = lock.acquire(blocking=waits)
            with self._lock:
                if not is_only or self._reading.get(key) is lock:
                    break
            lock.release()  # of a reader that has ended; others may have another by now
        try:
            yield is_only
        finally:
            if is_only:
                with self._lock:
                    del self._reading[key]
                lock.release()

    def _blocks(self, key: _Key) -> Mapping[int, Block]:
        """What is known of a tile, by reduction."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return {}
            self._entries.move_to_end(key)
            return entry.blocks

    def _entry(self, key: _Key) -> _Entry:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry()
            else:
                self._entries.move_to_end(key)
            return entry

    def _account(self, key: _Key, entry: _Entry, n_bytes: int) -> None:
        with self._lock:
            if self._entries.get(key) is entry:  # else it was forgotten meanwhile
                entry.n_bytes += n_bytes
                self.used_bytes += n_bytes
            while self.used_bytes > self.budget_bytes and len(self._entries) > 1:
                self.used_bytes -= self._entries.popitem(last=False)[1].n_bytes


def _strip_of(column: int, row: int) -> _Strip:
    """The strip that has a tile."""
    return row, column // CHUNK_TILES
