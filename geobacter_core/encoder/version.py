"""Encoder versions: what the registry knows of each, kept as tags, and an encoder that is ready for use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from geobacter_core.encoder.network import Embeddings, NetworkSpec, Windows, weights_digest
from geobacter_core.encoder.settings import ARCHITECTURES, Architecture, TrainSettings
from geobacter_core.errors import EncoderError, RegistryError
from geobacter_core.tiles.window import Scales

if TYPE_CHECKING:  # who only loads an encoder needs nothing of its training
    from geobacter_core.encoder.data import WindowSpec
    from geobacter_core.encoder.train import Trained

MODEL_NAME = "geobacter"


@dataclass(frozen=True, slots=True)
class EncoderVersion:
    """A registered encoder: what the registry knows of it.

    Attributes:
        version: Number in the registry.
        run_id: The MLflow run that trained it.
        digest: Hex SHA-256 of the weights.
        style: Name of the style of the windows it takes.
        size_m: Side of the windows in ground metres.
        size_px: Side of the windows in pixels.
        n_channels: C, channels of the style.
        embedding_dim: D.
        seed: Of its weights before training.
        test_accuracy: Triplet accuracy on test windows when it was trained.
        random_accuracy: That of random weights on the same windows.
        style_version: Version of the style.
        network: Name of the backbone.
        context_m: Side in ground metres of the wider window that goes with each window, if there is one.
        shares: Whether an embedding ends with what each channel covers.
        surroundings_m: Side in ground metres of the widest window, of which nothing is learnt, if there is one.
    """

    version: int
    run_id: str
    digest: str
    style: str
    size_m: float
    size_px: int
    n_channels: int
    embedding_dim: int
    seed: int
    test_accuracy: float
    random_accuracy: float
    style_version: str = "1"
    network: Architecture = "resnet18"
    context_m: float | None = None
    shares: bool = False
    surroundings_m: float | None = None

    @property
    def style_label(self) -> str:
        """`name/version` of the style."""
        return f"{self.style}/{self.style_version}"

    @property
    def name(self) -> str:
        """`geobacter/<version>`, as in the embedding tables."""
        return f"{MODEL_NAME}/{self.version}"

    @property
    def scales(self) -> Scales:
        """The sides of its windows."""
        return Scales(self.size_m, self.context_m, self.surroundings_m)

    @property
    def spec(self) -> NetworkSpec:
        """What its network is built from."""
        has_surroundings = self.surroundings_m is not None
        return NetworkSpec(
            self.network, self.n_channels, self.scales.n_learnt, self.embedding_dim, self.shares, has_surroundings
        )

    @property
    def window(self) -> tuple[Scales, int]:
        """Sides and pixels of its windows: two versions with the same are measured on the same windows."""
        return self.scales, self.size_px


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder that is ready for use.

    Attributes:
        version: What it is.
        batch_size: Windows that are worth handing over together.
    """

    version: EncoderVersion
    _encode: Callable[[Windows], Embeddings]
    batch_size: int = 32

    def encode(self, windows: Windows) -> Embeddings:
        """Embed N windows, uint8 `[S·C, size_px, size_px]` each, as float32 `[N, D]`, each row of length 1.

        Raises:
            EncoderError: The windows are not of the shape that the encoder takes.
        """
        expected = (self.version.spec.n_planes, self.version.size_px, self.version.size_px)
        if isinstance(windows, torch.Tensor | np.ndarray):
            found = {(str(windows.dtype).removeprefix("torch."), *windows.shape[1:])}
        else:
            found = {(str(window.dtype), *window.shape) for window in windows}
        for kind, *shape in found:
            if (kind, *shape) != ("uint8", *expected):
                raise EncoderError(
                    f"Encoder {self.version.name} takes uint8 windows [N, {', '.join(map(str, expected))}] of style "
                    f"'{self.version.style}', not {kind} {shape} each. Cut windows of its style and size."
                )
        return self._encode(windows)


def tags_of(trained: "Trained", windows: "WindowSpec", settings: TrainSettings) -> dict[str, str]:
    """What the registry is to know of a trained network: the tags of its version and the metadata of its model."""
    return {
        "weights_digest": weights_digest(trained.network),
        "style": windows.style,
        "style_version": windows.style_version,
        "size_m": f"{windows.scales.size_m:g}",
        "context_m": _metres(windows.scales.context_m),
        "surroundings_m": _metres(windows.scales.surroundings_m),
        "size_px": str(settings.size_px),
        "n_channels": str(windows.n_channels),
        "network": settings.network,
        "embedding_dim": str(settings.embedding_dim),
        "shares": "yes" if settings.shares else "",
        "seed": str(settings.seed),
        "test_triplet_accuracy": f"{trained.scores.triplet_accuracy:.4f}",
        "random_triplet_accuracy": f"{trained.random.triplet_accuracy:.4f}",
    }


def _metres(side_m: float | None) -> str:
    return "" if side_m is None else f"{side_m:g}"


def version_of(number: int, run_id: str, tags: Mapping[str, str]) -> EncoderVersion:
    """The version with these tags; versions of before a tag was written have its only value of that time.

    Raises:
        RegistryError: A tag is missing, or says what no encoder of ours has.
    """
    try:
        return EncoderVersion(
            version=number,
            run_id=run_id,
            digest=tags["weights_digest"],
            style=tags["style"],
            size_m=float(tags["size_m"]),
            size_px=int(tags["size_px"]),
            n_channels=int(tags["n_channels"]),
            embedding_dim=int(tags["embedding_dim"]),
            seed=int(tags["seed"]),
            test_accuracy=float(tags["test_triplet_accuracy"]),
            random_accuracy=float(tags["random_triplet_accuracy"]),
            style_version=tags.get("style_version", "1"),
            network=_architecture(tags.get("network", "resnet18")),
            context_m=float(tags["context_m"]) if tags.get("context_m") else None,
            shares=tags.get("shares") == "yes",
            surroundings_m=float(tags["surroundings_m"]) if tags.get("surroundings_m") else None,
        )
    except KeyError as missing:
        wrong = f"has no tag {missing}"
    except ValueError as problem:
        wrong = f"has a tag that cannot be read ({problem})"
    raise RegistryError(
        f"Registered model {MODEL_NAME} version {number} {wrong}: not one of ours. Point the alias to another version."
    )


def _architecture(name: str) -> Architecture:
    for known in ARCHITECTURES:
        if name == known:
            return known
    raise ValueError(f"network '{name}' is none of {', '.join(ARCHITECTURES)}")
