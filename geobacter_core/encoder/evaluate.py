"""How good an encoder is: triplet accuracy and retrieval on test windows, which no train window overlaps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from geobacter_core.encoder.data import RegionData, TripletWindows
from geobacter_core.tiles.window import Scales, memory_bytes

Embeddings = NDArray[np.float32]
Encode = Callable[[torch.Tensor], Embeddings]
_MARGIN = 1.5
MAX_TRIPLETS = 2000
"""So many test triplets are used at most; their order is random already, so these are a fair sample."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Figures over `n` test triplets, shares unless said otherwise.

    Attributes:
        triplet_accuracy: Share of triplets whose positive is nearer to the anchor than its negative is.
        recall_at_1: Share of anchors whose positive is the nearest of all test positives.
        recall_at_10: Share of anchors whose positive is among the ten nearest.
        active_share: Share of triplets with anything left to learn by the original's loss: whose negative is not
            further from the anchor than the positive by a margin of 1.5, in squared distance of unit vectors.
        alignment: Mean squared distance of anchors and their positives, 0 to 4. Wang & Isola, "Understanding
            contrastive representation learning through alignment and uniformity on the hypersphere" (ICML 2020), with
            alpha = 2.
        n: Triplets.
    """

    triplet_accuracy: float
    recall_at_1: float
    recall_at_10: float
    active_share: float
    alignment: float
    n: int

    def as_metrics(self, prefix: str) -> dict[str, float]:
        """As MLflow metrics, each name behind a prefix."""
        return {
            f"{prefix}triplet_accuracy": self.triplet_accuracy,
            f"{prefix}recall_at_1": self.recall_at_1,
            f"{prefix}recall_at_10": self.recall_at_10,
            f"{prefix}active_share": self.active_share,
            f"{prefix}alignment": self.alignment,
        }


@dataclass(frozen=True, slots=True)
class Examples:
    """A few triplets, uint8 `[N, C, H, W]` each, and their Euclidean distances from the anchor, `[N]`."""

    anchor: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor
    positive_distance: Embeddings
    negative_distance: Embeddings


class TestWindows:
    """The test windows of several regions, cut once, for every encoder of that window size to be measured on."""

    __test__ = False  # pytest takes every Test* for tests

    def __init__(
        self,
        regions: Sequence[RegionData],
        size_px: int,
        scales: Scales | None = None,
        n_triplets: int = MAX_TRIPLETS,
    ) -> None:
        """Cut the windows of at most `n_triplets`.

        They have the triplets' sizes, unless `scales` says others.
        """
        data = TripletWindows(regions, "test", size_px, memory_bytes(regions[0].cache.n_channels), scales)
        index = np.arange(len(data))
        if len(data) > n_triplets:
            # The regions' shares stay as they are: every k-th triplet of the regions in a row.
            index = np.linspace(0, len(data) - 1, n_triplets).astype(np.int64)
        self.region = data.region[index]
        # All at once, for they are cut chunk by chunk, and no chunk is decoded twice.
        self.anchor, self.positive, self.negative = data.windows(index).chunk(3)

    def __len__(self) -> int:
        return len(self.region)

    def score(self, encode: Encode) -> Scores:
        """Measure an encoder, given as a function from uint8 `[N, C, H, W]` to float32 `[N, D]` of length 1."""
        anchor, positive, negative = (encode(windows) for windows in (self.anchor, self.positive, self.negative))
        near, far = (np.square(anchor - other).sum(axis=1) for other in (positive, negative))
        return Scores(
            triplet_accuracy=float(np.mean(near < far)),
            recall_at_1=recall_at(anchor, positive, 1),
            recall_at_10=recall_at(anchor, positive, 10),
            active_share=float(np.mean(near - far + _MARGIN > 0)),
            alignment=float(np.mean(near, dtype=np.float64)),
            n=len(anchor),
        )

    def examples(self, encode: Encode, n: int) -> Examples:
        """`n` triplets, evenly from all regions, as an encoder sees them."""
        index = np.unique(np.linspace(0, len(self) - 1, min(n, len(self))).astype(np.int64))
        windows = (self.anchor[index], self.positive[index], self.negative[index])
        anchor, positive, negative = (encode(part) for part in windows)
        return Examples(
            *windows,
            positive_distance=np.linalg.norm(anchor - positive, axis=1),
            negative_distance=np.linalg.norm(anchor - negative, axis=1),
        )


def recall_at(anchor: Embeddings, positive: Embeddings, k: int) -> float:
    """Share of anchors `[N, D]` whose own row is among the k positives `[N, D]` of the highest cosine."""
    hits = 0
    for begin in range(0, len(anchor), 1024):
        cosine = anchor[begin : begin + 1024] @ positive.T
        own = cosine[np.arange(len(cosine)), begin + np.arange(len(cosine))]
        nearer = np.sum(cosine > own[:, None], axis=1)
        # Ties count half against it: an encoder that maps all to one point finds nothing.
        ties = np.sum(cosine == own[:, None], axis=1) - 1
        hits += int(np.sum(nearer + ties / 2 < k))
    return hits / len(anchor)
