"""Samples: the triplets of a region."""

import dagster as dg

from geobacter_core.osm.extract import load_extract
from geobacter_core.samples import triplets as core_triplets
from geobacter_pipeline.assets.osm import OWNERS, osm_extract
from geobacter_pipeline.assets.tiles import tile_cache
from geobacter_pipeline.automation import PROCESSORS
from geobacter_pipeline.configs import SampleConfig
from geobacter_pipeline.partitions import region_partitions
from geobacter_pipeline.report_back import Progress, columns, core_errors, picture
from geobacter_pipeline.resources import Geobacter


@dg.asset(
    partitions_def=region_partitions,
    deps=[osm_extract, tile_cache],
    group_name="encoder",
    kinds={"parquet"},
    owners=OWNERS,
    pool=PROCESSORS,
    code_version=core_triplets.VERSION,
)
def triplet_samples(
    context: dg.AssetExecutionContext, config: SampleConfig, geobacter: Geobacter
) -> dg.MaterializeResult[None]:
    """Anchor, near and far places, split into train and test by blocks of ground."""
    from geobacter_core.plots import samples_map

    settings, region = geobacter.settings, context.partition_key
    path = settings.triplets_file(region)
    with core_errors(), Progress(context, "triplets") as progress:
        extract, _ = load_extract(settings.extract_folder(region))
        cache = geobacter.tiles(region)
        triplets = core_triplets.build_triplets(path, cache, extract.box, extract.ground, config, progress)
    facts = {key: value for key, value in triplets.metadata.items() if value is not None and key != "recipe"}
    return dg.MaterializeResult(
        data_version=dg.DataVersion(triplets.digest),
        metadata={
            "dagster/row_count": len(triplets.table),
            "dagster/column_schema": columns(
                {name: (str(triplets.table.schema.field(name).type), "") for name in triplets.table.column_names}
            ),
            "path": dg.MetadataValue.path(path),
            **facts,
            "picture": picture(samples_map(triplets, extract.box, extract.ground)),
        },
    )
