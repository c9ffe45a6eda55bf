"""`geobacter embed` and `geobacter similar`: what they write and print, and how they refuse what is no place."""

import json

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from geobacter_core.cli import app
from geobacter_core.embeddings import points
from geobacter_core.embeddings.query import similar_places
from geobacter_core.embeddings.table import read_table
from geobacter_core.geo import Place


@pytest.fixture(scope="module")
def table(installation):
    return read_table(installation.embeddings_file("helsinki"))


@pytest.fixture
def geobacter(installation, monkeypatch):
    """Run the command on the installation: exit status, stdout, stderr in one line."""
    monkeypatch.setenv("GEOBACTER_DATA", str(installation.data))
    monkeypatch.setenv("GEOBACTER_REGIONS", str(installation.regions_file))
    monkeypatch.setenv("GEOBACTER_STYLE", "carto")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout, " ".join(done.stderr.split())

    return run


@pytest.fixture
def csv(tmp_path):
    def write(text, name="shops.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def vectors(table):
    return table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)


def test_a_csv_gets_the_tables_embeddings_and_keeps_its_columns(geobacter, csv, table, tmp_path, monkeypatch):
    monkeypatch.setattr(points, "_BATCH_ROWS", 50)
    rows = [
        f"{number},{table.lon[number]},shop {number}" + f",{table.lat[number]},0{number},{'' if number else 1}"
        for number in range(len(table))
    ]
    path = csv("id,lon,name,lat,postcode,stars\n" + "\n".join(rows) + "\n")
    status, said, _ = geobacter("embed", path, "-o", tmp_path / "out.parquet")
    assert (status, said) == (0, f"{tmp_path}/out.parquet: 144 places embedded by geobacter/1\n")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column_names == ["id", "lon", "name", "lat", "postcode", "stars", "embedding"]
    assert [str(field.type) for field in found.schema][:6] == ["int64", "double", "string", "double", "string", "int64"]
    assert found["postcode"][7].as_py() == "07"
    assert found["stars"].to_pylist()[:2] == [1, None]
    assert found.schema.field("embedding").type == pa.list_(pa.float32(), 32)
    np.testing.assert_array_equal(vectors(found), table.embeddings)
    assert json.loads(found.schema.metadata[b"geobacter"])["encoder"] == "geobacter/1"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.parquet", "shops.csv"]


def test_geoparquet_stays_geoparquet(geobacter, table, tmp_path):
    frame = geopandas.GeoDataFrame(
        {"lon": table.lon[:3], "lat": table.lat[:3], "kind": ["a", "b", "a"]},
        geometry=geopandas.points_from_xy(table.lon[:3], table.lat[:3]),
        crs="EPSG:4326",
        index=[5, 6, 7],
    )
    frame.to_parquet(tmp_path / "in.parquet")
    status, _, trouble = geobacter("embed", tmp_path / "in.parquet", "--output", tmp_path / "in.parquet")
    assert status == 0, trouble
    found = geopandas.read_parquet(tmp_path / "in.parquet")
    assert found.index.tolist() == [5, 6, 7]
    assert found.geometry.geom_equals(frame.geometry).all()
    np.testing.assert_array_equal(np.stack(found["embedding"]), table.embeddings[:3])


def test_types_that_change_late_and_strange_texts_are_carried(geobacter, csv, table, tmp_path, monkeypatch):
    monkeypatch.setattr(points, "_BATCH_ROWS", 2)
    here = f"{table.lon[0]}\t{table.lat[0]}"
    path = csv(f"lon\tlat\ta\tb\tc\n{here}\t1\t1\t\n{here}\t2\t2\t\n{here}\t2.5\tx\t\n", "shops.tsv")
    assert geobacter("embed", path, "-o", tmp_path / "out.parquet")[0] == 0
    found = pq.read_table(tmp_path / "out.parquet")
    assert found["a"].to_pylist() == [1.0, 2.0, 2.5]
    assert found["b"].to_pylist() == ["1", "2", "x"]
    assert found["c"].to_pylist() == ["", "", ""]


def test_places_outside_are_named_or_left_out(geobacter, csv, table, tmp_path):
    path = csv(f"lon,lat\n{table.lon[0]},{table.lat[0]}\n2.35,48.85\n{table.lon[1]},{table.lat[1]}\n")
    status, _, trouble = geobacter("embed", path, "-o", tmp_path / "out.parquet")
    assert status == 1
    assert trouble.startswith(f"{path}, row 2: No region covers the place at longitude 2.350000")
    assert trouble.endswith("Or leave such rows out: --outside skip.")
    assert not (tmp_path / "out.parquet").exists()
    status, said, _ = geobacter("embed", path, "-o", tmp_path / "out.parquet", "--outside", "skip")
    assert (status, said.split(": ")[1]) == (
        0,
        "2 places embedded by geobacter/1, 1 outside all regions left out\n",
    )
    np.testing.assert_array_equal(vectors(pq.read_table(tmp_path / "out.parquet")), table.embeddings[:2])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lon,latitude\n24.9,60.1\n", "has no columns 'lat'; its columns are: lon, latitude. Name two of them"),
        ("lon;lat\n24,9;60,1\n", "has no columns 'lon'; its columns are: lon;lat. Name two of them lon and lat"),
        ("lon,lat\n24.94,60.17\n,60.17\n", "row 2: lon is empty. Give degrees with a decimal point, or remove"),
        ("lon,lat\n24.94,sixty\n", "row 1: lat is 'sixty', which is no number. Give degrees"),
        ("lon,lat\n24.94,NaN\n", "row 1: lat is 'nan', which is no number"),
        ("lon,lat\n24.94,160.2\n", "row 1: lat is 160.2, and must be within ±85.0511 degrees. Are lon and lat swapped"),
        ("lon,lat\n60.1719,24.9414\n", "row 1: No region covers the place at longitude 60.171900.*in helsinki"),
        ("lon,lat\n24.94,60.17,3\n", "has a row of 3 columns under a header of 2: 24.94,60.17,3 Correct the row"),
        ("lon,lat,embedding\n24.94,60.17,3\n", "has a column 'embedding' already. Rename or remove it"),
        ("", "cannot be read: Empty CSV file. Correct the file"),
    ],
    ids=["column", "semicolons", "empty", "word", "nan", "off the map", "swapped", "ragged", "embedding", "nothing"],
)
def test_what_is_no_place_is_refused_with_its_row(text, says, geobacter, csv, tmp_path):
    path = csv(text)
    status, _, trouble = geobacter("embed", path, "-o", tmp_path / "out.parquet")
    assert status == 1
    assert str(path) in trouble
    wanted = says.split(".*")
    assert all(part in trouble for part in wanted), trouble
    assert [file.name for file in tmp_path.iterdir()] == ["shops.csv"]


def test_files_that_are_none(geobacter, tmp_path):
    assert "does not exist. Give a file" in geobacter("embed", tmp_path / "no.csv", "-o", tmp_path / "out.parquet")[2]
    assert "neither CSV nor Parquet" in geobacter("embed", tmp_path / "no.xls", "-o", tmp_path / "out.parquet")[2]
    assert "does not end in .parquet" in geobacter("embed", tmp_path / "no.csv", "-o", tmp_path / "out.csv")[2]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really PAR1")
    assert "cannot be read" in geobacter("embed", tmp_path / "bad.parquet", "-o", tmp_path / "out.parquet")[2]


def test_similar_cells_are_listed(geobacter, installation, table):
    status, said, trouble = geobacter("similar", table.lon[70], table.lat[70], "-k", 4, "--min-distance", 200)
    assert status == 0, trouble
    lines = [line.split() for line in said.splitlines()]
    assert lines[0] == ["similarity", "ground", "m", "region", "cell", "lon", "lat"]
    frame = geopandas.read_parquet(installation.embeddings_file("helsinki"))
    expected = similar_places(frame, Place(table.lon[70], table.lat[70]), k=4, min_distance_m=200)
    assert [line[3] for line in lines[1:]] == expected["cell"].tolist()
    assert [float(line[0]) for line in lines[1:]] == pytest.approx(expected["similarity"].tolist(), abs=6e-4)
    assert geobacter("similar", table.lon[70], table.lat[70], "--region", "helsinki")[0] == 0


def test_similar_says_where_it_cannot_search(geobacter):
    assert "No region covers the place" in geobacter("similar", "-8.61", "41.15")[2]
    assert "atlantis" in geobacter("similar", "24.9414", "60.1719", "--region", "atlantis")[2]
    assert "Are longitude and latitude swapped?" in geobacter("similar", "24.9414", "160.1719")[2]
