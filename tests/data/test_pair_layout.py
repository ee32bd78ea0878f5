"""Images and masks find each other, or the lonely ones are listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.data.listing import Entry
from robustcli.data.pair_layout import by_key, match, pair, stem

ROOT = Path("set")


def _entries(*names: str) -> dict[str, Entry]:
    return {stem(Entry(name, ROOT / name)): Entry(name, ROOT / name) for name in names}


def test_same_keys_belong_together() -> None:
    matched = match(ROOT, _entries("b.jpg", "x/a.jpg"), _entries("x/a.png", "b.png"))
    assert [(i.relative, m.relative) for i, m in matched] == [
        ("b.jpg", "b.png"),
        ("x/a.jpg", "x/a.png"),
    ]


def test_lonely_images_and_masks_are_listed_and_counted() -> None:
    images = _entries(*(f"{letter}.jpg" for letter in "abcdefg"))
    message = (
        r"In `set` 6 of 7 images have no mask and 1 of 2 masks have no image\.\n"
        r"Without a mask: `b\.jpg`, .*`f\.jpg` and 1 more\. Without an image: `z\.png`\.\n"
        r"Add the missing files .* in a CSV \(`image,mask`\)\."
    )
    with pytest.raises(UsageError, match=message):
        match(ROOT, images, _entries("a.png", "z.png"))
    with pytest.raises(UsageError, match=r"In `set` 1 of 1 masks have no image\.\nWithout an im"):
        match(ROOT, {}, _entries("z.png"))


def test_two_files_of_one_key() -> None:
    twice = [(stem(e), e) for e in (Entry("a.png", ROOT / "a.png"), Entry("a.jpg", ROOT / "a.jpg"))]
    message = r"`set` has 1 names more than once\.\n`a\.jpg`, `a\.png` differ in nothing but the"
    with pytest.raises(UsageError, match=message):
        by_key(ROOT, twice)


def test_a_pair_keeps_where_its_files_lie() -> None:
    image, mask = Entry("i.png", ROOT, "images/i.png", 512, 9), Entry("i.png", ROOT, "m", 1536, 7)
    made = pair(image, mask)
    assert (made.image_id, made.group, made.split) == ("i.png", "i.png", None)
    assert (made.image.member, made.image.offset, made.image.size) == ("images/i.png", 512, 9)
    assert (made.mask.member, made.mask.offset, made.mask.size) == ("m", 1536, 7)
    assert pair(image, mask, "p", "val").group == "p"


@pytest.mark.parametrize(("name", "bare"), [("a/b.x.png", "a/b.x"), ("a.b/c.png", "a.b/c")])
def test_stems(name: str, bare: str) -> None:
    assert stem(Entry(name, ROOT)) == bare
