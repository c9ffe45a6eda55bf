"""Jobs: what people and schedules start. A job is a selection of assets; nothing is computed here."""

import dagster as dg

from geobacter_pipeline.checks import region_is_fresh

build_region = dg.define_asset_job(
    "build_region",
    selection=["osm_extract", "map_features", "tile_cache", "triplet_samples"],
    description="A region's extract, map features, tiles and triplets: what the encoder needs.",
)

train_encoder = dg.define_asset_job(
    "train_encoder",
    selection=["location_encoder", "champion_encoder"],
    description="Trains an encoder on every training region; it becomes champion if it passes the gate.",
)

evaluate_encoder = dg.define_asset_job(
    "evaluate_encoder",
    selection=["champion_encoder", "encoder_evaluation"],
    description="What the champion knows about a region, against baselines on the same folds.",
)

sweep_encoders = dg.define_asset_job(
    "sweep_encoders",
    selection=["encoder_sweep"],
    description="Short trainings, one setting changed at a time: which settings make a good encoder.",
)

reembed_region = dg.define_asset_job(
    "reembed_region",
    selection=[
        "osm_extract",
        "map_features",
        "tile_cache",
        "champion_encoder",
        "region_embeddings",
        "embedding_report",
    ],
    description="Brings a region's table up to date with the map and the champion: extract, tiles, table, report.",
)

update_map = dg.define_asset_job(
    "update_map",
    selection=["osm_extract"],
    description="Brings a region's extract up to date. The sensor follow_changes makes what follows from a change.",
)

check_freshness = dg.define_asset_job(
    "check_freshness",
    selection=dg.AssetSelection.checks(region_is_fresh),
    description="Was a region brought up to date within its fresh_hours? The sensor map_freshness starts it.",
)

ALL_JOBS = [build_region, train_encoder, evaluate_encoder, sweep_encoders, reembed_region, update_map, check_freshness]
