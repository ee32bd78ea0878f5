"""Compares stored with recomputed rows for each task, and collects discrepancies.

Labels, groups and sums of pixels only depend on the data and must be equal. Predictions may differ
by rounding, up to a `Tolerance` that depends on the precision and on the two devices.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from robustcli.adapters.model import Precision
from robustcli.core.names import TaskName
from robustcli.tasks.base import Batch, Predictor, Row

DeviceKind = Literal["cpu", "cuda", "mps"]
_EXACT = 1e-6
"""Tolerance for rounding errors of distances that are recomputed from the same two masks."""
_COUNTS = ("tp", "fp", "fn", "tn")
_COMPARED_IF_EQUAL = (
    *("hd95", "boundary_dice", "predicted_near", "true_near"),
    *("class_hd95", "class_boundary_dice", "class_confusion"),
)
_SUMS_OF_TRUE_MASK = {
    "foreground pixels (tp + fn)": ("tp", "fn"),
    "background pixels (fp + tn)": ("fp", "tn"),
}


@dataclass(frozen=True)
class Tolerance:
    """The largest allowed difference between a recomputed and a stored prediction.

    For classifiers `value` is a difference of probabilities, for segmenters a share of the pixels
    of an image. Between CPUs, only the order of summation differs. Algorithms differ between GPUs,
    and runs of earlier checkouts may contain fp32 convolutions in TF32 (10 bits of mantissa).
    """

    value: float
    precision: Precision
    stored_on: DeviceKind
    here_on: DeviceKind
    unit: str

    @property
    def words(self) -> str:
        """The tolerance as a phrase, with its unit, precision and devices."""
        devices = (
            f"both on {self.stored_on}"
            if self.stored_on == self.here_on
            else f"stored on {self.stored_on}, recomputed on {self.here_on}"
        )
        return f"{self.value:g} {self.unit} ({self.precision}, {devices})"


@dataclass(frozen=True)
class RowDifference:
    """A value of a row that differs from its recomputed value, or contradicts data or row."""

    image_id: str
    quantity: str
    stored: Any
    recomputed: Any
    note: str = ""


@dataclass
class AnswerAgreement:
    """Counts of the agreement of stored and recomputed predictions.

    Args:
        rows: Number of compared rows.
        equal: Rows with the same prediction; for segmenters, with the same counts of pixels.
        tied: Rows with another prediction whose probability is equal within the tolerance; for
            segmenters, with counts of pixels that differ within the tolerance.
        largest: Largest difference of probabilities; for segmenters, largest share of pixels.
    """

    rows: int = 0
    equal: int = 0
    tied: int = 0
    largest: float = 0.0


@dataclass(frozen=True)
class Discrepancy:
    """A stored value that this machine does not reproduce.

    `place` is `predictions`, `pixels`, `rows`, `parameters`, `weights` or `results.csv`; `quantity`
    names the value that differs. `recomputed` is the value on this machine, or the value that the
    stored value contradicts. Model, cell and image are None if the discrepancy does not belong to
    one.
    """

    place: str
    quantity: str
    stored: Any
    recomputed: Any
    model: str | None = None
    transform: str | None = None
    severity: int | None = None
    image_id: str | None = None
    note: str = ""

    @property
    def words(self) -> str:
        """The discrepancy as one line of text."""
        cell = f"{self.transform}, severity {self.severity}" if self.severity else self.transform
        subjects = [
            f"`{self.model}`" if self.model else "",
            f"under {cell}" if cell else "",
            f"`{self.image_id}`" if self.image_id else "",
        ]
        subject = " ".join(filter(None, subjects))
        note = f" ({self.note})" if self.note else ""
        values = f"stored {_shown(self.stored)}, here {_shown(self.recomputed)}"
        return f"{self.place}: {subject}{', ' if subject else ''}{self.quantity}: {values}{note}"


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@dataclass
class EvaluationCheck:
    """The comparison of one evaluation with this machine.

    `blocks` is the number of blocks, `sampled` names the recomputed blocks as
    `model/transform/severity/block`. `rows` is the number of checked rows, `pixels` that of
    compared transformed images, `equal_pixels` that of images with the stored digest. `causes`
    lists versions, devices and backends that differ, `notes` comparisons that were not possible,
    with reasons.
    """

    run: Path
    task: TaskName
    status: str
    tolerance: Tolerance
    blocks: int = 0
    sampled: list[str] = field(default_factory=list)
    rows: int = 0
    pixels: int = 0
    equal_pixels: int = 0
    agreement: AnswerAgreement = field(default_factory=AnswerAgreement)
    differences: list[Discrepancy] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def reproduced(self) -> bool:
        """Whether no discrepancy was found."""
        return not self.differences


@dataclass(frozen=True)
class ComparedBlock:
    """Stored rows of a block by image id, their tolerance, and counts that comparisons update."""

    stored: Mapping[str, Row]
    tolerance: float
    agreement: AnswerAgreement


class RowComparison(ABC):
    """Base class for comparing the rows of one task.

    `answers` and `largest` describe `AnswerAgreement.equal` and `AnswerAgreement.largest` in
    reports; `tolerances` contains the tolerance for two CPUs and that for other pairs of devices.
    """

    tolerances: ClassVar[Mapping[Precision, tuple[float, float]]]
    unit: ClassVar[str]
    answers: ClassVar[str]
    largest: ClassVar[str]

    @classmethod
    def tolerance(
        cls, precision: Precision, stored_on: DeviceKind, here_on: DeviceKind
    ) -> Tolerance:
        """The tolerance between two devices."""
        on_cpus, otherwise = cls.tolerances[precision]
        value = on_cpus if stored_on == here_on == "cpu" else otherwise
        return Tolerance(value, precision, stored_on, here_on, cls.unit)

    @abstractmethod
    def contradictions(self, row: Row, item: Any) -> Iterator[RowDifference]:
        """Yields values of a stored row that contradict its image `item`, or other values of it."""

    @abstractmethod
    def compare(
        self, batch: Batch[Any], predictor: Predictor, block: ComparedBlock
    ) -> Iterator[RowDifference]:
        """Predicts `batch` again, yields the differences from `block`, and updates its agreement.

        Images without a stored row are not compared.
        """


class ClassRowComparison(RowComparison):
    """Compares rows of classifiers."""

    tolerances: ClassVar[Mapping[Precision, tuple[float, float]]] = {
        "fp32": (1e-4, 5e-3), "fp16": (1e-2, 1e-2), "bf16": (5e-2, 5e-2),
    }  # fmt: skip
    unit: ClassVar[str] = "of probability"
    answers: ClassVar[str] = "predictions"
    largest: ClassVar[str] = "largest difference of probabilities"

    def contradictions(self, row: Row, item: Any) -> Iterator[RowDifference]:
        """See `RowComparison.contradictions`."""
        image_id, top5 = str(row["image_id"]), _top5(row)
        # Of several true classes, a row contains the one that the model ranks highest.
        if row["target"] not in (item.target, *item.also):
            note = "the class of the image in the data"
            yield RowDifference(image_id, "target", row["target"], item.target, note)
        if not top5 or row["prediction"] != top5[0]:
            first = top5[0] if top5 else None
            note = "the first of its top five"
            yield RowDifference(image_id, "prediction", row["prediction"], first, note)
        if any(index < 0 for index in top5) or not len(set(top5)) == len(top5) <= 5:
            yield RowDifference(image_id, "top5", top5, "at most five different classes")
        for quantity in ("probability", "target_probability"):
            if not 0 <= _number(row[quantity]) <= 1 + _EXACT:
                yield RowDifference(image_id, quantity, row[quantity], "a number from 0 to 1")
        if row["prediction"] == row["target"] and row["probability"] != row["target_probability"]:
            values = row["target_probability"], row["probability"]
            note = "its probability of the same class"
            yield RowDifference(image_id, "target_probability", *values, note)

    def compare(
        self, batch: Batch[Any], predictor: Predictor, block: ComparedBlock
    ) -> Iterator[RowDifference]:
        """See `RowComparison.compare`.

        A different class at one of the top five ranks is a tie if the recomputed probabilities of
        both classes are equal within the tolerance.
        """
        agreement = block.agreement
        rows = predictor.rows(batch)
        pairs = [(block.stored.get(str(row["image_id"]), row), row) for row in rows]
        agreement.rows += sum(str(row["image_id"]) in block.stored for row in rows)
        for stored, recomputed in pairs:
            if stored is recomputed:
                continue
            agreement.equal += stored["prediction"] == recomputed["prediction"]
            for quantity in ("probability", "target_probability"):
                distance = abs(_number(stored[quantity]) - _number(recomputed[quantity]))
                agreement.largest = max(agreement.largest, distance if distance < math.inf else 0.0)
                if not distance <= block.tolerance:
                    values = stored[quantity], recomputed[quantity]
                    yield RowDifference(str(recomputed["image_id"]), quantity, *values)
        for place in range(5):
            classes = [(_class_at(a, place), _class_at(b, place)) for a, b in pairs]
            if all(old == new for old, new in classes):
                continue
            olds = _probabilities(predictor, batch, [old for old, _ in classes])
            news = _probabilities(predictor, batch, [new for _, new in classes])
            for (old, new), p_old, p_new, row in zip(classes, olds, news, rows, strict=True):
                if old == new:
                    continue
                is_tie = (
                    old is not None and new is not None and abs(p_old - p_new) <= block.tolerance
                )
                agreement.tied += is_tie and place == 0
                if not is_tie:
                    quantity = "prediction" if place == 0 else f"class at place {place + 1}"
                    note = f"probabilities {p_old:.4g} and {p_new:.4g} here"
                    yield RowDifference(str(row["image_id"]), quantity, old, new, note)


def _top5(row: Row) -> list[int]:
    top5: Any = row["top5"]
    return [] if top5 is None else [int(index) for index in top5]


def _class_at(row: Row, place: int) -> int | None:
    """The class at an index of the top five; None if the list is shorter."""
    if place == 0:
        return int(str(row["prediction"]))
    top5 = _top5(row)
    return top5[place] if place < len(top5) else None


def _probabilities(
    predictor: Predictor, batch: Batch[Any], classes: Sequence[int | None]
) -> list[float]:
    """The predicted probability of one class per image; NaN for classes outside the network."""
    targets = [0 if index is None or index < 0 else index for index in classes]
    inputs = replace(batch.inputs, targets=targets, also=[()] * len(targets))
    try:
        rows = predictor.rows(replace(batch, inputs=inputs))
    except (RuntimeError, IndexError):  # a stored class index beyond the network's classes
        return [math.nan] * len(classes)
    return [
        _number(row["target_probability"]) if index == target else math.nan
        for row, index, target in zip(rows, classes, targets, strict=True)
    ]


class MaskRowComparison(RowComparison):
    """Compares rows of segmenters: counts of pixels, and distances of outlines for equal counts.

    A single pixel can change distances of outlines considerably, so they are only compared if all
    counts of pixels are equal.
    """

    tolerances: ClassVar[Mapping[Precision, tuple[float, float]]] = {
        "fp32": (1e-4, 1e-3), "fp16": (5e-3, 5e-3), "bf16": (2e-2, 2e-2),
    }  # fmt: skip
    unit: ClassVar[str] = "of the pixels of an image"
    answers: ClassVar[str] = "masks with equal counts of pixels"
    largest: ClassVar[str] = "largest share of pixels that differ"

    def contradictions(self, row: Row, item: Any) -> Iterator[RowDifference]:
        """See `RowComparison.contradictions`."""
        image_id = str(row["image_id"])
        if row["group"] != item.group:
            note = "the group of the image in the data"
            yield RowDifference(image_id, "group", row["group"], item.group, note)
        for quantity in _COUNTS:
            if _number(row[quantity]) < 0 or row[quantity] is None:
                yield RowDifference(image_id, quantity, row[quantity], "a count of pixels")
        if row.get("class_tp") is not None:
            yield from _class_contradictions(image_id, row)

    def compare(
        self, batch: Batch[Any], predictor: Predictor, block: ComparedBlock
    ) -> Iterator[RowDifference]:
        """See `RowComparison.compare`."""
        for recomputed in predictor.rows(batch):
            stored = block.stored.get(str(recomputed["image_id"]))
            if stored is not None:
                block.agreement.rows += 1
                yield from _mask_differences(stored, recomputed, block)


def _class_contradictions(image_id: str, row: Row) -> Iterator[RowDifference]:
    """Yields class counts that contradict each other or the counts of any class.

    Every pixel has one true and one predicted class. Therefore the true (predicted) pixels of all
    classes sum to those of any class, and those of each class sum to its row (column) of the
    confusion matrix.
    """
    counts = {name: _list(row[f"class_{name}"]) for name in ("tp", "fp", "fn")}
    for name, of_classes in counts.items():
        if any(count < 0 for count in of_classes):
            yield RowDifference(image_id, f"class_{name}", of_classes, "counts of pixels")
    for what, error_key in (("true", "fn"), ("predicted", "fp")):
        of_all = sum(counts["tp"]) + sum(counts[error_key])
        of_any = _number(row["tp"]) + _number(row[error_key])
        if of_all != of_any:
            note = f"its {what} pixels of any class (tp + {error_key})"
            yield RowDifference(image_id, f"{what} pixels of all classes", of_all, of_any, note)
    if row.get("class_confusion") is None:
        return
    pixels, side = _list(row["class_confusion"]), len(counts["tp"]) + 1
    lines = [pixels[start : start + side] for start in range(0, len(pixels), side)]
    if [len(line) for line in lines] != [side] * side:
        note = "the square of its classes and background"
        yield RowDifference(image_id, "class_confusion", len(pixels), side**2, note)
        return
    hits = [lines[n][n] for n in range(side)]
    of_confusion = {
        "tp": hits[1:],
        "fp": [sum(line[n] for line in lines) - hits[n] for n in range(1, side)],
        "fn": [sum(lines[n]) - hits[n] for n in range(1, side)],
    }
    for name, expected in counts.items():
        if of_confusion[name] != expected:
            note = f"its class_{name}"
            yield RowDifference(image_id, "class_confusion", of_confusion[name], expected, note)


def _list(values: Any) -> list[float]:
    return [_number(value) for value in values]


def _class_pixels(old: Row, new: Row) -> tuple[tuple[Any, Any] | None, float]:
    """The true counts of pixels of both rows if they differ, and the number of changed predictions.

    Returns (None, 0) if both rows are without classes.
    """
    if new.get("class_tp") is None or old.get("class_tp") is None:
        same = old.get("class_tp") is new.get("class_tp")
        return (None if same else ("counts of classes", "none")), 0.0
    counts = [{n: _list(row[f"class_{n}"]) for n in ("tp", "fp", "fn")} for row in (old, new)]
    true = [[a + b for a, b in zip(c["tp"], c["fn"], strict=True)] for c in counts]
    if true[0] != true[1]:
        return (true[0], true[1]), 0.0
    first, second = counts
    changed = sum(
        abs(a - b) for name in ("tp", "fp") for a, b in zip(first[name], second[name], strict=True)
    )
    return None, changed


def _mask_differences(stored: Row, row: Row, block: ComparedBlock) -> Iterator[RowDifference]:
    image_id, agreement = str(row["image_id"]), block.agreement
    old, new = ({name: _number(counts[name]) for name in _COUNTS} for counts in (stored, row))
    for quantity, (first, second) in _SUMS_OF_TRUE_MASK.items():
        sums = old[first] + old[second], new[first] + new[second]
        if sums[0] != sums[1]:
            yield RowDifference(image_id, quantity, *sums, "it is determined by the true mask")
            return
    true_of_classes, changed_of_classes = _class_pixels(stored, row)
    if true_of_classes is not None:
        note = "they are determined by the true mask"
        yield RowDifference(image_id, "true pixels of classes", *true_of_classes, note)
        return
    changed = abs(old["tp"] - new["tp"]) + abs(old["fp"] - new["fp"])
    changed = max(changed, changed_of_classes)
    share = changed / max(sum(new.values()), 1.0)
    agreement.largest = max(agreement.largest, share)
    if share > block.tolerance:
        before_words, now_words = (
            ", ".join(f"{name} {count:.0f}" for name, count in counts.items())
            for counts in (old, new)
        )
        note = f"{share:.3%} of the pixels{', for single classes' if changed_of_classes else ''}"
        yield RowDifference(image_id, "counts of pixels", before_words, now_words, note)
        return
    agreement.equal += not changed
    agreement.tied += bool(changed)
    for quantity in () if changed else _COMPARED_IF_EQUAL:
        if quantity in row and not _is_close(stored.get(quantity), row[quantity]):
            yield RowDifference(image_id, quantity, stored.get(quantity), row[quantity])


def _is_close(first: Any, second: Any) -> bool:
    if first is None or second is None:
        return first is second
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_is_close, first, second))
    return math.isclose(_number(first), _number(second), rel_tol=_EXACT, abs_tol=_EXACT)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


COMPARISONS: Mapping[TaskName, RowComparison] = {
    "cls": ClassRowComparison(), "seg": MaskRowComparison(),
}  # fmt: skip
