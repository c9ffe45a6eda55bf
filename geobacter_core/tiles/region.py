"""A region's tiles from end to end: which source draws them, and from what."""

from collections.abc import Callable
from functools import partial

from geobacter_core.osm.extract import load_extract
from geobacter_core.osm.features import load_features
from geobacter_core.regions import Region
from geobacter_core.settings import Settings
from geobacter_core.tiles.build import BuildResult, Inputs, build_cache
from geobacter_core.tiles.cache import chunks_of
from geobacter_core.tiles.inputs import strip_inputs
from geobacter_core.tiles.settings import ServerSettings
from geobacter_core.tiles.source import TileSource
from geobacter_core.tiles.style import load_style


def build_region(
    settings: Settings,
    region: Region,
    style_name: str,
    on_chunk: Callable[[int, int], None] = lambda done, total: None,
    server: ServerSettings | None = None,
) -> BuildResult:
    """Bring the tile cache of a region in a style up to date, from its map features or its tile server.

    Args:
        settings: Where everything is.
        region: The region.
        style_name: The style.
        on_chunk: Called with the number of chunks done and in all, after each.
        server: How patiently a tile server is asked.

    Raises:
        GeobacterError: What it needs is missing, or some chunks could not be made; those that could are kept.
    """
    style = load_style(style_name)
    extract, _ = load_extract(settings.extract_folder(region.name))
    folder = settings.tiles_folder(region.name, style.name)
    source: TileSource
    if style.is_served:
        from geobacter_core.tiles.server import source_of  # brings aiohttp along

        source = source_of(region, style, server)
        inputs = Inputs(extract.sha256, extract.sha256, extract.osm_timestamp)
    else:
        from geobacter_core.tiles.mapnik import MapnikSource

        features, files = load_features(settings.features_folder(region.name))
        source = MapnikSource(style, files)
        of_strips = partial(strip_inputs, files, style, chunks_of(extract.ground))
        inputs = Inputs(features.digest, features.extract_sha256, features.osm_timestamp, of_strips)
    return build_cache(folder, region.name, extract.ground, style, source, inputs, on_chunk)
