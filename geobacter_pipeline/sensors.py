"""Sensors. Off until someone turns them on."""

from collections.abc import Iterator

import dagster as dg

from geobacter_core.errors import GeobacterError
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
