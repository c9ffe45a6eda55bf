"""The HTTP API over Helsinki and a registered encoder: answers, access, limits, bad input, what changes below it."""

import asyncio
import dataclasses
import functools
import gc
import io
import shutil

import h3
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from starlette.testclient import TestClient as _TestClient
from test_grid import squares

from geobacter_core.api.access import Limits, tokens_from
from geobacter_core.api.app import create_app
from geobacter_core.api.batching import Batcher, BusyError
from geobacter_core.api.bodies import ARROW
from geobacter_core.api.serve import check_host, is_loopback
from geobacter_core.api.state import Service
from geobacter_core.cells import H3Grid, UserGrid
from geobacter_core.embeddings.embed import embed_region
from geobacter_core.embeddings.places import Ground, Places, find_ground, style_of
from geobacter_core.embeddings.table import read_table
from geobacter_core.encoder.registry import Registry
from geobacter_core.errors import ApiSettingsError, OutsideError, TileCacheError
from geobacter_core.tiles.mosaic import ChunkMemory

TestClient = functools.partial(_TestClient, base_url="http://localhost")
HERE = {"lon": 24.9414, "lat": 60.1719}
TOKEN, OTHER_TOKEN = "correct-horse-battery-staple", "another-token-for-rotation"


@pytest.fixture(scope="module")
def served(installation, tmp_path_factory):
    """The installation, and a region in its regions file of which there is nothing."""
    regions = tmp_path_factory.mktemp("served") / "regions.toml"
    nowhere = '[regions.nowhere]\nextract = "pyrosm:test_pbf"\n'
    regions.write_text(installation.regions_file.read_text() + nowhere)
    return dataclasses.replace(installation, regions_file=regions)


@pytest.fixture(scope="module")
def client(served):
    with TestClient(create_app(served)) as client:
        yield client


@pytest.fixture(scope="module")
def table(served):
    return read_table(served.embeddings_file("helsinki"))


def problem(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document.keys() == {"title", "status", "detail"}
    assert document["status"] == status
    return document["detail"]


def picture(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    return PIL.Image.open(io.BytesIO(response.content))


def test_what_stays_is_not_looked_through_for_garbage(served):
    with TestClient(create_app(served)):
        assert gc.get_freeze_count() > 50_000


# Embeddings


def test_the_embedding_at_a_cells_centre_is_the_tables(client, table):
    for row in (0, 70, 143):
        answer = client.get("/embeddings", params={"lon": table.lon[row], "lat": table.lat[row]}).json()
        assert answer["cell"] == table.cells[row]
        assert (answer["region"], answer["encoder"]) == ("helsinki", "geobacter/1")
        np.testing.assert_array_equal(np.array(answer["embedding"], np.float32), table.embeddings[row])


def test_a_place_has_its_own_window_and_not_its_cells(client, table):
    answer = client.get("/embeddings", params=HERE).json()
    assert h3.latlng_to_cell(HERE["lat"], HERE["lon"], 10) == answer["cell"]
    row = int(np.flatnonzero(table.cells == answer["cell"])[0])
    assert not np.array_equal(np.array(answer["embedding"], np.float32), table.embeddings[row])
    assert np.linalg.norm(answer["embedding"]) == pytest.approx(1, abs=1e-5)
    assert len(answer["boundary"]) == 6
    assert picture(client.get(answer["image"])).size == (256, 256)


def test_many_places_are_answered_in_their_order(client, table):
    places = [{"lon": lon, "lat": lat} for lon, lat in zip(table.lon, table.lat, strict=True)]
    answer = client.post("/embeddings", json={"places": places}).json()
    assert answer["embedding_dim"] == 32
    np.testing.assert_array_equal(np.array(answer["embeddings"], np.float32), table.embeddings)
    assert client.post("/embeddings", json={"places": []}).json()["embeddings"] == []


def test_arrow_goes_in_and_comes_out(client, table):
    sink = pa.BufferOutputStream()
    columns = pa.table({"lat": table.lat, "name": table.cells, "lon": table.lon})
    with pa.ipc.new_stream(sink, columns.schema) as stream:
        stream.write_table(columns)
    headers = {"Content-Type": ARROW, "Accept": ARROW}
    response = client.post("/embeddings", content=sink.getvalue().to_pybytes(), headers=headers)
    assert response.headers["content-type"] == ARROW
    found = pa.ipc.open_stream(response.content).read_all()
    assert found.column_names == ["lon", "lat", "embedding"]
    assert found.schema.metadata[b"encoder"] == b"geobacter/1"
    vectors = found["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 32)
    np.testing.assert_array_equal(vectors, table.embeddings)


# Searches


def test_similar_cells_are_those_of_the_table(client, table):
    row = 70
    answer = client.get("/similar", params={"lon": table.lon[row], "lat": table.lat[row], "k": 5}).json()
    similarity = table.embeddings @ table.embeddings[row]
    order = np.argsort(-similarity, kind="stable")[:5]
    assert [found["cell"] for found in answer["results"]] == table.cells[order].tolist()
    assert answer["results"][0]["cell"] == table.cells[row]
    assert answer["results"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert answer["results"][0]["ground_m"] == pytest.approx(0, abs=0.2)
    assert len(answer["results"][0]["boundary"]) == 7


def test_similar_by_embedding_and_by_places(client, table):
    vector = (3 * table.embeddings[9]).tolist()
    found = client.post("/similar", json={"embedding": vector, "k": 2}).json()["results"]
    assert found[0]["cell"] == table.cells[9]
    assert found[0]["ground_m"] is None
    places = [{"lon": table.lon[row], "lat": table.lat[row]} for row in (3, 9)]
    mean = table.embeddings[[3, 9]].mean(axis=0)
    best = table.cells[np.argsort(-(table.embeddings @ mean), kind="stable")]
    best = [cell for cell in best if cell not in table.cells[[3, 9]]][:4]  # others like them, not themselves
    found = client.post("/similar", json={"places": places, "k": 4}).json()["results"]
    assert [each["cell"] for each in found] == best


def test_a_distance_keeps_neighbours_out(client):
    answer = client.get("/similar", params={**HERE, "k": 4, "min_distance_m": 400}).json()
    assert len(answer["results"]) == 4
    assert min(found["ground_m"] for found in answer["results"]) >= 400
    answer = client.get("/similar", params={**HERE, "k": 1000, "max_distance_m": 300}).json()
    assert 1 < len(answer["results"]) < 30
    assert max(found["ground_m"] for found in answer["results"]) <= 300


def test_a_walk_leads_from_one_place_to_the_other(client, table):
    ends = [f"{table.lon[row]},{table.lat[row]}" for row in (2, 140)]
    steps = client.get("/interpolate", params={"from": ends[0], "to": ends[1], "steps": 5}).json()["steps"]
    assert [step["t"] for step in steps] == [0, 0.25, 0.5, 0.75, 1]
    assert (steps[0]["cell"], steps[-1]["cell"]) == (table.cells[2], table.cells[140])
    assert len({step["cell"] for step in steps}) == 5


def test_arithmetic_adds_and_takes_away(client, table):
    pair = [f"{table.lon[row]},{table.lat[row]}" for row in (2, 70, 140)]
    found = client.get("/arithmetic", params={"plus": pair[:2], "minus": pair[2], "k": 3}).json()["results"]
    vector = table.embeddings[2] + table.embeddings[70] - table.embeddings[140]
    best = table.cells[np.argsort(-(table.embeddings @ vector), kind="stable")]
    best = [cell for cell in best if cell not in table.cells[[2, 70, 140]]][:3]
    assert [each["cell"] for each in found] == best


# Pictures and what there is


def test_tiles_of_the_map_are_drawn_at_every_zoom(client):
    for zoom in range(10, 19):
        x, y = _tile_at(HERE, zoom)
        assert picture(client.get(f"/tile/{zoom}/{x}/{y}.png")).size == (256, 256)
    assert len(picture(client.get(f"/tile/16/{'/'.join(map(str, _tile_at(HERE, 16)))}.png")).getcolors(1 << 16)) > 20
    assert client.get("/tile/16/0/0.png").status_code == 204
    for path in ("9/1/1", "19/1/1", "12/4096/0", "12/-1/0"):
        problem(client.get(f"/tile/{path}.png"), 404)


def test_cells_are_drawn_in_colours(client):
    for zoom in (8, 13, 15, 17):
        drawn = picture(client.get(f"/cells/helsinki/{zoom}/{'/'.join(map(str, _tile_at(HERE, zoom)))}.png"))
        assert drawn.mode == "RGBA"
        assert drawn.getextrema()[3][1] == 255
    assert client.get("/cells/helsinki/16/0/0.png").status_code == 204
    assert "no region 'atlantis'" in problem(client.get("/cells/atlantis/16/0/0.png"), 404)


def test_the_server_says_what_it_has(client, served, table):
    (region,) = client.get("/regions").json()["regions"]
    assert (region["name"], region["n_cells"], region["cell_resolution"]) == ("helsinki", 144, 10)
    assert (region["encoder"], region["style"], region["digest"]) == ("geobacter/1", "carto/1", table.digest)
    model = client.get("/model").json()
    assert (model["name"], model["size_m"], model["size_px"], model["embedding_dim"]) == ("geobacter/1", 200, 32, 32)
    assert client.get("/health").json() == client.get("/ready").json() == {"status": "ok"}
    metrics = client.get("/metrics").text
    assert "geobacter_encoder_version 1.0" in metrics
    assert 'geobacter_requests_total{operation="/model",status="200"}' in metrics


def test_the_explorer_is_served_whole(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    links = [part.split('"')[0] for part in page.text.split('"explorer/')[1:]]
    assert links
    for link in links:
        assert client.get(f"/explorer/{link}").status_code == 200, link
    assert client.get("/explorer/../routes.py").status_code == 404


# Bad input


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("lon=60.17&lat=24.94", None),
        ("lon=0&lat=0", "one of: helsinki"),
        ("lon=24.94", "lat: Field required"),
        ("lon=24.94&lat=", "lat: "),
        ("lon=nan&lat=60", "lon: "),
        ("lon=inf&lat=60", "lon: "),
        ("lon=1e400&lat=60", "lon: "),
        ("lon=24.94&lat=99", "Are longitude and latitude swapped?"),
        ("lon=181&lat=60", "lon: "),
        ("lon=here&lat=60", "lon: Input should be a valid number"),
        ("lon=24.94&lat=60.17&lat=60.17&lon=%00", "lon: "),
    ],
)
def test_a_wrong_place_is_told_apart(query, says, client):
    for path in ("/embeddings", "/similar", "/image"):
        response = client.get(f"{path}?{query}")
        detail = problem(response, 404 if "No region covers" in response.text else 422)
        assert (says or "No region covers") in detail


@pytest.mark.parametrize("k", ["0", "-1", "1000000", "ten", "1.5", ""])
def test_a_wrong_number_of_results_is_refused(k, client):
    assert "k: " in problem(client.get("/similar", params={**HERE, "k": k}), 422)


def test_unknown_regions_are_named(client):
    detail = problem(client.get("/similar", params={**HERE, "region": "atlantis"}), 404)
    assert detail == "There is no region 'atlantis'. Known are: helsinki."


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"null", 422),
        (b'{"places": 7}', 422),
        (b'{"places": [{"lon": 24.94}]}', 422),
        (b'{"places": [{"lon": "NaN", "lat": 60.17}]}', 422),
        (b'{"places": [{"lon": NaN, "lat": 60.17}]}', 422),
        (b'{"places": [], "more": 1}', 422),
        (b'{"places": [{"lon": 0, "lat": 0}]}', 404),
        (b"[" * 100_000, 400),
    ],
)
def test_wrong_bodies_are_refused(body, status, client):
    problem(client.post("/embeddings", content=body, headers={"Content-Type": "application/json"}), status)


def test_too_many_places_are_refused(client):
    places = [HERE] * 10_001
    assert "10000" in problem(client.post("/embeddings", json={"places": places}), 422)


@pytest.mark.parametrize("body", [b"", b"ARROW1", b"\xff" * 4000])
def test_wrong_arrow_bodies_are_refused(body, client):
    assert "Arrow" in problem(client.post("/embeddings", content=body, headers={"Content-Type": ARROW}), 400)


def test_arrow_without_the_columns_or_with_nulls_is_refused(client):
    for columns, status in (({"x": [1.0]}, 400), ({"lon": [None, 24.94], "lat": [60.17, 60.17]}, 422)):
        table = pa.table(columns)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        body = sink.getvalue().to_pybytes()
        problem(client.post("/embeddings", content=body, headers={"Content-Type": ARROW}), status)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"embedding": [1.0] * 32, "places": [HERE]},
        {"embedding": []},
        {"places": [HERE], "k": 0},
        {"places": [HERE], "min_distance_m": -1},
    ],
)
def test_wrong_searches_are_refused(body, client):
    problem(client.post("/similar", json=body), 422)


@pytest.mark.parametrize("embedding", [[0.0] * 32, [1.0] * 31])
def test_an_embedding_of_another_encoder_is_refused(embedding, client):
    problem(client.post("/similar", json={"embedding": embedding}), 409)
    problem(client.get("/arithmetic", params={"plus": "24.9414,60.1719", "minus": "24.9414,60.1719"}), 409)


@pytest.mark.parametrize("pair", ["60.17", "181,0", "24,86", "a,b", "24,60,1", "24, 60", "nan,60", "1e1,60", ""])
def test_a_wrong_pair_is_refused(pair, client):
    problem(client.get("/interpolate", params={"from": pair, "to": "24.9414,60.1719"}), 422)


def test_another_kind_of_body_is_refused(client):
    assert "text/csv" in problem(client.post("/embeddings", content="x", headers={"Content-Type": "text/csv"}), 415)


def test_what_is_not_there_is_a_problem_too(client):
    problem(client.get("/nothing"), 404)
    refused = client.delete("/embeddings")
    problem(refused, 405)
    assert refused.headers["allow"] == "GET, POST"


# Access and limits


@pytest.fixture(scope="module")
def guarded(served):
    with TestClient(create_app(served, [TOKEN, OTHER_TOKEN])) as client:
        yield client


@pytest.mark.parametrize("token", [TOKEN, OTHER_TOKEN])
def test_each_token_lets_in(token, guarded):
    assert guarded.get("/regions", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    assert guarded.get("/regions", headers={"Authorization": f"bearer {token}", "Host": "x.org"}).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", "Bearer é"],
)
def test_anything_else_does_not(sent, guarded):
    headers = {} if sent is None else {"Authorization": sent.encode()}
    for path in ("/regions", "/embeddings?lon=24.94&lat=60.17", "/metrics", "/tile/16/1/1.png", "/nothing"):
        response = guarded.get(path, headers=headers)
        detail = problem(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
        assert TOKEN[:8] not in detail + str(response.headers)


def test_page_and_health_need_no_token(guarded):
    assert [guarded.get(path).status_code for path in ("/", "/health", "/ready", "/explorer/explorer.js")] == [200] * 4


def test_no_token_reaches_a_log_or_a_metric(guarded, caplog):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    guarded.get("/similar?lon=999", headers=headers)
    assert TOKEN not in caplog.text + guarded.get("/metrics", headers=headers).text


def test_without_a_token_only_this_machine_is_answered(client):
    for host in ("localhost:8600", "127.0.0.1", "[::1]:8600"):
        assert client.get("/regions", headers={"Host": host}).status_code == 200
    assert "loopback" in problem(client.get("/regions", headers={"Host": "evil.example"}), 421)


def test_a_server_for_others_needs_a_token():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "me.org")] == [
        True, True, True, False, False, False, False,
    ]  # fmt: skip
    check_host("0.0.0.0", (TOKEN,))
    check_host("127.0.0.1", ())
    with pytest.raises(ApiSettingsError, match="GEOBACTER_TOKEN is not set"):
        check_host("0.0.0.0", ())


def test_tokens_are_read_and_weak_ones_refused():
    assert tokens_from({}) == tokens_from({"GEOBACTER_TOKEN": " "}) == ()
    assert tokens_from({"GEOBACTER_TOKEN": f"{TOKEN}, {OTHER_TOKEN}"}) == (TOKEN, OTHER_TOKEN)
    for weak in ("short", f"{TOKEN} hunter2", "ä" * 20):
        with pytest.raises(ApiSettingsError, match="GEOBACTER_TOKEN: token") as caught:
            tokens_from({"GEOBACTER_TOKEN": weak})
        assert "hunter2" not in str(caught.value)


def test_large_bodies_are_refused_before_they_are_read(client):
    body = b"x" * (5 << 20)
    headers = {"Content-Type": "application/json"}
    assert "4,194,304 bytes" in problem(client.post("/embeddings", content=body, headers=headers), 413)
    pieces = (body[:65536] for _ in range(1000))  # without a Content-Length
    problem(client.post("/embeddings", content=pieces, headers=headers), 413)


def test_more_requests_than_the_limit_are_shed(served):
    with TestClient(create_app(served, limits=Limits(in_flight=0))) as client:
        response = client.get("/regions")
        problem(response, 503)
        assert response.headers["retry-after"] == "1"
        assert client.get("/health").status_code == 200


# Batching


@pytest.fixture(scope="module")
def places(served):
    version = Registry(served).champion()
    ground = find_ground(served, "helsinki", style_of(version))
    return Places(Registry(served).load(version), [ground])


@pytest.fixture
def batcher():
    batcher = Batcher(2)
    batcher.start()
    yield batcher
    batcher.close()


def test_requests_share_batches_and_get_their_own(places, table, batcher):
    async def ask():
        return await asyncio.gather(
            *(batcher.embed(places, table.lon[row : row + 1], table.lat[row : row + 1]) for row in range(144))
        )

    found = asyncio.run(ask())
    np.testing.assert_array_equal(np.concatenate(found), table.embeddings)
    assert batcher.n_windows == 144
    assert batcher.n_batches < 30
    assert batcher.n_waiting == 0


def test_workers_share_what_waits(places, table):
    """All 600 places wait when the workers start: they take 128 each time, and their halves of the last."""
    batcher = Batcher(2)
    batcher._is_closed = False

    async def ask():
        asked = [asyncio.create_task(batcher.embed(places, table.lon[:30], table.lat[:30])) for _ in range(20)]
        await asyncio.sleep(0)
        assert batcher.n_waiting == 600
        batcher.start()
        return await asyncio.gather(*asked)

    for each in asyncio.run(ask()):
        np.testing.assert_array_equal(each, table.embeddings[:30])
    batcher.close()
    assert batcher.n_windows == 600
    assert 600 / 128 < batcher.n_batches <= 8


def test_a_batch_has_places_of_every_request(places, table):
    """A single place behind three long requests is in the first batch that is taken."""
    batcher = Batcher(1)
    batcher._is_closed = False

    async def ask():
        long = [asyncio.create_task(batcher.embed(places, table.lon[:100], table.lat[:100])) for _ in range(3)]
        short = asyncio.create_task(batcher.embed(places, table.lon[:1], table.lat[:1]))
        await asyncio.sleep(0)
        batcher.start()
        await short
        assert not any(each.done() for each in long)
        return await asyncio.gather(*long)

    for each in asyncio.run(ask()):
        np.testing.assert_array_equal(each, table.embeddings[:100])
    batcher.close()


def test_a_request_at_fault_does_not_spoil_the_others(places, table, batcher):
    async def ask():
        good = [batcher.embed(places, table.lon[row : row + 1], table.lat[row : row + 1]) for row in range(20)]
        bad = [batcher.embed(places, np.array([0.0]), np.array([0.0])) for _ in range(3)]
        return await asyncio.gather(*good, *bad, return_exceptions=True)

    found = asyncio.run(ask())
    np.testing.assert_array_equal(np.concatenate(found[:20]), table.embeddings[:20])
    assert [type(each) for each in found[20:]] == [OutsideError] * 3


def test_what_cannot_be_answered_soon_is_refused(places, table):
    batcher = Batcher(1, max_wait_s=0.1)  # at first, 50 places
    batcher.start()

    async def ask():
        asked = [batcher.embed(places, table.lon[:30], table.lat[:30]) for _ in range(20)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask())
    batcher.close()
    refused = [each for each in found if isinstance(each, BusyError)]
    assert 10 < len(refused) < 20
    assert all(each.retry_after_s >= 1 for each in refused)
    for each in found:
        if not isinstance(each, BusyError):
            np.testing.assert_array_equal(each, table.embeddings[:30])


def test_a_server_that_ends_refuses_and_can_start_again(places, table):
    batcher = Batcher(1)

    async def ask():
        return await batcher.embed(places, table.lon[:3], table.lat[:3])

    with pytest.raises(BusyError):
        asyncio.run(ask())
    for _ in range(2):
        batcher.start()
        np.testing.assert_array_equal(asyncio.run(ask()), table.embeddings[:3])
        batcher.close()
    with pytest.raises(BusyError):
        asyncio.run(ask())


# Where windows come from


def test_windows_drawn_from_features_are_those_of_the_cache(served, helsinki, places, table):
    style = style_of(places.encoder.version)
    drawn = Ground.of_features(served.features_folder("helsinki"), style)
    assert drawn.region == "helsinki"
    some = Places(places.encoder, [drawn], ChunkMemory(1 << 30))
    np.testing.assert_array_equal(some.embed(table.lon[60:70], table.lat[60:70]), table.embeddings[60:70])


def test_a_cache_alone_is_enough(helsinki, places, table):
    some = Places(places.encoder, [Ground.of_cache(helsinki.tiles_folder)])
    np.testing.assert_array_equal(some.embed(table.lon[:5], table.lat[:5]), table.embeddings[:5])


def test_tiles_of_another_style_are_refused(places, write_thematic):
    with pytest.raises(TileCacheError, match="its tiles have 12 channels, encoder geobacter/1 takes 3"):
        Places(places.encoder, [write_thematic])


@pytest.fixture
def write_thematic(helsinki):
    from geobacter_core.tiles.style import load_style

    return Ground.of_features(helsinki.settings.features_folder("helsinki"), load_style("thematic"))


# What changes below


def test_a_registry_without_champion_and_then_with_one(own_helsinki, served):
    settings = own_helsinki.settings
    regions = settings.data / "regions.toml"
    regions.write_text('[regions.helsinki]\nextract = "pyrosm:helsinki_pbf"\n')
    empty = f"sqlite:///{settings.data}/empty.db"
    settings = dataclasses.replace(settings, regions_file=regions, tracking_uri=empty)
    service = Service(settings, look_every_s=3600)
    with TestClient(create_app(settings, service=service)) as client:
        detail = problem(client.get("/embeddings", params=HERE), 503)
        assert "has no champion" in detail
        problem(client.get("/ready"), 503)
        assert client.get("/regions").json() == {"regions": []}
        service.settings = dataclasses.replace(settings, tracking_uri=served.tracking_uri)
        service._registry = None
        service.look()
        assert client.get("/ready").status_code == 200
        assert len(client.get("/embeddings", params=HERE).json()["embedding"]) == 32
        assert "No embedding table" in problem(client.get("/similar", params=HERE), 404)


def test_a_new_table_is_served_and_a_damaged_one_is_not(served, registration, helsinki, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(served.data, data, ignore=shutil.ignore_patterns("mlflow", "serving"))
    settings = dataclasses.replace(served, data=data)
    service = Service(settings, look_every_s=3600)
    with TestClient(create_app(settings, service=service)) as client:
        before = client.get("/regions").json()["regions"][0]["digest"]
        path = settings.embeddings_file("helsinki")
        other = dataclasses.replace(registration.version, version=99)
        load = Registry(served).load
        embed_region(
            path, helsinki.cache, H3Grid(helsinki.extract.ground, 9), other, lambda _: load(registration.version)
        )
        assert client.get("/regions").json()["regions"][0]["digest"] == before
        service.look()
        region = client.get("/regions").json()["regions"][0]
        assert (region["cell_resolution"], region["encoder"]) == (9, "geobacter/99")
        # Nobody has that encoder, so its table cannot be searched; places are embedded all the same.
        problem(client.get("/similar", params=HERE), 404)
        assert client.get("/embeddings", params=HERE).status_code == 200
        path.write_bytes(b"damaged")
        service.look()
        assert client.get("/regions").json()["regions"][0]["n_cells"] == 0


def _tile_at(place, zoom):
    from geobacter_core.geo import Place, Tile

    tile = Tile.at(Place(place["lon"], place["lat"]), zoom)
    return tile.x, tile.y


@pytest.mark.parametrize("are_points", [False, True])
def test_cells_of_a_users_grid_are_found_and_drawn(are_points, served, registration, helsinki, tmp_path):
    frame = squares()
    if are_points:
        frame = frame.set_geometry(frame.geometry.centroid)
    frame.to_parquet(tmp_path / "grid.parquet")
    data = tmp_path / "data"
    shutil.copytree(served.data, data, ignore=shutil.ignore_patterns("mlflow", "serving"))
    regions = tmp_path / "regions.toml"
    regions.write_text('[regions.helsinki]\nextract = "pyrosm:helsinki_pbf"\ncells = "grid.parquet"\n')
    settings = dataclasses.replace(served, data=data, regions_file=regions)
    grid = UserGrid(tmp_path / "grid.parquet", helsinki.extract.ground)
    path = settings.embeddings_file("helsinki")
    embed_region(path, helsinki.cache, grid, registration.version, Registry(served).load)
    with TestClient(create_app(settings)) as client:
        place = frame.geometry.representative_point()[40]
        at = {"lon": place.x, "lat": place.y}
        answer = client.get("/embeddings", params=at).json()
        found = client.get("/similar", params={**at, "k": 1}).json()["results"][0]
        assert answer["cell"] == found["cell"] == "40"
        assert answer["boundary"] == found["boundary"]
        assert len(found["boundary"]) == (1 if are_points else 5)
        for zoom in (12, 16, 17):
            drawn = picture(client.get(f"/cells/helsinki/{zoom}/{'/'.join(map(str, _tile_at(at, zoom)))}.png"))
            assert drawn.getextrema()[3][1] == 255
