"""Labels: what a probe is asked to predict, place by place, and the files in which people bring their own.

A file of labels is a CSV (UTF-8, commas, decimal points, a header) or a Parquet file with one row per place:

- `cell`: an H3 index, of any resolution; the label belongs to the cell's centre. `id` means the same if its values are
  H3 indexes; otherwise it is passed over. Or `lon` and `lat`: degrees, EPSG:4326. Where both are there, the cell
  decides. Upper and lower case make no difference, in these names and in the indexes.
- In a region with a grid of its own (`cells` in `regions.toml`), `cell` or `id` may be ids of that grid: the label
  belongs to the row's place. What is not of the grid's rows in the region is left out.
- Every other column is a label. Text and Parquet's dictionary type (pandas' categorical) are classes, booleans and
  numbers that are only 0 and 1 are a presence, other numbers are numbers. Codes of classes must be text.
- What is empty, or NaN among numbers, is unknown.
"""

import io
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h3
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pyproj
from numpy.typing import NDArray
from scipy.stats import skew

from geobacter_core.cells import UserGrid
from geobacter_core.errors import EvaluationError
from geobacter_core.geo import MERCATOR_MAX_LAT, Floats

LabelKind = Literal["number", "class", "presence"]

MIN_KNOWN = 20
"""A label that is known at fewer places is left out."""
MAX_CLASSES = 50
"""A column of more different texts than this is a name or a remark, not a class."""
_LOG_SKEWNESS = 1.0
_log = logging.getLogger(__name__)
_CLASS_TYPES = (pa.types.is_dictionary, pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_FORMAT = "Labels need a column `cell` (H3 indexes), or `lon` and `lat` (degrees), and a column for each label."


@dataclass(frozen=True, slots=True)
class Places:
    """Where labels are known: cells by their centres, or points.

    Attributes:
        lon: Degrees, `[N]`.
        lat: Degrees, `[N]`.
    """

    lon: Floats
    lat: Floats

    def __post_init__(self) -> None:
        if self.lon.ndim != 1 or self.lon.shape != self.lat.shape:
            raise EvaluationError(
                f"Places: lon has shape {self.lon.shape}, lat {self.lat.shape}. Give two arrays of one length."
            )
        if not (np.isfinite(self.lon).all() and np.isfinite(self.lat).all()):
            raise EvaluationError("Places: a coordinate is not a finite number. Give degrees.")

    def __len__(self) -> int:
        return len(self.lon)

    @property
    def xyz_m(self) -> Floats:
        """Metres from the Earth's centre on the WGS 84 ellipsoid, `[N, 3]`.

        The straight line between two places is their distance on the ground: within 2 mm up to 10 km, anywhere, poles
        and antimeridian included.
        """
        to_earth = pyproj.Transformer.from_crs(4979, 4978, always_xy=True)
        return np.stack(to_earth.transform(self.lon, self.lat, np.zeros(len(self))), axis=1)


@dataclass(frozen=True, slots=True)
class Label:
    """One question, with the answer at each of N places.

    Attributes:
        name: Of the label, for a table and a plot.
        kind: `number` is scored by R², `class` and `presence` by the area under the ROC curve (of classes, the mean
            of each against the rest).
        values: float64 `[N]`: the number, the class' index into `classes`, or 0 and 1. NaN where the answer is unknown.
        classes: Names of the classes; empty for other kinds.
    """

    name: str
    kind: LabelKind
    values: NDArray[np.float64]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """Where the answer is known, `[N]`."""
        return np.asarray(~np.isnan(self.values))


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A file of labels that has been read.

    Attributes:
        places: Of the rows, in their order.
        cells: The rows' H3 indexes, lower case, or None where the file gives points.
        labels: Those that can be probed, in the order of the columns.
        left_out: Columns that cannot, and why.
    """

    places: Places
    cells: list[str] | None
    labels: list[Label]
    left_out: dict[str, str]

    def __len__(self) -> int:
        return len(self.places)


class _Unfit(Exception):  # noqa: N818 - it never leaves this module
    """A column cannot be a label; the text says why."""


def read_labels(path: Path, grid: UserGrid | None = None) -> LabelTable:
    """Read a file of labels; the module's text has the format.

    Numbers that are never negative and strongly skewed (skewness of the known values above 1) become `log1p` of
    themselves, and their name says so: `log1p(population)`. These are counts, prices and areas: a few places have most
    of it all, squared errors would be about those alone, and people ask "how many times as much" rather than "how many
    more".

    A column that cannot be a label (known at fewer than 20 places, one value only, more than 50 different texts,
    infinite numbers, a type that is no answer) is left out, with the reason, as long as another remains.

    Args:
        path: A CSV or Parquet file.
        grid: The region's own grid, if it has one.

    Raises:
        EvaluationError: The file is missing or neither CSV nor Parquet, its encoding is broken, it has no places or
            wrong ones, or no label remains.
    """
    table = _read_table(path)
    if grid is not None:
        table = _placed(path, table, grid)
    columns = _columns(path, table)
    cells, places = _places(path, columns)
    labels: list[Label] = []
    left_out: dict[str, str] = {}
    for position, (name, column) in enumerate(columns.items()):
        if name.lower() in {"cell", "id", "lon", "lat"}:
            continue
        try:
            if not name or name.startswith("__index_level_"):
                raise _Unfit("it has no name, as a column of row numbers has none.")
            labels.append(_label(name, column))
        except _Unfit as reason:
            left_out[name or f"column {position + 1}"] = str(reason)
    if not labels:
        reasons = "".join(f" `{name}`: {reason}" for name, reason in left_out.items())
        raise EvaluationError(f"{path}: no column can be a label.{reasons} {_FORMAT}")
    return LabelTable(places, cells, labels, left_out)


def _read_table(path: Path) -> pa.Table:
    """The file as Arrow has it, whole."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise EvaluationError(f"{path} does not exist. Name a CSV or Parquet file of labels.") from None
    except OSError as problem:
        raise EvaluationError(
            f"{path} cannot be read: {problem.strerror}. Name a CSV or Parquet file of labels."
        ) from None
    try:
        if content.startswith(b"PAR1"):
            table = _read_parquet(content)
        elif path.suffix.lower() == ".csv":
            table = _read_csv(path, content)
        else:
            raise EvaluationError(
                f"{path} is neither CSV nor Parquet. Save the labels as `.csv` (UTF-8, commas) or `.parquet`."
            )
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        first = str(problem).partition("\n")[0]
        raise EvaluationError(f"{path} cannot be read: {first}. Write the file again.") from None
    if not table.num_rows:
        raise EvaluationError(f"{path} has no rows. {_FORMAT}")
    return table


def _read_parquet(content: bytes) -> pa.Table:
    table = pq.read_table(io.BytesIO(content))
    # Parquet keeps a categorical of numbers as numbers; what pandas adds to the file tells that it was one.
    for column in (table.schema.pandas_metadata or {}).get("columns", []):
        at = table.schema.get_field_index(str(column["field_name"]))
        if column["pandas_type"] == "categorical" and at >= 0:
            table = table.set_column(at, table.column_names[at], table.column(at).cast(pa.string()))
    return table


def _read_csv(path: Path, content: bytes) -> pa.Table:
    try:
        content.decode()
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise EvaluationError(
            f"{path}, line {line}: byte {content[problem.start]:#04x} is not UTF-8. Save the file in UTF-8."
        ) from None
    # In one block: Arrow takes a column's type from the first block, and stops at a later one that does not fit.
    options = pa.csv.ReadOptions(block_size=max(len(content), 1))
    return pa.csv.read_csv(pa.BufferReader(content), read_options=options)


def _columns(path: Path, table: pa.Table) -> dict[str, pa.ChunkedArray]:
    names = [name.strip() for name in table.column_names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    twice += [name for name in ("cell", "id", "lon", "lat") if [other.lower() for other in names].count(name) > 1]
    if twice:
        raise EvaluationError(f"{path}: column `{twice[0]}` is there more than once. Give each column its own name.")
    return dict(zip(names, table.columns, strict=True))


def _places(path: Path, columns: dict[str, pa.ChunkedArray]) -> tuple[list[str] | None, Places]:
    """The rows' cells, if the file has any, and where the rows are."""
    by_name = {name.lower(): (name, column) for name, column in columns.items()}
    has_points = "lon" in by_name and "lat" in by_name
    if "cell" in by_name:
        return _cells(path, *by_name["cell"])
    if "id" in by_name and (_are_mostly_cells(by_name["id"][1]) or not has_points):
        return _cells(path, *by_name["id"])
    if not has_points:
        found = ", ".join(f"`{name}`" for name in columns)
        raise EvaluationError(f"{path} does not say where its rows are: its columns are {found}. {_FORMAT}")
    lon = _degrees(path, *by_name["lon"])
    lat = _degrees(path, *by_name["lat"])
    _check_degrees(path, lon, lat)
    return None, Places(lon, lat)


def _placed(path: Path, table: pa.Table, grid: UserGrid) -> pa.Table:
    """A table whose rows are named by a grid's ids, with `lon` and `lat` instead; any other as it is."""
    by_name = {name.strip().lower(): name for name in table.column_names}
    name = by_name.get("cell", by_name.get("id"))
    if name is None or _are_mostly_cells(table[name]):
        return table
    ids = ["" if value is None else str(value) for value in table[name].to_pylist()]
    lon, lat = grid.find(ids)
    is_known = np.isfinite(lon)
    if not is_known.any():
        if "cell" not in by_name and {"lon", "lat"} <= by_name.keys():
            return table
        raise EvaluationError(
            f"{path}, column `{name}`: none of its {len(ids)} values is the id of a row of the region's grid. "
            "Give ids of that grid, H3 indexes, or `lon` and `lat`."
        )
    twice = [id_ for id_, count in Counter(np.array(ids, object)[is_known].tolist()).items() if count > 1]
    if twice:
        raise EvaluationError(f"{path}, column `{name}`: {twice[0]} is there more than once. Give each cell one row.")
    _log.info("%s: %d of %d rows are of no row of the grid in the region", path, np.sum(~is_known), len(ids))
    others = table.drop_columns([by_name[place] for place in ("cell", "id", "lon", "lat") if place in by_name])
    return others.append_column("lon", pa.array(lon)).append_column("lat", pa.array(lat)).filter(pa.array(is_known))


def _cell_texts(column: pa.ChunkedArray) -> list[str | None]:
    """H3 indexes as lower-case strings, whether they are kept as text or as integers."""
    values = column.to_pylist()
    if pa.types.is_integer(column.type):
        return [None if value is None else f"{value:x}" if value >= 0 else str(value) for value in values]
    return [None if value is None else str(value).strip().lower() for value in values]


def _are_mostly_cells(column: pa.ChunkedArray) -> bool:
    texts = _cell_texts(column)
    n_cells = sum(1 for text in texts if text and h3.is_valid_cell(text))
    return 2 * n_cells > len(texts)


def _cells(path: Path, name: str, column: pa.ChunkedArray) -> tuple[list[str], Places]:
    cells: list[str] = []
    row_of: dict[str, int] = {}
    for row, text in enumerate(_cell_texts(column), start=1):
        if text is None or not h3.is_valid_cell(text):
            what = f"`{text}` is not an H3 index" if text else "the cell is missing"
            raise EvaluationError(f"{path}, column `{name}`, row {row}: {what}. Give H3 cells such as 89a901291abffff.")
        cell = h3.int_to_str(h3.str_to_int(text))
        if cell in row_of:
            raise EvaluationError(
                f"{path}, column `{name}`: cell {cell} is in row {row_of[cell]} and in row {row}. "
                "Give each cell one row."
            )
        row_of[cell] = row
        cells.append(cell)
    centres = np.array([h3.cell_to_latlng(cell) for cell in cells])
    return cells, Places(centres[:, 1].copy(), centres[:, 0].copy())


def _degrees(path: Path, name: str, column: pa.ChunkedArray) -> Floats:
    if not _is_numeric(column.type):
        raise EvaluationError(
            f"{path}, column `{name}`: it holds {_example(column)}, not numbers. "
            "Give degrees with a decimal point, such as -8.61."
        )
    values = _as_floats(column)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        row = int(wrong[0])
        what = "is missing" if column[row].as_py() is None else f"is {values[row]}"
        raise EvaluationError(f"{path}, column `{name}`, row {row + 1}: the coordinate {what}. Give degrees.")
    return values


def _check_degrees(path: Path, lon: Floats, lat: Floats) -> None:
    wrong = np.flatnonzero((np.abs(lon) > 180) | (np.abs(lat) > MERCATOR_MAX_LAT))
    if not len(wrong):
        return
    row = int(wrong[0])
    are_swapped = np.abs(lat).max() <= 180 and np.abs(lon).max() <= MERCATOR_MAX_LAT
    remedy = (
        "Longitude and latitude look swapped: lon is east, lat is north."
        if are_swapped
        else "Give degrees (EPSG:4326), lon within ±180, and not metres of a projection."
    )
    raise EvaluationError(
        f"{path}, row {row + 1}: lon={lon[row]:g} lat={lat[row]:g} is not a place on the map, "
        f"which ends at ±180 and ±{MERCATOR_MAX_LAT} degrees. {remedy}"
    )


def _label(name: str, column: pa.ChunkedArray) -> Label:
    kind = column.type
    if pa.types.is_boolean(kind) or _is_numeric(kind):
        return _number_label(name, _as_floats(column))
    if any(is_kind(kind) for is_kind in _CLASS_TYPES):
        return _class_label(name, ["" if value is None else str(value).strip() for value in column.to_pylist()])
    if pa.types.is_null(kind):
        raise _Unfit("it is empty.")
    raise _Unfit(f"its type, {kind}, is neither a number nor a text nor true or false.")


def _number_label(name: str, values: Floats) -> Label:
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise _Unfit(f"row {infinite[0] + 1} holds {values[infinite[0]]}; leave the field empty if it is unknown.")
    known = values[~np.isnan(values)]
    distinct = np.unique(known)
    _check_known(len(known), len(distinct))
    if np.isin(distinct, (0.0, 1.0)).all():
        return Label(name, "presence", values)
    # Divided by the largest, so that the third power of a huge number is still a number.
    if known.min() >= 0 and skew(known / known.max()) > _LOG_SKEWNESS:
        return Label(f"log1p({name})", "number", np.log1p(values))
    return Label(name, "number", values)


def _class_label(name: str, texts: list[str]) -> Label:
    counts = Counter(text for text in texts if text)
    _check_known(counts.total(), len(counts))
    _check_is_no_number(texts)
    if len(counts) > MAX_CLASSES:
        raise _Unfit(
            f"it holds {len(counts)} different texts, such as {next(iter(counts))!r}; "
            f"at most {MAX_CLASSES} can be told apart."
        )
    classes = tuple(sorted(counts))
    index = {text: float(number) for number, text in enumerate(classes)}
    return Label(name, "class", np.array([index.get(text, np.nan) for text in texts]), classes)


def _check_known(n_known: int, n_distinct: int) -> None:
    if n_known < MIN_KNOWN:
        raise _Unfit(f"it is known at {n_known} places only; {MIN_KNOWN} are needed.")
    if n_distinct < 2:
        raise _Unfit("it has the same value everywhere.")


def _check_is_no_number(texts: list[str]) -> None:
    """Numbers with a few remarks among them ("n/a", "1,5") would pass for classes."""
    is_number = [_reads_as_number(text) for text in texts]
    known = [bool(text) for text in texts]
    if sum(known) / 2 < sum(is_number) < sum(known):
        row = next(row for row, text in enumerate(texts) if text and not is_number[row])
        raise _Unfit(f"most of it are numbers, but row {row + 1} holds {texts[row]!r}; leave the unknown empty.")


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _as_floats(column: pa.ChunkedArray) -> Floats:
    """Numbers or booleans as float64 `[N]`, NaN where there is none; a copy that may be written to."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return np.array(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def _example(column: pa.ChunkedArray) -> str:
    """The first value of a column that is there, for a message."""
    return next((repr(value) for value in column.to_pylist() if value not in (None, "")), "nothing")
