"""Windows: squares of ground cut from the tiles, across tile and chunk borders, at any latitude.

A window may be accompanied by wider ones around the same place at the same number of pixels (`Scales`); their channels
follow those of the window. Cutting has two steps. `WindowReader.patches` gathers the pixels around each place
from the cache, reduced by a power of two where the window is much finer than `size_px`; `resample` turns a whole batch
of patches into windows with one bilinear pass, rotated, flipped and shifted if wanted. The reduction depends on nothing
but latitude, `size_m` and `size_px`, so a window has the same pixels in training, in a table and in an answer to a
request.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geobacter_core.errors import TileCacheError
from geobacter_core.geo import CHUNK_PX, CHUNK_ZOOM, Floats, Place, Tile, lonlat_to_pixel, window_half_px
from geobacter_core.tiles.cache import WINDOW_MARGIN_M, TileCache
from geobacter_core.tiles.mosaic import ChunkMemory, Mosaic
from geobacter_core.tiles.source import Pixels

if TYPE_CHECKING:
    import torch

_CHUNKS_IN_MEMORY = 4
"""As many as a window can touch: at one's corner, places in a row would otherwise decode them over and over."""
_SURROUNDINGS = 2
_MAX_SCALE = math.sqrt(2)
"""After reduction, a window has 1/√2 to √2 source pixels per output pixel (fewer only where none are there)."""


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
class Patches:
    """The pixels around a batch of places, and where the windows lie in them.

    Attributes:
        pixels: uint8 `[N, P, P, C]`; zero where nothing was asked for.
        centre: Window centres, fractional patch pixels (x, y), `[N, 2]`; pixel i spans i to i + 1.
        half: Half width and half height of the windows, fractional patch pixels, `[N, 2]`.
    """

    pixels: Pixels
    centre: Floats
    half: Floats


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


def memory_bytes(n_channels: int) -> int:
    """What four chunks take, decoded, that have no tile of one colour: enough for places that come chunk by chunk."""
    return _CHUNKS_IN_MEMORY * CHUNK_PX**2 * n_channels


def reach(max_shift: float, max_scale: float = 1.0) -> float:
    """How far a view can reach from the window's centre, in half sides: its corner, turned anywhere, and the shift."""
    return math.sqrt(2) * max_scale + 2 * max_shift


class WindowReader:
    """Reads windows of one region, with recently used chunks in a memory that other readers may share.

    `wider` read the wider windows around the same places, if there are any.
    """

    def __init__(
        self,
        cache: TileCache,
        size_m: float,
        size_px: int,
        wider_m: Sequence[float] = (),
        memory: ChunkMemory | None = None,
    ) -> None:
        """Read windows of `size_m` ground metres and, where given, the wider ones around them.

        Without a memory the reader has its own, with room for four chunks as they lie in the cache.
        """
        self.cache = cache
        self.size_m = size_m
        self.size_px = size_px
        self.memory = memory or ChunkMemory(memory_bytes(cache.n_channels))
        self.wider = tuple(WindowReader(cache, side_m, size_px, memory=self.memory) for side_m in wider_m)

    def patches(self, lon: Floats, lat: Floats, reach: float = 1.0) -> Patches:
        """The pixels within `reach` half sides of places given in degrees.

        Raises:
            TileCacheError: A chunk that is needed is not in the cache, missing or damaged.
        """
        x, y = lonlat_to_pixel(lon, lat)
        half = np.stack(window_half_px(lat, self.size_m), axis=1)
        reduction = self._reduction(half)
        centre = np.stack([x, y], axis=1) / reduction[:, None]
        half /= reduction[:, None]
        side = patch_px(self.size_px, reach, float(half.max(initial=0)))
        origin = np.floor(centre - side / 2).astype(np.int64)
        low = np.maximum(np.floor(centre - half * reach).astype(np.int64) - 1 - origin, 0)
        high = np.minimum(np.ceil(centre + half * reach).astype(np.int64) + 1 - origin, side)
        pixels = np.zeros((len(lon), side, side, self.cache.n_channels), np.uint8)
        for index in range(len(lon)):
            (left, top), (right, bottom) = low[index], high[index]
            self._gather(
                pixels[index, top:bottom, left:right],
                int(origin[index, 0] + left),
                int(origin[index, 1] + top),
                int(reduction[index]),
            )
        return Patches(pixels, centre - origin, half)

    def boxes(self, lon: Floats, lat: Floats) -> Iterator[Pixels]:
        """The pixels of each window as they lie in the cache, not resampled: uint8 `[H, W, C]`, one after the other."""
        patches = self.patches(lon, lat)
        low = np.round(patches.centre - patches.half).astype(np.int64)
        high = np.round(patches.centre + patches.half).astype(np.int64)
        for pixels, (left, top), (right, bottom) in zip(patches.pixels, low, high, strict=True):
            yield pixels[top:bottom, left:right]

    def windows(self, lon: Floats, lat: Floats) -> Pixels:
        """Windows of places in degrees, north up: uint8 `[N, S·C, size_px, size_px]`; S counts the wider ones too."""
        windows = np.asarray(resample(self.patches(lon, lat), self.size_px).numpy(), np.uint8)
        wider = [reader.windows(lon, lat) for reader in self.wider]
        return np.concatenate([windows, *wider], axis=1) if wider else windows

    def window(self, place: Place) -> Pixels:
        """One window, without wider ones, as a picture: uint8 `[size_px, size_px, C]`."""
        windows = self.windows(np.array([place.lon]), np.array([place.lat]))
        return np.moveaxis(windows[0, : self.cache.n_channels], 0, -1)

    def _reduction(self, half_px: Floats) -> NDArray[np.int64]:
        scale = 2 * half_px.max(axis=1) / self.size_px
        return np.asarray(np.left_shift(1, np.clip(np.round(np.log2(scale)), 0, 6).astype(np.int64)))

    def _gather(self, out: Pixels, x: int, y: int, reduction: int) -> None:
        """Copy the box at reduced pixel (x, y) of `out`'s size from as many chunks as it touches."""
        height, width = out.shape[:2]
        chunk_px = CHUNK_PX // reduction
        for row in range(y // chunk_px, (y + height - 1) // chunk_px + 1):
            for column in range(x // chunk_px, (x + width - 1) // chunk_px + 1):
                if not (0 <= column < 1 << CHUNK_ZOOM and 0 <= row < 1 << CHUNK_ZOOM):
                    raise TileCacheError(
                        "A window reaches over the map's edge (antimeridian or ±85°). Ask for places within."
                    )
                mosaic = self.memory.mosaic(self.cache, Tile(CHUNK_ZOOM, column, row), reduction)
                _copy(out, mosaic, x - column * chunk_px, y - row * chunk_px)


def _copy(out: Pixels, mosaic: Mosaic, x: int, y: int) -> None:
    """Copy what `out`, its corner at the mosaic's pixel (x, y), shares with the mosaic."""
    height, width = out.shape[:2]
    side = mosaic.side
    for row, blocks in enumerate(mosaic.blocks):
        top, bottom = max(y, row * side), min(y + height, (row + 1) * side)
        if top >= bottom:
            continue
        for column in range(max(x // side, 0), min((x + width - 1) // side + 1, len(blocks))):
            left, right = max(x, column * side), min(x + width, (column + 1) * side)
            out[top - y : bottom - y, left - x : right - x] = blocks[column][
                top - row * side : bottom - row * side, left - column * side : right - column * side
            ]


def patch_px(size_px: int, reach: float, half_px: float) -> int:
    """Side of the patches: the same for every batch, so that one compiled or exported graph serves them all."""
    usual = size_px / 2 * _MAX_SCALE
    return 2 * math.ceil(max(half_px, usual) * reach) + 4


def resample(
    patches: Patches, size_px: int, views: Views | None = None, device: "torch.device | None" = None
) -> "torch.Tensor":
    """Turn a batch of patches into windows: uint8 tensor `[N, C, size_px, size_px]` on `device`.

    A window's corners at (±1, ±1) are mirrored, turned and moved by `views`, and the patch is read there bilinearly.
    """
    import torch
    from torch.nn import functional

    n, side = patches.pixels.shape[:2]
    matrix = np.zeros((n, 2, 3), np.float32)
    if views is None:
        matrix[:, 0, 0], matrix[:, 1, 1] = patches.half[:, 0], patches.half[:, 1]
        centre = patches.centre
    else:
        cos, sin = views.scale * np.cos(views.angle), views.scale * np.sin(views.angle)
        matrix[:, 0, 0], matrix[:, 0, 1] = patches.half[:, 0] * cos * views.flip, -patches.half[:, 0] * sin
        matrix[:, 1, 0], matrix[:, 1, 1] = patches.half[:, 1] * sin * views.flip, patches.half[:, 1] * cos
        centre = patches.centre + 2 * views.shift * patches.half
    matrix[:, :, :2] *= 2 / side
    matrix[:, :, 2] = centre * 2 / side - 1
    with torch.inference_mode():
        source = torch.from_numpy(patches.pixels).to(device).permute(0, 3, 1, 2)
        across = (2 * torch.arange(size_px, device=device) + 1) / size_px - 1
        turn = torch.from_numpy(matrix).to(device)[..., None, None]
        # What functional.affine_grid computes, at a third of its cost.
        grid = turn[:, :, 0] * across + turn[:, :, 1] * across[:, None] + turn[:, :, 2]
        grid = grid.permute(0, 2, 3, 1)
        sampled = functional.grid_sample(
            source.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        return sampled.round_().to(torch.uint8)
