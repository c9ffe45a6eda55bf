"""Colours: of a pixel with any number of channels, and the way to OKLab and back."""

import math
from collections.abc import Sequence

import numpy as np

from geobacter_core.geo import Floats
from geobacter_core.plots.page import Rgb
from geobacter_core.tiles.source import Pixels

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


def _theme_colour(name: str, index: int) -> Rgb:
    """A colour that suits the channel's name; for a name that says nothing, one of a row of distinct hues."""
    for word, colour in _THEMES.items():
        if word in name.lower():
            return colour
    angle = index * math.pi * (3 - math.sqrt(5))
    red, green, blue = oklab_to_rgb(np.array([[0.62, 0.13 * math.cos(angle), 0.13 * math.sin(angle)]]))[0]
    return int(red), int(green), int(blue)


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
