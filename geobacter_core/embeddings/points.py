"""Files of places: CSV or Parquet with columns `lon` and `lat`, to which an embedding is added, batch by batch."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from geobacter_core.embeddings.places import Places
from geobacter_core.errors import OutsideError, PlaceError, PlacesFileError
from geobacter_core.files import written_aside
from geobacter_core.geo import MERCATOR_MAX_LAT, Floats

Outside = Literal["error", "skip"]
CSV, PARQUET = (".csv", ".tsv"), (".parquet", ".geoparquet")
_EMBEDDING = "embedding"
_BATCH_ROWS = 2048
_IS_NAME = r"^[+-]?0\d|^\+"
"""Postcodes and telephone numbers would lose a digit or a sign as numbers."""
_TYPES = (pa.int64(), pa.float64(), pa.string())


@dataclass(frozen=True, slots=True)
class Embedded:
    """What became of a file of places.

    Attributes:
        n_rows: Written.
        n_outside: Left out, since they lie in no region.
    """

    n_rows: int
    n_outside: int


@dataclass(frozen=True, slots=True)
class _Source:
    """A file of places that is open for reading.

    Attributes:
        path: The file.
        schema: Its columns, as they are carried along.
        n_rows: In all.
        batches: Reads it from the beginning.
    """

    path: Path
    schema: pa.Schema
    n_rows: int
    batches: Callable[[], Iterator[pa.RecordBatch]]


def embed_file(
    path: Path,
    target: Path,
    places: Places,
    outside: Outside = "error",
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> Embedded:
    """Write the rows of a file of places to Parquet, with their embeddings: float32 `[D]` in a column `embedding`.

    Other columns are carried along as they are; of a CSV file those become numbers that are numbers in all rows. The
    file is read in batches, and what is written takes its place when it is whole. Its metadata (`geobacter`) has the
    encoder and the style.

    Args:
        path: CSV (`.csv`, `.tsv`) or Parquet (`.parquet`), with columns `lon` and `lat` in degrees.
        target: Parquet.
        places: The encoder and the regions.
        outside: What to do with a row whose place lies in no region: `error`, or `skip` it.
        on_rows: Called with the number of rows read and in all.

    Raises:
        PlacesFileError: The file cannot be read, lacks a column, or has a row without a place.
        PlaceError: A row's place is not on the map, or lies in no region; rows are counted from 1.
        TileCacheError: As `Places.windows`.
    """
    source = _open(path)
    version = places.encoder.version
    vectors = pa.list_(pa.float32(), version.embedding_dim)
    made = {"encoder": version.name, "style": version.style_label, "weights": version.digest}
    metadata = {**(source.schema.metadata or {}), b"geobacter": json.dumps(made).encode()}
    schema = source.schema.append(pa.field(_EMBEDDING, vectors)).with_metadata(metadata)
    n_read = n_outside = 0
    with written_aside(target) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in source.batches():
            lon, lat = _places_of(batch, n_read, path)
            inside = places.is_inside(lon, lat)
            if outside == "error" and not inside.all():
                first = int((~inside).argmax())
                raise _outside(places, lon[first], lat[first], f"{path}, row {n_read + first + 1}")
            kept = batch.filter(pa.array(inside))
            embeddings = pa.array(places.embed(lon[inside], lat[inside]).reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(embeddings, type=vectors)
            writer.write_batch(pa.RecordBatch.from_arrays([*kept.columns, column], schema=schema))
            n_read += len(batch)
            n_outside += int((~inside).sum())
            on_rows(n_read, source.n_rows)
    return Embedded(n_read - n_outside, n_outside)


def _open(path: Path) -> _Source:
    kind = path.suffix.lower()
    if kind not in (*CSV, *PARQUET):
        raise PlacesFileError(f"{path} is neither CSV nor Parquet by its name. Name it .csv, .tsv or .parquet.")
    try:
        source = _open_csv(path) if kind in CSV else _open_parquet(path)
    except FileNotFoundError:
        raise PlacesFileError(f"{path} does not exist. Give a file of places.") from None
    except (pa.ArrowException, OSError, ValueError) as problem:
        raise PlacesFileError(f"{path} cannot be read: {problem}. Correct the file.") from None
    return source


def _check_names(path: Path, names: list[str]) -> None:
    """Refuse columns that do not do.

    Raises:
        PlacesFileError: One is missing, there twice, or named as the new one.
    """
    for name in ("lon", "lat"):
        if names.count(name) != 1:
            raise PlacesFileError(
                f"{path} has {names.count(name) or 'no'} columns '{name}'; its columns are: {', '.join(names)}. "
                "Name two of them lon and lat, in degrees; columns of CSV are separated by commas, of TSV by tabs."
            )
    if _EMBEDDING in names:
        raise PlacesFileError(f"{path} has a column '{_EMBEDDING}' already. Rename or remove it.")


def _open_parquet(path: Path) -> _Source:
    with pq.ParquetFile(path) as file:
        schema, n_rows = file.schema_arrow, file.metadata.num_rows
    _check_names(path, schema.names)

    def batches() -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(_BATCH_ROWS)

    return _Source(path, schema, n_rows, batches)


def _open_csv(path: Path) -> _Source:
    """Read through once, for the types of all columns: those that a reader guesses by the first rows may not last."""
    wrong_rows: list[pyarrow.csv.InvalidRow] = []

    def remember(row: pyarrow.csv.InvalidRow) -> str:
        wrong_rows.append(row)
        return "skip"

    parse = pyarrow.csv.ParseOptions(
        delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True, invalid_row_handler=remember
    )
    with pyarrow.csv.open_csv(path, parse_options=parse) as reader:
        names = reader.schema.names
    _check_names(path, names)
    wrong_rows.clear()
    as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))

    def texts() -> Iterator[pa.RecordBatch]:
        with pyarrow.csv.open_csv(path, parse_options=parse, convert_options=as_text) as reader:
            for block in reader:
                yield from (block.slice(at, _BATCH_ROWS) for at in range(0, len(block), _BATCH_ROWS))
        if wrong_rows:
            row = wrong_rows[0]
            raise PlacesFileError(
                f"{path} has a row of {row.actual_columns} columns under a header of {row.expected_columns}: "
                f"{row.text[:100]} Correct the row."
            )

    kinds = [0] * len(names)
    is_known = [False] * len(names)
    n_rows = 0
    for batch in texts():
        n_rows += len(batch)
        for number, column in enumerate(batch.columns):
            values = column.filter(pc.not_equal(column, ""))
            is_known[number] |= len(values) > 0
            kinds[number] = _kind(values, kinds[number])
    types = [_TYPES[kind] if known else pa.string() for kind, known in zip(kinds, is_known, strict=True)]
    schema = pa.schema([pa.field(*pair) for pair in zip(names, types, strict=True)])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in texts():
            columns = [_as(column, type_) for column, type_ in zip(batch.columns, types, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return _Source(path, schema, n_rows, batches)


def _kind(values: pa.StringArray, at_least: int) -> int:
    """The number of the first of the types, from one on, that values which are not empty can have."""
    text = len(_TYPES) - 1
    if at_least == text or pc.any(pc.match_substring_regex(values, _IS_NAME)).as_py():
        return text
    for kind in range(at_least, text):
        try:
            values.cast(_TYPES[kind])
        except pa.ArrowInvalid:
            continue
        return kind
    return text


def _as(texts: pa.StringArray, type_: pa.DataType) -> pa.Array:
    if type_ == pa.string():
        return texts
    return pc.if_else(pc.equal(texts, ""), None, texts).cast(type_)


def _places_of(batch: pa.RecordBatch, n_before: int, path: Path) -> tuple[Floats, Floats]:
    """Longitudes and latitudes of a batch.

    Raises:
        PlacesFileError: A row has none.
        PlaceError: A row's place is not on the map.
    """
    found: list[Floats] = []
    for name, limit in (("lon", 180.0), ("lat", MERCATOR_MAX_LAT)):
        column = batch[name]
        values = _numbers(column)
        wrong = ~(np.abs(values) <= limit)  # NaN is, too
        if wrong.any():
            first = int(wrong.argmax())
            said = column[first].as_py()
            where = f"{path}, row {n_before + first + 1}: {name} is "
            if np.isnan(values[first]):
                shown = "empty" if said in (None, "") else f"'{said}', which is no number"
                raise PlacesFileError(f"{where}{shown}. Give degrees with a decimal point, or remove the row.")
            raise PlaceError(f"{where}{said}, and must be within ±{limit:g} degrees. Are lon and lat swapped?")
        found.append(values)
    return found[0], found[1]


def _numbers(column: pa.Array) -> Floats:
    """A column as float64, NaN where it has no number."""
    try:
        numbers = column.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        numbers = pa.array([_number(value) for value in column.to_pylist()], pa.float64())
    return np.asarray(numbers.to_numpy(zero_copy_only=False), dtype=np.float64)


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return float("nan")


def _outside(places: Places, lon: float, lat: float, where: str) -> OutsideError:
    try:
        places.regions_of(np.array([lon]), np.array([lat]))
    except OutsideError as problem:
        return OutsideError(f"{where}: {problem} Or leave such rows out: --outside skip.")
    raise AssertionError("the place lies in a region")
