"""Encoders in MLflow: what a run has, how a model is loaded, who becomes champion, and a server that is away."""

import os
import socketserver
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import mlflow
import numpy as np
import pytest
from conftest import settings_in

from geobacter_core.encoder.data import RegionData
from geobacter_core.encoder.evaluate import Scores
from geobacter_core.encoder.network import weights_digest
from geobacter_core.encoder.registry import CHALLENGER, CHAMPION, EncoderVersion, Registry, _check_answer, _rule
from geobacter_core.errors import EncoderError, RegistryError
from geobacter_core.settings import Settings


@pytest.fixture(scope="module")
def registry(helsinki, registration):
    return Registry(helsinki.settings)


@pytest.fixture(scope="module")
def run(registry, registration):
    return registry.client.get_run(registration.version.run_id)


@pytest.fixture(scope="module")
def encoder(registry, registration):
    return registry.load(registration.version)


def noise(n, side=32):
    return np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


def test_the_run_has_every_parameter(run):
    params = run.data.params
    assert {name: params[name] for name in ("size_px", "embedding_dim", "batch_size", "max_epochs", "seed")} == {
        "size_px": "32",
        "embedding_dim": "16",
        "batch_size": "20",
        "max_epochs": "1",
        "seed": "1",
    }
    assert {name: params[name] for name in ("style", "size_m", "network")} == {
        "style": "carto",
        "size_m": "200.0",
        "network": "resnet18",
    }
    assert run.info.status == "FINISHED"


def test_the_run_has_its_inputs_with_their_data_versions(run, helsinki):
    (logged,) = run.inputs.dataset_inputs
    assert logged.dataset.digest == helsinki.triplets.digest[: len(logged.dataset.digest)]
    assert len(logged.dataset.digest) >= 32
    assert "helsinki" in logged.dataset.name
    assert helsinki.cache.manifest.digest[:12] in logged.dataset.name
    assert helsinki.extract.sha256[:12] in logged.dataset.name


def test_the_run_has_loss_per_step_and_scores_per_epoch(run, registry, registration):
    losses = registry.client.get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in losses] == list(range(1, registration.trained.n_steps + 1))
    metrics = run.data.metrics
    for name in ("triplet_accuracy", "recall_at_1", "recall_at_10"):
        assert metrics[f"test_{name}"] == getattr(registration.trained.scores, name)
        assert metrics[f"random_{name}"] == getattr(registration.trained.random, name)
    assert metrics["step_images_per_s"] > 0
    assert metrics["images_per_s"] > 0


def test_the_run_has_its_tags(run):
    assert run.data.tags["dagster.run_id"] == "run-1"
    assert run.data.tags["dagster.asset_key"] == "location_encoder"
    assert run.data.tags["code_version"]


def test_the_run_has_its_picture(run, registry):
    (picture,) = registry.client.list_artifacts(run.info.run_id, "pictures")
    assert picture.path.endswith(".png")


def test_the_version_knows_its_windows_and_weights(registration, registry):
    version = registration.version
    assert version.name == f"geobacter/{version.version}"
    assert (version.style, version.size_m, version.size_px, version.n_channels, version.embedding_dim) == (
        "carto",
        200.0,
        32,
        3,
        16,
    )
    assert version.digest == weights_digest(registration.trained.network)
    assert registry.version(CHALLENGER) == version
    assert registry.version(str(version.version)) == version
    assert registry.version("no-such-alias") is None
    assert registry.version("999") is None


def test_anyone_loads_the_model_without_pickle_and_gives_it_any_number_of_windows(registration, helsinki):
    """In a process that has nothing of ours but the address."""
    program = f"""
import mlflow, numpy as np, torch
mlflow.set_tracking_uri({helsinki.settings.tracking_uri!r})
model = mlflow.pytorch.load_model("models:/geobacter@challenger")
for n in (1, 2, 7):
    windows = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8))
    embedding = model(windows).detach()
    assert embedding.shape == (n, 16) and embedding.dtype == torch.float32
    assert torch.allclose(embedding.norm(dim=1), torch.ones(n), atol=1e-5)
info = mlflow.models.get_model_info("models:/geobacter@challenger")
assert info.signature.inputs.inputs[0].shape == (-1, 3, 32, 32)
assert info.signature.outputs.inputs[0].shape == (-1, 16)
assert info.metadata["style"] == "carto" and info.metadata["size_m"] == "200", info.metadata
assert info.metadata["size_px"] == "32" and info.metadata["embedding_dim"] == "16"
assert "geobacter_core" not in __import__("sys").modules
"""
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_pickle_lies_among_the_artifacts(helsinki, registration):
    files = [path for path in helsinki.settings.mlflow_artifacts.rglob("*") if path.is_file()]
    assert any(path.suffix == ".pt2" for path in files)
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pth", ".pt")]


def test_embeddings_have_length_1_and_do_not_depend_on_company(encoder):
    windows = noise(130)
    together = encoder.encode(windows)
    assert together.shape == (130, 16)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    for index in (0, 64, 129):
        np.testing.assert_array_equal(encoder.encode(windows[index : index + 1])[0], together[index])
    assert encoder.encode(windows[:0]).shape == (0, 16)


@pytest.mark.parametrize(
    "windows",
    [
        noise(2, side=64),
        noise(2)[:, :1],
        noise(2).astype(np.float32),
        noise(2).transpose(0, 2, 3, 1),
        noise(1)[0],
    ],
    ids=["size", "channels", "type", "order", "no batch"],
)
def test_windows_of_another_shape_are_refused(encoder, windows):
    with pytest.raises(EncoderError, match=r"takes uint8 windows \[N, 3, 32, 32\] of style 'carto', not"):
        encoder.encode(windows)


def test_damaged_weights_are_refused(registry, registration):
    import dataclasses

    with pytest.raises(EncoderError, match="do not have the digest that the registry states"):
        registry.load(dataclasses.replace(registration.version, digest="0" * 64))


def test_the_challenger_is_judged_and_promoted(registry, registration, helsinki):
    with pytest.raises(RegistryError, match=r"has no geobacter@champion. Materialise location_encoder"):
        registry.champion()
    regions = [RegionData("helsinki", helsinki.triplets, helsinki.cache)]
    verdict = registry.judge(regions)
    assert verdict.challenger == registration.version
    assert verdict.challenger_scores.n == registration.trained.scores.n
    assert verdict.challenger_scores.triplet_accuracy == pytest.approx(
        registration.trained.scores.triplet_accuracy, abs=0.1
    )
    better = verdict.challenger_scores.triplet_accuracy > verdict.random_scores.triplet_accuracy
    assert verdict.passed == better
    assert verdict.champion is None
    try:
        registry.promote(registration.version)
        assert registry.champion() == registration.version
        again = registry.judge(regions)
        assert again.champion == registration.version
        assert again.champion_scores == again.challenger_scores
        assert again.passed == better
    finally:
        registry.client.delete_registered_model_alias("geobacter", CHAMPION)


def version(number, style="carto"):
    return EncoderVersion(number, "run", "0" * 64, style, 200.0, 64, 3, 16, 1, 0.8, 0.7)


def accuracy(value):
    return Scores(value, 0.1, 0.2, 500)


@pytest.mark.parametrize(
    ("ours", "random", "champion", "passed", "says"),
    [
        (0.8, 0.7, None, True, "there was no champion"),
        (0.7, 0.7, None, False, "no better than random weights (0.700)"),
        (0.6, 0.7, None, False, "no better than random weights"),
        (0.8, 0.7, 0.75, True, "champion geobacter/1 0.750"),
        (0.8, 0.7, 0.8, True, "on the same 500 test triplets"),
        (0.79, 0.7, 0.8, False, "geobacter/2 has triplet accuracy 0.790, champion geobacter/1 0.800"),
        (0.65, 0.7, 0.6, False, "no better than random weights"),
        (float("nan"), 0.7, None, False, "random weights"),
    ],
)
def test_who_becomes_champion(ours, random, champion, passed, says):
    scores = None if champion is None else accuracy(champion)
    found, reason = _rule(version(2), accuracy(ours), accuracy(random), version(1) if scores else None, scores)
    assert found is passed
    assert says in reason


def test_every_style_has_a_champion_of_its_own(registration, helsinki):
    carto = Registry(helsinki.settings)
    thematic = Registry(replace(helsinki.settings, style="thematic"))
    other = replace(registration.version, style="thematic")
    assert (carto.champion_alias, thematic.champion_alias) == ("champion", "champion")
    try:
        carto.promote(registration.version)
        assert carto.find_champion() == registration.version
        assert (carto.champion_alias, thematic.champion_alias) == ("champion", "champion-thematic")
        assert thematic.find_champion() is None
        with pytest.raises(RegistryError, match=r"has no geobacter@champion-thematic. Materialise location_encoder"):
            thematic.champion()
        thematic.promote(other)
        found = thematic.version("champion-thematic")
        assert found is not None
        assert found.version == other.version
        assert carto.find_champion() == registration.version
    finally:
        for alias in ("champion", "champion-thematic"):
            carto.client.delete_registered_model_alias("geobacter", alias)


def with_uri(tmp_path, uri):
    return Settings(tmp_path, tmp_path / "regions.toml", uri)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "http://me:hunter2@127.0.0.1:9", "https://me:hunter2@localhost"])
def test_a_server_that_is_away_is_noticed_at_once_without_telling_secrets(uri, tmp_path):
    begun = time.monotonic()
    with pytest.raises(RegistryError, match=r"does not answer.*unset MLFLOW_TRACKING_URI") as caught:
        Registry(with_uri(tmp_path, uri))
    assert time.monotonic() - begun < 10
    assert "hunter2" not in str(caught.value)
    assert "me:" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def half_dead_server():
    """Answers /health and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/health":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"OK")
            else:
                self.connection.close()

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

        def handle(self):
            try:
                super().handle()
            except (OSError, ValueError):
                self.close_connection = True

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_server_behind_user_and_password_is_found(half_dead_server):
    _check_answer(f"http://me:hunter2@127.0.0.1:{half_dead_server}")


def test_a_server_that_fails_later_is_an_error_of_ours_without_secrets(half_dead_server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("geobacter_core.encoder.registry._check_answer", lambda uri: None)
    before = mlflow.get_tracking_uri()
    try:
        with pytest.raises(RegistryError, match=r"MLflow at http://127\.0\.0\.1") as caught:
            Registry(with_uri(tmp_path, f"http://me:hunter2@127.0.0.1:{half_dead_server}"))
    finally:
        mlflow.set_tracking_uri(before)
    assert "hunter2" not in str(caught.value)


def test_a_store_that_cannot_be_opened_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(RegistryError, match="MLflow"):
        Registry(with_uri(tmp_path, f"sqlite:///{blocked}/mlflow.db"))
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    before = mlflow.get_tracking_uri()
    try:
        with pytest.raises(RegistryError, match="MLflow"):
            Registry(with_uri(tmp_path, f"sqlite:///{tmp_path}/mlflow.db"))
    finally:
        mlflow.set_tracking_uri(before)


def test_an_empty_registry_has_nobody_to_judge(tmp_path):
    before = mlflow.get_tracking_uri()
    try:
        registry = Registry(settings_in(tmp_path))
        assert registry.version(CHALLENGER) is None
        with pytest.raises(RegistryError, match=r"no geobacter@challenger to judge. Materialise location_encoder"):
            registry.judge([])
    finally:
        mlflow.set_tracking_uri(before)
