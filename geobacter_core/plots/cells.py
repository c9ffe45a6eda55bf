"""The map of a region's cells in the colours of their embeddings."""

import math
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from geobacter_core.embeddings.history import Changes
from geobacter_core.embeddings.table import EmbeddingTable
from geobacter_core.geo import WORLD_M, WORLD_PX, Floats, ground_distance_m, lonlat_to_pixel, mercator_scale
from geobacter_core.plots.arrange import component_colours, principal_components, sampled_rows, typical_rows
from geobacter_core.plots.colours import sequential
from geobacter_core.plots.ground import Box, base_map, fitted_scale, scale_bar
from geobacter_core.plots.page import (
    ATTRIBUTION,
    CAPTION_PX,
    DOT,
    INK,
    MARGIN,
    MUTED,
    NOTE_PX,
    PAPER,
    SUBTITLE_PX,
    TITLE_PX,
    compose_page,
    paragraph,
    region_title,
    table_subtitle,
    with_frame,
    write,
)
from geobacter_core.plots.windows import Windows
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.source import Pixels

_PANEL_PX = 500
_N_CHANGED = 8
_APART_CELLS = 5.0
"""Places that are shown for how they changed are so many cells' widths apart at least."""
_PIXEL_HEXAGON = 2.0
"""Cells of a smaller radius, in pixels of the picture, are painted as points and smoothed."""
_UNIT_HEXAGON = 1.5 * math.sqrt(3)
"""Area of a hexagon of radius 1."""
_MEASURED = 1000
"""So many cells are measured to know how large cells are."""
_LONE_POINT_PX = 20.0
"""Radius of a point that has no other to keep apart from, zoom-16 pixels."""


def _radius_px(table: EmbeddingTable) -> float:
    """Radius of a hexagon as large as a table's cells are, their median, in zoom-16 pixels.

    Points have no size: of those, half the distance to the nearest other.
    """
    some = table.take(_some_rows(table))
    shapes = _in_pixels(some.geometries)
    sizes = shapely.area(shapes)
    if np.any(sizes > 0):
        return float(np.sqrt(np.median(sizes[sizes > 0]) / _UNIT_HEXAGON))
    from scipy.spatial import KDTree

    places = np.stack(lonlat_to_pixel(table.lon, table.lat), axis=1)
    distinct = np.unique(places, axis=0)
    if len(distinct) < 2:
        return _LONE_POINT_PX
    nearest, _ = KDTree(distinct).query(np.stack(lonlat_to_pixel(some.lon, some.lat), axis=1), k=2)
    return float(np.median(nearest[:, 1])) / 2


def _some_rows(table: EmbeddingTable) -> NDArray[np.int64]:
    """At most so many rows of a table as tell how large its cells are, evenly along it."""
    return np.unique(np.linspace(0, len(table) - 1, _MEASURED).astype(np.int64))


def _in_pixels(geometries: NDArray[Any]) -> NDArray[Any]:
    """Shapes in degrees as shapes in zoom-16 pixels."""
    return np.asarray(
        shapely.transform(geometries, lambda lonlat: np.stack(lonlat_to_pixel(*lonlat.T), axis=1)), object
    )


def _cells_box(table: EmbeddingTable, margin: float) -> Box:
    """The box of a table's cells, widened by a share of its longer side."""
    some = table.take(_some_rows(table))
    places = np.stack(lonlat_to_pixel(some.lon, some.lat) * 2, axis=1)
    reach = float(np.abs(shapely.bounds(_in_pixels(some.geometries)) - places).max())
    x, y = lonlat_to_pixel(table.lon, table.lat)
    room = margin * float(max(np.ptp(x), np.ptp(y))) + max(reach, 2 * _radius_px(table))
    return float(x.min() - room), float(y.min() - room), float(x.max() + room), float(y.max() + room)


def _cell_layer(
    table: EmbeddingTable, colours: Pixels, box: Box, scale: float, size: tuple[int, int], radius_px: float
) -> tuple[Image.Image, Image.Image]:
    """The cells' colours (RGB) and where they are (L), of `size` pixels. Points are drawn as discs.

    Cells are painted whole; those with holes come first, so that what lies in a hole is on top.

    Args:
        table: The cells.
        colours: Of each, uint8 `[N, 3]`.
        box: The ground of the picture.
        scale: Pixels of the picture per zoom-16 pixel.
        size: Width and height of the picture.
        radius_px: How large the cells are, in zoom-16 pixels.
    """
    if radius_px * scale < _PIXEL_HEXAGON:
        return _point_layer(table, colours, box, scale, size, radius_px * scale)
    fine = 2
    big = (size[0] * fine, size[1] * fine)
    layer, mask = Image.new("RGB", big, PAPER), Image.new("L", big, 0)
    on_layer, on_mask = ImageDraw.Draw(layer), ImageDraw.Draw(mask)
    shapes = _in_pixels(table.geometries)
    is_point = shapely.get_dimensions(shapes) == 0
    shapes[is_point] = shapely.buffer(shapes[is_point], radius_px)
    polygons, of_row = shapely.get_parts(shapes, return_index=True)
    order = np.argsort(shapely.get_num_interior_rings(polygons) == 0, kind="stable")
    for polygon, row in zip(polygons[order], of_row[order], strict=True):
        corners = (shapely.get_coordinates(shapely.get_exterior_ring(polygon)) - box[:2]) * (scale * fine)
        outline = [(float(px), float(py)) for px, py in corners[:-1]]
        fill = (int(colours[row][0]), int(colours[row][1]), int(colours[row][2]))
        on_layer.polygon(outline, fill=fill, outline=fill)
        on_mask.polygon(outline, fill=255, outline=215 if radius_px * scale > 6 else 255)
    return layer.reduce(fine), mask.reduce(fine)


def _point_layer(
    table: EmbeddingTable, colours: Pixels, box: Box, scale: float, size: tuple[int, int], radius_px: float
) -> tuple[Image.Image, Image.Image]:
    """As `_cell_layer` for cells too small to draw: the mean colour around every pixel."""
    from scipy.ndimage import uniform_filter

    x, y = lonlat_to_pixel(table.lon, table.lat)
    column = np.clip(((x - box[0]) * scale).astype(np.int64), 0, size[0] - 1)
    row = np.clip(((y - box[1]) * scale).astype(np.int64), 0, size[1] - 1)
    pixel = row * size[0] + column
    around = 2 * math.ceil(radius_px) + 1

    def summed(weights: Floats) -> Floats:
        counts = np.bincount(pixel, weights, minlength=size[0] * size[1]).reshape(size[1], size[0])
        return np.asarray(uniform_filter(counts, around, mode="constant"), dtype=np.float64)

    total = summed(np.ones(len(table)))
    mean = np.stack([summed(colours[:, band].astype(np.float64)) for band in range(3)], axis=-1)
    mean /= np.maximum(total, 1e-9)[..., None]
    is_covered = total > 0.5 / around**2
    rgb = np.where(is_covered[..., None], np.clip(np.round(mean), 0, 255), np.array(PAPER)).astype(np.uint8)
    return Image.fromarray(rgb), Image.fromarray((is_covered * 255).astype(np.uint8))


def _coloured_map(
    table: EmbeddingTable, cache: TileCache, colours: Pixels, box: Box, scale: float, radius_px: float
) -> Image.Image:
    """The cells' colours, through which the map shows as in a watercolour, over the faded map."""
    base = base_map(cache, box, scale)
    grey = base.convert("L")
    # Only what differs from its surroundings shows: a colour in the middle of a forest is as light as its key's.
    around = np.asarray(grey.filter(ImageFilter.GaussianBlur(24)), dtype=np.float32)
    light = np.clip((np.asarray(grey, dtype=np.float32) - around) / 255, -0.5, 0.3)[..., None]
    layer, mask = _cell_layer(table, colours, box, scale, base.size, radius_px)
    ink = np.asarray(layer, dtype=np.float32) * (1 + 0.75 * light)
    faded = np.array(PAPER, np.float32) * (1 + 0.3 * np.minimum(light, 0))
    share = np.asarray(mask, dtype=np.float32)[..., None] / 255
    return Image.fromarray(np.clip(np.round(faded + (ink - faded) * share), 0, 255).astype(np.uint8))


def embedding_map(table: EmbeddingTable, cache: TileCache) -> Image.Image:
    """The region's cells in colours of their embeddings' first three principal components, over its own map.

    The map is at most 1,600 px wide and 1,400 px high. Beside or below it are typical windows, each in a frame of its
    cell's colour: the key to the colours.

    Args:
        table: The region's embeddings.
        cache: The region's tiles, in the encoder's style.
    """
    components = principal_components(table.embeddings)
    sample = sampled_rows(components.distinct, 600)
    seen = Windows(table, cache, 16).rgb(sample).mean(axis=(1, 2))
    colours = component_colours(components, sample, np.round(seen).astype(np.uint8))
    box = _cells_box(table, 0.01)
    is_tall = box[3] - box[1] > 0.9 * (box[2] - box[0])
    scale = fitted_scale(box, 1100, 1400) if is_tall else fitted_scale(box, 1600, 1400)
    picture = _coloured_map(table, cache, colours, box, scale, _radius_px(table))
    key = typical_rows(table.embeddings, components.distinct, 8)
    shares = ", ".join(f"{share:.0%}" for share in components.variance_shares)
    note = (
        "Like colours mean like embeddings. Colours are the first three principal components, which carry "
        f"{shares} of the variance, turned towards the colours of the map."
    )
    compose = _map_beside_panel if is_tall else _map_above_key
    return compose(picture, table, _key_windows(table, cache, key, colours), note, (box, scale))


def _key_windows(
    table: EmbeddingTable, cache: TileCache, rows: NDArray[np.int64], colours: Pixels
) -> list[Image.Image]:
    order = rows[
        np.argsort([float(np.arctan2(*(colours[row, :2].astype(float) - 128))) for row in rows], kind="stable")
    ]
    windows = Windows(table, cache, 168).rgb(order)
    return [
        with_frame(Image.fromarray(window), (int(colours[row][0]), int(colours[row][1]), int(colours[row][2])), 14)
        for window, row in zip(windows, order, strict=True)
    ]


def _map_beside_panel(
    picture: Image.Image, table: EmbeddingTable, key: list[Image.Image], note: str, view: tuple[Box, float]
) -> Image.Image:
    gap = 48
    n_key_rows = math.ceil(len(key) / 2)
    text_height = 900 if n_key_rows > 2 else 700
    height = max(picture.height, min(text_height + 212 * n_key_rows - 400, 1400)) + 2 * MARGIN
    page = Image.new("RGB", (picture.width + _PANEL_PX + gap + 2 * MARGIN, height), PAPER)
    page.paste(picture, (MARGIN, (height - picture.height) // 2))
    x, y = MARGIN + picture.width + gap, MARGIN
    write(page, (x, y), region_title(str(table.metadata["region"])), TITLE_PX)
    y += TITLE_PX + 24
    for line in table_subtitle(table).split(DOT):
        write(page, (x, y), line, SUBTITLE_PX, MUTED)
        y += round(SUBTITLE_PX * 1.4)
    y = paragraph(page, x, y + 22, _PANEL_PX, note, NOTE_PX, MUTED) + 22
    bottom = height - MARGIN - CAPTION_PX - 70
    for index, window in enumerate(key):
        left, top = x + (index % 2) * (window.width + 20), y + (index // 2) * (window.height + 20)
        if top + window.height <= bottom:
            page.paste(window, (left, top))
    scale_bar(page, (x, height - MARGIN - CAPTION_PX - 22), *view, most_px=260)
    write(page, (x, height - MARGIN), ATTRIBUTION, CAPTION_PX, MUTED, "ls")
    return page


def _map_above_key(
    picture: Image.Image, table: EmbeddingTable, key: list[Image.Image], note: str, view: tuple[Box, float]
) -> Image.Image:
    key_height = key[0].height
    content = Image.new("RGB", (max(picture.width, 860), picture.height + 30 + key_height + 54), PAPER)
    content.paste(picture, ((content.width - picture.width) // 2, 0))
    scale_bar(content, (0, picture.height + 40), *view, most_px=260)
    n_fit = min(len(key), (content.width + 12) // (key_height + 12))
    step = (content.width - key_height) / max(n_fit - 1, 1)
    for index in range(n_fit):
        content.paste(key[index], (round(index * min(step, key_height + 30)), picture.height + 30 + 54))
    return compose_page(content, region_title(str(table.metadata["region"])), table_subtitle(table), note)


def change_map(table: EmbeddingTable, cache: TileCache, changes: Changes) -> Image.Image:
    """The cells whose embeddings a refresh has moved, over the region's faded map, the darker the further.

    Below are the windows, as they are now, of the places that changed most, each framed in its cell's colour and with
    its number, which is on the map too.

    Args:
        table: The region's embeddings after the refresh.
        cache: The region's tiles, in the encoder's style.
        changes: What the refresh changed.
    """
    at = np.flatnonzero(np.isin(table.cells, changes.cells))
    moved, radius_px = table.take(at), _radius_px(table)
    distance = dict(zip(changes.cells.tolist(), np.nan_to_num(changes.distance, nan=2.0).tolist(), strict=True))
    far = np.array([distance[str(cell)] for cell in moved.cells])
    colours = sequential(np.sqrt(far / max(float(far.max(initial=0)), 1e-9)))
    box = _cells_box(table, 0.01)
    scale = fitted_scale(box, 1600, 1400)
    picture = _coloured_map(moved, cache, colours, box, scale, radius_px)
    chosen = _most_changed(moved, far, _N_CHANGED, radius_px)
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(chosen, 1):
        x, y = lonlat_to_pixel(moved.lon[row : row + 1], moved.lat[row : row + 1])
        centre = (float((x[0] - box[0]) * scale), float((y[0] - box[1]) * scale))
        draw.ellipse([c - 15 for c in centre] + [c + 15 for c in centre], outline=INK, width=3)
        write(picture, (centre[0] + 20, centre[1]), str(number), NOTE_PX, INK, "lm")
    windows = [
        with_frame(Image.fromarray(window), (int(colours[row][0]), int(colours[row][1]), int(colours[row][2])), 14)
        for window, row in zip(Windows(moved, cache, 168).rgb(chosen), chosen, strict=True)
    ]
    content = Image.new("RGB", (max(picture.width, 860), picture.height + 90 + (240 if windows else 0)), PAPER)
    content.paste(picture, ((content.width - picture.width) // 2, 0))
    scale_bar(content, (0, picture.height + 40), box, scale, most_px=260)
    for index, window in enumerate(windows):
        left = index * (window.width + 14)
        if left + window.width <= content.width:
            content.paste(window, (left, picture.height + 80))
            write(content, (left, picture.height + 80 + window.height + 30), str(index + 1), NOTE_PX, MUTED, "ls")
    note = (
        f"{len(moved):,} of {len(table):,} cells changed between {changes.since[:10]} and {changes.until[:10]}: the "
        "darker, the further their embeddings moved. Below, the places that changed most as they are now."
    )
    return compose_page(
        content, f"{region_title(str(table.metadata['region']))}: what changed", table_subtitle(table), note
    )


def _most_changed(table: EmbeddingTable, far: Floats, n: int, radius_px: float) -> NDArray[np.int64]:
    """Rows of the cells that moved most, none near another: one new road would take them all."""
    chosen: list[int] = []
    side_px = radius_px * math.sqrt(_UNIT_HEXAGON)
    apart_m = _APART_CELLS * side_px * WORLD_M / WORLD_PX / mercator_scale(table.lat)[0]
    for row in np.argsort(-far, kind="stable"):
        others = np.array(chosen, np.int64)
        near_m = ground_distance_m(table.lon[row], table.lat[row], table.lon[others], table.lat[others])
        if not len(others) or near_m.min() >= apart_m[row]:
            chosen.append(int(row))
        if len(chosen) == n:
            break
    return np.array(chosen, np.int64)
