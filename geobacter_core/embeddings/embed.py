"""Embed a region: a window for every cell, identical windows once, one sorted GeoParquet table.

Threads, on a CPU as many as there are processors, cut windows and encode full batches of them, each step in one thread:
that is faster than all threads at one batch, and two steps at once do not wait for each other.

Where a table of the same encoder is there already, only windows are cut that a changed tile lies under, and only those
are encoded whose pixels differ (see `before`); the result has the same content as one made from scratch.

Cells (see `cells`: H3's, or the rows of a user's grid) come in batches, each on the ground of one coarse H3 cell and
written as a part; the parts, already in order, are then strung together, and those over which no tile has changed taken
over from the table before, as bytes. A killed run goes on with the parts that are there. One run at a time works on a
table, and others wait.
"""

import logging
import shutil
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from geobacter_core.ahead import in_order
from geobacter_core.cells import NO_CELLS, Cells, Grid
from geobacter_core.embeddings.before import Before, Known, check_table, write_tiles
from geobacter_core.embeddings.history import change_rows, forget, keep_whole, write_changes
from geobacter_core.embeddings.table import Part, milliseconds, read_metadata, read_part, rows, write_part, write_table
from geobacter_core.encoder.device import best_device, encoding_threads, images_a_pass, single_threads
from geobacter_core.encoder.version import Encoder, EncoderVersion
from geobacter_core.errors import EmbeddingsError
from geobacter_core.files import digest_of, only_one, remove_temporaries, written_aside
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.mosaic import ChunkMemory
from geobacter_core.tiles.source import Pixels
from geobacter_core.tiles.window import WindowReader

VERSION = "8"
"""Raise when the same tiles and encoder would give another table."""

_WINDOWS_AT_ONCE = 256
_BYTES_AT_ONCE = 28 << 20
"""Of the windows of a slice or batch: arrays of more than 32 MB the system gives anew each time, and slowly."""
_CELLS_A_WINDOW = 32
"""What is known of so many cells of a table before takes up no more than a window does."""
_AHEAD = 2
"""So many slices and batches a thread are under way."""
_REMEMBERED_WINDOWS = 200_000
_MEMORY_BYTES = 1 << 30
"""Of decoded chunks: coarse cells lie across them, and with four chunks each of them would be decoded twice or more."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """A region's table: where it is, its digest, and what it took.

    Attributes:
        path: The GeoParquet file.
        digest: Of the rows' content, see `table.content_digest`: the asset's data version.
        n_cells: Rows.
        n_encoded: Windows that went through the encoder in this run; 0 when the table was up to date.
        was_current: Whether the table was kept as it was.
        n_tiles_changed: Tiles that differ from those of the table before; None where there was none to compare with.
        n_checked: Cells whose windows were cut in this run.
        n_changed: Of these, cells whose pixels differ from those of the table before, or that it did not have.
        n_moved: Rows of the change table that this run wrote.
        n_outside: Places of a user's grid that were left out, because they are not in the region.
    """

    path: Path
    digest: str
    n_cells: int
    n_encoded: int
    was_current: bool
    n_tiles_changed: int | None = None
    n_checked: int = 0
    n_changed: int = 0
    n_moved: int = 0
    n_outside: int = 0


def embed_region(
    path: Path,
    cache: TileCache,
    grid: Grid,
    version: EncoderVersion,
    load: Callable[[EncoderVersion], Encoder],
    on_cells: Callable[[int, int], None] = lambda done, total: None,
) -> EmbedResult:
    """Write the embedding table of a region to `path`; a table that is up to date is kept.

    Args:
        path: The GeoParquet file.
        cache: The region's tiles.
        grid: The region's cells.
        version: The encoder to use.
        load: Loads it; called only if something is to be encoded.
        on_cells: Called with the number of cells done, and of all.

    Raises:
        EmbeddingsError: The encoder takes windows of another style, or no cell lies in the region.
        GridError: The user's grid cannot be read.
        TileCacheError: A chunk is missing or damaged.
    """
    manifest = cache.manifest
    if manifest.style_label != version.style_label or cache.n_channels != version.n_channels:
        raise EmbeddingsError(
            f"Region '{manifest.region}': encoder {version.name} takes windows of style '{version.style_label}' with "
            f"{version.n_channels} channels, the tiles are '{manifest.style_label}' with {cache.n_channels}. "
            "Materialise tile_cache in that style, or train an encoder on this one."
        )
    recipe = digest_of(
        "embeddings",
        VERSION,
        manifest.digest,
        *grid.recipe,
        version.digest,
        version.name,
    )
    with only_one(path.parent, "another run"):
        current = _current(path, recipe, cache)
        if current is not None:
            _log.info("%s: the embedding table is up to date", manifest.region)
            return current
        return _made(path, cache, grid, version, load, on_cells, recipe)


def _made(
    path: Path,
    cache: TileCache,
    grid: Grid,
    version: EncoderVersion,
    load: Callable[[EncoderVersion], Encoder],
    on_cells: Callable[[int, int], None],
    recipe: str,
) -> EmbedResult:
    manifest = cache.manifest
    work = path.parent / f"parts-{recipe[:16]}"
    _clean(path.parent, keep=work)
    work.mkdir(parents=True, exist_ok=True)
    # How a row follows from its window, whatever the map is: code, style, encoder.
    of_rows = digest_of("rows", VERSION, manifest.style_label, version.digest)
    of_parts = digest_of("parts", *grid.batch_recipe, version.name)
    before = Before.open(path, of_rows, of_parts, cache)
    cutter = _Cutter(cache, version, before)
    untouched: dict[str, tuple[Part, int]] = {}
    if before is not None:
        untouched = before.untouched_parts(version.scales.extent_m, version.size_px)
    if before is not None and untouched:
        names, n_all = [part.name for part in before.parts], sum(part.n_cells for part in before.parts)
    else:
        names, n_all = grid.batch_names(), grid.count()
    n_threads = encoding_threads()
    n_cells = 0
    parts: list[Part] = []
    groups: list[tuple[Path, int]] = []
    with single_threads(n_threads) as pool, ThreadPoolExecutor(n_threads, "writing-parts") as writing:
        timestamp = milliseconds(manifest.osm_timestamp)
        table = _Embedder(version, load, manifest.style_label, timestamp, before, pool, writing, n_threads)
        batches = (_Batch(name, untouched.get(name), partial(grid.batch, name)) for name in names)
        n_ahead = _AHEAD * n_threads * windows_at_once(version)
        cuts = in_order(pool, cutter.cut, cutter.slices(batches, work), n_ahead, lambda slice_: slice_.size)
        for done in table.done(cuts):
            n_cells += done.n_cells
            if done.is_last:
                kept, own = done.part.batch.kept, done.part.path
                parts.append(read_part(own) if kept is None else kept[0])
                groups.append((own, 0) if kept is None else (path, kept[1]))
            on_cells(n_cells, n_all)
    if not n_cells:
        raise EmbeddingsError(f"Region '{manifest.region}': {grid.why_empty}")
    digest = digest_of("rows", [(part.name, part.digest) for part in parts], *grid.geometry_digests)
    n_moved = 0
    if before is not None:
        changes = [file for written, _ in groups if (file := _changes_of(written)).exists()]
        n_moved = write_changes(path, changes, before.metadata, digest)
    metadata = {
        "recipe": recipe,
        "replaced": _replaced(path, digest),
        "rows_recipe": of_rows,
        "of_parts": of_parts,
        "digest": digest,
        "region": manifest.region,
        **grid.metadata,
        "encoder": version.name,
        "encoder_digest": version.digest,
        "size_m": version.size_m,
        "size_px": version.size_px,
        "context_m": version.context_m,
        "surroundings_m": version.surroundings_m,
        "style": manifest.style_label,
        "tiles": manifest.digest,
        "extract_sha256": manifest.extract_sha256,
        "osm_timestamp": manifest.osm_timestamp,
        "embedding_dim": version.embedding_dim,
        "n_cells": n_cells,
        "parts": [asdict(part) for part in parts],
    }
    if before is None:
        keep_whole(path)
    forget(path)
    write_table(path, groups, version.embedding_dim, metadata, grid.geometry_types)
    if before is None:
        write_tiles(path, recipe, cache)
    else:
        before.write_tiles(recipe)
    shutil.rmtree(work, ignore_errors=True)
    return EmbedResult(
        path,
        digest,
        n_cells,
        table.n_encoded,
        was_current=False,
        n_tiles_changed=None if before is None else before.n_tiles_changed,
        n_checked=cutter.n_checked,
        n_changed=table.n_changed,
        n_moved=n_moved,
        n_outside=_n_outside(metadata),
    )


def _replaced(path: Path, digest: str) -> str | None:
    """The digest of the table that one with another digest takes the place of."""
    try:
        before = read_metadata(path)
        replaced = before["digest"] if before["digest"] != digest else before.get("replaced")
    except (EmbeddingsError, KeyError):
        return None
    return None if replaced is None else str(replaced)


def _changes_of(part: Path) -> Path:
    return part.with_suffix(".changes.parquet")


def _current(path: Path, recipe: str, cache: TileCache) -> EmbedResult | None:
    try:
        metadata = read_metadata(path)
        if metadata.get("recipe") != recipe:
            return None
        if not check_table(path, recipe):
            write_tiles(path, recipe, cache)  # the run that wrote the table was killed before it came to that
    except (EmbeddingsError, OSError, pa.ArrowException) as problem:
        if path.exists():
            _log.warning("%s; it is made again now", problem)
        return None
    return EmbedResult(
        path,
        str(metadata["digest"]),
        int(metadata["n_cells"]),
        0,
        was_current=True,
        n_tiles_changed=0,
        n_outside=_n_outside(metadata),
    )


def _n_outside(metadata: Mapping[str, Any]) -> int:
    return int(metadata.get("n_outside", 0))


def _clean(folder: Path, keep: Path) -> None:
    """Remove what runs with other inputs left unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    for other in folder.glob("parts-*"):
        if other != keep:
            shutil.rmtree(other, ignore_errors=True)
    if keep.exists():
        remove_temporaries(keep)


def windows_at_once(version: EncoderVersion) -> int:
    """Windows that are cut, and that are encoded, by a thread at a time: full passes, if there is room."""
    n = min(_WINDOWS_AT_ONCE, version.spec.n_windows(_BYTES_AT_ONCE, version.size_px))
    return n - n % min(images_a_pass(best_device()), n)


@dataclass(frozen=True, slots=True)
class _Batch:
    """A coarse cell: the part of the table before that is taken over for it, with its row group, or else its cells."""

    name: str
    kept: tuple[Part, int] | None
    cells: Callable[[], Cells]


@dataclass(frozen=True, slots=True)
class _Part:
    """The cells of a coarse one, what is known of them, and the file that their rows go to.

    Digests in `known` become those of the new windows when they are cut.
    """

    batch: _Batch
    path: Path
    cells: Cells
    known: Known
    digests_before: list[bytes]


@dataclass(frozen=True, slots=True)
class _Slice:
    """Some cells of a part: windows to cut, `rows`; cells done with by that; and whether the part is, too."""

    part: _Part
    rows: NDArray[np.int64]
    n_cells: int
    is_last: bool

    @property
    def size(self) -> int:
        """What it takes up, in windows; what is known of a part's cells, where none is cut, counts too."""
        return max(len(self.rows), len(self.part.cells) // _CELLS_A_WINDOW)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A slice, those of its rows whose windows differ from what is known, and their windows, `[M, S·C, H, W]`."""

    slice: _Slice
    changed: NDArray[np.int64]
    windows: Pixels


def _parts_to_write(encoded: tuple[_Slice, NDArray[np.int64]]) -> int:
    """1 for a slice whose part is written after it."""
    return int(encoded[0].is_last and len(encoded[0].part.cells) > 0)


class _Cutter:
    """Cuts windows, and finds out which are not those of the table before."""

    def __init__(self, cache: TileCache, version: EncoderVersion, before: Before | None) -> None:
        self._reader = WindowReader(
            cache,
            version.size_m,
            version.size_px,
            version.scales.wider_m,
            ChunkMemory(_MEMORY_BYTES),
            by_strips=before is not None and before.needs_few_windows,
        )
        self._version = version
        self._before = before
        self._step = windows_at_once(version)
        self.n_checked = self.n_changed = 0

    def slices(self, batches: Iterable[_Batch], folder: Path) -> Iterator[_Slice]:
        """Batches of cells, slice by slice; of those taken over, or whose part an earlier run wrote, no rows."""
        nothing = Known.nothing(0, self._version.embedding_dim)
        for batch in batches:
            path = folder / f"{batch.name}.parquet"
            if batch.kept is not None or path.exists():
                n_cells = (read_part(path) if batch.kept is None else batch.kept[0]).n_cells
                yield _Slice(_Part(batch, path, NO_CELLS, nothing, []), np.empty(0, np.int64), n_cells, True)
                continue
            cells = batch.cells()
            if not len(cells):
                continue
            known, is_wanted = Known.nothing(len(cells), self._version.embedding_dim), np.ones(len(cells), bool)
            if self._before is not None:
                known = self._before.rows(cells)
                extent_m, size_px = self._version.scales.extent_m, self._version.size_px
                is_touched = self._before.touched(cells.lon, cells.lat, extent_m, size_px)
                is_wanted = is_touched | known.has_moved | ~known.is_there
            wanted = cells.along_ground[is_wanted[cells.along_ground]]
            part = _Part(batch, path, cells, known, list(known.digests))
            self.n_checked += len(wanted)
            n_kept = len(cells) - len(wanted)
            for begin in range(0, max(len(wanted), 1), self._step):
                some = wanted[begin : begin + self._step]
                yield _Slice(part, some, len(some) + (0 if begin else n_kept), begin + self._step >= len(wanted))

    def cut(self, slice_: _Slice) -> _Cut:
        """Cut a slice's windows; the digests of those that have changed are new afterwards in what is known."""
        cells, digests = slice_.part.cells, slice_.part.known.digests
        windows = self._reader.windows(cells.lon[slice_.rows], cells.lat[slice_.rows])
        changed = []
        for index, row in enumerate(slice_.rows):
            digest = xxhash.xxh3_128_digest(windows[index])
            if digest != digests[row]:
                digests[row] = digest
                changed.append(index)
        return _Cut(slice_, slice_.rows[changed], windows if len(changed) == len(windows) else windows[changed])


class _Embedder:
    """Encodes windows, each once, in full batches, and writes the parts."""

    def __init__(
        self,
        version: EncoderVersion,
        load: Callable[[EncoderVersion], Encoder],
        style: str,
        timestamp: int,
        before: Before | None,
        pool: Executor,
        writing: Executor,
        n_threads: int,
    ) -> None:
        self._version = version
        self._load = load
        self._encoder: Encoder | None = None
        self._style = style
        self._timestamp = timestamp
        self._before = before
        self._pool = pool
        self._writing = writing
        self._n_threads = n_threads
        self._n_ahead = _AHEAD * n_threads
        self._n_at_once = windows_at_once(version)
        self._embeddings: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._waiting: dict[bytes, Pixels] = {}
        self._batches: deque[tuple[list[bytes], Future[NDArray[np.float32]]]] = deque()
        self._under_way: set[bytes] = set()
        self._open: deque[tuple[int, _Slice, NDArray[np.int64]]] = deque()
        self._changed: list[NDArray[np.int64]] = []
        self.n_encoded = self.n_changed = 0

    def done(self, cuts: Iterator[_Cut]) -> Iterator[_Slice]:
        """The slices in their order, each when all its windows are encoded, and its part is written if it was the last.

        A slice is open until as many windows are encoded as were wanted when it came: they are encoded in that order.
        """
        for cut in cuts:
            self.n_changed += len(cut.changed)
            self._take(cut)
            n_wanted = self.n_encoded + len(self._under_way) + len(self._waiting)
            self._open.append((n_wanted, cut.slice, cut.changed))  # not its windows, which take up memory
            while len(self._batches) > self._n_ahead:
                self._collect()
            yield from self._closed()
        self._submit_rest()
        while self._batches:
            self._collect()
            yield from self._closed()
        yield from self._closed()

    def _take(self, cut: _Cut) -> None:
        """Let the windows wait that nobody has encoded yet, and encode full batches of these, all but the last."""
        new: dict[bytes, Pixels] = {}
        for row, window in zip(cut.changed, cut.windows, strict=True):
            digest = cut.slice.part.known.digests[row]
            if digest in self._embeddings:
                self._embeddings.move_to_end(digest)
            elif digest not in self._under_way and digest not in self._waiting:
                new.setdefault(digest, window)
        # Of a slice of which few windows are new, the others should not stay in memory for their sake.
        are_few = 2 * len(new) < len(cut.windows)
        self._waiting.update((digest, window.copy() if are_few else window) for digest, window in new.items())
        if self._waiting and self._encoder is None:
            self._encoder = self._load(self._version)
        while len(self._waiting) >= 2 * self._n_at_once:  # of the last two, each thread gets its share
            self._submit(self._n_at_once)

    def _submit_rest(self) -> None:
        """Encode what still waits, by all threads: where little has changed, it is all there is."""
        if self._encoder is None:
            return
        n_each = max(-(-len(self._waiting) // self._n_threads), self._encoder.batch_size)
        while self._waiting:
            self._submit(n_each)

    def _submit(self, n: int) -> None:
        if self._encoder is None:
            return
        digests = list(self._waiting)[:n]
        windows = [self._waiting.pop(digest) for digest in digests]
        self._batches.append((digests, self._pool.submit(self._encoder.encode, windows)))
        self._under_way.update(digests)

    def _collect(self) -> None:
        digests, future = self._batches.popleft()
        self._embeddings.update(zip(digests, future.result(), strict=True))
        self._under_way.difference_update(digests)
        self.n_encoded += len(digests)

    def _closed(self) -> Iterator[_Slice]:
        yield from in_order(self._writing, self._finished, self._encoded(), self._n_threads, _parts_to_write)
        # What waits or is open was seen last.
        while len(self._embeddings) > _REMEMBERED_WINDOWS:
            self._embeddings.popitem(last=False)

    def _encoded(self) -> Iterator[tuple[_Slice, NDArray[np.int64]]]:
        """Slices all of whose windows are encoded and, of those that are a part's last, the part's changed rows."""
        while self._open and self._open[0][0] <= self.n_encoded:
            _, slice_, changed = self._open.popleft()
            self._changed.append(changed)
            if slice_.is_last:
                changed = np.sort(np.concatenate(self._changed))
                self._changed.clear()
            yield slice_, changed

    def _finished(self, encoded: tuple[_Slice, NDArray[np.int64]]) -> _Slice:
        """The slice; if it is its part's last, the part is written then."""
        slice_, changed = encoded
        if slice_.is_last:
            self._write(slice_.part, changed)
        return slice_

    def _write(self, part: _Part, changed: NDArray[np.int64]) -> None:
        known = part.known
        if len(changed):
            embeddings = np.stack([self._embeddings[known.digests[row]] for row in changed])
            if self._before is not None:
                self._write_changes(part, changed, embeddings)
            known.embeddings[changed] = embeddings
            known.timestamps[changed] = self._timestamp
        if len(part.cells):
            of_all = self._version.name, self._style
            table = rows(part.cells, known.embeddings, known.digests, *of_all, known.timestamps, known.wkb)
            write_part(part.path, part.batch.name, table)

    def _write_changes(self, part: _Part, changed: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """Write what differs from the table before, beside the part and before it."""
        if self._before is None:
            return
        cells, known = part.cells.take(changed), part.known
        table = change_rows(
            cells.names,
            self._before.causes(cells, known.take(changed), self._version.scales, self._version.size_px),
            known.embeddings[changed],
            embeddings,
            [part.digests_before[row] for row in changed],
            known.timestamps[changed],
        )
        with written_aside(_changes_of(part.path)) as temporary:
            pq.write_table(table, temporary, compression="zstd")
