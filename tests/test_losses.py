"""Losses: against hand-made figures and the library's own, and which pairs count as negatives."""

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss, NTXentLoss
from torch.nn import functional

from geobacter_core.encoder.losses import (
    Embedded,
    infonce,
    make_loss,
    margin_triplet,
    multi_similarity,
    n_roles,
    negative_pairs,
    softpn,
    thumbnails,
    vicreg_terms,
)
from geobacter_core.encoder.settings import LOSSES, TrainSettings

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
EARTH_M = 6371008.8


def all_negative(n):
    """Every two of n pairs, except a row and itself and the two of a pair."""
    rows = torch.arange(2 * n)
    return rows[:, None] % n != rows[None, :] % n


def triplets(*rows):
    anchor, positive, negative = (torch.tensor(part) for part in zip(*rows, strict=True))
    return Embedded(anchor, positive, negative, all_negative(len(rows)))


def random_pairs(n=12, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    both = functional.normalize(torch.randn(2 * n, dim, generator=generator), dim=1)
    return both[:n], both[n:]


@pytest.mark.parametrize(
    ("triplet", "loss"),
    [
        ((EAST, EAST, WEST), 0.0),  # 0 - 4 + 0.5 < 0
        ((EAST, EAST, EAST), 0.5),  # 0 - 0 + 0.5
        ((EAST, NORTH, WEST), 0.0),  # 2 - 4 + 0.5 < 0
        ((EAST, WEST, NORTH), 2.5),  # 4 - 2 + 0.5
        ((EAST, WEST, EAST), 4.5),  # 4 - 0 + 0.5
    ],
)
def test_the_margin_loss_is_the_hinge_of_squared_distances(triplet, loss):
    value = margin_triplet(triplets(triplet), margin=0.5)
    assert float(value.loss) == pytest.approx(loss)
    assert float(value.active_share) == (loss > 0)


def test_the_margin_loss_is_the_mean_over_triplets():
    value = margin_triplet(triplets((EAST, EAST, WEST), (EAST, WEST, EAST)), margin=0.5)
    assert float(value.loss) == pytest.approx((0 + 4.5) / 2)
    assert float(value.active_share) == 0.5


@pytest.mark.parametrize(
    ("triplet", "near", "far"),
    [
        ((EAST, EAST, WEST), 0.0, 2.0),
        ((EAST, NORTH, WEST), math.sqrt(2), math.sqrt(2)),  # the positive is nearer to the negative than the anchor is
        ((EAST, WEST, EAST), 2.0, 0.0),
    ],
)
def test_softpn_is_twice_the_squared_share_of_the_positive_distance(triplet, near, far):
    value = softpn(triplets(triplet))
    assert float(value.loss) == pytest.approx(2 * (math.exp(near) / (math.exp(near) + math.exp(far))) ** 2)
    assert float(value.active_share) == (near >= far)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_infonce_with_every_negative_is_the_librarys_nt_xent(temperature):
    anchor, positive = random_pairs()
    labels = torch.arange(12).repeat(2)
    expected = NTXentLoss(temperature=temperature)(torch.cat([anchor, positive]), labels)
    value = infonce(Embedded(anchor, positive, None, all_negative(12)), temperature)
    assert float(value.loss) == pytest.approx(float(expected), rel=1e-5)


def test_infonce_by_hand():
    """Two pairs at right angles: each row sees its other half at cosine 1, and two rows at cosine 0."""
    anchor = torch.tensor([EAST, NORTH])
    value = infonce(Embedded(anchor, anchor.clone(), None, all_negative(2)), temperature=0.5)
    assert float(value.loss) == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 2)), rel=1e-6)
    assert float(value.active_share) == 0.0
    wrong = infonce(Embedded(anchor, anchor.flip(0), None, all_negative(2)), temperature=0.5)
    assert float(wrong.loss) == pytest.approx(-math.log(1 / (math.exp(2) + 2)), rel=1e-6)
    assert float(wrong.active_share) == 1.0


def test_multi_similarity_with_every_negative_is_the_librarys():
    anchor, positive = random_pairs()
    expected = MultiSimilarityLoss()(torch.cat([anchor, positive]), torch.arange(12).repeat(2))
    value = multi_similarity(Embedded(anchor, positive, None, all_negative(12)))
    assert float(value.loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["infonce", "multi_similarity"])
def test_a_pair_that_is_ruled_out_does_not_matter(name):
    """Pair 0 may not be a negative of any other: where it lies changes only its own terms."""
    loss = make_loss(TrainSettings(loss=name))
    anchor, positive = random_pairs()
    allowed = all_negative(12)
    allowed[[0, 12]] = False
    allowed[:, [0, 12]] = False
    anchor.requires_grad_()
    loss(Embedded(anchor, positive, None, allowed)).loss.backward()
    others = anchor.grad[1:].clone()
    moved = anchor.detach().clone()
    moved[0] = -moved[0]
    moved.requires_grad_()
    loss(Embedded(moved, positive, None, allowed)).loss.backward()
    torch.testing.assert_close(moved.grad[1:], others)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_lower_for_a_good_embedding_and_has_finite_gradients_for_a_collapsed_one(name):
    loss = make_loss(TrainSettings(loss=name))
    anchor, positive = random_pairs()
    negative = -anchor
    good = Embedded(anchor, functional.normalize(anchor + 0.1 * positive, dim=1), negative, all_negative(12))
    bad = Embedded(anchor, -anchor, functional.normalize(anchor + 0.1 * positive, dim=1), all_negative(12))
    assert float(loss(good).loss) < float(loss(bad).loss)
    assert float(loss(good).active_share) < float(loss(bad).active_share)
    one = torch.ones(12, 8, requires_grad=True)
    same = functional.normalize(one, dim=1)
    value = loss(Embedded(same, same, same if n_roles(TrainSettings(loss=name)) == 3 else None, all_negative(12)))
    value.loss.backward()
    assert torch.isfinite(one.grad).all()


@pytest.mark.parametrize("name", ["margin", "softpn"])
def test_a_loss_of_triplets_without_negatives_says_so(name):
    anchor, positive = random_pairs()
    with pytest.raises(ValueError, match="takes its negatives from the triplets"):
        make_loss(TrainSettings(loss=name))(Embedded(anchor, positive, None, all_negative(12)))


def test_vicreg_is_nothing_where_every_dimension_spreads_alike():
    axes = torch.cat([torch.eye(6), -torch.eye(6)])
    assert float(vicreg_terms(axes)) == pytest.approx(0.0, abs=1e-6)


def test_vicreg_counts_dimensions_that_do_not_spread_or_repeat_another():
    # One point: standard deviation √0.0001 = 0.01 in each dimension, no covariance.
    assert float(vicreg_terms(torch.full((10, 4), 0.5))) == pytest.approx(0.99, abs=1e-5)
    # (±1, ±1) / √2, the same twice: variance 4/3 of each of two dimensions, and as much covariance, twice, over 2.
    repeated = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).repeat(2, 1) / math.sqrt(2)
    assert float(vicreg_terms(repeated)) == pytest.approx(2 * (4 / 3) ** 2 / 2, rel=1e-4)


def test_thumbnails_are_means_of_squares():
    windows = torch.zeros(40, 2, 32, 32, dtype=torch.uint8)
    windows[39, 1, 4:8, 8:12] = 200  # the square in row 1, column 2 of 8 × 8
    windows[39, 1, 4, 12] = 160  # a sixteenth of the next one
    small = thumbnails(windows)
    assert small.shape == (40, 2, 64)
    assert small[39, 1, 1 * 8 + 2] == 200
    assert small[39, 1, 1 * 8 + 3] == 10
    assert small.sum() == 210


def unit(lon, lat):
    lon, lat = np.radians(lon), np.radians(lat)
    return [np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)]


def test_near_places_are_no_negatives_of_each_other():
    """Four pairs, 0.01 degrees of latitude (1,112 m) apart; the positives lie where the anchors do."""
    xyz = torch.tensor([unit(9.5, 47 + 0.01 * row) for row in range(4)] * 2, dtype=torch.float32)
    small = 50 * torch.arange(8.0)[:, None, None].repeat(1, 1, 64)  # all differ by 50 or more
    degree_m = math.radians(0.01) * EARTH_M
    for near_m, steps in ((degree_m / 2, 1), (degree_m * 1.5, 2), (degree_m * 2.5, 3)):
        found = negative_pairs(xyz, torch.full((8,), near_m, dtype=torch.float64), small, 2.0)
        row = torch.arange(8) % 4
        assert torch.equal(found, (row[:, None] - row[None, :]).abs() >= steps)
    # The larger of two distances counts: only what lies by the first pair is kept from it by its own.
    near_m = torch.tensor([degree_m * 2.5, 0, 0, 0] * 2, dtype=torch.float64)
    found = negative_pairs(xyz, near_m, small, 2.0)
    assert not found[0, [1, 2, 5, 6]].any()
    assert found[0, [3, 7]].all()
    assert found[1, [2, 3, 6, 7]].all()


def test_distances_are_good_to_a_metre():
    """Neighbours 100 m apart among 64 places, so many that a matrix product would be used for them."""
    step = 100 / (math.radians(1) * EARTH_M)
    xyz = torch.tensor([unit(9.5, 47 + step * row) for row in range(32)] * 2, dtype=torch.float32)
    small = 50 * torch.arange(64.0)[:, None, None].repeat(1, 1, 64)
    row = torch.arange(64) % 32
    for near_m, steps in ((99.0, 1), (101.0, 2)):
        found = negative_pairs(xyz, torch.full((64,), near_m), small, 2.0)
        assert torch.equal(found, (row[:, None] - row[None, :]).abs() >= steps)


@pytest.mark.parametrize("n_channels", [1, 3, 12])
@pytest.mark.parametrize("n", [3, 40])
def test_windows_that_look_alike_are_no_negatives_of_each_other(n_channels, n):
    """Against every pair compared by itself: some alike in all channels, some that differ in one pixel only."""
    rng = np.random.default_rng(n)
    small = (rng.uniform(0, 6, (1, n_channels, 64)) + rng.uniform(0, 1.5, (2 * n, n_channels, 64))).astype(np.float32)
    small[1] = small[0] + 1.9
    small[2, 0, 7] = small[0, 0, 7] + 3  # a thin road
    small[3:] += rng.choice([0, 0, 40], (2 * n - 3, 1, 1)).astype(np.float32)
    xyz = torch.tensor([unit(9.5, 40 + row) for row in range(n)] * 2)
    found = negative_pairs(xyz, torch.zeros(2 * n, dtype=torch.float64), torch.from_numpy(small), 2.0)
    for one in range(2 * n):
        for other in range(2 * n):
            difference = np.abs(small[one] - small[other]).max()
            assert bool(found[one, other]) == (one % n != other % n and difference >= 2.0), (one, other)
    assert not found[0, 1]


def test_a_sea_has_no_negatives():
    xyz = torch.tensor([unit(9.5, 40 + row) for row in range(100)] * 2)
    found = negative_pairs(xyz, torch.zeros(200, dtype=torch.float64), torch.full((200, 3, 64), 170.0), 2.0)
    assert not found.any()
    anchor, positive = random_pairs(100)
    for name in ("infonce", "multi_similarity"):
        assert torch.isfinite(make_loss(TrainSettings(loss=name))(Embedded(anchor, positive, None, found)).loss)
