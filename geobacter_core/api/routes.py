"""The operations of the API. Each takes the snapshot of the moment, and stays with it to its answer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import FileResponse
from PIL import Image
from pydantic import BaseModel, TypeAdapter
from starlette.concurrency import run_in_threadpool

from geobacter_core.api.batching import Batcher
from geobacter_core.api.bodies import (
    ARROW,
    Json,
    as_arrow,
    body_schema,
    content_type,
    parsed,
    places_in,
    places_of_pairs,
)
from geobacter_core.api.maps import MAX_ZOOM, MIN_ZOOM, PAPER, Remembered
from geobacter_core.api.metrics import CONTENT_TYPE, Metrics
from geobacter_core.api.models import (
    MAX_PICKED,
    MAX_STEPS,
    EmbeddingAnswer,
    EmbeddingsAnswer,
    EmbeddingsQuery,
    HealthAnswer,
    InterpolationAnswer,
    K,
    Lat,
    Lon,
    Metres,
    ModelAnswer,
    RegionsAnswer,
    SimilarAnswer,
    SimilarQuery,
    SimilarToEmbedding,
    SimilarToPlaces,
)
from geobacter_core.api.problems import ApiError, responses
from geobacter_core.api.state import Searchable, ServedRegion, Service, Snapshot, outline
from geobacter_core.embeddings.places import Places
from geobacter_core.embeddings.query import walk_between
from geobacter_core.embeddings.search import Hit, Near, nearest, nearest_cell
from geobacter_core.encoder.evaluate import Embeddings
from geobacter_core.geo import Floats, Place, Tile
from geobacter_core.plots.colours import to_rgb
from geobacter_core.plots.page import png_bytes

EXPLORER = Path(__file__).parent / "explorer"
PNG = "image/png"
_CSP = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_LON = r"-?(180(\.0{1,17})?|(1[0-7]\d|\d{1,2})(\.\d{1,17})?)"
_LAT = r"-?(85(\.0{1,17})?|([0-7]?\d|8[0-4])(\.\d{1,17})?)"
_PAIR = f"^{_LON},{_LAT}$"
_Pair = Annotated[str, Query(pattern=_PAIR, max_length=64, description="lon,lat in degrees", examples=["24.94,60.17"])]
_SIMILAR: TypeAdapter[SimilarToPlaces | SimilarToEmbedding] = TypeAdapter(SimilarQuery)
_OF_BODIES = (400, 404, 408, 413, 415, 422)
_OF_SEARCHES = (*_OF_BODIES, 409)
_CACHED = {"Cache-Control": "private, max-age=60"}
_PLAIN = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_SHORT_BODY = 32 << 10
"""Of JSON; of an Arrow stream, which may be compressed, nobody knows how much work it is."""
_FEW_PLACES = 256
_Method = TypeVar("_Method", bound=Callable[..., Any])
_Result = TypeVar("_Result")
_Given = ParamSpec("_Given")


def _operation(
    path: str,
    *answers: type[BaseModel] | str,
    tag: str = "",
    problems: Sequence[int] | None = (),
    body: Sequence[type[BaseModel]] = (),
    may_be_empty: bool = False,
) -> Callable[[_Method], _Method]:
    """Mark a method as an operation, with what OpenAPI is to say of it besides its docstring.

    Args:
        path: Its path.
        answers: Models of JSON, and media types of anything else, that it answers with.
        tag: Its group; without one it is not in the document.
        problems: Statuses that it can fail with besides those of all operations; None where it cannot.
        body: What a POST brings, which it reads itself: one of these.
        may_be_empty: Whether it can answer 204.
    """
    good: dict[str, Any] = {"content": {kind: {"schema": _STREAM} for kind in answers if isinstance(kind, str)}}
    models = [kind for kind in answers if not isinstance(kind, str)]
    if models:
        good["model"] = models[0]
    documented: dict[int | str, dict[str, Any]] = {200: good}
    if may_be_empty:
        documented[204] = {"description": "There is nothing to see"}
    if problems is not None:
        documented |= responses(*problems)

    def mark(method: _Method) -> _Method:
        method._route = {  # type: ignore[attr-defined]
            "path": path,
            "methods": ["POST" if body else "GET"],
            "responses": documented,
            "response_class": Json if models else Response,
            "tags": [tag],
            "summary": (method.__doc__ or "").rstrip("."),
            "description": " ",
            "include_in_schema": bool(tag),
            "openapi_extra": {"requestBody": body_schema(*body, is_arrow=ARROW in answers)} if body else None,
        }
        return method

    return mark


_STREAM = {"type": "string", "format": "binary"}


class Routes:
    """The operations, and what they are answered from."""

    def __init__(self, service: Service, batcher: Batcher, metrics: Metrics) -> None:
        """Answer from `service`, with `batcher` for what has to be embedded."""
        self._service = service
        self._batcher = batcher
        self._metrics = metrics
        self._tiles = Remembered()

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to these operations."""
        for name, method in vars(type(self)).items():
            if hasattr(method, "_route"):
                app.add_api_route(endpoint=getattr(self, name), response_model=None, **method._route)

    # The server and what it has.

    @_operation("/")
    async def explorer(self) -> Response:
        """The explorer."""
        return FileResponse(EXPLORER / "index.html", headers={"Content-Security-Policy": _CSP, **_PLAIN})

    @_operation("/favicon.ico")
    async def favicon(self) -> Response:
        """Its icon."""
        return FileResponse(EXPLORER / "favicon.svg", media_type="image/svg+xml")

    @_operation("/health", HealthAnswer, tag="server", problems=None)
    async def health(self) -> Response:
        """Does the process run?"""
        return Json({"status": "ok"})

    @_operation("/ready", HealthAnswer, tag="server")
    async def ready(self) -> Response:
        """Can it answer?"""
        self._snapshot.ready()
        return Json({"status": "ok"})

    @_operation("/metrics", "text/plain", tag="server")
    async def metrics(self) -> Response:
        """Figures for Prometheus."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    @_operation("/regions", RegionsAnswer, tag="what there is")
    async def regions(self) -> Response:
        """The regions that are served."""
        return Json({"regions": [_of_region(served) for served in self._snapshot.regions.values()]})

    @_operation("/model", ModelAnswer, tag="what there is")
    async def model(self) -> Response:
        """The encoder that answers."""
        version = self._snapshot.ready().encoder.version
        return Json(
            {
                "name": version.name,
                "version": version.version,
                "digest": version.digest,
                "style": version.style_label,
                "size_m": version.size_m,
                "context_m": version.context_m,
                "surroundings_m": version.surroundings_m,
                "size_px": version.size_px,
                "embedding_dim": version.embedding_dim,
                "network": version.network,
            }
        )

    # Embeddings.

    @_operation("/embeddings", EmbeddingAnswer, tag="embeddings", problems=(404, 422))
    async def embedding(self, lon: Annotated[Lon, Query()], lat: Annotated[Lat, Query()]) -> Response:
        """The embedding of a place."""
        snapshot = self._snapshot
        places = snapshot.ready()
        at = np.array([lon]), np.array([lat])
        served = snapshot.regions[places.grounds[places.regions_of(*at)[0]].region]
        row = await self._batcher.embed(places, *at)
        version = places.encoder.version
        cell, boundary = served.cell_at(Place(lon, lat))
        return Json(
            {
                "lon": lon,
                "lat": lat,
                "region": served.region.name,
                "cell": cell,
                "boundary": boundary,
                "encoder": version.name,
                "version": version.version,
                "embedding": row[0],
                "image": _image(lon, lat),
            }
        )

    @_operation("/embeddings", EmbeddingsAnswer, ARROW, tag="embeddings", problems=_OF_BODIES, body=(EmbeddingsQuery,))
    async def embeddings(self, request: Request) -> Response:
        """Embeddings of up to 10,000 places: JSON, or by `Accept` an Arrow stream."""
        places = self._snapshot.ready()
        body, kind = await request.body(), content_type(request, (ARROW,))
        lon, lat = await _aside(kind == ARROW or len(body) > _SHORT_BODY, places_in, body, kind)
        embeddings = await self._embedded(places, lon, lat)
        version, are_many = places.encoder.version, len(embeddings) > _FEW_PLACES
        if ARROW in request.headers.get("accept", ""):
            stream = await _aside(are_many, as_arrow, lon, lat, embeddings, version.name)
            return Response(stream, media_type=ARROW)
        answer = {
            "encoder": version.name,
            "version": version.version,
            "embedding_dim": version.embedding_dim,
            "embeddings": embeddings,
        }
        return await _aside(are_many, Json, answer)

    # Searches.

    @_operation("/similar", SimilarAnswer, tag="search", problems=(404, 422))
    async def similar(
        self,
        lon: Annotated[Lon, Query()],
        lat: Annotated[Lat, Query()],
        k: Annotated[K, Query()] = 10,
        region: Annotated[list[str] | None, Query(description="where to search; everywhere if absent")] = None,
        min_distance_m: Annotated[
            Metres, Query(description="results are so far from each other, and from the place")
        ] = 0,
        max_distance_m: Annotated[Metres | None, Query(description="and at most so far from the place")] = None,
    ) -> Response:
        """The cells most similar to a place."""
        where = self._snapshot.searchable(region)
        row = (await self._embedded(where.places, np.array([lon]), np.array([lat])))[0]
        near = Near((Place(lon, lat),), min_distance_m, max_distance_m)
        return await self._found(where, row, k, near, min_distance_m)

    @_operation(
        "/similar", SimilarAnswer, tag="search", problems=_OF_SEARCHES, body=(SimilarToPlaces, SimilarToEmbedding)
    )
    async def similar_to(self, request: Request) -> Response:
        """The cells most similar to an embedding, or to several places."""
        content_type(request)
        query = parsed(_SIMILAR, await request.body())
        where = self._snapshot.searchable(query.regions)
        near: Near | None = None
        if isinstance(query, SimilarToEmbedding):
            vector = np.array(query.embedding, np.float32)
        else:
            picked = [Place(each.lon, each.lat) for each in query.places]
            vector = (await self._embedded(where.places, *_arrays(picked))).mean(axis=0)
            near = Near(tuple(picked), query.min_distance_m, query.max_distance_m)
        return await self._found(where, vector, query.k, near, query.min_distance_m)

    @_operation("/interpolate", InterpolationAnswer, tag="search", problems=(404, 422))
    async def interpolation(
        self,
        start: Annotated[_Pair, Query(alias="from")],
        end: Annotated[_Pair, Query(alias="to")],
        steps: Annotated[int, Query(ge=2, le=MAX_STEPS)] = 7,
        region: Annotated[list[str] | None, Query(description="where to search; everywhere if absent")] = None,
    ) -> Response:
        """A walk from one place to another, by embeddings."""
        where = self._snapshot.searchable(region)
        ends = await self._embedded(where.places, *_arrays(places_of_pairs([start, end])))

        def walk() -> list[dict[str, Any]]:
            walked: list[dict[str, Any]] = []
            for share, hit in walk_between(where.tables, ends[0], ends[1], steps):
                step = _of_hit(hit, None)
                del step["ground_m"], step["distance"]
                walked.append({"t": share, **step})
            return walked

        return Json({"encoder": where.places.encoder.version.name, "steps": await run_in_threadpool(walk)})

    @_operation("/arithmetic", SimilarAnswer, tag="search", problems=(404, 409, 422))
    async def arithmetic(
        self,
        plus: Annotated[list[_Pair], Query(min_length=1, max_length=MAX_PICKED)],
        minus: Annotated[list[_Pair] | None, Query(max_length=MAX_PICKED)] = None,
        k: Annotated[K, Query()] = 10,
        region: Annotated[list[str] | None, Query(description="where to search; everywhere if absent")] = None,
        min_distance_m: Annotated[
            Metres, Query(description="results are so far from each other, and from the places")
        ] = 0,
    ) -> Response:
        """The cells most similar to some places and least to others."""
        where = self._snapshot.searchable(region)
        picked = places_of_pairs([*plus, *(minus or [])])
        rows = await self._embedded(where.places, *_arrays(picked))
        vector = rows[: len(plus)].sum(axis=0) - rows[len(plus) :].sum(axis=0)
        return await self._found(where, vector, k, Near(tuple(picked), min_distance_m), min_distance_m)

    # Pictures.

    @_operation("/image", PNG, tag="pictures", problems=(404, 422))
    async def image(
        self,
        lon: Annotated[Lon, Query()],
        lat: Annotated[Lat, Query()],
        size_px: Annotated[int, Query(ge=16, le=512, description="side of the picture")] = 256,
        side_m: Annotated[
            float | None,
            Query(ge=20, le=900, description="ground metres along a side; by default all that is learnt from"),
        ] = None,
    ) -> Response:
        """The window of a place."""
        snapshot = self._snapshot
        places = snapshot.ready()
        version = places.encoder.version
        lon_, lat_ = np.array([lon]), np.array([lat])
        number = places.regions_of(lon_, lat_)[0]
        extent_m = side_m or version.context_m or version.size_m

        def draw() -> bytes:
            reader = places.grounds[number].reader(extent_m, size_px, memory=places.memory)
            window = np.moveaxis(reader.windows(lon_, lat_)[0], 0, -1)
            return png_bytes(Image.fromarray(to_rgb(window, snapshot.channels)))

        return _picture(await run_in_threadpool(draw))

    @_operation("/tile/{z}/{x}/{y}.png", PNG, tag="pictures", problems=(404, 422), may_be_empty=True)
    async def tile(self, z: int, x: int, y: int) -> Response:
        """A tile of the base map."""
        tile = _tile(z, x, y, MIN_ZOOM)
        regions = self._snapshot.regions.values()
        box = tile.polygon
        maps = [
            served.base_map for served in regions if served.base_map is not None and served.geometry.intersects(box)
        ]
        if not maps:
            return Response(status_code=204, headers=_CACHED)

        def draw() -> bytes:
            pixels = maps[0].draw(tile)
            for other in maps[1:]:
                drawn = other.draw(tile)
                is_drawn = (drawn != np.array(PAPER, np.uint8)).any(axis=2)
                pixels[is_drawn] = drawn[is_drawn]
            return png_bytes(Image.fromarray(pixels))

        key = ("map", tile, *(each.files for each in maps))
        return _picture(await run_in_threadpool(self._tiles.get, key, draw))

    @_operation("/cells/{region}/{z}/{x}/{y}.png", PNG, tag="pictures", problems=(404, 422), may_be_empty=True)
    async def cells(self, region: str, z: int, x: int, y: int) -> Response:
        """Cells in the colours of their embeddings."""
        tile = _tile(z, x, y, 0)
        served = self._snapshot.region(region)
        cell_map = served.cell_map
        if cell_map is None or not served.geometry.intersects(tile.polygon):
            return Response(status_code=204, headers=_CACHED)

        def draw() -> bytes | None:
            pixels = cell_map.draw(tile)
            return None if pixels is None else png_bytes(Image.fromarray(pixels))

        key = ("cells", region, cell_map.table.digest, tile)
        return _picture(await run_in_threadpool(self._tiles.get, key, draw))

    # What they share.

    @property
    def _snapshot(self) -> Snapshot:
        return self._service.snapshot

    async def _embedded(self, places: Places, lon: Floats, lat: Floats) -> Embeddings:
        places.regions_of(lon, lat)  # what cannot be answered does not wait
        return await self._batcher.embed(places, lon, lat)

    async def _found(
        self, where: Searchable, vector: Embeddings, k: int, near: Near | None, spacing_m: float
    ) -> Response:
        def search() -> list[dict[str, Any]]:
            # Who picks several places wants others like them.
            several = near.places if near is not None and len(near.places) > 1 else ()
            own = {nearest_cell(where.tables, place).cell for place in several}
            hits = nearest(where.tables, vector, k, near, spacing_m, own, where.indexes)
            return [_of_hit(hit, near) for hit in hits]

        return Json({"encoder": where.places.encoder.version.name, "results": await run_in_threadpool(search)})


async def _aside(
    is_long: bool, function: Callable[_Given, _Result], *given: _Given.args, **named: _Given.kwargs
) -> _Result:
    """What a function gives: of long work in a thread, and else here, for to have one do it takes longer."""
    return await run_in_threadpool(function, *given, **named) if is_long else function(*given, **named)


def _tile(z: int, x: int, y: int, min_zoom: int) -> Tile:
    if not min_zoom <= z <= MAX_ZOOM or not (0 <= x < 1 << z and 0 <= y < 1 << z):
        raise ApiError(404, f"There is no tile {z}/{x}/{y}: zooms are {min_zoom} to {MAX_ZOOM}, x and y 0 to 2^z - 1.")
    return Tile(z, x, y)


def _picture(body: bytes | None) -> Response:
    if body is None:
        return Response(status_code=204, headers=_CACHED)
    return Response(body, media_type=PNG, headers=_CACHED)


def _image(lon: float, lat: float) -> str:
    return f"/image?lon={lon:.7f}&lat={lat:.7f}"


def _arrays(places: Sequence[Place]) -> tuple[Floats, Floats]:
    return np.array([place.lon for place in places]), np.array([place.lat for place in places])


def _of_hit(hit: Hit, near: Near | None) -> dict[str, Any]:
    here = hit.place
    return {
        "region": hit.table.region,
        "cell": hit.cell,
        "boundary": outline(hit.table.geometry(hit.row)),
        "lon": here.lon,
        "lat": here.lat,
        "similarity": hit.similarity,
        "distance": 1 - hit.similarity,
        "ground_m": None if near is None else round(hit.away_m(near), 1),
        "image": _image(here.lon, here.lat),
    }


def _of_region(served: ServedRegion) -> dict[str, Any]:
    table = served.table
    return {
        "name": served.region.name,
        "bounds": [float(edge) for edge in served.geometry.bounds],
        "cell_resolution": served.cell_resolution,
        "n_cells": 0 if table is None else len(table),
        "osm_timestamp": None if table is None else table.metadata.get("osm_timestamp"),
        "encoder": None if table is None else table.encoder,
        "style": served.style,
        "digest": None if table is None else table.digest,
    }
