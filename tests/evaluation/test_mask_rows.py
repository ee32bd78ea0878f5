"""From probabilities to rows."""

import numpy as np
import pytest
import torch

from robustcli.adapters.mask_preprocessing import MaskPreprocessing
from robustcli.evaluation.loader import Batch
from robustcli.evaluation.mask_rows import MaskRows, mask_row
from robustcli.evaluation.moved_pairs import MaskedImages
from robustcli.evaluation.store import MASK_SCHEMA, Cell, mask_schema


class Reader:
    """A segmenter whose probability is the red channel as a share of 255."""

    def __init__(self, threshold: float) -> None:
        self.preprocessing = MaskPreprocessing(0, threshold=threshold)
        self.device = torch.device("cpu")
        self.facts = type("Facts", (), {"name": "reader"})
        self.asked: list[int] = []

    def probabilities(self, images):
        self.asked.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [image[..., 0].astype(np.float32) / 255 for image in images]


def batch(*images: np.ndarray, masks: list[np.ndarray]) -> Batch[MaskedImages]:
    names = [f"{number}.png" for number in range(len(images))]
    inputs = MaskedImages([f"g{name}" for name in names], list(images), masks)
    return Batch(0, 0, 1, Cell("identity", 0), ("reader",), names, inputs, {}, [])


def picture(red: list[list[int]]) -> np.ndarray:
    return np.dstack([np.array(red, np.uint8)] * 3)


def test_counts_are_of_pixels_at_or_above_the_threshold():
    image = picture([[255, 204, 203], [0, 230, 0]])
    truth = np.array([[1, 0, 1], [1, 1, 0]], bool)
    rows = MaskRows(Reader(0.8)).rows(batch(image, masks=[truth]))
    assert list(rows[0]) == mask_schema(None).names
    counted = {name: rows[0][name] for name in ("tp", "fp", "fn", "tn")}
    assert counted == {"tp": 2, "fp": 1, "fn": 2, "tn": 1}, "204 of 255 is the threshold itself"
    assert (rows[0]["image_id"], rows[0]["group"]) == ("0.png", "g0.png")


def test_a_tolerance_adds_what_is_near():
    image = picture([[255, 0, 0, 0, 0, 255]])
    truth = np.array([[0, 0, 1, 0, 0, 0]], bool)
    row = MaskRows(Reader(0.5), 2).rows(batch(image, masks=[truth]))[0]
    assert list(row) == MASK_SCHEMA.names
    assert (row["predicted_near"], row["true_near"]) == (1, 1), "two pixels are near, three not"
    assert (row["tp"], row["fp"], row["fn"]) == (0, 2, 1)


def test_images_of_other_sizes_keep_their_order_when_memory_is_short():
    images = [picture([[255] * width]) for width in (3, 1, 2)]
    masks = [np.ones((1, width), bool) for width in (3, 1, 2)]
    reader = Reader(0.5)
    rows = MaskRows(reader).rows(batch(*images, masks=masks))
    assert [row["tp"] for row in rows] == [3, 1, 2]
    assert reader.asked == [3, 1, 1, 1]


def test_cost_is_that_of_the_forward_pass():
    model = MaskRows(Reader(0.5))
    model.rows(batch(picture([[1]]), masks=[np.ones((1, 1), bool)]))
    assert model.cost.images == 1
    assert model.cost.seconds > 0


@pytest.mark.parametrize("empty", ["prediction", "truth"])
def test_without_one_of_the_masks_there_are_counts_and_no_distances(empty):
    full, none = np.ones((2, 3), bool), np.zeros((2, 3), bool)
    row = mask_row(none, full) if empty == "prediction" else mask_row(full, none)
    assert row["fn" if empty == "prediction" else "fp"] == 6
    assert (row["hd95"], row["boundary_dice"]) == (None, None)


def test_ignored_pixels_are_in_no_count_and_no_outline():
    rng = np.random.default_rng(0)
    truth = (rng.random((24, 40)) < 0.4).astype(np.uint8)
    prediction = rng.random((24, 40)) < 0.5
    marked = truth.copy()
    marked[:, 20:] = 255
    other = prediction.copy()
    other[:, 20:] = ~other[:, 20:]
    row = mask_row(prediction, marked, tolerance=2)
    assert mask_row(other, marked, tolerance=2) == row, "what is said there has no part in it"
    left = mask_row(prediction[:, :20], truth[:, :20] == 1)
    assert [row[name] for name in ("tp", "fp", "fn", "tn")] == [
        left[name] for name in ("tp", "fp", "fn", "tn")
    ]
