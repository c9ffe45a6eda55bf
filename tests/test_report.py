"""The report and its pictures, on a made region of one chunk."""

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TypeVar

import h3
import numpy as np
import pyarrow as pa
import pytest
import shapely
from PIL import Image

from geobacter_core import plots
from geobacter_core.embeddings.history import Changes
from geobacter_core.embeddings.table import EmbeddingTable
from geobacter_core.errors import TileCacheError
from geobacter_core.geo import CHUNK_PX, CHUNK_TILES, CHUNK_ZOOM, TILE_PX, Bounds, Place, Tile, lonlat_to_pixel
from geobacter_core.plots import cells, page, tiles
from geobacter_core.report import build_report
from geobacter_core.samples.split import block_split
from geobacter_core.samples.triplets import SCHEMA, Triplets
from geobacter_core.tiles.cache import ChunkSummary, TileCache, TileManifest
from geobacter_core.tiles.source import Pixels

MIDDLE = Place(9.536, 47.153)
RGB = ("red", "green", "blue")


Result = TypeVar("Result")


class MadeCache(TileCache):
    """One chunk of 64 px squares, each in a colour of its own."""

    def __init__(self, channels: tuple[str, ...]) -> None:
        self.only = Tile.at(MIDDLE, CHUNK_ZOOM)
        rng = np.random.default_rng(1)
        squares = rng.integers(0, 256, (CHUNK_PX // 64, CHUNK_PX // 64, len(channels)), np.uint8)
        mosaic = squares.repeat(64, axis=0).repeat(64, axis=1)
        tiles = mosaic.reshape(CHUNK_TILES, TILE_PX, CHUNK_TILES, TILE_PX, len(channels)).swapaxes(1, 2)
        self.pixels = np.ascontiguousarray(tiles)
        self.n_read = 0
        self.folder = Path("made")
        self.manifest = TileManifest(
            region="made_region",
            style="carto",
            style_version="1",
            channels=channels,
            source="made",
            recipe="r",
            digest="d",
            extract_sha256="e",
            osm_timestamp="2024-03-04T21:21:35Z",
            chunks=(ChunkSummary(x=self.only.x, y=self.only.y, recipe="r", digest="d", n_blank=0, size_bytes=1000),),
        )

    def strips(self, chunk: Tile) -> Iterator[Pixels]:
        if chunk != self.only:
            raise TileCacheError(f"{chunk} was not made")
        self.n_read += 1
        yield from self.pixels

    def map_strips(
        self, chunk: Tile, function: Callable[[Pixels], Result], rows: range = range(16)
    ) -> Iterator[Result]:
        yield from map(function, self.strips(chunk))


@pytest.fixture(scope="module")
def cache() -> MadeCache:
    return MadeCache(RGB)


def table_of(n: int, dim: int = 8, **metadata: str) -> EmbeddingTable:
    """`n` cells around the chunk's middle with random embeddings."""
    west, south, east, north = Tile.at(MIDDLE, CHUNK_ZOOM).polygon.bounds
    middle = h3.latlng_to_cell((south + north) / 2, (west + east) / 2, 10)
    cells = sorted(sorted(h3.grid_disk(middle, 10), key=lambda cell: (h3.grid_distance(middle, cell), cell))[:n])
    centres = np.array([h3.cell_to_latlng(cell) for cell in cells])
    embeddings = np.random.default_rng(2).normal(size=(n, dim)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    document = {
        "region": "made_region",
        "encoder": "geobacter/1",
        "style": "carto/1",
        "size_m": 200.0,
        "size_px": 64,
        "cell_resolution": 10,
        "osm_timestamp": "2024-03-04T21:21:35Z",
        **metadata,
    }
    return EmbeddingTable(np.array(cells), centres[:, 1], centres[:, 0], embeddings, document, "0" * 64)


GROUND = Tile.at(MIDDLE, CHUNK_ZOOM).polygon


class Addresses(HTMLParser):
    """Every src and href of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, name, value or "") for name, value in attrs if name in ("src", "href", "srcset", "data")]


def test_the_same_input_gives_the_same_bytes(tmp_path, cache):
    table = table_of(40)
    build_report(tmp_path / "a", table, cache, GROUND)
    build_report(tmp_path / "b", table, cache, GROUND)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["interpolation.png", "map.png", "mosaic.png", "neighbours.png", "report.html"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_page_needs_nothing_but_itself(tmp_path, cache):
    report = build_report(tmp_path, table_of(20), cache, GROUND)
    page = report.page.read_text(encoding="utf-8")
    addresses = Addresses()
    addresses.feed(page)
    assert [value for tag, _, value in addresses.found if tag == "img" and not value.startswith("data:image/")] == []
    assert [value for _, _, value in addresses.found if value.startswith("http")] == [
        "https://www.openstreetmap.org/copyright"
    ]
    assert len([tag for tag, _, _ in addresses.found if tag == "img"]) == 4
    assert not re.search(r"<script|<link|@import|url\(", page)
    assert "OpenStreetMap contributors" in page
    assert "ODbL" in page
    assert "prefers-color-scheme: dark" in page
    assert "$" not in re.sub(r"base64,[^\"]*", "", page)
    assert (report.n_cells, report.n_distinct) == (20, 20)


def test_what_the_last_refresh_changed_is_drawn_as_long_as_it_is_the_last(tmp_path, cache):
    table = table_of(40)
    rows = [3, 4, 20, 39]
    changes = Changes(
        table.cells[rows],
        np.array([0.01, 0.3, float("nan"), 0.0]),
        np.array(["window", "context", "new", "surroundings"]),
        "2024-03-04T00:00:00Z",
        "2026-03-29T00:00:00Z",
    )
    page = build_report(tmp_path, table, cache, GROUND, changes).page.read_text(encoding="utf-8")
    assert '<a href="#changes">Changes</a>' in page
    assert (tmp_path / "changes.png").stat().st_size > 10_000
    page = build_report(tmp_path, table, cache, GROUND).page.read_text(encoding="utf-8")
    assert "#changes" not in page
    assert not (tmp_path / "changes.png").exists()


def test_what_a_table_says_of_itself_is_escaped(tmp_path, cache):
    evil = "<script>alert('x')</script>&\"$digest"
    report = build_report(tmp_path, table_of(3, encoder=evil, region=evil), cache, GROUND)
    page = report.page.read_text(encoding="utf-8")
    assert "<script" not in page.lower()
    assert html.escape(evil) in page


def test_a_report_of_a_few_cells(tmp_path, cache):
    for n in (1, 5):
        report = build_report(tmp_path / str(n), table_of(n), cache, GROUND)
        assert report.n_distinct == n


def test_a_report_of_embeddings_that_are_all_the_same(tmp_path, cache):
    table = table_of(30)
    report = build_report(tmp_path, replace(table, embeddings=table.embeddings[:1].repeat(30, axis=0)), cache, GROUND)
    assert report.n_distinct == 1
    assert report.variance_shares == (0.0, 0.0, 0.0)


def test_a_style_of_twelve_channels():
    twelve = MadeCache(("water", "forest", "farm", "residential", "industry", "retail", "building", *"abcde"))
    assert plots.embedding_map(table_of(5, dim=2), twelve).mode == "RGB"


def test_colours_of_themes():
    nothing = np.zeros((2, 2, 12), np.uint8)
    names = tuple(f"theme{index}" for index in range(12))
    assert (plots.to_rgb(nothing, names) == 255).all()
    lots = np.zeros((12, 12), np.uint8)
    np.fill_diagonal(lots, 255)
    assert len(np.unique(plots.to_rgb(lots, names), axis=0)) == 12
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (plots.to_rgb(pixels, RGB) == pixels).all()
    assert (plots.to_rgb(pixels[..., :1], ("grey",)) == pixels[..., :1]).all()


def test_no_two_windows_take_one_slot():
    rng = np.random.default_rng(3)
    plane = rng.normal(size=(95, 2))
    slots = plots.snap_to_grid(plane, 12, 8)
    assert len(set(slots.tolist())) == 95
    assert slots.min() >= 0
    assert slots.max() < 96


def test_points_on_a_grid_stay_where_they_are():
    slots = np.arange(24)
    plane = np.stack([slots % 6, slots // 6], axis=1).astype(float)
    order = np.random.default_rng(4).permutation(24)
    assert (plots.snap_to_grid(plane[order], 6, 4) == slots[order]).all()


def test_identical_embeddings_weigh_as_one():
    table = table_of(10, dim=4)
    once = plots.principal_components(table.embeddings)
    often = plots.principal_components(np.concatenate([table.embeddings, table.embeddings[:1].repeat(500, axis=0)]))
    assert np.allclose(once.variance_shares, often.variance_shares)
    assert often.distinct.tolist() == list(range(10))
    assert sum(once.variance_shares) <= 1


def test_like_embeddings_have_like_colours():
    embeddings = np.eye(6, dtype=np.float32).repeat(5, axis=0)
    embeddings[:, 0] += np.linspace(0, 1e-3, 30, dtype=np.float32)
    components = plots.principal_components(embeddings)
    seen = np.random.default_rng(5).integers(0, 256, (30, 3)).astype(np.uint8)
    colours = plots.component_colours(components, np.arange(30), seen).astype(int)
    within = np.abs(colours[0::5] - colours[4::5]).max()
    between = min(np.abs(colours[5 * a] - colours[5 * b]).max() for a in range(6) for b in range(a))
    assert within < between


def test_the_map_reads_each_chunk_a_bounded_number_of_times(cache):
    cache.n_read = 0
    plots.embedding_map(table_of(200), cache)
    assert cache.n_read <= 3


def test_cells_too_small_to_draw_are_painted_as_points(cache):
    table = table_of(200)
    colours = np.full((200, 3), (200, 30, 40), np.uint8)
    box = cells._cells_box(table, 0.01)
    layer, mask = cells._cell_layer(table, colours, box, 0.02, (60, 60), cells._radius_px(table))
    covered = np.asarray(mask) > 0
    assert covered.any()
    assert (np.asarray(layer)[covered] == (200, 30, 40)).all()


def painted(shapes: list[shapely.Geometry]) -> np.ndarray:
    """How cells of these shapes are painted in a picture of their box, a unit in whose coordinates is 100 pixels."""
    degree = 1e-4
    scaled = [shapely.affinity.scale(shape, degree, degree, origin=(0, 0)) for shape in shapes]
    lon, lat = shapely.get_coordinates(shapely.centroid(scaled)).T
    n = len(shapes)
    table = replace(
        table_of(n),
        cells=np.array([f"own {number}" for number in range(n)]),
        lon=lon,
        lat=lat,
        wkb=pa.array(shapely.to_wkb(scaled), pa.large_binary()),
    )
    colours = np.arange(1, 3 * n + 1).reshape(n, 3).astype(np.uint8)
    (x, y), (x_one, _) = (lonlat_to_pixel(np.zeros(1), np.zeros(1)), lonlat_to_pixel(np.array([degree]), np.zeros(1)))
    side = float(x_one[0] - x[0])
    box = (float(x[0]), float(y[0]) - 4 * side, float(x[0]) + 4 * side, float(y[0]))
    layer, mask = cells._cell_layer(table, colours, box, 100 / side, (400, 400), cells._radius_px(table))
    return np.where(np.asarray(mask) > 200, (np.asarray(layer)[..., 0] + 2) // 3, 0)[::-1]


def test_cells_of_ones_own_are_painted_in_their_shapes():
    ring = shapely.box(0, 0, 3, 3).difference(shapely.box(1, 1, 2, 2))
    apart = shapely.MultiPolygon([shapely.box(3.2, 0, 3.8, 1), shapely.box(3.2, 3, 3.8, 4)])
    rows = painted([shapely.box(1, 1, 2, 2), ring, apart])
    assert [int(rows[y, x]) for x, y in ((150, 150), (50, 50), (250, 150), (350, 50), (350, 350))] == [1, 2, 2, 3, 3]
    assert [int(rows[y, x]) for x, y in ((350, 200), (150, 350))] == [0, 0]


def test_points_are_painted_as_discs_that_touch():
    rows = painted([shapely.Point(x + 0.5, y + 0.5) for y in range(4) for x in range(4)])
    assert rows[350, 50] == 13
    assert (rows[50, 10:90] == 1).all()
    assert rows[100, 100] == 0
    assert np.pi / 4 == pytest.approx((rows > 0).mean(), abs=0.03)


def test_a_report_of_ones_own_cells_says_which(tmp_path, cache):
    table = table_of(40)
    metadata = {key: value for key, value in table.metadata.items() if key != "cell_resolution"}
    metadata |= {"cells": "districts.parquet", "n_outside": 1234}
    shapes = shapely.to_wkb(shapely.points(table.lon, table.lat))
    own = replace(table, cells=np.array([f"d{n}" for n in range(40)]), metadata=metadata, wkb=pa.array(shapes))
    changes = Changes(own.cells[:3], np.array([0.1, 0.2, np.nan]), np.array(["window"] * 3), "2024-01-01", "2024-02-01")
    page = build_report(tmp_path, own, cache, GROUND, changes).page.read_text(encoding="utf-8")
    assert "40 (of districts.parquet; 1,234 lie outside the region)" in page
    assert (tmp_path / "changes.png").is_file()


def test_the_busiest_place_of_a_tile_cache_is_shown(cache):
    sheet = plots.tile_contact_sheet(cache)
    assert 1700 < sheet.width < 2000
    picture = Image.new("RGB", (100, 80), "white")
    picture.paste(Image.effect_noise((20, 20), 200).convert("RGB"), (70, 50))
    left, top = tiles._busiest(picture, 20)
    assert abs(left - 70) <= 2
    assert abs(top - 50) <= 2


def test_a_picture_of_triplets_counts_those_that_are_right():
    windows = np.random.default_rng(6).integers(0, 256, (10, 3, 32, 32), np.uint8)
    near, far = np.linspace(0.1, 1.0, 10), np.full(10, 0.55)
    right = plots.triplet_picture(windows, windows, windows, near, far)
    assert right.tobytes() == plots.triplet_picture(windows, windows, windows, near, far).tobytes()
    colours = {colour for _, colour in right.getcolors(1 << 24) or []}
    assert {page.RIGHT, page.WRONG} <= colours
    all_right = plots.triplet_picture(windows, windows, windows, near - 1, far)
    assert page.WRONG not in {colour for _, colour in all_right.getcolors(1 << 24) or []}


def test_a_map_of_samples_shows_both_splits():
    import pyarrow as pa

    bounds = Bounds(9.50, 47.10, 9.55, 47.14)
    rng = np.random.default_rng(7)
    lon, lat = rng.uniform(9.501, 9.549, 400), rng.uniform(47.101, 47.139, 400)
    split = block_split(bounds, bounds.polygon, 200.0, None, 1).assign(lon, lat, 200.0, 1.0)
    lon, lat, split = lon[split != ""], lat[split != ""], split[split != ""]
    n = len(lon)
    columns: dict[str, object] = {"sample_id": np.arange(n), "split": split.tolist(), "block": ["0-0"] * n}
    for role in ("anchor", "positive", "negative"):
        columns |= {f"{role}_lon": lon, f"{role}_lat": lat, f"{role}_entropy": np.ones(n, np.float32)}
    document: dict[str, str | int | float | None] = {
        "region": "made",
        "size_m": 200.0,
        "distance_m": 300.0,
        "negative_min_m": 600.0,
        "block_m": None,
        "seed": 1,
        "blocks": "6 × 6",
        "n_train": int(np.sum(split == "train")),
        "n_test": int(np.sum(split == "test")),
    }
    picture = plots.samples_map(Triplets(pa.table(columns, schema=SCHEMA), document, "0"), bounds, bounds.polygon)
    colours = {colour for _, colour in picture.getcolors(1 << 24) or []}
    assert {page.TRAIN, page.TEST} <= colours


def test_pngs_carry_no_metadata():
    image = Image.new("RGB", (2, 2), "red")
    image.info["Software"] = "something"
    content = plots.png_bytes(image)
    assert re.findall(rb"(IHDR|IDAT|IEND|tEXt|tIME|pHYs)", content) == [b"IHDR", b"IDAT", b"IEND"]


def test_a_folder_without_a_report_keeps_none_when_a_picture_fails(tmp_path: Path, cache):
    elsewhere = replace(table_of(5), lon=np.full(5, 100.0))
    with pytest.raises(TileCacheError):
        build_report(tmp_path, elsewhere, cache, shapely.box(0, 0, 1, 1))
    assert list(tmp_path.iterdir()) == []
