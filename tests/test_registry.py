"""Encoders in MLflow: what a version knows, how it is loaded and promoted, and a server that is away at the start."""

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
import torch
from typer.testing import CliRunner

from geobacter_core.cli import app
from geobacter_core.encoder.exported import export
from geobacter_core.encoder.network import NetworkSpec, random_network, weights_digest
from geobacter_core.encoder.registry import CHALLENGER, CHAMPION, Registry
from geobacter_core.encoder.store import check_answer
from geobacter_core.encoder.version import EncoderVersion, version_of
from geobacter_core.errors import EncoderError, GeobacterError, RegistryError
from geobacter_core.settings import Settings


@pytest.fixture(scope="module")
def registry(helsinki, registration):
    return Registry(helsinki.settings)


@pytest.fixture(scope="module")
def encoder(registry, registration):
    return registry.load(registration.version)


def noise(n, side=32):
    return np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


def test_the_version_knows_its_windows_and_weights(registration, registry):
    version = registration.version
    assert version.name == f"geobacter/{version.version}"
    assert (version.style, version.size_m, version.size_px, version.n_channels, version.embedding_dim) == (
        "carto",
        200.0,
        32,
        3,
        32,
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
    assert embedding.shape == (n, 32) and embedding.dtype == torch.float32
    assert torch.allclose(embedding.norm(dim=1), torch.ones(n), atol=1e-5)
info = mlflow.models.get_model_info("models:/geobacter@challenger")
assert info.metadata["window_shape"] == [3, 32, 32]
assert info.metadata["style"] == "carto" and info.metadata["size_m"] == "200", info.metadata
assert info.metadata["size_px"] == "32" and info.metadata["embedding_dim"] == "32"
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
    assert together.shape == (130, 32)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    for index in (0, 64, 129):
        np.testing.assert_array_equal(encoder.encode(windows[index : index + 1])[0], together[index])
    assert encoder.encode(windows[:0]).shape == (0, 32)


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


TAGS = {
    "weights_digest": "0" * 64,
    "style": "thematic",
    "style_version": "3",
    "size_m": "300",
    "context_m": "900",
    "size_px": "96",
    "n_channels": "12",
    "network": "small",
    "embedding_dim": "32",
    "seed": "5",
    "test_triplet_accuracy": "0.81",
    "random_triplet_accuracy": "0.63",
}


def test_a_version_is_what_its_tags_say():
    version = version_of(7, "run", TAGS)
    assert version == EncoderVersion(
        7, "run", "0" * 64, "thematic", 300.0, 96, 12, 32, 5, 0.81, 0.63, "3", "small", 900.0
    )
    assert (version.scales.n_learnt, version.spec.n_planes, version.style_label) == (2, 24, "thematic/3")


def test_versions_of_before_a_tag_was_written_are_known():
    old = {name: tag for name, tag in TAGS.items() if name not in ("network", "context_m", "style_version")}
    version = version_of(7, "run", old)
    assert (version.network, version.context_m, version.style_version, version.scales.n_learnt) == (
        "resnet18",
        None,
        "1",
        1,
    )
    assert version_of(7, "run", {**TAGS, "context_m": ""}).context_m is None


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({**TAGS, "size_px": "large"}, "has a tag that cannot be read"),
        ({**TAGS, "network": "vit"}, r"has a tag that cannot be read \(network 'vit' is none of small, resnet18"),
        ({"style": "carto"}, "has no tag 'weights_digest'"),
    ],
)
def test_a_version_that_is_not_ours_is_refused_by_name(tags, says):
    with pytest.raises(RegistryError, match=rf"geobacter version 7 {says}.*not one of ours"):
        version_of(7, "run", tags)


def test_an_encoder_with_context_is_exported_for_any_number_of_windows(registry, tmp_path):
    network = random_network(NetworkSpec("small", 3, 2, 8), seed=1).eval()
    windows = torch.from_numpy(noise(10)).reshape(5, 6, 32, 32)
    export(network, tmp_path / "model", windows, {"embedding_dim": "8"})
    loaded = mlflow.pytorch.load_model(str(tmp_path / "model"))
    for n in (1, 5):
        np.testing.assert_allclose(loaded(windows[:n]).detach(), network(windows[:n]).detach(), atol=1e-5)


def test_random_weights_have_the_trained_encoders_normalisation(registry, registration):
    untrained, trained = registry.load_untrained(registration.version), registration.trained
    scores = trained.test.score(untrained.encode)
    assert scores.triplet_accuracy == pytest.approx(trained.random.triplet_accuracy, abs=0.05)
    assert not np.allclose(untrained.encode(noise(2)), registry.load(registration.version).encode(noise(2)))


@pytest.fixture
def twin(registry, registration):
    """Further versions with the artifacts of the registered one; no alias and none of them is left after the test."""
    found = registry.client.get_model_version("geobacter", str(registration.version.version))
    numbers = []

    def make(**tags):
        made = registry.client.create_model_version(
            "geobacter", found.source, registration.version.run_id, tags={**found.tags, **tags}
        )
        numbers.append(str(made.version))
        return registry.version(numbers[-1])

    yield make
    for alias in registry.aliases():
        if alias != CHALLENGER:
            registry.client.delete_registered_model_alias("geobacter", alias)
    for number in numbers:
        registry.client.delete_model_version("geobacter", number)


def test_weights_of_a_network_that_was_another_are_refused_with_what_to_do(registry, twin):
    with pytest.raises(EncoderError, match=r"an earlier Geobacter made it.*Take its alias away in MLflow and train"):
        registry.load(twin(embedding_dim="64"))


def test_there_is_no_champion_before_one_is_promoted(registry, registration):
    with pytest.raises(RegistryError, match=r"has no geobacter@champion. Materialise location_encoder"):
        registry.champion()


def test_the_previous_champion_stays_and_can_be_had_back(registry, registration, twin):
    first, second = registration.version, twin()
    assert registry.promote(first) is None
    assert registry.aliases() == {CHALLENGER: first.version, CHAMPION: first.version}
    assert registry.promote(second) == first
    assert registry.aliases() == {
        CHALLENGER: first.version,
        CHAMPION: second.version,
        "previous-champion": first.version,
    }
    assert registry.promote(second) is None  # again: nothing changes, above all not who was before
    previous = registry.version("previous-champion")
    assert previous == first
    registry.load(previous)
    assert registry.promote(previous) == second
    assert (registry.champion(), registry.version("previous-champion")) == (first, second)


def test_versions_come_newest_first_without_those_of_others(registry, registration, twin):
    second = twin()
    source = registry.client.get_model_version("geobacter", str(second.version)).source
    foreign = registry.client.create_model_version("geobacter", source, second.run_id)
    try:
        assert registry.versions() == [second, registration.version]
        with pytest.raises(RegistryError, match="not one of ours"):
            registry.version(str(foreign.version))
    finally:
        registry.client.delete_model_version("geobacter", str(foreign.version))


def test_every_style_has_a_champion_and_a_previous_one_of_its_own(registration, helsinki, twin):
    carto = Registry(helsinki.settings)
    thematic = Registry(replace(helsinki.settings, style="thematic"))
    one, two = twin(style="thematic"), twin(style="thematic")
    assert (carto.champion_alias, thematic.champion_alias) == ("champion", "champion")
    carto.promote(registration.version)
    assert carto.find_champion() == registration.version
    assert (carto.champion_alias, thematic.champion_alias) == ("champion", "champion-thematic")
    assert thematic.find_champion() is None
    with pytest.raises(RegistryError, match=r"has no geobacter@champion-thematic. Materialise location_encoder"):
        thematic.champion()
    thematic.promote(one)
    thematic.promote(two)
    assert thematic.champion() == two
    assert thematic.version("previous-champion-thematic") == one
    assert carto.champion() == registration.version
    assert carto.version("previous-champion") is None
    with pytest.raises(RegistryError, match=r"style 'thematic', this installation's.*Set GEOBACTER_STYLE=thematic"):
        carto.promote(two)


def test_results_of_an_evaluation_go_to_the_run_the_card_and_the_description(registry, registration, tmp_path):
    version = registration.version
    (tmp_path / "table.csv").write_text("a,b")
    registry.log_evaluation(version, "kotka", {"eval_kotka_r2": 0.5}, [tmp_path / "table.csv"], "| R² | 0.5 |")
    run = registry.client.get_run(version.run_id)
    assert run.data.metrics["eval_kotka_r2"] == 0.5
    (file,) = registry.client.list_artifacts(version.run_id, "evaluation/kotka")
    assert file.path == "evaluation/kotka/table.csv"
    card = mlflow.artifacts.load_text(f"runs:/{version.run_id}/model_card.md")
    assert "### kotka\n\n| R² | 0.5 |" in card
    description = registry.client.get_model_version("geobacter", str(version.version)).description
    assert "| R² | 0.5 |" in description
    assert description.startswith("# Geobacter encoder")


# The commands


@pytest.fixture
def geobacter(helsinki):
    """Run the command over Helsinki's data folder."""

    def run(*args, style="carto"):
        environment = {"GEOBACTER_DATA": str(helsinki.settings.data), "GEOBACTER_STYLE": style}
        return CliRunner(env=environment).invoke(app, ["encoder", *args])

    return run


def test_encoders_are_listed_with_their_aliases(geobacter, registry, registration, twin):
    second = twin(style="thematic", context_m="800")
    registry.promote(registration.version)
    header, newest, oldest = geobacter("list").stdout.splitlines()
    assert header.split()[:3] == ["version", "alias", "style"]
    assert newest.split()[:2] == [str(second.version), "thematic/1"]
    assert "200 m in 800 m, 32 px" in newest
    assert oldest.split()[:4] == [str(registration.version.version), "challenger,", "champion", "carto/1"]
    assert oldest.split()[-1] == f"{registration.version.random_accuracy:.3f}"


def test_a_version_is_promoted_by_number_and_taken_back_by_alias(geobacter, registry, registration, twin):
    second = twin()
    registry.promote(registration.version)
    result = geobacter("promote", str(second.version))
    assert result.exit_code == 0
    assert result.stdout.startswith(
        f"{second.name} is now champion; {registration.version.name} was it before. Embed the regions anew"
    )
    assert registry.champion() == second
    assert geobacter("promote", str(second.version)).stdout == f"{second.name} is champion already.\n"
    assert geobacter("promote", "previous-champion").exit_code == 0
    assert registry.champion() == registration.version


@pytest.mark.parametrize("name", ["999", "nobody"])
def test_a_version_that_does_not_exist_is_not_promoted(geobacter, registration, name):
    result = geobacter("promote", name)
    assert result.exit_code == 1
    assert f"has no encoder '{name}'. What there is: geobacter encoder list" in result.stderr


def test_a_version_of_another_style_is_not_promoted(geobacter, registry, registration):
    result = geobacter("promote", str(registration.version.version), style="thematic")
    assert result.exit_code == 1
    assert "Set GEOBACTER_STYLE=carto to promote it" in result.stderr
    assert registry.find_champion() is None


def test_how_to_promote_is_one_of_two_words():
    assert Settings.from_environment({}).promotion == "automatic"
    assert Settings.from_environment({"GEOBACTER_PROMOTE": ""}).promotion == "automatic"
    assert Settings.from_environment({"GEOBACTER_PROMOTE": "by-hand"}).promotion == "by-hand"
    with pytest.raises(GeobacterError, match=r"GEOBACTER_PROMOTE is 'never'. Set it to automatic or by-hand"):
        Settings.from_environment({"GEOBACTER_PROMOTE": "never"})


# A server that is away


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
    check_answer(f"http://me:hunter2@127.0.0.1:{half_dead_server}")


def test_a_server_that_fails_later_is_an_error_of_ours_without_secrets(half_dead_server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("geobacter_core.encoder.store.check_answer", lambda uri: None)
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
