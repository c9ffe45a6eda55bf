"""The tile cache: chunk files by their contract, damage that is found and mended, and pictures that look like a map."""

import hashlib
import os
import random
import re
from dataclasses import replace

import mapnik
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from geobacter_core.errors import TileCacheError
from geobacter_core.files import temporary_beside
from geobacter_core.geo import CHUNK_PX, WORLD_M, Place, Tile, lonlat_to_pixel
from geobacter_core.tiles.build import build_cache
from geobacter_core.tiles.cache import TileCache, chunks_of, load_manifest, verify_cache
from geobacter_core.tiles.chunk import check_chunk, chunk_file, chunk_metadata, read_strips, write_chunk
from geobacter_core.tiles.mapnik import cut_into_strips, open_maps

TILE_BYTES = 256 * 256 * 3
FULL = Tile(12, 2331, 1185)
BLANK = Tile(12, 2332, 1185)
KAISANIEMENLAHTI_SEA = (24.9435, 60.1776)
ESPLANADI_PARK = (24.94757, 60.16745)
RAILWAY_STATION = (24.94059, 60.17162)


def build(built):
    return build_cache(built.tiles_folder, "helsinki", built.extract.ground, built.style, built.source, built.inputs)


def test_the_caches_chunks_are_those_around_helsinki(helsinki):
    assert [summary.tile for summary in helsinki.cache.manifest.chunks] == [FULL, BLANK]
    # 500 m east of the bounds the next chunk begins; 2 km south of them no chunk is needed.
    assert Tile.at(Place(24.9534145 + 0.009, 60.17), 12) == BLANK


def test_chunks_of_ground_are_those_within_500_m():
    # A point-sized ground, 490 m and 510 m west of a chunk's west border at 60° north.
    west, south, _, north = BLANK.polygon.bounds
    metre = 1 / (111_320 * np.cos(np.radians(south)))
    for distance_m, n_chunks in ((490, 2), (510, 1)):
        lon, lat = west - distance_m * metre, (south + north) / 2
        ground = shapely.box(lon - 1e-7, lat - 1e-7, lon, lat + 1e-7)
        assert len(chunks_of(ground)) == n_chunks


def test_a_chunk_file_is_as_the_contract_says(helsinki):
    path = chunk_file(helsinki.tiles_folder, FULL)
    assert path.name == "12-2331-1185.parquet"
    table = pq.read_table(path)
    assert table.schema.remove_metadata() == pa.schema(
        [
            ("z", pa.int32()),
            ("x", pa.int32()),
            ("y", pa.int32()),
            ("pixels", pa.binary(TILE_BYTES)),
            ("digest", pa.binary(32)),
        ]
    )
    assert table.num_rows == 256
    assert table["z"].unique().to_pylist() == [16]
    expected = [(2331 * 16 + column, 1185 * 16 + row) for row in range(16) for column in range(16)]
    assert list(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True)) == expected
    for pixels, digest in zip(table["pixels"].to_pylist(), table["digest"].to_pylist(), strict=True):
        assert hashlib.sha256(pixels).digest() == digest
    assert pq.ParquetFile(path).metadata.row_group(0).column(3).compression == "ZSTD"


def test_a_chunk_file_says_what_it_was_made_from(helsinki):
    metadata = pq.read_schema(chunk_file(helsinki.tiles_folder, FULL)).metadata
    found = {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"geobacter:")}
    manifest = helsinki.cache.manifest
    assert len(found.pop("geobacter:strips").split()) == 16
    assert found == {
        "geobacter:style": f"carto/{helsinki.style.version}",
        "geobacter:style_digest": helsinki.style.digest,
        "geobacter:source": f"mapnik {mapnik.version_string()}",
        "geobacter:extract_sha256": helsinki.extract.sha256,
        "geobacter:recipe": manifest.chunks[0].recipe,
        "geobacter:checksums": "1",
    }


def test_the_manifest_counts_blank_tiles(helsinki):
    full, blank = helsinki.cache.manifest.chunks
    assert blank.n_blank == 256
    # 1.0 × 1.7 km on tiles of 303 m: some 24 of the 256 tiles have something in them.
    assert 220 <= full.n_blank <= 240
    assert helsinki.cache.manifest.n_tiles == 512


def test_a_second_build_renders_nothing_and_changes_no_file(own_helsinki, snapshot):
    before = snapshot(own_helsinki.tiles_folder)
    result = build(own_helsinki)
    assert (result.n_rendered, result.n_reused) == (0, 2)
    assert snapshot(own_helsinki.tiles_folder) == before


def test_two_caches_of_one_region_are_byte_for_byte_the_same(helsinki, own_helsinki, snapshot):
    for path in own_helsinki.tiles_folder.iterdir():
        path.unlink()
    assert build(own_helsinki).n_rendered == 2
    there, here = snapshot(helsinki.tiles_folder), snapshot(own_helsinki.tiles_folder)
    assert {name: data for name, (data, _) in there.items()} == {name: data for name, (data, _) in here.items()}


def damaged(path, damage):
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)


def flip_middle(data):
    data[len(data) // 2] ^= 0x01


def cut_in_half(data):
    del data[len(data) // 2 :]


def cut_off_footer(data):
    del data[-100:]


def make_empty(data):
    data.clear()


def make_html(data):
    data[:] = b"<html>404</html>"


@pytest.mark.parametrize("damage", [flip_middle, cut_in_half, cut_off_footer, make_empty, make_html])
def test_a_damaged_chunk_is_found_and_rendered_again(damage, own_helsinki, snapshot):
    path = chunk_file(own_helsinki.tiles_folder, FULL)
    before = snapshot(own_helsinki.tiles_folder)
    damaged(path, damage)
    with pytest.raises(TileCacheError, match=f"Chunk {re.escape(str(path))} is damaged.*Materialise tile_cache"):
        list(read_strips(path, FULL))
    with pytest.raises(TileCacheError, match=re.escape(str(path))):
        own_helsinki.cache.chunk(FULL)
    result = build(own_helsinki)
    assert (result.n_rendered, result.n_reused) == (1, 1)
    after = snapshot(own_helsinki.tiles_folder)
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    assert after["12-2332-1185.parquet"] == before["12-2332-1185.parquet"]
    assert after["tiles.json"] == before["tiles.json"]


def test_a_missing_chunk_is_named_and_the_only_one_rendered_again(own_helsinki):
    before = own_helsinki.cache.manifest
    path = chunk_file(own_helsinki.tiles_folder, BLANK)
    path.unlink()
    with pytest.raises(TileCacheError, match=f"Chunk {re.escape(str(path))} is missing. Materialise tile_cache"):
        own_helsinki.cache.chunk(BLANK)
    result = build(own_helsinki)
    assert (result.n_rendered, result.n_reused) == (1, 1)
    assert result.manifest == before


def test_no_flipped_byte_changes_a_chunk_unnoticed(tmp_path):
    """A small file, flipped at 80 places anywhere and at 80 of its footer: an error of ours, or what was written."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((16, 16, 256, 256, 1), np.uint8)
    pixels[:, :, :4, :4] = rng.integers(0, 256, (16, 16, 4, 4, 1))
    path, chunk = tmp_path / "12-5-7.parquet", Tile(12, 5, 7)
    write_chunk(path, chunk, pixels, {"geobacter:recipe": "a" * 64})
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    draw = random.Random(0)
    places = [*draw.sample(range(len(data)), 80), *draw.sample(range(footer, len(data)), 80)]
    n_found = 0
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            chunk_metadata(path)
            found = np.stack(list(read_strips(path, chunk)))
        except TileCacheError:
            n_found += 1
        else:
            np.testing.assert_array_equal(found, pixels, err_msg=f"byte {place} of {len(data)}")
    assert n_found > 50


def test_metadata_that_is_no_text_is_damage(own_helsinki):
    path = chunk_file(own_helsinki.tiles_folder, BLANK)
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"geobacter:recipe": b"\xfa\xff"}), path)
    with pytest.raises(TileCacheError, match=re.escape(str(path))):
        own_helsinki.cache.chunk(BLANK)
    assert build(own_helsinki).n_rendered == 1


def test_a_chunk_under_another_chunks_name_is_found(own_helsinki):
    path = chunk_file(own_helsinki.tiles_folder, FULL)
    path.write_bytes(chunk_file(own_helsinki.tiles_folder, BLANK).read_bytes())
    with pytest.raises(TileCacheError, match=r"12-2331-1185.parquet was made by mapnik .* from other inputs"):
        own_helsinki.cache.chunk(FULL)
    with pytest.raises(TileCacheError, match="does not hold the 256 tiles of 12/2331/1185"):
        list(read_strips(path, FULL))
    assert build(own_helsinki).n_rendered == 1


def test_a_chunk_from_other_inputs_is_refused_and_rendered_again(own_helsinki):
    path = chunk_file(own_helsinki.tiles_folder, BLANK)
    write_chunk(path, BLANK, np.zeros((16, 16, 256, 256, 3), np.uint8), {"geobacter:recipe": "another"})
    with pytest.raises(TileCacheError, match="was made by another source in style unknown from other inputs"):
        own_helsinki.cache.chunk(BLANK)
    assert build(own_helsinki).n_rendered == 1


def test_a_chunk_outside_the_cache_is_refused_by_name(helsinki):
    with pytest.raises(TileCacheError, match="of region 'helsinki' does not reach chunk 12/0/0"):
        helsinki.cache.chunk(Tile(12, 0, 0))
    assert FULL in helsinki.cache
    assert Tile(12, 0, 0) not in helsinki.cache


def test_a_cache_of_another_version_of_a_style_is_refused_by_name(own_helsinki):
    assert TileCache(own_helsinki.tiles_folder, own_helsinki.style).n_channels == 3
    newer = replace(own_helsinki.style, version="2")
    with pytest.raises(TileCacheError, match=r"'helsinki' was built with style carto/1, and carto/2 is asked for"):
        TileCache(own_helsinki.tiles_folder, newer)


def test_a_cache_without_manifest_is_named(tmp_path, own_helsinki):
    with pytest.raises(TileCacheError, match=r"tiles.json does not exist. Materialise tile_cache"):
        TileCache(tmp_path)
    (own_helsinki.tiles_folder / "tiles.json").write_text("{}")
    with pytest.raises(TileCacheError, match=r"tiles.json is damaged"):
        load_manifest(own_helsinki.tiles_folder)
    assert build(own_helsinki).n_rendered == 0
    assert own_helsinki.cache.manifest.region == "helsinki"


def test_leftovers_of_killed_runs_and_chunks_of_no_use_are_removed(own_helsinki):
    folder = own_helsinki.tiles_folder
    alive = temporary_beside(folder / "12-2331-1185.parquet")
    dead = folder / alive.name.replace(f"-{os.getpid()}-", "-999999999-")
    stranger = folder / "12-1-1.parquet"
    for path in (alive, dead, stranger):
        path.write_bytes(b"half a chunk")
    build(own_helsinki)
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") == [
        alive.name,
        "12-2331-1185.parquet",
        "12-2332-1185.parquet",
        "tiles.json",
    ]


class HalfBroken:
    """A tile source that fails for one chunk."""

    name = "half broken"
    n_channels = 3
    max_processes = None

    def strips(self, chunk, rows):
        for row in rows:
            if chunk == BLANK and row == 9:
                raise RuntimeError("no such layer")
            yield np.zeros((16, 256, 256, 3), np.uint8)


def test_a_chunk_that_fails_is_named_and_the_others_are_kept(own_helsinki):
    manifest = (own_helsinki.tiles_folder / "tiles.json").read_bytes()
    seen = []
    with pytest.raises(
        TileCacheError, match=r"1 of 2 chunks failed \(12/2332/1185\), the others.*12/2332/1185: no such layer"
    ):
        build_cache(
            own_helsinki.tiles_folder,
            "helsinki",
            own_helsinki.extract.ground,
            own_helsinki.style,
            HalfBroken(),
            own_helsinki.inputs,
            lambda done, total: seen.append((done, total)),
        )
    assert seen == [(1, 2), (2, 2)]
    assert (own_helsinki.tiles_folder / "tiles.json").read_bytes() == manifest
    assert max(strip.max() for strip in read_strips(chunk_file(own_helsinki.tiles_folder, FULL), FULL)) == 0


def test_an_image_is_cut_into_tiles_row_by_row():
    image = mapnik.Image(CHUNK_PX, CHUNK_PX)
    image.set_pixel(256 * 5 + 20, 256 * 3 + 10, mapnik.Color(1, 2, 3, 255))
    tiles = np.stack([strip.copy() for strip in cut_into_strips([image], 3)])
    assert tiles.shape == (16, 16, 256, 256, 3)
    assert tiles[3, 5, 10, 20].tolist() == [1, 2, 3]
    assert tiles.sum() == 6


def test_a_source_that_stops_early_leaves_no_chunk(tmp_path):
    strips = np.zeros((15, 16, 256, 256, 1), np.uint8)
    with pytest.raises(TileCacheError, match="240 of 256 tiles of chunk 12/5/7"):
        write_chunk(tmp_path / "12-5-7.parquet", Tile(12, 5, 7), strips, {})
    assert list(tmp_path.iterdir()) == []


def test_tiles_of_one_colour_are_counted_when_written_and_when_read(tmp_path):
    pixels = np.zeros((16, 16, 256, 256, 3), np.uint8)
    pixels[:8] = (7, 8, 9)
    pixels[2, 3, 255, 255, 2] = 10  # the last byte of one tile
    pixels[2, 4, 0, 0, 0] = 6  # the first of another
    pixels[9, 9, :, :, 0] = np.arange(256)  # every row the same, but not one colour
    path, chunk = tmp_path / "12-5-7.parquet", Tile(12, 5, 7)
    summary = write_chunk(path, chunk, pixels, {})
    assert summary.n_blank == 256 - 3
    digests = [hashlib.sha256(tile.tobytes()).digest() for row in pixels for tile in row]
    assert summary.digest == hashlib.sha256(b"".join(digests)).hexdigest()
    assert pq.read_table(path)["digest"].to_pylist() == digests
    np.testing.assert_array_equal(np.stack(list(read_strips(path, chunk))), pixels)
    assert check_chunk(path, chunk) == summary


def test_what_is_wrong_with_a_cache_is_listed(own_helsinki):
    ground = own_helsinki.extract.ground
    assert verify_cache(own_helsinki.tiles_folder, ground).problems == []
    damaged(chunk_file(own_helsinki.tiles_folder, FULL), flip_middle)
    chunk_file(own_helsinki.tiles_folder, BLANK).unlink()
    second, first = verify_cache(own_helsinki.tiles_folder, ground).problems
    assert "12-2331-1185.parquet is damaged" in first
    assert "Chunk 12/2332/1185 of the region is not in the cache" in second


def colour_at(built, lon, lat):
    """Median colour of the 9 × 9 pixels around a place."""
    x, y = (int(axis[0]) for axis in lonlat_to_pixel(np.array([lon]), np.array([lat])))
    mosaic = built.cache.chunk(FULL).swapaxes(1, 2).reshape(CHUNK_PX, CHUNK_PX, 3)
    left, top = x - FULL.x * CHUNK_PX, y - FULL.y * CHUNK_PX
    return np.median(mosaic[top - 4 : top + 5, left - 4 : left + 5].reshape(-1, 3), axis=0).astype(int)


def test_water_is_blue_parks_are_green_and_buildings_are_neither(helsinki):
    red, green, blue = colour_at(helsinki, *KAISANIEMENLAHTI_SEA)
    assert blue > green > red
    assert blue - red > 30
    red, green, blue = colour_at(helsinki, *ESPLANADI_PARK)
    assert green > red
    assert green > blue
    red, green, blue = colour_at(helsinki, *RAILWAY_STATION)
    assert red >= green >= blue
    assert 120 < green < 230


def picture(map_, left_px, top_px):
    """A picture of a chunk's size whose north-west corner lies at a global zoom-16 pixel."""
    metre = WORLD_M / (256 << 16)
    west, north = left_px * metre - WORLD_M / 2, WORLD_M / 2 - top_px * metre
    map_.zoom_to_box(mapnik.Box2d(west, north - CHUNK_PX * metre, west + CHUNK_PX * metre, north))
    image = mapnik.Image(CHUNK_PX, CHUNK_PX)
    mapnik.render(map_, image)
    return np.frombuffer(image.to_string(), np.uint8).reshape(CHUNK_PX, CHUNK_PX, 4)[..., :3].astype(int)


@pytest.mark.parametrize("axis", [0, 1])
def test_two_pictures_fit_together_along_a_border_through_the_city(helsinki, axis):
    """A chunk's border put through the middle of Helsinki: both sides look as they do inside one picture."""
    map_ = open_maps(helsinki.style, helsinki.source.features)[0]
    x, y = lonlat_to_pixel(np.array([24.9443]), np.array([60.1716]))
    border_x, border_y = int(x[0]) // 256 * 256, int(y[0]) // 256 * 256
    whole_corner = np.array([border_y - CHUNK_PX // 2, border_x - CHUNK_PX // 2])
    whole = picture(map_, whole_corner[1], whole_corner[0])
    step = np.array([1, 0]) if axis == 0 else np.array([0, 1])
    before = picture(map_, *(whole_corner - step * CHUNK_PX // 2)[::-1])
    after = picture(map_, *(whole_corner + step * CHUNK_PX // 2)[::-1])
    middle = CHUNK_PX // 2
    joined = np.concatenate([before.take(range(middle, CHUNK_PX), axis), after.take(range(middle), axis)], axis)
    near = range(middle - 64, middle + 64)
    # Only the city itself: elsewhere there is nothing that could differ.
    city = range(middle - 300, middle + 300)
    strips = [image.take(near, axis).take(city, 1 - axis) for image in (whole, joined)]
    differs = np.abs(strips[0] - strips[1]).max(axis=2) > 8
    assert strips[0].std() > 10
    assert differs.mean() <= 0.001
