"""Masks with several classes: tables of mask values, class names and colours.

A table maps values of the masks to classes. It is defined by `--classes`, by a `labels.json`, or by
the `dataset.json` of nnU-Net (source: nnU-Net v2, `dataset_format.md`).
"""

from __future__ import annotations

import colorsys
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robustcli.core.errors import UsageError
from robustcli.core.io import parse_json
from robustcli.data.mask_values import (
    COLOUR_OFFSET,
    NONZERO,
    Census,
    MaskReading,
    Value,
    ValueOption,
    channel_of,
    check_lossy,
    check_numbers,
    in_shell,
    parse_values,
    shares_in_words,
    shown_value,
    shown_values,
)
from robustcli.data.published_masks import NNUNET_FILE
from robustcli.data.tables import Say, ignore_note

ALL = "all"
_MOST_CLASSES = 200
ClassesOption: TypeAlias = "str | Path | Mapping[Any, Any] | ClassTable | None"
"""The option as set by the user: `all`, `1=liver,2=kidney`, a label file, or its contents."""

_FLAG = "--classes"
_BACKGROUND, _IGNORE = "background", "ignore"
_SHOWN = 20
_COLOUR = re.compile(r"#[0-9a-f]{6}")


@dataclass(frozen=True)
class ClassLabel:
    """An entry of a table of classes.

    Args:
        key: A value of the masks as written by the user (`2`, `#ff0000`); for masks with one file
            per class, the part of the file names that identifies the class.
        name: Name of the class; `background` and `ignore` are not classes, but define the values of
            background and of ignored pixels.
        colour: Colour for drawing the class, `#rrggbb`; empty for the default.
    """

    key: str
    name: str
    colour: str = ""


@dataclass(frozen=True)
class ClassTable:
    """The mask values and names of classes, in the order of the classes.

    `source` is the option or file that defines the table, for messages. If `labels` is empty, every
    value is a class, as with `--classes all`.
    """

    labels: tuple[ClassLabel, ...]
    source: str


def parse_classes(option: ClassesOption) -> ClassTable | None:
    """The table of `--classes`; None for `all`, and without the option.

    Raises:
        UsageError: The option defines no classes, or the file is missing or invalid.
    """
    if option is None or isinstance(option, ClassTable) or is_all(option):
        return option if isinstance(option, ClassTable) else None
    if isinstance(option, Mapping):
        return table_of(option, f"`{_FLAG}`")
    text, path = str(option), Path(option).expanduser()
    names_file = isinstance(option, Path) or text.lower().endswith(".json")
    if (names_file or "=" not in text) and path.is_file():
        return read_class_table(path)
    if names_file:
        raise UsageError(
            f"`{_FLAG} {option}`: the file does not exist.",
            "Expected a label file, pairs (`1=liver,2=kidney`), or `all`.",
            "Check the path.",
        )
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not pairs or any(
        not key.strip() or (sign and not name.strip()) for key, sign, name in pairs
    ):
        raise UsageError(
            f"`{_FLAG} {option}` contains no classes.",
            "Expected pairs of value and name (`1=liver,2=kidney`), a label file, or `all`.",
            "Correct it.",
        )
    labels = (ClassLabel(key.strip(), (name or key).strip()) for key, _, name in pairs)
    return ClassTable(tuple(labels), f"`{_FLAG}`")


def network_class_names(option: ClassesOption) -> tuple[str, ...]:
    """The ordered class names of a table, at least two; empty without the option.

    Raises:
        UsageError: The table has fewer classes, or the option is `all`, which needs masks.
    """
    if option is None:
        return ()
    table = parse_classes(option)
    names = () if table is None else _reading_of(table).classes
    if len(names) < 2:
        raise UsageError(
            f"`{_FLAG} {option}` does not contain the classes of a network.",
            "Expected two or more, in the order of its outputs after background.",
            f"List them, for example `{_FLAG} 1=liver,2=kidney`.",
        )
    return names


def is_all(option: ClassesOption) -> bool:
    """Whether the option makes every value that occurs a class."""
    if isinstance(option, ClassTable):
        return not option.labels
    return isinstance(option, str) and option.strip().lower() == ALL


def read_class_table(path: Path) -> ClassTable:
    """The table in a label file or in nnU-Net's `dataset.json`; UsageError if it has none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"`{path}` cannot be read.", f"{error.strerror or error}.", "Check the file."
        ) from error
    faults = list[str]()
    table = parse_table(content, path.name, faults.append)
    if table is None:
        raise _no_table(path.name, " ".join(faults) or "It has no `labels`.")
    return table


def parse_table(content: bytes, name: str, say: Say = ignore_note) -> ClassTable | None:
    """The table in the contents of a label file; None if the file contains no table.

    `say` receives a note about a file that is not used.

    Raises:
        UsageError: The table is invalid.
    """
    repeated = list[str]()

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in pairs)
        repeated.extend(key for key, number in counts.items() if number > 1)
        return dict(pairs)

    try:
        plain = parse_json(content.decode("utf-8-sig"), object_pairs_hook=unique)
    except ValueError as error:
        say(f"`{name}` in the data set is not JSON and is ignored: {error}.")
        return None
    if isinstance(plain, Mapping) and isinstance(plain.get("labels"), Mapping | list):
        plain = plain["labels"]
    elif name.lower() == NNUNET_FILE:
        return None
    if _is_table(plain):
        if repeated:
            raise _no_table(name, f"It contains {', '.join(map(repr, repeated))} more than once.")
        return table_of(plain, f"`{name}`")
    say(f"`{name}` in the data set is not a table of values and names, and is ignored.")
    return None


def published_table(classes: Sequence[tuple[str, str]] | str) -> ClassesOption:
    """Converts `Layout.classes` to an option: every value, a table of classes, or None."""
    if not classes:
        return None
    if isinstance(classes, str):
        return ClassTable((), "as published by the owners of the data set: every value is a class")
    return ClassTable(
        tuple(ClassLabel(*pair) for pair in classes), "as published by the owners of the data set"
    )


def _is_table(plain: Any) -> bool:
    if isinstance(plain, list):
        return bool(plain) and all(isinstance(name, str) for name in plain)
    if not isinstance(plain, Mapping) or not plain:
        return False
    described = all(
        isinstance(v, str) or (isinstance(v, Mapping) and isinstance(v.get("name"), str))
        for v in plain.values()
    )
    return described or _holds_numbers(plain)


def _holds_numbers(plain: Mapping[Any, Any]) -> bool:
    """Whether the mapping is from names to values, as in nnU-Net, not from values to names."""
    members = [v for value in plain.values() for v in (value if _is_list(value) else [value])]
    return bool(members) and all(type(value) in (int, float) for value in members)


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def table_of(plain: Mapping[Any, Any] | Sequence[str], source: str) -> ClassTable:
    """The table in the parsed contents of a label file.

    Accepts `{"1": "liver"}`, `{"#ff0000": "liver"}`,
    `{"1": {"name": "liver", "colour": "#ff0000"}}`, nnU-Net's `{"liver": 1}` (or `[1, 2]` as
    values), and a list of names for the values from 0 on.

    Raises:
        UsageError: The contents have another form, or two of nnU-Net's regions overlap.
    """
    if not _is_table(plain):
        raise _no_table(source.strip("`"), "It is not a table of values and names.")
    if not isinstance(plain, Mapping):
        named = (ClassLabel(str(i), name.strip()) for i, name in enumerate(plain) if name.strip())
        return ClassTable(tuple(named), source)
    if _holds_numbers(plain):
        of_names = [(str(v), str(name)) for name, value in plain.items()
                    for v in (value if _is_list(value) else [value])]  # fmt: skip
        counts = Counter(key for key, _ in of_names)
        shared = sorted(key for key, number in counts.items() if number > 1)
        if shared:
            raise UsageError(
                f"The labels in {source} are regions that overlap.",
                f"The value {', '.join(shared)} belongs to several regions, but a pixel can have "
                "only one class here.",
                f"List classes that do not overlap, for example `{_FLAG} 1=edema,2=core`.",
            )
        return ClassTable(tuple(ClassLabel(key, name.strip()) for key, name in of_names), source)
    labels = []
    for key, label in plain.items():
        described = label if isinstance(label, Mapping) else {"name": label}
        colour = str(described.get("colour") or described.get("color") or "").lower()
        if colour and not _COLOUR.fullmatch(colour):
            raise _no_table(source.strip("`"), f"`{colour}` is not a colour, expected `#rrggbb`.")
        if not described["name"].strip():
            raise _no_table(source.strip("`"), f"The name of `{key}` is empty.")
        labels.append(ClassLabel(str(key).strip(), described["name"].strip(), colour))
    return ClassTable(tuple(labels), source)


def _no_table(name: str, why: str) -> UsageError:
    return UsageError(
        f"`{name}` contains no classes of masks.",
        why,
        'Write `{"0": "background", "1": "liver", "2": "kidney"}` (value in the masks, or a '
        'colour such as `"#ff0000"`, and name), or a list of names that starts with value 0.',
    )


def _reading_of(table: ClassTable) -> MaskReading:
    """The values and classes of a table; classes are sorted by value if no value is a colour.

    Raises:
        UsageError: A key is not a value, or a value occurs twice.
    """
    by_name: dict[str, list[Value]] = defaultdict(list)
    colours: dict[str, str] = {}
    for label in table.labels:
        by_name[label.name] += parse_values(label.key, table.source.strip("`") + ":")
        colours.setdefault(label.name, label.colour)
    counts = Counter(value for values in by_name.values() for value in values)
    repeated = sorted(value for value, number in counts.items() if number > 1)
    if repeated:
        raise UsageError(
            f"{table.source} contains the value {shown_values(repeated)} more than once.",
            "A value must belong to exactly one class.",
            "Correct it.",
        )
    reserved_names = {
        name.lower(): name for name in by_name if name.lower() in (_BACKGROUND, _IGNORE)
    }
    background, ignored = (
        tuple(by_name.pop(reserved_names[key], ())) if key in reserved_names else ()
        for key in (_BACKGROUND, _IGNORE)
    )
    if not background and 0 not in counts:
        background = (0,)
    classes = list(by_name.items())
    if all(value < COLOUR_OFFSET for _, values in classes for value in values):
        classes.sort(key=lambda named: min(named[1]))
    return MaskReading(
        None, background, ignored, classes=tuple(name for name, _ in classes),
        class_values=tuple(tuple(values) for _, values in classes),
        colours=tuple(_colour(colours[name], values) for name, values in classes),
        source=table.source,
    )  # fmt: skip


def _colour(colour: str, values: Sequence[Value]) -> str:
    """The colour of a class from the table, else the first of `values` that is a colour."""
    return colour or next((shown_value(v) for v in values if v >= COLOUR_OFFSET), "")


def decide_classes(
    census: Census, location: str, classes: ClassesOption, ignore: ValueOption = None
) -> tuple[MaskReading, list[str]]:
    """The interpretation of masks with the classes of a table, and notes for the user.

    With one class, the result is an interpretation as foreground and background.

    Args:
        census: Values of the masks; palettes are counted separately.
        location: Path of the data set, for messages.
        classes: `all`, or an option for `parse_classes`.
        ignore: Further values to ignore.

    Raises:
        UsageError: A value has no class, the number of classes is 0 or too large, a value is both
            a class and ignored, or the masks are JPEG files.
    """
    table = parse_classes(classes)
    named = None if table is None or is_all(table) else _reading_of(table)
    if named is None or len(named.classes) > 1 or census.blurred_colours:
        _check_lossless(census, location)
    extra = parse_values(ignore, "--ignore")
    by_colour = _palettes_by_colour(census, named)
    channel, counts = channel_of(census, location)
    for (index, colour), pixels in census.palette.items():
        counts[colour if by_colour else index] += pixels
    check_numbers(counts, location)
    if named is None:
        present = sorted(value for value in counts if value not in extra and value != 0)
        named = MaskReading(
            None, () if 0 in extra else (0,), classes=tuple(map(shown_value, present)),
            class_values=tuple((value,) for value in present),
            colours=tuple(_colour("", (value,)) for value in present),
            source=f"`{_FLAG} {ALL}`" if table is None else table.source,
        )  # fmt: skip
    named = replace(
        named, ignored=tuple(dict.fromkeys((*named.ignored, *extra))), channel=channel,
        kind=" and ".join(sorted(census.kinds)), palette="colour" if by_colour else "index",
    )  # fmt: skip
    _check(named, counts, location)
    notes = list(_announcements(named, counts, census))
    if len(named.classes) > 1:
        return named, notes
    reading = replace(
        named, foreground=named.class_values[0], classes=(), class_values=(), colours=(), source=""
    )
    check_lossy(reading, census, location)
    return reading, notes


def name_class_files(keys: Sequence[str], classes: ClassesOption, location: str) -> MaskReading:
    """The classes of files with the identifiers `keys`, in the order of the table.

    The values in the files are not determined. Without a table, `keys` are the names, in their
    order. Classes may only overlap if the user defines their order.

    Raises:
        UsageError: The table lacks one of `keys`, contains others, or has a name twice.
    """
    table = parse_classes(classes)
    if table is None or is_all(table):
        return MaskReading(
            None, classes=tuple(keys), class_files=tuple(keys), colours=("",) * len(keys),
            source="by the names of the files",
        )  # fmt: skip
    labels = [label for label in table.labels if label.name.lower() != _BACKGROUND]
    if len({label.name for label in labels}) != len(labels):
        raise UsageError(
            f"{table.source} gives two classes the same name.",
            f"Each class has separate files: {', '.join(keys)}.",
            "Give each class a different name.",
        )
    if {label.name for label in labels} == set(keys):  # the table has values and names
        labels = [replace(label, key=label.name) for label in labels]
    by_key = {label.key: label for label in labels}
    unexpected_keys = [key for key in by_key if key not in keys]
    missing_keys = [key for key in keys if key not in by_key]
    if unexpected_keys or missing_keys:
        faults = [f"no files of {', '.join(unexpected_keys)}"] if unexpected_keys else []
        faults += [f"no class for the files of {', '.join(missing_keys)}"] if missing_keys else []
        raise UsageError(
            f"{table.source} does not fit the masks of `{location}`: {' and '.join(faults)}.",
            f"Each class has separate files in this data set: {', '.join(keys)}.",
            f"List all of them, for example `{_FLAG} {','.join(keys)}` (`{keys[0]}=NAME` to "
            "rename a class). Where two classes overlap, the later one is used.",
        )
    return MaskReading(
        None, classes=tuple(label.name for label in labels),
        class_files=tuple(label.key for label in labels), covers=True,
        colours=tuple(label.colour for label in labels), source=table.source,
    )  # fmt: skip


def class_file_notes(
    reading: MaskReading, pixels: Mapping[str, int], missing: Mapping[str, int]
) -> Iterable[str]:
    """Notes for the user, given the foreground pixels and missing files of each class."""
    pairs = zip(reading.class_files, reading.classes, strict=True)
    classes = ", ".join(
        f"{number} = {name}" + (f" ({key})" if name != key else "")
        for number, (key, name) in enumerate(pairs, 1)
    )
    order = (
        "where classes overlap, the later one is used"
        if reading.covers
        else "an overlap of two classes is an error"
    )
    yield f"Masks have one file per class: {classes} ({reading.source}); {order}."
    absent = [f"{key} of {number}" for key, number in missing.items() if number]
    if absent:
        yield (
            "Images without the file of a class are treated as not containing that class: "
            f"{', '.join(absent)} images."
        )
    without = [key for key in reading.class_files if not pixels.get(key)]
    if without:
        yield f"Classes without a pixel in the masks that were read: {', '.join(without)}."


def _check_lossless(census: Census, location: str) -> None:
    if census.lossy or census.blurred_colours:
        raise UsageError(
            f"Some masks of `{location}` are JPEG files, so that their classes cannot be "
            "distinguished.",
            "JPEG blurs values and colours at edges: values between two classes can be those of "
            "other classes.",
            "Save the masks again from their originals as PNG. `--foreground VALUES` reads two "
            "values, foreground and background, which can be distinguished in spite of the blur.",
        )


def _palettes_by_colour(census: Census, named: MaskReading | None) -> bool:
    """Whether palettes are read by colour: the table has colours, or the palettes differ."""
    if named is not None and any(
        v >= COLOUR_OFFSET for values in named.class_values for v in values
    ):
        return True
    colours: dict[Value, set[Value]] = defaultdict(set)
    for index, colour in census.palette:
        colours[index].add(colour)
    return named is None and any(len(several) > 1 for several in colours.values())


def _check(named: MaskReading, counts: Mapping[Value, int], location: str) -> None:
    """Raises UsageError unless each value has one meaning and the number of classes is valid."""
    source, classes = named.source, (*named.class_values, named.background or ())
    meant = [value for values in classes for value in values]
    shared = [value for value in meant if value in named.ignored]
    if shared:
        raise UsageError(
            f"{shown_values(shared)} is a value to ignore and also a value of {source}.",
            "A value can be a class or be ignored, but not both.",
            f"Remove it from `--ignore`, or call it `{_IGNORE}` in the table.",
        )
    if not named.classes:
        colours = [value for value in sorted(counts) if value >= COLOUR_OFFSET][:2]
        example = in_shell(colours or [1, 2], ("liver", "kidney")[: len(colours) or 2])
        raise UsageError(
            f"{source} leaves no class in the masks of `{location}`.",
            f"Their values (share of the pixels): {shares_in_words(counts)}.",
            f"List the {'colours' if colours else 'values'} that are classes, for example `{_FLAG} "
            f"{example}`.",
        )
    if len(named.classes) > _MOST_CLASSES:
        raise UsageError(
            f"The masks of `{location}` have {len(named.classes)} classes by {source}.",
            f"At most {_MOST_CLASSES} are supported. This many values usually number individual "
            "objects, or the files are not masks.",
            f"`--foreground {NONZERO}` reads every value except 0 as the foreground.",
        )
    unknown = sorted(value for value in counts if value not in {*meant, *named.ignored})
    if unknown:
        suffix = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise UsageError(
            f"The masks of `{location}` contain {shown_values(unknown[:_SHOWN])}{suffix}, which "
            f"{source} does not contain.",
            f"Their values (share of the pixels): {shares_in_words(counts)}.",
            f"Add them to the table (the names `{_BACKGROUND}` and `{_IGNORE}` have that "
            f"meaning), exclude them with `--ignore`, or read all values as classes: `{_FLAG} "
            f"{ALL}`.",
        )


def _announcements(
    reading: MaskReading, counts: Mapping[Value, int], census: Census
) -> Iterable[str]:
    """Notes for the user: meaning of each value, renumbering, and classes without pixels."""
    partly, source = census.masks < census.total, reading.source
    counted = f", from {census.masks} of {census.total} masks" if partly else ""
    kind = f", {reading.kind}" if reading.kind else ""
    background = [value for value in reading.background or () if value in counts]
    classes = list(zip(reading.classes, reading.class_values, strict=True))
    lines = [f"{shown_value(value)} = background" for value in background]
    for name, values in classes:
        shown = shown_values(values)
        lines.append(shown if shown == name else f"{shown} = {name}")
    lines += [f"{shown_value(value)} ignored" for value in reading.ignored]
    yield f"Masks contain {len(counts)} values{counted}{kind}: {', '.join(lines)} ({source})."
    if len(classes) == 1:
        yield (
            f"Masks contain one class, `{reading.classes[0]}` ({source}). It is the foreground: "
            "the masks are read as masks of two values."
        )
        return
    moved = [
        f"value {shown_values(values)} is class {n}"
        for n, values in enumerate(reading.class_values, 1)
        if values != (n,)
    ]
    if moved:
        yield f"Classes are numbered 1 to {len(classes)} in this order: {', '.join(moved)}."
    if 0 not in reading.ignored and not background:
        yield (
            "No pixel of the masks is background. If one of the values is the background, specify "
            f"it: `{_FLAG} 1={_BACKGROUND},...`."
        )
    without = [name for name, values in classes if not any(value in counts for value in values)]
    if without:
        searched_masks = f"the first {census.masks} masks" if partly else "any mask"
        yield f"Classes without a pixel in {searched_masks}: {', '.join(without)}."
    if source == f"`{_FLAG} {ALL}`" and (255,) in reading.class_values and not reading.ignored:
        yield "255 is read as a class. If it marks pixels without annotation, add `--ignore 255`."


class ShownClasses:
    """Records which classes occur in a stream of masks.

    Args:
        reading: Interpretation of the masks; without several classes, nothing is recorded.
    """

    def __init__(self, reading: MaskReading | None) -> None:
        self._names = () if reading is None else reading.classes
        self._shown = np.zeros(256, bool)

    def noting(self, masks: Iterable[NDArray[Any]]) -> Iterable[NDArray[Any]]:
        """Yields the decoded `masks` (H, W) unchanged and records their classes."""
        if not self._names:
            return masks
        return map(self._note, masks)

    def _note(self, mask: NDArray[Any]) -> NDArray[Any]:
        self._shown |= np.bincount(mask.ravel(), minlength=256) > 0
        return mask

    def absent(self) -> list[str]:
        """Names of classes without a pixel so far; empty for foreground and background."""
        return [name for number, name in enumerate(self._names, 1) if not self._shown[number]]


def classes_settings(option: ClassesOption) -> list[object]:
    """The option in a canonical form, for the hash of a run's settings; empty without it."""
    if option is None:
        return []
    table = parse_classes(option)
    return [ALL] if table is None else [[[x.key, x.name, x.colour] for x in table.labels]]


def in_pairs(table: ClassTable) -> str:
    """The table in the notation of `--classes`: `1=liver,2=kidney`."""
    return ",".join(f"{label.key}={label.name}" for label in table.labels)


# Colours for drawing the classes: from the table, or default colours. The first seven default
# colours can be distinguished with every type of colour vision. With more classes, the legend is
# needed. Source: M. Okabe, K. Ito, "Color Universal Design" (2008), without black, which is used
# for the background.

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
