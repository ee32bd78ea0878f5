"""Small pictures of what each transform does to one image, kept with the run for its report."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustcli.core.atomic import write_bytes
from robustcli.data.decode import UnreadableImage
from robustcli.data.masks import decode_pair
from robustcli.data.pairs import PairRef
from robustcli.evaluation.outlines import outlined
from robustcli.evaluation.plan import Item
from robustcli.transforms.registry import TransformCell, image_seed

LONGEST = 256  # pixels of the longer side
_MOST = 100  # images that are tried
Pixels = NDArray[np.uint8]
ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True)
class Sample:
    """The image to show, (H, W, 3), and where it is drawn in, the mask that moves with it."""

    image_id: str
    pixels: Pixels
    mask: NDArray[np.bool_] | None = None

    def under(self, cell: TransformCell, seed: int) -> Sample:
        """What the models see of it under `cell` in the run of seed `seed`."""
        name, severity = cell.transform.name, cell.severity
        own = image_seed(seed, name, severity, self.image_id)
        if self.mask is None:
            changed = cell.transform.apply(self.pixels, seed=own, severity=severity)
            return Sample(self.image_id, changed)
        moved = cell.transform.apply_with_mask(self.pixels, self.mask, seed=own, severity=severity)
        return Sample(self.image_id, *moved)

    def png(self) -> bytes:
        """A small PNG, with the outline of the mask."""
        picture = Image.fromarray(self.pixels)
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        if self.mask is not None:
            small = Image.fromarray(self.mask).resize(picture.size, Image.Resampling.NEAREST)
            picture = Image.fromarray(outlined(np.asarray(picture), np.asarray(small)))
        content = io.BytesIO()
        picture.save(content, "PNG")
        return content.getvalue()


def write_samples(
    run: Path, cells: Collection[TransformCell], seed: int, choose: Callable[[], Sample | None]
) -> None:
    """Writes `RUN/samples/clean.png` and one picture a cell, as far as they are missing.

    Args:
        run: The run's folder.
        cells: What to show.
        seed: The run's: the pictures are those that the models see.
        choose: Gives the image to show, or None where there is none.
    """
    folder = run / "samples"
    wanted = [c for c in cells if not (folder / _name(c)).exists()]
    sample = choose() if wanted else None
    if sample is None:
        return
    write_bytes(folder / "clean.png", sample.png())
    for cell in wanted:
        write_bytes(folder / _name(cell), sample.under(cell, seed).png())


def first_readable(items: Sequence[ItemT], decode: Callable[[ItemT], Pixels]) -> Sample | None:
    """The first of `items` that can be decoded; None where that is none of the first 100."""
    for item in items[:_MOST]:
        try:
            return Sample(item.image_id, decode(item))
        except UnreadableImage:
            continue
    return None


def first_pair(pairs: Sequence[PairRef]) -> Sample | None:
    """The first of the first 100 pairs that has foreground, else the first readable one."""
    first = None
    for pair in pairs[:_MOST]:
        try:
            image, mask = decode_pair(pair)
            sample = Sample(pair.image_id, image, mask == 1)
        except UnreadableImage:
            continue
        if sample.mask is not None and sample.mask.any():
            return sample
        first = first or sample
    return first


def _name(cell: TransformCell) -> str:
    return f"{cell.transform.name}-s{cell.severity}.png"
