"""`make dev`: the Dagster UI with its daemon, and the MLflow UI, on loopback, until Ctrl-C."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

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

    # Python sets this itself, but not where a shell started us in the background with the signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.stdout.write(f"\n  Dagster UI  {dagster_url}\n  MLflow UI   {mlflow_url}\n\n  Ctrl-C stops both.\n\n")
    sys.stdout.flush()
    # Sessions of their own: what they start is stopped with them, and hears of Ctrl-C from here only.
    processes = {
        name: subprocess.Popen(command, env=environment, start_new_session=True) for name, command in commands.items()
    }
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
            _signal_group(process, signal.SIGINT)
        for process in processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
            _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main())
