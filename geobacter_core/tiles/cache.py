"""The tile cache of a region in one style: its manifest, reading it, and finding out whether it can be trusted.

`tiles/<region>/<style>/12-<x>-<y>.parquet` are the chunks (see `chunk`); `tiles.json`, written last, lists them.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import shapely
from pydantic import BaseModel, ConfigDict

from geobacter_core.errors import TileCacheError
from geobacter_core.files import n_processors, orphans, read_json
from geobacter_core.geo import (
    CHUNK_TILES,
    CHUNK_ZOOM,
    Bounds,
    Tile,
    lonlat_to_mercator,
    mercator_scale,
)
from geobacter_core.regions import Region, tile_server_name
from geobacter_core.settings import Settings
from geobacter_core.tiles.chunk import (
    RECIPE,
    REMEDY,
    ChunkSummary,
    check_chunk,
    chunk_file,
    chunk_metadata,
    chunks_in,
    map_strips,
    read_digests,
    read_strips,
)
from geobacter_core.tiles.source import ALL_ROWS, Pixels
from geobacter_core.tiles.style import Style, load_style

Result = TypeVar("Result")

WINDOW_MARGIN_M = 500.0
"""The cache reaches this far beyond the region's ground, for windows that hang over its edge."""

MANIFEST = "tiles.json"


class TileManifest(BaseModel):
    """The manifest of a region's tile cache in one style.

    Attributes:
        region: The region's name.
        style: The style's name.
        style_version: The style's version.
        channels: Names of the C channels.
        source: What made the tiles.
        recipe: Digest of what the cache was built from as a whole; each chunk has its own.
        digest: Digest over the tiles' digests: the asset's data version.
        extract_sha256: The extract behind the tiles.
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
    def style_label(self) -> str:
        """`name/version` of the style."""
        return f"{self.style}/{self.style_version}"

    @property
    def n_tiles(self) -> int:
        """Tiles in the cache."""
        return len(self.chunks) * CHUNK_TILES**2

    @property
    def n_blank(self) -> int:
        """Tiles of one colour."""
        return sum(chunk.n_blank for chunk in self.chunks)

    @property
    def size_bytes(self) -> int:
        """Of the chunk files together."""
        return sum(chunk.size_bytes for chunk in self.chunks)


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


def load_manifest(folder: Path) -> TileManifest:
    """The manifest of a region's tile cache.

    Raises:
        TileCacheError: There is none, or it is damaged.
    """
    return read_json(folder / MANIFEST, TileManifest, TileCacheError, "Materialise tile_cache for the region.")


class TileCache:
    """A region's tiles, read chunk by chunk."""

    def __init__(self, folder: Path, style: Style | None = None) -> None:
        """Open the cache in `folder`.

        Raises:
            TileCacheError: It has no manifest, or was built with another version of `style`.
        """
        self.folder = folder
        self.manifest = load_manifest(folder)
        self._chunks = {summary.tile: summary for summary in self.manifest.chunks}
        if style is not None and (self.manifest.style_label, self.manifest.channels) != (style.label, style.channels):
            raise TileCacheError(
                f"Tile cache {folder} of region '{self.manifest.region}' was built with style "
                f"{self.manifest.style_label}, and {style.label} is asked for. Materialise tile_cache for the region."
            )

    @property
    def key(self) -> tuple[Path, str]:
        """The folder, and the digest of what is in it: another one after a refresh."""
        return self.folder, self.manifest.digest

    @property
    def n_channels(self) -> int:
        """C."""
        return len(self.manifest.channels)

    def __contains__(self, chunk: Tile) -> bool:
        return chunk in self._chunks

    def chunk(self, chunk: Tile) -> Pixels:
        """Pixels of a chunk, uint8 `[16, 16, 256, 256, C]`; see `strips`."""
        return np.stack(list(self.strips(chunk)))

    def strips(self, chunk: Tile) -> Iterator[Pixels]:
        """Rows of tiles of a chunk, north to south, uint8 `[16, 256, 256, C]`, checked against their digests.

        Raises:
            TileCacheError: The chunk is not in the cache, missing on disk, damaged, or of another recipe.
        """
        yield from read_strips(self._path(chunk), chunk)

    def map_strips(self, chunk: Tile, function: Callable[[Pixels], Result], rows: range = ALL_ROWS) -> Iterator[Result]:
        """What a function gives for each of some strips, in their order, computed by threads a few strips ahead.

        Raises:
            TileCacheError: As `strips`.
        """
        yield from map_strips(self._path(chunk), chunk, function, rows)

    def tile_digests(self, chunk: Tile) -> list[bytes]:
        """SHA-256 of each tile of a chunk, row by row from the north-west, `[256]`; the pixels are not looked at.

        Raises:
            TileCacheError: As `strips`.
        """
        return read_digests(self._path(chunk), chunk)

    def _path(self, chunk: Tile) -> Path:
        """The file of a chunk, which is the one that the manifest lists."""
        if chunk not in self._chunks:
            raise TileCacheError(
                f"Tile cache {self.folder} of region '{self.manifest.region}' does not reach chunk {chunk}. "
                f"Ask for places in the region; windows may overhang it by less than {WINDOW_MARGIN_M:.0f} m."
            )
        path = chunk_file(self.folder, chunk)
        if reason := _stranger(path, self.manifest, self._chunks[chunk]):
            raise TileCacheError(reason)
        return path


def open_cache(settings: Settings, region: Region) -> TileCache:
    """The tiles of a region in the style, and from the tile server if that draws it, that are set today.

    Raises:
        TileCacheError: There is no cache, or it was built with another version of the style or from another server.
    """
    style = load_style(settings.style)
    cache = TileCache(settings.tiles_folder(region.name, style.name), style)
    if style.is_served and region.tile_server is not None:
        wanted = tile_server_name(region.tile_server)
        if cache.manifest.source != wanted:
            raise TileCacheError(
                f"Tile cache {cache.folder} of region '{region.name}' came from {cache.manifest.source}, and "
                f"{wanted} is asked for. Materialise tile_cache for the region."
            )
    return cache


def _stranger(path: Path, manifest: TileManifest, listed: ChunkSummary) -> str | None:
    """Why a chunk file is not the one that the manifest lists; None if it is."""
    metadata = chunk_metadata(path)
    if metadata.get(RECIPE) == listed.recipe:
        return None
    return (
        f"Chunk {path} was made by {metadata.get('geobacter:source', 'another source')} in style "
        f"{metadata.get('geobacter:style', 'unknown')} from other inputs than the cache's manifest states "
        f"({manifest.source}, {manifest.style_label}). {REMEDY}"
    )


@dataclass(frozen=True, slots=True)
class Verification:
    """What a look at every tile of a cache found.

    Attributes:
        folder: The cache.
        manifest: Its manifest; None where a first build was never finished.
        n_wanted: Chunks that the region needs.
        n_sound: Of these, chunks that are there and whole.
        missing: Needed, and not there.
        damaged: Files whose bytes are not what was written: why, by path.
        strangers: Files made from something else, or of ground that the region does not have: why, by path.
        leftovers: Temporaries of builds that were killed.
        other: What is wrong with the manifest.
    """

    folder: Path
    manifest: TileManifest | None
    n_wanted: int
    n_sound: int
    missing: tuple[Tile, ...]
    damaged: dict[Path, str]
    strangers: dict[Path, str]
    leftovers: tuple[Path, ...]
    other: tuple[str, ...]

    @property
    def problems(self) -> list[str]:
        """What is wrong, a sentence each; nothing if the cache can be trusted."""
        return [
            *self.other,
            *(f"Chunk {chunk} of the region is not in the cache. {REMEDY}" for chunk in self.missing),
            *self.damaged.values(),
            *self.strangers.values(),
            *(f"{path} is left from a build that was killed. The next build removes it." for path in self.leftovers),
        ]


def verify_cache(
    folder: Path,
    ground: shapely.Geometry,
    on_chunk: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Read every tile of a cache against its digest, and every file against what the region needs.

    Args:
        folder: Where the chunks lie.
        ground: What the region covers, in degrees.
        on_chunk: Called with the number of chunks read and in all, after each.
    """
    other: list[str] = []
    manifest: TileManifest | None = None
    try:
        manifest = load_manifest(folder)
    except TileCacheError as problem:
        other.append(str(problem))
    wanted = chunks_of(ground)
    missing: list[Tile] = []
    damaged: dict[Path, str] = {}
    strangers = _unwanted(folder, wanted)
    listed = {} if manifest is None else {summary.tile: summary for summary in manifest.chunks}
    n_sound = 0
    with ThreadPoolExecutor(n_processors()) as pool:
        findings = pool.map(lambda chunk: _finding(folder, chunk, manifest, listed.get(chunk)), wanted)
        for n_done, (chunk, (found, reason)) in enumerate(zip(wanted, findings, strict=True), 1):
            path = chunk_file(folder, chunk)
            match found:
                case "sound":
                    n_sound += 1
                case "missing":
                    missing.append(chunk)
                case "stranger":
                    strangers[path] = reason
                case _:
                    damaged[path] = reason
            on_chunk(n_done, len(wanted))
    return Verification(
        folder, manifest, len(wanted), n_sound, tuple(missing), damaged, strangers, tuple(orphans(folder)), tuple(other)
    )


def _unwanted(folder: Path, wanted: list[Tile]) -> dict[Path, str]:
    needed = {chunk_file(folder, chunk) for chunk in wanted}
    return {
        path: f"{path} is not a chunk of the region. The next build removes it."
        for path in chunks_in(folder)
        if path not in needed
    }


def _finding(folder: Path, chunk: Tile, manifest: TileManifest | None, listed: ChunkSummary | None) -> tuple[str, str]:
    """`sound`, `missing`, `damaged` or `stranger`, and what is wrong."""
    path = chunk_file(folder, chunk)
    if not path.exists():
        return "missing", ""
    try:
        if manifest is not None and listed is not None and (reason := _stranger(path, manifest, listed)):
            return "stranger", reason
        summary = check_chunk(path, chunk)
    except TileCacheError as damage:
        return "damaged", str(damage)
    if manifest is not None and summary != listed:
        return "stranger", f"Chunk {path} does not hold the tiles that the cache's manifest lists. {REMEDY}"
    return "sound", ""


def caches_in(tiles: Path) -> Iterator[TileCache | TileCacheError]:
    """Every cache below the folder `tiles/<region>/<style>`, or what is wrong with its manifest."""
    for folder in sorted(path for path in tiles.glob("*/*") if path.is_dir()):
        try:
            yield TileCache(folder)
        except TileCacheError as trouble:
            yield trouble
