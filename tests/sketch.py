"""Made-up maps, drawn object by object, and taken through the chain up to their map features."""

from pathlib import Path

from conftest import WritePbf, settings_in

from geobacter_core.osm.extract import fetch_extract, load_extract
from geobacter_core.osm.features import build_features, load_features
from geobacter_core.regions import Region
from geobacter_core.settings import Settings
from geobacter_core.tiles.style import all_keys


class Sketch:
    """Points, lines and polygons with tags; places are (lon, lat) in degrees."""

    def __init__(self) -> None:
        self.nodes: dict[int, tuple[float, float]] = {}
        self.node_tags: dict[int, dict[str, str]] = {}
        self.ways: dict[int, tuple[list[int], dict[str, str]]] = {}

    def point(self, place, **tags) -> None:
        self.node_tags[self._node(place)] = tags

    def line(self, places, **tags) -> None:
        self.ways[len(self.ways) + 1] = ([self._node(place) for place in places], tags)

    def polygon(self, places, **tags) -> None:
        ring = [self._node(place) for place in places]
        self.ways[len(self.ways) + 1] = ([*ring, ring[0]], tags)

    def box(self, west, south, east, north, **tags) -> None:
        self.polygon([(west, south), (east, south), (east, north), (west, north)], **tags)

    def _node(self, place) -> int:
        self.nodes[len(self.nodes) + 1] = place
        return len(self.nodes)

    def map(self, write_pbf: WritePbf, folder: Path, box=None) -> "SketchedMap":
        """Write the extract and build its features in a data folder below `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        pbf = write_pbf(f"{folder.name}.osm.pbf", self.nodes, self.ways, node_tags=self.node_tags, box=box)
        return mapped(pbf, folder)


class SketchedMap:
    """A region with extract and map features."""

    def __init__(self, settings: Settings, region: Region) -> None:
        self.settings = settings
        self.region = region
        self.extract = load_extract(settings.extract_folder(region.name))[0]
        self.features, self.files = load_features(settings.features_folder(region.name))


def mapped(pbf: Path, folder: Path) -> SketchedMap:
    settings = settings_in(folder / "data")
    region = Region(name="sketch", extract=str(pbf))
    extract = fetch_extract(region, settings.extract_folder(region.name))
    path = load_extract(settings.extract_folder(region.name))[1]
    build_features(extract, path, all_keys(), settings.features_folder(region.name))
    return SketchedMap(settings, region)
