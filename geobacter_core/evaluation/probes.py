"""Probes: how well a simple model predicts a label from features, where it has not learnt.

Whatever the features are (embeddings, tag counts, coordinates), all are asked the same question with the same rows held
out, so that their scores can be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.metrics import r2_score, roc_auc_score

from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation.folds import Folds, Index
from geobacter_core.evaluation.labels import Label, LabelKind
from geobacter_core.evaluation.ridge import Features, one_thread, parts_of, ridge_predictions
from geobacter_core.files import n_processors
from geobacter_core.geo import Floats

ProbeModel = Literal["ridge", "forest"]
Metric = Literal["R²", "AUC"]

METRICS: dict[LabelKind, Metric] = {"number": "R²", "presence": "AUC", "class": "AUC"}
_MIN_TRAIN = 5
_MAX_FEATURE = 1e30
_N_TREES = 100
_MIN_LEAF = 3
_MAX_TREE_ROWS = 1000
_MAX_SPLIT_COLUMNS = 24


@dataclass(frozen=True, slots=True)
class ProbeScore:
    """How well features answer a question.

    Attributes:
        label: The label's name.
        kind: The label's kind.
        metric: `R²` (at most 1, 0 for the mean, no lower end) or `AUC` (0 to 1, 0.5 for chance).
        model: `ridge` or `forest`.
        score: Over all folds, always finite.
        fold_scores: Of each fold that can be scored alone, in the folds' order.
        n: Places that were predicted.
    """

    label: str
    kind: LabelKind
    metric: Metric
    model: ProbeModel
    score: float
    fold_scores: tuple[float, ...]
    n: int


@dataclass(frozen=True, slots=True)
class FoldPredictions:
    """What was predicted for the test rows of one fold.

    Attributes:
        rows: Row numbers, `[M]`.
        values: `[M, T]`, a column per target.
        learnt: Which targets had more than one value to learn from, `[T]`; the others are not scored.
    """

    rows: Index
    values: Floats
    learnt: NDArray[np.bool_]


def probe(features: Features, label: Label, folds: Folds, model: ProbeModel, seed: int) -> ProbeScore:
    """Score features on a label.

    R² is that of the predictions of all folds together, against the mean of all answers. AUC compares within folds
    only, see `overall_score`. Places where the answer is unknown are neither learnt from nor scored, and a fold with
    fewer than five known answers to learn from is passed over.

    `ridge` is linear and sees what lies open in the features; its only setting, shrinkage, is chosen on training rows.
    `forest` has 100 trees with leaves of at least 3 rows; for speed a tree sees at most 1,000 rows, a split a third
    of the columns and at most 24.

    Args:
        features: `[N, d]`, or several matrices joined.
        label: N answers.
        folds: Of the same N places.
        model: What learns.
        seed: Of the forest; the ridge has no chance in it.

    Raises:
        EvaluationError: Features, label and folds do not fit each other, a feature is not finite, or no fold can be
            scored.
    """
    check_fit(features, label, folds)
    pairs = [(train, test) for train, test in known_pairs(label, folds) if len(train) >= _MIN_TRAIN and len(test)]
    predictions: list[FoldPredictions] = []
    with one_thread():
        for train, test in pairs:
            if model == "ridge":
                values = ridge_values(features, label, folds, train, test)
            else:
                values = _forest_values(features, label, train, test, seed)
            predictions.append(FoldPredictions(test, values, np.ptp(targets_of(label)[train], axis=0) > 0))
    score = overall_score(label, predictions)
    n = sum(len(fold.rows) for fold in predictions)
    return ProbeScore(label.name, label.kind, METRICS[label.kind], model, score, _fold_scores(label, predictions), n)


def check_fit(features: Features, label: Label, folds: Folds) -> None:
    """Raise an EvaluationError unless features, label and folds are of the same places and the features are finite."""
    for part in parts_of(features):
        if part.ndim != 2 or len(part) != len(label) or len(label) != len(folds.block) or part.shape[1] < 1:
            raise EvaluationError(
                f"Label `{label.name}`: features of shape {part.shape}, {len(label)} answers and folds of "
                f"{len(folds.block)} places do not fit. Give one row of features for each place."
            )
        is_wrong = ~(np.abs(part) <= _MAX_FEATURE)
        if is_wrong.any():
            row, column = np.argwhere(is_wrong)[0]
            raise EvaluationError(
                f"Label `{label.name}`: the features hold {part[row, column]} in row {row}, column {column}. "
                f"Give finite numbers up to {_MAX_FEATURE:g}, or leave the place out."
            )


def known_pairs(label: Label, folds: Folds) -> list[tuple[Index, Index]]:
    """Train and test rows of each fold whose answer is known."""
    is_known = label.is_known
    return [(train[is_known[train]], test[is_known[test]]) for train, test in folds]


def targets_of(label: Label) -> Floats:
    """What a regression is to predict, `[N, T]`: a number within -1 to 1, or for each class 1 where it is, else -1.

    Neither R² nor AUC depends on the scale; huge numbers would overflow when squared.
    """
    known = label.is_known
    if label.kind == "number":
        scaled = label.values / _largest(label.values[known])
        centred = scaled - (scaled[known].mean() if known.any() else 0.0)
        return (centred / _largest(centred[known]))[:, None]
    chosen = np.arange(len(label.classes)) if label.kind == "class" else np.array([1])
    return np.where(known[:, None], np.where(label.values[:, None] == chosen, 1.0, -1.0), np.nan)


def _largest(values: Floats) -> float:
    """The largest magnitude, to divide by: 1 where there is none."""
    return float(np.abs(values).max(initial=0.0)) or 1.0


def ridge_values(features: Features, label: Label, folds: Folds, train: Index, test: Index) -> Floats:
    """Predictions `[len(test), T]` of the label's targets by a ridge regression."""
    return ridge_predictions(features, targets_of(label), folds.block, train, test)


def overall_score(label: Label, predictions: Sequence[FoldPredictions]) -> float:
    """R² or AUC over the test rows of all folds.

    AUC is the share of all pairs of a place with and a place without that lie in the same fold and that are in the
    right order; ties count half. It is thus the folds' AUC, weighted by their pairs; a fold whose places are all with,
    or all without, has no pairs and no weight. Pairs across folds would compare two models, whose scores differ in
    level: holding out places with the thing lowers the level of what is predicted for them, and noise would score below
    0.5 (Forman & Scholz, "Apples-to-apples in cross-validation studies", SIGKDD Explorations 12, 2010). Of classes it
    is the mean over those that can be scored, each against the rest.

    Raises:
        EvaluationError: No fold can be scored.
    """
    targets = targets_of(label)
    if label.kind == "number":
        score = _r2(targets, predictions)
        if score is None:
            raise EvaluationError(
                f"Label `{label.name}` cannot be scored: its folds have no two answers that differ, or nothing to "
                "learn from. Give more places, or leave the label out."
            )
        return score
    areas = [_area(targets, column, predictions) for column in range(targets.shape[1])]
    scored = [area for area in areas if area is not None]
    if not scored:
        raise EvaluationError(
            f"Label `{label.name}` cannot be scored: no fold has places with it and without it, both to learn from "
            "and to be tested on. Give more places, use smaller blocks, or leave the label out."
        )
    return float(np.mean(scored))


def _fold_scores(label: Label, predictions: Sequence[FoldPredictions]) -> tuple[float, ...]:
    scores: list[float] = []
    for fold in predictions:
        try:
            scores.append(overall_score(label, [fold]))
        except EvaluationError:
            continue
    return tuple(scores)


def _r2(targets: Floats, predictions: Sequence[FoldPredictions]) -> float | None:
    """R², or None where the answers do not differ."""
    if not predictions:
        return None
    answers = np.concatenate([targets[fold.rows, 0] for fold in predictions])
    if np.ptp(answers) == 0:
        return None
    return float(r2_score(answers, np.concatenate([fold.values[:, 0] for fold in predictions])))


def _area(targets: Floats, column: int, predictions: Sequence[FoldPredictions]) -> float | None:
    """AUC of one target over the pairs within folds, or None where there are none."""
    n_right, n_pairs = 0.0, 0
    for fold in predictions:
        has = targets[fold.rows, column] > 0
        n_here = int(has.sum()) * int((~has).sum())
        if n_here and fold.learnt[column]:
            n_right += n_here * float(roc_auc_score(has, fold.values[:, column]))
            n_pairs += n_here
    return n_right / n_pairs if n_pairs else None


def _forest_values(features: Features, label: Label, train: Index, test: Index, seed: int) -> Floats:
    """Predictions `[len(test), T]` of the label's targets by a random forest."""
    x = np.concatenate(parts_of(features), axis=1)
    n_columns = x.shape[1]
    kind = RandomForestRegressor if label.kind == "number" else RandomForestClassifier
    forest = kind(
        n_estimators=_N_TREES,
        min_samples_leaf=_MIN_LEAF,
        max_features=min(-(-n_columns // 3), _MAX_SPLIT_COLUMNS),
        max_samples=min(len(train), _MAX_TREE_ROWS),
        random_state=seed,
        n_jobs=n_processors(),
    )
    if label.kind == "number":
        forest.fit(x[train], targets_of(label)[train, 0])
    else:
        forest.fit(x[train], label.values[train].astype(np.int64))
    # Threads add up the trees in the order in which they come, which differs in the last bit from run to run.
    forest.n_jobs = 1
    if label.kind == "number":
        return np.asarray(forest.predict(x[test]), dtype=np.float64)[:, None]
    shares = np.zeros((len(test), 2 if label.kind == "presence" else len(label.classes)))
    shares[:, forest.classes_] = forest.predict_proba(x[test])
    return shares[:, 1:] if label.kind == "presence" else shares
