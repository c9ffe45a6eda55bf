"""Files of labels: what each column becomes, and what is refused with which words."""

import geopandas
import h3
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from geobacter_core.cells import UserGrid
from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation.labels import Places, read_labels

N = 60
CELLS = sorted(h3.grid_disk(h3.latlng_to_cell(41.15, -8.61, 9), 5))[:N]
CENTRES = np.array([h3.cell_to_latlng(cell) for cell in CELLS])
EVEN = np.arange(N, dtype=float)
"""Numbers without skew."""


def frame(**columns):
    return pd.DataFrame({"cell": CELLS} | columns)


def written(tmp_path, table, name="labels.csv"):
    path = tmp_path / name
    if name.endswith(".csv"):
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path, index=False)
    return path


def only_label(path):
    (label,) = read_labels(path).labels
    return label


def message_of(path):
    with pytest.raises(EvaluationError) as caught:
        read_labels(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_a_cells_label_belongs_to_its_centre(tmp_path, name):
    table = read_labels(written(tmp_path, frame(height=EVEN), name))
    assert table.cells == CELLS
    np.testing.assert_array_equal(table.places.lat, CENTRES[:, 0])
    np.testing.assert_array_equal(table.places.lon, CENTRES[:, 1])
    assert [(label.name, label.kind) for label in table.labels] == [("height", "number")]
    np.testing.assert_array_equal(table.labels[0].values, EVEN)


def test_csv_and_parquet_say_the_same(tmp_path):
    columns = frame(height=EVEN, use=["park", "road", None] * 20, school=[True, False] * 30, jobs=EVEN**4)
    tables = [read_labels(written(tmp_path, columns, name)) for name in ("a.csv", "a.parquet")]
    for csv, parquet in zip(tables[0].labels, tables[1].labels, strict=True):
        assert (csv.name, csv.kind, csv.classes) == (parquet.name, parquet.kind, parquet.classes)
        np.testing.assert_array_equal(csv.values, parquet.values)
    assert [label.kind for label in tables[0].labels] == ["number", "class", "presence", "number"]


def test_points_are_taken_as_they_are_and_have_no_cells(tmp_path):
    points = pd.DataFrame({"LON": CENTRES[:, 1], "Lat": CENTRES[:, 0], "height": EVEN})
    table = read_labels(written(tmp_path, points))
    assert table.cells is None
    np.testing.assert_allclose(table.places.lon, CENTRES[:, 1])
    np.testing.assert_allclose(table.places.lat, CENTRES[:, 0])
    assert [label.name for label in table.labels] == ["height"]


def test_the_cell_decides_where_a_file_gives_points_too(tmp_path):
    table = read_labels(written(tmp_path, frame(lon=0.0, lat=0.0, height=EVEN)))
    np.testing.assert_array_equal(table.places.lon, CENTRES[:, 1])
    assert [label.name for label in table.labels] == ["height"]


def test_upper_case_cells_and_a_column_called_id_are_cells(tmp_path):
    table = read_labels(written(tmp_path, pd.DataFrame({"ID": [cell.upper() for cell in CELLS], "height": EVEN})))
    assert table.cells == CELLS


def test_cells_kept_as_integers_are_cells(tmp_path):
    integers = np.array([h3.str_to_int(cell) for cell in CELLS], dtype=np.uint64)
    table = read_labels(written(tmp_path, pd.DataFrame({"cell": integers, "height": EVEN}), "a.parquet"))
    assert table.cells == CELLS


def test_an_id_that_is_no_cell_is_passed_over_where_there_are_points(tmp_path):
    points = pd.DataFrame({"id": np.arange(N), "lon": CENTRES[:, 1], "lat": CENTRES[:, 0], "height": EVEN})
    table = read_labels(written(tmp_path, points))
    assert table.cells is None
    assert [label.name for label in table.labels] == ["height"]


def test_cells_of_several_resolutions_may_be_mixed(tmp_path):
    cells = [h3.cell_to_center_child(CELLS[0], 12), *CELLS[1:]]
    assert read_labels(written(tmp_path, pd.DataFrame({"cell": cells, "height": EVEN}))).cells == cells


def test_texts_are_classes_in_alphabetical_order_and_an_empty_field_is_unknown(tmp_path):
    label = only_label(written(tmp_path, frame(use=["park", " forest ", "", "water"] * 15)))
    assert (label.kind, label.classes) == ("class", ("forest", "park", "water"))
    np.testing.assert_array_equal(label.values[:4], [1, 0, np.nan, 2])
    assert label.is_known.sum() == 45


def test_categorical_numbers_are_classes(tmp_path):
    label = only_label(written(tmp_path, frame(zone=pd.Categorical([7, 8, 9] * 20)), "a.parquet"))
    assert (label.kind, label.classes) == ("class", ("7", "8", "9"))
    np.testing.assert_array_equal(label.values[:3], [0, 1, 2])


@pytest.mark.parametrize("values", [[True, False, None], [1, 0, None], [1.0, 0.0, np.nan]])
def test_booleans_and_numbers_that_are_only_0_and_1_are_a_presence(tmp_path, values):
    label = only_label(written(tmp_path, frame(school=values * 20), "a.parquet"))
    assert (label.kind, label.classes) == ("presence", ())
    np.testing.assert_array_equal(label.values[:3], [1, 0, np.nan])


def test_skewed_counts_are_taken_as_log1p_and_their_name_says_so(tmp_path):
    jobs = np.array([0, 1, 2, 1000] * 15, dtype=float)
    label = only_label(written(tmp_path, frame(jobs=jobs)))
    assert label.name == "log1p(jobs)"
    np.testing.assert_allclose(label.values[:4], [0, np.log(2), np.log(3), np.log(1001)])


def test_skewed_numbers_that_may_be_negative_and_even_ones_stay_as_they_are(tmp_path):
    change = np.array([-1, 1, 2, 1000] * 15, dtype=float)
    labels = read_labels(written(tmp_path, frame(change=change, height=EVEN))).labels
    assert [label.name for label in labels] == ["change", "height"]
    np.testing.assert_array_equal(labels[0].values, change)


def test_whole_numbers_followed_by_fractions_a_megabyte_later_are_read(tmp_path):
    path = tmp_path / "long.csv"
    rows = [f"{lon / 1e3},{lat / 1e3},{lon}" for lon in range(400) for lat in range(250)]
    path.write_text("\n".join(["lon,lat,height", *rows, "8.5,47.5,0.5"]), encoding="utf-8")
    assert path.stat().st_size > 1 << 20
    assert only_label(path).values[-1] == 0.5


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "excel.csv"
    frame(height=EVEN).to_csv(path, index=False, encoding="utf-8-sig")
    assert read_labels(path).cells == CELLS


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ([1.0] * 5 + [2.0] * 14 + [None] * 41, "known at 19 places only; 20 are needed"),
        ([3.5] * N, "the same value everywhere"),
        (["park"] * N, "the same value everywhere"),
        ([None] * N, "it is empty"),
        ([f"name {row}" for row in range(N)], "60 different texts, such as 'name 0'; at most 50"),
        ([1.5, np.inf, *range(N - 2)], "row 2 holds inf"),
        (["7", "n/a"] + ["8"] * (N - 2), "row 2 holds 'n/a'"),
        (pd.to_datetime(["2020-01-01", "2021-01-01"] * 30), "neither a number nor a text"),
        ([b"\x00\x01"] * N, "neither a number nor a text"),
    ],
)
def test_a_column_that_cannot_be_a_label_is_left_out_with_the_reason(tmp_path, column, reason):
    table = read_labels(written(tmp_path, frame(odd=column, height=EVEN), "a.parquet"))
    assert [label.name for label in table.labels] == ["height"]
    assert list(table.left_out) == ["odd"]
    assert reason in table.left_out["odd"]


def test_twenty_known_values_and_fifty_classes_are_enough_and_not_too_many(tmp_path):
    classes = [f"use {row}" for row in range(50)] + ["use 0"] * 10
    few = [*range(20), *[None] * 40]
    table = read_labels(written(tmp_path, frame(use=classes, height=few)))
    assert [(label.name, len(label.classes)) for label in table.labels] == [("use", 50), ("height", 0)]
    assert table.left_out == {}


def test_row_numbers_that_pandas_writes_are_no_label(tmp_path):
    path = tmp_path / "indexed.csv"
    frame(height=EVEN).to_csv(path)
    table = read_labels(path)
    assert [label.name for label in table.labels] == ["height"]
    assert "no name" in table.left_out["column 1"]


def test_a_file_whose_every_column_is_left_out_is_refused_with_all_reasons(tmp_path):
    message = message_of(written(tmp_path, frame(a=1.0, b=None)))
    assert "`a`: it has the same value everywhere" in message
    assert "`b`: it is empty" in message


def test_a_file_without_labels_is_refused(tmp_path):
    assert "no column can be a label" in message_of(written(tmp_path, frame()))


def test_a_file_without_places_is_refused_and_its_columns_are_named(tmp_path):
    message = message_of(written(tmp_path, pd.DataFrame({"x": EVEN, "height": EVEN})))
    assert "`x`, `height`" in message
    assert "`cell` (H3 indexes), or `lon` and `lat`" in message


def test_semicolons_are_refused_and_the_columns_show_why(tmp_path):
    path = tmp_path / "semicolons.csv"
    frame(height=EVEN).to_csv(path, index=False, sep=";")
    assert "its columns are `cell;height`" in message_of(path)


@pytest.mark.parametrize("wrong", ["89a9012zzzzzzzz", "", "89a901291abfff"])
def test_a_wrong_cell_is_refused_with_its_row(tmp_path, wrong):
    message = message_of(written(tmp_path, pd.DataFrame({"cell": [*CELLS[:6], wrong, *CELLS[7:]], "height": EVEN})))
    assert "column `cell`, row 7" in message


def test_a_cell_that_is_there_twice_is_refused_with_both_rows(tmp_path):
    message = message_of(written(tmp_path, pd.DataFrame({"cell": [*CELLS[:-1], CELLS[2].upper()], "height": EVEN})))
    assert f"cell {CELLS[2]} is in row 3 and in row 60" in message


@pytest.mark.parametrize(
    ("lon", "lat", "words"),
    [
        (181.0, 41.0, "row 4: lon=181 lat=41"),
        (-957_000.0, 5_030_000.0, "metres of a projection"),
        (41.0, 121.0, "look swapped"),
        (np.nan, 41.0, "column `lon`, row 4: the coordinate is"),
        (-8.6, np.inf, "column `lat`, row 4: the coordinate is inf"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_coordinate_off_the_map_is_refused_with_its_row(tmp_path, lon, lat, words, name):
    points = pd.DataFrame({"lon": CENTRES[:, 1], "lat": CENTRES[:, 0], "height": EVEN})
    points.loc[3, ["lon", "lat"]] = lon, lat
    assert words in message_of(written(tmp_path, points, name))


def test_coordinates_with_decimal_commas_are_refused(tmp_path):
    points = pd.DataFrame({"lon": ["-8,61"] * N, "lat": CENTRES[:, 0], "height": EVEN})
    message = message_of(written(tmp_path, points))
    assert "column `lon`: it holds '-8,61'" in message
    assert "decimal point" in message


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("cell,height,height\n", encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{cell},1,2\n" for cell in CELLS)
    assert "column `height` is there more than once" in message_of(path)


def test_a_missing_file_a_folder_and_another_format_are_refused(tmp_path):
    assert "does not exist" in message_of(tmp_path / "nowhere.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "cannot be read: Is a directory" in message_of(tmp_path / "folder.csv")
    (tmp_path / "labels.xlsx").write_bytes(b"PK\x03\x04")
    assert "neither CSV nor Parquet" in message_of(tmp_path / "labels.xlsx")


def test_broken_encoding_is_refused_with_its_line(tmp_path):
    path = tmp_path / "latin1.csv"
    path.write_bytes("cell,use\n89a901291abffff,park\n89a9012a3cfffff,praça\n".encode("latin-1"))
    message = message_of(path)
    assert "line 3: byte 0xe7 is not UTF-8" in message


def test_broken_encoding_within_parquet_is_refused(tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), N, [None, pa.py_buffer(np.arange(N + 1, dtype=np.int32)), pa.py_buffer(b"\xe7" * N)]
    )
    pq.write_table(pa.table({"cell": CELLS, "use": broken}), tmp_path / "a.parquet")
    assert "cannot be read" in message_of(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read: Empty CSV file"),
        (b"cell,height\n", "has no rows"),
        (b"cell,height\n89a901291abffff\n", "Expected 2 columns, got 1"),
        (b"PAR1 and then nothing", "cannot be read"),
    ],
)
def test_an_empty_a_ragged_and_a_cut_file_are_refused(tmp_path, content, words):
    path = tmp_path / "odd.csv"
    path.write_bytes(content)
    assert words in message_of(path)


def test_places_of_unequal_lengths_or_without_a_number_are_refused():
    with pytest.raises(EvaluationError, match="one length"):
        Places(np.zeros(3), np.zeros(2))
    with pytest.raises(EvaluationError, match="not a finite number"):
        Places(np.array([0.0, np.nan]), np.zeros(2))


def test_straight_lines_between_near_places_are_their_geodesics():
    import pyproj

    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, 500), rng.uniform(-85, 85, 500)
    azimuth, length_m = rng.uniform(0, 360, 500), rng.uniform(10, 10_000, 500)
    lon_b, lat_b, _ = pyproj.Geod(ellps="WGS84").fwd(lon, lat, azimuth, length_m)
    apart_m = np.linalg.norm(Places(lon, lat).xyz_m - Places(lon_b, lat_b).xyz_m, axis=1)
    np.testing.assert_allclose(apart_m, length_m, rtol=0, atol=0.002)


def test_the_sample_of_porto_alegre_is_read_as_published(shared_osm):
    path = shared_osm / "porto-alegre" / "hexgrid.csv"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    table = read_labels(path)
    assert len(table) == 1227
    assert [label.name for label in table.labels] == [
        "log1p(population)", "log1p(schools)", "log1p(jobs)", "log1p(healthcare)",
    ]  # fmt: skip
    assert [int(label.is_known.sum()) for label in table.labels] == [1227, 1227, 1222, 1222]
    assert table.left_out == {}


@pytest.fixture
def grid(tmp_path):
    """120 points a thousandth of a degree apart, of which the first 100 are in the region."""
    points = shapely.points(np.arange(120) / 1000, 10.0)
    frame = geopandas.GeoDataFrame({"id": range(120)}, geometry=points, crs="EPSG:4326")
    frame.to_parquet(tmp_path / "grid.parquet")
    return UserGrid(tmp_path / "grid.parquet", shapely.box(-0.0005, 9, 0.0995, 11))


@pytest.mark.parametrize("name", ["cell", "id", "ID"])
def test_rows_may_be_named_by_the_ids_of_the_regions_own_grid(name, grid, tmp_path):
    labels = pd.DataFrame({name: np.arange(40, 140), "height": np.arange(100.0)}).sample(frac=1, random_state=1)
    table = read_labels(written(tmp_path, labels), grid)
    assert (len(table), table.cells) == (60, None)
    (label,) = table.labels
    np.testing.assert_allclose(np.round(table.places.lon * 1000), label.values + 40)
    np.testing.assert_array_equal(table.places.lat, 10.0)


def test_in_a_region_with_its_own_grid_h3_cells_and_points_still_say_where_rows_are(grid, tmp_path):
    assert read_labels(written(tmp_path, frame(height=EVEN)), grid).cells == CELLS
    points = pd.DataFrame({"id": [f"shop {n}" for n in range(N)], "lon": CENTRES[:, 1], "lat": CENTRES[:, 0]})
    table = read_labels(written(tmp_path, points.assign(height=EVEN)), grid)
    np.testing.assert_allclose(table.places.lon, CENTRES[:, 1])


def test_ids_of_another_grid_and_ids_that_are_there_twice_are_refused(grid, tmp_path):
    strange = pd.DataFrame({"cell": [f"other {n}" for n in range(N)], "height": EVEN})
    with pytest.raises(
        EvaluationError, match=r"column `cell`: none of its \d+ values is the id .* Give ids of that grid"
    ):
        read_labels(written(tmp_path, strange), grid)
    twice = pd.DataFrame({"id": [*range(50), *range(50)], "height": np.arange(100.0)})
    with pytest.raises(EvaluationError, match=r"column `id`: 0 is there more than once. Give each cell one row."):
        read_labels(written(tmp_path, twice), grid)
