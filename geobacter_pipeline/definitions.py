"""The graph: the one place where assets, checks, jobs, schedules, sensors and resources are put together."""

import dagster as dg

from geobacter_pipeline.assets import embeddings, encoder, evaluation, osm, samples, sweep, tiles
from geobacter_pipeline.automation import follow_changes
from geobacter_pipeline.checks import ALL_CHECKS
from geobacter_pipeline.jobs import ALL_JOBS
from geobacter_pipeline.loggers import concise
from geobacter_pipeline.resources import Geobacter
from geobacter_pipeline.schedules import nightly_reembedding
from geobacter_pipeline.sensors import map_changes, map_freshness

defs = dg.Definitions(
    assets=dg.load_assets_from_modules([osm, tiles, samples, encoder, evaluation, sweep, embeddings]),
    asset_checks=ALL_CHECKS,
    jobs=ALL_JOBS,
    schedules=[nightly_reembedding],
    sensors=[map_changes, map_freshness, follow_changes],
    resources={"geobacter": Geobacter()},
    loggers={"console": dg.colored_console_logger, "concise": concise},
)
