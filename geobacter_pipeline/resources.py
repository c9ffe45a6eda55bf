"""Resources: the Geobacter installation that a run works on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import PrivateAttr, ValidationError

from geobacter_core.regions import Region, find_region, load_regions
from geobacter_core.samples.triplets import load_triplets
from geobacter_core.settings import Settings
from geobacter_core.tiles.cache import TileCache, open_cache
from geobacter_pipeline.configs import CONFIGS
from geobacter_pipeline.partitions import training_regions

if TYPE_CHECKING:
    from geobacter_core.encoder.data import RegionData
    from geobacter_core.encoder.registry import Registry


class Geobacter(dg.ConfigurableResource["Geobacter"]):
    """Settings, regions and registry.

    Before the first step does any work, the run's whole configuration is held against the limits of every asset's
    config: a mistake in the last asset's field must not cost the work of those before it.
    """

    _settings: Settings = PrivateAttr(default_factory=Settings.from_environment)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Read the environment afresh, and check the run's configuration."""
        self._settings = Settings.from_environment()
        if context.dagster_run is not None:
            check_run_config(context.dagster_run.run_config)

    @property
    def settings(self) -> Settings:
        """Where everything is."""
        return self._settings

    def region(self, name: str) -> Region:
        """The region of a partition."""
        return find_region(load_regions(self._settings.regions_file), name)

    def tiles(self, region: str) -> TileCache:
        """A region's tiles in the style of this installation."""
        return open_cache(self._settings, self.region(region))

    def registry(self) -> "Registry":
        """MLflow; imported here, because it takes seconds."""
        from geobacter_core.encoder.registry import Registry

        return Registry(self._settings)

    def training_data(self) -> "list[RegionData]":
        """Triplets and tiles of every region with `train = true`."""
        from geobacter_core.encoder.data import RegionData

        return [
            RegionData(
                name,
                load_triplets(self._settings.triplets_file(name)),
                self.tiles(name),
            )
            for name in training_regions
        ]


def check_run_config(run_config: Mapping[str, object]) -> None:
    """Hold the configuration of every asset in a run against its limits.

    Raises:
        dagster.Failure: It names the asset, the field and the limit.
    """
    ops = run_config.get("ops")
    for name, section in (ops if isinstance(ops, Mapping) else {}).items():
        values = section.get("config") if isinstance(section, Mapping) else None
        if name in CONFIGS and isinstance(values, Mapping):
            try:
                CONFIGS[name].model_validate(dict(values))
            except ValidationError as problem:
                first = problem.errors()[0]
                field = ".".join(str(part) for part in first["loc"]) or "config"
                raise dg.Failure(
                    f"Config of {name}, field '{field}': {first['msg']} (given: {first.get('input')}). "
                    "Nothing was started; correct it in the launchpad.",
                    allow_retries=False,
                ) from None
