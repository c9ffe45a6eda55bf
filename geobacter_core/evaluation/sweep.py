"""Choosing by experiment: many short trainings, one thing changed at a time, then the winners of each together.

Every trial trains one encoder on all regions and asks it everything that can be asked of each. A finished trial is a
small file, so a sweep that was killed goes on where it stopped, and one with more settings only runs what is new.
"""

import dataclasses
import json
import logging
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geobacter_core.encoder.data import RegionData, check_regions
from geobacter_core.encoder.settings import TrainSettings
from geobacter_core.encoder.train import VERSION as TRAIN_VERSION
from geobacter_core.encoder.train import train
from geobacter_core.errors import EvaluationError, SamplesError
from geobacter_core.evaluation.evaluate import VERSION as EVALUATION_VERSION
from geobacter_core.evaluation.evaluate import folds_for, probed
from geobacter_core.evaluation.questions import Questions, questions
from geobacter_core.evaluation.representations import embeddings_of, subject_of
from geobacter_core.evaluation.settings import EvaluationSettings
from geobacter_core.files import digest_of, written_aside
from geobacter_core.osm.extract import load_extract
from geobacter_core.regions import Region
from geobacter_core.samples.settings import SampleSettings
from geobacter_core.samples.triplets import build_triplets
from geobacter_core.settings import DEFAULT_STYLE, Settings
from geobacter_core.tiles.cache import MANIFEST, open_cache
from geobacter_core.tiles.region import build_region

Value = str | int | float | bool | None

_PROBES = EvaluationSettings(forest=False, seed=1)
_log = logging.getLogger(__name__)


class Choice(BaseModel):
    """What a trial is: a style, how triplets are drawn, and how the encoder is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    style: str = DEFAULT_STYLE
    samples: SampleSettings = SampleSettings()
    train: TrainSettings = TrainSettings()

    def changed(self, changes: Mapping[str, Value]) -> Self:
        """The same with some settings changed, each named as in `SampleSettings` or `TrainSettings`, or `style`.

        Raises:
            EvaluationError: There is no such setting, or a value is out of its limits.
        """
        parts = {"samples": self.samples.model_dump(), "train": self.train.model_dump()}
        style = self.style
        for name, value in changes.items():
            if name == "style":
                style = str(value)
                continue
            owners = [part for part, settings in parts.items() if name in settings]
            if not owners:
                raise EvaluationError(f"Sweep: there is no setting '{name}'. See SampleSettings and TrainSettings.")
            for part in owners:  # a seed is that of both
                parts[part][name] = value
        try:
            return type(self).model_validate({"style": style, **parts})
        except ValidationError as problem:
            first = problem.errors()[0]
            raise EvaluationError(f"Sweep: {dict(changes)}: {first['msg']}. Mend the plan.") from None


class SweepPlan(BaseModel):
    """What is tried.

    Attributes:
        base: Settings that differ from the defaults in every trial.
        axes: Setting to the values tried in its place, one at a time.
        others: Named combinations that are tried too, such as the original's recipe.
        seeds: Of the finalists: the base, the winners of all axes together, and the others.
        n_places: Cells that are asked about in a region, at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: dict[str, Value] = Field(default_factory=dict)
    axes: dict[str, list[Value]] = Field(default_factory=dict)
    others: dict[str, dict[str, Value]] = Field(default_factory=dict)
    seeds: list[int] = [1, 2, 3]
    n_places: int = 2000

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a plan from TOML.

        Raises:
            EvaluationError: The file is not one.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as problem:
            raise EvaluationError(f"Sweep plan {path}: {problem.strerror}. Give a TOML file.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as problem:
            raise EvaluationError(f"Sweep plan {path}: {problem}. Mend it.") from None


def read_plan(path: str) -> SweepPlan:
    """The plan in a TOML file; with an empty path the one that chose Geobacter's defaults.

    Raises:
        EvaluationError: The file is not a plan.
    """
    return SweepPlan.read(Path(path) if path else Path(__file__).with_name("sweep.toml"))


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """A finished trial.

    Attributes:
        name: `base`, `setting=value`, `winners` or the name of another combination.
        changes: From the base.
        seed: Of drawing and training.
        scores: By `region/source/question`: R², or 2 AUC - 1, so that both are 0 for knowing nothing and 1 for all.
        triplet_accuracy: On test triplets.
        recall_at_10: On test triplets.
        n_windows: That went through the network in training.
        train_seconds: What that took.
    """

    name: str
    changes: dict[str, Value]
    seed: int
    scores: dict[str, float]
    triplet_accuracy: float
    recall_at_10: float
    n_windows: int
    train_seconds: float

    @property
    def score(self) -> float:
        """Mean over regions of the mean over questions: what the sweep goes by."""
        regions: dict[str, list[float]] = {}
        for key, score in self.scores.items():
            regions.setdefault(key.split("/")[0], []).append(score)
        return float(np.mean([np.mean(scores) for scores in regions.values()]))

    @property
    def figures(self) -> dict[str, float]:
        """All but the scores of single questions, by name."""
        return {
            "score": self.score,
            "triplet_accuracy": self.triplet_accuracy,
            "recall_at_10": self.recall_at_10,
            "n_windows": float(self.n_windows),
            "train_seconds": self.train_seconds,
        }


def table(trials: Sequence[Trial]) -> str:
    """Trials in Markdown, those of several seeds in one line, in the order in which they were first run."""
    by_name: dict[str, list[Trial]] = {}
    for trial in trials:
        by_name.setdefault(trial.name, []).append(trial)
    regions = sorted({key.split("/")[0] for trial in trials for key in trial.scores})
    lines = [
        "| trial | score | " + " | ".join(regions) + " | triplet accuracy | recall@10 | windows | seconds |",
        "|---|--:|" + "--:|" * (len(regions) + 4),
    ]
    for name, runs in by_name.items():
        scores = [run.score for run in runs]
        spread = f" ± {np.std(scores, ddof=1):.3f} ({len(runs)} seeds)" if len(runs) > 1 else ""
        means = [
            np.mean([score for run in runs for key, score in run.scores.items() if key.split("/")[0] == region])
            for region in regions
        ]
        figures = [np.mean([run.figures[figure] for run in runs]) for figure in ("triplet_accuracy", "recall_at_10")]
        cost = [np.mean([run.n_windows for run in runs]), np.mean([run.train_seconds for run in runs])]
        lines.append(
            f"| {name} | {np.mean(scores):.3f}{spread} | "
            + " | ".join(f"{value:.3f}" for value in (*means, *figures))
            + f" | {cost[0]:,.0f} | {cost[1]:.0f} |"
        )
    return "\n".join(lines) + "\n"


class Sweep:
    """Runs trials on regions, and keeps what they found."""

    def __init__(
        self, settings: Settings, regions: Sequence[Region], plan: SweepPlan, on_trial: Callable[[Trial], None]
    ) -> None:
        """Prepare; `on_trial` is told of each trial, those of earlier runs too."""
        self._settings = settings
        self._regions = regions
        self._plan = plan
        self._on_trial = on_trial
        self._asked: dict[str, list[tuple[str, Questions]]] = {}
        self._folder = settings.data / "sweeps"
        self._base = Choice().changed(plan.base)

    def run(self) -> list[Trial]:
        """Every axis, then the finalists with every seed. The trials in that order."""
        first = self._plan.seeds[0]
        trials = [self.trial("base", {}, first)]
        best: dict[str, Value] = {}
        for axis, values in self._plan.axes.items():
            tried = [trial for value in values for trial in self._possible(f"{axis}={value}", {axis: value}, first)]
            trials += tried
            winner = max([trials[0], *tried], key=lambda trial: trial.score)
            best |= winner.changes
        finalists = {"base": {}, "winners": best, **self._plan.others}
        for name, changes in finalists.items():
            for seed in self._plan.seeds:
                if (name, seed) != ("base", first):
                    trials += self._possible(name, changes, seed)
        return trials

    def _possible(self, name: str, changes: Mapping[str, Value], seed: int) -> list[Trial]:
        """The trial, or nothing where a region is too small for its windows."""
        try:
            return [self.trial(name, changes, seed)]
        except SamplesError as problem:
            _log.warning("%s is left out: %s", name, problem)
            return []

    def trial(self, name: str, changes: Mapping[str, Value], seed: int) -> Trial:
        """One training and its questions, or what is known of it from an earlier run."""
        choice = self._base.changed({**changes, "seed": seed})
        regions = [self._region_data(region, choice) for region in self._regions]
        key = digest_of(
            "trial",
            TRAIN_VERSION,
            EVALUATION_VERSION,
            choice,
            self._plan.n_places,
            [r.triplets.digest for r in regions],
        )
        path = self._folder / "trials" / f"{key[:24]}.json"
        if path.is_file():
            found = Trial(**{**json.loads(path.read_text(encoding="utf-8")), "name": name, "changes": dict(changes)})
        else:
            found = self._run(name, dict(changes), seed, choice, regions)
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(path) as temporary:
                temporary.write_text(json.dumps(dataclasses.asdict(found), indent=1), encoding="utf-8")
        self._on_trial(found)
        return found

    def _run(
        self, name: str, changes: dict[str, Value], seed: int, choice: Choice, regions: Sequence[RegionData]
    ) -> Trial:
        trained = train(regions, choice.train)
        windows = check_regions(regions).seen_by(choice.train)
        subject = subject_of(name, trained.network, windows, choice.train.size_px)
        scores: dict[str, float] = {}
        for region, asked in self._questions(choice.style):
            embeddings = {name: embeddings_of(subject, asked)}
            folds = folds_for(asked.places, subject.extent_m, _PROBES.seed)
            for found in probed(embeddings, asked, folds, _PROBES):
                scores[f"{region}/{found.source}/{found.label}"] = (
                    found.score if found.metric == "R²" else 2 * found.score - 1
                )
        return Trial(
            name,
            changes,
            seed,
            scores,
            trained.scores.triplet_accuracy,
            trained.scores.recall_at_10,
            round(trained.images_per_s * trained.train_seconds),
            trained.train_seconds,
        )

    def _region_data(self, region: Region, choice: Choice) -> RegionData:
        settings = dataclasses.replace(self._settings, style=choice.style)
        extract, _ = load_extract(settings.extract_folder(region.name))
        self._draw_tiles(settings, region)
        cache = open_cache(settings, region)
        key = digest_of(region.name, choice.style, choice.samples)[:16]
        path = self._folder / "samples" / f"{region.name}-{key}.parquet"
        return RegionData(region.name, build_triplets(path, cache, extract.box, extract.ground, choice.samples), cache)

    def _draw_tiles(self, settings: Settings, region: Region) -> None:
        """The tiles of a style that the installation does not use otherwise."""
        if not (settings.tiles_folder(region.name, settings.style) / MANIFEST).is_file():
            build_region(settings, region, settings.style)

    def _questions(self, style: str) -> list[tuple[str, Questions]]:
        if style not in self._asked:
            settings = dataclasses.replace(self._settings, style=style)
            evaluation = EvaluationSettings(n_places=self._plan.n_places)
            self._asked[style] = [
                (region.name, asked)
                for region in self._regions
                for asked in questions(settings, region, evaluation)
                if asked.labels
            ]
        return self._asked[style]
