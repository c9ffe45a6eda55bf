"""Tiles: the cache of rendered chunks."""

import time

import dagster as dg

from geobacter_core.geo import CHUNK_TILES
from geobacter_core.osm.extract import load_extract
from geobacter_core.osm.features import load_features
from geobacter_core.settings import Settings
from geobacter_core.tiles import cache as core_cache
from geobacter_core.tiles.style import load_style
from geobacter_pipeline.assets.osm import OWNERS, map_features, osm_extract
from geobacter_pipeline.partitions import region_partitions
from geobacter_pipeline.report_back import Progress, columns, core_errors, picture
from geobacter_pipeline.resources import Geobacter

_STYLE = load_style(Settings.from_environment().style)


@dg.asset(
    partitions_def=region_partitions,
    deps=[osm_extract, map_features],
    group_name="map",
    kinds={"mapnik", "parquet"},
    owners=OWNERS,
    code_version=f"{core_cache.VERSION}-{_STYLE.name}-{_STYLE.digest[:12]}",
)
def tile_cache(context: dg.AssetExecutionContext, geobacter: Geobacter) -> dg.MaterializeResult[None]:
    """Zoom-16 tiles of the region, one Parquet file per zoom-12 chunk. Chunks that are up to date are kept."""
    from geobacter_core.plots import tile_contact_sheet
    from geobacter_core.tiles.mapnik import MapnikSource

    settings, region = geobacter.settings, context.partition_key
    begun = time.monotonic()
    with core_errors(), Progress(context, "chunks") as progress:
        extract, _ = load_extract(settings.extract_folder(region))
        features, files = load_features(settings.features_folder(region))
        style = load_style(settings.style)
        folder = settings.tiles_folder(region, style.name)
        source = MapnikSource(style, files)
        built = core_cache.build_cache(folder, region, extract.ground, style, source, features, progress)
        took_s = time.monotonic() - begun
        sheet = tile_contact_sheet(core_cache.TileCache(folder))
    manifest = built.manifest
    return dg.MaterializeResult(
        data_version=dg.DataVersion(manifest.digest),
        metadata={
            "dagster/row_count": manifest.n_tiles,
            "dagster/column_schema": columns(
                {
                    "z": ("int32", "zoom, 16"),
                    "x": ("int32", "tile column"),
                    "y": ("int32", "tile row"),
                    "pixels": (
                        "fixed_size_binary",
                        f"256 × 256 × {len(manifest.channels)} uint8, channel last",
                    ),
                    "digest": ("binary", "SHA-256 of the pixels"),
                }
            ),
            "path": dg.MetadataValue.path(folder),
            "style": f"{manifest.style}/{manifest.style_version}",
            "source": manifest.source,
            "chunks": len(manifest.chunks),
            "chunks rendered": built.n_rendered,
            "chunks kept": built.n_reused,
            "tiles of one colour": sum(chunk.n_blank for chunk in manifest.chunks),
            "size_bytes": sum(chunk.size_bytes for chunk in manifest.chunks),
            "seconds": round(took_s, 2),
            "tiles_per_s": round(built.n_rendered * CHUNK_TILES**2 / took_s, 1),
            "picture": picture(sheet),
        },
    )
