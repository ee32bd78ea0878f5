"""Training, validation and test parts: drawn by group, or by image as the tumour paper did."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, cast, get_args

from robustcli.core.atomic import write_text
from robustcli.core.errors import UsageError
from robustcli.data.advice import listed
from robustcli.data.indexed import IndexT
from robustcli.data.pair_drawing import parts_by_group, shuffled_in_two
from robustcli.data.pairs import PairIndex
from robustcli.data.tables import Column, read_columns

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_PAPER_TRAIN, _PAPER_SEED = 0.8, 37
_HEADER = ("image_id", "group", "split")


@dataclass(frozen=True)
class Splits(Generic[IndexT]):
    """The three parts of a data set."""

    train: IndexT
    val: IndexT
    test: IndexT


def patient_splits(index: PairIndex, *, seed: int) -> Splits[PairIndex]:
    """80/10/10 % of the groups, none of them in two parts.

    Groups stand in an order drawn from (seed, group) alone: the first tenth is for test, the last
    for validation, the rest for training. So the order of files does not matter, and of the old
    groups only a few at the two borders move when others join. How many images and how many empty
    masks a part gets is left to chance: over the seeds 0 to 4, 59 to 71 % of the slices in LGG's
    parts are empty.

    Splits that the data gives are kept; a part that it does not give is drawn from its training
    groups (a tenth of all groups).

    Args:
        index: The data, perhaps with splits of its own.
        seed: Which groups.

    Raises:
        UsageError: There are too few groups for three parts.
    """
    parts = parts_by_group(index, seed=seed)
    ids = {
        name: {pair.image_id for pair in index.pairs if pair.group in groups}
        for name, groups in parts.items()
    }
    return _splits(index, ids, _how(index, seed))


def paper_splits(index: PairIndex) -> Splits[PairIndex]:
    """80/10/10 % of the images, whatever their group, in the tumour paper's way.

    `train_test_split(ids, train_size=0.8, random_state=37)` over the sorted ids, then the rest
    0.5/0.5 with the same state. Its fault is kept: images of one patient lie in training and test.
    Splits that the data gives do not count. The paper's own parts cannot be had again, because its
    list came in the order of a file system.
    Source: lxaw/mamba-tumor-seg @0d60b7a, the training notebooks.

    Raises:
        UsageError: There are too few images for three parts.
    """
    ids = sorted(pair.image_id for pair in index.pairs)
    train, rest = shuffled_in_two(ids, math.floor(_PAPER_TRAIN * len(ids)), _PAPER_SEED)
    val, test = shuffled_in_two(rest, len(rest) // 2, _PAPER_SEED)
    if not (train and val and test):
        raise UsageError(
            f"`{index.name}` has too few images to split: {len(ids)}.",
            "Training, validation and test need one image each at least, at 80/10/10 %.",
            "Name more data, or leave `--limit` out.",
        )
    parts = {"train": train, "val": val, "test": test}
    return _splits(index, parts, f"by image, seed {_PAPER_SEED}")


def write_splits(path: Path, splits: Splits[Any]) -> None:
    """Writes `image_id,group,split` of every image to `path`, sorted by id, durably."""
    rows = [
        (one.image_id, one.group, name) for name in SPLITS for one in getattr(splits, name).members
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_HEADER, *sorted(rows)])
    write_text(path, text.getvalue())


def read_splits(path: Path) -> dict[str, Split]:
    """The split of each image id, as `write_splits` wrote them.

    Raises:
        UsageError: The file cannot be read, or is none of that kind.
    """
    columns = read_columns(path, (Column("image-id"), Column("split")))
    unknown = sorted(set(columns["split"]) - set(SPLITS))
    if unknown:
        raise UsageError(
            f"`{path}` names splits that do not exist.",
            f"Expected `train`, `val` or `test`, got {listed(unknown)}.",
            "Name the run anew, or restore its `splits.csv`.",
        )
    names = [cast("Split", name) for name in columns["split"]]
    return dict(zip(columns["image-id"], names, strict=True))


def _how(index: PairIndex, seed: int) -> str:
    drawn = [name for name in ("val", "test") if all(p.split != name for p in index.pairs)]
    words = f"by {index.grouping}, seed {seed}"
    if len(drawn) == 2:
        return words
    return "as the data gives it" + (f", {drawn[0]} {words}" if drawn else "")


def _splits(index: PairIndex, ids: Mapping[str, Collection[str]], how: str) -> Splits[PairIndex]:
    whole = f"{index.subset}; " if index.subset else ""
    return Splits(
        *(index.part(frozenset(ids[name]), f"{whole}{name} part, split {how}") for name in SPLITS)
    )
