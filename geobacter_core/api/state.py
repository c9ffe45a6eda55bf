"""What is served at a moment, and how it follows the registry and the data folder without dropping a request.

A `Snapshot` never changes: a request that began with one ends with it. A thread looks every few seconds whether the
champion, a tile cache, a region's features or a table is another, and puts a new snapshot in place of the old one.
"""

import gc
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import h3
import numpy as np
import shapely

from geobacter_core.api.maps import BaseMap, CellMap, base_map_style
from geobacter_core.api.problems import ApiError
from geobacter_core.embeddings.index import Index, index_of, is_wanted
from geobacter_core.embeddings.mapped import MappedTable, map_table
from geobacter_core.embeddings.places import Ground, Places, find_ground, memory_for_tiles, style_of
from geobacter_core.embeddings.search import nearest_cell
from geobacter_core.encoder.registry import Registry
from geobacter_core.encoder.version import Encoder, EncoderVersion
from geobacter_core.errors import GeobacterError
from geobacter_core.geo import Floats, Place
from geobacter_core.osm.features import MANIFEST as FEATURES_MANIFEST
from geobacter_core.plots.colours import to_rgb
from geobacter_core.regions import Region, load_regions
from geobacter_core.settings import Settings
from geobacter_core.tiles.cache import MANIFEST
from geobacter_core.tiles.mosaic import ChunkMemory
from geobacter_core.tiles.source import Pixels
from geobacter_core.tiles.style import Style, load_style
from geobacter_core.tiles.window import WindowReader

LOOK_EVERY_S = 10.0
_COLOUR_WINDOW_M, _COLOUR_WINDOW_PX = 200.0, 32
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedRegion:
    """What there is of a region.

    Attributes:
        region: Its definition.
        ground: Its ground and tiles.
        style: `name/version` of its tiles' style.
        table: Its embedding table, if it has one.
        base_map: Draws its features, if it has any.
        cell_map: Draws its cells, if it has a table.
    """

    region: Region
    ground: Ground
    style: str
    table: MappedTable | None = None
    base_map: BaseMap | None = None
    cell_map: CellMap | None = None

    @property
    def geometry(self) -> shapely.Geometry:
        """What it covers, degrees."""
        return self.ground.geometry

    def is_drawn_from(self, table: MappedTable | None, ground: Ground) -> bool:
        """Whether its cells look as those of a table do on some ground."""
        is_table = self.table is not None and table is not None and self.table.digest == table.digest
        return is_table and self.ground.chunks.key == ground.chunks.key

    @property
    def cell_resolution(self) -> int:
        """H3 resolution of its cells; where they are those of a user's grid, the one that it is defined with."""
        of_table = None if self.table is None else self.table.metadata.get("cell_resolution")
        return self.region.cell_resolution if of_table is None else int(of_table)

    def cell_at(self, place: Place) -> tuple[str, list[list[float]]]:
        """The cell that a place lies in, or of a user's grid the nearest, and its outline, lon and lat in degrees."""
        if self.region.cells is not None and self.table is not None:
            hit = nearest_cell([self.table], place)
            return hit.cell, outline(self.table.geometry(hit.row))
        cell = str(h3.latlng_to_cell(place.lat, place.lon, self.cell_resolution))
        return cell, [[lon, lat] for lat, lon in h3.cell_to_boundary(cell)]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a look finds: a snapshot is made from it, and again only when it is another.

    Attributes:
        regions: Those of the regions file.
        champion: The champion, if there is one.
        files: State of the files that say what there is of each region.
    """

    regions: Mapping[str, Region]
    champion: EncoderVersion | None
    files: tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Searchable:
    """Tables of one encoder.

    Attributes:
        places: The encoder, and what it can embed.
        tables: The tables.
        indexes: Those of very large tables, by digest.
    """

    places: Places
    tables: list[MappedTable]
    indexes: Mapping[str, Index]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that requests are answered from.

    Attributes:
        regions: By name.
        places: The champion and what it can embed; None without a champion.
        encoders: Those of tables, by name; the champion's too.
        indexes: Those of very large tables, by digest, as far as they are made.
        why_not: What is missing for answers, in words; None if nothing is.
        channels: Names of the channels of the champion's style.
        seen: What it was made from.
    """

    regions: Mapping[str, ServedRegion] = field(default_factory=dict)
    places: Places | None = None
    encoders: Mapping[str, Places] = field(default_factory=dict)
    indexes: Mapping[str, Index] = field(default_factory=dict)
    why_not: str | None = "The server has not looked at its data yet."
    channels: tuple[str, ...] = ()
    seen: _Seen | None = None

    def ready(self) -> Places:
        """The places.

        Raises:
            ApiError: There is no encoder, or no region.
        """
        if self.places is None or self.why_not is not None:
            raise ApiError(503, self.why_not or "There is no encoder.", int(LOOK_EVERY_S))
        return self.places

    def region(self, name: str) -> ServedRegion:
        """A region by its name.

        Raises:
            ApiError: It is unknown.
        """
        if name not in self.regions:
            raise ApiError(404, f"There is no region '{name[:64]}'. Known are: {', '.join(self.regions)}.")
        return self.regions[name]

    def searchable(self, names: list[str] | None = None) -> Searchable:
        """The tables of some regions, or of all, that were made by one encoder: the champion, if any was.

        Raises:
            ApiError: A region is unknown or has no table, or there is none at all.
        """
        champion = self.ready().encoder.version.name
        chosen = [self.region(name) for name in dict.fromkeys(names or self.regions)]
        tables = [
            served.table for served in chosen if served.table is not None and served.table.encoder in self.encoders
        ]
        if not tables:
            which = ", ".join(served.region.name for served in chosen)
            raise ApiError(404, f"No embedding table of {which} can be searched. Materialise region_embeddings.")
        encoder = champion if any(table.encoder == champion for table in tables) else tables[0].encoder
        return Searchable(self.encoders[encoder], [table for table in tables if table.encoder == encoder], self.indexes)


class Service:
    """The snapshot of the moment, and the thread that renews it."""

    def __init__(self, settings: Settings, look_every_s: float = LOOK_EVERY_S) -> None:
        """Serve an installation; nothing is read before `look`."""
        self.settings = settings
        self.snapshot = Snapshot()
        self.n_swaps = 0
        self._look_every_s = look_every_s
        self._registry: Registry | None = None
        self._memory = ChunkMemory(memory_for_tiles())
        self._loaded: dict[str, Encoder] = {}
        self._considered: set[str] = set()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Look once, and then every few seconds in a thread."""
        self._ended.clear()
        self.look()
        self._thread = threading.Thread(target=self._keep_looking, name="looking", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        gc.unfreeze()

    def _keep_looking(self) -> None:
        while True:
            self._index()
            if self._ended.wait(self._look_every_s):
                return
            self.look()

    def _index(self) -> None:
        """Make the indexes that are missing; until one is there, its table is searched without."""
        for served in self.snapshot.regions.values():
            table = served.table
            if table is None or table.digest in self._considered:
                continue
            self._considered.add(table.digest)  # what fails takes minutes, and would fail again
            if not is_wanted(table):
                continue
            try:
                index = index_of(table)
            except Exception as problem:
                _log.warning("region '%s' is searched without an index: %s", table.region, problem)
                continue
            with self._lock:
                self.snapshot = replace(self.snapshot, indexes={**self.snapshot.indexes, table.digest: index})

    def _kept_indexes(self, served: Mapping[str, ServedRegion]) -> dict[str, Index]:
        digests = {found.table.digest for found in served.values() if found.table is not None}
        return {digest: index for digest, index in self.snapshot.indexes.items() if digest in digests}

    def look(self) -> None:
        """Renew the snapshot if what it was made from is another; what cannot be had leaves the old one in place."""
        with self._lock:
            begun = time.monotonic()
            try:
                seen = self._seen()
                if seen == self.snapshot.seen and self.snapshot.why_not is None:
                    return
                snapshot = self._made(seen)
            except Exception as problem:
                if self.snapshot.places is None:
                    self.snapshot = Snapshot(why_not=str(problem) if isinstance(problem, GeobacterError) else _UNSAID)
                _log.warning("what is served stays as it was: %s", problem, exc_info=_log.isEnabledFor(logging.DEBUG))
                return
            self.snapshot = snapshot
            self.n_swaps += 1
            _settle()
            champion = "no encoder" if snapshot.places is None else snapshot.places.encoder.version.name
            n_tables = sum(served.table is not None for served in snapshot.regions.values())
            _log.info(
                "serving %s, %d regions, %d tables (looked at in %.1f s)",
                champion,
                len(snapshot.regions),
                n_tables,
                time.monotonic() - begun,
            )

    @property
    def _store(self) -> Registry:
        """The registry; not before it is needed, since it may not answer yet."""
        if self._registry is None:
            self._registry = Registry(self.settings)
        return self._registry

    def _seen(self) -> _Seen:
        settings = self.settings
        regions = load_regions(settings.regions_file)
        files = (
            _state(file)
            for name in regions
            for file in (
                settings.features_folder(name) / FEATURES_MANIFEST,
                settings.tiles_folder(name, settings.style) / MANIFEST,
                settings.embeddings_file(name),
            )
        )
        return _Seen(regions, self._store.find_champion(), tuple(files))

    def _made(self, seen: _Seen) -> Snapshot:
        before, version = self.snapshot, seen.champion
        if version is None:
            alias = self._store.champion_alias
            why = f"MLflow at {self._store.shown_uri} has no {alias} yet. Materialise location_encoder, or promote one."
            return Snapshot(why_not=why, seen=seen)
        style, map_style = style_of(version), base_map_style(load_style(self.settings.style))
        served = {
            name: found
            for name, region in seen.regions.items()
            if (found := self._region(region, style, map_style, before.regions.get(name))) is not None
        }
        names = {found.table.encoder for found in served.values() if found.table is not None} | {version.name}
        loaded = {name: encoder for name in sorted(names) if (encoder := self._encoder(name, version)) is not None}
        self._loaded = loaded
        grounds = [found.ground for found in served.values()]
        encoders = {
            name: Places(encoder, grounds, self._memory)
            for name, encoder in loaded.items()
            if encoder.version.style_label == version.style_label
        }
        why_not: str | None = None
        if not grounds:
            why_not = f"No region has tiles or map features for style {style.label}. Materialise map_features for one."
        return Snapshot(
            served, encoders[version.name], encoders, self._kept_indexes(served), why_not, style.channels, seen
        )

    def _region(
        self, region: Region, style: Style, map_style: Style, before: ServedRegion | None
    ) -> ServedRegion | None:
        settings, name = self.settings, region.name
        try:
            ground = find_ground(settings, name, style)
        except GeobacterError as problem:
            _log.info("region '%s' is not served: %s", name, problem)
            return None
        table: MappedTable | None = None
        cell_map: CellMap | None = None
        path = settings.embeddings_file(name)
        if path.exists():
            try:
                table = map_table(path, settings.serving_folder(name))
                cell_map = CellMap(table, partial(_window_colours, ground, style))
            except GeobacterError as problem:
                _log.warning("region '%s' cannot be searched: %s", name, problem)
        base_map = BaseMap.of(settings.features_folder(name), map_style)
        if before is not None:  # opened maps, and colours that were found
            if cell_map is not None and before.cell_map is not None and before.is_drawn_from(table, ground):
                cell_map = before.cell_map
            if base_map is not None and before.base_map is not None and before.base_map.files == base_map.files:
                base_map = before.base_map
        return ServedRegion(region, ground, style.label, table, base_map, cell_map)

    def _encoder(self, name: str, champion: EncoderVersion) -> Encoder | None:
        if name in self._loaded:
            return self._loaded[name]
        version = self._store.version(name.rpartition("/")[2])
        if version is None or version.name != name:
            return None
        try:
            return self._store.load(version)
        except GeobacterError as problem:
            if version == champion:
                raise
            _log.warning("encoder %s cannot be loaded: %s", name, problem)
            return None


_UNSAID = "What is to be served cannot be read; the server's log says why."


def _settle() -> None:
    """Leave what is in memory out of the search for garbage until the next snapshot.

    To look through the libraries' million objects, which stay, halted all requests for half a second every few
    thousand of them. What earlier snapshots have left behind is found now.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def outline(geometry: shapely.Geometry) -> list[list[float]]:
    """The outer ring of a cell, of several the largest, lon and lat in degrees; of a point the point."""
    parts = shapely.get_parts(geometry)
    largest = parts[int(np.argmax(shapely.area(parts)))]
    ring = largest.exterior if isinstance(largest, shapely.Polygon) else largest
    points: list[list[float]] = shapely.get_coordinates(ring).round(7).tolist()
    return points


def _window_colours(ground: Ground, style: Style, lon: Floats, lat: Floats) -> Pixels:
    """The mean colour of small windows at places in degrees, sRGB uint8 `[N, 3]`."""
    windows = WindowReader(ground.chunks, _COLOUR_WINDOW_M, _COLOUR_WINDOW_PX).windows(lon, lat)
    means = to_rgb(np.moveaxis(windows, 1, -1), style.channels).mean(axis=(1, 2))
    return np.asarray(np.round(means), np.uint8)


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
