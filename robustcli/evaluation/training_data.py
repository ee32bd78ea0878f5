"""What a segmenter was trained on, as far as its files tell, so that it is not tested on that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.load import ModelRequest
from robustcli.adapters.places import local_path
from robustcli.adapters.training_run import is_run, weights_in
from robustcli.adapters.weights_header import read_header
from robustcli.core.names import canonical
from robustcli.data.pairs import PairIndex
from robustcli.data.splits import read_splits

SPLITS = "splits.csv"


@dataclass(frozen=True)
class TrainingData:
    """The data of one training.

    Args:
        model: The model, as the user named it.
        digest: Of the list of images; None where the weights do not say it.
        parts: Which part each image was in, by id; empty where that file is not there.
    """

    model: str
    digest: str | None
    parts: Mapping[str, str]

    def overlaps(self, index: PairIndex) -> bool:
        """Whether some images of `index` are among those of the training.

        Ids are paths inside the data set, so another name or place of its folder changes nothing.
        """
        same = self.digest is not None and self.digest == index.digest
        return same or any(pair.image_id in self.parts for pair in index.pairs)


def training_data(request: ModelRequest) -> TrainingData | None:
    """What the model of `request` was trained on; None where nothing tells.

    The weights' own header names the data; `splits.csv` in the run's folder the parts, or a file of
    that ending beside bundled weights.
    """
    place = _place(request)
    if place is None or request.untrained:
        return None
    header = read_header(weights_in(place))
    folders = [place, place.parent, place.parent.parent]  # RUN, RUN/FILE, RUN/checkpoints/FILE
    files = [place.with_suffix(f".{SPLITS}"), *(folder / SPLITS for folder in folders)]
    found = next((file for file in files if file.is_file()), None)
    parts = {} if found is None else read_splits(found)
    if header is None and not parts:
        return None
    return TrainingData(request.name, None if header is None else header.trained_on, parts)


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
