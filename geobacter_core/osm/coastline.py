"""Sea from coastlines. OSM maps no sea, only coastlines with land on their left and water on their right."""

import math

import numpy as np
import shapely
from numpy.typing import NDArray

from geobacter_core.geo import CHUNK_ZOOM, WORLD_M

_REACH_M = 500.0
"""A coastline cut off this far (mercator metres) inside the box is led on to its edge."""
_SIDE_STEP_M = 0.05
_ROUNDING_M = 1e-6
_BATCH = 1 << 18


def sea_polygons(
    coastlines: NDArray[np.object_], box: tuple[float, float, float, float]
) -> tuple[list[shapely.Polygon], int]:
    """Sea within `box` (west, south, east, north, mercator metres), cut at chunk borders, and the open ends left over.

    The coastlines, clipped to the box, and its edge are polygonised; a face is sea when more coastline runs along it
    with the face on its right. Extracts cut at the last node inside the box end a little short of the edge, so
    ends near it are extended. An end that stays open separates nothing.
    """
    if not len(coastlines):
        return [], 0
    rectangle = shapely.box(*box)
    clipped = [
        part
        for line in coastlines
        for part in shapely.get_parts(shapely.clip_by_rect(line, *box))
        if isinstance(part, shapely.LineString) and part.length > 0
    ]
    if not clipped:
        return [], 0
    merged = shapely.get_parts(shapely.line_merge(shapely.multilinestrings(clipped), directed=True))
    lines, n_open = _extended(merged, rectangle)
    edges = shapely.unary_union([rectangle.boundary, *lines])
    faces = [face for face in shapely.get_parts(shapely.polygonize([edges])) if isinstance(face, shapely.Polygon)]
    sea = [face for face, is_sea in zip(faces, _is_sea(faces, lines), strict=True) if is_sea]
    return _cut_at_chunks(sea), n_open


def _extended(lines: NDArray[np.object_], rectangle: shapely.Polygon) -> tuple[list[shapely.LineString], int]:
    edge = rectangle.boundary
    extended, n_open = [], 0
    for line in lines:
        if line.is_closed:
            extended.append(line)
            continue
        points = shapely.get_coordinates(line)
        for index in (0, -1):
            end = shapely.Point(points[index])
            gap = end.distance(edge)
            if 0 < gap <= _REACH_M:
                target = edge.interpolate(edge.project(end))
                points = np.insert(points, 0 if index == 0 else len(points), (target.x, target.y), axis=0)
            elif gap > _REACH_M:
                n_open += 1
        extended.append(shapely.LineString(points))
    return extended, n_open


def _is_sea(faces: list[shapely.Polygon], lines: list[shapely.LineString]) -> NDArray[np.bool_]:
    """Vote, weighted by length: each coastline segment says which face lies on its right and which on its left.

    Lengths are counted in whole millimetres, for a face that has a coastline's both sides must come out at zero sharp.
    """
    coords, line = shapely.get_coordinates(lines, return_index=True)
    begin = np.nonzero(line[1:] == line[:-1])[0]
    step = coords[begin + 1] - coords[begin]
    length = np.hypot(step[:, 0], step[:, 1])
    begin, step, length = begin[length > 0], step[length > 0], length[length > 0]
    middle = (coords[begin] + coords[begin + 1]) / 2
    right = np.stack([step[:, 1], -step[:, 0]], axis=1) / length[:, None]
    weight = np.rint(length * 1000).astype(np.int64)
    votes = np.zeros(len(faces), np.int64)
    # A sea has as many corners as its coast: Shapely indexes them for the geometries asked about, not for a tree's, so
    # the faces are asked which points of a tree they contain.
    shapely.prepare(faces)
    for first in range(0, len(begin), _BATCH):
        batch = slice(first, first + _BATCH)
        for sign in (1, -1):
            tree = shapely.STRtree(shapely.points(middle[batch] + sign * _SIDE_STEP_M * right[batch]))
            face, segment = tree.query(faces, predicate="contains")
            np.add.at(votes, face, sign * weight[batch][segment])
    return votes > 0


def _cut_at_chunks(polygons: list[shapely.Polygon]) -> list[shapely.Polygon]:
    """Pieces no larger than a chunk, so that rendering one chunk never reads a whole ocean.

    Halved again and again, into columns and those into cells: a coast is then gone through as often as a chunk's side
    can be doubled until the region is reached, and not once per chunk.
    """
    pieces: list[shapely.Polygon] = []
    waiting = polygons[::-1]
    while waiting:
        polygon = waiting.pop()
        west, south, east, north = polygon.bounds
        if (border := _middle_border(west, east)) is not None:
            halves = shapely.box(west, south, border, north), shapely.box(border, south, east, north)
        elif (border := _middle_border(south, north)) is not None:
            halves = shapely.box(west, south, east, border), shapely.box(west, border, east, north)
        else:
            pieces.append(polygon)
            continue
        parts = [part for half in halves for part in shapely.get_parts(shapely.intersection(polygon, half))]
        waiting += [part for part in reversed(parts) if isinstance(part, shapely.Polygon)]
    return pieces


def _middle_border(low: float, high: float) -> float | None:
    """The chunk border nearest to the middle of those between two mercator coordinates, or None if there is none."""
    side_m = WORLD_M / (1 << CHUNK_ZOOM)
    first = math.floor((low + WORLD_M / 2 + _ROUNDING_M) / side_m) + 1
    last = math.ceil((high + WORLD_M / 2 - _ROUNDING_M) / side_m) - 1
    return (first + last) // 2 * side_m - WORLD_M / 2 if first <= last else None
