"""Digests, subsets and splits of the bundled sets, by which runs are continued and compared.

The values were computed on 27 November 2026, before images with classes and images with masks
became one kind of data set. A value that changes here makes runs of users impossible to continue.
"""

from __future__ import annotations

import pytest

from robustcli.data.dataset import Dataset
from robustcli.data.sources import Classes, Masks, open_dataset
from robustcli.data.splits import SPLITS, paper_splits, split_dataset, take


def _open(name: str) -> Dataset:
    has_classes = name == "cifar10-mini"
    return open_dataset(name, Classes("cifar10") if has_classes else Masks(surveyed=False))


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("cifar10-mini", "cc7545e74e6d798199e9c16eb09f3d65e9a521bdad4d79bb14b56ede934e4fc6"),
        ("nuclei-mini", "a665180fbf58117269af032b605822fa8aeb95aeb37449aa0a9ccdf16333aa25"),
    ],
)
def test_digests(name: str, digest: str) -> None:
    assert _open(name).digest == digest


@pytest.mark.parametrize(
    ("name", "per_class", "limit", "seed", "digest"),
    [
        ("cifar10-mini", 15, None, 0, "799dd2f458d4fcd2"),
        ("cifar10-mini", None, 37, 0, "9a02aba949d77c8f"),
        ("cifar10-mini", 12, 100, 3, "b5cf4d95a82d4427"),
        ("nuclei-mini", None, 24, 0, "804673f1a1241b6b"),
        ("nuclei-mini", None, 150, 3, "7386a143ad9ae952"),
    ],
)
def test_subsets(
    name: str, per_class: int | None, limit: int | None, seed: int, digest: str
) -> None:
    taken = take(_open(name), per_class=per_class, limit=limit, seed=seed)
    assert taken.digest.startswith(digest)


CLASSES_0 = {"train": "e0cf4c06908ccb92", "val": "6dbe543529e12e0f", "test": "5d1888e57cbb0b2f"}
CLASSES_5 = {"train": "ce632d5257afd527", "val": "c1db4247197f6911", "test": "aa05f0527d072655"}
PHOTOS = {"train": "bdcc6893e6080d85", "val": "42e0e6431befd63b", "test": "aca777313a49e3ca"}
STAINED = {"train": "f1d36518a63148cb", "val": "462c6b9ec64a8ec7", "test": "58c4e1194e64ac6f"}
PAPER = {"train": "c5ffe7daed7938f9", "val": "bfc1de742722d0f7", "test": "7e6ee1d1225eda46"}


@pytest.mark.parametrize(
    ("name", "way", "seed", "digests", "words"),
    [
        ("cifar10-mini", "drawn", 0, CLASSES_0, "split by image in each class, seed 0"),
        ("cifar10-mini", "drawn", 5, CLASSES_5, "split by image in each class, seed 5"),
        ("nuclei-mini", "drawn", 0, PHOTOS, "split as defined by the data set"),
        ("nuclei-mini", "drawn", 5, PHOTOS, "split as defined by the data set"),
        ("nuclei-mini:stained", "drawn", 0, STAINED, "split as defined by the data set"),
        ("nuclei-mini", "paper", 0, PAPER, "split by image, seed 37"),
    ],
)
def test_splits(name: str, way: str, seed: int, digests: dict[str, str], words: str) -> None:
    dataset = _open(name)
    drawn = way == "drawn"
    splits = split_dataset(dataset, seed=seed) if drawn else paper_splits(dataset)
    parts = {part: getattr(splits, part) for part in SPLITS}
    assert {part: of.digest[:16] for part, of in parts.items()} == digests
    assert {of.subset for of in parts.values()} == {f"{part} part, {words}" for part in SPLITS}
