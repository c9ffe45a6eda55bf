"""A network at work: windows to embeddings, scale by scale, in passes of a few sizes.

What each scale of a window adds to the embedding follows from its own pixels. So a pass takes single images, of any
scale and of any window; and an image of one colour, as most of a forest or a lake are, is encoded once and remembered.
What each plane covers is told of it alone, too, and exactly, on the CPU.
Passes are traced graphs, which run without Python's lock: other threads cut windows or answer requests meanwhile.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from geobacter_core.encoder.device import autocast, fast_type, images_a_pass
from geobacter_core.encoder.fused import folded, fuse_for_cpu
from geobacter_core.encoder.network import Embeddings, EncoderNetwork, Windows, normalised

_Pass = Callable[..., torch.Tensor]
_REMEMBERED = 10_000
_ALIGNED = 4
"""Where a row does not begin at a multiple of 4 numbers, a GPU adds it up in another order, and rounds otherwise."""
_SIZE_STEP = 8
"""Between the sizes of passes; each has kernels of its own."""
_LOOKED_AT = 16
_LOOKED_AT_BYTES = 4 << 20
"""Windows that are looked at together before the network sees them, and what they take up at most, if not one alone."""
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
        own = copy.deepcopy(network.eval())
        own.backbone = folded(own.backbone)
        shape = self._size, size_px, size_px, spec.n_channels
        pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8).to(device)
        if device.type == "cpu":
            fuse_for_cpu(own.backbone, pixels.permute(0, 3, 1, 2).to(fast_type(device)))
        scale = torch.arange(self._size, device=device) % spec.n_scales
        self._look = self._traced(_Look(own.to(device), device, self._width), pixels, scale)
        self._sizes = self._sizes_alike(pixels, scale)
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
        spec = self._network.spec
        shape = spec.n_scales_shown, spec.n_channels, self._size_px, self._size_px
        with torch.inference_mode():
            scales = [torch.as_tensor(window).contiguous().view(shape) for window in windows]
            figures, colours = self._seen(scales)
            learnt = torch.from_numpy(self._learnt(scales, colours))
            parts = [learnt[:, number, :dim] for number, dim in enumerate(spec.part_dims)]
            if not spec.shares:
                return self._network.assembled(parts, None).numpy()
            whole, middle = figures[..., :2], figures[:, : spec.n_scales, :, 2:]
            covered = torch.cat([each.permute(0, 3, 1, 2).flatten(1) for each in (whole, middle)], dim=1)
            return self._network.assembled(parts, covered).numpy()

    def _seen(self, windows: list[torch.Tensor]) -> tuple[torch.Tensor, dict[int, bytes]]:
        """What can be told of windows, uint8 `[S, C, H, W]` each, without the network.

        Returns:
            How much each channel covers, float32 `[N, S, C, 4]`, by `_covered`, 0 without shares; and scale and colour
            of each image that has but one, by its number among those that are learnt from.
        """
        spec = self._network.spec
        figures = np.zeros((len(windows), spec.n_scales_shown, spec.n_channels, 4), np.float32)
        colours = {}
        step = min(spec.n_windows(_LOOKED_AT_BYTES, self._size_px), _LOOKED_AT)
        for begin in range(0, len(windows), step):
            images = torch.stack(windows[begin : begin + step])
            flat = images.flatten(3)
            # Most planes of a style of masks show nothing, or one thing everywhere: to see that takes little time.
            least, most = flat.amin(dim=3).numpy(), flat.amax(dim=3).numpy()
            varies = least != most
            for number, scale in np.argwhere(~varies[:, : spec.n_scales].any(axis=2)).tolist():
                colours[(begin + number) * spec.n_scales + scale] = bytes([scale]) + least[number, scale].tobytes()
            if spec.shares:
                own = figures[begin : begin + step]
                own[..., 0] = own[..., 2] = least
                own[varies] = _covered(images[torch.from_numpy(varies)]).numpy()
        return torch.from_numpy(figures), colours

    def _learnt(self, windows: Sequence[torch.Tensor], colours: Mapping[int, bytes]) -> NDArray[np.float32]:
        """What is learnt of windows, uint8 `[S, C, H, W]` each, at each scale that is learnt from: `[N, S, L]`."""
        n_scales, known = self._network.spec.n_scales, self._of_one_colour
        images = [image for window in windows for image in window[:n_scales]]
        learnt = np.zeros((len(images), self._width), np.float32)
        new = {colour: index for index, colour in colours.items() if colour not in known}
        asked = [index for index in range(len(images)) if index not in colours or new.get(colours[index]) == index]
        for begin in range(0, len(asked), self._size):
            rows = asked[begin : begin + self._size]
            learnt[rows] = self._passed(images, rows)
        for index, colour in colours.items():
            learnt[index] = learnt[new[colour]] if colour in new else known[colour]
        if len(known) < _REMEMBERED:
            known.update({colour: learnt[index].copy() for colour, index in new.items()})
        return learnt.reshape(len(windows), n_scales, self._width)

    def _passed(self, images: Sequence[torch.Tensor], rows: list[int]) -> NDArray[np.float32]:
        """A pass over some rows, filled up with the first image to the next size of a pass."""
        n_filled = next(size for size in self._sizes if size >= len(rows))
        wanted = rows + [0] * (n_filled - len(rows))
        scale = (torch.tensor(wanted) % self._network.spec.n_scales).to(self._device)
        planes = torch.stack([images[row] for row in wanted], dim=1)  # by channels: OpenCV merges them
        learnt: NDArray[np.float32] = self._look(self._by_pixels(planes), scale).cpu().numpy()
        return learnt[: len(rows)]

    def _by_pixels(self, planes: torch.Tensor) -> torch.Tensor:
        """Images by channels, uint8 `[C, M, H, W]`, as `[M, H, W, C]` on the device."""
        if self._device.type != "cpu":
            return planes.to(self._device).permute(1, 2, 3, 0).contiguous()
        n_channels, n, height, width = planes.shape
        # All images at once, as each call waits for Python's lock.
        pixels = _merged(planes.numpy().reshape(n_channels, n * height, width))
        return torch.from_numpy(pixels).view(n, height, width, n_channels)

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


def _merged(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Planes `[C, H, W]` as pixels, `[H, W, C]`: in a fourth of the time that torch takes, or less."""
    n_channels = len(planes)
    n_together = next(n for n in (4, 2, 1) if n_channels % n == 0)
    if n_together in (1, n_channels):
        return np.asarray(cv2.merge([*planes]), np.uint8)
    # First those that are one number together, which OpenCV does much faster than more; and then these numbers.
    kind = {4: np.int32, 2: np.uint16}[n_together]
    together = [
        np.asarray(cv2.merge([*planes[first : first + n_together]])).view(kind)[..., 0]
        for first in range(0, n_channels, n_together)
    ]
    return np.asarray(cv2.merge(together)).view(np.uint8)


def _covered(planes: torch.Tensor) -> torch.Tensor:
    """How much of each plane is covered: mean and deviation, and these of its middle.

    They are the same in any company and on any machine, as all sums are of whole numbers, and exact: of values and
    their squares, float32 has those of a column of a quarter of the lines, float64 those of all columns.

    Args:
        planes: uint8 `[K, side, side]`, the side a multiple of 4, up to 512.

    Returns:
        float32 `[K, 4]`, 0 to 255.
    """
    side = planes.shape[-1]
    quarter = side // 4
    values = planes.float()

    def added_up() -> torch.Tensor:
        columns = values.view(-1, 4, quarter, side).sum(dim=2).double()
        return torch.stack([part.sum(dim=(1, 2)) for part in (columns, columns[:, 1:3, quarter:-quarter])], dim=1)

    n = torch.tensor([side**2, side**2 // 4], dtype=torch.float64)
    sums = added_up()
    values.square_()
    deviations = (n * added_up() - sums.square()).sqrt() / n
    return torch.stack([sums / n, deviations], dim=2).flatten(1).float()
