"""Serving over HTTP: the checks before a server starts, and the server."""

import ipaddress
import logging
import os
import resource

from fastapi import FastAPI

from geobacter_core.api.access import TOKEN_VARIABLE, tokens_from
from geobacter_core.api.app import create_app
from geobacter_core.errors import ApiSettingsError
from geobacter_core.settings import Settings

DEFAULT_PORT = 8600
_CONNECTIONS = 12_000
"""Of each process. Idle ones cost some KB each; of requests a server takes far fewer at once (`access.Limits`)."""
_OTHER_FILES = 2_000
_KEEP_ALIVE_S = 15
_SHUTDOWN_S = 20


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens at `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(host: str, tokens: tuple[str, ...]) -> None:
    """Refuse to let strangers in.

    Raises:
        ApiSettingsError: Others can reach the server, and there is no token.
    """
    if not tokens and not is_loopback(host):
        raise ApiSettingsError(
            f"Others can reach a server at {host}, and {TOKEN_VARIABLE} is not set. Set it (python -c 'import secrets; "
            "print(secrets.token_urlsafe(32))' makes one), or listen on 127.0.0.1."
        )


def from_environment() -> FastAPI:
    """The application of a worker process, by the variables of `Settings` and `GEOBACTER_TOKEN`."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("geobacter_core").setLevel(logging.INFO)
    return create_app(Settings.from_environment(), tokens_from(os.environ))


def serve(host: str, port: int, workers: int) -> None:
    """Serve until a signal ends it; requests under way are then answered first.

    Args:
        host: Address to listen at.
        port: Port there.
        workers: Processes. One uses all processors for windows and forward passes; more of them help where the time
            goes into many small requests.

    Raises:
        ApiSettingsError: A token is missing or unusable.
    """
    import uvicorn

    check_host(host, tokens_from(os.environ))
    uvicorn.run(
        "geobacter_core.api.serve:from_environment",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        http="geobacter_core.api.connections:TimedProtocol",
        ws="none",
        limit_concurrency=_allow_connections(),
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_SHUTDOWN_S,
        access_log=False,  # where people look is nobody's business; /metrics counts
        server_header=False,
        log_level="warning" if workers == 1 else "info",
    )


def _allow_connections() -> int:
    """Let this process, and those it starts, have many files open: for how many connections the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _CONNECTIONS + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(wanted - _OTHER_FILES, wanted // 2)
