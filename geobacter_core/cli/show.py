"""`geobacter tiles show`: a look at one place."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geobacter_core.cli.common import StyleName, known_region, missing_cache
from geobacter_core.errors import ExtractError, TileCacheError
from geobacter_core.settings import Settings

if TYPE_CHECKING:
    from geobacter_core.geo import Place
    from geobacter_core.tiles.cache import TileCache
    from geobacter_core.tiles.source import Pixels

_SIDE_PX = 512


def _degrees(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a number of degrees.") from None


def show(
    lon: Annotated[
        float, typer.Argument(parser=_degrees, metavar="LON", help="Longitude in degrees, negative in the west.")
    ],
    lat: Annotated[
        float, typer.Argument(parser=_degrees, metavar="LAT", help="Latitude in degrees, negative in the south.")
    ],
    region: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose tiles.", show_default="the region that the place lies in")
    ] = None,
    style: StyleName = None,
    size_m: Annotated[
        float, typer.Option(min=10, max=10_000, metavar="METRES", help="Side of the window around the place.")
    ] = 200,
    output: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, metavar="FILE.png", help="Picture to write.", show_default="REGION_STYLE_LON_LAT.png here"
        ),
    ] = None,
) -> None:
    """Write a picture of a place and say what is there.

    It is cut from the tiles as an encoder's windows are; north is up. Channels of a thematic style are painted in a
    colour each.
    """
    if output is not None and output.suffix.lower() != ".png":
        raise typer.BadParameter(f"{output} does not end in .png", param_hint="--output")
    from PIL import Image

    from geobacter_core.files import written_aside
    from geobacter_core.geo import CHUNK_ZOOM, TILE_ZOOM, Place, Tile
    from geobacter_core.plots import png_bytes, to_rgb
    from geobacter_core.tiles.chunk import chunk_file
    from geobacter_core.tiles.style import load_style
    from geobacter_core.tiles.window import WindowReader

    settings = Settings.from_environment()
    place = Place(lon, lat)
    cache = _cache_at(settings, place, load_style(style or settings.style).name, region)
    found = cache.manifest
    pixels = WindowReader(cache, size_m, _SIDE_PX, by_strips=True).window(place)
    path = (output or Path(f"{found.region}_{found.style}_{lon:.5f}_{lat:.5f}.png")).resolve()
    with written_aside(path) as temporary:
        temporary.write_bytes(png_bytes(Image.fromarray(to_rgb(pixels, found.channels))))
    lines = {
        "picture": str(path),
        "tile": str(Tile.at(place, TILE_ZOOM)),
        "chunk": str(chunk_file(cache.folder, Tile.at(place, CHUNK_ZOOM))),
        "region": f"{found.region}, {found.style_label}, {found.source}, map of {found.osm_timestamp[:10]}",
        "at place": _colours(pixels[_SIDE_PX // 2, _SIDE_PX // 2][None], found.channels),
        "in window": _colours(pixels.reshape(-1, len(found.channels)), found.channels),
    }
    typer.echo("\n".join(f"{name:<9}  {value}" for name, value in lines.items()))


def _cache_at(settings: Settings, place: "Place", style: str, region: str | None) -> "TileCache":
    """The cache that holds a place, rather of a region that the place lies in than of one that it lies beside.

    Raises:
        GeobacterError: The region is unknown or has no tiles in the style, or no cache holds the place.
    """
    from geobacter_core.geo import CHUNK_ZOOM, Tile
    from geobacter_core.tiles.cache import TileCache, caches_in

    caches = [
        cache
        for cache in caches_in(settings.data / "tiles")
        if isinstance(cache, TileCache) and cache.manifest.style == style and region in (None, cache.manifest.region)
    ]
    if region is not None and not caches:
        known_region(settings, region)
        raise missing_cache(region, style)
    holding = [cache for cache in caches if Tile.at(place, CHUNK_ZOOM) in cache]
    if not holding:
        names = ", ".join(cache.manifest.region for cache in caches) or "none"
        raise TileCacheError(
            f"Place lon={place.lon} lat={place.lat} lies in no region that has tiles in style {style} (looked at: "
            f"{names}). Longitude comes first. To make tiles: geobacter tiles build REGION --style {style}"
        )
    return min(holding, key=lambda cache: not _is_within(settings, cache.manifest.region, place))


def _is_within(settings: Settings, region: str, place: "Place") -> bool:
    """Whether a place lies on a region's ground, as far as its extract is there to tell."""
    import shapely

    from geobacter_core.osm.extract import load_extract

    try:
        extract, _ = load_extract(settings.extract_folder(region))
    except ExtractError:
        return False
    return bool(shapely.intersects_xy(extract.ground, place.lon, place.lat))


def _colours(pixels: "Pixels", channels: tuple[str, ...]) -> str:
    """What pixels `[N, C]` show on average: a colour, or of a thematic style how much of them each channel covers."""
    mean = pixels.mean(axis=0)
    if channels == ("red", "green", "blue"):
        return "#" + "".join(f"{round(value):02x}" for value in mean)
    shares = sorted(((value / 255, name) for value, name in zip(mean, channels, strict=True)), reverse=True)
    return ", ".join(f"{name} {share:.0%}" for share, name in shares if share >= 0.005) or "nothing"
