"""Windows side by side: sorted by their embeddings, by likeness to one, and from one place to another."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geobacter_core.embeddings.query import interpolate, similar
from geobacter_core.embeddings.table import EmbeddingTable
from geobacter_core.geo import Floats, ground_distance_m
from geobacter_core.plots.arrange import (
    distinct_rows,
    grid_shape,
    sampled_rows,
    snap_to_grid,
    tsne_layout,
    typical_rows,
)
from geobacter_core.plots.colours import to_rgb
from geobacter_core.plots.page import (
    CAPTION_PX,
    INK,
    MUTED,
    PAPER,
    SUBTITLE_PX,
    compose_page,
    length_text,
    region_title,
    table_subtitle,
    with_frame,
    write,
)
from geobacter_core.samples.triplets import entropies
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.mosaic import ChunkMemory
from geobacter_core.tiles.source import Pixels
from geobacter_core.tiles.window import WindowReader

_MEMORY_BYTES = 256 << 20
_READ_WINDOWS = 128
_ENTROPY_PX = 64


class Windows:
    """Windows of a table's cells as pictures, at the size on the page."""

    def __init__(self, table: EmbeddingTable, cache: TileCache, size_px: int) -> None:
        self.size_px = size_px
        self.size_m = float(table.metadata["size_m"])
        self._table = table
        self._channels = cache.manifest.channels
        self._reader = WindowReader(cache, self.size_m, size_px, memory=ChunkMemory(_MEMORY_BYTES))

    def rgb(self, rows: NDArray[np.int64]) -> Pixels:
        """uint8 `[N, size_px, size_px, 3]`, read in the table's order, which follows the ground."""
        found = np.empty((len(rows), self.size_px, self.size_px, 3), np.uint8)
        order = np.argsort(rows, kind="stable")
        for part in np.array_split(order, len(rows) // _READ_WINDOWS + 1):
            if len(part):
                windows = self._reader.windows(self._table.lon[rows[part]], self._table.lat[rows[part]])
                found[part] = to_rgb(windows.transpose(0, 2, 3, 1), self._channels)
        return found

    def images(self, rows: Iterable[int]) -> dict[int, Image.Image]:
        """Each row's window, all read in one go: one by one, in any order, they would read chunks over and over."""
        distinct = np.array(sorted(set(rows)), dtype=np.int64)
        return {int(row): Image.fromarray(window) for row, window in zip(distinct, self.rgb(distinct), strict=True)}


def _context(table: EmbeddingTable) -> str:
    sides_m = [table.metadata.get(name) for name in ("context_m", "surroundings_m")]
    wider = " and ".join(f"the {float(side_m):g} m" for side_m in sides_m if side_m)
    return f" and as many of {wider} around it" if wider else ""


def _busy_rows(table: EmbeddingTable, cache: TileCache, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of `rows` with something to see: the upper 40 % by the windows' entropy."""
    reader = WindowReader(cache, float(table.metadata["size_m"]), _ENTROPY_PX, memory=ChunkMemory(_MEMORY_BYTES))
    found = entropies(reader, np.stack([table.lon[rows], table.lat[rows]], axis=1))
    return rows[found >= np.quantile(found, 0.6)]


def window_mosaic(
    table: EmbeddingTable, cache: TileCache, n_windows: int = 1440, thumbnail_px: int = 40
) -> Image.Image:
    """Windows side by side, so that neighbours have like embeddings: t-SNE, snapped to a grid without overlaps.

    As in the original Geobacter and sentiance's Loc2Vec (2018).

    Args:
        table: The region's embeddings.
        cache: The region's tiles, in the encoder's style.
        n_windows: So many at most, of distinct embeddings, evenly along the table.
        thumbnail_px: Side of a window on the page.
    """
    distinct = distinct_rows(table.embeddings)
    columns, n_rows = grid_shape(min(len(distinct), n_windows), 1.6)
    rows = sampled_rows(distinct, columns * n_rows)
    slots = snap_to_grid(tsne_layout(table.embeddings[rows]), columns, n_rows)
    enlarged = max(thumbnail_px, min(160, 1600 // columns))
    side = enlarged + 2
    content = Image.new("RGB", (columns * side, n_rows * side), PAPER)
    for window, slot in zip(Windows(table, cache, enlarged).rgb(rows), slots, strict=True):
        content.paste(Image.fromarray(window), (int(slot % columns) * side + 1, int(slot // columns) * side + 1))
    region = region_title(str(table.metadata["region"]))
    note = (
        f"{len(rows):,} windows, {float(table.metadata['size_m']):g} m wide, of {len(distinct):,} distinct embeddings. "
        "They lie side by side when their embeddings are alike (t-SNE, moved to the nearest free place of a grid); "
        "where they lie on the ground plays no part."
    )
    return compose_page(content, f"{region}, sorted by what it looks like", table_subtitle(table), note)


def neighbour_strips(table: EmbeddingTable, cache: TileCache, n_queries: int = 6, k: int = 7) -> Image.Image:
    """Typical windows with something to see, and beside each the `k` most similar ones that do not overlap.

    Args:
        table: The region's embeddings.
        cache: The region's tiles, in the encoder's style.
        n_queries: Queries, one from each of as many groups of alike embeddings.
        k: Similar windows a query.
    """
    windows = Windows(table, cache, 168)
    queries = _query_rows(table, cache, n_queries)
    gap, caption = 14, 62
    side = windows.size_px
    lonlat = np.stack([table.lon, table.lat], axis=1)
    content = Image.new("RGB", ((k + 1) * (side + gap) + 26, len(queries) * (side + caption)), PAPER)
    answers = [_elsewhere(table, lonlat, row, k, windows.size_m) for row in queries]
    images = windows.images([*queries, *(other for answer in answers for other in answer)])
    for line, (row, answer) in enumerate(zip(queries, answers, strict=True)):
        y = line * (side + caption)
        content.paste(with_frame(images[row], INK, 4).resize((side, side)), (0, y))
        write(content, (0, y + side + 7), "query", CAPTION_PX)
        away_m = _away_m(lonlat, row)
        for place, other in enumerate(answer):
            x = 26 + (place + 1) * (side + gap)
            content.paste(images[other], (x, y))
            cosine = float(table.embeddings[other] @ table.embeddings[row])
            write(content, (x, y + side + 7), f"{cosine:.3f}", CAPTION_PX)
            write(content, (x + side, y + side + 7), length_text(float(away_m[other])), CAPTION_PX, MUTED, "ra")
    region = region_title(str(table.metadata["region"]))
    note = (
        f"Left: {len(queries)} windows that differ, each typical of its like. Right: up to {k} windows of the highest "
        "cosine similarity (below them, with the distance on the ground), none overlapping another. Shown at "
        f"{side} px; the encoder sees {table.metadata['size_px']} px of {windows.size_m:g} m{_context(table)}."
    )
    return compose_page(content, f"{region}: most similar places", table_subtitle(table), note)


def _elsewhere(table: EmbeddingTable, lonlat: Floats, row: int, k: int, spacing_m: float) -> list[int]:
    """The rows most similar to one, neither near it nor near a better one."""
    others = np.flatnonzero(_away_m(lonlat, row) >= spacing_m)
    found = similar(table.embeddings[others], table.embeddings[row], k, lonlat[others], spacing_m)
    return [int(other) for other in others[found]]


def _query_rows(table: EmbeddingTable, cache: TileCache, n: int) -> list[int]:
    """At most `n` rows with something to see, each typical of its like, as different from one another as can be."""
    candidates = _busy_rows(table, cache, sampled_rows(distinct_rows(table.embeddings), 1200))
    typical = typical_rows(table.embeddings, candidates, 3 * n)
    vectors = table.embeddings[typical]
    chosen = [0]
    while len(chosen) < min(n, len(typical)):
        cosine = (vectors @ vectors[chosen].T).max(axis=1)
        cosine[chosen] = np.inf
        chosen.append(int(cosine.argmin()))
    return [int(row) for row in typical[chosen]]


def _away_m(lonlat: Floats, row: int) -> Floats:
    """Ground distance of every place `[N, 2]` from one of them, metres."""
    n = len(lonlat)
    return ground_distance_m(np.full(n, lonlat[row, 0]), np.full(n, lonlat[row, 1]), lonlat[:, 0], lonlat[:, 1])


def interpolation_strips(table: EmbeddingTable, cache: TileCache, n_pairs: int = 4, steps: int = 9) -> Image.Image:
    """What lies between two places that are nothing alike: real windows along the great circle between embeddings.

    Args:
        table: The region's embeddings.
        cache: The region's tiles, in the encoder's style.
        n_pairs: Strips.
        steps: Windows a strip, both ends included.
    """
    windows = Windows(table, cache, 150)
    side, gap, caption = windows.size_px, 12, 54
    pairs = _opposites(table.embeddings, _query_rows(table, cache, 2 * n_pairs), n_pairs)
    height = max(len(pairs), 1) * (side + caption)
    content = Image.new("RGB", (steps * (side + gap) - gap, height), PAPER)
    if not pairs:
        write(content, (0, 0), "All cells have the same embedding: there is nothing between them.", SUBTITLE_PX)
    paths = [interpolate(table.embeddings[start], table.embeddings[end], steps) for start, end in pairs]
    strips = [_stations(table, path, *pair, windows.size_m / 2) for path, pair in zip(paths, pairs, strict=True)]
    images = windows.images(row for strip in strips for row in strip if row is not None)
    for line, (path, strip) in enumerate(zip(paths, strips, strict=True)):
        for step, row in enumerate(strip):
            if row is None:
                continue
            x, y = step * (side + gap), line * (side + caption)
            is_end = step in (0, steps - 1)
            content.paste(with_frame(images[row], INK, 4).resize((side, side)) if is_end else images[row], (x, y))
            text = "from" if step == 0 else "to" if is_end else f"{float(path[step] @ table.embeddings[row]):.3f}"
            write(content, (x, y + side + 7), text, CAPTION_PX, INK if is_end else MUTED)
    region = region_title(str(table.metadata["region"]))
    note = (
        "Both ends are real places. Between them, the great circle from one embedding to the other is cut into "
        f"{steps - 1} equal steps. Each shows the cell nearest to that point, and its cosine with the point, among "
        f"those at least {windows.size_m / 2:g} m from the windows already in the strip. A low cosine says that the "
        "region has nothing of the kind."
    )
    return compose_page(content, f"{region}: from one place to another", table_subtitle(table), note)


def _opposites(embeddings: NDArray[np.float32], rows: list[int], n: int) -> list[tuple[int, int]]:
    """At most `n` pairs of rows, the least alike first, no row twice."""
    cosine = embeddings[rows] @ embeddings[rows].T
    pairs: list[tuple[int, int]] = []
    free = set(range(len(rows)))
    for flat in np.argsort(cosine, axis=None, kind="stable"):
        a, b = divmod(int(flat), len(rows))
        if a != b and {a, b} <= free and cosine[a, b] < 1 - 1e-6 and len(pairs) < n:
            pairs.append((rows[a], rows[b]))
            free -= {a, b}
    return pairs


def _stations(
    table: EmbeddingTable, path: NDArray[np.float32], start: int, end: int, spacing_m: float
) -> list[int | None]:
    """A row for every vector of a path `[S, D]`: the nearest that is `spacing_m` from those before; ends are given."""
    lonlat = np.stack([table.lon, table.lat], axis=1)
    is_free = (_away_m(lonlat, start) >= spacing_m) & (_away_m(lonlat, end) >= spacing_m)
    stations: list[int | None] = [start]
    for vector in path[1:-1]:
        cosine = np.where(is_free, table.embeddings @ vector, -2.0)
        best = int(cosine.argmax())
        stations.append(best if is_free[best] else None)
        is_free &= _away_m(lonlat, best) >= spacing_m
    return [*stations, end]
