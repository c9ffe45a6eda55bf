"""Sensors. Off until someone turns them on."""

from collections.abc import Iterator

import dagster as dg

from geobacter_core.errors import GeobacterError
from geobacter_pipeline.freshness import freshness
from geobacter_pipeline.jobs import check_freshness, update_map
from geobacter_pipeline.partitions import region_partitions
from geobacter_pipeline.resources import Geobacter

_INTERVAL_S = 600
_HOURS_A_WEEK = 168
_PARTITION = "dagster/partition"
"""The tag that makes a run one of a partition: a job of nothing but checks has none, as Dagster sees it."""


@dg.sensor(job=update_map, minimum_interval_seconds=_INTERVAL_S, default_status=dg.DefaultSensorStatus.STOPPED)
def map_changes(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Ask each region's replication server how far it is, and update the extracts that are behind.

    A region whose server does not answer holds up no other, and is asked again next time; so is one whose update
    failed, an hour later.
    """
    from geobacter_core.osm.changes import pending_changes  # brings requests along

    geobacter = Geobacter()
    said, n_requested = [], 0
    for name in region_partitions.get_partition_keys():
        try:
            pending = pending_changes(geobacter.region(name), geobacter.settings.extract_folder(name))
        except GeobacterError as problem:
            context.log.warning(str(problem))
            said.append(f"{name}: {problem}")
            continue
        if pending is None:
            said.append(f"{name} follows no server, or has no extract yet")
        elif pending.n_changes <= 0:
            said.append(f"{name} is at sequence {pending.present}, the newest")
        else:
            n_requested += 1
            # A run that failed may be asked for again, but not at every tick.
            hour = int(context.last_tick_completion_time or 0) // 3600
            yield dg.RunRequest(
                run_key=f"{name}-{pending.newest}-{hour}",
                partition_key=name,
                tags={"geobacter/sequence": f"{pending.present} to {pending.newest}"},
            )
    if not n_requested:
        yield dg.SkipReason("; ".join(said) + ".")


@dg.sensor(job=check_freshness, minimum_interval_seconds=_INTERVAL_S, default_status=dg.DefaultSensorStatus.STOPPED)
def map_freshness(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Have each region checked that was not brought up to date for longer than its `fresh_hours`: then, and each week.

    The check `region_is_fresh` of `osm_extract` then warns of it until it is. A run, because Dagster stores but one
    evaluation of a partition's check that comes from outside of runs.
    """
    geobacter = Geobacter()
    said, n_requested = [], 0
    for name in region_partitions.get_partition_keys():
        try:
            found = freshness(context.instance, geobacter.region(name))
        except GeobacterError as problem:  # regions.toml has changed since the code location was loaded
            said.append(str(problem))
            continue
        if found is None:
            said.append(f"{name} was never materialised.")
            continue
        said.append(found.description)
        if not found.is_fresh:
            n_requested += 1
            week = found.age_hours // _HOURS_A_WEEK
            yield dg.RunRequest(run_key=f"{name}-{found.updated_at}-{week:.0f}", tags={_PARTITION: name})
    if not n_requested:
        yield dg.SkipReason(" ".join(said))
