"""What happens by itself once it is switched on: which changes lead to which runs."""

from datetime import timedelta

import dagster as dg

on_change = (
    dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    .since_last_handled()
    .with_label("something it is made from has another data version")
    & ~dg.AutomationCondition.any_deps_missing()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
)
"""For what follows from the map or from the champion: made again when a data version that it follows from has changed.

A run that finds nothing new leaves the data version as it is, so nothing follows from it.
"""


def on_change_of(*assets: str) -> dg.AutomationCondition[dg.AssetKey]:
    """The same, where only some of the assets that it is made from count.

    An extract that has changed will lead to other tiles first, if at all: a table need not be made for both.
    """
    return on_change.allow(dg.AssetSelection.assets(*assets))


daily = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=50), warn_window=timedelta(hours=26))
"""For what a nightly schedule looks at: a warning after a night without, a failure after two."""

NETWORK = "network"
PROCESSORS = "processors"
"""Pools, with a limit in dagster.yaml: one download at a time, and one asset that uses every core."""

follow_changes = dg.AutomationConditionSensorDefinition(
    "follow_changes",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.STOPPED,
    minimum_interval_seconds=30,
    description="Makes what follows from a map or a champion that has changed: features, tiles, table, report.",
)
