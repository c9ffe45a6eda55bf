"""Tables in the form that searches want: arrays in files, mapped into memory, shared by all processes that open them.

A Parquet table is decoded once for each of its digests, row group by row group, into `.npy` files. Whoever has them
open keeps what was there, whatever happens to the table meanwhile.
"""

import contextlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from geobacter_core.embeddings.table import read_metadata
from geobacter_core.errors import EmbeddingsError
from geobacter_core.files import digest_of, remove_temporaries, temporary_beside

_VERSION = "1"
_METADATA = "table.json"
_REMEDY = "Materialise region_embeddings for the region."


@dataclass(frozen=True, slots=True)
class MappedTable:
    """An embedding table, mapped into memory.

    Attributes:
        embeddings: float32 `[N, D]`, rows of length 1.
        lonlat: The cells' centres, degrees, float64 `[N, 2]`.
        metadata: What the table was made from, as in the Parquet file.
        folder: Where the arrays lie.
    """

    embeddings: NDArray[np.float32]
    lonlat: NDArray[np.float64]
    metadata: Mapping[str, Any]
    _cells: NDArray[np.bytes_]
    _wkb: NDArray[np.uint8]
    _wkb_ends: NDArray[np.int64]
    folder: Path = Path()

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def region(self) -> str:
        """The region's name."""
        return str(self.metadata["region"])

    @property
    def digest(self) -> str:
        """Of the rows' content."""
        return str(self.metadata["digest"])

    @property
    def encoder(self) -> str:
        """Name and version of the encoder, as in the registry."""
        return str(self.metadata["encoder"])

    def cell(self, row: int) -> str:
        """A row's cell."""
        return bytes(self._cells[row]).decode()

    def geometry(self, row: int) -> shapely.Geometry:
        """A row's polygon (or point, in a table of points), degrees."""
        begin = int(self._wkb_ends[row - 1]) if row else 0
        return shapely.from_wkb(self._wkb[begin : int(self._wkb_ends[row])].tobytes())


def map_table(path: Path, folder: Path) -> MappedTable:
    """Map a region's table into memory; its arrays are kept in a folder of their own below `folder`.

    Arrays of the region's earlier tables are removed there.

    Raises:
        EmbeddingsError: The table is missing or damaged.
    """
    metadata = read_metadata(path)
    if not {"digest", "region", "encoder", "embedding_dim"} <= metadata.keys():
        raise EmbeddingsError(f"{path} was written by an earlier Geobacter. {_REMEDY}")
    arrays = folder / digest_of(_VERSION, path.name, metadata)[:32]
    folder.mkdir(parents=True, exist_ok=True)
    if not (arrays / _METADATA).exists():
        temporary = temporary_beside(arrays)
        temporary.mkdir()
        try:
            metadata = _unpack(path, temporary)
            arrays = folder / digest_of(_VERSION, path.name, metadata)[:32]
            with contextlib.suppress(OSError):  # another process was faster
                temporary.rename(arrays)
        except (pa.ArrowException, OSError, KeyError, ValueError) as problem:
            raise EmbeddingsError(f"{path} is damaged: {problem}. {_REMEDY}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    mapped = _mapped(arrays)
    remove_temporaries(folder)
    for other in folder.iterdir():
        if other != arrays and not other.name.startswith("."):
            shutil.rmtree(other, ignore_errors=True)
    return mapped


def _mapped(arrays: Path) -> MappedTable:
    def mapped(name: str) -> NDArray[Any]:
        path = arrays / f"{name}.npy"
        loaded: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return loaded

    try:
        metadata = json.loads((arrays / _METADATA).read_text(encoding="utf-8"))
        return MappedTable(
            mapped("embeddings"), mapped("lonlat"), metadata, mapped("cells"), mapped("wkb"), mapped("wkb_ends"), arrays
        )
    except (OSError, ValueError) as problem:
        shutil.rmtree(arrays, ignore_errors=True)
        raise EmbeddingsError(f"{arrays} is damaged ({problem}) and was removed. Try again.") from None


def _unpack(path: Path, arrays: Path) -> dict[str, Any]:
    """Write the columns of the table that lies at `path` now as arrays, and what it says of itself last."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        metadata: dict[str, Any] = json.loads((file.schema_arrow.metadata or {})[b"geobacter"])
        n, dim = file.metadata.num_rows, int(metadata["embedding_dim"])
        embeddings = np.lib.format.open_memmap(arrays / "embeddings.npy", "w+", np.float32, (n, dim))
        lonlat = np.lib.format.open_memmap(arrays / "lonlat.npy", "w+", np.float64, (n, 2))
        ends = np.empty(n, np.int64)
        cells: list[NDArray[np.bytes_]] = []
        wkb: list[NDArray[np.uint8]] = []
        at = size = 0
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, ["cell", "geometry", "lon", "lat", "embedding"]).combine_chunks()
            some = slice(at, at + len(rows))
            embedding = rows["embedding"].combine_chunks()
            embeddings[some] = embedding.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
            lonlat[some, 0], lonlat[some, 1] = rows["lon"].to_numpy(), rows["lat"].to_numpy()
            cells.append(np.array([cell.encode() for cell in rows["cell"].to_pylist()]))
            shapes = rows["geometry"].to_pylist()
            ends[some] = size + np.cumsum([len(shape) for shape in shapes])
            wkb.append(np.frombuffer(b"".join(shapes), np.uint8))
            at, size = at + len(rows), size + len(wkb[-1])
    if not n:
        raise ValueError("it has no rows")
    embeddings.flush()
    lonlat.flush()
    np.save(arrays / "cells.npy", np.concatenate(cells))
    np.save(arrays / "wkb.npy", np.concatenate(wkb))
    np.save(arrays / "wkb_ends.npy", ends)
    (arrays / _METADATA).write_text(json.dumps(metadata), encoding="utf-8")
    return metadata
