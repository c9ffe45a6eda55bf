"""The registered model for those who have only MLflow: windows by its graph, places by `mlflow.pyfunc`, and served."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
import yaml
from mlflow.exceptions import MlflowException

import geobacter_core
from geobacter_core.embeddings.places import Places, find_ground, style_of
from geobacter_core.embeddings.sources import Sources, find_grounds
from geobacter_core.embeddings.table import read_table
from geobacter_core.encoder.exported import load_encoder
from geobacter_core.encoder.registry import Registry
from geobacter_core.errors import FeaturesError, PlaceError, TileCacheError, TileServerError
from geobacter_core.tiles.style import load_style

REPOSITORY = Path(geobacter_core.__file__).parents[1]
CHAMPION = "models:/geobacter@champion"
HERE = pd.DataFrame({"lon": [24.9414, 24.95], "lat": [60.1719, 60.17]})


@pytest.fixture(autouse=True)
def _tracking(installation, monkeypatch):
    for name in ("TILES", "FEATURES", "TILE_SERVER", "DATA"):
        monkeypatch.delenv(f"GEOBACTER_{name}", raising=False)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(installation.tracking_uri)
    yield
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def table(installation):
    return read_table(installation.embeddings_file("helsinki"))


@pytest.fixture(scope="module")
def folder(installation, tmp_path_factory):
    """The champion's files, as somebody has copied them."""
    registry = Registry(installation)
    registry.make_current()
    path = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(mlflow.artifacts.download_artifacts(CHAMPION), path)
    return path


@pytest.fixture(scope="module")
def tiles(installation):
    return str(installation.data / "tiles")


def vectors(frame):
    assert list(frame.columns) == ["embedding"]
    assert all(type(number) is float for number in frame["embedding"].iloc[0])
    return np.array(frame["embedding"].tolist(), np.float32)


def test_places_have_the_tables_embeddings(table, tiles):
    model = mlflow.pyfunc.load_model(CHAMPION, model_config={"tiles": tiles})
    order = np.random.default_rng(0).permutation(len(table))
    places = pd.DataFrame({"lon": table.lon[order], "name": table.cells[order], "lat": table.lat[order]}, index=order)
    answer = model.predict(places)
    np.testing.assert_array_equal(vectors(answer), table.embeddings[order])
    assert answer.index.tolist() == order.tolist()
    assert model.predict(places.head(0)).shape == (0, 1)


def test_a_place_has_the_embedding_that_places_gives_it(installation, registration, tiles):
    version = registration.version
    ground = find_ground(installation, "helsinki", style_of(version))
    places = Places(Registry(installation).load(version), [ground])
    expected = places.embed(HERE["lon"].to_numpy(), HERE["lat"].to_numpy())
    answer = mlflow.pyfunc.load_model(CHAMPION, model_config={"tiles": tiles}).predict(HERE)
    np.testing.assert_array_equal(vectors(answer), expected)


def test_both_flavours_are_one_model_without_pickle(folder, registration):
    document = yaml.safe_load((folder / "MLmodel").read_text())
    assert document["flavors"].keys() == {"pytorch", "python_function"}
    assert document["flavors"]["python_function"]["loader_module"] == "mlflow.pyfunc.loaders.code_model"
    assert "python_model" not in document["flavors"]["python_function"]
    assert not list(folder.rglob("*.pkl"))
    info = mlflow.models.get_model_info(str(folder))
    assert [(column.name, column.type.name) for column in info.signature.inputs] == [
        ("lon", "double"),
        ("lat", "double"),
    ]
    assert info.metadata["window_shape"] == [3, 32, 32]
    encoder = load_encoder(folder)
    assert encoder.version == registration.version


@pytest.mark.parametrize("given", ["config", "environment", "one cache", "features", "installation"])
def test_tiles_are_found_by_config_environment_and_installation(given, folder, installation, table, monkeypatch):
    config = {}
    match given:
        case "config":
            monkeypatch.setenv("GEOBACTER_TILES", "/nowhere")  # the config goes before it
            config = {"tiles": str(installation.data / "tiles")}
        case "environment":
            monkeypatch.setenv("GEOBACTER_TILES", str(installation.data / "tiles"))
        case "one cache":
            config = {"tiles": str(installation.tiles_folder("helsinki", "carto"))}
        case "features":
            config = {"features": str(installation.data / "features")}
        case "installation":
            monkeypatch.setenv("GEOBACTER_DATA", str(installation.data))
    model = mlflow.pyfunc.load_model(str(folder), model_config=config)
    places = pd.DataFrame({"lon": table.lon[60:64], "lat": table.lat[60:64]})
    np.testing.assert_array_equal(vectors(model.predict(places)), table.embeddings[60:64])


def test_loading_needs_no_pickle_and_nothing_that_only_training_needs(folder, tiles):
    program = f"""
import sys
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model({str(folder)!r}, model_config={{"tiles": {tiles!r}}})
assert len(model.predict(pd.DataFrame({{"lon": [24.9414], "lat": [60.1719]}}))["embedding"][0]) == 32
training = {{"pytorch_metric_learning", "sklearn", "dagster", "pyrosm", "matplotlib", "geobacter_core.encoder.train"}}
print(sorted(training & set(sys.modules)))
"""
    done = run(program, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[]"


def test_who_lacks_geobacter_is_told(folder, tmp_path):
    (tmp_path / "geobacter_core.py").write_text("raise ModuleNotFoundError('no geobacter_core')")
    program = f"import mlflow; mlflow.pyfunc.load_model({str(folder)!r})"
    done = run(program, PYTHONPATH=str(tmp_path))
    assert "needs the Python package geobacter" in done.stderr
    assert "mlflow.pytorch.load_model" in done.stderr


def run(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# What can be wrong


def test_no_tiles_at_all(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TileCacheError, match=rf"style 'carto/1', and there are none in {tmp_path}/data. Set `tiles`"):
        mlflow.pyfunc.load_model(str(folder))


def test_tiles_of_another_style(tiles):
    with pytest.raises(
        TileCacheError, match=r"are of style carto/1, and encoder geobacter/7 takes windows of style det"
    ):
        find_grounds(Sources(tiles=Path(tiles)), load_style("detailed"), "geobacter/7")


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(TileCacheError, match=r"holds no tile cache.*Set `tiles` to a folder as"):
        find_grounds(Sources(tiles=tmp_path), load_style("carto"), "geobacter/7")
    with pytest.raises(FeaturesError, match=r"holds no map features.*Set `features` to a folder as"):
        find_grounds(Sources(features=tmp_path), load_style("carto"), "geobacter/7")


def test_a_tile_server_is_for_styles_that_one_draws(installation):
    address = "http://localhost:8080/tile/{z}/{x}/{y}.png"
    (ground,) = find_grounds(Sources(tile_server=address), load_style("osm-carto"), "geobacter/7")
    assert ground.chunks.n_channels == 3
    with pytest.raises(TileServerError, match=r"which no tile server draws. Set `tiles` or `features`"):
        find_grounds(Sources(tile_server=address), load_style("carto"), "geobacter/7")
    with pytest.raises(TileServerError, match=r"`tile_server` cannot be used: .* must have \{y\} in it once"):
        find_grounds(Sources(tile_server="http://localhost/{z}/{x}.png"), load_style("osm-carto"), "geobacter/7")
    with pytest.raises(FeaturesError, match=r"which a tile server draws.*Set `tile_server` or `tiles`"):
        find_grounds(Sources(features=installation.data / "features"), load_style("osm-carto"), "geobacter/7")


@pytest.fixture(scope="module")
def model(folder, tiles):
    return mlflow.pyfunc.load_model(str(folder), model_config={"tiles": tiles})


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ({"lon": [24.9414]}, r"missing inputs \['lat'\]"),
        ({"lon": ["east"], "lat": [60.17]}, "Incompatible input types for column lon"),
        ({"lon": [24.9414, np.nan], "lat": [60.17, 60.17]}, r"Place 1, lon=nan lat=60.17: .*missing\?"),
        ({"lon": [60.1719], "lat": [24.9414]}, r"Are they swapped\? The other way round it is in helsinki"),
        ({"lon": [24.9], "lat": [99.0]}, r"Place 0, lon=24.9 lat=99.0: .*swapped"),
        ({"lon": [2.35], "lat": [48.85]}, r"No region covers the place at .*Ask for a place in one of: helsinki"),
    ],
    ids=["missing", "text", "nan", "swapped", "off the map", "outside"],
)
def test_places_that_are_none(places, says, model):
    with pytest.raises(MlflowException, match=says):
        model.predict(pd.DataFrame(places))


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ({"lon": [24.9414], "latitude": [60.17]}, r"no column 'lat' \(there are: lon, latitude\). Give lon and lat"),
        ({"lon": ["24,9"], "lat": [60.17]}, "Column 'lon' of the places has values that are not numbers"),
    ],
)
def test_places_that_mlflow_has_not_looked_at(places, says, model):
    with pytest.raises(MlflowException, match=says) as caught:
        model.unwrap_python_model().predict(pd.DataFrame(places))
    assert isinstance(caught.value.__cause__, PlaceError)
    assert caught.value.get_http_status_code() == 400


# Served


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(folder, tiles, tmp_path_factory):
    """`mlflow models serve` on loopback: takes about 15 s to start."""
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "GEOBACTER_TILES": tiles}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "-m", str(folder), "-p", str(port)],
            env={**environment, "PATH": path, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
            cwd="/",
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                if requests.get(f"{address}/ping", timeout=2).ok:
                    break
            except requests.ConnectionError:
                assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.25)
        else:
            pytest.fail(log.read_text()[-3000:])
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # MLflow's command, and the server that it started
        process.wait(20)


def test_mlflow_serves_the_model(server, table):
    places = {"columns": ["lon", "lat"], "data": [[table.lon[row], table.lat[row]] for row in (3, 70)]}
    answer = requests.post(f"{server}/invocations", json={"dataframe_split": places}, timeout=30)
    assert answer.status_code == 200, answer.text
    found = np.array([each["embedding"] for each in answer.json()["predictions"]], np.float32)
    np.testing.assert_array_equal(found, table.embeddings[[3, 70]])
    elsewhere = json.dumps({"dataframe_split": {"columns": ["lon", "lat"], "data": [[2.35, 48.85]]}})
    answer = requests.post(
        f"{server}/invocations", data=elsewhere, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert answer.status_code == 400
    assert "place in one of: helsinki" in answer.json()["message"]
