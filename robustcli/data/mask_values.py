"""Decides which values of masks are foreground, background or ignored, once per data set.

A mask file holds numbers, colours or transparency. Their meaning is decided once, from the values
of all masks (of a large set: of a sample that depends on the ids alone) and the user's options, and
every mask is read by that decision. An unknown value is an error that names the file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robustcli.core.errors import UsageError

IGNORED = 255
"""The label in a decoded mask of pixels that count neither in training nor in scores."""
NONZERO = "nonzero"
COLOUR_OFFSET = 1 << 32
"""Added to the 24 bits of a colour to distinguish it from grey values, which are one number."""
OPAQUE = 255
Value: TypeAlias = float
"""A number as in the file, or COLOUR_OFFSET + 0xRRGGBB."""
ValueOption: TypeAlias = "int | float | str | Sequence[int | float | str] | None"
"""Values in a user's notation: 128, "128", "1,2", "#ff0000", or a sequence of these."""

PaletteReading: TypeAlias = Literal["auto", "index", "colour"]
STANDARD = (1, 255, 65535)
"""The usual values of foreground; any of them is foreground if 0 is the only other value."""
_NEAR = 32  # the census takes a value of a lossy file this near to a known one for that one
_MOST_BETWEEN = 0.1  # share of pixels of lossy files between the known values: blurred edges
_PEAK, _PEAK_PIXELS = 0.005, 64  # share and number of pixels that make one value between a class
_SHOWN = 8


@dataclass(frozen=True)
class MaskReading:
    """How the masks of a data set are read.

    Args:
        foreground: Its values; None for everything that is neither 0 nor ignored.
        background: Its values; None for everything else.
        ignored: Values of ignored pixels.
        channel: The channel of the mask: the colours, or the transparency.
        kind: A description of contents other than 8-bit grey values.
        classes: The names of the classes 1 to K in order, at least two; empty for the reading of
            two values, foreground and background.
        class_values: The values of each class; empty if each class has its own files.
        class_files: What each class is called in the names of its files, of which `foreground` and
            `background` are the values; empty if a mask is one file.
        covers: Whether a class covers those before it where files overlap, which else is an error.
        colours: The colour in which each class is drawn, `#rrggbb` or empty for the default.
        palette: What counts of a palette: its indices, its colours, or by each file's own palette.
        source: Where the classes come from, as messages name it.
    """

    foreground: tuple[Value, ...] | None
    background: tuple[Value, ...] | None = (0,)
    ignored: tuple[Value, ...] = ()
    channel: Literal["colour", "alpha"] = "colour"
    kind: str = ""
    classes: tuple[str, ...] = ()
    class_values: tuple[tuple[Value, ...], ...] = ()
    class_files: tuple[str, ...] = ()
    covers: bool = False
    colours: tuple[str, ...] = ()
    palette: PaletteReading = "auto"
    source: str = ""

    @property
    def is_standard(self) -> bool:
        """Whether the masks are bytes of 0 and 1, or of 0 and 255, as most masks are."""
        return (
            self.channel == "colour"
            and not self.kind
            and not self.ignored
            and not self.classes
            and self.background == (0,)
            and self.foreground is not None
            and set(self.foreground) <= set(STANDARD)
        )

    @property
    def known(self) -> tuple[Value, ...]:
        """All values that the reading names, and 0."""
        of_classes = (value for values in self.class_values for value in values)
        named = (*(self.background or ()), *(self.foreground or ()), *of_classes, *self.ignored)
        return tuple(dict.fromkeys((0, *named)))

    @property
    def lossy_steps(self) -> list[Value]:
        """The values to which the pixels of lossy files are rounded, rising."""
        steps = sorted(value for value in self.known if value < COLOUR_OFFSET)
        return [0, OPAQUE] if self.foreground is None or len(steps) == 1 else steps

    def words(self) -> str:
        """The reading as a phrase."""
        if self.class_values:
            return self._class_words()
        if self.class_files:
            order = ", each covering those before it" if self.covers else ""
            files = replace(self, classes=(), class_files=())
            return (
                f"{len(self.classes)} classes in their own files: {', '.join(self.classes)}"
                f"{order}; {files.words()}"
            )
        foreground = "all but 0" if self.foreground is None else shown_values(self.foreground)
        background = "everything else" if self.background is None else shown_values(self.background)
        where = " of the alpha channel" if self.channel == "alpha" else ""
        ignored = f", ignored {shown_values(self.ignored)}" if self.ignored else ""
        kind = f" ({self.kind})" if self.kind else ""
        return f"foreground {foreground}{where}, background {background}{ignored}{kind}"

    def _class_words(self) -> str:
        named = zip(self.classes, self.class_values, strict=True)
        classes = ", ".join(f"{shown_values(values)} = {name}" for name, values in named)
        ignored = f", ignored {shown_values(self.ignored)}" if self.ignored else ""
        kind = f" ({self.kind})" if self.kind else ""
        background = shown_values(self.background or ())
        return f"{len(self.classes)} classes: {classes}, background {background}{ignored}{kind}"


@dataclass
class Census:
    """The values of some masks and how many pixels have each.

    Args:
        total: The number of masks of the data set.
        masks: The number of masks that were read.
        exact: By (colour, alpha), pixels of losslessly compressed files.
        lossy: By value, pixels of files with lossy compression.
        blurred_colours: Whether a lossy file has colours.
        kinds: Descriptions of contents other than 8-bit grey values.
        palette: By (index, colour), pixels of files with a palette, where these count apart.
    """

    total: int
    masks: int = 0
    exact: Counter[tuple[Value, int]] = field(default_factory=Counter)
    lossy: Counter[Value] = field(default_factory=Counter)
    blurred_colours: bool = False
    kinds: set[str] = field(default_factory=set)
    palette: Counter[tuple[Value, Value]] = field(default_factory=Counter)

    def add(self, other: Census) -> None:
        """Adds the masks of another census."""
        self.total += other.total
        self.masks += other.masks
        self.exact.update(other.exact)
        self.lossy.update(other.lossy)
        self.palette.update(other.palette)
        self.blurred_colours = self.blurred_colours or other.blurred_colours
        self.kinds |= other.kinds


def parse_values(option: ValueOption, flag: str) -> tuple[Value, ...]:
    """The values of an option; raises UsageError, naming `flag`, for no number or colour."""
    if option is None:
        return ()
    if isinstance(option, str):
        parts: Sequence[Any] = [part for part in option.split(",") if part.strip()]
    elif isinstance(option, Sequence):
        parts = option
    else:
        parts = (option,)
    values = tuple(dict.fromkeys(_value(part, option, flag) for part in parts))
    if not values:
        raise _no_values_error(option, flag)
    return values


def mask_settings(foreground: ValueOption, ignore: ValueOption) -> list[object]:
    """The options about values in a normal form, for the hash of a run's settings; or empty."""
    if foreground is None and ignore is None:
        return []
    foreground_values = (
        NONZERO if _is_nonzero(foreground) else parse_values(foreground, "--foreground")
    )
    return [foreground_values, parse_values(ignore, "--ignore")]


def check_no_masks(foreground: ValueOption, ignore: ValueOption, classes: object = None) -> None:
    """Raises UsageError if an option about masks is set for data with classes."""
    options = (("--foreground", foreground), ("--ignore", ignore), ("--classes", classes))
    for flag, option in options:
        if option is not None:
            raise UsageError(
                f"`{flag} {option}` does not go with classifiers.",
                "It names values of masks, and their images have classes.",
                "Leave it out.",
            )


def _is_nonzero(foreground: ValueOption) -> bool:
    return isinstance(foreground, str) and foreground.strip().lower() == NONZERO


def _value(part: Any, option: object, flag: str) -> Value:
    text = str(part).strip().lower()
    if text.startswith("#") and len(text) == 7:
        try:
            red, green, blue = bytes.fromhex(text[1:])
        except ValueError:
            raise _no_values_error(option, flag) from None
        if red == green == blue:
            return red
        return COLOUR_OFFSET + int(text[1:], 16)
    try:
        number = float(text)
    except ValueError:
        raise _no_values_error(option, flag) from None
    if not np.isfinite(number):
        raise _no_values_error(option, flag)
    return int(number) if number == int(number) else number


def _no_values_error(option: object, flag: str) -> UsageError:
    extra = f", or `{NONZERO}`" if flag == "--foreground" else ""
    return UsageError(
        f"`{flag} {option}` names no values of masks.",
        f"Expected numbers with commas between them (`128`, `1,2`), colours (`#ff0000`){extra}.",
        "Correct it, or leave it out: the message then lists the values of the masks.",
    )


def shown_value(value: Value) -> str:
    """A value in a user's notation."""
    if not math.isfinite(value):
        return str(value)
    if value >= COLOUR_OFFSET:
        return f"#{int(value) - COLOUR_OFFSET:06x}"
    return f"{value:g}" if isinstance(value, float) and value != int(value) else f"{int(value)}"


def shown_values(values: Sequence[Value]) -> str:
    """Values in a user's notation, separated by commas."""
    return ", ".join(map(shown_value, values)) or "nothing"


def decide(
    census: Census, location: str, *, foreground: ValueOption = None, ignore: ValueOption = None
) -> tuple[MaskReading, list[str]]:
    """The reading of masks with these values, and notes about it for the user.

    Without `foreground`, masks of two values (beside those to ignore) are accepted: the larger one
    is the foreground, of a colour and black the colour.

    `foreground` may be `nonzero`; `location` is for messages.

    Raises:
        UsageError: The values are ambiguous, or the options contradict each other or the masks.
    """
    nonzero = _is_nonzero(foreground)
    foreground_values = () if nonzero else parse_values(foreground, "--foreground")
    ignored = parse_values(ignore, "--ignore")
    shared = [value for value in foreground_values if value in ignored]
    if shared:
        raise UsageError(
            f"`--foreground` and `--ignore` both name {shown_values(shared)}.",
            "A value is either to be found or to be left out.",
            "Leave it out of one of the two.",
        )
    channel, counts = channel_of(census, location)
    if foreground_values or nonzero:
        reading = MaskReading(None if nonzero else foreground_values, None, ignored, channel)
        _check_named(reading, counts, census, location)
    else:
        reading = _reading_of_two(counts, census, location, ignored, channel)
    reading = replace(reading, kind=" and ".join(sorted(census.kinds)))
    between = check_lossy(reading, census, location)
    if census.blurred_colours:
        raise UsageError(
            f"The masks of `{location}` are JPEG files with colours.",
            "JPEG blurs colours over their edges, so that it is not known where they end.",
            "Write the masks anew as PNG with 0 and 255.",
        )
    return reading, _announcements(reading, counts, census, between)


def channel_of(census: Census, location: str) -> tuple[Literal["colour", "alpha"], Counter[Value]]:
    """Whether colours or transparency are the mask, and the number of pixels of each value."""
    colours: Counter[Value] = Counter()
    alphas: Counter[Value] = Counter()
    for (colour, alpha), pixels in census.exact.items():
        colours[colour] += pixels
        alphas[alpha] += pixels
    if set(alphas) <= {OPAQUE} or len(alphas) == 1:
        return "colour", colours
    if len(colours) == 1 and not census.lossy:
        return "alpha", alphas
    # If each colour has one transparency, and transparent pixels are black, the colours suffice.
    alphas_of = {colour: {a for c, a in census.exact if c == colour} for colour in colours}
    if all(len(alphas) == 1 for alphas in alphas_of.values()):
        transparent = [colour for colour, alphas in alphas_of.items() if alphas == {0}]
        if transparent in ([0], []):
            return "colour", colours
    raise UsageError(
        f"The masks of `{location}` have colours and an alpha channel that contradict each other.",
        f"There are {len(colours)} colours and {len(alphas)} degrees of transparency, and they "
        "have different outlines: which of them is the mask is not known.",
        "Write the masks anew without an alpha channel, as PNG with 0 and 255.",
    )


def _reading_of_two(
    counts: Mapping[Value, int], census: Census, location: str, ignored: tuple[Value, ...],
    channel: Literal["colour", "alpha"],
) -> MaskReading:  # fmt: skip
    """The reading of two values for which the user names no foreground."""
    values = sorted(value for value in counts if value not in ignored)
    if not values and census.lossy:
        values = [0, 255]  # the caller checks whether the lossy files fit
    if any(value != value for value in counts):
        raise _not_two(counts, location, ignored, "Some pixels are no number (NaN).")
    if len(values) > 2:
        raise _not_two(counts, location, ignored, "")
    if not values:
        raise UsageError(
            f"`--ignore {shown_values(ignored)}` leaves nothing of the masks of `{location}`.",
            "They have no other value.",
            "Name the value of the pixels without annotation.",
        )
    if len(values) == 1:
        value = values[0]
        if value == 0:
            foreground = (OPAQUE,) if census.lossy else STANDARD
            return MaskReading(foreground, (0,), ignored, channel)
        if value not in STANDARD:
            raise _not_two(counts, location, ignored, "")
        return MaskReading((value,), (0,), ignored, channel)
    low, high = values
    # Of two colours, or a colour and white, either may be the background.
    if high >= COLOUR_OFFSET and low != 0:
        raise _not_two(counts, location, ignored, "Neither of them is black.")
    if low < 0:
        raise _not_two(counts, location, ignored, "")
    return MaskReading((high,), (low,), ignored, channel)


def _check_named(
    reading: MaskReading, counts: Mapping[Value, int], census: Census, location: str
) -> None:
    """Raises UsageError if all masks were counted and none has a value of the option."""
    is_complete = census.masks == census.total and not census.lossy
    missing = [v for v in reading.foreground or () if v not in counts]
    if is_complete and reading.foreground and len(missing) == len(reading.foreground):
        raise UsageError(
            f"No mask of `{location}` has the value {shown_values(missing)}.",
            f"Their values (share of the pixels): {shares_in_words(counts)}.",
            "Name one of these with `--foreground`.",
        )


def check_lossy(reading: MaskReading, census: Census, location: str) -> float:
    """The share of the lossy files' pixels between the known values; raises if too large."""
    if not census.lossy:
        return 0.0
    steps = reading.lossy_steps
    between = blurred_share(census.lossy, steps, _MOST_BETWEEN, _PEAK)
    total = sum(census.lossy.values())
    # Values of 0 to 3 may have been the classes 0 and 1 before compression.
    is_destroyed = max(census.lossy) <= _NEAR and census.lossy[0] < total * (1 - _PEAK)
    if between is None or (is_destroyed and not census.exact):
        raise _not_two(
            census.lossy, location, reading.ignored,
            f"JPEG blurs edges, but these are not only {shown_values(steps)} and blur.",
        )  # fmt: skip
    return between


def blurred_share(
    counts: Mapping[Value, int], known: Sequence[Value], most_between: float, peak: float
) -> float | None:
    """The share of pixels of lossy files between the `known` values.

    None if it is above `most`, or if one value between has more than the share `peak` of all pixels
    (and more than a few), so that it is a class.
    """
    total = sum(counts.values())
    between = {v: n for v, n in counts.items() if min(abs(v - k) for k in known) > _NEAR}
    highest = max(between.values(), default=0)
    if sum(between.values()) > most_between * total or highest > max(peak * total, _PEAK_PIXELS):
        return None
    return sum(between.values()) / total


def _announcements(
    reading: MaskReading, counts: Mapping[Value, int], census: Census, between: float
) -> list[str]:
    """Notes about the reading for the user; none for masks of 0 and 1, or of 0 and 255."""
    notes = []
    is_complete = census.masks == census.total
    counted = "" if is_complete else f" (by {census.masks} of {census.total} masks)"
    if not reading.is_standard:
        shares = (
            f"; values and their shares of the pixels: {shares_in_words(counts)}" if counts else ""
        )
        notes.append(f"Masks: {reading.words()}{counted}{shares}.")
    elif len(counts) == 1 and 0 not in counts:
        notes.append(
            f"Masks: every pixel of all {census.masks} masks is foreground "
            f"({shown_values(tuple(counts))})."
        )
    if census.lossy:
        notes.append(
            "Masks: JPEG has blurred their edges; each pixel is taken for the nearest of "
            f"{shown_values(reading.lossy_steps)} ({between:.1%} of the pixels lie between)."
        )
    return notes


def _not_two(
    counts: Mapping[Value, int], location: str, ignored: Sequence[Value], why: str
) -> UsageError:
    values = [value for value in sorted(counts) if value not in ignored]
    ignorable = next((v for v in (255, 65535, -1) if v in values and len(values) == 3), None)
    likely = [value for value in values if value not in (0, ignorable)]
    example = shown_value(likely[-1] if likely else values[-1]) if values else "255"
    in_shell = f"'{example}'" if example.startswith("#") else example
    hints = [f"Name what is to be found, such as `--foreground {in_shell}` (`1,2` for several, "
            f"`{NONZERO}` for all that is not 0); everything else is then background."]  # fmt: skip
    if ignorable is not None:
        hints.append(
            f"`--ignore {shown_value(ignorable)}` leaves that value out of training and scores."
        )
    else:
        hints.append("`--ignore VALUE` leaves a value out of training and scores.")
    if len(likely) > 1:
        hints.append("`--classes all` takes every value as a class of its own (docs/masks.md).")
    return UsageError(
        f"Which value of the masks of `{location}` is the foreground is not known.",
        f"Their values (share of the pixels): {shares_in_words(counts)}.{' ' + why if why else ''}",
        " ".join(hints),
    )


def shares_in_words(counts: Mapping[Value, int]) -> str:
    """The commonest values with their shares of the pixels, as a phrase."""
    total = sum(counts.values()) or 1
    largest = sorted(counts, key=lambda value: (-counts[value], value))
    shown = sorted(largest[:_SHOWN])
    shares = ((value, counts[value] / total) for value in shown)
    words = (f"{shown_value(v)} ({f'{s:.1%}' if s >= 0.001 else 'under 0.1%'})" for v, s in shares)
    more = f" and {len(largest) - _SHOWN} others" if len(largest) > _SHOWN else ""
    return ", ".join(words) + more


def mask_labels(
    values: NDArray[Any], reading: MaskReading, *, lossy: bool
) -> tuple[NDArray[Any], list[Value]]:
    """The mask of `values` (H, W), and the values that `reading` does not know.

    It is bool, or uint8 with 0, 1 and IGNORED if values are ignored; of several classes uint8 with
    0 to K and IGNORED. `lossy` values are rounded to the nearest known one.
    """
    if reading.class_values:
        return _class_numbers(values, reading)
    if lossy:
        steps = np.asarray(reading.lossy_steps, np.float64)
        values = steps[np.searchsorted((steps[1:] + steps[:-1]) / 2, values, side="right")]
    ignored = _any_of(values, reading.ignored)
    if reading.foreground is None:
        foreground = (values != 0) & ~ignored
    else:
        foreground = _any_of(values, reading.foreground)
    unknown: list[Value] = []
    if reading.background is not None and not lossy:
        unlabelled = ~(foreground | ignored | _any_of(values, reading.background))
        unknown = [as_number(value) for value in np.unique(values[unlabelled])]
    if not reading.ignored:
        return foreground, unknown
    labels = foreground.astype(np.uint8)
    labels[ignored] = IGNORED
    return labels, unknown


def _class_numbers(
    values: NDArray[Any], reading: MaskReading
) -> tuple[NDArray[np.uint8], list[Value]]:
    """The number of the class of each pixel, 0 to K, or IGNORED; and the unknown values."""
    numbered = dict.fromkeys(reading.background or (), 0)
    numbered |= {v: n for n, of_class in enumerate(reading.class_values, 1) for v in of_class}
    numbered |= dict.fromkeys(reading.ignored, IGNORED)
    values = as_bytes(values)
    if values.dtype == np.uint8:
        present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
        table = np.zeros(256, np.uint8)
        for value, number in numbered.items():
            if 0 <= value < len(table) and value == int(value):
                table[int(value)] = number
        unknown = [as_number(value) for value in present if int(value) not in numbered]
        return table[values], unknown
    different, inverse = np.unique(values, return_inverse=True)
    keys = [as_number(value) for value in different]
    numbers = np.array([numbered.get(key, 0) for key in keys], np.uint8)
    unknown = [key for key in keys if key not in numbered]
    return numbers[inverse].reshape(values.shape), unknown


def _any_of(values: NDArray[Any], members: Iterable[Value]) -> NDArray[np.bool_]:
    is_member = np.zeros(values.shape, bool)
    for value in members:
        is_member |= values == value
    return is_member


def is_foreground(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Which pixels of a decoded mask (H, W) are of any class: neither background nor ignored."""
    return mask if mask.dtype == bool else (mask != 0) & (mask != IGNORED)


def as_bytes(values: NDArray[Any]) -> NDArray[Any]:
    """The same values as bytes if they are all whole numbers from 0 to 255, which is faster."""
    if (
        values.dtype == np.uint8
        or not values.size
        or not (values.min() >= 0 and values.max() <= 255)
    ):
        return values
    narrow = values.astype(np.uint8)
    return narrow if bool((narrow == values).all()) else values


def as_number(value: Any) -> Value:
    """A NumPy number as a Python number: an int if it is integral."""
    number = float(value)
    return int(number) if np.isfinite(number) and number == int(number) else number


def unknown_values(unknown: Sequence[Value], reading: MaskReading, place: str) -> UsageError:
    """The error for values that the reading of the data set does not know."""
    more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    fault = f"The mask `{place}` holds {shown_values(unknown[:_SHOWN])}{more}."
    why = (
        f"The masks of this data set are read as {reading.words()}; what other values mean is not "
        "known."
    )
    if reading.class_values:
        return UsageError(
            fault, why,
            f"Correct the mask, add the value to the classes ({reading.source}), or leave it out "
            "of training and scores with `--ignore VALUES`.",
        )  # fmt: skip
    return UsageError(
        fault,
        why,
        "Correct the mask, or say what counts: `--foreground VALUES` (everything else is then "
        "background), `--ignore VALUES` (left out of training and scores).",
    )
