"""A region's extract: resolve the source, prove that it is OSM data, write its provenance next to it.

The file is kept under its digest and the provenance, written last, names it: whoever reads the provenance sees
one extract, whole, also while another one is taking its place.
"""

import base64
import hashlib
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np
import osmium
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from geobacter_core.errors import DownloadError, ExtractError, RegionGeometryError
from geobacter_core.files import (
    read_json,
    remove_temporaries,
    sha256_of_file,
    temporary_beside,
    write_json,
    written_aside,
)
from geobacter_core.geo import REGION_MAX_LAT, TILE_PX, TILE_ZOOM, Bounds, Floats, lonlat_to_pixel, pixel_to_lonlat
from geobacter_core.osm.nodes import NodeTable, node_table
from geobacter_core.osm.published import Published, load_published, look_up, write_published
from geobacter_core.regions import CATALOGUES, Region, parse_source
from geobacter_core.settings import redacted, without_secrets

VERSION = "3"
"""Raise when the same file would give another provenance."""

_log = logging.getLogger(__name__)
_PROVENANCE = "provenance.json"
_CLOSED_TILES = 3
_UNITS = 10_000_000
"""OSM counts a degree in so many steps."""
_HALF_WORLD = (180 * _UNITS, 90 * _UNITS)
_BYTES_PER_NODE = 8
"""Of a PBF file, ways and relations included: between 8 and 10."""


class Counts(BaseModel):
    """How many objects of each kind the extract holds; of nodes, those with ids from 0 up, as all that OSM has."""

    model_config = ConfigDict(frozen=True)

    nodes: int
    ways: int
    relations: int


class Extract(BaseModel):
    """An extract's provenance.

    Attributes:
        region: The region's name.
        source: As in `regions.toml`, without credentials.
        file: The `.osm.pbf`, beside the provenance.
        sha256: Of the file: the asset's data version.
        origin_sha256: Of the file as it came from its source, before any change was applied to it.
        size_bytes: Of the file.
        bounds: West, south, east, north in degrees: the region's setting, the header's, or those of the nodes.
        bounds_from: Which of the three: `settings`, `header` or `nodes`.
        coverage: The ground that the data covers within the bounds, as WKT in degrees.
        osm_timestamp: State of the OSM data, ISO 8601: the header's, or where it has none, that of the newest object.
        replication_sequence: Sequence number of the replication the extract follows, or None.
        replication_url: Its address, or None.
        generator: The program that wrote the file, or None.
        counts: Objects in the file.
        version: Version of the code that wrote this.
    """

    model_config = ConfigDict(frozen=True)

    region: str
    source: str
    file: str
    sha256: str
    origin_sha256: str
    size_bytes: int
    bounds: tuple[float, float, float, float]
    bounds_from: str
    coverage: str
    osm_timestamp: str
    replication_sequence: int | None
    replication_url: str | None
    generator: str | None
    counts: Counts
    version: str

    @property
    def box(self) -> Bounds:
        """The bounds as a type."""
        return Bounds(*self.bounds)

    @property
    def ground(self) -> shapely.Geometry:
        """The coverage as a geometry, degrees, lon first."""
        return shapely.from_wkt(self.coverage)

    def is_of(self, region: Region) -> bool:
        """Whether it was made from the source and for the bounds that the region has today."""
        bounds_fit = self.bounds == region.bounds if region.bounds else self.bounds_from != "settings"
        return self.source == _source_without_secrets(region) and bounds_fit


def load_extract(folder: Path) -> tuple[Extract, Path]:
    """The provenance in `folder` and the path of the file that it names.

    Raises:
        ExtractError: There is none, or the file does not lie beside it.
    """
    remedy = "Materialise osm_extract for the region."
    extract = read_json(folder / _PROVENANCE, Extract, ExtractError, remedy)
    path = folder / extract.file
    if not path.is_file() or path.stat().st_size != extract.size_bytes:
        raise ExtractError(f"The extract {path} is missing or not of the size that its provenance states. {remedy}")
    return extract, path


def load_ground(folder: Path) -> shapely.Geometry | None:
    """The ground that the extract in `folder` covers, degrees; None where it is not known. The file is not needed."""
    try:
        return read_json(folder / _PROVENANCE, Extract, ExtractError, "").ground
    except ExtractError:
        return None


def extract_problems(folder: Path) -> list[str]:
    """What is wrong with the extract in `folder`: nothing, if the file has the digest that its provenance states."""
    try:
        extract, path = load_extract(folder)
    except ExtractError as problem:
        return [str(problem)]
    if sha256_of_file(path) != extract.sha256:
        return [f"{path} does not have the SHA-256 of its provenance. Materialise osm_extract for the region."]
    return []


def fetch_extract(region: Region, folder: Path) -> Extract:
    """Get the region's extract, verify it, and put it with its provenance into `folder`.

    Local and bundled files are copied, catalogue and web addresses are downloaded (pyrosm does both, with resume and
    retries), unless the server says that it has the file still that was downloaded before. A source whose bytes are
    those that `folder` already has, or has brought up to date, changes nothing.

    Raises:
        DownloadError: The download failed, or what came has not the digest that the server publishes; another try may
            succeed.
        ExtractError: The source cannot be resolved, or what came is not readable OSM data.
        RegionGeometryError: The region lies where tiles cannot be.
        GeobacterError: The disk has no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    scratch = temporary_beside(folder / "download")
    scratch.mkdir()
    try:
        address = web_address(region)
        published = None if address is None else look_up(*address)
        present = present_extract(region, folder)
        if present is not None and published is not None and _has_come_from(folder, present, published):
            _log.info("%s: %s has the file still that was downloaded before", region.name, published.address)
            return present
        candidate = _resolve(region, scratch)
        origin = sha256_of_file(candidate)
        if published is not None:
            _check_digest(candidate, region, published)
            published = published.model_copy(update={"origin_sha256": origin})
        if present is not None and present.origin_sha256 == origin:
            _log.info("%s: the source is unchanged (sha256 %s…)", region.name, origin[:12])
            extract = present
        else:
            extract = adopt(candidate, region, folder, scratch, origin)
        if published is not None:
            write_published(folder, published)
        return extract
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def adopt(candidate: Path, region: Region, folder: Path, scratch: Path, origin_sha256: str | None = None) -> Extract:
    """Verify a file and make it the extract in `folder`; the one before stays until the new one is whole.

    Args:
        candidate: The `.osm.pbf`.
        region: Whose extract it is.
        folder: Where extract and provenance lie.
        scratch: A folder for what is needed on the way.
        origin_sha256: Of the file as it came from its source; by default that of the candidate.

    Raises:
        ExtractError: It is not readable OSM data.
        RegionGeometryError: The region lies where tiles cannot be.
    """
    sha256 = sha256_of_file(candidate)
    extract = _inspect(candidate, region, sha256, origin_sha256 or sha256, scratch)
    with written_aside(folder / extract.file) as temporary:
        shutil.copyfile(candidate, temporary)
        if sha256_of_file(temporary) != sha256:
            raise ExtractError(f"{where(region)}: the file changed while it was copied. Materialise again.")
    write_json(folder / _PROVENANCE, extract)
    for other in folder.glob("*.osm.pbf"):
        if other.name != extract.file:
            other.unlink()
    return extract


def present_extract(region: Region, folder: Path) -> Extract | None:
    """The extract in `folder`, if it is whole, of this version, and of the region as it is defined today."""
    present = known_extract(region, folder)
    return present if present is not None and sha256_of_file(folder / present.file) == present.sha256 else None


def known_extract(region: Region, folder: Path) -> Extract | None:
    """As `present_extract`, but the file is not read."""
    try:
        present, _ = load_extract(folder)
    except ExtractError:
        return None
    return present if present.version == VERSION and present.is_of(region) else None


def _has_come_from(folder: Path, present: Extract, published: Published) -> bool:
    """Whether the extract in `folder` was made from the file that a server has today."""
    known = load_published(folder)
    return known is not None and known.origin_sha256 == present.origin_sha256 and published.is_same_file(known)


def _check_digest(candidate: Path, region: Region, published: Published) -> None:
    if published.md5 is None:
        return
    with candidate.open("rb") as data:
        md5 = hashlib.file_digest(data, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != published.md5:
        raise DownloadError(
            f"{where(region)}: what came from {published.address} has the MD5 {md5}, and {published.md5} is published "
            "beside it: it was damaged on the way, or replaced meanwhile. Materialise again; the earlier extract, if "
            "any, stays as it was."
        )


def web_address(region: Region) -> tuple[str, dict[str, str]] | None:
    """Where a source is downloaded from, and the headers that this takes; None for a file that is here.

    Raises:
        ExtractError: The catalogue does not have it.
    """
    scheme, name = parse_source(region.extract)
    if scheme == "https":
        return _credentials_as_header(region.extract)
    if scheme not in CATALOGUES[1:]:
        return None
    from pyrosm.data import search_source

    try:
        _check_catalogue(scheme, name)
        return str(search_source(name.lower())["url"]), {}
    except ValueError as problem:
        raise _unknown(region, problem) from None


def _source_without_secrets(region: Region) -> str:
    return without_secrets(region.extract) if region.extract.startswith("https:") else region.extract


def where(region: Region) -> str:
    """The beginning of an error about a region's extract."""
    return f"Extract of region '{region.name}' ({_source_without_secrets(region)})"


def _resolve(region: Region, scratch: Path) -> Path:
    """The path of a local file with the region's data; downloads land in `scratch`."""
    scheme, name = parse_source(region.extract)
    if scheme == "path":
        path = Path(region.extract)
        if not path.is_file():
            raise ExtractError(f"{where(region)}: there is no such file. Correct `extract` in regions.toml.")
        return path
    # pyrosm's catalogue modules take a while to import, and local files do not need them.
    from pyrosm.data import get_data
    from pyrosm.exceptions import DownloadError as PyrosmDownloadError
    from pyrosm.utils.download import download

    try:
        if scheme == "https":
            url, headers = _credentials_as_header(region.extract)
            return Path(
                download(url=url, filename="web.osm.pbf", update=True, target_dir=str(scratch), headers=headers)
            )
        _check_catalogue(scheme, name)
        return Path(get_data(name, update=True, directory=str(scratch)))
    except (OSError, PyrosmDownloadError) as problem:
        raise DownloadError(
            f"{where(region)}: the download failed: {redacted(str(problem), region.extract)} "
            "Check the network and materialise again."
        ) from None
    except ValueError as problem:
        raise _unknown(region, problem) from None


def _check_catalogue(scheme: str, name: str) -> None:
    """Refuse a name that pyrosm knows, but from another publisher than the region names."""
    from pyrosm.data import sources

    is_city = name.lower() in {city.lower() for city in sources.available["cities"]}
    if scheme in CATALOGUES[1:] and is_city != (scheme == "bbbike"):
        raise ValueError(f"{scheme} has no extract '{name}'.")


def _unknown(region: Region, problem: ValueError) -> ExtractError:
    return ExtractError(
        f"{where(region)}: {redacted(str(problem), region.extract)} Correct `extract` in regions.toml; "
        "pyrosm.data.available lists the names."
    )


def _credentials_as_header(url: str) -> tuple[str, dict[str, str]]:
    """The address without user and password, and the header that takes their place: urllib wants it so."""
    parts = urlsplit(url)
    user_info, _, host = parts.netloc.rpartition("@")
    if not user_info:
        return url, {}
    token = base64.b64encode(unquote(user_info).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {token}"}


@dataclass(frozen=True, slots=True)
class _Contents:
    """What one pass over a file finds: header, counts, the nodes' box, and when the newest object was made."""

    header: osmium.io.Header
    counts: Counts
    n_invalid: int
    box: tuple[float, float, float, float]
    newest: str


def _header_timestamp(header: osmium.io.Header) -> str:
    return header.get("osmosis_replication_timestamp") or header.get("timestamp")


def _inspect(path: Path, region: Region, sha256: str, origin_sha256: str, scratch: Path) -> Extract:
    """Read the whole file once: that proves it readable, counts it, and finds the ground it covers."""
    size_bytes = path.stat().st_size
    with node_table(scratch, size_bytes // _BYTES_PER_NODE) as nodes:
        try:
            contents = _read_through(path, nodes)
        except RuntimeError as problem:
            raise ExtractError(
                f"{where(region)}: not readable as OSM data: {problem}{_hint(path)} "
                "Get the file again; the earlier extract, if any, stays as it was."
            ) from None
        if contents.n_invalid:
            raise ExtractError(
                f"{where(region)}: {contents.n_invalid} nodes have coordinates outside ±180° longitude or ±90° "
                "latitude. The file is damaged; get it again."
            )
        if not contents.counts.nodes:
            raise ExtractError(
                f"{where(region)}: the file holds no nodes, so there is nothing to map. Get another one."
            )
        bounds, bounds_from = _bounds(contents, region)
        coverage = _coverage(nodes, contents.box, bounds, region)
    header = contents.header
    sequence = header.get("osmosis_replication_sequence_number")
    return Extract(
        region=region.name,
        source=_source_without_secrets(region),
        file=f"{sha256[:16]}.osm.pbf",
        sha256=sha256,
        origin_sha256=origin_sha256,
        size_bytes=size_bytes,
        bounds=(bounds.west, bounds.south, bounds.east, bounds.north),
        bounds_from=bounds_from,
        coverage=shapely.to_wkt(coverage, rounding_precision=7),
        osm_timestamp=_header_timestamp(header) or contents.newest,
        replication_sequence=int(sequence) if sequence.isdigit() else None,
        replication_url=header.get("osmosis_replication_base_url") or None,
        generator=header.get("generator") or None,
        counts=contents.counts,
        version=VERSION,
    )


def _hint(path: Path) -> str:
    """What an unreadable file seems to be, as the end of a sentence."""
    with path.open("rb") as data:
        head = data.read(512).lstrip().lower()
    if not head:
        return " (the file is empty)."
    if head.startswith((b"<!doctype html", b"<html")):
        return " (it is an HTML page, perhaps a server's error or login page)."
    if b"osmheader" in head:
        return " (it begins as a PBF file, so it is probably truncated)."
    return "."


class _Counter:
    """Counts ways and relations; osmium, which calls it, does not even show it the nodes."""

    n_ways = 0
    n_relations = 0

    def way(self, _: osmium.osm.Way) -> None:
        self.n_ways += 1

    def relation(self, _: osmium.osm.Relation) -> None:
        self.n_relations += 1


def _read_through(path: Path, nodes: NodeTable) -> _Contents:
    """Fill the table and count; nodes go by without a line of Python run for any of them."""
    file = osmium.io.File(str(path), "pbf")
    keep = osmium.NodeLocationsForWays(nodes.index)
    keep.apply_nodes_to_ways = False
    counter = _Counter()
    with osmium.io.Reader(file) as reader:
        header = reader.header()
        osmium.apply(reader, keep, counter)
    # Looking at every object's time is slow, so it is done only for headers that lack one.
    newest = "" if _header_timestamp(header) else _newest(file)
    n_invalid = 0
    low, high = np.array(_HALF_WORLD), -np.array(_HALF_WORLD)
    for location in nodes.locations():
        n_invalid += int((np.abs(location.astype(np.int64)) > _HALF_WORLD).any(axis=1).sum())
        low, high = np.minimum(low, location.min(axis=0)), np.maximum(high, location.max(axis=0))
    counts = Counts(nodes=len(nodes), ways=counter.n_ways, relations=counter.n_relations)
    west, south, east, north = (float(corner) for corner in np.concatenate([low, high]) / _UNITS)
    return _Contents(header, counts, n_invalid, (west, south, east, north), newest)


def _newest(file: osmium.io.File) -> str:
    items: Iterable[Any] = osmium.FileProcessor(file)
    newest = max((item.timestamp for item in items), default=datetime.fromtimestamp(0, UTC))
    return newest.strftime("%Y-%m-%dT%H:%M:%SZ")


def _bounds(contents: _Contents, region: Region) -> tuple[Bounds, str]:
    """The region's box, and whether it comes from the settings, the header or the nodes."""
    header_box = contents.header.box()
    if region.bounds is not None:
        corners, origin = region.bounds, "settings"
    elif header_box.valid():
        low, high = header_box.bottom_left, header_box.top_right
        corners, origin = (low.lon, low.lat, high.lon, high.lat), "header"
    else:
        corners, origin = contents.box, "nodes"
    try:
        return Bounds(*corners), origin
    except RegionGeometryError as problem:
        raise RegionGeometryError(f"{where(region)}, bounds from the {origin}: {problem}") from None


def _tiles_at(lon: Floats, lat: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns and rows of the zoom-16 tiles that hold places in degrees."""
    x, y = lonlat_to_pixel(lon, lat)
    return x.astype(np.int64) // TILE_PX, y.astype(np.int64) // TILE_PX


def _coverage(
    nodes: NodeTable, box: tuple[float, float, float, float], bounds: Bounds, region: Region
) -> shapely.Geometry:
    """The tiles that hold nodes, with gaps of up to six tiles closed and holes filled, cut to the bounds.

    A country's extract is cut along its border, and its box is not full: the empty corners are left out, while lakes,
    woods and bays, which hold few nodes but belong to the place, stay in.
    """
    left, top, right, bottom = bounds.tile_range(TILE_ZOOM)
    # A header can claim far more than there is: no more than the box of the nodes is looked at.
    corners = np.clip(np.array([box[3], box[1]]), -REGION_MAX_LAT, REGION_MAX_LAT)
    columns, rows = _tiles_at(np.array([box[0], box[2]]), corners)
    left, top = max(left, int(columns[0])), max(top, int(rows[0]))
    right, bottom = min(right, int(columns[1])), min(bottom, int(rows[1]))
    raster = np.zeros((max(0, bottom - top + 1), max(0, right - left + 1)), dtype=bool)
    for location in nodes.locations():
        lon, lat = location[np.abs(location[:, 1]) < REGION_MAX_LAT * _UNITS].T / _UNITS
        column, row = _tiles_at(lon, lat)
        within = (column >= left) & (column <= right) & (row >= top) & (row <= bottom)
        raster[row[within] - top, column[within] - left] = True
    if not raster.any():
        raise RegionGeometryError(
            f"{where(region)}: no node lies within {bounds.polygon.bounds}. Correct `bounds` in regions.toml."
        )
    raster = np.pad(raster, _CLOSED_TILES)
    left, top = left - _CLOSED_TILES, top - _CLOSED_TILES
    square = np.ones((2 * _CLOSED_TILES + 1,) * 2, dtype=bool)
    from scipy import ndimage  # a server that only looks up the ground has none

    raster = ndimage.binary_fill_holes(ndimage.binary_closing(raster, square))
    # Runs of tiles along a row become boxes: far fewer shapes to unite than tiles.
    steps = np.diff(raster.astype(np.int8), axis=1, prepend=0, append=0)
    run_row, begin = np.nonzero(steps == 1)
    end = np.nonzero(steps == -1)[1]
    side = np.float64(TILE_PX)
    west, north = pixel_to_lonlat((begin + left) * side, (run_row + top) * side)
    east, south = pixel_to_lonlat((end + left) * side, (run_row + top + 1) * side)
    ground: shapely.Geometry = shapely.union_all(shapely.box(west, south, east, north), grid_size=1e-9)
    return shapely.intersection(ground, bounds.polygon)
