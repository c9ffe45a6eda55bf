"""Representations of places that are compared: encoders, random weights, and what can be had without any network."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from geobacter_core.encoder.data import WindowSpec
from geobacter_core.encoder.device import best_device
from geobacter_core.encoder.evaluate import Encode
from geobacter_core.encoder.network import EncoderNetwork, NetworkSpec, calibrate, random_network
from geobacter_core.encoder.train import encode_with
from geobacter_core.evaluation.labels import Places
from geobacter_core.evaluation.pixels import pixel_shares
from geobacter_core.evaluation.questions import Questions
from geobacter_core.evaluation.ridge import Matrix
from geobacter_core.evaluation.srai_embedders import srai_baselines
from geobacter_core.evaluation.tags import coordinates, tag_counts
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.source import Pixels
from geobacter_core.tiles.window import Scales, WindowReader

RANDOM = "random weights"
PIXELS = "pixel shares"
TAGS = "tag counts"
COORDINATES = "coordinates"
_SLICE = 256


@dataclass(frozen=True, slots=True)
class Subject:
    """An encoder under test.

    Attributes:
        name: In tables and pictures.
        encode: From windows to embeddings.
        scales: Sides of its windows.
        size_px: Side of its windows, pixels.
    """

    name: str
    encode: Encode
    scales: Scales
    size_px: int

    @property
    def extent_m(self) -> float:
        """Side of the widest window, ground metres."""
        return self.scales.extent_m

    def reader(self, cache: TileCache) -> WindowReader:
        """A reader of its windows."""
        return WindowReader(cache, self.scales.size_m, self.size_px, self.scales.wider_m)


def subject_of(name: str, network: EncoderNetwork, windows: WindowSpec, size_px: int) -> Subject:
    """A network as a subject, on the device that suits best."""
    device = best_device()
    return Subject(name, encode_with(network.to(device), device), windows.scales, size_px)


def random_weights(spec: NetworkSpec, like: Subject, seed: int, windows: torch.Tensor) -> Subject:
    """The network of an encoder, never trained: its input and its layers are normalised by some windows.

    Without the shares of channels, which are learnt by nobody and are a baseline of their own.

    Args:
        spec: Of the network.
        like: The encoder whose windows it takes.
        seed: Of the weights.
        windows: uint8 `[N, S·C, size_px, size_px]`, a few hundred or more.
    """
    network = random_network(replace(spec, embedding_dim=sum(spec.part_dims), shares=False), seed)
    network.set_normalisation(windows)
    calibrate(network, windows)
    device = best_device()
    return replace(like, name=RANDOM, encode=encode_with(network.to(device), device))


def some_windows(subject: Subject, cache: TileCache, places: Places, n: int = 1024) -> torch.Tensor:
    """Windows of a subject at some of the places, evenly picked, uint8 `[≤ n, S·C, size_px, size_px]`."""
    rows = np.unique(np.linspace(0, len(places) - 1, min(n, len(places))).astype(np.int64))
    return torch.from_numpy(subject.reader(cache).windows(places.lon[rows], places.lat[rows]))


def embeddings_of(subject: Subject, asked: Questions) -> Matrix:
    """A subject's embeddings of the places that are asked about, float32 `[N, D]`."""
    return np.concatenate([subject.encode(torch.from_numpy(windows)) for windows in _windows(subject, asked)])


def _windows(subject: Subject, asked: Questions) -> Iterator[Pixels]:
    """A subject's windows of the places that are asked about, a few at a time, uint8 `[≤ n, S·C, size_px, size_px]`."""
    reader = subject.reader(asked.cache)
    for begin in range(0, len(asked.places), _SLICE):
        part = slice(begin, begin + _SLICE)
        yield reader.windows(asked.places.lon[part], asked.places.lat[part])


def representations(subjects: Sequence[Subject], asked: Questions, seed: int) -> Mapping[str, Matrix]:
    """Every representation of the places that are asked about, by name, subjects first."""
    windows = np.concatenate(list(_windows(subjects[0], asked)))
    scales = np.split(windows, windows.shape[1] // asked.cache.n_channels, axis=1)
    counts, _ = tag_counts(asked.features, asked.cells, asked.hidden)
    return {
        **{subject.name: embeddings_of(subject, asked) for subject in subjects},
        # Of the wider windows too: a baseline has all that the encoder has.
        PIXELS: np.concatenate([pixel_shares(scale) for scale in scales], axis=1),
        TAGS: counts,
        COORDINATES: coordinates(asked.places),
        **srai_baselines(asked.features, asked.cells, asked.hidden, seed),
    }
