"""Pictures of an evaluation: marks lie where their scores belong, and what cannot be drawn is refused."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from geobacter_core.evaluation.curve import CurvePoint
from geobacter_core.evaluation.results import Result
from geobacter_core.plots import SweepRow, label_curve_chart, probe_chart, spread_chart, sweep_chart
from geobacter_core.plots.charts import (
    HIGHLIGHT,
    MINUS,
    Axis,
    Canvas,
    Look,
    clipped_area,
    clipped_line,
    difference_text,
    linear_ticks,
    log_ticks,
    looks,
    number_text,
    plain,
    printable,
    round_ends,
    shortened,
    side_steps,
    spread_apart,
    text_width,
)
from geobacter_core.plots.page import INK, MUTED, PAPER, RIGHT, WRONG, load_font, png_bytes

OURS = "geobacter/7"
FORMER = ["random weights", "pixel shares", "tag counts", "coordinates", "CountEmbedder", "Hex2VecEmbedder"]


def result(score, representation=OURS, label="school", metric="AUC", spread=0.0, source="amenities", model="ridge"):
    return Result(source, label, metric, representation, model, score, spread, 1000)


def point(n_labels, mean, std=0.0, representation=OURS):
    return CurvePoint(representation, n_labels, mean, std, 5)


def pixels_of(image, colour):
    """Rows and columns of the pixels of exactly that colour."""
    return np.nonzero((np.asarray(image) == np.array(colour, np.uint8)).all(axis=-1))


def mark_x(image, colour=HIGHLIGHT, below=0):
    """The middle of what has a colour, below a row of pixels: below the legend for a mark of a probe chart."""
    rows, columns = pixels_of(image, colour)
    columns = columns[rows > below]
    return (columns.min() + columns.max() + 1) / 2


def line_x(image, colour):
    """The middle of a vertical line."""
    heights = (np.asarray(image) == np.array(colour, np.uint8)).all(axis=-1).sum(axis=0)
    columns = np.flatnonzero(heights > 0.8 * heights.max())
    return (columns.min() + columns.max() + 1) / 2


LEGEND_END, ROWS_TOP = 210, 267
"""Of a legend of one line, and of the first group, in rows of pixels of the page."""


def chart_x(score, metric="AUC", others=()):
    image = probe_chart([result(score, metric=metric), *others], "A title", OURS)
    return mark_x(image, below=LEGEND_END)


# Parts.


def test_an_axis_puts_a_value_where_it_belongs():
    axis = Axis(0.5, 1.0, 100, 600)
    assert [axis.px(value) for value in (0.5, 0.75, 1.0)] == [100, 350, 600]
    assert axis.px_within(0.2) == 100
    assert Axis(10, 1000, 0, 200, "log").px(100) == pytest.approx(100)
    assert Axis(0, 1, 500, 100).px(0.25) == 400


@pytest.mark.parametrize(
    "shape", ["circle", "square", "diamond", "up", "down", "plus", "cross", "pentagon", "star", "bar"]
)
def test_every_mark_has_its_middle_at_its_point_and_its_size(shape):
    canvas = Canvas(60, 60)
    canvas.mark((30, 30), Look(INK, shape), 20)
    rows, columns = np.nonzero((np.asarray(canvas.image()) != np.array(PAPER)).any(axis=-1))
    assert columns.min() + columns.max() + 1 == pytest.approx(60, abs=1)
    assert rows.min() + rows.max() + 1 == pytest.approx(60, abs=9)
    assert 16 <= rows.max() + 1 - rows.min() <= 28


def test_a_mark_has_a_rim_of_paper_and_smooth_edges():
    canvas = Canvas(60, 60)
    canvas.box(0, 0, 60, 60, INK)
    canvas.mark((30, 30), Look(HIGHLIGHT, "circle"), 20)
    image = np.asarray(canvas.image())
    assert tuple(image[30, 30]) == HIGHLIGHT
    assert tuple(image[30, 41]) != INK
    assert tuple(image[30, 43]) == INK
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 3


def test_text_is_as_wide_as_measured_and_its_capitals_are_centred():
    canvas = Canvas(300, 60)
    canvas.text((290, 30), "HEX 0.87", 24, align="right")
    rows, columns = np.nonzero((np.asarray(canvas.image()) != np.array(PAPER)).any(axis=-1))
    assert columns.max() + 1 - columns.min() == pytest.approx(text_width("HEX 0.87", 24), abs=5)
    assert columns.max() == pytest.approx(290, abs=3)
    assert (rows.min() + rows.max() + 1) / 2 == pytest.approx(30, abs=1)


def test_no_text_shows_the_box_of_a_missing_letter():
    font = load_font(40)
    box = bytes(font.getmask("\uffff"))
    text = printable("População até 5 – 10 km² ≥ Łódź 1½ µg “x” Привет") + plain("R² 3 … ß")
    drawn = set(text) - set(" ²")
    assert [letter for letter in drawn if bytes(font.getmask(letter)) == box] == []
    assert printable(f"População 2 – 3 km² {MINUS}1") == f"Populacao 2 - 3 km² {MINUS}1"
    assert plain(f"R² {MINUS}1 …") == "R2 -1 ..."


def test_a_minus_and_a_raised_two_are_drawn():
    def ink(text):
        canvas = Canvas(80, 40)
        canvas.text((10, 20), text, 24)
        return pixels_of(canvas.image(), INK)

    rows, columns = ink(MINUS)
    assert np.ptp(columns) > 3 * np.ptp(rows)
    assert ink("R²")[1].max() > ink("R")[1].max() + 4
    assert text_width(f"{MINUS}0.05", 24) == text_width("+0.05", 24)


def test_a_long_label_keeps_both_ends():
    long = "share_of_households_with_a_car_2010"
    short = shortened(long, 24, 200)
    assert text_width(short, 24) <= 200
    assert short.startswith("share_")
    assert short.endswith("2010")
    assert "…" in short
    assert shortened("school", 24, 200) == "school"
    assert shortened("school", 24, 0) == "…"


def test_numbers_have_a_real_minus_and_zero_has_no_sign():
    assert [number_text(value, 2) for value in (0.871, -0.2, -0.001)] == ["0.87", f"{MINUS}0.20", "0.00"]
    differences = [difference_text(value, 2) for value in (0.034, -0.05, 0.004, -0.004)]
    assert differences == ["+0.03", f"{MINUS}0.05", "0.00", "0.00"]


def test_ticks_are_round():
    assert linear_ticks(0.5, 1.0, 8) == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert linear_ticks(-0.4, 1.0, 8) == pytest.approx([-0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert log_ticks(9, 2000) == pytest.approx([10, 100, 1000])
    assert log_ticks(60, 240) == pytest.approx([100, 200])


@pytest.mark.parametrize(("low", "high"), [(0.713, 0.742), (-0.52, 0.66), (-3.0, 0.2), (0.1, 0.9)])
def test_a_round_axis_holds_its_values_and_ends_at_ticks(low, high):
    ends = round_ends(low, high, 6)
    ticks = linear_ticks(*ends, 6)
    assert (ticks[0], ticks[-1]) == pytest.approx(ends)
    assert ends[0] <= low + 1e-9
    assert ends[1] >= high - 1e-9
    assert 3 <= len(ticks) <= 8


def test_labels_are_moved_apart_and_no_more_than_needed():
    assert spread_apart([10, 200, 100], 30, 0, 300) == [10, 200, 100]
    assert spread_apart([100, 100], 30, 0, 300) == [85, 115]
    assert spread_apart([0, 0, 290], 30, 0, 300) == [0, 30, 290]
    assert spread_apart([300, 300], 30, 0, 300) == [270, 300]
    assert spread_apart([], 30, 0, 300) == []


def test_marks_that_would_cover_each_other_step_aside_and_the_first_does_not():
    assert side_steps([50, 0, 100], 16) == [0, 0, 0]
    assert side_steps([50, 45, 55], 16) == [0, -1, 1]
    assert side_steps([50, 50, 50, 90], 16) == [0, -1, 1, 0]
    assert side_steps([], 16) == []


def test_series_differ_in_colour_or_shape_and_stay_the_same_when_others_come():
    assert len(set(looks(20))) == 20
    assert len({look.shape for look in looks(10)}) == 10
    assert looks(3) == looks(9)[:3]
    assert looks(0) == []


def test_lines_and_bands_end_at_the_box():
    box = (0, 0, 100, 100)
    assert clipped_line([(0, 50), (100, 150)], box) == [[(0, 50), (50, 100)]]
    assert clipped_line([(5, 5)], box) == []
    (band,) = clipped_area([(0, 50), (100, 50), (100, 150), (0, 150)], box)
    assert max(y for _, y in band) == 100
    # A band that has no width in its middle has two parts, one without any has none.
    assert len(clipped_area([(0, 0), (30, 9), (60, 9), (90, 0), (90, 20), (60, 9), (30, 9), (0, 20)], box)) == 2
    assert clipped_area([(0, 5), (90, 5), (90, 5), (0, 5)], box) == []


# Probes.


def test_a_mark_lies_at_the_pixel_where_its_score_belongs():
    low, middle, high = (chart_x(score) for score in (0.6, 0.7, 0.9))
    # The axis goes from 0.5 to 1 on 800 px, and at 0.5 is the line of chance.
    assert chart_x(0.5) == pytest.approx(line_x(probe_chart([result(0.6)], "t", OURS), MUTED), abs=1)
    assert middle - low == pytest.approx(0.1 / 0.5 * 800, abs=1)
    assert high - low == pytest.approx(0.3 / 0.5 * 800, abs=1)
    assert chart_x(0.9, metric="R²") - chart_x(0.4, metric="R²") == pytest.approx(0.5 * 800, abs=1)


def test_an_axis_begins_at_chance_below_it_where_needed_and_never_far_below():
    at = {score: chart_x(0.8, others=[result(score, "tag counts")]) for score in (0.7, 0.47, 0.1, 0.0)}
    begin = at[0.7] - 0.3 / 0.5 * 800
    assert at[0.47] - begin == pytest.approx(0.4 / 0.6 * 800, abs=1)
    assert at[0.1] - begin == pytest.approx(0.5 / 0.7 * 800, abs=1)
    assert at[0.0] == at[0.1]
    far = chart_x(0.4, "R²", [result(-30.0, "tag counts", metric="R²")])
    near = chart_x(0.4, "R²", [result(0.1, "tag counts", metric="R²")])
    assert far - near == pytest.approx((0.8 / 1.4 - 0.4) * 800, abs=1)


def test_the_better_of_the_two_models_is_shown_with_its_own_spread():
    both = [result(0.6, spread=0.1), result(0.8, spread=0.02, model="forest")]
    only = [result(0.8, spread=0.02, model="forest")]
    assert png_bytes(probe_chart(both, "t", OURS)) == png_bytes(probe_chart(only, "t", OURS))


def test_the_whisker_of_the_highlighted_one_is_as_long_as_its_spread():
    def tinted(spread):
        image = np.asarray(probe_chart([result(0.7, spread=spread)], "t", OURS)).astype(int)[LEGEND_END:]
        is_bluish = image[..., 2] - image[..., 0] > 30
        return np.ptp(np.nonzero(is_bluish)[1]) + 1

    assert tinted(0.1) == pytest.approx(2 * 0.1 / 0.5 * 800, abs=2)
    assert tinted(0.0) < 30


def test_a_gain_is_written_in_the_right_colour_a_loss_in_the_wrong_one():
    def colours(ours, theirs):
        image = probe_chart([result(ours), result(theirs, "tag counts"), result(0.5, "coordinates")], "t", OURS)
        return [len(pixels_of(image, colour)[0]) > 0 for colour in (RIGHT, WRONG)]

    assert colours(0.8, 0.7) == [True, False]
    assert colours(0.7, 0.8) == [False, True]
    assert colours(0.701, 0.7) == [False, False]


def test_the_mean_is_a_row_of_its_own_where_there_are_several_questions():
    one = probe_chart([result(0.8)], "t", OURS)
    two = probe_chart([result(0.8), result(0.6, label="shop")], "t", OURS)
    other_source = probe_chart([result(0.8), result(0.6, source="land use")], "t", OURS)
    assert two.height - one.height == 46 + 56
    assert other_source.height - one.height == 46 + 46 + 34
    rows, columns = pixels_of(two, HIGHLIGHT)
    below = rows > LEGEND_END
    bands = np.split(np.unique(rows[below]), np.flatnonzero(np.diff(np.unique(rows[below])) > 5) + 1)
    middles = [columns[np.isin(rows, band)].mean() for band in bands]
    assert len(middles) == 3
    assert middles[0] > middles[2] > middles[1]
    assert middles[2] == pytest.approx((middles[0] + middles[1]) / 2, abs=1)


def test_a_mean_is_only_of_representations_that_answered_everything():
    whole = [result(0.8), result(0.6, label="shop"), result(0.5, "tag counts"), result(0.5, "tag counts", "shop")]
    partly = [*whole, result(0.95, "pixel shares")]
    (look,) = looks(2)[1:]
    image = probe_chart(partly, "t", OURS)
    rows = pixels_of(image, look.colour)[0]
    found = [len(rows[(rows > top) & (rows <= end)]) > 0 for top, end in pairwise((ROWS_TOP, ROWS_TOP + 46, 999))]
    assert found == [True, False]
    everywhere = probe_chart([*partly, result(0.95, "pixel shares", "shop")], "t", OURS)
    rows = pixels_of(everywhere, look.colour)[0]
    assert rows.max() > ROWS_TOP + 2 * 46 + 6


def test_groups_of_different_metrics_have_axes_of_their_own():
    mixed = [result(0.75), result(0.75, label="population", metric="R²", source="labels")]
    image = probe_chart(mixed, "t", OURS)
    rows, columns = pixels_of(image, HIGHLIGHT)
    first = columns[(rows > LEGEND_END) & (rows < LEGEND_END + 100)].mean()
    second = columns[rows > LEGEND_END + 130].mean()
    assert second - first == pytest.approx((0.75 - 0.5) * 800, abs=1)


def test_twenty_five_questions_and_ten_representations_fit_a_page():
    rng = np.random.default_rng(4)
    names = [OURS, *FORMER, "ContextualCountEmbedder", "geobacter/6", "ResNet-50"]
    results = [
        result(float(rng.uniform(0.5, 1)), name, f"question {number} with quite a long name", spread=0.02)
        for number in range(25)
        for name in names
    ]
    image = probe_chart(results, "Many", OURS)
    assert 1200 < image.width < 1700
    assert 25 * 46 < image.height < 1900
    assert png_bytes(image) == png_bytes(probe_chart(list(results), "Many", OURS))


def test_edge_cases_of_probes_are_drawn():
    image = probe_chart([result(0.8)], "t", OURS)
    assert image.width >= 860
    # Neither the one that is highlighted nor another answered every question.
    missing = [result(0.8), result(0.7, "tag counts", "shop"), result(-5.0, "coordinates", "jobs", "R²")]
    assert probe_chart(missing, "t" * 200, OURS).width < 1700
    long = [replace(made, label="ä" * 90, source="s" * 90) for made in [result(1.0, spread=0.3), result(0.0, "x" * 90)]]
    assert probe_chart(long, "São Paulo", OURS).width < 1700


@pytest.mark.parametrize(
    ("results", "match"),
    [
        ([], "no results"),
        ([result(float("nan"))], r"geobacter/7 on `school`.*nan cannot be drawn"),
        ([result(0.8, spread=float("nan"))], "nan cannot be drawn"),
        ([result(float("-inf"), "tag counts"), result(0.8)], "-inf cannot be drawn"),
        ([result(0.8), result(0.7)], "is there twice"),
        ([result(0.8, metric="F1")], "`F1` is not a metric"),
        ([result(0.8, "tag counts")], r"`geobacter/7` has no results\. Highlight one of: tag counts"),
    ],
)
def test_results_that_cannot_be_drawn_are_refused(results, match):
    with pytest.raises(ValueError, match=match):
        probe_chart(results, "t", OURS)


# The label curve.


def test_the_points_of_a_curve_lie_at_their_numbers_on_a_log_axis():
    image = label_curve_chart([point(10, 0.2), point(100, 0.4), point(1000, 0.5)], "jobs", "R²", OURS)
    rows, columns = pixels_of(image, HIGHLIGHT)
    is_plot = columns < 1010
    tallest = np.bincount(columns[is_plot])
    wide = np.flatnonzero(tallest >= 13)
    middles = [group.mean() for group in np.split(wide, np.flatnonzero(np.diff(wide) > 5) + 1)]
    assert len(middles) == 3
    assert middles[1] - middles[0] == pytest.approx(middles[2] - middles[1], abs=1)
    heights = [rows[is_plot & (columns == round(middle))].mean() for middle in middles]
    # 0.2 up and 0.1 up.
    assert (heights[0] - heights[1]) / (heights[1] - heights[2]) == pytest.approx(2, abs=0.1)


def test_names_at_the_ends_of_lines_do_not_cover_each_other():
    points = [
        point(n, 0.5 + 0.001 * number, 0.02, name) for number, name in enumerate([OURS, *FORMER]) for n in (10, 1000)
    ]
    image = label_curve_chart(points, "jobs", "R²", OURS)
    colours = [HIGHLIGHT, *(look.colour for look in looks(len(FORMER)))]
    names = []
    for colour in colours:
        rows, columns = pixels_of(image, colour)
        names.append(rows[columns > 1140])
    assert all(len(rows) for rows in names)
    spans = sorted((rows.min(), rows.max()) for rows in names)
    assert all(above[1] < below[0] for above, below in pairwise(spans))


def test_the_same_curve_is_the_same_picture_in_any_order():
    points = [point(10, 0.2, 0.1), point(100, 0.4), point(10, 0.1, 0.1, "tag counts"), point(100, 0.3, 0, "tag counts")]
    first = label_curve_chart(points, "jobs", "R²", OURS)
    assert png_bytes(first) == png_bytes(label_curve_chart(points[::-1], "jobs", "R²", OURS))


@pytest.mark.parametrize("metric", ["R²", "AUC"])
def test_edge_cases_of_a_curve_are_drawn(metric):
    assert label_curve_chart([point(100, 0.7)], "school", metric, OURS).width >= 860
    terrible = [point(10, -30.0, 40.0), point(100, -0.2, 0.0), point(500, 0.1, 0.1), point(900, 1.0, 0.2)]
    assert label_curve_chart(terrible, "x" * 200, metric, OURS).width < 1700
    assert label_curve_chart([point(10, -30.0), point(100, -20.0)], "school", metric, OURS).width >= 860


@pytest.mark.parametrize(
    ("points", "metric", "match"),
    [
        ([], "R²", "no points"),
        ([point(10, float("nan"))], "R²", r"geobacter/7 with 10 labels: nan cannot be drawn"),
        ([point(10, 0.3, float("inf"))], "R²", "inf cannot be drawn"),
        ([point(0, 0.3)], "R²", "with 0 labels"),
        ([point(10, 0.3), point(10, 0.4)], "R²", "two points"),
        ([point(10, 0.3, 0.0, "tag counts")], "R²", "Highlight one of: tag counts"),
        ([point(10, 0.3)], "R2", "`R2` is not a metric"),
    ],
)
def test_points_that_cannot_be_drawn_are_refused(points, metric, match):
    with pytest.raises(ValueError, match=match):
        label_curve_chart(points, "jobs", metric, OURS)


# The sweep.


SWEEP = [
    SweepRow("loss", "infonce", 0.74, 0.01, 9),
    SweepRow("loss", "softpn", 0.72, 0.01, 9),
    SweepRow("network", "resnet18", 0.73, 0.0, 3),
]


def test_the_winner_of_each_axis_is_marked():
    image = sweep_chart(SWEEP, "What was tried", 0.72)
    rows, columns = pixels_of(image, HIGHLIGHT)
    groups = np.split(np.unique(rows), np.flatnonzero(np.diff(np.unique(rows)) > 5) + 1)
    assert len(groups) == 2
    middles = [columns[np.isin(rows, group)].mean() for group in groups]
    # The whiskers go from 0.71 to 0.75, and so does the axis, over 700 px.
    assert middles[0] - middles[1] == pytest.approx(0.01 / 0.04 * 700, abs=1)


def test_the_default_is_a_vertical_line_at_its_score():
    at = {baseline: line_x(sweep_chart(SWEEP, "t", baseline), MUTED) for baseline in (0.72, 0.73, 0.74)}
    assert at[0.73] - at[0.72] == pytest.approx(0.01 / 0.04 * 700, abs=1)
    # Only the first winner, at 0.74, is that far right.
    rows, columns = pixels_of(sweep_chart(SWEEP, "t", 0.72), HIGHLIGHT)
    first = columns[rows < rows.min() + 40]
    assert at[0.74] == pytest.approx((first.min() + first.max() + 1) / 2, abs=1)


def test_edge_cases_of_a_sweep_are_drawn_and_the_same_rows_are_the_same_picture():
    assert sweep_chart([SweepRow("loss", "infonce", 0.0, 0.0, 1)], "t", 0.0).width >= 860
    assert sweep_chart([SweepRow("l" * 99, "s" * 99, -2.0, 1.0, 10_000)], "t", 0.7).width < 1700
    assert png_bytes(sweep_chart(SWEEP, "t", 0.72)) == png_bytes(sweep_chart(SWEEP, "t", 0.72))


@pytest.mark.parametrize(
    ("rows", "baseline", "match"),
    [
        ([], 0.5, "no rows"),
        (SWEEP, float("nan"), "the baseline: nan cannot be drawn"),
        ([replace(SWEEP[0], mean=float("nan"))], 0.5, "loss infonce: nan cannot be drawn"),
        ([SWEEP[0], SWEEP[0]], 0.5, "loss infonce is there twice"),
    ],
)
def test_a_sweep_that_cannot_be_drawn_is_refused(rows, baseline, match):
    with pytest.raises(ValueError, match=match):
        sweep_chart(rows, "t", baseline)


# The spread.


def bar_tops(image):
    """The first row with a bar, for each column with one."""
    pixels = np.asarray(image).astype(int)
    is_bar = pixels[..., 2] - pixels[..., 0] > 60
    columns = np.flatnonzero(is_bar.any(axis=0))
    return columns, is_bar.argmax(axis=0)[columns]


def test_bars_of_spread_fall_on_a_log_axis_whatever_their_order():
    _, tops = bar_tops(spread_chart(np.array([0.01, 1.0, 0.003, 0.1]), 1.5))
    first, *steps = np.flatnonzero(np.bincount(tops) > 100)
    # Three powers of ten, 0.001 to 1, are 330 px high.
    assert np.diff([first, *steps]) == pytest.approx([110, 110, 330 / 3 * np.log10(0.01 / 0.003)], abs=1)


def test_the_line_of_the_effective_rank_lies_at_its_dimension():
    at = {rank: line_x(spread_chart(np.full(8, 0.3), rank), INK) for rank in (2.0, 6.0)}
    assert at[6.0] - at[2.0] == pytest.approx(4 / 8 * 846, abs=1)
    columns, _ = bar_tops(spread_chart(np.full(8, 0.3), 2.0))
    # Bars leave 0.12 of a dimension free at either side.
    assert at[6.0] == pytest.approx(columns.max() + (0.12 - 2) / 8 * 846, abs=2)


def test_collapsed_dimensions_leave_the_right_side_empty():
    spread = np.zeros(10)
    spread[:5] = 0.4
    columns, _ = bar_tops(spread_chart(spread, 5.0))
    whole, _ = bar_tops(spread_chart(np.full(10, 0.4), 10.0))
    assert np.ptp(columns) == pytest.approx(np.ptp(whole) / 2, abs=12)


def test_edge_cases_of_spread_are_drawn():
    for spread in (np.zeros(4), np.array([0.3]), np.full(2048, 1e-12), np.geomspace(1e4, 1e-9, 64)):
        first = spread_chart(spread, 1.0)
        assert png_bytes(first) == png_bytes(spread_chart(spread, 1.0))


@pytest.mark.parametrize(
    ("spread", "rank"),
    [
        (np.array([]), 1.0),
        (np.array([0.1, np.nan]), 1.0),
        (np.array([0.1, -0.1]), 1.0),
        (np.array([0.1]), float("nan")),
        (np.ones((2, 2)), 1.0),
    ],
)
def test_a_spread_that_cannot_be_drawn_is_refused(spread, rank):
    with pytest.raises(ValueError, match="Chart of spread"):
        spread_chart(spread, rank)
