"""The colour in which each class of masks is drawn: of its table of labels, or one of our own.

The first seven are told apart with every kind of colour vision; of more classes the legend tells.
Source: M. Okabe, K. Ito, "Color Universal Design" (2008), without black, which stands for the
background.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

SAFE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_GOLDEN = 0.6180339887498949  # share of the circle of hues from one further colour to the next
_LIGHTNESSES = (0.45, 0.7, 0.3)

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


def default_colour(number: int) -> str:
    """The colour `#RRGGBB` of class `number`, counted from 1; the same on every machine."""
    if number <= len(SAFE):
        return SAFE[number - 1]
    further = number - len(SAFE)
    lightness = _LIGHTNESSES[further % len(_LIGHTNESSES)]
    red, green, blue = colorsys.hls_to_rgb(further * _GOLDEN % 1, lightness, 0.75)
    return f"#{round(255 * red):02X}{round(255 * green):02X}{round(255 * blue):02X}"


def colours_of(classes: int, chosen: Sequence[str | None] = ()) -> list[str]:
    """The colours `#rrggbb` of the classes 1 to `classes`: those `chosen`, else the default."""
    named = [*chosen, *[None] * (classes - len(chosen))]
    return [colour or default_colour(number) for number, colour in enumerate(named[:classes], 1)]


def as_rgb(colour: str) -> Colour:
    """The red, green and blue of `#rrggbb`."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def palette_bytes(colours: Sequence[str]) -> bytes:
    """The palette of a PNG of indices: black for the background, then the colours."""
    return bytes([0, 0, 0, *(value for colour in colours for value in as_rgb(colour))])
