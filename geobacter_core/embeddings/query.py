"""Questions to embeddings: which places are alike, and what lies between two."""

import numpy as np
from numpy.typing import NDArray

from geobacter_core.geo import ground_distance_m

Embeddings = NDArray[np.float32]


def similar(
    embeddings: Embeddings,
    query: NDArray[np.float32],
    k: int,
    lonlat: NDArray[np.float64] | None = None,
    spacing_m: float = 0.0,
) -> NDArray[np.int64]:
    """Rows of `embeddings` `[N, D]` of the highest cosine with `query` `[D]`, best first, at most `k`.

    With `lonlat` `[N, 2]` (degrees) and `spacing_m`, a row nearer than that to a better one is passed over, so that the
    answer is not one place and its neighbours.
    """
    order = np.argsort(-(embeddings @ query), kind="stable")
    if lonlat is None or spacing_m <= 0:
        return order[:k]
    chosen: list[int] = []
    for row in order:
        taken = lonlat[chosen]
        here = lonlat[row]
        apart = ground_distance_m(np.full(len(taken), here[0]), np.full(len(taken), here[1]), taken[:, 0], taken[:, 1])
        if not len(apart) or apart.min() >= spacing_m:
            chosen.append(int(row))
            if len(chosen) == k:
                break
    return np.array(chosen, dtype=np.int64)


def interpolate(start: NDArray[np.float32], end: NDArray[np.float32], steps: int) -> Embeddings:
    """`steps` vectors of length 1 from `start` to `end` `[D]`, both included, evenly along the great circle between.

    Shoemake: "Animating rotation with quaternion curves" (SIGGRAPH 1985), for any D.
    """
    angle = float(np.arccos(np.clip(start @ end, -1.0, 1.0)))
    t = np.linspace(0.0, 1.0, steps)[:, None]
    if angle < 1e-6:
        mixed = (1 - t) * start + t * end
    else:
        mixed = (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)
    return np.asarray(mixed / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12), dtype=np.float32)
