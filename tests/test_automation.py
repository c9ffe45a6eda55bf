"""What runs by itself: which changes lead to which runs, and which regions' servers have something new."""

import time

import dagster as dg
import pytest
from replication import FIRST, Server, node, write_extract

from geobacter_core.osm.changes import pending_changes, update_extract
from geobacter_core.osm.extract import fetch_extract
from geobacter_core.regions import load_regions
from geobacter_core.settings import Settings
from geobacter_pipeline.checks import region_is_fresh
from geobacter_pipeline.definitions import defs
from geobacter_pipeline.partitions import region_partitions

CHAIN = ["osm_extract", "map_features", "tile_cache", "region_embeddings", "embedding_report"]


class Graph:
    """The assets of two regions as Dagster sees them; nothing is computed."""

    def __init__(self):
        self._instance = dg.DagsterInstance.ephemeral()
        self._cursor = None
        for region in ("kotka", "monaco"):
            for asset in CHAIN:
                self.made(asset, "1", region)
        self.promoted("1")
        self.requested()

    def made(self, asset, version, region="monaco"):
        self._instance.report_runless_asset_event(
            dg.AssetMaterialization(asset, partition=region, tags={"dagster/data_version": version})
        )

    def promoted(self, version):
        self._instance.report_runless_asset_event(
            dg.AssetObservation("champion_encoder", tags={"dagster/data_version": version})
        )

    def requested(self):
        """What the sensor would ask for now, that it did not before."""
        result = dg.evaluate_automation_conditions(defs, self._instance, cursor=self._cursor)
        self._cursor = result.cursor
        assets = defs.resolve_asset_graph().materializable_asset_keys
        return {
            (key.to_user_string(), region)
            for key in assets
            for region in result.get_requested_partitions(key)
            if region is not None
        }


@pytest.fixture
def graph():
    return Graph()


def test_an_update_that_finds_nothing_leads_to_nothing(graph):
    graph.made("osm_extract", "1")
    assert graph.requested() == set()


def test_a_changed_extract_leads_down_the_chain_as_far_as_it_changes_anything(graph):
    graph.made("osm_extract", "2")
    assert graph.requested() == {("map_features", "monaco")}
    graph.made("map_features", "2")
    assert graph.requested() == {("tile_cache", "monaco")}
    graph.made("tile_cache", "1")  # nothing that the style draws
    assert graph.requested() == set()
    graph.made("tile_cache", "2")
    assert graph.requested() == {("region_embeddings", "monaco")}
    graph.made("region_embeddings", "2")
    assert graph.requested() == {("embedding_report", "monaco")}
    graph.made("embedding_report", "2")
    assert graph.requested() == set()


def test_a_change_is_not_lost_while_the_run_for_it_fails(graph):
    """Asked for once; the region's next change asks again."""
    graph.made("osm_extract", "2")
    assert graph.requested() == {("map_features", "monaco")}
    assert graph.requested() == set()
    graph.made("osm_extract", "3")
    assert graph.requested() == {("map_features", "monaco")}


def test_regions_do_not_wait_for_each_other(graph):
    graph.made("osm_extract", "2", "kotka")
    graph.made("tile_cache", "2", "monaco")
    assert graph.requested() == {("map_features", "kotka"), ("region_embeddings", "monaco")}


def test_a_promoted_encoder_leads_to_the_tables_of_all_regions_and_to_no_tiles(graph):
    graph.promoted("2")
    assert graph.requested() == {("region_embeddings", "kotka"), ("region_embeddings", "monaco")}


def test_everything_is_off_until_someone_turns_it_on():
    for sensor in defs.sensors:
        assert sensor.default_status == dg.DefaultSensorStatus.STOPPED


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path / "server")
    yield made
    made.close()


@pytest.fixture
def followed(server, write_pbf, tmp_path, monkeypatch):
    """Monaco follows a server on loopback, Luxembourg one that is not there; the sensor's view of it."""
    path = write_extract(write_pbf, tmp_path / "monaco.osm.pbf")
    regions = tmp_path / "regions.toml"
    regions.write_text(
        f'[regions.monaco]\nextract = "{path}"\nupdates = "{server.address}"\n'
        f'[regions.luxembourg]\nextract = "{path}"\nupdates = "http://127.0.0.1:9"\n'
        f'[regions.kotka]\nextract = "{path}"\n'
    )
    monkeypatch.setenv("GEOBACTER_REGIONS", str(regions))
    monkeypatch.setenv("GEOBACTER_DATA", str(tmp_path / "data"))
    settings = Settings.from_environment()
    for region in load_regions(regions).values():
        fetch_extract(region, settings.extract_folder(region.name))
    return settings


def tick():
    sensor = defs.resolve_sensor_def("map_changes")
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance, repository_def=defs.get_repository_def())
        return sensor.evaluate_tick(context)


def test_the_sensor_asks_for_the_regions_that_are_behind(server, followed):
    server.publish(FIRST)
    assert "monaco" in region_partitions.get_partition_keys()
    skipped = tick()
    assert skipped.run_requests == []
    assert f"monaco is at sequence {FIRST}, the newest" in skipped.skip_message
    assert "kotka follows no server" in skipped.skip_message
    assert "luxembourg: " in skipped.skip_message  # its server is down, and holds up nobody
    server.publish(FIRST + 1, f"<modify>{node(4, 10.01, 50.011, version=2)}</modify>")
    server.publish(FIRST + 2)
    (request,) = tick().run_requests
    assert request.partition_key == "monaco"
    assert request.tags["geobacter/sequence"] == f"{FIRST} to {FIRST + 2}"
    region = load_regions(followed.regions_file)["monaco"]
    folder = followed.extract_folder("monaco")
    pending = pending_changes(region, folder)
    assert (pending.present, pending.newest, pending.n_changes) == (FIRST, FIRST + 2, 2)
    update_extract(region, folder)
    assert tick().run_requests == []


def materialised(instance, region):
    instance.report_runless_asset_event(dg.AssetMaterialization("osm_extract", partition=region))


def test_a_region_is_told_once_when_it_was_not_brought_up_to_date_for_too_long(followed, monkeypatch):
    """Monaco has the usual 26 hours, Luxembourg 2; Kotka was never materialised."""
    regions = followed.regions_file
    regions.write_text(regions.read_text().replace("[regions.luxembourg]", "[regions.luxembourg]\nfresh_hours = 2"))
    now = time.time()
    sensor = defs.resolve_sensor_def("map_freshness")
    job = defs.resolve_job_def("check_freshness")
    (key,) = region_is_fresh.check_keys
    with dg.DagsterInstance.ephemeral() as instance:
        requested = set()

        def failing(hours):
            """Regions that are checked so long from now, each of which fails; and what is said if none is."""
            monkeypatch.setattr("geobacter_pipeline.freshness.time", lambda: now + 3600 * hours)
            context = dg.build_sensor_context(instance, repository_def=defs.get_repository_def())
            result = sensor.evaluate_tick(context)
            new = [run for run in result.run_requests if run.run_key not in requested]  # as the daemon does
            requested.update(run.run_key for run in new)
            for run in new:
                job.execute_in_process(instance=instance, tags=run.tags)
            names = [run.tags["dagster/partition"] for run in new]
            storage = instance.event_log_storage
            told = storage.get_asset_check_partition_info([key], partition_keys=names) if names else []
            assert all(each.is_current and each.latest_execution_status.value == "FAILED" for each in told)
            assert len(told) == len(names)
            return names, result.skip_message

        partitions, message = failing(100)
        assert partitions == []
        assert "monaco was never materialised." in message
        materialised(instance, "monaco")
        materialised(instance, "luxembourg")
        partitions, message = failing(1.5)
        assert partitions == []
        assert "luxembourg was brought up to date 1.5 hours ago, and shall be every 2 hours." in message
        assert failing(3)[0] == ["luxembourg"]
        assert failing(4)[0] == []
        assert failing(27)[0] == ["monaco"]
        materialised(instance, "luxembourg")
        assert failing(1)[0] == []
        assert failing(28)[0] == ["luxembourg"]
        # A week later once more, in case a run did not end.
        assert sorted(failing(200)[0]) == ["luxembourg", "monaco"]
        assert failing(201)[0] == []


def test_a_run_passes_the_check_of_its_region(followed):
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(
            instance=instance, partition_key="kotka", asset_selection=[dg.AssetKey("osm_extract")]
        )
        (found,) = [each for each in result.get_asset_check_evaluations() if each.check_name == "region_is_fresh"]
        assert found.passed
        assert found.metadata["fresh_hours"].value == 26
