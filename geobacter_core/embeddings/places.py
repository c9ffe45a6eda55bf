"""Any place as an embedding: its own window, cut from the tiles of the region that it lies in.

Tiles come from a tile cache, or are drawn when they are asked for, from map features or by a tile server: `Ground` is
one of these, `Places` all of them with an encoder. Windows are cut and encoded as for a table, so a place at a cell's
centre has the embedding of that cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from geobacter_core.encoder.network import Embeddings
from geobacter_core.encoder.version import Encoder, EncoderVersion
from geobacter_core.errors import OutsideError, PlaceError, TileCacheError
from geobacter_core.files import machine_memory_bytes
from geobacter_core.geo import MERCATOR_MAX_LAT, Floats, chunk_numbers, mercator_to_lonlat
from geobacter_core.osm.extract import load_ground
from geobacter_core.osm.features import load_features
from geobacter_core.regions import Region
from geobacter_core.settings import Settings
from geobacter_core.tiles.cache import MANIFEST, TileCache
from geobacter_core.tiles.mapnik import MapnikSource
from geobacter_core.tiles.mosaic import ChunkMemory
from geobacter_core.tiles.settings import ServerSettings
from geobacter_core.tiles.source import Chunks, DrawnChunks, Pixels
from geobacter_core.tiles.style import Style, load_style
from geobacter_core.tiles.window import WindowReader

_LEAST_MEMORY, _MOST_MEMORY = 512 << 20, 4 << 30
_SHARE_OF_MEMORY = 8
_BATCHES_AT_ONCE = 8
_SERVED_WORLD = (-180.0, -85.0, 180.0, 85.0)


@dataclass(frozen=True, slots=True)
class Ground:
    """The ground of a region, and the tiles that windows of it are cut from.

    Attributes:
        region: The region's name.
        geometry: What it covers, degrees.
        chunks: Its tiles.
    """

    region: str
    geometry: shapely.Geometry
    chunks: Chunks

    @classmethod
    def of_cache(cls, folder: Path, style: Style | None = None, geometry: shapely.Geometry | None = None) -> "Ground":
        """The ground of a tile cache; without `geometry` all of its chunks, whose outermost windows are not whole.

        Raises:
            TileCacheError: There is no cache in `folder`, or one of another style.
        """
        cache = TileCache(folder, style)
        if geometry is None:
            geometry = shapely.union_all([summary.tile.polygon for summary in cache.manifest.chunks])
        return cls(cache.manifest.region, geometry, cache)

    @classmethod
    def of_features(cls, folder: Path, style: Style, geometry: shapely.Geometry | None = None) -> "Ground":
        """The ground of map features, a folder as `features/<region>`, drawn in a style when it is asked for.

        Raises:
            FeaturesError: There are none in `folder`.
        """
        features, files = load_features(folder)
        source = MapnikSource(style, files)
        if geometry is None:
            geometry = _box_of(files)
        return cls(features.region, geometry, DrawnChunks(source, (files, features.digest, style.digest)))

    @classmethod
    def of_server(cls, region: Region, style: Style, settings: ServerSettings | None = None) -> "Ground":
        """All that the tile server of a region draws.

        Raises:
            RegionsFileError: The region has none.
        """
        from geobacter_core.tiles.server import source_of  # brings aiohttp along

        source = source_of(region, style, settings)
        return cls(region.name, shapely.box(*_SERVED_WORLD), DrawnChunks(source, source.name))

    def reader(
        self, size_m: float, size_px: int, wider_m: Sequence[float] = (), memory: ChunkMemory | None = None
    ) -> WindowReader:
        """Reads windows of places anywhere on it, in no order."""
        by_strips = isinstance(self.chunks, TileCache)  # to draw a strip takes longer than its share of a chunk
        return WindowReader(self.chunks, size_m, size_px, wider_m, memory, by_strips)


def find_ground(settings: Settings, region: str, style: Style) -> Ground:
    """The tiles of a region of the installation: its cache, or else what its map features are drawn as.

    Raises:
        GeobacterError: It has neither.
    """
    geometry = load_ground(settings.extract_folder(region))
    cache = settings.tiles_folder(region, style.name)
    if (cache / MANIFEST).exists() or style.is_served:
        return Ground.of_cache(cache, style, geometry)
    return Ground.of_features(settings.features_folder(region), style, geometry)


def memory_for_tiles() -> int:
    """Bytes of decoded tiles, of all regions together, that places anywhere are worth: an eighth of the machine's."""
    return min(max(machine_memory_bytes() // _SHARE_OF_MEMORY, _LEAST_MEMORY), _MOST_MEMORY)


def style_of(version: EncoderVersion) -> Style:
    """The style of the windows that an encoder takes.

    Raises:
        StyleError: This Geobacter does not have it, or another version of it.
    """
    style = load_style(version.style)
    if style.version != version.style_version:
        raise TileCacheError(
            f"Encoder {version.name} takes windows of style '{version.style_label}', and this Geobacter draws "
            f"'{style.label}'. Install the Geobacter that trained it, or train an encoder on this style."
        )
    return style


class Places:
    """The places of some regions, and an encoder for their windows; it may be used by many threads at once.

    Attributes:
        encoder: The encoder.
        grounds: Where windows can be cut; a place in several is of the first.
        memory: Of decoded tiles and chunks.
    """

    def __init__(self, encoder: Encoder, grounds: Sequence[Ground], memory: ChunkMemory | None = None) -> None:
        """Embed places of `grounds`.

        Raises:
            TileCacheError: Tiles have other channels than the encoder takes.
        """
        self.encoder = encoder
        self.grounds = tuple(grounds)
        self.memory = memory or ChunkMemory(memory_for_tiles())
        version = encoder.version
        for ground in self.grounds:
            shapely.prepare(ground.geometry)
            if ground.chunks.n_channels != version.n_channels:
                raise TileCacheError(
                    f"Region '{ground.region}': its tiles have {ground.chunks.n_channels} channels, encoder "
                    f"{version.name} takes {version.n_channels} of style '{version.style_label}'. "
                    "Materialise tile_cache in that style."
                )
        self._readers = [
            ground.reader(version.size_m, version.size_px, version.scales.wider_m, self.memory)
            for ground in self.grounds
        ]

    def regions_of(self, lon: Floats, lat: Floats) -> NDArray[np.int64]:
        """For each place in degrees the number of its ground, int64 `[N]`.

        Raises:
            PlaceError: A place is not on the map.
            OutsideError: One lies in no region; it is named, and so are they.
        """
        check_places(lon, lat)
        found = self._numbers(lon, lat)
        if (found < 0).any():
            first = int((found < 0).argmax())
            known = ", ".join(ground.region for ground in self.grounds)
            swapped = int(self._numbers(lat[first : first + 1], lon[first : first + 1])[0])
            advice = f"Ask for a place in one of: {known}."
            if swapped >= 0:
                advice = f"Are they swapped? The other way round it is in {self.grounds[swapped].region}."
            raise OutsideError(
                f"No region covers the place at longitude {lon[first]:.6f}, latitude {lat[first]:.6f}. {advice}"
            )
        return found

    def is_inside(self, lon: Floats, lat: Floats) -> NDArray[np.bool_]:
        """Whether places in degrees lie in any region, `[N]`.

        Raises:
            PlaceError: A place is not on the map.
        """
        check_places(lon, lat)
        return self._numbers(lon, lat) >= 0

    def _numbers(self, lon: Floats, lat: Floats) -> NDArray[np.int64]:
        """Numbers of the places' grounds, -1 for none."""
        found = np.full(len(lon), -1, np.int64)
        for number in reversed(range(len(self.grounds))):
            found[shapely.contains_xy(self.grounds[number].geometry, lon, lat)] = number
        return found

    def windows(self, lon: Floats, lat: Floats) -> Pixels:
        """Windows of places in degrees, as the encoder takes them: uint8 `[N, S·C, size_px, size_px]`.

        Raises:
            PlaceError: As `regions_of`.
            TileCacheError: A chunk is missing, damaged, or just being replaced.
        """
        return self._windows(lon, lat, self.regions_of(lon, lat))

    def _windows(self, lon: Floats, lat: Floats, regions: NDArray[np.int64]) -> Pixels:
        version = self.encoder.version
        side = version.size_px
        numbers: list[int] = np.unique(regions).tolist()
        if len(numbers) == 1:
            return self._readers[numbers[0]].windows(lon, lat)
        windows = np.empty((len(lon), version.spec.n_planes, side, side), np.uint8)
        for number in numbers:
            rows = np.flatnonzero(regions == number)
            windows[rows] = self._readers[number].windows(lon[rows], lat[rows])
        return windows

    def embed(self, lon: Floats, lat: Floats) -> Embeddings:
        """Embeddings of places in degrees: float32 `[N, D]`, each row of length 1; the same for a place in any company.

        There may be any number of them: chunk by chunk, a few batches of windows at a time.

        Raises:
            GeobacterError: As `windows`.
        """
        regions = self.regions_of(lon, lat)
        embeddings = np.empty((len(lon), self.encoder.version.embedding_dim), np.float32)
        order = np.lexsort(chunk_numbers(np.stack([lon, lat], axis=1)))
        step = _BATCHES_AT_ONCE * self.encoder.batch_size
        for begin in range(0, len(order), step):
            rows = order[begin : begin + step]
            embeddings[rows] = self.encoder.encode(self._windows(lon[rows], lat[rows], regions[rows]))
        return embeddings


def check_places(lon: Floats, lat: Floats) -> None:
    """Refuse what is no place on the map.

    Raises:
        PlaceError: It names the first such place by its number, counted from 0.
    """
    wrong = ~(np.isfinite(lon) & np.isfinite(lat) & (np.abs(lon) <= 180) & (np.abs(lat) <= MERCATOR_MAX_LAT))
    if wrong.any():
        first = int(wrong.argmax())
        raise PlaceError(
            f"Place {first}, lon={lon[first]} lat={lat[first]}: longitude must be within ±180 and latitude within "
            f"±{MERCATOR_MAX_LAT} degrees. Are they swapped, or missing?"
        )


def _box_of(files: Path) -> shapely.Geometry:
    """The box around all map features, degrees."""
    import pyogrio

    boxes = [pyogrio.read_info(file, force_total_bounds=True)["total_bounds"] for file in sorted(files.glob("*.fgb"))]
    corners = np.array([box for box in boxes if box is not None and np.isfinite(box).all()])
    if not len(corners):
        return shapely.Polygon()
    lon, lat = mercator_to_lonlat(
        np.array([corners[:, 0].min(), corners[:, 2].max()]), np.array([corners[:, 1].min(), corners[:, 3].max()])
    )
    return shapely.box(lon[0], lat[0], lon[1], lat[1])
