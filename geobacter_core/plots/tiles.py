"""A tile cache at a glance."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from geobacter_core.geo import CHUNK_PX, Place, lonlat_to_pixel
from geobacter_core.plots.colours import theme_of, to_rgb
from geobacter_core.plots.ground import Box, base_map, fitted_scale, pixels_within
from geobacter_core.plots.page import (
    CAPTION_PX,
    DOT,
    FAINT,
    INK,
    MUTED,
    PAPER,
    WRONG,
    compose_page,
    region_title,
    with_frame,
    write,
)
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.source import Pixels

_DETAIL_PX = 768
_CELL_PX, _GAP_PX, _NAME_PX = 344, 20, 34
_MASK_COLUMNS, _MASK_ROWS = 3, 4


def tile_contact_sheet(cache: TileCache, middle: Place | None = None) -> Image.Image:
    """A region's tile cache at a glance: all of it, and a detail of 768 px at the tiles' own size.

    Of a style with other than one or three channels, the detail is shown channel by channel too.

    Args:
        cache: The region's tiles.
        middle: Where the detail is; the busiest place if None.
    """
    manifest = cache.manifest
    detail_is = "the busiest place" if middle is None else "a detail"
    if cache.n_channels in (1, 3):
        content = _beside(cache, _overview(cache, 1000, middle))
        where = f"Right: {detail_is}, "
    else:
        content = _channel_grid(cache, _overview(cache, 2 * _CELL_PX + _GAP_PX, middle))
        where = f"Framed: {detail_is}, and what share of it each channel covers; "
    subtitle = DOT.join(
        (
            f"{manifest.n_tiles:,} tiles of zoom 16 in {len(manifest.chunks):,} chunks",
            f"style {manifest.style_label}",
            f"map of {manifest.osm_timestamp[:10]}",
        )
    )
    note = (
        f"{manifest.n_blank:,} of the tiles are of one colour; all take {manifest.size_bytes / 1e6:,.1f} MB on disk. "
        f"{where}{_DETAIL_PX} by {_DETAIL_PX} pixels as they lie in the cache."
    )
    return compose_page(content, f"{region_title(manifest.region)}: tiles", subtitle, note)


@dataclass(frozen=True, slots=True)
class _Overview:
    """A picture of the whole region, on which the detail is framed, and the detail's north-west corner."""

    picture: Image.Image
    left_px: int
    top_px: int


def _overview(cache: TileCache, side_px: int, middle: Place | None) -> _Overview:
    box = _whole(cache)
    scale = fitted_scale(box, side_px, side_px)
    picture = base_map(cache, box, scale)
    inner = _drawn_part(picture)
    if (inner[2] - inner[0]) * (inner[3] - inner[1]) < 0.5 * picture.width * picture.height:
        west, north = box[:2]
        box = (west + inner[0] / scale, north + inner[1] / scale, west + inner[2] / scale, north + inner[3] / scale)
        scale = fitted_scale(box, side_px, side_px)
        picture = base_map(cache, box, scale)
    if middle is None:
        left, top = _busiest(picture, max(round(_DETAIL_PX * scale), 1))
    else:
        x, y = lonlat_to_pixel(np.array([middle.lon]), np.array([middle.lat]))
        left = round((float(x[0]) - _DETAIL_PX / 2 - box[0]) * scale)
        top = round((float(y[0]) - _DETAIL_PX / 2 - box[1]) * scale)
    side = max(round(_DETAIL_PX * scale), 6)
    ImageDraw.Draw(picture).rectangle((left, top, left + side, top + side), outline=WRONG, width=3)
    return _Overview(picture, round(box[0] + left / scale), round(box[1] + top / scale))


def _whole(cache: TileCache) -> Box:
    x = np.array([summary.x for summary in cache.manifest.chunks], dtype=np.float64) * CHUNK_PX
    y = np.array([summary.y for summary in cache.manifest.chunks], dtype=np.float64) * CHUNK_PX
    return (float(x.min()), float(y.min()), float(x.max()) + CHUNK_PX, float(y.max()) + CHUNK_PX)


def _beside(cache: TileCache, overview: _Overview) -> Image.Image:
    left, top = overview.left_px, overview.top_px
    box = (float(left), float(top), float(left + _DETAIL_PX), float(top + _DETAIL_PX))
    detail = base_map(cache, box, 1.0).crop((3, 3, _DETAIL_PX - 3, _DETAIL_PX - 3))
    picture = overview.picture
    content = Image.new("RGB", (picture.width + 32 + _DETAIL_PX, max(picture.height, _DETAIL_PX)), PAPER)
    content.paste(picture, (0, 0))
    content.paste(with_frame(detail, WRONG, 3), (picture.width + 32, 0))
    return content


def _channel_grid(cache: TileCache, overview: _Overview) -> Image.Image:
    """Left the detail in all colours, below it the region; right every channel of the detail in its own colour."""
    channels = cache.manifest.channels
    pixels = pixels_within(cache, overview.left_px, overview.top_px, _DETAIL_PX)
    n_rows = max(math.ceil(len(channels) / _MASK_COLUMNS), _MASK_ROWS)
    step_x, step_y = _CELL_PX + _GAP_PX, _NAME_PX + _CELL_PX + _GAP_PX
    content = Image.new("RGB", ((2 + _MASK_COLUMNS) * step_x - _GAP_PX, n_rows * step_y - _GAP_PX), PAPER)
    side = 2 * _CELL_PX + _GAP_PX
    write(content, (0, 0), "all channels", CAPTION_PX)
    painted = Image.fromarray(to_rgb(pixels, channels))
    content.paste(with_frame(_resized(painted, side - 6), WRONG, 3), (0, _NAME_PX))
    write(content, (0, 2 * step_y), "the region", CAPTION_PX)
    content.paste(_rimmed(overview.picture), (0, 2 * step_y + _NAME_PX))
    for index, name in enumerate(channels):
        row, column = divmod(index, _MASK_COLUMNS)
        x, y = (2 + column) * step_x, row * step_y
        _name_above(content, (x, y), name, theme_of(name, index).colour, float(pixels[..., index].mean()) / 255)
        content.paste(_rimmed(_mask_picture(pixels[..., index], theme_of(name, index).colour)), (x, y + _NAME_PX))
    return content


def _name_above(
    content: Image.Image, at: tuple[int, int], name: str, colour: tuple[int, int, int], share: float
) -> None:
    x, y = at
    ImageDraw.Draw(content).ellipse((x, y + 4, x + 15, y + 19), fill=colour)
    write(content, (x + 24, y), name, CAPTION_PX, INK)
    write(content, (x + _CELL_PX, y + 2), f"{share:.{1 if share < 0.0995 else 0}%}", CAPTION_PX - 2, MUTED, "ra")


def _mask_picture(mask: Pixels, colour: tuple[int, int, int]) -> Image.Image:
    """A mask as ink of a colour on white paper, of a cell's size."""
    ink = Image.new("RGB", (_CELL_PX, _CELL_PX), colour)
    paper = Image.new("RGB", (_CELL_PX, _CELL_PX), "white")
    return Image.composite(ink, paper, _resized(Image.fromarray(mask), _CELL_PX))


def _resized(picture: Image.Image, side_px: int) -> Image.Image:
    return picture.resize((side_px, side_px), Image.Resampling.LANCZOS)


def _rimmed(picture: Image.Image) -> Image.Image:
    """The picture with its outermost pixels faint, so that white paper has an edge."""
    return with_frame(picture.crop((1, 1, picture.width - 1, picture.height - 1)), FAINT, 1)


def _drawn_part(picture: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not the commonest colour, with a little room."""
    pixels = np.asarray(picture).astype(np.int64)
    code = (pixels[..., 0] << 16) + (pixels[..., 1] << 8) + pixels[..., 2]
    colours, counts = np.unique(code, return_counts=True)
    drawn = code != colours[counts.argmax()]
    columns, rows = np.flatnonzero(drawn.any(axis=0)), np.flatnonzero(drawn.any(axis=1))
    if not len(columns):
        return 0, 0, picture.width, picture.height
    room = 4 + round(0.04 * max(np.ptp(columns), np.ptp(rows)))
    return (
        max(int(columns[0]) - room, 0),
        max(int(rows[0]) - room, 0),
        min(int(columns[-1]) + room, picture.width),
        min(int(rows[-1]) + room, picture.height),
    )


def _busiest(picture: Image.Image, side_px: int) -> tuple[int, int]:
    """Left and top of the square of that side in which neighbouring pixels differ most."""
    from scipy.ndimage import uniform_filter

    grey = np.asarray(picture.convert("L"), dtype=np.float64)
    change = np.abs(np.diff(grey, axis=0, prepend=grey[:1])) + np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
    mean = uniform_filter(np.minimum(change, 40), side_px, mode="constant")
    row, column = divmod(int(mean.argmax()), mean.shape[1])
    top = min(max(row - side_px // 2, 0), max(grey.shape[0] - side_px, 0))
    left = min(max(column - side_px // 2, 0), max(grey.shape[1] - side_px, 0))
    return left, top
