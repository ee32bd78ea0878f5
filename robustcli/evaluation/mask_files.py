"""Writes the mask that a segmenter predicts for each image, as a PNG next to its overlay.

Part of `robust predict`, see `prediction`. Masks of several classes are indexed PNG files with a
colour palette, and `labels.json` next to them contains the names of the indices; `--data` of other
commands reads both.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile, PngInfo

from robustcli.adapters.segmenter import Pixels, Segmenter
from robustcli.core.errors import RunError, UsageError, located
from robustcli.core.io import LONGEST_NAME, identity_of_names, write_bytes, write_text
from robustcli.core.listener import Listener, Silent
from robustcli.core.names import counted
from robustcli.core.watchdog import watching_threads
from robustcli.core.working_copy import helping
from robustcli.data.archives import list_place
from robustcli.data.dataset import FileRef, reasons_in_lines
from robustcli.data.decode import UnreadableImage, decode
from robustcli.data.layouts import MASK_RECOGNISERS, find_layout
from robustcli.data.listing import HDF5_SUFFIXES, NIFTI_SUFFIXES
from robustcli.data.mask_classes import colours_of
from robustcli.data.published_masks import (
    LABEL_FILES,
    PUBLISHED_MASKS,
    look_like_channels,
    stacked_channels,
)
from robustcli.data.splits import subset_in_words, take_ids
from robustcli.data.tables import Say, ignore_note
from robustcli.evaluation.distributed import Group, incomplete
from robustcli.tasks.base import Forward
from robustcli.tasks.pictures import indexed, overlaid

OVERLAY = "_overlay"
UNREADABLE_FILE = "unreadable.json"  # image and reason of each image that cannot be read
_MASK = "_mask"  # suffix of a true mask next to its image, as in the LGG set
_LABELS = "_labels"  # suffix of the folder of true masks, as in Massachusetts Roads
_FILES_SHOWN = 3
_TAG = "robust"  # key of the PNG text with the hash of model and settings
_MOST_IMAGES, _MOST_PIXELS = 8, 8 * 512 * 512  # per batch


@dataclass(frozen=True)
class Job:
    """One image, the file of its mask, and the file of its overlay if one is requested.

    `image_id` is the path of the image inside its folder or archive, or its name.
    """

    image_id: str
    image: FileRef
    mask: Path
    overlay: Path | None

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files that are written for this image."""
        return (self.mask,) if self.overlay is None else (self.mask, self.overlay)


def list_jobs(
    images: Sequence[Path], out: Path, *, overlays: bool, grey: bool = False,
    say: Say = ignore_note,
) -> tuple[Job, ...]:  # fmt: skip
    """The images in order, each with its output files below `out`.

    The output of an image in a folder keeps the path relative to that folder; the output of a
    single file keeps its name. The mask has the stem of the image. Folders are searched
    recursively; in nnU-Net's folders, an image can have one file per channel (`stacked_channels`).
    Skipped are files below `out`, true masks (`_without_true_masks`), nnU-Net's labels, and
    leftovers of other programs (`say` receives their number).

    Raises:
        UsageError: There are no images, two outputs have the same path, an output would overwrite
            an image, or, unless the network is `grey`, images are named like channels.
    """
    # A folder and an image of it may be named.
    found = dict.fromkeys(_images(images, out.resolve(), grey, say))
    files = sorted(found, key=lambda file: (file[1].as_posix(), str(file[0])))
    if not files:
        volume = next((file for path in images for file in _volumes_in(path)), None)
        if volume is not None:
            raise _not_an_image(volume)
        raise UsageError(
            f"No images were found in {' and '.join(f'`{path}`' for path in images)}.",
            "Expected a folder with image files (JPEG, PNG, TIFF, ...) or image files.",
            "Check the path in `--data`.",
        )
    jobs = []
    for ref, relative in files:
        stem = out / relative.parent / relative.stem
        overlay = stem.with_name(f"{stem.name}{OVERLAY}.png") if overlays else None
        mask = stem.with_name(f"{stem.name}.png")
        jobs.append(Job(relative.as_posix(), ref, mask, overlay))
    _check_outputs(jobs, out)
    return tuple(jobs)


def _images(
    places: Sequence[Path], out: Path, grey: bool, say: Say
) -> Iterator[tuple[FileRef, PurePosixPath]]:
    for place in places:
        path, listing = list_place(place)
        if listing is not None:
            for note in listing.notes(path):
                say(note)
            files = list(listing.files)
            if path.is_dir():
                files = [file for file in files if out not in file.path.resolve().parents]
            files = _without_true_masks(path, files)
            shown = stacked_channels(path, files)
            if not grey:
                _check_no_channels(path, shown)
            cases = sum(bool(file.parts) for file in shown)
            if cases:
                say(f"`{path}`: {counted(cases, 'image')} of 3 files each, as red, green and blue.")
            for file in shown:
                name = file.path.name if file.member is None else file.relative
                yield replace(file, relative=name), PurePosixPath(file.relative)
        else:
            for volume in _volumes_in(path):
                raise _not_an_image(volume)
            yield FileRef(path.name, path), PurePosixPath(path.name)


def _check_no_channels(path: Path, files: Sequence[FileRef]) -> None:
    """Raises UsageError if the images of a folder are greyscale, and named like channels."""
    by_folder: dict[PurePosixPath, list[FileRef]] = defaultdict(list)
    for file in files:
        if not file.parts:
            by_folder[PurePosixPath(file.relative).parent].append(file)
    for folder, in_folder in by_folder.items():
        channels = look_like_channels(in_folder)
        try:
            pixels = [decode(channel) for channel in channels]
        except UnreadableImage:
            continue
        if channels and all((image == image[..., :1]).all() for image in pixels):
            raise UsageError(
                f"`{path / folder}` contains images in three greyscale files each, such as "
                f"{', '.join(f'`{file.file_name}`' for file in channels)}.",
                "nnU-Net names the channels of one image like this. The network takes colour "
                "images, and would predict each channel as an image of its own.",
                "Rename the folder to `imagesTs` to stack them as red, green and blue, or pass "
                f"the files instead of the folder to predict each (`{path / folder}/*.png`).",
            )


def _volumes_in(path: Path) -> Iterator[Path]:
    """The NIfTI and HDF5 files in the folder `path`, or `path` if it is one."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.name.lower().endswith((*NIFTI_SUFFIXES, *HDF5_SUFFIXES)):
            yield file


def _not_an_image(volume: Path) -> UsageError:
    return UsageError(
        f"`{volume}` is a volume, for which no mask is written.",
        "`robust predict` writes a PNG for each image, and does not read NIfTI or HDF5.",
        "Save its slices as PNG, with the grey values of the training (docs/masks.md).",
    )


def _without_true_masks(location: Path, files: Sequence[FileRef]) -> list[FileRef]:
    """`files` without the true masks of a data set, which are not predicted as images.

    True masks are those of any layout that a training reads, and, also for images without masks,
    `X_mask.tif` next to `X.tif`, a folder `masks` next to `images`, and `X_labels` next to `X`.
    """
    masks = set[tuple[Path, str | None]]()
    with suppress(UsageError):  # images without masks
        layout = find_layout(location, files, (*PUBLISHED_MASKS, *MASK_RECOGNISERS), inside=True)
        for pair in () if layout is None else layout.labelled:
            refs = [pair.label, *(part for _, part in pair.label.parts)]
            masks |= {(ref.path, ref.member) for ref in refs}
    names = {file.relative for file in files}
    folders = {folder for name in names for folder in PurePosixPath(name).parents}
    return [
        file
        for file in files
        if (file.path, file.member) not in masks and not _is_true_mask(file, names, folders)
    ]


def _is_true_mask(file: FileRef, names: set[str], folders: set[PurePosixPath]) -> bool:
    path = PurePosixPath(file.relative)
    image = path.with_name(path.stem.removesuffix(_MASK) + path.suffix)
    is_beside_image = path.stem.endswith(_MASK) and str(image) in names
    of_images = ((f, f.name.removesuffix(_LABELS)) for f in path.parents)
    is_in_labels = any(
        name not in ("", folder.name) and folder.with_name(name) in folders
        for folder, name in of_images
    )
    is_in_masks = (file.folder or "").lower() == "masks" and any(
        name.lower().startswith("images/") for name in names
    )
    return is_beside_image or is_in_labels or is_in_masks


def _check_outputs(jobs: Sequence[Job], out: Path) -> None:
    identity = identity_of_names(out)
    owners: dict[str, list[tuple[Path, FileRef]]] = defaultdict(list)
    for job in jobs:
        for output in job.outputs:
            owners[identity(output)].append((output, job.image))
    clashes = [shared for shared in owners.values() if len(shared) > 1]
    if clashes:
        spellings = {output for output, _ in clashes[0]}
        of_names = " This file system takes their names for one." * (len(spellings) > 1)
        raise UsageError(
            f"{len(clashes)} output files would belong to more than one image.",
            f"`{clashes[0][0][0]}` would be written for "
            f"{' and '.join(f'`{image}`' for _, image in clashes[0][:_FILES_SHOWN])}.{of_names}",
            "Put the images into separate folders, whose structure is kept, or predict them one "
            "after the other.",
        )
    outputs = [owner for owned in owners.values() for owner in owned]
    longest, image = max(outputs, key=lambda owner: len(os.fsencode(owner[0].name)))
    if len(os.fsencode(longest.name)) > LONGEST_NAME:
        raise UsageError(
            f"The name of an output file would be too long for the file system: `{longest}`.",
            f"A name can have {LONGEST_NAME} bytes; the image is `{image}`.",
            "Rename the image, or omit `--overlays`, whose names are longer.",
        )
    images = {identity(job.image.path.resolve()) for job in jobs}
    overwritten = [output for output, _ in outputs if identity(output.resolve()) in images]
    if overwritten:
        raise UsageError(
            f"`{overwritten[0]}` is an image that would be overwritten by its mask.",
            "`--out` is the folder of the images.",
            "Choose another folder with `--out`.",
        )


@dataclass(frozen=True)
class PredictedMasks:
    """All masks, in the order of the images, and the number of masks that existed before.

    `labels` is the file with the names of the classes; None for foreground and background.
    """

    masks: tuple[Path, ...]
    existing: int
    labels: Path | None = None


def predict_masks(
    segmenter: Segmenter,
    images: Sequence[Path],
    out: Path,
    *,
    overlays: bool = False,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    fresh: bool = False,
    listener: Listener | None = None,
    group: Group | None = None,
) -> PredictedMasks:
    """Writes the missing masks of `images`.

    A mask is a PNG with values 0 and 255 (0 to K for several classes) and the size and stem of the
    image; an overlay, `<stem>_overlay.png` next to it, is the image with the mask drawn on it. Each
    file is written durably as soon as it is computed, so a repeated call resumes the work.

    Args:
        segmenter: The segmenter, already on its device.
        images: Files, folders, archives or names of data sets; subfolders are kept in `out`.
        out: Folder of the masks.
        overlays: Whether to write overlays.
        limit: Largest number of images, see `splits.take_ids`; None for all.
        seed: Seed of the selection with `limit`.
        batch_size: Number of images per forward pass; None for as many as have the pixels of eight
            images of 512 x 512, but at most eight.
        fresh: Whether to compute existing masks again.
        listener: Receives messages and progress.
        group: The processes that share the images; None for a single process.

    Returns:
        All masks; at ranks other than 0 none.

    Raises:
        UsageError: There are no images, outputs have the same path, or other files exist there; or
            the inputs of the processes differ.
        RunError: Some images cannot be read, or a process died; all other masks were written.
    """
    listener, group = listener or Silent(), group or Group()
    grey = segmenter.preprocessing.channels == "grey"
    jobs = list_jobs(images, out, overlays=overlays, grey=grey, say=listener.say)
    jobs = selected_jobs(jobs, limit=limit, seed=seed, say=listener.say)
    tag, classes = mask_tag(segmenter), segmenter.classes
    ids = hashlib.sha256(json.dumps([job.image_id for job in jobs]).encode()).hexdigest()
    group.check_inputs(
        {"images": [len(jobs), ids], "model, weights or settings": tag, "batch size": batch_size}
    )
    group.check_shared(out)
    missing, labels = list[int](), None
    if group.first:
        missing = [n for n, job in enumerate(jobs) if not has_mask(job, tag, fresh=fresh)]
        labels = _write_labels(out, classes) if classes else None
        listener.start(len(jobs), len(jobs) - len(missing), "masks")
    size = batch_size or _MOST_IMAGES
    numbers = group.share_out([missing[at : at + size] for at in range(0, len(missing), size)])
    share = [[jobs[number] for number in batch] for batch in numbers]
    most_pixels = math.inf if batch_size else _MOST_PIXELS
    with helping(out):
        found = _write_masks(segmenter, share, most_pixels, tag, listener, group)
        unreadable_of_ranks, dead_ranks = group.collect("unreadable", found)
    if not group.first:
        return PredictedMasks((), 0)
    unreadable = {
        str(job.image): reasons[str(job.image)]
        for job in jobs
        for reasons in unreadable_of_ranks.values()
        if str(job.image) in reasons
    }
    _write_unreadable(out / UNREADABLE_FILE, unreadable)
    expected = [job for job in jobs if str(job.image) not in unreadable]
    lost = sum(not all(path.exists() for path in job.outputs) for job in expected)
    if lost:
        raise incomplete(
            dead_ranks, group.place.world, f"{counted(lost, 'mask')} of {len(jobs)} are missing.",
            "The same command computes only the missing masks.",
        )  # fmt: skip
    if unreadable:
        others = "; the masks of all others were written" if expected else ""
        raise RunError(
            f"{len(unreadable)} of {len(jobs)} images cannot be read{others}.",
            reasons_in_lines(unreadable, f"; all are in `{out / UNREADABLE_FILE}`"),
            "Repair or remove them; the same command then computes only the missing masks.",
        )
    return PredictedMasks(tuple(job.mask for job in jobs), len(jobs) - len(missing), labels)


def _write_masks(
    segmenter: Segmenter, batches: Sequence[Sequence[Job]], most_pixels: float, tag: str,
    listener: Listener, group: Group,
) -> dict[str, str]:  # fmt: skip
    """Writes the masks of `batches` of images; returns path and reason of each unreadable image."""
    announce = partial(group.announce, listener=listener)
    forward = Forward(segmenter, announce=announce)
    unreadable: dict[str, str] = {}
    with watching_threads(announce):
        for batch in _decoded(batches, most_pixels, unreadable):
            with located(f"It was `{batch[0][0].image}` to `{batch[-1][0].image}`."):
                pieces = forward([pixels for _, pixels in batch])
            masks = [mask for piece in pieces for mask in piece]
            for (job, pixels), mask in zip(batch, masks, strict=True):
                _write(job, pixels, mask, tag, colours_of(len(segmenter.classes)))
            listener.advance(len(batch))
    return unreadable


def selected_jobs(
    jobs: Sequence[Job], *, limit: int | None, seed: int, say: Say = ignore_note
) -> tuple[Job, ...]:
    """The jobs of the images that `splits.take_ids` selects; announces a subset."""
    ids = take_ids((job.image_id for job in jobs), limit=limit, seed=seed)
    selected = tuple(job for job in jobs if job.image_id in ids)
    if len(selected) < len(jobs):
        say(subset_in_words(len(selected), len(jobs), "image", seed))
    return selected


def _write_unreadable(path: Path, unreadable: Mapping[str, str]) -> None:
    """Writes image and reason of each unreadable image; removes the file if there are none."""
    if unreadable:
        rows = [{"image": image, "reason": reason} for image, reason in unreadable.items()]
        write_text(path, f"{json.dumps(rows, indent=1)}\n")
    else:
        path.unlink(missing_ok=True)


def check_labels_file(out: Path, classes: Sequence[str]) -> tuple[Path, str]:
    """Path and content of `labels.json` in `out`, with the name and the colour of each index.

    Raises:
        UsageError: Masks of several classes are written, and a file with other content exists.
    """
    named = zip(classes, colours_of(len(classes)), strict=True)
    table = {
        "0": {"name": "background", "colour": "#000000"},
        **{str(n): {"name": name, "colour": c} for n, (name, c) in enumerate(named, 1)},
    }
    path, content = out / LABEL_FILES[0], f"{json.dumps(table, indent=1, ensure_ascii=False)}\n"
    if classes and path.exists() and path.read_text(encoding="utf-8") != content:
        raise UsageError(
            f"`{path}` already exists.",
            "Its classes differ from those of these masks.",
            "Choose another folder with `--out`.",
        )
    return path, content


def _write_labels(out: Path, classes: Sequence[str]) -> Path:
    """Writes `labels.json` into `out`; raises UsageError if a file with other content exists."""
    path, content = check_labels_file(out, classes)
    write_text(path, content)
    return path


def mask_tag(segmenter: Segmenter) -> str:
    """Hash of model and settings, which is stored in the masks."""
    facts = segmenter.facts
    model = [facts.builder, facts.arguments, facts.weights_sha256, segmenter.precision]
    preprocessing = {k: v for k, v in asdict(segmenter.preprocessing).items() if v is not None}
    classes = [list(segmenter.classes)] if segmenter.classes else []
    settings = json.dumps([*model, preprocessing, *classes], default=str)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


def has_mask(job: Job, tag: str, *, fresh: bool) -> bool:
    """Whether all output files of `job` exist.

    Raises:
        UsageError: An existing file was made by another program, or with other settings.
    """
    tags = {path: _tag_of(path) for path in job.outputs if path.exists()}
    for path, existing_tag in tags.items():
        if existing_tag is None:
            raise UsageError(
                f"`{path}` already exists.",
                "It is not a mask of this command.",
                "Choose another folder with `--out`.",
            )
        if fresh:
            continue
        settings, _, image = existing_tag.partition(" ")
        if settings == tag and image not in ("", _image_hash(job)):  # "": of old versions
            raise UsageError(
                f"`{path}` is the mask of another image.",
                f"`{job.image}` has the same name, but the mask belongs to another file.",
                "Choose another folder with `--out`, or compute the masks again with `--fresh`.",
            )
        if settings != tag:
            raise UsageError(
                f"`{path}` was computed by another model or with other settings.",
                "Masks with different settings must not be mixed.",
                "Choose another folder with `--out`, or compute them again with `--fresh`.",
            )
    return len(tags) == len(job.outputs) and not fresh


def _image_hash(job: Job) -> str:
    """First 16 digits of the SHA-256 of an image; of empty content if it cannot be read."""
    try:
        content = job.image.read()
    except OSError:
        content = b""
    return hashlib.sha256(content).hexdigest()[:16]


def _tag_of(path: Path) -> str | None:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            assert isinstance(image, PngImageFile)
            tag = image.text.get(_TAG)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        return None
    return None if tag is None else str(tag)


def _decoded(
    batches: Sequence[Sequence[Job]], most_pixels: float, unreadable: dict[str, str]
) -> Iterator[list[tuple[Job, Pixels]]]:
    """Decoded `batches`, in parts that end when they have `most_pixels`.

    Images that cannot be decoded are added to `unreadable`.
    """
    for jobs in batches:
        part: list[tuple[Job, Pixels]] = []
        for job in jobs:
            try:
                part.append((job, decode(job.image)))
            except UnreadableImage as error:
                unreadable[str(job.image)] = error.reason
                continue
            if sum(pixels.shape[0] * pixels.shape[1] for _, pixels in part) >= most_pixels:
                yield part
                part = []
        if part:
            yield part


def _write(job: Job, pixels: Pixels, mask: NDArray[Any], tag: str, colours: Sequence[str]) -> None:
    """Writes the overlay, then the mask, so that an existing mask always has its overlay."""
    tag = f"{tag} {_image_hash(job)}"
    if job.overlay is not None:
        write_bytes(job.overlay, _png(Image.fromarray(overlaid(pixels, mask, colours)), tag))
    picture = (
        indexed(mask, colours)
        if colours
        else Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    )
    write_bytes(job.mask, _png(picture, tag))


def _png(picture: Image.Image, tag: str) -> bytes:
    text, content = PngInfo(), io.BytesIO()
    text.add_text(_TAG, tag)
    picture.save(content, "PNG", pnginfo=text)
    return content.getvalue()
