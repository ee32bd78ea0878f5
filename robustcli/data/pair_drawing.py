"""Which groups are held out: a pure function of groups and seed, and sklearn's way of drawing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robustcli.core.errors import UsageError
from robustcli.core.seeds import identity_seed
from robustcli.data.pairs import PairIndex

HELD_OUT = 0.1


def parts_by_group(index: PairIndex, *, seed: int) -> dict[str, set[str]]:
    """The groups of `train`, `val` and `test`; see `splits.patient_splits`.

    Raises:
        UsageError: There are too few groups for three parts.
    """
    parts: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for pair in index.pairs:
        parts[pair.split or "train"].add(pair.group)
    missing = [name for name in ("test", "val") if not parts[name]]
    free = sorted(parts["train"], key=lambda group: (identity_seed(seed, group), group))
    if len(free) <= len(missing):
        raise _too_few(index, len(free), missing)
    if missing:
        tenth = max(1, round(HELD_OUT * len(index.groups)))
        count = min(tenth, (len(free) - 1) // len(missing))
        ends = {"test": free[:count], "val": free[-count:]}
        for name in missing:
            parts[name] = set(ends[name])
            parts["train"] -= parts[name]
    return parts


def shuffled_in_two(ids: Sequence[str], first: int, seed: int) -> tuple[list[str], list[str]]:
    """`first` of `ids` and the others, both in random order, as scikit-learn draws them.

    Source: sklearn.model_selection.ShuffleSplit: a permutation of the legacy generator, of which
    the test part comes first.
    """
    permutation = np.random.RandomState(seed).permutation(len(ids))
    others = len(ids) - first
    return [ids[i] for i in permutation[others:]], [ids[i] for i in permutation[:others]]


def _too_few(index: PairIndex, free: int, missing: list[str]) -> UsageError:
    kind = index.grouping
    groups = index.groups
    found = f"all images belong to the {kind} `{groups[0]}`" if len(groups) == 1 else (
        f"there {'is' if free == 1 else 'are'} {free} to draw from"
    )  # fmt: skip
    return UsageError(
        f"`{index.name}` cannot be split by {kind}.",
        f"{', '.join(['train', *missing])} need one {kind} each at least, but {found}.",
        "Name more data, leave `--limit` out, or give the images their splits in a CSV "
        f"(`image,mask,split`). `--protocol paper` splits by image instead: one {kind} is then in "
        "training and test, and the score too good.",
    )
