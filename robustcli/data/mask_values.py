"""Which values of masks are foreground, background or to be ignored: one decision for a data set.

A mask file holds numbers, colours or transparency. What they mean is decided once, from the values
of all masks (of a large set: of a sample that depends on nothing but the ids) and what the user
says, and every mask is then read by that decision. A value that it does not know is an error that
names the file; nothing is guessed file by file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robustcli.core.errors import UsageError

IGNORED = 255
"""In a mask as it is decoded: pixels that count neither in training nor in scores."""
NONZERO = "nonzero"
COLOUR_OFFSET = 1 << 32
"""Added to the 24 bits of a colour, so that it is no grey value; greys are their one number."""
OPAQUE = 255
Value: TypeAlias = float
"""A number as the file has it, or COLOUR_OFFSET + 0xRRGGBB."""
ValueOption: TypeAlias = "int | float | str | Sequence[int | float | str] | None"
"""Values as a user names them: 128, "128", "1,2", "#ff0000", or several in a sequence."""

STANDARD = (1, 255, 65535)
"""How foreground is written in most sets; any of them is foreground where nothing else but 0 is."""
_NEAR = 32
"""A value of a lossy file this near to a known one is taken for it in the census."""
_MOST_BETWEEN = 0.1
"""The share of pixels of lossy files that may lie between the known values: blurred edges."""
_PEAK, _PEAK_PIXELS = 0.005, 64
"""The share (and the number) of pixels from which one value between is no blur but a class."""
_SHOWN = 8


@dataclass(frozen=True)
class MaskReading:
    """How the masks of a data set are read.

    Args:
        foreground: Its values; None for everything that is neither 0 nor ignored.
        background: Its values; None for everything else.
        ignored: Values of pixels that count nowhere.
        channel: What holds the mask: the colours, or the transparency.
        kind: What the files hold where it is not grey values of 8 bits, in words.
    """

    foreground: tuple[Value, ...] | None
    background: tuple[Value, ...] | None = (0,)
    ignored: tuple[Value, ...] = ()
    channel: Literal["colour", "alpha"] = "colour"
    kind: str = ""

    @property
    def is_standard(self) -> bool:
        """Whether the masks are bytes of 0 and 1, or of 0 and 255, as nearly all masks are."""
        return (
            self.channel == "colour"
            and not self.kind
            and not self.ignored
            and self.background == (0,)
            and self.foreground is not None
            and set(self.foreground) <= set(STANDARD)
        )

    @property
    def known(self) -> tuple[Value, ...]:
        """Every value that the decision names, and 0."""
        return tuple(
            dict.fromkeys((0, *(self.background or ()), *(self.foreground or ()), *self.ignored))
        )

    def words(self) -> str:
        """The decision in words."""
        foreground = "all but 0" if self.foreground is None else shown_values(self.foreground)
        background = "everything else" if self.background is None else shown_values(self.background)
        where = " of the alpha channel" if self.channel == "alpha" else ""
        ignored = f", ignored {shown_values(self.ignored)}" if self.ignored else ""
        kind = f" ({self.kind})" if self.kind else ""
        return f"foreground {foreground}{where}, background {background}{ignored}{kind}"


@dataclass
class Census:
    """The values of some masks and how many pixels have each.

    Args:
        masks: How many masks were read.
        of: How many there are.
        exact: By (colour, alpha), pixels of files that keep values exactly.
        lossy: By value, pixels of files whose compression blurs them.
        blurred_colours: Whether a lossy file has colours.
        kinds: What files hold that are not grey values of 8 bits, in words.
    """

    of: int
    masks: int = 0
    exact: Counter[tuple[Value, int]] = field(default_factory=Counter)
    lossy: Counter[Value] = field(default_factory=Counter)
    blurred_colours: bool = False
    kinds: set[str] = field(default_factory=set)


def parse_values(option: ValueOption, flag: str) -> tuple[Value, ...]:
    """The values that a user named.

    Args:
        option: As the user named them.
        flag: The option, for the message.

    Raises:
        UsageError: It is no number and no colour.
    """
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
        raise _no_value(option, flag)
    return values


def mask_settings(foreground: ValueOption, ignore: ValueOption) -> list[object]:
    """The two options about masks in one spelling, for the hash of a run's settings.

    Empty where the user gave neither.

    Raises:
        UsageError: It names no values.
    """
    if foreground is None and ignore is None:
        return []
    named = NONZERO if _is_nonzero(foreground) else parse_values(foreground, "--foreground")
    return [named, parse_values(ignore, "--ignore")]


def check_no_masks(foreground: ValueOption, ignore: ValueOption) -> None:
    """Refuses options about masks where the data have classes.

    Raises:
        UsageError: One of them was given.
    """
    for flag, option in (("--foreground", foreground), ("--ignore", ignore)):
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
            raise _no_value(option, flag) from None
        if red == green == blue:
            return red
        return COLOUR_OFFSET + int(text[1:], 16)
    try:
        number = float(text)
    except ValueError:
        raise _no_value(option, flag) from None
    if not np.isfinite(number):
        raise _no_value(option, flag)
    return int(number) if number == int(number) else number


def _no_value(option: object, flag: str) -> UsageError:
    extra = f", or `{NONZERO}`" if flag == "--foreground" else ""
    return UsageError(
        f"`{flag} {option}` names no values of masks.",
        f"Expected numbers with commas between them (`128`, `1,2`), colours (`#ff0000`){extra}.",
        "Correct it, or leave it out: the message then lists the values of the masks.",
    )


def shown_value(value: Value) -> str:
    """A value as a user would write it."""
    if value >= COLOUR_OFFSET:
        return f"#{int(value) - COLOUR_OFFSET:06x}"
    return f"{value:g}" if isinstance(value, float) and value != int(value) else f"{int(value)}"


def shown_values(values: Sequence[Value]) -> str:
    """Values as a user would write them, with commas."""
    return ", ".join(map(shown_value, values)) or "nothing"


def decide(
    census: Census, location: str, *, foreground: ValueOption = None, ignore: ValueOption = None
) -> tuple[MaskReading, list[str]]:
    """How masks with these values are read, and notes about it for the user.

    Without `foreground`, masks of two values (beside those to ignore) are read: the larger one is
    the foreground, of a colour and black the colour. Others are refused.

    Args:
        census: The values.
        location: The data set, for messages.
        foreground: Its values as the user named them, or `nonzero`.
        ignore: The values to ignore.

    Raises:
        UsageError: The values do not tell, or what the user says contradicts itself or the masks.
    """
    nonzero = _is_nonzero(foreground)
    named = () if nonzero else parse_values(foreground, "--foreground")
    ignored = parse_values(ignore, "--ignore")
    both = [value for value in named if value in ignored]
    if both:
        raise UsageError(
            f"`--foreground` and `--ignore` both name {shown_values(both)}.",
            "A value is either to be found or to be left out.",
            "Leave it out of one of the two.",
        )
    channel, counts = _channel(census, location)
    if named or nonzero:
        reading = MaskReading(None if nonzero else named, None, ignored, channel)
        _check_named(reading, counts, census, location)
    else:
        reading = _by_values(counts, census, location, ignored, channel)
    reading = replace(reading, kind=" and ".join(sorted(census.kinds)))
    between = _check_lossy(reading, census, location)
    if census.blurred_colours:
        raise UsageError(
            f"The masks of `{location}` are JPEG files with colours.",
            "JPEG blurs colours over their edges, so that it is not known where they end.",
            "Write the masks anew as PNG with 0 and 255.",
        )
    return reading, _announcements(reading, counts, census, between)


def _channel(census: Census, location: str) -> tuple[Literal["colour", "alpha"], Counter[Value]]:
    """Whether colours or transparency are the mask, and the pixels of each of their values."""
    colours: Counter[Value] = Counter()
    alphas: Counter[Value] = Counter()
    for (colour, alpha), pixels in census.exact.items():
        colours[colour] += pixels
        alphas[alpha] += pixels
    if set(alphas) <= {OPAQUE} or len(alphas) == 1:
        return "colour", colours
    if len(colours) == 1 and not census.lossy:
        return "alpha", alphas
    # Where each colour has one transparency, and what is transparent is black, nothing is lost.
    alphas_of = {colour: {a for c, a in census.exact if c == colour} for colour in colours}
    if all(len(of) == 1 for of in alphas_of.values()):
        clear = [colour for colour, of in alphas_of.items() if of == {0}]
        if clear in ([0], []):
            return "colour", colours
    raise UsageError(
        f"The masks of `{location}` have colours and an alpha channel that say different things.",
        f"There are {len(colours)} colours and {len(alphas)} degrees of transparency, and they "
        "have different outlines: which of them is the mask is not known.",
        "Write the masks anew without an alpha channel, as PNG with 0 and 255.",
    )


def _by_values(
    counts: Mapping[Value, int], census: Census, location: str, ignored: tuple[Value, ...],
    channel: Literal["colour", "alpha"],
) -> MaskReading:  # fmt: skip
    """The reading where the user names no foreground: two values decide by themselves."""
    values = sorted(value for value in counts if value not in ignored)
    if not values and census.lossy:
        values = [0, 255]  # whether the lossy files fit is checked by the caller
    if any(value != value for value in counts):
        raise _not_two(counts, location, ignored, "Some pixels are no number (NaN).")
    if len(values) > 2:
        raise _not_two(counts, location, ignored, "")
    if not values:
        raise UsageError(
            f"`--ignore {shown_values(ignored)}` leaves nothing of the masks of `{location}`.",
            "They have no other value.",
            "Name the value of the pixels that nobody annotated.",
        )
    if len(values) == 1:
        only = values[0]
        if only == 0:
            unseen = (OPAQUE,) if census.lossy else STANDARD
            return MaskReading(unseen, (0,), ignored, channel)
        if only not in STANDARD:
            raise _not_two(counts, location, ignored, "")
        return MaskReading((only,), (0,), ignored, channel)
    low, high = values
    # Of two colours, or a colour and white, neither is the background by itself.
    if high >= COLOUR_OFFSET and low != 0:
        raise _not_two(counts, location, ignored, "Neither of them is black.")
    if low < 0:
        raise _not_two(counts, location, ignored, "")
    return MaskReading((high,), (low,), ignored, channel)


def _check_named(
    reading: MaskReading, counts: Mapping[Value, int], census: Census, location: str
) -> None:
    """Raises UsageError where no mask has a value that the user named and all were counted."""
    whole = census.masks == census.of and not census.lossy
    lacking = [v for v in reading.foreground or () if v not in counts]
    if whole and reading.foreground and len(lacking) == len(reading.foreground):
        raise UsageError(
            f"No mask of `{location}` has the value {shown_values(lacking)}.",
            f"Their values (share of the pixels): {_shares(counts)}.",
            "Name one of these with `--foreground`.",
        )


def _check_lossy(reading: MaskReading, census: Census, location: str) -> float:
    """The share of the lossy files' pixels that lies between the known values.

    Raises:
        UsageError: It is too large, or one value between is so frequent that it is a class.
    """
    if not census.lossy:
        return 0.0
    known = _nearest_known(reading)
    between = blurred_share(census.lossy, known, _MOST_BETWEEN, _PEAK)
    total = sum(census.lossy.values())
    # Values of 0 to 3 alone may have been the classes 0 and 1.
    destroyed = max(census.lossy) <= _NEAR and census.lossy[0] < total * (1 - _PEAK)
    if between is None or (destroyed and not census.exact):
        raise _not_two(
            census.lossy, location, reading.ignored,
            f"JPEG blurs edges, but these are not only {shown_values(known)} and blur.",
        )  # fmt: skip
    return between


def _nearest_known(reading: MaskReading) -> list[Value]:
    """The values one of which every pixel of a lossy file is taken for, rising."""
    known = sorted(value for value in reading.known if value < COLOUR_OFFSET)
    return [0, OPAQUE] if reading.foreground is None or len(known) == 1 else known


def blurred_share(
    counts: Mapping[Value, int], known: Sequence[Value], most: float, peak: float
) -> float | None:
    """Of values that compression has blurred, the share of pixels between the `known` ones.

    None where these are more than `most`, or where one value between has more than `peak` of all
    pixels (and more than a few): then it is a class of its own.
    """
    total = sum(counts.values())
    far = {v: n for v, n in counts.items() if min(abs(v - k) for k in known) > _NEAR}
    highest = max(far.values(), default=0)
    if sum(far.values()) > most * total or highest > max(peak * total, _PEAK_PIXELS):
        return None
    return sum(far.values()) / total


def _announcements(
    reading: MaskReading, counts: Mapping[Value, int], census: Census, between: float
) -> list[str]:
    """Notes about the reading for the user: none for masks of 0 and 1, or of 0 and 255."""
    notes = []
    counted = "" if census.masks == census.of else f" (by {census.masks} of {census.of} masks)"
    if not reading.is_standard:
        shares = f"; values and their shares of the pixels: {_shares(counts)}" if counts else ""
        notes.append(f"Masks: {reading.words()}{counted}{shares}.")
    elif len(counts) == 1 and 0 not in counts:
        notes.append(
            f"Masks: every pixel of all {census.masks} masks is foreground "
            f"({shown_values(tuple(counts))})."
        )
    if census.lossy:
        notes.append(
            "Masks: JPEG has blurred their edges; each pixel is taken for the nearest of "
            f"{shown_values(_nearest_known(reading))} ({between:.1%} of the pixels lie between)."
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
    ways = [f"Name what is to be found, such as `--foreground {in_shell}` (`1,2` for several, "
            f"`{NONZERO}` for all that is not 0); everything else is then background."]  # fmt: skip
    if ignorable is not None:
        ways.append(
            f"`--ignore {shown_value(ignorable)}` leaves that value out of training and scores."
        )
    else:
        ways.append("`--ignore VALUE` leaves a value out of training and scores.")
    return UsageError(
        f"Which value of the masks of `{location}` is the foreground is not known.",
        f"Their values (share of the pixels): {_shares(counts)}.{' ' + why if why else ''}",
        " ".join(ways),
    )


def _shares(counts: Mapping[Value, int]) -> str:
    total = sum(counts.values()) or 1
    largest = sorted(counts, key=lambda value: (-counts[value], value))
    shown = sorted(largest[:_SHOWN])
    words = [f"{shown_value(value)} ({_share(counts[value] / total)})" for value in shown]
    more = f" and {len(largest) - _SHOWN} others" if len(largest) > _SHOWN else ""
    return ", ".join(words) + more


def _share(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "under 0.1%"


def labels_of(
    values: NDArray[Any], reading: MaskReading, *, lossy: bool
) -> tuple[NDArray[Any], list[Value]]:
    """The mask as `reading` has it, and the values that it does not know.

    Args:
        values: (H, W), any numbers.
        reading: The decision.
        lossy: Whether each value stands for the nearest one that is named.

    Returns:
        bool where nothing is ignored, else uint8 with 0, 1 and IGNORED.
    """
    if lossy:
        steps = np.asarray(_nearest_known(reading), np.float64)
        values = steps[np.searchsorted((steps[1:] + steps[:-1]) / 2, values, side="right")]
    ignored = _any_of(values, reading.ignored)
    if reading.foreground is None:
        foreground = (values != 0) & ~ignored
    else:
        foreground = _any_of(values, reading.foreground)
    unknown: list[Value] = []
    if reading.background is not None and not lossy:
        rest = ~(foreground | ignored | _any_of(values, reading.background))
        unknown = [as_number(value) for value in np.unique(values[rest])]
    if not reading.ignored:
        return foreground, unknown
    labels = foreground.astype(np.uint8)
    labels[ignored] = IGNORED
    return labels, unknown


def _any_of(values: NDArray[Any], wanted: Iterable[Value]) -> NDArray[np.bool_]:
    found = np.zeros(values.shape, bool)
    for value in wanted:
        found |= values == value
    return found


def as_number(value: Any) -> Value:
    """A number of numpy as one of Python: an int where it is whole."""
    number = float(value)
    return int(number) if np.isfinite(number) and number == int(number) else number


def unknown_values(unknown: Sequence[Value], reading: MaskReading, place: str) -> UsageError:
    """The error where a mask holds values that the decision for its data set does not know."""
    more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    return UsageError(
        f"The mask `{place}` holds {shown_values(unknown[:_SHOWN])}{more}.",
        f"The masks of this data set are read as {reading.words()}; what other values mean is not "
        "known.",
        "Correct the mask, or say what counts: `--foreground VALUES` (everything else is then "
        "background), `--ignore VALUES` (left out of training and scores).",
    )
