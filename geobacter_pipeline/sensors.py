"""Sensors. Off until someone turns them on."""

import json
from collections.abc import Iterator

import dagster as dg

from geobacter_core.errors import GeobacterError
from geobacter_pipeline.checks import region_is_fresh
from geobacter_pipeline.freshness import freshness
from geobacter_pipeline.jobs import update_map
from geobacter_pipeline.partitions import region_partitions
from geobacter_pipeline.resources import Geobacter

_INTERVAL_S = 600


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


@dg.sensor(
    asset_selection=dg.AssetSelection.assets("osm_extract"),
    minimum_interval_seconds=_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.STOPPED,
)
def map_freshness(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Say of each region, once, that it was not brought up to date for longer than its `fresh_hours`.

    The check `region_is_fresh` of `osm_extract` then warns of it until it is. Nothing runs by this.
    """
    geobacter = Geobacter()
    (check,) = region_is_fresh.check_keys
    told: dict[str, float] = json.loads(context.cursor or "{}")
    events, said = [], []
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
        if not found.is_fresh and told.get(name) != found.updated_at:
            told[name] = found.updated_at
            events.append(
                dg.AssetCheckEvaluation(
                    check.asset_key,
                    check.name,
                    passed=False,
                    severity=dg.AssetCheckSeverity.WARN,
                    description=found.description,
                    metadata=found.metadata,
                    partition=name,
                )
            )
    return dg.SensorResult(asset_events=events, cursor=json.dumps(told), skip_reason=None if events else " ".join(said))
