"""The sweep: which settings make a good encoder, by many short trainings."""

import dagster as dg

from geobacter_pipeline.assets.osm import OWNERS, map_features
from geobacter_pipeline.assets.tiles import tile_cache
from geobacter_pipeline.automation import PROCESSORS
from geobacter_pipeline.configs import SweepConfig
from geobacter_pipeline.partitions import training_mapping, training_regions
from geobacter_pipeline.report_back import core_errors, picture
from geobacter_pipeline.resources import Geobacter


@dg.asset(
    deps=[
        dg.AssetDep(map_features, partition_mapping=training_mapping),
        dg.AssetDep(tile_cache, partition_mapping=training_mapping),
    ],
    group_name="encoder",
    kinds={"torch", "mlflow"},
    owners=OWNERS,
    pool=PROCESSORS,
    code_version="1",
)
def encoder_sweep(
    context: dg.AssetExecutionContext, config: SweepConfig, geobacter: Geobacter
) -> dg.MaterializeResult[None]:
    """Short trainings on every training region, one setting changed at a time; a run in MLflow with one for each."""
    from geobacter_core.evaluation.sweep import Trial, read_plan
    from geobacter_core.report.sweep import run_sweep

    def on_trial(trial: Trial) -> None:
        context.log.info(f"{trial.name}, seed {trial.seed}: score {trial.score:.3f} in {trial.train_seconds:.0f} s")

    with core_errors():
        regions = [geobacter.region(name) for name in training_regions]
        tags = {"dagster.run_id": context.run.run_id, "dagster.asset_key": "encoder_sweep"}
        report = run_sweep(geobacter.settings, geobacter.registry(), regions, read_plan(config.plan), tags, on_trial)
    best = max(report.trials, key=lambda trial: trial.score)
    return dg.MaterializeResult(
        metadata={
            "trials": len(report.trials),
            "mlflow_run_id": report.run_id,
            "best": f"{best.name}, seed {best.seed}",
            "best score": best.score,
            "base score": report.trials[0].score,
            "table": dg.MetadataValue.md(report.table),
            "picture": picture(report.picture),
        },
    )
