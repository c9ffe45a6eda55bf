"""What each strip of a chunk is drawn from, so that a change of the map renders anew what can show it, and no more.

A strip's pixels follow from the features whose boxes reach into it or as far around it as Mapnik looks; the order in
which they are drawn follows from themselves (see `osm.order`). A digest over just these is the strip's own input:
mappers may give a house another id, or change a tag that the style does not read, and nothing is drawn again.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
import xxhash
from numpy.typing import NDArray

from geobacter_core.ahead import in_order
from geobacter_core.files import n_processors
from geobacter_core.geo import CHUNK_PX, CHUNK_TILES, CHUNK_ZOOM, WORLD_M, Tile
from geobacter_core.osm.features import LAYERS, read_layer
from geobacter_core.tiles.style import Style

Sums = NDArray[np.uint64]
_MAX_THREADS = 4


def strip_inputs(files: Path, style: Style, chunks: Sequence[Tile]) -> Mapping[Tile, tuple[str, ...]]:
    """Hex digests of the features that a style may draw in each of a chunk's 16 strips; features are streamed once.

    Memory is 32 bytes a strip of the box around the chunks, and a few batches of features.

    Args:
        files: Folder with `points.fgb`, `lines.fgb` and `polygons.fgb`.
        style: Which tags are read, and how far around a strip features still show.
        chunks: The chunks of the region.
    """
    west, north = min(chunk.x for chunk in chunks), min(chunk.y for chunk in chunks)
    n_columns = max(chunk.x for chunk in chunks) - west + 1
    n_rows = (max(chunk.y for chunk in chunks) - north + 1) * CHUNK_TILES
    # A feature's digest is added to all strips that its box touches: to the corners of a raster of differences.
    corners = np.zeros((n_columns + 1, n_rows + 1, 2), np.uint64)
    batches = ((layer, batch) for layer in LAYERS for batch in read_layer(files, layer, style.keys))
    n_threads = min(n_processors(), _MAX_THREADS)
    with ThreadPoolExecutor(n_threads, "strip-inputs") as pool:
        for digests, (low_x, high_x), (low_y, high_y) in in_order(
            pool, lambda some: _touched(*some, style, (west, north), corners.shape), batches, n_threads
        ):
            np.add.at(corners, (low_x, low_y), digests)
            np.add.at(corners, (high_x, high_y), digests)
            np.subtract.at(corners, (high_x, low_y), digests)
            np.subtract.at(corners, (low_x, high_y), digests)
    sums = corners.cumsum(axis=0, dtype=np.uint64).cumsum(axis=1, dtype=np.uint64)
    return {chunk: _digests(sums[chunk.x - west], (chunk.y - north) * CHUNK_TILES) for chunk in chunks}


def _touched(
    layer: str, batch: pa.RecordBatch, style: Style, first: tuple[int, int], shape: tuple[int, ...]
) -> tuple[Sums, NDArray[np.int64], NDArray[np.int64]]:
    """What the features of a batch add to a raster of differences, if they have a tag which the style reads.

    Args:
        layer: Of the features.
        batch: N features, M of which have such a tag.
        style: Which tags are read, and how far around a strip features still show.
        first: The raster's first column, a chunk's, and first row of chunks.
        shape: Of the raster.

    Returns:
        The features' digests, `[M, 2]`; the first columns that they touch, and those after the last, `[2, M]`; rows
        alike.
    """
    tags = [batch.column(key) for key in style.keys if key in batch.schema.names]
    is_tagged = np.logical_or.reduce([column.is_valid().to_numpy(zero_copy_only=False) for column in tags] or [[]])
    rows = pa.array(np.flatnonzero(is_tagged), pa.int64())
    # Control characters tell absent tags from empty ones, and one tag from the next.
    columns = [column.take(rows).cast(pa.binary()) for column in (*tags, batch.column("layer").cast(pa.string()))]
    geometry = batch.column("geometry").take(rows)
    joined = pc.binary_join_element_wise(
        layer.encode(), *columns, geometry, b"\x1f", null_handling="replace", null_replacement=b"\x00"
    ).to_numpy(zero_copy_only=False)
    digests = np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, joined)), np.uint64).reshape(-1, 2)
    margin = style.reach_px / CHUNK_PX
    west, south, east, north = shapely.bounds(shapely.from_wkb(geometry.to_numpy(zero_copy_only=False))).T
    side_m = WORLD_M / 2**CHUNK_ZOOM
    chunk_x = np.stack([west, east]) / side_m + 2 ** (CHUNK_ZOOM - 1) + [[-margin], [margin]] - first[0]
    chunk_y = 2 ** (CHUNK_ZOOM - 1) - np.stack([north, south]) / side_m + [[-margin], [margin]] - first[1]
    past = np.array([[0], [1]])
    columns_at = np.clip(np.floor(chunk_x) + past, 0, shape[0] - 1).astype(np.int64)
    rows_at = np.clip(np.floor(chunk_y * CHUNK_TILES) + past, 0, shape[1] - 1).astype(np.int64)
    return digests, columns_at, rows_at


def _digests(sums: Sums, first: int) -> tuple[str, ...]:
    return tuple(sums[row].tobytes().hex() for row in range(first, first + CHUNK_TILES))
