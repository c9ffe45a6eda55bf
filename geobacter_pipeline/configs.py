"""Configs: what a person can set in the launchpad. Fields, defaults and limits are the core's, so they never differ."""

import dagster as dg
from pydantic import BaseModel, Field

from geobacter_core.encoder.settings import TrainSettings
from geobacter_core.evaluation.settings import EvaluationSettings
from geobacter_core.samples.settings import SampleSettings
from geobacter_core.tiles.settings import ServerSettings


class SampleConfig(SampleSettings, dg.Config):
    """How triplets are drawn: the original Geobacter's values, scaled down where the region is small."""


class TileConfig(ServerSettings, dg.Config):
    """How a tile server is asked, where one draws the region."""


class TrainConfig(TrainSettings, dg.Config):
    """How an encoder is trained."""


class EvaluationConfig(EvaluationSettings, dg.Config):
    """How an encoder is evaluated on a region."""


class SweepConfig(dg.Config):
    """What a sweep tries."""

    plan: str = Field(default="", description="A TOML file with base, axes, others and seeds; empty for Geobacter's.")


CONFIGS: dict[str, type[BaseModel]] = {
    "tile_cache": ServerSettings,
    "triplet_samples": SampleSettings,
    "location_encoder": TrainSettings,
    "encoder_evaluation": EvaluationSettings,
}
"""Asset to the model that knows the limits of its config."""
