"""The order of map features: of any two it follows from these two alone."""

import pyarrow as pa
import pyogrio
import pytest
import shapely

from geobacter_core.osm.features import layer_schema, read_layer, write_layer

KEYS = ("building", "name")


def written(folder, shapes):
    """Polygons with their names, in the order in which the file has them."""
    folder.mkdir()
    columns = {
        "geometry": pa.array(shapely.to_wkb([shapely.multipolygons([shape]) for _, shape in shapes]), pa.binary()),
        "building": pa.array(["yes"] * len(shapes)),
        "name": pa.array([name for name, _ in shapes]),
        "layer": pa.array([0] * len(shapes), pa.int32()),
    }
    batch = pa.RecordBatch.from_pydict(columns, schema=layer_schema(KEYS))
    write_layer(folder / "polygons.fgb", "polygons", KEYS, iter([batch]))
    return [name for batch in read_layer(folder, "polygons") for name in batch.column("name").to_pylist()]


@pytest.fixture
def shapes():
    """A thousand squares in Liechtenstein, each fourth with others around the same centre."""
    found = []
    for index in range(1000):
        x, y = 1_060_000 + 97 * (index * 37 % 251), 5_960_000 + 89 * (index * 53 % 241)
        sizes = (10, 20, 30) if index % 4 == 0 else (10,)
        found += [(f"{index}-{size}", shapely.box(x - size, y - size, x + size, y + size)) for size in sizes]
    return found


def test_what_is_taken_away_does_not_move_the_others(shapes, tmp_path):
    everything = written(tmp_path / "all", shapes)
    assert sorted(everything) == sorted(name for name, _ in shapes)
    for gone in (0, 1, 517):
        fewer = written(tmp_path / f"{gone}", shapes[:gone] + shapes[gone + 1 :])
        assert fewer == [name for name in everything if name != shapes[gone][0]]


def test_neither_does_what_lies_far_away_nor_the_order_of_before(shapes, tmp_path):
    everything = written(tmp_path / "all", shapes)
    far = ("far", shapely.box(-15_000_000, -5_000_000, -14_000_000, -4_000_000))
    more = written(tmp_path / "more", [far, *reversed(shapes)])
    assert [name for name in more if name != "far"] == everything


def test_the_index_finds_what_a_look_at_all_finds(shapes, tmp_path):
    written(tmp_path / "all", shapes)
    path = tmp_path / "all" / "polygons.fgb"
    everything = pyogrio.read_dataframe(path)
    for west, south in ((1_061_000, 5_962_000), (1_075_000, 5_970_000), (0, 0)):
        box = (west, south, west + 700, south + 900)
        found = pyogrio.read_dataframe(path, bbox=box)
        expected = everything[everything.intersects(shapely.box(*box))]
        assert found["name"].tolist() == expected["name"].tolist()
