"""Files of a user's own grid of cells: GeoParquet, a row for each cell.

- `id`: text or whole numbers, which become text; no two alike, none missing.
- The file's primary geometry: a point, polygon or multipolygon in each row, encoded as WKB (which geopandas does), in
  the coordinate reference system that the file states; without a statement that is degrees, as GeoParquet says.
- Other columns are passed over.

A file is read piece by piece, and of each piece only what lies on the region's ground is kept.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyproj
import shapely
from numpy.typing import NDArray

from geobacter_core.errors import GridError
from geobacter_core.geo import Floats

ID = "id"
_PIECE_ROWS = 8192
_TYPES = {
    shapely.GeometryType.POINT: "Point",
    shapely.GeometryType.POLYGON: "Polygon",
    shapely.GeometryType.MULTIPOLYGON: "MultiPolygon",
}
_FORMAT = "A grid is GeoParquet with a column `id` and points or polygons, as geopandas' to_parquet writes it."
_IDS = "Give each row an id, text or a whole number, that no other row has."
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)

Geometries = NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class GridRows:
    """Rows of a grid, N of them.

    Attributes:
        ids: Text, `[N]`.
        lon: Of their places, degrees, `[N]`.
        lat: Of their places, degrees, `[N]`.
        wkb: Their points and polygons, degrees, lon first, `[N]`.
        geometry_types: Which types of geometry these are, by GeoParquet's names.
        n_outside: Rows of the file that were left out, because their place is not on the ground.
    """

    ids: pa.Array
    lon: Floats
    lat: Floats
    wkb: pa.Array
    geometry_types: tuple[str, ...]
    n_outside: int

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64]) -> "GridRows":
        """Some of them, or all in another order."""
        at = pa.array(rows)
        return replace(self, ids=self.ids.take(at), lon=self.lon[rows], lat=self.lat[rows], wkb=self.wkb.take(at))


def read_grid(path: Path, ground: shapely.Geometry) -> GridRows:
    """Read those rows of a grid whose place lies within `ground` (degrees), in the order of the file.

    Raises:
        GridError: The file is missing or not what this module's text says.
    """
    shapely.prepare(ground)
    ids, lons, lats, wkbs = [], [], [], []
    types: set[str] = set()
    n_rows = 0
    for piece_ids, geometries in _pieces(path):
        lon, lat = places_of(geometries)
        inside = np.flatnonzero(shapely.contains_xy(ground, lon, lat))
        n_rows += len(geometries)
        ids.append(piece_ids.take(pa.array(inside)))
        lons.append(lon[inside])
        lats.append(lat[inside])
        wkbs.append(pa.array(shapely.to_wkb(geometries[inside]), pa.large_binary()))
        types.update(_TYPES[shapely.GeometryType(kind)] for kind in np.unique(shapely.get_type_id(geometries[inside])))
    kept = pa.concat_arrays(ids)
    return GridRows(
        kept,
        np.concatenate(lons),
        np.concatenate(lats),
        pa.concat_arrays(wkbs),
        tuple(sorted(types)),
        n_rows - len(kept),
    )


def check_grid(path: Path) -> None:
    """Read a grid through.

    Raises:
        GridError: The file is missing or not what this module's text says.
    """
    for _ in _pieces(path):
        pass


def places_of(geometries: Geometries) -> tuple[Floats, Floats]:
    """Longitudes and latitudes of the places of points and polygons `[N]`, in degrees.

    That of a point is the point, that of a polygon its centroid, or where this lies outside, some point within it.
    Coordinates that are not finite have none: NaN.
    """
    places = np.full(len(geometries), shapely.Point(np.nan, np.nan), object)
    is_finite = np.isfinite(shapely.bounds(geometries)).all(axis=1)
    places[is_finite] = shapely.centroid(geometries[is_finite])
    is_elsewhere = is_finite & ~shapely.intersects(geometries, places)
    places[is_elsewhere] = shapely.point_on_surface(geometries[is_elsewhere])
    return np.asarray(shapely.get_x(places)), np.asarray(shapely.get_y(places))


def _pieces(path: Path) -> Iterator[tuple[pa.Array, Geometries]]:
    """A grid's rows: ids, large strings, and geometries in degrees, lon first."""
    try:
        with pq.ParquetFile(path) as file:
            described = _geo_metadata(path, file.schema_arrow)
            column = str(described["primary_column"])
            to_degrees = _ToDegrees(path, described["columns"][column])
            _check_ids(path, file)
            begin = 1
            for batch in file.iter_batches(_PIECE_ROWS, columns=[ID, column]):
                geometries = _geometries(path, begin, batch.column(column))
                yield _texts(path, batch.column(ID)), to_degrees(geometries)
                begin += len(geometries)
    except FileNotFoundError:
        raise GridError(f"{path} does not exist. Correct `cells` in regions.toml.") from None
    except (OSError, pa.ArrowException) as problem:
        raise GridError(f"{path} is not Parquet, or is damaged: {problem}. {_FORMAT}") from None


def _geo_metadata(path: Path, schema: pa.Schema) -> dict[str, Any]:
    """What the file says of its geometry, as far as it can be read here."""
    if ID not in schema.names:
        raise GridError(f"{path} has no column `id`; it has {', '.join(f'`{name}`' for name in schema.names)}. {_IDS}")
    try:
        described: dict[str, Any] = json.loads((schema.metadata or {})[b"geo"])
        column = described["primary_column"]
        encoding = described["columns"][column]["encoding"]
        is_there = column in schema.names
    except (KeyError, ValueError, TypeError):
        raise GridError(f"{path} is Parquet, but does not say where its geometry is. {_FORMAT}") from None
    if not is_there:
        raise GridError(f"{path} has no column `{column}`, which it states to be its geometry. {_FORMAT}")
    if encoding != "WKB":
        raise GridError(
            f"{path}, column `{column}`: its geometry is encoded as {encoding}. "
            "Write it as WKB, as geopandas' to_parquet does."
        )
    return described


class _ToDegrees:
    """Brings geometries to degrees, EPSG:4326, lon first."""

    def __init__(self, path: Path, described: Mapping[str, Any]) -> None:
        stated = described.get("crs", "OGC:CRS84")
        if stated is None:
            raise GridError(
                f"{path} says that the coordinate reference system of its geometry is unknown. State it, for example "
                "by geopandas' set_crs, and write the file anew."
            )
        try:
            crs = pyproj.CRS.from_user_input(stated)
        except pyproj.exceptions.CRSError as problem:
            raise GridError(
                f"{path}: the coordinate reference system that it states cannot be read ({problem}). "
                "Write the file anew with another."
            ) from None
        self._is_identity = any(crs.equals(known) for known in ("EPSG:4326", "OGC:CRS84"))
        self._transformer = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)

    def __call__(self, geometries: Geometries) -> Geometries:
        return np.asarray(shapely.transform(geometries, self._transformed), object)

    def _transformed(self, xy: Floats) -> Floats:
        return xy if self._is_identity else np.stack(self._transformer.transform(xy[:, 0], xy[:, 1]), axis=1)


def _check_ids(path: Path, file: pq.ParquetFile) -> None:
    """All at once: two rows with the same id may lie far apart."""
    ids = _texts(path, file.read(columns=[ID])[ID].combine_chunks())
    if not len(ids):
        raise GridError(f"{path} has no rows. {_FORMAT}")
    is_missing = pc.or_kleene(pc.is_null(ids), pc.equal(pc.utf8_trim_whitespace(ids), "")).fill_null(True)
    if (row := pc.index(is_missing, True).as_py()) >= 0:
        raise GridError(f"{path}, column `id`, row {row + 1}: the id is missing. {_IDS}")
    if len(pc.unique(ids)) < len(ids):
        row_of: dict[str, int] = {}
        for row, id_ in enumerate(ids.to_pylist(), start=1):
            if row_of.setdefault(id_, row) != row:
                raise GridError(f"{path}, column `id`: {id_} is in row {row_of[id_]} and in row {row}. {_IDS}")


def _texts(path: Path, ids: pa.Array) -> pa.Array:
    """Ids as large strings."""
    kind = ids.type.value_type if pa.types.is_dictionary(ids.type) else ids.type
    if not (pa.types.is_integer(kind) or any(is_text(kind) for is_text in _TEXTS)):
        raise GridError(f"{path}, column `id`: it holds {kind}, neither text nor whole numbers. {_IDS}")
    return ids.cast(kind).cast(pa.large_string())


def _geometries(path: Path, begin: int, column: pa.Array) -> Geometries:
    """Points and polygons of a piece whose first row has a number."""
    try:
        found = np.asarray(shapely.from_wkb(column.to_numpy(zero_copy_only=False)), object)
    except (shapely.errors.GEOSException, TypeError) as problem:
        raise GridError(
            f"{path}, column `{ID}`, rows from {begin}: a geometry is not WKB ({problem}). {_FORMAT}"
        ) from None
    is_fit = np.isin(shapely.get_type_id(found), [int(kind) for kind in _TYPES]) & ~shapely.is_empty(found)
    if not is_fit.all():
        row = int(np.flatnonzero(~is_fit)[0])
        what = "there is no geometry" if found[row] is None else f"the geometry is {str(found[row])[:40]}"
        raise GridError(
            f"{path}, row {begin + row}: {what}. Give each row a point, a polygon or a multipolygon that is not empty."
        )
    return found
