"""Encoders as MLflow models: written for anyone to load, and read back. No pickle either way.

One model has two flavours. By `mlflow.pytorch` it is an exported graph (`pt2`), windows to embeddings, which needs
nothing of Geobacter. By `mlflow.pyfunc` it takes places, and needs Geobacter and tiles to cut their windows from.
"""

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME
from mlflow.types import DataType, Schema, TensorSpec
from mlflow.types.schema import Array, ColSpec
from mlflow.utils.yaml_utils import read_yaml

from geobacter_core.encoder.device import batch_size, best_device
from geobacter_core.encoder.inference import Inference
from geobacter_core.encoder.network import EncoderNetwork, random_network, weights_digest
from geobacter_core.encoder.version import Encoder, EncoderVersion, version_of
from geobacter_core.errors import EncoderError

_REQUIREMENTS = ["torch>=2.11", "torchvision>=0.26", "numpy>=2.0", "pandas>=2.2"]
"""Of the graph. Geobacter, which the places flavour needs too, is in no package index."""
_CODE = Path(__file__).parents[1] / "embeddings" / "model_code.py"
"""What the places flavour runs. It lies above this layer, and is copied from here, not imported."""
PLACES_CONFIG = {"tiles": "", "features": "", "tile_server": "", "data": ""}
"""What `model_config` can say of where tiles come from: `embeddings.pyfunc` reads it."""
_EXAMPLE = {"lon": [24.9414], "lat": [60.1719]}


def export(network: EncoderNetwork, folder: Path, example: torch.Tensor, tags: Mapping[str, str]) -> None:
    """Write a network as an MLflow model: a graph for windows, and code for places that loads the same graph.

    Args:
        network: On the CPU.
        folder: Must not exist yet.
        example: Some windows, uint8 `[N, S·C, size_px, size_px]`.
        tags: The model's metadata, by `tags_of`; `window_shape`, S·C and twice `size_px`, is added.
    """
    windows = example[:2].numpy()
    if len(windows) < 2:  # a batch of one would be exported as a batch of always one
        windows = np.repeat(windows, 2, axis=0)
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No complete tensor found")
        graph = Path(temporary) / "graph"
        mlflow.pytorch.save_model(
            network.eval(),
            graph,
            serialization_format="pt2",
            input_example=windows,
            signature=ModelSignature(
                inputs=Schema([TensorSpec(windows.dtype, (-1, *windows.shape[1:]))]),
                outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, int(tags["embedding_dim"])))]),
            ),
            pip_requirements=_REQUIREMENTS,
        )
        mlflow.pyfunc.save_model(
            folder,
            python_model=_CODE,
            model_config=PLACES_CONFIG,
            signature=ModelSignature(
                inputs=Schema([ColSpec(DataType.double, "lon"), ColSpec(DataType.double, "lat")]),
                outputs=Schema([ColSpec(Array(DataType.float), "embedding")]),
            ),
            input_example=pd.DataFrame(_EXAMPLE),
            metadata={**tags, "window_shape": list(windows.shape[1:])},
            pip_requirements=_REQUIREMENTS,
        )
        flavour = Model.load(graph).flavors["pytorch"]
        shutil.move(graph / flavour["model_data"], folder / flavour["model_data"])
    model = Model.load(folder)
    model.add_flavor("pytorch", **flavour)
    model.model_size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    model.save(folder / "MLmodel")


def load_graph(uri: str) -> torch.nn.Module:
    """The exported graph of a model, by its MLflow address or folder."""
    module: torch.nn.Module = mlflow.pytorch.load_model(uri)
    return module


def network_of(graph: torch.nn.Module, version: EncoderVersion) -> EncoderNetwork:
    """The network that was exported: the graph is bound to its device and to float32, which the network is not.

    Raises:
        EncoderError: The graph has other weights than are stated, or today's network is another.
    """
    if weights_digest(graph) != version.digest:
        raise EncoderError(
            f"Encoder {version.name}: its weights do not have the digest that the registry states. "
            "The artifact is damaged; train another version."
        )
    network = random_network(version.spec, version.seed)
    try:
        network.load_state_dict(graph.state_dict())
    except RuntimeError:
        raise EncoderError(
            f"Encoder {version.name}: an earlier Geobacter made it, whose '{version.network}' network was another. "
            "Take its alias away in MLflow and train a new one; the old one can still be had by "
            "mlflow.pytorch.load_model."
        ) from None
    return network


def read_version(folder: Path) -> EncoderVersion:
    """The version that a model's folder tells of; its number is that in the registry, or 0 where MLflow left none.

    Raises:
        RegistryError: The model is not one of ours.
    """
    model = Model.load(folder)
    registered = folder / REGISTERED_MODEL_META_FILE_NAME
    number = 0
    if registered.exists():
        number = int(read_yaml(folder, registered.name)["model_version"])  # type: ignore[no-untyped-call]
    return version_of(number, str(model.run_id or ""), model.metadata or {})


def load_encoder(folder: Path) -> Encoder:
    """The encoder in a model's folder, on the device that suits best.

    Raises:
        GeobacterError: The model is not one of ours, or damaged.
    """
    version = read_version(folder)
    return ready(version, network_of(load_graph(str(folder)), version))


def ready(version: EncoderVersion, network: EncoderNetwork) -> Encoder:
    """A network as an encoder, on the device that suits best."""
    device = best_device()
    return Encoder(version, Inference(network, version.size_px, device), batch_size(device))
