"""Dependencies point downwards, and the modules that Dagster loads stay free of what is slow to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
CORE = REPOSITORY / "geobacter_core"
LAYERS = ["base", "osm", "tiles", "samples", "encoder", "evaluation", "embeddings", "top"]
BASE = {"ahead", "cells", "errors", "files", "geo", "grid_file", "regions", "settings", "splice"}


def modules(folder=CORE):
    return sorted(path for path in folder.rglob("*.py"))


def dotted(path):
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path):
    """The dotted names that a module imports anywhere in it, also in functions and for type checking."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(name):
    part = name.split(".")[1] if "." in name else "base"
    if part in BASE:
        return LAYERS.index("base")
    return LAYERS.index(part) if part in LAYERS else LAYERS.index("top")


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_a_module_imports_only_from_its_own_layer_and_those_below(path):
    here = layer(dotted(path))
    above = [name for name in imported(path) if name.startswith("geobacter_core.") and layer(name) > here]
    assert above == []


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_the_core_knows_nothing_of_dagster(path):
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & {"dagster", "dagster_webserver", "geobacter_pipeline"}


def test_no_module_of_the_layers_up_to_samples_imports_torch_or_mlflow():
    names = [dotted(path) for path in modules() if layer(dotted(path)) <= LAYERS.index("samples")]
    assert "geobacter_core.tiles.cache" in names
    assert "geobacter_core.samples.triplets" in names
    program = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
print(sorted({{"torch", "torchvision", "mlflow", "pyrosm", "dagster", "sklearn", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_serving_needs_nothing_of_the_pipelines_packages():
    program = """
import sys
for name in "dagster", "sklearn", "scipy", "geopandas", "pyrosm", "pytorch_metric_learning", "matplotlib":
    sys.modules[name] = None  # whoever imports it, is told that it is not there
import geobacter_core.api.serve, geobacter_core.embeddings.pyfunc, geobacter_core.cli
print("served")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "served"
