"""Colours: of a pixel with any number of channels, and the way to OKLab and back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geobacter_core.geo import Floats
from geobacter_core.plots.page import Rgb
from geobacter_core.tiles.source import Pixels


@dataclass(frozen=True, slots=True)
class Theme:
    """How channels of a kind look.

    Attributes:
        words: A channel whose name has one of them is of this kind.
        colour: Of what the channel covers.
        opacity: Where it is painted over other channels, 0 to 1.
    """

    words: tuple[str, ...]
    colour: Rgb
    opacity: float = 1.0


_THEMES = (
    Theme(("residential",), (219, 207, 192)),
    Theme(("commerc", "industr", "retail"), (205, 184, 216)),
    Theme(("farm",), (226, 214, 150)),
    Theme(("green", "park"), (176, 212, 142)),
    Theme(("forest", "wood", "nature"), (116, 168, 104)),
    Theme(("water", "sea"), (104, 172, 218)),
    Theme(("building",), (164, 150, 142)),
    Theme(("houses",), (110, 92, 82)),
    Theme(("walls", "fence"), (120, 120, 112), 0.8),
    Theme(("amenit", "shop", "food"), (196, 52, 128), 0.5),
    Theme(("path", "track", "foot"), (178, 112, 66), 0.75),
    Theme(("pedestrian",), (226, 150, 132), 0.75),
    Theme(("service",), (244, 214, 130), 0.9),
    Theme(("minor", "street", "parking"), (230, 180, 56), 0.9),
    Theme(("main", "road", "highway"), (232, 122, 46)),
    Theme(("motorway", "trunk"), (198, 36, 58)),
    Theme(("rail", "tram"), (50, 54, 72), 0.9),
    Theme(("street details",), (240, 84, 20), 0.6),
    Theme(("power",), (92, 64, 150), 0.6),
)
"""From the ground up: a road is painted over the land on which it lies."""
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


def to_rgb(pixels: Pixels, channels: Sequence[str]) -> Pixels:
    """Pixels of any style as a colour picture.

    Three channels are taken for red, green and blue, one for grey. Of any other number, each is a mask of a theme. All
    are painted on white paper, each in a colour of its own, land below and roads above.

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
    themes = [theme_of(name, index) for index, name in enumerate(channels)]
    for index in sorted(range(n_channels), key=lambda channel: _level(themes[channel])):
        cover = pixels[..., index, None].astype(np.float32) * (themes[index].opacity / 255)
        painted += (np.array(themes[index].colour, np.float32) - painted) * cover
    return np.round(painted).astype(np.uint8)


def theme_of(name: str, index: int) -> Theme:
    """The theme whose word comes first in a channel's name, of two the longer; else one of a row of distinct hues."""
    places = [(name.lower().find(word), -len(word), theme) for theme in _THEMES for word in theme.words]
    found = [place for place in places if place[0] >= 0]
    if found:
        return min(found, key=lambda place: place[:2])[2]
    angle = index * math.pi * (3 - math.sqrt(5))
    red, green, blue = oklab_to_rgb(np.array([[0.62, 0.13 * math.cos(angle), 0.13 * math.sin(angle)]]))[0]
    return Theme((), (int(red), int(green), int(blue)))


def _level(theme: Theme) -> int:
    return _THEMES.index(theme) if theme in _THEMES else len(_THEMES)


def oklab_to_rgb(lab: Floats) -> Pixels:
    """OKLab `[N, 3]` (L 0 to 1) to sRGB uint8 `[N, 3]`.

    Ottosson: "A perceptual color space for image processing" (2020).
    """
    linear = (lab @ _LAB_TO_LMS) ** 3 @ _LMS_TO_LINEAR
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rgb: Pixels = np.round(encoded * 255).astype(np.uint8)
    return rgb


def rgb_to_oklab(rgb: Pixels) -> Floats:
    """The inverse of `oklab_to_rgb`."""
    encoded = rgb.astype(np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ np.linalg.inv(_LMS_TO_LINEAR)) @ np.linalg.inv(_LAB_TO_LMS))


_SEQUENCE: tuple[Rgb, ...] = ((246, 214, 138), (226, 104, 60), (112, 16, 74))


def sequential(share: Floats) -> Pixels:
    """Colours for shares of 0 to 1, `[N]`, from light sand over red to dark plum: sRGB uint8 `[N, 3]`."""
    lab = rgb_to_oklab(np.array(_SEQUENCE, np.uint8))
    at = np.linspace(0, 1, len(_SEQUENCE))
    return oklab_to_rgb(np.stack([np.interp(share, at, lab[:, axis]) for axis in range(3)], axis=-1))
