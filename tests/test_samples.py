"""Triplets: where they are drawn, how far apart, and that no test window touches a train window."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely
from conftest import SAMPLE_SETTINGS
from pydantic import ValidationError

from geobacter_core.errors import SamplesError
from geobacter_core.geo import Bounds, ground_distance_m, lonlat_to_pixel, window_half_px
from geobacter_core.samples.settings import MAX_REACH, SampleSettings
from geobacter_core.samples.split import block_split
from geobacter_core.samples.triplets import (
    SCHEMA,
    _entropy,
    _kept,
    _offsets,
    _Pool,
    build_triplets,
    entropies,
    load_triplets,
)
from geobacter_core.tiles.window import WindowReader

ROLES = ("anchor", "positive", "negative")
GEOD = pyproj.Geod(ellps="WGS84")


def build(built, path, settings=SAMPLE_SETTINGS, bounds=None):
    bounds = bounds or built.extract.box
    return build_triplets(
        path, built.cache, bounds, shapely.intersection(built.extract.ground, bounds.polygon), settings
    )


def boxes(lonlat, size_m, share=1.0):
    """What windows can show, as boxes in zoom-16 pixels."""
    x, y = lonlat_to_pixel(lonlat[:, 0], lonlat[:, 1])
    half_x, half_y = window_half_px(lonlat[:, 1], size_m)
    return shapely.box(x - share * half_x, y - share * half_y, x + share * half_x, y + share * half_y)


def n_overlaps(train, test, size_m):
    """Pairs of a train window, at its farthest reach, and a test window that share ground."""
    tree = shapely.STRtree(boxes(train, size_m, MAX_REACH))
    pairs = tree.query(boxes(test, size_m), predicate="intersects")
    return pairs.shape[1]


def test_two_builds_are_byte_for_byte_the_same(helsinki, tmp_path):
    build(helsinki, tmp_path / "again.parquet")
    first = helsinki.settings.triplets_file("helsinki")
    assert (tmp_path / "again.parquet").read_bytes() == first.read_bytes()
    assert load_triplets(tmp_path / "again.parquet").digest == helsinki.triplets.digest


def test_another_seed_gives_other_triplets(helsinki, tmp_path):
    other = build(helsinki, tmp_path / "t.parquet", SAMPLE_SETTINGS.model_copy(update={"seed": 2}))
    assert other.digest != helsinki.triplets.digest
    assert other.table.num_rows == 120


def test_a_second_build_changes_no_file(own_helsinki, snapshot):
    folder = own_helsinki.settings.data / "samples"
    before = snapshot(folder)
    assert build(own_helsinki, own_helsinki.settings.triplets_file("helsinki")).digest == digest_of_only(before)
    assert snapshot(folder) == before


def digest_of_only(files):
    ((data, _),) = files.values()
    return hashlib.sha256(data).hexdigest()


def test_the_table_is_as_the_contract_says(helsinki):
    table = pq.read_table(helsinki.settings.triplets_file("helsinki"))
    assert table.schema.remove_metadata() == SCHEMA
    assert table.schema.names == [
        "sample_id",
        "split",
        "block",
        "anchor_lon",
        "anchor_lat",
        "positive_lon",
        "positive_lat",
        "negative_lon",
        "negative_lat",
        "anchor_entropy",
        "positive_entropy",
        "negative_entropy",
    ]
    assert table.schema.field("anchor_lon").type == pa.float64()
    assert table.schema.field("anchor_entropy").type == pa.float32()
    assert table.num_rows == 120
    assert table["sample_id"].to_pylist() == list(range(120))
    assert set(table["split"].to_pylist()) == {"train", "test"}
    assert all(table[name].null_count == 0 for name in table.schema.names)
    numbers = [table[name].to_numpy() for name in table.schema.names if name.endswith(("lon", "lat", "entropy"))]
    assert np.isfinite(numbers).all()


def test_the_metadata_has_seed_window_size_and_distances(helsinki):
    metadata = helsinki.triplets.metadata
    found = json.loads(pq.read_schema(helsinki.settings.triplets_file("helsinki")).metadata[b"geobacter"])
    assert found == metadata
    assert (metadata["seed"], metadata["size_m"], metadata["sample_count"]) == (1, 200.0, 120)
    assert (metadata["distance_m"], metadata["negative_min_m"]) == (100.0, 200.0)
    assert metadata["n_train"] + metadata["n_test"] == 120
    assert metadata["tiles"] == helsinki.cache.manifest.digest


def test_every_place_lies_in_the_region_with_its_whole_window(helsinki):
    west, south, east, north = helsinki.extract.bounds
    x, y = lonlat_to_pixel(np.array([west, east]), np.array([south, north]))
    region = shapely.box(x[0], y[1], x[1], y[0]).buffer(1e-6)
    for split in ("train", "test"):
        lonlat = helsinki.triplets.lonlat(split).reshape(-1, 2)
        assert shapely.covers(region, boxes(lonlat, 200.0)).all()


def test_no_test_window_touches_a_train_window_however_it_is_turned(helsinki):
    train = helsinki.triplets.lonlat("train").reshape(-1, 2)
    test = helsinki.triplets.lonlat("test").reshape(-1, 2)
    assert len(train) >= 3 * 60
    assert len(test) >= 3 * 10
    assert n_overlaps(train, test, 200.0) == 0


@pytest.mark.parametrize(
    ("block_m", "size_m"), [(None, 200.0), (200.0, 100.0), (300.0, 200.0), (1000.0, 200.0), (1000.0, 600.0)]
)
@pytest.mark.parametrize("seed", [0, 3])
def test_no_split_of_a_box_lets_windows_of_both_sides_touch(block_m, size_m, seed):
    bounds = Bounds(9.47, 47.05, 9.63, 47.14)  # 12 × 10 km
    split = block_split(bounds, bounds.polygon, size_m, block_m, seed)
    rng = np.random.default_rng(seed)
    lonlat = np.stack([rng.uniform(9.47, 9.63, 20_000), rng.uniform(47.05, 47.14, 20_000)], axis=1)
    side = split.assign(lonlat[:, 0], lonlat[:, 1], size_m, MAX_REACH)
    assert set(side) <= {"train", "test", ""}
    assert np.sum(side == "train") > 20
    assert np.sum(side == "test") > 20
    assert n_overlaps(lonlat[side == "train"], lonlat[side == "test"], size_m) == 0


def test_a_fifth_of_the_blocks_is_for_testing_and_no_two_share_a_side():
    bounds = Bounds(9.40, 47.00, 9.70, 47.20)
    split = block_split(bounds, bounds.polygon, 200.0, 1000.0, 1)
    column, row = (axis.ravel() for axis in np.meshgrid(np.arange(split.columns), np.arange(split.rows)))
    is_test = split.is_test(column, row)
    assert is_test.mean() == pytest.approx(0.2, abs=0.02)
    for dc, dr in ((1, 0), (0, 1)):
        assert not (is_test & split.is_test(column + dc, row + dr)).any()


def test_positives_are_near_and_negatives_far(helsinki):
    triplets = helsinki.triplets
    metadata = triplets.metadata
    places = np.concatenate([triplets.lonlat("train"), triplets.lonlat("test")])
    anchor, positive, negative = (places[:, role] for role in range(3))
    _, _, near_m = GEOD.inv(*anchor.T, *positive.T)
    assert near_m.max() <= metadata["distance_m"] * 1.001
    # Uniform over a disc: the mean distance is two thirds of the radius; the region's edge makes it a little less.
    assert 0.5 < near_m.mean() / metadata["distance_m"] < 0.72
    far_m = ground_distance_m(*anchor.T, *negative.T)
    n_nearer = int(np.sum(far_m < metadata["negative_min_m"]))
    assert n_nearer == metadata["n_negatives_nearer_than_minimum"]
    assert n_nearer <= 12


def offsets(near, n=20_000):
    settings = SampleSettings(near=near, distance_m=100.0)
    return _offsets(n, settings, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("near", "mean", "within_half"),
    [
        ("disc", 2 / 3, 1 / 4),  # by area
        ("ring", 1 / 2, 1 / 2),  # every distance alike
        ("overlap", 0.7652, np.pi / 16),  # a square: (√2 + ln(1 + √2)) / 3, and a quarter disc of its quarter
    ],
)
def test_positives_are_as_far_as_the_setting_says(near, mean, within_half):
    east_m, north_m = offsets(near)
    distance_m = np.hypot(east_m, north_m)
    assert distance_m.mean() == pytest.approx(100 * mean, abs=1)
    assert np.mean(distance_m < 50) == pytest.approx(within_half, abs=0.01)
    # In every direction.
    for axis in (east_m, north_m):
        assert np.mean(axis > 0) == pytest.approx(0.5, abs=0.02)
        assert 98 < axis.max() <= 100


@pytest.mark.parametrize("near", ["disc", "ring"])
def test_no_positive_of_a_disc_or_ring_is_beyond_the_distance(near):
    assert np.hypot(*offsets(near)).max() <= 100


def test_overlapping_positives_share_ground_with_their_anchor(helsinki, tmp_path):
    settings = SampleSettings(sample_count=120, size_m=100, context_m=0, distance_m=60, near="overlap")
    triplets = build(helsinki, tmp_path / "t.parquet", settings)
    assert triplets.metadata["near"] == "overlap"
    places = np.concatenate([triplets.lonlat("train"), triplets.lonlat("test")])
    azimuth, _, distance_m = GEOD.inv(*places[:, 0].T, *places[:, 1].T)
    east_m, north_m = distance_m * np.sin(np.radians(azimuth)), distance_m * np.cos(np.radians(azimuth))
    assert 55 < np.abs(east_m).max() <= 60.1
    assert 55 < np.abs(north_m).max() <= 60.1
    assert distance_m.max() > 62
    anchor, positive = boxes(places[:, 0], 100.0), boxes(places[:, 1], 100.0)
    assert shapely.intersects(anchor, positive).all()


def test_the_settings_decide_the_triplets(helsinki, tmp_path):
    digests = {
        build(helsinki, tmp_path / f"{near}.parquet", SampleSettings(sample_count=40, near=near)).digest
        for near in ("disc", "ring", "overlap")
    }
    assert len(digests) == 3


def test_the_split_keeps_room_for_contexts(helsinki, tmp_path):
    settings = SampleSettings(sample_count=120, size_m=80, context_m=250)
    triplets = build(helsinki, tmp_path / "t.parquet", settings)
    assert (triplets.size_m, triplets.context_m) == (80.0, 250.0)
    train, test = (triplets.lonlat(split).reshape(-1, 2) for split in ("train", "test"))
    assert len(train) >= 3 * 50
    assert len(test) >= 3 * 10
    assert n_overlaps(train, test, 250.0) == 0
    west, south, east, north = helsinki.extract.bounds
    x, y = lonlat_to_pixel(np.array([west, east]), np.array([south, north]))
    region = shapely.box(x[0], y[1], x[1], y[0]).buffer(1e-6)
    assert shapely.covers(region, boxes(np.concatenate([train, test]), 250.0)).all()


def test_a_context_fits_its_region(helsinki, tmp_path):
    """Helsinki's extract is 1,012 × 1,667 m."""
    triplets = build(helsinki, tmp_path / "t.parquet", SampleSettings(sample_count=60))
    assert (triplets.size_m, triplets.context_m) == (100.0, 200.0)
    wide = build(helsinki, tmp_path / "wide.parquet", SampleSettings(sample_count=60, size_m=210))
    assert wide.context_m is None


def test_triplets_without_a_context_say_so(helsinki):
    assert helsinki.triplets.context_m is None


def test_negatives_are_far_wherever_the_region_has_room(helsinki, tmp_path):
    settings = SampleSettings(sample_count=120, size_m=60, context_m=0, distance_m=50, negative_min_m=100)
    triplets = build(helsinki, tmp_path / "t.parquet", settings)
    assert triplets.metadata["n_negatives_nearer_than_minimum"] == 0
    places = np.concatenate([triplets.lonlat("train"), triplets.lonlat("test")])
    assert ground_distance_m(*places[:, 0].T, *places[:, 2].T).min() >= 100


def test_entropies_are_those_of_the_windows(helsinki):
    table = helsinki.triplets.table
    reader = WindowReader(helsinki.cache, 200.0, 64)
    for role in ROLES:
        lonlat = np.stack([table[f"{role}_lon"].to_numpy(), table[f"{role}_lat"].to_numpy()], axis=1)
        stored = table[f"{role}_entropy"].to_numpy()
        np.testing.assert_allclose(entropies(reader, lonlat), stored, atol=1e-6)
        assert 0 <= stored.min() <= stored.max() <= 8


def test_anchors_have_something_to_see(helsinki):
    entropy = helsinki.triplets.table["anchor_entropy"].to_numpy()
    n_empty = int(np.sum(entropy < 0.5))
    assert n_empty <= 0.05 * 120
    assert helsinki.triplets.metadata["n_empty"] == n_empty


def test_where_much_is_empty_few_anchors_are(helsinki, tmp_path):
    """Half of the anchors would be empty by this measure; at most the allowed share is."""
    median = float(np.median(helsinki.triplets.table["anchor_entropy"].to_numpy()))
    for empty_share in (0.0, 0.1):
        settings = SampleSettings(sample_count=60, size_m=200, context_m=0, min_entropy=median, empty_share=empty_share)
        triplets = build(helsinki, tmp_path / f"{empty_share}.parquet", settings)
        entropy = triplets.table["anchor_entropy"].to_numpy()
        assert len(entropy) == 60
        assert np.sum(entropy < np.float32(median)) <= empty_share * len(entropy)


@pytest.mark.parametrize(("n_full", "n_empty"), [(1000, 500), (95, 500), (40, 30), (1000, 3)])
def test_no_more_than_the_allowed_share_of_empty_anchors_is_kept(n_full, n_empty):
    entropy = np.concatenate([np.full(n_full, 2.0), np.zeros(n_empty)])
    n = len(entropy)
    pool = _Pool(np.full(n, "train"), np.zeros((n, 2)), np.zeros((n, 2)), entropy, entropy)
    settings = SampleSettings(sample_count=100, empty_share=0.05)
    kept = _kept(pool, settings, np.random.default_rng(0))
    assert len(kept) == len(set(kept)) <= 100
    assert len(kept) >= min(n_full, 95)
    assert np.sum(entropy[kept] < 0.5) <= 0.05 * len(kept)


def test_entropy_in_bits():
    constant = np.full((10, 10, 3), 200, np.uint8)
    halves = constant.copy()
    halves[:5] = 100
    assert _entropy(constant) == 0.0
    assert _entropy(halves) == pytest.approx(1.0)
    one_of_twelve = np.zeros((10, 10, 12), np.uint8)
    one_of_twelve[:5, :, 7] = 255
    assert _entropy(one_of_twelve) == pytest.approx(1.0)
    assert _entropy(np.arange(256, dtype=np.uint8).reshape(16, 16, 1)) == pytest.approx(8.0)


def test_a_region_too_small_for_two_blocks_is_refused_with_a_remedy(helsinki, tmp_path):
    small = Bounds(24.940, 60.170, 24.945, 60.172)  # 278 × 223 m
    with pytest.raises(SamplesError, match=r"region of 278 × 223 m has no room.*Use smaller windows.*train = false"):
        build(helsinki, tmp_path / "t.parquet", bounds=small)
    assert list(tmp_path.iterdir()) == []


def test_a_region_with_nothing_to_see_is_refused_and_the_earlier_triplets_stay(helsinki, own_helsinki, white_cache):
    path = own_helsinki.settings.triplets_file("helsinki")
    before = path.read_bytes()
    settings = SampleSettings(sample_count=20, size_m=200, context_m=0, empty_share=0)
    with pytest.raises(SamplesError, match="no place for train windows of 200 m"):
        build_triplets(path, white_cache, helsinki.extract.box, helsinki.extract.ground, settings)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"sample_count": 5},
        {"sample_count": "many"},
        {"size_m": 5},
        {"size_m": float("nan")},
        {"distance_m": 0},
        {"distance_m": float("inf")},
        {"negative_min_m": -1},
        {"negative_min_m": float("nan")},
        {"empty_share": 0.6},
        {"min_entropy": 9},
        {"seed": -1},
        {"buffer": 100},
        {"near": "square"},
        {"context_m": -1},
        {"context_m": 5000},
        {"context_m": 100.0},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        SampleSettings(**wrong)


def test_a_missing_or_damaged_table_is_named_and_made_again(own_helsinki, tmp_path):
    with pytest.raises(SamplesError, match=r"t.parquet does not exist. Materialise triplet_samples"):
        load_triplets(tmp_path / "t.parquet")
    path = own_helsinki.settings.triplets_file("helsinki")
    before = path.read_bytes()
    for data in (before[: len(before) // 2], b"", b"<html>"):
        path.write_bytes(data)
        with pytest.raises(SamplesError, match=r"triplets.parquet is damaged.*Materialise triplet_samples"):
            load_triplets(path)
    build(own_helsinki, path)
    assert path.read_bytes() == before
