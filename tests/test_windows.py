"""Windows: cut across tile and chunk borders at any latitude, compared with pictures whose every pixel is known."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from geobacter_core.errors import TileCacheError
from geobacter_core.geo import CHUNK_PX, Place, Tile, Window, pixel_to_lonlat
from geobacter_core.tiles.cache import TileCache, chunk_file
from geobacter_core.tiles.mosaic import ChunkMemory, block_px, blocks_per_side, in_groups, mosaics, reduced
from geobacter_core.tiles.window import Views, WindowReader

SIZE_M = 200.0
MAX_SHIFT = 0.1
LATITUDES = {"equator": 0.1, "60 north": 60.1, "84 south": -84.1}


def corner_at(lat):
    """A corner where four chunks meet, in global pixels, near a latitude at 25° east."""
    chunk = Tile.at(Place(25.0, lat), 12)
    return chunk.x * CHUNK_PX, chunk.y * CHUNK_PX


def place_at(x, y):
    lon, lat = pixel_to_lonlat(np.array([float(x)]), np.array([float(y)]))
    return Place(float(lon[0]), float(lat[0]))


def ramp(position, centre, levels_per_px):
    return 128 + (position - centre) * levels_per_px


@pytest.fixture(scope="module", params=LATITUDES, ids=list(LATITUDES))
def ramps(request, make_cache):
    """Four chunks around a corner: red rises eastward, green southward, blue eastward from the next tile's border."""
    corner_x, corner_y = corner_at(LATITUDES[request.param])
    west, _, east, _ = Window(place_at(corner_x, corner_y), SIZE_M).pixel_box
    rate = 60 / (east - west)  # 60 levels a window, so 256 levels are two windows to either side

    def levels(position, centre):
        return ramp(position, centre, rate).round().clip(0, 255).astype(np.uint8)

    def paint(x, y):
        channels = levels(x, corner_x), levels(y, corner_y), levels(x, corner_x - 256)
        return np.stack([np.broadcast_to(channel, (y.size, x.size)) for channel in channels], axis=-1)

    column, row = corner_x // CHUNK_PX, corner_y // CHUNK_PX
    cache = make_cache([Tile(12, column - dx, row - dy) for dx in (0, 1) for dy in (0, 1)], paint)
    return cache, corner_x, corner_y, rate


@pytest.mark.parametrize("size_px", [32, 64, 256])
def test_a_window_has_the_pixels_of_its_ground(ramps, size_px):
    """Centred on a chunk's corner, beside it, and on a tile's border: within the three roundings on the way."""
    cache, corner_x, corner_y, rate = ramps
    reader = WindowReader(cache, SIZE_M, size_px)
    for offset in ((0, 0), (13.3, -7.9), (-256, 0)):
        place = place_at(corner_x + offset[0], corner_y + offset[1])
        west, north, east, south = Window(place, SIZE_M).pixel_box
        along = (np.arange(size_px) + 0.5) / size_px
        x, y = west + along * (east - west), north + along * (south - north)
        window = reader.window(place).astype(float)
        assert window.shape == (size_px, size_px, 3)
        expected = ramp(x, corner_x, rate), ramp(y, corner_y, rate)[:, None], ramp(x, corner_x - 256, rate)
        # A ramp ends where a byte does; red and green or green and blue have all of theirs in the window.
        inside = [channel for channel in range(3) if 2 < expected[channel].min() < expected[channel].max() < 253]
        assert len(inside) >= 2
        for channel in inside:
            difference = window[..., channel] - expected[channel]
            assert np.abs(difference).max() <= 1.5
            assert abs(difference.mean()) <= 0.5


def test_windows_show_as_much_ground_whatever_their_latitude(ramps):
    cache, corner_x, corner_y, _ = ramps
    window = WindowReader(cache, SIZE_M, 64).window(place_at(corner_x, corner_y)).astype(int)
    # 60 levels over 200 m, of which the pixel centres span 63/64.
    assert window[32, -1, 0] - window[32, 0, 0] == pytest.approx(60 * 63 / 64, abs=1.5)
    assert window[-1, 32, 1] - window[0, 32, 1] == pytest.approx(60 * 63 / 64, abs=1.5)


def places_in(helsinki, n, seed=0):
    west, south, east, north = helsinki.extract.bounds
    rng = np.random.default_rng(seed)
    return rng.uniform(west, east, n), rng.uniform(south, north, n)


def test_a_window_is_the_same_alone_and_in_any_batch(helsinki):
    lon, lat = places_in(helsinki, 40)
    reader = WindowReader(helsinki.cache, SIZE_M, 64)
    batch = reader.windows(lon, lat)
    assert batch.shape == (40, 3, 64, 64)
    assert batch.dtype == np.uint8
    other = WindowReader(helsinki.cache, SIZE_M, 64, memory=ChunkMemory(0))
    for index in range(40):
        np.testing.assert_array_equal(other.windows(lon[index : index + 1], lat[index : index + 1])[0], batch[index])
    np.testing.assert_array_equal(reader.windows(lon[::-1], lat[::-1])[::-1], batch)
    np.testing.assert_array_equal(reader.window(Place(lon[0], lat[0])), batch[0].transpose(1, 2, 0))


def views_of(n, angle=0.0, flip=1.0, shift=(0.0, 0.0), scale=1.0):
    return Views(np.full(n, angle), np.full(n, flip), np.tile(shift, (n, 1)), np.full(n, scale))


def turned(helsinki, angle=0.0, flip=1.0, shift=(0.0, 0.0), size_px=64, n=12):
    lon, lat = places_in(helsinki, n)
    reader = WindowReader(helsinki.cache, SIZE_M, size_px)
    views = views_of(n, angle, flip, shift)
    plain = reader.windows(lon, lat).astype(int)
    return plain, reader.windows(lon, lat, views).astype(int)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_quarter_turns_and_flips_are_numpys(helsinki, quarters, flip):
    plain, found = turned(helsinki, angle=quarters * np.pi / 2, flip=flip)
    expected = np.rot90(plain, quarters, axes=(2, 3))
    if flip < 0:
        expected = expected[..., ::-1]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1)


@pytest.mark.parametrize(("columns", "rows"), [(4, 0), (0, -3), (-6, 6)])
def test_a_shift_by_whole_pixels_moves_the_window(helsinki, columns, rows):
    plain, found = turned(helsinki, shift=(columns / 64, rows / 64))
    n = 64 - max(abs(columns), abs(rows))
    top, left = max(rows, 0), max(columns, 0)
    moved = plain[:, :, top : top + n, left : left + n]
    there_top, there_left = max(-rows, 0), max(-columns, 0)
    np.testing.assert_allclose(
        found[:, :, there_top : there_top + n, there_left : there_left + n], moved, rtol=0, atol=1
    )


def test_no_view_reads_beyond_its_box(white_cache, helsinki):
    """On a white map every pixel of every view is white: the corners of no angle, shifted farthest, fall outside."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    lon, lat = places_in(helsinki, 48)
    for size_px, scale in ((32, 1.0), (64, 1.0), (128, 1.0), (64, 1.09), (128, 1.09)):
        reader = WindowReader(white_cache, SIZE_M, size_px)
        for shift in ((MAX_SHIFT, MAX_SHIFT), (-MAX_SHIFT, MAX_SHIFT), (-MAX_SHIFT, -MAX_SHIFT)):
            views = Views(angles, np.resize([1.0, -1.0], 48), np.tile(shift, (48, 1)), np.full(48, scale))
            assert reader.windows(lon, lat, views).min() == 255


def bilinear(image, x, y):
    """An image `[H, W, C]` at fractional positions between pixel centres, by the formula, rounded: `[C, ...]`."""
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    east, south = (x - left)[..., None], (y - top)[..., None]
    rows = [image[top + down, left] * (1 - east) + image[top + down, left + 1] * east for down in (0, 1)]
    return np.moveaxis(np.round(rows[0] * (1 - south) + rows[1] * south), -1, 0)


@pytest.mark.parametrize("size_px", [128, 256])
def test_pixels_are_those_of_bilinear_sampling_by_the_formula(make_cache, size_px):
    """Noise shows each neighbour and its weight; at a corner of four chunks, turned, mirrored, moved and widened."""
    corner_x, corner_y = corner_at(60.1)
    column, row = corner_x // CHUNK_PX, corner_y // CHUNK_PX
    noise = np.random.default_rng(7).integers(0, 256, (512, 512, 3), dtype=np.uint8)

    def paint(x, y):
        return noise[np.floor(y).astype(int) % 512, np.floor(x).astype(int) % 512]

    cache = make_cache([Tile(12, column - dx, row - dy) for dx in (0, 1) for dy in (0, 1)], paint)
    place, angle, scale = place_at(corner_x + 20.3, corner_y - 11.6), 0.7, 1.05
    west, north, east, south = Window(place, SIZE_M).pixel_box
    assert size_px / 2 < east - west < size_px * 2**0.5  # so that nothing is reduced
    along = (2 * np.arange(size_px) + 1) / size_px - 1
    u, v = np.meshgrid(along, along)
    x = (west + east) / 2 + (east - west) / 2 * (2 * 0.05 + scale * (-np.cos(angle) * u - np.sin(angle) * v))
    y = (north + south) / 2 + (south - north) / 2 * (-2 * 0.1 + scale * (-np.sin(angle) * u + np.cos(angle) * v))
    view = Views(np.array([angle]), np.array([-1.0]), np.array([[0.05, -0.1]]), np.array([scale]))
    found = WindowReader(cache, SIZE_M, size_px).windows(np.array([place.lon]), np.array([place.lat]), view)[0]
    image = np.tile(noise, (2, 2, 1)).astype(int)  # of the four chunks' corner: the noise repeats every 512 pixels
    expected = bilinear(image, x - 0.5 - (corner_x - 512), y - 0.5 - (corner_y - 512))
    assert np.abs(found - expected).max() <= 1
    assert np.mean(found == expected) > 0.97


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_a_view_of_another_scale_shows_as_much_more_or_less_ground(ramps, scale):
    cache, corner_x, corner_y, _ = ramps
    place = place_at(corner_x, corner_y)
    reader = WindowReader(cache, SIZE_M, 64)
    window = reader.windows(np.array([place.lon]), np.array([place.lat]), views_of(1, scale=scale))[0].astype(int)
    # A window has 60 levels.
    assert window[0, 32, -1] - window[0, 32, 0] == pytest.approx(60 * scale * 63 / 64, abs=1.5)
    assert window[1, -1, 32] - window[1, 0, 32] == pytest.approx(60 * scale * 63 / 64, abs=1.5)


def test_views_can_be_taken_row_by_row():
    views = Views.draw(10, 0.1, np.random.default_rng(3), 1.25)
    taken = views.take(np.array([7, 2]))
    for name in ("angle", "flip", "shift", "scale"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(views, name)[[7, 2]])


@pytest.mark.parametrize("size_px", [32, 64])
def test_channels_of_a_context_follow_those_of_the_window(helsinki, size_px):
    lon, lat = places_in(helsinki, 10)
    reader = WindowReader(helsinki.cache, SIZE_M, size_px, wider_m=[450.0])
    windows = reader.windows(lon, lat)
    assert windows.shape == (10, 6, size_px, size_px)
    np.testing.assert_array_equal(windows[:, :3], WindowReader(helsinki.cache, SIZE_M, size_px).windows(lon, lat))
    np.testing.assert_array_equal(windows[:, 3:], WindowReader(helsinki.cache, 450.0, size_px).windows(lon, lat))
    picture = reader.window(Place(lon[0], lat[0]))
    np.testing.assert_array_equal(picture, windows[0, :3].transpose(1, 2, 0))


def test_neighbours_need_no_chunk_that_none_of_them_reaches_into(make_cache):
    """Around a corner of four chunks, of which one is not there, windows reach from a third into the other two."""
    corner_x, corner_y = corner_at(60.1)
    column, row = corner_x // CHUNK_PX, corner_y // CHUNK_PX
    cache = make_cache(
        [Tile(12, column - 1, row - 1), Tile(12, column, row - 1), Tile(12, column - 1, row)],
        lambda x, y: np.stack(np.broadcast_arrays(x % 251, y % 241, (x + y) % 239), axis=-1).astype(np.uint8),
    )
    places = [place_at(corner_x + dx, corner_y + dy) for dx, dy in ((-90, -5), (-5, -90), (-90, -90), (-80, -3))]
    lon, lat = (np.array([getattr(place, name) for place in places]) for name in ("lon", "lat"))
    for by_strips in (False, True):
        reader = WindowReader(cache, 30.0, 64, by_strips=by_strips)
        together = reader.windows(lon, lat)
        for index in range(len(places)):
            np.testing.assert_array_equal(reader.windows(lon[[index]], lat[[index]])[0], together[index])


def test_a_context_shows_the_same_view_of_wider_ground(ramps):
    """Shifted by a tenth of the window, both are centred on the same place: 6 levels east and 6 north of the corner."""
    cache, corner_x, corner_y, _ = ramps
    place = place_at(corner_x, corner_y)
    reader = WindowReader(cache, SIZE_M, 64, wider_m=[2.5 * SIZE_M])
    view = views_of(1, shift=(0.1, -0.1))
    windows = reader.windows(np.array([place.lon]), np.array([place.lat]), view)[0].astype(int)
    for (red, green, _), levels in zip(np.split(windows, 2), (60, 150), strict=True):
        assert red[32, 31:33].mean() == pytest.approx(128 + 6, abs=1.5)
        assert green[31:33, 32].mean() == pytest.approx(128 - 6, abs=1.5)
        assert red[32, 40] - red[32, 24] == pytest.approx(levels / 4, abs=1.5)


@pytest.mark.parametrize("size_px", [32, 64, 256])
def test_windows_that_are_read_strip_by_strip_are_the_same(helsinki, size_px):
    lon, lat = places_in(helsinki, 20)
    views = Views.draw(20, 0.1, np.random.default_rng(0))
    by_strips = WindowReader(helsinki.cache, SIZE_M, size_px, [450.0, 900.0], by_strips=True)
    by_chunks = WindowReader(helsinki.cache, SIZE_M, size_px, [450.0, 900.0])
    for some in (None, views):
        np.testing.assert_array_equal(by_strips.windows(lon, lat, some), by_chunks.windows(lon, lat, some))


def test_one_window_decodes_no_more_strips_than_it_lies_over(helsinki, monkeypatch):
    read = []
    original = TileCache.map_strips
    monkeypatch.setattr(
        TileCache, "map_strips", lambda cache, *arguments: read.append(arguments[2]) or original(cache, *arguments)
    )
    WindowReader(helsinki.cache, SIZE_M, 64, by_strips=True).window(Place(24.944, 60.17))
    assert 1 <= len(read) <= 3
    assert {len(rows) for rows in read} == {1}


def tiles_of(chunk, rows=range(16)):
    """Of some strips of a chunk, as they are: columns, rows and reductions."""
    return [(16 * chunk.x + column, 16 * chunk.y + row, 1) for row in rows for column in range(16)]


def test_strips_are_read_ahead_that_windows_need_and_no_others(helsinki, monkeypatch):
    lon, lat = places_in(helsinki, 20)
    original, read = TileCache.map_strips, []
    monkeypatch.setattr(
        TileCache, "map_strips", lambda cache, *arguments: read.append(arguments[::2]) or original(cache, *arguments)
    )
    found = []
    for read_ahead in (ChunkMemory.read_ahead, lambda *arguments: None):
        monkeypatch.setattr(ChunkMemory, "read_ahead", read_ahead)
        read.clear()
        memory = ChunkMemory(1 << 30)
        WindowReader(helsinki.cache, SIZE_M, 64, [450.0, 900.0], memory, by_strips=True).windows(lon, lat)
        found.append(sorted(read, key=str))
    assert set(found[0]) == set(found[1])
    assert len(set(found[0])) == len(found[0])


def test_tiles_of_a_full_memory_are_read_without_their_neighbours(helsinki):
    chunk = min(helsinki.cache.manifest.chunks, key=lambda chunk: chunk.n_blank).tile
    some = [tile for tile in tiles_of(chunk) if tile[0] % 16 == 4]
    roomy, short = ChunkMemory(1 << 30), ChunkMemory(16 * 256 * 256 * 3 - 1)  # a byte less than a strip takes
    for memory in (roomy, short):
        memory.read_ahead(helsinki.cache, some)
    assert 0 < 4 * short.used_bytes < roomy.used_bytes
    for column, row, reduction in some:
        ours, theirs = (memory.tile(helsinki.cache, column, row, reduction) for memory in (roomy, short))
        np.testing.assert_array_equal(ours, theirs)


def test_little_more_is_read_ahead_than_a_fourth_of_the_memory(helsinki):
    chunk = min(helsinki.cache.manifest.chunks, key=lambda chunk: chunk.n_blank).tile
    roomy = ChunkMemory(1 << 30)
    roomy.read_ahead(helsinki.cache, tiles_of(chunk))
    memory = ChunkMemory(roomy.used_bytes)
    memory.read_ahead(helsinki.cache, tiles_of(chunk))
    strips = [ChunkMemory(1 << 30) for _ in range(16)]
    for row, strip in enumerate(strips):
        strip.read_ahead(helsinki.cache, tiles_of(chunk, [row]))
    assert sum(strip.used_bytes for strip in strips) == roomy.used_bytes
    largest = max(strip.used_bytes for strip in strips)
    assert roomy.used_bytes / 4 <= memory.used_bytes <= roomy.used_bytes / 4 + largest + 16 * 16 * 1024


def test_a_strip_that_another_thread_reads_comes_last_and_is_not_read_again(helsinki):
    chunk = helsinki.cache.manifest.chunks[0].tile
    begun, may_end, other_is_read, memory = (
        threading.Event(),
        threading.Event(),
        threading.Event(),
        ChunkMemory(1 << 30),
    )
    read = []

    class Slow:
        key, n_channels = "slow", 3

        def map_strips(self, tile, function, rows):
            read.append(rows[0])
            if rows[0] == 0:
                begun.set()
                assert may_end.wait(10)
            else:
                other_is_read.set()
            return helsinki.cache.map_strips(tile, function, rows)

    threads = [
        threading.Thread(target=memory.read_ahead, args=(Slow(), tiles_of(chunk, rows))) for rows in ([0], [0, 1])
    ]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    assert other_is_read.wait(10)
    assert read == [0, 1]
    may_end.set()
    for thread in threads:
        thread.join()
    memory.read_ahead(Slow(), tiles_of(chunk, [0, 1]))
    assert read == [0, 1]


def test_threads_that_want_one_tile_reduced_in_many_ways_get_what_one_gets(helsinki):
    """Each tile by itself, nothing read ahead, with room for whole strips, and all threads at the same strips."""
    chunk = min(helsinki.cache.manifest.chunks, key=lambda chunk: chunk.n_blank).tile
    asked = [(column, row, reduction) for column, row, _ in tiles_of(chunk, [3, 4]) for reduction in (1, 2, 4, 8)]
    alone = ChunkMemory(1 << 30)
    expected = [alone.tile(helsinki.cache, *tile) for tile in asked]
    memory = ChunkMemory(1 << 30)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda tile: memory.tile(helsinki.cache, *tile), asked))
    for tile, ours, theirs in zip(asked, found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=str(tile))
    assert memory.used_bytes == alone.used_bytes


def test_a_reader_and_its_context_share_a_memory(helsinki):
    memory = ChunkMemory(130_000_000)
    reader = WindowReader(helsinki.cache, SIZE_M, 256, [450.0], memory)
    reader.windows(np.array([24.944]), np.array([60.17]))
    alone = ChunkMemory(130_000_000)
    WindowReader(helsinki.cache, SIZE_M, 256, memory=alone).windows(np.array([24.944]), np.array([60.17]))
    assert 0 < alone.used_bytes < memory.used_bytes <= 130_000_000


@pytest.mark.parametrize("size_px", [32, 64, 128, 512])
def test_plain_windows_read_nothing_beyond_their_boxes(white_cache, helsinki, size_px):
    assert WindowReader(white_cache, SIZE_M, size_px).windows(*places_in(helsinki, 20)).min() == 255


def test_views_are_drawn_within_their_ranges():
    views = Views.draw(2000, 0.1, np.random.default_rng(3))
    assert 0 <= views.angle.min() < 0.1
    assert 6.2 < views.angle.max() < 2 * np.pi
    assert set(views.flip) == {-1.0, 1.0}
    assert views.shift.shape == (2000, 2)
    assert 0.099 < np.abs(views.shift).max() <= 0.1
    assert set(views.scale) == {1.0}


def test_scales_are_drawn_alike_on_both_sides_of_one():
    scale = Views.draw(2000, 0.1, np.random.default_rng(3), max_scale=1.25).scale
    assert 0.8 <= scale.min() < 0.81
    assert 1.24 < scale.max() <= 1.25
    assert np.mean(scale > 1) == pytest.approx(0.5, abs=0.05)


def test_views_that_are_not_turned_are_north_up_and_not_mirrored():
    views = Views.draw(50, 0.1, np.random.default_rng(3), rotate=False)
    assert set(views.angle) == {0.0}
    assert set(views.flip) == {1.0}
    assert len(set(views.shift[:, 0])) == 50


def test_reducing_takes_the_rounded_mean():
    rng = np.random.default_rng(1)
    tiles = rng.integers(0, 256, (16, 16, 256, 256, 1), dtype=np.uint8)
    image = tiles.swapaxes(1, 2).reshape(4096, 4096)
    np.testing.assert_array_equal(reduced(tiles, 1)[..., 0], image)
    for reduction in (2, 8):
        side = 4096 // reduction
        mean = image.reshape(side, reduction, side, reduction).mean(axis=(1, 3))
        assert np.abs(reduced(tiles, reduction)[..., 0] - mean).max() <= 0.5


def test_a_reader_keeps_no_more_chunks_than_its_budget(helsinki):
    memory = ChunkMemory(60_000_000)
    WindowReader(helsinki.cache, SIZE_M, 256, memory=memory).windows(
        np.array([24.944, 24.9612, 24.944]), np.array([60.17, 60.17, 60.17])
    )
    assert 0 < memory.used_bytes <= 60_000_000


def test_blocks_of_one_colour_take_up_no_room(helsinki):
    """But for a chunk reduced by 4 or more, which is one block."""
    by_blanks = sorted(helsinki.cache.manifest.chunks, key=lambda chunk: chunk.n_blank)
    summary = next(chunk for chunk in reversed(by_blanks) if chunk.n_blank < 256)
    mosaic = ChunkMemory(1 << 30).mosaic(helsinki.cache, summary.tile, 1)
    assert mosaic.n_bytes == (256 - summary.n_blank) * 256 * 256 * 4
    assert 0 < mosaic.n_bytes < 256 * 256 * 256
    assert ChunkMemory(1 << 30).mosaic(helsinki.cache, summary.tile, 4).n_bytes == 1024 * 1024 * 4
    if by_blanks[-1].n_blank == 256:
        assert ChunkMemory(1 << 30).mosaic(helsinki.cache, by_blanks[-1].tile, 4).n_bytes == 0
    rows = [np.concatenate([np.concatenate(block, axis=-1) for block in row], axis=1) for row in mosaic.blocks]
    image = np.concatenate(rows)
    np.testing.assert_array_equal(image[..., :3], reduced(helsinki.cache.strips(summary.tile), 1))
    assert not image[..., 3].any()


def test_groups_of_channels_of_one_colour_take_up_no_room():
    """In a block of six channels, of which one in the first four shows something, the other two do not."""
    strips = np.zeros((16, 16, 256, 256, 6), np.uint8)
    strips[3, 5, 100:120, 7:9, 2] = 200
    strips[..., 5] = 9
    mosaic = mosaics(in_groups(strip, [1, 2]) for strip in strips)[2]
    assert mosaic.n_bytes == 256 * 256 * 4
    assert mosaic.blocks[0][0][0] is None
    first, second = mosaic.blocks[1][2]
    assert first[(100 // 2 + 128) : (120 // 2 + 128), 128 + 4, 2].tolist() == [200 // 2] * 10
    assert int(first.astype(int).sum()) == 10 * 100 + 10 * 100
    assert second.strides == (0, 0, 1)
    assert second[0, 0].tolist() == [0, 9, 0, 0]


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_tiles_of_one_colour_each_make_a_block_that_windows_can_be_cut_from(reduction):
    """As on a coast: sea in one tile, nothing in the next."""
    strips = np.zeros((16, 16, 256, 256, 4), np.uint8)
    strips[6, 6:8, ..., 1] = 255
    mosaic = mosaics(in_groups(strip, [reduction]) for strip in strips)[reduction]
    n, side = blocks_per_side(reduction), block_px(reduction)
    (block,) = mosaic.blocks[6 * n // 16][6 * n // 16]
    assert block.flags.c_contiguous
    assert block.view(np.uint32).shape == (side, side, 1)
    assert int((block[..., 1] == 255).sum()) == 2 * (256 // reduction) ** 2


def test_a_tile_is_reduced_to_the_means_of_squares_of_its_pixels():
    """Of noise, and of masks whose means are often halves; a half goes up for 2 × 2 pixels, else to an even number."""
    strip = np.random.default_rng(0).integers(0, 256, (16, 256, 256, 4), dtype=np.uint8)
    strip[8:] = 255 * (strip[8:] > 128)
    by_reduction = in_groups(strip, [1, 2, 4, 8, 16, 32, 64])
    for reduction, tiles in by_reduction.items():
        side = 256 // reduction
        means = strip.reshape(16, side, reduction, side, reduction, 4).mean(axis=(2, 4), dtype=np.float64)
        expected = np.floor(means + 0.5) if reduction == 2 else np.rint(means)
        np.testing.assert_array_equal(
            np.concatenate([group for tile in tiles for group in tile]).reshape(means.shape), expected
        )


def test_boxes_are_the_windows_ground_as_it_lies_in_the_cache(helsinki):
    lon, lat = places_in(helsinki, 5)
    for index, box in enumerate(WindowReader(helsinki.cache, SIZE_M, 128).boxes(lon, lat)):
        west, north, east, south = Window(Place(lon[index], lat[index]), SIZE_M).pixel_box
        assert box.shape == (pytest.approx(south - north, abs=1), pytest.approx(east - west, abs=1), 3)


@pytest.mark.parametrize("by_strips", [False, True])
def test_a_missing_or_damaged_chunk_is_named(own_helsinki, by_strips):
    path = chunk_file(own_helsinki.tiles_folder, Tile(12, 2331, 1185))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(TileCacheError, match=f"Chunk {re.escape(str(path))} is damaged"):
        WindowReader(own_helsinki.cache, SIZE_M, 64, by_strips=by_strips).window(Place(24.944, 60.17))
    path.unlink()
    with pytest.raises(TileCacheError, match=f"Chunk {re.escape(str(path))} is missing"):
        WindowReader(own_helsinki.cache, SIZE_M, 64, by_strips=by_strips).window(Place(24.944, 60.17))


@pytest.mark.parametrize("by_strips", [False, True])
@pytest.mark.parametrize(
    ("place", "says"),
    [
        (Place(-0.12, 51.5), "does not reach chunk 12/2046/1362"),
        (Place(-179.9999, 10.0), "over the map's edge"),
        (Place(10.0, 85.0511), "over the map's edge"),
    ],
)
def test_a_place_outside_the_cache_is_refused(helsinki, place, says, by_strips):
    with pytest.raises(TileCacheError) as caught:
        WindowReader(helsinki.cache, SIZE_M, 64, by_strips=by_strips).window(place)
    assert says in str(caught.value)
