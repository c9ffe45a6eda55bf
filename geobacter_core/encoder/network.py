"""The network: a torchvision ResNet-18 with an embedding head, from uint8 windows to vectors of length 1."""

import hashlib

import torch
import torchvision
from torch import nn
from torch.nn import functional

from geobacter_core.encoder.device import autocast


class EncoderNetwork(nn.Module):
    """Window to embedding: He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (CVPR 2016), and a head.

    Normalisation is part of the network, so that whoever loads it gives it plain pixels.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, n_channels: int, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, n_channels, 1, 1), 127.5))
        self.register_buffer("std", torch.full((1, n_channels, 1, 1), 64.0))
        self.backbone = torchvision.models.resnet18(weights=None)
        self.head = nn.Linear(self.backbone.fc.in_features, embedding_dim)
        self.backbone.fc = nn.Identity()
        if n_channels != 3:
            stem = self.backbone.conv1
            self.backbone.conv1 = nn.Conv2d(n_channels, stem.out_channels, 7, stride=2, padding=3, bias=False)

    def set_normalisation(self, windows: torch.Tensor) -> None:
        """Take mean and standard deviation per channel from a batch of windows, uint8 `[N, C, H, W]`."""
        values = windows.float()
        self.mean.copy_(values.mean((0, 2, 3), keepdim=True))
        self.std.copy_(values.std((0, 2, 3), keepdim=True).clamp_min(1.0))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Embed uint8 `[N, C, size_px, size_px]` as float32 `[N, D]`, each row of length 1."""
        return self.embed_features(self.features(windows))

    def features(self, windows: torch.Tensor) -> torch.Tensor:
        """The backbone's output `[N, 512]`: nearly all of the work."""
        x = (windows.float() - self.mean) / self.std
        features: torch.Tensor = self.backbone(x.contiguous(memory_format=torch.channels_last))
        return features

    def embed_features(self, features: torch.Tensor) -> torch.Tensor:
        """The head: features `[N, 512]` to embeddings, float32 `[N, D]` of length 1."""
        return functional.normalize(self.head(features.float()), dim=1)


def embed(network: EncoderNetwork, windows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Embed windows on their device: the backbone in bfloat16 where that is fast, the head always in float32."""
    with autocast(device):
        features = network.features(windows)
    return network.embed_features(features)


def random_network(n_channels: int, embedding_dim: int, seed: int) -> EncoderNetwork:
    """A network with random weights, the same for the same seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EncoderNetwork(n_channels, embedding_dim).to(memory_format=torch.channels_last)


def weights_digest(network: nn.Module) -> str:
    """Hex SHA-256 over names, types, shapes and values of all parameters and buffers: the encoder's data version."""
    sha = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        sha.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
