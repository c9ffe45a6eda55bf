"""A user's own grid of cells: which files are read and which refused, how rows are batched, and their tables."""

import dataclasses
import json
import shutil

import geopandas
import h3
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from test_refresh import brought_up_to_date, colours, edited, largest_building, settings_in
from test_refresh import embedded as embedded_in

from geobacter_core import cells as cells_module
from geobacter_core.cells import H3Grid, UserGrid, ancestors, grid_of
from geobacter_core.embeddings.before import Before
from geobacter_core.embeddings.embed import embed_region
from geobacter_core.embeddings.history import digests_before, latest_changes, read_back
from geobacter_core.embeddings.table import COLUMNS, read_metadata, read_table, table_problems
from geobacter_core.encoder.version import Encoder
from geobacter_core.errors import EmbeddingsError, GridError
from geobacter_core.grid_file import places_of, read_grid
from geobacter_core.osm.check import problems_of
from geobacter_core.osm.extract import load_extract
from geobacter_core.tiles.window import WindowReader

WEST, SOUTH, EAST, NORTH = 24.936, 60.166, 24.950, 60.174
"""Within Helsinki's extract."""
SIDE = 0.001
EVERYWHERE = shapely.box(-180, -85, 180, 85)


def squares(west=WEST, south=SOUTH, columns=14, rows=8):
    """Squares of a thousandth of a degree, 56 × 111 m, numbered from the south-west."""
    boxes = [
        shapely.box(west + x * SIDE, south + y * SIDE, west + (x + 1) * SIDE, south + (y + 1) * SIDE)
        for y in range(rows)
        for x in range(columns)
    ]
    return geopandas.GeoDataFrame({"id": range(len(boxes)), "people": 7}, geometry=boxes, crs="EPSG:4326")


def written(folder, frame, name="grid.parquet", **options):
    path = folder / name
    frame.to_parquet(path, **options)
    return path


@pytest.fixture(scope="module")
def versions(registration):
    return (registration.version,)


@pytest.fixture(scope="module")
def make(helsinki, registration):
    """Embed a grid with a quick stand-in for the registered encoder."""

    def run(path, grid_file, cache=None):
        grid = UserGrid(grid_file, helsinki.extract.ground)
        return embed_region(
            path, cache or helsinki.cache, grid, registration.version, lambda version: Encoder(version, colours)
        )

    return run


@pytest.fixture(scope="module")
def first(helsinki, versions, tmp_path_factory):
    """Helsinki as it is and the table of 112 squares."""
    folder = tmp_path_factory.mktemp("grids")
    settings = settings_in(folder / "data")
    brought_up_to_date(settings, helsinki.pbf)
    path = written(folder, squares())
    embedded_in(settings, versions[0], UserGrid(path, helsinki.extract.ground))
    return settings


@pytest.fixture
def own(first, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(first.data, tmp_path / "own")
    return settings_in(tmp_path / "own")


def few_to_a_batch(monkeypatch, most=10):
    monkeypatch.setattr(cells_module, "MAX_BATCH", most)


def test_a_table_of_polygons_has_their_ids_shapes_and_the_windows_at_their_centroids(make, helsinki, tmp_path):
    frame = squares()
    made = make(tmp_path / "e.parquet", written(tmp_path, frame))
    assert (made.n_cells, made.n_outside) == (112, 0)
    table = geopandas.read_parquet(made.path)
    assert list(table.columns) == list(COLUMNS)
    assert table.crs == "EPSG:4326"
    assert table["cell"].tolist() == sorted(str(number) for number in range(112))
    wanted = frame.set_index(frame["id"].astype(str)).loc[table["cell"]]
    assert table.geometry.geom_equals_exact(wanted.geometry.reset_index(drop=True), 0).all()
    centroids = shapely.centroid(wanted.geometry.to_numpy())
    np.testing.assert_allclose(table["lon"], shapely.get_x(centroids), atol=1e-9)
    np.testing.assert_allclose(table["lat"], shapely.get_y(centroids), atol=1e-9)
    windows = WindowReader(helsinki.cache, 200.0, 32).windows(table["lon"].to_numpy(), table["lat"].to_numpy())
    np.testing.assert_array_equal(np.stack(table["embedding"]), colours(windows))
    metadata = read_metadata(made.path)
    assert (metadata["cells"], metadata["n_cells"], metadata["n_outside"]) == ("grid.parquet", 112, 0)
    assert "cell_resolution" not in metadata
    geo = json.loads(pq.read_schema(made.path).metadata[b"geo"])
    assert geo["columns"]["geometry"]["geometry_types"] == ["Polygon"]


def test_a_table_of_points_has_points(make, helsinki, tmp_path):
    frame = squares()
    centroids = shapely.centroid(frame.geometry.to_numpy())
    frame = frame.set_geometry(centroids, crs=frame.crs).assign(id=[f"stop {number:03}" for number in range(112)])
    made = make(tmp_path / "e.parquet", written(tmp_path, frame))
    table = geopandas.read_parquet(made.path)
    assert set(table.geom_type) == {"Point"}
    assert table["cell"].tolist() == frame["id"].tolist()
    np.testing.assert_array_equal(table["lon"], table.geometry.x)
    np.testing.assert_array_equal(table["lat"], table.geometry.y)
    geo = json.loads(pq.read_schema(made.path).metadata[b"geo"])
    assert geo["columns"]["geometry"]["geometry_types"] == ["Point"]
    of_squares = make(tmp_path / "s" / "e.parquet", written(tmp_path, squares().assign(id=frame["id"]), "s.parquet"))
    np.testing.assert_allclose(read_table(made.path).embeddings, read_table(of_squares.path).embeddings, atol=1e-6)
    assert table_problems(made.path, UserGrid(tmp_path / "grid.parquet", helsinki.extract.ground)) == []


@pytest.mark.parametrize("crs", ["EPSG:3067", "EPSG:3857", "EPSG:4258"])
def test_a_grid_in_another_reference_system_leads_to_the_same_places(crs, tmp_path):
    (there, here) = (
        read_grid(written(tmp_path, frame, name), EVERYWHERE)
        for frame, name in ((squares().to_crs(crs), "there.parquet"), (squares(), "here.parquet"))
    )
    np.testing.assert_allclose(there.lon, here.lon, atol=1e-8)
    np.testing.assert_allclose(there.lat, here.lat, atol=1e-8)


def test_without_a_stated_reference_system_coordinates_are_degrees_but_one_that_is_unknown_is_refused(tmp_path):
    path = written(tmp_path, squares())
    table = pq.read_table(path)

    def stating(**crs):
        geo = json.loads(table.schema.metadata[b"geo"])
        del geo["columns"]["geometry"]["crs"]
        geo["columns"]["geometry"] |= crs
        pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)

    stating()
    assert len(read_grid(path, EVERYWHERE)) == 112
    stating(crs=None)
    with pytest.raises(GridError, match=r"grid.parquet says that the coordinate reference system .* unknown. State it"):
        read_grid(path, EVERYWHERE)
    stating(crs="nonsense")
    with pytest.raises(GridError, match=r"that it states cannot be read .* Write the file anew"):
        read_grid(path, EVERYWHERE)


def test_the_place_of_a_polygon_is_its_centroid_or_else_within_it():
    horseshoe = shapely.box(0, 0, 3, 3).difference(shapely.box(1, 1, 2, 3))
    apart = shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(3, 0, 4, 1)])
    shapes = np.array([shapely.Point(7, 8), shapely.box(0, 0, 2, 4), horseshoe, apart], object)
    lon, lat = places_of(shapes)
    assert (lon[:2].tolist(), lat[:2].tolist()) == ([7.0, 1.0], [8.0, 2.0])
    for x, y, shape in zip(lon[2:], lat[2:], shapes[2:], strict=True):
        assert not shape.contains(shape.centroid)
        assert shape.contains(shapely.Point(x, y))


IDS = r"Give each row an id, text or a whole number, that no other row has\."


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda frame: frame.drop(columns="id"), rf"has no column `id`; it has `people`, `geometry`\. {IDS}"),
        (lambda frame: frame.assign(id=[*range(111), 5]), rf"column `id`: 5 is in row 6 and in row 112\. {IDS}"),
        (lambda frame: frame.assign(id=["a", None, *"c" * 110]), rf"column `id`, row 2: the id is missing\. {IDS}"),
        (lambda frame: frame.assign(id=["a", " ", *"c" * 110]), rf"column `id`, row 2: the id is missing\. {IDS}"),
        (lambda frame: frame.assign(id=pd.array([None, *range(111)], "Int64")), r"column `id`, row 1: the id is miss"),
        (lambda frame: frame.assign(id=frame["id"] + 0.5), rf"column `id`: it holds double, neither text .*\. {IDS}"),
        (lambda frame: frame.set_geometry(frame.boundary), r"row 1: the geometry is LINESTRING .* Give each row"),
        (lambda frame: frame.set_geometry([None, *frame.geometry[1:]]), r"row 1: there is no geometry\. Give each row"),
        (
            lambda frame: frame.set_geometry([*frame.geometry[:-1], shapely.Polygon()]),
            r"row 112: the geometry is POLYGON EMPTY\. Give each row a point, a polygon or",
        ),
        (lambda frame: frame.iloc[:0], r"grid.parquet has no rows\. A grid is GeoParquet"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named(change, says, tmp_path):
    path = tmp_path / "grid.parquet"
    frame = squares()
    crs = frame.crs
    change(frame).set_crs(crs, allow_override=True).to_parquet(path)
    with pytest.raises(GridError, match=says) as caught:
        read_grid(path, EVERYWHERE)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_no_grid_is_named(tmp_path):
    path = tmp_path / "grid.parquet"
    with pytest.raises(GridError, match=r"grid.parquet does not exist. Correct `cells` in regions.toml."):
        read_grid(path, EVERYWHERE)
    with pytest.raises(GridError, match=r"cannot be read \(No such file or directory\). Correct `cells`"):
        UserGrid(path, EVERYWHERE)
    path.write_text("id,lon,lat\n")
    with pytest.raises(GridError, match=r"is not Parquet, or is damaged: .* A grid is GeoParquet with a column `id`"):
        read_grid(path, EVERYWHERE)
    pq.write_table(pa.table({"id": [1], "lon": [24.9], "lat": [60.1]}), path)
    with pytest.raises(GridError, match=r"does not say where its geometry is. A grid is GeoParquet"):
        read_grid(path, EVERYWHERE)
    squares().to_parquet(path, geometry_encoding="geoarrow")
    with pytest.raises(GridError, match=r"its geometry is encoded as polygon. Write it as WKB"):
        read_grid(path, EVERYWHERE)


def test_text_of_any_kind_and_categories_are_ids(tmp_path):
    frame = squares()
    names = [f"n{number}" for number in range(112)]
    for ids in (names, pd.Categorical(names), pd.array(names, "string"), np.arange(112, dtype=np.uint8)):
        found = read_grid(written(tmp_path, frame.assign(id=ids)), EVERYWHERE)
        assert found.ids.to_pylist() == [str(name) for name in ids]


def test_places_outside_the_region_are_left_out_and_counted(make, helsinki, tmp_path, caplog):
    path = written(tmp_path, pd.concat([squares(), squares(west=10).assign(id=range(1000, 1112))]))
    with caplog.at_level("INFO"):
        made = make(tmp_path / "e.parquet", path)
    assert (made.n_cells, made.n_outside, read_metadata(made.path)["n_outside"]) == (112, 112, 112)
    assert "112 of 224 places lie outside the region and are left out" in caplog.text
    assert make(tmp_path / "e.parquet", path).n_outside == 112
    assert table_problems(made.path, UserGrid(path, helsinki.extract.ground)) == []


def test_a_grid_without_a_place_in_the_region_is_refused(make, tmp_path):
    path = written(tmp_path, squares(west=10))
    with pytest.raises(
        EmbeddingsError, match=r"Region 'helsinki': none of the 112 places of .* Is it another region's"
    ):
        make(tmp_path / "e.parquet", path)
    assert not (tmp_path / "e.parquet").exists()


def test_ancestors_are_those_that_h3_finds():
    rng = np.random.default_rng(1)
    names = [h3.latlng_to_cell(*rng.uniform((-80, -180), (80, 180)), 15) for _ in range(50)]
    finest = np.array([h3.str_to_int(name) for name in names], np.uint64)
    for resolution in range(16):
        found = [h3.int_to_str(int(cell)) for cell in ancestors(finest, resolution)]
        assert found == [h3.cell_to_parent(name, resolution) for name in names]


def test_batches_are_the_largest_h3_cells_with_few_enough_places(helsinki, tmp_path, monkeypatch):
    path = written(tmp_path, squares())
    ground = helsinki.extract.ground
    (only,) = UserGrid(path, ground).batch_names()
    assert h3.get_resolution(only) == 0
    few_to_a_batch(monkeypatch)
    grid = UserGrid(path, ground)
    batches = {name: grid.batch(name) for name in grid.batch_names()}
    finest = [
        h3.latlng_to_cell(lat, lon, 15)
        for batch in batches.values()
        for lat, lon in zip(batch.lat[batch.along_ground], batch.lon[batch.along_ground], strict=True)
    ]
    assert finest == sorted(finest)
    for name, batch in batches.items():
        resolution = h3.get_resolution(name)
        within = [cell for cell in finest if h3.cell_to_parent(cell, resolution) == name]
        around = h3.cell_to_parent(name, resolution - 1)
        assert len(batch) == len(within) <= 10
        assert sum(h3.cell_to_parent(cell, resolution - 1) == around for cell in finest) > 10
        assert batch.names == sorted(batch.names)
    everything = [name for batch in batches.values() for name in batch.names]
    assert sorted(everything) == sorted(str(number) for number in range(112))
    batch = max(batches.values(), key=len)
    taken = batch.take(np.array([len(batch) - 1, 0]))
    assert taken.names == [batch.names[-1], batch.names[0]]
    assert sorted(taken.along_ground) == [0, 1]


def test_places_that_coincide_are_one_batch_however_many(tmp_path, monkeypatch):
    few_to_a_batch(monkeypatch)
    frame = geopandas.GeoDataFrame({"id": range(30)}, geometry=[shapely.Point(24.94, 60.17)] * 30, crs="EPSG:4326")
    grid = UserGrid(written(tmp_path, frame), EVERYWHERE)
    (name,) = grid.batch_names()
    assert (h3.get_resolution(name), len(grid.batch(name))) == (15, 30)


def test_the_order_of_the_file_and_what_else_it_holds_make_no_difference(make, tmp_path, monkeypatch):
    few_to_a_batch(monkeypatch)
    frame = squares()
    first = make(tmp_path / "a" / "e.parquet", written(tmp_path, frame))
    shuffled = frame.sample(frac=1, random_state=3).drop(columns="people").rename_geometry("shape")
    second = make(tmp_path / "b" / "e.parquet", written(tmp_path, shuffled, "b.parquet"))
    assert first.digest == second.digest
    assert pq.read_table(first.path).equals(pq.read_table(second.path))


def test_a_second_build_encodes_nothing(make, tmp_path, snapshot):
    path = written(tmp_path, squares())
    made = make(tmp_path / "e" / "e.parquet", path)
    before = snapshot(tmp_path)
    again = make(tmp_path / "e" / "e.parquet", path)
    assert (again.was_current, again.n_encoded, again.digest) == (True, 0, made.digest)
    assert snapshot(tmp_path) == before


def test_a_refresh_equals_a_build_from_scratch(helsinki, versions, tmp_path, monkeypatch):
    """In small batches, of which most are taken over as bytes."""
    few_to_a_batch(monkeypatch)
    path = written(tmp_path, squares().to_crs("EPSG:3067"))
    grid = UserGrid(path, helsinki.extract.ground)
    own, scratch = settings_in(tmp_path / "own"), settings_in(tmp_path / "scratch")
    brought_up_to_date(own, helsinki.pbf)
    embedded_in(own, versions[0], grid)
    later = edited(helsinki.pbf, tmp_path / "later.osm.pbf", drop=largest_building(helsinki.pbf))
    for settings in (own, scratch):
        brought_up_to_date(settings, later)
    refreshed, made = embedded_in(own, versions[0], grid), embedded_in(scratch, versions[0], grid)
    assert refreshed.digest == made.digest
    assert 0 < refreshed.n_encoded <= refreshed.n_changed <= refreshed.n_checked < refreshed.n_cells
    ours, theirs = (pq.read_table(each.embeddings_file("helsinki")) for each in (own, scratch))
    assert ours.drop_columns("osm_timestamp").equals(theirs.drop_columns("osm_timestamp"))
    changes = latest_changes(refreshed.path)
    assert len(changes) == refreshed.n_changed
    assert set(changes.cells) <= {str(number) for number in range(112)}
    assert table_problems(refreshed.path, grid) == []
    geo = json.loads(pq.read_schema(refreshed.path).metadata[b"geo"])
    assert geo["columns"]["geometry"]["geometry_types"] == ["Polygon"]


def test_parts_over_which_nothing_has_changed_are_not_read(helsinki, versions, tmp_path, monkeypatch):
    few_to_a_batch(monkeypatch)
    grid = UserGrid(written(tmp_path, squares()), helsinki.extract.ground)
    settings = settings_in(tmp_path / "data")
    brought_up_to_date(settings, helsinki.pbf)
    n_parts = len(grid.batch_names())
    embedded_in(settings, versions[0], grid)
    later = edited(helsinki.pbf, tmp_path / "later.osm.pbf", drop=largest_building(helsinki.pbf))
    brought_up_to_date(settings, later)
    cut: list[str] = []
    batch = UserGrid.batch
    monkeypatch.setattr(UserGrid, "batch", lambda self, name: cut.append(name) or batch(self, name))
    embedded_in(settings, versions[0], grid)
    assert 0 < len(cut) < n_parts


def test_a_changed_grid_makes_another_table_and_keeps_what_is_where_it_was(
    own, helsinki, versions, tmp_path, monkeypatch
):
    """One row goes, one comes, one moves; a fourth gets another shape around the same place."""
    few_to_a_batch(monkeypatch)
    path = own.embeddings_file("helsinki")
    before = pq.read_table(path)
    frame = squares()
    shapes = list(frame.geometry)
    shapes[50] = shapely.affinity.translate(shapes[50], 0.004, 0.002)
    shapes[20] = shapes[20].buffer(0.0002, join_style="mitre")
    ids = frame["id"].tolist()
    ids[0] = 500  # 0 goes, 500 comes
    grid = UserGrid(
        written(tmp_path, geopandas.GeoDataFrame({"id": ids}, geometry=shapes, crs=4326)), helsinki.extract.ground
    )
    made = embedded_in(own, versions[0], grid)
    assert (made.was_current, made.n_cells) == (False, 112)
    assert 1 <= made.n_changed <= made.n_checked <= 4  # 20's place may come out another in the last bit
    changes = latest_changes(path)
    assert dict(zip(changes.cells.tolist(), changes.cause.tolist(), strict=True)) == {"50": "moved", "500": "new"}
    assert table_problems(path, grid) == []
    scratch = tmp_path / "scratch" / "e.parquet"
    from_scratch = embed_region(
        scratch, helsinki_cache(own), grid, versions[0], lambda version: Encoder(version, colours)
    )
    assert made.digest == from_scratch.digest
    assert (
        pq.read_table(path).drop_columns("osm_timestamp").equals(pq.read_table(scratch).drop_columns("osm_timestamp"))
    )
    earlier = read_back(path, digests_before(path)[-1]).sort_by("cell")
    kept = before.filter(pa.compute.not_equal(before["cell"], "0")).select(earlier.column_names).sort_by("cell")
    assert earlier.equals(kept)  # less what is of the region no more


def helsinki_cache(settings):
    from geobacter_core.tiles.cache import TileCache

    return TileCache(settings.tiles_folder("helsinki", "carto"))


def test_a_row_that_goes_leaves_the_history_whole(own, helsinki, versions, tmp_path):
    path = own.embeddings_file("helsinki")
    first = read_metadata(path)["digest"]
    made = embedded_in(own, versions[0], UserGrid(written(tmp_path, squares().iloc[1:]), helsinki.extract.ground))
    assert (made.n_cells, made.n_checked, made.n_moved) == (111, 0, 0)
    assert digests_before(path) == [made.digest, first]
    assert len(latest_changes(path)) == 0


def test_another_shape_around_the_same_places_is_another_digest_and_encodes_nothing(own, helsinki, versions, tmp_path):
    path = own.embeddings_file("helsinki")
    first = read_metadata(path)["digest"]
    points = squares()
    points = points.set_geometry(shapely.centroid(points.geometry.to_numpy()), crs=points.crs)
    made = embedded_in(own, versions[0], UserGrid(written(tmp_path, points), helsinki.extract.ground))
    assert made.digest != first
    assert (made.n_changed, made.n_encoded) == (0, 0)
    assert set(geopandas.read_parquet(path).geom_type) == {"Point"}


def test_rows_are_found_by_name_in_whichever_of_many_parts(helsinki, versions, first, tmp_path, monkeypatch):
    few_to_a_batch(monkeypatch, 3)
    grid = UserGrid(written(tmp_path, squares()), helsinki.extract.ground)
    path = tmp_path / "e.parquet"
    cache = helsinki_cache(first)
    embed_region(path, cache, grid, versions[0], lambda version: Encoder(version, colours))
    metadata = read_metadata(path)
    before = Before.open(path, metadata["rows_recipe"], metadata["of_parts"], cache)
    assert len(before.parts) > 37
    everything = UserGrid(tmp_path / "grid.parquet", helsinki.extract.ground)
    monkeypatch.undo()
    (name,) = everything.batch_names()
    cells = everything.batch(name)
    known = before.rows(cells)
    assert known.is_there.all()
    assert not known.has_moved.any()
    table = read_table(path)
    row_of = {cell: row for row, cell in enumerate(table.cells.tolist())}
    np.testing.assert_array_equal(known.embeddings, table.embeddings[[row_of[cell] for cell in cells.names]])
    others = dataclasses.replace(cells, names=[f"x{cell}" for cell in cells.names])
    assert not before.rows(others).is_there.any()


def test_what_is_wrong_with_a_table_is_said(make, helsinki, tmp_path):
    ground = helsinki.extract.ground
    path = written(tmp_path, squares())
    made = make(tmp_path / "e.parquet", path)
    assert table_problems(made.path, UserGrid(path, ground)) == []
    more = UserGrid(written(tmp_path, squares(columns=13), "less.parquet"), ground)
    (problem,) = table_problems(made.path, more)
    assert problem == "0 cells of the region have no row, 8 rows are not of the region."
    hexagons = H3Grid(ground, 10)
    assert "144 cells of the region have no row, 112 rows are not of the region." in table_problems(made.path, hexagons)
    frame = pq.read_table(made.path)
    swapped = frame.take([1, 0, *range(2, 112)])
    pq.write_table(swapped, tmp_path / "swapped.parquet")
    assert table_problems(tmp_path / "swapped.parquet", UserGrid(path, ground)) == [
        "Cells are not in ascending order, or some occur twice."
    ]


def test_a_region_from_h3_to_its_own_grid_and_back(helsinki, versions, own, tmp_path):
    region = helsinki.region
    extract, _ = load_extract(own.extract_folder("helsinki"))
    of_h3 = grid_of(region, extract.ground)
    of_user = grid_of(region.model_copy(update={"cells": str(written(tmp_path, squares()))}), extract.ground)
    path = own.embeddings_file("helsinki")
    assert of_h3.source == {"cell_resolution": 10}
    assert of_user.source["cells"] == "grid.parquet"
    assert not of_h3.source.items() <= read_metadata(path).items()
    made = embedded_in(own, versions[0], of_h3)
    assert table_problems(path, of_h3) == []
    assert of_h3.source.items() <= read_metadata(path).items()
    scratch = tmp_path / "scratch" / "e.parquet"
    from_scratch = embed_region(
        scratch, helsinki_cache(own), of_h3, versions[0], lambda version: Encoder(version, colours)
    )
    assert made.digest == from_scratch.digest
    embedded_in(own, versions[0], of_user)
    assert table_problems(path, of_user) == []


def test_a_check_of_the_region_names_a_wrong_grid(helsinki, tmp_path):
    def problems(path):
        return problems_of(helsinki.region.model_copy(update={"cells": str(path)}))

    assert problems(written(tmp_path, squares())) == []
    (missing,) = problems(tmp_path / "none.parquet")
    assert missing == f"`cells`: there is no file {tmp_path}/none.parquet. Correct it in regions.toml."
    (wrong,) = problems(written(tmp_path, squares().drop(columns="id"), "wrong.parquet"))
    assert wrong.startswith(f"`cells`: {tmp_path}/wrong.parquet has no column `id`")
