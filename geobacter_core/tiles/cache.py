"""The tile cache: one Parquet file a chunk, made by a pool of processes, checked when it is read.

`tiles/<region>/<style>/12-<x>-<y>.parquet` has a row per tile (`z x y`, `pixels`, `digest`), a row group per tile row.
Its metadata says what it was made from. A chunk whose recipe is the wanted one and whose tiles still have their digests
is not rendered again, so a killed run goes on where it stopped. `tiles.json`, written last, lists the chunks.
"""

import hashlib
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from geobacter_core.errors import GeobacterError, TileCacheError
from geobacter_core.files import digest_of, read_json, remove_temporaries, write_json, written_aside
from geobacter_core.geo import (
    CHUNK_TILES,
    CHUNK_ZOOM,
    TILE_PX,
    TILE_ZOOM,
    Bounds,
    Tile,
    lonlat_to_mercator,
    mercator_scale,
)
from geobacter_core.tiles.source import Pixels, TileSource
from geobacter_core.tiles.style import Style

if TYPE_CHECKING:
    from geobacter_core.osm.features import Features

VERSION = "1"
"""Raise when the same source would give other chunk files."""

WINDOW_MARGIN_M = 500.0
"""The cache reaches this far beyond the region's ground, for windows that hang over its edge."""

_MANIFEST = "tiles.json"
_FEW_CHUNKS = 4
"""So many are rendered here and now: starting processes would take longer."""
_REMEDY = "Materialise tile_cache for the region: it renders what is missing or damaged and keeps the rest."
_log = logging.getLogger(__name__)


class ChunkSummary(BaseModel):
    """What the manifest keeps of a chunk: its place, the digest over its tiles, and how many of them are one colour."""

    model_config = ConfigDict(frozen=True)

    x: int
    y: int
    digest: str
    n_blank: int
    size_bytes: int

    @property
    def tile(self) -> Tile:
        """The chunk as a zoom-12 tile."""
        return Tile(CHUNK_ZOOM, self.x, self.y)


class TileManifest(BaseModel):
    """The manifest of a region's tile cache in one style.

    Attributes:
        region: The region's name.
        style: The style's name.
        style_version: The style's version.
        channels: Names of the C channels.
        source: What made the tiles.
        recipe: Digest of everything the pixels follow from.
        digest: Digest over the tiles' digests: the asset's data version.
        extract_sha256: The extract behind the map features.
        osm_timestamp: That of the extract.
        chunks: Sorted by x, then y.
    """

    model_config = ConfigDict(frozen=True)

    region: str
    style: str
    style_version: str
    channels: tuple[str, ...]
    source: str
    recipe: str
    digest: str
    extract_sha256: str
    osm_timestamp: str
    chunks: tuple[ChunkSummary, ...]

    @property
    def n_tiles(self) -> int:
        """Tiles in the cache."""
        return len(self.chunks) * CHUNK_TILES**2


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A built cache: its manifest and how many chunks were rendered, and how many were there already."""

    manifest: TileManifest
    n_rendered: int
    n_reused: int


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker needs to know to make or check chunks of one region."""

    folder: Path
    source: TileSource
    metadata: Mapping[str, str]


def n_workers() -> int:
    """Processes to render with: the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunks_of(ground: shapely.Geometry) -> list[Tile]:
    """The chunks that a region's ground (degrees), widened by the window margin, touches."""
    bounds = Bounds(*ground.bounds)
    scale = float(mercator_scale(np.array([bounds.south, bounds.north]))[0].max())
    widened = shapely.transform(ground, lambda p: np.stack(lonlat_to_mercator(p[:, 0], p[:, 1]), axis=1)).buffer(
        WINDOW_MARGIN_M * scale, quad_segs=4
    )
    shapely.prepare(widened)
    candidates = bounds.tiles(CHUNK_ZOOM, WINDOW_MARGIN_M)
    return sorted(tile for tile in candidates if widened.intersects(shapely.box(*tile.mercator_box)))


def build_cache(
    folder: Path,
    region: str,
    ground: shapely.Geometry,
    style: Style,
    source: TileSource,
    inputs: "Features",
    on_chunk: Callable[[int, int], None] = lambda done, total: None,
) -> BuildResult:
    """Bring a region's tile cache up to date with `source`.

    Args:
        folder: Where the chunks lie.
        region: The region's name.
        ground: What the region covers, in degrees.
        style: The style, which enters the recipe.
        source: Makes the chunks, in worker processes.
        inputs: The map features behind the tiles, which enter the recipe too.
        on_chunk: Called with the number of chunks done and in all, after each.

    Raises:
        TileCacheError: Some chunks could not be made; it names them. The others are done and stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    recipe = digest_of("tiles", VERSION, style.digest, source.name, inputs.digest)
    metadata = {
        "geobacter:style": f"{style.name}/{style.version}",
        "geobacter:style_digest": style.digest,
        "geobacter:source": source.name,
        "geobacter:extract_sha256": inputs.extract_sha256,
        "geobacter:recipe": recipe,
    }
    chunks = chunks_of(ground)
    summaries: list[ChunkSummary] = []
    failures: list[str] = []
    n_rendered = 0
    for chunk, outcome, was_rendered in _outcomes(_Job(folder, source, metadata), chunks):
        if isinstance(outcome, Exception):
            failures.append(f"{chunk}: {outcome}")
            _log.error("%s: chunk %s failed: %s", region, chunk, outcome)
        else:
            summaries.append(outcome)
            n_rendered += was_rendered
        on_chunk(len(summaries) + len(failures), len(chunks))
    if failures:
        raise TileCacheError(
            f"Tile cache {folder}: {len(failures)} of {len(chunks)} chunks failed, the others are kept. "
            f"First: {failures[0]}. Mend the cause and materialise tile_cache again."
        )
    summaries.sort(key=lambda summary: (summary.x, summary.y))
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
        write_json(folder / _MANIFEST, manifest)
    _remove_strangers(folder, manifest)
    return BuildResult(manifest, n_rendered, len(summaries) - n_rendered)


def _is_written(folder: Path, manifest: TileManifest) -> bool:
    try:
        return load_manifest(folder) == manifest
    except TileCacheError:
        return False


def _remove_strangers(folder: Path, manifest: TileManifest) -> None:
    """Chunks that the region no longer needs would otherwise stay for ever."""
    wanted = {chunk_file(folder, summary.tile) for summary in manifest.chunks}
    for path in folder.glob(f"{CHUNK_ZOOM}-*-*.parquet"):
        if path not in wanted:
            path.unlink(missing_ok=True)


def _outcomes(job: _Job, chunks: list[Tile]) -> Iterator[tuple[Tile, ChunkSummary | Exception, bool]]:
    """Each chunk with its summary or the failure, and whether it was rendered; first those that are there already."""
    missing: list[Tile] = []
    with ThreadPoolExecutor(n_workers()) as pool:
        for chunk, summary in zip(chunks, pool.map(lambda chunk: _reuse(job, chunk), chunks), strict=True):
            if summary is None:
                missing.append(chunk)
            else:
                yield chunk, summary, False
    workers = min(n_workers(), len(missing))
    if workers <= 1 or len(missing) <= _FEW_CHUNKS:
        for chunk in missing:
            yield chunk, _render(job, chunk), True
    else:
        yield from ((chunk, outcome, True) for chunk, outcome in _in_processes(job, missing, workers))


def _reuse(job: _Job, chunk: Tile) -> ChunkSummary | None:
    """The summary of the chunk that is there, if it is whole and of the wanted recipe."""
    path = chunk_file(job.folder, chunk)
    try:
        if chunk_metadata(path).get("geobacter:recipe") != job.metadata["geobacter:recipe"]:
            return None
        return _summary(chunk, *read_chunk(path, chunk)[1:], path)
    except TileCacheError as problem:
        if path.exists():
            _log.warning("%s; it is rendered again now", problem)
        return None


def _in_processes(job: _Job, chunks: list[Tile], workers: int) -> Iterator[tuple[Tile, ChunkSummary | Exception]]:
    """Render in a pool, a few chunks in flight per worker, and yield each outcome as it comes."""
    # Spawned, because a fork of a process that has threads (Dagster's, torch's) can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = iter(chunks)
        running: dict[Future[ChunkSummary | Exception], Tile] = {}
        try:
            while True:
                while len(running) < 3 * workers and (chunk := next(waiting, None)) is not None:
                    running[pool.submit(_render, job, chunk)] = chunk
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool:
            raise TileCacheError(
                f"Tile cache {job.folder}: a rendering process died, perhaps for lack of memory. "
                "Chunks that are done are kept; materialise tile_cache again."
            ) from None


def _render(job: _Job, chunk: Tile) -> ChunkSummary | Exception:
    """Make a chunk; a failure is returned, for the other chunks go on."""
    try:
        path = chunk_file(job.folder, chunk)
        return _summary(chunk, *write_chunk(path, chunk, job.source.strips(chunk), job.metadata), path)
    except (GeobacterError, OSError, RuntimeError) as problem:
        return problem


def _summary(chunk: Tile, digests: list[bytes], n_blank: int, path: Path) -> ChunkSummary:
    digest = hashlib.sha256(b"".join(digests)).hexdigest()
    return ChunkSummary(x=chunk.x, y=chunk.y, digest=digest, n_blank=n_blank, size_bytes=path.stat().st_size)


def _digests(tiles: Pixels, n_channels: int) -> tuple[list[bytes], int]:
    """SHA-256 of each tile `[256, bytes]`, and how many tiles are of one colour.

    Most regions have many of those, of few colours, so their digests are remembered.
    """
    digests: list[bytes] = []
    of_colour: dict[bytes, bytes] = {}
    n_blank = 0
    for tile in tiles:
        # A tile is of one colour if every pixel is like the one before it; most are found out in the first row.
        line = n_channels * TILE_PX
        if not (
            np.array_equal(tile[n_channels:line], tile[: line - n_channels])
            and np.array_equal(tile[n_channels:], tile[:-n_channels])
        ):
            digests.append(hashlib.sha256(tile.data).digest())
            continue
        n_blank += 1
        colour = tile[:n_channels].tobytes()
        if colour not in of_colour:
            of_colour[colour] = hashlib.sha256(tile.data).digest()
        digests.append(of_colour[colour])
    return digests, n_blank


def chunk_file(folder: Path, chunk: Tile) -> Path:
    """Where a chunk lies."""
    return folder / f"{chunk.z}-{chunk.x}-{chunk.y}.parquet"


def write_chunk(
    path: Path, chunk: Tile, strips: Iterable[Pixels], metadata: Mapping[str, str]
) -> tuple[list[bytes], int]:
    """Write 16 strips of tiles, uint8 `[16, 256, 256, C]` each, as a chunk file, a row group per strip.

    Returns:
        The tiles' SHA-256 digests, row by row, and how many tiles are of one colour.
    """
    digests: list[bytes] = []
    n_blank = 0
    with written_aside(path) as temporary, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for row, strip in enumerate(strips):
            flat = strip.reshape(CHUNK_TILES, -1)
            found, blank = _digests(flat, strip.shape[-1])
            table = _strip_table(chunk, row, flat, found, metadata)
            if writer is None:
                writer = stack.enter_context(
                    pq.ParquetWriter(
                        temporary,
                        table.schema,
                        compression="zstd",
                        compression_level=1,
                        use_dictionary=False,
                        write_statistics=["x", "y"],
                    )
                )
            writer.write_table(table)
            digests += found
            n_blank += blank
        if len(digests) != CHUNK_TILES**2:
            raise TileCacheError(f"The source gave {len(digests)} of 256 tiles of chunk {chunk}. Render it again.")
        stack.close()
    return digests, n_blank


def _strip_table(chunk: Tile, row: int, flat: Pixels, digests: list[bytes], metadata: Mapping[str, str]) -> pa.Table:
    first = chunk.x * CHUNK_TILES
    pixels = [None, pa.py_buffer(np.ascontiguousarray(flat))]
    return pa.table(
        {
            "z": pa.array([TILE_ZOOM] * CHUNK_TILES, pa.int32()),
            "x": pa.array(range(first, first + CHUNK_TILES), pa.int32()),
            "y": pa.array([chunk.y * CHUNK_TILES + row] * CHUNK_TILES, pa.int32()),
            "pixels": pa.FixedSizeBinaryArray.from_buffers(pa.binary(flat.shape[1]), CHUNK_TILES, pixels),
            "digest": pa.array(digests, pa.binary(32)),
        },
        metadata=dict(metadata),
    )


def chunk_metadata(path: Path) -> dict[str, str]:
    """What a chunk file says of itself.

    Raises:
        TileCacheError: There is no such file, or its end is damaged.
    """
    try:
        found = pq.read_schema(path).metadata or {}
        return {key.decode(): value.decode() for key, value in found.items() if key.startswith(b"geobacter:")}
    except FileNotFoundError:
        raise TileCacheError(f"Chunk {path} is missing. {_REMEDY}") from None
    except (pa.ArrowException, OSError, ValueError) as problem:
        raise TileCacheError(f"Chunk {path} is damaged: {problem}. {_REMEDY}") from None


def read_chunk(path: Path, chunk: Tile) -> tuple[Pixels, list[bytes], int]:
    """Pixels uint8 `[16, 16, 256, 256, C]` of a chunk file, the tiles' digests, and how many are of one colour.

    The digests have been checked.

    Raises:
        TileCacheError: The file is missing, cannot be decoded, or a tile does not have its digest.
    """
    try:
        table = pq.read_table(path, memory_map=False).combine_chunks()
        digests: list[bytes] = table["digest"].to_pylist()
        stored = table["pixels"].chunk(0)
        width = stored.type.byte_width
        flat: NDArray[np.uint8] = np.frombuffer(stored.buffers()[1], np.uint8).reshape(-1, width)
        is_whole = (
            len(flat) == CHUNK_TILES**2
            and (table["x"][0].as_py(), table["y"][0].as_py()) == (chunk.x * CHUNK_TILES, chunk.y * CHUNK_TILES)
            and width % (TILE_PX * TILE_PX) == 0
        )
    except FileNotFoundError:
        raise TileCacheError(f"Chunk {path} is missing. {_REMEDY}") from None
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError, IndexError) as problem:
        raise TileCacheError(f"Chunk {path} is damaged: {problem}. {_REMEDY}") from None
    if not is_whole:
        raise TileCacheError(f"Chunk {path} is damaged: it does not hold the 256 tiles of {chunk}. {_REMEDY}")
    n_channels = width // (TILE_PX * TILE_PX)
    found, n_blank = _digests(flat, n_channels)
    if found != digests:
        index = next(index for index, pair in enumerate(zip(found, digests, strict=True)) if pair[0] != pair[1])
        row, column = divmod(index, CHUNK_TILES)
        name = Tile(TILE_ZOOM, chunk.x * CHUNK_TILES + column, chunk.y * CHUNK_TILES + row)
        raise TileCacheError(f"Chunk {path} is damaged: tile {name} does not have its digest. {_REMEDY}")
    return flat.reshape(CHUNK_TILES, CHUNK_TILES, TILE_PX, TILE_PX, n_channels), digests, n_blank


def load_manifest(folder: Path) -> TileManifest:
    """The manifest of a region's tile cache.

    Raises:
        TileCacheError: There is none, or it is damaged.
    """
    return read_json(folder / _MANIFEST, TileManifest, TileCacheError, "Materialise tile_cache for the region.")


def cache_problems(folder: Path, ground: shapely.Geometry) -> list[str]:
    """What is wrong with a cache: chunks that are missing, damaged or strange; nothing if every digest is right."""
    try:
        cache = TileCache(folder)
    except TileCacheError as problem:
        return [str(problem)]
    problems = [
        f"Chunk {chunk} of the region is not in the cache." for chunk in chunks_of(ground) if chunk not in cache
    ]
    for summary in cache.manifest.chunks:
        try:
            cache.chunk(summary.tile)
        except TileCacheError as problem:
            problems.append(str(problem))
    return problems


class TileCache:
    """A region's tiles, read chunk by chunk."""

    def __init__(self, folder: Path) -> None:
        """Open the cache in `folder`; raises `TileCacheError` when it has no manifest."""
        self.folder = folder
        self.manifest = load_manifest(folder)
        self._chunks = {summary.tile for summary in self.manifest.chunks}

    @property
    def n_channels(self) -> int:
        """C."""
        return len(self.manifest.channels)

    def __contains__(self, chunk: Tile) -> bool:
        return chunk in self._chunks

    def chunk(self, chunk: Tile) -> Pixels:
        """Pixels of a chunk, uint8 `[16, 16, 256, 256, C]`, checked against their digests.

        Raises:
            TileCacheError: The chunk is not in the cache, missing on disk, damaged, or of another recipe.
        """
        if chunk not in self._chunks:
            raise TileCacheError(
                f"Tile cache {self.folder} of region '{self.manifest.region}' does not reach chunk {chunk}. "
                f"Ask for places in the region; windows may overhang it by less than {WINDOW_MARGIN_M:.0f} m."
            )
        path = chunk_file(self.folder, chunk)
        if chunk_metadata(path).get("geobacter:recipe") != self.manifest.recipe:
            raise TileCacheError(f"Chunk {path} was made from other inputs than the cache's manifest states. {_REMEDY}")
        return read_chunk(path, chunk)[0]
