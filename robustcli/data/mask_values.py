"""Interprets the values of masks as foreground, background or ignored, once per data set.

A mask file contains numbers, colours or transparency. Their meaning is determined once, from the
user's options and the values of all masks (in a large data set, of a sample that depends only on
the ids). All masks are then read with this interpretation, a `MaskReading`. A value without meaning
is an error that names the file.
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
"""Label in a decoded mask of pixels that are excluded from training and scores."""
UNSCORED = "every pixel of the mask is ignored"
"""Why an image is left out of an evaluation, although its files can be read."""
NONZERO = "nonzero"
COLOUR_OFFSET = 1 << 32
"""Added to the 24 bits of a colour, to distinguish colours from grey values."""
OPAQUE = 255
Value: TypeAlias = float
"""A value of a mask: a number as in the file, or COLOUR_OFFSET + 0xRRGGBB for a colour."""
ValueOption: TypeAlias = "int | float | str | Sequence[int | float | str] | None"
"""Values as set by the user: 128, "128", "1,2", "#ff0000", or a sequence of these."""

PaletteReading: TypeAlias = Literal["auto", "index", "colour"]
STANDARD = (1, 255, 65535)
"""Usual foreground values; each of them is foreground if 0 is the only other value."""
_NEAR = 32  # values of lossy files up to this distance from a known value count as that value
# Largest share of pixels of lossy files between the known values, from blurred edges.
_MOST_BETWEEN = 0.1
# A value between the known values with a larger share and number of pixels is not blur.
_PEAK, _PEAK_PIXELS = 0.005, 64
_SHOWN = 8


@dataclass(frozen=True)
class MaskReading:
    """Interpretation of the values of all masks of a data set.

    Args:
        foreground: Foreground values; None for all values except 0 and ignored ones.
        background: Background values; None for all other values.
        ignored: Values of ignored pixels.
        channel: The channel that is the mask: the colours, or the transparency.
        kind: Description of contents other than 8-bit grey values.
        classes: Names of the classes 1 to K in order, at least two; empty for masks of foreground
            and background.
        class_values: Values of each class; empty for masks with one file per class.
        class_files: For masks with one file per class, the identifier of each class in the names of
            its files. `foreground` and `background` are then the values in each file. Empty if a
            mask is one file.
        covers: Whether a class overwrites preceding classes where files overlap; if not, an overlap
            is an error.
        colours: Colour for drawing each class, `#rrggbb`; empty for the default.
        palette: Which values of a file with a palette are used: its indices, its colours, or
            depending on the palette of each file.
        source: The option or file that defines the classes, for messages.
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
        """Whether the masks are the usual ones: bytes of 0 and 1, or of 0 and 255."""
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
        """All values with a meaning, and 0."""
        of_classes = (value for values in self.class_values for value in values)
        named = (*(self.background or ()), *(self.foreground or ()), *of_classes, *self.ignored)
        return tuple(dict.fromkeys((0, *named)))

    @property
    def lossy_steps(self) -> list[Value]:
        """The values to which pixels of lossy files are rounded, in ascending order."""
        steps = sorted(value for value in self.known if value < COLOUR_OFFSET)
        return [0, OPAQUE] if self.foreground is None or len(steps) == 1 else steps

    def words(self) -> str:
        """Description of this interpretation as a phrase."""
        if self.class_files:
            order = "; where classes overlap, the later one is used" if self.covers else ""
            files = replace(self, classes=(), class_files=())
            return (
                f"{len(self.classes)} classes in separate files: "
                f"{', '.join(self.classes)}{order}; {files.words()}"
            )
        ignored = f", ignored {shown_values(self.ignored)}" if self.ignored else ""
        kind = f" ({self.kind})" if self.kind else ""
        if self.class_values:
            named = zip(self.classes, self.class_values, strict=True)
            classes = ", ".join(f"{shown_values(values)} = {name}" for name, values in named)
            background = shown_values(self.background or ())
            return f"{len(self.classes)} classes: {classes}, background {background}{ignored}{kind}"
        foreground = "all but 0" if self.foreground is None else shown_values(self.foreground)
        background = "everything else" if self.background is None else shown_values(self.background)
        channel_note = " of the alpha channel" if self.channel == "alpha" else ""
        return f"foreground {foreground}{channel_note}, background {background}{ignored}{kind}"


@dataclass
class Census:
    """Pixel counts of the values in the surveyed masks.

    Args:
        total: Number of masks of the data set.
        masks: Number of masks that were read.
        exact: Number of pixels in losslessly compressed files by (colour, alpha).
        lossy: Number of pixels in files with lossy compression by value.
        blurred_colours: Whether a lossy file has colours.
        kinds: Descriptions of contents other than 8-bit grey values.
        palette: Number of pixels in files with a palette by (index, colour), if these are counted
            separately.
    """

    total: int
    masks: int = 0
    exact: Counter[tuple[Value, int]] = field(default_factory=Counter)
    lossy: Counter[Value] = field(default_factory=Counter)
    blurred_colours: bool = False
    kinds: set[str] = field(default_factory=set)
    palette: Counter[tuple[Value, Value]] = field(default_factory=Counter)

    def add(self, other: Census) -> None:
        """Adds the counts of another census."""
        self.total += other.total
        self.masks += other.masks
        self.exact.update(other.exact)
        self.lossy.update(other.lossy)
        self.palette.update(other.palette)
        self.blurred_colours = self.blurred_colours or other.blurred_colours
        self.kinds |= other.kinds


def parse_values(option: ValueOption, flag: str) -> tuple[Value, ...]:
    """The values of the option `flag`; raises UsageError for anything but numbers or colours."""
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
    """The options in a canonical form, for the hash of a run's settings; empty without them."""
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
                f"`{flag} {option}` cannot be used with classifiers.",
                "It selects values of masks, and images for classifiers have classes instead.",
                "Omit it.",
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
        f"`{flag} {option}` contains no values of masks.",
        f"Expected numbers with commas between them (`128`, `1,2`), colours (`#ff0000`){extra}.",
        "Correct it, or omit it, so that the values of the masks are listed.",
    )


def shown_value(value: Value) -> str:
    """The value in the notation of the options."""
    if not math.isfinite(value):
        return str(value)
    if value >= COLOUR_OFFSET:
        return f"#{int(value) - COLOUR_OFFSET:06x}"
    return f"{value:g}" if isinstance(value, float) and value != int(value) else f"{int(value)}"


def in_shell(values: Sequence[Value], names: Sequence[str] = ()) -> str:
    """The values, optionally with names, as argument of an option, quoted if a shell needs it."""
    ends = [f"={name}" for name in names] or [""] * len(values)
    text = ",".join(f"{shown_value(v)}{end}" for v, end in zip(values, ends, strict=True))
    return f"'{text}'" if "#" in text else text


def shown_values(values: Sequence[Value]) -> str:
    """The values in the notation of the options, separated by commas."""
    return ", ".join(map(shown_value, values)) or "nothing"


def decide(
    census: Census, location: str, *, foreground: ValueOption = None, ignore: ValueOption = None
) -> tuple[MaskReading, list[str]]:
    """The interpretation of masks as foreground and background, and notes for the user.

    Without `foreground`, the masks may have two values in addition to ignored ones: the larger
    value is the foreground; of a colour and black, the colour.

    Args:
        census: Values of the masks.
        location: Path of the data set, for messages.
        foreground: Foreground values, or `nonzero`; None to determine them.
        ignore: Values to ignore.

    Raises:
        UsageError: The values are ambiguous, or the options contradict each other or the masks.
    """
    nonzero = _is_nonzero(foreground)
    foreground_values = () if nonzero else parse_values(foreground, "--foreground")
    ignored = parse_values(ignore, "--ignore")
    shared = [value for value in foreground_values if value in ignored]
    if shared:
        raise UsageError(
            f"`--foreground` and `--ignore` both contain {shown_values(shared)}.",
            "A value can be foreground or be ignored, but not both.",
            "Remove it from one of the two options.",
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
            "JPEG blurs colours at edges, so that the borders of the masks are not known.",
            "Save the masks again from their originals as PNG.",
        )
    return reading, _announcements(reading, counts, census, between)


def channel_of(census: Census, location: str) -> tuple[Literal["colour", "alpha"], Counter[Value]]:
    """The channel that is the mask, and the number of pixels by value of that channel."""
    colours: Counter[Value] = Counter()
    alphas: Counter[Value] = Counter()
    for (colour, alpha), pixels in census.exact.items():
        colours[colour] += pixels
        alphas[alpha] += pixels
    if set(alphas) <= {OPAQUE} or len(alphas) == 1:
        return "colour", colours
    if len(colours) == 1 and not census.lossy:
        return "alpha", alphas
    # The colours suffice if each colour has one alpha value and only black is transparent.
    alphas_of = {colour: {a for c, a in census.exact if c == colour} for colour in colours}
    if all(len(alphas) == 1 for alphas in alphas_of.values()):
        transparent = [colour for colour, alphas in alphas_of.items() if alphas == {0}]
        if transparent in ([0], []):
            return "colour", colours
    raise UsageError(
        f"The masks of `{location}` have colours and an alpha channel that contradict each other.",
        f"They have {len(colours)} colours and {len(alphas)} levels of transparency with "
        "different outlines, so that it is not known which of them is the mask.",
        "Save the masks again as PNG without an alpha channel.",
    )


def _reading_of_two(
    counts: Mapping[Value, int], census: Census, location: str, ignored: tuple[Value, ...],
    channel: Literal["colour", "alpha"],
) -> MaskReading:  # fmt: skip
    """The interpretation of masks with two values if the user sets no foreground."""
    check_numbers(counts, location)
    values = sorted(value for value in counts if value not in ignored)
    if not values and census.lossy:
        values = [0, 255]  # the caller checks the lossy files
    if len(values) > 2:
        raise _not_two(counts, location, ignored, "")
    if not values:
        raise UsageError(
            f"`--ignore {shown_values(ignored)}` ignores all values of the masks of `{location}`.",
            "They have no other value.",
            "Pass only the value of the pixels without annotation.",
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
    # Of two colours, or a colour and white, either could be the background.
    if high >= COLOUR_OFFSET and low != 0:
        raise _not_two(counts, location, ignored, "Neither of them is black.")
    if low < 0:
        raise _not_two(counts, location, ignored, "")
    return MaskReading((high,), (low,), ignored, channel)


def check_numbers(counts: Iterable[Value], location: str) -> None:
    """Raises UsageError if a value is NaN, which no option can name."""
    if any(math.isnan(value) for value in counts):
        raise UsageError(
            f"The masks of `{location}` have values that have no meaning.",
            "Some pixels are not a number (NaN).",
            "Save them again with integers.",
        )


def _check_named(
    reading: MaskReading, counts: Mapping[Value, int], census: Census, location: str
) -> None:
    """Raises UsageError if all masks were counted and none has a foreground value."""
    is_complete = census.masks == census.total and not census.lossy
    missing = [v for v in reading.foreground or () if v not in counts]
    if is_complete and reading.foreground and len(missing) == len(reading.foreground):
        raise UsageError(
            f"No mask of `{location}` has the value {shown_values(missing)}.",
            f"Their values (share of the pixels): {shares_in_words(counts)}.",
            "Pass one of these with `--foreground`.",
        )


def check_lossy(reading: MaskReading, census: Census, location: str) -> float:
    """The share of pixels in lossy files between known values; UsageError if too large."""
    if not census.lossy:
        return 0.0
    steps = reading.lossy_steps
    between = blurred_share(census.lossy, steps, _MOST_BETWEEN, _PEAK)
    total = sum(census.lossy.values())
    # Values from 0 to 3 could have been the classes 0 and 1 before lossy compression.
    is_destroyed = max(census.lossy) <= _NEAR and census.lossy[0] < total * (1 - _PEAK)
    if between is None or (is_destroyed and not census.exact):
        raise _not_two(
            census.lossy, location, reading.ignored,
            f"JPEG blurs edges, but blur of {shown_values(steps)} does not explain all of these "
            "values.",
        )  # fmt: skip
    return between


def blurred_share(
    counts: Mapping[Value, int], known: Sequence[Value], most_between: float, peak: float
) -> float | None:
    """The share of pixels of lossy files whose values are between the `known` values.

    None if the share is above `most_between`, or if a single value between has more than the share
    `peak` of all pixels (and more than `_PEAK_PIXELS`), because it is then a class, not blur.
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
    """Notes for the user; empty for usual masks (`is_standard`) without lossy files."""
    notes = []
    is_complete = census.masks == census.total
    counted = "" if is_complete else f" (from {census.masks} of {census.total} masks)"
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
            "Masks: JPEG has blurred their edges; each pixel is assigned the nearest of "
            f"{shown_values(reading.lossy_steps)} ({between:.1%} of the pixels are between them)."
        )
    return notes


def _not_two(
    counts: Mapping[Value, int], location: str, ignored: Sequence[Value], why: str
) -> UsageError:
    values = [value for value in sorted(counts) if value not in ignored]
    ignorable = next((v for v in (255, 65535, -1) if v in values and len(values) == 3), None)
    likely = [value for value in values if value not in (0, ignorable)]
    example = likely[-1:] or values[-1:] or [OPAQUE]
    coloured = any(value >= COLOUR_OFFSET for value in values)
    value, zero, several = ("colour", "black", likely[-2:]) if coloured else ("value", "0", [1, 2])
    hints = [
        f"Specify the foreground, for example `--foreground {in_shell(example)}` "
        + (f"(`{in_shell(several)}` for several, " if len(several) > 1 else "(")
        + f"`{NONZERO}` for every {value} except {zero}); all other {value}s are then background."
    ]
    if ignorable is not None:
        hints.append(
            f"`--ignore {in_shell([ignorable])}` excludes that {value} from training and scores."
        )
    else:
        hints.append(f"`--ignore {value.upper()}` excludes a {value} from training and scores.")
    if len(likely) > 1:
        hints.append(f"`--classes all` reads every {value} as a separate class (docs/masks.md).")
    return UsageError(
        f"It is not known which {value} of the masks of `{location}` is the foreground.",
        f"Their values (share of the pixels): {shares_in_words(counts)}.{' ' + why if why else ''}",
        " ".join(hints),
    )


def shares_in_words(counts: Mapping[Value, int]) -> str:
    """The most frequent values with their shares of the pixels, as a phrase."""
    total = sum(counts.values()) or 1
    largest = sorted(counts, key=lambda value: (-counts[value], value))
    shown = sorted(largest[:_SHOWN])
    shares = ((value, counts[value] / total) for value in shown)
    words = (f"{shown_value(v)} ({f'{s:.1%}' if s >= 0.001 else 'under 0.1%'})" for v, s in shares)
    suffix = f" and {len(largest) - _SHOWN} others" if len(largest) > _SHOWN else ""
    return ", ".join(words) + suffix


def mask_labels(
    values: NDArray[Any], reading: MaskReading, *, lossy: bool
) -> tuple[NDArray[Any], list[Value]]:
    """The mask of `values` (H, W), and the values without meaning in `reading`.

    The mask is bool; uint8 with 0, 1 and IGNORED if `reading` ignores values; uint8 with 0 to K and
    IGNORED for several classes. `lossy` values are rounded to the nearest known value.
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
    """The class of each pixel, 0 to K or IGNORED, and the unknown values."""
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
    """Pixels of a decoded mask that are neither background nor ignored, bool (H, W)."""
    return mask if mask.dtype == bool else (mask != 0) & (mask != IGNORED)


def is_unscored(mask: NDArray[Any]) -> bool:
    """Whether every pixel of a decoded mask is ignored, so that the image has no score."""
    return mask.dtype != bool and bool((mask == IGNORED).all())


def as_bytes(values: NDArray[Any]) -> NDArray[Any]:
    """The values as uint8 if all are integers from 0 to 255, for speed; else unchanged."""
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
    """The error for values without meaning in the interpretation of the data set."""
    suffix = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    fault = f"The mask `{place}` contains {shown_values(unknown[:_SHOWN])}{suffix}."
    why = (
        f"The masks of this data set are read as {reading.words()}; the meaning of other values "
        "is not known."
    )
    if reading.class_values:
        return UsageError(
            fault, why,
            f"Correct the mask, add the value to the classes ({reading.source}), or exclude it "
            "from training and scores with `--ignore VALUES`.",
        )  # fmt: skip
    return UsageError(
        fault,
        why,
        "Correct the mask, or specify the meaning of its values: `--foreground VALUES` (all other "
        "values are then background), `--ignore VALUES` (excluded from training and scores).",
    )
