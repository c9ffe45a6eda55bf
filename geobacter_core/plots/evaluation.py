"""What an evaluation found, as pictures: probes, the label curve, a sweep, and how far embeddings spread."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from geobacter_core.evaluation.results import Result
from geobacter_core.plots.charts import (
    BAND,
    GRID,
    HIGHLIGHT,
    MINUS,
    Align,
    Axis,
    Canvas,
    Look,
    Point,
    Shade,
    clipped_area,
    clipped_line,
    difference_text,
    draw_legend,
    legend_lines,
    linear_ticks,
    log_ticks,
    looks,
    number_text,
    plain,
    round_ends,
    shortened,
    side_steps,
    spread_apart,
    step_decimals,
    text_width,
    tick_step,
)
from geobacter_core.plots.page import (
    CAPTION_PX,
    DOT,
    FAINT,
    INK,
    MUTED,
    NOTE_PX,
    RIGHT,
    SUBTITLE_PX,
    TITLE_PX,
    WRONG,
    Rgb,
    compose_page,
)

if TYPE_CHECKING:
    from geobacter_core.evaluation.curve import CurvePoint

_TEXT_PX = 24
_ROW_PX = 46
_MARK_PX = 17
_HIGHLIGHT_PX = 23
_ASIDE_PX = 13
_LABEL_MOST_PX = 400
_CHANCE = {"AUC": 0.5, "R²": 0.0}
_LOWEST = {"AUC": 0.3, "R²": -0.4}
"""An axis goes no lower: one bad score must not press all others together."""


@dataclass(frozen=True, slots=True)
class SweepRow:
    """What a sweep found for one setting.

    Attributes:
        axis: What was varied: `loss`, `window size`.
        setting: Its value: `infonce`, `200 m`.
        mean: Mean score over the runs.
        std: Standard deviation of the score over seeds and regions.
        n: Runs.
    """

    axis: str
    setting: str
    mean: float
    std: float
    n: int


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the dot plot: the scores of one question, or their mean, by representation."""

    label: str
    scores: dict[str, float]
    spread: float

    def best_other(self, highlighted: str) -> str | None:
        others = [name for name in self.scores if name != highlighted]
        return max(others, key=lambda name: self.scores[name], default=None)


@dataclass(frozen=True, slots=True)
class _Group:
    """The questions of one source and metric; no mean where it would be the only row again."""

    source: str
    metric: str
    rows: tuple[_Row, ...]
    mean: _Row | None


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where the parts of a dot plot lie from left to right, in pixels."""

    label_end: float
    plot_start: float
    plot_end: float
    score_end: float
    difference_end: float
    width: int


def probe_chart(results: Sequence[Result], title: str, highlighted: str) -> Image.Image:
    """Every representation's score on every question, and how far the highlighted one is from the best other.

    Of ridge and forest the better counts. Questions are grouped by source and metric and sorted by the highlighted
    one's score. The last row of a group of several is the mean, for representations that answered all of it. Groups
    with the same metric have the same axis. It starts at chance or at the lowest score, but not below 0.3 (AUC) or -0.4
    (R²); a mark that belongs further left lies at the edge as a `<`.

    Args:
        results: Scores, each question, representation and model once.
        title: Of the page.
        highlighted: The representation that the picture is about.

    Raises:
        ValueError: There are no results, none of the highlighted representation, one is twice there, a metric is
            unknown, or a score or spread is not finite.
    """
    _check_results(results, highlighted)
    names = [
        highlighted,
        *dict.fromkeys(found.representation for found in results if found.representation != highlighted),
    ]
    shown = dict(zip(names, [Look(HIGHLIGHT, "circle"), *looks(len(names) - 1)], strict=True))
    groups = _groups(results, highlighted)
    columns = _probe_columns(groups)
    legend = [shortened(name, NOTE_PX, _LABEL_MOST_PX) for name in names]
    top = len(legend_lines(legend, NOTE_PX, columns.width)) * 36 + 20
    canvas = Canvas(columns.width, top + sum(_group_height(group) for group in groups) - _GROUP_GAP_PX)
    draw_legend(canvas, (0, 16), legend, list(shown.values()), NOTE_PX, 36)
    for group in groups:
        _draw_group(canvas, top, group, columns, _metric_axis(groups, group.metric, columns), shown)
        top += _group_height(group)
    return _page(canvas, title, _probe_subtitle(results), _probe_note(groups, highlighted))


def _page(canvas: Canvas, title: str, subtitle: str, note: str) -> Image.Image:
    """The page of a chart, its title on one line, all in letters that the font has."""
    title = shortened(title, TITLE_PX, max(canvas.width_px, 860))
    return compose_page(canvas.image(), plain(title), plain(subtitle), plain(note))


def _check_results(results: Sequence[Result], highlighted: str) -> None:
    if not results:
        raise ValueError("Chart of probes: there are no results. Give those of at least one question.")
    seen: set[tuple[str, str, str, str]] = set()
    for found in results:
        where = f"Chart of probes: {found.representation} on `{found.label}` ({found.source}, {found.model})"
        _check_finite((found.score, found.spread), where)
        _check_metric(found.metric, where)
        key = (found.source, found.label, found.representation, found.model)
        if key in seen:
            raise ValueError(f"{where} is there twice. Give the results of one evaluation of one region.")
        seen.add(key)
    if all(found.representation != highlighted for found in results):
        known = ", ".join(dict.fromkeys(found.representation for found in results))
        raise ValueError(f"Chart of probes: `{highlighted}` has no results. Highlight one of: {known}.")


def _check_finite(values: Iterable[float], where: str) -> None:
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} cannot be drawn. Leave out what could not be scored.")


def _check_metric(metric: str, where: str) -> None:
    if metric not in _CHANCE:
        raise ValueError(f"{where}: `{metric}` is not a metric with an axis. Give one of: {', '.join(_CHANCE)}.")


def _groups(results: Sequence[Result], highlighted: str) -> list[_Group]:
    """The questions by source and metric, in the order in which they first come."""
    best: dict[tuple[str, str], dict[str, dict[str, Result]]] = {}
    for found in results:
        by_name = best.setdefault((found.source, found.metric), {}).setdefault(found.label, {})
        before = by_name.get(found.representation)
        if before is None or found.score > before.score:
            by_name[found.representation] = found
    groups = []
    for (source, metric), labels in best.items():
        rows = [_row(label, by_name, highlighted) for label, by_name in labels.items()]
        rows.sort(key=lambda row: row.scores.get(highlighted, -math.inf), reverse=True)
        groups.append(_Group(source, metric, tuple(rows), _mean_row(rows) if len(rows) > 1 else None))
    return groups


def _row(label: str, by_name: dict[str, Result], highlighted: str) -> _Row:
    spread = by_name[highlighted].spread if highlighted in by_name else 0.0
    return _Row(label, {name: found.score for name, found in by_name.items()}, spread)


def _mean_row(rows: Sequence[_Row]) -> _Row:
    """The mean of every representation that has a score in all rows; others would be the mean of other questions."""
    names = dict.fromkeys(name for row in rows for name in row.scores)
    whole = [name for name in names if all(name in row.scores for row in rows)]
    return _Row(
        f"mean of {len(rows)}", {name: float(np.mean([row.scores[name] for row in rows])) for name in whole}, 0.0
    )


_GROUP_HEAD_PX = 46
_GROUP_GAP_PX = 34
_MEAN_PX = 56


def _group_height(group: _Group) -> int:
    return _GROUP_HEAD_PX + len(group.rows) * _ROW_PX + (_MEAN_PX if group.mean else 0) + _GROUP_GAP_PX


def _probe_columns(groups: Sequence[_Group]) -> _Columns:
    widest = max(
        *(text_width(row.label, _TEXT_PX) for group in groups for row in group.rows),
        *(text_width(group.source, SUBTITLE_PX) + 60 for group in groups),
        160.0,
    )
    label_end = min(widest, _LABEL_MOST_PX)
    start = round(label_end + 40)
    end = start + 800
    return _Columns(label_end, start, end, end + 100, end + 208, end + 244)


def _metric_axis(groups: Sequence[_Group], metric: str, columns: _Columns) -> Axis:
    """One axis for all groups of a metric: from chance, or from a round number below the lowest score, to 1."""
    rows = [row for group in groups if group.metric == metric for row in group.rows]
    lowest = min(score for row in rows for score in row.scores.values())
    low = min(_CHANCE[metric], math.floor(lowest * 10) / 10)
    return Axis(max(low, _LOWEST[metric]), 1.0, columns.plot_start, columns.plot_end)


def _draw_group(canvas: Canvas, top: int, group: _Group, columns: _Columns, axis: Axis, shown: dict[str, Look]) -> None:
    rows_top = top + _GROUP_HEAD_PX
    rows_end = rows_top + len(group.rows) * _ROW_PX
    bottom = rows_end + (_MEAN_PX if group.mean else 0)
    if group.mean:
        canvas.box(0, rows_end + 6, canvas.width_px, bottom, BAND)
    middles = [rows_top + (number + 0.5) * _ROW_PX for number in range(len(group.rows))]
    for y in middles:
        canvas.line([(columns.plot_start, y), (columns.plot_end, y)], GRID, 1.5)
    _draw_grid(canvas, axis, rows_top, bottom, _CHANCE[group.metric])
    head = rows_top - 26
    source = shortened(group.source, SUBTITLE_PX, columns.label_end - 50)
    canvas.text((0, head), source, SUBTITLE_PX)
    canvas.text((text_width(source, SUBTITLE_PX) + 14, head), group.metric, CAPTION_PX, MUTED)
    canvas.text((columns.score_end, head), "score", CAPTION_PX, MUTED, "right")
    canvas.text((columns.width, head), "to best other", CAPTION_PX, MUTED, "right")
    for y, row in zip(middles, group.rows, strict=True):
        _draw_row(canvas, y, row, columns, axis, shown)
    if group.mean:
        _draw_row(canvas, (rows_end + 6 + bottom) / 2, group.mean, columns, axis, shown)


def _draw_grid(canvas: Canvas, axis: Axis, top: float, bottom: float, chance: float) -> None:
    """Vertical lines at round values, their numbers above; the line of chance is darker."""
    ticks = linear_ticks(axis.low, axis.high, 8)
    decimals = step_decimals(tick_step(axis.low, axis.high, 8))
    for tick in ticks:
        x = axis.px(tick)
        is_chance = abs(tick - chance) < 1e-9
        canvas.line([(x, top - 8), (x, bottom)], MUTED if is_chance else GRID, 2 if is_chance else 1.5)
        canvas.text((x, top - 26), number_text(tick, decimals), CAPTION_PX, MUTED, "middle")


def _draw_row(canvas: Canvas, y: float, row: _Row, columns: _Columns, axis: Axis, shown: dict[str, Look]) -> None:
    highlighted = next(iter(shown))
    canvas.text((0, y), shortened(row.label, _TEXT_PX, columns.label_end), _TEXT_PX)
    score = row.scores.get(highlighted)
    if score is not None and row.spread > 0:
        ends = axis.px_within(score - row.spread), axis.px_within(score + row.spread)
        canvas.line([(ends[0], y), (ends[1], y)], (*HIGHLIGHT, 70), 6)
    names = [name for name in shown if name in row.scores]
    steps = side_steps([axis.px_within(row.scores[name]) for name in names], _MARK_PX - 1)
    for name, step in reversed(list(zip(names, steps, strict=True))):
        size_px = _HIGHLIGHT_PX if name == highlighted else _MARK_PX
        _draw_mark(canvas, y + step * _ASIDE_PX, row.scores[name], axis, shown[name], size_px)
    if score is None:
        canvas.text((columns.score_end, y), MINUS, _TEXT_PX, MUTED, "right")
        return
    canvas.text((columns.score_end, y), number_text(score, 2), _TEXT_PX, INK, "right")
    best = row.best_other(highlighted)
    if best is not None:
        difference = difference_text(score - row.scores[best], 2)
        canvas.text((columns.difference_end, y), difference, _TEXT_PX, _sign_colour(difference), "right")
        canvas.mark((columns.width - 12, y), shown[best], _MARK_PX)


def _sign_colour(difference: str) -> Rgb:
    return {"+": RIGHT, MINUS: WRONG}.get(difference[0], MUTED)


def _draw_mark(canvas: Canvas, y: float, value: float, axis: Axis, look: Look, size_px: float) -> None:
    """A mark where a value lies, or an arrow at the axis' end that it lies beyond."""
    x = axis.px_within(value)
    if value >= axis.low:
        canvas.mark((x, y), look, size_px)
        return
    canvas.line([(x + 2, y - 9), (x - 8, y), (x + 2, y + 9)], look.colour, 4)


def _probe_subtitle(results: Sequence[Result]) -> str:
    questions = {(found.source, found.label) for found in results}
    n_places = sorted({found.n for found in results})
    places = f"{n_places[0]:,}" if len(n_places) == 1 else f"{n_places[0]:,} to {n_places[-1]:,}"
    return DOT.join((f"{len(questions)} question" + "s" * (len(questions) > 1), f"{places} places each"))


def _probe_note(groups: Sequence[_Group], highlighted: str) -> str:
    metrics = {group.metric for group in groups}
    chance = " and ".join(
        text for metric, text in (("AUC", "0.5 in AUC"), ("R²", "0 in R squared")) if metric in metrics
    )
    beyond = any(
        score < _LOWEST[group.metric] for group in groups for row in group.rows for score in row.scores.values()
    )
    return (
        "How well a simple model answers each question from each representation, in blocks of ground where it has not "
        f"learnt: 1 is perfect, {chance} no better than guessing. Of a ridge regression and a random forest the better "
        f"counts. The bar behind {highlighted} is one standard deviation over the folds to either side; right are its "
        "score and its difference to the best other, whose mark follows."
        + (" An arrow points to scores left of the axis." if beyond else "")
    )


def label_curve_chart(points: "Sequence[CurvePoint]", label: str, metric: str, highlighted: str) -> Image.Image:
    """How a score grows with the number of training labels, a line for each representation.

    The band around a line is one standard deviation over the draws to either side. The axis starts below the lowest
    score, but not far below 0.3 (AUC) or -0.4 (R²): lines are cut there.

    Args:
        points: In any order, each representation and number of labels once.
        label: The question.
        metric: `R²` or `AUC`.
        highlighted: The representation whose line is on top.

    Raises:
        ValueError: There are no points, none of the highlighted representation, one is twice there, the metric is
            unknown, a mean or std is not finite, or a number of labels is not positive.
    """
    _check_metric(metric, f"Label curve of `{label}`")
    lines = _curves(points, label, highlighted)
    names = [highlighted, *(name for name in lines if name != highlighted)]
    shown = dict(zip(names, [Look(HIGHLIGHT, "circle"), *looks(len(names) - 1)], strict=True))
    name_px = min(max(text_width(name, _TEXT_PX) for name in names), _LABEL_MOST_PX)
    canvas = Canvas(round(_CURVE_NAME_PX + name_px), _CURVE_BOTTOM_PX + 70)
    across, up = _curve_axes(points, metric)
    _draw_curve_grid(canvas, across, up, metric)
    for name in reversed(names):
        _draw_curve_band(canvas, lines[name], across, up, (*shown[name].colour, 44 if name == highlighted else 20))
    for name in reversed(names):
        _draw_curve(canvas, lines[name], across, up, shown[name].colour, 5 if name == highlighted else 3)
    _draw_curve_ends(canvas, {name: lines[name][-1] for name in names}, across, up, shown)
    n_seeds = max(point.n_seeds for point in points)
    return _page(canvas, f"How many labels it takes: {label}", _curve_subtitle(n_seeds), _CURVE_NOTE)


_CURVE_START_PX, _CURVE_END_PX = 96, 980
_CURVE_TOP_PX, _CURVE_BOTTOM_PX = 50, 610
_CURVE_BOX = (_CURVE_START_PX, _CURVE_TOP_PX - 1, _CURVE_END_PX, _CURVE_BOTTOM_PX)
_CURVE_SCORE_PX, _CURVE_NAME_PX = 1024, 1088
_CURVE_TICKS = 8
_CURVE_NOTE = (
    "A ridge regression learns from so many labels and answers in blocks of ground where it has not learnt. All "
    "representations get the same labels. The band is one standard deviation over the draws to either side; the last "
    "point has every label there is, so nothing is drawn. Right: the scores at the last points."
)


def _curve_subtitle(n_seeds: int) -> str:
    return f"score by number of training labels{DOT}" + (f"mean of {n_seeds} draws" if n_seeds > 1 else "one draw")


def _curves(points: "Sequence[CurvePoint]", label: str, highlighted: str) -> "dict[str, list[CurvePoint]]":
    """The points of each representation by number of labels."""
    where = f"Label curve of `{label}`"
    if not points:
        raise ValueError(f"{where}: there are no points. Give at least one.")
    lines: dict[str, list[CurvePoint]] = {}
    for point in points:
        _check_finite((point.mean, point.std), f"{where}: {point.representation} with {point.n_labels} labels")
        if point.n_labels < 1:
            raise ValueError(
                f"{where}: {point.representation} has a point with {point.n_labels} labels. Give 1 or more."
            )
        lines.setdefault(point.representation, []).append(point)
    for name, line in lines.items():
        line.sort(key=lambda point: point.n_labels)
        if len({point.n_labels for point in line}) < len(line):
            raise ValueError(f"{where}: {name} has two points with as many labels. Give the curve of one question.")
    if highlighted not in lines:
        raise ValueError(f"{where}: `{highlighted}` has no points. Highlight one of: {', '.join(lines)}.")
    return lines


def _curve_axes(points: "Sequence[CurvePoint]", metric: str) -> tuple[Axis, Axis]:
    least, most = min(point.n_labels for point in points), max(point.n_labels for point in points)
    room = (most / least) ** 0.03 if most > least else 2.0
    across = Axis(least / room, most * room, _CURVE_START_PX, _CURVE_END_PX, "log")
    lowest = max(min(point.mean - point.std for point in points) - 0.02, _LOWEST[metric])
    highest = min(max(*(point.mean + point.std for point in points), lowest + 0.1), 1.0)
    low, high = round_ends(lowest, highest, _CURVE_TICKS)
    return across, Axis(low, high, _CURVE_BOTTOM_PX, _CURVE_TOP_PX)


def _draw_curve_grid(canvas: Canvas, across: Axis, up: Axis, metric: str) -> None:
    for tick in log_ticks(across.low, across.high):
        x = across.px(tick)
        canvas.line([(x, _CURVE_TOP_PX), (x, _CURVE_BOTTOM_PX + 8)], GRID, 1.5)
        canvas.text((x, _CURVE_BOTTOM_PX + 26), f"{tick:,.0f}", CAPTION_PX, MUTED, "middle")
    decimals = step_decimals(tick_step(up.low, up.high, _CURVE_TICKS))
    for tick in linear_ticks(up.low, up.high, _CURVE_TICKS):
        y = up.px(tick)
        is_chance = abs(tick - _CHANCE[metric]) < 1e-9
        canvas.line([(_CURVE_START_PX, y), (_CURVE_END_PX, y)], MUTED if is_chance else GRID, 2 if is_chance else 1.5)
        canvas.text((_CURVE_START_PX - 16, y), number_text(tick, decimals), CAPTION_PX, MUTED, "right")
    canvas.text((_CURVE_START_PX - 16, 14), metric, NOTE_PX, INK, "right")
    canvas.text((_CURVE_END_PX, _CURVE_BOTTOM_PX + 56), "training labels", NOTE_PX, INK, "right")


def _draw_curve_band(canvas: Canvas, line: "Sequence[CurvePoint]", across: Axis, up: Axis, shade: Shade) -> None:
    """One standard deviation above and below a line; what lies outside the axes is cut off."""
    above = [(across.px(point.n_labels), up.px(point.mean + point.std)) for point in line]
    below = [(across.px(point.n_labels), up.px(point.mean - point.std)) for point in line]
    for part in clipped_area([*above, *reversed(below)], _CURVE_BOX):
        canvas.area(part, shade)


def _draw_curve(
    canvas: Canvas, line: "Sequence[CurvePoint]", across: Axis, up: Axis, colour: Rgb, width_px: int
) -> None:
    """A line with a dot at each point; what lies below the axis is cut off."""
    means: list[Point] = [(across.px(point.n_labels), up.px(point.mean)) for point in line]
    for part in clipped_line(means, _CURVE_BOX):
        canvas.line(part, colour, width_px)
    for x, y in means:
        if y <= _CURVE_BOTTOM_PX:
            canvas.mark((x, y), Look(colour, "circle"), 3 * width_px)


def _draw_curve_ends(
    canvas: Canvas, ends: "Mapping[str, CurvePoint]", across: Axis, up: Axis, shown: Mapping[str, Look]
) -> None:
    """The score and name of each line beside its end, moved apart where they would cover each other."""
    heights = [up.px_within(point.mean) for point in ends.values()]
    places = spread_apart(heights, 32, _CURVE_TOP_PX, _CURVE_BOTTOM_PX)
    for (name, point), height, y in zip(ends.items(), heights, places, strict=True):
        colour = shown[name].colour
        start = across.px(point.n_labels) + 12
        canvas.line([(start, height), (_CURVE_END_PX + 14, y), (_CURVE_SCORE_PX - 10, y)], (*colour, 120), 1.5)
        canvas.text((_CURVE_SCORE_PX, y), number_text(point.mean, 2), _TEXT_PX, colour)
        canvas.text((_CURVE_NAME_PX, y), shortened(name, _TEXT_PX, _LABEL_MOST_PX), _TEXT_PX, colour)


def sweep_chart(rows: Sequence[SweepRow], title: str, baseline: float) -> Image.Image:
    """What each setting scored: a panel for each axis of a sweep, the winner of each in the strong colour.

    Args:
        rows: In the order shown; rows with the same axis make a panel.
        title: Of the page.
        baseline: Mean score of the default settings, a vertical line.

    Raises:
        ValueError: There are no rows, a setting is twice there, or a number is not finite.
    """
    panels = _panels(rows, baseline)
    columns = _sweep_columns(rows)
    axis = _sweep_axis(rows, baseline, columns)
    height = sum(_PANEL_HEAD_PX + len(panel) * _ROW_PX + _PANEL_GAP_PX for panel in panels.values())
    canvas = Canvas(columns.width, _SWEEP_TOP_PX + height + 12)
    _draw_sweep_head(canvas, axis, columns, baseline)
    top = _SWEEP_TOP_PX
    for name, panel in panels.items():
        _draw_panel(canvas, top, name, panel, columns, axis, baseline)
        top += _PANEL_HEAD_PX + len(panel) * _ROW_PX + _PANEL_GAP_PX
    subtitle = DOT.join((f"{len(rows)} settings", ", ".join(panels)))
    return _page(canvas, title, subtitle, _SWEEP_NOTE)


_SWEEP_TOP_PX = 54
_PANEL_HEAD_PX = 44
_PANEL_GAP_PX = 26
_SWEEP_NOTE = (
    "Mean score, and a bar of one standard deviation over seeds and regions to either side. Blue: the best of its "
    "kind. The vertical line is the score of the default settings, to which the differences are; n counts runs."
)


def _panels(rows: Sequence[SweepRow], baseline: float) -> dict[str, list[SweepRow]]:
    if not rows:
        raise ValueError("Chart of a sweep: there are no rows. Give at least one setting.")
    _check_finite((baseline,), "Chart of a sweep: the baseline")
    panels: dict[str, list[SweepRow]] = {}
    for row in rows:
        _check_finite((row.mean, row.std), f"Chart of a sweep: {row.axis} {row.setting}")
        panel = panels.setdefault(row.axis, [])
        if any(row.setting == other.setting for other in panel):
            raise ValueError(f"Chart of a sweep: {row.axis} {row.setting} is there twice. Give each setting once.")
        panel.append(row)
    return panels


def _sweep_columns(rows: Sequence[SweepRow]) -> _Columns:
    widest = max(*(text_width(text, _TEXT_PX) for row in rows for text in (row.setting, row.axis)), 160.0)
    label_end = min(widest, _LABEL_MOST_PX)
    start = round(label_end + 40)
    end = start + 700
    return _Columns(label_end, start, end, end + 118, end + 250, end + 310)


def _sweep_axis(rows: Sequence[SweepRow], baseline: float, columns: _Columns) -> Axis:
    lowest = min(baseline, *(row.mean - row.std for row in rows))
    highest = max(baseline, *(row.mean + row.std for row in rows), lowest + 0.01)
    low, high = round_ends(lowest, highest, 6)
    return Axis(low, high, columns.plot_start, columns.plot_end)


def _draw_sweep_head(canvas: Canvas, axis: Axis, columns: _Columns, baseline: float) -> None:
    bottom = canvas.height_px - 12 - _PANEL_GAP_PX
    decimals = step_decimals(tick_step(axis.low, axis.high, 6))
    for tick in linear_ticks(axis.low, axis.high, 6):
        x = axis.px(tick)
        canvas.line([(x, _SWEEP_TOP_PX - 10), (x, bottom)], GRID, 1.5)
        canvas.text((x, _SWEEP_TOP_PX - 28), number_text(tick, decimals), CAPTION_PX, MUTED, "middle")
    x = axis.px(baseline)
    canvas.line([(x, _SWEEP_TOP_PX - 10), (x, bottom + 8)], MUTED, 2)
    canvas.text((x, bottom + 24), "default", CAPTION_PX, MUTED, "middle")
    head = _SWEEP_TOP_PX - 28
    for end, text in ((columns.score_end, "score"), (columns.difference_end, "to default"), (columns.width, "n")):
        canvas.text((end, head), text, CAPTION_PX, MUTED, "right")


def _draw_panel(
    canvas: Canvas, top: int, name: str, panel: Sequence[SweepRow], columns: _Columns, axis: Axis, baseline: float
) -> None:
    winner = max(panel, key=lambda row: row.mean)
    canvas.text((0, top + 20), shortened(name, SUBTITLE_PX, columns.label_end), SUBTITLE_PX)
    canvas.line([(0, top + _PANEL_HEAD_PX), (columns.width, top + _PANEL_HEAD_PX)], FAINT, 1.5)
    for number, row in enumerate(panel):
        y = top + _PANEL_HEAD_PX + (number + 0.5) * _ROW_PX
        colour = HIGHLIGHT if row is winner else MUTED
        text = INK if row is winner else MUTED
        canvas.text((0, y), shortened(row.setting, _TEXT_PX, columns.label_end), _TEXT_PX, text)
        canvas.line([(axis.px(row.mean - row.std), y), (axis.px(row.mean + row.std), y)], (*colour, 90), 6)
        canvas.mark((axis.px(row.mean), y), Look(colour, "circle"), _HIGHLIGHT_PX if row is winner else _MARK_PX)
        canvas.text((columns.score_end, y), number_text(row.mean, 3), _TEXT_PX, text, "right")
        difference = difference_text(row.mean - baseline, 3)
        canvas.text((columns.difference_end, y), difference, _TEXT_PX, _sign_colour(difference), "right")
        canvas.text((columns.width, y), f"{row.n:,}", _TEXT_PX, MUTED, "right")


def spread_chart(spread: NDArray[np.float64], rank: float) -> Image.Image:
    """How far embeddings spread along each dimension, on a log axis: a collapse is a cliff.

    Args:
        spread: Standard deviation over the places of each dimension, `[D]`, or singular values; in any order.
        rank: Effective rank, 1 to D: RankMe, Garrido et al. (ICML 2023).

    Raises:
        ValueError: There is no dimension, or a number is not finite or negative.
    """
    _check_spread(spread, rank)
    values = np.sort(spread)[::-1]
    canvas = Canvas(960, 420)
    up, across = _spread_axis(values), Axis(0, len(values), 110, 956)
    for tick in log_ticks(up.low, up.high):
        canvas.line([(across.start_px, up.px(tick)), (across.end_px, up.px(tick))], GRID, 1.5)
        canvas.text((across.start_px - 16, up.px(tick)), f"{tick:g}", CAPTION_PX, MUTED, "right")
    for number, value in enumerate(values):
        if value > up.low:
            canvas.box(across.px(number + 0.12), up.px(value), across.px(number + 0.88), up.start_px, (*HIGHLIGHT, 150))
    x = across.px_within(rank)
    canvas.line([(x, up.end_px - 8), (x, up.start_px + 8)], INK, 2.5)
    side: Align = "left" if x < (across.start_px + across.end_px) / 2 else "right"
    canvas.text((x + (12 if side == "left" else -12), 20), f"RankMe {rank:.1f}", NOTE_PX, INK, side)
    canvas.text((across.start_px, 402), "1", CAPTION_PX, MUTED)
    canvas.text((across.end_px, 402), f"dimension {len(values):,}", CAPTION_PX, MUTED, "right")
    return _page(canvas, "Spread of the embeddings", _spread_subtitle(len(values), rank), _SPREAD_NOTE)


_LEAST_SPREAD = 1e-4
_SPREAD_NOTE = (
    "A bar for each dimension, the widest spread first, on a log scale. The line is the effective rank: how many "
    "dimensions there would be if all were used alike. Embeddings that collapse leave the right side empty."
)


def _spread_axis(values: NDArray[np.float64]) -> Axis:
    """From the power of ten above the largest value down to the least, at most 1 to 10,000 apart."""
    top = math.ceil(math.log10(max(float(values[0]), _LEAST_SPREAD)) - 1e-9)
    bottom = math.floor(math.log10(max(float(values[-1]), 10.0**top * _LEAST_SPREAD)) + 1e-9)
    return Axis(10.0 ** min(bottom, top - 2), 10.0**top, 370, 40, "log")


def _spread_subtitle(dim: int, rank: float) -> str:
    return DOT.join((f"{dim:,} dimensions", f"effective rank (RankMe) {rank:.1f}"))


def _check_spread(values: NDArray[np.float64], rank: float) -> None:
    if values.ndim != 1 or not len(values):
        raise ValueError(f"Chart of spread: an array of shape {values.shape}. Give one number for each dimension.")
    for value in (*values.tolist(), rank):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"Chart of spread: {value} is not a spread or rank. Give finite numbers of at least 0.")
