"""Parts of a chart: axes, ticks, marks, lines, letters and a legend, on a canvas."""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely
from PIL import Image, ImageDraw

from geobacter_core.plots.colours import oklab_to_rgb
from geobacter_core.plots.page import INK, PAPER, Rgb, load_font

Point = tuple[float, float]
Shade = Rgb | tuple[int, int, int, int]
"""A colour, or one with an opacity of 0 to 255."""
Shape = Literal["circle", "square", "diamond", "up", "down", "plus", "cross", "pentagon", "bar", "star"]
Align = Literal["left", "middle", "right"]

MINUS = "\N{MINUS SIGN}"
HIGHLIGHT: Rgb = (30, 74, 184)
GRID: Rgb = (232, 230, 224)
BAND: Rgb = (244, 242, 236)

_FINE = 2
"""Shapes are drawn at so many times their size and reduced, for smooth edges."""
_SHAPES: tuple[Shape, ...] = ("square", "diamond", "up", "cross", "down", "bar", "pentagon", "plus", "star", "circle")
_PRINTABLE = frozenset(map(chr, range(32, 127))) | frozenset("©«»°±·")
_CAPITAL_SHARE = 0.71
_SMALL_SHARE = 0.62
_LEGEND_TEXT_PX, _LEGEND_GAP_PX = 30, 40
_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


@dataclass(frozen=True, slots=True)
class Axis:
    """Where values lie on a picture.

    Attributes:
        low: Value at `start_px`.
        high: Value at `end_px`, more than `low`.
        start_px: Left end, or bottom.
        end_px: Right end, or top.
        scale: `log` needs values above 0.
    """

    low: float
    high: float
    start_px: float
    end_px: float
    scale: Literal["linear", "log"] = "linear"

    def px(self, value: float) -> float:
        """Where a value lies, also beyond the ends."""
        low, high = self.low, self.high
        if self.scale == "log":
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start_px + (value - low) / (high - low) * (self.end_px - self.start_px)

    def px_within(self, value: float) -> float:
        """Where a value lies, or the end that it lies beyond."""
        return self.px(min(max(value, self.low), self.high))


@dataclass(frozen=True, slots=True)
class Look:
    """How one series looks: a colour, and a shape for who cannot tell the colours apart."""

    colour: Rgb
    shape: Shape


class Canvas:
    """What a chart is drawn on: shapes with smooth edges, and letters, which always lie above them."""

    def __init__(self, width_px: int, height_px: int) -> None:
        self.width_px = width_px
        self.height_px = height_px
        self._shapes = Image.new("RGB", (width_px * _FINE, height_px * _FINE), PAPER)
        self._draw = ImageDraw.Draw(self._shapes, "RGBA")
        self._texts: list[tuple[Point, str, int, Rgb]] = []

    def line(self, points: Sequence[Point], colour: Shade, width_px: float) -> None:
        """A line through points."""
        self._draw.line(_finer(points), fill=colour, width=max(round(width_px * _FINE), 1), joint="curve")

    def area(self, points: Sequence[Point], colour: Shade) -> None:
        """A filled polygon."""
        self._draw.polygon(_finer(points), fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Shade) -> None:
        """A filled rectangle."""
        self.area([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def mark(self, at: Point, look: Look, size_px: float) -> None:
        """A mark with its middle at a point and a thin rim of paper, by which it stands out from what lies below.

        Args:
            at: The middle.
            look: Its colour and shape.
            size_px: Diameter of a circle; other shapes are about as large.
        """
        for colour, radius in ((PAPER, size_px / 2 + 1.5), (look.colour, size_px / 2)):
            self.area([(at[0] + x * radius, at[1] + y * radius) for x, y in _outline(look.shape)], colour)

    def text(self, at: Point, text: str, size_px: int, colour: Rgb = INK, align: Align = "left") -> None:
        """One line of text; y is the middle of its capital letters."""
        text = printable(text)
        left = at[0] - {"left": 0.0, "middle": 0.5, "right": 1.0}[align] * text_width(text, size_px)
        self._texts.append(((left, at[1] + _CAPITAL_SHARE / 2 * size_px), text, size_px, colour))

    def image(self) -> Image.Image:
        """What was drawn, with the letters above."""
        image = self._shapes.reduce(_FINE)
        draw = ImageDraw.Draw(image)
        for at, text, size_px, colour in self._texts:
            _set_text(draw, at, text, size_px, colour)
        return image


def _finer(points: Sequence[Point]) -> list[Point]:
    # Pillow counts from the middle of the first pixel, an axis from its edge.
    return [(x * _FINE - 0.5, y * _FINE - 0.5) for x, y in points]


def _outline(shape: Shape) -> list[Point]:
    """The corners of a shape about as large as a circle of radius 1."""
    match shape:
        case "circle":
            return _regular(48, 0, 1.0)
        case "square":
            return _regular(4, math.pi / 4, 1.24)
        case "diamond":
            return _regular(4, 0, 1.3)
        case "up":
            return _regular(3, -math.pi / 2, 1.38)
        case "down":
            return _regular(3, math.pi / 2, 1.38)
        case "pentagon":
            return _regular(5, -math.pi / 2, 1.12)
        case "bar":
            return [(-0.42, -1.25), (0.42, -1.25), (0.42, 1.25), (-0.42, 1.25)]
        case "plus":
            return _plus(0)
        case "cross":
            return _plus(math.pi / 4)
        case "star":
            corners = zip(_regular(5, -math.pi / 2, 1.4), _regular(5, -math.pi * 0.3, 0.6), strict=True)
            return [point for pair in corners for point in pair]


def _regular(n: int, turn: float, radius: float) -> list[Point]:
    angles = [turn + 2 * math.pi * corner / n for corner in range(n)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _plus(turn: float) -> list[Point]:
    long, short = 1.22, 0.42
    arm = ((long, -short), (long, short), (short, short))
    turns = [turn + quarter * math.pi / 2 for quarter in range(4)]
    return [(x * math.cos(t) - y * math.sin(t), x * math.sin(t) + y * math.cos(t)) for t in turns for x, y in arm]


def looks(n: int) -> list[Look]:
    """Muted colours and shapes for `n` series, those before the same whatever `n` is."""
    angles = 0.9 + _GOLDEN_ANGLE * np.arange(n)
    lab = np.stack([np.full(n, 0.63), 0.088 * np.cos(angles), 0.088 * np.sin(angles)], axis=1)
    colours = [(int(red), int(green), int(blue)) for red, green, blue in oklab_to_rgb(lab)]
    return [Look(colour, _SHAPES[index % len(_SHAPES)]) for index, colour in enumerate(colours)]


def printable(text: str) -> str:
    """The text in letters that the font has, or that `Canvas.text` makes: accents go, dashes become hyphens."""
    return "".join(letter if letter in ("²", "…", MINUS) else _folded(letter) for letter in text)


def plain(text: str) -> str:
    """The text in letters that the font has, and so also `page.write`."""
    return "".join(map(_folded, text))


def _folded(letter: str) -> str:
    if letter == MINUS or unicodedata.category(letter) == "Pd":
        return "-"
    bases = [base for base in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(base)]
    return "".join(base if base in _PRINTABLE else "?" for base in bases)


def text_width(text: str, size_px: int) -> float:
    """Width in pixels of a line of text as `Canvas.text` sets it."""
    return sum(_piece_width(piece, size_px) for piece in _pieces(printable(text)))


def _pieces(text: str) -> list[str]:
    """The text cut before and after the letters that the font does not have."""
    return [piece for piece in re.split(f"([²{MINUS}])", text) if piece]


def _piece_width(piece: str, size_px: int) -> float:
    if piece == "²":
        return load_font(round(_SMALL_SHARE * size_px)).getlength("2")
    return load_font(size_px).getlength("+" if piece == MINUS else piece)


def _set_text(draw: ImageDraw.ImageDraw, at: Point, text: str, size_px: int, colour: Rgb) -> None:
    """Write text whose baseline starts at a point; a raised 2 and a minus as wide as a plus are made by hand."""
    x, y = at
    for piece in _pieces(text):
        width = _piece_width(piece, size_px)
        if piece == "²":
            small = round(_SMALL_SHARE * size_px)
            draw.text((x, y - _CAPITAL_SHARE * (size_px - 0.55 * small)), "2", colour, load_font(small), anchor="ls")
        elif piece == MINUS:
            middle = round(y - 0.34 * size_px)
            thick = max(round(0.08 * size_px), 1)
            draw.rectangle((round(x + 0.16 * width), middle, round(x + 0.8 * width), middle + thick - 1), fill=colour)
        else:
            draw.text((x, y), piece, colour, load_font(size_px), anchor="ls")
        x += width


def shortened(text: str, size_px: int, most_px: float) -> str:
    """The text, or its first and last letters around an ellipsis, so that it is at most that wide."""
    if text_width(text, size_px) <= most_px:
        return text
    for n_kept in range(len(text) - 1, 1, -1):
        first, last = text[: n_kept - n_kept // 2], text[len(text) - n_kept // 2 :]
        shorter = f"{first.rstrip()}…{last.lstrip()}"
        if text_width(shorter, size_px) <= most_px:
            return shorter
    return "…"


def number_text(value: float, decimals: int) -> str:
    """A number with a real minus, and without one before zero."""
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def difference_text(value: float, decimals: int) -> str:
    """A difference with its sign; none before zero."""
    text = number_text(value, decimals)
    return f"+{text}" if float(f"{value:.{decimals}f}") > 0 else text


def round_ends(low: float, high: float, most: int) -> tuple[float, float]:
    """The ends of a linear axis that holds `low` to `high` and both starts and ends at one of its ticks."""
    while True:
        step = tick_step(low, high, most)
        wider = math.floor(low / step + 1e-6) * step, math.ceil(high / step - 1e-6) * step
        if math.isclose(wider[1] - wider[0], high - low, rel_tol=1e-6):
            return wider
        low, high = wider


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of `tick_step` from `low` to `high`, both included."""
    step = tick_step(low, high, most)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [number * step for number in range(first, last + 1)]


def tick_step(low: float, high: float, most: int) -> float:
    """The least of 1, 2 or 5 times a power of ten that is at least a `most`-th of the way from `low` to `high`."""
    wanted = (high - low) / most
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * (1 - 1e-9))


def step_decimals(step: float) -> int:
    """Decimals that tell multiples of a step apart."""
    return max(-math.floor(math.log10(step) + 1e-9), 0)


def log_ticks(low: float, high: float) -> list[float]:
    """The powers of ten within a range; where fewer than two are, also twice and five times them."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        within = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(within) > 1:
            break
    return within


def clipped_line(points: Sequence[Point], box: tuple[float, float, float, float]) -> list[list[Point]]:
    """The parts of a line within a box of left, top, right, bottom."""
    if len(points) < 2:
        return []
    inside = shapely.clip_by_rect(shapely.LineString(points), *box)
    return [_corners(part) for part in _parts(inside) if isinstance(part, shapely.LineString)]


def clipped_area(points: Sequence[Point], box: tuple[float, float, float, float]) -> list[list[Point]]:
    """The parts of a polygon without holes within a box of left, top, right, bottom."""
    if len(points) < 3:
        return []
    # Where a polygon has no width, or crosses itself, only the parts with an area count.
    areas = shapely.make_valid(shapely.Polygon(points), method="structure", keep_collapsed=False)
    inside = shapely.intersection(areas, shapely.box(*box))
    return [_corners(part.exterior) for part in _parts(inside) if isinstance(part, shapely.Polygon)]


def _parts(shape: shapely.Geometry) -> list[shapely.Geometry]:
    return [part for part in shapely.get_parts(shape) if not part.is_empty]


def _corners(line: shapely.LineString) -> list[Point]:
    return [(float(x), float(y)) for x, y in shapely.get_coordinates(line)]


def spread_apart(wanted: Sequence[float], gap_px: float, low: float, high: float) -> list[float]:
    """Places for labels that are at least a gap apart and together as near as can be to where they would be best.

    With the gaps taken off, the best places in a given order are an isotonic regression.

    Args:
        wanted: The best place of each.
        gap_px: From one to the next.
        low: No place is less.
        high: No place is more, where there is room for all.
    """
    from scipy.optimize import isotonic_regression

    if not wanted:
        return []
    order = np.argsort(wanted, kind="stable")
    gaps = gap_px * np.arange(len(wanted))
    fitted = isotonic_regression(np.asarray(wanted, np.float64)[order] - gaps).x
    places = np.empty(len(wanted))
    places[order] = np.clip(fitted, low, max(high - gaps[-1], low)) + gaps
    return [float(place) for place in places]


def side_steps(places: Sequence[float], gap_px: float) -> list[int]:
    """For marks in a row, 0, or -1 or 1 for those that step aside to the one or other lane so as not to cover another.

    Args:
        places: Where each mark lies along the row; the first stays in the middle lane.
        gap_px: Marks of one lane that are nearer cover each other; where all lanes are taken, the least is covered.
    """
    lanes: dict[int, list[float]] = {0: [], -1: [], 1: []}
    steps = [0] * len(places)
    for index in sorted(range(len(places)), key=lambda number: (number > 0, places[number])):
        room = {
            lane: min((abs(places[index] - other) for other in taken), default=gap_px) for lane, taken in lanes.items()
        }
        steps[index] = max(room, key=lambda lane: min(room[lane], gap_px))
        lanes[steps[index]].append(places[index])
    return steps


def legend_lines(names: Sequence[str], size_px: int, width_px: float) -> list[list[tuple[float, int]]]:
    """Places for the entries of a legend: for each line, (x, index) of its entries, which fit into the width."""
    lines: list[list[tuple[float, int]]] = [[]]
    x = 0.0
    for index, name in enumerate(names):
        entry_px = _LEGEND_TEXT_PX + text_width(name, size_px)
        if lines[-1] and x + entry_px > width_px:
            lines.append([])
            x = 0.0
        lines[-1].append((x, index))
        x += entry_px + _LEGEND_GAP_PX
    return lines


def draw_legend(
    canvas: Canvas, at: Point, names: Sequence[str], shown: Sequence[Look], text_px: int, line_px: float
) -> None:
    """A mark and a name for each series, from the middle of a first line at (x, y), as far as the canvas is wide."""
    for number, line in enumerate(legend_lines(names, text_px, canvas.width_px - at[0])):
        for x, index in line:
            y = at[1] + number * line_px
            canvas.mark((at[0] + x + 10, y), shown[index], 17)
            canvas.text((at[0] + x + _LEGEND_TEXT_PX, y), names[index], text_px)
