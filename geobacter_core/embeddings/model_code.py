"""The code that lies in every registered model and that MLflow runs to load it for places (`mlflow.pyfunc`).

It is copied into the model as it is: what it does is Geobacter's, of the version that loads it.
"""

from pathlib import Path

from mlflow.models import set_model

try:
    from geobacter_core.embeddings.pyfunc import PlacesModel
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"This model takes places, for which it needs the Python package geobacter ({missing}). Install it from its "
        "repository, or load the model for windows, which needs only torch: mlflow.pytorch.load_model."
    ) from None

set_model(PlacesModel(Path(__file__).parent))
