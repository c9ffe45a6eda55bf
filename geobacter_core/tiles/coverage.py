"""Tag coverage: how many of a region's drawable objects each thematic channel takes, and what no channel takes.

An object is a row of the map features: a closed way that may be a loop or an area is two, a line and a polygon.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from geobacter_core.errors import FeaturesError, StyleError
from geobacter_core.tiles.filters import TagFilter
from geobacter_core.tiles.masks import LAYERS
from geobacter_core.tiles.style import Style

_BATCH_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class ObjectCount:
    """How many objects there are of each geometry."""

    points: int
    lines: int
    polygons: int

    @property
    def total(self) -> int:
        """Of every geometry."""
        return self.points + self.lines + self.polygons


@dataclass(frozen=True, slots=True)
class UntakenTag:
    """A tag among the objects that no channel takes.

    Attributes:
        tag: `key=value`.
        geometry: `points`, `lines` or `polygons`.
        n_objects: So many of them have it.
    """

    tag: str
    geometry: str
    n_objects: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a style's channels take of some map features.

    Attributes:
        style: `name/version`.
        objects: All there are.
        channels: Those that each channel takes, in the style's order; one object may be in several.
        untaken: Those that no channel takes.
        untaken_tags: The most frequent tags among these, the most frequent first.
    """

    style: str
    objects: ObjectCount
    channels: Mapping[str, ObjectCount]
    untaken: ObjectCount
    untaken_tags: tuple[UntakenTag, ...]

    def share(self, count: ObjectCount) -> float:
        """A count's share of all objects, 0 to 1."""
        return count.total / max(self.objects.total, 1)

    def markdown(self) -> str:
        """The figures as a table and a list, in Markdown."""
        rows = [*self.channels.items(), ("*no channel*", self.untaken), ("*all objects*", self.objects)]
        lines = [
            "| channel | points | lines | polygons | objects | share |",
            "|---|--:|--:|--:|--:|--:|",
            *(
                f"| {name} | {count.points:,} | {count.lines:,} | {count.polygons:,} | {count.total:,} "
                f"| {self.share(count):.1%} |"
                for name, count in rows
            ),
        ]
        if self.untaken_tags:
            tags = ", ".join(f"`{found.tag}` ({found.geometry}) {found.n_objects:,}" for found in self.untaken_tags)
            lines += ["", f"Most frequent in no channel: {tags}."]
        return "\n".join(lines) + "\n"


def measure_coverage(style: Style, features: Path, n_tags: int = 20) -> Coverage:
    """Count what each channel of a style takes, batch by batch.

    Args:
        style: A style of thematic channels.
        features: Folder with `points.fgb`, `lines.fgb` and `polygons.fgb`.
        n_tags: So many tags at most are reported of what no channel takes.

    Raises:
        StyleError: The style has no thematic channels.
        FeaturesError: The features lack a tag that the style reads.
    """
    if not style.masks:
        raise StyleError(
            f"Style '{style.name}' has no thematic channels, so no object is in one. Ask for a style that has."
        )
    tallies = {geometry: _tally(style, features, geometry) for geometry in LAYERS}
    untaken_tags: Counter[tuple[str, str]] = Counter()
    for geometry, tally in tallies.items():
        untaken_tags.update({(tag, geometry): n for tag, n in tally.untaken_tags.items()})
    return Coverage(
        style=style.label,
        objects=ObjectCount(**{geometry: tally.n_objects for geometry, tally in tallies.items()}),
        channels={
            mask.name: ObjectCount(**{geometry: int(tally.n_taken[index]) for geometry, tally in tallies.items()})
            for index, mask in enumerate(style.masks)
        },
        untaken=ObjectCount(**{geometry: tally.n_untaken for geometry, tally in tallies.items()}),
        untaken_tags=tuple(
            UntakenTag(tag, geometry, n)
            for (tag, geometry), n in sorted(untaken_tags.items(), key=lambda item: (-item[1], item[0]))[:n_tags]
        ),
    )


@dataclass(slots=True)
class _Tally:
    """Counts over one file; `n_taken` is one per channel."""

    n_taken: NDArray[np.int64]
    untaken_tags: Counter[str]
    n_objects: int = 0
    n_untaken: int = 0


def _tally(style: Style, features: Path, geometry: str) -> _Tally:
    import pyogrio  # brings geopandas and pandas along, a second of start-up

    filters = [[shape.filter for shape in mask.shapes(geometry)] for mask in style.masks]
    path = features / f"{geometry}.fgb"
    tally = _Tally(np.zeros(len(filters), np.int64), Counter())
    with pyogrio.open_arrow(path, read_geometry=False, batch_size=_BATCH_ROWS, use_pyarrow=True) as (_, reader):
        if missing := sorted(set(style.keys) - set(reader.schema.names)):
            raise FeaturesError(
                f"{path} has no column for {', '.join(missing)}, which style '{style.name}' reads. "
                "Materialise map_features for the region."
            )
        for batch in reader:
            _count(batch, filters, tally)
    return tally


def _count(batch: pa.RecordBatch, filters: list[list[TagFilter]], tally: _Tally) -> None:
    tags = {
        field.name: batch.column(field.name)
        for field in batch.schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    }
    taken = np.zeros(batch.num_rows, bool)
    for channel, shapes in enumerate(filters):
        of_channel = np.zeros(batch.num_rows, bool)
        for shape in shapes:
            of_channel |= shape.matches(tags).to_numpy(zero_copy_only=False)
        tally.n_taken[channel] += of_channel.sum()
        taken |= of_channel
    tally.n_objects += batch.num_rows
    tally.n_untaken += int((~taken).sum())
    rest = pa.array(~taken)
    for key, column in tags.items():
        for found in pc.value_counts(pc.filter(column, rest).drop_null()).to_pylist():
            if found["values"]:
                tally.untaken_tags[f"{key}={found['values']}"] += found["counts"]
