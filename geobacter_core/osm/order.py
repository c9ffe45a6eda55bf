"""The order of features in a FlatGeobuf file, which is that in which they are drawn.

GDAL sorts them along a Hilbert curve through the box around all of them, those whose centres coincide as it happens: to
take away one changes the order of others far away, and what lies on top of what. Here the order of any two follows from
these two alone, so the same features around a place are drawn the same, whatever else is in the file.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from geobacter_core.files import written_aside
from geobacter_core.geo import WORLD_M, Floats

_MAGIC_BYTES = 8
_PER_NODE = 16
"""Children of a node in the index, as GDAL writes it."""
_NODE = np.dtype([("box", "<f8", 4), ("offset", "<u8")])
_LEVEL = 16
_PIECE = 1 << 16


def put_in_order(path: Path, n_features: int) -> None:
    """Sort the features of a FlatGeobuf file along a Hilbert curve through the world, and its index with them.

    Features whose centres coincide are sorted by their bytes. The file stays what it was in all other respects.
    https://github.com/flatgeobuf/flatgeobuf describes the format: header, packed R-tree with its leaves in the order of
    the features, features.

    Args:
        path: A file in EPSG:3857 with a spatial index.
        n_features: How many features it has.
    """
    if n_features < 2:
        return
    data = np.memmap(path, np.uint8, "r")
    after_header = _MAGIC_BYTES + 4 + int.from_bytes(data[_MAGIC_BYTES : _MAGIC_BYTES + 4], "little")
    levels = list(_levels(n_features))
    n_nodes = sum(levels)
    nodes = np.frombuffer(data, _NODE, n_nodes, after_header).copy()
    body = data[after_header + nodes.nbytes :]
    leaves = nodes[-n_features:].copy()
    begins = leaves["offset"].astype(np.int64)
    ends = np.append(begins[1:], len(body))

    def content(feature: int) -> bytes:
        return body[begins[feature] : ends[feature]].tobytes()

    order = _order(leaves["box"], content)
    leaves = leaves[order]
    leaves["offset"][1:] = np.cumsum((ends - begins)[order])[:-1]
    leaves["offset"][0] = 0
    nodes[-n_features:] = leaves
    end = n_nodes
    for n_children, n_parents in pairwise(levels):
        children = nodes["box"][end - n_children : end]
        end -= n_children
        firsts = np.arange(0, n_children, _PER_NODE)
        parents = nodes["box"][end - n_parents : end]
        parents[:, :2] = np.minimum.reduceat(children[:, :2], firsts)
        parents[:, 2:] = np.maximum.reduceat(children[:, 2:], firsts)
    with written_aside(path) as temporary, temporary.open("wb") as out:
        out.write(data[:after_header].data)
        out.write(nodes.tobytes())
        for first in range(0, n_features, _PIECE):
            out.write(b"".join(map(content, order[first : first + _PIECE])))


def _levels(n_features: int) -> Iterator[int]:
    """How many nodes each level of the index has, from the leaves to the root."""
    n_nodes = n_features
    yield n_nodes
    while n_nodes > 1:
        n_nodes = -(-n_nodes // _PER_NODE)
        yield n_nodes


def _order(boxes: Floats, content: Callable[[int], bytes]) -> NDArray[np.int64]:
    """Which feature comes first, second, … `[N]`, by their boxes `[N, 4]` and, where centres coincide, their bytes."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    side = WORLD_M / 2**_LEVEL  # of what is one point of the curve through the world: another runs through that
    within = _along_curve(np.mod(x, side), np.mod(y, side), (0.0, 0.0, side, side))
    half = WORLD_M / 2
    world = _along_curve(x, y, (-half, -half, half, half))
    keys = np.stack([world, within, x, y])
    order = np.lexsort(keys[::-1])
    keys = keys[:, order]
    is_first = np.append(True, (keys[:, 1:] != keys[:, :-1]).any(axis=0))
    firsts = np.flatnonzero(is_first)
    for first, end in zip(firsts, np.append(firsts[1:], len(order)), strict=True):
        if end - first > 1:
            order[first:end] = sorted(order[first:end], key=content)
    return order


def _along_curve(x: Floats, y: Floats, box: tuple[float, float, float, float]) -> Floats:
    import geopandas  # brings pandas along, a second of start-up

    distance = geopandas.GeoSeries(shapely.points(x, y)).hilbert_distance(total_bounds=box, level=_LEVEL)
    return np.asarray(distance.to_numpy(), np.float64)
