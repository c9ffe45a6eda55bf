"""Refreshing a region: what a change of the map touches is made anew, and the result equals a build from scratch."""

import dataclasses
import shutil

import numpy as np
import osmium
import pyarrow.parquet as pq
import pytest

from geobacter_core.cells import H3Grid
from geobacter_core.embeddings.before import tiles_file
from geobacter_core.embeddings.embed import embed_region
from geobacter_core.embeddings.table import read_metadata, read_table
from geobacter_core.encoder.version import Encoder
from geobacter_core.geo import Tile
from geobacter_core.osm.extract import fetch_extract, load_extract
from geobacter_core.osm.features import build_features, load_features
from geobacter_core.regions import Region
from geobacter_core.settings import Settings
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.chunk import chunk_file
from geobacter_core.tiles.inputs import strip_inputs
from geobacter_core.tiles.mapnik import MapnikSource
from geobacter_core.tiles.region import build_region
from geobacter_core.tiles.style import all_keys, load_style

FULL, BLANK = Tile(12, 2331, 1185), Tile(12, 2332, 1185)
RESOLUTION = 11


def edited(source, target, drop=None, retag=None, when="2020-02-03T04:05:06Z"):
    """A copy of an extract of a later day, without one way, or with a way's tags changed."""
    header = osmium.io.Reader(str(source)).header()
    header.set("osmosis_replication_timestamp", when)
    with osmium.SimpleWriter(str(target), header=header, overwrite=True) as writer:
        for item in osmium.FileProcessor(str(source)):
            if item.is_way() and item.id == drop:
                continue
            if item.is_way() and retag and item.id == retag[0]:
                writer.add(item.replace(tags={**dict(item.tags), **retag[1]}))
            else:
                writer.add(item)
    return target


def largest_building(pbf):
    ways = osmium.FileProcessor(str(pbf), osmium.osm.WAY).with_filter(osmium.filter.KeyFilter("building"))
    return max((len(way.nodes), way.id) for way in ways if way.is_closed())[1]


def brought_up_to_date(settings, pbf):
    """Extract, features and tiles of Helsinki from a file; how many chunks were rendered, and how many kept."""
    region = Region(name="helsinki", extract=str(pbf), cell_resolution=RESOLUTION)
    fetch_extract(region, settings.extract_folder(region.name))
    extract, path = load_extract(settings.extract_folder(region.name))
    build_features(extract, path, all_keys(), settings.features_folder(region.name))
    return build_region(settings, region, "carto")


def colours(windows):
    """A stand-in for an encoder: mean colours of a window's rows, as vectors of length 1."""
    rows = np.asarray(windows, np.float32).mean(axis=3).reshape(len(windows), -1)[:, :31]
    rows = np.concatenate([rows, np.ones((len(rows), 32 - rows.shape[1]), np.float32)], axis=1)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def versions(registration):
    """The registered encoder, and another of the same windows."""
    return registration.version, dataclasses.replace(registration.version, version=9, digest="9" * 64)


def embedded(settings, version, grid=None):
    extract, _ = load_extract(settings.extract_folder("helsinki"))
    cache = TileCache(settings.tiles_folder("helsinki", "carto"))
    path = settings.embeddings_file("helsinki")
    grid = grid or H3Grid(extract.ground, RESOLUTION)
    return embed_region(path, cache, grid, version, lambda version: Encoder(version, colours))


def settings_in(folder):
    return Settings.from_environment({"GEOBACTER_DATA": str(folder), "GEOBACTER_STYLE": "carto"})


@pytest.fixture(scope="module")
def first(helsinki, versions, tmp_path_factory):
    """Helsinki as it is, through to its table. Read only."""
    settings = settings_in(tmp_path_factory.mktemp("first"))
    assert brought_up_to_date(settings, helsinki.pbf).n_rendered == 2
    embedded(settings, versions[0])
    return settings


@pytest.fixture
def own(first, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(first.data, tmp_path / "own")
    return settings_in(tmp_path / "own")


def test_a_refresh_equals_a_build_from_scratch_and_encodes_what_changed(helsinki, own, versions, tmp_path):
    later = edited(helsinki.pbf, tmp_path / "later.osm.pbf", drop=largest_building(helsinki.pbf))
    tiles = brought_up_to_date(own, later)
    assert (tiles.n_rendered, tiles.n_reused) == (1, 1)
    table = embedded(own, versions[0])
    scratch = settings_in(tmp_path / "scratch")
    from_scratch = brought_up_to_date(scratch, later)
    assert tiles.manifest.digest == from_scratch.manifest.digest
    assert tiles.manifest.recipe == from_scratch.manifest.recipe
    of_all = embedded(scratch, versions[0])
    assert table.digest == of_all.digest
    assert of_all.n_tiles_changed is None
    assert of_all.n_checked == of_all.n_changed == table.n_cells
    # One house: the windows of 200 m around it, and some beside them.
    assert 1 <= table.n_tiles_changed <= 6
    assert 0 < table.n_encoded <= table.n_changed < table.n_checked < table.n_cells / 3
    ours, theirs = (pq.read_table(each.embeddings_file("helsinki")) for each in (own, scratch))
    assert ours.drop_columns("osm_timestamp").equals(theirs.drop_columns("osm_timestamp"))
    days = [str(when)[:10] for when in ours["osm_timestamp"].to_pylist()]
    assert (days.count("2020-02-03"), days.count("2019-04-21")) == (table.n_changed, table.n_cells - table.n_changed)
    assert set(theirs["osm_timestamp"].to_pylist()) == {max(ours["osm_timestamp"].to_pylist())}


def test_what_the_style_does_not_draw_renders_and_encodes_nothing(helsinki, own, versions, tmp_path):
    before = read_table(own.embeddings_file("helsinki")).digest
    way = largest_building(helsinki.pbf)
    later = edited(helsinki.pbf, tmp_path / "later.osm.pbf", retag=(way, {"note": "a better survey", "name": "Talo"}))
    tiles = brought_up_to_date(own, later)
    assert (tiles.n_rendered, tiles.n_reused) == (0, 2)
    table = embedded(own, versions[0])
    assert (table.was_current, table.n_encoded, table.digest) == (True, 0, before)


@pytest.mark.parametrize("style", ["carto", "thematic", "detailed"])
def test_strips_that_are_drawn_by_themselves_are_those_of_a_whole_chunk(helsinki, first, style):
    _, files = load_features(first.features_folder("helsinki"))
    source = MapnikSource(load_style(style), files)
    whole = np.stack([strip.copy() for strip in source.strips(FULL)])
    assert whole.std() > 0
    for rows in ([3], [6, 7, 8], [15], [0, 2, 5, 11, 15]):
        some = np.stack([strip.copy() for strip in source.strips(FULL, rows)])
        np.testing.assert_array_equal(some, whole[rows])


def test_only_the_strips_are_drawn_that_show_the_change(helsinki, own, tmp_path):
    later = edited(helsinki.pbf, tmp_path / "later.osm.pbf", drop=largest_building(helsinki.pbf))
    tiles = brought_up_to_date(own, later)
    assert (tiles.n_rendered, 1 <= tiles.n_strips <= 4) == (1, True)
    path = chunk_file(own.tiles_folder("helsinki", "carto"), FULL)
    spliced = path.read_bytes()
    path.unlink()
    again = brought_up_to_date(own, later)
    assert (again.n_strips, again.manifest.digest) == (16, tiles.manifest.digest)
    assert path.read_bytes() == spliced


def test_a_damaged_chunk_is_drawn_as_a_whole(helsinki, own, tmp_path):
    path = chunk_file(own.tiles_folder("helsinki", "carto"), FULL)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    later = edited(helsinki.pbf, tmp_path / "later.osm.pbf", drop=largest_building(helsinki.pbf))
    tiles = brought_up_to_date(own, later)
    assert (tiles.n_rendered, tiles.n_strips) == (1, 16)
    scratch = brought_up_to_date(settings_in(tmp_path / "scratch"), later)
    assert tiles.manifest.digest == scratch.manifest.digest


def test_a_strips_input_is_what_is_drawn_in_it(helsinki, first, own, tmp_path):
    style = load_style("carto")
    _, files = load_features(first.features_folder("helsinki"))
    inputs = strip_inputs(files, style, [FULL, BLANK])
    assert inputs[FULL] != inputs[BLANK]
    assert strip_inputs(files, style, [BLANK]) == {BLANK: inputs[BLANK]}
    later = edited(helsinki.pbf, tmp_path / "later.osm.pbf", drop=largest_building(helsinki.pbf))
    brought_up_to_date(own, later)
    changed = strip_inputs(load_features(own.features_folder("helsinki"))[1], style, [FULL, BLANK])
    assert changed[FULL] != inputs[FULL]
    assert changed[BLANK] == inputs[BLANK]


def test_without_the_tiles_of_before_all_windows_are_cut_and_only_those_that_changed_encoded(
    helsinki, own, versions, tmp_path
):
    path = own.embeddings_file("helsinki")
    tiles_file(path).unlink()
    later = edited(helsinki.pbf, tmp_path / "later.osm.pbf", drop=largest_building(helsinki.pbf))
    brought_up_to_date(own, later)
    table = embedded(own, versions[0])
    assert table.n_tiles_changed is None
    assert table.n_checked == table.n_cells
    assert 0 < table.n_changed < table.n_cells / 3
    assert tiles_file(path).is_file()


def test_another_encoder_embeds_everything(own, versions):
    table = embedded(own, versions[1])
    assert (table.n_checked, table.n_changed) == (table.n_cells, table.n_cells)
    assert set(pq.read_table(table.path)["encoder"].to_pylist()) == {"geobacter/9"}


def test_rows_of_another_version_of_the_code_are_not_taken_over(own, versions, monkeypatch):
    from geobacter_core.embeddings import embed

    monkeypatch.setattr(embed, "VERSION", "another")
    table = embedded(own, versions[0])
    assert (table.n_checked, table.n_changed) == (table.n_cells, table.n_cells)


def test_a_damaged_table_is_not_taken_over(own, versions):
    path = own.embeddings_file("helsinki")
    digest = read_metadata(path)["digest"]
    path.write_bytes(path.read_bytes()[:-100])
    table = embedded(own, versions[0])
    assert (table.n_checked, table.digest) == (table.n_cells, digest)
