"""Where a region's triplets lie, and what they look like."""

import math
from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from geobacter_core.geo import Bounds, lonlat_to_pixel
from geobacter_core.plots.arrange import sampled_rows
from geobacter_core.plots.colours import to_rgb
from geobacter_core.plots.ground import fitted_scale, outlines, scale_bar
from geobacter_core.plots.page import (
    CAPTION_PX,
    FAINT,
    INK,
    MUTED,
    NOTE_PX,
    PAPER,
    RIGHT,
    TEST,
    TRAIN,
    WRONG,
    Rgb,
    compose_page,
    length_text,
    load_font,
    region_title,
    with_frame,
    write,
)
from geobacter_core.samples.split import block_split
from geobacter_core.samples.triplets import Triplets


def samples_map(triplets: Triplets, bounds: Bounds, ground: shapely.Geometry) -> Image.Image:
    """Where triplets lie: train and test blocks, some of the anchors, and a few lines from anchors to positives.

    Args:
        triplets: A region's triplets.
        bounds: The region's box, which was cut into blocks.
        ground: What the region covers, in degrees.
    """
    document = triplets.metadata
    x, y = lonlat_to_pixel(np.array([bounds.west, bounds.east]), np.array([bounds.north, bounds.south]))
    room = 0.02 * max(x[1] - x[0], y[1] - y[0])
    box = (float(x[0] - room), float(y[0] - room), float(x[1] + room), float(y[1] + room))
    scale = fitted_scale(box, 1400, 1100)
    # Drawn at twice the size and reduced, for smooth lines.
    fine = 2 * scale
    west, north, east, south = box
    size = (2 * round((east - west) * scale), 2 * round((south - north) * scale))
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture, "RGBA")
    for part in shapely.get_parts(ground):
        for line in outlines(part, box, fine)[:1]:
            draw.polygon(line, fill=(238, 236, 230))
    block_m = document.get("block_m")
    seed = int(document.get("seed") or 0)
    grid = block_split(bounds, ground, triplets.extent_m, None if block_m is None else float(block_m), seed)
    width, height = grid.width_px / grid.columns * fine, grid.height_px / grid.rows * fine
    for row in range(grid.rows):
        for column in range(grid.columns):
            left, top = (
                (grid.west_px - west) * fine + column * width,
                (grid.north_px - north) * fine + row * height,
            )
            is_test = bool(grid.is_test(np.array([column]), np.array([row]))[0])
            fill = (*TEST, 34) if is_test else (*TRAIN, 12)
            draw.rectangle((left, top, left + width, top + height), fill=fill, outline=(255, 255, 255, 255), width=3)
    n_shown = 0
    for split, colour in (("train", TRAIN), ("test", TEST)):
        places = triplets.lonlat(split)
        wanted = -(-3000 * len(places) // max(triplets.table.num_rows, 1)) if split == "train" else 3000 - n_shown
        shown = places[sampled_rows(np.arange(len(places)), max(wanted, 1))] if len(places) else places
        n_shown += len(shown)
        px, py = lonlat_to_pixel(shown[..., 0], shown[..., 1])
        px, py = (px - west) * fine, (py - north) * fine
        for index in range(len(shown)):
            draw.ellipse((px[index, 0] - 4, py[index, 0] - 4, px[index, 0] + 4, py[index, 0] + 4), fill=(*colour, 150))
        for index in sampled_rows(np.arange(len(shown)), 24) if len(shown) else ():
            draw.line((px[index, 0], py[index, 0], px[index, 1], py[index, 1]), fill=INK, width=4)
            draw.ellipse(
                (px[index, 0] - 8, py[index, 0] - 8, px[index, 0] + 8, py[index, 0] + 8),
                fill=colour,
                outline=INK,
                width=3,
            )
            draw.ellipse(
                (px[index, 1] - 6, py[index, 1] - 6, px[index, 1] + 6, py[index, 1] + 6),
                fill=PAPER,
                outline=INK,
                width=3,
            )
    content = Image.new("RGB", (max(size[0] // 2, 860), size[1] // 2 + 46), PAPER)
    content.paste(picture.reduce(2), ((content.width - size[0] // 2) // 2, 0))
    scale_bar(content, (2, size[1] // 2 + 34), box, scale, 260)
    key_x, key_y = content.width, size[1] // 2 + 37
    for name, colour in (("test", TEST), ("train", TRAIN)):
        write(content, (key_x, key_y), name, NOTE_PX, INK, "rs")
        key_x -= round(load_font(NOTE_PX).getlength(name)) + 26
        ImageDraw.Draw(content).ellipse((key_x, key_y - 15, key_x + 15, key_y), fill=colour)
        key_x -= 30
    subtitle = (
        f"{document.get('n_train', 0):,} triplets for training, {document.get('n_test', 0):,} for testing  ·  "
        f"windows of {triplets.size_m:g} m  ·  blocks {document.get('blocks', '')}"
    ).replace("×", "by")
    note = (
        f"Dots are {n_shown:,} of the anchors. Lines lead from some to their positives, at most "
        f"{length_text(float(document.get('distance_m') or 0))} away; negatives are other anchors of the same colour, "
        f"at least {length_text(float(document.get('negative_min_m') or 0))} away where the region has room. "
        "No test window overlaps a window for training."
    )
    return compose_page(content, f"{region_title(str(document.get('region', '')))}: triplets", subtitle, note)


def triplet_picture(
    anchor: ArrayLike,
    positive: ArrayLike,
    negative: ArrayLike,
    positive_distance: ArrayLike,
    negative_distance: ArrayLike,
    channels: Sequence[str] = ("red", "green", "blue"),
) -> Image.Image:
    """Triplets of windows in two columns; a frame, a tick or a cross tell whether the encoder got each right.

    Args:
        anchor: uint8 `[N, S·C, H, W]`, an array or a tensor on the CPU; contexts are not drawn.
        positive: As `anchor`.
        negative: As `anchor`.
        positive_distance: Distance between the embeddings of anchor and positive, `[N]`.
        negative_distance: Distance between the embeddings of anchor and negative, `[N]`.
        channels: Names of the C channels.
    """
    roles = [
        to_rgb(np.asarray(windows, np.uint8)[:, : len(channels)].transpose(0, 2, 3, 1), channels)
        for windows in (anchor, positive, negative)
    ]
    near, far = np.asarray(positive_distance, np.float64), np.asarray(negative_distance, np.float64)
    n = len(near)
    side, frame, gap, caption = 200, 6, 12, 44
    full = side + 2 * frame
    group_width, group_height = 3 * full + 2 * gap, full + caption
    n_columns = 2 if n > 3 else 1
    n_lines = math.ceil(n / n_columns)
    content = Image.new("RGB", (n_columns * group_width + (n_columns - 1) * 60, 36 + n_lines * group_height), PAPER)
    for column in range(n_columns):
        for role, name in enumerate(("anchor", "positive", "negative")):
            write(content, (column * (group_width + 60) + role * (full + gap), 0), name, CAPTION_PX, MUTED)
    for index in range(n):
        x, y = (index // n_lines) * (group_width + 60), 36 + (index % n_lines) * group_height
        is_right = bool(near[index] < far[index])
        colour = RIGHT if is_right else WRONG
        for role, windows in enumerate(roles):
            window = Image.fromarray(np.ascontiguousarray(windows[index])).resize(
                (side, side), Image.Resampling.BICUBIC
            )
            content.paste(with_frame(window, FAINT if role == 0 else colour, frame), (x + role * (full + gap), y))
        _mark(content, (x + full - 24, y + full + 9), is_right, colour)
        for role, distance in ((1, near[index]), (2, far[index])):
            write(content, (x + role * (full + gap), y + full + 8), f"{distance:.3f}", CAPTION_PX, colour)
    n_right = int(np.sum(near < far))
    note = (
        "Below positive and negative is their embedding's distance from the anchor's. Green and a tick: the positive "
        "is nearer, as it should be. Red and a cross: the negative is."
    )
    return compose_page(content, "Test triplets", f"{n_right} of these {n} are right", note)


def _mark(image: Image.Image, at: tuple[int, int], is_right: bool, colour: Rgb) -> None:
    """A tick or a cross of 20 px."""
    x, y = at
    draw = ImageDraw.Draw(image)
    if is_right:
        draw.line([(x, y + 10), (x + 7, y + 17), (x + 20, y + 2)], fill=colour, width=4, joint="curve")
    else:
        draw.line([(x + 2, y + 2), (x + 17, y + 17)], fill=colour, width=4)
        draw.line([(x + 17, y + 2), (x + 2, y + 17)], fill=colour, width=4)
