"""Embedding tables: GeoParquet by the contract, the same bytes whenever they are made, and questions to them."""

import dataclasses
import math
import weakref

import geopandas
import h3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from geobacter_core.cells import H3Grid
from geobacter_core.embeddings.embed import embed_region
from geobacter_core.embeddings.query import interpolate, similar
from geobacter_core.embeddings.table import COLUMNS, read_table
from geobacter_core.encoder.version import Encoder
from geobacter_core.errors import EmbeddingsError
from geobacter_core.geo import cells_within
from geobacter_core.tiles.window import WindowReader

STRIP = shapely.box(24.9360, 60.1700, 24.9520, 60.1702)
"""890 × 22 m: cells of resolution 13 in more than one batch."""


def colours(windows):
    """A stand-in for an encoder: the mean colours of a window's quarters, as vectors of length 1."""
    pixels = np.asarray(windows, dtype=np.float32)
    n, channels, side, _ = pixels.shape
    quarters = pixels.reshape(n, channels, 2, side // 2, 2, side // 2).mean(axis=(3, 5)).reshape(n, -1)
    quarters = np.concatenate([quarters, np.ones((n, 32 - quarters.shape[1]), np.float32)], axis=1)
    return (quarters / np.linalg.norm(quarters, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def make(helsinki, registration):
    """Embed ground with a quick stand-in for the registered encoder."""

    def run(path, ground=None, resolution=10, cache=None, version=None, **options):
        ground = helsinki.extract.ground if ground is None else ground
        return embed_region(
            path,
            cache or helsinki.cache,
            H3Grid(ground, resolution),
            version or registration.version,
            lambda version: Encoder(version, colours),
            **options,
        )

    return run


@pytest.fixture(scope="module")
def table(make, tmp_path_factory):
    path = tmp_path_factory.mktemp("embeddings") / "embeddings.parquet"
    return make(path)


def test_windows_that_are_known_make_room(make, tmp_path, monkeypatch):
    """144 cells, 4 at a time, of which one is new each time: its window waits, and the other 3 do not stay with it."""
    monkeypatch.setattr("geobacter_core.embeddings.embed._WINDOWS_AT_ONCE", 4)
    monkeypatch.setattr("geobacter_core.embeddings.embed.encoding_threads", lambda: 1)
    cut, most = [], 0

    def windows(reader, lon, lat):
        nonlocal most
        made = np.zeros((len(lon), reader.n_planes, reader.size_px, reader.size_px), np.uint8)
        made[0, 0, 0, 0] = len(cut)
        cut.append(weakref.ref(made))
        most = max(most, sum(each() is not None for each in cut))
        return made

    monkeypatch.setattr(WindowReader, "windows", windows)
    result = make(tmp_path / "embeddings.parquet")
    assert len(cut) == result.n_encoded >= 36
    assert most <= 5  # two ahead, one in each hand


def test_the_registered_encoders_tables_are_byte_for_byte_the_same(helsinki, registration, tmp_path):
    from geobacter_core.encoder.registry import Registry

    registry = Registry(helsinki.settings)
    paths = [tmp_path / name / "embeddings.parquet" for name in ("one", "two")]
    for path in paths:
        result = embed_region(
            path, helsinki.cache, H3Grid(helsinki.extract.ground, 10), registration.version, registry.load
        )
        assert result.n_cells == 144
    assert paths[0].read_bytes() == paths[1].read_bytes()
    embeddings = read_table(paths[0]).embeddings
    assert embeddings.shape == (144, 32)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-6)
    some = read_table(paths[0])
    windows = WindowReader(helsinki.cache, 200.0, 32).windows(some.lon[:3], some.lat[:3])
    np.testing.assert_array_equal(registry.load(registration.version).encode(windows), embeddings[:3])


def test_the_table_is_geoparquet_by_the_contract(table, helsinki, registration):
    frame = geopandas.read_parquet(table.path)
    assert frame.crs == "EPSG:4326"
    assert list(frame.columns) == list(COLUMNS)
    expected = h3.h3shape_to_cells(h3.geo_to_h3shape(helsinki.extract.ground), 10)
    assert frame["cell"].tolist() == sorted(expected)
    assert len(frame) == table.n_cells == 144
    assert not frame.isna().any().any()
    for cell, lon, lat, polygon in zip(frame["cell"], frame["lon"], frame["lat"], frame.geometry, strict=True):
        assert (lat, lon) == h3.cell_to_latlng(cell)
        assert polygon.contains(shapely.Point(lon, lat))
    vectors = np.stack(frame["embedding"])
    assert vectors.dtype == np.float32
    assert vectors.shape == (144, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert set(frame["encoder"]) == {registration.version.name}
    assert set(frame["style"]) == {f"carto/{helsinki.style.version}"}
    assert {str(when) for when in frame["osm_timestamp"]} == {"2019-04-21 09:50:14+00:00"}
    assert {len(digest) for digest in frame["window_digest"]} == {16}


def test_the_embedding_is_a_list_of_fixed_size(table):
    schema = pq.read_schema(table.path)
    assert pa.types.is_fixed_size_list(schema.field("embedding").type)
    assert schema.field("embedding").type.list_size == 32
    assert schema.field("embedding").type.value_type == pa.float32()
    assert not any(field.nullable for field in schema)


def test_the_table_can_be_traced(table, helsinki, registration):
    metadata = read_table(table.path).metadata
    assert metadata["extract_sha256"] == helsinki.extract.sha256
    assert metadata["tiles"] == helsinki.cache.manifest.digest
    assert metadata["encoder_digest"] == registration.version.digest
    assert (metadata["n_cells"], metadata["cell_resolution"], metadata["size_m"]) == (144, 10, 200.0)


def test_a_second_build_encodes_nothing_and_changes_no_file(make, tmp_path, snapshot):
    first = make(tmp_path / "e.parquet")
    before = snapshot(tmp_path)
    again = make(tmp_path / "e.parquet")
    assert (again.n_encoded, again.was_current, again.digest) == (0, True, first.digest)
    assert snapshot(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.parquet", "e.tiles.parquet"]


def test_identical_windows_are_encoded_once(table, make, white_cache, tmp_path):
    digests = pq.read_table(table.path)["window_digest"].to_pylist()
    assert table.n_encoded == len(set(digests)) <= 144
    white = make(tmp_path / "w.parquet", cache=white_cache)
    assert (white.n_cells, white.n_encoded) == (144, 1)


def test_equal_digests_have_equal_embeddings(make, white_cache, tmp_path):
    make(tmp_path / "w.parquet", cache=white_cache)
    embeddings = read_table(tmp_path / "w.parquet").embeddings
    assert len(np.unique(embeddings, axis=0)) == 1


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(make, tmp_path):
    batches = [len(cells) for cells in cells_within(STRIP, 13)]
    assert len(batches) >= 2
    whole = make(tmp_path / "whole" / "e.parquet", STRIP, 13)
    path = tmp_path / "killed" / "e.parquet"
    path.parent.mkdir()
    path.write_bytes(b"an earlier table")

    def kill(done, total):
        if done > batches[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(path, STRIP, 13, on_cells=kill)
    assert path.read_bytes() == b"an earlier table"
    resumed = make(path, STRIP, 13)
    assert 0 < resumed.n_encoded < whole.n_encoded
    assert path.read_bytes() == (tmp_path / "whole" / "e.parquet").read_bytes()
    assert sorted(left.name for left in path.parent.iterdir()) == ["e.parquet", "e.tiles.parquet"]


def test_what_a_killed_run_with_other_inputs_left_is_removed(make, tmp_path):
    (tmp_path / "parts-0123456789abcdef").mkdir()
    make(tmp_path / "e.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.parquet", "e.tiles.parquet"]


@pytest.mark.parametrize("change", [{"style": "thematic"}, {"style_version": "2"}, {"n_channels": 12}])
def test_an_encoder_of_another_style_is_refused_and_the_earlier_table_stays(change, make, registration, tmp_path):
    path = tmp_path / "e.parquet"
    make(path)
    before = path.read_bytes()
    with pytest.raises(EmbeddingsError, match=r"Region 'helsinki': encoder geobacter/\d+ takes windows of style"):
        make(path, version=dataclasses.replace(registration.version, **change))
    assert path.read_bytes() == before


def test_a_new_version_of_the_encoder_makes_a_new_table(make, registration, tmp_path):
    path = tmp_path / "e.parquet"
    first = make(path)
    second = make(path, version=dataclasses.replace(registration.version, version=99))
    assert second.digest != first.digest
    assert set(pq.read_table(path)["encoder"].to_pylist()) == {"geobacter/99"}


def cut_in_half(data):
    return data[: len(data) // 2]


def flip_a_byte_of_the_rows(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [cut_in_half, flip_a_byte_of_the_rows, lambda data: b"", lambda data: b"<html>"])
def test_a_damaged_table_is_made_again(damage, make, table, tmp_path):
    path = tmp_path / "e.parquet"
    path.write_bytes(damage(table.path.read_bytes()))
    result = make(path)
    assert result.was_current is False
    assert path.read_bytes() == table.path.read_bytes()


def test_a_missing_or_damaged_table_is_named(tmp_path, table):
    with pytest.raises(EmbeddingsError, match=r"none.parquet does not exist. Materialise region_embeddings"):
        read_table(tmp_path / "none.parquet")
    (tmp_path / "half.parquet").write_bytes(cut_in_half(table.path.read_bytes()))
    with pytest.raises(EmbeddingsError, match=r"half.parquet is damaged.*Materialise region_embeddings"):
        read_table(tmp_path / "half.parquet")


def test_ground_without_a_cell_is_refused(make, tmp_path):
    tiny = shapely.box(24.94, 60.17, 24.94001, 60.17001)
    with pytest.raises(EmbeddingsError, match=r"no cell of resolution 5 has its centre.*finer cell_resolution"):
        make(tmp_path / "e.parquet", tiny, 5)
    assert not (tmp_path / "e.parquet").exists()


def around(degrees):
    return np.float32([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


CIRCLE = np.stack([around(degrees) for degrees in (0, 10, 30, 90, 180)])


def test_similar_rows_come_best_first():
    assert similar(CIRCLE, around(0), 3).tolist() == [0, 1, 2]
    assert similar(CIRCLE, around(170), 2).tolist() == [4, 3]
    assert similar(CIRCLE, around(25), 99).tolist() == [2, 1, 0, 3, 4]


def test_similar_rows_keep_their_distance():
    lonlat = np.array([[25.0, 60.0], [25.0, 60.001], [25.0, 60.002], [25.0, 60.1], [26.0, 60.0]])  # first 111 m apart
    assert similar(CIRCLE, around(0), 3, lonlat, spacing_m=200).tolist() == [0, 2, 3]
    assert similar(CIRCLE, around(0), 3, lonlat, spacing_m=500).tolist() == [0, 3, 4]
    assert similar(CIRCLE, around(0), 2, lonlat, spacing_m=0).tolist() == [0, 1]


def test_interpolation_goes_evenly_along_the_circle():
    steps = interpolate(around(0), around(90), 4)
    np.testing.assert_allclose(steps, [around(0), around(30), around(60), around(90)], atol=1e-6)
    assert steps.dtype == np.float32


@pytest.mark.parametrize("seed", range(3))
def test_interpolation_keeps_length_1_and_its_ends(seed):
    ends = np.random.default_rng(seed).normal(size=(2, 64)).astype(np.float32)
    ends /= np.linalg.norm(ends, axis=1, keepdims=True)
    steps = interpolate(ends[0], ends[1], 9)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(steps[[0, -1]], ends, atol=1e-6)
    same = interpolate(ends[0], ends[0], 3)
    np.testing.assert_allclose(same, np.tile(ends[0], (3, 1)), atol=1e-6)


def test_interpolation_between_opposite_vectors_still_has_length_1():
    steps = interpolate(around(0), around(180), 5)
    np.testing.assert_allclose(steps[[0, -1]], [around(0), around(180)], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 1.0, atol=1e-5)
