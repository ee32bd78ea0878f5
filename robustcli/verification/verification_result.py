"""What a verification finds: differences, how far answers agree, and all of it as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robustcli.core.names import TaskName
from robustcli.verification.row_comparison import COMPARISONS, AnswerAgreement, Tolerance

_SHOWN = 10
"""Differences in a text; JSON has all."""


@dataclass(frozen=True)
class Discrepancy:
    """Something of the run that is not as this machine computes it.

    Args:
        place: What it is about: `predictions`, `pixels`, `rows`, `parameters`, `weights`,
            `results.csv`.
        quantity: Which number or text differs.
        stored: In the run.
        recomputed: Here, or what it contradicts.
        model: Its name; None where it is no model's.
        transform: With `severity`, under which it was.
        severity: 0 for the transform's full range.
        image_id: Of the image; None for a whole file.
        note: More on it.
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
        """The difference in a line."""
        at = f"{self.transform}, severity {self.severity}" if self.severity else self.transform
        where = [
            f"`{self.model}`" if self.model else "",
            f"under {at}" if at else "",
            f"`{self.image_id}`" if self.image_id else "",
        ]
        named = " ".join(part for part in where if part)
        note = f" ({self.note})" if self.note else ""
        values = f"stored {_shown(self.stored)}, here {_shown(self.recomputed)}"
        return f"{self.place}: {named}{', ' if named else ''}{self.quantity}: {values}{note}"


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@dataclass
class EvaluationCheck:
    """One evaluation, held against what this machine computes.

    Args:
        run: Its folder.
        task: Of its models.
        status: Of its record.
        blocks: In the run.
        sampled: Of them recomputed, as `model/transform/severity/block`.
        rows: All rows of models that were read and held against the data.
        pixels: Transformed images whose digest was compared.
        equal_pixels: Of them with the stored digest.
        agreement: Of the recomputed answers.
        tolerance: What counts as the same answer.
        differences: What is not as it should be.
        causes: Versions, devices and backends that differ: where a difference may come from.
        notes: What could not be compared, and why.
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
        """Whether nothing differs."""
        return not self.differences


@dataclass(frozen=True)
class Verification:
    """The evaluations of a run: one of `robust eval`, or the held-out ones of trainings."""

    run: Path
    seed: int
    checks: tuple[EvaluationCheck, ...]

    @property
    def reproduced(self) -> bool:
        """Whether this machine reproduces all that was compared."""
        return all(check.reproduced for check in self.checks)

    def as_json(self) -> str:
        """All of it as a JSON document."""
        checks = [
            {
                "run": str(check.run),
                "reproduced": check.reproduced,
                "status": check.status,
                "blocks": check.blocks,
                "sampled": check.sampled,
                "rows_checked": check.rows,
                "pixels": {"compared": check.pixels, "equal": check.equal_pixels},
                "answers": asdict(check.agreement),
                "tolerance": asdict(check.tolerance),
                "differences": [asdict(one) for one in check.differences],
                "differs_here": check.causes,
                "notes": check.notes,
            }
            for check in self.checks
        ]
        whole = {
            "run": str(self.run),
            "reproduced": self.reproduced,
            "seed": self.seed,
            "evaluations": checks,
        }
        return json.dumps(whole, indent=1, default=str)

    def as_text(self) -> str:
        """All of it in lines, the answer first."""
        answer = "reproduces" if self.reproduced else "does NOT reproduce"
        lines = [f"This machine {answer} `{self.run}`."]
        for check in self.checks:
            lines += ["", *_lines(check)]
        return "\n".join(lines)


def _lines(check: EvaluationCheck) -> Iterator[str]:
    task = COMPARISONS[check.task]
    agreement = check.agreement
    yield f"{check.run}"
    yield (
        f"  recomputed: {len(check.sampled):,} of {check.blocks:,} blocks; "
        f"rows read and held against the data: {check.rows:,}"
    )
    yield f"  transformed images with the stored digest: {check.equal_pixels:,} of {check.pixels:,}"
    if agreement.rows:
        tied = f", {agreement.tied:,} tied within the tolerance" if agreement.tied else ""
        yield (
            f"  equal {task.answers}: {agreement.equal:,} of {agreement.rows:,} "
            f"({agreement.equal / agreement.rows:.2%}){tied}"
        )
        yield f"  {task.largest}: {agreement.largest:.3g}; tolerance {check.tolerance.words}"
    for note in check.notes:
        yield f"  note: {note}"
    for difference in check.differences[:_SHOWN]:
        yield f"  differs: {difference.words}"
    if len(check.differences) > _SHOWN:
        yield f"  ... and {len(check.differences) - _SHOWN:,} more differences (`--json` has all)"
    if check.causes:
        title = "likely causes" if check.differences else "differs here without effect"
        yield f"  {title}: {'; '.join(check.causes)}"
