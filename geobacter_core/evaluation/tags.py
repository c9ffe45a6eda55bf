"""Baselines from the extract itself: the tags in a cell, and no more than where the cell is."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from geobacter_core.evaluation.hidden import Hidden, read_hidden, tags_of
from geobacter_core.evaluation.labels import Places
from geobacter_core.evaluation.semantics import geometries_of, mercator_hexagons, touching
from geobacter_core.geo import lonlat_to_mercator, mercator_scale
from geobacter_core.osm.features import LAYERS

MAX_TAGS = 150
"""The tags that are counted, the most frequent of the region; what is rarer is in few cells of a test block."""

Tag = tuple[str, str]
"""Key and value."""


def common_tags(files: Path, hidden: Hidden | None) -> tuple[Tag, ...]:
    """The 150 tags that most objects of a region have, the most frequent first.

    Args:
        files: Folder with `points.fgb`, `lines.fgb` and `polygons.fgb`, nothing hidden.
        hidden: The question set that is hidden; None for the whole map.
    """
    counts: Counter[Tag] = Counter()
    for layer in LAYERS:
        for batch in read_hidden(files, layer, hidden):
            for key, column in tags_of(batch).items():
                for found in pc.value_counts(column.drop_null()).to_pylist():
                    counts[key, found["values"]] += found["counts"]
    return tuple(sorted(counts, key=lambda tag: (-counts[tag], tag))[:MAX_TAGS])


def tag_counts(files: Path, cells: Sequence[str], hidden: Hidden | None) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """How many objects with each common tag touch each cell, as log(1 + n): a count's first step says most.

    An object is a row of the map features: a closed way that may be a loop or an area is two, a line and a polygon.

    Args:
        files: Folder with `points.fgb`, `lines.fgb` and `polygons.fgb`, nothing hidden.
        cells: H3 indexes, N of them.
        hidden: The question set that is hidden; None for the whole map.

    Returns:
        float32 `[N, K]`, and the K tags as `key=value`, the most frequent of the region first.
    """
    tags = common_tags(files, hidden)
    counts = np.zeros((len(cells), len(tags)), np.float32)
    tree = shapely.STRtree(mercator_hexagons(cells))
    for layer in LAYERS:
        for batch in read_hidden(files, layer, hidden):
            feature, cell = touching(tree, geometries_of(batch))
            columns = tags_of(batch)
            for index, (key, value) in enumerate(tags):
                has = _has(columns[key], value)[feature]
                counts[:, index] += np.bincount(cell[has], minlength=len(cells))
    return np.log1p(counts), tuple(f"{key}={value}" for key, value in tags)


def _has(column: pa.Array, value: str) -> NDArray[np.bool_]:
    return np.asarray(pc.fill_null(pc.equal(column, value), False).to_numpy(zero_copy_only=False), np.bool_)


def coordinates(places: Places) -> NDArray[np.float32]:
    """Where places are: ground metres east and north of their middle, float32 `[N, 2]`.

    What this predicts is known to everybody who has a map of the labels nearby. Squares and products are left out: a
    forest needs none, and a ridge's would shoot up where it has to guess, in blocks that it has not seen.
    """
    x, y = lonlat_to_mercator(places.lon, places.lat)
    scale = mercator_scale(np.array([places.lat.mean()]))
    east, north = ((along - along.mean()) / factor for along, factor in zip((x, y), scale, strict=True))
    return np.stack([east, north], axis=1).astype(np.float32)
