"""Windows: cut across tile and chunk borders at any latitude, compared with pictures whose every pixel is known."""

import re

import numpy as np
import pytest

from geobacter_core.errors import TileCacheError
from geobacter_core.geo import CHUNK_PX, Place, Tile, Window, pixel_to_lonlat
from geobacter_core.samples.settings import MAX_REACH
from geobacter_core.tiles.cache import chunk_file
from geobacter_core.tiles.mosaic import ChunkMemory, reduced
from geobacter_core.tiles.window import Views, WindowReader, reach, resample

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
    return plain, resample(reader.patches(lon, lat, reach(MAX_SHIFT)), size_px, views).numpy().astype(int)


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


def test_no_view_reads_beyond_the_pixels_that_were_gathered(white_cache, helsinki):
    """On a white map every pixel of every view is white: the corners of no angle, shifted farthest, fall outside."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    lon, lat = places_in(helsinki, 48)
    for size_px, scale in ((32, 1.0), (64, 1.0), (128, 1.0), (64, 1.09), (128, 1.09)):
        patches = WindowReader(white_cache, SIZE_M, size_px).patches(lon, lat, reach(MAX_SHIFT, scale))
        for shift in ((MAX_SHIFT, MAX_SHIFT), (-MAX_SHIFT, MAX_SHIFT), (-MAX_SHIFT, -MAX_SHIFT)):
            views = Views(angles, np.resize([1.0, -1.0], 48), np.tile(shift, (48, 1)), np.full(48, scale))
            assert int(resample(patches, size_px, views).min()) == 255


def test_reach_is_that_of_the_corner_and_the_shift():
    assert reach(0.0) == pytest.approx(2**0.5)
    assert reach(0.1) == pytest.approx(2**0.5 + 0.2)
    assert reach(0.1, 1.09) == pytest.approx(1.09 * 2**0.5 + 0.2)
    assert reach(0.1, 1.09) < MAX_REACH


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_a_view_of_another_scale_shows_as_much_more_or_less_ground(ramps, scale):
    cache, corner_x, corner_y, _ = ramps
    place = place_at(corner_x, corner_y)
    reader = WindowReader(cache, SIZE_M, 64)
    patches = reader.patches(np.array([place.lon]), np.array([place.lat]), reach(0.0, 1.25))
    window = resample(patches, 64, views_of(1, scale=scale))[0].numpy().astype(int)
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


def test_a_context_shows_the_same_view_of_wider_ground(ramps):
    """Shifted by a tenth of the window, both are centred on the same place: 6 levels east and 6 north of the corner."""
    cache, corner_x, corner_y, _ = ramps
    place = place_at(corner_x, corner_y)
    reader = WindowReader(cache, SIZE_M, 64, wider_m=[2.5 * SIZE_M])
    view = views_of(1, shift=(0.1, -0.1))
    found = [
        resample(each.patches(np.array([place.lon]), np.array([place.lat]), reach(0.1)), 64, view.of_wider(ratio))
        for each, ratio in ((reader, 1.0), (reader.wider[0], 2.5))
    ]
    for window, levels in zip(found, (60, 150), strict=True):
        red, green = window[0, 0].numpy().astype(int), window[0, 1].numpy().astype(int)
        assert red[32, 31:33].mean() == pytest.approx(128 + 6, abs=1.5)
        assert green[31:33, 32].mean() == pytest.approx(128 - 6, abs=1.5)
        assert red[32, 40] - red[32, 24] == pytest.approx(levels / 4, abs=1.5)


def test_a_reader_and_its_context_share_a_memory(helsinki):
    memory = ChunkMemory(130_000_000)
    reader = WindowReader(helsinki.cache, SIZE_M, 256, [450.0], memory)
    reader.windows(np.array([24.944]), np.array([60.17]))
    alone = ChunkMemory(130_000_000)
    WindowReader(helsinki.cache, SIZE_M, 256, memory=alone).windows(np.array([24.944]), np.array([60.17]))
    assert 0 < alone.used_bytes < memory.used_bytes <= 130_000_000


@pytest.mark.parametrize("size_px", [32, 64, 128, 512])
def test_plain_windows_read_only_what_was_gathered(white_cache, helsinki, size_px):
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
        np.testing.assert_array_equal(reduced(tiles, reduction)[..., 0], np.floor(mean + 0.5))


def test_a_reader_keeps_no_more_chunks_than_its_budget(helsinki):
    memory = ChunkMemory(60_000_000)
    WindowReader(helsinki.cache, SIZE_M, 256, memory=memory).windows(
        np.array([24.944, 24.9612, 24.944]), np.array([60.17, 60.17, 60.17])
    )
    assert 0 < memory.used_bytes <= 60_000_000


def test_blocks_of_one_colour_take_up_a_pixel(helsinki):
    summary = max(helsinki.cache.manifest.chunks, key=lambda chunk: chunk.n_blank)
    mosaic = ChunkMemory(1 << 30).mosaic(helsinki.cache, summary.tile, 1)
    assert mosaic.n_bytes == (256 - summary.n_blank) * 256 * 256 * 3
    np.testing.assert_array_equal(
        np.concatenate([np.concatenate(row, axis=1) for row in mosaic.blocks]),
        reduced(helsinki.cache.strips(summary.tile), 1),
    )


def test_boxes_are_the_windows_ground_as_it_lies_in_the_cache(helsinki):
    lon, lat = places_in(helsinki, 5)
    for index, box in enumerate(WindowReader(helsinki.cache, SIZE_M, 128).boxes(lon, lat)):
        west, north, east, south = Window(Place(lon[index], lat[index]), SIZE_M).pixel_box
        assert box.shape == (pytest.approx(south - north, abs=1), pytest.approx(east - west, abs=1), 3)


def test_a_missing_or_damaged_chunk_is_named(own_helsinki):
    path = chunk_file(own_helsinki.tiles_folder, Tile(12, 2331, 1185))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(TileCacheError, match=f"Chunk {re.escape(str(path))} is damaged"):
        WindowReader(own_helsinki.cache, SIZE_M, 64).window(Place(24.944, 60.17))
    path.unlink()
    with pytest.raises(TileCacheError, match=f"Chunk {re.escape(str(path))} is missing"):
        WindowReader(own_helsinki.cache, SIZE_M, 64).window(Place(24.944, 60.17))


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (Place(-0.12, 51.5), "does not reach chunk 12/2046/1362"),
        (Place(-179.9999, 10.0), "over the map's edge"),
        (Place(10.0, 85.0511), "over the map's edge"),
    ],
)
def test_a_place_outside_the_cache_is_refused(helsinki, place, says):
    with pytest.raises(TileCacheError) as caught:
        WindowReader(helsinki.cache, SIZE_M, 64).window(place)
    assert says in str(caught.value)
