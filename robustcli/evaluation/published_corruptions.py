"""Published corruption benchmarks: their images as transforms of the clean images.

`find_published` searches a folder for corruptions in two formats: the folder tree of ImageNet-C
(`CORRUPTION/SEVERITY/WNID/NAME.JPEG`, also below the folders `blur/`, `digital/`, `extra/`,
`noise/` and `weather/` of its five archives; Tiny-ImageNet-C, ImageNet-3DCC and others have this
format too; the severities of LAION-C are named `intensity_level_1` to `intensity_level_5`), and the
arrays of CIFAR-10-C and CIFAR-100-C (`CORRUPTION.npy` next to `labels.npy`). `bind_published` finds
the corrupted image of every clean image before the computation, and reports missing images.

Corrupted images whose size differs from that of the clean images are already cropped (ImageNet-C:
resized to 256, cropped to 224), so the model's resize is skipped. Images of the same size are
resized and cropped by the model's preprocessing, like the clean images.

Source: D. Hendrycks, T. Dietterich, Benchmarking neural network robustness to common corruptions
and perturbations, ICLR 2019; its evaluation uses only `CenterCrop(224)`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np

from robustcli.core.errors import RunError, UsageError
from robustcli.core.names import canonical
from robustcli.core.seeds import identity_seed
from robustcli.data.advice import quoted
from robustcli.data.dataset import Dataset, FileRef, RawPixels, Sample, contents_digest
from robustcli.data.decode import UnreadableImage, decode, image_size
from robustcli.data.listing import is_leftover
from robustcli.evaluation.record import CorruptionParity
from robustcli.transforms.base import SEVERITIES, Cell, Image, Transform
from robustcli.transforms.imagenet_c import NAME_PREFIX
from robustcli.transforms.registry import TransformCell

PUBLISHED_PREFIX = "published_"
_SEVERITY = re.compile(rf"((?:intensity_level_)?)([{SEVERITIES[0]}-{SEVERITIES[-1]}])")
_DEEPEST = 3  # folder levels between the given folder and a corruption
_DIGESTED = 64  # images per cell whose bytes are hashed for `run.json`
_COMPARED = 8  # images whose size is compared with that of the clean images
_CIFAR_TEST = re.compile(r"(?:.*/)?test/(\d+)")

PictureKey = str | int
"""Key of an image in its cell: `WNID/NAME.JPEG`, or the row of an array."""


class Pictures(ABC):
    """The images of one corruption; `kind` describes their storage format."""

    severities: tuple[int, ...]
    kind: str

    @abstractmethod
    def file(self, severity: int, place: PictureKey) -> FileRef:
        """The image with the key `place`."""

    @abstractmethod
    def places(self, dataset: Dataset) -> dict[str, PictureKey]:
        """Key of the corrupted image by id of the clean image, the same at every severity.

        Raises:
            UsageError: The clean images do not belong to the benchmark.
        """

    @abstractmethod
    def missing(self, severity: int, places: Mapping[str, PictureKey]) -> Iterator[str]:
        """Names of the missing images."""


@dataclass(frozen=True)
class TreePictures(Pictures):
    """Images in `FOLDER/SEVERITY/CLASS/NAME.JPEG`, for the severities that have a folder.

    The names of the severity folders start with `prefix`.
    """

    folder: Path
    severities: tuple[int, ...]
    prefix: str = ""
    kind = "ImageNet-C's tree"

    def _at(self, severity: int) -> Path:
        return self.folder / f"{self.prefix}{severity}"

    def file(self, severity: int, place: PictureKey) -> FileRef:
        """See `Pictures.file`."""
        return FileRef(str(place), self._at(severity) / str(place))

    def places(self, dataset: Dataset) -> dict[str, PictureKey]:
        """Matches class and file name of the clean images; ignores the suffix."""
        names = _names_by_class(self._at(self.severities[0]))
        by_stem = {
            (folder, name.rpartition(".")[0]): name
            for folder, names_of_class in names.items()
            for name in names_of_class
        }
        places: dict[str, PictureKey] = {}
        for sample in dataset.samples:
            folder = dataset.classes.ids[sample.target]
            file_name = PurePosixPath(sample.image_id).name
            stem = file_name.rpartition(".")[0]
            places[sample.image_id] = f"{folder}/{by_stem.get((folder, stem), file_name)}"
        return places

    def missing(self, severity: int, places: Mapping[str, PictureKey]) -> Iterator[str]:
        """See `Pictures.missing`."""
        names = _names_by_class(self._at(severity))
        for place in places.values():
            folder, _, name = str(place).partition("/")
            if name not in names.get(folder, ()):
                yield f"{self.folder.name}/{severity}/{place}"


def _names_by_class(folder: Path) -> dict[str, frozenset[str]]:
    classes = (c for c in folder.iterdir() if c.is_dir() and not is_leftover(c.name))
    return {c.name: frozenset(file.name for file in c.iterdir()) for c in classes}


@dataclass(frozen=True)
class ArrayPictures(Pictures):
    """Images in a NumPy array (5 n, height, width, 3): n images of each severity, from 1 to 5.

    `images` is n, `start` is the offset of the first value in bytes, `labels` contains the class of
    each image.
    """

    path: Path
    start: int
    images: int
    pixels: RawPixels
    labels: tuple[int, ...] = field(repr=False)
    severities: tuple[int, ...] = SEVERITIES
    kind = "array of CIFAR-C"

    def file(self, severity: int, place: PictureKey) -> FileRef:
        """See `Pictures.file`."""
        row = (severity - 1) * self.images + int(place)
        size = self.pixels.height * self.pixels.width * 3
        return FileRef(
            str(place), self.path, f"row {row}", self.start + row * size, size, raw=self.pixels
        )

    def places(self, dataset: Dataset) -> dict[str, PictureKey]:
        """Maps CIFAR's test image i in the published order (`test/0000`, ...) to row i."""
        places: dict[str, PictureKey] = {}
        for sample in dataset.samples:
            match = _CIFAR_TEST.fullmatch(sample.image_id)
            if match is None:
                raise UsageError(
                    f"It is not known which row of `{self.path.name}` belongs to "
                    f"`{sample.image_id}`.",
                    "Its rows are in the order of CIFAR's published test images.",
                    "Use the published files as the clean images: `--data cifar-10-batches-py` "
                    "(or `cifar-100-python`, or the binary version), with the test split.",
                )
            row = int(match[1])
            if row < self.images and self.labels[row] != sample.target:
                raise UsageError(
                    f"`{self.path.parent}` was not generated from the images of `{dataset.name}`.",
                    f"In its `labels.npy`, image {row} has class {self.labels[row]}, but in the "
                    f"data set it has class {sample.target} "
                    f"(`{dataset.classes.names[sample.target]}`).",
                    "CIFAR-10-C needs CIFAR-10, and CIFAR-100-C needs CIFAR-100 (fine classes).",
                )
            places[sample.image_id] = row
        return places

    def missing(self, severity: int, places: Mapping[str, PictureKey]) -> Iterator[str]:
        """See `Pictures.missing`."""
        for place in places.values():
            if int(place) >= self.images:
                yield f"{self.path.name}: image {place} of {self.images:,}"


@dataclass(frozen=True, kw_only=True)
class PublishedCorruption(Transform):
    """A published corruption: replaces a clean image by the published image with the same id.

    After binding to clean images, `places` contains the key of the corrupted image by image id, and
    `digests` contains a hash of the image contents by severity.
    """

    pictures: Pictures
    places: Mapping[str, PictureKey] = field(default_factory=dict, repr=False)
    digests: Mapping[int, str] = field(default_factory=dict, repr=False)

    def for_image(self, image: Image, *, image_id: str, seed: int, severity: int) -> Image:
        """The published image for the id `image_id`.

        Raises:
            RunError: The published image cannot be read.
        """
        self.check_severity(severity)
        file = self.pictures.file(severity, self.places[image_id])
        try:
            return decode(file)
        except UnreadableImage as error:
            raise RunError(
                f"The published image `{file}` cannot be read.",
                f"{error.reason[0].upper()}{error.reason[1:]}.",
                "Download its archive again; the same command continues the run.",
            ) from error

    def _parameters(self, severity: int) -> dict[str, Any]:
        treatment = "centre crop only" if self.precropped else "the model's own"
        shared = {"severity": severity, "pictures": self.pictures.kind, "preprocessing": treatment}
        return shared | ({"contents": self.digests[severity]} if severity in self.digests else {})

    def _changed(self, image: Image, *, seed: int, severity: int) -> NoReturn:
        raise UsageError(
            f"`{self.name}` only has images of its benchmark.",
            "It finds a published image by the id of the clean image.",
            "Use it in an evaluation (`robust eval --published DIR`).",
        )


def find_published(folders: Sequence[Path]) -> tuple[PublishedCorruption, ...]:
    """The corruptions in `folders`, sorted by name within each folder.

    Raises:
        UsageError: A folder contains no corruptions, or two corruptions have the same name.
    """
    by_name: dict[str, PublishedCorruption] = {}
    folder_of: dict[str, Path] = {}
    for folder in folders:
        corruptions = sorted(_corruptions(folder), key=lambda pair: pair[0])
        if not corruptions:
            raise _no_corruptions(folder)
        for name, pictures in corruptions:
            key = canonical(PUBLISHED_PREFIX + name)
            if key in by_name:
                raise UsageError(
                    f"The corruption `{name}` was found twice.",
                    f"It is in `{folder_of[key]}` and in `{folder}`.",
                    "Pass only one of these folders with `--published`.",
                )
            folder_of[key] = folder
            by_name[key] = PublishedCorruption(
                name=PUBLISHED_PREFIX + name, family="published", geometric=False, replaces=True,
                severities=pictures.severities, ranged=False, pictures=pictures,
                summary=f"Published images ({pictures.kind})",
            )  # fmt: skip
    return tuple(by_name.values())


def _corruptions(folder: Path) -> Iterator[tuple[str, Pictures]]:
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UsageError(
            f"`--published {folder}` is not a folder.",
            "It must be the folder of an unpacked benchmark.",
            "Unpack its archives into one folder (`tar xf FILE -C DIR`) and pass that folder.",
        )
    if (folder / "labels.npy").is_file():
        yield from _arrays(folder)
    else:
        yield from _trees(folder, _DEEPEST)


def _trees(folder: Path, levels: int) -> Iterator[tuple[str, Pictures]]:
    try:
        children = sorted(c for c in folder.iterdir() if c.is_dir() and not is_leftover(c.name))
    except OSError as error:
        raise UsageError(
            f"Cannot read the folder `{folder}`.", f"{error.strerror}.", "Check its permissions."
        ) from error
    levels_there = [match for c in children if (match := _SEVERITY.fullmatch(c.name))]
    if levels_there:
        prefix = levels_there[0][1]
        severities = tuple(int(match[2]) for match in levels_there if match[1] == prefix)
        yield folder.name, TreePictures(folder, severities, prefix)
    elif levels:
        for child in children:
            yield from _trees(child, levels - 1)


def _arrays(folder: Path) -> Iterator[tuple[str, Pictures]]:
    labels = _mapped(folder / "labels.npy")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) % len(SEVERITIES):
        _unlike_cifar(folder / "labels.npy", f"it is {labels.dtype} of shape {labels.shape}")
    images = len(labels) // len(SEVERITIES)
    if not (labels.reshape(len(SEVERITIES), images) == labels[:images]).all():
        _unlike_cifar(folder / "labels.npy", "it does not repeat its classes for five severities")
    classes = tuple(map(int, labels[:images]))
    for path in sorted(folder.glob("*.npy")):
        if path.name == "labels.npy" or is_leftover(path.name):
            continue
        array = _mapped(path)
        is_images = array.ndim == 4 and array.shape[3] == 3 and array.dtype == np.uint8
        if not is_images or len(array) != len(labels) or not array.flags.c_contiguous:
            reason = (
                f"it is {array.dtype} of shape {array.shape}, but there are {len(labels):,} labels"
            )
            _unlike_cifar(path, reason)
        pixels = RawPixels(array.shape[1], array.shape[2])
        yield path.stem, ArrayPictures(path, array.offset, images, pixels, classes)


def _mapped(path: Path) -> np.memmap[Any, np.dtype[Any]]:
    """Memory-maps an array file, without unpickling."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        _unlike_cifar(path, f"it cannot be read: {error}")
    if not isinstance(array, np.memmap):
        _unlike_cifar(path, "it is not a single array")
    return array


def _unlike_cifar(path: Path, reason: str) -> NoReturn:
    raise UsageError(
        f"`{path}` is not an array of CIFAR-10-C or CIFAR-100-C as published.",
        f"{reason[0].upper()}{reason[1:]}; expected uint8 (5 n, height, width, 3) and 5 n labels.",
        "Download the archive again, or remove other files from its folder.",
    )


def _no_corruptions(folder: Path) -> UsageError:
    archives = sorted(p.name for p in folder.iterdir() if ".tar" in p.name)
    return UsageError(
        f"`--published {folder}` contains no published corruptions.",
        "Expected `CORRUPTION/SEVERITY/WNID/NAME.JPEG` as in ImageNet-C, optionally below "
        "`blur/`, `noise/` etc., or `CORRUPTION.npy` with `labels.npy` as in CIFAR-10-C.",
        f"Unpack its archives first: {quoted(archives)}."
        if archives
        else "Pass the folder into which the benchmark was unpacked.",
    )


def bind_published(
    cells: Iterable[TransformCell], dataset: Dataset | None
) -> dict[Cell, TransformCell]:
    """The transforms by cell; published corruptions are bound to the clean images of `dataset`.

    `dataset` contains the clean images; None for images with masks.

    Raises:
        UsageError: Images are missing, or the clean images do not belong to the benchmark.
    """
    listed = list(cells)
    severities = defaultdict(list)
    for cell in listed:
        if isinstance(cell.transform, PublishedCorruption):
            severities[cell.transform.name].append(cell.severity)
    transforms = {c.transform.name: c.transform for c in listed}
    missing: list[str] = []
    shared: dict[tuple[PictureKey, ...], dict[str, PictureKey]] = {}
    for name, cell_severities in severities.items():
        transform = transforms[name]
        assert isinstance(transform, PublishedCorruption)
        if dataset is None:
            raise UsageError(
                f"`{name}` cannot be used with segmenters.",
                "Published images have no masks.",
                "Use the corruptions of this program: `--transform imagenet-c`.",
            )
        places = transform.pictures.places(dataset)
        # One shared dictionary: loader workers would copy 50,000 images x 75 cells.
        places = shared.setdefault(tuple(places.values()), places)
        for severity in cell_severities:
            missing += transform.pictures.missing(severity, places)
        if not missing:
            transforms[name] = _bound(transform, cell_severities, places, dataset.samples)
    if missing:
        raise UsageError(
            f"Published images for {len(missing):,} clean images are missing.",
            f"Missing: {quoted(sorted(missing))}.",
            "Complete the folder, select only existing severities and corruptions, or evaluate "
            "only those clean images that it has.",
        )
    return {
        Cell(c.transform.name, c.severity): replace(c, transform=transforms[c.transform.name])
        for c in listed
    }


def _bound(
    transform: PublishedCorruption, severities: Sequence[int], places: Mapping[str, PictureKey],
    samples: Sequence[Sample],
) -> PublishedCorruption:  # fmt: skip
    drawn = sorted(samples, key=lambda s: identity_seed("published", s.image_id))[:_DIGESTED]
    digests = {
        severity: contents_digest(
            transform.pictures.file(severity, places[s.image_id]) for s in drawn
        )
        for severity in severities
    }
    precropped = any(
        _size(transform.pictures.file(severities[0], places[s.image_id])) != _size(s.image)
        for s in drawn[:_COMPARED]
    )
    return replace(transform, places=places, digests=digests, precropped=precropped)


def _size(file: FileRef) -> tuple[int, int] | None:
    """Height and width; None for an unreadable file, which the evaluation reports later."""
    try:
        return image_size(file)
    except UnreadableImage:
        return None


PARITY_IMAGES = 16


def counterpart(transform: str) -> str:
    """Name of robust's own version of a published corruption; it may not be registered."""
    return NAME_PREFIX + transform.removeprefix(PUBLISHED_PREFIX)


def compare_with_published(
    cells: Mapping[Cell, TransformCell], samples: Sequence[Sample],
    known: Sequence[CorruptionParity],
    inputs_of: Callable[[Sequence[Sample], Sequence[Cell]], Mapping[Cell, Mapping[str, Any]]],
) -> list[CorruptionParity]:  # fmt: skip
    """Compares published corruptions with robust's own versions, if `cells` contains both.

    Up to PARITY_IMAGES of `samples` are drawn by id; `known` results are not computed again.
    `inputs_of` returns the models' inputs (n, channels, side, side) by cell and model.
    """
    known_keys = {(parity.transform, parity.severity, parity.model) for parity in known}
    drawn = sorted(samples, key=lambda s: identity_seed("published", s.image_id))[:PARITY_IMAGES]
    parities = []
    for cell in cells:
        ours = Cell(counterpart(cell.transform), cell.severity)
        if not isinstance(cells[cell].transform, PublishedCorruption) or ours not in cells:
            continue
        inputs = inputs_of(drawn, (ours, cell))
        for model, published in inputs[cell].items():
            if (cell.transform, cell.severity, model) not in known_keys:
                our_pixels = np.asarray(inputs[ours][model]).astype(np.float64)
                errors = np.square(our_pixels - np.asarray(published)).mean(axis=(1, 2, 3))
                nonzero = errors[errors > 0]
                psnr = float((10 * np.log10(255**2 / nonzero)).mean()) if len(nonzero) else None
                parities.append(
                    CorruptionParity(
                        transform=cell.transform, severity=cell.severity, model=model,
                        images=len(errors), identical=len(errors) - len(nonzero), psnr_db=psnr,
                    )
                )  # fmt: skip
    return parities
