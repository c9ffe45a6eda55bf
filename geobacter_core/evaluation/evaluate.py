"""An encoder's evaluation on a region: every question, every representation, the same folds."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits

from geobacter_core.encoder.evaluate import Scores
from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation.curve import CurvePoint, joined, label_curve
from geobacter_core.evaluation.diagnostics import Diagnostics, Purity, diagnose, knn_purity
from geobacter_core.evaluation.folds import Folds, blocked_folds
from geobacter_core.evaluation.labels import Label, Places
from geobacter_core.evaluation.probes import METRICS, ProbeModel, probe
from geobacter_core.evaluation.questions import GIVEN, Questions
from geobacter_core.evaluation.representations import TAGS, Subject, representations
from geobacter_core.evaluation.results import Result
from geobacter_core.evaluation.ridge import Matrix
from geobacter_core.evaluation.settings import EvaluationSettings

VERSION = "7"
"""Raise when the same encoder and region would get other figures."""

_BUFFER_SHARE = 1 / 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Curve:
    """Score against number of training labels, of one question.

    Attributes:
        label: The question.
        metric: `R²` or `AUC`.
        points: Of plain features (tag counts), the encoder's embeddings, and both together.
    """

    label: str
    metric: str
    points: tuple[CurvePoint, ...]


@dataclass(slots=True)
class Evaluation:
    """All figures of the encoders that were evaluated on a region.

    Attributes:
        region: The region.
        highlighted: Name of the encoder that this is about; the others are there to compare.
        results: One figure per question, representation and model.
        scores: Triplet accuracy and retrieval on the region's test windows, by subject.
        diagnostics: How the embeddings lie, by subject.
        purity: How often the places most similar to one have its land use, by representation.
        curves: For the questions that a user brought, or else one of the hidden ones.
        left_out: Questions that could not be asked, and why.
        folds: The folds' geometry by source, in words.
    """

    region: str
    highlighted: str
    results: list[Result] = field(default_factory=list)
    scores: dict[str, Scores] = field(default_factory=dict)
    diagnostics: dict[str, Diagnostics] = field(default_factory=dict)
    purity: dict[str, Purity] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    folds: dict[str, str] = field(default_factory=dict)


def evaluate(
    region: str,
    subjects: Sequence[Subject],
    asked: Iterator[Questions],
    settings: EvaluationSettings,
    on_progress: Callable[[str], None] = lambda note: None,
) -> Evaluation:
    """Ask everything of every representation; the first subject is the one that this is about.

    Args:
        region: Its name.
        subjects: Encoders, the one that matters first, random weights among the others.
        asked: The questions (see `questions.questions`).
        settings: How many, how thoroughly.
        on_progress: Told what is being done.

    Raises:
        EvaluationError: Nothing can be asked of the region.
        GeobacterError: Tiles are missing or damaged.
    """
    evaluation = Evaluation(region, subjects[0].name)
    for part in asked:
        evaluation.left_out.update(part.left_out)
        if not part.labels:
            continue
        on_progress(f"{part.source}: {len(part.labels)} questions about {len(part.places)} places")
        folds = folds_for(part.places, max(subject.extent_m for subject in subjects), settings.seed)
        evaluation.folds[part.source] = (
            f"{len(part.places)} places, {len(folds)} folds of blocks {folds.block_m:.0f} m wide, "
            f"training places at least {folds.buffer_m:.0f} m from those tested"
        )
        found = representations(subjects, part, settings.seed)
        # BLAS threads cost more than they bring at these sizes.
        with threadpool_limits(1, "blas"):
            evaluation.results += list(probed(found, part, folds, settings))
            _describe(evaluation, found, part, subjects)
            if settings.curve_seeds and part.source == GIVEN:
                evaluation.curves += [_curve(found, label, folds, subjects[0].name, settings) for label in part.labels]
    if not evaluation.results:
        raise EvaluationError(
            f"Region '{region}': nothing can be asked of it: {evaluation.left_out or 'no labels'}. "
            "Give it a labels file in regions.toml, or evaluate on a larger region."
        )
    return evaluation


def folds_for(places: Places, extent_m: float, seed: int) -> Folds:
    """Five folds of blocks. Windows of train and test places do not overlap, unless the region is too small for that.

    Where a window is wider than a twentieth of the ground, the distance is that twentieth: all representations of the
    same places are then helped alike by what their windows share with a neighbour's.
    """
    xyz_m = places.xyz_m
    side_m = float(np.linalg.norm(xyz_m.max(axis=0) - xyz_m.min(axis=0)))
    return blocked_folds(places, min(extent_m, side_m * _BUFFER_SHARE), seed)


def probed(
    found: Mapping[str, Matrix], asked: Questions, folds: Folds, settings: EvaluationSettings
) -> Iterator[Result]:
    """What each representation `[N, D]`, by name, scores on each question."""
    models: tuple[ProbeModel, ...] = ("ridge", "forest") if settings.forest else ("ridge",)
    for label in asked.labels:
        for name, features in found.items():
            for model in models:
                score = probe(features, label, folds, model, settings.seed)
                spread = float(np.std(score.fold_scores)) if score.fold_scores else 0.0
                yield Result(asked.source, label.name, score.metric, name, model, score.score, spread, score.n)


def _describe(
    evaluation: Evaluation, found: Mapping[str, Matrix], asked: Questions, subjects: Sequence[Subject]
) -> None:
    """Diagnostics of the subjects, once, and purity where there are classes."""
    classes = [label for label in asked.labels if label.kind == "class"]
    for subject in subjects:
        embeddings = found[subject.name].astype(np.float32, copy=False)
        if subject.name not in evaluation.diagnostics:
            evaluation.diagnostics[subject.name] = diagnose(embeddings, asked.places)
        for label in classes:
            evaluation.purity[subject.name] = knn_purity(embeddings, label, asked.places, subjects[0].extent_m)


def _curve(found: Mapping[str, Matrix], label: Label, folds: Folds, name: str, settings: EvaluationSettings) -> Curve:
    compared = {TAGS: found[TAGS], name: found[name], f"{name} and {TAGS}": joined(found[name], found[TAGS])}
    points = label_curve(compared, label, folds, range(settings.curve_seeds))
    return Curve(label.name, METRICS[label.kind], tuple(points))


def best_of_models(results: Sequence[Result]) -> dict[tuple[str, str, str], float]:
    """The better of the models for each source, label and representation."""
    best: dict[tuple[str, str, str], float] = {}
    for result in results:
        key = (result.source, result.label, result.representation)
        best[key] = max(best.get(key, -np.inf), result.score)
    return best


def means(results: Sequence[Result], hidden: bool) -> dict[str, float]:
    """Mean over the questions, of the better model each, by representation: hidden semantics, or a user's labels."""
    found: dict[str, list[float]] = {}
    for (source, _, representation), score in best_of_models(results).items():
        if (source != GIVEN) == hidden:
            found.setdefault(representation, []).append(score)
    return {representation: float(np.mean(scores)) for representation, scores in found.items()}
