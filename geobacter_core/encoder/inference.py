"""A network at work: windows to embeddings, scale by scale, in passes of a few sizes.

What each scale of a window adds to the embedding follows from its own pixels. So a pass takes single images, of any
scale and of any window; and an image of one colour, as most of a forest or a lake are, is encoded once and remembered.
Coverage is told of each plane by itself, likewise.
Passes are traced graphs, which run without Python's lock: other threads cut windows or answer requests meanwhile.
"""

import copy
import warnings
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from geobacter_core.encoder.device import autocast, fast_type, images_a_pass
from geobacter_core.encoder.fused import folded, fuse_for_cpu
from geobacter_core.encoder.network import (
    Embeddings,
    EncoderNetwork,
    Windows,
    mean_and_deviation,
    middle_of,
    normalised,
)

_Pass = Callable[..., torch.Tensor]
_REMEMBERED = 10_000
_ALIGNED = 4
"""Where a row does not begin at a multiple of 4 numbers, a GPU adds it up in another order, and rounds otherwise."""
_SIZE_STEP = 8
"""Between the sizes of passes; each has kernels of its own."""
_PLANES_ON_CPU, _PLANES_ON_GPU = 128, 2048
"""That coverage is told of at once: as floats they just fit a CPU's cache."""
_LEAST_PLANES = 8
"""Of one plane alone threads share the sum, and round otherwise than of several."""
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
        own = copy.deepcopy(network.eval())
        own.backbone = folded(own.backbone)
        if device.type == "cpu":
            fuse_for_cpu(own.backbone, fast_type(device))
        shape = self._size, size_px, size_px, spec.n_channels
        pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8).to(device)
        scale = torch.arange(self._size, device=device) % spec.n_scales
        self._look = self._traced(_Look(own.to(device), device, self._width), pixels, scale)
        self._sizes = self._sizes_alike(pixels, scale)
        self._n_planes = _PLANES_ON_CPU if device.type == "cpu" else _PLANES_ON_GPU
        self._cover = self._traced(_Cover(), pixels.new_zeros((self._n_planes, size_px, size_px)))
        self._of_one_colour: dict[bytes, NDArray[np.float32]] = {}

    def _sizes_alike(self, pixels: torch.Tensor, scale: torch.Tensor) -> list[int]:
        """The sizes of passes, from small to full, in which these images have the same bits, wherever they are in it.

        On CPUs with bfloat16 all have. What is computed otherwise shows in noise: each pass rounds millions of numbers.
        """
        smaller: list[int] = []
        if self._device.type == "cpu":
            with torch.inference_mode():
                full = self._look(pixels, scale)
                smaller = [
                    size
                    for size in range(_SIZE_STEP, self._size, _SIZE_STEP)
                    if torch.equal(self._look(pixels[-size:], scale[-size:]), full[-size:])
                ]
        return [*smaller, self._size]

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
        """What each image of windows, uint8 `[S, C, H, W]` each, adds, learnt and coverage, `[N·S, A]`."""
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
        """A pass over some rows, filled up with the first image to the next size of a pass."""
        spec = self._network.spec
        n_filled = next(size for size in self._sizes if size >= len(rows)) if is_learnt else len(rows)
        wanted = rows + [0] * (n_filled - len(rows))
        planes = torch.stack([images[row] for row in wanted], dim=1)  # by channels: OpenCV merges them
        added = np.zeros((len(rows), self._n_added), np.float32)
        if is_learnt:
            scale = (torch.tensor(wanted) % spec.n_scales_shown).to(self._device)
            added[:, : self._width] = self._look(self._by_pixels(planes), scale).cpu().numpy()[: len(rows)]
        if spec.shares:
            added[:, self._width :] = self._covered(planes[:, : len(rows)])
        return added

    def _by_pixels(self, planes: torch.Tensor) -> torch.Tensor:
        """Images by channels, uint8 `[C, M, H, W]`, as `[M, H, W, C]` on the device."""
        if self._device.type != "cpu":
            return planes.to(self._device).permute(1, 2, 3, 0).contiguous()
        n_channels, n, height, width = planes.shape
        pixels = np.empty((n * height, width, n_channels), np.uint8)
        # In a fourth of the time that torch takes; all images at once, as each call waits for Python's lock.
        cv2.merge([*planes.numpy().reshape(n_channels, n * height, width)], pixels)
        return torch.from_numpy(pixels).view(n, height, width, n_channels)

    def _covered(self, planes: torch.Tensor) -> NDArray[np.float32]:
        """How much each channel of images covers, uint8 `[C, M, H, W]`: `[M, 4·C]`, in the order of `_Cover`.

        Most planes of a style of masks show nothing, or one thing everywhere: to see that takes little time.
        """
        n_channels, n = planes.shape[:2]
        flat = planes.flatten(2)
        least = flat.amin(dim=2)
        figures = np.zeros((4, n_channels, n), np.float32)
        figures[0] = figures[2] = least.numpy()
        varies = flat.amax(dim=2) != least
        moving = planes.numpy()[varies.numpy()]
        found = []
        for begin in range(0, len(moving), self._n_planes):
            some = torch.from_numpy(moving[begin : begin + self._n_planes])
            n_some = len(some)
            n_filled = max(n_some, _LEAST_PLANES) if self._device.type == "cpu" else self._n_planes
            filled = functional.pad(some, (0, 0, 0, 0, 0, n_filled - n_some)).to(self._device)
            found.append(self._cover(filled).cpu().numpy()[:, :n_some])
        if found:
            figures[:, varies.numpy()] = np.concatenate(found, axis=1)
        return figures.transpose(2, 0, 1).reshape(n, -1)

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
    """Single images to what is learnt of them."""

    def __init__(self, network: EncoderNetwork, device: torch.device, width: int) -> None:
        super().__init__()
        self.network = network
        self._device = device
        self._width = width

    def forward(self, pixels: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The part of an embedding that is learnt at each image's scale, float32 `[M, L]`, 0 beyond its length.

        Args:
            pixels: Images, uint8 `[M, H, W, C]`.
            scale: The number of each one's scale, `[M]`.
        """
        network, spec = self.network, self.network.spec
        mean, std = (each.view(spec.n_scales, spec.n_channels, 1, 1)[scale] for each in (network.mean, network.std))
        with autocast(self._device):
            features = network.backbone(normalised(pixels, mean, std).to(fast_type(self._device)))
        # By the heads of all scales, which is little work; and then each image has that of its own.
        every = torch.stack(
            [
                functional.pad(head(features.float())[:, :dim], (0, self._width - dim))
                for head, dim in zip(network.heads, spec.part_dims, strict=True)
            ]
        )
        return functional.normalize(every[scale, torch.arange(pixels.shape[0], device=pixels.device)], dim=1)


class _Cover(nn.Module):
    """Planes of any channel and scale to how much of each is covered."""

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """Mean and deviation, and these of the middle, of planes, uint8 `[K, H, W]`: float32 `[4, K]`."""
        both = [mean_and_deviation(part[None]) for part in (planes, middle_of(planes))]
        return torch.cat(both).view(4, -1)


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
