"""The label curve: how many labels must be known before features answer well.

The original Geobacter's benchmark was of this kind: plain features, embeddings and both together against the number of
labels. Here train and test are blocks of ground apart, every representation gets the same labels, and every number
is drawn several times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation.folds import Folds, Index
from geobacter_core.evaluation.labels import Label
from geobacter_core.evaluation.probes import FoldPredictions, check_fit, known_pairs, overall_score, ridge_values
from geobacter_core.evaluation.ridge import Features, Joined, Matrix, one_thread

SIZES = (10, 30, 100, 300, 1000, 3000, 10000)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The score of one representation at one number of labels.

    Attributes:
        representation: Its name.
        n_labels: Labels learnt from in a fold; of the last point, which has all, the folds' mean.
        mean: R² or AUC, by the label's kind, over the seeds.
        std: Over the seeds; 0 for the last point, where nothing is drawn.
        n_seeds: Draws; 1 for the last point.
    """

    representation: str
    n_labels: int
    mean: float
    std: float
    n_seeds: int


def joined(*features: Matrix) -> Joined:
    """Features side by side `[N, d1 + d2 + …]`, such that none drowns the other.

    The ridge standardises the columns on its training rows and divides each part by the square root of its width, so
    that a part of 16 columns weighs as much as one of 300. A forest takes the columns as they are.

    Raises:
        EvaluationError: There is no part.
    """
    if not features:
        raise EvaluationError("Joined features: there is no part. Give one matrix or more.")
    return Joined(features)


def label_curve(
    representations: Mapping[str, Features],
    label: Label,
    folds: Folds,
    seeds: Sequence[int],
    sizes: Sequence[int] = SIZES,
) -> list[CurvePoint]:
    """Score ridge probes that learn from few labels, from more, and from all.

    In each fold that many labels are drawn from its training rows, the same ones for every representation; a larger
    draw of a seed holds its smaller ones. Scores are those of `probes.overall_score`, with one difference: a draw that
    lacks a class counts, at chance, since not meeting it is what having few labels means.

    Args:
        representations: Features `[N, d]` by name.
        label: N answers.
        folds: Of the same N places.
        seeds: One draw for each.
        sizes: Numbers of labels; those that some fold does not have are left out.

    Returns:
        Points by representation, in the order given, then by number of labels. The last has all labels.

    Raises:
        EvaluationError: As `probes.probe`; there is no seed, or a size is not positive.
    """
    if not seeds or any(size < 1 for size in sizes):
        raise EvaluationError(f"Label curve: seeds {list(seeds)}, sizes {list(sizes)}. Give a seed and sizes of 1 up.")
    for features in representations.values():
        check_fit(features, label, folds)
    pairs = [(train, test) for train, test in known_pairs(label, folds) if len(train) and len(test)]
    if not pairs:
        raise EvaluationError(f"Label `{label.name}` cannot be scored: no fold has known answers. Give more places.")
    least = min(len(train) for train, _ in pairs)
    points: list[CurvePoint] = []
    with one_thread():
        for name, features in representations.items():
            for size in sorted({size for size in sizes if size < least}):
                scores = [_score(features, label, folds, _drawn(pairs, size, seed)) for seed in seeds]
                points.append(CurvePoint(name, size, float(np.mean(scores)), float(np.std(scores)), len(scores)))
            everything = _score(features, label, folds, pairs)
            points.append(CurvePoint(name, _mean_size(pairs), everything, 0.0, 1))
    return points


def _mean_size(pairs: Sequence[tuple[Index, Index]]) -> int:
    return round(float(np.mean([len(train) for train, _ in pairs])))


def _drawn(pairs: Sequence[tuple[Index, Index]], size: int, seed: int) -> list[tuple[Index, Index]]:
    """The folds with `size` of their training rows."""
    return [
        (np.sort(np.random.default_rng([seed, number]).permutation(train)[:size]), test)
        for number, (train, test) in enumerate(pairs)
    ]


def _score(features: Features, label: Label, folds: Folds, pairs: Sequence[tuple[Index, Index]]) -> float:
    predictions = []
    for train, test in pairs:
        values = ridge_values(features, label, folds, train, test)
        predictions.append(FoldPredictions(test, values, np.ones(values.shape[1], dtype=np.bool_)))
    return overall_score(label, predictions)
