"""From OpenStreetMap: the extract and its map features."""

import dagster as dg

from geobacter_core.osm import extract as core_extract
from geobacter_core.osm import features as core_features
from geobacter_core.tiles.style import all_keys
from geobacter_pipeline.automation import NETWORK, PROCESSORS, daily, on_change
from geobacter_pipeline.partitions import region_partitions
from geobacter_pipeline.report_back import Progress, columns, core_errors
from geobacter_pipeline.resources import Geobacter

OWNERS = ["team:geobacter"]


@dg.asset(
    partitions_def=region_partitions,
    group_name="map",
    kinds={"openstreetmap", "file"},
    owners=OWNERS,
    pool=NETWORK,
    freshness_policy=daily,
    code_version=core_extract.VERSION,
    retry_policy=dg.RetryPolicy(max_retries=3, delay=20, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS),
)
def osm_extract(context: dg.AssetExecutionContext, geobacter: Geobacter) -> dg.MaterializeResult[None]:
    """The region's `.osm.pbf`, proven readable, with its provenance beside it; brought up to date if it is there."""
    from geobacter_core.osm.changes import update_extract  # brings requests along

    region = geobacter.region(context.partition_key)
    folder = geobacter.settings.extract_folder(region.name)
    with core_errors(), Progress(context, "change files") as progress:
        update = update_extract(region, folder, progress)
    extract = update.extract
    if update.note:
        context.log.info(f"{region.name}: {update.note}")
    return dg.MaterializeResult(
        data_version=dg.DataVersion(extract.sha256),
        metadata={
            "source": extract.source,
            "update": update.how,
            "change files applied": update.n_changes,
            "objects changed": update.n_objects,
            "note": update.note or "none",
            "path": dg.MetadataValue.path(folder / extract.file),
            "size_bytes": extract.size_bytes,
            "sha256": extract.sha256,
            "bounds": f"{extract.bounds} from the {extract.bounds_from}",
            "osm_timestamp": extract.osm_timestamp,
            "replication_sequence": extract.replication_sequence
            if extract.replication_sequence is not None
            else "none in the header",
            "replication_url": extract.replication_url or "none in the header",
            "nodes": extract.counts.nodes,
            "ways": extract.counts.ways,
            "relations": extract.counts.relations,
        },
    )


@dg.asset(
    partitions_def=region_partitions,
    deps=[osm_extract],
    group_name="map",
    kinds={"flatgeobuf", "geopandas"},
    owners=OWNERS,
    pool=PROCESSORS,
    automation_condition=on_change,
    code_version=f"{core_features.VERSION}-{core_features.keys_digest(all_keys())}",
)
def map_features(context: dg.AssetExecutionContext, geobacter: Geobacter) -> dg.MaterializeResult[None]:
    """The extract's drawable geometry as FlatGeobuf in EPSG:3857, with the tags that the styles read."""
    settings, region = geobacter.settings, context.partition_key
    with core_errors():
        extract, pbf = core_extract.load_extract(settings.extract_folder(region))
        features = core_features.build_features(extract, pbf, all_keys(), settings.features_folder(region))
    return dg.MaterializeResult(
        data_version=dg.DataVersion(features.digest),
        metadata={
            "dagster/row_count": sum(features.counts[layer] for layer in core_features.LAYERS),
            "dagster/column_schema": columns(
                {
                    "geometry": ("geometry", "point, line or multipolygon, EPSG:3857"),
                    **{key: ("string", f"OSM tag {key}") for key in features.keys},
                    "layer": ("int32", "OSM tag layer, -5 to 5"),
                }
            ),
            "path": dg.MetadataValue.path(settings.features_folder(region)),
            **features.counts,
            "broken geometries, left out": dg.MetadataValue.json(features.broken),
        },
    )
