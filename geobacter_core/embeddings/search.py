"""Nearest cells in any number of tables: exact by one matrix product, or by an index where there are very many rows."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from geobacter_core.embeddings.index import Index
from geobacter_core.embeddings.mapped import MappedTable
from geobacter_core.errors import QueryError
from geobacter_core.geo import Place, ground_distance_m

_FIRST_LOOK = 4
_BLOCK = 256
_Query = NDArray[np.float32]
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Near:
    """A limit on the ground: at least and at most so many metres from the nearest of some places.

    Attributes:
        places: From where.
        min_m: Nearer cells are passed over.
        max_m: Cells farther away are; None for no limit.
    """

    places: tuple[Place, ...]
    min_m: float = 0.0
    max_m: float | None = None

    def away_m(self, lonlat: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far points `[N, 2]` in degrees are from the nearest place, metres, `[N]`."""
        lon, lat = lonlat.T
        away = [ground_distance_m(lon, lat, np.array([at.lon]), np.array([at.lat])) for at in self.places]
        return np.asarray(np.min(away, axis=0))


@dataclass(frozen=True, slots=True)
class Hit:
    """A cell that was found.

    Attributes:
        table: Its table.
        row: Its row there.
        similarity: Cosine with what was asked for, -1 to 1.
    """

    table: MappedTable
    row: int
    similarity: float

    @property
    def cell(self) -> str:
        """Its name."""
        return self.table.cell(self.row)

    @property
    def place(self) -> Place:
        """The cell's centre."""
        lon, lat = self.table.lonlat[self.row]
        return Place(float(lon), float(lat))

    def away_m(self, near: Near) -> float:
        """How far it is from the nearest of some places, metres."""
        return float(near.away_m(self.table.lonlat[self.row : self.row + 1])[0])


def top_rows(similarities: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The rows of the k highest of `[N]`, highest first, and of equal ones the first: exactly as a full sort has them.

    Raises:
        ValueError: k is negative.
    """
    if k < 0:
        raise ValueError("k must not be negative")
    if not k:
        return np.empty(0, np.int64)
    rows = np.arange(len(similarities))
    n_blocks = len(similarities) // _BLOCK
    if n_blocks >= k:
        # k blocks have a value of at least the kth largest of their maxima, and so have the k best rows.
        maxima = similarities[: n_blocks * _BLOCK].reshape(n_blocks, _BLOCK).max(axis=1)
        rows = np.flatnonzero(similarities >= np.partition(maxima, n_blocks - k)[n_blocks - k])
    return np.asarray(rows[np.argsort(-similarities[rows], kind="stable")][:k])


def nearest(
    tables: Sequence[MappedTable],
    query: _Query,
    k: int,
    near: Near | None = None,
    spacing_m: float = 0.0,
    not_cells: Collection[str] = (),
    indexes: Mapping[str, Index] = MappingProxyType({}),
) -> list[Hit]:
    """The cells of the highest cosine with `query` `[D]`, best first, at most k.

    Args:
        tables: Where; of equal cells that of the first table comes first.
        query: What is asked for; its length does not matter.
        k: How many.
        near: Where on the ground.
        spacing_m: A cell nearer than that to a better one is passed over: the answer is then not one place and its
            neighbours.
        not_cells: Cells that are passed over.
        indexes: Of tables, by digest: the rows that they name are looked at, and all only if these are not enough.

    Raises:
        QueryError: The query has another length than the embeddings, or is no direction at all.
    """
    query = unit(query)
    for table in tables:
        if table.embeddings.shape[1] != len(query):
            raise QueryError(
                f"The embedding has {len(query)} numbers, those of region '{table.region}' have "
                f"{table.embeddings.shape[1]}. Use one made by {table.encoder}."
            )
    wanted = _Wanted(k, near, spacing_m, not_cells)
    if any(table.digest in indexes for table in tables):
        named = [_looked_at(table, query, near, indexes.get(table.digest), k) for table in tables]
        if len(chosen := wanted.chosen_from(named)) == k:
            return chosen
    return wanted.chosen_from([_looked_at(table, query, near) for table in tables])


@dataclass(frozen=True, slots=True)
class _LookedAt:
    """Rows of a table `[M]` and their similarities `[M]`; those that are out of the question have -∞."""

    table: MappedTable
    rows: NDArray[np.int64] | slice
    similarities: NDArray[np.float32]

    def best(self, k: int) -> list[Hit]:
        chosen = [at for at in top_rows(self.similarities, k) if self.similarities[at] > -np.inf]
        rows = chosen if isinstance(self.rows, slice) else self.rows[chosen]
        return [Hit(self.table, int(row), float(self.similarities[at])) for row, at in zip(rows, chosen, strict=True)]


def _looked_at(
    table: MappedTable, query: _Query, near: Near | None, index: Index | None = None, k: int = 0
) -> _LookedAt:
    rows = slice(None) if index is None else index.candidates(query, k)
    similarities = np.asarray(table.embeddings[rows] @ query)
    if near is not None and (near.min_m > 0 or near.max_m is not None):
        away = near.away_m(np.asarray(table.lonlat[rows]))
        is_out = away < near.min_m
        if near.max_m is not None:
            is_out |= away > near.max_m
        similarities = np.where(is_out, np.float32(-np.inf), similarities)
    return _LookedAt(table, rows, similarities)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is asked for besides similarity."""

    k: int
    near: Near | None
    spacing_m: float
    not_cells: Collection[str]

    def chosen_from(self, parts: Sequence[_LookedAt]) -> list[Hit]:
        """The best that are wanted, at most k; looks at as many of the best as that takes."""
        k, n_all = self.k, sum(len(part.similarities) for part in parts)
        n = k if self.spacing_m <= 0 and not self.not_cells else _FIRST_LOOK * k + len(self.not_cells)
        while True:
            # The sort is stable: of equal ones that of the first table comes first.
            hits = sorted((hit for part in parts for hit in part.best(n)), key=lambda hit: -hit.similarity)[:n]
            wanted = (hit for hit in hits if hit.cell not in self.not_cells)
            chosen = spaced(wanted, lambda hit: hit.table.lonlat[hit.row], k, self.spacing_m)
            if len(chosen) == k or len(hits) < n or n >= n_all:
                return chosen
            n *= _FIRST_LOOK


def nearest_cell(tables: Sequence[MappedTable], place: Place) -> Hit:
    """The cell of one or more tables whose place is nearest on the ground: with hexagons, the one that it lies in."""

    def nearest_of(table: MappedTable) -> tuple[float, Hit]:
        away = Near((place,)).away_m(np.asarray(table.lonlat))
        row = int(away.argmin())
        return float(away[row]), Hit(table, row, 1.0)

    return min(map(nearest_of, tables), key=lambda found: found[0])[1]


def unit(query: _Query) -> _Query:
    """A vector `[D]` brought to length 1.

    Raises:
        QueryError: It has none, or a number that is not finite.
    """
    length = float(np.linalg.norm(query.astype(np.float64)))
    if not np.isfinite(length) or length < 1e-12:
        raise QueryError("The embedding has no direction: it is all zero, or not finite. Send one of an encoder.")
    return np.asarray(query / length, dtype=np.float32)


def spaced(
    found: Iterable[Found], lonlat_of: Callable[[Found], NDArray[np.float64]], k: int, spacing_m: float
) -> list[Found]:
    """The first k of what was found, best first, that are at least `spacing_m` metres from all chosen before them."""
    chosen: list[Found] = []
    places = np.empty((0, 2))
    for each in found:
        if len(chosen) == k:
            break
        if spacing_m > 0:
            here = lonlat_of(each)
            if chosen and ground_distance_m(places[:, 0], places[:, 1], here[:1], here[1:]).min() < spacing_m:
                continue
            places = np.vstack([places, here])
        chosen.append(each)
    return chosen
