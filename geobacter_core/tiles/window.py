"""Windows: squares of ground cut from the tiles, across tile and chunk borders, at any latitude.

A window may be accompanied by wider ones around the same place at the same number of pixels (`Scales`); their channels
follow those of the window. Each window is one bilinear warp of the pixels around its place, turned, mirrored, shifted
or widened if wanted (`Views`). Where a window is much finer than `size_px`, these are pixels reduced by a power of two.
All of it depends on nothing but the place, `size_m` and `size_px`, so a window has the same pixels in training, in a
table and in an answer to a request.
"""

import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from geobacter_core.errors import TileCacheError
from geobacter_core.geo import (
    CHUNK_PX,
    CHUNK_TILES,
    CHUNK_ZOOM,
    TILE_PX,
    Floats,
    Place,
    Tile,
    chunk_numbers,
    lonlat_to_pixel,
    window_half_px,
)
from geobacter_core.tiles.cache import WINDOW_MARGIN_M
from geobacter_core.tiles.mosaic import GROUP, Block, ChunkMemory, block_px, blocks_per_side, n_groups
from geobacter_core.tiles.source import Chunks, Pixels

_CHUNKS_IN_MEMORY = 4
"""As many as a window can touch: at one's corner, places in a row would otherwise decode them over and over."""
_SURROUNDINGS = 2
_OVER_EDGE = "A window reaches over the map's edge (antimeridian or ±85°). Ask for places within."
_ONE_CUTS = threading.Lock()
"""Threads that cut at once take Python's lock from each other at every step, and together get less done."""


@dataclass(frozen=True, slots=True)
class Scales:
    """The windows around a place that an encoder takes together, sides in ground metres.

    Attributes:
        size_m: Of the window itself.
        context_m: Of a wider window, if there is one.
        surroundings_m: Of the widest, if there is one: what covers how much of it is told, and nothing learnt from it.
    """

    size_m: float
    context_m: float | None = None
    surroundings_m: float | None = None

    @property
    def wider_m(self) -> tuple[float, ...]:
        """All but the first."""
        return tuple(side_m for side_m in (self.context_m, self.surroundings_m) if side_m is not None)

    @property
    def n_learnt(self) -> int:
        """How many of them an encoder learns from: the first 2 with a context, else the first."""
        return 1 if self.context_m is None else 2

    @property
    def extent_m(self) -> float:
        """Side of the widest."""
        return max(self.size_m, *self.wider_m, 0.0)

    def with_surroundings(self) -> "Scales":
        """The same and surroundings, twice as wide as the widest, as far as a tile cache reaches beyond its ground."""
        widest_m = replace(self, surroundings_m=None).extent_m
        side_m = min(_SURROUNDINGS * widest_m, 2 * WINDOW_MARGIN_M)
        return replace(self, surroundings_m=side_m if side_m > widest_m else None)


@dataclass(frozen=True, slots=True)
class Views:
    """How each window of a batch is turned, mirrored, moved and widened.

    Attributes:
        angle: Radians, `[N]`.
        flip: 1, or -1 where mirrored, `[N]`.
        shift: Along both axes, shares of the window's side, `[N, 2]`.
        scale: Factor on the side, `[N]`.
    """

    angle: Floats
    flip: Floats
    shift: Floats
    scale: Floats

    @classmethod
    def draw(
        cls, n: int, max_shift: float, rng: np.random.Generator, max_scale: float = 1.0, rotate: bool = True
    ) -> "Views":
        """Any angle and either hand (or neither), shifts of up to `max_shift`, scales of 1 / `max_scale` to it."""
        angle, flip = rng.uniform(0, 2 * np.pi, n), rng.choice(np.array([-1.0, 1.0]), n)
        return cls(
            angle=angle if rotate else np.zeros(n),
            flip=flip if rotate else np.ones(n),
            shift=rng.uniform(-max_shift, max_shift, (n, 2)),
            scale=np.exp(rng.uniform(-1, 1, n) * np.log(max_scale)),
        )

    def take(self, rows: NDArray[np.int64]) -> "Views":
        """Those of some rows."""
        return Views(self.angle[rows], self.flip[rows], self.shift[rows], self.scale[rows])

    def of_wider(self, ratio: float) -> "Views":
        """The same views of windows around the same places that are wider by a factor."""
        return Views(self.angle, self.flip, self.shift / ratio, self.scale)


@dataclass(frozen=True, slots=True)
class _Warps:
    """Where the pixels of N windows lie among the (reduced) pixels of the whole map.

    Attributes:
        matrix: From a window's pixel (column, row) to a pixel of its box, both counted from pixel centres, `[N, 2, 3]`.
        low: The box's first column and row in the map, `[N, 2]`.
        size: Its columns and rows, `[N, 2]`.
        reduction: By which the map's pixels are reduced, `[N]`.
    """

    matrix: Floats
    low: NDArray[np.int64]
    size: NDArray[np.int64]
    reduction: NDArray[np.int64]


def _neighbours(warps: _Warps, order: NDArray[np.int64]) -> Iterable[list[int]]:
    """Rows whose boxes begin in the same square of the (reduced) map, a tile wide, and reach into the same chunks.

    So a box around them needs no chunk that none of them does.
    """
    side = (CHUNK_PX // warps.reduction)[:, None]
    squares = np.column_stack(
        [warps.reduction, warps.low // TILE_PX, warps.low // side, (warps.low + warps.size - 1) // side]
    )
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, square in zip(order.tolist(), squares[order].tolist(), strict=True):
        found[tuple(square)].append(row)
    return found.values()


def _tiles_under(warps: Iterable[_Warps]) -> set[tuple[int, int, int]]:
    """Columns and rows of the tiles that windows lie over, and the reductions by which they are wanted.

    Raises:
        TileCacheError: A window reaches over the map's edge.
    """
    found = set()
    n_tiles = CHUNK_TILES << CHUNK_ZOOM
    for scale in warps:
        side = (TILE_PX // scale.reduction)[:, None]
        ends = np.column_stack([scale.reduction, scale.low // side, (scale.low + scale.size - 1) // side])
        for reduction, west, north, east, south in np.unique(ends, axis=0).tolist():
            if min(west, north) < 0 or max(east, south) >= n_tiles:
                raise TileCacheError(_OVER_EDGE)
            found |= {(x, y, reduction) for x in range(west, east + 1) for y in range(north, south + 1)}
    return found


def _only_colour(colours: NDArray[np.uint32], flat: Pixels, left: int, top: int, right: int, bottom: int) -> int | None:
    """The number of the colour of a box of one colour; most windows show nothing, 0, in most channels of masks.

    Args:
        colours: Numbers of the colours of all pixels around, `[H, W]`.
        flat: The same as `[H, 4·W]`.
        left: The box's first column.
        top: Its first row.
        right: The column after its last.
        bottom: The row after its last.
    """
    first: int = colours.item(top, left)
    if not first:
        return None if cv2.hasNonZero(flat[top:bottom, GROUP * left : GROUP * right]) else 0
    # Few boxes need to be looked through.
    is_likely = colours.item(bottom - 1, right - 1) == first
    return first if is_likely and (colours[top:bottom, left:right] == first).all() else None


def memory_bytes(n_channels: int) -> int:
    """What four chunks take, decoded, that have no tile of one colour: enough for places that come chunk by chunk."""
    return _CHUNKS_IN_MEMORY * CHUNK_PX**2 * GROUP * n_groups(n_channels)


class WindowReader:
    """Reads windows of one region, with recently used chunks in a memory that other readers may share.

    `n_planes` is S·C: channels of a window, those of the wider ones included.
    """

    def __init__(
        self,
        cache: Chunks,
        size_m: float,
        size_px: int,
        wider_m: Sequence[float] = (),
        memory: ChunkMemory | None = None,
        by_strips: bool = False,
    ) -> None:
        """Read windows of `size_m` ground metres and, where given, the wider ones around them.

        Without a memory the reader has its own, with room for four chunks as they lie in the cache. `by_strips` suits
        places that do not come chunk by chunk: only the strips of tiles are read that they need, and only the tiles are
        kept. A region's windows one after the other are cut faster from chunks.
        """
        self.cache = cache
        self.size_m = size_m
        self.size_px = size_px
        self._by_strips = by_strips
        self.memory = memory or ChunkMemory(memory_bytes(cache.n_channels))
        self._sides_m = (size_m, *wider_m)
        self.n_planes = len(self._sides_m) * cache.n_channels

    def windows(self, lon: Floats, lat: Floats, views: Views | None = None) -> Pixels:
        """Windows of places in degrees, north up unless views say otherwise.

        Returns:
            uint8 `[N, S·C, size_px, size_px]`; S counts the wider ones too.

        Raises:
            TileCacheError: A chunk that is needed is not in the cache, missing or damaged.
        """
        n_channels = self.cache.n_channels
        windows = np.zeros((len(lon), self.n_planes, self.size_px, self.size_px), np.uint8)
        # Chunk by chunk: where memory is short, none is decoded twice.
        order = np.lexsort(chunk_numbers(np.stack([lon, lat], axis=1)))
        warps = [
            self._warps(lon, lat, side_m, views and views.of_wider(side_m / self.size_m)) for side_m in self._sides_m
        ]
        reductions = {int(reduction) for scale in warps for reduction in np.unique(scale.reduction)}
        if self._by_strips:
            self.memory.read_ahead(self.cache, _tiles_under(warps))
        for number, scale in enumerate(warps):
            planes = windows[:, number * n_channels : (number + 1) * n_channels]
            boxes = np.column_stack([scale.low, scale.low + scale.size]).tolist()
            for rows in _neighbours(scale, order):
                reduction = int(scale.reduction[rows[0]])
                windows_of = [planes[row] for row in rows]
                self._cut(windows_of, scale.matrix[rows], [boxes[row] for row in rows], reduction, reductions)
        return windows

    def _cut(
        self,
        windows: Sequence[Pixels],
        matrices: Iterable[Floats],
        boxes: Sequence[Sequence[int]],
        reduction: int,
        reductions: Collection[int],
    ) -> None:
        """Cut neighbours from one box around them all.

        Args:
            windows: Where each goes, uint8 `[C, size_px, size_px]` and all 0.
            matrices: Of each, as in `_Warps`.
            boxes: Of each the first column and row, and those after the last.
            reduction: Of all of them.
            reductions: As for `_box`.
        """
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        west, north = min(lefts), min(tops)
        whole = self._box((west, north, max(rights) - west, max(bottoms) - north, reduction), reductions)
        shape, flags = (self.size_px, self.size_px), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        buffer = np.empty((*shape, GROUP), np.uint8)
        spare = [np.empty(shape, np.uint8)] * (-self.cache.n_channels % GROUP)
        boxes = [(left - west, top - north, right - west, bottom - north) for left, top, right, bottom in boxes]
        with _ONE_CUTS:
            for number, group in enumerate(whole):
                if group is None:
                    continue
                own = slice(GROUP * number, GROUP * (number + 1))
                colours, flat = group.view(np.uint32)[..., 0], group.reshape(len(group), -1)
                for window, matrix, box in zip(windows, matrices, boxes, strict=True):
                    colour = _only_colour(colours, flat, *box)
                    if colour == 0:
                        continue
                    planes = [*window[own]]
                    left, top, right, bottom = box
                    if colour is None:
                        source = group[top:bottom, left:right]
                        cv2.warpAffine(source, matrix, shape, buffer, flags, cv2.BORDER_REPLICATE)
                        cv2.split(buffer, planes if len(planes) == GROUP else planes + spare)
                    else:
                        for plane, value in zip(planes, group[top, left], strict=False):
                            plane[:] = value

    def window(self, place: Place) -> Pixels:
        """One window, without wider ones, as a picture: uint8 `[size_px, size_px, C]`."""
        windows = self.windows(np.array([place.lon]), np.array([place.lat]))
        return np.moveaxis(windows[0, : self.cache.n_channels], 0, -1)

    def boxes(self, lon: Floats, lat: Floats) -> Iterator[Pixels]:
        """The pixels of each window as they lie in the cache, not resampled: uint8 `[H, W, C]`, one after the other."""
        centre, half, reduction = self._ground(lon, lat, self.size_m)
        low = np.round(centre - half).astype(np.int64)
        size = np.round(centre + half).astype(np.int64) - low
        for place in np.column_stack([low, size, reduction]).tolist():
            nothing = np.zeros((place[3], place[2], GROUP), np.uint8)
            groups = [nothing if group is None else group for group in self._box(place, ())]
            yield np.concatenate(groups, axis=-1)[..., : self.cache.n_channels]

    def _ground(self, lon: Floats, lat: Floats, side_m: float) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Centres and half sides of windows in reduced pixels of the whole map, `[N, 2]`, and the reductions, `[N]`.

        After reduction a window has 1/√2 to √2 source pixels per output pixel (fewer only where none are there).
        """
        half = np.stack(window_half_px(lat, side_m), axis=1)
        scale = 2 * half.max(axis=1) / self.size_px
        reduction = np.left_shift(1, np.clip(np.round(np.log2(scale)), 0, 6).astype(np.int64))
        centre = np.stack(lonlat_to_pixel(lon, lat), axis=1)
        return centre / reduction[:, None], half / reduction[:, None], reduction

    def _warps(self, lon: Floats, lat: Floats, side_m: float, views: Views | None) -> _Warps:
        centre, half, reduction = self._ground(lon, lat, side_m)
        # From -1 to 1 along the window's sides to pixels of the map.
        turn = np.zeros((len(lon), 2, 2))
        if views is None:
            turn[:, 0, 0], turn[:, 1, 1] = half.T
        else:
            cos, sin = views.scale * np.cos(views.angle), views.scale * np.sin(views.angle)
            turn[:, 0, 0], turn[:, 0, 1] = half[:, 0] * cos * views.flip, -half[:, 0] * sin
            turn[:, 1, 0], turn[:, 1, 1] = half[:, 1] * sin * views.flip, half[:, 1] * cos
            centre = centre + 2 * views.shift * half
        step = turn * 2 / self.size_px
        span = (self.size_px - 1) / 2 * np.abs(step).sum(axis=2)  # from the centre to the outermost pixel's
        low = np.floor(centre - span - 0.5).astype(np.int64)
        high = np.floor(centre + span - 0.5).astype(np.int64) + 2
        first = centre - 0.5 - (self.size_px - 1) / 2 * step.sum(axis=2) - low
        return _Warps(np.concatenate([step, first[:, :, None]], axis=2), low, high - low, reduction)

    def _box(self, place: Sequence[int], reductions: Collection[int]) -> Block:
        """Pixels of the map, uint8 `[height, width, 4]` for each group of channels; None where they are all 0.

        Args:
            place: First column and row, width and height, all in reduced pixels, and the reduction.
            reductions: All that will be wanted of the chunks.
        """
        x, y, width, height, reduction = place
        side = TILE_PX // reduction if self._by_strips else block_px(reduction)
        column, row, left, top = x // side, y // side, x % side, y % side
        right, bottom = left + width, top + height
        if right <= side and bottom <= side:
            block = self._block(column, row, reduction, reductions)
            return [group if group is None else group[top:bottom, left:right] for group in block]
        boxes: list[Pixels | None] = [None] * n_groups(self.cache.n_channels)
        for down in range((bottom - 1) // side + 1):
            north, south = max(top - down * side, 0), min(bottom - down * side, side)
            for over in range((right - 1) // side + 1):
                west, east = max(left - over * side, 0), min(right - over * side, side)
                source = slice(north, south), slice(west, east)
                to_y, to_x = down * side - top, over * side - left
                target = slice(to_y + north, to_y + south), slice(to_x + west, to_x + east)
                for number, group in enumerate(self._block(column + over, row + down, reduction, reductions)):
                    if group is None:
                        continue
                    box = boxes[number]
                    if box is None:
                        box = boxes[number] = np.zeros((height, width, GROUP), np.uint8)
                    box[target] = group[source]
        return boxes

    def _block(self, column: int, row: int, reduction: int, reductions: Collection[int]) -> Block:
        """A block of the reduced map; of whoever reads strip by strip, a tile of it."""
        per_chunk = CHUNK_TILES if self._by_strips else blocks_per_side(reduction)
        if not (0 <= column < per_chunk << CHUNK_ZOOM and 0 <= row < per_chunk << CHUNK_ZOOM):
            raise TileCacheError(_OVER_EDGE)
        if self._by_strips:
            return self.memory.tile(self.cache, column, row, reduction, reductions)
        chunk = Tile(CHUNK_ZOOM, column // per_chunk, row // per_chunk)
        mosaic = self.memory.mosaic(self.cache, chunk, reduction, reductions)
        return mosaic.blocks[row % per_chunk][column % per_chunk]
