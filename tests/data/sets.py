"""Data sets of made-up ids, with classes and with masks, and seeds computed by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from robustcli.data.dataset import Dataset, FileRef, Sample
from robustcli.data.labels import LabelSpace, read_label_space

CIFAR10 = read_label_space("cifar10")


def with_classes(
    *counts: int, space: LabelSpace = CIFAR10, splits: Mapping[str, str] | None = None
) -> Dataset:
    """Of each class of `space`, as many images `CLASS/NNN.jpg` as `counts` says."""
    ids = [
        (f"{space.ids[target]}/{number:03}.jpg", target)
        for target, count in enumerate(counts)
        for number in range(count)
    ]
    samples = [
        Sample(FileRef(image_id, Path("p")), target, image_id, (splits or {}).get(image_id))
        for image_id, target in ids
    ]
    return Dataset("set", "place", tuple(samples), space, available=len(samples))


def with_masks(*counts: int, splits: Sequence[str | None] = ()) -> Dataset:
    """Of each group `pNNN`, as many images `pNNN/NNN` as `counts` says, all in one split."""
    samples = [
        Sample(
            FileRef(f"p{group:03}/{number:03}", Path("i")), FileRef("m", Path("m")),
            f"p{group:03}", splits[group] if splits else None,
        )
        for group, count in enumerate(counts)
        for number in range(count)
    ]  # fmt: skip
    return Dataset("set", "place", tuple(samples), grouping="patient", available=len(samples))


def load_recipe(name: str) -> ModuleType:
    """The module `recipes/NAME.py`."""
    file = Path(__file__).parents[2] / "recipes" / f"{name}.py"
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ids(dataset: Dataset) -> list[str]:
    """The ids of the images, in order."""
    return [sample.image_id for sample in dataset.samples]


def seed_by_hand(*parts: str) -> int:
    """The seed of an identity, as `core.seeds` documents it."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part.encode())
    return int.from_bytes(digest.digest()[:8], "little")
