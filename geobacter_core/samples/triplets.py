"""Triplets: places where there is something to see, a place near each, and a place far from it.

After Jean, Wang, Samar, Azzari, Lobell, Ermon: "Tile2Vec: unsupervised representation learning for spatially
distributed data" (AAAI 2019) and sentiance's Loc2Vec (2018), with the options of the original Geobacter.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from geobacter_core.errors import SamplesError
from geobacter_core.files import digest_of, sha256_of_file, written_aside
from geobacter_core.geo import (
    CHUNK_PX,
    Bounds,
    Floats,
    Tile,
    chunk_numbers,
    ground_distance_m,
    lonlat_to_pixel,
    mercator_scale,
    pixel_to_lonlat,
    window_half_px,
)
from geobacter_core.samples.settings import MAX_REACH, SampleSettings
from geobacter_core.samples.split import BlockSplit, block_split
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.window import WindowReader

VERSION = "4"
"""Raise when the same tiles and settings would give other triplets."""

_DISTANCE_M = 100.0
_CONTEXT_M = 400.0

_ENTROPY_PX = 64
"""Entropy is that of the window at about this many pixels a side."""
_BATCH = 512
_MAX_ROUNDS = 12
_NEAR_TRIES = 8
_FAR_TRIES = 32
_ROLES = ("anchor", "positive", "negative")
_log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("split", pa.string()),
        ("block", pa.string()),
        *((f"{role}_{axis}", pa.float64()) for role in _ROLES for axis in ("lon", "lat")),
        *((f"{role}_entropy", pa.float32()) for role in _ROLES),
    ]
)


@dataclass(frozen=True, slots=True)
class Triplets:
    """A table of triplets and what its metadata says.

    Attributes:
        table: By `SCHEMA`, ordered by `sample_id`.
        metadata: Seed, window size, distances, counts and the tile cache's recipe.
        digest: Hex SHA-256 of the file: the asset's data version.
    """

    table: pa.Table
    metadata: dict[str, str | int | float | None]
    digest: str

    @property
    def size_m(self) -> float:
        """Side of the windows in ground metres."""
        return float(self.metadata["size_m"] or 0)

    @property
    def context_m(self) -> float | None:
        """Side of the wider windows in ground metres, if there are any."""
        context_m = self.metadata.get("context_m")
        return float(context_m) if context_m else None

    @property
    def extent_m(self) -> float:
        """Side of the widest window in ground metres."""
        return max(self.size_m, self.context_m or 0.0)

    def lonlat(self, split: str) -> NDArray[np.float64]:
        """Places of a split in degrees, float64 `[N, 3, 2]`: anchor, positive, negative; lon, lat."""
        rows = self.table.filter(pc.equal(self.table["split"], split))
        columns = [rows[f"{role}_{axis}"].to_numpy() for role in _ROLES for axis in ("lon", "lat")]
        return np.stack(columns, axis=1).reshape(-1, 3, 2)


@dataclass(slots=True)
class _Pool:
    """Anchors with their positives: a struct of arrays."""

    split: NDArray[np.str_]
    anchor: Floats
    positive: Floats
    anchor_entropy: Floats
    positive_entropy: Floats

    def __len__(self) -> int:
        return len(self.split)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> "_Pool":
        return _Pool(
            self.split[index],
            self.anchor[index],
            self.positive[index],
            self.anchor_entropy[index],
            self.positive_entropy[index],
        )


def load_triplets(path: Path) -> Triplets:
    """Read a region's triplets.

    Raises:
        SamplesError: The file is missing or damaged.
    """
    remedy = "Materialise triplet_samples for the region."
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        document = json.loads((table.schema.metadata or {})[b"geobacter"])
    except FileNotFoundError:
        raise SamplesError(f"{path} does not exist. {remedy}") from None
    except (pa.ArrowException, OSError, KeyError, ValueError) as problem:
        raise SamplesError(f"{path} is damaged: {problem}. {remedy}") from None
    if not table.schema.equals(SCHEMA):
        raise SamplesError(f"{path} does not have the columns of a table of triplets. {remedy}")
    return Triplets(table, document, sha256_of_file(path))


def triplets_problems(path: Path, bounds: Bounds) -> list[str]:
    """What is wrong with a table of triplets: nulls, ranges, blocks in both splits; nothing if all is well."""
    try:
        triplets = load_triplets(path)
    except SamplesError as problem:
        return [str(problem)]
    table = triplets.table
    problems = [f"Column {name} has nulls." for name in table.column_names if table[name].null_count]
    if table["sample_id"].to_pylist() != list(range(len(table))):
        problems.append("sample_id does not count from 0.")
    for role in _ROLES:
        lon, lat = table[f"{role}_lon"].to_numpy(), table[f"{role}_lat"].to_numpy()
        if not np.all((lon >= bounds.west) & (lon <= bounds.east) & (lat >= bounds.south) & (lat <= bounds.north)):
            problems.append(f"Some {role} lies outside the region's bounds.")
        entropy = table[f"{role}_entropy"].to_numpy()
        if not np.all((entropy >= 0) & (entropy <= 8)):
            problems.append(f"Some {role}_entropy is not within 0 to 8 bits.")
    splits = table["split"].to_numpy(zero_copy_only=False)
    blocks = table["block"].to_numpy(zero_copy_only=False)
    if set(splits) != {"train", "test"}:
        problems.append(f"Splits are {sorted(set(splits))}, not test and train.")
    if shared := set(blocks[splits == "train"]) & set(blocks[splits == "test"]):
        problems.append(f"Blocks {sorted(shared)} are in both splits.")
    return problems


def build_triplets(
    path: Path,
    cache: TileCache,
    bounds: Bounds,
    ground: shapely.Geometry,
    settings: SampleSettings,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Triplets:
    """Draw a region's triplets into `path`; an up-to-date file is kept.

    Chunks are visited one after the other, so memory holds one neighbourhood of tiles and the triplets themselves.

    Args:
        path: The Parquet file.
        cache: The region's tiles.
        bounds: The region's box.
        ground: What the region covers, in degrees.
        settings: How to draw.
        on_progress: Called with triplets found so far and wanted.

    Raises:
        SamplesError: The region is too small or too empty for triplets.
        TileCacheError: A chunk is missing or damaged.
    """
    recipe = digest_of("samples", VERSION, cache.manifest.recipe, cache.manifest.digest, bounds, settings.model_dump())
    try:
        present = load_triplets(path)
        if present.metadata.get("recipe") == recipe:
            _log.info("%s: triplets are up to date", cache.manifest.region)
            return present
    except SamplesError:
        pass
    settings = _resolved(settings, bounds, ground)
    split = block_split(bounds, ground, settings.extent_m, settings.block_m, settings.seed)
    pool = _draw_pool(cache, ground, split, settings, on_progress)
    table, n_relaxed = _with_negatives(pool, split, settings)
    counts = {name: int(np.sum(pool.split == name)) for name in ("train", "test")}
    document = {
        "recipe": recipe,
        "region": cache.manifest.region,
        "style": cache.manifest.style_label,
        "tiles": cache.manifest.digest,
        **settings.model_dump(),
        "blocks": f"{split.columns} × {split.rows}",
        "n_train": counts["train"],
        "n_test": counts["test"],
        "n_empty": int(np.sum(pool.anchor_entropy < settings.min_entropy)),
        "n_negatives_nearer_than_minimum": n_relaxed,
    }
    table = table.replace_schema_metadata({"geobacter": json.dumps(document, sort_keys=True)})
    with written_aside(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    return load_triplets(path)


def _resolved(settings: SampleSettings, bounds: Bounds, ground: shapely.Geometry) -> SampleSettings:
    """The settings with every default that depends on the region filled in."""
    width_m, height_m = bounds.size_m
    side_m = float(np.sqrt(width_m * height_m))
    area_km2 = width_m * height_m / 1e6 * float(ground.area / bounds.polygon.area)
    distance_m = settings.distance_m or round(min(_DISTANCE_M, side_m / 10), 1)
    context_m = settings.context_m
    if context_m is None:
        context_m = _CONTEXT_M if min(width_m, height_m) >= 5 * _CONTEXT_M else _CONTEXT_M / 2
        context_m = context_m if context_m > settings.size_m else 0.0
    return settings.model_copy(
        update={
            "sample_count": settings.sample_count or int(np.clip(1500 * area_km2, 4000, 100_000)),
            "distance_m": distance_m,
            "context_m": context_m,
            "negative_min_m": 2 * distance_m if settings.negative_min_m is None else settings.negative_min_m,
        }
    )


def _draw_pool(
    cache: TileCache,
    ground: shapely.Geometry,
    split: BlockSplit,
    settings: SampleSettings,
    on_progress: Callable[[int, int], None],
) -> _Pool:
    """Anchors and positives, as many as wanted, in an order that the seed alone decides."""
    wanted = settings.sample_count or 0
    chunks = [summary.tile for summary in cache.manifest.chunks]
    areas = np.array([_ground_m2(chunk, ground) for chunk in chunks])
    reader = WindowReader(cache, settings.size_m, _ENTROPY_PX)
    shapely.prepare(ground)
    found: list[_Pool] = []
    n_full = n_empty = n_found = 0
    yield_rate = 0.5
    for round_ in range(_MAX_ROUNDS):
        n_candidates = int(min(max((wanted - n_found) / yield_rate * 1.1, 200), 20 * wanted))
        quotas = _quotas(areas, n_candidates)
        before = n_found
        for chunk, quota in zip(chunks, quotas, strict=True):
            rng = np.random.default_rng([settings.seed, round_, chunk.x, chunk.y])
            pool = _draw_in_chunk(reader, chunk, int(quota), ground, split, settings, rng)
            found.append(pool)
            is_empty = pool.anchor_entropy < settings.min_entropy
            n_full, n_empty = n_full + int(np.sum(~is_empty)), n_empty + int(np.sum(is_empty))
            n_found = n_full + min(n_empty, _n_empty_allowed(n_full, settings))
            on_progress(min(n_found, wanted), wanted)
        if n_found >= wanted:
            break
        yield_rate = max((n_found - before) / max(int(quotas.sum()), 1), 0.02)
    pool = _joined(found)
    pool = pool.take(_kept(pool, settings, np.random.default_rng([settings.seed, 1 << 20])))
    for name, least in (("train", 2), ("test", 2)):
        if int(np.sum(pool.split == name)) < least:
            raise SamplesError(
                f"Region '{cache.manifest.region}': no place for {name} windows of {settings.size_m:g} m with "
                f"something to see (an entropy of {settings.min_entropy:g} bits). Use smaller windows or "
                "blocks, a lower min_entropy, or set train = false for the region."
            )
    if len(pool) < wanted:
        _log.warning("%s: found %d of %d triplets", cache.manifest.region, len(pool), wanted)
    return pool


def _kept(pool: _Pool, settings: SampleSettings, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which to keep: as many as wanted, at random, with no more than the allowed share of empty anchors."""
    order = rng.permutation(len(pool))
    is_empty = pool.anchor_entropy[order] < settings.min_entropy
    n_wanted = settings.sample_count or len(pool)
    n_full = min(int(np.sum(~is_empty)), round(n_wanted * (1 - settings.empty_share)))
    order = order[~is_empty | (np.cumsum(is_empty) <= _n_empty_allowed(n_full, settings))]
    return order[:n_wanted]


def _n_empty_allowed(n_full: int, settings: SampleSettings) -> int:
    """How many empty anchors may stand beside so many others."""
    return int(settings.empty_share / (1 - settings.empty_share) * n_full)


def _joined(pools: list[_Pool]) -> _Pool:
    return _Pool(
        *(
            np.concatenate([getattr(pool, name) for pool in pools])
            for name in ("split", "anchor", "positive", "anchor_entropy", "positive_entropy")
        )
    )


def _ground_m2(chunk: Tile, ground: shapely.Geometry) -> float:
    """Square metres of the region's ground in a chunk."""
    box = chunk.polygon
    share = float(shapely.intersection(box, ground).area / box.area)
    scale_x, scale_y = mercator_scale(np.array([box.centroid.y]))
    west, south, east, north = chunk.mercator_box
    return share * (east - west) * (north - south) / float(scale_x[0] * scale_y[0])


def _quotas(areas: Floats, n: int) -> NDArray[np.int64]:
    """`n` split in proportion to areas, without losing any to rounding."""
    edges = np.round(np.cumsum(areas) / areas.sum() * n).astype(np.int64)
    return np.asarray(np.diff(edges, prepend=0))


def _draw_in_chunk(
    reader: WindowReader,
    chunk: Tile,
    n: int,
    ground: shapely.Geometry,
    split: BlockSplit,
    settings: SampleSettings,
    rng: np.random.Generator,
) -> _Pool:
    """Up to `n` anchors with positives whose anchor lies in a chunk."""
    anchor = _places_in(chunk, n, ground, rng)
    side = split.assign(anchor[:, 0], anchor[:, 1], settings.extent_m, MAX_REACH)
    anchor, side = anchor[side != ""], side[side != ""]
    positive, has_positive = _near(anchor, side, ground, split, settings, rng)
    anchor, side, positive = anchor[has_positive], side[has_positive], positive[has_positive]
    anchor_entropy = entropies(reader, anchor)
    # Empty anchors are everywhere in some regions; most go at once, the rest once the share is known.
    keep = (anchor_entropy >= settings.min_entropy) | (rng.random(len(anchor)) < settings.empty_share)
    anchor, side, positive, anchor_entropy = anchor[keep], side[keep], positive[keep], anchor_entropy[keep]
    return _Pool(side, anchor, positive, anchor_entropy, entropies(reader, positive))


def _places_in(chunk: Tile, n: int, ground: shapely.Geometry, rng: np.random.Generator) -> Floats:
    """`n` places of the region's ground within a chunk, uniform over it, `[≤ n, 2]` degrees."""
    places: list[Floats] = []
    n_found = 0
    for _ in range(200):
        if n_found >= n:
            break
        x = (chunk.x + rng.random(4 * n)) * CHUNK_PX
        y = (chunk.y + rng.random(4 * n)) * CHUNK_PX
        lon, lat = pixel_to_lonlat(x, y)
        inside = shapely.contains_xy(ground, lon, lat)
        places.append(np.stack([lon, lat], axis=1)[inside])
        n_found += int(inside.sum())
    return np.concatenate(places)[:n] if places else np.empty((0, 2))


def _near(
    anchor: Floats,
    side: NDArray[np.str_],
    ground: shapely.Geometry,
    split: BlockSplit,
    settings: SampleSettings,
    rng: np.random.Generator,
) -> tuple[Floats, NDArray[np.bool_]]:
    """A place of the same split near each anchor, as `settings.near` says, where one is found."""
    positive = anchor.copy()
    found = np.zeros(len(anchor), bool)
    px_per_m = window_half_px(anchor[:, 1], 2.0)
    x, y = lonlat_to_pixel(anchor[:, 0], anchor[:, 1])
    for _ in range(_NEAR_TRIES):
        east_m, north_m = _offsets(len(anchor), settings, rng)
        lon, lat = pixel_to_lonlat(x + east_m * px_per_m[0], y - north_m * px_per_m[1])
        fits = split.assign(lon, lat, settings.extent_m, MAX_REACH) == side
        fits &= shapely.contains_xy(ground, lon, lat) & ~found
        positive[fits] = np.stack([lon, lat], axis=1)[fits]
        found |= fits
    return positive, found


def _offsets(n: int, settings: SampleSettings, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """How far east and north of its anchor each of `n` positives is tried, ground metres."""
    distance_m = settings.distance_m or 0.0
    if settings.near == "overlap":
        east_m, north_m = rng.uniform(-distance_m, distance_m, (2, n))
        return east_m, north_m
    share = rng.random(n)
    radius_m = distance_m * (share if settings.near == "ring" else np.sqrt(share))
    angle = rng.uniform(0, 2 * np.pi, n)
    return radius_m * np.cos(angle), radius_m * np.sin(angle)


def entropies(reader: WindowReader, lonlat: Floats) -> Floats:
    """Shannon entropy of windows in bits, that of the channel with most of it, 0 (one colour) to 8: float64 `[N]`.

    Not the mean over channels: where each channel shows one thing, most are empty in most places.
    """
    found = np.empty(len(lonlat))
    # Chunk by chunk, so that none is decoded twice.
    order = np.lexsort(chunk_numbers(lonlat))
    for begin in range(0, len(lonlat), _BATCH):
        rows = order[begin : begin + _BATCH]
        found[rows] = [_entropy(box) for box in reader.boxes(*lonlat[rows].T)]
    return found


def _entropy(pixels: NDArray[np.uint8]) -> float:
    n_channels = pixels.shape[-1]
    values = pixels.reshape(-1, n_channels) + np.arange(n_channels, dtype=np.int64) * 256
    counts = np.bincount(values.ravel(), minlength=256 * n_channels)
    share = counts.reshape(n_channels, 256) / (pixels.size // n_channels)
    bits = -np.sum(share * np.log2(share, out=np.zeros_like(share), where=share > 0), axis=1)
    return float(bits.max()) + 0.0  # no minus zero


def _with_negatives(pool: _Pool, split: BlockSplit, settings: SampleSettings) -> tuple[pa.Table, int]:
    """The table with a far anchor of the same split as each negative, and how many are nearer than the minimum."""
    rng = np.random.default_rng([settings.seed, 2 << 20])
    negative = np.empty((len(pool), 2))
    negative_entropy = np.empty(len(pool))
    n_relaxed = 0
    for name in ("train", "test"):
        rows = np.flatnonzero(pool.split == name)
        chosen = _far(pool.anchor[rows], settings.negative_min_m or 0.0, rng)
        distance = _distance_m(pool.anchor[rows], pool.anchor[rows][chosen])
        n_relaxed += int(np.sum(distance < (settings.negative_min_m or 0)))
        negative[rows], negative_entropy[rows] = pool.anchor[rows][chosen], pool.anchor_entropy[rows][chosen]
    column, row = split.block_of(*lonlat_to_pixel(pool.anchor[:, 0], pool.anchor[:, 1]))
    places = {"anchor": pool.anchor, "positive": pool.positive, "negative": negative}
    entropy = {"anchor": pool.anchor_entropy, "positive": pool.positive_entropy, "negative": negative_entropy}
    columns: dict[str, object] = {
        "sample_id": np.arange(len(pool), dtype=np.int64),
        "split": pool.split.tolist(),
        "block": [f"{c}-{r}" for c, r in zip(column, row, strict=True)],
    }
    columns |= {
        f"{role}_{axis}": places[role][:, index] for role in _ROLES for index, axis in enumerate(("lon", "lat"))
    }
    columns |= {f"{role}_entropy": entropy[role].astype(np.float32) for role in _ROLES}
    return pa.table(columns, schema=SCHEMA), n_relaxed


def _far(places: Floats, least_m: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """For each place the index of one at least that far away; where tries find none, the farthest that was tried."""
    best = rng.integers(0, len(places), len(places))
    best_m = _distance_m(places, places[best])
    for _ in range(_FAR_TRIES):
        open_ = np.flatnonzero(best_m < least_m)
        if not len(open_):
            break
        tried = rng.integers(0, len(places), len(open_))
        tried_m = _distance_m(places[open_], places[tried])
        better = tried_m > best_m[open_]
        best[open_[better]], best_m[open_[better]] = tried[better], tried_m[better]
    return best


def _distance_m(a: Floats, b: Floats) -> Floats:
    return ground_distance_m(a[:, 0], a[:, 1], b[:, 0], b[:, 1])
