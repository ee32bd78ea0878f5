"""Colours for drawing the classes of masks: from the table of labels, or default colours.

The first seven default colours can be distinguished with every type of colour vision. With more
classes, the legend is needed.
Source: M. Okabe, K. Ito, "Color Universal Design" (2008), without black, which is used for the
background.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

SAFE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_GOLDEN = 0.6180339887498949  # hue difference of successive further colours, in turns
_LIGHTNESSES = (0.45, 0.7, 0.3)

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


def default_colour(number: int) -> str:
    """The default colour `#RRGGBB` of class `number`, counted from 1; equal on all machines."""
    if number <= len(SAFE):
        return SAFE[number - 1]
    further = number - len(SAFE)
    lightness = _LIGHTNESSES[further % len(_LIGHTNESSES)]
    red, green, blue = colorsys.hls_to_rgb(further * _GOLDEN % 1, lightness, 0.75)
    return f"#{round(255 * red):02X}{round(255 * green):02X}{round(255 * blue):02X}"


def colours_of(classes: int, chosen: Sequence[str | None] = ()) -> list[str]:
    """The colours `#rrggbb` of the classes 1 to `classes`: from `chosen`, else the defaults."""
    named = [*chosen, *[None] * (classes - len(chosen))]
    return [colour or default_colour(number) for number, colour in enumerate(named[:classes], 1)]


def as_rgb(colour: str) -> Colour:
    """The red, green and blue values (0 to 255) of a colour `#rrggbb`."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def palette_bytes(colours: Sequence[str]) -> bytes:
    """The palette of a PNG with palette indices: black for the background, then `colours`."""
    return bytes([0, 0, 0, *(value for colour in colours for value in as_rgb(colour))])
