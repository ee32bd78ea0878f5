"""Labels photos with a classifier, without true labels, and writes them as a table.

Part of `robust predict`, see `prediction`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.classifier import Classifier, Ranking
from robustcli.adapters.load import answers_in
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import UsageError, located
from robustcli.core.io import parse_json, remove_folder, to_csv, write_text
from robustcli.core.listener import Listener
from robustcli.core.watchdog import decoding_pool, watching_threads
from robustcli.data.archives import list_place
from robustcli.data.dataset import FileRef, contents_digest
from robustcli.data.decode import UnreadableImage, decode
from robustcli.data.labels import NUMBERED, LabelSpace, numbered_classes
from robustcli.data.listing import normalised_path
from robustcli.data.tables import Say, ignore_note
from robustcli.tasks.base import Forward

CSV_FILE, SETTINGS_FILE = "labels.csv", "labels.json"
_THREADS = 4  # that decode photos
_DIGITS = 6  # of probabilities
_PARTS = ".parts-"  # beginning of the names of folders with finished batches


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

    def table(self) -> pd.DataFrame:
        """The `rows` as a table, which has columns also without photos."""
        rows = self.rows()
        return pd.DataFrame(
            rows, columns=None if rows else ["image", "class", "name", "probability"]
        )

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
    by_path: dict[Path, tuple[str, FileRef]] = {}
    for place in places:
        for path, prefix, ref in _photos_at(place, say):
            by_path.setdefault(path, (prefix, ref))
    if not by_path:
        raise UsageError(
            f"No photos were found in {' and '.join(f'`{place}`' for place in places)}.",
            "Expected a folder with image files (JPEG, PNG, TIFF, ...) or image files.",
            "Check the path.",
        )
    count = Counter(ref.relative for _, ref in by_path.values())
    files = [
        ref if count[ref.relative] == 1 else replace(ref, relative=f"{prefix}{ref.relative}")
        for prefix, ref in by_path.values()
    ]
    return tuple(sorted(files, key=lambda ref: ref.relative))


def _photos_at(place: Path, say: Say) -> Iterator[tuple[Path, str, FileRef]]:
    """Each photo with its path, and the prefix for its id if another photo has the same id.

    The path is equal for all spellings of `place`. Links inside `place` are not resolved: two links
    to one file are two photos, as in an evaluation.
    """
    path, listing = list_place(place)
    if listing is None:
        parent = "" if place.parent == Path() else f"{place.parent.as_posix()}/"
        name = normalised_path(path.name)
        yield path.parent.resolve() / name, parent, FileRef(name, path)
        return
    for note in listing.notes(path):
        say(note)
    root = path.resolve()
    for file in listing.files:
        yield root / file.relative, f"{place.as_posix()}/", file


def classes_of(classifier: Classifier, request: ModelRequest, say: Say = ignore_note) -> LabelSpace:
    """The classes of the outputs of `classifier`; reports to `say` if they are only numbered.

    Raises:
        UsageError: The requested label space does not exist.
    """
    space = answers_in(request)
    outputs = classifier.classes or getattr(classifier.network, "num_classes", None)
    if outputs is not None and outputs != len(space.ids):
        space = numbered_classes(classifier.facts.name, outputs)
    if space.name.startswith(f"{NUMBERED} of "):
        say(
            f"The classes of the {len(space.ids)} outputs of `{classifier.facts.name}` are not "
            "known: labels are output numbers, starting at 0 (`--label-space FILE` sets the "
            "names)."
        )
    return space


@dataclass(frozen=True)
class LabelledBatch:
    """The labels of the readable photos of one batch, and id and reason of each other photo."""

    photos: tuple[PhotoLabels, ...]
    unreadable: tuple[tuple[str, str], ...]


def label_batches(
    classifier: Classifier, batches: Mapping[int, Sequence[FileRef]], *, top: int,
    listener: Listener, announce: Say,
) -> Iterator[tuple[int, LabelledBatch]]:  # fmt: skip
    """Yields the number of each of `batches` and the `top` most probable classes of its photos.

    Decoding, resizing, cropping and normalisation are those of `robust eval`, so the predictions
    are the same.

    Args:
        classifier: The classifier, already on its device.
        batches: Photos of each forward pass, see `list_photos`, by number.
        top: Number of classes per photo.
        listener: Receives progress.
        announce: Receives messages.
    """
    forward = Forward(classifier, partial(classifier.ranked, most=top), announce)
    for number, views in _photo_views(batches, classifier.preprocessing, announce):
        refs = batches[number]
        readable = [(ref, v) for ref, v in zip(refs, views, strict=True) if not isinstance(v, str)]
        unreadable = tuple(
            (ref.relative, v) for ref, v in zip(refs, views, strict=True) if isinstance(v, str)
        )
        labelled: list[PhotoLabels] = []
        if readable:
            inputs = torch.from_numpy(np.stack([view for _, view in readable]))
            with located(f"It was `{readable[0][0].relative}` to `{readable[-1][0].relative}`."):
                rankings = [ranking for piece in forward(inputs) for ranking in piece]
            for (ref, _), ranking in zip(readable, rankings, strict=True):
                labelled.append(PhotoLabels(ref.relative, ranking))
        yield number, LabelledBatch(tuple(labelled), unreadable)
        listener.advance(len(refs))


def _photo_views(
    batches: Mapping[int, Sequence[FileRef]], preprocessing: Preprocessing, say: Say
) -> Iterator[tuple[int, list[NDArray[np.uint8] | str]]]:
    """The views of each batch of photos; the next batch is decoded during the computation."""
    with watching_threads(say), decoding_pool(_THREADS) as pool:
        waiting: tuple[int, list[Future[NDArray[np.uint8] | str]]] | None = None
        for number, refs in batches.items():
            submitted = [pool.submit(view_of_photo, ref, preprocessing) for ref in refs]
            if waiting is not None:
                yield waiting[0], [future.result() for future in waiting[1]]
            waiting = number, submitted
        if waiting is not None:
            yield waiting[0], [future.result() for future in waiting[1]]


def view_of_photo(ref: FileRef, preprocessing: Preprocessing) -> NDArray[np.uint8] | str:
    """Preprocessed photo (channels, crop, crop), or the reason why it cannot be read."""
    try:
        view = preprocessing.coloured(preprocessing.apply(decode(ref)))
    except UnreadableImage as error:
        return error.reason
    return np.ascontiguousarray(view.transpose(2, 0, 1))


# The labels of finished batches.


class LabelParts:
    """The labels of finished batches, one file each, for other processes and repeated commands.

    Args:
        folder: Folder of the files; None to keep the labels in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._known: dict[int, LabelledBatch] = {}

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of the batches `numbers` that are not finished."""
        return [number for number in numbers if self._read(number) is None]

    def put(self, number: int, batch: LabelledBatch) -> None:
        """Stores the labels of the batch `number`."""
        if self.folder is None:
            self._known[number] = batch
            return
        labels = [[p.image_id, p.ranking.classes, p.ranking.probabilities] for p in batch.photos]
        content = json.dumps({"labels": labels, "unreadable": batch.unreadable})
        write_text(self._path(self.folder, number), content)

    def labelling(self, space: LabelSpace, top: int, numbers: Iterable[int]) -> Labelling:
        """The labels of all batches `numbers`, which are finished."""
        parts = []
        for number in numbers:
            part = self._read(number)
            assert part is not None, "otherwise it is in `missing`"
            parts.append(part)
        return Labelling(
            space,
            top,
            tuple(photo for part in parts for photo in part.photos),
            tuple(pair for part in parts for pair in part.unreadable),
        )

    def _read(self, number: int) -> LabelledBatch | None:
        if number not in self._known and self.folder is not None:
            with suppress(OSError, ValueError, TypeError, KeyError):
                content = parse_json(self._path(self.folder, number).read_text(encoding="utf-8"))
                self._known[number] = LabelledBatch(
                    tuple(
                        PhotoLabels(name, Ranking(tuple(classes), tuple(probabilities)))
                        for name, classes, probabilities in content["labels"]
                    ),
                    tuple((name, reason) for name, reason in content["unreadable"]),
                )
        return self._known.get(number)

    @staticmethod
    def _path(folder: Path, number: int) -> Path:
        return folder / f"batch-{number:06d}.json"


@contextmanager
def label_parts(
    out: Path | None, settings: object, photos: Sequence[FileRef], *, shared: bool, fresh: bool
) -> Iterator[LabelParts]:
    """Context manager: the finished batches of a command, which are removed after its success.

    Args:
        out: Folder of the labels, in which an interrupted command keeps finished batches; None to
            keep none.
        settings: Everything besides the photos that determines labels and batches.
        photos: The photos of the command.
        shared: Whether other processes of this machine compute batches.
        fresh: Whether to discard batches of an interrupted command.
    """
    if out is None and not shared:
        yield LabelParts(None)
    elif out is None:
        with TemporaryDirectory(prefix="robust-") as folder:
            yield LabelParts(Path(folder))
    else:
        text = json.dumps([settings, contents_digest(photos)], default=str)
        folder_name = f"{_PARTS}{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        if fresh:
            remove_folder(out / folder_name)
        yield LabelParts(out / folder_name)
        for path in out.glob(f"{_PARTS}*"):  # also of interrupted commands with other settings
            remove_folder(path)


# The files.


def label_settings(model: Classifier, space: LabelSpace, top: int) -> dict[str, Any]:
    """Settings that determine the labels of given photos."""
    facts = model.facts
    settings = {
        "model": facts.name,
        "arguments": facts.arguments,
        "weights": facts.weights,
        "weights_sha256": facts.weights_sha256,
        "untrained": facts.untrained,
        "precision": model.precision,
        "preprocessing": asdict(model.preprocessing),
        "top": top,
        "label_space": space.name,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def check_labels_kept(folder: Path, settings: Mapping[str, Any], photos: Sequence[FileRef]) -> None:
    """Checks that labels of `photos` can replace the labels in `folder`, if it has any.

    Raises:
        UsageError: The file was made by another program or with other settings, or it has labels of
            photos that are not in `photos`.
    """
    path, settings_file = folder / CSV_FILE, folder / SETTINGS_FILE
    if not path.exists():
        return
    try:
        before = parse_json(settings_file.read_text(encoding="utf-8"))
        differences = [key for key, value in settings.items() if before.get(key) != value]
        labelled = {photo["image"] for photo in (*before["predictions"], *before["unreadable"])}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        raise UsageError(
            f"`{path}` already exists.",
            f"Its folder has no `{SETTINGS_FILE}`, so that it may not be an output of this "
            "command.",
            "Choose another folder with `--out`, or replace it with `--fresh`.",
        ) from None
    if differences:
        raise UsageError(
            f"`{path}` was made with other settings ({', '.join(differences)}).",
            "Labels with different settings are only replaced on request.",
            "Choose another folder with `--out`, or replace it with `--fresh`.",
        )
    lost = labelled - {photo.relative for photo in photos}
    if lost:
        raise UsageError(
            f"`{path}` contains the labels of {len(lost)} other photos, such as `{min(lost)}`.",
            "They would be lost, because this command does not label these photos.",
            "Choose another folder with `--out`, or replace it with `--fresh`.",
        )


def write_labels(folder: Path, labelling: Labelling, document: Mapping[str, Any]) -> Path:
    """Writes the CSV file, and `document` as the file with its settings; returns the former."""
    path = folder / CSV_FILE
    write_text(folder / SETTINGS_FILE, json.dumps(document, indent=1) + "\n")
    write_text(path, to_csv(labelling.table()))
    return path
