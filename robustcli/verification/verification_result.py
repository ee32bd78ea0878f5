"""The result of a verification, with discrepancies and agreement, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robustcli.core.names import TaskName
from robustcli.verification.row_comparison import COMPARISONS, AnswerAgreement, Tolerance

_MOST_IN_TEXT = 10
"""Largest number of discrepancies in the text; JSON contains all."""


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
class Verification:
    """The checked evaluations of a run: of `robust eval`, or the held-out tests of trainings."""

    run: Path
    seed: int
    checks: tuple[EvaluationCheck, ...]

    @property
    def reproduced(self) -> bool:
        """Whether no discrepancy was found in any evaluation."""
        return all(check.reproduced for check in self.checks)

    def as_json(self) -> str:
        """The complete result as a JSON document."""
        evaluations = [
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
                "differences": [asdict(difference) for difference in check.differences],
                "differs_here": check.causes,
                "notes": check.notes,
            }
            for check in self.checks
        ]
        head = {"run": str(self.run), "reproduced": self.reproduced, "seed": self.seed}
        return json.dumps({**head, "evaluations": evaluations}, indent=1, default=str)

    def as_text(self) -> str:
        """The result as lines of text, starting with the verdict."""
        verdict = "reproduces" if self.reproduced else "does NOT reproduce"
        lines = [f"This machine {verdict} `{self.run}`."]
        for check in self.checks:
            lines += ["", *_lines(check)]
        return "\n".join(lines)


def _lines(check: EvaluationCheck) -> Iterator[str]:
    comparison, agreement = COMPARISONS[check.task], check.agreement
    yield f"{check.run}"
    yield (
        f"  recomputed: {len(check.sampled):,} of {check.blocks:,} blocks; "
        f"rows read and checked against the data: {check.rows:,}"
    )
    yield f"  transformed images with the stored digest: {check.equal_pixels:,} of {check.pixels:,}"
    if agreement.rows:
        tied = f", {agreement.tied:,} tied within the tolerance" if agreement.tied else ""
        yield (
            f"  equal {comparison.answers}: {agreement.equal:,} of {agreement.rows:,} "
            f"({agreement.equal / agreement.rows:.2%}){tied}"
        )
        yield f"  {comparison.largest}: {agreement.largest:.3g}; tolerance {check.tolerance.words}"
    for note in check.notes:
        yield f"  note: {note}"
    for difference in check.differences[:_MOST_IN_TEXT]:
        yield f"  differs: {difference.words}"
    if len(check.differences) > _MOST_IN_TEXT:
        omitted_count = len(check.differences) - _MOST_IN_TEXT
        yield f"  ... and {omitted_count:,} more differences (`--json` lists all)"
    if check.causes:
        title = "likely causes" if check.differences else "differences without effect"
        yield f"  {title}: {'; '.join(check.causes)}"
