"""Sizes from headers, as decoding would give them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustcli.data.decode import UnreadableImage, decode
from robustcli.data.image_size import image_size
from robustcli.data.index import ImageRef
from robustcli.data.open_pairs import open_pairs


def test_of_a_file_without_its_pixels(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    Image.fromarray(np.zeros((31, 17, 3), np.uint8)).save(file)
    ref = ImageRef("x.png", 0, file)
    assert image_size(ref) == (31, 17)
    file.write_bytes(file.read_bytes()[:60])  # the header is whole, the pixels are not
    assert image_size(ref) == (31, 17)


def test_of_an_image_in_a_tar() -> None:
    ref = open_pairs("nuclei-mini:stained").pairs[0].image
    assert ref.member is not None
    assert image_size(ref) == decode(ref).shape[:2]


def test_what_is_no_image(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    with pytest.raises(UnreadableImage):
        image_size(ImageRef("x.png", 0, file))
    file.write_text("not an image")
    with pytest.raises(UnreadableImage) as caught:
        image_size(ImageRef("x.png", 0, file))
    assert "its size cannot be read" in caught.value.reason
