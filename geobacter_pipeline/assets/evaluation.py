"""Evaluation: what the champion's embeddings of a region are worth, against baselines on the same folds."""

import dagster as dg

from geobacter_pipeline.assets.encoder import champion_encoder
from geobacter_pipeline.assets.osm import OWNERS, map_features, osm_extract
from geobacter_pipeline.assets.tiles import tile_cache
from geobacter_pipeline.automation import PROCESSORS
from geobacter_pipeline.configs import EvaluationConfig
from geobacter_pipeline.partitions import region_partitions
from geobacter_pipeline.report_back import columns, core_errors, picture
from geobacter_pipeline.resources import Geobacter

CODE_VERSION = "7"
"""That of `geobacter_core.evaluation.evaluate`, not imported here because torch takes seconds; a test holds it."""


@dg.asset(
    partitions_def=region_partitions,
    deps=[osm_extract, map_features, tile_cache, champion_encoder],
    group_name="encoder",
    kinds={"parquet", "scikitlearn"},
    owners=OWNERS,
    pool=PROCESSORS,
    code_version=CODE_VERSION,
)
def encoder_evaluation(
    context: dg.AssetExecutionContext, config: EvaluationConfig, geobacter: Geobacter
) -> dg.MaterializeResult[None]:
    """Probes on semantics that the map does not show and on your labels; retrieval; how the embeddings lie."""
    from geobacter_core.evaluation.evaluate import means
    from geobacter_core.evaluation.region import evaluate_region
    from geobacter_core.evaluation.store import SCHEMA, margins
    from geobacter_core.report.evaluation import evaluation_pictures, report_evaluation

    region = geobacter.region(context.partition_key)
    with core_errors():
        registry = geobacter.registry()
        champion = registry.champion()
        made = evaluate_region(geobacter.settings, region, registry, champion, config, context.log.info)
        pictures = evaluation_pictures(made.evaluation)
        text = report_evaluation(made, registry, champion, pictures)
    evaluation = made.evaluation
    return dg.MaterializeResult(
        data_version=dg.DataVersion(made.digest),
        metadata={
            "dagster/row_count": len(evaluation.results),
            "dagster/column_schema": columns({field.name: (str(field.type), "") for field in SCHEMA}),
            "path": dg.MetadataValue.path(made.path),
            "encoder": champion.name,
            "mlflow_run_id": champion.run_id,
            **{f"mean over hidden semantics, {name}": score for name, score in means(evaluation.results, True).items()},
            **{
                f"better by, on the mean, than {name}": margin
                for name, margin in margins(evaluation.results, champion.name).items()
            },
            "summary": dg.MetadataValue.md(text),
            **{name.removesuffix(".png"): picture(image) for name, image in pictures.items()},
        },
    )
