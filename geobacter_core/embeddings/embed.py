"""Embed a region: a window for every cell, identical windows once, one sorted GeoParquet table.

Where a table of the same encoder is there already, only windows are cut that a changed tile lies under, and only those
are encoded whose pixels differ (see `before`); the result has the same content as one made from scratch.

Cells come in batches of one coarse H3 cell, each written as a part; the parts, already in order, are then strung
together. A killed run goes on with the parts that are there.
"""

import hashlib
import logging
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from geobacter_core.embeddings.before import Before, Known, write_tiles
from geobacter_core.embeddings.table import ContentDigest, milliseconds, read_metadata, rows, table_writer
from geobacter_core.encoder.version import Encoder, EncoderVersion
from geobacter_core.errors import EmbeddingsError
from geobacter_core.files import check_pages, digest_of, remove_temporaries, written_aside
from geobacter_core.geo import Cells, cells_within
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.window import WindowReader

VERSION = "2"
"""Raise when the same tiles and encoder would give another table."""

_SLICE = 512
_REMEMBERED_WINDOWS = 200_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """A region's table: where it is, its digest, and what it took.

    Attributes:
        path: The GeoParquet file.
        digest: Of the rows' content, see `table.ContentDigest`: the asset's data version.
        n_cells: Rows.
        n_encoded: Windows that went through the encoder in this run; 0 when the table was up to date.
        was_current: Whether the table was kept as it was.
        n_tiles_changed: Tiles that differ from those of the table before; None where there was none to compare with.
        n_checked: Cells whose windows were cut in this run.
        n_changed: Of these, cells whose pixels differ from those of the table before, or that it did not have.
    """

    path: Path
    digest: str
    n_cells: int
    n_encoded: int
    was_current: bool
    n_tiles_changed: int | None = None
    n_checked: int = 0
    n_changed: int = 0


def embed_region(
    path: Path,
    cache: TileCache,
    ground: shapely.Geometry,
    resolution: int,
    version: EncoderVersion,
    load: Callable[[EncoderVersion], Encoder],
    on_cells: Callable[[int, int], None] = lambda done, total: None,
) -> EmbedResult:
    """Write the embedding table of a region to `path`; a table that is up to date is kept.

    Args:
        path: The GeoParquet file.
        cache: The region's tiles.
        ground: What the region covers, in degrees.
        resolution: H3 resolution of the cells.
        version: The encoder to use.
        load: Loads it; called only if something is to be encoded.
        on_cells: Called with the number of cells done, and of all.

    Raises:
        EmbeddingsError: The encoder takes windows of another style, or no cell lies in the region.
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
        shapely.to_wkt(ground),
        resolution,
        version.digest,
        version.name,
    )
    current = _current(path, recipe)
    if current is not None:
        _log.info("%s: the embedding table is up to date", manifest.region)
        return current
    work = path.parent / f"parts-{recipe[:16]}"
    _clean(path.parent, keep=work)
    work.mkdir(parents=True, exist_ok=True)
    # How a row follows from its window, whatever the map is: code, style, encoder.
    of_rows = digest_of("rows", VERSION, manifest.style_label, version.digest)
    before = Before.open(path, of_rows, cache)
    table = _Embedder(cache, version, load, milliseconds(manifest.osm_timestamp), before)
    parts: list[Path] = []
    n_cells = 0
    n_all = sum(len(cells) for cells in cells_within(ground, resolution))
    for cells in cells_within(ground, resolution):
        part = work / f"{cells.names[0]}.parquet"
        if not part.exists():
            with written_aside(part) as temporary:
                pq.write_table(
                    table.embed(cells, _from(n_cells, n_all, on_cells)),
                    temporary,
                    compression="zstd",
                )
        parts.append(part)
        n_cells += len(cells)
        on_cells(n_cells, n_all)
    if not n_cells:
        raise EmbeddingsError(
            f"Region '{manifest.region}': no cell of resolution {resolution} has its centre in the region. "
            "Give it a finer cell_resolution in regions.toml."
        )
    digest = ContentDigest()
    for part in parts:
        digest.update(pq.read_table(part))
    metadata = {
        "recipe": recipe,
        "rows_recipe": of_rows,
        "digest": digest.hexdigest(),
        "region": manifest.region,
        "cell_resolution": resolution,
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
    }
    with written_aside(path) as temporary, table_writer(temporary, version.embedding_dim, metadata) as writer:
        for part in parts:
            writer.write_table(pq.read_table(part).cast(writer.schema.remove_metadata()))
    write_tiles(path, recipe, cache)
    shutil.rmtree(work, ignore_errors=True)
    return EmbedResult(
        path,
        digest.hexdigest(),
        n_cells,
        table.n_encoded,
        was_current=False,
        n_tiles_changed=None if before is None else before.n_tiles_changed,
        n_checked=table.n_checked,
        n_changed=table.n_changed,
    )


def _from(n_before: int, n_all: int, on_cells: Callable[[int, int], None]) -> Callable[[int], None]:
    """Count on from the cells of earlier batches."""
    return lambda done: on_cells(n_before + done, n_all)


def _current(path: Path, recipe: str) -> EmbedResult | None:
    try:
        metadata = read_metadata(path)
        if metadata.get("recipe") != recipe:
            return None
        check_pages(path)
    except (EmbeddingsError, OSError, pa.ArrowException) as problem:
        if path.exists():
            _log.warning("%s; it is made again now", problem)
        return None
    return EmbedResult(path, str(metadata["digest"]), int(metadata["n_cells"]), 0, was_current=True)


def _clean(folder: Path, keep: Path) -> None:
    """Remove what runs with other inputs left unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    for other in folder.glob("parts-*"):
        if other != keep:
            shutil.rmtree(other, ignore_errors=True)
    if keep.exists():
        remove_temporaries(keep)


class _Embedder:
    """Cuts, recognises and encodes the windows of cells."""

    def __init__(
        self,
        cache: TileCache,
        version: EncoderVersion,
        load: Callable[[EncoderVersion], Encoder],
        timestamp: int,
        before: Before | None,
    ) -> None:
        self._reader = WindowReader(cache, version.size_m, version.size_px, version.scales.wider_m)
        self._version = version
        self._load = load
        self._encoder: Encoder | None = None
        self._known: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._style = cache.manifest.style_label
        self._timestamp = timestamp
        self._before = before
        self.n_encoded = self.n_checked = self.n_changed = 0

    def embed(self, cells: Cells, on_cells: Callable[[int], None]) -> pa.Table:
        """The rows of a batch of cells: those of the table before, or new ones where a window's pixels have changed."""
        known, wanted = Known.nothing(len(cells), self._version.embedding_dim), np.arange(len(cells))
        if self._before is not None:
            known = self._before.rows(cells)
            is_touched = self._before.touched(cells, self._version.scales.extent_m, self._version.size_px)
            wanted = np.flatnonzero(is_touched | ~known.is_there)
        n_kept = len(cells) - len(wanted)
        for begin in range(0, len(wanted), _SLICE):
            part = wanted[begin : begin + _SLICE]
            windows = self._reader.windows(cells.lon[part], cells.lat[part])
            found = [hashlib.sha256(window).digest() for window in windows]
            new = [row for row, digest in enumerate(found) if digest != known.digests[part[row]]]
            if new:
                rows_ = part[new]
                known.embeddings[rows_] = self._embed_windows(windows[new], [found[row] for row in new])
                known.timestamps[rows_] = self._timestamp
                for row in new:
                    known.digests[part[row]] = found[row]
            self.n_checked += len(part)
            self.n_changed += len(new)
            on_cells(n_kept + begin + len(part))
        return rows(cells, known.embeddings, known.digests, self._version.name, self._style, known.timestamps)

    def _embed_windows(self, windows: NDArray[np.uint8], digests: list[bytes]) -> NDArray[np.float32]:
        first = {digest: index for index, digest in reversed(list(enumerate(digests)))}
        new = sorted(index for digest, index in first.items() if digest not in self._known)
        if new:
            if self._encoder is None:
                self._encoder = self._load(self._version)
            for index, embedding in zip(new, self._encoder.encode(windows[new]), strict=True):
                self._known[digests[index]] = embedding
            self.n_encoded += len(new)
        result = np.stack([self._known[digest] for digest in digests])
        for digest in first:
            self._known.move_to_end(digest)
        while len(self._known) > _REMEMBERED_WINDOWS:
            self._known.popitem(last=False)
        return result
