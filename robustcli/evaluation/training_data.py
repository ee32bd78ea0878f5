"""What a model was trained on, as far as its files tell, so that it is not tested on that."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.load import ModelRequest
from robustcli.adapters.places import local_path
from robustcli.adapters.training_run import header_beside, is_run, weights_in
from robustcli.adapters.weights_header import ClassifierHeader
from robustcli.core.names import canonical
from robustcli.data.decode import read_bytes
from robustcli.data.index import ImageRef
from robustcli.data.indexed import Indexed, Member
from robustcli.data.splits import read_splits

SPLITS = "splits.csv"


@dataclass(frozen=True)
class TrainingData:
    """The data of one training.

    Args:
        model: The model, as the user named it.
        digest: Of the list of images; None where the weights do not say it.
        parts: Which part each image was in, by id; empty where that file is not there.
        seen: Of some training images, by id, the SHA-256 of their files, where the weights say it.
    """

    model: str
    digest: str | None
    parts: Mapping[str, str]
    seen: Mapping[str, str] = field(default_factory=dict)

    def overlaps(self, index: Indexed) -> bool:
        """Whether some images of `index` are among those of the training.

        Ids are paths inside the data set, so another name or place of its folder changes nothing.
        But `cat/001.jpg` may be another photo in other data: where files of that name can be
        compared with those of the training, these decide.
        """
        there = [one for one in index.members if one.image_id in self.seen]
        if there:
            return any(_hash(one) == self.seen[one.image_id] for one in there)
        same = self.digest is not None and self.digest == index.digest
        return same or any(one.image_id in self.parts for one in index.members)


def _hash(member: Member) -> str:
    assert isinstance(member, ImageRef), "only classifiers' weights say what they have seen"
    try:
        return hashlib.sha256(read_bytes(member)).hexdigest()
    except OSError:
        return ""


def training_data(request: ModelRequest) -> TrainingData | None:
    """What the model of `request` was trained on; None where nothing tells.

    The weights' own header names the data; `splits.csv` in the run's folder the parts, or a file of
    that ending beside bundled weights.
    """
    place = _place(request)
    if place is None or request.untrained:
        return None
    header = header_beside(weights_in(place))
    folders = [place, place.parent, place.parent.parent]  # RUN, RUN/FILE, RUN/checkpoints/FILE
    files = [place.with_suffix(f".{SPLITS}"), *(folder / SPLITS for folder in folders)]
    found = next((file for file in files if file.is_file()), None)
    parts = {} if found is None else read_splits(found)
    if header is None and not parts:
        return None
    seen = header.seen if isinstance(header, ClassifierHeader) else {}
    return TrainingData(request.name, None if header is None else header.trained_on, parts, seen)


def _place(request: ModelRequest) -> Path | None:
    if request.weights is not None:
        return request.weights
    bundled = (e for e in CATALOGUE.values() if canonical(e.name) == canonical(request.name))
    entry = next(bundled, None)
    if entry is not None:
        return local_path(entry) if entry.asset is not None else None
    return Path(request.name) if is_run(Path(request.name)) else None


def parts_of(run: Path) -> Mapping[str, str]:
    """The part of each image id in the training run `run`; empty where it does not say.

    Raises:
        UsageError: Its `splits.csv` is damaged.
    """
    return read_splits(run / SPLITS) if (run / SPLITS).is_file() else {}
