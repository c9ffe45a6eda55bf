"""Asset checks: every table is held against its contract, and the encoder against the gate to the registry."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from geobacter_core.osm.extract import extract_problems, load_extract
from geobacter_core.osm.features import features_problems
from geobacter_core.samples.triplets import triplets_problems
from geobacter_core.tiles.cache import verify_cache
from geobacter_pipeline.assets.embeddings import embedding_report, region_embeddings
from geobacter_pipeline.assets.encoder import location_encoder
from geobacter_pipeline.assets.evaluation import encoder_evaluation
from geobacter_pipeline.assets.osm import map_features, osm_extract
from geobacter_pipeline.assets.samples import triplet_samples
from geobacter_pipeline.assets.tiles import tile_cache
from geobacter_pipeline.freshness import freshness
from geobacter_pipeline.partitions import region_partitions
from geobacter_pipeline.report_back import core_errors
from geobacter_pipeline.resources import Geobacter

if TYPE_CHECKING:
    from geobacter_core.encoder.gate import Difference

# Checks of a partition are new in Dagster 1.13, which says so at every import; constraints.txt pins what was tested.
warnings.filterwarnings("ignore", category=dg.PreviewWarning, message=".*AssetCheckSpec.*")


def _warning(problems: Sequence[str]) -> dg.AssetCheckResult:
    """A result that people should see, and that stops nothing."""
    return _result(problems, dg.AssetCheckSeverity.WARN)


def _result(
    problems: Sequence[str], severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not problems,
        severity=severity,
        description=" ".join(problems[:3]) or "All is as the contract says.",
        metadata={"problems": dg.MetadataValue.json(list(problems))},
    )


@dg.asset_check(asset=osm_extract, partitions_def=region_partitions)
def extract_is_whole(context: dg.AssetCheckExecutionContext, geobacter: Geobacter) -> dg.AssetCheckResult:
    """The file has the digest of its provenance."""
    return _result(extract_problems(geobacter.settings.extract_folder(context.partition_key)))


@dg.asset_check(asset=osm_extract, partitions_def=region_partitions)
def region_is_fresh(context: dg.AssetCheckExecutionContext, geobacter: Geobacter) -> dg.AssetCheckResult:
    """The region was brought up to date within its `fresh_hours`; between runs, the sensor `map_freshness` looks."""
    found = freshness(context.instance, geobacter.region(context.partition_key))
    if found is None:
        return _warning([f"{context.partition_key} was never materialised. Materialise osm_extract for it."])
    return dg.AssetCheckResult(
        passed=found.is_fresh,
        severity=dg.AssetCheckSeverity.WARN,
        description=found.description,
        metadata=found.metadata,
    )


@dg.asset_check(asset=map_features, partitions_def=region_partitions)
def features_fit_contract(context: dg.AssetCheckExecutionContext, geobacter: Geobacter) -> dg.AssetCheckResult:
    """Columns, reference system and counts are those of the manifest."""
    return _result(features_problems(geobacter.settings.features_folder(context.partition_key)))


@dg.asset_check(asset=tile_cache, partitions_def=region_partitions)
def tiles_have_their_digests(context: dg.AssetCheckExecutionContext, geobacter: Geobacter) -> dg.AssetCheckResult:
    """Every chunk of the region is there, and every tile has its digest."""
    settings, region = geobacter.settings, context.partition_key
    with core_errors():
        extract, _ = load_extract(settings.extract_folder(region))
    return _result(verify_cache(settings.tiles_folder(region, settings.style), extract.ground).problems)


@dg.asset_check(asset=triplet_samples, partitions_def=region_partitions)
def samples_fit_contract(context: dg.AssetCheckExecutionContext, geobacter: Geobacter) -> dg.AssetCheckResult:
    """Schema, ranges, no nulls, and no block in both splits."""
    settings, region = geobacter.settings, context.partition_key
    with core_errors():
        extract, _ = load_extract(settings.extract_folder(region))
    return _result(triplets_problems(settings.triplets_file(region), extract.box))


@dg.asset_check(asset=location_encoder, blocking=True)
def challenger_becomes_champion(geobacter: Geobacter) -> dg.AssetCheckResult:
    """The challenger is better than random weights and not worse than the champion; then it becomes the champion."""
    from geobacter_core.encoder.gate import RULE, judge, settle

    with core_errors():
        registry = geobacter.registry()
        verdict = judge(registry, geobacter.training_data())
        what_now = settle(registry, verdict)
    return dg.AssetCheckResult(
        passed=verdict.passed,
        description=f"{verdict.reason} {what_now}",
        metadata={
            "rule": RULE,
            "figures": dg.MetadataValue.md(verdict.table()),
            "challenger": verdict.challenger.name,
            "champion_before": verdict.champion.name if verdict.champion else "none",
            "retrieval_to_random": verdict.to_random.mean,
            "retrieval_to_random_standard_error": verdict.to_random.standard_error,
            **_to_champion(verdict.to_champion),
            "test_triplets": sum(region.n for region in verdict.regions),
        },
    )


def _to_champion(difference: "Difference | None") -> dict[str, float]:
    if difference is None:
        return {}
    return {
        "retrieval_to_champion": difference.mean,
        "retrieval_to_champion_standard_error": difference.standard_error,
    }


@dg.asset_check(asset=encoder_evaluation, partitions_def=region_partitions)
def encoder_beats_baselines(context: dg.AssetCheckExecutionContext, geobacter: Geobacter) -> dg.AssetCheckResult:
    """On the mean over hidden semantics, the encoder is better than random weights and every other baseline."""
    from geobacter_core.evaluation.store import baseline_problems

    with core_errors():
        return _warning(baseline_problems(geobacter.settings.evaluation_file(context.partition_key)))


@dg.asset_check(asset=encoder_evaluation, partitions_def=region_partitions)
def embeddings_have_not_collapsed(context: dg.AssetCheckExecutionContext, geobacter: Geobacter) -> dg.AssetCheckResult:
    """No dimension is the same everywhere, and the effective rank is a tenth of the dimensions or more."""
    from geobacter_core.evaluation.store import collapse_problems

    with core_errors():
        return _warning(collapse_problems(geobacter.settings.evaluation_file(context.partition_key)))


@dg.asset_check(asset=region_embeddings, partitions_def=region_partitions)
def embeddings_fit_contract(context: dg.AssetCheckExecutionContext, geobacter: Geobacter) -> dg.AssetCheckResult:
    """Schema, no nulls, length 1, ascending cells, and a row for every cell of the region."""
    from geobacter_core.cells import grid_of
    from geobacter_core.embeddings.table import table_problems

    settings, region = geobacter.settings, geobacter.region(context.partition_key)
    with core_errors():
        extract, _ = load_extract(settings.extract_folder(region.name))
        problems = table_problems(settings.embeddings_file(region.name), grid_of(region, extract.ground))
    return _result(problems)


@dg.asset_check(asset=embedding_report, partitions_def=region_partitions)
def report_is_self_contained(context: dg.AssetCheckExecutionContext, geobacter: Geobacter) -> dg.AssetCheckResult:
    """The page is there and fetches nothing from elsewhere."""
    from geobacter_core.report import report_problems

    return _result(report_problems(geobacter.settings.report_folder(context.partition_key)))


ALL_CHECKS = [
    extract_is_whole,
    region_is_fresh,
    features_fit_contract,
    tiles_have_their_digests,
    samples_fit_contract,
    challenger_becomes_champion,
    encoder_beats_baselines,
    embeddings_have_not_collapsed,
    embeddings_fit_contract,
    report_is_self_contained,
]
