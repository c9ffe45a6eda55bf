"""The embedding table of a region: GeoParquet, one row per cell, sorted.

A row group is a part: the cells on the ground of one coarse H3 cell. Parts follow the ground, and cells ascend within
each. H3 cells thus ascend throughout the table; the ids of a user's grid, as text, only within a part.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely
from numpy.typing import NDArray

from geobacter_core.cells import Cells, Grid
from geobacter_core.errors import EmbeddingsError, GeobacterError
from geobacter_core.files import aside, written_aside
from geobacter_core.geo import h3_polygons
from geobacter_core.splice import splice

_PART = b"geobacter:part"
_LENGTH_TOLERANCE = 1e-3
_REMEDY = "Materialise region_embeddings for the region."


def schema(embedding_dim: int) -> pa.Schema:
    """Columns of a table whose embeddings have D numbers."""
    return pa.schema(
        [
            pa.field("cell", pa.string(), nullable=False),
            pa.field("geometry", pa.binary(), nullable=False),
            pa.field("lon", pa.float64(), nullable=False),
            pa.field("lat", pa.float64(), nullable=False),
            pa.field(
                "embedding",
                pa.list_(pa.field("element", pa.float32(), nullable=False), embedding_dim),
                nullable=False,
            ),
            pa.field("window_digest", pa.binary(), nullable=False),
            pa.field("encoder", pa.string(), nullable=False),
            pa.field("style", pa.string(), nullable=False),
            pa.field("osm_timestamp", pa.timestamp("ms", tz="UTC"), nullable=False),
        ]
    )


COLUMNS = {
    "cell": "H3 index of the cell, or its id in the user's grid",
    "geometry": "the cell's polygon, or what the user's grid has, EPSG:4326, WKB",
    "lon": "longitude of the cell's place, the middle of the window, degrees",
    "lat": "latitude of the cell's place, degrees",
    "embedding": "float32 vector of length 1",
    "window_digest": "XXH3 (128 bits) of the window's pixels: equal windows have equal ones",
    "encoder": "name/version in the MLflow registry",
    "style": "name/version of the map style",
    "osm_timestamp": "state of the OSM data in which the window last changed",
}


@dataclass(frozen=True, slots=True)
class EmbeddingTable:
    """A table that has been read.

    Attributes:
        cells: H3 strings `[N]`, ascending; or ids of a user's grid, in the order of the file.
        lon: Cells' places, degrees, `[N]`.
        lat: Cells' places, degrees, `[N]`.
        embeddings: float32 `[N, D]`, rows of length 1.
        metadata: What the table was made from: region, encoder, digests, counts.
        digest: Of the rows' content, see `content_digest`: the asset's data version.
        wkb: The cells' shapes, degrees, `[N]`; None where the names are H3's, which tell them.
    """

    cells: NDArray[np.str_]
    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    embeddings: NDArray[np.float32]
    metadata: Mapping[str, Any]
    digest: str
    wkb: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.cells)

    def take(self, rows: NDArray[np.int64]) -> "EmbeddingTable":
        """The same table with some of its rows."""
        return replace(
            self,
            cells=self.cells[rows],
            lon=self.lon[rows],
            lat=self.lat[rows],
            embeddings=self.embeddings[rows],
            wkb=None if self.wkb is None else self.wkb.take(pa.array(rows)),
        )

    @property
    def geometries(self) -> NDArray[Any]:
        """The cells' shapes, degrees, lon first, `[N]`: polygons, of a user's grid also multipolygons and points."""
        if self.wkb is None:
            return h3_polygons(self.cells.tolist())
        return np.asarray(shapely.from_wkb(self.wkb.to_numpy(zero_copy_only=False)), object)


def read_metadata(path: Path) -> dict[str, Any]:
    """What a table says that it was made from.

    Raises:
        EmbeddingsError: The file is missing, damaged, or not one of Geobacter's.
    """
    try:
        found = pq.read_schema(path).metadata or {}
        document: dict[str, Any] = json.loads(found[b"geobacter"])
    except FileNotFoundError:
        raise EmbeddingsError(f"{path} does not exist. {_REMEDY}") from None
    except (pa.ArrowException, OSError, KeyError, ValueError) as problem:
        raise EmbeddingsError(f"{path} is damaged: {problem}. {_REMEDY}") from None
    return document


def read_table(path: Path) -> EmbeddingTable:
    """Read a region's table into memory.

    Raises:
        EmbeddingsError: The file is missing or damaged.
    """
    metadata = read_metadata(path)
    if "digest" not in metadata:
        raise EmbeddingsError(f"{path} was written by an earlier Geobacter. {_REMEDY}")
    own_shapes = [] if "cell_resolution" in metadata else ["geometry"]
    try:
        table = pq.read_table(
            path, columns=["cell", "lon", "lat", "embedding", *own_shapes], page_checksum_verification=True
        ).combine_chunks()
    except (pa.ArrowException, OSError) as problem:
        raise EmbeddingsError(f"{path} is damaged: {problem}. {_REMEDY}") from None
    embedding = table["embedding"].combine_chunks()
    dim = embedding.type.list_size
    values = embedding.flatten().to_numpy(zero_copy_only=False)
    return EmbeddingTable(
        cells=np.array(table["cell"].to_pylist()),
        lon=table["lon"].to_numpy(),
        lat=table["lat"].to_numpy(),
        embeddings=values.reshape(-1, dim),
        metadata=metadata,
        digest=str(metadata["digest"]),
        wkb=table["geometry"].cast(pa.large_binary()).combine_chunks() if own_shapes else None,
    )


def table_problems(path: Path, grid: Grid) -> list[str]:
    """What is wrong with a table: schema, nulls, lengths, order, coverage of the region; nothing if all is well.

    The file is read part by part, and each held against its batch of the region's cells.
    """
    try:
        metadata = read_metadata(path)
        file = pq.ParquetFile(path, page_checksum_verification=True)
        dim = file.schema_arrow.field("embedding").type.list_size
        if not file.schema_arrow.remove_metadata().equals(schema(dim)):
            return [f"{path} does not have the columns of an embedding table. {_REMEDY}"]
        names = [str(part["name"]) for part in metadata["parts"]]
        if len(names) != file.num_row_groups:
            return [f"{path} does not have the parts that it lists. {_REMEDY}"]
        problems = {problem for number in range(len(names)) for problem in _part_problems(file, number, metadata)}
        number_of = {name: number for number, name in enumerate(names)}
        batches = grid.batch_names()
        if names != [name for name in batches if name in number_of]:
            problems.add("Parts are not in the order of the region's ground, or occur twice.")
        n_missing = n_strange = 0
        of_region = set(batches)
        for name in of_region | set(names):
            wanted = set(grid.batch(name).names if name in of_region else [])
            found = set(_cells_of(file, number_of[name]) if name in number_of else [])
            n_missing, n_strange = n_missing + len(wanted - found), n_strange + len(found - wanted)
    except GeobacterError as problem:
        return [str(problem)]
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError) as problem:
        return [f"{path} is damaged: {problem}. {_REMEDY}"]
    if n_missing or n_strange:
        problems.add(f"{n_missing} cells of the region have no row, {n_strange} rows are not of the region.")
    return sorted(problems)


def _part_problems(file: pq.ParquetFile, number: int, metadata: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the rows of a part."""
    part = file.read_row_group(number)
    if any(column.null_count for column in part.columns):
        yield "A column has nulls."
    embedding = part["embedding"].combine_chunks()
    length = np.linalg.norm(embedding.flatten().to_numpy().reshape(-1, embedding.type.list_size), axis=1)
    if not np.all(np.abs(length - 1) < _LENGTH_TOLERANCE):
        yield "An embedding is not of length 1."
    if set(part["encoder"].to_pylist()) != {metadata["encoder"]}:
        yield "A row is of another encoder than the metadata states."
    cells = part["cell"].to_pylist()
    if any(cell >= following for cell, following in pairwise(cells)):
        yield "Cells are not in ascending order, or some occur twice."


def _cells_of(file: pq.ParquetFile, number: int) -> list[str]:
    cells: list[str] = file.read_row_group(number, columns=["cell"])["cell"].to_pylist()
    return cells


def rows(
    cells: Cells,
    embeddings: NDArray[np.float32],
    digests: list[bytes],
    encoder: str,
    style: str,
    timestamps: NDArray[np.int64],
    wkb: pa.ChunkedArray | None = None,
) -> pa.Table:
    """Cells as rows of a table.

    Args:
        cells: N of them.
        embeddings: float32 `[N, D]`.
        digests: Of the windows.
        encoder: `name/version`.
        style: `name/version`.
        timestamps: Milliseconds since 1970, `[N]`.
        wkb: The cells' shapes, where somebody has them already.
    """
    n, dim = embeddings.shape
    flat = pa.array(np.ascontiguousarray(embeddings).reshape(-1), pa.float32())
    columns = schema(dim)
    return pa.Table.from_arrays(
        [
            pa.array(cells.names, pa.string()),
            pa.array(shapely.to_wkb(cells.geometries), pa.binary()) if wkb is None else wkb,
            pa.array(cells.lon),
            pa.array(cells.lat),
            pa.FixedSizeListArray.from_arrays(flat, type=columns.field("embedding").type),
            pa.array(digests, pa.binary()),
            pa.array([encoder] * n, pa.string()),
            pa.array([style] * n, pa.string()),
            pa.array(timestamps, pa.timestamp("ms", tz="UTC")),
        ],
        schema=columns,
    )


@dataclass(frozen=True, slots=True)
class Part:
    """The rows on the ground of one coarse H3 cell: a row group of the table.

    Attributes:
        name: H3 string of the coarse cell.
        n_cells: Rows.
        digest: Of their content, see `content_digest`.
    """

    name: str
    n_cells: int
    digest: str


def content_digest(part: pa.Table) -> str:
    """Hex SHA-256 over the rows of a part, less the times of their last change.

    A table that was brought up to date knows when each window changed, and one made from scratch cannot; all else is
    the same, and so is this. The digest of a table is that of the digests of its parts.
    """
    sha = hashlib.sha256()
    embeddings = part["embedding"].combine_chunks()
    width = 4 * embeddings.type.list_size
    numbers = embeddings.flatten().to_numpy(zero_copy_only=False).tobytes()
    names = zip(*(part[name].to_pylist() for name in ("cell", "encoder", "style", "window_digest")), strict=True)
    for row, (cell, encoder, style, window_digest) in enumerate(names):
        sha.update(f"{cell}|{encoder}|{style}|".encode())
        sha.update(window_digest + numbers[row * width : (row + 1) * width])
    return sha.hexdigest()


def milliseconds(osm_timestamp: str) -> int:
    """An ISO 8601 time in UTC as milliseconds since 1970."""
    return int(np.datetime64(osm_timestamp.removesuffix("Z"), "ms").astype(np.int64))


def write_part(path: Path, name: str, table: pa.Table) -> Part:
    """Write the rows of a coarse cell to a file of their own, as one row group."""
    part = Part(name, len(table), content_digest(table))
    schema_ = table.schema.with_metadata({_PART: json.dumps(asdict(part))})
    with (
        written_aside(path) as temporary,
        pq.ParquetWriter(
            temporary,
            schema_,
            compression="zstd",
            # No two embeddings are alike; their numbers' high bytes are, which makes a table a third smaller.
            use_dictionary=["encoder", "style", "osm_timestamp"],
            use_byte_stream_split=["embedding.list.element"],
            write_statistics=["cell", "lon", "lat", "encoder", "style", "osm_timestamp"],
            write_page_checksum=True,
        ) as writer,
    ):
        writer.write_table(table.cast(schema_), row_group_size=max(len(table), 1))
    return part


def read_part(path: Path) -> Part:
    """What a part's file says of it."""
    return Part(**json.loads(pq.read_schema(path).metadata[_PART]))


def _write_template(path: Path, embedding_dim: int, metadata: Mapping[str, Any], geometry_types: Iterable[str]) -> None:
    """All of a GeoParquet 1.1 table that carries `metadata`, but its rows."""
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {
                "encoding": "WKB",
                "geometry_types": list(geometry_types),
                "crs": pyproj.CRS.from_epsg(4326).to_json_dict(),
            }
        },
    }
    columns = schema(embedding_dim).with_metadata(
        {"geo": json.dumps(geo), "geobacter": json.dumps(dict(metadata), sort_keys=True)}
    )
    pq.ParquetWriter(path, columns).close()


def write_table(
    path: Path,
    parts: Iterable[tuple[Path, int]],
    embedding_dim: int,
    metadata: Mapping[str, Any],
    geometry_types: Iterable[str] = ("Polygon",),
) -> None:
    """Write a table as GeoParquet 1.1 that carries `metadata`, of row groups: file and number of each."""
    with written_aside(path) as temporary, aside(path) as template:
        _write_template(template, embedding_dim, metadata, geometry_types)
        splice(temporary, template, parts)
