"""Metric-learning losses behind one interface: from the embeddings of a batch to a scalar, and what is left to learn.

Embeddings have length 1. Row i of `anchor` and row i of `positive` belong together. What else counts as a negative is
either given (`negative`, from the triplets) or is the rest of the batch, less the pairs that `is_negative` rules out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from geobacter_core.encoder.settings import TrainSettings

_EARTH_M = 6371008.8
_THUMBNAIL_PX = 8
_PIECE = 32
"""So many windows, or the square of it pairs of windows, are compared at once."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """A batch, embedded.

    Attributes:
        anchor: float32 `[N, D]`.
        positive: float32 `[N, D]`.
        negative: float32 `[N, D]`; None for a loss that takes negatives from the batch.
        is_negative: bool `[2 N, 2 N]` over anchors, then positives: whether two of them may be taken for a negative
            pair. Never true on the diagonal nor for an anchor and its positive.
    """

    anchor: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor | None
    is_negative: torch.Tensor


@dataclass(frozen=True, slots=True)
class LossValue:
    """A loss and, to see whether there is anything left to learn, the share of anchors that are not right yet."""

    loss: torch.Tensor
    active_share: torch.Tensor


Loss = Callable[[Embedded], LossValue]


def make_loss(settings: TrainSettings) -> Loss:
    """The loss that the settings name."""
    losses: dict[str, Loss] = {
        "margin": lambda embedded: margin_triplet(embedded, settings.margin),
        "softpn": softpn,
        "infonce": lambda embedded: infonce(embedded, settings.temperature),
        "multi_similarity": multi_similarity,
    }
    return losses[settings.loss]


def n_roles(settings: TrainSettings) -> int:
    """3 where the loss needs the triplets' negatives, else 2."""
    return 3 if settings.loss in ("margin", "softpn") else 2


def margin_triplet(embedded: Embedded, margin: float) -> LossValue:
    """Mean hinge of squared distances; in [0, 4 + margin]. The original Geobacter's, with a margin of 1.5.

    Schroff, Kalenichenko, Philbin: "FaceNet: a unified embedding for face recognition and clustering" (CVPR 2015).
    """
    negative = _given(embedded)
    near = (embedded.anchor - embedded.positive).square().sum(dim=1)
    far = (embedded.anchor - negative).square().sum(dim=1)
    hinge = functional.relu(near - far + margin)
    return LossValue(hinge.mean(), (hinge > 0).float().mean())


def softpn(embedded: Embedded) -> LossValue:
    """The share of the positive pair in the softmax of two distances, squared, twice; in [0, 2]. Loc2Vec's.

    The negative distance is the smaller one of those from anchor and positive. Balntas, Johns, Tang, Mikolajczyk:
    "PN-Net: conjoined triple deep network for learning local image descriptors" (2016); sentiance: "Loc2Vec: learning
    location embeddings with triplet-loss networks" (2018).
    """
    negative = _given(embedded)
    near = torch.linalg.vector_norm(embedded.anchor - embedded.positive, dim=1)
    far = torch.minimum(
        torch.linalg.vector_norm(embedded.anchor - negative, dim=1),
        torch.linalg.vector_norm(embedded.positive - negative, dim=1),
    )
    share = functional.softmax(torch.stack([near, far]), dim=0)[0]
    return LossValue(2 * share.square().mean(), (near >= far).float().mean())


def infonce(embedded: Embedded, temperature: float) -> LossValue:
    """Cross entropy of finding the other half of each pair among the batch, both ways.

    van den Oord, Li, Vinyals: "Representation learning with contrastive predictive coding" (2018); as NT-Xent: Chen,
    Kornblith, Norouzi, Hinton: "A simple framework for contrastive learning of visual representations" (ICML 2020).
    (pytorch-metric-learning's NTXentLoss takes each pair apart for a mask of negatives: [N, N²] numbers a batch.)
    """
    both = torch.cat([embedded.anchor, embedded.positive])
    logits = (both @ both.T / temperature).masked_fill(~(embedded.is_negative | _is_pair(both)), -torch.inf)
    partner = _partner(both)
    loss = functional.cross_entropy(logits, partner)
    return LossValue(loss, (logits.argmax(dim=1) != partner).float().mean())


def multi_similarity(embedded: Embedded) -> LossValue:
    """Pairs weighted by how their similarity stands to that of the others, pytorch-metric-learning's defaults.

    Wang, Han, Huang, Dong, Scott: "Multi-similarity loss with general pair weighting for deep metric learning" (CVPR
    2019).
    """
    from pytorch_metric_learning.losses import MultiSimilarityLoss  # takes a second to import, and few want it

    both = torch.cat([embedded.anchor, embedded.positive])
    labels = torch.arange(len(embedded.anchor), device=both.device).repeat(2)
    partner = _partner(both)
    rows = torch.arange(len(both), device=both.device)
    negatives = torch.nonzero(embedded.is_negative, as_tuple=True)
    loss: torch.Tensor = MultiSimilarityLoss()(both, labels, (rows, partner, *negatives))
    with torch.no_grad():
        cosine = (both @ both.T).masked_fill(~(embedded.is_negative | _is_pair(both)), -torch.inf)
        active_share = (cosine.argmax(dim=1) != partner).float().mean()
    return LossValue(loss, active_share)


def vicreg_terms(embeddings: torch.Tensor) -> torch.Tensor:
    """Variance and covariance terms of embeddings `[N, D]`: 0 where all spread alike and none repeats another.

    They are scaled so that vectors spread evenly over the unit sphere have a standard deviation of 1 in each dimension.
    Bardes, Ponce, LeCun: "VICReg: variance-invariance-covariance regularization for self-supervised learning" (ICLR
    2022).
    """
    n, dim = embeddings.shape
    centred = (embeddings - embeddings.mean(dim=0)) * dim**0.5
    spread = (centred.square().sum(dim=0) / (n - 1) + 1e-4).sqrt()
    covariance = centred.T @ centred / (n - 1)
    off_diagonal = covariance - torch.diag(torch.diagonal(covariance))
    total: torch.Tensor = functional.relu(1 - spread).mean() + off_diagonal.square().sum() / dim
    return total


@torch.no_grad()
def thumbnails(windows: torch.Tensor) -> torch.Tensor:
    """Windows, uint8 `[M, C, H, W]`, averaged down to 8 × 8 px: float32 `[M, C, 64]`."""
    # In pieces: as floats, a batch of many channels does not fit the processor's cache.
    pieces = [functional.adaptive_avg_pool2d(piece.float(), _THUMBNAIL_PX) for piece in torch.split(windows, _PIECE)]
    return torch.cat(pieces).flatten(2)


@torch.no_grad()
def negative_pairs(
    xyz: torch.Tensor, near_m: torch.Tensor, small: torch.Tensor, least_difference: float
) -> torch.Tensor:
    """Which pairs of a batch may be taken for negatives: bool `[2 N, 2 N]` over anchors, then positives.

    Left out are a window and itself, an anchor and its positive, places that are near each other, and windows that look
    alike (two pieces of the same forest).

    Args:
        xyz: Places on the unit sphere, `[2 N, 3]`.
        near_m: A pair is left out that is nearer than either of its two says, ground metres, `[2 N]`.
        small: The windows' thumbnails, float32 `[2 N, C, P]`.
        least_difference: Pairs are left out whose thumbnails differ by less in each of their pixels and channels, 0 to
            255. (On the mean, two places of a map with few thin roads would all be alike, and nothing be learnt.)
    """
    # By differences: a product of float32 matrices would be right to a kilometre only.
    chord = torch.cdist(xyz, xyz, compute_mode="donot_use_mm_for_euclid_dist")
    far = chord * _EARTH_M >= torch.maximum(near_m[:, None], near_m[None, :])
    return (
        far
        & _unlike(small, least_difference)
        & ~_is_pair(xyz)
        & ~torch.eye(len(xyz), dtype=torch.bool, device=xyz.device)
    )


def _unlike(small: torch.Tensor, least_difference: float) -> torch.Tensor:
    # The difference of means is never above the largest one: where it is large enough, no pixels need be compared.
    means = small.mean(dim=2)
    unlike = torch.cdist(means, means, p=torch.inf) >= least_difference
    for pairs in torch.split(torch.nonzero(torch.triu(~unlike)), _PIECE**2):
        one, other = pairs.T
        differs = (small[one] - small[other]).abs_().amax(dim=(1, 2)) >= least_difference
        unlike[one, other] = unlike[other, one] = differs
    return unlike


def _partner(both: torch.Tensor) -> torch.Tensor:
    """For each row of anchors, then positives, the row of the other half of its pair."""
    return torch.arange(len(both), device=both.device).roll(len(both) // 2)


def _is_pair(both: torch.Tensor) -> torch.Tensor:
    pair = torch.zeros(len(both), len(both), dtype=torch.bool, device=both.device)
    pair[torch.arange(len(both), device=both.device), _partner(both)] = True
    return pair


def _given(embedded: Embedded) -> torch.Tensor:
    if embedded.negative is None:
        raise ValueError("this loss takes its negatives from the triplets, and the batch has none")
    return embedded.negative
