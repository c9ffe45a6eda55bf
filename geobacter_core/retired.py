"""Regions that are in the regions file no more, and what is left of them.

Their tables, with history and report, stay: somebody may use them. What can be made again goes when that is asked for.
"""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from geobacter_core.settings import Settings


@dataclass(frozen=True, slots=True)
class Retired:
    """What is left of a region.

    Attributes:
        name: The region's name.
        cache_bytes: Of extract, map features, tiles, samples and evaluations, which can be made again.
        table_bytes: Of the embedding table, its history and the report.
    """

    name: str
    cache_bytes: int
    table_bytes: int


def retired_regions(settings: Settings, names: Collection[str]) -> list[Retired]:
    """Regions that data are there of, other than those of the regions file."""
    found = {
        folder.name
        for place in _CACHES + _TABLES
        for folder in (settings.data / place).glob("*")
        if folder.is_dir() and not folder.name.startswith(".")
    }
    return [left_of(settings, name) for name in sorted(found - set(names))]


def left_of(settings: Settings, name: str) -> Retired:
    """What there is of a region."""
    return Retired(name, *(sum(map(_size, _folders(settings, name, places))) for places in (_CACHES, _TABLES)))


def remove_caches(settings: Settings, name: str) -> int:
    """Remove of a region what can be made again; returns how many bytes. Its table, history and report stay."""
    n_bytes = left_of(settings, name).cache_bytes
    for folder in _folders(settings, name, _CACHES):
        shutil.rmtree(folder, ignore_errors=True)
    return n_bytes


_CACHES = ("extracts", "features", "tiles", "samples", "evaluations", "serving")
_TABLES = ("embeddings", "reports")


def _folders(settings: Settings, name: str, places: tuple[str, ...]) -> list[Path]:
    return [settings.data / place / name for place in places]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
