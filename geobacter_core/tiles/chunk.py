"""Chunk files: the 256 tiles under one zoom-12 tile as Parquet, checked when they are read.

A row per tile (`z x y`, `pixels`, `digest`), a row group per tile row. The metadata says what it was made from. Whoever
looks at pixels has the pages' checksums checked, which takes next to nothing; a build has the tiles' digests checked.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from geobacter_core.ahead import in_order
from geobacter_core.errors import TileCacheError
from geobacter_core.files import aside, n_processors, written_aside, xxh3_of_file
from geobacter_core.geo import CHUNK_TILES, CHUNK_ZOOM, TILE_PX, TILE_ZOOM, Tile
from geobacter_core.splice import splice
from geobacter_core.tiles.source import ALL_ROWS, Pixels

REMEDY = "Materialise tile_cache for the region: it renders what is missing or damaged and keeps the rest."
RECIPE = "geobacter:recipe"
STRIPS = "geobacter:strips"
"""Metadata: what each strip was drawn from, where that is known."""
_BLANKS = "geobacter:blank"
"""Metadata: how many tiles of each strip are of one colour."""
_CHECKSUMS = "geobacter:checksums"
"""Files that were written before there were any lack this."""
_MAX_THREADS = 4

Result = TypeVar("Result")


class ChunkSummary(BaseModel):
    """What a manifest keeps of a chunk.

    Attributes:
        x: Column of the zoom-12 tile.
        y: Its row.
        recipe: Digest of everything that the pixels follow from.
        digest: Digest over its tiles' digests.
        n_blank: Tiles of one colour.
        size_bytes: Of the file.
        file_digest: XXH3 of the file's bytes, hex; empty where it was not known yet.
    """

    model_config = ConfigDict(frozen=True)

    x: int
    y: int
    recipe: str
    digest: str
    n_blank: int
    size_bytes: int
    file_digest: str = ""

    @property
    def tile(self) -> Tile:
        """The chunk as a zoom-12 tile."""
        return Tile(CHUNK_ZOOM, self.x, self.y)


def chunk_file(folder: Path, chunk: Tile) -> Path:
    """Where a chunk lies."""
    return folder / f"{chunk.z}-{chunk.x}-{chunk.y}.parquet"


def chunks_in(folder: Path) -> list[Path]:
    """The chunk files that lie in a folder, wanted or not."""
    return sorted(folder.glob(f"{CHUNK_ZOOM}-*-*.parquet"))


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


def write_chunk(
    path: Path, chunk: Tile, strips: Iterable[Pixels], metadata: Mapping[str, str], rows: Sequence[int] = ALL_ROWS
) -> ChunkSummary:
    """Write 16 strips of tiles, uint8 `[16, 256, 256, C]` each, as a chunk file, a row group per strip.

    Args:
        path: Where.
        chunk: Which.
        strips: The strips of `rows`, north to south.
        metadata: Of the file.
        rows: Where it is not all, the others are taken over from the file that is there, as they are: it must be whole,
            and `strips_of` must know its strips.

    Raises:
        TileCacheError: There were not as many strips as rows.
    """
    is_whole = len(rows) == CHUNK_TILES
    digests = [b""] * CHUNK_TILES**2 if is_whole else read_digests(path, chunk)
    blanks = [0] * CHUNK_TILES if is_whole else [int(n) for n in chunk_metadata(path)[_BLANKS].split()]
    n_written = 0
    with written_aside(path) as temporary, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        pieces = temporary if is_whole else stack.enter_context(aside(temporary))
        for row, strip in zip(rows, strips, strict=False):
            flat = strip.reshape(CHUNK_TILES, -1)
            found, blanks[row] = _digests(flat, strip.shape[-1])
            digests[row * CHUNK_TILES : (row + 1) * CHUNK_TILES] = found
            n_written += 1
            table = _strip_table(chunk, row, flat, found, metadata)
            if writer is None:
                writer = stack.enter_context(
                    pq.ParquetWriter(
                        pieces,
                        table.schema,
                        compression="zstd",
                        compression_level=1,
                        use_dictionary=False,
                        write_statistics=["x", "y"],
                        write_page_checksum=True,
                    )
                )
            writer.write_table(table)
        if writer is None or n_written != len(rows):
            raise TileCacheError(
                f"The source gave {n_written * CHUNK_TILES} of {len(rows) * CHUNK_TILES} tiles of chunk {chunk}. "
                "Render it again."
            )
        writer.add_key_value_metadata({_BLANKS: " ".join(map(str, blanks))})
        writer.close()
        if not is_whole:
            number_of = {row: number for number, row in enumerate(rows)}
            splice(
                temporary, pieces, [(pieces, number_of[row]) if row in number_of else (path, row) for row in ALL_ROWS]
            )
    return _summary(path, chunk, metadata.get(RECIPE, ""), digests, sum(blanks))


def strips_of(path: Path) -> list[str] | None:
    """What each strip of a chunk file was drawn from; None if it does not say.

    Raises:
        TileCacheError: As `chunk_metadata`.
    """
    metadata = chunk_metadata(path)
    strips, blanks = metadata.get(STRIPS, "").split(), metadata.get(_BLANKS, "").split()
    return strips if len(strips) == len(blanks) == CHUNK_TILES else None


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
        metadata={**metadata, _CHECKSUMS: "1"},
    )


def chunk_metadata(path: Path) -> dict[str, str]:
    """What a chunk file says of itself.

    Raises:
        TileCacheError: There is no such file, or its end is damaged.
    """
    try:
        found = pq.read_metadata(path).metadata or {}
        return {key.decode(): value.decode() for key, value in found.items() if key.startswith(b"geobacter:")}
    except FileNotFoundError:
        raise TileCacheError(f"Chunk {path} is missing. {REMEDY}") from None
    except (pa.ArrowException, OSError, ValueError) as problem:
        raise TileCacheError(f"Chunk {path} is damaged: {problem}. {REMEDY}") from None


def read_strips(path: Path, chunk: Tile) -> Iterator[Pixels]:
    """Rows of tiles of a chunk file, uint8 `[16, 256, 256, C]`, checked.

    Raises:
        TileCacheError: The file is missing or damaged.
    """
    return map_strips(path, chunk, lambda strip: strip)


def map_strips(
    path: Path, chunk: Tile, function: Callable[[Pixels], Result], rows: range = ALL_ROWS
) -> Iterator[Result]:
    """What a function gives for each of some rows of tiles, in their order, computed by threads a few rows ahead.

    Raises:
        TileCacheError: As `read_strips`.
    """
    file = _opened(path, chunk)
    has_checksums = _CHECKSUMS.encode() in (file.metadata or {})

    def of_row(row: int) -> Result:
        flat, digests = _read_strip(path, chunk, row, file)
        if not has_checksums:
            _check(path, chunk, row, flat, digests)
        return function(flat.reshape(CHUNK_TILES, TILE_PX, TILE_PX, -1))

    if len(rows) == 1:
        yield of_row(rows[0])
        return
    n_threads = min(n_processors(), _MAX_THREADS)
    pool = ThreadPoolExecutor(n_threads, "chunk-reading")
    try:
        yield from in_order(pool, of_row, rows, n_threads)
    finally:
        pool.shutdown(cancel_futures=True)


def read_digests(path: Path, chunk: Tile) -> list[bytes]:
    """SHA-256 of each tile of a chunk file as it says itself, row by row from the north-west, `[256]`.

    Raises:
        TileCacheError: The file is missing, or does not hold the chunk's tiles.
    """
    try:
        table = pq.read_table(path, columns=["x", "y", "digest"])
    except FileNotFoundError:
        raise TileCacheError(f"Chunk {path} is missing. {REMEDY}") from None
    except (pa.ArrowException, OSError) as problem:
        raise TileCacheError(f"Chunk {path} is damaged: {problem}. {REMEDY}") from None
    first = (table["x"][0].as_py(), table["y"][0].as_py()) if len(table) else None
    if len(table) != CHUNK_TILES**2 or first != (chunk.x * CHUNK_TILES, chunk.y * CHUNK_TILES):
        raise TileCacheError(f"Chunk {path} is damaged: it does not hold the 256 tiles of {chunk}. {REMEDY}")
    digests: list[bytes] = table["digest"].to_pylist()
    return digests


def check_chunk(path: Path, chunk: Tile) -> ChunkSummary:
    """Read a chunk file through, strip by strip, and sum it up.

    Raises:
        TileCacheError: As `read_strips`.
    """
    digests: list[bytes] = []
    n_blank = 0
    file = _opened(path, chunk)
    for row in range(CHUNK_TILES):
        found, blank = _check(path, chunk, row, *_read_strip(path, chunk, row, file))
        digests += found
        n_blank += blank
    return _summary(path, chunk, chunk_metadata(path).get(RECIPE, ""), digests, n_blank)


def _opened(path: Path, chunk: Tile) -> pq.FileMetaData:
    """What the end of a chunk file says of its contents."""
    with _troubles(path), pq.ParquetFile(path) as file:
        if file.num_row_groups != CHUNK_TILES or file.metadata.num_rows != CHUNK_TILES**2:
            raise _not_its_tiles(path, chunk)
        return file.metadata


def _read_strip(path: Path, chunk: Tile, row: int, metadata: pq.FileMetaData) -> tuple[Pixels, list[bytes]]:
    """A row of tiles as uint8 `[16, bytes]`, and the digests that the file says they have."""
    with _troubles(path):
        with pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True) as file:
            table = file.read_row_group(row, use_threads=False)
        first = (table["x"][0].as_py(), table["y"][0].as_py())
        pixels = table["pixels"].chunk(0) if table["pixels"].num_chunks == 1 else table["pixels"].combine_chunks()
        width = pixels.type.byte_width
        flat: Pixels = np.frombuffer(pixels.buffers()[1], np.uint8).reshape(-1, width)
        is_whole = width % (TILE_PX * TILE_PX) == 0 and len(flat) == CHUNK_TILES
        if not is_whole or first != (chunk.x * CHUNK_TILES, chunk.y * CHUNK_TILES + row):
            raise _not_its_tiles(path, chunk)
        return flat, table["digest"].to_pylist()


def _check(path: Path, chunk: Tile, row: int, flat: Pixels, digests: list[bytes]) -> tuple[list[bytes], int]:
    """The digests of a row of tiles, if they are those that are said, and how many tiles are of one colour."""
    found, n_blank = _digests(flat, flat.shape[1] // (TILE_PX * TILE_PX))
    for column, (ours, theirs) in enumerate(zip(found, digests, strict=True)):
        if ours != theirs:
            tile = Tile(TILE_ZOOM, chunk.x * CHUNK_TILES + column, chunk.y * CHUNK_TILES + row)
            raise TileCacheError(f"Chunk {path} is damaged: tile {tile} does not have its digest. {REMEDY}")
    return found, n_blank


def _not_its_tiles(path: Path, chunk: Tile) -> TileCacheError:
    return TileCacheError(f"Chunk {path} is damaged: it does not hold the 256 tiles of {chunk}. {REMEDY}")


@contextmanager
def _troubles(path: Path) -> Iterator[None]:
    """Say of a file that cannot be read, which, and what to do."""
    try:
        yield
    except FileNotFoundError:
        raise TileCacheError(f"Chunk {path} is missing. {REMEDY}") from None
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError, IndexError) as problem:
        raise TileCacheError(f"Chunk {path} is damaged: {problem}. {REMEDY}") from None


def _summary(path: Path, chunk: Tile, recipe: str, digests: list[bytes], n_blank: int) -> ChunkSummary:
    return ChunkSummary(
        x=chunk.x,
        y=chunk.y,
        recipe=recipe,
        digest=hashlib.sha256(b"".join(digests)).hexdigest(),
        n_blank=n_blank,
        size_bytes=path.stat().st_size,
        file_digest=xxh3_of_file(path),
    )
