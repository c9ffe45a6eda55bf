"""Questions to a table as a GeoDataFrame: the answers are the API's, and mistakes are named."""

import geopandas
import numpy as np
import pytest
from starlette.testclient import TestClient

from geobacter_core.api.app import create_app
from geobacter_core.embeddings.mapped import map_table
from geobacter_core.embeddings.query import arithmetic, similar_places, walk
from geobacter_core.embeddings.search import Near, nearest
from geobacter_core.errors import EmbeddingsError, OutsideError, QueryError
from geobacter_core.geo import Place


@pytest.fixture(scope="module")
def frame(installation):
    return geopandas.read_parquet(installation.embeddings_file("helsinki"))


@pytest.fixture(scope="module")
def table(installation, tmp_path_factory):
    return map_table(installation.embeddings_file("helsinki"), tmp_path_factory.mktemp("mapped"))


@pytest.fixture(scope="module")
def client(installation):
    with TestClient(create_app(installation), base_url="http://localhost") as client:
        yield client


def place(frame, row):
    return Place(float(frame["lon"].iloc[row]), float(frame["lat"].iloc[row]))


@pytest.mark.parametrize("min_distance_m", [0, 250])
def test_similar_places_are_those_of_a_search_and_of_the_api(frame, table, client, min_distance_m):
    at = place(frame, 70)
    found = similar_places(frame, at, k=5, min_distance_m=min_distance_m)
    hits = nearest([table], table.embeddings[70], 5, Near((at,), min_distance_m), min_distance_m)
    assert isinstance(found, geopandas.GeoDataFrame)
    assert found.crs == "EPSG:4326"
    assert found["cell"].tolist() == [hit.cell for hit in hits]
    assert found["similarity"].tolist() == [hit.similarity for hit in hits]
    asked = {"lon": at.lon, "lat": at.lat, "k": 5, "min_distance_m": min_distance_m}
    results = client.get("/similar", params=asked).json()["results"]
    assert found["cell"].tolist() == [each["cell"] for each in results]
    np.testing.assert_allclose(found["ground_m"], [each["ground_m"] for each in results], atol=0.06)
    assert found["ground_m"].min() >= min_distance_m


def test_a_place_a_cell_and_an_embedding_ask_the_same(frame):
    cell, vector = frame["cell"].iloc[9], frame["embedding"].iloc[9]
    by_place, by_cell, by_vector = (similar_places(frame, like, k=4) for like in (place(frame, 9), cell, 3 * vector))
    assert by_place["cell"].tolist() == by_cell["cell"].tolist() == by_vector["cell"].tolist()
    assert by_cell["cell"].iloc[0] == cell
    assert by_vector["ground_m"].isna().all()
    assert by_place["ground_m"].iloc[0] == by_cell["ground_m"].iloc[0] == 0


def test_a_walk_is_that_of_the_api(frame, client):
    walked = walk(frame, place(frame, 2), place(frame, 140), steps=5)
    assert walked["t"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert walked["cell"].is_unique
    ends = {"from": f"{frame.lon.iloc[2]},{frame.lat.iloc[2]}", "to": f"{frame.lon.iloc[140]},{frame.lat.iloc[140]}"}
    steps = client.get("/interpolate", params={**ends, "steps": 5}).json()["steps"]
    assert walked["cell"].tolist() == [step["cell"] for step in steps]
    np.testing.assert_allclose(walked["similarity"], [step["similarity"] for step in steps], atol=1e-6)
    assert len(walk(frame, frame["cell"].iloc[3], frame["cell"].iloc[3], steps=3)) == 3


def test_sums_and_differences_are_those_of_the_api(frame, client):
    found = arithmetic(frame, [place(frame, 2), place(frame, 70)], [place(frame, 140)], k=3)
    pairs = [f"{frame.lon.iloc[row]},{frame.lat.iloc[row]}" for row in (2, 70, 140)]
    results = client.get("/arithmetic", params={"plus": pairs[:2], "minus": pairs[2], "k": 3}).json()["results"]
    assert found["cell"].tolist() == [each["cell"] for each in results]
    np.testing.assert_allclose(found["similarity"], [each["similarity"] for each in results], atol=1e-6)


def test_mistakes_are_named(frame):
    with pytest.raises(OutsideError, match=r"lies in none of the frame's 144 cells. Give one within.*longitude first"):
        similar_places(frame, Place(2.35, 48.85))
    with pytest.raises(EmbeddingsError, match=r"The frame has no cell 'abc'. Give one of its column 'cell'"):
        similar_places(frame, "abc")
    with pytest.raises(QueryError, match=r"The embedding has 3 numbers, those of region 'the frame' have 32"):
        similar_places(frame, np.ones(3, np.float32))
    with pytest.raises(EmbeddingsError, match=r"The frame has no column 'embedding'. Read a table of embeddings"):
        similar_places(frame.drop(columns="embedding"), "abc")
    with pytest.raises(EmbeddingsError, match=r"The frame has no rows"):
        similar_places(frame.head(0), "abc")
    mixed = frame.assign(encoder=["geobacter/1"] * 100 + ["geobacter/2"] * 44)
    with pytest.raises(EmbeddingsError, match=r"embeddings of geobacter/1, geobacter/2, which cannot be compared"):
        similar_places(mixed, frame["cell"].iloc[0])
    with pytest.raises(EmbeddingsError, match=r"There is nothing to be similar to"):
        arithmetic(frame, [])


def test_a_place_is_found_in_a_grid_of_ones_own(frame):
    own = frame.assign(cell=[f"plot-{number}" for number in range(len(frame))])
    assert similar_places(own, place(frame, 70), k=1)["cell"].tolist() == ["plot-70"]
    with pytest.raises(OutsideError, match=r"lies in none of the frame's 144 cells"):
        similar_places(own, Place(2.35, 48.85))
