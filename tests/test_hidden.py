"""Question sets: the map without the answers is the map that others would have drawn without them."""

from dataclasses import replace

import numpy as np
import osmium
import pytest
from sketch import Sketch, mapped

from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation.hidden import (
    AMENITIES,
    HIDDEN,
    LAND_USE,
    Change,
    Hidden,
    hidden_cache,
    hidden_features,
    read_hidden,
    tags_of,
)
from geobacter_core.geo import CHUNK_TILES, CHUNK_ZOOM, TILE_PX, Place, Tile, lonlat_to_pixel
from geobacter_core.osm.features import LAYERS, features_problems, load_features
from geobacter_core.tiles.build import build_cache
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.filters import parse_filter
from geobacter_core.tiles.mapnik import MapnikSource
from geobacter_core.tiles.region import build_region
from geobacter_core.tiles.style import load_style

STYLES = ("carto", "thematic")
BOX = (9.526, 47.065, 9.546, 47.075)
SCHOOL = (9.536, 47.07, 9.538, 47.071)


def village(with_school: bool) -> Sketch:
    """A road, a house, a field and a wood; a school's ground with its house and its sign, if wanted."""
    sketch = Sketch()
    sketch.line([(9.527, 47.067), (9.545, 47.067)], highway="primary")
    sketch.box(9.529, 47.068, 9.5295, 47.0683, building="house")
    sketch.box(9.531, 47.072, 9.534, 47.074, landuse="farmland")
    sketch.box(9.54, 47.072, 9.544, 47.074, natural="wood")
    west, south, east, north = SCHOOL
    house = (west + 0.0005, south + 0.0003, west + 0.001, south + 0.0006)
    if with_school:
        sketch.box(west, south, east, north, amenity="school")
        sketch.box(*house, building="school")
        sketch.point((east - 0.0005, north - 0.0003), amenity="school")
    else:
        sketch.box(*house, building="yes")
    return sketch


def image(cache: TileCache) -> np.ndarray:
    """The one chunk of a made-up village: `[4096, 4096, C]`."""
    (summary,) = cache.manifest.chunks
    tiles = cache.chunk(summary.tile).swapaxes(1, 2)
    return tiles.reshape(CHUNK_TILES * TILE_PX, CHUNK_TILES * TILE_PX, -1)


def whole_cache(of, style) -> TileCache:
    build_region(of.settings, of.region, style)
    return TileCache(of.settings.tiles_folder(of.region.name, style))


@pytest.mark.parametrize("style", STYLES)
def test_a_hidden_school_leaves_the_map_of_a_village_that_has_none(style, write_pbf, tmp_path):
    with_school = village(with_school=True).map(write_pbf, tmp_path / "with", BOX)
    without = village(with_school=False).map(write_pbf, tmp_path / "without", BOX)
    hidden = image(hidden_cache(with_school.settings, with_school.region, style, AMENITIES))
    assert np.array_equal(hidden, image(whole_cache(without, style)))


@pytest.mark.parametrize("style", STYLES)
def test_nothing_but_the_school_changes_when_it_is_hidden(style, write_pbf, tmp_path):
    with_school = village(with_school=True).map(write_pbf, tmp_path / "with", BOX)
    hidden = image(hidden_cache(with_school.settings, with_school.region, style, AMENITIES))
    row, column = np.nonzero((hidden != image(whole_cache(with_school, style))).any(axis=2))
    x, y = lonlat_to_pixel(np.array(SCHOOL[::2]), np.array(SCHOOL[1::2]))
    chunk = Tile.at(Place(SCHOOL[0], SCHOOL[1]), CHUNK_ZOOM)
    west, east = x - chunk.x * CHUNK_TILES * TILE_PX
    south, north = y - chunk.y * CHUNK_TILES * TILE_PX
    assert len(row) > 1000
    assert west - 2 <= column.min() <= column.max() <= east + 2
    assert north - 2 <= row.min() <= row.max() <= south + 2


def test_an_encoder_takes_the_hidden_tiles_for_those_of_its_style(write_pbf, tmp_path):
    drawn = village(with_school=True).map(write_pbf, tmp_path / "a", BOX)
    hidden = hidden_cache(drawn.settings, drawn.region, "thematic", LAND_USE)
    style = load_style("thematic")
    assert hidden.folder == tmp_path / "a/data/evaluations/sketch/land-use/thematic"
    assert (hidden.manifest.style_label, hidden.manifest.channels) == (style.label, style.channels)
    assert hidden.manifest.extract_sha256 == drawn.extract.sha256
    assert hidden.manifest.recipe != whole_cache(drawn, "thematic").manifest.recipe


def altered(tags: dict[str, str], hidden: Hidden) -> dict[str, str]:
    """The tags as a mapper would have left them who does not map what is asked for."""
    result = dict(tags)
    for change in hidden.changes:
        for clause in parse_filter(change.filter).clauses:
            value = tags.get(clause.key)
            fits = value is not None if not clause.values else value in clause.values
            if fits == clause.is_negated:
                break
        else:
            result.pop(change.key)
            if change.becomes is not None:
                result[change.key] = change.becomes
    return result


@pytest.mark.parametrize("hidden", HIDDEN, ids=lambda hidden: hidden.name)
def test_the_hidden_map_of_helsinki_is_that_of_an_extract_in_which_it_was_never_mapped(helsinki, hidden, tmp_path):
    """In the thematic style, whose pixels do not depend on paint order: FlatGeobuf has its own among neighbours."""
    path = tmp_path / "altered.osm.pbf"
    header = osmium.io.Reader(str(helsinki.pbf)).header()
    n_altered = 0
    with osmium.SimpleWriter(str(path), header=header) as writer:
        for item in osmium.FileProcessor(str(helsinki.pbf)):
            before = {tag.k: tag.v for tag in item.tags}
            after = altered(before, hidden)
            n_altered += after != before
            writer.add(item.replace(tags=after))
    assert n_altered > 300
    other = mapped(path, tmp_path)
    features, files = load_features(helsinki.settings.features_folder("helsinki"))
    features, files = hidden_features(features, files, hidden, tmp_path / "features")
    style = load_style("thematic")
    caches = [
        build_cache(tmp_path / name, name, helsinki.extract.ground, style, MapnikSource(style, of), helsinki.inputs)
        for name, of in (("hidden", files), ("altered", other.files))
    ]
    assert caches[0].manifest.digest == caches[1].manifest.digest != helsinki.cache.manifest.digest


@pytest.mark.parametrize("hidden", HIDDEN, ids=lambda hidden: hidden.name)
def test_no_answer_can_be_read_from_the_hidden_map(helsinki, hidden):
    files = load_features(helsinki.settings.features_folder("helsinki"))[1]
    kinds = (*hidden.land_uses, *hidden.objects)

    def counts(what):
        batches = [(layer, batch) for layer in LAYERS for batch in read_hidden(files, layer, what)]
        return {kind.name: sum(int(kind.matches(tags_of(batch)).sum()) for _, batch in batches) for kind in kinds}

    assert sum(n > 0 for n in counts(None).values()) >= 6
    assert counts(hidden) == dict.fromkeys((kind.name for kind in kinds), 0)


def left(of, hidden) -> list[dict[str, str]]:
    """The tags of every feature of the hidden map, drawn again from its files."""
    rows = []
    for layer in LAYERS:
        for batch in read_hidden(of.files, layer, hidden):
            rows += [{k: v for k, v in row.items() if v is not None} for row in pylist(batch)]
    return sorted(rows, key=str)


def pylist(batch):
    tags = tags_of(batch)
    return [dict(zip(tags, row, strict=True)) for row in zip(*(c.to_pylist() for c in tags.values()), strict=True)]


def test_amenities_leave_parks_and_houses_and_no_aisle_of_a_parking_lot(write_pbf, tmp_path):
    sketch = Sketch()
    for tags in (
        {"amenity": "parking", "area": "yes"},
        {"highway": "service", "service": "parking_aisle"},
        {"highway": "bus_stop"},
        {"highway": "service", "service": "driveway"},
        {"shop": "bakery", "building": "house"},
        {"building": "kiosk"},
        {"leisure": "park"},
        {"landuse": "retail"},
    ):
        sketch.box(9.527, 47.066, 9.528, 47.067, **tags)
    drawn = sketch.map(write_pbf, tmp_path / "a", BOX)
    seen = [tags for tags in left(drawn, AMENITIES) if tags]
    assert [tags for tags in seen if "highway" not in tags] == [
        {"building": "house"},
        {"building": "yes"},
        {"landuse": "residential"},
        {"leisure": "park"},
    ]
    # Each closed way with `highway` may be a loop or an area, and is both.
    assert [tags for tags in seen if "highway" in tags] == [
        {"highway": "service", "service": "driveway"},
        {"highway": "service", "service": "driveway"},
        {"highway": "service"},
        {"highway": "service"},
    ]


def test_land_use_leaves_water_and_trees_and_the_plain_outline_of_a_factory(write_pbf, tmp_path):
    sketch = Sketch()
    for tags in (
        {"landuse": "reservoir"},
        {"landuse": "forest"},
        {"natural": "water"},
        {"natural": "wood"},
        {"leisure": "swimming_pool"},
        {"building": "industrial", "landuse": "industrial"},
        {"building": "church"},
        {"amenity": "school"},
        {"power": "substation"},
    ):
        sketch.box(9.527, 47.066, 9.528, 47.067, **tags)
    sketch.point((9.527, 47.066), natural="tree")
    drawn = sketch.map(write_pbf, tmp_path / "a", BOX)
    assert {tuple(tags.items()) for tags in left(drawn, LAND_USE)} == {
        (("amenity", "school"),),
        (("building", "church"),),
        (("building", "yes"),),
        (("landuse", "reservoir"),),
        (("natural", "tree"),),
        (("natural", "water"),),
    }


def test_hidden_features_twice_have_the_same_bytes_and_a_third_time_are_kept(helsinki, tmp_path, snapshot):
    whole, files = load_features(helsinki.settings.features_folder("helsinki"))
    made = [hidden_features(whole, files, AMENITIES, tmp_path / name) for name in ("one", "two")]
    one, two = snapshot(tmp_path / "one"), snapshot(tmp_path / "two")
    assert made[0][0] == made[1][0]
    assert {name: data for name, (data, _) in one.items()} == {name: data for name, (data, _) in two.items()}
    assert hidden_features(whole, files, AMENITIES, tmp_path / "one") == made[0]
    assert snapshot(tmp_path / "one") == one
    assert features_problems(tmp_path / "one") == []
    assert 0 < made[0][0].counts["points"] < whole.counts["points"]


def test_a_map_without_a_column_that_is_asked_for_is_refused_and_what_was_there_stays(helsinki, tmp_path, snapshot):
    whole, files = load_features(helsinki.settings.features_folder("helsinki"))
    hidden_features(whole, files, AMENITIES, tmp_path)
    before = snapshot(tmp_path)
    wrong = replace(AMENITIES, changes=(Change("cuisine", "cuisine=pizza"),))
    with pytest.raises(
        EvaluationError, match=r"no column for cuisine, which 'amenities' reads\. Materialise map_features"
    ):
        hidden_features(whole, files, wrong, tmp_path)
    assert snapshot(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


def test_other_changes_give_other_features_and_other_questions_the_same(helsinki, tmp_path):
    whole, files = load_features(helsinki.settings.features_folder("helsinki"))
    first, _ = hidden_features(whole, files, AMENITIES, tmp_path)
    same, _ = hidden_features(whole, files, replace(AMENITIES, objects=()), tmp_path)
    other, where = hidden_features(whole, files, LAND_USE, tmp_path)
    assert same.recipe == first.recipe != other.recipe
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [where.name]


def test_a_second_call_for_the_tiles_changes_no_file(write_pbf, tmp_path, snapshot):
    drawn = village(with_school=True).map(write_pbf, tmp_path / "a", BOX)
    hidden_cache(drawn.settings, drawn.region, "carto", AMENITIES)
    before = snapshot(drawn.settings.data)
    hidden_cache(drawn.settings, drawn.region, "carto", AMENITIES)
    assert snapshot(drawn.settings.data) == before


def test_a_damaged_chunk_is_drawn_again(write_pbf, tmp_path):
    drawn = village(with_school=True).map(write_pbf, tmp_path / "a", BOX)
    cache = hidden_cache(drawn.settings, drawn.region, "carto", AMENITIES)
    before = image(cache)
    (chunk,) = cache.folder.glob("12-*.parquet")
    chunk.write_bytes(chunk.read_bytes()[:-100])
    assert np.array_equal(image(hidden_cache(drawn.settings, drawn.region, "carto", AMENITIES)), before)


def test_a_style_of_a_tile_server_cannot_hide_anything(helsinki):
    with pytest.raises(EvaluationError, match="'helsinki' cannot be drawn without 'amenities' in style 'osm-carto'"):
        hidden_cache(helsinki.settings, helsinki.region, "osm-carto", AMENITIES)


def test_a_map_on_which_everything_is_hidden_is_blank(write_pbf, tmp_path):
    sketch = Sketch()
    sketch.box(*SCHOOL, amenity="school")
    sketch.box(*SCHOOL, landuse="education")
    sketch.line([BOX[:2], BOX[2:]], highway="bus_stop")
    drawn = sketch.map(write_pbf, tmp_path / "a", BOX)
    hide_all = replace(AMENITIES, changes=(*AMENITIES.changes[:-2], Change("landuse", "landuse=*")))
    assert (image(hidden_cache(drawn.settings, drawn.region, "thematic", hide_all)) == 0).all()
