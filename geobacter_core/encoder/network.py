"""The networks: from uint8 windows to vectors of length 1, by a ResNet of torchvision or a small one."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from geobacter_core.encoder.device import autocast
from geobacter_core.encoder.settings import Architecture
from geobacter_core.errors import EncoderError

Embeddings = NDArray[np.float32]
Windows = torch.Tensor | NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
"""N windows, `[S·C, H, W]` each: together, or wherever each of them lies."""
_SMALL_WIDTHS = (32, 64, 128)
_SHARE_KNEE = 0.02
"""Shares below it count as they are, those above by their ratio: from none to little is as far as from there to all."""
_LEAST_SHARE_STD = 0.25
_SHARES_LENGTH = 0.1
"""Of an embedding's length 1 (squares add up): a probe finds the shares there; neighbours are chosen by the rest."""
_PIECE = 8
_CALIBRATION_BATCH = 128


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What a network is built from.

    Attributes:
        architecture: Name of the backbone.
        n_channels: C, channels of a window at one scale.
        n_scales: Scales that it learns from: 2 where a wider window, the context, goes with each window; else 1.
        embedding_dim: D.
        shares: Whether an embedding ends with what each channel covers.
        surroundings: Whether windows have another scale, of which the shares are told, and nothing is learnt.
    """

    architecture: Architecture
    n_channels: int
    n_scales: int
    embedding_dim: int
    shares: bool = False
    surroundings: bool = False

    def __post_init__(self) -> None:
        """Refuse too short an embedding."""
        if min(self.part_dims) < 1:
            raise EncoderError(
                f"embedding_dim is {self.embedding_dim}, of which the shares of {self.n_channels} channels at "
                f"{self.n_scales_shown} scales take {self.share_dim}. Raise embedding_dim, or set shares "
                "to false."
            )

    @property
    def share_dim(self) -> int:
        """How many of the D numbers tell what the channels cover: at each scale, and in the middle of those learnt."""
        return 2 * (self.n_planes + self.n_learnt_planes) if self.shares else 0

    @property
    def part_dims(self) -> list[int]:
        """How many of the D numbers are learnt at each scale; at the first one more where they do not divide evenly."""
        each, rest = divmod(self.embedding_dim - self.share_dim, self.n_scales)
        return [each + (number < rest) for number in range(self.n_scales)]

    @property
    def n_scales_shown(self) -> int:
        """Scales of a window, that of the surroundings included."""
        return self.n_scales + self.surroundings

    @property
    def n_planes(self) -> int:
        """Channels of the input: those of all scales, one scale after the other."""
        return self.n_channels * self.n_scales_shown

    @property
    def n_learnt_planes(self) -> int:
        """The first of them, that it learns from."""
        return self.n_channels * self.n_scales

    def n_windows(self, n_bytes: int, size_px: int) -> int:
        """How many windows take up no more than so many bytes; one at least."""
        return max(n_bytes // (self.n_planes * size_px**2), 1)


class EncoderNetwork(nn.Module):
    """Window to embedding: what a convolutional backbone has learnt, and how much each channel covers.

    An embedding is parts side by side: for each scale one that is learnt, all of the same length, and then the shares,
    which have so little of the length that the cosine of two embeddings is nearly the mean of those of the learnt
    parts. The backbone sees every scale with the same weights.

    He, Zhang, Ren, Sun: "Deep residual learning for image recognition" (CVPR 2016). That plain figures go past the
    network to its output is from Cheng et al.: "Wide & deep learning for recommender systems" (DLRS 2016): what near
    places do not share, such as how much of a small window is built up, is what triplets teach to forget.
    Normalisation is part of the network, so that whoever loads it gives it plain pixels.
    """

    mean: torch.Tensor
    std: torch.Tensor
    share_mean: torch.Tensor
    share_std: torch.Tensor

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.n_scales = spec.n_scales
        self.register_buffer("mean", torch.full((1, spec.n_learnt_planes, 1, 1), 127.5))
        self.register_buffer("std", torch.full((1, spec.n_learnt_planes, 1, 1), 64.0))
        if spec.shares:
            self.register_buffer("share_mean", torch.zeros(spec.share_dim))
            self.register_buffer("share_std", torch.ones(spec.share_dim))
        self.backbone, width = _backbone(spec)
        self.heads = nn.ModuleList(_head(spec, width, dim) for dim in spec.part_dims)

    def set_normalisation(self, windows: torch.Tensor) -> None:
        """Take mean and standard deviation per channel from a batch of windows, uint8 `[N, S·C, H, W]`."""
        values = windows[:, : self.spec.n_learnt_planes].float()
        self.mean.copy_(values.mean((0, 2, 3), keepdim=True))
        self.std.copy_(values.std((0, 2, 3), keepdim=True).clamp_min(1.0))
        if self.spec.shares:
            shares = _shares(coverage(windows, self.spec.n_learnt_planes))
            self.share_mean.copy_(shares.mean(dim=0))
            # What is rare must not drown the rest where it comes up.
            self.share_std.copy_(shares.std(dim=0).clamp_min(_LEAST_SHARE_STD))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Embed uint8 `[N, S·C, size_px, size_px]` as float32 `[N, D]`, each row of length 1."""
        return self.joined(self.features(windows), windows)

    def features(self, windows: torch.Tensor) -> torch.Tensor:
        """The backbone's output `[N, S·F]`, of the S scales that it learns from: nearly all of the work."""
        scales = [
            normalised(scale.permute(0, 2, 3, 1), mean, std)
            for scale, mean, std in zip(
                windows[:, : self.spec.n_learnt_planes].chunk(self.n_scales, dim=1),
                self.mean.chunk(self.n_scales, dim=1),
                self.std.chunk(self.n_scales, dim=1),
                strict=True,
            )
        ]
        features = self.backbone(scales[0] if len(scales) == 1 else torch.cat(scales))
        return torch.cat(features.chunk(self.n_scales), dim=1)

    def learnt(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Of features `[N, S·F]` the part of each scale, float32 `[N, spec.part_dims]` of length 1."""
        scales = features.float().chunk(self.n_scales, dim=1)
        return [
            functional.normalize(head(scale)[:, :dim], dim=1)
            for head, scale, dim in zip(self.heads, scales, self.spec.part_dims, strict=True)
        ]

    def joined(self, features: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        """Embeddings of windows whose features are known, float32 `[N, D]` of length 1."""
        covered = coverage(windows, self.spec.n_learnt_planes) if self.spec.shares else None
        return self.assembled(self.learnt(features), covered)

    def assembled(self, parts: list[torch.Tensor], covered: torch.Tensor | None) -> torch.Tensor:
        """Embeddings, float32 `[N, D]` of length 1, of what is learnt at each scale and, with shares, the coverage."""
        learnt = side_by_side(parts)
        if covered is None:
            return learnt
        shares = (_shares(covered) - self.share_mean) / self.share_std
        # Their length is that on average only: brought to it in each row, the shares could no longer be told.
        parts = [learnt * (1 - _SHARES_LENGTH**2) ** 0.5, shares * (_SHARES_LENGTH / self.spec.share_dim**0.5)]
        return functional.normalize(torch.cat(parts, dim=1), dim=1)


def side_by_side(parts: list[torch.Tensor]) -> torch.Tensor:
    """Rows of length 1, from parts whose rows have length 1."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) / len(parts) ** 0.5


def normalised(pixels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Images, uint8 `[N, H, W, C]`, as the backbone takes them, float32 `[N, C, H, W]` in the same order in memory."""
    n, height, width, n_channels = pixels.shape
    # Arranged as bytes, and then by whole lines: pixel by pixel, a few numbers each, takes twice as long.
    lines = pixels.contiguous().view(n, height, width * n_channels).float()
    mean, factor = (each.flatten(1).repeat(1, width)[:, None] for each in (mean, 1 / std))
    lines.sub_(mean).mul_(factor)
    return lines.view(n, height, width, n_channels).permute(0, 3, 1, 2)


def coverage(windows: torch.Tensor, n_learnt: int) -> torch.Tensor:
    """Of windows, uint8 `[N, P, H, W]`, how much each channel covers, float32 `[N, 2·P + 2·n_learnt]`, 0 to 255.

    In a style of masks the mean of a channel is the share of the window that it covers; the deviation is steep where
    that is small. Both of all P channels, and of the first `n_learnt` in the middle, half as wide, too: what lies near
    counts for more. (The middle of the surroundings is the scale before them.)
    """
    # In pieces: as floats, a batch of many channels does not fit the processor's cache.
    is_whole = windows.device.type != "cpu" or torch.compiler.is_exporting()
    pieces = [windows] if is_whole else torch.split(windows, _PIECE)
    covered = []
    for piece in pieces:
        middle = middle_of(piece[:, :n_learnt])
        covered.append(torch.cat([mean_and_deviation(piece), mean_and_deviation(middle)], dim=1))
    return torch.cat(covered)


def _shares(covered: torch.Tensor) -> torch.Tensor:
    """What channels cover, 0 to 255, as an embedding tells it, from 0 up."""
    return torch.asinh(covered / (255 * _SHARE_KNEE))


def middle_of(images: torch.Tensor) -> torch.Tensor:
    """The middle of images `[..., H, W]`, half as wide and high."""
    quarter = images.shape[-1] // 4
    return images[..., quarter:-quarter, quarter:-quarter]


def mean_and_deviation(windows: torch.Tensor) -> torch.Tensor:
    """Of each channel of `[N, C, H, W]`, 0 to 255: `[N, 2 C]`."""
    pixels = windows.flatten(2).float()
    mean = pixels.mean(dim=2)
    # A fraction of the time that std takes.
    deviation = (pixels - mean[..., None]).square().mean(dim=2).sqrt()
    return torch.cat([mean, deviation], dim=1)


def _backbone(spec: NetworkSpec) -> tuple[nn.Module, int]:
    """The backbone and F, the length of its output."""
    if spec.architecture == "small":
        last = -(-max(spec.part_dims) // 2)
        return _small(spec.n_channels, last), 2 * last
    resnet = getattr(torchvision.models, spec.architecture)(weights=None)
    width = int(resnet.fc.in_features)
    resnet.fc = nn.Identity()
    if spec.n_channels != 3:
        stem = resnet.conv1
        resnet.conv1 = nn.Conv2d(spec.n_channels, stem.out_channels, 7, stride=2, padding=3, bias=False)
    return resnet, width


def _head(spec: NetworkSpec, width: int, dim: int) -> nn.Module:
    """From features `[N, width]` to what is learnt of a scale; what goes beyond `dim` columns is left out.

    The small network has as many features as are wanted. They are brought to mean 0 and deviation 1, and that is all:
    what lies further from the loss serves other questions better than what it is asked about (Chen et al., "A simple
    framework for contrastive learning of visual representations", ICML 2020).
    """
    return nn.BatchNorm1d(width, affine=False) if spec.architecture == "small" else nn.Linear(width, dim)


class _MeanAndMaximum(nn.Module):
    """Mean and maximum of each feature map: `[N, F, H, W]` to `[N, 2 F]`."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)


def _small(n_channels: int, last: int) -> nn.Module:
    """A ResNet with one block a stage and narrow stages: about 0.4 M parameters, a sixth of ResNet-18's work.

    Its output is the mean of each feature over the window and the largest: one car park among houses is lost in a mean.
    """
    first = _SMALL_WIDTHS[0]
    layers: list[nn.Module] = [
        nn.Conv2d(n_channels, first, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    for before, width, stride in zip((first, *_SMALL_WIDTHS), (*_SMALL_WIDTHS, last), (1, 2, 2, 1), strict=True):
        shortcut: nn.Module | None = None
        if before != width or stride > 1:
            shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        layers.append(BasicBlock(before, width, stride, shortcut))
    network = nn.Sequential(*layers, _MeanAndMaximum())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def embed(network: EncoderNetwork, windows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Embed windows on their device: the backbone in bfloat16 where that is fast, the rest always in float32."""
    return network.joined(features_of(network, windows, device), windows)


def features_of(network: EncoderNetwork, windows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The backbone's output `[N, S·F]`, in bfloat16 where that is fast."""
    with autocast(device):
        return network.features(windows)


def random_network(spec: NetworkSpec, seed: int) -> EncoderNetwork:
    """A network with random weights, the same for the same seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EncoderNetwork(spec).to(memory_format=torch.channels_last)


def untrained_like(network: EncoderNetwork, seed: int) -> EncoderNetwork:
    """A network with the random weights of a seed, and the normalisation of the input of another of its kind."""
    untrained = random_network(network.spec, seed)
    for name, values in network.named_buffers(recurse=False):
        untrained.get_buffer(name).copy_(values)
    return untrained


def calibrate(network: EncoderNetwork, windows: torch.Tensor) -> None:
    """Set the statistics of batch normalisation to those of windows, uint8 `[N, S·C, size_px, size_px]`.

    Random weights are a better baseline so: their features then spread as those of a trained network do.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
    network.train()
    with torch.no_grad():
        for batch in torch.split(windows, _CALIBRATION_BATCH):
            if len(batch) > 1:
                network(batch)
    network.eval()


def weights_digest(network: nn.Module) -> str:
    """Hex SHA-256 over names, types, shapes and values of all parameters and buffers: the encoder's data version."""
    sha = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        sha.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
