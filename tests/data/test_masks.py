"""Masks are read exactly, or refused with the values that were found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.data.decode import UnreadableImage
from robustcli.data.index import ImageRef
from robustcli.data.masks import check_pair, decode_mask, decode_pair
from robustcli.data.pairs import PairRef

TRUTH = np.array([[0, 1, 1], [0, 0, 1]], bool)
BYTES = TRUTH.astype(np.uint8)


def _saved(folder: Path, image: Image.Image, name: str = "m.png") -> ImageRef:
    image.save(folder / name)
    return ImageRef(name, 0, folder / name)


def _palette(*colours: int) -> Image.Image:
    image = Image.frombytes("P", (3, 2), BYTES.tobytes())
    image.putpalette(list(colours))
    return image


KINDS = {
    "0 and 255": lambda: Image.fromarray(BYTES * 255),
    "0 and 1": lambda: Image.fromarray(BYTES),
    "one bit": lambda: Image.fromarray(TRUTH),
    "16 bits, 0 and 65535": lambda: Image.fromarray(TRUTH.astype(np.uint16) * 65535),
    "16 bits, 0 and 1": lambda: Image.fromarray(TRUTH.astype(np.uint16)),
    "grey as colour": lambda: Image.fromarray(BYTES * 255).convert("RGB"),
    "with alpha": lambda: Image.fromarray(BYTES * 255).convert("LA"),
    "indices of colours": lambda: _palette(0, 0, 0, 128, 0, 0),
    "palette of black and white": lambda: _palette(0, 0, 0, 255, 255, 255),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_every_way_to_write_two_classes(kind: str, suffix: str, tmp_path: Path) -> None:
    mask = decode_mask(_saved(tmp_path, KINDS[kind](), f"m{suffix}"))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, TRUTH)


def test_a_palette_counts_by_its_greys(tmp_path: Path) -> None:
    turned = _saved(tmp_path, _palette(255, 255, 255, 0, 0, 0))
    np.testing.assert_array_equal(decode_mask(turned), ~TRUTH)


@pytest.mark.parametrize(("level", "foreground"), [(0, 0), (1, 6), (255, 6)])
def test_masks_of_one_value(level: int, foreground: int, tmp_path: Path) -> None:
    ref = _saved(tmp_path, Image.fromarray(np.full((2, 3), level, np.uint8)))
    assert decode_mask(ref).sum() == foreground


@pytest.mark.parametrize(
    ("levels", "found"),
    [
        (np.array([[0, 2]], np.uint8), r"0, 2\. Expected 0 .* one of 1 and 255"),
        (np.array([[3]], np.uint8), r"values are 3\."),
        (np.array([[0, 1, 255]], np.uint8), r"0, 1, 255\."),
        (np.array([[0, 255]], np.uint16), r"0, 255\. .* one of 1 and 65535"),
        (np.arange(10, dtype=np.uint8)[None], r"0, 1, 2, 3, 4, 5 and 4 more\."),
    ],
)
def test_other_values_are_listed(levels: NDArray[Any], found: str, tmp_path: Path) -> None:
    ref = _saved(tmp_path, Image.fromarray(levels))
    with pytest.raises(UsageError, match=rf"m\.png` does not have two classes\.\nIts .*{found}"):
        decode_mask(ref)


def test_a_mask_that_jpeg_has_blurred(tmp_path: Path) -> None:
    ramp = np.tile(np.repeat(np.array([0, 255], np.uint8), 5), (16, 3))
    with pytest.raises(UsageError, match=r"more\. .*\n.*as PNG with 0 and 255 \(JPEG blurs them"):
        decode_mask(_saved(tmp_path, Image.fromarray(ramp), "m.jpg"))


def test_a_mask_with_colours(tmp_path: Path) -> None:
    red = Image.new("RGB", (3, 2), (255, 0, 0))
    with pytest.raises(UsageError, match=r"m\.png` has colours\.\nExpected grey values"):
        decode_mask(_saved(tmp_path, red))


def test_unreadable_masks(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(b"\x89PNG")
    with pytest.raises(UnreadableImage, match="not an image of a known kind"):
        decode_mask(ImageRef("m.png", 0, tmp_path / "m.png"))
    with pytest.raises(UnreadableImage, match="cannot be read: No such file"):
        decode_mask(ImageRef("n.png", 0, tmp_path / "n.png"))


def test_a_pair_is_decoded_together(tmp_path: Path) -> None:
    photo = _saved(tmp_path, Image.new("RGB", (3, 2), (9, 8, 7)), "i.png")
    pair = PairRef(photo, _saved(tmp_path, Image.fromarray(BYTES)), "i")
    image, mask = decode_pair(pair)
    np.testing.assert_array_equal(image, np.full((2, 3, 3), (9, 8, 7)))
    np.testing.assert_array_equal(mask, TRUTH)
    (tmp_path / "m.png").write_bytes(b"")
    with pytest.raises(UnreadableImage, match=r"its mask `m\.png`: the file is empty"):
        decode_pair(pair)


def test_sizes_that_differ_name_both_files(tmp_path: Path) -> None:
    photo = _saved(tmp_path, Image.new("RGB", (4, 2)), "i.png")
    pair = PairRef(photo, _saved(tmp_path, Image.fromarray(BYTES)), "i")
    message = r"i\.png` and its mask `.*m\.png` differ in size\.\nThe image is 4x2 .* the mask 3x2:"
    with pytest.raises(UsageError, match=message):
        decode_pair(pair)


def test_members_of_a_tar_are_named_with_their_tar() -> None:
    image, mask = (ImageRef(n, 0, Path("s.tar"), f"{n}.png") for n in ("i", "m"))
    with pytest.raises(UsageError, match=r"`s\.tar:i\.png` and its mask `s\.tar:m\.png` differ"):
        check_pair(PairRef(image, mask, "i"), np.zeros((2, 3, 3)), np.zeros((3, 2)))


@pytest.mark.parametrize("folder", ["lgg_jpeg/kaggle_3m/TCGA_DU_7010_19860307"])
def test_real_masks_are_those_of_pillow(shared: Path, folder: str) -> None:
    files = sorted((shared / folder).glob("*_mask.tif"))[::7]
    for file in files:
        expected = np.asarray(Image.open(file)) == 255
        np.testing.assert_array_equal(decode_mask(ImageRef(file.name, 0, file)), expected)
    assert len(files) > 4
