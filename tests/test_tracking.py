"""The run of a training in MLflow: what it has, what fails it, and a real server that goes away in the middle."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
from typer.testing import CliRunner

from geobacter_core.cli import app
from geobacter_core.encoder.data import RegionData
from geobacter_core.encoder.journal import RunLog, journal_file, read_journal
from geobacter_core.encoder.registry import CHALLENGER, Registry
from geobacter_core.encoder.settings import TrainSettings
from geobacter_core.encoder.tracking import train_tracked
from geobacter_core.encoder.unsent import result_folder, send, unsent_runs
from geobacter_core.errors import EncoderError, RegistryError

TINY = TrainSettings(network="small", size_px=32, embedding_dim=24, batch_size=20, max_steps=6)


def drawn(examples):
    return PIL.Image.new("RGB", (8, 8), "green")


@pytest.fixture(scope="module")
def regions(helsinki):
    return [RegionData("helsinki", helsinki.triplets, helsinki.cache)]


@pytest.fixture(scope="module")
def registry(helsinki, registration):
    return Registry(helsinki.settings)


@pytest.fixture(scope="module")
def run(registry, registration):
    return registry.client.get_run(registration.version.run_id)


# What a run has


def test_the_run_has_every_parameter(run):
    params = run.data.params
    assert {name: params[name] for name in ("size_px", "embedding_dim", "batch_size", "max_epochs", "seed")} == {
        "size_px": "32",
        "embedding_dim": "32",
        "batch_size": "20",
        "max_epochs": "1",
        "seed": "1",
    }
    assert {name: params[name] for name in ("style", "size_m", "context_m", "network", "loss")} == {
        "style": "carto",
        "size_m": "200.0",
        "context_m": "None",
        "network": "small",
        "loss": "infonce",
    }
    assert run.info.status == "FINISHED"


def test_the_run_has_its_inputs_with_their_data_versions(run, helsinki):
    (logged,) = run.inputs.dataset_inputs
    assert logged.dataset.digest == helsinki.triplets.digest[: len(logged.dataset.digest)]
    assert len(logged.dataset.digest) >= 32
    assert "helsinki" in logged.dataset.name
    assert helsinki.cache.manifest.digest[:12] in logged.dataset.name
    assert helsinki.extract.sha256[:12] in logged.dataset.name
    assert logged.tags[0].value == "training"


def test_the_run_has_loss_per_step_and_scores_per_evaluation(run, registry, registration):
    losses = registry.client.get_metric_history(run.info.run_id, "loss")
    assert sorted(metric.step for metric in losses) == list(range(1, registration.trained.n_steps + 1))
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
    assert run.data.tags["mlflow.user"]


def test_the_run_has_its_picture_and_model_card(run, registry, registration):
    (picture,) = registry.client.list_artifacts(run.info.run_id, "pictures")
    assert picture.path.endswith(".png")
    card = Path(registry.client.download_artifacts(run.info.run_id, "model_card.md")).read_text(encoding="utf-8")
    assert registration.version.digest in card
    assert "| helsinki |" in card
    number = str(registration.version.version)
    assert registry.client.get_model_version("geobacter", number).description.startswith("# Geobacter encoder")


def test_nothing_waits_to_be_sent_after_a_training(registry, registration):
    assert unsent_runs(registry.settings) == []


# What goes wrong in the training


@pytest.fixture
def own_registry(registry, registration, tmp_path):
    """The same MLflow, and a data folder for one test; versions that it registers are removed after it."""
    yield Registry(replace(registry.settings, data=tmp_path))
    for version in registry.versions():
        if version != registration.version:
            registry.client.delete_model_version("geobacter", str(version.version))
    registry.client.set_registered_model_alias("geobacter", CHALLENGER, str(registration.version.version))


def last_run(registry):
    return registry.client.search_runs([registry.experiment_id], max_results=1)[0]


def test_a_training_that_fails_is_marked_so_and_its_metrics_are_there(own_registry, regions):
    def fail_at_3(step):
        if step.step == 3:
            raise EncoderError("enough")

    with pytest.raises(EncoderError, match="enough"):
        train_tracked(own_registry, regions, TINY, {}, drawn, fail_at_3)
    run = last_run(own_registry)
    assert run.info.status == "FAILED"
    assert len(own_registry.client.get_metric_history(run.info.run_id, "loss")) == 3
    assert unsent_runs(own_registry.settings) == []


def test_a_training_that_cannot_begin_leaves_no_run(own_registry):
    before = last_run(own_registry).info.run_id
    with pytest.raises(EncoderError, match="no region to train on"):
        train_tracked(own_registry, [], TINY, {}, drawn)
    assert last_run(own_registry).info.run_id == before


def new_run(registry):
    return registry.client.create_run(registry.experiment_id).info.run_id


def test_what_a_killed_training_left_is_sent_as_such(own_registry):
    """Its last line was never finished."""
    run_id = new_run(own_registry)
    path = journal_file(own_registry, run_id)
    with RunLog(own_registry, run_id) as log:
        log.write({"loss": 0.5, "active_share": 1.0}, 1)
        log.write({"loss": 0.25}, 2)
    with path.open("a") as file:
        file.write('{"step": 3, "timestamp_ms": 17')
    assert unsent_runs(own_registry.settings) == [run_id]
    sent = send(own_registry, run_id)
    assert (sent.status, sent.version) == ("KILLED", None)
    history = own_registry.client.get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.25)]
    assert own_registry.client.get_run(run_id).info.status == "KILLED"
    assert unsent_runs(own_registry.settings) == []


def test_the_next_training_sends_what_a_killed_one_left_and_forgets_its_own_checkpoint(own_registry, regions):
    run_id = new_run(own_registry)
    with RunLog(own_registry, run_id) as log:
        log.write({"loss": 0.5}, 1)
    done = train_tracked(own_registry, regions, TINY, {}, drawn)
    assert done.version.run_id != run_id
    assert own_registry.client.get_run(run_id).info.status == "KILLED"
    assert unsent_runs(own_registry.settings) == []
    assert list(own_registry.settings.checkpoints_folder.glob("*.safetensors")) == []


def test_metrics_that_are_sent_twice_are_there_once(own_registry):
    run_id = new_run(own_registry)
    with RunLog(own_registry, run_id) as log:
        log.write({"loss": 0.5, "rate": float("nan")}, 1)
    kept = journal_file(own_registry, run_id).read_bytes()
    send(own_registry, run_id)
    journal_file(own_registry, run_id).write_bytes(kept)
    send(own_registry, run_id)
    assert len(own_registry.client.get_metric_history(run_id, "loss")) == 1
    assert len(own_registry.client.get_metric_history(run_id, "rate")) == 1


def test_a_training_that_still_goes_on_is_left_alone(own_registry):
    run_id = new_run(own_registry)
    with RunLog(own_registry, run_id) as log:
        log.write({"loss": 0.5}, 1)
        with pytest.raises(RegistryError, match=rf"run {run_id} is still going on"):
            send(own_registry, run_id)
    assert send(own_registry, run_id).status == "KILLED"


def test_a_run_that_left_nothing_cannot_be_sent(own_registry):
    with pytest.raises(RegistryError, match=r"holds nothing of a run 'abc'.*geobacter encoder list"):
        send(own_registry, "abc")


def test_a_journal_is_read_in_pieces_that_mlflow_takes_from_any_line_on(tmp_path):
    path = tmp_path / "journal.jsonl"
    metrics = {"a": 1.0, "b": 2.0, "c": 3.0}
    lines = [json.dumps({"step": step, "timestamp_ms": 7, "metrics": metrics}) + "\n" for step in range(700)]
    path.write_text("".join(lines))
    parts = list(read_journal(path))
    assert [len(found) for found, _ in parts] == [999, 999, 102]
    assert parts[-1][1] == path.stat().st_size
    (first, *_), _ = parts[1]
    assert (first.key, first.value, first.step, first.timestamp) == ("a", 1.0, 333, 7)
    assert [len(found) for found, _ in read_journal(path, parts[1][1])] == [102]
    assert list(read_journal(path, path.stat().st_size)) == []


# A real server that goes away


class Server:
    """An MLflow server over HTTP on loopback, with a database and artifacts of its own, that can be killed."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process = None

    def start(self):
        command = [
            str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(self.port),
            "--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db",
            "--artifacts-destination", str(self._folder / "artifacts"),
        ]  # fmt: skip
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, start_new_session=True)
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            time.sleep(0.1)
        raise TimeoutError((self._folder / "server.log").read_text()[-2000:])

    def kill(self):
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def impatient(monkeypatch):
    """Metrics are sent at once, and a try takes no seconds."""
    monkeypatch.setattr("geobacter_core.encoder.journal._EVERY_S", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def loss_steps(registry, run_id):
    return sorted(metric.step for metric in registry.client.get_metric_history(run_id, "loss"))


def test_a_server_that_comes_back_in_the_middle_gets_everything(
    server, regions, helsinki, tmp_path, impatient, monkeypatch, caplog
):
    registry = Registry(replace(helsinki.settings, data=tmp_path, tracking_uri=server.url))

    def interfere(step):
        if step.step == 2:
            server.kill()
            time.sleep(1.0)
        if step.step == 4:
            server.start()

    with caplog.at_level(logging.WARNING, logger="geobacter_core"):
        done = train_tracked(registry, regions, TINY, {}, drawn, interfere)
    warnings = [record for record in caplog.records if "The training goes on" in record.message]
    assert len(warnings) == 1
    assert loss_steps(registry, done.version.run_id) == [1, 2, 3, 4, 5, 6]
    assert registry.client.get_run(done.version.run_id).info.status == "FINISHED"
    assert registry.version(CHALLENGER) == done.version
    assert registry.load(done.version).encode(done.trained.test.anchor).shape == (len(done.trained.test), 24)
    assert unsent_runs(registry.settings) == []


def test_a_server_that_stays_away_costs_nothing_but_an_import(
    server, regions, helsinki, tmp_path, impatient, monkeypatch
):
    settings = replace(helsinki.settings, data=tmp_path, tracking_uri=server.url)
    registry = Registry(settings)
    n_before = len(registry.versions())

    def interfere(step):
        if step.step == 3:
            server.kill()

    with pytest.raises(RegistryError, match="The training is done and nothing of it is lost") as caught:
        train_tracked(registry, regions, TINY, {}, drawn, interfere)
    (run_id,) = unsent_runs(settings)
    assert str(caught.value).endswith(f"geobacter encoder import {run_id}")
    assert str(result_folder(settings, run_id)) in str(caught.value)

    environment = {"GEOBACTER_DATA": str(tmp_path), "MLFLOW_TRACKING_URI": server.url}
    cli = CliRunner(env=environment)
    refused = cli.invoke(app, ["encoder", "import", run_id])
    assert refused.exit_code == 1
    assert "does not answer" in refused.stderr
    assert unsent_runs(settings) == [run_id]

    server.start()
    listed = cli.invoke(app, ["encoder", "list"])
    assert f"Not in MLflow yet: {run_id}" in listed.stderr
    imported = cli.invoke(app, ["encoder", "import", run_id])
    assert imported.exit_code == 0, imported.stderr
    version = registry.version(CHALLENGER)
    assert version is not None
    assert version.run_id == run_id
    assert f"its encoder is {version.name}, the challenger" in imported.stdout
    assert len(registry.versions()) == n_before + 1
    assert loss_steps(registry, run_id) == [1, 2, 3, 4, 5, 6]
    assert registry.client.get_run(run_id).info.status == "FINISHED"
    assert {"model_card.md", "pictures"} <= {item.path for item in registry.client.list_artifacts(run_id)}
    registry.load(version)  # holds its weights against their digest
    assert unsent_runs(settings) == []
