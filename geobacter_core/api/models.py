"""What the API takes and gives: the schemas of its OpenAPI document."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from geobacter_core.geo import MERCATOR_MAX_LAT

MAX_PLACES = 10_000
MAX_K = 1000
MAX_STEPS = 50
MAX_PICKED = 100
_DISTANCE = "ground metres"

Lon = Annotated[
    float, Field(ge=-180, le=180, allow_inf_nan=False, description="longitude, degrees east", examples=[24.9414])
]
Lat = Annotated[
    float,
    Field(
        ge=-MERCATOR_MAX_LAT,
        le=MERCATOR_MAX_LAT,
        allow_inf_nan=False,
        description="latitude, degrees north",
        examples=[60.1719],
    ),
]
K = Annotated[int, Field(ge=1, le=MAX_K, description="how many cells at most")]
Metres = Annotated[float, Field(ge=0, le=2e7, allow_inf_nan=False, description=_DISTANCE)]


LonLat = Annotated[list[float], Field(min_length=2, max_length=2)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PlaceBody(_Body):
    """A place."""

    lon: Lon
    lat: Lat


class EmbeddingsQuery(_Body):
    """Places to embed."""

    places: Annotated[list[PlaceBody], Field(max_length=MAX_PLACES, description="in the order of the answer")]


class _Search(_Body):
    k: K = 10
    regions: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None,
        Field(min_length=1, max_length=1000, description="where to search; everywhere if absent"),
    ] = None
    min_distance_m: Annotated[Metres, Field(description="results are so far from each other, and from the places")] = 0


class SimilarToEmbedding(_Search):
    """An embedding, of which the nearest cells are searched for."""

    embedding: Annotated[
        list[Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]],
        Field(min_length=1, max_length=4096, description="as many numbers as the encoder's; its direction counts"),
    ]


class SimilarToPlaces(_Search):
    """Places; cells are searched for that are like all of them (their mean embedding), and not themselves."""

    places: Annotated[list[PlaceBody], Field(min_length=1, max_length=MAX_PICKED)]
    max_distance_m: Annotated[Metres | None, Field(description="and at most so far from the nearest place")] = None


def _of_places(body: object) -> str:
    return "places" if isinstance(body, dict) and "places" in body else "embedding"


SimilarQuery = Annotated[
    Annotated[SimilarToPlaces, Tag("places")] | Annotated[SimilarToEmbedding, Tag("embedding")],
    Discriminator(_of_places),
]


class EmbeddingAnswer(BaseModel):
    """The embedding of a place."""

    lon: float
    lat: float
    region: str = Field(description="the region whose tiles the window was cut from")
    cell: str = Field(description="the H3 cell that the place lies in, of the region's resolution")
    boundary: list[LonLat] = Field(description="the cell's outline, lon and lat")
    encoder: str = Field(description="name/version in the registry")
    version: int
    embedding: list[float] = Field(description="of length 1")
    image: str = Field(description="address of a picture of the window")


class EmbeddingsAnswer(BaseModel):
    """Embeddings of places, in their order."""

    encoder: str
    version: int
    embedding_dim: int
    embeddings: list[list[float]]


class Found(BaseModel):
    """A cell that was found."""

    region: str
    cell: str
    boundary: list[LonLat] = Field(description="the cell's outline, lon and lat")
    lon: float = Field(description="of its centre")
    lat: float
    similarity: float = Field(description="cosine of the embeddings, -1 to 1")
    distance: float = Field(description="1 - similarity")
    ground_m: float | None = Field(description="from the nearest place that was asked about")
    image: str


class SimilarAnswer(BaseModel):
    """Cells, the most similar first."""

    encoder: str
    results: list[Found]


class Step(BaseModel):
    """The cell nearest to a point on the way from one embedding to another."""

    t: float = Field(description="0 at the start, 1 at the end")
    region: str
    cell: str
    boundary: list[LonLat]
    lon: float
    lat: float
    similarity: float
    image: str


class InterpolationAnswer(BaseModel):
    """A walk from one place to another, by embeddings."""

    encoder: str
    steps: list[Step]


class RegionAnswer(BaseModel):
    """A region that is served."""

    name: str
    bounds: list[float] = Field(min_length=4, max_length=4, description="west, south, east, north")
    cell_resolution: int
    n_cells: int = Field(description="0 where there is no table yet")
    osm_timestamp: str | None
    encoder: str | None = Field(description="that made the table")
    style: str
    digest: str | None = Field(description="of the table's content")


class RegionsAnswer(BaseModel):
    """The regions that are served."""

    regions: list[RegionAnswer]


class ModelAnswer(BaseModel):
    """The encoder that answers."""

    name: str
    version: int
    digest: str = Field(description="SHA-256 of the weights")
    style: str
    size_m: float
    context_m: float | None
    surroundings_m: float | None
    size_px: int
    embedding_dim: int
    network: str


class HealthAnswer(BaseModel):
    """The process runs."""

    status: str
