"""Masks for images without any: what `robust predict` does."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo

from robustcli.adapters.segmenter import Segmenter
from robustcli.core.errors import RunError, UsageError
from robustcli.core.io import write_bytes
from robustcli.core.listener import Listener, Silent
from robustcli.data.dataset import FileRef
from robustcli.data.decode import UnreadableImage, decode
from robustcli.data.listing import list_folder
from robustcli.data.tables import Say, unheard
from robustcli.tasks.forward import Forward
from robustcli.tasks.pictures import overlaid

# Which images get a mask, and where it goes.


OVERLAY = "_overlay"
_MASK = "_mask"  # how the LGG set names the true mask beside its image
_FILES_SHOWN = 3


@dataclass(frozen=True)
class Job:
    """One image, the file of its mask, and that of its overlay if one is wanted."""

    image: Path
    mask: Path
    overlay: Path | None

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Every file that is written for this image."""
        return (self.mask,) if self.overlay is None else (self.mask, self.overlay)


def list_jobs(
    images: Sequence[Path], out: Path, *, overlays: bool, say: Say = unheard
) -> tuple[Job, ...]:
    """The images in order, each with its outputs below `out`.

    An image of a folder keeps its path inside that folder, a single file its name; the mask has the
    image's stem. Folders are searched to any depth. Left out are what lies below `out`, true masks
    beside their images (`X_mask.tif` with `X.tif`) and the folder `masks` beside `images`; and, as
    everywhere, leftovers of other programs (`say` hears how many).

    Raises:
        UsageError: There is nothing there, or two outputs would be one file, or an output would be
            an image.
    """
    named = sorted(
        _named(images, out.resolve(), say), key=lambda one: (one[1].as_posix(), str(one[0]))
    )
    if not named:
        raise UsageError(
            f"There are no images in {' and '.join(f'`{path}`' for path in images)}.",
            "Expected a folder with image files (JPEG, PNG, TIFF, ...) or such files themselves.",
            "Check the path in `--data`.",
        )
    jobs = tuple(_job(path, out, relative, overlays=overlays) for path, relative in named)
    _check_outputs(jobs)
    return jobs


def _named(images: Sequence[Path], out: Path, say: Say) -> Iterator[tuple[Path, PurePosixPath]]:
    for path in images:
        if path.is_dir():
            listing = list_folder(path)
            for note in listing.notes(path):
                say(note)
            found = [entry for entry in listing.files if not _is_below(entry.path, out)]
            names = {entry.relative for entry in found}
            kept = [entry for entry in found if not _is_true_mask(entry, names)]
            yield from ((entry.path, PurePosixPath(entry.relative)) for entry in kept)
        elif path.is_file():
            yield path, PurePosixPath(path.name)
        else:
            raise UsageError(
                f"There is nothing at `{path}`.",
                "Expected a folder of images, or an image.",
                "Check the path in `--data`.",
            )


def _is_below(path: Path, folder: Path) -> bool:
    return folder in path.resolve().parents


def _is_true_mask(entry: FileRef, names: set[str]) -> bool:
    path = PurePosixPath(entry.relative)
    image = path.with_name(path.stem.removesuffix(_MASK) + path.suffix)
    beside = path.stem.endswith(_MASK) and str(image) in names
    return beside or (entry.folder == "masks" and any(n.startswith("images/") for n in names))


def _job(path: Path, out: Path, relative: PurePosixPath, *, overlays: bool) -> Job:
    folder = out / relative.parent
    overlay = folder / f"{relative.stem}{OVERLAY}.png" if overlays else None
    return Job(path, folder / f"{relative.stem}.png", overlay)


def _check_outputs(jobs: Sequence[Job]) -> None:
    owners: dict[Path, list[Path]] = defaultdict(list)
    for job in jobs:
        for output in job.outputs:
            owners[output].append(job.image)
    clashes = [(output, paths) for output, paths in owners.items() if len(paths) > 1]
    if clashes:
        output, paths = clashes[0]
        raise UsageError(
            f"{len(clashes)} files would be written for more than one image.",
            f"`{output}` belongs to {' and '.join(f'`{path}`' for path in paths[:_FILES_SHOWN])}.",
            "Put them into folders of their own, which are kept, or predict them in turn.",
        )
    images = {job.image.resolve() for job in jobs}
    over = [output for output in owners if output.resolve() in images]
    if over:
        raise UsageError(
            f"`{over[0]}` is an image that would be overwritten by its mask.",
            "`--out` is where the images are.",
            "Choose another folder with `--out`.",
        )


_TAG = "robust"  # of a PNG's text: which model and settings it comes from
_MOST_IMAGES, _MOST_PIXELS = 8, 8 * 512 * 512  # held at once
_SHOWN = 20
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class PredictedMasks:
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
) -> PredictedMasks:
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
    if segmenter.preprocessing.channels == "grey":
        listener.say(
            f"`{segmenter.facts.name}` reads greyscale images: colour images are converted to "
            "0.299 red + 0.587 green + 0.114 blue."
        )
    tag = _tag(segmenter)
    there = {job for job in jobs if _is_done(job, tag, fresh=fresh)}
    listener.start(len(jobs), len(there))
    forward = Forward(segmenter)
    unreadable: list[tuple[Path, str]] = []
    for some in _batches([job for job in jobs if job not in there], unreadable):
        masks = [mask for piece in forward([pixels for _, pixels in some]) for mask in piece]
        for (job, pixels), mask in zip(some, masks, strict=True):
            _write(job, pixels, mask, tag)
        listener.advance(len(some))
    if unreadable:
        raise _not_read(unreadable, len(jobs))
    return PredictedMasks(tuple(job.mask for job in jobs), len(there))


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
        if fresh:
            continue
        settings, _, image = other.partition(" ")
        if settings == tag and image not in ("", _image_hash(job.image)):  # "": of older versions
            raise UsageError(
                f"`{path}` is the mask of another image.",
                f"`{job.image}` has the same name, but the mask was made of another file.",
                "Choose another folder with `--out`, or make the masks anew with `--fresh`.",
            )
        if settings != tag:
            raise UsageError(
                f"`{path}` was made by another model or with other settings.",
                "Masks of two kinds must not be mixed.",
                "Choose another folder with `--out`, or make them anew with `--fresh`.",
            )
    return len(found) == len(job.outputs) and not fresh


def _image_hash(path: Path) -> str:
    """The beginning of the SHA-256 of a file; that of nothing where it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    return hashlib.sha256(content).hexdigest()[:16]


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
            some.append((job, decode(FileRef(job.image.name, job.image))))
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
    tag = f"{tag} {_image_hash(job.image)}"
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
