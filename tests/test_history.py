"""What refreshes changed, where, and what the table was before."""

import dataclasses
import os
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from test_refresh import brought_up_to_date, edited, embedded, largest_building, settings_in

from geobacter_core.cells import H3Grid
from geobacter_core.embeddings.embed import embed_region
from geobacter_core.embeddings.history import (
    COLUMNS,
    digests_before,
    folder_of,
    forget,
    latest_changes,
    read_back,
    schema,
)
from geobacter_core.embeddings.table import read_metadata, read_table
from geobacter_core.errors import EmbeddingsError

ROWS = ["cell", "embedding", "window_digest", "osm_timestamp"]


@pytest.fixture(scope="module")
def versions(registration):
    """The registered encoder, and another of the same windows."""
    return registration.version, dataclasses.replace(registration.version, version=9, digest="9" * 64)


@pytest.fixture(scope="module")
def states(helsinki, versions, tmp_path_factory):
    """Helsinki; then without its largest building; then by another encoder. The path, and the rows of each state."""
    folder = tmp_path_factory.mktemp("history")
    settings = settings_in(folder / "data")
    path = settings.embeddings_file("helsinki")
    rows, results = [], []
    later = edited(helsinki.pbf, folder / "later.osm.pbf", drop=largest_building(helsinki.pbf))
    for pbf, version in ((helsinki.pbf, versions[0]), (later, versions[0]), (later, versions[1])):
        brought_up_to_date(settings, pbf)
        results.append(embedded(settings, version))
        rows.append(pq.read_table(path, columns=ROWS))
    return path, rows, results


def test_a_refresh_says_where_the_region_changed_and_how_much(states, helsinki, versions, tmp_path):
    settings = settings_in(tmp_path / "data")
    path = settings.embeddings_file("helsinki")
    brought_up_to_date(settings, helsinki.pbf)
    assert embedded(settings, versions[0]).n_moved == 0
    assert latest_changes(path) is None
    before = read_table(path)
    brought_up_to_date(settings, edited(helsinki.pbf, tmp_path / "l.osm.pbf", drop=largest_building(helsinki.pbf)))
    made = embedded(settings, versions[0])
    changes = latest_changes(path)
    after = read_table(path)
    assert len(changes) == made.n_moved == made.n_changed > 0
    assert (changes.since[:10], changes.until[:10]) == ("2019-04-21", "2020-02-03")
    at = np.searchsorted(after.cells, changes.cells)
    expected = 1 - np.einsum("nd,nd->n", before.embeddings[at].astype(float), after.embeddings[at].astype(float))
    np.testing.assert_allclose(changes.distance, expected, atol=1e-6)
    assert changes.distance.max() > 0
    assert set(changes.cause) == {"window"}  # this encoder has no wider windows
    untouched = np.setdiff1d(np.arange(len(after)), at)
    np.testing.assert_array_equal(before.embeddings[untouched], after.embeddings[untouched])
    (file,) = folder_of(path).iterdir()
    assert list(COLUMNS) == schema().names == pq.read_schema(file).names


def test_earlier_states_are_read_back_whether_the_map_changed_or_the_encoder(states):
    path, rows, results = states
    digests = [result.digest for result in reversed(results)]
    assert digests_before(path) == digests
    for digest, expected in zip(digests, reversed(rows), strict=True):
        assert read_back(path, digest).equals(expected)
    assert results[2].n_moved == 0  # all rows are another encoder's: distances between the two would mean nothing
    assert read_metadata(path)["replaced"] == results[1].digest


def test_a_map_that_comes_back_to_what_it_was_has_a_history_all_the_same(helsinki, versions, tmp_path):
    """As after vandalism: what was before it can be read back too, and the way there is no circle."""
    settings = settings_in(tmp_path / "data")
    path = settings.embeddings_file("helsinki")
    way = largest_building(helsinki.pbf)
    edits = [{"retag": (way, {"building": "no", "landuse": "forest"})}, {"drop": way}, {}, {"drop": way}, {}]
    digests, rows = [], []
    for day, edit in enumerate(edits, 1):
        pbf = edited(helsinki.pbf, tmp_path / f"{day}.osm.pbf", **edit, when=f"2020-02-0{day}T04:05:06Z")
        brought_up_to_date(settings, pbf)
        digests.append(embedded(settings, versions[0]).digest)
        rows.append(pq.read_table(path, columns=ROWS))
    assert digests[1] == digests[3]
    assert digests[2] == digests[4]
    assert digests_before(path) == digests[::-1]
    assert read_back(path, digests[0]).equals(rows[0])
    assert read_back(path, digests[3]).equals(rows[3])
    assert latest_changes(path).since[:10] == "2020-02-04"


def test_a_state_that_is_not_kept_is_refused_with_those_that_are(states):
    path, _, results = states
    with pytest.raises(EmbeddingsError, match=results[0].digest[:16]):
        read_back(path, "0" * 64)


def test_what_is_older_than_it_is_kept_is_forgotten(states, tmp_path):
    path, _, results = states
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    folder_of(copy).mkdir()
    for file in folder_of(path).iterdir():
        (folder_of(copy) / file.name).write_bytes(file.read_bytes())
    (changed,) = folder_of(copy).glob(f"*-{results[1].digest[:16]}.changes.parquet")
    os.utime(changed, (time.time() - 91 * 86400,) * 2)
    assert forget(copy) == 1
    assert digests_before(copy) == [results[2].digest, results[1].digest]


def test_damaged_history_is_named_and_costs_nothing_else(states, tmp_path):
    path, _, results = states
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    folder_of(copy).mkdir()
    (folder_of(copy) / f"000001-{results[2].digest[:16]}.changes.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(EmbeddingsError, match=r"changes.parquet is damaged.*only history is lost"):
        digests_before(copy)
    assert len(read_table(copy)) == results[2].n_cells


def test_a_region_that_grows_has_new_cells_and_can_be_read_back(helsinki, versions, tmp_path):
    from geobacter_core.encoder.registry import Registry

    settings, ground = settings_in(tmp_path / "data"), helsinki.extract.ground
    path = settings.embeddings_file("helsinki")
    west, south, east, north = ground.bounds

    load = Registry(helsinki.settings).load

    def made(part):
        return embed_region(path, helsinki.cache, H3Grid(part, 10), versions[0], load)

    small = made(shapely.box(west, south, (west + east) / 2, north))
    before = pq.read_table(path)
    whole = made(ground)
    assert 0 < small.n_cells < whole.n_cells
    changes = latest_changes(path)
    assert len(changes) == whole.n_moved == whole.n_cells - small.n_cells
    assert set(changes.cause) == {"new"}
    assert np.isnan(changes.distance).all()
    assert read_back(path, small.digest).equals(before.select(ROWS))
    again = made(shapely.box(west, south, (west + east) / 2, north))
    assert (again.digest, again.n_moved) == (small.digest, 0)
    assert digests_before(path) == [small.digest, whole.digest, small.digest]
