"""Small pictures of what each transform does to one photo, kept with the run for its report."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.atomic import write_bytes
from robustcli.data.decode import UnreadableImage, decode
from robustcli.data.index import ImageRef
from robustcli.transforms.registry import TransformCell, image_seed

LONGEST = 256  # pixels of the longer side


def write_samples(
    run: Path,
    images: tuple[ImageRef, ...],
    cells: list[TransformCell],
    seed: int,
    crop: Preprocessing | None = None,
) -> None:
    """Writes `RUN/samples/clean.png` and one picture a cell, of the first readable image.

    Args:
        run: The run's folder.
        images: Its images.
        cells: What to show.
        seed: The run's: the pictures are those that the models see.
        crop: What transforms act on, if not on the decoded photo.
    """
    folder = run / "samples"
    wanted = [c for c in cells if not (folder / _name(c)).exists()]
    photo = _first_readable(images) if wanted else None
    if photo is None:
        return
    ref, pixels = photo
    pixels = pixels if crop is None else crop.apply(pixels)
    write_bytes(folder / "clean.png", _small_png(pixels))
    for cell in wanted:
        image_id_seed = image_seed(seed, cell.transform.name, cell.severity, ref.image_id)
        changed = cell.transform.apply(pixels, seed=image_id_seed, severity=cell.severity)
        write_bytes(folder / _name(cell), _small_png(changed))


def _name(cell: TransformCell) -> str:
    return f"{cell.transform.name}-s{cell.severity}.png"


def _first_readable(images: tuple[ImageRef, ...]) -> tuple[ImageRef, NDArray[np.uint8]] | None:
    for ref in images[:100]:
        try:
            return ref, decode(ref)
        except UnreadableImage:
            continue
    return None


def _small_png(pixels: NDArray[np.uint8]) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
