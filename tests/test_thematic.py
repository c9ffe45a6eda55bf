"""The thematic style: its file, its filters, its masks, and what they take of a region."""

import re
import shutil
from functools import reduce
from operator import or_
from pathlib import Path

import geopandas as gpd
import mapnik
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely

from geobacter_core import plots
from geobacter_core.errors import FeaturesError, StyleError
from geobacter_core.geo import CHUNK_PX, TILE_PX, WORLD_M, Place, Tile, lonlat_to_pixel
from geobacter_core.plots.colours import theme_of
from geobacter_core.tiles.build import build_cache
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.chunk import chunk_file
from geobacter_core.tiles.coverage import ObjectCount, UntakenTag, measure_coverage
from geobacter_core.tiles.filters import parse_filter
from geobacter_core.tiles.mapnik import MapnikSource, cut_into_strips, open_maps, rendered
from geobacter_core.tiles.style import Style, load_style, read_style

GEOMETRIES = ("points", "lines", "polygons")
FULL = Tile(12, 2331, 1185)
PIXEL_M = WORLD_M / (TILE_PX << 16)
HEAD = 'name = "bad"\nversion = "1"\n'
WATER = '[[channel]]\nname = "water"\n'
LAKES = 'polygons = [{ tags = "natural=water" }]\n'


def write_style(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "style.toml").write_text(text, encoding="utf-8")
    return folder


def style_of(folder: Path, channels: str) -> Style:
    """A style of the channels in `channels`, TOML."""
    n_channels = channels.count("[[channel]]")
    head = f'name = "{folder.name}"\nversion = "1"\nn_channels = {n_channels}\n'
    return read_style(write_style(folder, head + channels))


def write_features(folder: Path, geometry: str, shapes: list[shapely.Geometry], **tags: list[str | None]) -> None:
    frame = gpd.GeoDataFrame(tags, geometry=shapes, crs="EPSG:3857")
    frame.to_file(folder / f"{geometry}.fgb", driver="FlatGeobuf", layer=geometry)


def pixels_of(style: Style, features: Path, chunk: Tile = FULL) -> np.ndarray:
    """A chunk as one picture, uint8 `[4096, 4096, C]`."""
    mosaic = np.empty((CHUNK_PX, CHUNK_PX, len(style.channels)), np.uint8)
    with rendered(open_maps(style, features), chunk) as images:
        for row, strip in enumerate(cut_into_strips(images, len(style.channels))):
            mosaic[row * TILE_PX : (row + 1) * TILE_PX] = strip.swapaxes(0, 1).reshape(TILE_PX, CHUNK_PX, -1)
    return mosaic


@pytest.fixture(scope="module")
def thematic() -> Style:
    return load_style("thematic")


@pytest.fixture(scope="module")
def features(helsinki) -> Path:
    return helsinki.source.features


@pytest.fixture(scope="module")
def helsinki_pixels(thematic, features) -> np.ndarray:
    return pixels_of(thematic, features)


# The file


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("name = \n", "", "is not TOML: Invalid value (at line 1, column 8). Mend that line."),
        (HEAD, "", "this one has 0. Keep one."),
        (HEAD + 'n_channels = 1\nmap = "map.xml"\n' + WATER + LAKES, "", "this one has 2. Keep one."),
        (HEAD + "n_channels = 1\n", "field 'channel'", "it is missing. Add it."),
        (HEAD + 'n_channels = "1"\n' + WATER + LAKES, "field 'n_channels'", "a valid integer, not '1'. Correct it."),
        (HEAD + "n_channels = 1\ncolours = 3\n" + WATER + LAKES, "field 'colours'", "no such field. Remove it"),
        (
            HEAD + "n_channels = 2\n" + 2 * (WATER + LAKES),
            "",
            "channel 'water' is there twice. Give every channel a name of its own.",
        ),
        (
            HEAD + "n_channels = 12\n" + "".join((WATER + LAKES).replace("water", f"water {n}", 1) for n in range(13)),
            "",
            "n_channels declares 12 channels, and 13 follow. Correct the number, or the channels.",
        ),
        (HEAD + "n_channels = 1\n[[channel]]\n" + LAKES, "channel number 1, field 'name'", "it is missing. Add it."),
        (HEAD + "n_channels = 1\n" + WATER, "channel 'water'", "it draws nothing. Give it polygons, lines or points."),
        (
            HEAD + "n_channels = 1\n" + WATER + 'areas = [{ tags = "natural=water" }]',
            "channel 'water', field 'areas'",
            "there is no such field. Remove it, or correct its name.",
        ),
        (
            HEAD + "n_channels = 1\n" + WATER + 'lines = [{ tags = "waterway=river" }]',
            "channel 'water'",
            "lines 'waterway=river' need a width, and no mark. Write width = pixels.",
        ),
        (
            HEAD + "n_channels = 1\n" + WATER + 'points = [{ tags = "natural=spring", width = 2 }]',
            "channel 'water'",
            "points 'natural=spring' need a mark, and no width. Write mark = pixels.",
        ),
        (
            HEAD + "n_channels = 1\n" + WATER + 'polygons = [{ tags = "natural=water", width = 2 }]',
            "channel 'water'",
            "polygons 'natural=water' are filled or have a mark, and no width. Remove it.",
        ),
        (
            HEAD + "n_channels = 1\n" + WATER + 'lines = [{ tags = "waterway=river", width = 300 }]',
            "channel 'water', lines 'waterway=river', field 'width'",
            "it should be less than or equal to 48, not 300. Correct it.",
        ),
        (
            HEAD + "n_channels = 1\n" + WATER + 'lines = [{ tags = "waterway=river", width = "6" }]',
            "channel 'water', lines 'waterway=river', field 'width'",
            "it should be a valid number, not '6'. Correct it.",
        ),
        (
            HEAD + "n_channels = 1\n" + WATER + 'polygons = [{ tags = "natural~water" }]',
            "channel 'water', polygons 'natural~water', field 'tags'",
            "'natural~water' is not a condition on a tag. Write key=value, key=one|other, key=*, key!=value or key!=*",
        ),
        (
            HEAD + "n_channels = 1\n" + WATER + 'polygons = [{ tags = "layer=1" }]',
            "channel 'water', polygons 'layer=1', field 'tags'",
            "'layer' is kept as a number, which no filter can read. Use another key.",
        ),
    ],
)
def test_a_wrong_style_file_is_refused_with_place_and_remedy(tmp_path, text, where, what):
    folder = write_style(tmp_path / "bad", text)
    place = re.escape(f"{folder / 'style.toml'}{', ' + where if where else ''}")
    with pytest.raises(StyleError, match=rf"^{place}:? .*{re.escape(what)}"):
        read_style(folder)


def test_a_style_file_that_is_right_is_read(tmp_path):
    folder = write_style(tmp_path / "bad", HEAD + "n_channels = 1\n" + WATER + LAKES)
    style = read_style(folder)
    assert (style.channels, style.keys) == (("water",), ("natural",))
    with pytest.raises(StyleError, match=r"name 'bad' is not the folder's\. Rename one of them"):
        read_style(shutil.copytree(folder, tmp_path / "good"))
    (folder / "style.toml").unlink()
    with pytest.raises(StyleError, match=r"style.toml cannot be read \(No such file or directory\)"):
        read_style(folder)


def test_the_thematic_style_has_twelve_channels_on_four_images(thematic):
    assert len(thematic.channels) == len(set(thematic.channels)) == 12
    assert len(thematic.maps) == 4
    read = [re.findall(r"/(\w+)\.fgb", xml) for xml in thematic.maps]
    # As few layers as the channels need, for every layer costs time: roads need no points, land needs no lines.
    assert read == [
        ["polygons", "lines"],
        ["polygons", "lines", "points"],
        ["polygons"],
        ["polygons", "lines", "points"],
    ]


# Filters

TAGS = {
    "highway": pa.array(["primary", "path", None, "", "path", "Primary"]),
    "area": pa.array([None, "yes", "yes", "yes", "no", ""]),
}


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("highway=primary", [0]),
        ("highway=primary|path", [0, 1, 4]),
        ("highway = primary | path", [0, 1, 4]),
        ("highway=*", [0, 1, 4, 5]),
        ("highway!=*", [2, 3]),
        ("highway!=path", [0, 2, 3, 5]),
        ("highway!=path|primary", [2, 3, 5]),
        ("highway=* & area=yes", [1]),
        ("highway=path & area!=yes", [4]),
        ("highway=* & highway!=path & area!=*", [0, 5]),
    ],
)
def test_a_filter_takes_what_it_says(text, taken):
    matches = parse_filter(text).matches(TAGS)
    assert matches.null_count == 0
    assert np.flatnonzero(matches.to_numpy(zero_copy_only=False)).tolist() == taken


@pytest.mark.parametrize(
    "text",
    [
        "",
        "highway",
        "=yes",
        "highway=",
        "highway=a|",
        "highway=a b",
        "highway==a",
        "highway=a & ",
        "highway=a and area=b",
        "highway='a'",
        "highway=a\\n",
        "[highway]=a",
        "highway=!a",
        "highway<a",
    ],
)
def test_what_is_no_filter_is_refused(text):
    with pytest.raises(StyleError, match=r"is not a condition on a tag\. Write key=value"):
        parse_filter(text)


def mapnik_takes(path: Path, expression: str) -> list[int]:
    """The rows of a FlatGeobuf file for which Mapnik finds an expression true."""
    source = mapnik.Datasource(type="ogr", file=str(path), layer_by_index=0)
    wanted = mapnik.Expression(expression)
    return sorted(f.id() - 1 for f in source.features(mapnik.Query(source.envelope())) if wanted.evaluate(f))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_mapnik_and_arrow_evaluate_every_filter_alike_on_helsinki(thematic, features, geometry):
    path = features / f"{geometry}.fgb"
    table = pyogrio.read_arrow(path, read_geometry=False)[1]
    tags = {name: table[name].combine_chunks() for name in thematic.keys}
    filters = {shape.filter for mask in thematic.masks for shape in mask.shapes(geometry)}
    some = 0
    for wanted in filters:
        rows = np.flatnonzero(wanted.matches(tags).to_numpy(zero_copy_only=False)).tolist()
        assert mapnik_takes(path, wanted.mapnik()) == rows
        some += bool(rows)
    assert some > 8


def test_an_empty_value_is_no_tag_to_mapnik_arrow_and_the_eye(tmp_path):
    west, south, _, _ = FULL.mercator_box
    squares = [shapely.box(west + 100 * n, south + 100, west + 100 * n + 50, south + 150) for n in range(1, 4)]
    write_features(tmp_path, "polygons", squares, landuse=[None, "", "grass"])
    for text, expected in (("landuse=*", [2]), ("landuse!=*", [0, 1]), ("landuse!=grass", [0, 1])):
        style = style_of(tmp_path / "style", f'[[channel]]\nname = "a"\npolygons = [{{ tags = "{text}" }}]\n')
        wanted = style.masks[0].polygons[0].filter
        by_x = (
            gpd.read_file(tmp_path / "polygons.fgb").bounds.minx.argsort().tolist()
        )  # the file has an order of its own
        table = pyogrio.read_arrow(tmp_path / "polygons.fgb", read_geometry=False)[1]
        found = wanted.matches({"landuse": table["landuse"].combine_chunks()}).to_numpy(zero_copy_only=False)
        assert np.flatnonzero(found[by_x]).tolist() == expected
        rows = mapnik_takes(tmp_path / "polygons.fgb", wanted.mapnik())
        assert sorted(by_x.index(row) for row in rows) == expected
        drawn = pixels_of(style, tmp_path)[..., 0].any(axis=0)
        assert [n - 1 for n in (1, 2, 3) if drawn[round((100 * n + 25) / PIXEL_M)]] == expected


# Masks

SHAPES = """
[[channel]]
name = "square"
polygons = [{ tags = "kind=square" }]

[[channel]]
name = "line"
lines = [{ tags = "kind=line & size=large", width = 9 }, { tags = "kind=line", width = 5 }]

[[channel]]
name = "disc"
points = [{ tags = "kind=disc", mark = 10 }]
polygons = [{ tags = "kind=disc", mark = 16 }]
"""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> np.ndarray:
    """A triangle twice, two lines, a point's disc and a polygon's disc, in three channels: float, 0 to 1."""
    tmp_path = tmp_path_factory.mktemp("shapes")
    west, south, _, _ = FULL.mercator_box
    x, y = west + 1000.3, south + 1000.7
    triangle = shapely.Polygon([(x, y), (x + 403, y + 57), (x + 111, y + 311)])
    elsewhere = shapely.box(x + 2000, y, x + 2100, y + 100)
    lines = [shapely.LineString([(x, y), (x + 300, y + 200)]), shapely.LineString([(x, y + 500), (x + 300, y + 700)])]
    write_features(tmp_path, "polygons", [triangle, triangle, elsewhere], kind=["square", "square", "disc"])
    write_features(tmp_path, "lines", lines, kind=["line", "line"], size=[None, "large"])
    write_features(tmp_path, "points", [shapely.Point(x + 50, y + 50)], kind=["disc"])
    return pixels_of(style_of(tmp_path / "shapes", SHAPES), tmp_path)[-1024:, :1536] / 255


def test_a_mask_is_the_share_of_a_pixel_that_is_covered(shapes):
    square, line, disc = shapes.sum(axis=(0, 1))
    # The triangle is there twice: where it covers a pixel whole that changes nothing, at its edge a half becomes whole.
    area_px = (403 * 311 - 111 * 57) / 2 / PIXEL_M**2
    edge_px = (np.hypot(403, 57) + np.hypot(292, 254) + np.hypot(111, 311)) / PIXEL_M
    assert area_px < square < area_px + edge_px / 2
    assert shapes.max() == 1.0
    # Lines with round ends: length × width + π width² / 4.
    length = np.hypot(300, 200) / PIXEL_M
    assert line == pytest.approx(length * (5 + 9) + np.pi * (5**2 + 9**2) / 4, rel=0.01)
    # Mapnik's discs are polygons of so many corners that they lack some percent of a circle.
    assert disc == pytest.approx(np.pi * (10**2 + 16**2) / 4, rel=0.04)


def test_edges_are_anti_aliased(shapes):
    for mask in np.moveaxis(shapes, -1, 0):
        partly = mask[(mask > 0) & (mask < 1)]
        assert len(np.unique(np.round(partly * 255))) > 20


def test_a_point_gets_the_first_shape_that_fits(tmp_path):
    west, south, _, _ = FULL.mercator_box
    write_features(tmp_path, "points", [shapely.Point(west + 500, south + 500)], amenity=["bench"])
    large, small = '{ tags = "amenity=*", mark = 20 }', '{ tags = "amenity=bench", mark = 6 }'
    for first, second, diameter in ((large, small, 20), (small, large, 6)):
        style = style_of(tmp_path / "style", f'[[channel]]\nname = "a"\npoints = [{first}, {second}]\n')
        area = pixels_of(style, tmp_path).sum() / 255
        assert area == pytest.approx(np.pi * diameter**2 / 4, rel=0.06)


def test_no_channel_leaves_a_trace_in_another(thematic, features, helsinki_pixels, tmp_path):
    """Every channel of Helsinki alone, first on its image, has the bytes that it has among the twelve."""
    text = (thematic.folder / "style.toml").read_text(encoding="utf-8")
    blocks = re.split(r"^(?=\[\[channel\]\])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == 12
    for index, block in enumerate(blocks):
        alone = style_of(tmp_path / f"style{index}", block)
        assert alone.channels == (thematic.channels[index],)
        np.testing.assert_array_equal(pixels_of(alone, features)[..., 0], helsinki_pixels[..., index])
    drawn = [
        name for name, mask in zip(thematic.channels, np.moveaxis(helsinki_pixels, -1, 0), strict=True) if mask.any()
    ]
    assert drawn == [name for name in thematic.channels if name != "motorways and trunks"]


def test_channels_show_what_their_names_say(thematic, helsinki_pixels):
    """Places that anyone can look up, and the share of the 9 × 9 pixels there that each channel covers."""
    places = {
        "water": (24.9435, 60.1776),  # Kaisaniemenlahti
        "buildings": (24.94059, 60.17162),  # the railway station
        "green and farmland": (24.94757, 60.16745),  # Esplanadi
        "railways and stops": (24.9398, 60.1737),  # its tracks and platforms
        "paths and tracks": (24.9437, 60.1714),  # Rautatientori, a square
        "main roads": (24.93936, 60.17066),  # Kaivokatu, before the station
    }
    for name, (lon, lat) in places.items():
        x, y = (int(axis[0]) % CHUNK_PX for axis in lonlat_to_pixel(np.array([lon]), np.array([lat])))
        shares = helsinki_pixels[y - 4 : y + 5, x - 4 : x + 5].mean(axis=(0, 1)) / 255
        assert shares[thematic.channels.index(name)] > 0.7, name
        assert shares[thematic.channels.index("motorways and trunks")] == 0


def test_an_image_that_is_used_again_holds_nothing_of_its_last_chunk(thematic, features):
    maps = open_maps(thematic, features)
    with rendered(maps, FULL) as images:
        assert not any(image.is_solid() for image in images)
    with rendered(maps, Tile(12, 0, 0)) as images:
        assert all(image.is_solid() for image in images)
    with rendered([mapnik.Map(CHUNK_PX, CHUNK_PX)], FULL) as (image,):  # which has no background to begin with
        assert image.is_solid()
        assert image.get_pixel(0, 0) == 0


@pytest.mark.parametrize("index", range(4))
def test_masks_fit_together_along_a_border_through_the_city(thematic, features, index):
    """A chunk's corner put into the middle of Helsinki: the city looks as it does inside one picture."""
    map_ = open_maps(thematic, features)[index]
    x, y = lonlat_to_pixel(np.array([24.9443]), np.array([60.1716]))
    left, top = int(x[0]) // 256 * 256, int(y[0]) // 256 * 256
    image = mapnik.Image(CHUNK_PX, CHUNK_PX)
    looks = []
    for inset in (0, CHUNK_PX // 2):
        west, north = (left - inset) * PIXEL_M - WORLD_M / 2, WORLD_M / 2 - (top - inset) * PIXEL_M
        map_.zoom_to_box(mapnik.Box2d(west, north - CHUNK_PX * PIXEL_M, west + CHUNK_PX * PIXEL_M, north))
        mapnik.render(map_, image)
        pixels = np.frombuffer(image.view(inset, inset, 400, 400).to_string(), np.uint8).reshape(400, 400, 4)
        looks.append(pixels[..., :3].astype(int))
    corner, inside = looks
    assert inside.std() > 10
    # The last bit of a shape's place may turn a level into the next.
    assert np.abs(inside - corner).max() <= 2
    assert (inside != corner).mean() < 0.001


@pytest.fixture(scope="module")
def cache(helsinki, thematic, features, tmp_path_factory) -> TileCache:
    folder = tmp_path_factory.mktemp("thematic")
    source = MapnikSource(thematic, features)
    build_cache(folder, "helsinki", helsinki.extract.ground, thematic, source, helsinki.inputs)
    return TileCache(folder, thematic)


def test_a_cache_of_twelve_channels_is_as_the_contract_says(cache, thematic, helsinki_pixels):
    assert cache.n_channels == 12
    assert cache.manifest.channels == thematic.channels
    schema = pq.read_schema(chunk_file(cache.folder, FULL))
    assert schema.field("pixels").type == pa.binary(TILE_PX * TILE_PX * 12)
    tiles = cache.chunk(FULL)
    assert tiles.shape == (16, 16, 256, 256, 12)
    for row, strip in enumerate(tiles):
        wanted = helsinki_pixels[row * TILE_PX : (row + 1) * TILE_PX]
        np.testing.assert_array_equal(strip.swapaxes(0, 1).reshape(wanted.shape), wanted)


# The detailed style


def test_the_detailed_style_tells_apart_what_the_thematic_one_does_not(thematic, features):
    detailed = load_style("detailed")
    assert len(set(detailed.channels)) == 18
    assert set(thematic.channels) - set(detailed.channels) == {"minor roads and parking"}
    assert len({theme_of(name, index).colour for index, name in enumerate(detailed.channels)}) == 18
    masks = dict(zip(detailed.channels, np.moveaxis(pixels_of(detailed, features), -1, 0), strict=True))
    assert [name for name, mask in masks.items() if not mask.any()] == ["motorways and trunks"]
    # What is called alike is alike.
    twelve = dict(zip(thematic.channels, np.moveaxis(pixels_of(thematic, features), -1, 0), strict=True))
    assert [name for name in twelve if name in masks and (masks[name] != twelve[name]).any()] == ["paths and tracks"]
    # A dot for each building: on it, and covering far less.
    houses, buildings = masks["houses counted"] > 0, masks["buildings"] > 0
    assert (houses & buildings).sum() > 0.8 * houses.sum()
    assert 5 * houses.sum() < buildings.sum()
    # Rautatientori is a square for people on foot.
    x, y = (int(axis[0]) % CHUNK_PX for axis in lonlat_to_pixel(np.array([24.9437]), np.array([60.1714])))
    assert masks["pedestrian ways"][y, x] == 255
    assert masks["paths and tracks"][y, x] == 0


# Pictures


def test_every_channel_has_a_colour_of_its_own_and_roads_lie_on_land(thematic):
    colours = [theme_of(name, index).colour for index, name in enumerate(thematic.channels)]
    assert len(set(colours)) == 12
    both = np.zeros((2, 12), np.uint8)
    both[:, thematic.channels.index("residential land")] = 255
    both[1, thematic.channels.index("main roads")] = 255
    land, road = plots.to_rgb(both, thematic.channels).tolist()
    assert tuple(land) == theme_of("residential land", 0).colour
    assert tuple(road) == theme_of("main roads", 0).colour


def test_the_contact_sheet_shows_every_channel_in_its_colour(cache):
    sheet = plots.tile_contact_sheet(cache, middle=Place(24.9436, 60.1732))
    assert sheet.width == 5 * 344 + 4 * 20 + 2 * 44
    pixels = np.asarray(sheet)
    for index, name in enumerate(cache.manifest.channels):
        colour = np.array(theme_of(name, index).colour)
        assert (pixels == colour).all(axis=-1).sum() > 100, name  # the disc beside its name at least


# Coverage

TWO_CHANNELS = """
[[channel]]
name = "roads"
lines = [{ tags = "highway=primary", width = 5 }, { tags = "highway=*", width = 3 }]

[[channel]]
name = "stops"
points = [{ tags = "highway=bus_stop", mark = 5 }]
lines = [{ tags = "railway=platform", width = 3 }]
"""


def test_coverage_of_a_few_objects_can_be_counted_by_hand(tmp_path):
    line, point, square = shapely.LineString([(0, 0), (9, 9)]), shapely.Point(0, 0), shapely.box(0, 0, 9, 9)
    highways = ["primary", "path", None, None, ""]
    railways = [None, "platform", "platform", "rail", "rail"]
    write_features(tmp_path, "lines", 5 * [line], highway=highways, railway=railways)
    write_features(tmp_path, "points", 2 * [point], highway=["bus_stop", "crossing"], railway=[None, None])
    write_features(tmp_path, "polygons", [square], highway=["crossing"], railway=[None])
    coverage = measure_coverage(style_of(tmp_path / "style", TWO_CHANNELS), tmp_path)
    assert coverage.objects == ObjectCount(points=2, lines=5, polygons=1)
    # The path with a platform is in both channels, and counts once in each.
    assert coverage.channels == {"roads": ObjectCount(0, 2, 0), "stops": ObjectCount(1, 2, 0)}
    assert coverage.untaken == ObjectCount(points=1, lines=2, polygons=1)
    assert coverage.untaken_tags == (
        UntakenTag("railway=rail", "lines", 2),
        UntakenTag("highway=crossing", "points", 1),
        UntakenTag("highway=crossing", "polygons", 1),
    )
    assert coverage.share(coverage.untaken) == 0.5
    assert coverage.markdown().splitlines() == [
        "| channel | points | lines | polygons | objects | share |",
        "|---|--:|--:|--:|--:|--:|",
        "| roads | 0 | 2 | 0 | 2 | 25.0% |",
        "| stops | 1 | 2 | 0 | 3 | 37.5% |",
        "| *no channel* | 1 | 2 | 1 | 4 | 50.0% |",
        "| *all objects* | 2 | 5 | 1 | 8 | 100.0% |",
        "",
        "Most frequent in no channel: `railway=rail` (lines) 2, `highway=crossing` (points) 1, "
        "`highway=crossing` (polygons) 1.",
    ]


def test_coverage_of_helsinki_is_what_mapnik_draws(helsinki, thematic, features):
    coverage = measure_coverage(thematic, features)
    counts = helsinki.features.counts
    assert coverage.objects == ObjectCount(counts["points"], counts["lines"], counts["polygons"])
    for geometry in GEOMETRIES:
        taken = {
            mask.name: {
                row
                for shape in mask.shapes(geometry)
                for row in mapnik_takes(features / f"{geometry}.fgb", shape.filter.mapnik())
            }
            for mask in thematic.masks
        }
        assert {name: len(rows) for name, rows in taken.items()} == {
            name: getattr(count, geometry) for name, count in coverage.channels.items()
        }
        n_rows = getattr(coverage.objects, geometry)
        assert getattr(coverage.untaken, geometry) == n_rows - len(reduce(or_, taken.values()))


def test_coverage_of_what_cannot_be_counted_is_refused(thematic, features, tmp_path):
    with pytest.raises(StyleError, match="Style 'carto' has no thematic channels"):
        measure_coverage(load_style("carto"), features)
    point = [shapely.Point(0, 0)]
    for geometry in GEOMETRIES:
        write_features(tmp_path, geometry, point, highway=["bus_stop"])
    with pytest.raises(FeaturesError, match=r"no column for aerialway, .*which style 'thematic' reads\. Materialise"):
        measure_coverage(thematic, tmp_path)
