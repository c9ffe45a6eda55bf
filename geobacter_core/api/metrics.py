"""Figures for Prometheus: requests by operation and status, how long they took, and what the workers do."""

import time
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from geobacter_core.api.access import Limiter
    from geobacter_core.api.batching import Batcher
    from geobacter_core.api.state import Service

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The figures of one server process."""

    def __init__(self, service: "Service", batcher: "Batcher") -> None:
        """Count from 0."""
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "geobacter_requests", "Requests answered", ["operation", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "geobacter_request_seconds",
            "Until the answer began",
            ["operation"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        for name, what, value in (
            ("geobacter_windows_encoded", "Windows encoded since the start", lambda: batcher.n_windows),
            ("geobacter_batches", "Forward passes since the start", lambda: batcher.n_batches),
            ("geobacter_places_waiting", "Places that no worker has taken yet", lambda: batcher.n_waiting),
            ("geobacter_encoder_version", "Version of the encoder; 0 without one", lambda: _version(service)),
            ("geobacter_snapshots", "How often what is served was renewed", lambda: service.n_swaps),
        ):
            Gauge(name, what, registry=self._registry).set_function(value)

    def watch(self, limiter: "Limiter") -> None:
        """Also tell the requests under way."""
        gauge = Gauge("geobacter_requests_in_flight", "Requests under way", registry=self._registry)
        gauge.set_function(lambda: limiter.n_in_flight)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


def _version(service: "Service") -> int:
    places = service.snapshot.places
    return 0 if places is None else places.encoder.version.version


class Counted:
    """Counts every request: by the route it took, never by its path, which may be anything."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and count."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun = time.perf_counter()
        status = 499  # the client left

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                operation = getattr(scope.get("route"), "path", "none")
                self._metrics.seconds.labels(operation).observe(time.perf_counter() - begun)
            await send(message)

        try:
            return await self._app(scope, receive, counted)
        finally:
            operation = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(operation, str(status)).inc()
