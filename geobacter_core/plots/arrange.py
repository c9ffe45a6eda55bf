"""Embeddings as colours, groups and places on a grid."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geobacter_core.geo import Floats
from geobacter_core.plots.colours import oklab_to_rgb, rgb_to_oklab
from geobacter_core.tiles.source import Pixels

_CLUSTERED_ROWS = 3000


@dataclass(frozen=True, slots=True)
class Components:
    """The first three principal components of a table's distinct embeddings.

    Attributes:
        scores: Every row's coordinates, float64 `[N, 3]`; zero where the embeddings have fewer dimensions.
        variance_shares: Share of the variance that each component carries, 0 to 1.
        distinct: First row of each distinct embedding, int64 `[M]`, ascending.
    """

    scores: Floats
    variance_shares: tuple[float, float, float]
    distinct: NDArray[np.int64]


def distinct_rows(embeddings: NDArray[np.float32]) -> NDArray[np.int64]:
    """The first row of each distinct embedding `[N, D]`, ascending: blank windows and their like count once."""
    packed = np.ascontiguousarray(embeddings).view(np.dtype((np.void, embeddings.itemsize * embeddings.shape[1])))
    return np.sort(np.unique(packed.ravel(), return_index=True)[1])


def principal_components(embeddings: NDArray[np.float32]) -> Components:
    """Principal components of embeddings `[N, D]`. Identical embeddings, of which there are many, weigh as one."""
    distinct = distinct_rows(embeddings)
    mean = embeddings[distinct].mean(axis=0, dtype=np.float64)
    covariance = np.zeros((embeddings.shape[1],) * 2)
    for part in np.array_split(distinct, len(distinct) // 65_536 + 1):
        centred = embeddings[part] - mean
        covariance += centred.T @ centred
    values, vectors = np.linalg.eigh(covariance)
    vectors = vectors[:, ::-1][:, :3]
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    scores = np.zeros((len(embeddings), 3))
    scores[:, : vectors.shape[1]] = embeddings @ vectors - mean @ vectors
    shares = np.zeros(3)
    if values.sum() > 1e-12:
        shares[: vectors.shape[1]] = np.clip(values[::-1][:3], 0, None) / values.sum()
    return Components(scores, (float(shares[0]), float(shares[1]), float(shares[2])), distinct)


def component_colours(components: Components, rows: NDArray[np.int64], seen: Pixels) -> Pixels:
    """A colour for every row, sRGB uint8 `[N, 3]`: embeddings that differ little have colours that differ little.

    The three components, each scaled by its 2nd and 98th percentile, span a cube of OKLab colours. The cube is turned
    so that it agrees best with the colours that some windows have on the map: forest comes out greenish, water bluish.

    Args:
        components: Of the table.
        rows: Some rows, `[K]`.
        seen: The mean colour of those rows' windows, sRGB uint8 `[K, 3]`.
    """
    distinct = components.scores[components.distinct]
    low, high = np.percentile(distinct, [2, 98], axis=0)
    scaled = np.clip((components.scores - (low + high) / 2) / np.maximum((high - low) / 2, 1e-9), -1.15, 1.15)
    # Half way to ranks, so that a region of mostly one kind still shows differences within that kind.
    order = np.sort(distinct, axis=0)
    ranks = [np.searchsorted(order[:, axis], components.scores[:, axis], "right") for axis in range(3)]
    scaled = (scaled + 2 * np.stack(ranks, axis=1) / len(distinct) - 1) / 2
    scaled[:, high - low < 1e-6] = 0
    lab = rgb_to_oklab(seen)
    lab = (lab - lab.mean(axis=0)) * np.array([0.5, 1.0, 1.0])
    centred = scaled[rows] - scaled[rows].mean(axis=0)
    left, _, right = np.linalg.svd(centred.T @ lab)
    turned = scaled @ (left @ right)
    return oklab_to_rgb(np.array([0.74, 0.0, 0.0]) + turned * np.array([0.12, 0.115, 0.115]))


def sampled_rows(rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """At most `n` of the rows, evenly along the table, whose order follows the ground."""
    return rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(np.int64)]


def typical_rows(embeddings: NDArray[np.float32], rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """At most `n` of `rows`, each the most typical of a group of like embeddings (k-means), the largest group first."""
    from sklearn.cluster import KMeans

    rows = sampled_rows(rows, _CLUSTERED_ROWS)
    if len(rows) <= n:
        return rows
    points = embeddings[rows]
    with _one_thread():
        groups = KMeans(n, n_init=4, random_state=0).fit(points)
    to_centre = np.linalg.norm(points - groups.cluster_centers_[groups.labels_], axis=1)
    sizes = np.bincount(groups.labels_, minlength=n)
    chosen = [
        np.flatnonzero(groups.labels_ == group)[to_centre[groups.labels_ == group].argmin()]
        for group in np.argsort(-sizes, kind="stable")
        if sizes[group]
    ]
    return rows[chosen]


def _one_thread() -> AbstractContextManager[object]:
    """The order of a sum, and so its last bit, depends on the number of threads; t-SNE makes much of a last bit."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def tsne_layout(embeddings: NDArray[np.float32]) -> Floats:
    """Places on a plane for distinct embeddings `[N, D]`, float64 `[N, 2]`: t-SNE from the first two components.

    Van der Maaten & Hinton: "Visualizing data using t-SNE" (JMLR 2008).
    """
    n = len(embeddings)
    if n < 8 or embeddings.shape[1] < 2:
        return principal_components(embeddings).scores[:, :2]
    from sklearn.manifold import TSNE

    with _one_thread():
        plane = TSNE(
            2,
            init="pca",
            random_state=0,
            perplexity=min(30.0, (n - 1) / 3),
            max_iter=750,
            learning_rate="auto",
        ).fit_transform(embeddings)
    return np.asarray(plane, dtype=np.float64)


def snap_to_grid(plane: Floats, columns: int, rows: int) -> NDArray[np.int64]:
    """A slot of a grid for every point `[N, 2]`, no two the same, so that the points move as little as can be.

    Returns:
        int64 `[N]`, `row * columns + column`; N is at most `columns * rows`.
    """
    from scipy.optimize import linear_sum_assignment

    low, high = plane.min(axis=0), plane.max(axis=0)
    unit = (plane - low) / np.maximum(high - low, 1e-9)
    # Half way to ranks: clusters keep their shape but share out the room between them.
    ranks = np.argsort(np.argsort(plane, axis=0, kind="stable"), axis=0, kind="stable") / max(len(plane) - 1, 1)
    unit = (unit + ranks) / 2 * np.array([columns - 1, rows - 1])
    slots = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    cost = ((unit[:, None, :] - slots[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(linear_sum_assignment(cost)[1], dtype=np.int64)


def grid_shape(n: int, aspect: float) -> tuple[int, int]:
    """Columns and rows of a grid of about that aspect that `n` windows fill; a few windows may be left over."""
    ideal = math.sqrt(n * aspect)
    if n < 40:
        return max(1, round(ideal)), math.ceil(n / max(1, round(ideal)))
    columns = min(range(math.floor(ideal * 0.88), math.ceil(ideal * 1.12) + 1), key=lambda c: (n % c, abs(c - ideal)))
    return columns, n // columns
