"""Diagnostics of embeddings whose figures are known: spread evenly, collapsed, or mere geography."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation import diagnostics
from geobacter_core.evaluation.diagnostics import diagnose, effective_rank, knn_purity
from geobacter_core.evaluation.labels import Label, Places

N, DIM = 3000, 32


def of_length_1(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def even():
    """Spread evenly over the sphere."""
    return of_length_1(np.random.default_rng(0).normal(size=(N, DIM)))


@pytest.fixture(scope="module")
def places():
    """About 12 by 17 km."""
    rng = np.random.default_rng(1)
    return Places(-8.7 + 0.15 * rng.random(N), 41.1 + 0.15 * rng.random(N))


def collapsed(n=N):
    return np.tile(of_length_1(np.ones((1, DIM))), (n, 1))


def test_rank_of_vectors_spread_evenly_is_about_their_dimension(even):
    assert 0.98 * DIM < effective_rank(even) <= DIM * 1.001


def test_rank_of_vectors_on_one_line_is_1(places):
    assert effective_rank(collapsed()) == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize("used", [2, 8])
def test_rank_is_the_number_of_dimensions_that_are_used(used):
    vectors = np.zeros((N, DIM))
    vectors[:, :used] = np.random.default_rng(0).normal(size=(N, used))
    assert effective_rank(of_length_1(vectors)) == pytest.approx(used, rel=0.01)


def test_figures_of_vectors_spread_evenly_are_those_of_the_sphere(even, places):
    found = diagnose(even, places)
    assert (found.n, found.dim, found.n_dead) == (N, DIM, 0)
    assert found.spread_median == pytest.approx(1 / np.sqrt(DIM), rel=0.02)
    assert 0.95 * found.spread_median < found.spread_min <= found.spread_median
    # Of the cosine, mean 0 and variance 1/32: log E exp(4 cos - 4) is nearly -4 + 16 / (2 · 32).
    assert found.uniformity == pytest.approx(-3.75, abs=0.02)


def test_figures_of_collapsed_vectors_are_those_of_a_point(places):
    found = diagnose(collapsed(), places)
    assert found.n_dead == DIM
    assert found.spread_min == pytest.approx(0, abs=1e-6)
    assert found.uniformity == pytest.approx(0, abs=1e-5)


def test_dimensions_that_do_not_vary_are_dead(even, places):
    vectors = even.copy()
    vectors[:, :5] = 0
    assert diagnose(of_length_1(vectors), places).n_dead == 5


def test_uniformity_is_that_of_the_papers_formula(even, places):
    some = even[:500]
    found = diagnose(some, Places(places.lon[:500], places.lat[:500]))
    assert found.uniformity == pytest.approx(np.log(np.mean(np.exp(-2 * pdist(some) ** 2))), abs=1e-5)


def test_nearest_neighbours_of_vectors_that_know_nothing_are_near_by_chance(even, places):
    found = diagnose(even, places)
    # 500 m around a place, of 12.5 by 16.7 km, less what lies beyond the edge.
    assert found.near_chance == pytest.approx(np.pi * 0.5**2 / (12.5 * 16.7), rel=0.06)
    assert found.near_share < 4 * found.near_chance


def test_nearest_neighbours_of_vectors_that_only_know_where_they_are_are_near(places):
    east, north = (places.lon + 8.7) / 0.15, (places.lat - 41.1) / 0.15
    found = diagnose(of_length_1(np.stack([east, north, np.ones(N)], axis=1)), places)
    assert found.near_share > 0.95


def test_places_of_one_embedding_are_not_taken_for_neighbours_because_of_their_order(places):
    """As in a table sorted by cell: rows that follow each other are near, and all embeddings are equal."""
    order = np.lexsort([places.lat, np.round(places.lon, 2)])
    found = diagnose(collapsed(), Places(places.lon[order], places.lat[order]))
    assert found.near_share < 10 * found.near_chance


def test_metrics_carry_the_prefix(even, places):
    metrics = diagnose(even, places).as_metrics("porto/")
    assert set(metrics) == {
        "porto/spread_min", "porto/spread_median", "porto/dead_dimensions", "porto/effective_rank",
        "porto/uniformity", "porto/near_share", "porto/near_chance",
    }  # fmt: skip
    assert all(isinstance(value, float) and np.isfinite(value) for value in metrics.values())


def classes(values):
    return Label("use", "class", np.asarray(values, dtype=float), ("a", "b", "c"))


def test_purity_is_1_where_classes_lie_apart_and_at_chance_where_they_do_not(even, places):
    values = np.random.default_rng(2).integers(0, 3, N)
    apart = even.copy()
    apart[np.arange(N), values] += 5
    pure = knn_purity(of_length_1(apart), classes(values), places, exclude_m=300)
    assert (pure.share, pure.corrected, pure.n) == (1.0, 1.0, N)
    assert pure.chance == pytest.approx(1 / 3, abs=0.01)
    mixed = knn_purity(even, classes(values), places, exclude_m=300)
    assert mixed.share == pytest.approx(1 / 3, abs=0.02)
    assert mixed.corrected == pytest.approx(0, abs=0.02)


def test_purity_is_that_of_brute_force_whatever_the_size_of_a_batch(even, places, monkeypatch):
    monkeypatch.setattr(diagnostics, "_ROWS", 64)
    monkeypatch.setattr(diagnostics, "_COLUMNS", 100)
    rng = np.random.default_rng(3)
    n, k, exclude_m = 500, 7, 2000
    vectors, where = even[:n], Places(places.lon[:n], places.lat[:n])
    values = np.where(rng.random(n) < 0.1, np.nan, rng.integers(0, 3, n))
    xyz_m = where.xyz_m
    shares, chances = [], []
    for row in np.flatnonzero(~np.isnan(values)):
        is_allowed = (np.linalg.norm(xyz_m - xyz_m[row], axis=1) > exclude_m) & ~np.isnan(values)
        allowed = np.flatnonzero(is_allowed)
        nearest = allowed[np.argsort(-(vectors[allowed] @ vectors[row]))[:k]]
        shares.append(np.mean(values[nearest] == values[row]))
        chances.append(np.mean(values[allowed] == values[row]))
    found = knn_purity(vectors, classes(values), where, exclude_m, k)
    assert found.n == len(shares)
    assert found.share == pytest.approx(np.mean(shares), abs=1e-12)
    assert found.chance == pytest.approx(np.mean(chances), abs=1e-12)


def test_near_shares_are_those_of_brute_force(even, places):
    n = 400
    small = Places(-8.7 + (places.lon[:n] + 8.7) / 8, 41.1 + (places.lat[:n] - 41.1) / 8)
    cosine = even[:n] @ even[:n].T
    np.fill_diagonal(cosine, -2)
    apart_m = np.linalg.norm(small.xyz_m[:, None] - small.xyz_m[None], axis=2)
    is_near = (apart_m <= 500) & ~np.eye(n, dtype=bool)
    found = diagnose(even[:n], small)
    assert found.near_share == pytest.approx(np.mean(is_near[np.arange(n), cosine.argmax(axis=1)]))
    assert found.near_chance == pytest.approx(is_near.sum() / (n * (n - 1)))


def test_geographic_neighbours_do_not_make_a_class_pure(places):
    """Vectors that only know where they are, and a class drawn patch by patch: pure nearby, at chance beyond."""
    east, north = (places.lon + 8.7) / 0.15, (places.lat - 41.1) / 0.15
    patch = np.floor(east * 12).astype(int) * 12 + np.floor(north * 12).astype(int)
    label = classes(np.random.default_rng(0).integers(0, 3, 144)[patch])
    vectors = of_length_1(np.stack([east, north, np.ones(N)], axis=1))
    assert knn_purity(vectors, label, places, exclude_m=0).corrected > 0.5
    assert knn_purity(vectors, label, places, exclude_m=2500).corrected < 0.15


def test_purity_of_a_presence_may_be_asked_and_of_a_number_not(even, places):
    has = Label("school", "presence", (even[:, 0] > 0).astype(float))
    assert knn_purity(even, has, places, exclude_m=0).corrected > 0.05
    with pytest.raises(EvaluationError, match="kind number"):
        knn_purity(even, Label("height", "number", even[:, 0].astype(float)), places, exclude_m=0)


def test_purity_without_a_place_to_choose_or_with_odd_arguments_is_refused(even, places):
    label = classes(np.arange(N) % 3)
    with pytest.raises(EvaluationError, match="no place has another further than 50000 m"):
        knn_purity(even, label, places, exclude_m=50_000)
    with pytest.raises(EvaluationError, match="no place has another"):
        knn_purity(even, classes(np.full(N, np.nan)), places, exclude_m=0)
    with pytest.raises(EvaluationError, match="k=0"):
        knn_purity(even, label, places, exclude_m=0, k=0)
    with pytest.raises(EvaluationError, match="exclude_m=-1"):
        knn_purity(even, label, places, exclude_m=-1)


def test_embeddings_that_do_not_fit_or_are_not_of_length_1_are_refused(even, places):
    with pytest.raises(EvaluationError, match=r"shape \(2999, 32\) for 3000 places"):
        diagnose(even[1:], places)
    for wrong in (2.0, np.nan):
        broken = even.copy()
        broken[17] *= wrong
        with pytest.raises(EvaluationError, match="embedding 17 is not of length 1"):
            diagnose(broken, places)
    with pytest.raises(EvaluationError, match="two or more"):
        diagnose(even[:1], Places(places.lon[:1], places.lat[:1]))
