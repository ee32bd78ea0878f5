"""What counts as the same answer: a network that is asked again, and rows that it gave before."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from robustcli.adapters.classifier import Predictions
from robustcli.tasks.base import Batch, Row
from robustcli.tasks.classification import Views, _rows
from robustcli.tasks.record import ModelCost
from robustcli.tasks.segmentation import mask_row
from robustcli.transforms.base import Cell
from robustcli.verification.row_comparison import (
    COMPARISONS,
    AnswerAgreement,
    ComparedBlock,
    RowDifference,
)

PROBABILITIES = np.array(
    [[0.5, 0.3, 0.1, 0.05, 0.03, 0.02], [0.02, 0.39999, 0.40001, 0.1, 0.05, 0.03]], np.float32
)
IDS = ["a.png", "b.png"]
TARGETS = [0, 1]


class Table:
    """A network that knows two images by heart."""

    cost = ModelCost()

    def __init__(self, probabilities: np.ndarray) -> None:
        self.probabilities = torch.from_numpy(probabilities)

    def rows(self, batch: Batch[Any]) -> list[Row]:
        targets = torch.tensor(batch.inputs.targets)
        best = self.probabilities.topk(5, 1)
        answers = Predictions(
            best.indices.to(torch.int32).numpy(),
            best.values[:, 0].numpy(),
            targets.numpy(),
            self.probabilities.gather(1, targets[:, None])[:, 0].numpy(),
        )
        named = zip(batch.image_ids, batch.inputs.targets, _rows(answers), strict=True)
        return [{"image_id": name, "target": target, **row} for name, target, row in named]


BATCH: Batch[Any] = Batch(
    0, 0, 1, Cell("identity", 0), ("table",), IDS, Views(TARGETS, [()] * len(TARGETS), {}), {}, []
)  # fmt: skip


def stored() -> dict[str, Row]:
    return {str(row["image_id"]): row for row in Table(PROBABILITIES).rows(BATCH)}


def compared(
    rows: dict[str, Row], recomputed: np.ndarray = PROBABILITIES, tolerance: float = 1e-4
) -> tuple[list[RowDifference], AnswerAgreement]:
    agreement = AnswerAgreement()
    block = ComparedBlock(rows, tolerance, agreement)
    return list(COMPARISONS["cls"].compare(BATCH, Table(recomputed), block)), agreement


def test_the_same_answers_have_no_difference() -> None:
    differences, agreement = compared(stored())
    assert differences == []
    assert agreement == AnswerAgreement(rows=2, equal=2, tied=0, largest=0.0)


def test_a_prediction_that_flips_between_two_equal_probabilities_is_a_tie() -> None:
    recomputed = PROBABILITIES.copy()
    recomputed[1, 1], recomputed[1, 2] = 0.40001, 0.39999
    differences, agreement = compared(stored(), recomputed)
    assert differences == []
    assert (agreement.rows, agreement.equal, agreement.tied) == (2, 1, 1)
    assert agreement.largest == pytest.approx(2e-5, abs=1e-6)


def test_the_same_flip_is_a_difference_where_the_tolerance_is_smaller() -> None:
    recomputed = PROBABILITIES.copy()
    recomputed[1, 1], recomputed[1, 2] = 0.40001, 0.39999
    differences, agreement = compared(stored(), recomputed, tolerance=1e-6)
    assert {"prediction", "class at place 2"} <= {difference.quantity for difference in differences}
    assert agreement.tied == 0


def test_an_edited_prediction_is_no_tie_although_the_probability_was_kept() -> None:
    rows = stored()
    rows["a.png"]["prediction"], rows["a.png"]["top5"] = 1, [1, 0, 2, 3, 4]
    differences, agreement = compared(rows)
    assert (agreement.equal, agreement.tied) == (1, 0)
    first = next(difference for difference in differences if difference.quantity == "prediction")
    assert (first.image_id, first.stored, first.recomputed) == ("a.png", 1, 0)
    assert "0.3 and 0.5" in first.note


@pytest.mark.parametrize(("changed", "counted"), [(0.5 - 0.9e-4, 0), (0.5 - 1.2e-4, 1)])
def test_probabilities_may_differ_by_the_tolerance(changed: float, counted: int) -> None:
    rows = stored()
    rows["a.png"]["probability"] = changed
    differences, agreement = compared(rows)
    assert len(differences) == counted
    assert agreement.largest == pytest.approx(0.5 - changed, abs=1e-7)


def test_a_class_that_the_network_does_not_have_is_a_difference() -> None:
    rows = stored()
    rows["b.png"]["prediction"] = 77
    (difference,), _ = compared(rows)
    assert (difference.quantity, difference.stored, difference.recomputed) == ("prediction", 77, 2)


class Item:
    """An image of a data set, as far as rows know it."""

    target, also, group = 0, (4,), "ann"


def contradictions(task: str, row: Row) -> list[str]:
    return [each.quantity for each in COMPARISONS[task].contradictions(row, Item())]  # type: ignore[index]


def test_rows_that_contradict_themselves_are_found_without_the_network() -> None:
    good = stored()["a.png"]
    assert contradictions("cls", good) == []
    assert contradictions("cls", good | {"target": 3}) == ["target"]
    assert contradictions("cls", good | {"prediction": 2}) == ["prediction"]
    assert contradictions("cls", good | {"probability": 1.5}) == [
        "probability",
        "target_probability",
    ]
    assert contradictions("cls", good | {"top5": [0, 0, 1, 2, 3]}) == ["top5"]
    mask = {"image_id": "a", "group": "ann", "tp": 1, "fp": 2, "fn": 3, "tn": 4}
    assert contradictions("seg", mask) == []
    assert contradictions("seg", mask | {"group": "bea", "fn": -1}) == ["group", "fn"]


def test_each_of_several_true_classes_can_be_the_target_of_a_row() -> None:
    good = stored()["a.png"]
    assert contradictions("cls", good | {"target": 4, "target_probability": 0.03}) == []


def test_for_a_probability_only_its_class_is_a_true_class() -> None:
    class Several(Table):
        def rows(self, batch: Batch[Any]) -> list[Row]:
            assert len(batch.inputs.also) == len(batch.image_ids)
            given = zip(batch.inputs.targets, batch.inputs.also, self.probabilities, strict=True)
            targets = [max((t, *also), key=lambda c: float(p[c])) for t, also, p in given]
            return super().rows(replace(batch, inputs=replace(batch.inputs, targets=targets)))

    batch = replace(BATCH, inputs=Views([0, 2], [(), (1,)], {}))
    rows = {str(row["image_id"]): row for row in Several(PROBABILITIES).rows(batch)}
    recomputed = PROBABILITIES.copy()
    recomputed[1, 1], recomputed[1, 2] = 0.40001, 0.39999
    block = ComparedBlock(rows, 1e-4, AnswerAgreement())
    assert list(COMPARISONS["cls"].compare(batch, Several(recomputed), block)) == []
    assert block.agreement.tied == 1


MASK: Row = {"image_id": "a", "group": "ann", "tp": 300, "fp": 100, "fn": 100, "tn": 9500}
OUTLINES: Row = {"hd95": 3.0, "boundary_dice": 0.5}


class Counts:
    """A segmenter whose row is known."""

    cost = ModelCost()

    def rows(self, batch: Batch[Any]) -> list[Row]:
        return [MASK | OUTLINES]


def mask_compared(**changes: Any) -> tuple[list[str], AnswerAgreement]:
    agreement, rows = AnswerAgreement(), {"a": MASK | OUTLINES | changes}
    differences = COMPARISONS["seg"].compare(BATCH, Counts(), ComparedBlock(rows, 1e-3, agreement))
    return [difference.quantity for difference in differences], agreement


def test_counts_may_differ_by_a_share_of_the_pixels() -> None:
    assert mask_compared() == ([], AnswerAgreement(1, 1, 0, 0.0))
    # 10,000 pixels: 10 may have another answer. 6 + 4 do, then 6 + 5.
    assert mask_compared(tp=306, fn=94, fp=104, tn=9496) == ([], AnswerAgreement(1, 0, 1, 1e-3))
    differences, agreement = mask_compared(tp=306, fn=94, fp=105, tn=9495)
    assert differences == ["counts of pixels"]
    assert agreement == AnswerAgreement(1, 0, 0, 1.1e-3)


def test_the_true_mask_cannot_differ() -> None:
    assert mask_compared(tp=301)[0] == ["foreground pixels (tp + fn)"]
    assert mask_compared(tn=9501)[0] == ["background pixels (fp + tn)"]


def test_outlines_are_judged_where_no_pixel_differs() -> None:
    assert mask_compared(hd95=3.1)[0] == ["hd95"]
    assert mask_compared(boundary_dice=None)[0] == ["boundary_dice"]
    assert mask_compared(hd95=9.0, tp=301, fn=99)[0] == []


def class_row_of(predicted: np.ndarray, true: np.ndarray) -> Row:
    return {"image_id": "a.png", "group": "a", **mask_row(predicted, true, classes=2)}


TRUE_CLASSES = np.repeat(np.arange(3, dtype=np.uint8), 8).reshape(4, 6)
PREDICTED_CLASSES = np.roll(TRUE_CLASSES, 1)


def class_differences(
    stored: Row, recomputed: Row, tolerance: float = 1e-4
) -> tuple[list[RowDifference], AnswerAgreement]:
    agreement = AnswerAgreement()
    block = ComparedBlock({"a.png": stored}, tolerance, agreement)
    return list(COMPARISONS["seg"].compare(BATCH, Answers(recomputed), block)), agreement


class Answers:
    """Gives one row, whatever is asked."""

    cost = ModelCost()

    def __init__(self, row: Row) -> None:
        self.row = row

    def rows(self, batch: Batch[Any]) -> list[Row]:
        return [self.row]


def test_rows_of_classes_are_equal_to_themselves_and_contradict_nothing() -> None:
    row = class_row_of(PREDICTED_CLASSES, TRUE_CLASSES)
    differences, agreement = class_differences(row, copy.deepcopy(row))
    assert (differences, agreement.equal) == ([], 1)
    sample = SimpleNamespace(group="a")
    assert list(COMPARISONS["seg"].contradictions(row, sample)) == []


@pytest.mark.parametrize(
    ("column", "place", "quantity"),
    [
        ("class_tp", 0, "class_confusion"),
        ("class_fn", 1, "true pixels of all classes"),
        ("class_fp", 1, "predicted pixels of all classes"),
        ("class_confusion", 4, "class_confusion"),
    ],
)
def test_an_edited_count_of_a_class_contradicts_its_row(
    column: str, place: int, quantity: str
) -> None:
    row: dict[str, Any] = class_row_of(PREDICTED_CLASSES, TRUE_CLASSES)
    row[column][place] += 1
    result = list(COMPARISONS["seg"].contradictions(row, SimpleNamespace(group="a")))
    assert quantity in {item.quantity for item in result}


def test_a_class_taken_for_another_is_a_difference_although_any_class_is_the_same() -> None:
    right = class_row_of(TRUE_CLASSES, TRUE_CLASSES)
    swapped = np.array([0, 2, 1], np.uint8)[TRUE_CLASSES]
    wrong = class_row_of(swapped, TRUE_CLASSES)
    assert right["tp"] == wrong["tp"]
    differences, _ = class_differences(wrong, right)
    assert [difference.quantity for difference in differences] == ["counts of pixels"]
    differences, agreement = class_differences(wrong, right, tolerance=2.0)
    assert (differences, agreement.tied) == ([], 1)


def test_true_pixels_of_a_class_cannot_differ() -> None:
    row = class_row_of(TRUE_CLASSES, TRUE_CLASSES)
    another = TRUE_CLASSES.copy()
    another[2, 4] = 1  # of class 2 in the data
    differences, _ = class_differences(class_row_of(TRUE_CLASSES, another), row)
    assert [difference.quantity for difference in differences] == ["true pixels of classes"]


def test_the_tolerance_depends_on_precision_and_device() -> None:
    for comparison in COMPARISONS.values():
        on_cpus = comparison.tolerance("fp32", "cpu", "cpu")
        mixed = comparison.tolerance("fp32", "cpu", "cuda")
        half = comparison.tolerance("bf16", "cuda", "cuda")
        assert on_cpus.value < mixed.value < half.value
        assert "stored on cpu, recomputed on cuda" in mixed.words
        assert comparison.tolerance("fp32", "cuda", "cuda").value == mixed.value
