"""Question sets: what a probe asks of a place, and the map without the answer.

An encoder that is shown a school can tell that there is one. To find out whether it knows a place that has a school,
the probe draws the map anew without schools, and without whatever else says so: the answer comes from the extract, and
the windows from tiles where it is not drawn.

Two rules make a set. Everything that an answer is read from is hidden; a test holds that. And so is what states the
same by another tag: a school's ground (`landuse=education`), the aisles of a parking lot, a `building=church`. A
building's value becomes plain `yes` unless it is one of a short list that is known to say nothing about the questions:
OSM has thousands of values, and a list of those that tell would never be complete.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from geobacter_core.errors import EvaluationError
from geobacter_core.files import digest_of
from geobacter_core.osm.extract import load_extract
from geobacter_core.osm.features import (
    LAYERS,
    Features,
    content_digest,
    kept_or_made,
    layer_schema,
    load_features,
    read_layer,
    write_layer,
)
from geobacter_core.regions import Region
from geobacter_core.settings import Settings
from geobacter_core.tiles.build import Inputs, build_cache
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.filters import parse_filter
from geobacter_core.tiles.style import load_style, style_names

VERSION = "1"
"""Raise when the same features and changes would give other files."""

_MODIFIERS = frozenset({"area", "bridge", "intermittent", "service", "tracktype", "tunnel"})
"""Tag keys that only say how another tag is drawn."""

Tags = Mapping[str, pa.Array]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of thing that a probe asks for.

    Attributes:
        name: Of the label or class.
        filters: Tag filters (see `tiles.filters`); what fits one of them is of this kind.
    """

    name: str
    filters: tuple[str, ...]

    def matches(self, tags: Tags) -> NDArray[np.bool_]:
        """Which features are of this kind: `[N]`, from string columns of N values by key."""
        found = np.zeros(len(next(iter(tags.values()))), bool)
        for text in self.filters:
            found |= parse_filter(text).matches(tags).to_numpy(zero_copy_only=False)
        return found


@dataclass(frozen=True, slots=True)
class Change:
    """A tag that is taken off the map, or made to say less.

    Attributes:
        key: Its key.
        filter: The tag filter (see `tiles.filters`) that a feature must fit, as it was before any change.
        becomes: The tag's new value; None for no such tag.
    """

    key: str
    filter: str
    becomes: str | None = None


@dataclass(frozen=True, slots=True)
class Hidden:
    """A question set: what is asked, and what is hidden for it.

    Attributes:
        name: Also the folder's name.
        changes: Make the hidden map from the whole one.
        land_uses: Classes of ground, of which a place has that of the largest share; of the kinds that fit one
            feature, the first counts.
        objects: Things that a place has or has not.
    """

    name: str
    changes: tuple[Change, ...]
    land_uses: tuple[Kind, ...] = ()
    objects: tuple[Kind, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The tag keys that it reads."""
        texts = [change.filter for change in self.changes]
        texts += [text for kind in (*self.land_uses, *self.objects) for text in kind.filters]
        return tuple(sorted({key for text in texts for key in parse_filter(text).keys}))


_NOT_THERE = "no|collapsed|demolished|proposed|construction|ruins"

LAND_USE = Hidden(
    name="land-use",
    # Water stays, as water areas, waterways and the sea: it is no class. So do single trees and rows of them, cliffs
    # and ridges, of which no area is made. A swimming pool is a leisure tag and goes.
    changes=(
        Change("landuse", "landuse=* & landuse!=reservoir|basin|pond|salt_pond|aquaculture"),
        Change("leisure", "leisure=*"),
        Change(
            "natural",
            "natural=* & natural!=water|sea|coastline|bay|strait|spring|tree|tree_row|cliff|arete|ridge|peak|saddle",
        ),
        # Uses of land under other keys; the carto style has the same colour for a works and for industrial land.
        Change("man_made", "man_made=works|wastewater_plant|water_works|pumping_station"),
        Change("power", "power=plant|substation|sub_station"),
        Change("aeroway", "aeroway=aerodrome|heliport"),
        Change("highway", "highway=services|rest_area"),
        Change("tourism", "tourism=camp_site|caravan_site|picnic_site|zoo|theme_park"),
        Change("amenity", "amenity=grave_yard"),
        Change(
            "building",
            "building=* & building!=church|chapel|cathedral|mosque|synagogue|temple|school|kindergarten|university|"
            f"college|hospital|public|civic|government|hotel|train_station|roof|{_NOT_THERE}",
            becomes="yes",
        ),
    ),
    land_uses=(
        Kind("residential", ("landuse=residential|garages",)),
        Kind("commerce", ("landuse=commercial|retail",)),
        Kind(
            "industry and transport",
            (
                "landuse=industrial|railway|port|depot|quarry|landfill|construction|brownfield|military",
                "man_made=works|wastewater_plant|water_works|pumping_station",
                "power=plant|substation|sub_station",
                "aeroway=aerodrome|heliport",
                "highway=services|rest_area",
            ),
        ),
        Kind(
            "park and leisure",
            (
                "leisure=park|garden|common|pitch|track|playground|golf_course|miniature_golf|dog_park|fitness_station",
                "leisure=sports_centre|stadium|horse_riding|water_park|recreation_ground",
                "landuse=recreation_ground|village_green",
                "tourism=camp_site|caravan_site|picnic_site|zoo|theme_park",
            ),
        ),
        Kind(
            "farmland",
            (
                "landuse=farmland|farmyard|orchard|vineyard|greenhouse_horticulture|plant_nursery|animal_keeping",
                "landuse=allotments",
            ),
        ),
        Kind("meadow and grass", ("landuse=meadow|grass|greenfield", "natural=grassland|heath|moor|fell|tundra")),
        Kind("forest", ("landuse=forest|logging", "natural=wood")),
        Kind(
            "scrub and bare ground",
            (
                "natural=scrub|shrubbery|wetland|mud",
                "natural=bare_rock|scree|shingle|rock|stone|sand|dune|beach|shoal|glacier",
            ),
        ),
    ),
)

AMENITIES = Hidden(
    name="amenities",
    # Leisure stays: parks, pitches and playgrounds are near schools, and knowing that is what is asked for.
    changes=(
        Change("amenity", "amenity=*"),
        Change("shop", "shop=*"),
        Change("office", "office=*"),
        Change("tourism", "tourism=*"),
        Change("historic", "historic=*"),
        Change("highway", "highway=bus_stop|platform|services|rest_area"),
        Change("service", "service=parking_aisle|parking|drive-through"),
        # Built-up ground becomes all one, for a hole in the map would say where the shops and schools are.
        Change(
            "landuse",
            "landuse=education|religious|institutional|civic_admin|churchyard|commercial|retail",
            becomes="residential",
        ),
        Change(
            "building",
            "building=* & building!=residential|house|detached|semidetached_house|terrace|apartments|bungalow|cabin|"
            "hut|shed|garage|garages|carport|allotment_house|farm|farm_auxiliary|barn|stable|cowshed|sty|greenhouse|"
            f"industrial|warehouse|service|train_station|roof|{_NOT_THERE}",
            becomes="yes",
        ),
    ),
    objects=(
        Kind(
            "school",
            (
                "amenity=school|kindergarten|childcare|college|university|music_school|language_school",
                "building=school|kindergarten|college|university",
                "landuse=education",
            ),
        ),
        Kind("restaurant", ("amenity=restaurant|cafe|bar|pub|fast_food|food_court|biergarten|ice_cream",)),
        Kind("shop", ("shop=* & shop!=no|vacant",)),
        Kind("office", ("office=*",)),
        Kind("bus stop", ("highway=bus_stop",)),
        Kind(
            "parking",
            ("amenity=parking|parking_space|parking_entrance|motorcycle_parking", "building=parking"),
        ),
        Kind(
            "place of worship",
            (
                "amenity=place_of_worship|monastery",
                "building=church|chapel|cathedral|mosque|synagogue|temple|monastery",
            ),
        ),
        Kind("place to stay", ("tourism=hotel|guest_house|hostel|motel|apartment|chalet|alpine_hut", "building=hotel")),
        Kind("health care", ("amenity=hospital|clinic|doctors|dentist|pharmacy", "building=hospital|clinic")),
    ),
)

HIDDEN = (LAND_USE, AMENITIES)


def tags_of(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    """The tag columns of a batch in `layer_schema`."""
    return {name: batch.column(name) for name in batch.schema.names if name not in ("geometry", "layer")}


def read_hidden(files: Path, layer: str, hidden: Hidden | None) -> Iterator[pa.RecordBatch]:
    """The features of one file as batches in `layer_schema`; what is hidden is taken off.

    A feature that is left without a tag that could be drawn is dropped. Without `hidden`, all is read as it is.

    Raises:
        EvaluationError: The file lacks a tag key that the question set reads.
    """
    for batch in read_layer(files, layer):
        if hidden is None:
            yield batch
        else:
            _check_keys(files, batch.schema.names, hidden)
            yield _hide(batch, hidden)


def _check_keys(files: Path, keys: Sequence[str], hidden: Hidden) -> None:
    if missing := sorted(set(hidden.keys) - set(keys)):
        raise EvaluationError(
            f"The map features in {files} have no column for {', '.join(missing)}, which '{hidden.name}' reads. "
            "Materialise map_features for the region."
        )


def _hide(batch: pa.RecordBatch, hidden: Hidden) -> pa.RecordBatch:
    tags = tags_of(batch)
    masks = [parse_filter(change.filter).matches(tags) for change in hidden.changes]
    changed = dict(tags)
    for change, mask in zip(hidden.changes, masks, strict=True):
        changed[change.key] = pc.if_else(mask, pa.scalar(change.becomes, pa.string()), changed[change.key])
    columns = [batch.column("geometry"), *changed.values(), batch.column("layer")]
    result = pa.RecordBatch.from_arrays(columns, schema=layer_schema(tuple(changed)))
    return result.filter(pa.array(_can_be_drawn(changed)))


def _can_be_drawn(tags: Tags) -> NDArray[np.bool_]:
    drawn = np.zeros(len(next(iter(tags.values()))), bool)
    for key, column in tags.items():
        if key not in _MODIFIERS:
            drawn |= column.is_valid().to_numpy(zero_copy_only=False)
    return drawn


def hidden_features(features: Features, files: Path, hidden: Hidden, folder: Path) -> tuple[Features, Path]:
    """Write map features from which a question set's answers are hidden; files that are up to date are kept.

    The features go by in batches, so memory is that of one index entry per feature.

    Args:
        features: The manifest of the whole map.
        files: Its three files.
        hidden: The question set.
        folder: Gets the new files and their manifest, in the form of `osm.features`.

    Returns:
        The manifest, and the folder with the FlatGeobuf files.

    Raises:
        EvaluationError: The features lack a tag key that the question set reads.
        GeobacterError: The disk has no room.
    """
    _check_keys(files, features.keys, hidden)
    recipe = digest_of("hidden features", VERSION, features.digest, hidden.changes)

    def make(work: Path) -> Features:
        counts = {
            layer: write_layer(work / f"{layer}.fgb", layer, features.keys, read_hidden(files, layer, hidden))
            for layer in LAYERS
        }
        _log.info("%s: map features without %s: %s of %s", features.region, hidden.name, counts, features.counts)
        made = {"recipe": recipe, "digest": content_digest(work), "counts": features.counts | counts}
        return features.model_copy(update=made)

    made = kept_or_made(folder, recipe, make)
    return made, folder / made.recipe[:16]


def hidden_cache(settings: Settings, region: Region, style_name: str, hidden: Hidden) -> TileCache:
    """The region's tiles in a style, without the answers to a question set; built, or kept where they are up to date.

    They lie in the region's evaluation folder, with the manifest of any other tile cache of that style, so that every
    encoder of the style takes them.

    Raises:
        EvaluationError: A tile server draws the style.
        GeobacterError: The extract or its features are missing, or some chunks could not be made.
    """
    style = load_style(style_name)
    if style.is_served:
        others = [name for name in style_names() if not load_style(name).is_served]
        raise EvaluationError(
            f"Region '{region.name}' cannot be drawn without '{hidden.name}' in style '{style.name}': a tile server "
            "draws it, from its own database, and leaves nothing out. Evaluate an encoder of style "
            f"{' or '.join(others)}."
        )
    from geobacter_core.tiles.mapnik import MapnikSource

    extract, _ = load_extract(settings.extract_folder(region.name))
    folder = settings.evaluation_folder(region.name) / hidden.name
    features, files = load_features(settings.features_folder(region.name))
    features, files = hidden_features(features, files, hidden, folder / "features")
    inputs = Inputs(features.digest, features.extract_sha256, features.osm_timestamp)
    build_cache(folder / style.name, region.name, extract.ground, style, MapnikSource(style, files), inputs)
    return TileCache(folder / style.name, style)
