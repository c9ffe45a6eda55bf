"""Outcomes: how an encoder does on each test triplet, so that two encoders can be compared place by place."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geobacter_core.encoder.evaluate import Embeddings, Encode, TestWindows
from geobacter_core.geo import Floats

_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over the test triplets of a region, each in [0, 1]; NaN where there are none.

    Attributes:
        retrieval: Of `Outcomes.retrieval`.
        triplet_accuracy: Share of triplets whose positive is nearer to the anchor than the negative.
        recall_at_10: Share of anchors whose own positive is among the ten nearest.
    """

    retrieval: float
    triplet_accuracy: float
    recall_at_10: float


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of each of a region's N test triplets. NaN where an embedding is not finite.

    Attributes:
        hit: 1 where the positive is nearer to the anchor than the negative is, ½ where they are alike, else 0; `[N]`.
        rank: Place of the anchor's own positive among all N positives by cosine, 1 to N; ties count half; `[N]`.
    """

    hit: Floats
    rank: Floats

    def __len__(self) -> int:
        return len(self.rank)

    @property
    def retrieval(self) -> Floats:
        """1 - ln(rank) / ln(N), `[N]`: 1 for the first place, 0 for the last; each halving of the rank counts alike."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1 - np.log(self.rank) / np.log(len(self.rank)), np.float64)

    @property
    def figures(self) -> Figures:
        """The means."""
        if not len(self):
            return Figures(float("nan"), float("nan"), float("nan"))
        found = np.where(np.isnan(self.rank), np.nan, self.rank <= 10)
        return Figures(float(self.retrieval.mean()), float(self.hit.mean()), float(found.mean()))


def measure(test: TestWindows, encode: Encode, n_regions: int) -> list[Outcomes]:
    """The outcomes of an encoder in each of the regions that the windows come from, in their order.

    Args:
        test: Test windows of one or more regions.
        encode: From uint8 `[N, S·C, H, W]` to float32 `[N, D]` of length 1.
        n_regions: How many regions they were cut from.
    """
    anchor, positive, negative = (encode(windows) for windows in (test.anchor, test.positive, test.negative))
    rows = [np.flatnonzero(np.asarray(test.region) == region) for region in range(n_regions)]
    return [outcomes(anchor[index], positive[index], negative[index]) for index in rows]


def outcomes(anchor: Embeddings, positive: Embeddings, negative: Embeddings) -> Outcomes:
    """Outcomes from the embeddings `[N, D]` of a region's test triplets."""
    near, far = (np.sum(anchor * other, axis=1, dtype=np.float64) for other in (positive, negative))
    hit = np.where(np.isfinite(near + far), (np.sign(near - far) + 1) / 2, np.nan)
    parts = [
        _ranks(anchor[begin : begin + _ROWS], positive, np.arange(begin, min(begin + _ROWS, len(anchor))))
        for begin in range(0, len(anchor), _ROWS)
    ]
    return Outcomes(hit, np.concatenate(parts) if parts else np.empty(0))


def _ranks(anchor: Embeddings, positive: Embeddings, own_row: NDArray[np.int64]) -> Floats:
    cosine = anchor @ positive.T
    own = cosine[np.arange(len(cosine)), own_row][:, None]
    # Ties count half: an encoder that gives all places one vector finds nothing.
    rank = 1 + np.sum(cosine > own, axis=1) + (np.sum(cosine == own, axis=1) - 1) / 2
    return np.where(np.isfinite(cosine).all(axis=1), rank, np.nan)
