"""Encoders at work: the same as the network that they come from, for a window in any company, one colour once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from geobacter_core.encoder.device import images_a_pass
from geobacter_core.encoder.fused import MaxPool, folded, fuse_for_cpu
from geobacter_core.encoder.inference import Inference, _covered, _merged
from geobacter_core.encoder.network import NetworkSpec, embed, random_network

CPU = torch.device("cpu")
SIDE = 32
SPECS = {
    "one scale": NetworkSpec("small", 3, 1, 33),
    "one channel": NetworkSpec("small", 1, 1, 8),
    "context": NetworkSpec("small", 3, 2, 47, shares=True),
    "surroundings": NetworkSpec("small", 5, 2, 96, shares=True, surroundings=True),
    "masks": NetworkSpec("small", 12, 2, 160, shares=True, surroundings=True),
    "resnet18": NetworkSpec("resnet18", 3, 2, 64, shares=True, surroundings=True),
}


def windows_of(spec, n, seed=0):
    """Noise, in which every third window has a scale of one colour, and every ninth only such."""
    rng = np.random.default_rng(seed)
    windows = rng.integers(0, 256, (n, spec.n_planes, SIDE, SIDE), dtype=np.uint8)
    for index in range(0, n, 3):
        planes = slice(0, spec.n_planes if index % 9 == 0 else spec.n_channels)
        windows[index, planes] = rng.integers(0, 2, (spec.n_planes, 1, 1), dtype=np.uint8)[planes]
    return torch.from_numpy(windows)


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return torch.device(request.param)


@pytest.fixture(scope="module", params=SPECS, ids=list(SPECS))
def prepared(request, device):
    network = random_network(SPECS[request.param], 3).eval()
    network.set_normalisation(windows_of(network.spec, 40, seed=9))
    return network, Inference(network, SIDE, device)


def test_embeddings_are_those_of_the_network(prepared):
    network, inference = prepared
    windows = windows_of(network.spec, 50)
    with torch.inference_mode():
        expected = embed(network, windows, CPU).numpy()
    found = inference(windows)
    assert found.shape == (50, network.spec.embedding_dim)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert (found * expected).sum(axis=1).min() > 0.9995  # rounding in bfloat16, where the processor has it
    n_learnt = network.spec.embedding_dim - network.spec.share_dim
    np.testing.assert_allclose(found[:, n_learnt:], expected[:, n_learnt:], atol=1e-6)  # what is covered, in float32


def test_a_window_has_the_same_bits_alone_and_in_any_company(prepared, device):
    network, inference = prepared
    windows = windows_of(network.spec, 50)
    together = inference(windows)
    order = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(inference(windows[order]), together[order])
    fresh = Inference(network, SIDE, device)  # which does not remember any colour
    for index in (0, 1, 3, 49):
        np.testing.assert_array_equal(fresh(windows[index : index + 1])[0], together[index])


@pytest.mark.parametrize("side", [32, 96, 512])
def test_what_planes_cover_is_exact_whatever_their_company(side):
    """To all digits that float32 has: of masks and of noise, and where values and their squares add up to the most."""
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (9, side, side), dtype=np.uint8)
    planes[1] = rng.integers(0, 2, (side, side)) * 255
    planes[2], planes[3] = 255, 7
    planes[2, 0, 0] = 254
    planes[3, side // 2, side // 2] = 8
    quarter = side // 4
    whole, middle = planes.reshape(9, -1), planes[:, quarter:-quarter, quarter:-quarter].reshape(9, -1)
    expected = np.stack([figure(part, axis=1) for part in (whole, middle) for figure in (np.mean, np.std)], axis=1)
    found = _covered(torch.from_numpy(planes)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=0)
    assert found[2, 3] == 0  # its middle is of one value
    n_before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for index in range(9):
            np.testing.assert_array_equal(_covered(torch.from_numpy(planes[index : index + 1]))[0], found[index])
    finally:
        torch.set_num_threads(n_before)


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4, 6, 7, 12, 18])
def test_planes_become_pixels(n_channels):
    planes = np.random.default_rng(0).integers(0, 256, (n_channels, 5, 9), dtype=np.uint8)
    np.testing.assert_array_equal(_merged(planes).reshape(5, 9, n_channels), np.moveaxis(planes, 0, -1))


def test_windows_may_be_an_array_a_list_or_none_at_all(prepared):
    network, inference = prepared
    windows = windows_of(network.spec, 20)
    expected = inference(windows)
    np.testing.assert_array_equal(inference(windows.numpy()), expected)
    np.testing.assert_array_equal(inference([*windows.numpy()]), expected)
    assert inference(windows[:0]).shape == (0, network.spec.embedding_dim)


def test_threads_at_once_get_what_one_gets(prepared, device):
    network, inference = prepared
    windows = windows_of(network.spec, 60, seed=4)
    expected = inference(windows)
    fresh = Inference(network, SIDE, device)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(fresh, [windows] * 8):
            np.testing.assert_array_equal(found, expected)


@pytest.fixture
def counted(monkeypatch):
    """An encoder, and the rows of each of its passes."""
    inference = Inference(random_network(SPECS["surroundings"], 3).eval(), SIDE, CPU)
    passes = []
    original = Inference._passed
    monkeypatch.setattr(
        Inference,
        "_passed",
        lambda self, images, rows: passes.append(rows) or original(self, images, rows),
    )
    return inference, passes


def test_images_of_one_colour_are_looked_at_once(counted):
    """Two colours, of which the second is seen later, at the two scales learnt from: 2 images are new each time."""
    inference, passes = counted
    windows = torch.zeros((90, 15, SIDE, SIDE), dtype=torch.uint8)
    inference(windows)
    assert sorted(row % 2 for rows in passes for row in rows) == [0, 1]
    passes.clear()
    windows[40:] = 255
    inference(windows)
    assert sum(map(len, passes)) == 2
    passes.clear()
    inference(windows)
    assert passes == []


def test_one_other_pixel_makes_another_image(counted):
    inference, passes = counted
    windows = torch.full((2, 15, SIDE, SIDE), 7, dtype=torch.uint8)
    windows[1, 4, 3, 5] = 8  # in the last channel of the window itself
    first, second = inference(windows)
    assert sum(map(len, passes)) == 3
    assert np.abs(first - second).max() > 0


def test_passes_are_full_but_for_the_last_of_a_kind(counted):
    inference, passes = counted
    size = images_a_pass(CPU)
    inference(torch.randint(0, 256, (50, 15, SIDE, SIDE), dtype=torch.uint8))
    assert [len(rows) for rows in passes] == [size, size, size, 100 - 3 * size]


def test_a_pass_is_filled_up_to_the_next_size_only(monkeypatch):
    inference = Inference(random_network(SPECS["one scale"], 3).eval(), SIDE, CPU)
    assert inference._sizes[-1] == images_a_pass(CPU)
    sizes, look = [], inference._look
    monkeypatch.setattr(inference, "_look", lambda pixels, scale: sizes.append(len(pixels)) or look(pixels, scale))
    for n in (1, 8, 9, 31, 33):
        inference(torch.randint(0, 256, (n, 3, SIDE, SIDE), dtype=torch.uint8))
    next_size = [min(size for size in inference._sizes if size >= n) for n in (1, 8, 9, 31, 32, 1)]
    assert sizes == next_size


def test_sizes_in_which_an_image_has_other_bits_are_not_used(monkeypatch):
    """As a kernel might that adds up in another order where there are few images."""
    traced = Inference._traced

    def rounding(inference, module, *inputs):
        graph = traced(inference, module, *inputs)
        return lambda *given: graph(*given) * (1 + 1e-6 * (len(given[0]) < 24))

    monkeypatch.setattr(Inference, "_traced", rounding)
    inference = Inference(random_network(SPECS["one scale"], 3).eval(), SIDE, CPU)
    assert [size for size in inference._sizes if size < 24] == []
    windows = windows_of(SPECS["one scale"], 50)
    together = inference(windows)
    for index in (1, 49):
        np.testing.assert_array_equal(inference(windows[index : index + 1])[0], together[index])


def test_a_network_that_computes_no_numbers_says_so_by_its_embeddings():
    """As after a training that diverged: its passes are not even equal to themselves."""
    network = random_network(SPECS["one scale"], 3).eval()
    network.heads[0].running_mean.fill_(float("nan"))
    inference = Inference(network, SIDE, CPU)
    assert inference._sizes == [images_a_pass(CPU)]
    assert np.isnan(inference(windows_of(network.spec, 2))).all()


@pytest.mark.parametrize("architecture", ["small", "resnet18", "resnet50"])
def test_a_fused_backbone_computes_what_it_did(architecture):
    network = random_network(NetworkSpec(architecture, 3, 1, 33), 3).eval()
    for module in network.modules():  # as if it had learnt
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.1)
            torch.nn.init.normal_(module.bias, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 3, SIDE, SIDE)).astype(np.float32))
    backbone = folded(network.backbone)
    fuse_for_cpu(backbone, images[:4])
    with torch.inference_mode():
        expected, found = network.backbone(images), backbone(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    if torch.backends.mkldnn.is_available():
        apart = torch.nn.Conv2d | torch.nn.ReLU | torch.nn.BatchNorm2d
        left = [module for module in backbone.modules() if isinstance(module, apart)]
        assert left == []


@pytest.mark.parametrize("sides", [(1, 2), (2, 5), (16, 16), (15, 8), (33, 31)])
def test_it_pools_as_torch_does(sides):
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 7, *sides)).astype(np.float32))
    assert torch.equal(MaxPool()(features), torch.nn.functional.max_pool2d(features, 3, 2, 1))
