"""Ridge regression for probes: all strengths of shrinkage and all targets from one decomposition.

scikit-learn's RidgeCV can choose the strength by leaving out single rows only, which for places near each other chooses
too little of it; a grid search over its Ridge decomposes once per strength.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, KFold
from threadpoolctl import threadpool_limits

from geobacter_core.evaluation.folds import Index
from geobacter_core.geo import Floats

Matrix = NDArray[np.float32] | NDArray[np.float64]

SHRINKAGES = np.logspace(-6, 3, 19)
"""Penalties per row, where the features' variances add up to 1: from nothing to nearly a constant."""
_INNER_FOLDS = 4
_BEYOND = 0.5


@dataclass(frozen=True, slots=True)
class Joined:
    """Features side by side, each part of the same weight: matrices `[N, d]` of the same N places."""

    parts: tuple[Matrix, ...]


Features = Matrix | Joined


def parts_of(features: Features) -> tuple[Matrix, ...]:
    """The matrices that features are made of."""
    return features.parts if isinstance(features, Joined) else (features,)


def one_thread() -> AbstractContextManager[object]:
    """Linear algebra in one thread.

    The order of a sum, and so its last bit, depends on the number of threads. And where others compute too, threads
    wait for each other longer than they work.
    """
    limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits


def ridge_predictions(features: Features, targets: Floats, blocks: Index, train: Index, test: Index) -> Floats:
    """Learn from the rows `train`, predict the rows `test`.

    Columns are brought to mean 0 and deviation 1 on the training rows; a column that is constant there counts for
    nothing. A part of d columns is divided by the square root of d, so that of joined features none drowns the other.
    A value beyond those of the training rows counts as at most half their range beyond: a tag seen once in training and
    a hundred times in one test row would decide the whole score.

    Each target has its own strength of shrinkage, that of the least squared error when blocks of the training rows are
    held out in turn.

    Args:
        features: Matrices `[N, d]`.
        targets: `[N, T]`, finite at the rows used.
        blocks: Of ground, `[N]`.
        train: Row numbers.
        test: Row numbers.

    Returns:
        `[len(test), T]`.
    """
    errors = np.zeros((len(SHRINKAGES), targets.shape[1]))
    for inner_train, inner_test in _inner_splits(blocks[train]):
        held_out = train[inner_test]
        solved = _Solved.of(features, targets, train[inner_train], held_out)
        for number, shrinkage in enumerate(SHRINKAGES):
            errors[number] += np.square(solved.predictions(shrinkage) - targets[held_out]).sum(axis=0)
    return _Solved.of(features, targets, train, test).predictions(SHRINKAGES[errors.argmin(axis=0)])


def _inner_splits(blocks: Index) -> list[tuple[Index, Index]]:
    """Four parts of the training rows, by whole blocks; by rows if there is one block; none if there is one row."""
    n_blocks = len(np.unique(blocks))
    if n_blocks > 1:
        return list(GroupKFold(min(_INNER_FOLDS, n_blocks)).split(blocks, groups=blocks))
    return list(KFold(min(_INNER_FOLDS, len(blocks))).split(blocks)) if len(blocks) > 1 else []


@dataclass(frozen=True, slots=True)
class _Solved:
    """A ridge regression up to its shrinkage, and the rows to predict, both along the principal directions.

    Attributes:
        projected: Rows to predict, `[M, R]`.
        answers: The targets' share of each direction, `[R, T]`.
        energy: Squared singular values of the training rows, `[R]`.
        means: Of the targets, `[T]`.
        n: Training rows.
    """

    projected: Floats
    answers: Floats
    energy: Floats
    means: Floats
    n: int

    @classmethod
    def of(cls, features: Features, targets: Floats, train: Index, test: Index) -> "_Solved":
        """Decompose the smaller of the two Gram matrices: columns by columns, or rows by rows."""
        x, x_test = _standardised(features, train, test)
        means = targets[train].mean(axis=0)
        y = targets[train] - means
        if x.shape[0] > x.shape[1]:
            energy, directions = np.linalg.eigh(x.T @ x)
            projected, answers = x_test @ directions, directions.T @ (x.T @ y)
        else:
            energy, directions = np.linalg.eigh(x @ x.T)
            projected, answers = (x_test @ x.T) @ directions, directions.T @ y
        return cls(projected, answers, np.maximum(energy, 0.0), means, len(train))

    def predictions(self, shrinkage: float | Floats) -> Floats:
        """`[M, T]` at one shrinkage for all targets, or one for each."""
        penalty = self.n * np.atleast_1d(shrinkage)
        return np.asarray(self.projected @ (self.answers / (self.energy[:, None] + penalty)) + self.means)


def _standardised(features: Features, train: Index, test: Index) -> tuple[Floats, Floats]:
    """Train and test rows by the mean and deviation of the training rows, parts side by side."""
    pairs = [_standardised_part(part, train, test) for part in parts_of(features)]
    return np.concatenate([pair[0] for pair in pairs], axis=1), np.concatenate([pair[1] for pair in pairs], axis=1)


def _standardised_part(part: Matrix, train: Index, test: Index) -> tuple[Floats, Floats]:
    x, x_test = part[train].astype(np.float64), part[test].astype(np.float64)
    means, deviations = x.mean(axis=0), x.std(axis=0)
    # Rounding leaves a constant column a little deviation; divided by it, it would be as large as any other.
    is_constant = deviations <= 10 * np.finfo(part.dtype).eps * np.abs(x).max(axis=0)
    low, high = x.min(axis=0), x.max(axis=0)
    x_test = np.clip(x_test, low - _BEYOND * (high - low), high + _BEYOND * (high - low))
    scales = np.where(is_constant, 0.0, 1 / np.where(is_constant, 1.0, deviations)) / np.sqrt(part.shape[1])
    return (x - means) * scales, (x_test - means) * scales
