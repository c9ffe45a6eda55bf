"""Pictures of tiles, triplets and embeddings, for people: reports, Dagster's and MLflow's pages, the README.

Plain functions from data to a Pillow image; the same input gives the same pixels. Nothing here reads a whole tile cache
at once: a map is put together chunk by chunk, each reduced as soon as it has been read.
"""

import io
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import h3
import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from geobacter_core.embeddings.query import interpolate, similar
from geobacter_core.embeddings.table import EmbeddingTable
from geobacter_core.geo import (
    CHUNK_PX,
    Bounds,
    Floats,
    ground_distance_m,
    lonlat_to_pixel,
    pixel_to_lonlat,
    window_half_px,
)
from geobacter_core.samples.split import block_split
from geobacter_core.samples.triplets import Triplets, entropies
from geobacter_core.tiles.cache import TileCache
from geobacter_core.tiles.source import Pixels
from geobacter_core.tiles.window import WindowReader, reduce

Rgb = tuple[int, int, int]
Box = tuple[float, float, float, float]
"""West, north, east, south in zoom-16 pixels."""

ATTRIBUTION = "© OpenStreetMap contributors"

_PAPER: Rgb = (252, 251, 248)
_INK: Rgb = (24, 28, 36)
_MUTED: Rgb = (100, 107, 120)
_FAINT: Rgb = (222, 220, 214)
_RIGHT: Rgb = (13, 128, 112)
_WRONG: Rgb = (206, 66, 43)
_TRAIN: Rgb = (48, 105, 152)
_TEST: Rgb = (214, 110, 28)

_DOT = "  ·  "
_MARGIN = 44
_TITLE_PX, _SUBTITLE_PX, _NOTE_PX, _CAPTION_PX = 46, 25, 22, 20
_PANEL_PX = 500
_READER_BYTES = 256 << 20
_READ_WINDOWS = 128
_CLUSTERED_ROWS = 3000
_ENTROPY_PX = 64
_PIXEL_HEXAGON = 2.0
"""Hexagons of a smaller radius, in pixels of the picture, are painted as points and smoothed."""


# Pictures in general


def png_bytes(image: Image.Image) -> bytes:
    """The image as PNG without any metadata, so that the same pixels are the same bytes."""
    buffer = io.BytesIO()
    Image.frombytes(image.mode, image.size, image.tobytes()).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def to_rgb(pixels: Pixels, channels: Sequence[str]) -> Pixels:
    """Pixels of any style as a colour picture.

    Three channels are taken for red, green and blue, one for grey. Of any other number, each is a theme: it is painted
    over those before it in a colour of its own, as opaque as its value is high, on white paper.

    Args:
        pixels: uint8 `[..., C]`.
        channels: Names of the C channels.

    Returns:
        uint8 `[..., 3]`.
    """
    n_channels = pixels.shape[-1]
    if n_channels == 3:
        return pixels
    if n_channels == 1:
        return np.repeat(pixels, 3, axis=-1)
    painted = np.full((*pixels.shape[:-1], 3), 255, np.float32)
    for index, name in enumerate(channels):
        opacity = pixels[..., index, None].astype(np.float32) / 255
        painted += (np.array(_theme_colour(name, index), np.float32) - painted) * opacity
    return np.round(painted).astype(np.uint8)


_THEMES: dict[str, Rgb] = {
    "water": (120, 178, 214),
    "sea": (120, 178, 214),
    "wood": (140, 181, 125),
    "forest": (140, 181, 125),
    "green": (176, 208, 150),
    "park": (176, 208, 150),
    "farm": (231, 222, 178),
    "residential": (226, 219, 211),
    "industr": (208, 193, 214),
    "commerc": (236, 190, 186),
    "shop": (206, 76, 110),
    "food": (219, 126, 60),
    "building": (150, 132, 120),
    "rail": (66, 66, 74),
    "road": (196, 96, 84),
    "street": (196, 96, 84),
    "highway": (196, 96, 84),
    "path": (150, 110, 70),
}


def _theme_colour(name: str, index: int) -> Rgb:
    """A colour that suits the channel's name; for a name that says nothing, one of a row of distinct hues."""
    for word, colour in _THEMES.items():
        if word in name.lower():
            return colour
    angle = index * math.pi * (3 - math.sqrt(5))
    red, green, blue = _oklab_to_rgb(np.array([[0.62, 0.13 * math.cos(angle), 0.13 * math.sin(angle)]]))[0]
    return int(red), int(green), int(blue)


_LAB_TO_LMS = np.array(
    [[1.0, 1.0, 1.0], [0.3963377774, -0.1055613458, -0.0894841775], [0.2158037573, -0.0638541728, -1.2914855480]]
)
_LMS_TO_LINEAR = np.array(
    [
        [4.0767416621, -1.2684380046, -0.0041960863],
        [-3.3077115913, 2.6097574011, -0.7034186147],
        [0.2309699292, -0.3413193965, 1.7076147010],
    ]
)


def _oklab_to_rgb(lab: Floats) -> Pixels:
    """OKLab `[N, 3]` (L 0 to 1) to sRGB uint8 `[N, 3]`.

    Ottosson: "A perceptual color space for image processing" (2020).
    """
    linear = (lab @ _LAB_TO_LMS) ** 3 @ _LMS_TO_LINEAR
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rgb: Pixels = np.round(encoded * 255).astype(np.uint8)
    return rgb


def _rgb_to_oklab(rgb: Pixels) -> Floats:
    """The inverse of `_oklab_to_rgb`."""
    encoded = rgb.astype(np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ np.linalg.inv(_LMS_TO_LINEAR)) @ np.linalg.inv(_LAB_TO_LMS))


def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """Aileron, which Pillow carries, so that every machine sets the same letters."""
    font = ImageFont.load_default(size_px)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType. Install one of its binary wheels.")
    return font


def _write(
    image: Image.Image,
    at: tuple[float, float],
    text: str,
    size_px: int,
    colour: Rgb = _INK,
    anchor: str = "la",
) -> None:
    # The font has Latin-1's main letters and no others.
    printable = text.encode("latin-1", "replace").decode("latin-1")
    ImageDraw.Draw(image).text(at, printable, font=_font(size_px), fill=colour, anchor=anchor)


def _wrapped(text: str, size_px: int, width_px: int) -> list[str]:
    font = _font(size_px)
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(longer) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _paragraph(image: Image.Image, x: int, y: int, width_px: int, text: str, size_px: int, colour: Rgb) -> int:
    """Write wrapped text from (x, y) downwards; returns where it ends."""
    for line in _wrapped(text, size_px, width_px):
        _write(image, (x, y), line, size_px, colour)
        y += round(size_px * 1.4)
    return y


def _page(content: Image.Image, title: str, subtitle: str, note: str) -> Image.Image:
    """A picture under its title, above its note and the attribution."""
    width = max(content.width, 860) + 2 * _MARGIN
    n_subtitle_lines = len(_wrapped(subtitle, _SUBTITLE_PX, width - 2 * _MARGIN))
    head = _MARGIN + _TITLE_PX + 16 + round(n_subtitle_lines * _SUBTITLE_PX * 1.4) + 24
    n_lines = len(_wrapped(note, _NOTE_PX, width - 2 * _MARGIN))
    foot = 26 + round(n_lines * _NOTE_PX * 1.4) + 12 + _CAPTION_PX + _MARGIN
    page = Image.new("RGB", (width, head + content.height + foot), _PAPER)
    _write(page, (_MARGIN, _MARGIN), title, _TITLE_PX)
    _paragraph(page, _MARGIN, _MARGIN + _TITLE_PX + 16, width - 2 * _MARGIN, subtitle, _SUBTITLE_PX, _MUTED)
    page.paste(content, ((width - content.width) // 2, head))
    y = _paragraph(page, _MARGIN, head + content.height + 26, width - 2 * _MARGIN, note, _NOTE_PX, _MUTED)
    _write(page, (width - _MARGIN, y + 12), ATTRIBUTION, _CAPTION_PX, _MUTED, "ra")
    return page


def _region_title(name: str) -> str:
    return name.replace("_", " ").replace("-", " ").title()


def _table_subtitle(table: EmbeddingTable) -> str:
    found = table.metadata
    date = str(found.get("osm_timestamp", ""))[:10]
    names = f"encoder {found.get('encoder', '?')}", f"style {found.get('style', '?')}"
    return _DOT.join((f"{len(table):,} cells", *names, f"map of {date}"))


def _length(metres: float) -> str:
    if metres < 995:
        return f"{metres:.0f} m"
    return f"{metres / 1000:.1f} km" if metres < 9950 else f"{metres / 1000:,.0f} km"


def _framed(tile: Image.Image, colour: Rgb, width_px: int) -> Image.Image:
    framed = Image.new("RGB", (tile.width + 2 * width_px, tile.height + 2 * width_px), colour)
    framed.paste(tile, (width_px, width_px))
    return framed


# Embeddings as colours, groups and grids


@dataclass(frozen=True, slots=True)
class Components:
    """The first three principal components of a table's distinct embeddings.

    Attributes:
        scores: Every row's coordinates, float64 `[N, 3]`; zero where the embeddings have fewer dimensions.
        variance_shares: Share of the variance that each component carries, 0 to 1.
        distinct: First row of each distinct embedding, int64 `[M]`, ascending.
    """

    scores: Floats
    variance_shares: tuple[float, float, float]
    distinct: NDArray[np.int64]


def distinct_rows(embeddings: NDArray[np.float32]) -> NDArray[np.int64]:
    """The first row of each distinct embedding `[N, D]`, ascending: blank windows and their like count once."""
    packed = np.ascontiguousarray(embeddings).view(np.dtype((np.void, embeddings.itemsize * embeddings.shape[1])))
    return np.sort(np.unique(packed.ravel(), return_index=True)[1])


def principal_components(embeddings: NDArray[np.float32]) -> Components:
    """Principal components of embeddings `[N, D]`. Identical embeddings, of which there are many, weigh as one."""
    distinct = distinct_rows(embeddings)
    mean = embeddings[distinct].mean(axis=0, dtype=np.float64)
    covariance = np.zeros((embeddings.shape[1],) * 2)
    for part in np.array_split(distinct, len(distinct) // 65_536 + 1):
        centred = embeddings[part] - mean
        covariance += centred.T @ centred
    values, vectors = np.linalg.eigh(covariance)
    vectors = vectors[:, ::-1][:, :3]
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    scores = np.zeros((len(embeddings), 3))
    scores[:, : vectors.shape[1]] = embeddings @ vectors - mean @ vectors
    shares = np.zeros(3)
    if values.sum() > 1e-12:
        shares[: vectors.shape[1]] = np.clip(values[::-1][:3], 0, None) / values.sum()
    return Components(scores, (float(shares[0]), float(shares[1]), float(shares[2])), distinct)


def component_colours(components: Components, rows: NDArray[np.int64], seen: Pixels) -> Pixels:
    """A colour for every row, sRGB uint8 `[N, 3]`: embeddings that differ little have colours that differ little.

    The three components, each scaled by its 2nd and 98th percentile, span a cube of OKLab colours. The cube is turned
    so that it agrees best with the colours that some windows have on the map: forest comes out greenish, water bluish.

    Args:
        components: Of the table.
        rows: Some rows, `[K]`.
        seen: The mean colour of those rows' windows, sRGB uint8 `[K, 3]`.
    """
    distinct = components.scores[components.distinct]
    low, high = np.percentile(distinct, [2, 98], axis=0)
    scaled = np.clip((components.scores - (low + high) / 2) / np.maximum((high - low) / 2, 1e-9), -1.15, 1.15)
    # Half way to ranks, so that a region of mostly one kind still shows differences within that kind.
    order = np.sort(distinct, axis=0)
    ranks = [np.searchsorted(order[:, axis], components.scores[:, axis], "right") for axis in range(3)]
    scaled = (scaled + 2 * np.stack(ranks, axis=1) / len(distinct) - 1) / 2
    scaled[:, high - low < 1e-6] = 0
    lab = _rgb_to_oklab(seen)
    lab = (lab - lab.mean(axis=0)) * np.array([0.5, 1.0, 1.0])
    centred = scaled[rows] - scaled[rows].mean(axis=0)
    left, _, right = np.linalg.svd(centred.T @ lab)
    turned = scaled @ (left @ right)
    return _oklab_to_rgb(np.array([0.74, 0.0, 0.0]) + turned * np.array([0.12, 0.115, 0.115]))


def _sampled(rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """At most `n` of the rows, evenly along the table, whose order follows the ground."""
    return rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(np.int64)]


def _typical(embeddings: NDArray[np.float32], rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """At most `n` of `rows`, each the most typical of a group of like embeddings (k-means), the largest group first."""
    from sklearn.cluster import KMeans

    rows = _sampled(rows, _CLUSTERED_ROWS)
    if len(rows) <= n:
        return rows
    points = embeddings[rows]
    with _one_thread():
        groups = KMeans(n, n_init=4, random_state=0).fit(points)
    to_centre = np.linalg.norm(points - groups.cluster_centers_[groups.labels_], axis=1)
    sizes = np.bincount(groups.labels_, minlength=n)
    chosen = [
        np.flatnonzero(groups.labels_ == group)[to_centre[groups.labels_ == group].argmin()]
        for group in np.argsort(-sizes, kind="stable")
        if sizes[group]
    ]
    return rows[chosen]


def _one_thread() -> AbstractContextManager[object]:
    """The order of a sum, and so its last bit, depends on the number of threads; t-SNE makes much of a last bit."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def tsne_layout(embeddings: NDArray[np.float32]) -> Floats:
    """Places on a plane for distinct embeddings `[N, D]`, float64 `[N, 2]`: t-SNE from the first two components.

    Van der Maaten & Hinton: "Visualizing data using t-SNE" (JMLR 2008).
    """
    n = len(embeddings)
    if n < 8 or embeddings.shape[1] < 2:
        return principal_components(embeddings).scores[:, :2]
    from sklearn.manifold import TSNE

    with _one_thread():
        plane = TSNE(
            2,
            init="pca",
            random_state=0,
            perplexity=min(30.0, (n - 1) / 3),
            max_iter=750,
            learning_rate="auto",
        ).fit_transform(embeddings)
    return np.asarray(plane, dtype=np.float64)


def snap_to_grid(plane: Floats, columns: int, rows: int) -> NDArray[np.int64]:
    """A slot of a grid for every point `[N, 2]`, no two the same, so that the points move as little as can be.

    Returns:
        int64 `[N]`, `row * columns + column`; N is at most `columns * rows`.
    """
    from scipy.optimize import linear_sum_assignment

    low, high = plane.min(axis=0), plane.max(axis=0)
    unit = (plane - low) / np.maximum(high - low, 1e-9)
    # Half way to ranks: clusters keep their shape but share out the room between them.
    ranks = np.argsort(np.argsort(plane, axis=0, kind="stable"), axis=0, kind="stable") / max(len(plane) - 1, 1)
    unit = (unit + ranks) / 2 * np.array([columns - 1, rows - 1])
    slots = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    cost = ((unit[:, None, :] - slots[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(linear_sum_assignment(cost)[1], dtype=np.int64)


def _grid_shape(n: int, aspect: float) -> tuple[int, int]:
    """Columns and rows of a grid of about that aspect that `n` windows fill; a few windows may be left over."""
    ideal = math.sqrt(n * aspect)
    if n < 40:
        return max(1, round(ideal)), math.ceil(n / max(1, round(ideal)))
    columns = min(range(math.floor(ideal * 0.88), math.ceil(ideal * 1.12) + 1), key=lambda c: (n % c, abs(c - ideal)))
    return columns, n // columns


class _Windows:
    """Windows of a table's cells as pictures, at the size on the page."""

    def __init__(self, table: EmbeddingTable, cache: TileCache, size_px: int) -> None:
        self.size_px = size_px
        self.size_m = float(table.metadata["size_m"])
        self._table = table
        self._channels = cache.manifest.channels
        self._reader = WindowReader(cache, self.size_m, size_px, _READER_BYTES)

    def rgb(self, rows: NDArray[np.int64]) -> Pixels:
        """uint8 `[N, size_px, size_px, 3]`, read in the table's order, which follows the ground."""
        found = np.empty((len(rows), self.size_px, self.size_px, 3), np.uint8)
        order = np.argsort(rows, kind="stable")
        for part in np.array_split(order, len(rows) // _READ_WINDOWS + 1):
            if len(part):
                windows = self._reader.windows(self._table.lon[rows[part]], self._table.lat[rows[part]])
                found[part] = to_rgb(windows.transpose(0, 2, 3, 1), self._channels)
        return found

    def images(self, rows: Iterable[int]) -> dict[int, Image.Image]:
        """Each row's window, all read in one go: one by one, in any order, they would read chunks over and over."""
        distinct = np.array(sorted(set(rows)), dtype=np.int64)
        return {int(row): Image.fromarray(window) for row, window in zip(distinct, self.rgb(distinct), strict=True)}


def _busy_rows(table: EmbeddingTable, cache: TileCache, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of `rows` with something to see: the upper 40 % by the windows' entropy."""
    reader = WindowReader(cache, float(table.metadata["size_m"]), _ENTROPY_PX, _READER_BYTES)
    found = entropies(reader, np.stack([table.lon[rows], table.lat[rows]], axis=1))
    return rows[found >= np.quantile(found, 0.6)]


# Maps


def _cells_box(table: EmbeddingTable, margin: float) -> Box:
    """The box of a table's cells, widened by a share of its longer side."""
    boundaries = [h3.cell_to_boundary(str(table.cells[row])) for row in (0, -1)]
    size = max(np.ptp(np.array(boundary)[:, 0]) for boundary in boundaries)
    x, y = lonlat_to_pixel(table.lon, table.lat)
    _, half = lonlat_to_pixel(np.zeros(2), np.array([table.lat[0], table.lat[0] + size]))
    west, north, east, south = x.min(), y.min(), x.max(), y.max()
    room = margin * max(east - west, south - north) + float(half[0] - half[1])
    return float(west - room), float(north - room), float(east + room), float(south + room)


def _fitted(box: Box, width_px: int, height_px: int) -> float:
    """Pixels of the picture per zoom-16 pixel, so that the box fits and nothing is enlarged beyond twice."""
    west, north, east, south = box
    return min(width_px / (east - west), height_px / (south - north), 2.0)


def _reduced(tiles: Pixels, reduction: int) -> Pixels:
    """As `tiles.window.reduce`, also by more than a tile's side."""
    first = min(reduction, 4)
    image = reduce(tiles, first)
    rest = reduction // first
    if rest == 1:
        return image
    side = image.shape[0] // rest
    blocks = image.reshape(side, rest, side, rest, image.shape[-1])
    mean: Pixels = np.round(blocks.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8)
    return mean


def _base_map(cache: TileCache, box: Box, scale: float) -> Image.Image:
    """The region's own tiles within a box, RGB, at `scale` pixels per zoom-16 pixel; paper where there are none."""
    west, north, east, south = box
    width, height = round((east - west) * scale), round((south - north) * scale)
    reduction = 1 << min(max(math.floor(math.log2(1 / scale)), 0), 12)
    left, top = math.floor(west / reduction), math.floor(north / reduction)
    right, bottom = math.ceil(east / reduction), math.ceil(south / reduction)
    mosaic = Image.new("RGB", (right - left, bottom - top), _PAPER)
    side = CHUNK_PX // reduction
    for summary in cache.manifest.chunks:
        x, y = summary.x * side, summary.y * side
        if x < right and x + side > left and y < bottom and y + side > top:
            pixels = _reduced(cache.chunk(summary.tile), reduction)
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


def _lines(ground: shapely.Geometry, box: Box, scale: float) -> list[list[tuple[float, float]]]:
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


def _scale_bar(image: Image.Image, at: tuple[int, int], box: Box, scale: float, most_px: int) -> None:
    """A bar of a round number of ground metres, at the box's middle latitude, with (x, y) its left end."""
    _, lat = pixel_to_lonlat(np.array([box[0]]), np.array([(box[1] + box[3]) / 2]))
    px_per_m = 2 * float(window_half_px(lat, 1.0)[0][0]) * scale
    most_m = most_px / px_per_m
    step = 10.0 ** math.floor(math.log10(most_m))
    metres = max(factor * step for factor in (1, 2, 5) if factor * step <= most_m)
    x, y = at
    end = x + metres * px_per_m
    draw = ImageDraw.Draw(image)
    draw.line([(x, y - 7), (x, y), (end, y), (end, y - 7)], fill=_INK, width=3)
    text = f"{metres:,.0f} m" if metres < 1000 else f"{metres / 1000:,.0f} km"
    _write(image, (end + 12, y + 3), text, _NOTE_PX, _INK, "ls")


def _hexagon_layer(
    table: EmbeddingTable, colours: Pixels, box: Box, scale: float, size: tuple[int, int]
) -> tuple[Image.Image, Image.Image]:
    """The cells' colours (RGB) and where they are (L), of `size` pixels."""
    outline = shapely.Polygon(h3.cell_to_boundary(str(table.cells[0])))
    lat, lon = shapely.get_coordinates(outline).T
    x, y = lonlat_to_pixel(lon, lat)
    radius_px = float(np.hypot(x - x.mean(), y - y.mean()).mean()) * scale
    if radius_px < _PIXEL_HEXAGON:
        return _point_layer(table, colours, box, scale, size, radius_px)
    fine = 2
    big = (size[0] * fine, size[1] * fine)
    layer, mask = Image.new("RGB", big, _PAPER), Image.new("L", big, 0)
    on_layer, on_mask = ImageDraw.Draw(layer), ImageDraw.Draw(mask)
    boundaries = [h3.cell_to_boundary(str(cell)) for cell in table.cells]
    counts = np.array([len(boundary) for boundary in boundaries])
    corners = np.concatenate([np.array(boundary) for boundary in boundaries])
    x, y = lonlat_to_pixel(corners[:, 1], corners[:, 0])
    points = np.stack([(x - box[0]) * scale * fine, (y - box[1]) * scale * fine], axis=1)
    for corner_xy, colour in zip(np.split(points, np.cumsum(counts)[:-1]), colours, strict=True):
        polygon = [(float(px), float(py)) for px, py in corner_xy]
        fill = (int(colour[0]), int(colour[1]), int(colour[2]))
        on_layer.polygon(polygon, fill=fill, outline=fill)
        on_mask.polygon(polygon, fill=255, outline=215 if radius_px > 6 else 255)
    return layer.reduce(fine), mask.reduce(fine)


def _point_layer(
    table: EmbeddingTable, colours: Pixels, box: Box, scale: float, size: tuple[int, int], radius_px: float
) -> tuple[Image.Image, Image.Image]:
    """As `_hexagon_layer` for cells too small to draw: the mean colour around every pixel."""
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
    rgb = np.where(is_covered[..., None], np.clip(np.round(mean), 0, 255), np.array(_PAPER)).astype(np.uint8)
    return Image.fromarray(rgb), Image.fromarray((is_covered * 255).astype(np.uint8))


def _coloured_map(table: EmbeddingTable, cache: TileCache, colours: Pixels, box: Box, scale: float) -> Image.Image:
    """The cells' colours, through which the map shows as in a watercolour, over the faded map."""
    base = _base_map(cache, box, scale)
    grey = base.convert("L")
    # Only what differs from its surroundings shows: a colour in the middle of a forest is as light as its key's.
    around = np.asarray(grey.filter(ImageFilter.GaussianBlur(24)), dtype=np.float32)
    light = np.clip((np.asarray(grey, dtype=np.float32) - around) / 255, -0.5, 0.3)[..., None]
    layer, mask = _hexagon_layer(table, colours, box, scale, base.size)
    ink = np.asarray(layer, dtype=np.float32) * (1 + 0.75 * light)
    faded = np.array(_PAPER, np.float32) * (1 + 0.3 * np.minimum(light, 0))
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
    sample = _sampled(components.distinct, 600)
    seen = _Windows(table, cache, 16).rgb(sample).mean(axis=(1, 2))
    colours = component_colours(components, sample, np.round(seen).astype(np.uint8))
    box = _cells_box(table, 0.01)
    is_tall = box[3] - box[1] > 0.9 * (box[2] - box[0])
    scale = _fitted(box, 1100, 1400) if is_tall else _fitted(box, 1600, 1400)
    picture = _coloured_map(table, cache, colours, box, scale)
    key = _typical(table.embeddings, components.distinct, 8)
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
    windows = _Windows(table, cache, 168).rgb(order)
    return [
        _framed(Image.fromarray(window), (int(colours[row][0]), int(colours[row][1]), int(colours[row][2])), 14)
        for window, row in zip(windows, order, strict=True)
    ]


def _map_beside_panel(
    picture: Image.Image, table: EmbeddingTable, key: list[Image.Image], note: str, view: tuple[Box, float]
) -> Image.Image:
    gap = 48
    n_key_rows = math.ceil(len(key) / 2)
    text_height = 900 if n_key_rows > 2 else 700
    height = max(picture.height, min(text_height + 212 * n_key_rows - 400, 1400)) + 2 * _MARGIN
    page = Image.new("RGB", (picture.width + _PANEL_PX + gap + 2 * _MARGIN, height), _PAPER)
    page.paste(picture, (_MARGIN, (height - picture.height) // 2))
    x, y = _MARGIN + picture.width + gap, _MARGIN
    _write(page, (x, y), _region_title(str(table.metadata["region"])), _TITLE_PX)
    y += _TITLE_PX + 24
    for line in _table_subtitle(table).split(_DOT):
        _write(page, (x, y), line, _SUBTITLE_PX, _MUTED)
        y += round(_SUBTITLE_PX * 1.4)
    y = _paragraph(page, x, y + 22, _PANEL_PX, note, _NOTE_PX, _MUTED) + 22
    bottom = height - _MARGIN - _CAPTION_PX - 70
    for index, window in enumerate(key):
        left, top = x + (index % 2) * (window.width + 20), y + (index // 2) * (window.height + 20)
        if top + window.height <= bottom:
            page.paste(window, (left, top))
    _scale_bar(page, (x, height - _MARGIN - _CAPTION_PX - 22), *view, most_px=260)
    _write(page, (x, height - _MARGIN), ATTRIBUTION, _CAPTION_PX, _MUTED, "ls")
    return page


def _map_above_key(
    picture: Image.Image, table: EmbeddingTable, key: list[Image.Image], note: str, view: tuple[Box, float]
) -> Image.Image:
    key_height = key[0].height
    content = Image.new("RGB", (max(picture.width, 860), picture.height + 30 + key_height + 54), _PAPER)
    content.paste(picture, ((content.width - picture.width) // 2, 0))
    _scale_bar(content, (0, picture.height + 40), *view, most_px=260)
    n_fit = min(len(key), (content.width + 12) // (key_height + 12))
    step = (content.width - key_height) / max(n_fit - 1, 1)
    for index in range(n_fit):
        content.paste(key[index], (round(index * min(step, key_height + 30)), picture.height + 30 + 54))
    return _page(content, _region_title(str(table.metadata["region"])), _table_subtitle(table), note)


def tile_contact_sheet(cache: TileCache) -> Image.Image:
    """A region's tile cache at a glance: all of it within 1,000 px, and the busiest 768 px at the tiles' own size."""
    manifest = cache.manifest
    x = np.array([summary.x for summary in manifest.chunks], dtype=np.float64) * CHUNK_PX
    y = np.array([summary.y for summary in manifest.chunks], dtype=np.float64) * CHUNK_PX
    box = (float(x.min()), float(y.min()), float(x.max()) + CHUNK_PX, float(y.max()) + CHUNK_PX)
    scale = _fitted(box, 1000, 1000)
    overview = _base_map(cache, box, scale)
    inner = _drawn_part(overview)
    if (inner[2] - inner[0]) * (inner[3] - inner[1]) < 0.5 * overview.width * overview.height:
        west, north = box[:2]
        box = (west + inner[0] / scale, north + inner[1] / scale, west + inner[2] / scale, north + inner[3] / scale)
        scale = _fitted(box, 1000, 1000)
        overview = _base_map(cache, box, scale)
    left, top = _busiest(overview, max(round(768 * scale), 1))
    corner = (box[0] + left / scale, box[1] + top / scale)
    crop_box = (*(round(value) for value in corner), *(round(value) + 768 for value in corner))
    crop = _base_map(cache, (float(crop_box[0]), float(crop_box[1]), float(crop_box[2]), float(crop_box[3])), 1.0)
    side = max(round(768 * scale), 6)
    ImageDraw.Draw(overview).rectangle((left, top, left + side, top + side), outline=_WRONG, width=3)
    content = Image.new("RGB", (overview.width + 32 + 768, max(overview.height, 768)), _PAPER)
    content.paste(_framed(overview, _FAINT, 1).crop((1, 1, overview.width + 1, overview.height + 1)), (0, 0))
    content.paste(_framed(crop.crop((3, 3, 765, 765)), _WRONG, 3), (overview.width + 32, 0))
    n_blank = sum(summary.n_blank for summary in manifest.chunks)
    subtitle = (
        f"{manifest.n_tiles:,} tiles of zoom 16 in {len(manifest.chunks):,} chunks  ·  style {manifest.style}/"
        f"{manifest.style_version}  ·  map of {manifest.osm_timestamp[:10]}"
    )
    size_mb = sum(summary.size_bytes for summary in manifest.chunks) / 1e6
    note = (
        f"{n_blank:,} of the tiles are of one colour; all take {size_mb:,.1f} MB on disk. Right: the busiest place, "
        "768 by 768 pixels as they lie in the cache."
    )
    return _page(content, f"{_region_title(manifest.region)}: tiles", subtitle, note)


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
    scale = _fitted(box, 1400, 1100)
    # Drawn at twice the size and reduced, for smooth lines.
    fine = 2 * scale
    west, north, east, south = box
    size = (2 * round((east - west) * scale), 2 * round((south - north) * scale))
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture, "RGBA")
    for part in shapely.get_parts(ground):
        for line in _lines(part, box, fine)[:1]:
            draw.polygon(line, fill=(238, 236, 230))
    block_m = document.get("block_m")
    seed = int(document.get("seed") or 0)
    grid = block_split(bounds, ground, triplets.size_m, None if block_m is None else float(block_m), seed)
    width, height = grid.width_px / grid.columns * fine, grid.height_px / grid.rows * fine
    for row in range(grid.rows):
        for column in range(grid.columns):
            left, top = (
                (grid.west_px - west) * fine + column * width,
                (grid.north_px - north) * fine + row * height,
            )
            is_test = bool(grid.is_test(np.array([column]), np.array([row]))[0])
            fill = (*_TEST, 34) if is_test else (*_TRAIN, 12)
            draw.rectangle((left, top, left + width, top + height), fill=fill, outline=(255, 255, 255, 255), width=3)
    n_shown = 0
    for split, colour in (("train", _TRAIN), ("test", _TEST)):
        places = triplets.lonlat(split)
        wanted = -(-3000 * len(places) // max(triplets.table.num_rows, 1)) if split == "train" else 3000 - n_shown
        shown = places[_sampled(np.arange(len(places)), max(wanted, 1))] if len(places) else places
        n_shown += len(shown)
        px, py = lonlat_to_pixel(shown[..., 0], shown[..., 1])
        px, py = (px - west) * fine, (py - north) * fine
        for index in range(len(shown)):
            draw.ellipse((px[index, 0] - 4, py[index, 0] - 4, px[index, 0] + 4, py[index, 0] + 4), fill=(*colour, 150))
        for index in _sampled(np.arange(len(shown)), 24) if len(shown) else ():
            draw.line((px[index, 0], py[index, 0], px[index, 1], py[index, 1]), fill=_INK, width=4)
            draw.ellipse(
                (px[index, 0] - 8, py[index, 0] - 8, px[index, 0] + 8, py[index, 0] + 8),
                fill=colour,
                outline=_INK,
                width=3,
            )
            draw.ellipse(
                (px[index, 1] - 6, py[index, 1] - 6, px[index, 1] + 6, py[index, 1] + 6),
                fill=_PAPER,
                outline=_INK,
                width=3,
            )
    content = Image.new("RGB", (max(size[0] // 2, 860), size[1] // 2 + 46), _PAPER)
    content.paste(picture.reduce(2), ((content.width - size[0] // 2) // 2, 0))
    _scale_bar(content, (2, size[1] // 2 + 34), box, scale, 260)
    key_x, key_y = content.width, size[1] // 2 + 37
    for name, colour in (("test", _TEST), ("train", _TRAIN)):
        _write(content, (key_x, key_y), name, _NOTE_PX, _INK, "rs")
        key_x -= round(_font(_NOTE_PX).getlength(name)) + 26
        ImageDraw.Draw(content).ellipse((key_x, key_y - 15, key_x + 15, key_y), fill=colour)
        key_x -= 30
    subtitle = (
        f"{document.get('n_train', 0):,} triplets for training, {document.get('n_test', 0):,} for testing  ·  "
        f"windows of {triplets.size_m:g} m  ·  blocks {document.get('blocks', '')}"
    ).replace("×", "by")
    note = (
        f"Dots are {n_shown:,} of the anchors. Lines lead from some to their positives, at most "
        f"{_length(float(document.get('distance_m') or 0))} away; negatives are other anchors of the same colour, at "
        f"least {_length(float(document.get('negative_min_m') or 0))} away where the region has room. "
        "No test window overlaps a window for training."
    )
    return _page(content, f"{_region_title(str(document.get('region', '')))}: triplets", subtitle, note)


# Windows


def window_mosaic(
    table: EmbeddingTable, cache: TileCache, n_windows: int = 1440, thumbnail_px: int = 40
) -> Image.Image:
    """Windows side by side, so that neighbours have like embeddings: t-SNE, snapped to a grid without overlaps.

    As in the original Geobacter and sentiance's Loc2Vec (2018).

    Args:
        table: The region's embeddings.
        cache: The region's tiles, in the encoder's style.
        n_windows: So many at most, of distinct embeddings, evenly along the table.
        thumbnail_px: Side of a window on the page.
    """
    distinct = distinct_rows(table.embeddings)
    columns, n_rows = _grid_shape(min(len(distinct), n_windows), 1.6)
    rows = _sampled(distinct, columns * n_rows)
    slots = snap_to_grid(tsne_layout(table.embeddings[rows]), columns, n_rows)
    enlarged = max(thumbnail_px, min(160, 1600 // columns))
    side = enlarged + 2
    content = Image.new("RGB", (columns * side, n_rows * side), _PAPER)
    for window, slot in zip(_Windows(table, cache, enlarged).rgb(rows), slots, strict=True):
        content.paste(Image.fromarray(window), (int(slot % columns) * side + 1, int(slot // columns) * side + 1))
    region = _region_title(str(table.metadata["region"]))
    note = (
        f"{len(rows):,} windows, {float(table.metadata['size_m']):g} m wide, of {len(distinct):,} distinct embeddings. "
        "They lie side by side when their embeddings are alike (t-SNE, moved to the nearest free place of a grid); "
        "where they lie on the ground plays no part."
    )
    return _page(content, f"{region}, sorted by what it looks like", _table_subtitle(table), note)


def neighbour_strips(table: EmbeddingTable, cache: TileCache, n_queries: int = 6, k: int = 7) -> Image.Image:
    """Typical windows with something to see, and beside each the `k` most similar ones that do not overlap.

    Args:
        table: The region's embeddings.
        cache: The region's tiles, in the encoder's style.
        n_queries: Queries, one from each of as many groups of alike embeddings.
        k: Similar windows a query.
    """
    windows = _Windows(table, cache, 168)
    queries = _query_rows(table, cache, n_queries)
    gap, caption = 14, 62
    side = windows.size_px
    lonlat = np.stack([table.lon, table.lat], axis=1)
    content = Image.new("RGB", ((k + 1) * (side + gap) + 26, len(queries) * (side + caption)), _PAPER)
    answers = [_elsewhere(table, lonlat, row, k, windows.size_m) for row in queries]
    images = windows.images([*queries, *(other for answer in answers for other in answer)])
    for line, (row, answer) in enumerate(zip(queries, answers, strict=True)):
        y = line * (side + caption)
        content.paste(_framed(images[row], _INK, 4).resize((side, side)), (0, y))
        _write(content, (0, y + side + 7), "query", _CAPTION_PX)
        away_m = _away_m(lonlat, row)
        for place, other in enumerate(answer):
            x = 26 + (place + 1) * (side + gap)
            content.paste(images[other], (x, y))
            cosine = float(table.embeddings[other] @ table.embeddings[row])
            _write(content, (x, y + side + 7), f"{cosine:.3f}", _CAPTION_PX)
            _write(content, (x + side, y + side + 7), _length(float(away_m[other])), _CAPTION_PX, _MUTED, "ra")
    region = _region_title(str(table.metadata["region"]))
    note = (
        f"Left: {len(queries)} windows that differ, each typical of its like. Right: up to {k} windows of the highest "
        "cosine similarity (below them, with the distance on the ground), none overlapping another. Shown at "
        f"{side} px; the encoder sees {table.metadata['size_px']} px of {windows.size_m:g} m."
    )
    return _page(content, f"{region}: most similar places", _table_subtitle(table), note)


def _elsewhere(table: EmbeddingTable, lonlat: Floats, row: int, k: int, spacing_m: float) -> list[int]:
    """The rows most similar to one, neither near it nor near a better one."""
    others = np.flatnonzero(_away_m(lonlat, row) >= spacing_m)
    found = similar(table.embeddings[others], table.embeddings[row], k, lonlat[others], spacing_m)
    return [int(other) for other in others[found]]


def _query_rows(table: EmbeddingTable, cache: TileCache, n: int) -> list[int]:
    """At most `n` rows with something to see, each typical of its like, as different from one another as can be."""
    candidates = _busy_rows(table, cache, _sampled(distinct_rows(table.embeddings), 1200))
    typical = _typical(table.embeddings, candidates, 3 * n)
    vectors = table.embeddings[typical]
    chosen = [0]
    while len(chosen) < min(n, len(typical)):
        cosine = (vectors @ vectors[chosen].T).max(axis=1)
        cosine[chosen] = np.inf
        chosen.append(int(cosine.argmin()))
    return [int(row) for row in typical[chosen]]


def _away_m(lonlat: Floats, row: int) -> Floats:
    """Ground distance of every place `[N, 2]` from one of them, metres."""
    n = len(lonlat)
    return ground_distance_m(np.full(n, lonlat[row, 0]), np.full(n, lonlat[row, 1]), lonlat[:, 0], lonlat[:, 1])


def interpolation_strips(table: EmbeddingTable, cache: TileCache, n_pairs: int = 4, steps: int = 9) -> Image.Image:
    """What lies between two places that are nothing alike: real windows along the great circle between embeddings.

    Args:
        table: The region's embeddings.
        cache: The region's tiles, in the encoder's style.
        n_pairs: Strips.
        steps: Windows a strip, both ends included.
    """
    windows = _Windows(table, cache, 150)
    side, gap, caption = windows.size_px, 12, 54
    pairs = _opposites(table.embeddings, _query_rows(table, cache, 2 * n_pairs), n_pairs)
    height = max(len(pairs), 1) * (side + caption)
    content = Image.new("RGB", (steps * (side + gap) - gap, height), _PAPER)
    if not pairs:
        _write(content, (0, 0), "All cells have the same embedding: there is nothing between them.", _SUBTITLE_PX)
    paths = [interpolate(table.embeddings[start], table.embeddings[end], steps) for start, end in pairs]
    strips = [_stations(table, path, *pair, windows.size_m / 2) for path, pair in zip(paths, pairs, strict=True)]
    images = windows.images(row for strip in strips for row in strip if row is not None)
    for line, (path, strip) in enumerate(zip(paths, strips, strict=True)):
        for step, row in enumerate(strip):
            if row is None:
                continue
            x, y = step * (side + gap), line * (side + caption)
            is_end = step in (0, steps - 1)
            content.paste(_framed(images[row], _INK, 4).resize((side, side)) if is_end else images[row], (x, y))
            text = "from" if step == 0 else "to" if is_end else f"{float(path[step] @ table.embeddings[row]):.3f}"
            _write(content, (x, y + side + 7), text, _CAPTION_PX, _INK if is_end else _MUTED)
    region = _region_title(str(table.metadata["region"]))
    note = (
        "Both ends are real places. Between them, the great circle from one embedding to the other is cut into "
        f"{steps - 1} equal steps. Each shows the cell nearest to that point, and its cosine with the point, among "
        f"those at least {windows.size_m / 2:g} m from the windows already in the strip. A low cosine says that the "
        "region has nothing of the kind."
    )
    return _page(content, f"{region}: from one place to another", _table_subtitle(table), note)


def _opposites(embeddings: NDArray[np.float32], rows: list[int], n: int) -> list[tuple[int, int]]:
    """At most `n` pairs of rows, the least alike first, no row twice."""
    cosine = embeddings[rows] @ embeddings[rows].T
    pairs: list[tuple[int, int]] = []
    free = set(range(len(rows)))
    for flat in np.argsort(cosine, axis=None, kind="stable"):
        a, b = divmod(int(flat), len(rows))
        if a != b and {a, b} <= free and cosine[a, b] < 1 - 1e-6 and len(pairs) < n:
            pairs.append((rows[a], rows[b]))
            free -= {a, b}
    return pairs


def _stations(
    table: EmbeddingTable, path: NDArray[np.float32], start: int, end: int, spacing_m: float
) -> list[int | None]:
    """A row for every vector of a path `[S, D]`: the nearest that is `spacing_m` from those before; ends are given."""
    lonlat = np.stack([table.lon, table.lat], axis=1)
    is_free = (_away_m(lonlat, start) >= spacing_m) & (_away_m(lonlat, end) >= spacing_m)
    stations: list[int | None] = [start]
    for vector in path[1:-1]:
        cosine = np.where(is_free, table.embeddings @ vector, -2.0)
        best = int(cosine.argmax())
        stations.append(best if is_free[best] else None)
        is_free &= _away_m(lonlat, best) >= spacing_m
    return [*stations, end]


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
        anchor: uint8 `[N, C, H, W]`, an array or a tensor on the CPU.
        positive: As `anchor`.
        negative: As `anchor`.
        positive_distance: Distance between the embeddings of anchor and positive, `[N]`.
        negative_distance: Distance between the embeddings of anchor and negative, `[N]`.
        channels: Names of the C channels.
    """
    roles = [
        to_rgb(np.asarray(windows, np.uint8).transpose(0, 2, 3, 1), channels)
        for windows in (anchor, positive, negative)
    ]
    near, far = np.asarray(positive_distance, np.float64), np.asarray(negative_distance, np.float64)
    n = len(near)
    side, frame, gap, caption = 200, 6, 12, 44
    full = side + 2 * frame
    group_width, group_height = 3 * full + 2 * gap, full + caption
    n_columns = 2 if n > 3 else 1
    n_lines = math.ceil(n / n_columns)
    content = Image.new("RGB", (n_columns * group_width + (n_columns - 1) * 60, 36 + n_lines * group_height), _PAPER)
    for column in range(n_columns):
        for role, name in enumerate(("anchor", "positive", "negative")):
            _write(content, (column * (group_width + 60) + role * (full + gap), 0), name, _CAPTION_PX, _MUTED)
    for index in range(n):
        x, y = (index // n_lines) * (group_width + 60), 36 + (index % n_lines) * group_height
        is_right = bool(near[index] < far[index])
        colour = _RIGHT if is_right else _WRONG
        for role, windows in enumerate(roles):
            window = Image.fromarray(np.ascontiguousarray(windows[index])).resize(
                (side, side), Image.Resampling.BICUBIC
            )
            content.paste(_framed(window, _FAINT if role == 0 else colour, frame), (x + role * (full + gap), y))
        _mark(content, (x + full - 24, y + full + 9), is_right, colour)
        for role, distance in ((1, near[index]), (2, far[index])):
            _write(content, (x + role * (full + gap), y + full + 8), f"{distance:.3f}", _CAPTION_PX, colour)
    n_right = int(np.sum(near < far))
    note = (
        "Below positive and negative is their embedding's distance from the anchor's. Green and a tick: the positive "
        "is nearer, as it should be. Red and a cross: the negative is."
    )
    return _page(content, "Test triplets", f"{n_right} of these {n} are right", note)


def _mark(image: Image.Image, at: tuple[int, int], is_right: bool, colour: Rgb) -> None:
    """A tick or a cross of 20 px."""
    x, y = at
    draw = ImageDraw.Draw(image)
    if is_right:
        draw.line([(x, y + 10), (x + 7, y + 17), (x + 20, y + 2)], fill=colour, width=4, joint="curve")
    else:
        draw.line([(x + 2, y + 2), (x + 17, y + 17)], fill=colour, width=4)
        draw.line([(x + 17, y + 2), (x + 2, y + 17)], fill=colour, width=4)
