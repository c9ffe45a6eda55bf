"""Asset checks: every table is held against its contract, and the encoder against the gate to the registry."""

import warnings
from collections.abc import Sequence

import dagster as dg

from geobacter_core.osm.extract import extract_problems, load_extract
from geobacter_core.osm.features import features_problems
from geobacter_core.samples.triplets import triplets_problems
from geobacter_core.tiles.cache import verify_cache
from geobacter_pipeline.assets.embeddings import embedding_report, region_embeddings
from geobacter_pipeline.assets.encoder import location_encoder
from geobacter_pipeline.assets.osm import map_features, osm_extract
from geobacter_pipeline.assets.samples import triplet_samples
from geobacter_pipeline.assets.tiles import tile_cache
from geobacter_pipeline.partitions import region_partitions
from geobacter_pipeline.report_back import core_errors
from geobacter_pipeline.resources import Geobacter

# Checks of a partition are new in Dagster 1.13, which says so at every import; constraints.txt pins what was tested.
warnings.filterwarnings("ignore", category=dg.PreviewWarning, message=".*AssetCheckSpec.*")


def _result(problems: Sequence[str]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not problems,
        severity=dg.AssetCheckSeverity.ERROR,
        description=" ".join(problems[:3]) or "All is as the contract says.",
        metadata={"problems": dg.MetadataValue.json(list(problems))},
    )


@dg.asset_check(asset=osm_extract, partitions_def=region_partitions)
def extract_is_whole(context: dg.AssetCheckExecutionContext, geobacter: Geobacter) -> dg.AssetCheckResult:
    """The file has the digest of its provenance."""
    return _result(extract_problems(geobacter.settings.extract_folder(context.partition_key)))


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
    """The challenger beats random weights and is not worse than the champion; then it is the champion."""
    with core_errors():
        registry = geobacter.registry()
        verdict = registry.judge(geobacter.training_data())
        if verdict.passed:
            registry.promote(verdict.challenger)
    champion = verdict.champion_scores
    return dg.AssetCheckResult(
        passed=verdict.passed,
        description=verdict.reason,
        metadata={
            "rule": "triplet accuracy > random weights, and ≥ the present champion, on the same test triplets",
            "challenger": verdict.challenger.name,
            "challenger_triplet_accuracy": verdict.challenger_scores.triplet_accuracy,
            "random_triplet_accuracy": verdict.random_scores.triplet_accuracy,
            "champion_before": verdict.champion.name if verdict.champion else "none",
            **({"champion_triplet_accuracy": champion.triplet_accuracy} if champion else {}),
            "test_triplets": verdict.challenger_scores.n,
        },
    )


@dg.asset_check(asset=region_embeddings, partitions_def=region_partitions)
def embeddings_fit_contract(context: dg.AssetCheckExecutionContext, geobacter: Geobacter) -> dg.AssetCheckResult:
    """Schema, no nulls, length 1, ascending cells, and a row for every cell of the region."""
    from geobacter_core.embeddings.table import table_problems

    settings, region = geobacter.settings, geobacter.region(context.partition_key)
    with core_errors():
        extract, _ = load_extract(settings.extract_folder(region.name))
    return _result(table_problems(settings.embeddings_file(region.name), extract.ground, region.cell_resolution))


@dg.asset_check(asset=embedding_report, partitions_def=region_partitions)
def report_is_self_contained(context: dg.AssetCheckExecutionContext, geobacter: Geobacter) -> dg.AssetCheckResult:
    """The page is there and fetches nothing from elsewhere."""
    from geobacter_core.report import report_problems

    return _result(report_problems(geobacter.settings.report_folder(context.partition_key)))


ALL_CHECKS = [
    extract_is_whole,
    features_fit_contract,
    tiles_have_their_digests,
    samples_fit_contract,
    challenger_becomes_champion,
    embeddings_fit_contract,
    report_is_self_contained,
]
