"""Bodies: what requests bring and answers carry, as JSON or as an Arrow stream."""

import io
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import orjson
import pyarrow as pa
from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, TypeAdapter, ValidationError

from geobacter_core.api.models import MAX_PLACES, EmbeddingsQuery
from geobacter_core.api.problems import ApiError, said
from geobacter_core.embeddings.places import check_places
from geobacter_core.encoder.evaluate import Embeddings
from geobacter_core.geo import Floats, Place

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
Body = TypeVar("Body")
_PLACES = TypeAdapter(EmbeddingsQuery)


class Json(JSONResponse):
    """An answer as JSON; arrays are written as they are, which for thousands of embeddings saves seconds."""

    def render(self, content: object) -> bytes:
        """The bytes."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def body_schema(*models: type[BaseModel], is_arrow: bool = False) -> dict[str, Any]:
    """The body of an operation that reads it itself, for OpenAPI: one of some models, or Arrow."""
    schemas = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
    content: dict[str, Any] = {JSON: {"schema": schemas[0] if len(schemas) == 1 else {"oneOf": schemas}}}
    if is_arrow:
        content[ARROW] = {"schema": {"type": "string", "format": "binary", "description": "columns lon and lat"}}
    return {"required": True, "content": content}


def content_type(request: Request, others: Sequence[str] = ()) -> str:
    """The kind of a body.

    Raises:
        ApiError: It is neither JSON nor one of the others.
    """
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind not in (JSON, *others):
        known = " or ".join((JSON, *others))
        raise ApiError(415, f"The body's Content-Type is '{kind[:80]}'. Send {known}.")
    return kind


def parsed(model: TypeAdapter[Body], body: bytes) -> Body:
    """A body of JSON as a model.

    Raises:
        ApiError: It is no JSON, or not what the model wants.
    """
    try:
        return model.validate_json(body)
    except ValidationError as problem:
        errors = problem.errors()
        if errors[0]["type"] == "json_invalid":
            raise ApiError(400, f"The body is not JSON: {errors[0]['msg']}. Correct it and ask again.") from None
        raise ApiError(422, said(errors)) from None


def places_in(body: bytes, kind: str) -> tuple[Floats, Floats]:
    """Longitudes and latitudes in a body of JSON or Arrow.

    Raises:
        ApiError: It cannot be read, or has too many places.
        PlaceError: One of them is not on the map.
    """
    if kind != ARROW:
        places = parsed(_PLACES, body).places
        return np.array([each.lon for each in places]), np.array([each.lat for each in places])
    try:
        with pa.ipc.open_stream(io.BytesIO(body)) as stream:
            batches = []
            n = 0
            for batch in stream:
                n += batch.num_rows
                if n > MAX_PLACES:
                    raise ApiError(422, f"More than {MAX_PLACES:,} places. Send several requests.")
                batches.append(batch.select(["lon", "lat"]))
            table = pa.Table.from_batches(batches, stream.schema if not batches else None)
        lon, lat = (table[name].cast(pa.float64()).to_numpy() for name in ("lon", "lat"))
    except (pa.ArrowException, KeyError, ValueError, OSError) as problem:
        raise ApiError(400, f"The body is no Arrow stream with columns lon and lat: {problem}. Correct it.") from None
    check_places(lon, lat)
    return lon, lat


def as_arrow(lon: Floats, lat: Floats, embeddings: Embeddings, encoder: str) -> bytes:
    """Places and their embeddings as an Arrow stream."""
    columns = {
        "lon": pa.array(lon),
        "lat": pa.array(lat),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1]),
    }
    table = pa.table(columns).replace_schema_metadata({"encoder": encoder})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def places_of_pairs(texts: Sequence[str]) -> list[Place]:
    """Places from texts `lon,lat`.

    Raises:
        PlaceError: One is not on the map.
    """
    return [Place(*(float(part) for part in text.split(","))) for text in texts]
