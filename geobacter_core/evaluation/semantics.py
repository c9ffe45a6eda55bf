"""Semantics: what the extract says of H3 cells, as labels for probes whose maps do not show it (see `hidden`).

All in EPSG:3857. A cell is so small that its shares of area are those on the ground.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import h3
import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation.hidden import Hidden, read_hidden, tags_of
from geobacter_core.evaluation.labels import Label
from geobacter_core.geo import Floats, cells_within, h3_polygons, lonlat_to_mercator
from geobacter_core.osm.features import LAYERS

MIN_SHARE = 0.25
"""A class needs at least this share of a cell to be what the cell is; less is unknown."""
MIN_CLASS_CELLS = 20
"""A class of fewer cells is unknown."""
MIN_PRESENCE_CELLS = 25
"""A presence needs so many cells that have the thing, and so many that have not."""

Geometries = NDArray[np.object_]
Indexes = NDArray[np.int64]


def probe_cells(ground: shapely.Geometry, resolution: int, most: int, seed: int) -> list[str]:
    """The H3 cells of a region, or `most` of them drawn at random, in ascending order.

    Every cell gets a random number in passing and those with the lowest are kept, so memory does not grow with the
    region.

    Args:
        ground: What the region covers, in degrees.
        resolution: Of the cells.
        most: So many are given at most.
        seed: Of the draw.

    Raises:
        EvaluationError: No cell has its centre in the region.
    """
    rng = np.random.default_rng(seed)
    index = np.empty(0, np.uint64)
    lot = np.empty(0)
    for cells in cells_within(ground, resolution):
        index = np.concatenate([index, cells.index])
        lot = np.concatenate([lot, rng.random(len(cells))])
        if len(index) > most:
            kept = np.argpartition(lot, most)[:most]
            index, lot = index[kept], lot[kept]
    if not len(index):
        raise EvaluationError(
            f"No H3 cell of resolution {resolution} has its centre in the region, bounds {ground.bounds}. "
            "Give it a finer cell_resolution in regions.toml."
        )
    return [h3.int_to_str(int(cell)) for cell in np.sort(index)]


def semantics(files: Path, cells: Sequence[str], hidden: Hidden) -> tuple[list[Label], dict[str, str]]:
    """Answer the questions of a set for H3 cells, from the whole map.

    The class of a cell is that with the largest share of its area. Where areas overlap the smaller one counts: a park
    in a residential area is a park. A thing is present where any of its points, lines or polygons touches the cell.

    Args:
        files: Folder with `points.fgb`, `lines.fgb` and `polygons.fgb`, nothing hidden.
        cells: H3 indexes, N of them.
        hidden: The question set.

    Returns:
        The labels, with values `[N]` in the order of `cells`; and why each other label or class was left out, by name.
    """
    hexagons = mercator_hexagons(cells)
    labels: list[Label] = []
    left_out: dict[str, str] = {}
    if hidden.land_uses:
        shares = _shares(files, hexagons, hidden)
        label, reasons = _class_label(hidden, shares)
        labels += [label] if label else []
        left_out |= reasons
    present = _presences(files, hexagons, hidden)
    for kind, has in zip(hidden.objects, present.T, strict=True):
        n_with, n_without = int(has.sum()), int((~has).sum())
        if min(n_with, n_without) < MIN_PRESENCE_CELLS:
            left_out[kind.name] = (
                f"{n_with:,} cells have it and {n_without:,} do not; at least {MIN_PRESENCE_CELLS} of each are needed"
            )
            continue
        labels.append(Label(kind.name, "presence", has.astype(np.float64)))
    return labels, left_out


def mercator_hexagons(cells: Sequence[str]) -> Geometries:
    """The boundaries of H3 cells as polygons in EPSG:3857."""
    return np.asarray(
        shapely.transform(h3_polygons(cells), lambda p: np.stack(lonlat_to_mercator(p[:, 0], p[:, 1]), axis=1)),
        np.object_,
    )


def geometries_of(batch: pa.RecordBatch) -> Geometries:
    """The geometry column of a batch of features, parsed."""
    return np.asarray(shapely.from_wkb(batch.column("geometry").to_numpy(zero_copy_only=False)), np.object_)


def touching(tree: shapely.STRtree, geometries: Geometries) -> tuple[Indexes, Indexes]:
    """Pairs of a geometry and a cell of the tree that it touches: the indexes of both, `[P]` each."""
    shapely.prepare(geometries)
    geometry, cell = tree.query(geometries, predicate="intersects")
    return geometry, cell


def _presences(files: Path, hexagons: Geometries, hidden: Hidden) -> NDArray[np.bool_]:
    """Whether each cell has each kind of object: `[N, K]`."""
    present = np.zeros((len(hexagons), len(hidden.objects)), bool)
    tree = shapely.STRtree(hexagons)
    for layer in LAYERS if hidden.objects else ():
        for batch in read_hidden(files, layer, None):
            is_kind = np.stack([kind.matches(tags_of(batch)) for kind in hidden.objects], axis=1)
            asked_for = np.nonzero(is_kind.any(axis=1))[0]
            feature, cell = touching(tree, geometries_of(batch.take(pa.array(asked_for))))
            np.logical_or.at(present, cell, is_kind[asked_for[feature]])
    return present


def _shares(files: Path, hexagons: Geometries, hidden: Hidden) -> Floats:
    """What share of each cell is of each class: `[N, K]`, at most 1 together."""
    pieces: list[list[tuple[float, int, shapely.Geometry]]] = [[] for _ in hexagons]
    for cell, piece in _pieces(files, hexagons, hidden):
        pieces[cell].append(piece)
    shares = np.zeros((len(hexagons), len(hidden.land_uses)))
    for cell, found in enumerate(pieces):
        covered: shapely.Geometry = shapely.Polygon()
        for _, kind, area in sorted(found, key=lambda piece: piece[:2]):
            before = covered.area
            covered = shapely.union(covered, area)
            shares[cell, kind] += covered.area - before
    size: Floats = shapely.area(hexagons)
    return shares / size[:, None]


def _pieces(
    files: Path, hexagons: Geometries, hidden: Hidden
) -> Iterator[tuple[int, tuple[float, int, shapely.Geometry]]]:
    """Every area of a class within every cell: the cell, and the whole area's size, its class, and the part within."""
    tree = shapely.STRtree(hexagons)
    for batch in read_hidden(files, "polygons", None):
        is_kind = np.stack([kind.matches(tags_of(batch)) for kind in hidden.land_uses], axis=1)
        asked_for = np.nonzero(is_kind.any(axis=1))[0]
        areas = geometries_of(batch.take(pa.array(asked_for)))
        areas = shapely.make_valid(areas, method="structure", keep_collapsed=False)
        size, kind_of = shapely.area(areas), is_kind[asked_for].argmax(axis=1)
        feature, cell = touching(tree, areas)
        # Where the two merely touch, that is a line or a point; a buffer of nothing keeps areas alone.
        parts = shapely.buffer(shapely.intersection(areas[feature], hexagons[cell]), 0)
        for index, within, part in zip(feature, cell, parts, strict=True):
            yield int(within), (float(size[index]), int(kind_of[index]), part)


def _class_label(hidden: Hidden, shares: Floats) -> tuple[Label | None, dict[str, str]]:
    """The class of each cell as a label, if at least two classes are frequent enough, and what was left out."""
    name = hidden.name.replace("-", " ")
    largest = np.where(shares.max(axis=1) >= MIN_SHARE, shares.argmax(axis=1), -1)
    values = np.full(len(shares), np.nan)
    classes: list[str] = []
    left_out: dict[str, str] = {}
    for index, kind in enumerate(hidden.land_uses):
        of_kind = largest == index
        n_cells = int(of_kind.sum())
        if n_cells < MIN_CLASS_CELLS:
            left_out[f"{name}: {kind.name}"] = f"{n_cells} cells are of this class; {MIN_CLASS_CELLS} are needed"
            continue
        values[of_kind] = len(classes)
        classes.append(kind.name)
    if len(classes) < 2:
        left_out[name] = f"{len(classes)} classes have {MIN_CLASS_CELLS} cells or more; two are needed"
        return None, left_out
    return Label(name, "class", values, tuple(classes)), left_out
