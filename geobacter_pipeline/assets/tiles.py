"""Tiles: the cache of rendered chunks."""

import time

import dagster as dg

from geobacter_core.geo import CHUNK_TILES
from geobacter_core.osm.features import load_features
from geobacter_core.settings import Settings
from geobacter_core.tiles import build
from geobacter_core.tiles.coverage import Coverage, measure_coverage
from geobacter_core.tiles.region import build_region
from geobacter_core.tiles.style import load_style
from geobacter_pipeline.assets.osm import OWNERS, map_features, osm_extract
from geobacter_pipeline.automation import PROCESSORS, on_change_of
from geobacter_pipeline.configs import TileConfig
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
    pool=PROCESSORS,
    automation_condition=on_change_of("map_features"),
    code_version=f"{build.VERSION}-{_STYLE.name}-{_STYLE.digest[:12]}",
)
def tile_cache(
    context: dg.AssetExecutionContext, config: TileConfig, geobacter: Geobacter
) -> dg.MaterializeResult[None]:
    """Zoom-16 tiles of the region, one Parquet file per zoom-12 chunk. Chunks that are up to date are kept."""
    from geobacter_core.plots import tile_contact_sheet

    settings, region = geobacter.settings, geobacter.region(context.partition_key)
    begun = time.monotonic()
    with core_errors(), Progress(context, "chunks") as progress:
        built = build_region(settings, region, settings.style, progress, config)
        took_s = time.monotonic() - begun
        cache = geobacter.tiles(region.name)
        sheet = tile_contact_sheet(cache)
        coverage = _coverage(settings, region.name)
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
            "path": dg.MetadataValue.path(cache.folder),
            "style": manifest.style_label,
            "source": manifest.source,
            "chunks": len(manifest.chunks),
            "chunks rendered": built.n_rendered,
            "strips rendered": built.n_strips,
            "chunks kept": built.n_reused,
            "tiles of one colour": manifest.n_blank,
            "size_bytes": manifest.size_bytes,
            "seconds": round(took_s, 2),
            "tiles_per_s": round(built.n_strips * CHUNK_TILES / took_s, 1),
            **({"tag coverage": dg.MetadataValue.md(coverage.markdown())} if coverage else {}),
            "picture": picture(sheet),
        },
    )


def _coverage(settings: Settings, region: str) -> Coverage | None:
    """What the channels of a thematic style took of the region's map features; None for another style."""
    style = load_style(settings.style)
    return measure_coverage(style, load_features(settings.features_folder(region))[1]) if style.masks else None
