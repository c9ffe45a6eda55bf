"""How long ago each region was brought up to date: Dagster's own freshness policies are of assets, not partitions."""

from dataclasses import dataclass
from time import time

import dagster as dg

from geobacter_core.regions import Region


@dataclass(frozen=True, slots=True)
class Freshness:
    """When a region's extract was last brought up to date, or found to be so, and for how long that is good.

    Attributes:
        region: Its name.
        updated_at: Seconds since 1970.
        age_hours: From then to now.
        limit_hours: The region's `fresh_hours`.
    """

    region: str
    updated_at: float
    age_hours: float
    limit_hours: float

    @property
    def is_fresh(self) -> bool:
        """Whether it is good still."""
        return self.age_hours <= self.limit_hours

    @property
    def description(self) -> str:
        """For people."""
        remedy = "" if self.is_fresh else " Materialise osm_extract for it, and see whether its last runs failed."
        return (
            f"{self.region} was brought up to date {self.age_hours:.1f} hours ago, and shall be every "
            f"{self.limit_hours:g} hours.{remedy}"
        )

    @property
    def metadata(self) -> dict[str, dg.MetadataValue]:
        """For the UI."""
        return {
            "brought up to date": dg.MetadataValue.timestamp(self.updated_at),
            "hours since": dg.MetadataValue.float(round(self.age_hours, 2)),
            "fresh_hours": dg.MetadataValue.float(self.limit_hours),
        }


def freshness(instance: dg.DagsterInstance, region: Region) -> Freshness | None:
    """How fresh a region is; None if it was never materialised. A run that finds nothing new counts, too."""
    wanted = dg.AssetRecordsFilter(dg.AssetKey("osm_extract"), asset_partitions=[region.name])
    records = instance.fetch_materializations(wanted, limit=1).records
    if not records:
        return None
    updated_at = records[0].timestamp
    return Freshness(region.name, updated_at, (time() - updated_at) / 3600, region.fresh_hours)
