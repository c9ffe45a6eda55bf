"""Thematic channels: each an anti-aliased coverage mask of the map features that its tag filters take.

Three channels share one of Mapnik's images, as its red, green and blue on black. Shapes are added up (`comp-op="plus"`)
in the pure colour of their channel: addition leaves the other two as they are, and does not depend on paint order.
Coverage beyond a whole pixel is a whole pixel; along an edge that two shapes share, the two halves make one.
"""

from dataclasses import dataclass
from typing import Annotated, Self
from xml.sax.saxutils import escape

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from geobacter_core.errors import StyleError
from geobacter_core.tiles.filters import TagFilter, parse_filter

CHANNELS_PER_IMAGE = 3
LAYERS = ("polygons", "lines", "points")

_COLOURS = ("#ff0000", "#00ff00", "#0000ff")
_MAX_PX = 48.0
"""Mapnik reads features this far outside a chunk (`buffer-size`), so no line or mark may reach further."""

_Size = Annotated[float, Field(gt=0, le=_MAX_PX)]


class Shape(BaseModel):
    """Features that a channel draws, and how: `[[channel.polygons]]`, `[[channel.lines]]` or `[[channel.points]]`.

    Attributes:
        tags: A tag filter (see `filters`).
        width: Of a line, in pixels of a tile.
        mark: Diameter of a disc at the point, or inside the polygon, in pixels of a tile.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tags: str
    width: _Size | None = None
    mark: _Size | None = None

    @field_validator("tags")
    @classmethod
    def _is_a_filter(cls, text: str) -> str:
        try:
            parse_filter(text)
        except StyleError as problem:
            raise ValueError(str(problem).removesuffix(".")) from None
        return text

    @property
    def filter(self) -> TagFilter:
        """The tag filter, parsed."""
        return parse_filter(self.tags)


class Channel(BaseModel):
    """One thematic channel. Of the shapes of one geometry, the first whose filter fits a feature draws it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    polygons: tuple[Shape, ...] = ()
    lines: tuple[Shape, ...] = ()
    points: tuple[Shape, ...] = ()

    def shapes(self, geometry: str) -> tuple[Shape, ...]:
        """The shapes for one kind of geometry."""
        return {"polygons": self.polygons, "lines": self.lines, "points": self.points}[geometry]

    @property
    def all_shapes(self) -> tuple[Shape, ...]:
        """The shapes for every kind of geometry."""
        return (*self.polygons, *self.lines, *self.points)

    @model_validator(mode="after")
    def _fit_their_geometry(self) -> Self:
        for shape in self.lines:
            if shape.width is None or shape.mark is not None:
                raise ValueError(f"lines '{shape.tags}' need a width, and no mark. Write width = pixels")
        for shape in self.points:
            if shape.mark is None or shape.width is not None:
                raise ValueError(f"points '{shape.tags}' need a mark, and no width. Write mark = pixels")
        for shape in self.polygons:
            if shape.width is not None:
                raise ValueError(f"polygons '{shape.tags}' are filled or have a mark, and no width. Remove it")
        if not (self.polygons or self.lines or self.points):
            raise ValueError("it draws nothing. Give it polygons, lines or points")
        return self


@dataclass(frozen=True, slots=True)
class _Painter:
    """Writes the XML of one channel in one colour."""

    channel: Channel
    colour: str

    def style(self, geometry: str) -> str:
        rules = "".join(
            f"  <Rule><Filter>{escape(shape.filter.mapnik())}</Filter>{self._symbolizer(geometry, shape)}</Rule>\n"
            for shape in self.channel.shapes(geometry)
        )
        return f'<Style name="{_style_name(self.channel, geometry)}" filter-mode="first">\n{rules}</Style>\n'

    def _symbolizer(self, geometry: str, shape: Shape) -> str:
        # clip="false" keeps a pixel independent of where a chunk begins.
        if shape.mark is not None:
            return (
                f'<MarkersSymbolizer width="{shape.mark}" height="{shape.mark}" fill="{self.colour}" stroke-width="0" '
                f'placement="{"interior" if geometry == "polygons" else "point"}" clip="false" allow-overlap="true" '
                'ignore-placement="true" comp-op="plus"/>'
            )
        if geometry == "lines":
            return (
                f'<LineSymbolizer stroke="{self.colour}" stroke-width="{shape.width}" stroke-linecap="round" '
                'stroke-linejoin="round" clip="false" comp-op="plus"/>'
            )
        return f'<PolygonSymbolizer fill="{self.colour}" comp-op="plus"/>'


def map_documents(channels: tuple[Channel, ...]) -> tuple[str, ...]:
    """Mapnik XML of the images that hold the channels, three to an image, with the placeholder `${features}`."""
    groups = [channels[first : first + CHANNELS_PER_IMAGE] for first in range(0, len(channels), CHANNELS_PER_IMAGE)]
    return tuple(_document(group) for group in groups)


def _document(channels: tuple[Channel, ...]) -> str:
    painters = [_Painter(channel, colour) for channel, colour in zip(channels, _COLOURS, strict=False)]
    styles, layers = [], []
    for geometry in LAYERS:
        drawn = [painter for painter in painters if painter.channel.shapes(geometry)]
        if not drawn:
            continue
        styles += [painter.style(geometry) for painter in drawn]
        names = "".join(f"<StyleName>{_style_name(painter.channel, geometry)}</StyleName>" for painter in drawn)
        keys = {key for painter in drawn for shape in painter.channel.shapes(geometry) for key in shape.filter.keys}
        columns = ", ".join(f'"{key}"' for key in sorted(keys))
        # Mapnik converts every column of every feature, so it gets none but those that the filters read.
        layers.append(
            f'<Layer name="{geometry}" srs="epsg:3857" cache-features="{"true" if len(drawn) > 1 else "false"}">{names}'
            f'<Datasource><Parameter name="type">ogr</Parameter><Parameter name="file">${{features}}/{geometry}.fgb'
            f'</Parameter><Parameter name="layer_by_sql">SELECT {columns} FROM "{geometry}"</Parameter></Datasource>'
            "</Layer>\n"
        )
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<Map srs="epsg:3857" background-color="#000000" '
        f'buffer-size="{_MAX_PX:.0f}">\n{"".join(styles)}{"".join(layers)}</Map>\n'
    )


def _style_name(channel: Channel, geometry: str) -> str:
    return escape(f"{channel.name}: {geometry}", {'"': "&quot;"})
