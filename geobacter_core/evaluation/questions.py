"""Questions about a region: places, their answers, and a map from which the answers cannot be read."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h3
import numpy as np
import shapely

from geobacter_core.cells import UserGrid
from geobacter_core.errors import EvaluationError
from geobacter_core.evaluation.hidden import HIDDEN, Hidden, hidden_cache
from geobacter_core.evaluation.labels import Label, Places, read_labels
from geobacter_core.evaluation.semantics import probe_cells, semantics
from geobacter_core.evaluation.settings import EvaluationSettings
from geobacter_core.osm.extract import load_extract
from geobacter_core.osm.features import load_features
from geobacter_core.regions import Region
from geobacter_core.settings import Settings
from geobacter_core.tiles.cache import TileCache, open_cache
from geobacter_core.tiles.style import load_style

GIVEN = "labels"
"""Source of the questions that a user brings."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked about N places of a region.

    Attributes:
        source: Name of the hidden rendering, or `labels`.
        cells: H3 cells that hold the places, `[N]`.
        places: Where the encoder looks.
        labels: The questions with their answers, each of N values.
        left_out: Questions that cannot be asked here, and why.
        cache: Tiles that do not show the answers.
        features: The folder with the FlatGeobuf files, which do.
        hidden: What was hidden; None where the map does not hold the answers anyway.
    """

    source: str
    cells: list[str]
    places: Places
    labels: list[Label]
    left_out: dict[str, str]
    cache: TileCache
    features: Path
    hidden: Hidden | None


def questions(settings: Settings, region: Region, evaluation: EvaluationSettings) -> Iterator[Questions]:
    """All that can be asked about a region: semantics hidden from the map, and the labels in its `labels` file.

    Raises:
        EvaluationError: The labels cannot be read, or none of them lies in the region.
        GeobacterError: The region's extract, features or tiles are missing.
    """
    extract, _ = load_extract(settings.extract_folder(region.name))
    _, files = load_features(settings.features_folder(region.name))
    if region.labels is not None:
        yield _given(settings, region, extract.ground, files)
    if load_style(settings.style).is_served:
        _log.info("%s: a tile server leaves nothing out, so nothing is asked that it would have to hide", region.name)
        return
    cells = probe_cells(extract.ground, region.cell_resolution, evaluation.n_places, evaluation.seed)
    for hidden in HIDDEN:
        labels, left_out = semantics(files, cells, hidden)
        cache = hidden_cache(settings, region, settings.style, hidden)
        yield Questions(hidden.name, cells, centres(cells), labels, left_out, cache, files, hidden)


def centres(cells: list[str]) -> Places:
    """The centres of H3 cells."""
    latlon = np.array([h3.cell_to_latlng(cell) for cell in cells]).reshape(-1, 2)
    return Places(latlon[:, 1].copy(), latlon[:, 0].copy())


def _given(settings: Settings, region: Region, ground: shapely.Geometry, files: Path) -> Questions:
    """The questions of the region's `labels` file, about those of its places that lie in the region."""
    path = Path(region.labels or "")
    table = read_labels(path, UserGrid(Path(region.cells), ground) if region.cells is not None else None)
    inside = np.asarray(shapely.contains_xy(ground, table.places.lon, table.places.lat))
    if not inside.any():
        raise EvaluationError(
            f"{path}: none of its {len(inside)} places lies in region '{region.name}'. Is it another region's file?"
        )
    places = Places(table.places.lon[inside], table.places.lat[inside])
    cells = [cell for cell, keep in zip(table.cells or _cells_at(table.places, region), inside, strict=True) if keep]
    labels = [Label(label.name, label.kind, label.values[inside], label.classes) for label in table.labels]
    return Questions(GIVEN, cells, places, labels, table.left_out, open_cache(settings, region), files, None)


def _cells_at(places: Places, region: Region) -> list[str]:
    return [
        h3.latlng_to_cell(lat, lon, region.cell_resolution) for lon, lat in zip(places.lon, places.lat, strict=True)
    ]
