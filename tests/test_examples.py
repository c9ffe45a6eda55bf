"""The examples run as their README lines say, on the fixture's region."""

import json
import re
import runpy
import sys
from pathlib import Path

import geopandas
import PIL.Image
import pytest

import geobacter_core

EXAMPLES = Path(geobacter_core.__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run


def test_a_route_is_a_page_that_needs_nothing_else(example, api, api_token, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GEOBACTER_TOKEN", api_token)
    example("route.py", "--url", api, "--output", tmp_path / "route.html")
    assert "points by geobacter/1" in capsys.readouterr().out
    page = (tmp_path / "route.html").read_text()
    assert api not in page
    assert api_token not in page
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page)
    assert "L.circleMarker" in page
    points = json.loads(re.search(r"points = (\[.*?\]);", page)[1])
    assert len(points) > 20
    assert len({point["colour"] for point in points}) > 10
    tiles = json.loads(re.search(r"tiles = (\{.*?\}), points", page)[1])
    assert {name.split("/")[0] for name in tiles} == {"15", "16"}


def test_a_route_outside_is_told(example, api, api_token, tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBACTER_TOKEN", api_token)
    (tmp_path / "paris.geojson").write_text('{"type": "LineString", "coordinates": [[2.35, 48.85], [2.36, 48.85]]}')
    with pytest.raises(SystemExit, match="No region covers the place"):
        example("route.py", "--url", api, "--route", tmp_path / "paris.geojson", "--output", tmp_path / "route.html")


@pytest.mark.parametrize("name", ["region.geojson", "region.parquet"])
def test_a_region_is_coloured_cells_and_a_picture(name, example, installation, tmp_path):
    example("region.py", installation.embeddings_file("helsinki"), "--output", tmp_path / name)
    path = tmp_path / name
    cells = geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)
    assert len(cells) == 144
    assert cells.crs == "EPSG:4326"
    assert cells["colour"].str.fullmatch("#[0-9a-f]{6}").all()
    with PIL.Image.open(tmp_path / "region.png") as picture:
        assert picture.width == 1600
        assert len(picture.getcolors(1 << 20)) > 100
