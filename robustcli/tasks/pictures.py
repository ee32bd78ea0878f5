"""Pictures for the report of a run: transformed samples, and example cases of segmenters."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from robustcli.adapters.segmenter import Pixels, Segmenter
from robustcli.core.io import write_bytes
from robustcli.data.dataset import Sample
from robustcli.data.decode import UnreadableImage
from robustcli.data.mask_classes import Colour, as_rgb, colours_of, palette_bytes
from robustcli.data.mask_values import IGNORED
from robustcli.data.masks import decode_pair
from robustcli.metrics.mask_scores import BoolMask, dice
from robustcli.tasks.record import (
    CaseRank,
    Panel,
    SamplePhoto,
    read_panels,
    read_sample_photos,
    write_panels,
    write_sample_photos,
)
from robustcli.transforms.base import Cell
from robustcli.transforms.registry import TransformCell, image_seed

OUTLINE_COLOUR = (255, 214, 10)  # yellow, visible on grey, blue and violet
TINT = 0.25  # share of the colour inside the outline


def outlined(image: Pixels, mask: NDArray[Any], colours: Sequence[str] = ()) -> Pixels:
    """A copy of `image` (H, W, 3) with the outline of `mask` (H, W) in OUTLINE_COLOUR.

    With `colours` (`#rrggbb`), the mask contains class indices from 1 on, and each class is
    outlined in its colour. The line is one pixel wide, plus one pixel for every 512 pixels of the
    shorter side of the image.
    """
    drawn = image.copy()
    for part, colour in _parts(mask, colours):
        drawn[outline(part, min(mask.shape) // 512 + 1)] = colour
    return drawn


def overlaid(image: Pixels, mask: NDArray[Any], colours: Sequence[str] = ()) -> Pixels:
    """A copy of `image` (H, W, 3) with `mask` (H, W) tinted and outlined, see `outlined`."""
    tinted = image.copy()
    for part, colour in _parts(mask, colours):
        tinted[part] = np.rint((1 - TINT) * image[part] + TINT * np.array(colour)).astype(np.uint8)
    return outlined(tinted, mask, colours)


def _parts(mask: NDArray[Any], colours: Sequence[str]) -> Iterator[tuple[BoolMask, Colour]]:
    """The parts to draw with their colours: the entire mask, or each class."""
    if not colours:
        yield mask, OUTLINE_COLOUR
    for number, colour in enumerate(colours, 1):
        yield mask == number, as_rgb(colour)


def outline(mask: BoolMask, width: int = 1) -> BoolMask:
    """The pixels of `mask` within `width` steps of a pixel outside it, or of the image border."""
    inner = mask
    for _ in range(width):
        inner = _eroded(inner)
    return mask & ~inner


def _eroded(mask: BoolMask) -> BoolMask:
    framed = np.pad(mask, 1)
    inner: BoolMask = mask & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2]
    return inner & framed[1:-1, 2:]


LONGEST_SAMPLE = 256  # pixels of the longer side
MOST_SAMPLES = 6  # at most
IMAGES_PER_PHOTO = 20  # of the run per sample, so that pictures take at most 1/20 of its time
_MOST_TRIED = 100  # images that are tried until one can be decoded


@dataclass(frozen=True)
class SamplePicture:
    """An image to show, (H, W, 3), and for segmenters the mask, which is transformed with it.

    For several classes, the mask contains class indices, and `colours` the colour (`#rrggbb`) of
    each class.
    """

    image_id: str
    pixels: Pixels
    mask: NDArray[Any] | None = None
    colours: tuple[str, ...] = ()

    def under(self, cell: TransformCell, seed: int) -> SamplePicture:
        """The transformed picture, as the models receive it under `cell` in a run with `seed`."""
        name, severity = cell.transform.name, cell.severity
        seed = image_seed(seed, name, severity, self.image_id)
        if self.mask is None:
            changed = cell.transform.for_image(
                self.pixels, image_id=self.image_id, seed=seed, severity=severity
            )
            return SamplePicture(self.image_id, changed)
        moved = cell.transform.apply_with_mask(self.pixels, self.mask, seed=seed, severity=severity)
        return SamplePicture(self.image_id, *moved, self.colours)

    def png(self) -> bytes:
        """A small PNG, with the outline of the mask."""
        picture = Image.fromarray(self.pixels)
        picture.thumbnail((LONGEST_SAMPLE, LONGEST_SAMPLE), Image.Resampling.LANCZOS)
        if self.mask is not None:
            small = Image.fromarray(self.mask).resize(picture.size, Image.Resampling.NEAREST)
            drawn = outlined(np.asarray(picture), np.asarray(small), self.colours)
            picture = Image.fromarray(drawn)
        content = io.BytesIO()
        picture.save(content, "PNG")
        return content.getvalue()


def write_samples(
    run: Path,
    cells: Collection[TransformCell],
    seed: int,
    items: Sequence[Sample],
    choose: Callable[[Sequence[Sample]], SamplePicture | None],
) -> None:
    """Writes small pictures of sample images under every cell, except for existing files.

    Args:
        run: The run's folder.
        cells: The transforms to show.
        seed: The seed of the run.
        items: The images of the run.
        choose: Returns the image to show from a list of items, or None.
    """
    photos = read_sample_photos(run)
    if not photos:
        # Photos are decoded again when they are drawn: all of them would fill the memory.
        pictures = (choose(items[first:]) for first in _first_of_parts(len(items)))
        chosen = dict.fromkeys(picture.image_id for picture in pictures if picture is not None)
        position = {item.image_id: number for number, item in enumerate(items)}
        photos = [
            SamplePhoto(number=number, image_id=name, position=position[name])
            for number, name in enumerate(chosen, 1)
        ]
        if photos:
            write_sample_photos(run, photos)
    for photo in photos:
        missing = [c for c in cells if not photo.picture(run, _cell(c)).exists()]
        if not missing:
            continue
        picture = choose(items[photo.position : photo.position + 1])
        if picture is None:
            continue
        write_bytes(photo.folder(run) / "clean.png", picture.png())
        for cell in missing:
            write_bytes(photo.picture(run, _cell(cell)), picture.under(cell, seed).png())


def _first_of_parts(images: int) -> list[int]:
    """Splits the list of images into equal parts, one per sample; returns their first indices."""
    parts = max(1, min(MOST_SAMPLES, images // IMAGES_PER_PHOTO))
    return [part * images // parts for part in range(parts)] if images else []


def _cell(cell: TransformCell) -> Cell:
    return Cell(cell.transform.name, cell.severity)


def first_readable(
    items: Sequence[Sample], decode: Callable[[Sample], Pixels]
) -> SamplePicture | None:
    """The first item that can be decoded, among the first 100; None if all fail."""
    for item in items[:_MOST_TRIED]:
        try:
            return SamplePicture(item.image_id, decode(item))
        except UnreadableImage:
            continue
    return None


def first_pair(pairs: Sequence[Sample]) -> SamplePicture | None:
    """The first pair with foreground among the first 100; else the first readable pair."""
    first = None
    for pair in pairs[:_MOST_TRIED]:
        try:
            image, mask = decode_pair(pair)
            shown = mask * (mask != IGNORED) if class_names_of(pair) else mask == 1
            sample = SamplePicture(pair.image_id, image, shown, tuple(class_colours(pair)))
        except UnreadableImage:
            continue
        if sample.mask is not None and sample.mask.any():
            return sample
        first = first or sample
    return first


def class_names_of(pair: Sample) -> tuple[str, ...]:
    """The class names of the pair's mask; empty for foreground and background."""
    return () if pair.reading is None else pair.reading.classes


def class_colours(pair: Sample) -> list[str]:
    """The colour, `#rrggbb`, of each class of the pair's mask."""
    chosen = () if pair.reading is None else pair.reading.colours
    return colours_of(len(class_names_of(pair)), chosen)


def write_masks(
    run: Path,
    cells: Collection[TransformCell],
    seed: int,
    pairs: Sequence[Sample],
    segmenters: Mapping[str, Segmenter],
) -> None:
    """Writes masks predicted for the photos of `write_samples`, except for existing files."""
    for photo in read_sample_photos(run):
        missing = [
            (name, cell)
            for name in segmenters
            for cell in cells
            if not photo.mask(run, _cell(cell), name).exists()
        ]
        pair = pairs[photo.position : photo.position + 1] if missing else ()
        picture = first_pair(pair)
        if picture is None:
            continue
        for name, cell in missing:
            (predicted,) = segmenters[name].predict([picture.under(cell, seed).pixels])
            content = _mask_png(predicted, picture.colours, LONGEST_SAMPLE)
            write_bytes(photo.mask(run, _cell(cell), name), content)


CASES_PER_RANK = 2
LONGEST_PANEL = 512  # pixels of the longer side of a picture


def update_panels(
    run: Path,
    pairs: Sequence[Sample],
    segmenters: Mapping[str, Segmenter],
    rows: Callable[[str], pd.DataFrame],
) -> list[Panel]:
    """The panels of the run; draws those of `segmenters` again if the selection has changed.

    `rows` returns the rows of a segmenter on untransformed images, by name.
    """
    drawn, by_id = read_panels(run), {pair.image_id: pair for pair in pairs}
    for name, segmenter in segmenters.items():
        chosen = choose_panels(name, rows(name))
        if chosen == [panel for panel in drawn if panel.model == name]:
            continue
        if chosen:
            shutil.rmtree(chosen[0].folder(run).parent, ignore_errors=True)
        for panel in chosen:
            _draw(panel.folder(run), by_id[panel.image_id], segmenter)
        drawn = [*(panel for panel in drawn if panel.model != name), *chosen]
        write_panels(run, drawn)
    return drawn


def choose_panels(model: str, rows: pd.DataFrame) -> list[Panel]:
    """The cases to show, best first: up to CASES_PER_RANK per rank, each image at most once.

    `rows` are the model's rows on untransformed images (columns: `MASK_SCHEMA`). Each group is
    represented by its image with the most foreground, so that each case shows foreground and is a
    different patient; groups are ranked by the dice of that image. Groups without foreground are
    excluded.
    """
    images = rows.assign(dice=dice(rows), true=rows["tp"] + rows["fn"])
    images = images[images["true"] > 0].sort_values(["true", "image_id"], ascending=[False, True])
    cases = images.drop_duplicates("group").sort_values(
        ["dice", "image_id"], ascending=[False, True]
    )
    return [
        Panel(
            model=model,
            rank=rank,
            number=number,
            image_id=str(cases["image_id"].iloc[place]),
            group=str(cases["group"].iloc[place]),
            dice=float(cases["dice"].iloc[place]),
        )
        for rank, number, place in _case_positions(len(cases))
    ]


def _case_positions(count: int) -> list[tuple[CaseRank, int, int]]:
    """Rank, number and index of the cases to show, among `count` cases in descending order."""
    near_median = sorted(range(count), key=lambda place: (abs(place - (count - 1) / 2), place))
    orders: dict[CaseRank, list[int]] = {
        "best": list(range(count)),
        "worst": list(range(count))[::-1],
        "median": near_median,
    }
    used: set[int] = set()
    chosen: list[tuple[CaseRank, int, int]] = []
    for number in range(1, CASES_PER_RANK + 1):
        for rank, order in orders.items():
            place = next((place for place in order if place not in used), None)
            if place is not None:
                used.add(place)
                chosen.append((rank, number, place))
    return sorted(chosen, key=lambda case: case[2])


def _draw(folder: Path, pair: Sample, segmenter: Segmenter) -> None:
    image, truth = decode_pair(pair)
    write_bytes(folder / "image.png", _png(Image.fromarray(image), Image.Resampling.LANCZOS))
    if colours := class_colours(pair):
        write_bytes(folder / "truth.png", _mask_png(truth, colours))
        write_bytes(folder / "prediction.png", _mask_png(segmenter.predict([image])[0], colours))
        return
    probability = segmenter.probabilities([image])[0]
    grey = Image.fromarray(np.rint(255 * probability).astype(np.uint8))
    write_bytes(folder / "truth.png", _mask_png(truth == 1))
    write_bytes(folder / "prediction.png", _png(grey, Image.Resampling.BILINEAR))


def _mask_png(
    mask: NDArray[Any], colours: Sequence[str] = (), longest: int = LONGEST_PANEL
) -> bytes:
    """A small PNG of a mask: 0 and 255, or with `colours` class indices with a palette."""
    grey = np.where(mask, 255, 0).astype(np.uint8)
    picture = indexed(mask, colours) if colours else Image.fromarray(grey)
    return _png(picture, Image.Resampling.NEAREST, longest)


def indexed(mask: NDArray[Any], colours: Sequence[str]) -> Image.Image:
    """A palette image of `mask` (H, W) with class indices from 1 on and the palette `colours`."""
    picture = Image.fromarray(mask.astype(np.uint8))
    picture.putpalette(palette_bytes(colours))  # converts it to mode "P"
    return picture


def _png(picture: Image.Image, resampling: Image.Resampling, longest: int = LONGEST_PANEL) -> bytes:
    picture.thumbnail((longest, longest), resampling)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
