"""The table that a refresh replaces: its rows, and the tiles that they were made from.

A window can only have changed where a tile under it has. So a refresh looks at the cells above changed tiles, cuts
their windows, and encodes those whose pixels differ; every other row is taken over as it is.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from geobacter_core.cells import H3_FINEST, Cells
from geobacter_core.embeddings.table import Part, read_metadata, schema
from geobacter_core.errors import EmbeddingsError
from geobacter_core.files import check_pages, written_aside, xxh3_of_file
from geobacter_core.geo import CHUNK_TILES, TILE_PX, Floats, lonlat_to_pixel, reach_m, window_half_px
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.window import Scales

_DIGEST_BYTES = 32
_FINER_BY = 2
"""Whether a coarse cell is touched is asked of its descendants: it may stick out far where nothing has changed."""
_FEW = 32
"""With fewer than one tile in so many changed, windows are read strip by strip."""
_FEW_GROUPS = 4
"""So many row groups are looked through for names, and kept in memory; of more, an index of all names is made."""
_RECIPE = b"geobacter:recipe"
_TABLE = b"geobacter:table"
_Tiles = dict[tuple[int, int], dict[str, Any]]
_SPARE_PX = 4.0
_REDUCED_PX = 6.0
"""A window is read from reduced pixels, of which up to two beyond its edge count: each is at most 2.83 of its half
sides over its pixels wide."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """What the table before says of N cells.

    Attributes:
        is_there: Whether it has the cell, `[N]`.
        embeddings: float32 `[N, D]`; where there is no row, anything.
        digests: Of the windows, `[N]`; where there is no row, empty.
        timestamps: Milliseconds since 1970, `[N]`: the state of the map in which the window last changed.
        has_moved: Whether the cell was somewhere else, `[N]`: a user's grid may give an id to another place.
        wkb: The cells' shapes, `[N]`, if it is known that they are these; they take long to make.
    """

    is_there: NDArray[np.bool_]
    embeddings: NDArray[np.float32]
    digests: list[bytes]
    timestamps: NDArray[np.int64]
    has_moved: NDArray[np.bool_]
    wkb: pa.ChunkedArray | None = None

    @classmethod
    def nothing(cls, n_cells: int, dim: int) -> "Known":
        """No row for any of the cells."""
        return cls(
            np.zeros(n_cells, bool),
            np.empty((n_cells, dim), np.float32),
            [b""] * n_cells,
            np.zeros(n_cells, np.int64),
            np.zeros(n_cells, bool),
        )

    def take(self, rows: NDArray[np.int64]) -> "Known":
        """What it says of some of them."""
        return Known(
            self.is_there[rows],
            self.embeddings[rows],
            [self.digests[row] for row in rows],
            self.timestamps[rows],
            self.has_moved[rows],
        )


class Before:
    """A table of the same encoder, read group by group."""

    def __init__(
        self, path: Path, file: pq.ParquetFile, metadata: dict[str, Any], of_parts: str, cache: TileCache
    ) -> None:
        self._file = file
        self._dim = int(metadata["embedding_dim"])
        groups = [file.metadata.row_group(number).column(0).statistics for number in range(file.num_row_groups)]
        self._first = np.array([group.min for group in groups])
        self._last = np.array([group.max for group in groups])
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._index: tuple[NDArray[np.uint64], NDArray[np.int64]] | None = None
        self._tiles = _read_tiles(path, str(metadata["recipe"]))
        self._changed = None if self._tiles is None else _changed_tiles(self._tiles, cache)
        self._cache = cache
        self._path = path
        self.n_tiles_changed = len(self._changed) if self._changed is not None else None
        self.metadata = metadata
        self._has_same_parts = metadata.get("of_parts") == of_parts
        self.parts = [Part(**part) for part in metadata["parts"]]
        if len(self.parts) != file.num_row_groups:
            raise ValueError("it does not have the parts that it lists")

    @property
    def needs_few_windows(self) -> bool:
        """Whether so few tiles have changed that it is faster to decode no others than those under their windows."""
        return self._changed is not None and _FEW * len(self._changed) < self._cache.manifest.n_tiles

    @classmethod
    def open(cls, path: Path, of_rows: str, of_parts: str, cache: TileCache) -> "Before | None":
        """The table at `path`, if it is whole and its rows are made the same way.

        Args:
            path: The table.
            of_rows: What the metadata must have as `rows_recipe`.
            of_parts: What cells, their shapes, and the words in their rows, follow from; of a table that has another
                as `of_parts`, only the rows of single cells are taken over.
            cache: The tiles of today.
        """
        try:
            metadata = read_metadata(path)
            if metadata.get("rows_recipe") != of_rows:
                return None
            check_table(path, str(metadata["recipe"]))
            file = pq.ParquetFile(path)
            if not file.schema_arrow.remove_metadata().equals(schema(int(metadata["embedding_dim"]))):
                return None
            statistics = [file.metadata.row_group(group).column(0).statistics for group in range(file.num_row_groups)]
            if any(of_cell is None or not of_cell.has_min_max for of_cell in statistics):
                return None
            return cls(path, file, metadata, of_parts, cache)
        except EmbeddingsError:  # missing, or said already by whoever asked whether it is up to date
            return None
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as problem:
            _log.warning("%s cannot be taken over (%s); all of it is made again", path, problem)
            return None

    def rows(self, cells: Cells) -> Known:
        """What it says of cells, which come batch by batch in the order of the table, as far as it has them."""
        names = np.array(cells.names)
        known = Known.nothing(len(cells), self._dim)
        if not len(cells):
            return known
        for group in self._groups_with(names):
            table = self._read(group)
            found = np.array(table["cell"].to_pylist())
            at = np.searchsorted(found, names)
            hit = np.flatnonzero((at < len(found)) & (found[np.minimum(at, len(found) - 1)] == names))
            rows = at[hit]
            known.is_there[hit] = True
            lon, lat = (table[name].to_numpy()[rows] for name in ("lon", "lat"))
            known.has_moved[hit] = (lon != cells.lon[hit]) | (lat != cells.lat[hit])
            known.embeddings[hit] = (
                table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, self._dim)[rows]
            )
            known.timestamps[hit] = table["osm_timestamp"].cast(pa.int64()).to_numpy()[rows]
            digests = table["window_digest"].to_pylist()
            for cell, row in zip(hit, rows, strict=True):
                known.digests[cell] = digests[row]
            if self._has_same_parts and len(hit) == len(cells):
                known = replace(known, wkb=table["geometry"].take(pa.array(rows)))
        return known

    def _groups_with(self, names: NDArray[np.str_]) -> list[int]:
        """Row groups that can have cells of these names, which ascend.

        By the first and last name of each group. H3 cells follow the ground, as the groups do, and one group is left.
        Ids need not: where many are left, by an index of all names.
        """
        groups = np.flatnonzero((self._last >= names[0]) & (self._first <= names[-1]))
        if len(groups) > _FEW_GROUPS:
            hashes, group_of = self._name_index()
            wanted = _hashes(names.tolist())
            at = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
            groups = np.unique(group_of[at[hashes[at] == wanted]])
        return [int(group) for group in groups]

    def _name_index(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes of all names in ascending order, and the row group of each; 16 bytes a row."""
        if self._index is None:
            of_group = [
                _hashes(self._file.read_row_group(group, columns=["cell"])["cell"].to_pylist())
                for group in range(self._file.num_row_groups)
            ]
            hashes = np.concatenate(of_group)
            order = np.argsort(hashes, kind="stable")
            groups = np.repeat(np.arange(len(of_group)), [len(found) for found in of_group])
            self._index = hashes[order], groups[order]
        return self._index

    def untouched_parts(self, extent_m: float, size_px: int) -> dict[str, tuple[Part, int]]:
        """Parts that can be taken over as they are, by name, and the numbers of their row groups.

        Args:
            extent_m: Side of the widest window, ground metres.
            size_px: Side of the windows in pixels.
        """
        if self._changed is None or not self.parts or not self._has_same_parts:
            return {}
        finer = [min(h3.get_resolution(part.name) + _FINER_BY, H3_FINEST) for part in self.parts]
        children = [h3.cell_to_children(part.name, at) for part, at in zip(self.parts, finer, strict=True)]
        n_children = [len(cells) for cells in children]
        of_part = np.repeat(np.arange(len(children)), n_children)
        lat, lon = np.array([h3.cell_to_latlng(cell) for cells in children for cell in cells]).T
        around_m = np.repeat([2 * reach_m(at) + extent_m for at in finer], n_children)
        is_touched = self.touched(lon, lat, around_m, size_px)
        untouched = np.flatnonzero(np.bincount(of_part[is_touched], minlength=len(children)) == 0)
        return {self.parts[number].name: (self.parts[number], int(number)) for number in untouched}

    def write_tiles(self, recipe: str) -> None:
        """Write down the tiles of today; of chunks that have not changed, as they were written down before."""
        write_tiles(self._path, recipe, self._cache, self._tiles)

    def touched(self, lon: Floats, lat: Floats, extent_m: float | Floats, size_px: int) -> NDArray[np.bool_]:
        """Whether a tile under the windows of places has changed, `[N]`; true everywhere if that is not known.

        Args:
            lon: Of the places, degrees, `[N]`.
            lat: Of the places, degrees, `[N]`.
            extent_m: Side of the widest window, ground metres, of all or of each.
            size_px: Side of the windows in pixels.
        """
        if self._changed is None:
            return np.ones(len(lon), bool)
        if not len(self._changed):
            return np.zeros(len(lon), bool)
        x, y = lonlat_to_pixel(lon, lat)
        half_x, half_y = window_half_px(lat, extent_m)
        margin = _REDUCED_PX * np.maximum(half_x, half_y) / size_px + _SPARE_PX
        corner, raster = _as_raster(self._changed)
        low = [_tile(x - half_x - margin, corner[0]), _tile(y - half_y - margin, corner[1])]
        high = [_tile(x + half_x + margin, corner[0]) + 1, _tile(y + half_y + margin, corner[1]) + 1]
        (west, east), (north, south) = (
            (np.clip(low[axis], 0, raster.shape[axis] - 1), np.clip(high[axis], 0, raster.shape[axis] - 1))
            for axis in (0, 1)
        )
        n_changed = raster[east, south] - raster[west, south] - raster[east, north] + raster[west, north]
        return np.asarray(n_changed > 0)

    def causes(self, cells: Cells, known: Known, scales: Scales, size_px: int) -> list[str]:
        """Why the rows of cells changed, of which this is known: one of `history.CAUSES` each, `[N]`.

        The smallest of a cell's windows under which a tile has changed, and where the changed tiles are not known, the
        largest; or that the cell is new, or has moved.
        """
        widths = {"surroundings": scales.surroundings_m, "context": scales.context_m, "window": scales.size_m}
        causes = np.full(len(cells), next(name for name, side_m in widths.items() if side_m is not None), "U12")
        for name, side_m in widths.items():
            if side_m is not None and self._changed is not None:
                causes[self.touched(cells.lon, cells.lat, side_m, size_px)] = name
        causes[known.has_moved] = "moved"
        causes[~known.is_there] = "new"
        found: list[str] = causes.tolist()
        return found

    def _read(self, group: int) -> pa.Table:
        if group not in self._groups:
            columns = ["cell", "lon", "lat", "embedding", "window_digest", "osm_timestamp"]
            columns += ["geometry"] if self._has_same_parts else []
            self._groups[group] = self._file.read_row_group(group, columns=columns).combine_chunks()
        self._groups.move_to_end(group)
        while len(self._groups) > _FEW_GROUPS:
            self._groups.popitem(last=False)
        return self._groups[group]


def _hashes(names: list[str]) -> NDArray[np.uint64]:
    return np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in names], np.uint64)


def _tile(px: Floats, first: int) -> NDArray[np.int64]:
    return np.floor(px / TILE_PX).astype(np.int64) - first


def _as_raster(tiles: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tiles `[M, 2]` as their north-west corner and the number of them north-west of each grid point."""
    corner = tiles.min(axis=0)
    sides = tiles.max(axis=0) - corner + 1
    raster = np.zeros(sides + 1, np.int64)
    raster[tuple((tiles - corner + 1).T)] = 1
    return corner, raster.cumsum(axis=0).cumsum(axis=1)


def tiles_file(path: Path) -> Path:
    """Where the digests of the tiles lie that a table was made from."""
    return path.with_name(f"{path.stem}.tiles.parquet")


def check_table(path: Path, recipe: str) -> bool:
    """Make sure that the table at `path`, made by a recipe, is as it was written.

    By a digest of its bytes, or else page by page.

    Returns:
        Whether the tiles and the digest are those that were written down with this table.

    Raises:
        OSError: It is not.
    """
    try:
        written_down = pq.read_metadata(tiles_file(path)).metadata or {}
    except (OSError, pa.ArrowException):
        written_down = {}
    if written_down.get(_RECIPE) == recipe.encode() and written_down.get(_TABLE) == xxh3_of_file(path).encode():
        return True
    check_pages(path)
    return False


def write_tiles(path: Path, recipe: str, cache: TileCache, before: _Tiles | None = None) -> None:
    """Write down the tiles that the table at `path`, made by a recipe, comes from: a row per chunk.

    Args:
        path: The table.
        recipe: Digest of what it follows from.
        cache: The tiles.
        before: Those of the table before: chunks that have not changed need not be looked at.
    """
    chunks = cache.manifest.chunks
    known = {row["digest"]: row["tiles"] for row in (before or {}).values()}
    table = pa.table(
        {
            "x": pa.array([chunk.x for chunk in chunks], pa.int32()),
            "y": pa.array([chunk.y for chunk in chunks], pa.int32()),
            "digest": pa.array([chunk.digest for chunk in chunks], pa.string()),
            "tiles": pa.array(
                [known.get(chunk.digest) or b"".join(cache.tile_digests(chunk.tile)) for chunk in chunks], pa.binary()
            ),
        },
        metadata={_RECIPE: recipe.encode(), _TABLE: xxh3_of_file(path).encode()},
    )
    with written_aside(tiles_file(path)) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def _read_tiles(path: Path, recipe: str) -> _Tiles | None:
    """What was written down for the table at `path`, made by a recipe, by chunk; None if nothing was."""
    try:
        table = pq.read_table(tiles_file(path), page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return None
    if (table.schema.metadata or {}).get(_RECIPE) != recipe.encode():
        return None
    return {(row["x"], row["y"]): row for row in table.to_pylist()}


def _changed_tiles(before: _Tiles, cache: TileCache) -> NDArray[np.int64]:
    """Columns and rows `[M, 2]` of the tiles that differ from those written down."""
    return np.array(list(_differing(before, cache)), np.int64).reshape(-1, 2)


def _differing(before: _Tiles, cache: TileCache) -> Iterator[tuple[int, int]]:
    now = {(chunk.x, chunk.y): chunk for chunk in cache.manifest.chunks}
    for place in sorted(before.keys() | now.keys()):
        x, y = place[0] * CHUNK_TILES, place[1] * CHUNK_TILES
        if place in before and place in now:
            if before[place]["digest"] == now[place].digest:
                continue
            old = np.frombuffer(before[place]["tiles"], f"S{_DIGEST_BYTES}")
            new = np.frombuffer(b"".join(cache.tile_digests(now[place].tile)), f"S{_DIGEST_BYTES}")
            differs = np.flatnonzero(old != new)
        else:
            differs = np.arange(CHUNK_TILES**2)
        for number in differs:
            yield x + int(number) % CHUNK_TILES, y + int(number) // CHUNK_TILES
