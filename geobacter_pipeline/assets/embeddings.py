"""Embeddings: a region's table by the champion, and its report."""

import time

import dagster as dg

from geobacter_core.osm.extract import load_extract
from geobacter_pipeline.assets.encoder import champion_encoder
from geobacter_pipeline.assets.osm import OWNERS, osm_extract
from geobacter_pipeline.assets.tiles import tile_cache
from geobacter_pipeline.automation import PROCESSORS, on_change_of
from geobacter_pipeline.partitions import region_partitions
from geobacter_pipeline.report_back import Progress, columns, core_errors, picture
from geobacter_pipeline.resources import Geobacter

TABLE_VERSION = "8"
"""That of `geobacter_core.embeddings.embed`, not imported here because torch takes seconds; a test holds it."""


@dg.asset(
    partitions_def=region_partitions,
    deps=[osm_extract, tile_cache, champion_encoder],
    group_name="embeddings",
    kinds={"geoparquet", "torch"},
    owners=OWNERS,
    pool=PROCESSORS,
    automation_condition=on_change_of("tile_cache", "champion_encoder"),
    code_version=TABLE_VERSION,
)
def region_embeddings(context: dg.AssetExecutionContext, geobacter: Geobacter) -> dg.MaterializeResult[None]:
    """One embedding per cell of the region by the champion encoder, as GeoParquet.

    Cells are H3's of the region's `cell_resolution`, or the rows of the grid that it names as `cells`.
    """
    from geobacter_core.cells import grid_of
    from geobacter_core.embeddings import table as core_table
    from geobacter_core.embeddings.embed import embed_region

    settings, region = geobacter.settings, geobacter.region(context.partition_key)
    path = settings.embeddings_file(region.name)
    begun = time.monotonic()
    with core_errors(), Progress(context, "cells") as progress:
        extract, _ = load_extract(settings.extract_folder(region.name))
        cache = geobacter.tiles(region.name)
        registry = geobacter.registry()
        champion = registry.champion()
        grid = grid_of(region, extract.ground)
        made = embed_region(path, cache, grid, champion, registry.load, progress)
    took_s = time.monotonic() - begun
    types = {field.name: str(field.type) for field in core_table.schema(champion.embedding_dim)}
    return dg.MaterializeResult(
        data_version=dg.DataVersion(made.digest),
        metadata={
            "dagster/row_count": made.n_cells,
            "dagster/column_schema": columns(
                {name: (types[name], description) for name, description in core_table.COLUMNS.items()}
            ),
            "path": dg.MetadataValue.path(path),
            "encoder": champion.name,
            "model_uri": f"models:/{champion.name}",
            "mlflow_run_id": champion.run_id,
            **grid.source,
            "places outside the region": made.n_outside,
            "tiles changed": "no table before" if made.n_tiles_changed is None else made.n_tiles_changed,
            "cells checked": made.n_checked,
            "cells changed": made.n_changed,
            "windows encoded": made.n_encoded,
            "rows in the change table": made.n_moved,
            "was up to date": made.was_current,
            "seconds": round(took_s, 2),
        },
    )


@dg.asset(
    partitions_def=region_partitions,
    deps=[osm_extract, tile_cache, region_embeddings],
    group_name="embeddings",
    kinds={"html", "pillow"},
    owners=OWNERS,
    pool=PROCESSORS,
    automation_condition=on_change_of("region_embeddings"),
    code_version="2",
)
def embedding_report(context: dg.AssetExecutionContext, geobacter: Geobacter) -> dg.MaterializeResult[None]:
    """Pictures of a region's embeddings: the map, the mosaic, neighbours and interpolations, on one HTML page."""
    import PIL.Image

    from geobacter_core.embeddings.history import latest_changes
    from geobacter_core.embeddings.table import read_table
    from geobacter_core.report import build_report

    settings, region = geobacter.settings, context.partition_key
    with core_errors():
        extract, _ = load_extract(settings.extract_folder(region))
        cache = geobacter.tiles(region)
        table = read_table(settings.embeddings_file(region))
        changes = latest_changes(settings.embeddings_file(region))
        report = build_report(settings.report_folder(region), table, cache, extract.ground, changes)
    with PIL.Image.open(report.map) as image:
        shown = picture(image)
    return dg.MaterializeResult(
        metadata={
            "page": dg.MetadataValue.path(report.page),
            "page_url": dg.MetadataValue.url(report.page.as_uri()),
            "cells": len(table),
            "cells that the last refresh changed": 0 if changes is None else len(changes),
            "picture": shown,
        },
    )
