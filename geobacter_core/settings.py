"""Where things are: the data folder and the regions file, from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import unquote, urlsplit, urlunsplit

from geobacter_core.errors import GeobacterError

Promotion = Literal["automatic", "by-hand"]

_PROJECT = Path(__file__).parents[1]
DEFAULT_STYLE = "detailed"


@dataclass(frozen=True, slots=True)
class Settings:
    """The folders of a Geobacter installation and the address of its MLflow.

    Attributes:
        data: Everything that Geobacter makes lies under this folder.
        regions_file: The `regions.toml` in force.
        tracking_uri: MLflow's tracking server, or an SQLite file under `data`.
        style: Name of the style that tiles are rendered in.
        promotion: Whether an encoder that passes the gate becomes champion at once, or when a person says so.
    """

    data: Path
    regions_file: Path
    tracking_uri: str
    style: str = DEFAULT_STYLE
    promotion: Promotion = "automatic"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read `GEOBACTER_DATA`, `GEOBACTER_REGIONS`, `GEOBACTER_STYLE`, `GEOBACTER_PROMOTE`, `MLFLOW_TRACKING_URI`.

        The defaults are `data` in the working folder, `regions.toml` there or else beside the packages, `detailed`,
        `automatic`, and an SQLite file in the data folder.

        Raises:
            GeobacterError: `GEOBACTER_PROMOTE` is neither `automatic` nor `by-hand`.
        """
        data = Path(environment.get("GEOBACTER_DATA") or "data").expanduser().resolve()
        regions = Path("regions.toml") if Path("regions.toml").is_file() else _PROJECT / "regions.toml"
        return cls(
            data=data,
            regions_file=Path(environment.get("GEOBACTER_REGIONS") or regions).expanduser().resolve(),
            tracking_uri=environment.get("MLFLOW_TRACKING_URI") or f"sqlite:///{data}/mlflow/mlflow.db",
            style=environment.get("GEOBACTER_STYLE") or DEFAULT_STYLE,
            promotion=_promotion(environment.get("GEOBACTER_PROMOTE") or "automatic"),
        )

    def extract_folder(self, region: str) -> Path:
        """`.osm.pbf` and its provenance."""
        return self.data / "extracts" / region

    def features_folder(self, region: str) -> Path:
        """FlatGeobuf files and their manifest."""
        return self.data / "features" / region

    def tiles_folder(self, region: str, style: str) -> Path:
        """Chunk files of one style, and their manifest."""
        return self.data / "tiles" / region / style

    def triplets_file(self, region: str) -> Path:
        """The region's triplets."""
        return self.data / "samples" / region / "triplets.parquet"

    def embeddings_file(self, region: str) -> Path:
        """The region's embedding table."""
        return self.data / "embeddings" / region / "embeddings.parquet"

    def serving_folder(self, region: str) -> Path:
        """The region's embedding table as arrays that can be mapped into memory."""
        return self.data / "serving" / region

    def evaluation_file(self, region: str) -> Path:
        """Figures of the last evaluation of an encoder on a region."""
        return self.evaluation_folder(region) / "evaluation.parquet"

    def report_folder(self, region: str) -> Path:
        """Pictures and the HTML page."""
        return self.data / "reports" / region

    def evaluation_folder(self, region: str) -> Path:
        """What probes of the region need: map features and tiles without what is asked for."""
        return self.data / "evaluations" / region

    @property
    def mlflow_artifacts(self) -> Path:
        """Where MLflow keeps artifacts when the tracking store is the local SQLite file."""
        return self.data / "mlflow" / "artifacts"

    @property
    def checkpoints_folder(self) -> Path:
        """What trainings under way need to go on where they were."""
        return self.data / "checkpoints"

    @property
    def unsent_folder(self) -> Path:
        """What trainings could not send to MLflow yet: a journal of metrics and a folder for each run."""
        return self.data / "mlflow" / "unsent"


def _promotion(text: str) -> Promotion:
    for known in get_args(Promotion):
        if text == known:
            return known  # type: ignore[no-any-return]
    raise GeobacterError(f"GEOBACTER_PROMOTE is '{text}'. Set it to automatic or by-hand; unset, it is automatic.")


def redacted(text: str, uri: str) -> str:
    """A library's message about an address, without the secrets of that address in whatever form it quotes it."""
    parts = urlsplit(uri)
    secrets = [uri, parts.netloc.rpartition("@")[0], parts.query, parts.username, parts.password]
    text = text.replace(uri, without_secrets(uri))
    for secret in secrets:
        if secret:
            text = text.replace(secret, "…").replace(unquote(secret), "…")
    return text


def without_secrets(uri: str) -> str:
    """The address without user, password and query, fit for a log or an error."""
    parts = urlsplit(uri)
    if not parts.netloc:
        return uri
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
