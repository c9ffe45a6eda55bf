"""A network at work: windows to embeddings, scale by scale, in passes of one size.

What each scale of a window adds to the embedding follows from its own pixels. So a pass takes single images, of any
scale and of any window; and an image of one colour, as most of a forest or a lake are, is encoded once and remembered.
Passes are traced graphs, which run without Python's lock: other threads cut windows or answer requests meanwhile.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from geobacter_core.encoder.device import autocast, images_a_pass
from geobacter_core.encoder.network import Embeddings, EncoderNetwork, coverage, for_inference, normalised

_Pass = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
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
        self._look = self._traced(_Look(for_inference(network).to(device), device, self._width))
        self._cover = self._traced(_Cover(self._width))
        self._of_one_colour: dict[bytes, NDArray[np.float32]] = {}

    def __call__(self, windows: torch.Tensor) -> Embeddings:
        """Embed windows, uint8 `[N, S·C, size_px, size_px]`, as float32 `[N, D]`, each row of length 1."""
        spec, n_scales = self._network.spec, self._network.spec.n_scales_shown
        images = windows.contiguous().view(-1, spec.n_channels, self._size_px, self._size_px)
        with torch.inference_mode():
            added = torch.from_numpy(self._added(images)).view(-1, n_scales, self._n_added)
            parts = [added[:, number, :dim] for number, dim in enumerate(spec.part_dims)]
            covered = None
            if spec.shares:
                figures = added[:, :, self._width :].reshape(-1, n_scales, 4, spec.n_channels)
                whole, middle = figures[:, :, :2], figures[:, : spec.n_scales, 2:]
                covered = torch.cat([each.transpose(1, 2).flatten(1) for each in (whole, middle)], dim=1)
            return self._network.assembled(parts, covered).numpy()

    def _added(self, images: torch.Tensor) -> NDArray[np.float32]:
        """What each image adds, as `_Look` gives it, `[M, A]`; the images of a window follow each other."""
        spec, known = self._network.spec, self._of_one_colour
        added = np.zeros((len(images), self._n_added), np.float32)
        colours = _of_one_colour(images.numpy(), spec.n_scales_shown)
        new = {colour: index for index, colour in colours.items() if colour not in known}
        asked = [index for index in range(len(images)) if index not in colours or new.get(colours[index]) == index]
        for look, is_learnt in ((self._look, True), (self._cover, False)):
            rows = [index for index in asked if (index % spec.n_scales_shown < spec.n_scales) == is_learnt]
            if is_learnt or spec.shares:
                for begin in range(0, len(rows), self._size):
                    some = rows[begin : begin + self._size]
                    added[some] = self._passed(look, images, some)
        for index, colour in colours.items():
            added[index] = added[new[colour]] if colour in new else known[colour]
        if len(known) < _REMEMBERED:
            known.update({colour: added[index].copy() for colour, index in new.items()})
        return added

    def _passed(self, look: _Pass, images: torch.Tensor, rows: list[int]) -> NDArray[np.float32]:
        """A pass over some rows; one that is not full is filled up with the first image."""
        spec = self._network.spec
        wanted = torch.tensor(rows + [0] * (self._size - len(rows)))
        batch = images.index_select(0, wanted).to(self._device)  # copies rows; by an index each number is looked up
        scale = (wanted % spec.n_scales_shown % spec.n_scales).to(self._device)
        return look(batch, scale).cpu().numpy()[: len(rows)]

    def _traced(self, module: nn.Module) -> _Pass:
        if self._device.type not in ("cpu", "cuda"):
            return module
        shape = (self._size, self._network.spec.n_channels, self._size_px, self._size_px)
        images = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        scale = torch.zeros(self._size, dtype=torch.int64, device=self._device)
        with warnings.catch_warnings(), torch.inference_mode():
            # What is recommended instead, compiled or exported graphs, needs a C++ compiler or holds Python's lock.
            warnings.filterwarnings("ignore", ".*is deprecated", FutureWarning)
            graph = torch.jit.trace(module.eval(), (images, scale), check_trace=False)  # type: ignore[no-untyped-call]
            traced: _Pass = torch.jit.freeze(graph)
            for _ in range(_WARM_UP):
                traced(images, scale)
        return traced


class _Look(nn.Module):
    """Single images to what they add to an embedding: what is learnt of them and, with shares, their coverage."""

    def __init__(self, network: EncoderNetwork, device: torch.device, width: int) -> None:
        super().__init__()
        self.network = network
        self._device = device
        self._width = width

    def forward(self, images: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Of images, uint8 `[M, C, H, W]`, and the number of each one's scale `[M]`: float32 `[M, A]`."""
        network, spec = self.network, self.network.spec
        mean, std = (each.view(spec.n_scales, spec.n_channels, 1, 1)[scale] for each in (network.mean, network.std))
        with autocast(self._device):
            features = network.backbone(normalised(images, mean, std))
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


class _Cover(nn.Module):
    """Of images of the surroundings, of which nothing is learnt, the coverage, at its place in `[M, A]`."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first = first

    def forward(self, images: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Of images, uint8 `[M, C, H, W]`, of whatever scale: float32 `[M, A]`."""
        return functional.pad(coverage(images, 0), (self._first, 2 * images.shape[1]))


def _of_one_colour(images: NDArray[np.uint8], n_scales: int) -> dict[int, bytes]:
    """Of images `[M, C, H, W]` the rows of those whose every channel has one value, with their scale and colour."""
    pixels = images.reshape(*images.shape[:2], images.shape[2] * images.shape[3])
    first, middle = pixels[:, :, 0], pixels.shape[2] // 2
    is_likely = ((pixels[:, :, -1] == first) & (pixels[:, :, middle + images.shape[3] // 2] == first)).all(axis=1)
    return {
        index: bytes([index % n_scales]) + first[index].tobytes()
        for index in np.flatnonzero(is_likely).tolist()
        if (pixels[index] == first[index, :, None]).all()
    }
