"""The encoder: its network, its loss, its figures, and a few real steps of training."""

import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from geobacter_core.encoder.data import RegionData, TripletWindows
from geobacter_core.encoder.evaluate import TestWindows, recall_at
from geobacter_core.encoder.losses import margin_triplet_loss
from geobacter_core.encoder.network import random_network, weights_digest
from geobacter_core.encoder.settings import TrainSettings
from geobacter_core.encoder.train import check_regions, encode_with, rate_share, train
from geobacter_core.errors import EncoderError

TINY = TrainSettings(size_px=32, embedding_dim=8, batch_size=32, max_epochs=1, max_seconds=600)


@pytest.fixture(scope="module")
def regions(helsinki):
    return [RegionData("helsinki", helsinki.triplets, helsinki.cache)]


def noise(n, n_channels=3, side=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, n_channels, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("n_channels", "dim", "side"), [(3, 16, 32), (12, 64, 64), (1, 2, 96)])
def test_the_network_gives_float32_vectors_of_length_1(n_channels, dim, side):
    network = random_network(n_channels, dim, seed=1).eval()
    for n in (1, 5):
        embedding = network(noise(n, n_channels, side))
        assert embedding.shape == (n, dim)
        assert embedding.dtype == torch.float32
        np.testing.assert_allclose(embedding.detach().norm(dim=1), 1.0, atol=1e-6)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = weights_digest(random_network(3, 8, seed=1))
    assert torch.equal(torch.rand(3), expected)
    assert weights_digest(random_network(3, 8, seed=1)) == first
    assert weights_digest(random_network(3, 8, seed=2)) != first
    assert len(first) == 64


def test_normalisation_is_per_channel_and_part_of_the_weights():
    network = random_network(3, 8, seed=1)
    before = weights_digest(network)
    windows = noise(64)
    windows[:, 0] = 7
    network.set_normalisation(windows)
    assert network.mean.flatten()[0] == 7
    assert network.std.flatten()[0] == 1  # a constant channel is not divided by zero
    # Uniform bytes: mean 127.5, standard deviation 73.9.
    assert network.mean.flatten()[1] == pytest.approx(127.5, abs=1)
    assert network.std.flatten()[1] == pytest.approx(73.9, abs=1)
    assert weights_digest(network) != before


EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


@pytest.mark.parametrize(
    ("anchor", "positive", "negative", "loss"),
    [
        (EAST, EAST, WEST, 0.0),  # 0 - 4 + 0.5 < 0
        (EAST, EAST, EAST, 0.5),  # 0 - 0 + 0.5
        (EAST, NORTH, WEST, 0.0),  # 2 - 4 + 0.5 < 0
        (EAST, WEST, NORTH, 2.5),  # 4 - 2 + 0.5
        (EAST, WEST, EAST, 4.5),  # 4 - 0 + 0.5
    ],
)
def test_margin_triplet_loss_is_the_hinge_of_squared_distances(anchor, positive, negative, loss):
    vectors = [torch.tensor([vector]) for vector in (anchor, positive, negative)]
    assert float(margin_triplet_loss(*vectors, margin=0.5)) == pytest.approx(loss)


def test_margin_triplet_loss_is_the_mean_over_triplets():
    anchor = torch.tensor([EAST, EAST])
    positive = torch.tensor([EAST, WEST])
    negative = torch.tensor([WEST, EAST])
    assert float(margin_triplet_loss(anchor, positive, negative, margin=0.5)) == pytest.approx((0 + 4.5) / 2)


def test_recall_counts_anchors_whose_own_positive_is_among_the_k_nearest():
    identity = np.eye(20, dtype=np.float32)
    assert recall_at(identity, identity, 1) == 1.0
    # Each anchor's own positive comes second: the next row's is nearer.
    second = 0.6 * identity + 0.8 * np.roll(identity, 1, axis=0)
    assert recall_at(identity, second.astype(np.float32), 1) == 0.0
    assert recall_at(identity, second.astype(np.float32), 2) == 1.0
    # 1,500 rows are more than are compared at once.
    many = np.random.default_rng(0).normal(size=(1500, 32)).astype(np.float32)
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    assert recall_at(many, many, 1) == 1.0
    assert recall_at(many, many[::-1].copy(), 10) < 0.05


def test_recall_of_an_encoder_that_gives_one_vector_for_all_is_not_perfect():
    same = np.tile(np.array([[0.6, 0.8]], np.float32), (100, 1))
    assert recall_at(same, same, 1) <= 0.01
    assert recall_at(same, same, 10) <= 0.1


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_the_rate_rises_and_then_falls_as_a_cosine(warmup):
    assert rate_share(warmup, warmup) == 1.0
    assert rate_share(1.0, warmup) == pytest.approx(0.0)
    assert rate_share(1.7, warmup) == pytest.approx(0.0)
    assert rate_share((1 + warmup) / 2, warmup) == pytest.approx(0.5)
    assert rate_share(warmup + (1 - warmup) / 3, warmup) == pytest.approx(0.75)
    if warmup:
        assert rate_share(warmup / 2, warmup) == pytest.approx(0.5)
        assert 0 < rate_share(0.0, warmup) < 0.02
    shares = [rate_share(warmup + (1 - warmup) * step / 50, warmup) for step in range(51)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size_px": 50}, "multiple of 32"),
        ({"size_px": 0}, "size_px"),
        ({"batch_size": 1}, "batch_size"),
        ({"max_epochs": 0}, "max_epochs"),
        ({"max_seconds": 0}, "max_seconds"),
        ({"max_seconds": float("nan")}, "max_seconds"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"max_shift": 0.2}, "max_shift"),
        ({"margin": -0.5}, "margin"),
        ({"epochs": 3}, "epochs"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(wrong, says):
    with pytest.raises(ValidationError) as caught:
        TrainSettings(**wrong)
    assert says in str(caught.value)


def test_windows_of_triplets_are_those_of_their_places(helsinki, regions):
    data = TripletWindows(regions, "test", 32, 1 << 28)
    index = np.array([3, 0, 5])
    windows = data.windows(index)
    assert windows.shape == (9, 3, 32, 32)
    from geobacter_core.tiles.window import WindowReader

    lonlat = helsinki.triplets.lonlat("test")[index]
    reader = WindowReader(helsinki.cache, 200.0, 32)
    for role in range(3):
        expected = reader.windows(lonlat[:, role, 0], lonlat[:, role, 1])
        np.testing.assert_array_equal(windows[3 * role : 3 * role + 3].numpy(), expected)


def test_windows_of_several_regions_come_in_the_order_of_the_triplets(helsinki, white_cache, regions):
    """A second region, all white: its triplets stay where they were asked for."""
    white = RegionData("white", helsinki.triplets, white_cache)
    data = TripletWindows([*regions, white], "test", 32, 1 << 28)
    n = len(data) // 2
    assert data.region.tolist() == [0] * n + [1] * n
    windows = data.windows(np.array([n + 1, 0, n, 1])).reshape(3, 4, 3, 32, 32)
    assert int(windows[:, [0, 2]].min()) == 255
    assert int(windows[:, [1, 3]].amin(dim=(0, 2, 3, 4)).max()) < 255
    alone = TripletWindows(regions, "test", 32, 1 << 28).windows(np.array([0, 1])).reshape(3, 2, 3, 32, 32)
    assert torch.equal(windows[:, [1, 3]], alone)


def test_an_epoch_shows_every_triplet_once_in_whole_batches(regions):
    data = TripletWindows(regions, "train", 32, 1 << 28)
    batches = list(data.batches(20, np.random.default_rng(0), torch.device("cpu"), 0.1))
    assert len(batches) == len(data) // 20
    assert {tuple(batch.shape) for batch in batches} == {(60, 3, 32, 32)}
    again = next(iter(data.batches(20, np.random.default_rng(0), torch.device("cpu"), 0.1)))
    assert torch.equal(again, batches[0])


def test_a_damaged_chunk_stops_the_epoch_with_its_own_error(own_helsinki):
    from geobacter_core.errors import TileCacheError

    data = TripletWindows([RegionData("h", own_helsinki.triplets, own_helsinki.cache)], "train", 32, 1 << 28)
    for path in own_helsinki.tiles_folder.glob("*.parquet"):
        path.unlink()
    with pytest.raises(TileCacheError, match="is missing"):
        list(data.batches(20, np.random.default_rng(0), torch.device("cpu"), 0.1))


def test_three_steps_of_training(regions):
    steps, epochs = [], []
    n_train = len(regions[0].triplets.lonlat("train"))
    trained = train(regions, TINY, steps.append, epochs.append)
    assert trained.n_steps == len(steps) == n_train // 32 == 3
    assert [step.step for step in steps] == [1, 2, 3]
    assert all(0 <= step.loss <= 4.5 and 0 <= step.active_share <= 1 and step.images_per_s > 0 for step in steps)
    assert [epoch.epoch for epoch in epochs] == [0, 1]
    assert epochs[0].scores == trained.random
    assert epochs[1].scores == trained.scores
    assert trained.scores.n == len(regions[0].triplets.lonlat("test"))
    assert not trained.network.training
    before = random_network(3, 8, TINY.seed).state_dict()
    after = trained.network.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in ("head.weight", "backbone.conv1.weight"))


def test_training_ends_with_its_seconds(regions):
    settings = TINY.model_copy(update={"max_seconds": 0.001, "max_epochs": 50})
    trained = train(regions, settings)
    assert (trained.n_steps, trained.n_epochs) == (1, 1)
    # The same seed and the same steps: the same weights.
    assert weights_digest(train(regions, settings).network) == weights_digest(trained.network)


def test_a_batch_larger_than_the_data_is_cut_to_it(regions):
    trained = train(regions, TINY.model_copy(update={"batch_size": 4096}))
    assert trained.n_steps == 1


def test_scores_of_encoders_with_known_answers(regions):
    test = TestWindows(regions, 32)
    n = len(test)
    assert n == len(regions[0].triplets.lonlat("test"))
    perfect = iter([np.eye(n, dtype=np.float32), np.eye(n, dtype=np.float32), -np.eye(n, dtype=np.float32)])
    scores = test.score(lambda windows: next(perfect))
    assert (scores.triplet_accuracy, scores.recall_at_1, scores.recall_at_10, scores.n) == (1.0, 1.0, 1.0, n)
    one = np.tile(np.float32([[1, 0]]), (n, 1))
    assert test.score(lambda windows: one).triplet_accuracy == 0.0
    network = random_network(3, 8, 1)
    assert 0 <= test.score(encode_with(network, torch.device("cpu"))).triplet_accuracy <= 1
    assert set(scores.as_metrics("test_")) == {"test_triplet_accuracy", "test_recall_at_1", "test_recall_at_10"}


def with_metadata(region, **changes):
    triplets = dataclasses.replace(region.triplets, metadata={**region.triplets.metadata, **changes})
    return dataclasses.replace(region, triplets=triplets)


def test_regions_that_do_not_fit_together_are_refused(regions):
    (helsinki,) = regions
    assert check_regions(regions) == ("carto", 200.0, 3)
    with pytest.raises(EncoderError, match=r"no region to train on. Set train = true"):
        check_regions([])
    with pytest.raises(EncoderError, match=r"Region 'helsinki': its triplets were drawn from other tiles.*Materialise"):
        check_regions([with_metadata(helsinki, tiles="other")])
    other = dataclasses.replace(with_metadata(helsinki, size_m=400.0), name="kotka")
    with pytest.raises(EncoderError, match=r"Region 'kotka' has .*400.*region 'helsinki'.*same settings"):
        check_regions([helsinki, other])


def test_too_few_triplets_are_refused(regions):
    (helsinki,) = regions
    empty = dataclasses.replace(helsinki.triplets, table=helsinki.triplets.table.slice(0, 1))
    with pytest.raises(EncoderError, match=r"Fewer than two train triplets. Draw more"):
        train([dataclasses.replace(helsinki, triplets=empty)], TINY)
