"""The encoder: its networks, its figures, its settings, and the batches it learns from."""

import dataclasses
import itertools
import threading

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from geobacter_core.encoder.data import RegionData, TripletWindows, WindowSpec, check_regions
from geobacter_core.encoder.evaluate import TestWindows, recall_at
from geobacter_core.encoder.network import NetworkSpec, random_network, untrained_like, weights_digest
from geobacter_core.encoder.settings import ARCHITECTURES, TrainSettings
from geobacter_core.encoder.train import encode_with, rate_share, train
from geobacter_core.errors import EncoderError, TileCacheError
from geobacter_core.geo import ground_distance_m
from geobacter_core.tiles.window import Scales, WindowReader

CPU = torch.device("cpu")
SMALL = NetworkSpec("small", 3, 1, 8)
TINY = TrainSettings(network="small", size_px=32, embedding_dim=24, batch_size=20, max_steps=2)


@pytest.fixture(scope="module")
def regions(helsinki):
    return [RegionData("helsinki", helsinki.triplets, helsinki.cache)]


def noise(n, n_channels=3, side=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, n_channels, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("architecture", "n_channels", "n_scales", "dim", "side"),
    [*((name, 12, 2, 64, 32) for name in ARCHITECTURES), ("small", 1, 1, 2, 96), ("resnet18", 3, 1, 16, 96)],
)
def test_networks_give_float32_vectors_of_length_1(architecture, n_channels, n_scales, dim, side):
    network = random_network(NetworkSpec(architecture, n_channels, n_scales, dim), seed=1).eval()
    for n in (1, 3):
        embedding = network(noise(n, n_channels * n_scales, side))
        assert embedding.shape == (n, dim)
        assert embedding.dtype == torch.float32
        np.testing.assert_allclose(embedding.detach().norm(dim=1), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "least", "most"),
    [("small", 0.2e6, 1e6), ("resnet18", 11e6, 12e6), ("resnet34", 21e6, 22e6), ("resnet50", 23e6, 26e6)],
)
def test_networks_have_as_many_weights_as_they_say(architecture, least, most):
    network = random_network(NetworkSpec(architecture, 12, 1, 16), seed=1)
    assert least <= sum(weight.numel() for weight in network.parameters()) <= most


def test_a_window_and_its_context_are_seen_with_the_same_weights():
    """The context adds channels to the input and features to the output, and nothing to the backbone."""
    one = random_network(NetworkSpec("small", 3, 1, 8), seed=1).eval()
    two = random_network(NetworkSpec("small", 3, 2, 16), seed=1).eval()
    windows = noise(4, 6)
    features = two.features(windows)
    assert features.shape == (4, 2 * 8)
    two.backbone.load_state_dict(one.backbone.state_dict())
    both = two.features(windows)
    torch.testing.assert_close(both, torch.cat([one.features(windows[:, :3]), one.features(windows[:, 3:])], dim=1))


def test_each_scale_has_its_own_part_of_an_embedding():
    network = random_network(NetworkSpec("small", 3, 2, 65), seed=1).eval()
    windows, other = noise(4, 6), noise(4, 6)
    other[:, 3:] = 255 - windows[:, 3:]
    other[:, :3] = windows[:, :3]
    with torch.inference_mode():
        ours, theirs = network(windows), network(other)
    torch.testing.assert_close(ours[:, :33], theirs[:, :33])
    assert float((ours[:, 33:] - theirs[:, 33:]).abs().amax(dim=1).min()) > 1e-4
    for part in (ours[:, :33], ours[:, 33:]):
        torch.testing.assert_close(part.square().sum(dim=1), torch.full((4,), 0.5))


def test_an_embedding_ends_with_the_shares_of_its_channels():
    """Mean and deviation of each channel at each scale and in its middle, as logarithms where they are large."""
    spec = NetworkSpec("small", 2, 2, 24, shares=True)
    assert (spec.share_dim, spec.part_dims) == (16, [4, 4])
    network = random_network(spec, seed=1).eval()
    windows = noise(64, 4) // torch.arange(1, 65)[:, None, None, None]
    network.set_normalisation(windows)
    with torch.inference_mode():
        embeddings = network(windows).numpy()
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    pixels = windows.numpy() / 255
    parts = [pixels, pixels[..., 8:24, 8:24]]
    shares = np.concatenate([made for part in parts for made in (part.mean((2, 3)), part.std((2, 3)))], axis=1)
    shares = np.arcsinh(shares / 0.02)
    expected = (shares - shares.mean(axis=0)) / shares.std(axis=0, ddof=1)
    learnt = np.linalg.norm(embeddings[:, :8], axis=1, keepdims=True) / 0.99**0.5
    np.testing.assert_allclose(embeddings[:, 8:] / learnt * 16**0.5 / 0.1, expected, atol=1e-3)
    assert np.square(embeddings[:, 8:]).sum(axis=1).mean() == pytest.approx(0.01, abs=0.0025)


def test_the_surroundings_tell_their_shares_and_nothing_is_learnt_from_them():
    with_them = NetworkSpec("small", 2, 2, 28, shares=True, surroundings=True)
    assert (with_them.n_planes, with_them.share_dim, with_them.part_dims) == (6, 20, [4, 4])
    network = random_network(with_them, seed=1).eval()
    windows = noise(16, 6)
    network.set_normalisation(windows)
    other = windows.clone()
    other[:, 4:] //= 4
    with torch.inference_mode():
        torch.testing.assert_close(network.features(windows), network.features(windows[:, :4]), rtol=0, atol=0)
        ours, theirs = (network(each) for each in (windows, other))
        ours, theirs = (each / each[:, :8].norm(dim=1, keepdim=True) for each in (ours, theirs))
    # Means and deviations of the six planes, then of the middles of the four that are learnt from.
    is_theirs = np.zeros(28, bool)
    is_theirs[[12, 13, 18, 19]] = True
    differs = (ours - theirs).abs().amax(dim=0).numpy() > 1e-6
    np.testing.assert_array_equal(differs, is_theirs)


@pytest.mark.parametrize(
    ("scales", "surroundings_m"),
    [
        (Scales(100.0, 400.0), 800.0),
        (Scales(200.0), 400.0),
        (Scales(100.0, 400.0, 800.0), 800.0),
        (Scales(100.0, 600.0), 1000.0),
        (Scales(100.0, 1000.0), None),
    ],
)
def test_surroundings_are_twice_as_wide_as_far_as_tiles_reach(scales, surroundings_m):
    assert scales.with_surroundings() == Scales(scales.size_m, scales.context_m, surroundings_m)


def test_surroundings_are_cut_for_embeddings_and_not_for_batches(helsinki, regions):
    spec = check_regions(regions).seen_by(TINY)
    assert spec.scales == Scales(200.0, None, 400.0)
    assert check_regions(regions).seen_by(TINY.model_copy(update={"shares": False})).scales == Scales(200.0)
    data = TripletWindows(regions, "train", 32, 1 << 28, spec.scales)
    plain = TripletWindows(regions, "train", 32, 1 << 28)
    (ours,), (theirs,) = some(data, TINY, 1), some(plain, TINY, 1)
    assert torch.equal(ours.windows, theirs.windows)
    index = np.array([0, 1])
    windows = data.windows(index)
    assert torch.equal(windows[:, :3], plain.windows(index))
    lon, lat = helsinki.triplets.lonlat("train")[index, 0].T
    np.testing.assert_array_equal(windows[:2, 3:], WindowReader(helsinki.cache, 400.0, 32).windows(lon, lat))


def test_an_embedding_too_short_for_its_shares_is_refused():
    with pytest.raises(
        EncoderError, match=r"embedding_dim is 16, of which the shares of 12 channels at 2 scales take 96"
    ):
        NetworkSpec("small", 12, 2, 16, shares=True)


def test_random_weights_of_an_encoder_see_what_it_sees():
    network = random_network(NetworkSpec("small", 3, 1, 16, shares=True), seed=1)
    network.set_normalisation(noise(8))
    again = untrained_like(network, seed=1)
    assert weights_digest(again) == weights_digest(network)
    assert weights_digest(untrained_like(network, seed=2)) != weights_digest(network)
    assert torch.equal(untrained_like(network, seed=2).share_mean, network.share_mean)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = weights_digest(random_network(SMALL, seed=1))
    assert torch.equal(torch.rand(3), expected)
    assert weights_digest(random_network(SMALL, seed=1)) == first
    assert weights_digest(random_network(SMALL, seed=2)) != first
    assert len(first) == 64


def test_normalisation_is_per_channel_and_part_of_the_weights():
    network = random_network(SMALL, seed=1)
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
        ({"network": "resnet101"}, "network"),
        ({"loss": "triplet"}, "loss"),
        ({"temperature": 0}, "temperature"),
        ({"max_scale": 1.2}, "max_scale (1.2) and max_shift (0.1) together reach past the room"),
        ({"n_processes": 0}, "n_processes"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds"),
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


def some(data, settings, n=3, first=0, roles=2, rank=0, n_ranks=1):
    batches = data.batches(first, settings, roles, CPU, rank, n_ranks)
    try:
        return list(itertools.islice(batches, n))
    finally:
        batches.close()


def test_an_epoch_shows_every_triplet_once_in_whole_batches(regions):
    data = TripletWindows(regions, "train", 32, 1 << 28)
    n = data.n_batches(20)
    assert n == len(data) // 20 >= 4
    batches = some(data, TINY.model_copy(update={"echoes": 1}), 2 * n, roles=3)
    assert {tuple(batch.windows.shape) for batch in batches} == {(60, 3, 32, 32)}
    for epoch in (batches[:n], batches[n:]):
        anchors = np.concatenate([batch.xyz[:20] for batch in epoch])
        assert len(np.unique(anchors, axis=0)) == n * 20
    # The next epoch has another order.
    assert not torch.equal(batches[0].xyz, batches[n].xyz)


def test_a_batch_follows_from_its_number_alone(regions):
    data = TripletWindows(regions, "train", 32, 1 << 28)
    batches = some(data, TINY, 12)
    for first in (1, data.n_batches(20), 11):
        (later,) = some(data, TINY, 1, first)
        assert torch.equal(later.windows, batches[first].windows)
        assert torch.equal(later.xyz, batches[first].xyz)
    other = some(data, TINY.model_copy(update={"seed": 2}), 1)
    assert not torch.equal(other[0].windows, batches[0].windows)


def test_windows_that_were_cut_are_shown_again_as_other_symmetries_of_the_square(regions):
    data = TripletWindows(regions, "train", 32, 1 << 28)
    batches = some(data, TINY.model_copy(update={"echoes": 8}), 33)
    # Four batches by turns, eight times each, and then four others.
    for slot in range(4):
        shown = batches[slot:32:4]
        assert all(torch.equal(batch.xyz, shown[0].xyz) for batch in shown)
        square = shown[0].windows
        expected = [torch.rot90(way, turns, (2, 3)) for way in (square, square.mT) for turns in range(4)]
        assert sorted(batch.windows.numpy().tobytes() for batch in shown) == sorted(
            way.numpy().tobytes() for way in expected
        )
    assert len({batch.xyz.numpy().tobytes() for batch in batches}) == 5


def test_windows_that_are_to_stay_north_up_are_shown_once(regions):
    data = TripletWindows(regions, "train", 32, 1 << 28)
    batches = some(data, TINY.model_copy(update={"rotate": False}), data.n_batches(20))
    assert len({batch.xyz.numpy().tobytes() for batch in batches}) == len(batches)


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_shares_of_a_batch_are_the_batch(regions, n_ranks):
    """Whatever the number of processes, they see the same windows: 18 of 20 triplets where 20 do not divide by 3."""
    data = TripletWindows(regions, "train", 32, 1 << 28)
    settings = TINY.model_copy(update={"max_scale": 1.05, "channel_dropout": 0.3})
    (whole,) = some(data, settings, 1, roles=3)
    shares = [some(data, settings, 1, roles=3, rank=rank, n_ranks=n_ranks)[0] for rank in range(n_ranks)]
    n = 20 // n_ranks
    assert {len(share.windows) for share in shares} == {3 * n}
    for role in range(3):
        together = torch.cat([share.windows.split(n)[role] for share in shares])
        assert torch.equal(together, whole.windows.split(20)[role][: n * n_ranks])
    for role in range(2):
        assert torch.equal(
            torch.cat([share.xyz.split(n)[role] for share in shares]), whole.xyz.split(20)[role][: n * n_ranks]
        )


def test_batches_say_where_their_windows_are_and_how_far_positives_lie(regions, helsinki):
    data = TripletWindows(regions, "train", 32, 1 << 28)
    (batch,) = some(data, TINY, 1)
    x, y, z = batch.xyz.double().numpy().T
    lon, lat = np.degrees(np.arctan2(y, x)), np.degrees(np.arcsin(z))
    reader = WindowReader(helsinki.cache, 200.0, 32)
    settings = TINY.model_copy(update={"rotate": False, "max_shift": 0.0})
    (plain,) = some(data, settings, 1)
    expected = reader.windows(lon, lat).astype(int)
    # Not turned, not moved; but the place is known to half a metre, which is a twelfth of a pixel.
    assert np.abs(plain.windows.numpy().astype(int) - expected).mean() < 2
    lonlat = helsinki.triplets.lonlat("train").reshape(-1, 2)
    apart_m = ground_distance_m(lon[:, None], lat[:, None], lonlat[:, 0], lonlat[:, 1]).min(axis=1)
    assert apart_m.max() < 1
    np.testing.assert_allclose(batch.near_m, helsinki.triplets.metadata["distance_m"])


def test_dropped_channels_are_blank_for_a_whole_window(regions):
    data = TripletWindows(regions, "train", 32, 1 << 28)
    (full,) = some(data, TINY, 1)
    (dropped,) = some(data, TINY.model_copy(update={"channel_dropout": 0.4}), 1)
    blank = (dropped.windows == 0).all(dim=(2, 3))
    assert torch.equal(dropped.windows[~blank], full.windows[~blank])
    assert 0.25 < float(blank.float().mean()) < 0.55


def test_several_regions_and_their_contexts_are_mixed_in_one_batch(helsinki, white_cache, regions):
    triplets = dataclasses.replace(
        helsinki.triplets, metadata={**helsinki.triplets.metadata, "size_m": 100.0, "context_m": 200.0}
    )
    both = [RegionData("helsinki", triplets, helsinki.cache), RegionData("white", triplets, white_cache)]
    data = TripletWindows(both, "train", 32, 1 << 28)
    assert data.n_planes == 6
    (batch,) = some(data, TINY.model_copy(update={"batch_size": 64}), 1)
    assert batch.windows.shape == (128, 6, 32, 32)
    is_white = batch.windows.amin(dim=(1, 2, 3)) == 255
    assert 10 < int(is_white[:64].sum()) < 54
    assert torch.equal(is_white[:64], is_white[64:])
    # A window of 200 m at the same view is the context's.
    wide = TripletWindows([regions[0], RegionData("white", helsinki.triplets, white_cache)], "train", 32, 1 << 28)
    (same,) = some(wide, TINY.model_copy(update={"batch_size": 64, "max_shift": 0.0}), 1)
    (context,) = some(data, TINY.model_copy(update={"batch_size": 64, "max_shift": 0.0}), 1)
    assert torch.equal(same.windows, context.windows[:, 3:])


def test_an_epoch_of_many_chunks_takes_some_of_them_at_a_time(regions, monkeypatch):
    from geobacter_core.encoder import data as module

    data = TripletWindows(regions, "train", 32, 1 << 28)
    rng = np.random.default_rng
    np.testing.assert_array_equal(data._order(rng(3)), rng(3).permutation(len(data)))
    chunk = data._chunk = np.arange(len(data)) % 4
    monkeypatch.setattr(module, "_CHUNKS_AT_ONCE", 1)
    order = data._order(rng(3))
    assert sorted(order) == list(range(len(data)))
    assert np.count_nonzero(np.diff(chunk[order])) == len(set(chunk)) - 1
    first = {int(chunk[data._order(rng(seed))[0]]) for seed in range(20)}
    assert first == set(chunk.tolist())


def test_windows_come_in_the_order_of_their_places_whatever_chunks_they_are_in(regions, monkeypatch):
    from geobacter_core.tiles import window as module

    index = np.arange(8)
    expected = TripletWindows(regions, "train", 32, 1 << 28).windows(index)
    monkeypatch.setattr(module, "chunk_numbers", lambda lonlat: (np.arange(len(lonlat))[::-1], np.zeros(len(lonlat))))
    assert torch.equal(TripletWindows(regions, "train", 32, 1 << 28).windows(index), expected)


def test_few_batches_wait_where_they_are_large(regions, monkeypatch):
    """The loading thread stops when as many wait as may: it has then drawn one more, and the next."""
    from geobacter_core.encoder import data as module

    drawn = []

    class Counting(TripletWindows):
        def _batch(self, *args):
            drawn.append(1)
            return super()._batch(*args)

    windows = Counting(regions, "train", 32, 1 << 28)
    n_bytes = 2 * 20 * 3 * 32 * 32
    for bound, n_waiting in ((n_bytes - 1, 1), (2 * n_bytes, 2), (1 << 28, 4)):
        monkeypatch.setattr(module, "_PREFETCHED_BYTES", bound)
        drawn.clear()
        batches = windows.batches(0, TINY.model_copy(update={"echoes": 1}), 2, CPU)
        next(batches)
        deadline = threading.Event()
        for _ in range(100):
            if len(drawn) >= n_waiting + 2:
                break
            deadline.wait(0.05)
        deadline.wait(0.3)
        assert len(drawn) == n_waiting + 2
        batches.close()


def test_the_loading_thread_ends_with_its_consumer(regions):
    data = TripletWindows(regions, "train", 32, 1 << 28)
    batches = data.batches(0, TINY, 2, CPU)
    next(batches)
    assert "window-prefetch" in {thread.name for thread in threading.enumerate()}
    batches.close()
    assert "window-prefetch" not in {thread.name for thread in threading.enumerate()}


def test_a_damaged_chunk_stops_the_batches_with_its_own_error(own_helsinki):
    data = TripletWindows([RegionData("h", own_helsinki.triplets, own_helsinki.cache)], "train", 32, 1 << 28)
    for path in own_helsinki.tiles_folder.glob("*.parquet"):
        path.unlink()
    with pytest.raises(TileCacheError, match="is missing"):
        some(data, TINY)


def test_scores_of_encoders_with_known_answers(regions):
    test = TestWindows(regions, 32)
    n = len(test)
    assert n == len(regions[0].triplets.lonlat("test"))
    perfect = iter([np.eye(n, dtype=np.float32), np.eye(n, dtype=np.float32), -np.eye(n, dtype=np.float32)])
    scores = test.score(lambda windows: next(perfect))
    assert (scores.triplet_accuracy, scores.recall_at_1, scores.recall_at_10, scores.n) == (1.0, 1.0, 1.0, n)
    assert (scores.active_share, scores.alignment) == (0.0, 0.0)  # negatives lie opposite: 4 > 0 + 1.5
    one = np.tile(np.float32([[1, 0]]), (n, 1))
    collapsed = test.score(lambda windows: one)
    assert (collapsed.triplet_accuracy, collapsed.active_share, collapsed.alignment) == (0.0, 1.0, 0.0)
    at_right_angles = iter([one, one[:, ::-1], -one])
    assert test.score(lambda windows: next(at_right_angles)).alignment == 2.0
    network = random_network(SMALL, 1)
    assert 0 <= test.score(encode_with(network, torch.device("cpu"))).triplet_accuracy <= 1
    assert set(scores.as_metrics("")) == {
        "triplet_accuracy", "recall_at_1", "recall_at_10", "active_share", "alignment"
    }  # fmt: skip


def with_metadata(region, **changes):
    triplets = dataclasses.replace(region.triplets, metadata={**region.triplets.metadata, **changes})
    return dataclasses.replace(region, triplets=triplets)


def test_regions_that_do_not_fit_together_are_refused(regions):
    (helsinki,) = regions
    assert check_regions(regions) == WindowSpec("carto", helsinki.cache.manifest.style_version, Scales(200.0), 3)
    with pytest.raises(EncoderError, match=r"no region to train on. Set train = true"):
        check_regions([])
    with pytest.raises(EncoderError, match=r"Region 'helsinki': its triplets were drawn from other tiles.*Materialise"):
        check_regions([with_metadata(helsinki, tiles="other")])
    other = dataclasses.replace(with_metadata(helsinki, size_m=400.0), name="kotka")
    with pytest.raises(EncoderError, match=r"Region 'kotka' has .*400.*region 'helsinki'.*same settings"):
        check_regions([helsinki, other])


@pytest.mark.parametrize(("contexts", "expected"), [((400.0, 300.0), 300.0), ((400.0, 0.0), None), ((0.0, 0.0), None)])
def test_an_encoder_takes_the_context_that_fits_all_its_regions(regions, contexts, expected):
    some = [with_metadata(regions[0], context_m=context_m) for context_m in contexts]
    assert check_regions(some).scales.context_m == expected
    assert TripletWindows(some, "train", 32, 1 << 28).n_planes == (3 if expected is None else 6)


def test_too_few_triplets_are_refused(regions):
    (helsinki,) = regions
    empty = dataclasses.replace(helsinki.triplets, table=helsinki.triplets.table.slice(0, 1))
    with pytest.raises(EncoderError, match=r"A batch of \d train triplets is less than two.*Draw more"):
        train([dataclasses.replace(helsinki, triplets=empty)], TINY)
