"""Searching tables: exactly the rows that a full sort has, limits on the ground, and arrays that outlive the table."""

import json

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from geobacter_core.embeddings.mapped import map_table
from geobacter_core.embeddings.search import Near, nearest, top_rows, unit
from geobacter_core.embeddings.table import read_table, rows, write_part, write_table
from geobacter_core.errors import EmbeddingsError, QueryError
from geobacter_core.geo import Place, cells_within, ground_distance_m

GROUND = shapely.box(24.93, 60.165, 24.96, 60.175)


@pytest.fixture(scope="module")
def write():
    """Write a table of random embeddings for the cells of a strip of Helsinki."""

    def run(path, seed=0, dim=8, region="helsinki"):
        cells = next(iter(cells_within(GROUND, 10)))
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(len(cells), dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        table = rows(cells, vectors, [bytes([seed])] * len(cells), "geobacter/1", "carto/1", np.zeros(len(cells), int))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name("part.parquet")
        digest = write_part(part, "86", table).digest
        about = {"digest": digest, "region": region, "encoder": "geobacter/1", "embedding_dim": dim, "parts": []}
        write_table(path, [(part, 0)], dim, about)
        return path

    return run


@pytest.fixture
def table(write, tmp_path):
    return map_table(write(tmp_path / "e.parquet"), tmp_path / "arrays")


def brute_force(table, query, k):
    similarity = np.asarray(table.embeddings) @ (query / np.linalg.norm(query)).astype(np.float32)
    return np.argsort(-similarity, kind="stable")[:k].tolist()


def test_mapped_arrays_are_the_table(write, tmp_path):
    path = write(tmp_path / "e.parquet")
    mapped, read = map_table(path, tmp_path / "arrays"), read_table(path)
    np.testing.assert_array_equal(mapped.embeddings, read.embeddings)
    assert isinstance(mapped.embeddings, np.memmap)
    np.testing.assert_array_equal(mapped.lonlat, np.stack([read.lon, read.lat], axis=1))
    frame = geopandas.read_parquet(path)
    for row in (0, 1, len(read) - 1):
        assert mapped.cell(row) == read.cells[row]
        assert mapped.geometry(row).equals(frame.geometry[row])


def test_a_table_that_is_replaced_stays_readable_for_who_has_it_open(write, tmp_path):
    path, arrays = tmp_path / "e.parquet", tmp_path / "arrays"
    first = map_table(write(path), arrays)
    before = np.array(first.embeddings)
    second = map_table(write(path, seed=1), arrays)
    assert second.digest != first.digest
    np.testing.assert_array_equal(first.embeddings, before)
    assert len([folder for folder in arrays.iterdir() if not folder.name.startswith(".")]) == 1
    assert map_table(path, arrays).digest == second.digest


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 1000])
def test_a_damaged_table_is_named(data, tmp_path):
    path = tmp_path / "e.parquet"
    path.write_bytes(data)
    with pytest.raises(EmbeddingsError, match=r"e\.parquet is damaged.*Materialise region_embeddings"):
        map_table(path, tmp_path / "arrays")


def test_a_table_whose_rows_are_damaged_leaves_no_arrays(write, tmp_path):
    path = write(tmp_path / "e.parquet")
    data = bytearray(path.read_bytes())
    for at in range(100, len(data) // 2):
        data[at] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(EmbeddingsError, match="damaged"):
        map_table(path, tmp_path / "arrays")
    assert list((tmp_path / "arrays").iterdir()) == []


@pytest.mark.parametrize("k", [1, 7, 1000])
def test_nearest_rows_are_those_of_a_full_sort(table, k):
    rng = np.random.default_rng(1)
    for _ in range(20):
        query = rng.normal(size=8).astype(np.float32)
        assert [hit.row for hit in nearest([table], query, k)] == brute_force(table, query, k)


def test_top_rows_of_equal_values_are_the_first():
    values = np.array([1, 3, 3, 2, 3, 1], np.float32)
    assert [top_rows(values, k).tolist() for k in (0, 1, 2, 4, 9)] == [
        [], [1], [1, 2], [1, 2, 4, 3], [1, 2, 4, 3, 0, 5],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="negative"):
        top_rows(values, -1)


@pytest.mark.parametrize("k", [1, 10, 39, 40, 500])
def test_top_rows_of_many_are_those_of_a_full_sort(k):
    values = np.random.default_rng(0).integers(0, 500, 10_007).astype(np.float32)  # with many that are equal
    np.testing.assert_array_equal(top_rows(values, k), np.argsort(-values, kind="stable")[:k])


def test_two_tables_are_searched_as_one(write, tmp_path):
    tables = [
        map_table(write(tmp_path / name / "e.parquet", seed, region=name), tmp_path / name / "arrays")
        for seed, name in enumerate(("one", "two"))
    ]
    query = np.arange(8, dtype=np.float32) - 3
    found = nearest(tables, query, 10)
    every = np.concatenate([table.embeddings for table in tables]) @ unit(query)
    np.testing.assert_array_equal([hit.similarity for hit in found], np.sort(every)[::-1][:10])
    assert {hit.table.region for hit in found} == {"one", "two"}


def test_limits_on_the_ground_hold(table):
    place = Place(24.945, 60.170)
    query = np.ones(8, np.float32)
    lon, lat = np.asarray(table.lonlat).T
    away = ground_distance_m(lon, lat, np.array([place.lon]), np.array([place.lat]))
    found = nearest([table], query, 1000, Near((place,), 200, 400))
    assert {hit.row for hit in found} == set(np.flatnonzero((away >= 200) & (away <= 400)).tolist())
    assert nearest([table], query, 5, Near((place,), 1e6)) == []


def test_results_keep_their_distance_from_each_other(table):
    found = nearest([table], np.ones(8, np.float32), 5, spacing_m=300)
    places = np.array([[hit.place.lon, hit.place.lat] for hit in found])
    for index in range(1, len(places)):
        here = places[index]
        away = ground_distance_m(places[:index, 0], places[:index, 1], here[:1], here[1:])
        assert away.min() >= 300
    assert found[0].row == brute_force(table, np.ones(8, np.float32), 1)[0]
    # As many as there is room for, and no more.
    assert 1 <= len(nearest([table], np.ones(8, np.float32), 1000, spacing_m=2000)) < 5


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (np.zeros(8), "no direction"),
        (np.full(8, np.nan), "no direction"),
        (np.ones(7), r"has 7 numbers, those of region 'helsinki' have 8. Use one made by geobacter/1"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(query, says, table):
    with pytest.raises(QueryError, match=says):
        nearest([table], query.astype(np.float32), 3)


def test_a_table_of_an_earlier_geobacter_is_named(tmp_path):
    path = tmp_path / "e.parquet"
    about = {b"geobacter": json.dumps({"region": "x"}).encode()}
    pq.write_table(pa.table({"cell": ["a"]}).replace_schema_metadata(about), path)
    with pytest.raises(EmbeddingsError, match="earlier Geobacter"):
        map_table(path, tmp_path / "arrays")


def test_an_index_finds_nearly_all_and_states_exact_similarities(write, tmp_path, monkeypatch):
    from geobacter_core.embeddings import index as indexes

    table = map_table(write(tmp_path / "e.parquet", dim=16), tmp_path / "arrays")
    assert not indexes.is_wanted(table)
    monkeypatch.setattr(indexes, "INDEX_FROM", 100)
    assert indexes.is_wanted(table)
    index = indexes.index_of(table)
    assert (table.folder / "index.faiss").exists()
    known = {table.digest: index}
    rng = np.random.default_rng(3)
    n_same = 0
    for _ in range(50):
        query = rng.normal(size=16).astype(np.float32)
        exact, found = nearest([table], query, 10), nearest([table], query, 10, indexes=known)
        n_same += len({hit.row for hit in exact} & {hit.row for hit in found})
        similarity = {hit.row: hit.similarity for hit in exact}
        for hit in found:
            assert hit.similarity == pytest.approx(similarity.get(hit.row, hit.similarity), abs=1e-6)
    assert n_same >= 0.95 * 500
    # What the index names is not enough for these: all rows are looked at.
    far = Near((Place(24.945, 60.170),), 500)
    assert [hit.row for hit in nearest([table], query, 1000, far, indexes=known)] == [
        hit.row for hit in nearest([table], query, 1000, far)
    ]
    assert indexes.index_of(table).candidates(unit(query), 3).tolist() == index.candidates(unit(query), 3).tolist()
