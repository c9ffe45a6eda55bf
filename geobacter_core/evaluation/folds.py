"""Folds of a cross-validation, cut from blocks of ground: what is tested lies apart from what is learnt.

Places near each other are alike, whatever is measured. When test places lie between training places, a probe need only
recognise the neighbourhood, and every score is flattered, that of coordinates most of all. So whole blocks are held
out, and training places near a test place are dropped.

Source: Roberts et al., "Cross-validation strategies for data with temporal, spatial, hierarchical, or phylogenetic
structure" (Ecography 40, 2017).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation.labels import Places
from geobacter_core.geo import Floats

Index = NDArray[np.int64]

_BLOCKS_ALONG_SIDE = 10
_MAX_BLOCK_M = 5000.0
_MIN_BLOCK_M = 1.0
_BLOCKS_PER_FOLD = 4
_SHRINK = 0.8
_MIN_TRAIN = 10
_DEGREE_M = math.pi / 180 * 6371008.8
"""Ground metres to a degree of latitude, on the mean sphere: blocks need not be exact."""


@dataclass(frozen=True, slots=True)
class Folds:
    """Pairs of rows to learn from and rows to be tested on; every row is tested in exactly one fold.

    Attributes:
        block: Which block of ground a row lies in, `[N]`.
        pairs: Row numbers of each fold, ascending: train, test.
        block_m: Side of a block, ground metres.
        buffer_m: No training row is as near to a test row of its fold, ground metres.
    """

    block: Index
    pairs: tuple[tuple[Index, Index], ...]
    block_m: float
    buffer_m: float

    def __iter__(self) -> Iterator[tuple[Index, Index]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


def blocked_folds(places: Places, buffer_m: float, seed: int, n_folds: int = 5, block_m: float | None = None) -> Folds:
    """Cut the ground into square blocks, deal them to folds, and keep a distance between train and test.

    The blocks, in an order drawn by `seed` and then largest first, go each to the fold with the fewest places.

    Args:
        places: The rows.
        buffer_m: A fold's training rows lie further than this from each of its test rows, ground metres. Windows of
            side `size_m` never touch if it is `size_m` times the square root of 2.
        seed: Of the deal.
        n_folds: Folds, at least 2.
        block_m: Side of a block, ground metres. By default a tenth of the extent's longer side, at most 5 km, made
            smaller until there are four blocks a fold, but never less than two buffers or 1 m.

    Raises:
        EvaluationError: There is no room for that many folds, or an argument makes no sense.
    """
    _check_arguments(places, buffer_m, n_folds, block_m)
    side_m, block = (block_m, _block_of(places, block_m)) if block_m else _default_blocks(places, buffer_m, n_folds)
    n_blocks = len(np.unique(block))
    if n_blocks < n_folds:
        raise EvaluationError(
            f"{len(places)} places over {_extent(places)} lie in {n_blocks} blocks of {side_m:.0f} m, too few for "
            f"{n_folds} folds. Use fewer folds, a smaller buffer (now {buffer_m:g} m), smaller blocks, or more ground."
        )
    fold = _deal(block, n_folds, seed)
    xyz_m = places.xyz_m
    pairs = tuple(_pair(xyz_m, fold == number, buffer_m) for number in range(n_folds))
    _check_pairs(pairs, places, side_m, buffer_m)
    return Folds(block, pairs, side_m, buffer_m)


def _check_arguments(places: Places, buffer_m: float, n_folds: int, block_m: float | None) -> None:
    if not len(places):
        raise EvaluationError("Folds: there are no places. Give some.")
    if not (math.isfinite(buffer_m) and buffer_m >= 0):
        raise EvaluationError(f"Folds: buffer_m is {buffer_m}. Give metres, 0 or more.")
    if n_folds < 2:
        raise EvaluationError(f"Folds: n_folds is {n_folds}. Give 2 or more.")
    if block_m is not None and not (math.isfinite(block_m) and block_m >= _MIN_BLOCK_M):
        raise EvaluationError(f"Folds: block_m is {block_m}. Give metres, 1 or more.")


def _check_pairs(pairs: tuple[tuple[Index, Index], ...], places: Places, side_m: float, buffer_m: float) -> None:
    for number, (train, test) in enumerate(pairs):
        if len(train) < _MIN_TRAIN:
            raise EvaluationError(
                f"Fold {number} of {len(places)} places over {_extent(places)} has {len(test)} places for testing, but "
                f"{len(train)} for training, at least {_MIN_TRAIN} are needed: the others lie within {buffer_m:g} m of "
                f"a test place (blocks of {side_m:.0f} m). Use a smaller buffer, larger blocks, or more places."
            )


def _default_blocks(places: Places, buffer_m: float, n_folds: int) -> tuple[float, Index]:
    """The side of the blocks in ground metres, and the rows' blocks."""
    smallest_m = max(2 * buffer_m, _MIN_BLOCK_M)
    side_m = max(min(max(_extent_m(places)) / _BLOCKS_ALONG_SIDE, _MAX_BLOCK_M), smallest_m)
    block = _block_of(places, side_m)
    while len(np.unique(block)) < _BLOCKS_PER_FOLD * n_folds and side_m > smallest_m:
        side_m = max(side_m * _SHRINK, smallest_m)
        block = _block_of(places, side_m)
    return side_m, block


def _block_of(places: Places, side_m: float) -> Index:
    """Number the blocks of `side_m` ground metres that hold places, row by row from the south-west, `[N]`.

    Every row of blocks has its own width in degrees, so that blocks are square on the ground at any latitude.
    """
    east, north = _degrees_from_corner(places)
    row = np.floor(north * _DEGREE_M / side_m)
    middle = places.lat.min() + (row + 0.5) * side_m / _DEGREE_M
    column = np.floor(east * _DEGREE_M * np.cos(np.radians(middle)) / side_m)
    _, block = np.unique(np.stack([row, column], axis=1), axis=0, return_inverse=True)
    return np.asarray(block.reshape(-1), dtype=np.int64)


def _degrees_from_corner(places: Places) -> tuple[Floats, Floats]:
    """Degrees east and north of the south-west corner; places on both sides of the antimeridian stay neighbours."""
    from_first = (places.lon - places.lon[0] + 180) % 360 - 180
    return from_first - from_first.min(), places.lat - places.lat.min()


def _extent_m(places: Places) -> tuple[float, float]:
    """Width, along the middle parallel, and height in ground metres."""
    east, north = _degrees_from_corner(places)
    middle = math.radians((float(places.lat.min()) + float(places.lat.max())) / 2)
    return float(east.max()) * _DEGREE_M * math.cos(middle), float(north.max()) * _DEGREE_M


def _extent(places: Places) -> str:
    width_m, height_m = _extent_m(places)
    return f"{width_m:.0f} × {height_m:.0f} m"


def _deal(block: Index, n_folds: int, seed: int) -> Index:
    """The fold in which each row is tested, `[N]`."""
    sizes = np.bincount(block)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    fold_of_block = np.zeros(len(sizes), dtype=np.int64)
    n_places = np.zeros(n_folds, dtype=np.int64)
    for number in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        smallest = int(np.argmin(n_places))
        fold_of_block[number] = smallest
        n_places[smallest] += sizes[number]
    return fold_of_block[block]


def _pair(xyz_m: Floats, is_test: NDArray[np.bool_], buffer_m: float) -> tuple[Index, Index]:
    """Train and test rows of a fold."""
    test, others = np.flatnonzero(is_test), np.flatnonzero(~is_test)
    # The tree looks below its bound, and a row at exactly the buffer's distance is to be dropped too.
    distance, _ = cKDTree(xyz_m[test]).query(xyz_m[others], distance_upper_bound=np.nextafter(buffer_m, np.inf))
    return others[np.isinf(distance)], test
