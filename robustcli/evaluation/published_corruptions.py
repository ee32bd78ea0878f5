"""Corruption benchmarks as their owners publish them: their pictures as transforms of clean images.

`find_published` looks for corruptions in a folder: ImageNet-C's tree
(`CORRUPTION/SEVERITY/WNID/NAME.JPEG`, also below `blur/`, `digital/`, `extra/`, `noise/` and
`weather/`, as its five archives unpack; Tiny-ImageNet-C, ImageNet-3DCC and others have it too;
LAION-C calls its severities `intensity_level_1` to `intensity_level_5`), and
the arrays of CIFAR-10-C and CIFAR-100-C (`CORRUPTION.npy` beside `labels.npy`). `bind_published`
finds the picture of every clean image before anything is computed, and names what is missing.

Pictures of another size than the clean images are crops already (ImageNet-C: resized to 256, cut to
224): a model then gets them without its own resize. Pictures of the same size go through the
model's own resize and crop, as the clean images do.

Source: D. Hendrycks, T. Dietterich, Benchmarking neural network robustness to common corruptions
and perturbations, ICLR 2019; its evaluation takes the pictures with `CenterCrop(224)` alone.
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
from numpy.typing import NDArray
from pydantic import TypeAdapter

from robustcli.core.errors import RunError, UsageError
from robustcli.core.io import write_bytes
from robustcli.core.names import canonical
from robustcli.core.rundir import Record
from robustcli.core.seeds import identity_seed
from robustcli.data.advice import quoted
from robustcli.data.dataset import Dataset, FileRef, RawPixels, Sample, contents_digest
from robustcli.data.decode import UnreadableImage, decode, image_size
from robustcli.data.listing import is_leftover
from robustcli.transforms.base import SEVERITIES, Cell, Image, Transform
from robustcli.transforms.imagenet_c import NAME_PREFIX
from robustcli.transforms.registry import TransformCell

PUBLISHED_PREFIX = "published_"
_SEVERITY = re.compile(rf"((?:intensity_level_)?)([{SEVERITIES[0]}-{SEVERITIES[-1]}])")
_DEEPEST = 3
_DIGESTED = 64
"""Pictures of a cell whose bytes stand for all of them in `run.json`."""
_COMPARED = 8
"""Pictures whose size is compared with that of their clean images."""
_CIFAR_TEST = re.compile(r"(?:.*/)?test/(\d+)")

Place = str | int
"""Where a picture lies in its cell: `WNID/NAME.JPEG`, or the row of an array."""


class Pictures(ABC):
    """The pictures of one corruption, whatever holds them."""

    severities: tuple[int, ...]
    kind: str

    @abstractmethod
    def file(self, severity: int, place: Place) -> FileRef:
        """The picture at `place`."""

    @abstractmethod
    def places(self, dataset: Dataset, name: str) -> dict[str, Place]:
        """By image id, where the picture of each clean image lies, the same at every severity.

        Raises:
            UsageError: The clean images are not those of the benchmark.
        """

    @abstractmethod
    def missing(self, severity: int, places: Mapping[str, Place]) -> Iterator[str]:
        """The names of the pictures that are not there."""


@dataclass(frozen=True)
class TreePictures(Pictures):
    """`FOLDER/SEVERITY/CLASS/NAME.JPEG`.

    Args:
        folder: That of the corruption.
        severities: Its severities that are there.
        prefix: Of the names of their folders.
    """

    folder: Path
    severities: tuple[int, ...]
    prefix: str = ""
    kind = "ImageNet-C's tree"

    def _at(self, severity: int) -> Path:
        return self.folder / f"{self.prefix}{severity}"

    def file(self, severity: int, place: Place) -> FileRef:
        """See `Pictures.file`."""
        return FileRef(str(place), self._at(severity) / str(place))

    def places(self, dataset: Dataset, name: str) -> dict[str, Place]:
        """Of the class and name of the clean image; its suffix does not count."""
        names = _names_by_class(self._at(self.severities[0]))
        by_stem = {
            (folder, name.rpartition(".")[0]): name
            for folder, names_of_class in names.items()
            for name in names_of_class
        }
        places: dict[str, Place] = {}
        for sample in dataset.samples:
            folder = dataset.classes.ids[sample.target]
            file_name = PurePosixPath(sample.image_id).name
            stem = file_name.rpartition(".")[0]
            places[sample.image_id] = f"{folder}/{by_stem.get((folder, stem), file_name)}"
        return places

    def missing(self, severity: int, places: Mapping[str, Place]) -> Iterator[str]:
        """See `Pictures.missing`."""
        names = _names_by_class(self._at(severity))
        for place in places.values():
            folder, _, name = str(place).partition("/")
            if name not in names.get(folder, ()):
                yield f"{self.folder.name}/{severity}/{place}"


def _names_by_class(folder: Path) -> dict[str, frozenset[str]]:
    classes = (c for c in folder.iterdir() if c.is_dir() and not is_leftover(c.name))
    return {one.name: frozenset(file.name for file in one.iterdir()) for one in classes}


@dataclass(frozen=True)
class ArrayPictures(Pictures):
    """An array of numpy (5 n, height, width, 3): n images at severity 1, then 2, to 5.

    Args:
        path: The file.
        start: Its first byte of values.
        images: n.
        pixels: Of one image.
        labels: The class of each of the n images.
        severities: All five.
    """

    path: Path
    start: int
    images: int
    pixels: RawPixels
    labels: tuple[int, ...] = field(repr=False)
    severities: tuple[int, ...] = SEVERITIES
    kind = "array of CIFAR-C"

    def file(self, severity: int, place: Place) -> FileRef:
        """See `Pictures.file`."""
        row = (severity - 1) * self.images + int(place)
        size = self.pixels.height * self.pixels.width * 3
        return FileRef(
            str(place), self.path, f"row {row}", self.start + row * size, size, raw=self.pixels
        )

    def places(self, dataset: Dataset, name: str) -> dict[str, Place]:
        """Rows are those of CIFAR's test images in the published order, `test/0000` and so on."""
        places: dict[str, Place] = {}
        for sample in dataset.samples:
            match = _CIFAR_TEST.fullmatch(sample.image_id)
            if match is None:
                raise UsageError(
                    f"Which row of `{self.path.name}` belongs to `{sample.image_id}` is not known.",
                    "Its rows are in the order of CIFAR's test images as published.",
                    "Name these as the clean images: `--data cifar-10-batches-py` (or "
                    "`cifar-100-python`, or the binary version), with its test part.",
                )
            places[sample.image_id] = int(match[1])
        self._check_classes(dataset, places)
        return places

    def _check_classes(self, dataset: Dataset, places: Mapping[str, Place]) -> None:
        for sample in dataset.samples:
            row = int(places[sample.image_id])
            if row < self.images and self.labels[row] != sample.target:
                raise UsageError(
                    f"`{self.path.parent}` was not made of the images of `{dataset.name}`.",
                    f"Its `labels.npy` says class {self.labels[row]} for image {row}, which is "
                    f"class {sample.target} (`{dataset.classes.names[sample.target]}`) there.",
                    "CIFAR-10-C goes with CIFAR-10, CIFAR-100-C with CIFAR-100 (fine classes).",
                )

    def missing(self, severity: int, places: Mapping[str, Place]) -> Iterator[str]:
        """See `Pictures.missing`."""
        for place in places.values():
            if int(place) >= self.images:
                yield f"{self.path.name}: image {place} of {self.images:,}"


@dataclass(frozen=True, kw_only=True)
class Published(Transform):
    """One corruption as published: the picture that belongs to a clean image, found by its id.

    Args:
        pictures: Where its pictures are.
        places: By image id, once bound to clean images.
        digests: By severity, what stands for the contents of the pictures.
    """

    pictures: Pictures
    places: Mapping[str, Place] = field(default_factory=dict, repr=False)
    digests: Mapping[int, str] = field(default_factory=dict, repr=False)

    def for_image(self, image: Image, *, image_id: str, seed: int, severity: int) -> Image:
        """The published picture of the image called `image_id`.

        Raises:
            RunError: It cannot be read.
        """
        self.check_severity(severity)
        file = self.pictures.file(severity, self.places[image_id])
        try:
            return decode(file)
        except UnreadableImage as error:
            raise RunError(
                f"The published picture `{file}` cannot be read.",
                f"{error.reason[0].upper()}{error.reason[1:]}.",
                "Download its archive again; the same command continues the run.",
            ) from error

    def _parameters(self, severity: int) -> dict[str, Any]:
        treatment = "centre crop only" if self.precropped else "the model's own"
        known = {"severity": severity, "pictures": self.pictures.kind, "preprocessing": treatment}
        return known | ({"contents": self.digests[severity]} if severity in self.digests else {})

    def _changed(self, image: Image, *, seed: int, severity: int) -> NoReturn:
        raise UsageError(
            f"`{self.name}` has pictures of the images of a benchmark only.",
            "It looks a picture up by the id of its clean image.",
            "Use it in an evaluation (`robust eval --published DIR`).",
        )


# What is there.


def find_published(folders: Sequence[Path]) -> tuple[Published, ...]:
    """The corruptions in `folders`, sorted by name within each.

    Raises:
        UsageError: A folder holds none, or two have one name.
    """
    found: dict[str, Published] = {}
    for folder in folders:
        corruptions = sorted(_corruptions(folder), key=lambda pair: pair[0])
        if not corruptions:
            raise _none_there(folder)
        for name, pictures in corruptions:
            one = _transform(name, pictures)
            if canonical(one.name) in found:
                raise UsageError(
                    f"The corruption `{name}` is there twice.",
                    f"Once in `{found[canonical(one.name)].pictures}`, once in `{pictures}`.",
                    "Name only one of these folders with `--published`.",
                )
            found[canonical(one.name)] = one
    return tuple(found.values())


def _transform(name: str, pictures: Pictures) -> Published:
    return Published(
        name=PUBLISHED_PREFIX + name, family="published", geometric=False, replaces=True,
        severities=pictures.severities, ranged=False, pictures=pictures,
        summary=f"Published pictures ({pictures.kind})",
    )  # fmt: skip


def _corruptions(folder: Path) -> Iterator[tuple[str, Pictures]]:
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UsageError(
            f"`--published {folder}` is no folder.",
            "It must be the folder of an unpacked benchmark.",
            "Unpack its archives into one folder (`tar xf FILE -C DIR`) and name that.",
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
    of_one = tuple(map(int, labels[:images]))
    for path in sorted(folder.glob("*.npy")):
        if path.name == "labels.npy" or is_leftover(path.name):
            continue
        array = _mapped(path)
        pictures = array.ndim == 4 and array.shape[3] == 3 and array.dtype == np.uint8
        if not pictures or len(array) != len(labels) or not array.flags.c_contiguous:
            reason = f"it is {array.dtype} of shape {array.shape}, beside {len(labels):,} labels"
            _unlike_cifar(path, reason)
        pixels = RawPixels(array.shape[1], array.shape[2])
        yield path.stem, ArrayPictures(path, array.offset, images, pixels, of_one)


def _mapped(path: Path) -> np.memmap[Any, np.dtype[Any]]:
    """An array file, of which nothing but the header is read; nothing in it is unpickled."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        _unlike_cifar(path, f"it cannot be read: {error}")
    if not isinstance(array, np.memmap):
        _unlike_cifar(path, "it is no single array")
    return array


def _unlike_cifar(path: Path, reason: str) -> NoReturn:
    raise UsageError(
        f"`{path}` is not an array of CIFAR-10-C or CIFAR-100-C as published.",
        f"{reason[0].upper()}{reason[1:]}; expected uint8 (5 n, height, width, 3) and 5 n labels.",
        "Download the archive again, or take other files out of its folder.",
    )


def _none_there(folder: Path) -> UsageError:
    archives = sorted(p.name for p in folder.iterdir() if ".tar" in p.name)
    return UsageError(
        f"`--published {folder}` holds no published corruptions.",
        "Expected `CORRUPTION/SEVERITY/WNID/NAME.JPEG` as in ImageNet-C, perhaps below `blur/`, "
        "`noise/` and so on, or `CORRUPTION.npy` with `labels.npy` as in CIFAR-10-C.",
        f"Unpack its archives first: {quoted(archives)}."
        if archives
        else "Name the folder into which the benchmark was unpacked.",
    )


# Which picture belongs to which clean image.


def bind_published(
    cells: Iterable[TransformCell], dataset: Dataset | None
) -> dict[Cell, TransformCell]:
    """`cells` by name and severity, the published ones with the pictures of `dataset`'s images.

    Args:
        cells: The transforms of an evaluation.
        dataset: The clean images; None where they have masks.

    Raises:
        UsageError: Pictures are missing, or the clean images are not those of the benchmark.
    """
    listed = list(cells)
    severities = defaultdict(list)
    for cell in listed:
        if isinstance(cell.transform, Published):
            severities[cell.transform.name].append(cell.severity)
    transforms = {c.transform.name: c.transform for c in listed}
    missing: list[str] = []
    shared: dict[tuple[Place, ...], dict[str, Place]] = {}
    for name, chosen in severities.items():
        transform = transforms[name]
        assert isinstance(transform, Published)
        if dataset is None:
            raise UsageError(
                f"`{name}` does not go with segmenters.",
                "Published pictures come without masks.",
                "Use our own corruptions: `--transform imagenet-c`.",
            )
        places = transform.pictures.places(dataset, name)
        # One dictionary for all corruptions: with 50,000 images and 75 cells it matters to workers.
        places = shared.setdefault(tuple(places.values()), places)
        for severity in chosen:
            missing += transform.pictures.missing(severity, places)
        if not missing:
            transforms[name] = _bound(transform, chosen, places, dataset.samples)
    if missing:
        raise UsageError(
            f"Published pictures of {len(missing):,} images are missing.",
            f"Missing: {quoted(sorted(missing))}.",
            "Complete the folder, take only severities and corruptions that are there, or evaluate "
            "only those clean images that it has.",
        )
    return {
        Cell(c.transform.name, c.severity): replace(c, transform=transforms[c.transform.name])
        for c in listed
    }


def _bound(
    transform: Published, severities: Sequence[int], places: Mapping[str, Place],
    samples: Sequence[Sample],
) -> Published:  # fmt: skip
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
    """Height and width; None where it cannot be read, which the evaluation itself then says."""
    try:
        return image_size(file)
    except UnreadableImage:
        return None


# How like the published pictures our own corruptions of the same images are.


PARITY_FILE = "parity.json"
PARITY_IMAGES = 16


class Likeness(Record):
    """Our corruption beside the published one at one severity, as a model sees both.

    Args:
        transform: The published one.
        severity: Of both.
        model: The model that sees both.
        images: How many were compared.
        identical: Of these, with the same pixels in both.
        psnr_db: Mean over the others; None without any.
    """

    transform: str
    severity: int
    model: str
    images: int
    identical: int
    psnr_db: float | None


_LIKENESS = TypeAdapter(list[Likeness])


def counterpart(transform: str) -> str:
    """Our own corruption of the name of the published one, registered or not."""
    return NAME_PREFIX + transform.removeprefix(PUBLISHED_PREFIX)


def read_parity(run: Path) -> list[Likeness]:
    """What `update_parity` wrote; nothing where nothing was compared."""
    path = run / PARITY_FILE
    return _LIKENESS.validate_json(path.read_bytes()) if path.is_file() else []


def update_parity(
    run: Path, cells: Mapping[Cell, TransformCell], samples: Sequence[Sample],
    seen: Callable[[Sequence[Sample], Sequence[Cell]], Mapping[Cell, Mapping[str, Any]]],
) -> None:  # fmt: skip
    """Compares the published cells with our own ones of this command, as far as not yet done.

    Args:
        run: The run's folder.
        cells: Those of the command.
        samples: The clean images, of which up to PARITY_IMAGES are drawn by id.
        seen: Makes the models' inputs (n, channels, side, side) of some images, by cell and model.
    """
    known = read_parity(run)
    done = {(one.transform, one.severity, one.model) for one in known}
    drawn = sorted(samples, key=lambda s: identity_seed("published", s.image_id))[:PARITY_IMAGES]
    found = []
    for cell in cells:
        own = Cell(counterpart(cell.transform), cell.severity)
        if not isinstance(cells[cell].transform, Published) or own not in cells:
            continue
        inputs = seen(drawn, (own, cell))
        for model, theirs in inputs[cell].items():
            if (cell.transform, cell.severity, model) not in done:
                found.append(_likeness(cell, model, np.asarray(inputs[own][model]), theirs))
    if found:
        write_bytes(run / PARITY_FILE, _LIKENESS.dump_json([*known, *found], indent=2) + b"\n")


def _likeness(cell: Cell, model: str, ours: NDArray[np.uint8], theirs: Any) -> Likeness:
    differences = ours.astype(np.float64) - np.asarray(theirs)
    errors = np.square(differences).mean(axis=(1, 2, 3))
    other = errors[errors > 0]
    psnr = float((10 * np.log10(255**2 / other)).mean()) if len(other) else None
    return Likeness(
        transform=cell.transform, severity=cell.severity, model=model, images=len(errors),
        identical=len(errors) - len(other), psnr_db=psnr,
    )  # fmt: skip
