"""A network at work: windows to embeddings, scale by scale, in passes of one size.

What each scale of a window adds to the embedding follows from its own pixels. So a pass takes single images, of any
scale and of any window; and an image of one colour, as most of a forest or a lake are, is encoded once and remembered.
Passes are traced graphs, which run without Python's lock: other threads cut windows or answer requests meanwhile.
"""

import warnings
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from geobacter_core.encoder.device import autocast, images_a_pass
from geobacter_core.encoder.network import Embeddings, EncoderNetwork, Windows, coverage, for_inference, normalised

_Pass = Callable[..., torch.Tensor]
_REMEMBERED = 10_000
_ALIGNED = 4
"""Where a row does not begin at a multiple of 4 numbers, a GPU adds it up in another order, and rounds otherwise."""
_WARM_UP = 3
"""Passes after which a traced graph is as fast as it gets."""


class Inference:
    """Windows to embeddings, by many threads at once; a window has the same embedding in any company."""

    def __init__(self, network: EncoderNetwork, size_px: int, device: torch.device) -> None:
        """Prepare for windows of `size_px`, on a device, what a network on the CPU computes; it stays as it is."""
        self._network = network
        self._device = device
        self._size_px = size_px
        self._size = images_a_pass(device)
        spec = network.spec
        self._width = -(-max(spec.part_dims) // _ALIGNED) * _ALIGNED
        self._n_added = self._width + (4 * spec.n_channels if spec.shares else 0)
        own = for_inference(network).to(device)
        if device.type == "cpu":
            _pool_faster(own.backbone)
        images = torch.zeros((self._size, spec.n_channels, size_px, size_px), dtype=torch.uint8, device=device)
        scale = torch.zeros(self._size, dtype=torch.int64, device=device)
        self._look = self._traced(_Look(own, device, self._width), images, images.permute(0, 2, 3, 1), scale)
        self._cover = self._traced(_Cover(self._width), images)
        self._of_one_colour: dict[bytes, NDArray[np.float32]] = {}

    def __call__(self, windows: Windows) -> Embeddings:
        """Embed windows, uint8 `[S·C, size_px, size_px]` each, as float32 `[N, D]`, each row of length 1."""
        spec, n_scales = self._network.spec, self._network.spec.n_scales_shown
        shape = n_scales, spec.n_channels, self._size_px, self._size_px
        with torch.inference_mode():
            scales = [torch.as_tensor(window).contiguous().view(shape) for window in windows]
            added = torch.from_numpy(self._added(scales)).view(-1, n_scales, self._n_added)
            parts = [added[:, number, :dim] for number, dim in enumerate(spec.part_dims)]
            covered = None
            if spec.shares:
                figures = added[:, :, self._width :].reshape(-1, n_scales, 4, spec.n_channels)
                whole, middle = figures[:, :, :2], figures[:, : spec.n_scales, 2:]
                covered = torch.cat([each.transpose(1, 2).flatten(1) for each in (whole, middle)], dim=1)
            return self._network.assembled(parts, covered).numpy()

    def _added(self, windows: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """What each image of windows, uint8 `[S, C, H, W]` each, adds, as `_Look` gives it, `[N·S, A]`."""
        spec, known = self._network.spec, self._of_one_colour
        images = [image for window in windows for image in window]
        added = np.zeros((len(images), self._n_added), np.float32)
        colours = {
            spec.n_scales_shown * number + scale: bytes([scale]) + colour
            for number, window in enumerate(windows)
            for scale, colour in _of_one_colour(window.numpy())
        }
        new = {colour: index for index, colour in colours.items() if colour not in known}
        asked = [index for index in range(len(images)) if index not in colours or new.get(colours[index]) == index]
        for is_learnt in (True, False):
            rows = [index for index in asked if (index % spec.n_scales_shown < spec.n_scales) == is_learnt]
            if is_learnt or spec.shares:
                for begin in range(0, len(rows), self._size):
                    some = rows[begin : begin + self._size]
                    added[some] = self._passed(images, some, is_learnt)
        for index, colour in colours.items():
            added[index] = added[new[colour]] if colour in new else known[colour]
        if len(known) < _REMEMBERED:
            known.update({colour: added[index].copy() for colour, index in new.items()})
        return added

    def _passed(self, images: Sequence[torch.Tensor], rows: list[int], is_learnt: bool) -> NDArray[np.float32]:
        """A pass over some rows; one that is not full is filled up with the first image."""
        spec = self._network.spec
        wanted = rows + [0] * (self._size - len(rows))
        batch = torch.stack([images[row] for row in wanted]).to(self._device)
        if is_learnt:
            pixels = _by_pixels(batch) if self._device.type == "cpu" else batch.permute(0, 2, 3, 1)
            added = self._look(batch, pixels, (torch.tensor(wanted) % spec.n_scales_shown).to(self._device))
        else:
            added = self._cover(batch)
        return added.cpu().numpy()[: len(rows)]

    def _traced(self, module: nn.Module, *inputs: torch.Tensor) -> _Pass:
        if self._device.type not in ("cpu", "cuda"):
            return module
        with warnings.catch_warnings(), torch.inference_mode():
            # What is recommended instead, compiled or exported graphs, needs a C++ compiler or holds Python's lock.
            warnings.filterwarnings("ignore", ".*is deprecated", FutureWarning)
            graph = torch.jit.trace(module.eval(), inputs, check_trace=False)  # type: ignore[no-untyped-call]
            traced: _Pass = torch.jit.freeze(graph)
            for _ in range(_WARM_UP):
                traced(*inputs)
        return traced


class _Look(nn.Module):
    """Single images to what they add to an embedding: what is learnt of them and, with shares, their coverage."""

    def __init__(self, network: EncoderNetwork, device: torch.device, width: int) -> None:
        super().__init__()
        self.network = network
        self._device = device
        self._width = width

    def forward(self, images: torch.Tensor, pixels: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """What images add, float32 `[M, A]`.

        Args:
            images: uint8 `[M, C, H, W]`.
            pixels: The same, `[M, H, W, C]`.
            scale: The number of each one's scale, `[M]`.
        """
        network, spec = self.network, self.network.spec
        mean, std = (each.view(spec.n_scales, spec.n_channels, 1, 1)[scale] for each in (network.mean, network.std))
        with autocast(self._device):
            features = network.backbone(normalised(pixels, mean, std))
        # By the heads of all scales, which is little work; and then each image has that of its own.
        every = torch.stack(
            [
                functional.pad(head(features.float())[:, :dim], (0, self._width - dim))
                for head, dim in zip(network.heads, spec.part_dims, strict=True)
            ]
        )
        learnt = functional.normalize(every[scale, torch.arange(images.shape[0], device=images.device)], dim=1)
        if not spec.shares:
            return learnt
        return torch.cat([learnt, coverage(images, spec.n_channels)], dim=1)


class _MaxPool(nn.Module):
    """The largest of 3 × 3 pixels around every other one, as a ResNet pools, in 0.7 of the time on a CPU."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Of maps, `[N, F, H, W]`: `[N, F, ⌈H/2⌉, ⌈W/2⌉]`."""
        for axis in (2, 3):
            at = (slice(None),) * axis
            largest, odd = features[(*at, slice(0, None, 2))].clone(), features[(*at, slice(1, None, 2))]
            n_after = largest.shape[axis] - 1
            largest.narrow(axis, 0, odd.shape[axis]).clamp_min_(odd)
            largest.narrow(axis, 1, n_after).clamp_min_(odd.narrow(axis, 0, n_after))
            features = largest
        return features


def _pool_faster(backbone: nn.Module) -> None:
    """Have a backbone pool by `_MaxPool` where that gives the same."""
    for name, module in list(backbone.named_modules()):
        if isinstance(module, nn.MaxPool2d) and (module.kernel_size, module.stride, module.padding) == (3, 2, 1):
            backbone.set_submodule(name, _MaxPool())


class _Cover(nn.Module):
    """Of images of the surroundings, of which nothing is learnt, the coverage, at its place in `[M, A]`."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first = first

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Of images, uint8 `[M, C, H, W]`, of whatever scale: float32 `[M, A]`."""
        return functional.pad(coverage(images, 0), (self._first, 2 * images.shape[1]))


def _by_pixels(images: torch.Tensor) -> torch.Tensor:
    """Images, uint8 `[M, C, H, W]`, as `[M, H, W, C]`: by OpenCV in a fourth of the time that torch takes."""
    n, n_channels, height, width = images.shape
    pixels = np.empty((n * height, width, n_channels), np.uint8)
    planes = images.transpose(0, 1).contiguous().numpy()  # of all images: each call waits for Python's lock
    cv2.merge([*planes.reshape(n_channels, n * height, width)], pixels)
    return torch.from_numpy(pixels).view(n, height, width, n_channels)


def _of_one_colour(window: NDArray[np.uint8]) -> list[tuple[int, bytes]]:
    """Which scales of a window `[S, C, H, W]` have but one value in every channel, and these values."""
    first, last, middle = (
        window[:, :, 0, 0],
        window[:, :, -1, -1],
        window[:, :, window.shape[2] // 2, window.shape[3] // 2],
    )
    is_likely = ((last == first) & (middle == first)).all(axis=1)
    return [
        (scale, first[scale].tobytes())
        for scale in (np.flatnonzero(is_likely).tolist() if is_likely.any() else ())
        if (window[scale] == first[scale, :, None, None]).all()
    ]
