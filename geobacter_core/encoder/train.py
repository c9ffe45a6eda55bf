"""Training: margin triplet loss over windows cut on the fly, within a budget of seconds or epochs."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from geobacter_core.encoder.data import RegionData, TripletWindows
from geobacter_core.encoder.device import best_device
from geobacter_core.encoder.evaluate import Embeddings, Scores, TestWindows
from geobacter_core.encoder.losses import margin_triplet_loss
from geobacter_core.encoder.network import EncoderNetwork, embed, random_network
from geobacter_core.encoder.settings import TrainSettings
from geobacter_core.errors import EncoderError

VERSION = "1"
"""Raise when the same samples and settings would give another encoder."""

_NORMALISATION_TRIPLETS = 128


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of training reports; `progress` is the share of the budget used, 0 to 1."""

    step: int
    epoch: int
    loss: float
    active_share: float
    learning_rate: float
    images_per_s: float
    progress: float


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch reports: scores on the test windows. Epoch 0 is the random-weights encoder."""

    epoch: int
    step: int
    scores: Scores
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained network, on the CPU in evaluation mode, and how it got there."""

    network: EncoderNetwork
    random: Scores
    scores: Scores
    n_steps: int
    n_epochs: int
    images_per_s: float
    train_seconds: float
    test: TestWindows


def check_regions(regions: Sequence[RegionData]) -> tuple[str, float, int]:
    """Style, window size in metres and channels, which all regions must share.

    Raises:
        EncoderError: There is no region, or two do not fit together, or samples and tiles do not.
    """
    if not regions:
        raise EncoderError(
            "There is no region to train on. Set train = true for one in regions.toml, and materialise its samples."
        )
    first = regions[0]
    for region in regions:
        manifest = region.cache.manifest
        if region.triplets.metadata.get("tiles") != manifest.digest:
            raise EncoderError(
                f"Region '{region.name}': its triplets were drawn from other tiles than the cache now holds. "
                "Materialise triplet_samples for the region."
            )
        ours = (manifest.style, manifest.style_version, region.triplets.size_m)
        theirs = (first.cache.manifest.style, first.cache.manifest.style_version, first.triplets.size_m)
        if ours != theirs:
            raise EncoderError(
                f"Region '{region.name}' has style, version and window size {ours}, region '{first.name}' {theirs}. "
                "One encoder takes one kind of window: materialise both with the same settings."
            )
    return first.cache.manifest.style, first.triplets.size_m, first.cache.n_channels


def train(
    regions: Sequence[RegionData],
    settings: TrainSettings,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Trained:
    """Train an encoder on the triplets of regions.

    Raises:
        EncoderError: The regions do not fit together or hold too few triplets, or the loss is not a number.
        TileCacheError: A chunk is missing or damaged.
    """
    _, _, n_channels = check_regions(regions)
    data = TripletWindows(regions, "train", settings.size_px, settings.window_memory_mb << 20)
    batch_size = min(settings.batch_size, len(data))
    if batch_size < 2:
        raise EncoderError("Fewer than two train triplets. Draw more with triplet_samples' sample_count.")
    device = best_device()
    rng = np.random.default_rng(settings.seed)
    torch.manual_seed(settings.seed)

    test = TestWindows(regions, settings.size_px)
    network = random_network(n_channels, settings.embedding_dim, settings.seed)
    network.set_normalisation(
        data.windows(rng.choice(len(data), min(_NORMALISATION_TRIPLETS, len(data)), replace=False))
    )
    network.to(device)
    random_scores = test.score(encode_with(network, device))
    on_epoch(Epoch(0, 0, random_scores, 0.0))

    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps_per_epoch = len(data) // batch_size
    scores, step, spent_s = random_scores, 0, 0.0
    for epoch in range(1, settings.max_epochs + 1):
        network.train()
        begun = time.perf_counter()
        for windows in data.batches(batch_size, rng, device, settings.max_shift):
            progress = max(step / (steps_per_epoch * settings.max_epochs), spent_s / settings.max_seconds)
            rate = settings.learning_rate * rate_share(progress, settings.warmup)
            for group in optimiser.param_groups:
                group["lr"] = rate
            loss, active_share = _step(network, optimiser, windows, settings.margin, device)
            step += 1
            took_s = time.perf_counter() - begun
            begun += took_s
            spent_s += took_s
            if not math.isfinite(loss):
                raise EncoderError(
                    f"Training step {step}: the loss is {loss}. Lower learning_rate ({settings.learning_rate:g})."
                )
            used = max(step / (steps_per_epoch * settings.max_epochs), spent_s / settings.max_seconds)
            on_step(Step(step, epoch, loss, active_share, rate, len(windows) / took_s, min(used, 1.0)))
            if spent_s >= settings.max_seconds:
                break
        scores = test.score(encode_with(network, device))
        on_epoch(Epoch(epoch, step, scores, spent_s))
        if spent_s >= settings.max_seconds:
            break
    return Trained(
        network=network.cpu().eval(),
        random=random_scores,
        scores=scores,
        n_steps=step,
        n_epochs=epoch,
        images_per_s=3 * batch_size * step / max(spent_s, 1e-9),
        train_seconds=spent_s,
        test=test,
    )


def _step(
    network: EncoderNetwork,
    optimiser: torch.optim.Optimizer,
    windows: torch.Tensor,
    margin: float,
    device: torch.device,
) -> tuple[float, float]:
    """One step of descent on windows `[3 N, C, H, W]`; returns the loss and the share of triplets that had any."""
    anchor, positive, negative = embed(network, windows, device).chunk(3)
    loss = margin_triplet_loss(anchor, positive, negative, margin)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    with torch.no_grad():
        gap = (anchor - negative).square().sum(1) - (anchor - positive).square().sum(1)
        active_share = (gap < margin).float().mean()
    return float(loss.detach()), float(active_share)


def rate_share(progress: float, warmup: float) -> float:
    """The learning rate's share of its peak when `progress` (0 to 1) of the budget is used: warm-up, cosine."""
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * min((progress - warmup) / (1 - warmup), 1.0)))


def encode_with(network: EncoderNetwork, device: torch.device) -> Callable[[torch.Tensor], Embeddings]:
    """The network as a function from windows to embeddings, in evaluation mode, in batches."""

    def encode(windows: torch.Tensor) -> Embeddings:
        network.eval()
        with torch.inference_mode():
            parts = [embed(network, batch.to(device), device).cpu() for batch in torch.split(windows, 256)]
        return torch.cat(parts).numpy()

    return encode
