"""Encoders in MLflow: one run per training, one registered model, aliases `challenger` and `champion`.

Models are logged as an exported graph (`pt2`) and loaded without pickle.
"""

import logging
import os
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import torch
from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from geobacter_core.encoder.data import RegionData
from geobacter_core.encoder.device import best_device
from geobacter_core.encoder.evaluate import Embeddings, Examples, Scores, TestWindows
from geobacter_core.encoder.network import EncoderNetwork, embed, random_network, weights_digest
from geobacter_core.encoder.settings import TrainSettings
from geobacter_core.encoder.train import (
    VERSION,
    Epoch,
    Step,
    Trained,
    check_regions,
    encode_with,
    train,
)
from geobacter_core.errors import EncoderError, RegistryError
from geobacter_core.settings import Settings, redacted, without_secrets

if TYPE_CHECKING:
    import PIL.Image

MODEL_NAME = "geobacter"
CHALLENGER = "challenger"
CHAMPION = "champion"
EXPERIMENT = "geobacter"
BATCH = 128
"""Encoders always run on batches of this size, padded: the same window then gives the same bits in any company."""

_LOG_EVERY_STEPS = 20
_N_EXAMPLES = 10
_REQUIREMENTS = ["torch>=2.11", "torchvision>=0.26", "numpy>=2.0"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncoderVersion:
    """A registered encoder: what the registry knows of it.

    Attributes:
        version: Number in the registry.
        run_id: The MLflow run that trained it.
        digest: Hex SHA-256 of the weights.
        style: Name of the style of the windows it takes.
        size_m: Side of the windows in ground metres.
        size_px: Side of the windows in pixels.
        n_channels: C.
        embedding_dim: D.
        seed: Of its weights before training.
        test_accuracy: Triplet accuracy on test windows when it was trained.
        random_accuracy: That of random weights on the same windows.
        style_version: Version of the style.
    """

    version: int
    run_id: str
    digest: str
    style: str
    size_m: float
    size_px: int
    n_channels: int
    embedding_dim: int
    seed: int
    test_accuracy: float
    random_accuracy: float
    style_version: str = "1"

    @property
    def style_label(self) -> str:
        """`name/version` of the style."""
        return f"{self.style}/{self.style_version}"

    @property
    def name(self) -> str:
        """`geobacter/<version>`, as in the embedding tables."""
        return f"{MODEL_NAME}/{self.version}"


@dataclass(frozen=True, slots=True)
class Encoder:
    """A loaded encoder."""

    version: EncoderVersion
    _encode: Callable[[torch.Tensor], Embeddings]

    def encode(self, windows: torch.Tensor | np.ndarray[Any, np.dtype[np.uint8]]) -> Embeddings:
        """Embed uint8 `[N, C, size_px, size_px]` as float32 `[N, D]`, each row of length 1.

        Raises:
            EncoderError: The windows are not of the shape that the encoder takes.
        """
        batch = torch.as_tensor(windows)
        expected = (self.version.n_channels, self.version.size_px, self.version.size_px)
        if batch.dtype != torch.uint8 or tuple(batch.shape[1:]) != expected:
            raise EncoderError(
                f"Encoder {self.version.name} takes uint8 windows [N, {', '.join(map(str, expected))}] of style "
                f"'{self.version.style}', not {batch.dtype} {list(batch.shape)}. Cut windows of its style and size."
            )
        return self._encode(batch)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of the challenger, and the figures behind it."""

    passed: bool
    reason: str
    challenger: EncoderVersion
    challenger_scores: Scores
    random_scores: Scores
    champion: EncoderVersion | None
    champion_scores: Scores | None


@dataclass(frozen=True, slots=True)
class Registration:
    """A training that has been tracked and registered."""

    trained: Trained
    version: EncoderVersion
    experiment_id: str
    picture: "PIL.Image.Image"


class Registry:
    """MLflow's tracking store and model registry."""

    def __init__(self, settings: Settings) -> None:
        """Connect.

        Raises:
            RegistryError: The server does not answer, or the store cannot be opened.
        """
        # No pickle is loaded; a server that is away is noticed in seconds, not minutes; nothing is sent to strangers.
        os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._settings = settings
        self.uri = settings.tracking_uri
        _check_answer(self.uri)
        with self._trouble():
            self.client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            experiment = self.client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                local = settings.mlflow_artifacts.as_uri() if self.uri.startswith("sqlite:") else None
                self.experiment_id: str = self.client.create_experiment(EXPERIMENT, artifact_location=local)
            else:
                self.experiment_id = experiment.experiment_id

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        """Turn MLflow's exceptions into ours."""
        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as problem:
            raise RegistryError(
                f"MLflow at {without_secrets(self.uri)}: {redacted(str(problem), self.uri)}. "
                "Check that the server runs and MLFLOW_TRACKING_URI names it; nothing was changed."
            ) from None

    def version(self, alias_or_number: str) -> EncoderVersion | None:
        """The encoder of an alias or version number; None where there is none."""
        try:
            if alias_or_number.isdigit():
                found = self.client.get_model_version(MODEL_NAME, alias_or_number)
            else:
                found = self.client.get_model_version_by_alias(MODEL_NAME, alias_or_number)
        except MlflowException as problem:
            if problem.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise RegistryError(
                f"MLflow at {without_secrets(self.uri)}: {redacted(str(problem), self.uri)}. Does the server run?"
            ) from None
        tags = found.tags
        try:
            return EncoderVersion(
                version=int(found.version),
                run_id=str(found.run_id),
                digest=tags["weights_digest"],
                style=tags["style"],
                size_m=float(tags["size_m"]),
                size_px=int(tags["size_px"]),
                n_channels=int(tags["n_channels"]),
                embedding_dim=int(tags["embedding_dim"]),
                seed=int(tags["seed"]),
                test_accuracy=float(tags["test_triplet_accuracy"]),
                random_accuracy=float(tags["random_triplet_accuracy"]),
                style_version=tags.get("style_version", "1"),  # encoders of before it was written are of version 1
            )
        except KeyError as missing:
            raise RegistryError(
                f"Registered model {MODEL_NAME} version {found.version} has no tag {missing}: not one of ours. "
                "Point the alias to another version."
            ) from None

    @property
    def champion_alias(self) -> str:
        """The alias of this installation's style: `champion`, or `champion-<style>` where that is of another style.

        Who loads `champion` never gets an encoder that suddenly wants other channels.
        """
        first = self.version(CHAMPION)
        return (
            CHAMPION if first is None or first.style == self._settings.style else f"{CHAMPION}-{self._settings.style}"
        )

    def find_champion(self) -> EncoderVersion | None:
        """The champion of this installation's style, if there is one."""
        return self.version(self.champion_alias)

    def champion(self) -> EncoderVersion:
        """The champion of this installation's style.

        Raises:
            RegistryError: There is none yet.
        """
        found = self.find_champion()
        if found is None:
            raise RegistryError(
                f"MLflow at {without_secrets(self.uri)} has no {MODEL_NAME}@{self.champion_alias}. Materialise "
                "location_encoder; its first version that beats random weights becomes champion."
            )
        return found

    def load(self, version: EncoderVersion) -> Encoder:
        """Load an encoder from the registry, without pickle, onto the best device.

        Raises:
            RegistryError: Its artifacts cannot be had.
            EncoderError: What was loaded has other weights than the registry states.
        """
        device = best_device()
        _set_tracking_uri(self.uri)
        with self._trouble():
            module = mlflow.pytorch.load_model(f"models:/{MODEL_NAME}/{version.version}")
        if weights_digest(module) != version.digest:
            raise EncoderError(
                f"Encoder {version.name}: its weights do not have the digest that the registry states. "
                "The artifact is damaged; train another version."
            )
        # The exported graph is for everyone; it is bound to its device and to float32, which the network is not.
        network = random_network(version.n_channels, version.embedding_dim, version.seed)
        network.load_state_dict(module.state_dict())
        network.eval().to(device)
        return Encoder(version, lambda windows: _in_fixed_batches(network, windows, device))

    def register(
        self,
        regions: Sequence[RegionData],
        settings: TrainSettings,
        tags: Mapping[str, str],
        draw: Callable[[Examples], "PIL.Image.Image"],
        on_step: Callable[[Step], None] = lambda step: None,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    ) -> Registration:
        """Train an encoder in an MLflow run and register it as the challenger.

        The run has every parameter, the inputs as datasets with their digests, loss and throughput per step, scores
        per epoch and for random weights, the picture that `draw` makes of ten test triplets, and the model.

        Raises:
            RegistryError: MLflow fails.
            EncoderError: The training fails; the run is marked as failed.
        """
        style, size_m, n_channels = check_regions(regions)
        _set_tracking_uri(self.uri)
        with self._trouble():
            run = mlflow.start_run(experiment_id=self.experiment_id, tags={**tags, "code_version": VERSION})
        with run:
            with self._trouble():
                mlflow.log_params({**settings.model_dump(), "style": style, "size_m": size_m, "network": "resnet18"})
                for region in regions:
                    mlflow.log_input(_dataset(region, self._settings), context="training")
            steps = _StepLog(self.client, run.info.run_id)

            def step_done(step: Step) -> None:
                with self._trouble():
                    steps.add(step)
                on_step(step)

            def epoch_done(epoch: Epoch) -> None:
                prefix = "random_" if epoch.epoch == 0 else "test_"
                with self._trouble():
                    mlflow.log_metrics(epoch.scores.as_metrics(prefix), step=epoch.step)
                on_epoch(epoch)

            trained = train(regions, settings, step_done, epoch_done)
            picture = draw(trained.test.examples(encode_with(trained.network, torch.device("cpu")), _N_EXAMPLES))
            with self._trouble():
                steps.flush()
                mlflow.log_metrics({"images_per_s": trained.images_per_s, "train_seconds": trained.train_seconds})
                mlflow.log_image(picture, "pictures/test_triplets.png")
                version = self._log_model(
                    trained, style, regions[0].cache.manifest.style_version, size_m, n_channels, settings
                )
        return Registration(trained, version, self.experiment_id, picture)

    def _log_model(
        self, trained: Trained, style: str, style_version: str, size_m: float, n_channels: int, settings: TrainSettings
    ) -> EncoderVersion:
        facts = {
            "weights_digest": weights_digest(trained.network),
            "style": style,
            "style_version": style_version,
            "size_m": f"{size_m:g}",
            "size_px": str(settings.size_px),
            "n_channels": str(n_channels),
            "embedding_dim": str(settings.embedding_dim),
            "seed": str(settings.seed),
            "test_triplet_accuracy": f"{trained.scores.triplet_accuracy:.4f}",
            "random_triplet_accuracy": f"{trained.random.triplet_accuracy:.4f}",
        }
        example = trained.test.anchor[:2].numpy()
        if len(example) < 2:  # a batch of one would be exported as a batch of always one
            example = np.repeat(example, 2, axis=0)
        side = settings.size_px
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No complete tensor found")
            info = mlflow.pytorch.log_model(
                trained.network.eval(),
                name="encoder",
                registered_model_name=MODEL_NAME,
                serialization_format="pt2",
                input_example=example,
                signature=mlflow.models.ModelSignature(
                    inputs=mlflow.types.Schema(
                        [mlflow.types.TensorSpec(np.dtype("uint8"), (-1, n_channels, side, side))]
                    ),
                    outputs=mlflow.types.Schema(
                        [mlflow.types.TensorSpec(np.dtype("float32"), (-1, settings.embedding_dim))]
                    ),
                ),
                metadata=facts,
                pip_requirements=_REQUIREMENTS,
            )
        number = str(info.registered_model_version)
        for key, value in facts.items():
            self.client.set_model_version_tag(MODEL_NAME, number, key, value)
        self.client.set_registered_model_alias(MODEL_NAME, CHALLENGER, number)
        registered = self.version(number)
        if registered is None:
            raise RegistryError(f"MLflow at {without_secrets(self.uri)} lost version {number} as it was registered.")
        return registered

    def judge(self, regions: Sequence[RegionData]) -> Verdict:
        """Measure challenger, champion and random weights on the same test triplets, and apply the gate's rule.

        The challenger passes when its triplet accuracy is better than that of random weights and not worse than that
        of the present champion.

        Raises:
            RegistryError: There is no challenger.
        """
        challenger = self.version(CHALLENGER)
        if challenger is None:
            raise RegistryError(f"There is no {MODEL_NAME}@{CHALLENGER} to judge. Materialise location_encoder.")
        style, _, n_channels = check_regions(regions)
        if challenger.style != style:
            raise RegistryError(
                f"{challenger.name}, the challenger, takes windows of style '{challenger.style}', the tiles are "
                f"'{style}'. Materialise location_encoder in that style."
            )
        test = TestWindows(regions, challenger.size_px, challenger.size_m)
        scores = test.score(self.load(challenger).encode)
        random_ = random_network(n_channels, challenger.embedding_dim, challenger.seed)
        random_.set_normalisation(test.anchor)
        random_scores = test.score(encode_with(random_, torch.device("cpu")))
        champion = self.find_champion()
        champion_scores = None
        if champion is not None and champion.version == challenger.version:
            champion_scores = scores
        elif champion is not None:
            same_windows = (champion.size_px, champion.size_m) == (challenger.size_px, challenger.size_m)
            champion_test = test if same_windows else TestWindows(regions, champion.size_px, champion.size_m)
            champion_scores = champion_test.score(self.load(champion).encode)
        passed, reason = _rule(challenger, scores, random_scores, champion, champion_scores)
        return Verdict(passed, reason, challenger, scores, random_scores, champion, champion_scores)

    def promote(self, version: EncoderVersion) -> None:
        """Make a version the champion of its style."""
        with self._trouble():
            self.client.set_registered_model_alias(MODEL_NAME, self.champion_alias, str(version.version))


def _rule(
    challenger: EncoderVersion,
    scores: Scores,
    random_scores: Scores,
    champion: EncoderVersion | None,
    champion_scores: Scores | None,
) -> tuple[bool, str]:
    ours, theirs = scores.triplet_accuracy, random_scores.triplet_accuracy
    if not ours > theirs:  # so that a NaN does not pass
        return (
            False,
            f"{challenger.name} has triplet accuracy {ours:.3f}, no better than random weights ({theirs:.3f}).",
        )
    if champion is None or champion_scores is None:
        return (
            True,
            f"{challenger.name} beats random weights, {ours:.3f} to {theirs:.3f}, and there was no champion.",
        )
    best = champion_scores.triplet_accuracy
    comparison = f"{challenger.name} has triplet accuracy {ours:.3f}, champion {champion.name} {best:.3f}"
    return ours >= best, f"{comparison}, random weights {theirs:.3f}, on the same {scores.n} test triplets."


def _set_tracking_uri(uri: str) -> None:
    """Point MLflow's functions to `uri`, without the environment variable that MLflow sets besides.

    It would outlive this object, and a later `Settings.from_environment` would take it for the user's wish.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


def _check_answer(uri: str) -> None:
    """Fail at once where an HTTP tracking server does not answer; MLflow's own client would try for minutes."""
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise RegistryError(
                f"MLflow store {path}: {problem.strerror}. Give GEOBACTER_DATA a writable folder."
            ) from None
    elif uri.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{without_secrets(uri).rstrip('/')}/health", timeout=5):
                pass
        except urllib.error.HTTPError:
            pass  # it answers; whether it lets us in, the first call tells
        except (OSError, ValueError, HTTPException) as problem:
            reason = getattr(problem, "reason", problem)
            raise RegistryError(
                f"MLflow at {without_secrets(uri)} does not answer ({reason}). Start it, or unset MLFLOW_TRACKING_URI "
                "to use the SQLite file in GEOBACTER_DATA. Nothing was changed."
            ) from None


def _in_fixed_batches(network: EncoderNetwork, windows: torch.Tensor, device: torch.device) -> Embeddings:
    parts: list[Embeddings] = []
    with torch.inference_mode():
        for batch in torch.split(windows, BATCH):
            padded = batch
            if len(batch) < BATCH:
                padded = torch.zeros((BATCH, *batch.shape[1:]), dtype=torch.uint8)
                padded[: len(batch)] = batch
            parts.append(embed(network, padded.to(device), device).cpu().numpy()[: len(batch)])
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def _dataset(region: RegionData, settings: Settings) -> Dataset:
    """A region's triplets as an MLflow dataset with the data versions behind them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it finds two readers for a path, and says so
        source = resolve_dataset_source(settings.triplets_file(region.name).as_uri())
    manifest = region.cache.manifest
    name = f"{region.name} (tiles {manifest.digest[:12]}, extract {manifest.extract_sha256[:12]})"
    return _TripletDataset(source, name=name, digest=region.triplets.digest[:32])


class _TripletDataset(Dataset):
    """Names a table of triplets; MLflow needs no more of it."""

    @property
    def profile(self) -> None:
        return None

    @property
    def schema(self) -> None:
        return None

    def _compute_digest(self) -> str:
        return str(self.digest)


class _StepLog:
    """Collects the metrics of steps and sends them a few at a time."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._metrics: list[Metric] = []

    def add(self, step: Step) -> None:
        now_ms = int(time.time() * 1000)
        values = {
            "loss": step.loss,
            "active_share": step.active_share,
            "learning_rate": step.learning_rate,
            "step_images_per_s": step.images_per_s,
        }
        self._metrics += [Metric(key, value, now_ms, step.step) for key, value in values.items()]
        if step.step % _LOG_EVERY_STEPS == 0:
            self.flush()

    def flush(self) -> None:
        if self._metrics:
            self._client.log_batch(self._run_id, metrics=self._metrics)
            self._metrics = []
