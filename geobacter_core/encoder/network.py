"""The networks: from uint8 windows to vectors of length 1, by a ResNet of torchvision or a small one, and a head."""

import hashlib
from dataclasses import dataclass

import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from geobacter_core.encoder.device import autocast
from geobacter_core.encoder.settings import Architecture

_SMALL_WIDTHS = (32, 64, 128, 160)
_CALIBRATION_BATCH = 128


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What a network is built from.

    Attributes:
        architecture: Name of the backbone.
        n_channels: C, channels of a window at one scale.
        n_scales: 2 where a wider window, the context, goes with each window; else 1.
        embedding_dim: D.
    """

    architecture: Architecture
    n_channels: int
    n_scales: int
    embedding_dim: int

    @property
    def part_dims(self) -> list[int]:
        """How many of the D numbers each scale has; the first scale one more where D is odd."""
        share, rest = divmod(self.embedding_dim, self.n_scales)
        return [share + (number < rest) for number in range(self.n_scales)]

    @property
    def n_planes(self) -> int:
        """Channels of the input: those of all scales, one scale after the other."""
        return self.n_channels * self.n_scales


class EncoderNetwork(nn.Module):
    """Window to embedding: a convolutional backbone, which sees every scale with the same weights, and linear heads.

    Each scale has a head, and an embedding is their outputs side by side, each of the same length: the cosine of two
    embeddings is the mean of the cosines of their parts.

    He, Zhang, Ren, Sun: "Deep residual learning for image recognition" (CVPR 2016). Normalisation is part of the
    network, so that whoever loads it gives it plain pixels.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.n_scales = spec.n_scales
        self.register_buffer("mean", torch.full((1, spec.n_planes, 1, 1), 127.5))
        self.register_buffer("std", torch.full((1, spec.n_planes, 1, 1), 64.0))
        self.backbone, width = _backbone(spec)
        self.heads = nn.ModuleList(nn.Linear(width, dim) for dim in spec.part_dims)

    def set_normalisation(self, windows: torch.Tensor) -> None:
        """Take mean and standard deviation per channel from a batch of windows, uint8 `[N, S·C, H, W]`."""
        values = windows.float()
        self.mean.copy_(values.mean((0, 2, 3), keepdim=True))
        self.std.copy_(values.std((0, 2, 3), keepdim=True).clamp_min(1.0))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Embed uint8 `[N, S·C, size_px, size_px]` as float32 `[N, D]`, each row of length 1."""
        return self.embed_features(self.features(windows))

    def features(self, windows: torch.Tensor) -> torch.Tensor:
        """The backbone's output `[N, S·F]`: nearly all of the work."""
        scales = [
            # Arranged as bytes and normalised in place: with many channels the other way round takes 1.6 times as long.
            scale.contiguous(memory_format=torch.channels_last).float().sub_(mean).mul_(1 / std)
            for scale, mean, std in zip(
                windows.chunk(self.n_scales, dim=1),
                self.mean.chunk(self.n_scales, dim=1),
                self.std.chunk(self.n_scales, dim=1),
                strict=True,
            )
        ]
        features = self.backbone(scales[0] if len(scales) == 1 else torch.cat(scales))
        return torch.cat(features.chunk(self.n_scales), dim=1)

    def embed_features(self, features: torch.Tensor) -> torch.Tensor:
        """The heads: features `[N, S·F]` to embeddings, float32 `[N, D]` of length 1."""
        scales = features.float().chunk(self.n_scales, dim=1)
        parts = [functional.normalize(head(scale), dim=1) for head, scale in zip(self.heads, scales, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) / self.n_scales**0.5


def _backbone(spec: NetworkSpec) -> tuple[nn.Module, int]:
    """The backbone and F, the length of its output."""
    if spec.architecture == "small":
        return _small(spec.n_channels), 2 * _SMALL_WIDTHS[-1]
    resnet = getattr(torchvision.models, spec.architecture)(weights=None)
    width = int(resnet.fc.in_features)
    resnet.fc = nn.Identity()
    if spec.n_channels != 3:
        stem = resnet.conv1
        resnet.conv1 = nn.Conv2d(spec.n_channels, stem.out_channels, 7, stride=2, padding=3, bias=False)
    return resnet, width


class _MeanAndMaximum(nn.Module):
    """Mean and maximum of each feature map: `[N, F, H, W]` to `[N, 2 F]`."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)


def _small(n_channels: int) -> nn.Module:
    """A ResNet with one block a stage and narrow stages: 0.7 M parameters, a sixth of ResNet-18's work.

    Its output is the mean of each feature over the window and the largest: one car park among houses is lost in a mean.
    """
    first = _SMALL_WIDTHS[0]
    layers: list[nn.Module] = [
        nn.Conv2d(n_channels, first, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    for before, width, stride in zip((first, *_SMALL_WIDTHS), _SMALL_WIDTHS, (1, 2, 2, 1), strict=False):
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
    """Embed windows on their device: the backbone in bfloat16 where that is fast, the head always in float32."""
    with autocast(device):
        features = network.features(windows)
    return network.embed_features(features)


def random_network(spec: NetworkSpec, seed: int) -> EncoderNetwork:
    """A network with random weights, the same for the same seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EncoderNetwork(spec).to(memory_format=torch.channels_last)


def calibrate(network: EncoderNetwork, windows: torch.Tensor) -> None:
    """Set the statistics of batch normalisation to those of windows, uint8 `[N, S·C, size_px, size_px]`.

    Random weights are a better baseline so: their features then spread as those of a trained network do.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
    network.train()
    with torch.no_grad():
        for batch in torch.split(windows, _CALIBRATION_BATCH):
            if len(batch) > 1:
                network.features(batch)
    network.eval()


def weights_digest(network: nn.Module) -> str:
    """Hex SHA-256 over names, types, shapes and values of all parameters and buffers: the encoder's data version."""
    sha = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        sha.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
