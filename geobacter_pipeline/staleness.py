"""What needs a run: assets that are missing or stale by Dagster's book, or whose files are gone or set up otherwise."""

from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContext

from geobacter_core.errors import GeobacterError
from geobacter_core.osm.extract import load_extract
from geobacter_core.osm.features import load_features
from geobacter_core.regions import Region
from geobacter_core.samples.triplets import load_triplets
from geobacter_core.settings import Settings
from geobacter_core.tiles.cache import open_cache
from geobacter_core.tiles.chunk import chunk_file
from geobacter_pipeline.partitions import REGIONS

if TYPE_CHECKING:
    from geobacter_core.encoder.version import EncoderVersion


class _Context(LoadingContext):
    """The least that Dagster's status resolver wants around it."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._loaders: dict[type, Any] = {}

    @property
    def instance(self) -> dg.DagsterInstance:
        return self._instance

    @property
    def loaders(self) -> dict[type, Any]:
        return self._loaders


class Staleness:
    """The state of the graph at one moment. Make a new one after a run."""

    def __init__(self, instance: dg.DagsterInstance, definitions: dg.Definitions) -> None:
        # The UI shows this resolver's answers; Dagster has no public way to ask it without a web server.
        self._resolver = CachingStaleStatusResolver(instance, definitions.resolve_asset_graph(), _Context(instance))

    def needs(self, asset: str, region: str | None) -> bool:
        """Whether an asset should be materialised."""
        if self._resolver.get_status(dg.AssetKey(asset), region) != StaleStatus.FRESH:
            return True
        return not (_is_there(asset, REGIONS[region]) if region is not None else _champion() is not None)


def _is_there(asset: str, region: Region) -> bool:
    """Whether what an asset made is on disk and made for the region as it is defined today."""
    settings, name = Settings.from_environment(), region.name
    try:
        match asset:
            case "osm_extract":
                return load_extract(settings.extract_folder(name))[0].is_of(region)
            case "map_features":
                load_features(settings.features_folder(name))
            case "tile_cache":
                return _tiles_are_there(settings, region)
            case "triplet_samples":
                load_triplets(settings.triplets_file(name))
            case "region_embeddings":
                return _table_is_there(settings, region)
            case "embedding_report":
                return (settings.report_folder(name) / "report.html").is_file()
    except GeobacterError:
        return False
    return True


def _tiles_are_there(settings: Settings, region: Region) -> bool:
    cache = open_cache(settings, region)
    return all(chunk_file(cache.folder, chunk.tile).is_file() for chunk in cache.manifest.chunks)


def _table_is_there(settings: Settings, region: Region) -> bool:
    """Whether the table is there, of today's cells and champion, which Dagster may not have looked at since."""
    from geobacter_core.cells import grid_of
    from geobacter_core.embeddings.table import read_metadata

    metadata = read_metadata(settings.embeddings_file(region.name))
    extract, _ = load_extract(settings.extract_folder(region.name))
    champion = _champion()
    return bool(
        grid_of(region, extract.ground).source.items() <= metadata.items()
        and (champion is None or metadata["encoder_digest"] == champion.digest)
    )


def _champion() -> "EncoderVersion | None":
    from geobacter_core.encoder.registry import Registry

    return Registry(Settings.from_environment()).find_champion()
