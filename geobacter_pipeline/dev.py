"""`make dev`: the Dagster UI with its daemon, and the MLflow UI, on loopback, until Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from geobacter_core.settings import Settings, without_secrets

HOST = "127.0.0.1"
_GRACE_S = 15.0


def free_port(first: int) -> int:
    """The first port from `first` on that nothing listens on."""
    for port in range(first, first + 100):
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) != 0:
                return port
    raise OSError(f"No free port from {first} to {first + 99} on {HOST}.")


def main() -> int:
    """Start both, print their addresses, and stop both when one ends or the person does."""
    settings = Settings.from_environment()
    dagster_url = f"http://{HOST}:{(dagster_port := free_port(3000))}"
    bin_ = Path(sys.executable).parent
    environment = dict(os.environ)
    commands = {}
    if settings.tracking_uri.startswith("sqlite:"):
        mlflow_url = f"http://{HOST}:{(mlflow_port := free_port(5000))}"
        settings.mlflow_artifacts.mkdir(parents=True, exist_ok=True)
        commands["MLflow"] = [
            f"{bin_}/mlflow", "server", "--host", HOST, "--port", str(mlflow_port), "--workers", "1",
            "--backend-store-uri", settings.tracking_uri,
            "--default-artifact-root", settings.mlflow_artifacts.as_uri(),
        ]  # fmt: skip
        environment["GEOBACTER_MLFLOW_UI"] = mlflow_url
    else:
        mlflow_url = without_secrets(settings.tracking_uri)
    commands["Dagster"] = [
        f"{bin_}/dagster",
        "dev",
        "-w",
        "workspace.yaml",
        "-h",
        HOST,
        "-p",
        str(dagster_port),
    ]

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    sys.stdout.write(f"\n  Dagster UI  {dagster_url}\n  MLflow UI   {mlflow_url}\n\n  Ctrl-C stops both.\n\n")
    sys.stdout.flush()
    processes = {name: subprocess.Popen(command, env=environment) for name, command in commands.items()}
    try:
        while True:
            for name, process in processes.items():
                if process.poll() is not None:
                    sys.stderr.write(f"{name} ended with status {process.returncode}; stopping the other.\n")
                    return 1
            time.sleep(0.5)
    except KeyboardInterrupt:
        return 0
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in processes.values():
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    sys.exit(main())
