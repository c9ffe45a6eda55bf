"""`geobacter serve`: the HTTP API and the explorer."""

from typing import Annotated

import typer


def serve(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port there.")] = 8600,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes.")] = 1,
) -> None:
    """Serve embeddings, similar places and maps over HTTP.

    A page to explore them is at the address itself. GEOBACTER_TOKEN holds the token, or several, that callers send as
    `Authorization: Bearer TOKEN`. Without one, only this machine can ask. The champion and the tables are followed: a
    new one is served within seconds.
    """
    from geobacter_core.api.serve import serve as serve_api

    typer.echo(f"The explorer: http://{'localhost' if host in ('127.0.0.1', '0.0.0.0', '::1', '::') else host}:{port}/")
    serve_api(host, port, workers)
