"""Sea from coastlines. OSM maps no sea, only coastlines with land on their left and water on their right."""

import numpy as np
import shapely
from numpy.typing import NDArray

from geobacter_core.geo import CHUNK_ZOOM, WORLD_M

_REACH_M = 500.0
"""A coastline cut off this far (mercator metres) inside the box is led on to its edge."""
_SIDE_STEP_M = 0.05


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
        points = list(line.coords)
        if points[0] != points[-1]:
            for index, at in ((0, 0), (-1, len(points))):
                end = shapely.Point(points[index])
                gap = end.distance(edge)
                if 0 < gap <= _REACH_M:
                    target = edge.interpolate(edge.project(end))
                    points.insert(at if index == 0 else len(points), (target.x, target.y))
                elif gap > _REACH_M:
                    n_open += 1
        extended.append(shapely.LineString(points))
    return extended, n_open


def _is_sea(faces: list[shapely.Polygon], lines: list[shapely.LineString]) -> NDArray[np.bool_]:
    """Vote, weighted by length: each coastline segment says which face lies on its right and which on its left."""
    tree = shapely.STRtree(faces)
    votes = np.zeros(len(faces))
    for line in lines:
        coords = np.asarray(line.coords)
        step = np.diff(coords, axis=0)
        length = np.hypot(step[:, 0], step[:, 1])
        step, middle = step[length > 0], ((coords[:-1] + coords[1:]) / 2)[length > 0]
        length = length[length > 0]
        right = np.stack([step[:, 1], -step[:, 0]], axis=1) / length[:, None]
        for side, sign in ((right, 1.0), (-right, -1.0)):
            segment, face = tree.query(shapely.points(middle + side * _SIDE_STEP_M), predicate="within")
            np.add.at(votes, face, sign * length[segment])
    return votes > 0


def _cut_at_chunks(polygons: list[shapely.Polygon]) -> list[shapely.Polygon]:
    """Pieces no larger than a chunk, so that rendering one chunk never reads a whole ocean."""
    side_m = WORLD_M / (1 << CHUNK_ZOOM)
    pieces: list[shapely.Polygon] = []
    for polygon in polygons:
        west, south, east, north = polygon.bounds
        for column in range(int((west + WORLD_M / 2) // side_m), int((east + WORLD_M / 2) // side_m) + 1):
            for row in range(int((south + WORLD_M / 2) // side_m), int((north + WORLD_M / 2) // side_m) + 1):
                left, bottom = column * side_m - WORLD_M / 2, row * side_m - WORLD_M / 2
                piece = shapely.intersection(polygon, shapely.box(left, bottom, left + side_m, bottom + side_m))
                pieces += [part for part in shapely.get_parts(piece) if isinstance(part, shapely.Polygon)]
    return pieces
