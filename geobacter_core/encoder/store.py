"""The connection to MLflow: there at once or not at all, its exceptions as ours, and no secret in a message."""

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from geobacter_core.errors import RegistryError
from geobacter_core.settings import Settings, redacted, without_secrets

EXPERIMENT = "geobacter"


class Store:
    """MLflow's tracking store and model registry at one address.

    Attributes:
        settings: Of the installation.
        uri: The address; it may hold secrets.
        client: MLflow's own.
        experiment_id: Of the experiment that holds our runs.
    """

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
        self.settings = settings
        self.uri = settings.tracking_uri
        check_answer(self.uri)
        with self.trouble():
            self.client = mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            self.experiment_id = self._experiment()

    @contextmanager
    def trouble(self) -> Iterator[None]:
        """Turn MLflow's exceptions into ours."""
        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as problem:
            raise RegistryError(
                f"MLflow at {self.shown_uri}: {redacted(str(problem), self.uri).rstrip('.')}. "
                "Check that the server runs and MLFLOW_TRACKING_URI names it."
            ) from None

    @property
    def shown_uri(self) -> str:
        """The address without its secrets."""
        return without_secrets(self.uri)

    def make_current(self) -> None:
        """Point MLflow's functions to this store, without the environment variable that MLflow sets besides.

        It would outlive this object, and a later `Settings.from_environment` would take it for the user's wish.
        """
        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self.uri)
        if before is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        local = self.settings.mlflow_artifacts.as_uri() if self.uri.startswith("sqlite:") else None
        return str(self.client.create_experiment(EXPERIMENT, artifact_location=local))


def check_answer(uri: str) -> None:
    """Fail at once where an HTTP tracking server does not answer; MLflow's own client would try for minutes.

    Raises:
        RegistryError: It does not, or the folder of an SQLite file cannot be made.
    """
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
