"""The default network with random weights, which are as fast as any, for the benchmarks."""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geobacter_core.encoder.network import EncoderNetwork
    from geobacter_core.encoder.version import Encoder, EncoderVersion

CONTEXT_M = 400.0


def encoder_for(style: str) -> "Encoder":
    """The default network with random weights, for a style, ready for use."""
    from geobacter_core.encoder.exported import ready

    return ready(*network_for(style))


def network_for(style: str) -> "tuple[EncoderVersion, EncoderNetwork]":
    """The default network with random weights, for a style."""
    from geobacter_core.encoder.network import random_network, weights_digest
    from geobacter_core.encoder.settings import TrainSettings
    from geobacter_core.encoder.version import EncoderVersion
    from geobacter_core.samples.settings import SampleSettings
    from geobacter_core.tiles.style import load_style
    from geobacter_core.tiles.window import Scales

    settings, drawn = TrainSettings(), load_style(style)
    scales = Scales(SampleSettings().size_m, CONTEXT_M).with_surroundings()
    version = EncoderVersion(
        version=1,
        run_id="bench",
        digest="",
        style=style,
        style_version=drawn.version,
        size_m=scales.size_m,
        context_m=scales.context_m,
        surroundings_m=scales.surroundings_m,
        size_px=settings.size_px,
        n_channels=len(drawn.channels),
        embedding_dim=settings.embedding_dim,
        network=settings.network,
        shares=settings.shares,
        seed=0,
        test_accuracy=1.0,
        random_accuracy=0.5,
    )
    network = random_network(version.spec, 0)
    return replace(version, digest=weights_digest(network)), network.eval()
