"""A sweep from end to end: trials, MLflow runs, a table and a picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from geobacter_core.encoder.store import Store
from geobacter_core.evaluation.sweep import Sweep, SweepPlan, Trial, table
from geobacter_core.evaluation.sweep_log import SweepLog
from geobacter_core.files import written_aside
from geobacter_core.plots import SweepRow, png_bytes, sweep_chart
from geobacter_core.regions import Region
from geobacter_core.settings import Settings


@dataclass(frozen=True, slots=True)
class SweepReport:
    """A finished sweep.

    Attributes:
        trials: In the order in which they were run.
        table: All of them in Markdown.
        picture: What each setting did to the score.
        run_id: The MLflow run whose children are the trials.
    """

    trials: list[Trial]
    table: str
    picture: Image.Image
    run_id: str


def run_sweep(
    settings: Settings,
    store: Store,
    regions: Sequence[Region],
    plan: SweepPlan,
    tags: dict[str, str],
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> SweepReport:
    """Run a sweep, or go on with one; `sweeps/sweep.md` and `sweep.png` in the data folder are its table and picture.

    Raises:
        EvaluationError: The plan names no setting, or nothing can be asked of a region.
        RegistryError: MLflow fails.
        GeobacterError: A region's features or tiles are missing in one of the styles.
    """
    log = SweepLog(store, plan, tags)

    def done(trial: Trial) -> None:
        log.add(trial)
        on_trial(trial)

    trials = Sweep(settings, regions, plan, done).run()
    log.finish(trials)
    picture, text = sweep_picture(trials), table(trials)
    folder = settings.data / "sweeps"
    with written_aside(folder / "sweep.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    with written_aside(folder / "sweep.png") as temporary:
        temporary.write_bytes(png_bytes(picture))
    return SweepReport(trials, text, picture, log.run_id)


def sweep_picture(trials: Sequence[Trial]) -> Image.Image:
    """What each setting did to the score, axis by axis, beside the base."""
    base = trials[0].score
    rows = [
        SweepRow(axis, str(value), trial.score, 0.0, 1)
        for trial in trials
        for axis, value in trial.changes.items()
        if trial.name == f"{axis}={value}"
    ]
    return sweep_chart(rows, "What each setting is worth", base)
