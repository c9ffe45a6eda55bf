"""Building a tile cache: chunk by chunk, by a pool of processes, beside other builds of the same cache.

Every chunk has a recipe of its own: style, source, and what its strips are drawn from (see `inputs`). One of the wanted
recipe whose tiles still have their digests is not made again. So a killed build goes on where it stopped, several
builds share the work (see `locks`), and after a change of the map only the strips that can show it are rendered; the
others are taken over from the file that is there.
"""

import contextlib
import errno
import logging
import multiprocessing
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import shapely

from geobacter_core.errors import GeobacterError, TileCacheError, TileServerDownError
from geobacter_core.files import digest_of, n_processors, remove_temporaries, write_json, xxh3_of_file
from geobacter_core.geo import Tile
from geobacter_core.tiles import locks
from geobacter_core.tiles.cache import MANIFEST, TileManifest, chunks_of, load_manifest
from geobacter_core.tiles.chunk import (
    RECIPE,
    REMEDY,
    STRIPS,
    ChunkSummary,
    check_chunk,
    chunk_file,
    chunk_metadata,
    chunks_in,
    strips_of,
    write_chunk,
)
from geobacter_core.tiles.source import ALL_ROWS, TileSource
from geobacter_core.tiles.style import Style

VERSION = "3"
"""Raise when the same source would give other chunk files."""

_FEW_CHUNKS = 4
"""So many are rendered here and now: starting processes would take longer."""
_STRIP_RECIPE = 32
_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What tiles follow from, besides style and source.

    Attributes:
        digest: Of the map features; for a tile server, of the extract.
        extract_sha256: The extract behind them.
        osm_timestamp: That of the extract.
        of_strips: Finds the digests of what the 16 strips of each chunk follow from, which takes a while; None where
            nothing narrower than `digest` is known.
    """

    digest: str
    extract_sha256: str
    osm_timestamp: str
    of_strips: Callable[[], Mapping[Tile, Sequence[str]]] | None = None


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A built cache.

    Attributes:
        manifest: Its manifest.
        n_rendered: Chunks that this build made, as a whole or in part.
        n_reused: Chunks that were there, or made by another.
        n_strips: Strips that this build rendered, of the 16 of each chunk.
    """

    manifest: TileManifest
    n_rendered: int
    n_reused: int
    n_strips: int


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker needs to know to make or check chunks of one region.

    Attributes:
        folder: The cache.
        source: Makes the tiles.
        metadata: Of all chunk files.
        recipe: Of the whole cache.
        by_strips: Whether strips may be made by themselves.
    """

    folder: Path
    source: TileSource
    metadata: Mapping[str, str]
    recipe: str
    by_strips: bool


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A chunk as it must be.

    Attributes:
        tile: The chunk.
        recipe: That its file must have.
        listed: What the build before says of it, if it has it.
        strips: Recipes of its strips, which the chunk's follows from; empty where they are not known.
    """

    tile: Tile
    recipe: str
    listed: ChunkSummary | None = None
    strips: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A chunk's summary, or why it failed, or neither where another process makes it just now."""

    summary: ChunkSummary | None = None
    failure: Exception | None = None
    n_strips: int = 0

    @property
    def is_busy(self) -> bool:
        return self.summary is None and self.failure is None


def build_cache(
    folder: Path,
    region: str,
    ground: shapely.Geometry,
    style: Style,
    source: TileSource,
    inputs: Inputs,
    on_chunk: Callable[[int, int], None] = lambda done, total: None,
) -> BuildResult:
    """Bring a region's tile cache up to date with `source`. Other processes may do the same at the same time.

    Args:
        folder: Where the chunks lie.
        region: The region's name.
        ground: What the region covers, in degrees.
        style: The style, which enters the recipe.
        source: Makes the chunks, in worker processes.
        inputs: What is behind the tiles; it enters the recipe too.
        on_chunk: Called with the number of chunks done and in all, after each.

    Raises:
        TileCacheError: Some chunks could not be made, and it names them, or the disk is full. The others stay.
    """
    of_source = ("tiles", VERSION, style.digest, source.name)
    recipe = digest_of(*of_source, inputs.digest)
    metadata = {
        "geobacter:style": style.label,
        "geobacter:style_digest": style.digest,
        "geobacter:source": source.name,
        "geobacter:extract_sha256": inputs.extract_sha256,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locks.building(folder, recipe):
            remove_temporaries(folder)
            before = _before(folder)
            listed = {} if before is None else {summary.tile: summary for summary in before.chunks}
            tiles = chunks_of(ground)
            job = _Job(folder, source, metadata, recipe, style.is_local)

            @cache
            def strips() -> Mapping[Tile, tuple[str, ...]]:
                """Recipes of all strips; found out only if something has changed or is missing."""
                found = {} if inputs.of_strips is None else inputs.of_strips()
                return {
                    tile: tuple(digest_of(*of_source, digest)[:_STRIP_RECIPE] for digest in digests)
                    for tile, digests in found.items()
                }

            if inputs.of_strips is None:
                recipes = dict.fromkeys(tiles, recipe)
            elif before is not None and before.recipe == recipe and listed.keys() == set(tiles):
                recipes = {tile: summary.recipe for tile, summary in listed.items()}  # nothing has changed
            else:
                recipes = {tile: digest_of(*of_chunk) for tile, of_chunk in strips().items()}
            chunks = [_Wanted(tile, recipes[tile], listed.get(tile)) for tile in tiles]
            made = _make_all(job, region, chunks, lambda tile: strips().get(tile, ()), on_chunk)
            summaries = sorted((outcome.summary for outcome in made if outcome.summary), key=lambda s: (s.x, s.y))
            manifest = TileManifest(
                region=region,
                style=style.name,
                style_version=style.version,
                channels=style.channels,
                source=source.name,
                recipe=recipe,
                digest=digest_of(*((s.x, s.y, s.digest) for s in summaries)),
                extract_sha256=inputs.extract_sha256,
                osm_timestamp=inputs.osm_timestamp,
                chunks=tuple(summaries),
            )
            if not _is_written(folder, manifest):
                write_json(folder / MANIFEST, manifest)
            _remove_strangers(folder, manifest)
    except OSError as problem:
        raise TileCacheError(
            f"Tile cache {folder}: {problem.strerror or problem}. Chunks that are done are whole and kept; "
            "mend that and materialise tile_cache again."
        ) from None
    n_made = sum(outcome.n_strips > 0 for outcome in made)
    return BuildResult(manifest, n_made, len(summaries) - n_made, sum(outcome.n_strips for outcome in made))


def _before(folder: Path) -> TileManifest | None:
    """The manifest of the build before."""
    try:
        return load_manifest(folder)
    except TileCacheError:
        return None


def _make_all(
    job: _Job,
    region: str,
    chunks: list[_Wanted],
    strips: Callable[[Tile], tuple[str, ...]],
    on_chunk: Callable[[int, int], None],
) -> list[_Outcome]:
    """Every chunk's outcome, none of them a failure.

    Raises:
        TileCacheError: Some failed; it names them.
    """
    outcomes: list[_Outcome] = []
    failures: dict[Tile, Exception] = {}
    with closing(_outcomes(job, chunks, strips)) as coming:
        for chunk, outcome in coming:
            outcomes.append(outcome)
            on_chunk(len(outcomes), len(chunks))
            if outcome.failure is not None:
                failures[chunk.tile] = outcome.failure
                _log.error("%s: chunk %s failed: %s", region, chunk.tile, outcome.failure)
                if isinstance(outcome.failure, TileServerDownError):
                    break
                if isinstance(outcome.failure, OSError) and outcome.failure.errno in _DISK_IS_FULL:
                    n_done = len(outcomes) - len(failures)
                    raise TileCacheError(
                        f"Tile cache {job.folder}: the disk is full. {n_done} of {len(chunks)} chunks are done, whole "
                        "and kept. Free some space and materialise tile_cache again: it goes on from there."
                    )
    if failures:
        # The last reason, because it may be that which ended the build.
        first, reason = list(failures.items())[-1]
        names = ", ".join(map(str, list(failures)[:8])) + (", …" if len(failures) > 8 else "")
        raise TileCacheError(
            f"Tile cache {job.folder}: {len(failures)} of {len(chunks)} chunks failed ({names}), the others are kept. "
            f"{first}: {reason} Mend the cause and materialise tile_cache again."
        )
    return outcomes


def _is_written(folder: Path, manifest: TileManifest) -> bool:
    try:
        return load_manifest(folder) == manifest
    except TileCacheError:
        return False


def _remove_strangers(folder: Path, manifest: TileManifest) -> None:
    """Chunks that the region no longer needs would otherwise stay for ever."""
    wanted = {chunk_file(folder, summary.tile) for summary in manifest.chunks}
    for path in chunks_in(folder):
        if path not in wanted:
            path.unlink(missing_ok=True)


def _outcomes(
    job: _Job, chunks: list[_Wanted], strips: Callable[[Tile], tuple[str, ...]]
) -> Generator[tuple[_Wanted, _Outcome], None, None]:
    """Each chunk with its outcome: those that are there already, those made here, then those that others made."""
    missing: list[_Wanted] = []
    with ThreadPoolExecutor(n_processors()) as pool:
        present = pool.map(lambda chunk: _reuse(job, chunk, chunk.listed), chunks)
        for chunk, (summary, problem) in zip(chunks, present, strict=True):
            if problem:
                _log.warning("%s It is made again now.", problem.removesuffix(REMEDY).rstrip())
            if summary is None:
                missing.append(replace(chunk, strips=strips(chunk.tile)))
            else:
                yield chunk, _Outcome(summary)
    busy: list[_Wanted] = []
    for chunk, outcome in _made(job, missing):
        if outcome.is_busy:
            busy.append(chunk)
        else:
            yield chunk, outcome
    for chunk in busy:
        yield chunk, _make(job, chunk, wait=True)


def _reuse(job: _Job, chunk: _Wanted, listed: ChunkSummary | None = None) -> tuple[ChunkSummary | None, str]:
    """The summary of the chunk that is there, if it is whole and the wanted one; what is wrong if it is damaged.

    A file whose bytes are those that the manifest lists need not be decoded.
    """
    path = chunk_file(job.folder, chunk.tile)
    try:
        if listed is not None and listed.recipe == chunk.recipe and listed.file_digest:
            with contextlib.suppress(OSError):
                if xxh3_of_file(path) == listed.file_digest:
                    return listed, ""
        is_wanted = chunk_metadata(path).get(RECIPE) == chunk.recipe
        return (check_chunk(path, chunk.tile) if is_wanted else None), ""
    except TileCacheError as problem:
        return None, str(problem) if path.exists() else ""


def _made(job: _Job, chunks: list[_Wanted]) -> Iterator[tuple[_Wanted, _Outcome]]:
    """Make chunks that no other process is making, here or in a pool, and yield each outcome as it comes."""
    workers = min(n_processors(), len(chunks), job.source.max_processes or len(chunks))
    if workers <= 1 or len(chunks) <= _FEW_CHUNKS:
        for chunk in chunks:
            yield chunk, _make(job, chunk, wait=False)
        return
    # Spawned, because a fork of a process that has threads (Dagster's, torch's) can hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    waiting = iter(chunks)
    running: dict[Future[_Outcome], _Wanted] = {}
    try:
        while True:
            # A few in flight per worker keep it busy, and few are lost when the build ends early.
            while len(running) < 3 * workers and (ahead := next(waiting, None)) is not None:
                running[pool.submit(_make_in_worker, job, ahead)] = ahead
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise TileCacheError(
            f"Tile cache {job.folder}: a rendering process died, perhaps for lack of memory. "
            "Chunks that are done are kept; materialise tile_cache again."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _make_in_worker(job: _Job, chunk: _Wanted) -> _Outcome:
    with locks.taking_part(job.folder, job.recipe):
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            # A build by another recipe may be under way: what was asked for here is no longer wanted.
            raise SystemExit
        return _make(job, chunk, wait=False)


def _make(job: _Job, chunk: _Wanted, wait: bool) -> _Outcome:
    """Make a chunk, unless another process does or has done so. A failure is returned, for the other chunks go on."""
    path = chunk_file(job.folder, chunk.tile)
    try:
        with locks.making(job.folder, chunk.tile, wait) as is_ours:
            if not is_ours:
                return _Outcome()
            summary, _ = _reuse(job, chunk)
            if summary is not None:
                return _Outcome(summary)
            metadata = {**job.metadata, RECIPE: chunk.recipe}
            if chunk.strips:
                metadata[STRIPS] = " ".join(chunk.strips)
            rows = _rows_to_make(job, chunk)
            strips = job.source.strips(chunk.tile, rows)
            return _Outcome(write_chunk(path, chunk.tile, strips, metadata, rows), n_strips=len(rows))
    except (GeobacterError, OSError, RuntimeError) as problem:
        return _Outcome(failure=problem)


def _rows_to_make(job: _Job, chunk: _Wanted) -> Sequence[int]:
    """The strips of a chunk that its file does not have as they must be; all, if the file cannot be relied on."""
    path = chunk_file(job.folder, chunk.tile)
    if not job.by_strips or not chunk.strips or chunk.listed is None or not chunk.listed.file_digest:
        return ALL_ROWS
    try:
        present = strips_of(path)
        if present is None or xxh3_of_file(path) != chunk.listed.file_digest:
            return ALL_ROWS
    except (TileCacheError, OSError):
        return ALL_ROWS
    rows = [row for row, (have, want) in enumerate(zip(present, chunk.strips, strict=True)) if have != want]
    return rows or ALL_ROWS
