"""What the cells of a region are: H3's of some resolution, or the rows of a grid that its user brings.

An embedding table has a row for each cell of a `Grid`. Whichever grid it is, its cells come in batches of which each is
the ground of one H3 cell, so that memory stays flat, and a part of the table can be made, kept and compared by itself.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import h3
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from geobacter_core.errors import GridError
from geobacter_core.files import sha256_of_file
from geobacter_core.geo import (
    MAX_BATCH,
    Floats,
    H3Cells,
    cells_of,
    cells_within,
    coarse_cells,
    coarse_resolution,
)
from geobacter_core.grid_file import GridRows, read_grid
from geobacter_core.regions import Region

H3_FINEST = 15
_RESOLUTION_BIT = np.uint64(52)
_DIGIT_BITS = 3

_log = logging.getLogger(__name__)

Source = Mapping[str, str | int]


class Cells(Protocol):
    """Some cells of a region, N of them, in ascending order of name."""

    def __len__(self) -> int:
        """N."""
        ...

    def take(self, rows: NDArray[np.int64]) -> "Cells":
        """Some of them."""
        ...

    @property
    def names(self) -> list[str]:
        """What they are called, `[N]`: the column `cell`."""
        ...

    @property
    def lon(self) -> Floats:
        """Longitudes of their places, the middles of their windows, degrees, `[N]`."""
        ...

    @property
    def lat(self) -> Floats:
        """Latitudes of their places, degrees, `[N]`."""
        ...

    @property
    def geometries(self) -> NDArray[Any]:
        """Their shapes, degrees, lon first, `[N]`."""
        ...

    @property
    def along_ground(self) -> NDArray[np.int64]:
        """The rows in an order that follows the ground, so that windows next to each other are cut together, `[N]`."""
        ...


NO_CELLS = H3Cells(np.empty(0, np.uint64), np.empty(0), np.empty(0))


class Grid(Protocol):
    """The cells of a region."""

    @property
    def source(self) -> Source:
        """What the cells come from, as a table's metadata state it."""
        ...

    @property
    def metadata(self) -> Source:
        """All that a table's metadata state of its cells: `source`, and what there is to know of the cells."""
        ...

    @property
    def recipe(self) -> tuple[str | int, ...]:
        """What the cells follow from."""
        ...

    @property
    def batch_recipe(self) -> tuple[str | int, ...]:
        """What batches follow from."""
        ...

    @property
    def geometry_digests(self) -> tuple[str, ...]:
        """Digests of the shapes that are not told by a cell's name."""
        ...

    @property
    def geometry_types(self) -> tuple[str, ...]:
        """Types of the shapes, by GeoParquet's names."""
        ...

    @property
    def why_empty(self) -> str:
        """Why it may have no cells, and what to do then: the end of an error."""
        ...

    def count(self) -> int:
        """How many cells there are."""
        ...

    def batch_names(self) -> list[str]:
        """The batches, in the order of the table: H3 strings of the cells whose ground they are. Some may be empty."""
        ...

    def batch(self, name: str) -> Cells:
        """The cells of a batch."""
        ...


def grid_of(region: Region, ground: shapely.Geometry) -> Grid:
    """The grid that a region names, on its ground (degrees).

    Raises:
        GridError: The file that it names cannot be read.
    """
    if region.cells is None:
        return H3Grid(ground, region.cell_resolution)
    return UserGrid(Path(region.cells), ground)


@dataclass(frozen=True, slots=True)
class H3Grid:
    """The H3 cells whose centre lies on some ground.

    Attributes:
        ground: In degrees.
        resolution: Of the cells.
    """

    ground: shapely.Geometry
    resolution: int

    @property
    def source(self) -> Source:
        """The resolution."""
        return {"cell_resolution": self.resolution}

    @property
    def metadata(self) -> Source:
        """The resolution."""
        return self.source

    @property
    def recipe(self) -> tuple[str | int, ...]:
        """Ground and resolution."""
        return shapely.to_wkt(self.ground), self.resolution

    @property
    def batch_recipe(self) -> tuple[str | int, ...]:
        """The same, and the resolution of the cells whose descendants are a batch."""
        return *self.recipe, coarse_resolution(self.resolution)

    @property
    def geometry_digests(self) -> tuple[str, ...]:
        """None: an H3 string says where the cell is."""
        return ()

    @property
    def geometry_types(self) -> tuple[str, ...]:
        """Polygons."""
        return ("Polygon",)

    @property
    def why_empty(self) -> str:
        """The cells are too large."""
        return (
            f"no cell of resolution {self.resolution} has its centre in the region. "
            "Give it a finer cell_resolution in regions.toml."
        )

    def count(self) -> int:
        """How many cells there are; they are enumerated for that."""
        return sum(len(cells) for cells in cells_within(self.ground, self.resolution))

    def batch_names(self) -> list[str]:
        """The coarse cells, in ascending order."""
        return coarse_cells(self.ground, self.resolution)

    def batch(self, name: str) -> H3Cells:
        """The descendants of a coarse cell."""
        return cells_of(name, self.ground, self.resolution)


@dataclass(frozen=True, slots=True)
class UserCells:
    """A batch of rows of a user's grid, in ascending order of id.

    Attributes:
        names: Ids, `[N]`.
        lon: Places, degrees, `[N]`.
        lat: Places, degrees, `[N]`.
        geometries: Points and polygons, degrees, `[N]`.
        along_ground: Rows in the order of the H3 cells that their places lie in, `[N]`.
    """

    names: list[str]
    lon: Floats
    lat: Floats
    geometries: NDArray[Any]
    along_ground: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: NDArray[np.int64]) -> "UserCells":
        """Some of them."""
        position = np.empty(len(self), np.int64)
        position[self.along_ground] = np.arange(len(self))
        names = [self.names[row] for row in rows]
        return UserCells(
            names, self.lon[rows], self.lat[rows], self.geometries[rows], np.argsort(position[rows], kind="stable")
        )


class UserGrid:
    """The rows of a user's grid whose place lies on some ground.

    A batch is the largest H3 cell that has at most `MAX_BATCH` of the places, down to H3's finest, so it suits places
    however dense they are. The file is read when its rows are first asked for. From then on ids, places and shapes (as
    WKB) are in memory, those of the ground.
    """

    def __init__(self, path: Path, ground: shapely.Geometry) -> None:
        """Find the grid.

        Args:
            path: A GeoParquet file, see `grid_file`.
            ground: What the region covers, in degrees.

        Raises:
            GridError: The file cannot be read.
        """
        self._path = path
        self._ground = ground
        try:
            self._digest = sha256_of_file(path)
        except OSError as problem:
            raise GridError(f"{path} cannot be read ({problem.strerror}). Correct `cells` in regions.toml.") from None

    @property
    def source(self) -> Source:
        """The file and its digest."""
        return {"cells": self._path.name, "cells_sha256": self._digest}

    @property
    def metadata(self) -> Source:
        """The file, its digest, and how many of its rows lie outside the ground."""
        return {**self.source, "n_outside": self._rows.n_outside}

    @property
    def recipe(self) -> tuple[str | int, ...]:
        """Ground and file."""
        return shapely.to_wkt(self._ground), self._digest

    @property
    def batch_recipe(self) -> tuple[str | int, ...]:
        """The same, and how many places a batch has at most."""
        return *self.recipe, MAX_BATCH

    @property
    def geometry_digests(self) -> tuple[str, ...]:
        """One of all ids and shapes."""
        sha = hashlib.sha256()
        for begin in range(0, len(self._rows), MAX_BATCH):
            ids, wkb = (column[begin : begin + MAX_BATCH].to_pylist() for column in (self._rows.ids, self._rows.wkb))
            sha.update(json.dumps(ids).encode())
            sha.update(b"".join(wkb))
        return (sha.hexdigest(),)

    @property
    def geometry_types(self) -> tuple[str, ...]:
        """Those that there are."""
        return self._rows.geometry_types

    @property
    def why_empty(self) -> str:
        """It is another region's grid, or in another reference system than it states."""
        return (
            f"none of the {self._rows.n_outside:,} places of {self._path} lies in the region. Is it another region's "
            "grid, or in another coordinate reference system than it states? Correct it, or `cells` in regions.toml."
        )

    def count(self) -> int:
        """How many rows lie on the ground."""
        return len(self._rows)

    def batch_names(self) -> list[str]:
        """The H3 cells that are a batch each, along the ground."""
        return list(self._batches)

    def batch(self, name: str) -> UserCells:
        """The rows whose place lies in one of these."""
        begin, end = self._batches[name]
        ids = self._rows.ids[begin:end].to_pylist()
        order = np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)
        wkb = self._rows.wkb[begin:end].to_numpy(zero_copy_only=False)
        return UserCells(
            [ids[row] for row in order],
            self._rows.lon[begin:end][order],
            self._rows.lat[begin:end][order],
            np.asarray(shapely.from_wkb(wkb[order]), object),
            np.argsort(order),
        )

    def find(self, ids: Sequence[str]) -> tuple[Floats, Floats]:
        """Longitudes and latitudes of rows' places, degrees, `[N]`; NaN where no row on the ground has the id."""
        at = pc.index_in(pa.array(ids, pa.large_string()), value_set=self._rows.ids).to_numpy(zero_copy_only=False)
        is_there = np.isfinite(at)
        rows = at[is_there].astype(np.int64)
        lon, lat = np.full(len(at), np.nan), np.full(len(at), np.nan)
        lon[is_there], lat[is_there] = self._rows.lon[rows], self._rows.lat[rows]
        return lon, lat

    @property
    def _rows(self) -> GridRows:
        return self._read[0]

    @property
    def _batches(self) -> dict[str, tuple[int, int]]:
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[GridRows, dict[str, tuple[int, int]]]:
        """The rows in the order of the finest H3 cells that hold them, and where each batch begins and ends.

        Rows in one such cell are in the order of their ids, so that the order of the file does not matter.
        """
        found = read_grid(self._path, self._ground)
        finest = _finest_cells(found.lon, found.lat)
        by_id = pc.sort_indices(found.ids).to_numpy()
        order = by_id[np.argsort(finest[by_id], kind="stable")]
        if found.n_outside:
            _log.info(
                "%s: %s of %s places lie outside the region and are left out",
                self._path,
                f"{found.n_outside:,}",
                f"{len(found) + found.n_outside:,}",
            )
        return found.take(order), dict(_batches(finest[order]))


def _finest_cells(lon: Floats, lat: Floats) -> NDArray[np.uint64]:
    """The H3 cells of the finest resolution that hold places, in degrees, `[N]`."""
    cells = [h3.str_to_int(h3.latlng_to_cell(*latlon, H3_FINEST)) for latlon in zip(lat, lon, strict=True)]
    return np.array(cells, np.uint64)


def ancestors(finest: NDArray[np.uint64], resolution: int) -> NDArray[np.uint64]:
    """Those of a resolution that H3 cells of the finest resolution descend from, `[N]`; they ascend where these do.

    An index has its resolution in four bits, and below them three for the digit of each resolution, ones where unused.
    """
    unused = np.uint64((1 << _DIGIT_BITS * (H3_FINEST - resolution)) - 1)
    others = ~(np.uint64(H3_FINEST) << _RESOLUTION_BIT)
    return np.asarray(finest & others | np.uint64(resolution) << _RESOLUTION_BIT | unused)


def _batches(finest: NDArray[np.uint64], resolution: int = 0, begin: int = 0) -> Iterator[tuple[str, tuple[int, int]]]:
    """Split cells in ascending order: name of each batch, and where in `finest` it begins and ends, plus `begin`."""
    coarse, first = np.unique(ancestors(finest, resolution), return_index=True)
    for cell, (low, high) in zip(coarse, pairwise([*first.tolist(), len(finest)]), strict=True):
        if high - low > MAX_BATCH and resolution < H3_FINEST:
            yield from _batches(finest[low:high], resolution + 1, begin + low)
        else:
            yield h3.int_to_str(int(cell)), (begin + low, begin + high)
