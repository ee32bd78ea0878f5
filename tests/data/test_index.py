"""The digest of an index, against its written definition."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from robustcli.data.index import ImageIndex, ImageRef
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
