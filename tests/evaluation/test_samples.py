"""The pictures of what each transform does."""

import numpy as np
import pytest
from PIL import Image

from robustcli.data.decode import UnreadableImage
from robustcli.data.masks import decode_pair
from robustcli.evaluation.outlines import COLOUR, outline
from robustcli.evaluation.samples import first_pair, first_readable, write_samples
from robustcli.transforms.registry import image_seed, resolve
from tests.evaluation.cells import pairs_in


@pytest.fixture
def index(tmp_path):
    return pairs_in(tmp_path / "cells")


def read(path):
    with Image.open(path) as image:
        return np.array(image)


def test_the_outline_of_the_mask_moves_with_the_image(index, tmp_path):
    cells = resolve(["affine", "fliplr"], None)
    write_samples(tmp_path, cells, 4, lambda: first_pair(index.pairs))
    pair, affine = index.pairs[0], cells[1].transform
    image, mask = affine.apply_with_mask(
        *decode_pair(pair), seed=image_seed(4, "affine", 0, pair.image_id), severity=0
    )
    drawn = read(tmp_path / "samples" / "affine-s0.png")
    assert np.array_equal((drawn == COLOUR).all(-1), outline(mask))
    assert np.array_equal(drawn[~outline(mask)], image[~outline(mask)])
    clean, flipped = (read(tmp_path / "samples" / f"{n}.png") for n in ("clean", "fliplr-s0"))
    assert np.array_equal(flipped, clean[:, ::-1])


def test_an_image_with_foreground_is_shown_if_there_is_one(index):
    last = [pair for pair in index.pairs if pair.image_id.endswith("-2.png")]
    assert first_pair([*last, *index.pairs]).image_id == "images/ann-0.png"
    assert first_pair(last).image_id == "images/ann-2.png", "else an empty one"


def test_pictures_that_are_there_are_left_alone(index, tmp_path):
    cells = resolve(["fliplr"], None)
    write_samples(tmp_path, cells, 0, lambda: first_pair(index.pairs))
    write_samples(tmp_path, cells, 0, lambda: pytest.fail("nothing is missing"))


def test_unreadable_images_are_passed_over(index, tmp_path):
    def decode(item):
        if item is not index.pairs[2]:
            raise UnreadableImage("of no use")
        return decode_pair(item)[0]

    assert first_readable(index.pairs, decode).image_id == index.pairs[2].image_id
    assert first_readable(index.pairs[:2], decode) is None
    write_samples(tmp_path, resolve(["fliplr"], None), 0, lambda: None)
    assert not (tmp_path / "samples").exists()
