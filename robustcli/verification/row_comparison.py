"""Stored rows against recomputed ones: what counts as the same answer, for each task.

Labels, groups and sums of pixels follow from the data alone and must be equal. What a network says
may differ by rounding: by how much is stated in `Tolerance`, and depends on the number format and
on whether both runs computed on a CPU.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from robustcli.adapters.model import Precision
from robustcli.core.names import TaskName
from robustcli.tasks.base import Batch, Predictor, Row

DeviceKind = Literal["cpu", "cuda", "mps"]
_EXACT = 1e-6
"""Relative rounding of a distance that was computed twice from the same two masks."""
_CLASS_TOLERANCE: Mapping[Precision, tuple[float, float]] = {
    "fp32": (1e-4, 5e-3), "fp16": (1e-2, 1e-2), "bf16": (5e-2, 5e-2),
}  # fmt: skip
_PIXEL_TOLERANCE: Mapping[Precision, tuple[float, float]] = {
    "fp32": (1e-4, 1e-3), "fp16": (5e-3, 5e-3), "bf16": (2e-2, 2e-2),
}  # fmt: skip


@dataclass(frozen=True)
class Tolerance:
    """How far a recomputed answer may lie from the stored one.

    Of classifiers `value` is a difference of probabilities, of segmenters a share of the pixels of
    an image. On GPUs fp32 convolutions may compute with TF32 (10 bits of mantissa), and each GPU
    chooses its own algorithms; between CPUs only the order of summation differs.
    """

    value: float
    precision: Precision
    stored_on: DeviceKind
    here_on: DeviceKind
    unit: str

    @property
    def words(self) -> str:
        """The tolerance in words."""
        devices = (
            f"both on {self.stored_on}"
            if self.stored_on == self.here_on
            else f"stored on {self.stored_on}, recomputed on {self.here_on}"
        )
        return f"{self.value:g} {self.unit} ({self.precision}, {devices})"


@dataclass(frozen=True)
class RowDifference:
    """One quantity of one row that is not what was recomputed, or contradicts its own row."""

    image_id: str
    quantity: str
    stored: Any
    recomputed: Any
    note: str = ""


@dataclass
class AnswerAgreement:
    """How far the stored and the recomputed answers agree.

    Args:
        rows: Compared.
        equal: Of them with the same prediction (of segmenters: with the same counts of pixels).
        tied: With another prediction whose probability is the same within the tolerance (of
            segmenters: with other counts within the tolerance).
        largest: The largest difference of probabilities, or share of pixels.
    """

    rows: int = 0
    equal: int = 0
    tied: int = 0
    largest: float = 0.0

    def add(self, other: AnswerAgreement) -> None:
        """Counts the rows of `other` too."""
        self.rows, self.equal = self.rows + other.rows, self.equal + other.equal
        self.tied, self.largest = self.tied + other.tied, max(self.largest, other.largest)


class RowComparison(ABC):
    """What rows of one task are compared by."""

    tolerances: ClassVar[Mapping[Precision, tuple[float, float]]]
    unit: ClassVar[str]
    answers: ClassVar[str]
    """What equal answers are called in a sentence."""
    largest: ClassVar[str]
    """What `AnswerAgreement.largest` is called in a sentence."""

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
        """What in a stored row cannot be, whatever the network said; `item` is its image."""

    @abstractmethod
    def compare(
        self,
        batch: Batch[Any],
        predictor: Predictor,
        stored: Mapping[str, Row],
        tolerance: Tolerance,
        agreement: AnswerAgreement,
    ) -> Iterator[RowDifference]:
        """The differences of the rows of `batch`, which `predictor` answers again.

        Args:
            batch: Transformed images.
            predictor: The model.
            stored: Rows by image id; an image without one is not compared.
            tolerance: What is still the same answer.
            agreement: Counts the rows.
        """


class ClassRowComparison(RowComparison):
    """Rows of classifiers."""

    tolerances: ClassVar[Mapping[Precision, tuple[float, float]]] = _CLASS_TOLERANCE
    unit: ClassVar[str] = "of probability"
    answers: ClassVar[str] = "predictions"
    largest: ClassVar[str] = "largest difference of probabilities"

    def contradictions(self, row: Row, item: Any) -> Iterator[RowDifference]:
        """See `RowComparison.contradictions`."""
        image_id, best = str(row["image_id"]), _classes_of(row)
        if row["target"] != item.target:
            note = "the class of the image in the data"
            yield RowDifference(image_id, "target", row["target"], item.target, note)
        if not best or row["prediction"] != best[0]:
            first = best[0] if best else None
            note = "the first of its own top five"
            yield RowDifference(image_id, "prediction", row["prediction"], first, note)
        if any(name < 0 for name in best) or not len(set(best)) == len(best) <= 5:
            yield RowDifference(image_id, "top5", best, "at most five different classes")
        for quantity in ("probability", "target_probability"):
            if not 0 <= _number(row[quantity]) <= 1 + _EXACT:
                yield RowDifference(image_id, quantity, row[quantity], "a number from 0 to 1")
        if row["prediction"] == row["target"] and row["probability"] != row["target_probability"]:
            values = row["target_probability"], row["probability"]
            note = "its own probability of the same class"
            yield RowDifference(image_id, "target_probability", *values, note)

    def compare(
        self,
        batch: Batch[Any],
        predictor: Predictor,
        stored: Mapping[str, Row],
        tolerance: Tolerance,
        agreement: AnswerAgreement,
    ) -> Iterator[RowDifference]:
        """See `RowComparison.compare`.

        Another class at one of the five places is a tie where the network, asked again, gives both
        classes the same probability within the tolerance.
        """
        recomputed = predictor.rows(batch)
        pairs = [(stored.get(str(row["image_id"]), row), row) for row in recomputed]
        agreement.rows += sum(str(row["image_id"]) in stored for row in recomputed)
        for before, now in pairs:
            if before is now:
                continue
            agreement.equal += before["prediction"] == now["prediction"]
            for quantity in ("probability", "target_probability"):
                apart = abs(_number(before[quantity]) - _number(now[quantity]))
                agreement.largest = max(agreement.largest, _finite(apart))
                if not apart <= tolerance.value:
                    values = before[quantity], now[quantity]
                    yield RowDifference(str(now["image_id"]), quantity, *values)
        yield from self._other_classes(batch, predictor, pairs, tolerance.value, agreement)

    def _other_classes(
        self, batch: Batch[Any], predictor: Predictor, pairs: Sequence[tuple[Row, Row]],
        tolerance: float, agreement: AnswerAgreement,
    ) -> Iterator[RowDifference]:  # fmt: skip
        for place in range(5):
            classes = [(_at(before, place), _at(now, place)) for before, now in pairs]
            if all(old == new for old, new in classes):
                continue
            olds = _probabilities(predictor, batch, [old for old, _ in classes])
            news = _probabilities(predictor, batch, [new for _, new in classes])
            for (old, new), p_old, p_new, (_, now) in zip(classes, olds, news, pairs, strict=True):
                if old == new:
                    continue
                tied = old is not None and new is not None and abs(p_old - p_new) <= tolerance
                agreement.tied += tied and place == 0
                if not tied:
                    quantity = "prediction" if place == 0 else f"class at place {place + 1}"
                    note = f"probabilities {p_old:.4g} and {p_new:.4g} here"
                    yield RowDifference(str(now["image_id"]), quantity, old, new, note)


def _classes_of(row: Row) -> list[int]:
    top5: Any = row["top5"]
    return [] if top5 is None else [int(name) for name in top5]


def _at(row: Row, place: int) -> int | None:
    """The class at a place of the top five; None where there is none."""
    if place == 0:
        return int(str(row["prediction"]))
    classes = _classes_of(row)
    return classes[place] if place < len(classes) else None


def _probabilities(
    predictor: Predictor, batch: Batch[Any], classes: Sequence[int | None]
) -> list[float]:
    """What the network gives to one class of each image; NaN for a class that it does not have."""
    asked = [0 if name is None or name < 0 else name for name in classes]
    try:
        rows = predictor.rows(replace(batch, inputs=replace(batch.inputs, targets=asked)))
    except (RuntimeError, IndexError):  # a stored class beyond the network's last one
        return [math.nan] * len(classes)
    return [
        _number(row["target_probability"]) if name == known else math.nan
        for row, name, known in zip(rows, classes, asked, strict=True)
    ]


class MaskRowComparison(RowComparison):
    """Rows of segmenters: counts of pixels, and distances of outlines where the counts are equal.

    Distances of outlines jump with single pixels, so they are judged only where no pixel differs.
    """

    tolerances: ClassVar[Mapping[Precision, tuple[float, float]]] = _PIXEL_TOLERANCE
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

    def compare(
        self,
        batch: Batch[Any],
        predictor: Predictor,
        stored: Mapping[str, Row],
        tolerance: Tolerance,
        agreement: AnswerAgreement,
    ) -> Iterator[RowDifference]:
        """See `RowComparison.compare`."""
        for now in predictor.rows(batch):
            before = stored.get(str(now["image_id"]))
            if before is not None:
                agreement.rows += 1
                yield from _mask_differences(before, now, tolerance.value, agreement)


_COUNTS = ("tp", "fp", "fn", "tn")
_DISTANCES = ("hd95", "boundary_dice")
_NEAR = ("predicted_near", "true_near")


def _mask_differences(
    before: Row, now: Row, tolerance: float, agreement: AnswerAgreement
) -> Iterator[RowDifference]:
    image_id = str(now["image_id"])
    old, new = ({name: _number(row[name]) for name in _COUNTS} for row in (before, now))
    for words, (one, other) in _TRUTHS.items():
        if old[one] + old[other] != new[one] + new[other]:
            sums = old[one] + old[other], new[one] + new[other]
            yield RowDifference(image_id, words, *sums, "it follows from the true mask alone")
            return
    changed = abs(old["tp"] - new["tp"]) + abs(old["fp"] - new["fp"])
    share = changed / max(sum(new.values()), 1.0)
    agreement.largest = max(agreement.largest, share)
    if share > tolerance:
        note = f"{share:.3%} of the pixels"
        yield RowDifference(image_id, "counts of pixels", _counts(old), _counts(new), note)
        return
    agreement.equal += not changed
    agreement.tied += bool(changed)
    for quantity in (*_DISTANCES, *_NEAR) if not changed else ():
        if quantity in now and not _same(before.get(quantity), now[quantity]):
            yield RowDifference(image_id, quantity, before.get(quantity), now[quantity])


_TRUTHS = {
    "foreground pixels (tp + fn)": ("tp", "fn"),
    "background pixels (fp + tn)": ("fp", "tn"),
}


def _counts(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number:.0f}" for name, number in numbers.items())


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(_number(one), _number(other), rel_tol=_EXACT, abs_tol=_EXACT)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


COMPARISONS: Mapping[TaskName, RowComparison] = {
    "cls": ClassRowComparison(),
    "seg": MaskRowComparison(),
}
