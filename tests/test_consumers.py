"""The guide for consumers: every block of Python in docs/consumers.md runs as it is written."""

import re
import threading
import time
from pathlib import Path

import mlflow
import pytest
import uvicorn

import geobacter_core
from geobacter_core.api.app import create_app

REPOSITORY = Path(geobacter_core.__file__).parents[1]
GUIDE = (REPOSITORY / "docs" / "consumers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
TOKEN = "a-token-for-the-guides-tests"


def test_the_guide_has_all_ways():
    for word in ("mlflow.pyfunc", "mlflow.pytorch", "geopandas", "pyarrow", "requests", "httpx"):
        assert any(word in block for block in BLOCKS), word


@pytest.fixture(scope="session")
def api(installation):
    """The API on a port of loopback, as `geobacter serve` has it, with a token: its address."""
    server = uvicorn.Server(uvicorn.Config(create_app(installation, [TOKEN]), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    (port,) = {socket.getsockname()[1] for each in server.servers for socket in each.sockets}
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{number}" for number in range(len(BLOCKS))])
def test_a_block_runs_as_it_is_written(block, api, installation, monkeypatch, capsys):
    for name in ("TILES", "FEATURES", "TILE_SERVER", "DATA"):
        monkeypatch.delenv(f"GEOBACTER_{name}", raising=False)
    monkeypatch.setenv("GEOBACTER_URL", api)
    monkeypatch.setenv("GEOBACTER_TOKEN", TOKEN)
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
