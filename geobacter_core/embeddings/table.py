"""The embedding table of a region: GeoParquet, one row per H3 cell, sorted by cell."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely
from numpy.typing import NDArray

from geobacter_core.errors import EmbeddingsError
from geobacter_core.files import aside, written_aside
from geobacter_core.geo import Cells, cells_within
from geobacter_core.splice import splice

_PART = b"geobacter:part"
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
    "cell": "H3 index of the cell",
    "geometry": "the cell's polygon, EPSG:4326, WKB",
    "lon": "longitude of the cell's centre, degrees",
    "lat": "latitude of the cell's centre, degrees",
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
        cells: H3 strings `[N]`, ascending.
        lon: Cell centres, degrees, `[N]`.
        lat: Cell centres, degrees, `[N]`.
        embeddings: float32 `[N, D]`, rows of length 1.
        metadata: What the table was made from: region, encoder, digests, counts.
        digest: Of the rows' content, see `content_digest`: the asset's data version.
    """

    cells: NDArray[np.str_]
    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    embeddings: NDArray[np.float32]
    metadata: Mapping[str, Any]
    digest: str

    def __len__(self) -> int:
        return len(self.cells)


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
    try:
        table = pq.read_table(
            path, columns=["cell", "lon", "lat", "embedding"], page_checksum_verification=True
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
    )


def table_problems(path: Path, ground: shapely.Geometry, resolution: int) -> list[str]:
    """What is wrong with a table: schema, nulls, lengths, order, coverage of the region; nothing if all is well.

    The file is read row group by row group.
    """
    try:
        metadata = read_metadata(path)
        file = pq.ParquetFile(path, page_checksum_verification=True)
        dim = file.schema_arrow.field("embedding").type.list_size
        if not file.schema_arrow.remove_metadata().equals(schema(dim)):
            return [f"{path} does not have the columns of an embedding table. {_REMEDY}"]
        problems: list[str] = []
        cells: list[NDArray[np.uint64]] = []
        for group in file.iter_batches(batch_size=8192):
            if any(column.null_count for column in group.columns):
                problems.append("A column has nulls.")
            length = np.linalg.norm(group["embedding"].flatten().to_numpy().reshape(-1, dim), axis=1)
            if not np.all(np.abs(length - 1) < 1e-3):
                problems.append("An embedding is not of length 1.")
            if set(group["encoder"].to_pylist()) != {metadata["encoder"]}:
                problems.append("A row is of another encoder than the metadata states.")
            cells.append(np.array([h3.str_to_int(cell) for cell in group["cell"].to_pylist()], np.uint64))
    except EmbeddingsError as problem:
        return [str(problem)]
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError) as problem:
        return [f"{path} is damaged: {problem}. {_REMEDY}"]
    found = np.concatenate(cells) if cells else np.empty(0, np.uint64)
    wanted = np.concatenate([batch.index for batch in cells_within(ground, resolution)])
    if not np.all(found[:-1] < found[1:]):
        problems.append("Cells are not in ascending order, or some occur twice.")
    if not np.array_equal(np.sort(found), np.sort(wanted)):
        missing, strange = len(np.setdiff1d(wanted, found)), len(np.setdiff1d(found, wanted))
        problems.append(f"{missing} cells of the region have no row, {strange} rows are not of the region.")
    return sorted(set(problems))


def rows(
    cells: Cells,
    embeddings: NDArray[np.float32],
    digests: list[bytes],
    encoder: str,
    style: str,
    timestamps: NDArray[np.int64],
) -> pa.Table:
    """Cells as rows of a table, with embeddings `[N, D]`, window digests and timestamps, milliseconds since 1970."""
    n, dim = embeddings.shape
    flat = pa.array(np.ascontiguousarray(embeddings).reshape(-1), pa.float32())
    columns = schema(dim)
    return pa.Table.from_arrays(
        [
            pa.array(cells.names, pa.string()),
            pa.array(shapely.to_wkb(cells.polygons), pa.binary()),
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
    """The rows of one coarse cell: a row group of the table.

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


def _write_template(path: Path, embedding_dim: int, metadata: Mapping[str, Any]) -> None:
    """All of a GeoParquet 1.1 table that carries `metadata`, but its rows."""
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {
                "encoding": "WKB",
                "geometry_types": ["Polygon"],
                "crs": pyproj.CRS.from_epsg(4326).to_json_dict(),
            }
        },
    }
    columns = schema(embedding_dim).with_metadata(
        {"geo": json.dumps(geo), "geobacter": json.dumps(dict(metadata), sort_keys=True)}
    )
    pq.ParquetWriter(path, columns).close()


def write_table(path: Path, parts: Iterable[tuple[Path, int]], embedding_dim: int, metadata: Mapping[str, Any]) -> None:
    """Write a table as GeoParquet 1.1 that carries `metadata`, of row groups: file and number of each."""
    with written_aside(path) as temporary, aside(path) as template:
        _write_template(template, embedding_dim, metadata)
        splice(temporary, template, parts)
