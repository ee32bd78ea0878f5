"""Labels photos with a classifier; implements `robust predict` for classifiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.classifier import Classifier, Ranking
from robustcli.adapters.load import answers_in
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener, Silent
from robustcli.core.watchdog import decoding_pool, watching_threads
from robustcli.data.archives import is_tar, is_zip, list_tar, list_zip
from robustcli.data.dataset import FileRef
from robustcli.data.decode import UnreadableImage, decode
from robustcli.data.labels import NUMBERED, LabelSpace, numbered_classes
from robustcli.data.listing import list_folder
from robustcli.data.named_datasets import find_named, require_tar
from robustcli.data.tables import Say, ignore_note
from robustcli.tasks.classification import ClassificationTask
from robustcli.tasks.forward import Forward

_THREADS = 4
_DIGITS = 6  # of probabilities


@dataclass(frozen=True)
class PhotoLabels:
    """The most probable classes of one photo, best first."""

    image_id: str
    ranking: Ranking


@dataclass(frozen=True)
class Labelling:
    """Predicted labels of photos.

    Args:
        space: The classes.
        top: Largest number of classes per photo.
        photos: Labels of each readable photo, in order of the ids.
        unreadable: Id and reason of each photo that cannot be read.
    """

    space: LabelSpace
    top: int
    photos: tuple[PhotoLabels, ...]
    unreadable: tuple[tuple[str, str], ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row per photo: `image`, then class, name and probability of each rank.

        The columns of rank 1 are `class`, `name` and `probability`; those of rank k end with `_k`.
        """
        return [self._row(photo) for photo in self.photos]

    def _row(self, photo: PhotoLabels) -> dict[str, Any]:
        row: dict[str, Any] = {"image": photo.image_id}
        for number, label in enumerate(self.labels(photo), 1):
            ending = "" if number == 1 else f"_{number}"
            row |= {f"{key}{ending}": label[key] for key in ("class", "name", "probability")}
        return row

    def labels(self, photo: PhotoLabels) -> list[dict[str, Any]]:
        """Index, id, name and probability of each class of a photo, best first."""
        ranked = zip(photo.ranking.classes, photo.ranking.probabilities, strict=True)
        return [
            {
                "index": index,
                "class": self.space.ids[index],
                "name": self.space.names[index],
                "probability": round(probability, _DIGITS),
            }
            for index, probability in ranked
        ]

    def document(self) -> dict[str, Any]:
        """All labels as a JSON-serialisable dictionary."""
        return {
            "label_space": self.space.name,
            "images": len(self.photos),
            "unreadable": [{"image": name, "reason": why} for name, why in self.unreadable],
            "predictions": [
                {"image": photo.image_id, "labels": self.labels(photo)} for photo in self.photos
            ],
        }


def list_photos(places: Sequence[Path], say: Say = ignore_note) -> tuple[FileRef, ...]:
    """The photos of `places`, sorted by id and without duplicates.

    Args:
        places: Folders (searched recursively), archives (tar, zip), names of data sets, and photos.
            The id of a photo is its path relative to its folder, as in an evaluation of that
            folder; the id of a single file is its name. If two photos would have the same id, the
            path of the folder as given is prepended.
        say: Receives messages about skipped files.

    Raises:
        UsageError: There are no photos, or a place does not exist.
    """
    by_file: dict[tuple[str, str | None], tuple[str, FileRef]] = {}
    for place in places:
        for prefix, ref in _photos_at(place, say):
            by_file.setdefault((str(ref.path.resolve()), ref.member), (prefix, ref))
    if not by_file:
        raise UsageError(
            f"No photos were found in {' and '.join(f'`{place}`' for place in places)}.",
            "Expected a folder with image files (JPEG, PNG, TIFF, ...) or image files.",
            "Check the path.",
        )
    count = Counter(ref.relative for _, ref in by_file.values())
    files = [
        ref if count[ref.relative] == 1 else replace(ref, relative=f"{prefix}{ref.relative}")
        for prefix, ref in by_file.values()
    ]
    return tuple(sorted(files, key=lambda ref: ref.relative))


def _photos_at(place: Path, say: Say) -> Iterator[tuple[str, FileRef]]:
    """Each photo with the prefix for its id, used if another photo has the same id."""
    named = None if place.exists() else find_named(str(place))
    path = place.expanduser() if named is None else require_tar(named)
    if path.is_dir():
        listing = list_folder(path)
    elif is_tar(path):
        listing = list_tar(path)
    elif is_zip(path):
        listing = list_zip(path)
    elif path.is_file():
        parent = "" if place.parent == Path() else f"{place.parent.as_posix()}/"
        yield parent, FileRef(path.name, path)
        return
    else:
        raise UsageError(
            f"`{place}` does not exist.",
            "Expected a folder of photos, an archive of them, or a photo.",
            "Check the path.",
        )
    for note in listing.notes(path):
        say(note)
    for file in listing.files:
        yield f"{place.as_posix()}/", file


def classes_of(classifier: Classifier, request: ModelRequest, say: Say = ignore_note) -> LabelSpace:
    """The classes of the outputs of `classifier`; reports to `say` if they are only numbered.

    Raises:
        UsageError: The requested label space does not exist.
    """
    space = answers_in(request)
    outputs = getattr(classifier.network, "num_classes", None)
    if outputs is not None and outputs != len(space.ids):
        space = numbered_classes(classifier.facts.name, outputs)
    if space.name.startswith(f"{NUMBERED} of "):
        say(
            f"The classes of the {len(space.ids)} outputs of `{classifier.facts.name}` are not "
            "known: labels are output numbers, starting at 0 (`--label-space FILE` sets the "
            "names)."
        )
    return space


def label_photos(
    classifier: Classifier,
    space: LabelSpace,
    photos: Sequence[FileRef],
    *,
    top: int = 5,
    batch_size: int | None = None,
    listener: Listener | None = None,
) -> Labelling:
    """Predicts the `top` most probable classes of each photo.

    Decoding, resizing, cropping and normalisation are those of `robust eval`, so the predictions
    are the same. Photos that cannot be read are listed in the result.

    Args:
        classifier: The classifier, already on its device.
        space: Its classes, see `classes_of`.
        photos: See `list_photos`.
        top: Number of classes per photo.
        batch_size: Number of photos per forward pass; None for the default of the device.
        listener: Receives progress.
    """
    listener = listener or Silent()
    size = batch_size or ClassificationTask.batch_sizes[classifier.device.type]
    forward = Forward(classifier, partial(classifier.ranked, most=top), listener.say)
    labelled: list[PhotoLabels] = []
    unreadable: list[tuple[str, str]] = []
    listener.start(len(photos), 0)
    for refs, views in _batches(photos, classifier.preprocessing, size, listener.say):
        readable = [(ref, v) for ref, v in zip(refs, views, strict=True) if not isinstance(v, str)]
        unreadable += [
            (ref.relative, v) for ref, v in zip(refs, views, strict=True) if isinstance(v, str)
        ]
        if readable:
            batch = torch.from_numpy(np.stack([view for _, view in readable]))
            rankings = [ranking for piece in forward(batch) for ranking in piece]
            for (ref, _), ranking in zip(readable, rankings, strict=True):
                labelled.append(PhotoLabels(ref.relative, ranking))
        listener.advance(len(refs))
    return Labelling(space, top, tuple(labelled), tuple(unreadable))


def _batches(
    photos: Sequence[FileRef], preprocessing: Preprocessing, size: int, say: Say
) -> Iterator[tuple[Sequence[FileRef], list[NDArray[np.uint8] | str]]]:
    """Batches of photos and their views; the next batch is decoded during the computation."""
    batches = [photos[at : at + size] for at in range(0, len(photos), size)]
    with watching_threads(say), decoding_pool(_THREADS) as pool:

        def submitted(refs: Sequence[FileRef]) -> list[Future[NDArray[np.uint8] | str]]:
            return [pool.submit(_view, ref, preprocessing) for ref in refs]

        pending = submitted(batches[0])
        for number, refs in enumerate(batches):
            current = pending
            pending = submitted(batches[number + 1]) if number + 1 < len(batches) else []
            yield refs, [future.result() for future in current]


def _view(ref: FileRef, preprocessing: Preprocessing) -> NDArray[np.uint8] | str:
    """Preprocessed photo (channels, crop, crop), or the reason why it cannot be read."""
    try:
        view = preprocessing.coloured(preprocessing.apply(decode(ref)))
    except UnreadableImage as error:
        return error.reason
    return np.ascontiguousarray(view.transpose(2, 0, 1))
