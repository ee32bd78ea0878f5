"""Masks for images without any: what `robust predict` does."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo

from robustcli.adapters.segmenter import Segmenter
from robustcli.core.atomic import write_bytes
from robustcli.core.errors import RunError, UsageError
from robustcli.data.decode import UnreadableImage, decode
from robustcli.data.index import ImageRef
from robustcli.evaluation.forward import Forward
from robustcli.evaluation.listener import Listener, Silent
from robustcli.evaluation.outlines import overlaid
from robustcli.evaluation.predict_files import Job, list_jobs

_TAG = "robust"  # of a PNG's text: which model and settings it comes from
_MOST_IMAGES, _MOST_PIXELS = 8, 8 * 512 * 512  # held at once
_SHOWN = 20
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Predicted:
    """Every mask, in the order of the images, and how many of them were there before."""

    masks: tuple[Path, ...]
    kept: int


def predict_masks(
    segmenter: Segmenter,
    images: Sequence[Path],
    out: Path,
    *,
    overlays: bool = False,
    fresh: bool = False,
    listener: Listener | None = None,
) -> Predicted:
    """The masks of `images`, computed as far as they are missing.

    A mask is a PNG with 0 and 255 of the image's size and stem; an overlay, `<stem>_overlay.png`
    beside it, is the image with the mask drawn on it. Each is written durably as soon as it is
    known, so that the same call again goes on.

    Args:
        segmenter: On its device.
        images: Folders, whose inner folders are kept, or files.
        out: Folder for the masks.
        overlays: Whether to write overlays too.
        fresh: Whether to compute masks again that are there.
        listener: Hears of the progress.

    Raises:
        UsageError: Nothing to do, outputs that clash, or files in the way; nothing is written.
        RunError: Some images cannot be read (all others have their masks then).
    """
    listener = listener or Silent()
    jobs = list_jobs(images, out, overlays=overlays, say=listener.say)
    tag = _tag(segmenter)
    there = {job for job in jobs if _is_done(job, tag, fresh=fresh)}
    listener.start(len(jobs), len(there))
    forward = Forward(segmenter.facts.name, segmenter.device, segmenter.masks)
    unreadable: list[tuple[Path, str]] = []
    for some in _batches([job for job in jobs if job not in there], unreadable):
        masks = [mask for piece in forward([pixels for _, pixels in some]) for mask in piece]
        for (job, pixels), mask in zip(some, masks, strict=True):
            _write(job, pixels, mask, tag)
        listener.advance(len(some))
    if unreadable:
        raise _not_read(unreadable, len(jobs))
    return Predicted(tuple(job.mask for job in jobs), len(there))


def _tag(segmenter: Segmenter) -> str:
    """What decides the masks, as a hash: masks of other settings are never taken for these."""
    facts = segmenter.facts
    decides = [facts.builder, facts.arguments, facts.weights_sha256, segmenter.precision]
    sees = {k: v for k, v in asdict(segmenter.preprocessing).items() if v is not None}
    settings = json.dumps([*decides, sees], default=str)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


def _is_done(job: Job, tag: str, *, fresh: bool) -> bool:
    """Whether all files of `job` are there.

    Raises:
        UsageError: One is there that comes from elsewhere, or from other settings.
    """
    found = {path: _tag_of(path) for path in job.outputs if path.exists()}
    for path, other in found.items():
        if other is None:
            raise UsageError(
                f"`{path}` is in the way.",
                "It is no mask that this command made.",
                "Choose another folder with `--out`.",
            )
        if other != tag and not fresh:
            raise UsageError(
                f"`{path}` was made by another model or with other settings.",
                "Masks of two kinds must not be mixed.",
                "Choose another folder with `--out`, or make them anew with `--fresh`.",
            )
    return len(found) == len(job.outputs) and not fresh


def _tag_of(path: Path) -> str | None:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            assert isinstance(image, PngImageFile)
            found = image.text.get(_TAG)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        return None
    return None if found is None else str(found)


def _batches(
    jobs: Sequence[Job], unreadable: list[tuple[Path, str]]
) -> Iterator[list[tuple[Job, Pixels]]]:
    """The images a few at a time, decoded; those that cannot be are added to `unreadable`."""
    some: list[tuple[Job, Pixels]] = []
    for job in jobs:
        try:
            some.append((job, decode(ImageRef(job.image.name, 0, job.image))))
        except UnreadableImage as error:
            unreadable.append((job.image, error.reason))
            continue
        held = sum(pixels.shape[0] * pixels.shape[1] for _, pixels in some)
        if len(some) == _MOST_IMAGES or held >= _MOST_PIXELS:
            yield some
            some = []
    if some:
        yield some


def _write(job: Job, pixels: Pixels, mask: NDArray[np.bool_], tag: str) -> None:
    """The overlay first: where the mask is, the overlay is."""
    if job.overlay is not None:
        write_bytes(job.overlay, _png(overlaid(pixels, mask), tag))
    write_bytes(job.mask, _png(np.where(mask, 255, 0).astype(np.uint8), tag))


def _png(pixels: Pixels, tag: str) -> bytes:
    text, content = PngInfo(), io.BytesIO()
    text.add_text(_TAG, tag)
    Image.fromarray(pixels).save(content, "PNG", pnginfo=text)
    return content.getvalue()


def _not_read(unreadable: Sequence[tuple[Path, str]], images: int) -> RunError:
    lines = [f"  {path}: {reason}" for path, reason in unreadable[:_SHOWN]]
    if len(unreadable) > _SHOWN:
        lines.append(f"  and {len(unreadable) - _SHOWN} more")
    return RunError(
        f"{len(unreadable)} of {images} images cannot be read; all others have their masks.",
        "\n".join(lines),
        "Repair or remove them; the same command again does only what is missing.",
    )
