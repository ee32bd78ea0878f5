"""Decodes mask files with one interpretation of their values (`MaskReading`) per data set."""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.core.seeds import identity_seed
from robustcli.core.watchdog import working_on
from robustcli.data.dataset import FileRef, Sample, raise_if_transient
from robustcli.data.decode import (
    UnreadableImage,
    array_kind,
    decode,
    file_state,
    holds_array,
    read_array,
    read_image,
    without_single_axis,
)
from robustcli.data.mask_classes import (
    ClassesOption,
    class_file_notes,
    decide_classes,
    is_all,
    name_class_files,
)
from robustcli.data.mask_values import (
    COLOUR_OFFSET,
    IGNORED,
    OPAQUE,
    STANDARD,
    Census,
    MaskReading,
    PaletteReading,
    ValueOption,
    as_bytes,
    as_number,
    blurred_share,
    decide,
    mask_labels,
    parse_values,
    shown_value,
    unknown_values,
)

_MOST_MASKS, _LEAST_MASKS, _MOST_PIXELS = 256, 16, 100_000_000
"""Limits of the survey of a large data set: 256 masks, or 100 million pixels after 16 masks."""
_MOST_VALUES = 4096  # more different values end the survey: they are not foreground and background
_MOST_BETWEEN_OF_ONE, _PEAK_OF_ONE = 0.5, 0.05
_AT_ONCE = 32
_FIRST_CHUNKS = 8  # of a WebP; a header and a colour profile can precede the pixels
_HALF = 127  # values of lossy files above this count as 255, others as 0


@dataclass(frozen=True)
class MaskPixels:
    """The contents of a mask file, with all channels.

    Args:
        values: (H, W): grey values or numbers as in the file, palette indices, or colours
            (`COLOUR_OFFSET + 0xRRGGBB`).
        alpha: (H, W), 0 to 255; None without transparency.
        lossy: Whether the compression of the file changes values.
        kind: Description of contents other than 8-bit grey values.
        palette: Colour or grey value of each index, if `values` are palette indices that are
            counted separately; else None.
    """

    values: NDArray[Any]
    alpha: NDArray[np.uint8] | None = None
    lossy: bool = False
    kind: str = ""
    palette: NDArray[Any] | None = None


def decode_pair(sample: Sample) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """The image, uint8 (H, W, 3) RGB, and its mask (H, W), see `decode_mask`.

    Raises:
        UnreadableImage: One of the files is missing or damaged.
        UsageError: The meaning of the mask's values is unknown, or it has another size.
    """
    image = decode(sample.image)
    try:
        with working_on(f"decoding `{sample.mask}`"):
            mask = decode_mask(sample.mask, sample.reading)
    except UnreadableImage as error:
        raise UnreadableImage(f"its mask `{sample.mask.relative}`: {error.reason}") from error
    check_pair(sample, image, mask)
    return image, mask


def check_pair(sample: Sample, image: NDArray[Any], mask: NDArray[Any]) -> None:
    """Raises UsageError if the sizes of an image (H, W, ...) and its mask (H, W) differ."""
    if image.shape[:2] == mask.shape[:2]:
        return
    sizes = [f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (image, mask)]
    raise UsageError(
        f"`{sample.image}` and its mask `{sample.mask}` differ in size.",
        f"The image is {sizes[0]} (width x height), the mask {sizes[1]}, so that their pixels "
        "cannot be matched.",
        "Create the mask again from the current image, or exclude the pair (list the pairs to be "
        "used in a CSV with the columns `image` and `mask`).",
    )


def decode_mask(ref: FileRef, reading: MaskReading | None = None) -> NDArray[Any]:
    """The mask (H, W): bool, or uint8 with 0, 1 and `IGNORED` if the reading ignores values.

    With several classes (`reading.classes`), it is uint8 with 0 to K and `IGNORED`. Without a
    `reading`, the values of this file determine the interpretation.

    Raises:
        UnreadableImage: The file is missing or damaged (see `decode`).
        UsageError: The file has values without meaning, or is a JPEG file with several classes.
    """
    if reading is None:
        reading = survey((ref,), str(ref))[0]
    if reading.class_files:
        return _from_class_files(ref, reading)
    pixels = read_mask(ref, reading.palette)
    if pixels.lossy and reading.class_values:
        raise UsageError(
            f"The mask `{ref}` is a JPEG file, and the masks have several classes.",
            "JPEG blurs values at edges: values between two classes can be those of other classes.",
            "Save it again from its original as PNG.",
        )
    values = _channel_values(pixels, reading, ref)
    if pixels.lossy:
        _check_blurred(values, reading, ref)
    labels, unknown = mask_labels(values, reading, lossy=pixels.lossy)
    if unknown:
        raise unknown_values(unknown, reading, str(ref))
    return labels


def _from_class_files(ref: FileRef, reading: MaskReading) -> NDArray[np.uint8]:
    """Combines a mask with one file per class; a class without a file has no pixel.

    Raises:
        UsageError: Classes overlap although the reading does not allow it, or sizes differ.
    """
    of_one_class = replace(reading, classes=(), class_files=(), covers=False)
    numbers = {key: n for n, key in enumerate(reading.class_files, 1)}
    known = [(key, part) for key, part in ref.parts if key in numbers]
    labels: NDArray[np.uint8] = np.zeros((0, 0), np.uint8)
    for key, part in sorted(known, key=lambda named: numbers[named[0]]):
        mask = decode_mask(part, of_one_class)
        if not labels.size:
            labels = np.zeros(mask.shape, np.uint8)
        if mask.shape != labels.shape:
            raise UsageError(
                f"`{part}` differs in size from the mask of another class of the same image.",
                f"It is {mask.shape[1]}x{mask.shape[0]} (width x height), the other mask "
                f"{labels.shape[1]}x{labels.shape[0]}.",
                "Create the masks again from the current image.",
            )
        present = mask == 1
        overlap = present & (labels != 0) & (labels != IGNORED)
        if not reading.covers and overlap.any():
            other_class = reading.classes[int(labels[overlap][0]) - 1]
            raise UsageError(
                f"`{part}` overlaps the class `{other_class}` in {int(overlap.sum()):,} pixels.",
                "A pixel can have only one class, and it is not known which of the two to use.",
                "List the classes in order of increasing priority: `--classes "
                f"{','.join(reading.class_files)}` uses the last class where several overlap.",
            )
        labels[present] = numbers[key]
        if mask.dtype == np.uint8:
            labels[mask == IGNORED] = IGNORED
    return labels


def _channel_values(pixels: MaskPixels, reading: MaskReading, ref: FileRef) -> NDArray[Any]:
    """The channel that is the mask: the colours or the transparency.

    Raises:
        UsageError: The other channel contradicts it.
    """
    alpha = pixels.alpha
    varies = alpha is not None and bool((alpha != alpha.flat[0]).any())
    one_colour = bool((pixels.values == pixels.values.flat[0]).all())
    if reading.channel == "alpha":
        if alpha is None or not one_colour:
            fault = "has no alpha channel" if alpha is None else "also has colours"
            raise UsageError(
                f"The mask `{ref}` {fault}.",
                "In the other masks of this data set the alpha channel is the mask.",
                "Save all masks in the same format, as PNG with 0 and 255.",
            )
        return alpha
    if varies and alpha is not None:
        transparent = pixels.values[alpha == 0]
        if one_colour or bool((transparent != 0).any()):
            raise UsageError(
                f"The mask `{ref}` has an alpha channel that contradicts its colours.",
                "In this data set the colours are the mask, and in this file some transparent "
                "pixels are not black.",
                "Save it again as PNG without an alpha channel.",
            )
    return pixels.values


def _check_blurred(values: NDArray[Any], reading: MaskReading, ref: FileRef) -> None:
    """Raises UsageError for values that lossy compression of known values cannot produce."""
    counts = {as_number(v): int(n) for v, n in zip(*_unique(values), strict=True)}
    steps = reading.lossy_steps
    if max(counts) >= COLOUR_OFFSET:
        raise UsageError(
            f"The mask `{ref}` is a JPEG file with colours.",
            "JPEG blurs colours at edges, so that the borders of the mask are not known.",
            "Save it again from its original as PNG.",
        )
    if blurred_share(counts, steps, _MOST_BETWEEN_OF_ONE, _PEAK_OF_ONE) is None:
        commonest = max(counts, key=lambda v: counts[v] * (min(abs(v - k) for k in steps) > 32))
        raise UsageError(
            f"The mask `{ref}` is a JPEG file whose values are not those of a blurred mask of two "
            "values.",
            f"{counts[commonest] / values.size:.1%} of its pixels are {shown_value(commonest)}, "
            "between the values of the other masks.",
            "Save it again as PNG with 0 and 255.",
        )


def survey(
    masks: Sequence[FileRef], location: str, *, foreground: ValueOption = None,
    ignore: ValueOption = None, classes: ClassesOption = None,
) -> tuple[MaskReading, tuple[str, ...]]:  # fmt: skip
    """Determines the interpretation of all masks of a data set; also returns notes for the user.

    See `decide` for foreground and background, `mask_classes.decide_classes` for several `classes`.

    Reads all masks; in a large data set, only a sample that depends only on the ids. The sample is
    enlarged while only one value occurs. With `classes` set to `all`, every mask is read.

    Raises:
        UsageError: The values are ambiguous, or the options contradict each other or the masks.
    """
    if foreground is not None and classes is not None:
        raise UsageError(
            "`--foreground` and `--classes` cannot be used together.",
            "`--foreground` reads the masks as foreground and background, `--classes` as several "
            "classes.",
            "Omit one of the two.",
        )
    if any(ref.parts for ref in masks):
        if foreground is not None:
            raise UsageError(
                f"`--foreground {foreground}` cannot be used with the masks of `{location}`.",
                "Each class has separate files with two values in this data set.",
                "Omit it. To use a single class, copy its files to a separate folder `masks`, "
                "with the names of the images.",
            )
        return _survey_class_files(masks, location, ignore, classes)
    ordered = sorted(masks, key=lambda ref: (identity_seed("mask", _file_id(ref)), ref.relative))
    ignored = parse_values(ignore, "--ignore")
    files = tuple((ref, file_state(ref.path)) for ref in ordered)
    census = _census(files, ignored, classes is not None, is_all(classes))
    if not census.masks:
        return MaskReading(STANDARD), ()  # no mask is readable: `decode_mask` raises the error
    if classes is not None:
        reading, notes = decide_classes(census, location, classes, ignore)
        return reading, tuple(notes)
    reading, notes = decide(census, location, foreground=foreground, ignore=ignore)
    return reading, tuple(notes)


def _survey_class_files(
    masks: Sequence[FileRef], location: str, ignore: ValueOption, classes: ClassesOption
) -> tuple[MaskReading, tuple[str, ...]]:
    """The interpretation of masks with one file per class, each with two values."""
    files: dict[str, list[FileRef]] = defaultdict(list)
    for ref in masks:
        for key, part in ref.parts:
            files[key].append(part)
    named = name_class_files(sorted(files), classes, location)
    total_census = Census(0)
    pixels: dict[str, int] = {}
    for key in named.class_files:
        ordered = sorted(files[key], key=lambda ref: ref.relative)
        census = _census(
            tuple((ref, file_state(ref.path)) for ref in ordered),
            parse_values(ignore, "--ignore"), False, False,
        )  # fmt: skip
        pixels[key] = sum(n for (v, _), n in census.exact.items() if v != 0)
        pixels[key] += sum(n for v, n in census.lossy.items() if v > _HALF)
        total_census.add(census)
    if not total_census.masks:
        return MaskReading(STANDARD), ()
    reading, notes = decide(total_census, location, ignore=ignore)
    reading = replace(
        reading, classes=named.classes, class_files=named.class_files, colours=named.colours,
        covers=named.covers, source=named.source,
    )  # fmt: skip
    missing = {key: len(masks) - len(files[key]) for key in named.class_files}
    return reading, (*class_file_notes(reading, pixels, missing), *notes)


def _file_id(ref: FileRef) -> str:
    """Path of the file in the data set; equal for all slices of a volume, to read it once."""
    return ref.relative if ref.slice_index is None else ref.relative.rpartition("/")[0]


@lru_cache(maxsize=64)
def _census(
    masks: tuple[tuple[FileRef, tuple[int, int]], ...], ignored: tuple[float, ...],
    palettes_apart: bool, all_masks: bool,
) -> Census:  # fmt: skip
    """Counts the values of the first masks up to the limits of a survey; cached.

    With `palettes_apart`, masks with a palette are counted by index and colour. With `all_masks`,
    all masks are read.
    """
    palette: PaletteReading = "index" if palettes_apart else "auto"
    census = Census(total=len(masks))
    pixels = 0
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        for first in range(0, len(masks), _AT_ONCE):
            batch = [ref for ref, _ in masks[first : first + _AT_ONCE]]
            for of_mask in pool.map(partial(_count, palette=palette), batch):
                if of_mask is None:
                    continue
                census.add(of_mask[0])
                pixels += of_mask[1]
                if all_masks:
                    continue
                values = len(census.exact) + len(census.lossy)
                different = {v for v, _ in (*census.exact, *census.palette)} | set(census.lossy)
                enough = census.masks >= _MOST_MASKS or (
                    pixels >= _MOST_PIXELS and census.masks >= _LEAST_MASKS
                )
                if values > _MOST_VALUES or (enough and len(different - set(ignored)) > 1):
                    return census
                if enough and len({a for _, a in census.exact}) > 1:
                    return census
    return census


def _count(ref: FileRef, palette: PaletteReading) -> tuple[Census, int] | None:
    """Counts the values of one mask, and its pixels; None if it is unreadable: decoding raises."""
    try:
        pixels = read_mask(ref, palette)
    except UnreadableImage:
        return None
    census, counted = Census(total=0, masks=1, kinds={pixels.kind} - {""}), 0
    if pixels.palette is not None:
        indices, numbers = _unique(pixels.values)
        colours = map(as_number, pixels.palette[indices])
        pairs = zip(map(as_number, indices), colours, strict=True)
        census.palette.update(dict(zip(pairs, map(int, numbers), strict=True)))
        return census, census.palette.total()
    alphas = [OPAQUE] if pixels.alpha is None else np.unique(pixels.alpha)
    for alpha in alphas:
        selected = ... if pixels.alpha is None else pixels.alpha == alpha
        values, numbers = _unique(pixels.values[selected])
        for value, number in zip(map(as_number, values[: _MOST_VALUES + 1]), numbers, strict=False):
            counted += int(number)
            if not pixels.lossy:
                census.exact[value, int(alpha)] += int(number)
            elif value >= COLOUR_OFFSET:
                census.blurred_colours = True
            else:
                census.lossy[value] += int(number)
    return census, counted


def _unique(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The unique values and their counts; for bytes ten times faster than `np.unique`."""
    values = as_bytes(values)
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel(), minlength=256)
        return np.flatnonzero(counts), counts[counts > 0]
    different, counts = np.unique(values, return_counts=True)
    return different, counts


def read_mask(ref: FileRef, palette: PaletteReading = "auto") -> MaskPixels:
    """The contents of a mask file; raises UnreadableImage if it is missing or damaged.

    With `auto`, the values of a file with a palette are its indices if some colour is not grey and
    no index except 0 is black; else its colours.
    """
    try:
        if holds_array(ref):
            return _from_array(read_array(ref), array_kind(ref))
        content = ref.read()
    except OSError as error:
        raise_if_transient(ref, error)
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error
    if not content:
        raise UnreadableImage("the file is empty")
    lossless_webp = _has_chunk(content, b"VP8L")
    return read_image(io.BytesIO(content), lambda image: _from_image(image, lossless_webp, palette))


def _has_chunk(content: bytes, name: bytes) -> bool:
    """Whether one of the first chunks of a WebP file is called `name`."""
    start = 12 if content[:4] == b"RIFF" else len(content)
    for _ in range(_FIRST_CHUNKS):
        if content[start : start + 4] == name:
            return True
        size = int.from_bytes(content[start + 4 : start + 8], "little")
        start += 8 + size + size % 2
    return False


def _from_array(array: NDArray[Any], kind: str) -> MaskPixels:
    """Converts an array: (H, W), possibly with a third axis of length 1, or RGB(A) bytes."""
    array = without_single_axis(array)
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8:
        alpha = array[..., 3] if array.shape[2] == 4 else None
        return MaskPixels(_colours(array[..., :3]), alpha, kind=kind)
    if array.ndim != 2:
        raise UnreadableImage(f"an array of shape {array.shape}, expected (height, width)")
    return MaskPixels(array.astype(np.uint8) if array.dtype == bool else array, kind=kind)


def _from_image(image: Image.Image, lossless_webp: bool, palette: PaletteReading) -> MaskPixels:
    lossy = (
        image.format in ("JPEG", "MPO")
        or (image.format == "WEBP" and not lossless_webp)
        or image.info.get("compression") == "jpeg"
    )
    if image.mode.startswith("I") or image.mode == "F":
        kinds = {"F": "floating-point numbers", "I": "integers of 32 bits"}
        kind = kinds.get(image.mode, "integers of 16 bits")
        return MaskPixels(np.array(image), lossy=lossy, kind=kind)
    if image.mode == "P" and palette == "index":
        return MaskPixels(
            np.array(image), lossy=lossy, kind="palette indices", palette=_palette_of(image)
        )
    alpha = None
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    if image.mode == "L" and alpha is None:
        return MaskPixels(np.array(image), lossy=lossy)
    colours = _colours(np.asarray(image.convert("RGB")))
    if image.mode == "P" and palette == "auto" and colours.dtype != np.uint8:
        indices = _indices(np.array(image), colours)
        kind = "palette indices" if indices is not colours else "colours"
        return MaskPixels(indices, alpha, lossy, kind)
    return MaskPixels(colours, alpha, lossy, "" if colours.dtype == np.uint8 else "colours")


def _palette_of(image: Image.Image) -> NDArray[Any]:
    """The colour (see `COLOUR_OFFSET`) or grey value of each palette index, shape (256,)."""
    indices = Image.frombytes("P", (256, 1), bytes(range(256)))
    indices.putpalette(image.getpalette("RGB") or [])
    colours: NDArray[Any] = _colours(np.asarray(indices.convert("RGB")))[0]
    return colours


def _colours(rgb: NDArray[np.uint8]) -> NDArray[Any]:
    """Grey values of grey pixels; colours (see `COLOUR_OFFSET`) of other pixels."""
    red, green, blue = (rgb[..., channel] for channel in range(3))
    grey = (red == green) & (green == blue)
    if grey.all():
        return red.copy()
    wide = rgb.astype(np.int64)
    codes = COLOUR_OFFSET + (wide[..., 0] << 16) + (wide[..., 1] << 8) + wide[..., 2]
    return np.where(grey, wide[..., 0], codes)


def _indices(indices: NDArray[np.uint8], colours: NDArray[Any]) -> NDArray[Any]:
    """The palette indices if no index except 0 is black, else the colours.

    Programs that quantise the colours of an image sort the palette by frequency, so that an index
    can stand for different colours in two files.
    """
    black = set(np.unique(indices[colours == 0]).tolist())
    return colours if black - {0} else indices
