"""The index of pairs."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from robustcli.data.dataset import ImageIndex, ImageRef, PairIndex, PairRef
from robustcli.data.labels import label_space

IMAGES = (ImageRef("a/1.jpg", 0, Path("x")), ImageRef("b/é.jpg", 7, Path("y")))
INDEX = ImageIndex("name", "place", label_space("cifar10"), IMAGES)


def test_digest_as_documented() -> None:
    text = "a/1.jpg\0" + "0\n" + "b/é.jpg\0" + "7\n"
    assert INDEX.digest == hashlib.sha256(text.encode()).hexdigest()


def test_digest_does_not_depend_on_the_machine() -> None:
    moved = tuple(replace(image, path=Path("/elsewhere")) for image in IMAGES)
    assert replace(INDEX, images=moved, location="elsewhere").digest == INDEX.digest


def test_digest_depends_on_order_and_targets() -> None:
    wrong = (replace(IMAGES[0], target=1), IMAGES[1])
    others = {replace(INDEX, images=images).digest for images in (IMAGES[::-1], wrong, IMAGES[:1])}
    assert len(others | {INDEX.digest}) == 4


def _index(*groups: str) -> PairIndex:
    refs = [ImageRef(f"{number}.png", 0, Path("i")) for number in range(len(groups))]
    pairs = [PairRef(ref, ref, group) for ref, group in zip(refs, groups, strict=True)]
    return PairIndex("set", "place", tuple(pairs), "patient", len(pairs))


def test_the_digest_is_that_of_ids_and_groups() -> None:
    assert _index("p", "q").digest == hashlib.sha256(b"0.png\0p\n1.png\0q\n").hexdigest()


def test_groups_are_listed_once_and_sorted() -> None:
    assert _index("q", "p", "q").groups == ("p", "q")


def test_a_part_keeps_the_order_and_counts_the_whole() -> None:
    part = _index("p", "q", "r").part(frozenset({"2.png", "0.png"}), "test part")
    assert [pair.group for pair in part.pairs] == ["p", "r"]
    assert (part.subset, part.available) == ("test part", 3)
