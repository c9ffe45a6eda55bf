"""How embeddings lie: whether they use their dimensions, spread over the sphere, and mean more than where they are."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation.folds import Index
from geobacter_core.evaluation.labels import Label, Places
from geobacter_core.evaluation.ridge import one_thread
from geobacter_core.geo import Floats

Embeddings = NDArray[np.float32]

NEAR_M = 500.0
"""A place nearer than this is a geographic neighbour."""
MAX_QUERIES = 8192
"""So many rows, drawn at random, ask for their neighbours; the answers come from all rows."""
_ROWS = 1024
_COLUMNS = 8192
_DEAD_SHARE = 0.01
_RANK_EPSILON = 1e-7
_LENGTH_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Figures of N embeddings with D dimensions.

    Attributes:
        n: Embeddings.
        dim: Dimensions.
        spread_min: Standard deviation over the places of the dimension that varies least. Vectors spread evenly have
            1/√D in every dimension.
        spread_median: Of the dimension in the middle.
        n_dead: Dimensions whose standard deviation is below a hundredth of 1/√D.
        rank: Effective rank, 1 to D: the exponential of the entropy of the singular values' shares. Source: RankMe,
            Garrido et al., "RankMe: Assessing the downstream performance of pretrained self-supervised representations
            by their rank" (ICML 2023). As there, the mean is not taken off.
        uniformity: Logarithm of the mean of exp(-2 d²) over pairs of places: 0 when all are one point, towards -4
            when spread over a sphere of many dimensions. Wang & Isola, "Understanding contrastive representation
            learning through alignment and uniformity on the hypersphere" (ICML 2020), with t = 2; alignment, which
            needs positives, is one of `encoder.evaluate.Scores`.
        near_share: Share of places whose most similar other place lies within 500 m.
        near_chance: What that share would be if the most similar place were any.
    """

    n: int
    dim: int
    spread_min: float
    spread_median: float
    n_dead: int
    rank: float
    uniformity: float
    near_share: float
    near_chance: float

    def as_metrics(self, prefix: str) -> dict[str, float]:
        """As MLflow metrics, each name behind a prefix."""
        found = {
            "spread_min": self.spread_min,
            "spread_median": self.spread_median,
            "dead_dimensions": float(self.n_dead),
            "effective_rank": self.rank,
            "uniformity": self.uniformity,
            "near_share": self.near_share,
            "near_chance": self.near_chance,
        }
        return {f"{prefix}{name}": value for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class Purity:
    """How often the most similar places are of the same class.

    Attributes:
        share: Of the k most similar places those of the same class, mean over places, 0 to 1.
        chance: What that share would be if the k were any of the places that may be chosen.
        corrected: (share - chance) / (1 - chance): 0 at chance, 1 when all are of the same class.
        n: Places that asked.
    """

    share: float
    chance: float
    corrected: float
    n: int


def diagnose(embeddings: Embeddings, places: Places) -> Diagnostics:
    """Measure how embeddings lie.

    Args:
        embeddings: float32 `[N, D]`, rows of length 1.
        places: Where they are, `[N]`.

    Raises:
        EvaluationError: There are fewer than two rows, sizes do not fit, or a row is not of length 1.
    """
    _check(embeddings, places)
    n, dim = embeddings.shape
    spread = embeddings.std(axis=0, dtype=np.float64)
    with one_thread():
        near_share, near_chance = _near_shares(embeddings, places)
        return Diagnostics(
            n=n,
            dim=dim,
            spread_min=float(spread.min()),
            spread_median=float(np.median(spread)),
            n_dead=int(np.sum(spread < _DEAD_SHARE / np.sqrt(dim))),
            rank=effective_rank(embeddings),
            uniformity=_uniformity(embeddings),
            near_share=near_share,
            near_chance=near_chance,
        )


def effective_rank(embeddings: Embeddings) -> float:
    """RankMe of embeddings `[N, D]`: 1 when all lie on a line through the origin, D when no direction has more."""
    dim = embeddings.shape[1]
    gram = np.zeros((dim, dim))
    for begin in range(0, len(embeddings), _ROWS):
        part = embeddings[begin : begin + _ROWS].astype(np.float64)
        gram += part.T @ part
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
    share = singular / singular.sum() + _RANK_EPSILON
    return float(np.exp(-np.sum(share * np.log(share))))


def knn_purity(embeddings: Embeddings, label: Label, places: Places, exclude_m: float, k: int = 10) -> Purity:
    """How often the k places of the highest cosine are of the same class.

    Places within `exclude_m` are not chosen: they share their class, and part of their window, because they are near.

    Args:
        embeddings: float32 `[N, D]`, rows of length 1.
        label: Classes, or a presence, of the N places; unknown ones neither ask nor answer.
        places: Where they are, `[N]`.
        exclude_m: Ground metres.
        k: How many are chosen, at least 1; all, if fewer may be.

    Raises:
        EvaluationError: The label is a number, sizes do not fit, or no place has another to choose.
    """
    _check(embeddings, places)
    if label.kind == "number" or len(label) != len(places) or k < 1 or not exclude_m >= 0:
        raise EvaluationError(
            f"Purity of label `{label.name}`: kind {label.kind}, {len(label)} answers for {len(places)} places, k={k}, "
            f"exclude_m={exclude_m}. Give a class for each place, a k of 1 or more, and metres of 0 or more."
        )
    known = _shuffled(np.flatnonzero(label.is_known))
    vectors, xyz_m, values = embeddings[known], places.xyz_m[known], label.values[known]
    tree = cKDTree(xyz_m)
    with one_thread():
        counts = [
            _class_counts(vectors, values, rows, _near(tree, xyz_m[rows], exclude_m), k)
            for rows in _query_blocks(known)
        ]
    same, chosen, allowed_same, allowed = np.concatenate([np.zeros((4, 0)), *counts], axis=1)
    may_ask = allowed > 0
    if not may_ask.any():
        raise EvaluationError(
            f"Purity of label `{label.name}`: no place has another further than {exclude_m:g} m. "
            "Give more ground or exclude less."
        )
    share = float(np.mean(same[may_ask] / chosen[may_ask]))
    chance = float(np.mean(allowed_same[may_ask] / allowed[may_ask]))
    return Purity(share, chance, (share - chance) / (1 - chance) if chance < 1 else 0.0, int(may_ask.sum()))


def _check(embeddings: Embeddings, places: Places) -> None:
    if embeddings.ndim != 2 or len(embeddings) != len(places) or len(embeddings) < 2:
        raise EvaluationError(
            f"Diagnostics: embeddings of shape {embeddings.shape} for {len(places)} places. Give two or more, one each."
        )
    off = np.abs(np.linalg.norm(embeddings, axis=1) - 1)
    if not np.max(off) <= _LENGTH_TOLERANCE:
        row = int(np.argmax(np.nan_to_num(off, nan=np.inf)))
        raise EvaluationError(f"Diagnostics: embedding {row} is not of length 1. Divide each row by its length.")


def _shuffled(rows: Index) -> Index:
    """Rows in a random order, always the same.

    The first of them are a fair sample. And rows of one embedding (windows of nothing but sea) are equally similar to
    another row: in the order of a table, which is that of the map, the first of them would be a neighbour too often.
    """
    return np.random.default_rng(0).permutation(rows)


def _query_blocks(rows: Index) -> Iterator[Index]:
    """Positions of the rows that ask, 1,024 at a time."""
    n_queries = min(len(rows), MAX_QUERIES)
    for begin in range(0, n_queries, _ROWS):
        yield np.arange(begin, min(begin + _ROWS, n_queries))


def _near(tree: cKDTree, xyz_m: Floats, distance_m: float) -> list[Index]:
    """For each place, all places of the tree within a distance, itself included."""
    return [np.array(found, dtype=np.int64) for found in tree.query_ball_point(xyz_m, distance_m)]


def _most_similar(embeddings: Embeddings, queries: Index, forbidden: list[Index], k: int) -> Index:
    """The k rows of the highest cosine with each query, but none forbidden to it, `[Q, k]`; -1 where there are fewer.

    Columns go by 8,192 at a time, the best k so far with them: memory does not grow with N.
    """
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    index = np.full((len(queries), k), -1, dtype=np.int64)
    asking = np.repeat(np.arange(len(queries)), [len(rows) for rows in forbidden])
    masked = np.concatenate(forbidden)
    for begin in range(0, len(embeddings), _COLUMNS):
        cosine = embeddings[queries] @ embeddings[begin : begin + _COLUMNS].T
        here = (masked >= begin) & (masked < begin + cosine.shape[1])
        cosine[asking[here], masked[here] - begin] = -np.inf
        both = np.concatenate([best, cosine], axis=1)
        columns = np.broadcast_to(np.arange(begin, begin + cosine.shape[1]), cosine.shape)
        chosen = np.argpartition(-both, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(both, chosen, axis=1)
        index = np.take_along_axis(np.concatenate([index, columns], axis=1), chosen, axis=1)
    return np.where(np.isneginf(best), -1, index)


def _class_counts(vectors: Embeddings, values: Floats, queries: Index, excluded: list[Index], k: int) -> Floats:
    """Of each query: chosen places of its class, chosen places, allowed places of its class, allowed; `[4, Q]`."""
    chosen = _most_similar(vectors, queries, excluded, k)
    own = values[queries]
    same = np.sum((chosen >= 0) & (values[chosen] == own[:, None]), axis=1)
    n_of_class = np.sum(values[None, :] == np.unique(values)[:, None], axis=1)
    n_same_excluded = [np.sum(values[rows] == value) for rows, value in zip(excluded, own, strict=True)]
    allowed_same = n_of_class[np.searchsorted(np.unique(values), own)] - n_same_excluded
    allowed = len(values) - np.array([len(rows) for rows in excluded])
    return np.stack([same, np.sum(chosen >= 0, axis=1), allowed_same, allowed]).astype(np.float64)


def _near_shares(embeddings: Embeddings, places: Places) -> tuple[float, float]:
    """Share of places whose most similar place lies within 500 m, and what it would be by chance."""
    order = _shuffled(np.arange(len(embeddings)))
    vectors, xyz_m = embeddings[order], places.xyz_m[order]
    tree = cKDTree(xyz_m)
    n_near, n_others_near, n_queries = 0, 0, 0
    for queries in _query_blocks(order):
        nearest = _most_similar(vectors, queries, list(queries[:, None]), 1)[:, 0]
        n_near += int(np.sum(np.linalg.norm(xyz_m[queries] - xyz_m[nearest], axis=1) <= NEAR_M))
        n_others_near += int(np.sum(tree.query_ball_point(xyz_m[queries], NEAR_M, return_length=True) - 1))
        n_queries += len(queries)
    return n_near / n_queries, n_others_near / (n_queries * (len(embeddings) - 1))


def _uniformity(embeddings: Embeddings) -> float:
    """Over all pairs of a random sample; exp(-2 d²) is exp(4 cos - 4) for vectors of length 1."""
    sample = embeddings[_shuffled(np.arange(len(embeddings)))[:MAX_QUERIES]]
    total = 0.0
    for begin in range(0, len(sample), _ROWS):
        cosine = sample[begin : begin + _ROWS] @ sample.T
        total += float(np.exp(4 * cosine - 4).sum(dtype=np.float64))
        total -= float(np.exp(4 * np.square(sample[begin : begin + _ROWS]).sum(axis=1) - 4).sum(dtype=np.float64))
    return float(np.log(total / (len(sample) * (len(sample) - 1))))
