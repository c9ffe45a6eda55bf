"""Map features: an extract's drawable geometry as FlatGeobuf in EPSG:3857, spatially indexed, for Mapnik to read.

Three files, `points.fgb`, `lines.fgb`, `polygons.fgb`, with one string column per tag key that the styles read and the
integer column `layer`. They lie in a folder named after their recipe; the manifest `features.json`, written last,
names it, so that a reader never meets files of two makings.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import osmium
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from geobacter_core.errors import FeaturesError
from geobacter_core.files import (
    TEMPORARY_PREFIX,
    digest_of,
    only_one,
    read_json,
    remove_temporaries,
    sha256_of_file,
    temporary_beside,
    write_json,
)
from geobacter_core.geo import Bounds, lonlat_to_mercator, mercator_scale
from geobacter_core.osm.coastline import sea_polygons
from geobacter_core.osm.extract import Extract
from geobacter_core.osm.nodes import NodeTable, node_table
from geobacter_core.osm.order import put_in_order

VERSION = "3"
"""Raise when the same extract would give other features."""

LAYERS = ("points", "lines", "polygons")
_GEOMETRY_TYPES = {"points": "Point", "lines": "LineString", "polygons": "MultiPolygon"}
_LINEAR_KEYS = frozenset(
    {"aerialway", "aeroway", "barrier", "highway", "man_made", "natural", "power", "railway", "waterway"}
)
"""A closed way with one of these may be a line (a roundabout, a fence); any other closed way is an area only."""
_BATCH = 8192
_MARGIN_M = 3000.0
"""Features this far outside the bounds still show in windows at the edge."""
MANIFEST = "features.json"
_log = logging.getLogger(__name__)

Row = tuple[bytes, list[str | None], int]
_Item = osmium.osm.Node | osmium.osm.Way | osmium.osm.Area


class Features(BaseModel):
    """The manifest of a region's map features.

    Attributes:
        region: The region's name.
        recipe: Digest of everything that the files follow from.
        digest: Digest of the files' content: the asset's data version.
        extract_sha256: The extract they were made from.
        osm_timestamp: That of the extract.
        keys: The tag columns.
        counts: Features per file, and the sea polygons among them.
        broken: Geometries left out, by reason.
    """

    model_config = ConfigDict(frozen=True)

    region: str
    recipe: str
    digest: str
    extract_sha256: str
    osm_timestamp: str
    keys: tuple[str, ...]
    counts: dict[str, int]
    broken: dict[str, int]


def keys_digest(keys: Sequence[str]) -> str:
    """A short name for a set of tag columns."""
    return digest_of(sorted(set(keys)))[:12]


def load_features(folder: Path) -> tuple[Features, Path]:
    """The manifest in `folder` and the path of the folder with the FlatGeobuf files.

    Raises:
        FeaturesError: There is no manifest, or a file that it stands for is missing.
    """
    remedy = "Materialise map_features for the region."
    features = read_json(folder / MANIFEST, Features, FeaturesError, remedy)
    files = folder / features.recipe[:16]
    for layer in LAYERS:
        if not (files / f"{layer}.fgb").is_file():
            raise FeaturesError(f"{files / layer}.fgb is missing. {remedy}")
    return features, files


def features_problems(folder: Path) -> list[str]:
    """What is wrong with the map features in `folder`: schema, reference system, counts; nothing if all is well."""
    try:
        features, files = load_features(folder)
    except FeaturesError as problem:
        return [str(problem)]
    import pyogrio  # brings geopandas and pandas along, a second of start-up

    problems: list[str] = []
    for layer in LAYERS:
        info = pyogrio.read_info(files / f"{layer}.fgb", force_feature_count=True)
        if info["crs"] != "EPSG:3857":
            problems.append(f"{layer}.fgb is in {info['crs']}, not EPSG:3857.")
        if tuple(sorted(info["fields"])) != tuple(sorted((*features.keys, "layer"))):
            problems.append(f"{layer}.fgb does not have the columns that the manifest lists.")
        if info["features"] != features.counts[layer]:
            problems.append(f"{layer}.fgb has {info['features']} features, the manifest says {features.counts[layer]}.")
    return problems


def build_features(extract: Extract, pbf: Path, keys: Sequence[str], folder: Path) -> Features:
    """Turn an extract into FlatGeobuf files under `folder`, holding the tags named in `keys`.

    The file is streamed once per geometry type, and node locations are kept on disk, so memory is that of the
    multipolygons that still wait for members and of one index entry per feature. Geometries that cannot be built are
    counted by reason and left out.

    Raises:
        FeaturesError: Nothing in the extract can be drawn.
        GeobacterError: The disk has no room.
    """
    keys = tuple(sorted(set(keys)))
    recipe = digest_of("features", VERSION, extract.sha256, extract.bounds, keys)

    def make(work: Path) -> Features:
        counts, broken = _write_layers(extract, pbf, keys, work)
        if not any(counts[layer] for layer in LAYERS):
            raise FeaturesError(
                f"Extract of region '{extract.region}' ({extract.source}): nothing in it can be drawn with the tags "
                f"{', '.join(keys[:6])}, …. Give the region another extract, or check its bounds {extract.bounds}."
            )
        return Features(
            region=extract.region,
            recipe=recipe,
            digest=content_digest(work),
            extract_sha256=extract.sha256,
            osm_timestamp=extract.osm_timestamp,
            keys=keys,
            counts=counts,
            broken=broken,
        )

    with only_one(folder, "another run"):
        return kept_or_made(folder, recipe, make)


def kept_or_made(folder: Path, recipe: str, make: Callable[[Path], Features]) -> Features:
    """The map features in `folder` if they are of that recipe, or else those that `make` writes in their place.

    Args:
        folder: Gets the files, in a folder named after the recipe, and the manifest, written last.
        recipe: Digest of everything that the files follow from.
        make: Writes the three files into the empty folder that it is given, and returns their manifest.

    Raises:
        FeaturesError: `make` raised it; what was there stays.
        GeobacterError: The disk has no room.
    """
    try:
        present = load_features(folder)[0]
        if present.recipe == recipe:
            _log.info("%s: map features are up to date", present.region)
            return present
    except FeaturesError:
        pass

    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    final = folder / recipe[:16]
    work = temporary_beside(final)
    work.mkdir()
    try:
        features = make(work)
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write_json(folder / MANIFEST, features)
    for other in folder.iterdir():
        if other.is_dir() and other != final and not other.name.startswith(TEMPORARY_PREFIX):
            shutil.rmtree(other, ignore_errors=True)
    return features


def content_digest(files: Path) -> str:
    """Digest of the content of the three files in a folder."""
    return digest_of(*(sha256_of_file(files / f"{layer}.fgb") for layer in LAYERS))


def _write_layers(
    extract: Extract, pbf: Path, keys: tuple[str, ...], folder: Path
) -> tuple[dict[str, int], dict[str, int]]:
    broken: Counter[str] = Counter()
    near = _near(extract.box)
    coastlines: list[shapely.LineString] = []
    counts = {"points": _write(folder / "points.fgb", "points", keys, _points(pbf, keys, broken), near)}
    with node_table(folder, extract.counts.nodes) as nodes:
        lines = _lines(pbf, nodes, keys, broken, coastlines)
        counts["lines"] = _write(folder / "lines.fgb", "lines", keys, lines, near)
    west, south, east, north = extract.bounds
    corners = lonlat_to_mercator(np.array([west, east]), np.array([south, north]))
    box = (float(corners[0][0]), float(corners[1][0]), float(corners[0][1]), float(corners[1][1]))
    sea, n_open = sea_polygons(shapely.transform(coastlines, _to_mercator), box)
    if n_open:
        broken["coastline that does not reach the edge"] = n_open
    counts["sea"] = len(sea)
    with node_table(folder, extract.counts.nodes) as nodes:
        polygons = _polygons(pbf, nodes, keys, broken)
        first = _sea_batch(sea, keys)
        counts["polygons"] = _write(folder / "polygons.fgb", "polygons", keys, polygons, near, first)
    return counts, dict(broken)


def reach_box(bounds: Bounds) -> tuple[float, float, float, float]:
    """West, south, east, north in degrees of what is kept for a region, a little generously."""
    scale = float(mercator_scale(np.array([bounds.south, bounds.north]))[0].max())
    margin = 2 * scale * _MARGIN_M / 111_000
    return bounds.west - margin, bounds.south - margin, bounds.east + margin, bounds.north + margin


def _near(bounds: Bounds) -> tuple[float, float, float, float]:
    """The mercator box of what can show in a window of the region."""
    x, y = lonlat_to_mercator(np.array([bounds.west, bounds.east]), np.array([bounds.south, bounds.north]))
    margin = _MARGIN_M * float(mercator_scale(np.array([bounds.south, bounds.north]))[0].max())
    return float(x[0]) - margin, float(y[0]) - margin, float(x[1]) + margin, float(y[1]) + margin


def _to_mercator(lonlat: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack(lonlat_to_mercator(lonlat[:, 0], lonlat[:, 1]), axis=1)


def _write(
    path: Path,
    layer: str,
    keys: tuple[str, ...],
    rows: Iterator[Row],
    near: tuple[float, float, float, float],
    first: pa.RecordBatch | None = None,
) -> int:
    """Stream rows into one FlatGeobuf file; returns how many features it got."""
    schema = layer_schema(keys)

    def batches() -> Iterator[pa.RecordBatch]:
        if first is not None:
            yield first.cast(schema)
        for chunk in _in_batches(rows):
            yield _batch(chunk, keys, schema, near)

    return write_layer(path, layer, keys, batches())


def layer_schema(keys: Sequence[str]) -> pa.Schema:
    """The columns of a file: geometry as WKB in EPSG:3857, a string per tag key, the number `layer`."""
    return pa.schema([("geometry", pa.binary()), *((key, pa.string()) for key in keys), ("layer", pa.int32())])


def write_layer(path: Path, layer: str, keys: Sequence[str], batches: Iterable[pa.RecordBatch]) -> int:
    """Stream batches in `layer_schema` into one FlatGeobuf file; returns how many features it got."""
    import pyogrio  # see features_problems

    schema = layer_schema(keys)
    n_features = 0

    def counted() -> Iterator[pa.RecordBatch]:
        nonlocal n_features
        for batch in batches:
            if batch.num_rows:
                n_features += batch.num_rows
                yield batch

    pyogrio.write_arrow(
        pa.RecordBatchReader.from_batches(schema, counted()),
        path,
        driver="FlatGeobuf",
        layer=layer,
        geometry_name="geometry",
        geometry_type=_GEOMETRY_TYPES[layer],
        crs="EPSG:3857",
    )
    put_in_order(path, n_features)
    return n_features


def read_layer(files: Path, layer: str, keys: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The features of one file as batches in `layer_schema`, in the file's order.

    Args:
        files: Folder with `points.fgb`, `lines.fgb` and `polygons.fgb`.
        layer: `points`, `lines` or `polygons`.
        keys: Tag columns to read, those that are there; by default all.
    """
    import pyogrio  # see features_problems

    path = files / f"{layer}.fgb"
    columns = None if keys is None else [*keys, "layer"]
    with pyogrio.open_arrow(path, columns=columns, batch_size=_BATCH, use_pyarrow=True) as (_, reader):
        keys = [name for name in reader.schema.names if name not in ("layer", "wkb_geometry")]
        schema = layer_schema(keys)
        for batch in reader:
            columns = [batch.column("wkb_geometry" if name == "geometry" else name) for name in schema.names]
            yield pa.RecordBatch.from_arrays(columns, schema.names).cast(schema)


def _in_batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _batch(
    rows: list[Row], keys: tuple[str, ...], schema: pa.Schema, near: tuple[float, float, float, float]
) -> pa.RecordBatch:
    geometry = shapely.transform(shapely.from_wkb([row[0] for row in rows]), _to_mercator)
    west, south, east, north = shapely.bounds(geometry).T
    kept = np.nonzero((east >= near[0]) & (north >= near[1]) & (west <= near[2]) & (south <= near[3]))[0]
    tags = [rows[index][1] for index in kept]
    columns = [pa.array(shapely.to_wkb(geometry[kept]), pa.binary())]
    columns += [pa.array([row[column] for row in tags], pa.string()) for column in range(len(keys))]
    columns.append(pa.array([rows[index][2] for index in kept], pa.int32()))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _sea_batch(sea: list[shapely.Polygon], keys: tuple[str, ...]) -> pa.RecordBatch:
    geometry = shapely.to_wkb([shapely.multipolygons([polygon]) for polygon in sea])
    tags = {key: pa.array(["sea" if key == "natural" else None] * len(sea), pa.string()) for key in keys}
    return pa.record_batch(
        {"geometry": pa.array(geometry, pa.binary()), **tags, "layer": pa.array([0] * len(sea), pa.int32())}
    )


def _points(pbf: Path, keys: tuple[str, ...], broken: Counter[str]) -> Iterator[Row]:
    factory = osmium.geom.WKBFactory()
    nodes: Iterable[Any] = osmium.FileProcessor(_file(pbf), osmium.osm.NODE).with_filter(osmium.filter.KeyFilter(*keys))
    for node in nodes:
        yield from _row(node, keys, factory.create_point, broken, "point")


def _lines(
    pbf: Path, nodes: NodeTable, keys: tuple[str, ...], broken: Counter[str], coastlines: list[shapely.LineString]
) -> Iterator[Row]:
    factory = osmium.geom.WKBFactory()
    ways: Iterable[Any] = (
        osmium.FileProcessor(_file(pbf), osmium.osm.NODE | osmium.osm.WAY)
        .with_locations(nodes.index)
        .with_filter(osmium.filter.EntityFilter(osmium.osm.WAY))
        .with_filter(osmium.filter.KeyFilter(*keys, "natural"))
    )
    for way in ways:
        tags = way.tags
        is_coastline = tags.get("natural") == "coastline"
        if not is_coastline and way.is_closed() and not any(key in tags for key in _LINEAR_KEYS):
            if _misses_nodes(way, factory):
                broken["polygon with missing nodes"] += 1
            continue
        for row in _row(way, keys, factory.create_linestring, broken, "line"):
            if is_coastline:
                coastlines.append(shapely.from_wkb(row[0]))
            yield row


def _misses_nodes(way: osmium.osm.Way, factory: osmium.geom.WKBFactory) -> bool:
    """Whether the file lacks some of a way's nodes. Osmium tells it in a tenth of the time that a loop takes."""
    if not way.nodes[0].location.valid():  # osmium skips these
        return True
    try:
        factory.create_linestring(way)
    except osmium.InvalidLocationError:
        return True
    except RuntimeError:  # all nodes are at one place
        return False
    return False


def _polygons(pbf: Path, nodes: NodeTable, keys: tuple[str, ...], broken: Counter[str]) -> Iterator[Row]:
    factory = osmium.geom.WKBFactory()
    # Osmium hands over the areas that it has finished whenever an object passes the filters. That is what the ways are
    # let through for: without them it would keep all areas until it comes to the relations.
    items: Iterable[Any] = (
        osmium.FileProcessor(_file(pbf))
        .with_locations(nodes.index)
        .with_areas(osmium.filter.KeyFilter(*keys))
        .with_filter(osmium.filter.EntityFilter(osmium.osm.WAY | osmium.osm.RELATION | osmium.osm.AREA))
        .with_filter(osmium.filter.KeyFilter(*keys))
    )
    unassembled = 0
    for item in items:
        if item.is_way():
            continue
        if item.is_relation():
            unassembled += item.tags.get("type") in ("multipolygon", "boundary")
            continue
        unassembled -= not item.from_way()
        yield from _row(item, keys, factory.create_multipolygon, broken, "polygon")
    if unassembled > 0:
        broken["multipolygon with missing or broken members"] += unassembled


def _file(pbf: Path) -> osmium.io.File:
    return osmium.io.File(str(pbf), "pbf")


def _row(
    item: _Item, keys: tuple[str, ...], create: Callable[..., str], broken: Counter[str], kind: str
) -> Iterator[Row]:
    """The item as a row, or nothing, counted, where its geometry cannot be built."""
    try:
        geometries = [bytes.fromhex(create(item))]
    except osmium.InvalidLocationError:
        geometries = _known_stretches(item) if isinstance(item, osmium.osm.Way) else []
        broken[f"{kind} with missing nodes"] += 1
    except RuntimeError as problem:
        geometries = []
        broken[f"{kind}: {str(problem).split('(')[0].strip()}"] += 1
    tags = item.tags
    for geometry in geometries:
        yield geometry, [tags.get(key) for key in keys], _layer(tags.get("layer"))


def _known_stretches(way: osmium.osm.Way) -> list[bytes]:
    """The parts of a way whose nodes are in the file: extracts cut at their edge leave some out."""
    stretches: list[list[tuple[float, float]]] = [[]]
    for node in way.nodes:
        location = node.location
        if location.valid():
            stretches[-1].append((location.lon, location.lat))
        elif stretches[-1]:
            stretches.append([])
    return [shapely.to_wkb(shapely.LineString(points)) for points in stretches if len(set(points)) > 1]


def _layer(text: str | None) -> int:
    """OSM's `layer` tag as a number within ±5; 0 where it is absent or not a number."""
    try:
        return max(-5, min(5, int(text or 0)))
    except ValueError:
        return 0
