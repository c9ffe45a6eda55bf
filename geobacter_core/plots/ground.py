"""The ground below a picture: a region's tiles within a box, reduced, and what is drawn over them."""

import math
from collections.abc import Iterable

import numpy as np
import shapely
from PIL import Image, ImageDraw

from geobacter_core.geo import CHUNK_PX, lonlat_to_pixel, pixel_to_lonlat, window_half_px
from geobacter_core.plots.colours import to_rgb
from geobacter_core.plots.page import INK, NOTE_PX, PAPER, write
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.mosaic import reduced
from geobacter_core.tiles.source import Pixels

Box = tuple[float, float, float, float]
"""West, north, east, south in zoom-16 pixels."""


def fitted_scale(box: Box, width_px: int, height_px: int) -> float:
    """Pixels of the picture per zoom-16 pixel, so that the box fits and nothing is enlarged beyond twice."""
    west, north, east, south = box
    return min(width_px / (east - west), height_px / (south - north), 2.0)


def _reduced(strips: Iterable[Pixels], reduction: int) -> Pixels:
    """As `tiles.mosaic.reduced`, also by more than a tile's side."""
    first = min(reduction, 4)
    image = reduced(strips, first)
    rest = reduction // first
    if rest == 1:
        return image
    side = image.shape[0] // rest
    blocks = image.reshape(side, rest, side, rest, image.shape[-1])
    mean: Pixels = np.round(blocks.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8)
    return mean


def base_map(cache: TileCache, box: Box, scale: float) -> Image.Image:
    """The region's own tiles within a box, RGB, at `scale` pixels per zoom-16 pixel; paper where there are none."""
    west, north, east, south = box
    width, height = round((east - west) * scale), round((south - north) * scale)
    reduction = 1 << min(max(math.floor(math.log2(1 / scale)), 0), 12)
    left, top = math.floor(west / reduction), math.floor(north / reduction)
    right, bottom = math.ceil(east / reduction), math.ceil(south / reduction)
    mosaic = Image.new("RGB", (right - left, bottom - top), PAPER)
    side = CHUNK_PX // reduction
    for summary in cache.manifest.chunks:
        x, y = summary.x * side, summary.y * side
        if x < right and x + side > left and y < bottom and y + side > top:
            pixels = _reduced(cache.strips(summary.tile), reduction)
            inside = pixels[max(top - y, 0) : bottom - y, max(left - x, 0) : right - x]
            rgb = np.ascontiguousarray(to_rgb(inside, cache.manifest.channels))
            mosaic.paste(Image.fromarray(rgb), (max(x, left) - left, max(y, top) - top))
    part = (
        west / reduction - left,
        north / reduction - top,
        east / reduction - left,
        south / reduction - top,
    )
    return mosaic.resize((width, height), Image.Resampling.LANCZOS, box=part)


def pixels_within(cache: TileCache, left: int, top: int, side_px: int) -> Pixels:
    """The pixels of a square at zoom-16 pixel (left, top), uint8 `[side, side, C]`; zero where there are none."""
    found = np.zeros((side_px, side_px, cache.n_channels), np.uint8)
    right, bottom = left + side_px, top + side_px
    for summary in cache.manifest.chunks:
        x, y = summary.x * CHUNK_PX, summary.y * CHUNK_PX
        if x < right and x + CHUNK_PX > left and y < bottom and y + CHUNK_PX > top:
            mosaic = reduced(cache.strips(summary.tile), 1)
            inside = mosaic[max(top - y, 0) : bottom - y, max(left - x, 0) : right - x]
            row, column = max(y - top, 0), max(x - left, 0)
            found[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return found


def outlines(ground: shapely.Geometry, box: Box, scale: float) -> list[list[tuple[float, float]]]:
    """The rings of an area in degrees as lines in pixels of the picture."""
    west, north = box[:2]
    rings = [
        ring
        for part in shapely.get_parts(ground)
        if isinstance(part, shapely.Polygon)
        for ring in (part.exterior, *part.interiors)
    ]
    lines = []
    for ring in rings:
        lon, lat = shapely.get_coordinates(ring).T
        x, y = lonlat_to_pixel(lon, lat)
        lines.append(list(zip(((x - west) * scale).tolist(), ((y - north) * scale).tolist(), strict=True)))
    return lines


def scale_bar(image: Image.Image, at: tuple[int, int], box: Box, scale: float, most_px: int) -> None:
    """A bar of a round number of ground metres, at the box's middle latitude, with (x, y) its left end."""
    _, lat = pixel_to_lonlat(np.array([box[0]]), np.array([(box[1] + box[3]) / 2]))
    px_per_m = 2 * float(window_half_px(lat, 1.0)[0][0]) * scale
    most_m = most_px / px_per_m
    step = 10.0 ** math.floor(math.log10(most_m))
    metres = max(factor * step for factor in (1, 2, 5) if factor * step <= most_m)
    x, y = at
    end = x + metres * px_per_m
    draw = ImageDraw.Draw(image)
    draw.line([(x, y - 7), (x, y), (end, y), (end, y - 7)], fill=INK, width=3)
    text = f"{metres:,.0f} m" if metres < 1000 else f"{metres / 1000:,.0f} km"
    write(image, (end + 12, y + 3), text, NOTE_PX, INK, "ls")
