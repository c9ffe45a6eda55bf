"""Partitions: the regions of `regions.toml`. Nothing else partitions anything."""

import dagster as dg

from geobacter_core.regions import load_regions
from geobacter_core.settings import Settings

REGIONS = load_regions(Settings.from_environment().regions_file)
"""Read once, when the code location loads: reload it in the UI after an edit."""

region_partitions = dg.StaticPartitionsDefinition(sorted(REGIONS))

training_regions = sorted(name for name, region in REGIONS.items() if region.train)

training_mapping = dg.SpecificPartitionsPartitionMapping(training_regions)
"""The encoder depends on the regions with `train = true`, and on no other."""
