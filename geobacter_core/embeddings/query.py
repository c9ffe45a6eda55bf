"""Questions to embeddings: which places are alike, and what lies between two.

`similar_places`, `walk` and `arithmetic` ask them of a table as a GeoDataFrame, as `geopandas.read_parquet` reads it;
their answers are rows of it, the same as those of the API.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import h3
import numpy as np
import shapely
from numpy.typing import NDArray

from geobacter_core.embeddings.mapped import MappedTable
from geobacter_core.embeddings.search import Hit, Near, nearest, spaced, top_rows
from geobacter_core.errors import EmbeddingsError, OutsideError
from geobacter_core.geo import Place

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

Embeddings = NDArray[np.float32]
Where = Place | str | Embeddings
"""A place stands for the cell that it lies in; or a cell's name; or an embedding `[D]`."""
_COLUMNS = ("cell", "lon", "lat", "embedding")


def similar(
    embeddings: Embeddings,
    query: NDArray[np.float32],
    k: int,
    lonlat: NDArray[np.float64] | None = None,
    spacing_m: float = 0.0,
) -> NDArray[np.int64]:
    """Rows of `embeddings` `[N, D]` of the highest cosine with `query` `[D]`, best first, at most `k`.

    With `lonlat` `[N, 2]` (degrees) and `spacing_m`, a row nearer than that to a better one is passed over, so that the
    answer is not one place and its neighbours.
    """
    similarities = embeddings @ query
    if lonlat is None or spacing_m <= 0:
        return top_rows(similarities, k)
    rows = np.argsort(-similarities, kind="stable")
    return np.array(spaced(rows, lambda row: lonlat[row], k, spacing_m), dtype=np.int64)


def interpolate(start: NDArray[np.float32], end: NDArray[np.float32], steps: int) -> Embeddings:
    """`steps` vectors of length 1 from `start` to `end` `[D]`, both included, evenly along the great circle between.

    Shoemake: "Animating rotation with quaternion curves" (SIGGRAPH 1985), for any D.
    """
    angle = float(np.arccos(np.clip(start @ end, -1.0, 1.0)))
    t = np.linspace(0.0, 1.0, steps)[:, None]
    if angle < 1e-6:
        mixed = (1 - t) * start + t * end
    else:
        mixed = (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)
    return np.asarray(mixed / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def similar_places(frame: "GeoDataFrame", like: Where, k: int = 10, min_distance_m: float = 0.0) -> "GeoDataFrame":
    """The rows whose embeddings are most similar, best first, at most `k`.

    Args:
        frame: A table of embeddings, or several of one encoder in one frame.
        like: What they are to be similar to.
        k: How many.
        min_distance_m: So far they are from each other, and from the place or cell, in ground metres.

    Returns:
        Those rows, with `similarity` (cosine, -1 to 1) and `ground_m`: how far a row's cell is from the place or the
        cell's centre; NaN where an embedding was given.

    Raises:
        EmbeddingsError: The frame is no table of embeddings, has no such cell, or embeddings of another length.
        OutsideError: The place lies in none of its cells.
    """
    return _Frame(frame).found([like], [], k, min_distance_m)


def arithmetic(
    frame: "GeoDataFrame", plus: Sequence[Where], minus: Sequence[Where] = (), k: int = 10, min_distance_m: float = 0.0
) -> "GeoDataFrame":
    """The rows most similar to the sum of some embeddings less the sum of others, as `similar_places` has them.

    Where several places or cells are given, they are not among the answers. `ground_m` is the distance from the
    nearest of them.

    Raises:
        EmbeddingsError: As `similar_places`.
        OutsideError: As `similar_places`.
    """
    return _Frame(frame).found(plus, minus, k, min_distance_m)


def walk(frame: "GeoDataFrame", start: Where, end: Where, steps: int = 7) -> "GeoDataFrame":
    """The rows nearest to `steps` points evenly along the way from one embedding to another, both included.

    No row comes twice, but where the ends are one.

    Returns:
        Those rows, with `t` (0 at the start, 1 at the end) and `similarity` to the point on the way.

    Raises:
        EmbeddingsError: As `similar_places`.
        OutsideError: As `similar_places`.
    """
    known = _Frame(frame)
    walked = walk_between([known.table], known.embedding(start), known.embedding(end), steps)
    rows = frame.iloc[[hit.row for _, hit in walked]]
    return rows.assign(t=[t for t, _ in walked], similarity=[hit.similarity for _, hit in walked])


def walk_between(
    tables: Sequence[MappedTable], start: Embeddings, end: Embeddings, steps: int
) -> list[tuple[float, Hit]]:
    """The cells nearest to `steps` points on the way between two embeddings `[D]`, and where on it, 0 to 1.

    No cell comes twice, which is what a walk looks like that stands still.

    Raises:
        QueryError: The embeddings have another length than those of the tables.
    """
    ends = [nearest(tables, vector, 1)[0] for vector in (start, end)]
    seen = {hit.cell for hit in ends}
    walked = [(0.0, ends[0])]
    for number, vector in enumerate(interpolate(start, end, steps)[1:-1], 1):
        for hit in nearest(tables, vector, 1, not_cells=seen):
            seen.add(hit.cell)
            walked.append((number / (steps - 1), hit))
    return [*walked, (1.0, ends[1])]


class _Frame:
    """A GeoDataFrame, and the same as a table that can be searched."""

    def __init__(self, frame: "GeoDataFrame") -> None:
        self.frame = frame
        missing = [name for name in _COLUMNS if name not in frame.columns]
        if missing or not len(frame):
            wrong = f"has no column '{missing[0]}'" if missing else "has no rows"
            raise EmbeddingsError(
                f"The frame {wrong}. Read a table of embeddings: geopandas.read_parquet of embeddings.parquet."
            )
        try:
            embeddings = np.stack(frame["embedding"].to_numpy()).astype(np.float32, copy=False)
        except ValueError:
            raise EmbeddingsError(
                "Column 'embedding' has vectors of several lengths. Put tables of one encoder into a frame."
            ) from None
        self.cells = frame["cell"].to_numpy()
        encoders = frame["encoder"].unique() if "encoder" in frame.columns else ["its encoder"]
        if len(encoders) > 1:
            raise EmbeddingsError(
                f"The frame has embeddings of {', '.join(sorted(encoders))}, which cannot be compared. Keep the rows "
                "of one."
            )
        self.table = MappedTable(
            embeddings,
            frame[["lon", "lat"]].to_numpy(np.float64),
            {"region": "the frame", "digest": "", "encoder": encoders[0]},
            np.array([cell.encode() for cell in self.cells]),
            np.empty(0, np.uint8),
            np.zeros(len(frame), np.int64),
        )

    def found(self, plus: Sequence[Where], minus: Sequence[Where], k: int, min_distance_m: float) -> "GeoDataFrame":
        """The rows nearest to a sum, less another."""
        if not len(plus):
            raise EmbeddingsError("There is nothing to be similar to. Give at least one place, cell or embedding.")
        vectors = np.stack([self.embedding(where) for where in plus])
        vector = vectors.sum(axis=0)
        if len(minus):
            vector = vector - np.stack([self.embedding(where) for where in minus]).sum(axis=0)
        places = tuple(place for where in (*plus, *minus) if (place := self.place(where)) is not None)
        near = Near(places, min_distance_m) if places else None
        # Who gives several places wants others like them.
        own = {str(self.cells[self._row(where)]) for where in (*plus, *minus) if isinstance(where, Place | str)}
        hits = nearest([self.table], vector, k, near, min_distance_m, own if len(places) > 1 else ())
        rows = [hit.row for hit in hits]
        away = np.full(len(rows), np.nan) if near is None or not rows else near.away_m(self.table.lonlat[rows])
        return self.frame.iloc[rows].assign(similarity=[hit.similarity for hit in hits], ground_m=away)

    def embedding(self, where: Where) -> Embeddings:
        """What stands for a place or cell."""
        if isinstance(where, Place | str):
            return np.asarray(self.table.embeddings[self._row(where)])
        return np.asarray(where, dtype=np.float32)

    def place(self, where: Where) -> Place | None:
        """Where that is on the ground."""
        if isinstance(where, str):
            lon, lat = self.table.lonlat[self._row(where)]
            return Place(float(lon), float(lat))
        return where if isinstance(where, Place) else None

    def _row(self, where: Place | str) -> int:
        if isinstance(where, str):
            rows = np.flatnonzero(self.cells == where)
            if not len(rows):
                raise EmbeddingsError(f"The frame has no cell '{where}'. Give one of its column 'cell', or a Place.")
            return int(rows[0])
        if h3.is_valid_cell(self.cells[0]):
            resolution = h3.get_resolution(self.cells[0])
            rows = np.flatnonzero(self.cells == h3.latlng_to_cell(where.lat, where.lon, resolution))
        else:  # rows of a user's own grid
            rows = np.flatnonzero(self.frame.geometry.covers(shapely.Point(where.lon, where.lat)).to_numpy())
        if not len(rows):
            raise OutsideError(
                f"Place lon={where.lon} lat={where.lat}: it lies in none of the frame's {len(self.frame):,} cells. "
                "Give one within the region, longitude first; or a cell by its name."
            )
        return int(rows[0])
