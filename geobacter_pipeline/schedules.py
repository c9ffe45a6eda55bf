"""Schedules. Off until someone turns them on."""

import os
from collections.abc import Iterator

import dagster as dg

from geobacter_pipeline.jobs import reembed_region
from geobacter_pipeline.partitions import region_partitions


@dg.schedule(
    job=reembed_region,
    cron_schedule=os.environ.get("GEOBACTER_CRON", "0 3 * * *"),
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
)
def nightly_reembedding(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
    """Re-embed every region at three in the morning, UTC, or when GEOBACTER_CRON says, each in a run of its own."""
    for region in region_partitions.get_partition_keys():
        yield dg.RunRequest(run_key=f"{context.scheduled_execution_time:%Y-%m-%dT%H:%M}-{region}", partition_key=region)
