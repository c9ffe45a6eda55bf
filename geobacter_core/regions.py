"""`regions.toml`: the named areas that Geobacter knows, validated on load."""

import re
import tomllib
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from geobacter_core.errors import GeobacterError, RegionsFileError, UnknownRegionError
from geobacter_core.geo import Bounds
from geobacter_core.settings import without_secrets

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SOURCE = re.compile(r"(?P<scheme>[a-z]+):(?P<rest>.+)")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_PUBLIC_TILE_SERVERS = ("openstreetmap.org", "osm.org")
TILE_POLICY = "https://operations.osmfoundation.org/policies/tiles/"
CATALOGUES = ("pyrosm", "geofabrik", "bbbike")


class Region(BaseModel):
    """A named area with an OSM extract.

    Attributes:
        name: The Dagster partition, and the folder under `GEOBACTER_DATA`.
        extract: `pyrosm:`, `geofabrik:` or `bbbike:` and a name, an `https://` address, or an absolute path.
        cell_resolution: H3 resolution of the region's embedding table, and of the cells that an evaluation asks about.
        cells: A GeoParquet file, absolute, whose rows are those of the embedding table instead (see `grid_file`).
        train: Whether the encoder is trained on the region's triplets.
        bounds: West, south, east, north in degrees; replaces those of the extract's header.
        labels: A file of labels to evaluate encoders on, absolute (see `evaluation.labels`).
        tile_server: Address with `{z}`, `{x}` and `{y}` of the server that draws the region in style `osm-carto`.
        updates: Address of a replication server whose change files the extract follows; `off` for none. By default the
            one in the header of a downloaded extract.
        fresh_hours: So long after its extract was last brought up to date, the region counts as fresh.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    extract: str
    cell_resolution: Annotated[int, Field(ge=5, le=13)] = 10
    cells: str | None = None
    train: bool = False
    bounds: tuple[float, float, float, float] | None = None
    labels: str | None = None
    tile_server: str | None = None
    updates: str | None = None
    fresh_hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 26.0

    @field_validator("bounds", mode="before")
    @classmethod
    def _bounds_are_on_the_map(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        if len(value) != 4 or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
            raise ValueError("must be four numbers: west, south, east, north in degrees")
        try:
            Bounds(*(float(v) for v in value))
        except GeobacterError as problem:
            raise ValueError(str(problem)) from None
        return tuple(float(v) for v in value)

    @field_validator("updates")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is None or value == "off":
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be the http or https address of the folder with state.txt, or 'off'")
        return value

    @field_validator("tile_server")
    @classmethod
    def _may_be_used(cls, value: str | None) -> str | None:
        return None if value is None else check_tile_server(value)


_FIELDS = f"The fields are {', '.join(sorted(set(Region.model_fields) - {'name'}))}."


def parse_source(extract: str) -> tuple[str, str]:
    """Split an `extract` setting into scheme and rest; a path has the scheme `path`.

    Raises:
        ValueError: The scheme is none that Geobacter resolves.
    """
    match = _SOURCE.fullmatch(extract)
    if match is None or (len(match["scheme"]) == 1):
        return "path", extract
    if match["scheme"] in (*CATALOGUES, "https"):
        return match["scheme"], match["rest"]
    raise ValueError(
        f"'{match['scheme']}:' is not a source. Use pyrosm:NAME, geofabrik:NAME, bbbike:NAME, https://… or a path"
    )


def load_regions(path: Path) -> dict[str, Region]:
    """Read a regions file; relative extract paths become absolute, from the file's folder.

    Raises:
        RegionsFileError: It names the file, the region and the field that is wrong.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise RegionsFileError(
            f"Regions file {path} cannot be read ({problem.strerror}). Create it, or point GEOBACTER_REGIONS to one."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise RegionsFileError(f"Regions file {path} is not TOML: {problem}. Mend that line.") from None

    tables = document.get("regions")
    unknown = sorted(set(document) - {"regions"})
    if unknown or not isinstance(tables, dict) or not tables:
        what = f"unknown top-level key '{unknown[0]}'" if unknown else "no region in it"
        raise RegionsFileError(f"Regions file {path}: {what}. It must hold tables named [regions.NAME].")
    return {name: _load_region(path, name, table) for name, table in tables.items()}


def _load_region(path: Path, name: str, table: object) -> Region:
    where = f"Regions file {path}, region '{name}'"
    if not _NAME.fullmatch(name):
        raise RegionsFileError(
            f"{where}: a region's name is 1 to 63 of a-z 0-9 _ and -, beginning with a letter or digit. Rename it."
        )
    if not isinstance(table, dict):
        raise RegionsFileError(f"{where}: must be a table. Write [regions.{name}] and its fields below.")
    if "name" in table:
        raise RegionsFileError(f"{where}, field 'name': the table's own name is the region's. {_FIELDS}")
    try:
        region = TypeAdapter(Region).validate_python({"name": name, **table})
        scheme, rest = parse_source(region.extract)
        if scheme == "path":
            region = region.model_copy(update={"extract": _absolute(path, rest)})
        files = {field: getattr(region, field) for field in ("cells", "labels")}
        region = region.model_copy(
            update={field: _absolute(path, file) for field, file in files.items() if file is not None}
        )
    except ValidationError as problem:
        first = problem.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "name"
        raise RegionsFileError(f"{where}, field '{field}': {first['msg']}. {_FIELDS}") from None
    except ValueError as problem:
        raise RegionsFileError(f"{where}, field 'extract': {problem}.") from None
    return region


def _absolute(regions_file: Path, path: str) -> str:
    """A path in a regions file, which is relative to that file."""
    return str((regions_file.parent / Path(path).expanduser()).resolve())


def find_region(regions: dict[str, Region], name: str) -> Region:
    """The region of that name.

    Raises:
        UnknownRegionError: It lists the known ones.
    """
    if name not in regions:
        raise UnknownRegionError(
            f"There is no region '{name}'. Known are: {', '.join(sorted(regions))}. "
            "Add it to regions.toml, or point GEOBACTER_REGIONS to the file that has it."
        )
    return regions[name]


def check_tile_server(url: str) -> str:
    """Return a tile server's address, `https?://…/{z}/{x}/{y}.png`, if it is one that Geobacter may use.

    Raises:
        ValueError: A placeholder is missing or unknown, it is no web address, or it is a public server of
            openstreetmap.org.
    """
    try:
        parts = urlsplit(url)
        shown = without_secrets(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        raise ValueError("the address cannot be read. Write http://HOST/…/{z}/{x}/{y}.png") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{shown} is not a web address. Write http://HOST/…/{{z}}/{{x}}/{{y}}.png")
    found = _PLACEHOLDER.findall(parts.path + parts.query)
    for name in ("z", "x", "y"):
        if found.count(name) != 1:
            raise ValueError(f"{shown} must have {{{name}}} in it once. Write http://HOST/…/{{z}}/{{x}}/{{y}}.png")
    if unknown := sorted(set(_PLACEHOLDER.findall(url)) - {"z", "x", "y"}):
        raise ValueError(f"{shown}: {{{unknown[0]}}} is not a placeholder. Known are {{z}}, {{x}} and {{y}}")
    if is_public_tile_server(host):
        raise ValueError(
            f"{shown} is a public server of openstreetmap.org, whose usage policy forbids bulk downloads "
            f"({TILE_POLICY}). Run a tile server of your own (docker-compose.yml), or use the embedded renderer"
        )
    return url


def tile_server_name(url: str) -> str:
    """What a tile cache records of the server that it came from: the address without secrets."""
    return f"server {without_secrets(url)}"


def is_public_tile_server(host: str) -> bool:
    """Whether a host is one of openstreetmap.org's."""
    name = host.rstrip(".").lower()
    return any(name == public or name.endswith(f".{public}") for public in _PUBLIC_TILE_SERVERS)
