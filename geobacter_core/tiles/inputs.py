"""What each chunk is drawn from, so that a change of the map renders those chunks anew that can show it, and no others.

A chunk's pixels follow from the features whose boxes reach into it or as far around it as Mapnik looks, in the order in
which they are drawn. A digest over just these is the chunk's own input: mappers may give a house another id, or change
a tag that the style does not read, and nothing is drawn again.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from geobacter_core.geo import CHUNK_PX, CHUNK_ZOOM, Floats, Tile
from geobacter_core.osm.features import LAYERS, read_layer
from geobacter_core.tiles.style import Style

_BUFFER = re.compile(r'\bbuffer-size="(\d+(?:\.\d+)?)"')
_SPARE_PX = 16
"""Looked at beyond Mapnik's own buffer: rounding of boxes must not lose a feature."""
_HALF_WORLD_M = math.pi * 6378137.0


def chunk_inputs(files: Path, style: Style, chunks: Sequence[Tile]) -> dict[Tile, str]:
    """Hex digest of the features that a style may draw in each chunk; features are streamed once.

    Args:
        files: Folder with `points.fgb`, `lines.fgb` and `polygons.fgb`.
        style: Which tags are read, and how far around a chunk features still show.
        chunks: The chunks of the region.
    """
    digests = {(chunk.x, chunk.y): hashlib.sha256() for chunk in chunks}
    for layer in LAYERS:
        for digest in digests.values():
            digest.update(layer.encode() + b"\0")
        for batch in read_layer(files, layer):
            for feature, box in _drawable(batch, style):
                for place in _places(box, digests):
                    digests[place].update(feature)
    return {Tile(CHUNK_ZOOM, x, y): digest.hexdigest() for (x, y), digest in digests.items()}


def reach_px(style: Style) -> float:
    """How far outside a chunk a feature can lie and still be drawn in it, in pixels of a tile."""
    return max((float(found) for xml in style.maps for found in _BUFFER.findall(xml)), default=0.0) + _SPARE_PX


def _drawable(batch: pa.RecordBatch, style: Style) -> Iterator[tuple[bytes, Floats]]:
    """Of each feature with a tag that the style reads, a digest and its box in chunks: west, north, east, south."""
    columns = [batch.column(key) for key in style.keys if key in batch.schema.names]
    if not columns:
        return
    tagged = columns[0].is_valid()
    for column in columns[1:]:
        tagged = pc.or_(tagged, column.is_valid())
    rows = np.flatnonzero(tagged.to_numpy(zero_copy_only=False))
    if not len(rows):
        return
    kept = pa.array(rows)
    geometry = batch.column("geometry").take(kept).to_pylist()
    layer = batch.column("layer").take(kept).to_pylist()
    tags = zip(*(column.take(kept).to_pylist() for column in columns), strict=True)
    west, south, east, north = shapely.bounds(shapely.from_wkb(geometry)).T
    margin = reach_px(style) / CHUNK_PX
    boxes = np.stack([*_chunk_xy(west, north, -margin), *_chunk_xy(east, south, margin)], axis=1)
    for shape, values, level, box in zip(geometry, tags, layer, boxes, strict=True):
        digest = hashlib.sha256(shape)
        digest.update(repr((values, level)).encode())
        yield digest.digest(), box


def _chunk_xy(x: Floats, y: Floats, margin: float) -> tuple[Floats, Floats]:
    """Mercator metres as fractional columns and rows of chunks, moved outwards."""
    side_m = 2 * _HALF_WORLD_M / 2**CHUNK_ZOOM
    return (x + _HALF_WORLD_M) / side_m + margin, (_HALF_WORLD_M - y) / side_m + margin


def _places(box: Floats, digests: dict[tuple[int, int], Any]) -> Iterator[tuple[int, int]]:
    """The chunks of the region that a box touches. A box may be far larger than the region: the sea, a border."""
    west, north, east, south = (math.floor(side) for side in box)
    if (east - west + 1) * (south - north + 1) > len(digests):
        yield from (place for place in digests if west <= place[0] <= east and north <= place[1] <= south)
        return
    for x in range(west, east + 1):
        for y in range(north, south + 1):
            if (x, y) in digests:
                yield x, y
