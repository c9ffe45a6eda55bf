"""A whole evaluation on the centre of Helsinki: every question to every representation, its table, its summary."""

import dataclasses

import h3
import numpy as np
import pytest
import shapely

from geobacter_core.encoder.network import NetworkSpec
from geobacter_core.encoder.train import encode_with
from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation.evaluate import best_of_models, evaluate, folds_for, means
from geobacter_core.evaluation.labels import Places
from geobacter_core.evaluation.questions import GIVEN, centres, questions
from geobacter_core.evaluation.representations import (
    COORDINATES,
    PIXELS,
    RANDOM,
    TAGS,
    Subject,
    embeddings_of,
    random_weights,
    some_windows,
)
from geobacter_core.evaluation.results import Result
from geobacter_core.evaluation.settings import EvaluationSettings
from geobacter_core.evaluation.store import (
    baseline_problems,
    collapse_problems,
    margins,
    read_results,
    summary,
    write_evaluation,
)
from geobacter_core.osm.features import load_features
from geobacter_core.report.evaluation import evaluation_metrics, evaluation_pictures
from geobacter_core.tiles.window import Scales

SETTINGS = EvaluationSettings(n_places=400, forest=False, curve_seeds=2)


def centre_cells(helsinki) -> list[str]:
    cells = h3.polygon_to_cells(h3.geo_to_h3shape(helsinki.extract.ground), 11)
    return sorted(cells)


@pytest.fixture(scope="module")
def labelled(helsinki, tmp_path_factory):
    """Helsinki with a file of labels: how many buildings lie within 60 m of a cell's centre, and noise."""
    import pyogrio

    _, files = load_features(helsinki.settings.features_folder("helsinki"))
    polygons = pyogrio.read_dataframe(files / "polygons.fgb")
    buildings = polygons[polygons.building.notna()].geometry.centroid
    tree = shapely.STRtree(buildings.to_numpy())
    cells = centre_cells(helsinki)
    noise = np.random.default_rng(1).normal(size=len(cells))
    lines = ["cell,buildings,noise"]
    from geobacter_core.geo import lonlat_to_mercator

    for cell, value in zip(cells, noise, strict=True):
        lat, lon = h3.cell_to_latlng(cell)
        x, y = lonlat_to_mercator(np.array([lon]), np.array([lat]))
        near = tree.query(shapely.Point(x[0], y[0]), predicate="dwithin", distance=120.0)
        lines.append(f"{cell},{len(near)},{value:.3f}")
    path = tmp_path_factory.mktemp("labels") / "buildings.csv"
    path.write_text("\n".join(lines) + "\n")
    return helsinki.region.model_copy(update={"cell_resolution": 11, "labels": str(path)})


@pytest.fixture(scope="module")
def subjects(helsinki):
    spec = NetworkSpec("small", 3, 1, 16)
    from geobacter_core.encoder.device import best_device
    from geobacter_core.encoder.network import random_network

    network = random_network(spec, 7).to(best_device())
    subject = Subject("geobacter/7", encode_with(network, best_device()), Scales(100.0), 32)
    places = centres(centre_cells(helsinki))
    return [subject, random_weights(spec, subject, 8, some_windows(subject, helsinki.cache, places))]


@pytest.fixture(scope="module")
def evaluation(helsinki, labelled, subjects):
    return evaluate("helsinki", subjects, questions(helsinki.settings, labelled, SETTINGS), SETTINGS)


def test_every_question_is_put_to_every_representation(evaluation) -> None:
    asked = {(result.source, result.label) for result in evaluation.results}
    assert {source for source, _ in asked} >= {GIVEN, "amenities"}
    # Three buildings in the same place are as many as three; the name says that the logarithm was taken, if it was.
    assert {label for source, label in asked if source == GIVEN} <= {"buildings", "log1p(buildings)", "noise"}
    for source, label in asked:
        names = {r.representation for r in evaluation.results if (r.source, r.label) == (source, label)}
        assert names >= {"geobacter/7", RANDOM, PIXELS, TAGS, COORDINATES}


def test_tags_tell_how_many_buildings_there_are_and_nothing_tells_noise(evaluation) -> None:
    best = best_of_models(evaluation.results)
    buildings = next(label for source, label, _ in best if source == GIVEN and "buildings" in label)
    assert best[GIVEN, buildings, TAGS] > 0.2
    noise = [score for (_, label, _), score in best.items() if label == "noise"]
    assert max(noise) < 0.1


def test_folds_keep_windows_apart_as_far_as_the_region_allows() -> None:
    lon, lat = (axis.ravel() for axis in np.meshgrid(np.linspace(24.9, 25.1, 60), np.linspace(60.1, 60.2, 60)))
    assert folds_for(Places(lon, lat), 200.0, 1).buffer_m == 200.0
    small = folds_for(Places(24.9 + (lon - 24.9) / 10, 60.1 + (lat - 60.1) / 10), 200.0, 1)
    assert 55 < small.buffer_m < 110  # 1.1 × 1.1 km; the diagonal of the box around it, by twenty


def test_the_table_reads_back_as_it_was_and_is_the_same_bytes_twice(evaluation, tmp_path) -> None:
    first = write_evaluation(tmp_path / "a.parquet", evaluation, "recipe")
    assert write_evaluation(tmp_path / "b.parquet", evaluation, "recipe") == first
    results, document = read_results(tmp_path / "a.parquet")
    assert results == evaluation.results
    assert document["encoder"] == "geobacter/7"
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(EvaluationError, match="damaged"):
        read_results(tmp_path / "a.parquet")
    with pytest.raises(EvaluationError, match="does not exist"):
        read_results(tmp_path / "c.parquet")


def test_means_take_the_better_model_and_leave_a_users_labels_apart() -> None:
    rows = [
        Result("amenities", "school", "AUC", "a", "ridge", 0.6, 0.0, 9),
        Result("amenities", "school", "AUC", "a", "forest", 0.8, 0.0, 9),
        Result("amenities", "shop", "AUC", "a", "ridge", 0.5, 0.0, 9),
        Result(GIVEN, "people", "R²", "a", "ridge", 0.1, 0.0, 9),
    ]
    assert means(rows, hidden=True) == pytest.approx({"a": 0.65})
    assert means(rows, hidden=False) == pytest.approx({"a": 0.1})


def test_the_summary_says_who_is_best_and_what_was_not_asked(evaluation) -> None:
    text = summary(evaluation)
    assert "**geobacter/7**" in text
    for reason in evaluation.left_out:
        assert reason in text
    margin = margins(evaluation.results, "geobacter/7")
    assert set(margin) >= {RANDOM, PIXELS, TAGS, COORDINATES}
    ours = means(evaluation.results, hidden=True)
    assert margin[TAGS] == pytest.approx(ours["geobacter/7"] - ours[TAGS])


def test_the_checks_name_each_baseline_that_was_not_beaten_and_a_collapse(evaluation, tmp_path) -> None:
    path = tmp_path / "evaluation.parquet"
    write_evaluation(path, evaluation, "recipe")
    lost = [name for name, margin in margins(evaluation.results, "geobacter/7").items() if margin <= 0]
    assert len(baseline_problems(path)) == len(lost)
    assert all(any(f"not better than {name}:" in problem for problem in baseline_problems(path)) for name in lost)
    diagnostics = dataclasses.replace(evaluation.diagnostics["geobacter/7"], rank=1.2, n_dead=3)
    collapsed = dataclasses.replace(evaluation, diagnostics={"geobacter/7": diagnostics})
    write_evaluation(path, collapsed, "recipe")
    assert collapse_problems(path) == [
        "3 of 16 dimensions are the same everywhere.",
        "The effective rank is 1.2 of 16.",
    ]


def test_metrics_have_names_that_mlflow_takes_and_pictures_a_size(evaluation) -> None:
    metrics = evaluation_metrics(evaluation)
    assert all(np.isfinite(value) for value in metrics.values())
    assert "eval_helsinki_hidden_semantics_encoder" in metrics
    assert "eval_helsinki_hidden_semantics_random_weights" in metrics
    pictures = evaluation_pictures(evaluation)
    assert set(pictures) == {"probes.png", *(f"curve-{n + 1}.png" for n in range(len(evaluation.curves)))}
    assert len(evaluation.curves) == 2


def test_the_encoder_sees_the_map_without_the_answers(helsinki, labelled, subjects) -> None:
    asked = {part.source: part for part in questions(helsinki.settings, labelled, SETTINGS)}
    hidden = asked["amenities"]
    shown = dataclasses.replace(hidden, cache=helsinki.cache)
    assert not np.array_equal(embeddings_of(subjects[0], hidden), embeddings_of(subjects[0], shown))


def test_labels_of_another_place_are_refused(helsinki, labelled, tmp_path) -> None:
    path = tmp_path / "elsewhere.csv"
    path.write_text("lon,lat,people\n" + "\n".join(f"9.{n:02d},47.1,{n}" for n in range(30)))
    region = labelled.model_copy(update={"labels": str(path)})
    with pytest.raises(EvaluationError, match="none of its 30 places lies in region 'helsinki'"):
        list(questions(helsinki.settings, region, SETTINGS))
