"""What refreshes changed in a region's table, and what the table was before.

Beside a table lies a folder `history` with a file for each refresh that changed a row: the cell, how far its embedding
moved, why, and the row as it was. So history costs what changes, and an earlier table is the present one with the
changes taken back. Where another encoder made all rows anew, the folder has the table before as a whole. Files are
numbered, since a map, and with it a table, can come back to what it was.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from geobacter_core.embeddings.table import read_metadata
from geobacter_core.errors import EmbeddingsError
from geobacter_core.files import written_aside
from geobacter_core.geo import Floats

KEEP_DAYS = 90
"""How long earlier states can be read back, since they were replaced."""
_CHANGES = ".changes.parquet"
CAUSES = ("window", "context", "surroundings", "new", "moved")
_DAY_S = 86400.0
_log = logging.getLogger(__name__)


def schema() -> pa.Schema:
    """Columns of a change table: what is of the row before is null for a cell that the table did not have."""
    return pa.schema(
        [
            pa.field("cell", pa.string(), nullable=False),
            pa.field("distance", pa.float32()),
            pa.field("cause", pa.string(), nullable=False),
            # Not of a fixed size: where some of those are null, Arrow writes a file that it cannot read.
            pa.field("embedding_before", pa.list_(pa.field("element", pa.float32()))),
            pa.field("window_digest_before", pa.binary()),
            pa.field("osm_timestamp_before", pa.timestamp("ms", tz="UTC")),
        ]
    )


COLUMNS = {
    "cell": "H3 index of the cell, or its id in the user's grid",
    "distance": "1 less the cosine of the embeddings before and after, 0 to 2; null for a new cell",
    "cause": (
        "the smallest of window, context and surroundings under which a tile changed; or new; or moved, where a user's "
        "grid has the id elsewhere"
    ),
    "embedding_before": "the row's embedding before",
    "window_digest_before": "the row's window_digest before",
    "osm_timestamp_before": "the row's osm_timestamp before",
}


@dataclass(frozen=True, slots=True)
class Changes:
    """What a refresh changed.

    Attributes:
        cells: Names `[N]`, in the order of the table.
        distance: 1 less the cosine of the embeddings before and after, `[N]`; NaN for a new cell.
        cause: One of `CAUSES`, `[N]`.
        since: The OSM timestamp of the table before.
        until: That of the table after.
    """

    cells: NDArray[np.str_]
    distance: Floats
    cause: NDArray[np.str_]
    since: str
    until: str

    def __len__(self) -> int:
        return len(self.cells)


def change_rows(
    cells: list[str],
    causes: list[str],
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    digests: list[bytes],
    timestamps: NDArray[np.int64],
) -> pa.Table:
    """Rows of a change table; those of new cells have the cause `new`, and what is said of them before is left out."""
    is_new = np.array([cause == "new" for cause in causes], bool)
    before = np.where(is_new[:, None], np.float32(0), before)
    cosine = np.einsum("nd,nd->n", before.astype(np.float64), after.astype(np.float64))
    columns = schema()
    known = [None if new else row for new, row in zip(is_new, before, strict=True)]
    return pa.Table.from_arrays(
        [
            pa.array(cells, pa.string()),
            pa.array(np.clip(1 - cosine, 0, 2).astype(np.float32), mask=is_new),
            pa.array(causes, pa.string()),
            pa.array(known, columns.field("embedding_before").type),
            pa.array([None if new else digest for new, digest in zip(is_new, digests, strict=True)], pa.binary()),
            pa.array(timestamps, pa.int64(), mask=is_new).cast(pa.timestamp("ms", tz="UTC")),
        ],
        schema=columns,
    )


def folder_of(path: Path) -> Path:
    """The history of the table at `path`."""
    return path.with_name("history")


def write_changes(path: Path, parts: list[Path], before: Mapping[str, Any], digest: str) -> int:
    """Write what a refresh changed in the table at `path`, which it is about to replace; returns the number of rows.

    Args:
        path: The table.
        parts: Change tables in the order of cells; none where rows only went, or shapes changed.
        before: Metadata of the table before.
        digest: Of the table after.
    """
    if digest == before["digest"]:
        return 0
    tables = [pq.read_table(part) for part in parts]
    number = 1 + max((number for number, _, _ in _numbered(path)), default=0)
    gone = {"since": before["osm_timestamp"], "digest_before": before["digest"], "digest_after": digest}
    columns = schema().with_metadata({"geobacter": json.dumps(gone, sort_keys=True)})
    with (
        written_aside(folder_of(path) / f"{number:06}-{digest[:16]}{_CHANGES}") as temporary,
        pq.ParquetWriter(temporary, columns, compression="zstd", write_page_checksum=True) as writer,
    ):
        for table in tables:
            writer.write_table(table.cast(columns.remove_metadata()))
    return sum(len(table) for table in tables)


def keep_whole(path: Path) -> None:
    """Keep the table at `path`, all of whose rows are about to be replaced; it takes up room only when they are."""
    try:
        digest = str(read_metadata(path)["digest"])
    except (EmbeddingsError, KeyError):
        return  # nothing there, or nothing that can be read: nothing to keep
    kept = folder_of(path) / f"{digest[:16]}.table.parquet"
    kept.parent.mkdir(exist_ok=True)
    if kept.exists():
        return
    try:
        os.link(path, kept)
        os.utime(kept)
    except OSError:  # a file system without links
        with written_aside(kept) as temporary:
            shutil.copyfile(path, temporary)


def forget(path: Path, days: float = KEEP_DAYS) -> int:
    """Remove what is older than so many days; returns how many files."""
    old = [file for file in _files(path) if time.time() - file.stat().st_mtime > days * _DAY_S]
    for file in old:
        file.unlink(missing_ok=True)
    return len(old)


def latest_changes(path: Path) -> Changes | None:
    """What the last refresh changed, or None where the table at `path` came about otherwise.

    Raises:
        EmbeddingsError: The table or the file is damaged.
    """
    metadata = read_metadata(path)
    digest = str(metadata["digest"])
    file = next((file for _, after, file in _numbered(path) if after == digest[:16]), None)
    if file is None:
        return None
    table = _read(file, ["cell", "distance", "cause"])
    return Changes(
        np.array(table["cell"].to_pylist(), dtype=np.str_),
        table["distance"].to_numpy().astype(np.float64),
        np.array(table["cause"].to_pylist(), dtype=np.str_),
        str(_metadata_of(table, file)["since"]),
        str(metadata["osm_timestamp"]),
    )


def digests_before(path: Path) -> list[str]:
    """The states of the table at `path` that can be read back, newest first, the present one at the head.

    Raises:
        EmbeddingsError: The table, or a file of its history, is damaged.
    """
    return [str(read_metadata(path)["digest"]), *(step.digest for step in _steps(path))]


def read_back(path: Path, digest: str) -> pa.Table:
    """The rows `cell`, `embedding`, `window_digest`, `osm_timestamp` of the table at `path` when it had a digest.

    Cells that are of the region no more are left out. Those of an earlier state ascend by name, in whichever
    order the table is.

    Raises:
        EmbeddingsError: That state is older than what is kept, or was none of this table; or something is damaged.
    """
    columns = ["cell", "embedding", "window_digest", "osm_timestamp"]
    table = _read(path, columns)
    if digest == str(read_metadata(path)["digest"]):
        return table
    for step in _steps(path):
        table = _taken_back(table, _read(step.file)) if step.is_changes else _read(step.file, columns)
        if step.digest == digest:
            return table
    raise EmbeddingsError(
        f"{path}: a table with the digest {digest} is none of its earlier states of {KEEP_DAYS} days. "
        f"Those that can be read back are {', '.join(state[:16] for state in digests_before(path))}."
    )


def _taken_back(table: pa.Table, changes: pa.Table) -> pa.Table:
    """The table before some changes: their rows as they were, less those that were new."""
    untouched = table.filter(pa.compute.invert(pa.compute.is_in(table["cell"], changes["cell"].combine_chunks())))
    known = changes.filter(pa.compute.is_valid(changes["window_digest_before"]))
    before = pa.Table.from_arrays(
        [known[name] for name in ("cell", "embedding_before", "window_digest_before", "osm_timestamp_before")],
        names=table.column_names,
    )
    return pa.concat_tables([untouched, before.cast(untouched.schema)]).sort_by("cell")


@dataclass(frozen=True, slots=True)
class _Step:
    """From a state of a table to the one before.

    Attributes:
        digest: Of the state before.
        file: What changed, or the table before as a whole.
        is_changes: Which of the two.
    """

    digest: str
    file: Path
    is_changes: bool


def _steps(path: Path) -> Iterator[_Step]:
    """The way back from the present state, as far as it is kept."""
    now = read_metadata(path)
    at = str(now["digest"])
    replaced = now.get("replaced")
    older = _numbered(path)
    passed: set[str] = set()
    while True:
        index = next((index for index, (_, after, _) in enumerate(older) if after == at[:16]), None)
        if index is not None:
            file = older[index][2]
            older = older[index + 1 :]
            step = _Step(str(_metadata_of(_read(file, []), file)["digest_before"]), file, is_changes=True)
        elif replaced and replaced not in passed and _whole(path, str(replaced)).exists():  # by another encoder
            passed.add(str(replaced))
            step = _Step(str(replaced), _whole(path, str(replaced)), is_changes=False)
        else:
            return
        at = step.digest
        whole = _whole(path, at)
        replaced = read_metadata(whole).get("replaced") if whole.exists() else None
        yield step


def _numbered(path: Path) -> list[tuple[int, str, Path]]:
    """Files of changes, newest first: number, beginning of the digest of the state after, path."""
    found = []
    for file in folder_of(path).glob(f"*{_CHANGES}"):
        number, _, digest = file.name.removesuffix(_CHANGES).rpartition("-")
        found.append((int(number) if number.isdigit() else 0, digest, file))
    return sorted(found, reverse=True)


def _whole(path: Path, digest: str) -> Path:
    return folder_of(path) / f"{digest[:16]}.table.parquet"


def _files(path: Path) -> Iterator[Path]:
    yield from sorted(folder_of(path).glob("*.parquet"))


def _read(file: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as problem:
        raise EmbeddingsError(f"{file} is damaged: {problem}. Remove it; only history is lost.") from None


def _metadata_of(table: pa.Table, file: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((table.schema.metadata or {})[b"geobacter"])
    except (KeyError, ValueError):
        raise EmbeddingsError(f"{file} is damaged: it does not say what it is. Remove it.") from None
    return document
