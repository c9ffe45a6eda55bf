"""The spatial split: blocks of ground belong to train or test, and no window of one touches a window of the other.

A random split would put a test window on top of train windows, and flatter every encoder.
"""

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from geobacter_core.errors import SamplesError
from geobacter_core.geo import Bounds, Floats, lonlat_to_pixel, pixel_to_lonlat, window_half_px

_LATTICE = 5
"""One block in five is for testing, a knight's move apart, so that no two share a side."""
_BLOCKS_ALONG_SIDE = 6
_MAX_BLOCK_M = 4000.0


@dataclass(frozen=True, slots=True)
class BlockSplit:
    """A region's bounds cut into equal blocks, one in five of them for testing.

    Attributes:
        west_px: The grid's corner and extent, in zoom-16 pixels.
        north_px: See `west_px`.
        width_px: See `west_px`.
        height_px: See `west_px`.
        columns: Blocks along the width.
        rows: Blocks along the height.
        offset: Which of the five lattices is for testing.
    """

    west_px: float
    north_px: float
    width_px: float
    height_px: float
    columns: int
    rows: int
    offset: int

    def block_of(self, x: Floats, y: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Column and row of the blocks that hold points given in zoom-16 pixels."""
        column = np.floor((x - self.west_px) / self.width_px * self.columns).astype(np.int64)
        row = np.floor((y - self.north_px) / self.height_px * self.rows).astype(np.int64)
        return np.clip(column, 0, self.columns - 1), np.clip(row, 0, self.rows - 1)

    def is_test(self, column: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether blocks are for testing."""
        return np.asarray((column + 2 * row + self.offset) % _LATTICE == 0)

    def assign(self, lon: Floats, lat: Floats, size_m: float, train_reach: float) -> NDArray[np.str_]:
        """`train`, `test`, or an empty string where a window would touch ground of the other split or leave the bounds.

        Args:
            lon: Window centres, degrees.
            lat: Window centres, degrees.
            size_m: Side of the windows, ground metres.
            train_reach: How far a train window may reach from its centre when augmented, in half sides.
        """
        x, y = lonlat_to_pixel(lon, lat)
        half_x, half_y = window_half_px(lat, size_m)
        inside = (
            (x - half_x >= self.west_px)
            & (x + half_x <= self.west_px + self.width_px)
            & (y - half_y >= self.north_px)
            & (y + half_y <= self.north_px + self.height_px)
        )
        here = self.is_test(*self.block_of(x, y))
        reach = np.where(here, 1.0, train_reach)
        touches_test, touches_train = np.zeros(len(lon), bool), np.zeros(len(lon), bool)
        for dx in self._steps(reach * half_x, self.width_px / self.columns):
            for dy in self._steps(reach * half_y, self.height_px / self.rows):
                there = self.is_test(*self.block_of(x + dx, y + dy))
                touches_test |= there
                touches_train |= ~there
        split = np.where(here & ~touches_train, "test", np.where(~here & ~touches_test, "train", ""))
        return np.where(inside, split, "")

    @staticmethod
    def _steps(half: Floats, block: float) -> list[Floats]:
        """Offsets that meet every block between -half and +half: none is further than a block from the next."""
        n = max(2, int(np.ceil(2 * half.max(initial=0) / block)) + 1)
        return [half * (2 * index / (n - 1) - 1) for index in range(n)]


def block_split(
    bounds: Bounds, ground: shapely.Geometry, size_m: float, block_m: float | None, seed: int
) -> BlockSplit:
    """Cut a region into blocks and choose the test blocks, so that about a fifth of its ground is for testing.

    Args:
        bounds: The region's box.
        ground: What the region covers, in degrees.
        size_m: Side of the windows.
        block_m: Side of a block; by default a sixth of the region's side, between 2.5 windows and 4 km.
        seed: Picks among the lattices that fit.

    Raises:
        SamplesError: The region has no room for two blocks.
    """
    width_m, height_m = bounds.size_m
    side_m = block_m or float(np.clip(np.sqrt(width_m * height_m) / _BLOCKS_ALONG_SIDE, 2.5 * size_m, _MAX_BLOCK_M))
    columns, rows = max(1, round(width_m / side_m)), max(1, round(height_m / side_m))
    if columns * rows < 2 or min(width_m / columns, height_m / rows) < 1.5 * size_m:
        raise SamplesError(
            f"A region of {width_m:.0f} × {height_m:.0f} m has no room for train and test blocks with windows of "
            f"{size_m:g} m. Use smaller windows or blocks, or set train = false for the region."
        )
    x, y = lonlat_to_pixel(np.array([bounds.west, bounds.east]), np.array([bounds.north, bounds.south]))
    grid = BlockSplit(float(x[0]), float(y[0]), float(x[1] - x[0]), float(y[1] - y[0]), columns, rows, 0)
    column, row = (axis.ravel() for axis in np.meshgrid(np.arange(columns), np.arange(rows)))
    covered = _covered(grid, column, row, ground)
    shares = {}
    for turn in range(_LATTICE):
        offset = (seed + turn) % _LATTICE
        candidate = BlockSplit(grid.west_px, grid.north_px, grid.width_px, grid.height_px, columns, rows, offset)
        shares[candidate] = float(covered[candidate.is_test(column, row)].sum() / covered.sum())
    return min(shares, key=lambda candidate: (not 0.1 <= shares[candidate] <= 0.4, _distance(shares[candidate])))


def _distance(share: float) -> float:
    """How far a test share is from a fifth, in steps coarse enough that the seed decides among the good ones."""
    return round(abs(share - 1 / _LATTICE) * 10)


def _covered(grid: BlockSplit, column: NDArray[np.int64], row: NDArray[np.int64], ground: shapely.Geometry) -> Floats:
    """How much of each block the region's ground covers."""
    west, north = pixel_to_lonlat(
        grid.west_px + column * grid.width_px / grid.columns, grid.north_px + row * grid.height_px / grid.rows
    )
    east, south = pixel_to_lonlat(
        grid.west_px + (column + 1) * grid.width_px / grid.columns,
        grid.north_px + (row + 1) * grid.height_px / grid.rows,
    )
    return np.asarray(shapely.area(shapely.intersection(shapely.box(west, south, east, north), ground)))
