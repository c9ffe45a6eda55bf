"""Blocked folds, probes and label curves on made-up places whose answers are known."""

import numpy as np
import pyproj
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation.curve import joined, label_curve
from geobacter_core.evaluation.folds import Folds, blocked_folds
from geobacter_core.evaluation.labels import Label, Places
from geobacter_core.evaluation.probes import FoldPredictions, overall_score, probe
from geobacter_core.evaluation.ridge import SHRINKAGES, ridge_predictions

N = 600
GEOD = pyproj.Geod(ellps="WGS84")


def places_in_a_box(n=N, seed=0, west=-8.7, south=41.1, side=0.15):
    rng = np.random.default_rng(seed)
    return Places(west + side * rng.random(n), south + side * rng.random(n))


@pytest.fixture(scope="module")
def places():
    return places_in_a_box()


@pytest.fixture(scope="module")
def folds(places):
    return blocked_folds(places, buffer_m=300, seed=0)


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(1).normal(size=(N, 12)).astype(np.float32)


def number(values):
    return Label("made up", "number", np.asarray(values, dtype=float))


def presence(values):
    return Label("made up", "presence", np.asarray(values, dtype=float))


def random_folds(n, seed=0):
    """What not to do: rows dealt to folds one by one."""
    fold = np.random.default_rng(seed).integers(0, 5, n)
    return Folds(
        np.arange(n), tuple((np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(5)), 1.0, 0.0
    )


# Folds


def test_every_place_is_tested_once_and_never_learnt_from_in_the_same_fold(folds):
    assert len(folds) == 5
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(N))
    for train, test in folds:
        assert not set(train) & set(test)
        assert len(train) > N / 2


def test_folds_have_about_equal_numbers_of_places_even_when_most_lie_in_one_town():
    town = places_in_a_box(500, side=0.03)
    country = places_in_a_box(500)
    both = Places(np.concatenate([town.lon, country.lon]), np.concatenate([town.lat, country.lat]))
    sizes = [len(test) for _, test in blocked_folds(both, buffer_m=100, seed=0, block_m=700)]
    assert sum(sizes) == 1000
    assert max(sizes) - min(sizes) <= 20


@pytest.mark.parametrize("buffer_m", [450.0, 800.0])
def test_training_places_are_exactly_those_further_than_the_buffer_from_all_test_places(buffer_m):
    places = places_in_a_box(300, seed=3)
    folds = blocked_folds(places, buffer_m, seed=1)
    apart_m = np.array([
        GEOD.inv(np.full(300, lon), np.full(300, lat), places.lon, places.lat)[2]
        for lon, lat in zip(places.lon, places.lat, strict=True)
    ])  # fmt: skip
    n_dropped = 0
    for train, test in folds:
        is_far = apart_m[test].min(axis=0) > buffer_m
        np.testing.assert_array_equal(train, np.flatnonzero(is_far))
        n_dropped += 300 - len(test) - len(train)
    assert n_dropped > 20


def test_places_of_one_block_are_tested_together(folds):
    fold_of = np.zeros(N, dtype=int)
    for number_, (_, test) in enumerate(folds):
        fold_of[test] = number_
    assert all(len(set(fold_of[folds.block == block])) == 1 for block in np.unique(folds.block))


@pytest.mark.parametrize("south", [0.0, 41.0, 69.0])
def test_a_block_is_as_wide_and_as_high_as_asked_at_any_latitude(south):
    places = places_in_a_box(5000, south=south, side=0.2)
    folds = blocked_folds(places, buffer_m=0, seed=0, block_m=2000)
    widths, heights = [], []
    for block in np.unique(folds.block):
        lon, lat = places.lon[folds.block == block], places.lat[folds.block == block]
        widths.append(GEOD.inv(lon.min(), lat.mean(), lon.max(), lat.mean())[2])
        heights.append(GEOD.inv(lon.min(), lat.min(), lon.min(), lat.max())[2])
    # 0.6 %: the sphere is not the ellipsoid.
    assert 1850 < max(widths) < 2015
    assert 1850 < max(heights) < 2015


def test_blocks_are_a_tenth_of_the_extent_between_two_buffers_and_5_km(places):
    height_m = GEOD.inv(-8.7, places.lat.min(), -8.7, places.lat.max())[2]
    assert blocked_folds(places, buffer_m=300, seed=0).block_m == pytest.approx(height_m / 10, rel=0.01)
    assert blocked_folds(places, buffer_m=1000, seed=0).block_m == 2000
    assert blocked_folds(places_in_a_box(side=2.0), buffer_m=300, seed=0).block_m == 5000


def test_blocks_of_a_narrow_strip_are_made_smaller_until_there_are_four_a_fold():
    rng = np.random.default_rng(0)
    strip = Places(-8.7 + 0.1 * rng.random(N), np.full(N, 41.1))
    folds = blocked_folds(strip, buffer_m=50, seed=0)
    assert 20 <= len(np.unique(folds.block)) <= 25


def test_the_seed_decides_the_deal_and_nothing_else_does(places):
    tests = [blocked_folds(places, 300, seed).pairs[0][1].tolist() for seed in (0, 0, 1)]
    assert tests[0] == tests[1]
    assert tests[0] != tests[2]


def test_places_on_both_sides_of_the_antimeridian_are_neighbours():
    places = places_in_a_box(300, west=179.9, side=0.2)
    wrapped = Places((places.lon + 180) % 360 - 180, places.lat)
    assert wrapped.lon.min() < -179.8
    folds = blocked_folds(wrapped, buffer_m=300, seed=0)
    assert folds.block_m < 5000
    for train, test in folds:
        apart_m = np.linalg.norm(wrapped.xyz_m[train][:, None] - wrapped.xyz_m[test][None], axis=2)
        assert apart_m.min() > 300


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"buffer_m": 5000}, "too few for 5 folds"),
        ({"buffer_m": 2500, "block_m": 1000}, "Use a smaller buffer"),
        ({"buffer_m": -1}, "buffer_m is -1"),
        ({"buffer_m": np.nan}, "buffer_m is nan"),
        ({"buffer_m": 100, "n_folds": 1}, "n_folds is 1"),
        ({"buffer_m": 100, "block_m": 0.0}, "block_m is 0"),
    ],
)
def test_folds_without_room_or_sense_are_refused(arguments, words):
    with pytest.raises(EvaluationError, match=words):
        blocked_folds(places_in_a_box(100, side=0.07), seed=0, **arguments)


def test_folds_of_one_place_many_times_are_refused():
    with pytest.raises(EvaluationError, match="lie in 1 blocks"):
        blocked_folds(Places(np.zeros(100), np.zeros(100)), buffer_m=0, seed=0)


# Ridge


def test_ridge_predicts_as_scikit_learn_does_at_the_same_shrinkage(features):
    targets = np.random.default_rng(0).normal(size=(N, 1)) + features[:, :1]
    train, test = np.arange(400), np.arange(400, N)
    ours = ridge_predictions(features, targets, np.arange(N) // 50, train, test)
    x = (features - features[train].mean(axis=0, dtype=float)) / features[train].std(axis=0, dtype=float)
    differences = [
        np.abs(Ridge(alpha=400 * 12 * shrinkage).fit(x[train], targets[train]).predict(x[test]) - ours[:, 0]).max()
        for shrinkage in SHRINKAGES
    ]
    assert min(differences) < 1e-5
    assert np.sort(differences)[1] > 1e-4  # one shrinkage, and not any


def test_ridge_is_the_same_with_more_columns_than_rows_as_with_less(features):
    targets = features[:, :1].astype(float) + features[:, 1:2]
    train, test, blocks = np.arange(40), np.arange(40, N), np.arange(N) // 4
    once = ridge_predictions(features, targets, blocks, train, test)
    five_times = ridge_predictions(np.tile(features, 5), targets, blocks, train, test)
    assert np.tile(features, 5).shape[1] > 40
    np.testing.assert_allclose(once, five_times, atol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_a_constant_column_changes_nothing_but_the_share_of_the_rest(features, constant):
    targets = features[:, :1].astype(float)
    train, test, blocks = np.arange(400), np.arange(400, N), np.arange(N) // 50
    wider = np.concatenate([features, np.full((N, 1), constant, np.float32)], axis=1)
    wider[test, -1] += 1e6  # nothing was learnt of it, so nothing comes of it
    ours = ridge_predictions(wider, targets, blocks, train, test)
    np.testing.assert_allclose(ours, ridge_predictions(features, targets, blocks, train, test), atol=1e-4)


def test_joined_features_are_not_drowned_by_the_wider_part():
    """30 labels: among 300 columns of noise the one that tells all is lost, joined with them it is not."""
    rng = np.random.default_rng(0)
    signal, noise = rng.normal(size=(N, 1)), rng.normal(size=(N, 300))
    train, test = np.arange(30), np.arange(30, N)

    def error(features):
        return np.mean(np.square(ridge_predictions(features, signal, np.arange(N), train, test) - signal[test]))

    assert error(np.concatenate([signal, noise], axis=1)) > 0.7
    assert error(joined(signal, noise)) < 0.1


def test_joining_nothing_is_refused():
    with pytest.raises(EvaluationError, match="there is no part"):
        joined()


# Probes


@pytest.mark.parametrize("model", ["ridge", "forest"])
def test_a_function_of_the_features_is_found_and_noise_is_not(folds, features, model):
    rng = np.random.default_rng(2)
    exact = probe(features, number(3 * features[:, 0] + 500), folds, model, seed=0)
    assert exact.metric == "R²"
    assert exact.score > (0.999 if model == "ridge" else 0.9)
    assert (len(exact.fold_scores), exact.n) == (5, N)
    assert -0.2 < probe(features, number(rng.normal(size=N)), folds, model, seed=0).score <= 0.02


@pytest.mark.parametrize("model", ["ridge", "forest"])
def test_auc_is_1_for_what_the_features_tell_and_a_half_for_chance(folds, features, model):
    rng = np.random.default_rng(3)
    told = probe(features, presence(features[:, 0] > 1), folds, model, seed=0)
    assert told.metric == "AUC"
    assert told.score > 0.98
    assert all(score > 0.97 for score in told.fold_scores)
    chance = np.mean([probe(features, presence(rng.random(N) < 0.2), folds, model, seed=0).score for _ in range(2)])
    assert chance == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("model", ["ridge", "forest"])
def test_classes_are_told_apart_each_against_the_rest(folds, features, model):
    values = np.argmax(features[:, :3], axis=1).astype(float)
    found = probe(features, Label("use", "class", values, ("a", "b", "c")), folds, model, seed=0)
    assert (found.kind, found.metric) == ("class", "AUC")
    assert found.score > 0.95
    shuffled = np.random.default_rng(0).permutation(values)
    chance = probe(features, Label("use", "class", shuffled, ("a", "b", "c")), folds, model, seed=0)
    assert chance.score == pytest.approx(0.5, abs=0.05)


def test_a_random_split_flatters_coordinates_and_a_blocked_one_does_not(places):
    """A label of patches 1.5 km wide, each drawn by chance: nothing of it can be known of another patch."""
    east, north = (places.lon + 8.7) * 83.6, (places.lat - 41.1) * 111.1
    patch = np.floor(east / 1.5).astype(int) * 100 + np.floor(north / 1.5).astype(int)
    label = number(np.random.default_rng(0).normal(size=patch.max() + 1)[patch])
    coordinates = np.stack([places.lon, places.lat], axis=1)
    blocked = blocked_folds(places, buffer_m=2000, seed=0, block_m=3000)
    assert probe(coordinates, label, random_folds(N), "forest", seed=0).score > 0.3
    assert probe(coordinates, label, blocked, "forest", seed=0).score < 0.05


def test_auc_of_folds_compares_no_predictions_of_different_models():
    """Two folds, each in perfect order, the second's scores far above: 1, where a pooled AUC would say less."""
    label = presence([0, 0, 0, 1, 0, 1, 1, 1])
    values = np.array([0.0, 0.1, 0.2, 0.3, 5.0, 5.1, 5.2, 5.3])
    learnt = np.ones(1, dtype=bool)
    folds = [FoldPredictions(rows, values[rows][:, None], learnt) for rows in (np.arange(4), np.arange(4, 8))]
    assert overall_score(label, folds) == 1.0
    assert roc_auc_score(label.values, values) < 1.0


def test_auc_of_folds_is_weighted_by_their_pairs():
    """One pair in the wrong order, then four in the right order: 4 of 5."""
    label = presence([0, 1, 0, 0, 1, 1])
    values = np.array([1.0, 0.0, 0.0, 0.1, 0.2, 0.3])
    learnt = np.ones(1, dtype=bool)
    folds = [FoldPredictions(rows, values[rows][:, None], learnt) for rows in (np.arange(2), np.arange(2, 6))]
    assert overall_score(label, folds) == pytest.approx(0.8)


def test_unknown_answers_are_neither_learnt_from_nor_scored(folds, features):
    values = features[:, 0].astype(float)
    values[::3] = np.nan
    found = probe(features, number(values), folds, "ridge", seed=0)
    assert found.n == int(np.isfinite(values).sum())
    assert found.score > 0.999


@pytest.mark.parametrize("model", ["ridge", "forest"])
def test_a_fold_tested_on_one_class_only_is_left_out_and_the_others_are_scored(folds, features, model):
    has = features[:, 0] > 0.5
    has[folds.pairs[2][1]] = False
    found = probe(features, presence(has), folds, model, seed=0)
    assert len(found.fold_scores) == 4
    assert found.score > 0.97


@pytest.mark.parametrize("model", ["ridge", "forest"])
def test_a_class_that_no_fold_can_be_scored_on_does_not_spoil_the_others(folds, features, model):
    values = (features[:, 0] > 0).astype(float)
    values[folds.pairs[0][1][:3]] = 2  # in one fold only: never both to learn from and to be tested on
    found = probe(features, Label("use", "class", values, ("a", "b", "rare")), folds, model, seed=0)
    assert found.score > 0.97


@pytest.mark.parametrize("model", ["ridge", "forest"])
def test_a_label_that_no_fold_can_be_scored_on_is_refused_by_name(folds, features, model):
    has = np.zeros(N)
    has[folds.pairs[0][1]] = features[folds.pairs[0][1], 0] > 0
    with pytest.raises(EvaluationError, match="`made up` cannot be scored"):
        probe(features, presence(has), folds, model, seed=0)
    with pytest.raises(EvaluationError, match="`made up` cannot be scored"):
        probe(features, number(np.full(N, np.nan)), folds, model, seed=0)
    with pytest.raises(EvaluationError, match="`made up` cannot be scored"):
        probe(features, number(np.full(N, 7.0)), folds, model, seed=0)


@pytest.mark.parametrize("model", ["ridge", "forest"])
@pytest.mark.parametrize("scale", [1e-200, 1e300])
def test_a_score_is_finite_and_the_same_whatever_the_unit(folds, features, model, scale):
    values = features[:, 0].astype(float)
    plain = probe(features, number(values), folds, model, seed=0)
    scaled = probe(features, number(values * scale), folds, model, seed=0)
    assert scaled.score == pytest.approx(plain.score, abs=1e-3)
    assert np.isfinite(scaled.fold_scores).all()


def test_a_column_that_hardly_varies_where_it_is_learnt_from_does_not_blow_up_the_score(folds, features):
    """A tag seen once in training and a hundred times in one test place."""
    rare = np.zeros((N, 1), np.float32)
    rare[folds.pairs[0][1][0]] = 100
    rare[folds.pairs[0][0][0]] = 1
    label = number(features[:, 0] + np.random.default_rng(0).normal(size=N))
    found = probe(np.concatenate([features, rare], axis=1), label, folds, "ridge", seed=0)
    assert found.score == pytest.approx(probe(features, label, folds, "ridge", seed=0).score, abs=0.02)


@pytest.mark.parametrize("n_columns", [1, 1500])
def test_one_column_and_more_columns_than_places_are_probed(folds, n_columns):
    columns = np.random.default_rng(0).normal(size=(N, n_columns))
    label = number(columns @ np.ones(n_columns) + 1)
    assert 0.3 < probe(columns, label, folds, "ridge", seed=0).score <= 1.0


def test_the_same_seed_gives_the_same_forest_to_the_last_bit_and_another_another(folds, features):
    label = number(features[:, 0] * features[:, 1])
    scores = [probe(features, label, folds, "forest", seed).score for seed in (0, 0, 1)]
    assert scores[0] == scores[1]
    assert scores[0] != scores[2]


def test_a_forest_finds_what_a_line_cannot(folds, features):
    label = number(np.abs(features[:, 0]))
    assert probe(features, label, folds, "ridge", seed=0).score < 0.05
    assert probe(features, label, folds, "forest", seed=0).score > 0.8


def test_features_that_do_not_fit_or_are_not_finite_are_refused(folds, features):
    label = number(features[:, 0])
    with pytest.raises(EvaluationError, match=r"shape \(599, 12\)"):
        probe(features[1:], label, folds, "ridge", seed=0)
    with pytest.raises(EvaluationError, match="599 answers"):
        probe(features, number(features[1:, 0]), folds, "ridge", seed=0)
    for wrong in (np.nan, np.inf, 1e35):
        broken = features.copy()
        broken[7, 3] = wrong
        with pytest.raises(EvaluationError, match="in row 7, column 3"):
            probe(joined(features, broken), label, folds, "ridge", seed=0)


# Label curves


def test_more_labels_answer_better_and_the_last_point_has_them_all(folds, features):
    label = number(features.sum(axis=1) + np.random.default_rng(0).normal(size=N))
    points = label_curve({"all": features}, label, folds, seeds=range(4), sizes=(100, 10, 30, 5000))
    n_all = round(np.mean([len(train) for train, _ in folds]))
    assert [(point.n_labels, point.n_seeds) for point in points] == [(10, 4), (30, 4), (100, 4), (n_all, 1)]
    means = [point.mean for point in points]
    assert means == sorted(means)
    assert means[0] < 0.5
    assert means[-1] > 0.85
    assert all(point.std > 0 for point in points[:-1])
    assert points[-1].std == 0
    assert points[-1].mean == probe(features, label, folds, "ridge", seed=0).score


def test_a_representation_that_says_the_same_in_fewer_columns_needs_fewer_labels(folds, features):
    label = number(features[:, 0])
    noise = np.random.default_rng(0).normal(size=(N, 200))
    wide = np.concatenate([features, noise], axis=1)
    points = label_curve(
        {"short": features[:, :2], "wide": wide, "both": joined(features[:, :2], wide)},
        label, folds, seeds=range(3), sizes=(30,),
    )  # fmt: skip
    mean = {point.representation: point.mean for point in points if point.n_labels == 30}
    assert mean["short"] > 0.99
    assert mean["wide"] < 0.5
    assert mean["both"] > 0.9


def test_every_representation_gets_the_same_labels(folds, features):
    label = number(features[:, 0] + np.random.default_rng(0).normal(size=N))
    points = label_curve({"a": features, "b": features.copy()}, label, folds, seeds=(1, 2), sizes=(10, 100))
    assert [(p.n_labels, p.mean, p.std) for p in points[:3]] == [(p.n_labels, p.mean, p.std) for p in points[3:]]


def test_a_draw_without_any_place_that_has_it_counts_as_chance(folds, features):
    """One label in fifty: ten labels mostly lack it, and then tell nothing."""
    has = features[:, 0] > np.sort(features[:, 0])[-20]
    few, _ = label_curve({"x": features[:, :1]}, presence(has), folds, seeds=range(5), sizes=(3,))
    assert 0.45 < few.mean < 0.75
    assert label_curve({"x": features[:, :1]}, presence(has), folds, seeds=(0,), sizes=())[0].mean > 0.99


def test_a_curve_without_seeds_with_an_empty_draw_or_without_answers_is_refused(folds, features):
    label = number(features[:, 0])
    with pytest.raises(EvaluationError, match="Give a seed"):
        label_curve({"x": features}, label, folds, seeds=())
    with pytest.raises(EvaluationError, match="sizes of 1 up"):
        label_curve({"x": features}, label, folds, seeds=(0,), sizes=(0, 10))
    with pytest.raises(EvaluationError, match="`made up` cannot be scored"):
        label_curve({"x": features}, number(np.full(N, np.nan)), folds, seeds=(0,))


def test_coordinates_say_little_of_porto_alegres_jobs_in_blocks(shared_osm):
    from geobacter_core.evaluation.labels import read_labels

    path = shared_osm / "porto-alegre" / "hexgrid.csv"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    table = read_labels(path)
    jobs = next(label for label in table.labels if label.name == "log1p(jobs)")
    coordinates = np.stack([table.places.lon, table.places.lat], axis=1)
    score = probe(coordinates, jobs, blocked_folds(table.places, 300, seed=0), "ridge", seed=0)
    assert score.n == 1222
    assert 0.2 < score.score < 0.4
