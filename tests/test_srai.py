"""Baselines from srai, where that optional extra is installed."""

import logging
import subprocess
import sys

import h3
import numpy as np
import pytest

from geobacter_core.evaluation.hidden import AMENITIES
from geobacter_core.evaluation.semantics import probe_cells
from geobacter_core.evaluation.srai_embedders import srai_baselines, srai_is_installed
from geobacter_core.evaluation.tags import tag_counts
from geobacter_core.osm.features import load_features

NAMES = ["srai count", "srai contextual count", "srai hex2vec"]
needs_srai = pytest.mark.skipif(not srai_is_installed(), reason="srai is not installed: pip install 'geobacter[srai]'")

AGAIN = """
import sys
from pathlib import Path
from geobacter_core.evaluation.hidden import AMENITIES
from geobacter_core.evaluation.srai_embedders import srai_baselines
tables = srai_baselines(Path(sys.argv[1]), sys.argv[3:], AMENITIES, int(sys.argv[2]))
sys.stdout.buffer.write(tables["srai hex2vec"].tobytes())
"""


@pytest.fixture(scope="module")
def files(helsinki):
    return load_features(helsinki.settings.features_folder("helsinki"))[1]


@pytest.fixture(scope="module")
def cells(helsinki):
    """Forty cells, in no order."""
    drawn = probe_cells(helsinki.extract.ground, 10, most=40, seed=0)
    return [drawn[index] for index in np.random.default_rng(1).permutation(len(drawn))]


@pytest.fixture(scope="module")
def tables(files, cells):
    return srai_baselines(files, cells, AMENITIES, seed=5)


@needs_srai
def test_every_embedder_gives_a_row_to_every_cell(tables, cells):
    assert list(tables) == NAMES
    assert {table.shape[0] for table in tables.values()} == {len(cells)}
    assert tables["srai hex2vec"].shape[1] == 50
    assert tables["srai count"].shape == tables["srai contextual count"].shape
    for table in tables.values():
        assert table.dtype == np.float32
        assert np.isfinite(table).all()
        assert len(np.unique(table, axis=0)) > 20


@needs_srai
def test_srai_counts_what_tag_counts_counts(tables, files, cells):
    """The other opinion: as many tags in every cell, in the order of the cells that were asked for."""
    ours, _ = tag_counts(files, cells, AMENITIES)
    assert tables["srai count"].sum(axis=1) == pytest.approx(np.expm1(ours).sum(axis=1), rel=1e-4)
    # srai leaves out tags that no cell or ring has.
    theirs = np.sort(tables["srai count"].sum(axis=0))
    assert theirs[theirs > 0] == pytest.approx(
        np.sort(np.expm1(ours).sum(axis=0))[-np.count_nonzero(theirs) :], rel=1e-4
    )


@needs_srai
def test_a_context_is_the_mean_of_the_rings_also_where_these_were_not_asked_for(tables, files, cells):
    of_all, _ = tag_counts(files, sorted(h3.grid_disk(cells[0], 2)), AMENITIES)
    total = dict(zip(sorted(h3.grid_disk(cells[0], 2)), np.expm1(of_all).sum(axis=1), strict=True))
    rings = [np.mean([total[cell] for cell in h3.grid_ring(cells[0], k)]) for k in (1, 2)]
    expected = total[cells[0]] + rings[0] / 4 + rings[1] / 9
    assert tables["srai contextual count"][0].sum() == pytest.approx(expected, rel=1e-3)


@needs_srai
def test_hex2vec_is_the_same_in_another_process(tables, files, cells):
    """There sets of strings have another order, and polars' threads another race."""
    command = [sys.executable, "-c", AGAIN, str(files), "5", *cells]
    done = subprocess.run(command, capture_output=True, check=True, timeout=300)
    assert done.stdout == tables["srai hex2vec"].tobytes()


@needs_srai
def test_another_seed_changes_hex2vec_and_nothing_else(tables, files, cells):
    other = srai_baselines(files, cells, AMENITIES, seed=6)
    assert [name for name in NAMES if not np.array_equal(other[name], tables[name])] == ["srai hex2vec"]


@needs_srai
def test_the_random_generators_of_others_go_on_as_they_were(files, cells):
    import torch

    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    expected = np.random.random(), torch.rand(1).item()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    srai_baselines(files, cells[:5], AMENITIES, seed=1)
    assert (np.random.random(), torch.rand(1).item()) == expected  # noqa: NPY002


def test_without_srai_there_are_no_such_baselines_and_the_log_says_so(files, cells, caplog, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert srai_baselines(files, cells, AMENITIES, seed=1) == {}
    assert "pip install 'geobacter[srai]'" in caplog.text
