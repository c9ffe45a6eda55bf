"""The encoder: trained on the triplets of every training region and registered in MLflow; and who is champion."""

import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from geobacter_pipeline.assets.osm import OWNERS
from geobacter_pipeline.assets.samples import triplet_samples
from geobacter_pipeline.assets.tiles import tile_cache
from geobacter_pipeline.automation import PROCESSORS
from geobacter_pipeline.configs import TrainConfig
from geobacter_pipeline.partitions import training_mapping, training_regions
from geobacter_pipeline.report_back import Progress, core_errors, picture
from geobacter_pipeline.resources import Geobacter

if TYPE_CHECKING:
    import PIL.Image

# Observable assets are called beta at every import; constraints.txt pins what was tested.
warnings.filterwarnings("ignore", category=dg.BetaWarning, message=".*multi_observable_source_asset.*")

_LOCAL_UI = "http://127.0.0.1:5000"

CODE_VERSION = "9"
"""That of `geobacter_core.encoder.train`, which is not imported here because torch takes seconds; a test holds it."""


@dg.asset(
    deps=[
        dg.AssetDep(triplet_samples, partition_mapping=training_mapping),
        dg.AssetDep(tile_cache, partition_mapping=training_mapping),
    ],
    group_name="encoder",
    kinds={"torch", "mlflow"},
    owners=OWNERS,
    pool=PROCESSORS,
    code_version=CODE_VERSION,
)
def location_encoder(
    context: dg.AssetExecutionContext, config: TrainConfig, geobacter: Geobacter
) -> dg.MaterializeResult[None]:
    """A network from window to embedding: a new MLflow run and registered version at every materialisation."""
    from geobacter_core.encoder.evaluate import Examples
    from geobacter_core.encoder.tracking import train_tracked
    from geobacter_core.encoder.train import Epoch, Step
    from geobacter_core.plots import triplet_picture

    tags = {
        "dagster.run_id": context.run.run_id,
        "dagster.asset_key": context.asset_key.to_user_string(),
        "dagster.code_version": CODE_VERSION,
    }
    with core_errors(), Progress(context, "percent of the budget") as progress:
        registry = geobacter.registry()
        regions = geobacter.training_data()

        def on_step(step: Step) -> None:
            note = f"step {step.step}, loss {step.loss:.3f}, {step.images_per_s:.0f} images/s"
            progress(100 * step.progress, 100, note)

        def on_epoch(epoch: Epoch) -> None:
            what = f"after epoch {epoch.epoch}" if epoch.epoch else "with random weights"
            context.log.info(f"test triplet accuracy {what}: {epoch.scores.triplet_accuracy:.3f}")

        def draw(shown: Examples) -> "PIL.Image.Image":
            return triplet_picture(
                shown.anchor,
                shown.positive,
                shown.negative,
                shown.positive_distance,
                shown.negative_distance,
                regions[0].cache.manifest.channels,
            )

        done = train_tracked(registry, regions, config, tags, draw, on_step, on_epoch)
    trained, version = done.trained, done.version
    return dg.MaterializeResult(
        data_version=dg.DataVersion(version.digest),
        metadata={
            "model": version.name,
            "model_uri": f"models:/{version.name}",
            "mlflow_run_id": version.run_id,
            "mlflow_run": _run_link(registry.uri, done.experiment_id, version.run_id),
            "regions": ", ".join(training_regions),
            "test_triplet_accuracy": trained.scores.triplet_accuracy,
            "test_recall_at_1": trained.scores.recall_at_1,
            "test_recall_at_10": trained.scores.recall_at_10,
            "random_triplet_accuracy": trained.random.triplet_accuracy,
            "test_triplets": trained.scores.n,
            "epochs": trained.n_epochs,
            "steps": trained.n_steps,
            "images_per_s": round(trained.images_per_s, 1),
            "train_seconds": round(trained.train_seconds, 1),
            "size_m": version.size_m,
            "size_px": version.size_px,
            "embedding_dim": version.embedding_dim,
            "picture": picture(done.picture),
        },
    )


# Not an asset that is materialised: it would be stale after every training, refused or not, and with it every table.
@dg.multi_observable_source_asset(  # type: ignore[untyped-decorator]
    specs=[
        dg.AssetSpec(
            "champion_encoder",
            description="The encoder that tables are made with, observed in the registry. A training that is refused "
            "does not change it; a promotion does, by the gate or by hand, and makes the tables stale.",
            deps=[location_encoder],
            group_name="encoder",
            kinds={"mlflow"},
            owners=OWNERS,
            code_version="1",
        )
    ]
)
def champion_encoder(geobacter: Geobacter) -> Iterator[dg.ObserveResult]:
    """See which encoder is the champion. Its data version is the digest of its weights."""
    with core_errors():
        registry = geobacter.registry()
        champion = registry.champion()
    yield dg.ObserveResult(
        asset_key="champion_encoder",
        data_version=dg.DataVersion(champion.digest),
        metadata={
            "model": champion.name,
            "model_uri": f"models:/{champion.name}",
            "alias": registry.champion_alias,
            "mlflow_run_id": champion.run_id,
            "mlflow_run": _run_link(registry.uri, registry.experiment_id, champion.run_id),
            "style": champion.style_label,
            "test_triplet_accuracy": champion.test_accuracy,
        },
    )


def _run_link(uri: str, experiment_id: str, run_id: str) -> dg.UrlMetadataValue:
    """The run's page on the tracking server; for a local store, that of the MLflow UI which `make dev` starts."""
    from geobacter_core.settings import without_secrets

    server = without_secrets(uri) if uri.startswith("http") else os.environ.get("GEOBACTER_MLFLOW_UI", _LOCAL_UI)
    return dg.MetadataValue.url(f"{server}/#/experiments/{experiment_id}/runs/{run_id}")
