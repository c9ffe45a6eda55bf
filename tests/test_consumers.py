"""The guide for consumers: every block of Python in docs/consumers.md runs as it is written."""

import re
from pathlib import Path

import mlflow
import pytest

import geobacter_core

REPOSITORY = Path(geobacter_core.__file__).parents[1]
GUIDE = (REPOSITORY / "docs" / "consumers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def test_the_guide_has_all_ways():
    for word in ("mlflow.pyfunc", "mlflow.pytorch", "geopandas", "pyarrow", "requests", "httpx"):
        assert any(word in block for block in BLOCKS), word


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{number}" for number in range(len(BLOCKS))])
def test_a_block_runs_as_it_is_written(block, api, api_token, installation, monkeypatch, capsys):
    for name in ("TILES", "FEATURES", "TILE_SERVER", "DATA"):
        monkeypatch.delenv(f"GEOBACTER_{name}", raising=False)
    monkeypatch.setenv("GEOBACTER_URL", api)
    monkeypatch.setenv("GEOBACTER_TOKEN", api_token)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    # The guide's paths are those of a repository whose data folder is `data`.
    monkeypatch.chdir(installation.data.parent)
    before = mlflow.get_tracking_uri()
    try:
        exec(compile(block, "docs/consumers.md", "exec"), {"__name__": "__main__"})
    finally:
        mlflow.set_tracking_uri(before)
    if "print(" in block:
        assert capsys.readouterr().out.strip()
