"""The pictures of what each transform does."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion

from robustcli.adapters.load import load
from robustcli.data.dataset import FileRef
from robustcli.data.decode import UnreadableImage
from robustcli.data.masks import decode_pair
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.store import Store
from robustcli.tasks import pictures
from robustcli.tasks.pictures import (
    OUTLINE_COLOUR,
    SamplePicture,
    choose_panels,
    first_pair,
    first_readable,
    outline,
    outlined,
    overlaid,
    update_panels,
    write_samples,
)
from robustcli.tasks.record import read_panels
from robustcli.transforms.base import CLEAN
from robustcli.transforms.registry import image_seed, resolve_transforms
from tests.evaluation.cells import OTSU, config, make_pairs, pairs_in


@pytest.mark.parametrize("width", [1, 3])
def test_the_outline_is_what_an_erosion_takes_away(width):
    mask = np.random.default_rng(0).random((30, 25)) < 0.9
    expected = mask & ~binary_erosion(mask, iterations=width)
    assert np.array_equal(outline(mask, width), expected)


def test_only_the_outline_is_drawn_and_the_image_stays():
    image = np.full((20, 20, 3), 50, np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    drawn = outlined(image, mask)
    coloured = (drawn == OUTLINE_COLOUR).all(-1)
    assert np.array_equal(coloured, outline(mask))
    assert (drawn[~coloured] == 50).all()
    assert (image == 50).all()


def test_lines_grow_with_the_image():
    mask = np.zeros((1100, 1100), bool)
    mask[100:1000, 100:1000] = True
    drawn = outlined(np.zeros((1100, 1100, 3), np.uint8), mask)
    assert (drawn[500] == OUTLINE_COLOUR).all(-1).sum() == 6, "three pixels on each side"


def test_an_overlay_tints_the_inside_and_nothing_else():
    image = np.full((20, 20, 3), 100, np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    drawn = overlaid(image, mask)
    assert drawn[10, 10].tolist() == [139, 128, 78], "a quarter of the colour"
    assert (drawn[~mask] == 100).all()


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def rows(*dices: float, groups: str | None = None) -> pd.DataFrame:
    """One image a dice, of 100 true pixels; all found pixels are right."""
    tp = [round(100 * dice / (2 - dice)) for dice in dices]
    return pd.DataFrame(
        {
            "image_id": [f"{n:02}.png" for n in range(len(dices))],
            "group": list(groups or [f"g{n}" for n in range(len(dices))]),
            "tp": tp,
            "fp": 0,
            "fn": [100 - hits for hits in tp],
        }
    )


def test_the_two_best_median_and_worst_are_shown_best_first():
    chosen = choose_panels("m", rows(0.1, 0.9, 0.5, 0.2, 0.8, 0.6, 0.4, 0.7, 0.3))
    assert [(p.rank, p.number, p.image_id) for p in chosen] == [
        ("best", 1, "01.png"), ("best", 2, "04.png"), ("median", 2, "05.png"),
        ("median", 1, "02.png"), ("worst", 2, "03.png"), ("worst", 1, "00.png"),
    ]  # fmt: skip
    assert chosen[0].dice == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("count", range(8))
def test_no_case_is_shown_twice_however_few_there_are(count):
    chosen = choose_panels("m", rows(*(0.1 + 0.1 * n for n in range(count))))
    assert len({panel.image_id for panel in chosen}) == len(chosen) == min(count, 6)
    if count:
        assert chosen[0].rank == "best"
    if count > 1:
        assert chosen[-1].rank == "worst"


def test_a_group_is_shown_by_its_image_with_the_most_foreground():
    table = rows(0.9, 0.5, 0.2, groups="aab")
    table.loc[1, "fn"] += 50
    assert [panel.image_id for panel in choose_panels("m", table)] == ["01.png", "02.png"]


def test_groups_without_foreground_are_left_out():
    table = rows(0.9, 0.5)
    table.loc[0, ["tp", "fp", "fn"]] = 0
    assert [panel.image_id for panel in choose_panels("m", table)] == ["01.png"]


def test_the_pictures_are_image_truth_and_probability(tmp_path):
    index = pairs_in(tmp_path / "cells")
    run = run_evaluation(config(tmp_path / "cells" / "pairs.csv", tmp_path / "run"))
    shown = read_panels(run)
    assert len(shown) == 3, "one for each patient"
    assert {panel.model for panel in shown} == {"otsu"}
    otsu = load(OTSU, "seg")
    for panel in shown:
        pair = next(pair for pair in index.samples if pair.image_id == panel.image_id)
        image, mask = decode_pair(pair)
        folder = panel.folder(run)
        assert folder == run / "panels" / "otsu" / f"{panel.rank}-{panel.number}"
        assert np.array_equal(read(folder / "image.png"), image)
        assert np.array_equal(read(folder / "truth.png"), 255 * mask)
        expected = np.rint(255 * otsu.probabilities([image])[0])
        assert np.array_equal(read(folder / "prediction.png"), expected)


def test_large_pictures_are_reduced_alike(tmp_path):
    manifest = make_pairs(tmp_path / "cells", per_patient=2, side=520)
    run = run_evaluation(config(manifest, tmp_path / "run"))
    shapes = {read(file).shape[:2] for file in (run / "panels" / "otsu" / "best-1").iterdir()}
    assert len(shapes) == 1
    assert max(shapes.pop()) == 512


def test_they_are_drawn_once_and_other_models_stay(tmp_path, monkeypatch):
    manifest = make_pairs(tmp_path / "cells")
    run = run_evaluation(config(manifest, tmp_path / "run"))
    before, index = read_panels(run), pairs_in(tmp_path / "cells")

    def rows(name: str) -> pd.DataFrame:
        return Store(run).rows(name, CLEAN, "seg")

    monkeypatch.setattr(pictures, "_draw", None)  # would be called to draw anything
    assert update_panels(run, index.samples, {"otsu": load(OTSU, "seg")}, rows) == before
    assert update_panels(run, index.samples, {"no rows yet": load(OTSU, "seg")}, rows) == before


@pytest.fixture
def index(tmp_path):
    return pairs_in(tmp_path / "cells")


def test_the_outline_of_the_mask_moves_with_the_image(index, tmp_path):
    cells = resolve_transforms(["affine", "fliplr"], None)
    write_samples(tmp_path, cells, 4, index.samples, first_pair)
    pair, affine = index.samples[0], cells[1].transform
    image, mask = affine.apply_with_mask(
        *decode_pair(pair), seed=image_seed(4, "affine", 0, pair.image_id), severity=0
    )
    drawn = read(tmp_path / "samples" / "affine-s0.png")
    assert np.array_equal((drawn == OUTLINE_COLOUR).all(-1), outline(mask))
    assert np.array_equal(drawn[~outline(mask)], image[~outline(mask)])
    clean, flipped = (read(tmp_path / "samples" / f"{n}.png") for n in ("clean", "fliplr-s0"))
    assert np.array_equal(flipped, clean[:, ::-1])


def test_an_image_with_foreground_is_shown_if_there_is_one(index):
    last = [pair for pair in index.samples if pair.image_id.endswith("-2.png")]
    assert first_pair([*last, *index.samples]).image_id == "images/ann-0.png"
    assert first_pair(last).image_id == "images/ann-2.png", "else an empty one"


def test_pictures_that_are_there_are_left_alone(index, tmp_path):
    cells = resolve_transforms(["fliplr"], None)
    write_samples(tmp_path, cells, 0, index.samples, first_pair)
    write_samples(tmp_path, cells, 0, index.samples, lambda _: pytest.fail("nothing is missing"))


def test_one_photo_at_a_time_is_in_memory(index, tmp_path):
    pictures, most = [], []

    def choose(items):
        most.append(sum(picture() is not None for picture in pictures))
        picture = SamplePicture(items[0].image_id, np.zeros((8, 8, 3), np.uint8))
        pictures.append(weakref.ref(picture))
        return picture

    first = index.samples[0]
    items = [replace(first, image=FileRef(f"{n}.png", tmp_path)) for n in range(120)]
    write_samples(tmp_path, resolve_transforms(["fliplr"], None), 0, items, choose)
    assert len(list((tmp_path / "samples").rglob("clean.png"))) == 6
    assert max(most) <= 1


def test_unreadable_images_are_passed_over(index, tmp_path):
    def decode(item):
        if item is not index.samples[2]:
            raise UnreadableImage("of no use")
        return decode_pair(item)[0]

    assert first_readable(index.samples, decode).image_id == index.samples[2].image_id
    assert first_readable(index.samples[:2], decode) is None
    write_samples(tmp_path, resolve_transforms(["fliplr"], None), 0, index.samples, lambda _: None)
    assert not (tmp_path / "samples").exists()
