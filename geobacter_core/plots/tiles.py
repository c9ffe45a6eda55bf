"""A tile cache at a glance."""

import numpy as np
from PIL import Image, ImageDraw

from geobacter_core.geo import CHUNK_PX
from geobacter_core.plots.ground import base_map, fitted_scale
from geobacter_core.plots.page import FAINT, PAPER, WRONG, compose_page, region_title, with_frame
from geobacter_core.tiles.cache import TileCache


def tile_contact_sheet(cache: TileCache) -> Image.Image:
    """A region's tile cache at a glance: all of it within 1,000 px, and the busiest 768 px at the tiles' own size."""
    manifest = cache.manifest
    x = np.array([summary.x for summary in manifest.chunks], dtype=np.float64) * CHUNK_PX
    y = np.array([summary.y for summary in manifest.chunks], dtype=np.float64) * CHUNK_PX
    box = (float(x.min()), float(y.min()), float(x.max()) + CHUNK_PX, float(y.max()) + CHUNK_PX)
    scale = fitted_scale(box, 1000, 1000)
    overview = base_map(cache, box, scale)
    inner = _drawn_part(overview)
    if (inner[2] - inner[0]) * (inner[3] - inner[1]) < 0.5 * overview.width * overview.height:
        west, north = box[:2]
        box = (west + inner[0] / scale, north + inner[1] / scale, west + inner[2] / scale, north + inner[3] / scale)
        scale = fitted_scale(box, 1000, 1000)
        overview = base_map(cache, box, scale)
    left, top = _busiest(overview, max(round(768 * scale), 1))
    corner = (box[0] + left / scale, box[1] + top / scale)
    crop_box = (*(round(value) for value in corner), *(round(value) + 768 for value in corner))
    crop = base_map(cache, (float(crop_box[0]), float(crop_box[1]), float(crop_box[2]), float(crop_box[3])), 1.0)
    side = max(round(768 * scale), 6)
    ImageDraw.Draw(overview).rectangle((left, top, left + side, top + side), outline=WRONG, width=3)
    content = Image.new("RGB", (overview.width + 32 + 768, max(overview.height, 768)), PAPER)
    content.paste(with_frame(overview, FAINT, 1).crop((1, 1, overview.width + 1, overview.height + 1)), (0, 0))
    content.paste(with_frame(crop.crop((3, 3, 765, 765)), WRONG, 3), (overview.width + 32, 0))
    n_blank = sum(summary.n_blank for summary in manifest.chunks)
    subtitle = (
        f"{manifest.n_tiles:,} tiles of zoom 16 in {len(manifest.chunks):,} chunks  ·  style {manifest.style_label}"
        f"  ·  map of {manifest.osm_timestamp[:10]}"
    )
    size_mb = sum(summary.size_bytes for summary in manifest.chunks) / 1e6
    note = (
        f"{n_blank:,} of the tiles are of one colour; all take {size_mb:,.1f} MB on disk. Right: the busiest place, "
        "768 by 768 pixels as they lie in the cache."
    )
    return compose_page(content, f"{region_title(manifest.region)}: tiles", subtitle, note)


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
