"""The registered model for places: `mlflow.pyfunc.load_model` gives it, and it takes `lon` and `lat`.

The encoder is the one that lies in the model. Tiles come from where `model_config` says, or else the environment.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from geobacter_core.embeddings.places import Places, check_places, style_of
from geobacter_core.embeddings.sources import Sources, find_grounds
from geobacter_core.encoder.exported import load_encoder
from geobacter_core.errors import GeobacterError, PlaceError
from geobacter_core.geo import Floats


class PlacesModel(PythonModel):
    """Places to embeddings, by the encoder of a model's folder.

    Attributes:
        folder: Where the model lies.
        places: The encoder and the ground that it can embed; there once it is loaded.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: Places | None = None

    def load_context(self, context: PythonModelContext) -> None:
        """Load the encoder and open the tiles; MLflow calls this.

        Raises:
            GeobacterError: The model is damaged, or there are no tiles that fit it.
        """
        encoder = load_encoder(self.folder)
        sources = Sources.of({**os.environ}, context.model_config or {})
        self.places = Places(encoder, find_grounds(sources, style_of(encoder.version), encoder.version.name))

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:  # type: ignore[override]
        """Embed places.

        Args:
            model_input: Columns `lon` and `lat`, degrees; others are left alone. MLflow has checked that both are
                there, and are numbers.

        Returns:
            A row for each place, in the same order and under the same index: `embedding`, a list of D floats, which
            have the value of float32, of length 1.

        Raises:
            MlflowException: A place is missing, not on the map, or in none of the regions (status 400).
        """
        if self.places is None:
            raise PlaceError("The model has no tiles yet. Load it by mlflow.pyfunc.load_model.")
        try:
            embeddings = self.places.embed(*_places_in(model_input))
        except PlaceError as problem:
            raise MlflowException(str(problem), BAD_REQUEST) from problem
        except GeobacterError as problem:
            raise MlflowException(str(problem)) from problem
        return pd.DataFrame({"embedding": pd.Series(embeddings.tolist(), model_input.index, dtype=object)})


def _places_in(frame: pd.DataFrame) -> tuple[Floats, Floats]:
    """Longitudes and latitudes of a frame.

    Raises:
        PlaceError: A column is missing, or a place is none.
    """
    found: dict[str, Floats] = {}
    for name in ("lon", "lat"):
        if name not in frame.columns:
            there = ", ".join(map(str, frame.columns)) or "none"
            raise PlaceError(f"The places have no column '{name}' (there are: {there}). Give lon and lat in degrees.")
        try:
            found[name] = np.asarray(frame[name].to_numpy(dtype=np.float64, na_value=np.nan))
        except (ValueError, TypeError):
            raise PlaceError(
                f"Column '{name}' of the places has values that are not numbers ({frame[name].dtype}). "
                "Give degrees as numbers."
            ) from None
    check_places(found["lon"], found["lat"])
    return found["lon"], found["lat"]
