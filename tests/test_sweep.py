"""Sweeps: what is tried, in which order, what is kept, and that a killed one goes on."""

import numpy as np
import pytest

from geobacter_core.encoder.data import WindowSpec
from geobacter_core.encoder.learner import network_spec
from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation.sweep import Choice, Sweep, SweepPlan, Trial, read_plan, table
from geobacter_core.tiles.style import load_style
from geobacter_core.tiles.window import Scales

BASE = {
    "style": "carto", "network": "small", "shares": False, "size_px": 32, "size_m": 100.0, "sample_count": 120,
    "batch_size": 40, "max_steps": 2,
}  # fmt: skip


@pytest.fixture
def region(helsinki, tmp_path):
    lon = np.linspace(24.935, 24.945, 40)
    path = tmp_path / "labels.csv"
    path.write_text(
        "lon,lat,east\n"
        + "\n".join(f"{x:.5f},{60.16 + 0.01 * (n % 7) / 7:.5f},{x - 24.93:.5f}" for n, x in enumerate(lon))
    )
    return helsinki.region.model_copy(update={"cell_resolution": 11, "labels": str(path)})


def test_a_sweep_tries_each_value_then_the_finalists_and_a_second_run_trains_nothing(own_helsinki, region) -> None:
    plan = SweepPlan(
        base=BASE,
        axes={"embedding_dim": [4, 8]},
        others={"original": {"margin": 1.5, "loss": "margin"}},
        seeds=[1, 2],
        n_places=300,
    )
    seen: list[Trial] = []
    trials = Sweep(own_helsinki.settings, [region], plan, seen.append).run()
    assert seen == trials
    assert [trial.name for trial in trials[:3]] == ["base", "embedding_dim=4", "embedding_dim=8"]
    assert {(trial.name, trial.seed) for trial in trials[3:]} == {
        ("base", 2), ("winners", 1), ("winners", 2), ("original", 1), ("original", 2)
    }  # fmt: skip
    best = max(trials[1:3], key=lambda trial: trial.score)
    winners = next(trial for trial in trials if trial.name == "winners")
    assert winners.changes == (best.changes if best.score > trials[0].score else {})
    assert {key.split("/")[1] for key in trials[0].scores} >= {"labels", "amenities"}
    again = Sweep(own_helsinki.settings, [region], plan, lambda trial: None).run()
    assert again == trials  # the seconds of training too: nothing was trained


def test_a_choice_takes_changes_by_name_and_refuses_what_is_none() -> None:
    changed = Choice().changed({"style": "thematic", "size_m": 300.0, "loss": "softpn", "seed": 4})
    assert (changed.style, changed.samples.size_m, changed.train.loss) == ("thematic", 300.0, "softpn")
    assert changed.samples.seed == changed.train.seed == 4
    with pytest.raises(EvaluationError, match="no setting 'colour'"):
        Choice().changed({"colour": "red"})
    with pytest.raises(EvaluationError, match="less than or equal"):
        Choice().changed({"margin": 9.0})


def test_the_recipes_of_the_forerunners_are_theirs() -> None:
    others = read_plan("").others
    original, loc2vec = Choice().changed(others["original"]), Choice().changed(others["loc2vec"])
    assert (original.train.network, original.train.embedding_dim, original.train.loss) == ("resnet50", 16, "margin")
    assert (original.samples.size_m, original.samples.distance_m, original.train.margin) == (200.0, 500.0, 1.5)
    assert (loc2vec.style, loc2vec.samples.near, loc2vec.train.loss) == ("thematic", "overlap", "softpn")


def test_every_embedding_of_the_plan_has_room_for_its_shares() -> None:
    plan = read_plan("")
    changes = [{name: value} for name, values in plan.axes.items() for value in values]
    for change in [{}, *changes, *plan.others.values()]:
        choice = Choice().changed({**plan.base, **change})
        style, samples = load_style(choice.style), choice.samples
        windows = WindowSpec(
            style.name, style.version, Scales(samples.size_m, samples.context_m or None), len(style.channels)
        ).seen_by(choice.train)
        network_spec(windows, choice.train)


def test_a_score_weighs_regions_alike_and_the_table_gives_the_spread_over_seeds() -> None:
    def trial(seed, a):
        return Trial("x", {}, seed, {"a/s/1": a, "a/s/2": a, "b/s/1": 0.5}, 0.9, 0.1, 1000, 2.0)

    assert trial(1, 0.3).score == pytest.approx(0.4)
    line = table([trial(1, 0.3), trial(2, 0.5)]).splitlines()[2]
    assert line.startswith("| x | 0.450 ± 0.071 (2 seeds) | 0.400 | 0.500 |")


def test_a_plan_that_is_no_plan_is_refused_with_its_path(tmp_path) -> None:
    path = tmp_path / "plan.toml"
    with pytest.raises(EvaluationError, match=r"plan\.toml"):
        SweepPlan.read(path)
    path.write_text("axis = 3")
    with pytest.raises(EvaluationError, match="axis"):
        SweepPlan.read(path)
