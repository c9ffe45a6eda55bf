"""The application of a server process: the operations (see `routes`), and what stands in front of them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from geobacter_core.api.access import Guard, Limiter, Limits
from geobacter_core.api.batching import Batcher
from geobacter_core.api.bodies import Json
from geobacter_core.api.metrics import Counted, Metrics
from geobacter_core.api.models import EmbeddingsQuery, SimilarToEmbedding, SimilarToPlaces
from geobacter_core.api.problems import Problem, add_handlers
from geobacter_core.api.routes import EXPLORER, Routes
from geobacter_core.api.state import Service
from geobacter_core.settings import Settings

_DESCRIPTION = (
    "Places as vectors. Map data © OpenStreetMap contributors, ODbL. Where the server has tokens, send one as "
    "`Authorization: Bearer TOKEN`. Errors are problem details (RFC 9457)."
)


def create_app(
    settings: Settings,
    tokens: Sequence[str] = (),
    limits: Limits | None = None,
    service: Service | None = None,
    batcher: Batcher | None = None,
) -> FastAPI:
    """The application of one server process; it reads nothing before it is started.

    Args:
        settings: Of the installation that is served.
        tokens: Those that let in; without any, only requests to this machine by its own name are answered.
        limits: What it takes on.
        service: What answers are made from; by default that of `settings`.
        batcher: The workers; by default one a processor.
    """
    service = service or Service(settings)
    workers = batcher or Batcher()
    metrics = Metrics(service, workers)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        workers.start()
        await asyncio.to_thread(service.start)
        yield
        await asyncio.to_thread(service.stop)
        await asyncio.to_thread(workers.close)

    app = FastAPI(
        title="Geobacter",
        version="1",
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        default_response_class=Json,
    )
    add_handlers(app)
    Routes(service, workers, metrics).add_to(app)
    app.mount("/explorer", StaticFiles(directory=EXPLORER), name="explorer")
    _describe(app)
    # From the inside out: what is refused is counted, too.
    app.add_middleware(_Limited, limits=limits or Limits(), metrics=metrics)
    app.add_middleware(Guard, tokens=tokens)
    app.add_middleware(Counted, metrics=metrics)
    return app


class _Limited(Limiter):
    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        super().__init__(app, limits)
        metrics.watch(self)


def _describe(app: FastAPI) -> None:
    """Complete the OpenAPI document: schemas of bodies that operations read themselves, and the token."""
    plain = app.openapi

    def complete() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for model in (EmbeddingsQuery, SimilarToEmbedding, SimilarToPlaces, Problem):
                own = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(own.pop("$defs", {}))
                schemas[model.__name__] = own
            document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"token": []}, {}]
        return app.openapi_schema or {}

    app.openapi = complete  # type: ignore[method-assign]
