"""Gates: limits for the metrics of a run, for use in scripts and continuous integration.

`--fail-under [MODEL:]TARGET=VALUE` requires a score of at least VALUE, and
`--fail-drop [[MODEL:]TARGET=]VALUE` requires a drop against the clean images of at most VALUE.
Values are percent of top-1 (percentage points for drops) for classifiers, and dice from 0 to 1 for
segmenters. A target is a transform, optionally with one `:SEVERITY`, a glob over transforms, `mean`
(over all transforms) or, for scores, `clean`.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from robustcli.core.errors import GateError, RunError, UsageError
from robustcli.core.io import write_text
from robustcli.core.names import TaskName, canonical, is_glob, nearest
from robustcli.core.rundir import Record
from robustcli.evaluation.cell_table import cell_numbers
from robustcli.evaluation.record import RunRecord, read_record
from robustcli.evaluation.store import Store
from robustcli.metrics.intervals import (
    DIFFERENCES_OF_SHARES,
    SHARES,
    Bootstrap,
    Interval,
    mean_interval,
)
from robustcli.metrics.mask_scores import group_dice
from robustcli.transforms.base import CLEAN, Cell

GATES_FILE = "gates.json"
MEAN, CLEAN_TARGET, EVERY = "mean", "clean", "*"
_SCORE: dict[TaskName, str] = {"cls": "top1", "seg": "dice"}
_IDS = ("image_id",)
_SCALE: dict[TaskName, float] = {"cls": 100.0, "seg": 1.0}


@dataclass(frozen=True)
class Gate:
    """One parsed limit.

    `text` is the value of the option; the unit of `limit` is percent, percentage points, or dice.
    `target` is a name or glob of transforms, `mean` or `clean`; `model` is a name or glob of
    models. None means all severities or all models.
    """

    option: Literal["--fail-under", "--fail-drop"]
    text: str
    limit: float
    target: str
    severity: int | None = None
    model: str | None = None

    def __str__(self) -> str:
        return f"{self.option} {self.text}"

    @property
    def is_drop(self) -> bool:
        """Whether the gate limits the drop against the clean images."""
        return self.option == "--fail-drop"


@dataclass(frozen=True)
class GateScope:
    """The task, models and cells that a command computes or reads."""

    task: TaskName
    models: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def transformed(self) -> tuple[Cell, ...]:
        """The cells except the clean images."""
        return tuple(cell for cell in self.cells if cell != CLEAN)


def scope_of(record: RunRecord) -> GateScope:
    """All models and cells of a run."""
    return GateScope(
        record.task,
        tuple(model.name for model in record.models),
        tuple(Cell(t.name, t.severity) for t in record.transforms),
    )


class GateResult(Record):
    """One model and target compared with one gate; numbers are in the unit of the gate.

    `low` and `high` are the ends of the 95 % interval of `value`, None for too few groups (see
    `FEWEST_UNITS`). `certain` means that the interval does not contain the limit.
    """

    gate: str
    model: str
    target: str
    measure: Literal["top1", "dice", "drop"]
    unit: Literal["%", "points", "dice"]
    value: float
    low: float | None
    high: float | None
    limit: float
    passed: bool
    certain: bool

    @property
    def words(self) -> str:
        """The result in a sentence."""
        return f"`{self.model}`, {self.claim}"

    @property
    def claim(self) -> str:
        """The result without the name of the model."""
        after = {"%": " %", "points": " percentage points", "dice": ""}[self.unit]
        digits = 3 if self.unit == "dice" else 1
        name = {"top1": "top-1", "dice": "dice", "drop": "drop"}[self.measure]
        name = f"{name} in dice" if self.measure == "drop" and self.unit == "dice" else name
        side = "above" if self.measure == "drop" else "below"
        certainty = "within sampling error: the interval contains the limit"
        if self.low is None:
            certainty = "with unknown sampling error"
        elif self.certain:
            certainty = "and the difference is larger than the sampling error"
        interval = "no interval: too few groups"
        if self.low is not None and self.high is not None:
            interval = f"95 % interval {self.low:.{digits}f} to {self.high:.{digits}f}"
        return (
            f"{self.target}: {name} {self.value:.{digits}f}{after} ({interval}) is "
            f"{'not ' if self.passed else ''}{side} the limit {self.limit:g}{after}, {certainty}"
        )


class GatesRecord(Record):
    """`RUN/gates.json`: the results of the last command that checked gates."""

    schema_version: int = 1
    passed: bool
    gates: list[GateResult]

    @property
    def failed(self) -> list[GateResult]:
        """The results that break the limit."""
        return [result for result in self.gates if not result.passed]


def parse_gates(
    fail_under: Sequence[str] | str, fail_drop: Sequence[str] | str
) -> tuple[Gate, ...]:
    """Parses the gates of both options, each with one text or several.

    Raises:
        UsageError: A text cannot be parsed.
    """
    under, drop = ((o,) if isinstance(o, str) else o for o in (fail_under, fail_drop))
    return (
        *(_parsed("--fail-under", text) for text in under),
        *(_parsed("--fail-drop", text) for text in drop),
    )


def _parsed(option: Literal["--fail-under", "--fail-drop"], text: str) -> Gate:
    target_text, equals, number = text.rpartition("=")
    is_drop = option == "--fail-drop"
    if not equals and is_drop:
        target_text = EVERY
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not target_text or not math.isfinite(limit):
        examples = "`5` or `perspective=5`" if is_drop else "`perspective=70`, `clean=75` or `*=60`"
        raise UsageError(
            f"`{option} {text}` cannot be read.",
            f"Expected {'NUMBER or ' if is_drop else ''}[MODEL:]TARGET=NUMBER, such as {examples}.",
            "A target is a transform, a glob, `mean`" + ("." if is_drop else ", or `clean`."),
        )
    *before, last = target_text.split(":")
    severity = None
    if before and last.isdecimal():
        severity, last = int(last), before.pop()
    if is_drop and canonical(last) in (CLEAN_TARGET, CLEAN.transform):
        raise UsageError(
            f"`{option} {text}` has no effect.",
            "The drop of untransformed images is always 0.",
            "Specify a transform, or use `--fail-under clean=NUMBER`.",
        )
    return Gate(option, text, limit, last, severity, ":".join(before) or None)


def check_gates(gates: Sequence[Gate], scope: GateScope) -> None:
    """Checks that the limit of every gate is in range and that it applies to something.

    Raises:
        UsageError: A limit is out of range, or a gate names an unknown model or transform.
    """
    for gate in gates:
        _check_limit(gate, scope.task)
        _models(gate, scope)
        _cells(gate, scope)


def _check_limit(gate: Gate, task: TaskName) -> None:
    highest = 100 if task == "cls" else 1
    unit = "percentage points" if gate.is_drop else "percent of top-1"
    expected = f"{unit}, 0 to 100" if task == "cls" else "dice, 0 to 1"
    if not 0 <= gate.limit <= highest:
        raise UsageError(
            f"`{gate}` is out of range.",
            f"Expected {expected}; got {gate.limit:g}.",
            "Write the limit in that unit.",
        )
    if task == "cls" and not gate.is_drop and 0 < gate.limit <= 1:
        raise UsageError(
            f"`{gate}` is {gate.limit:g} percent.",
            "Limits of classifiers are top-1 in percent, 0 to 100, not fractions.",
            f"Write {100 * gate.limit:g} for {100 * gate.limit:g} %.",
        )


def _models(gate: Gate, scope: GateScope) -> list[str]:
    if gate.model is None:
        return list(scope.models)
    return _matching(gate, gate.model, scope.models, "model")


def _cells(gate: Gate, scope: GateScope) -> list[Cell]:
    """The cells to which a gate applies separately; for `mean`, the cells that are averaged."""
    target = canonical(gate.target)
    if target in (CLEAN_TARGET, CLEAN.transform):
        if gate.severity not in (None, CLEAN.severity):
            raise UsageError(
                f"`{gate}` specifies a severity of untransformed images.",
                "They have none, so the gate could be meant for a transform.",
                f"Remove `:{gate.severity}`, or name the transform.",
            )
        return [CLEAN]
    transforms = list(dict.fromkeys(cell.transform for cell in scope.transformed))
    if not transforms:
        raise UsageError(
            f"`{gate}` has no matching result.",
            "Only untransformed images (`identity`) are evaluated.",
            "Add a `--transform`, or use `clean=NUMBER`.",
        )
    names = transforms
    if target not in (MEAN, EVERY):
        names = _matching(gate, gate.target, transforms, "transform")
    cells = [
        cell
        for cell in scope.transformed
        if cell.transform in names and gate.severity in (None, cell.severity)
    ]
    if not cells:
        severities = sorted({c.severity for c in scope.transformed if c.transform in names})
        raise UsageError(
            f"`{gate}` specifies a severity that is not in the run.",
            f"`{gate.target}` is evaluated at severity {', '.join(map(str, severities))} "
            "(0 is the full range).",
            "Use one of these, or add the severity with `--severity`.",
        )
    return cells


def _matching(gate: Gate, pattern: str, names: Sequence[str], kind: str) -> list[str]:
    spelling = canonical(pattern)
    if is_glob(pattern):
        matches = [name for name in names if fnmatch.fnmatchcase(canonical(name), spelling)]
    else:
        matches = [name for name in names if canonical(name) == spelling]
    if matches:
        return matches
    close = nearest(pattern, names)
    known = ", ".join(f"`{name}`" for name in names)
    raise UsageError(
        f"`{gate}` specifies a {kind} that is not in the run: `{pattern}`.",
        f"Did you mean `{close[0]}`?" if close else f"The run has {known}.",
        f"Correct the gate, or add the {kind} to the run.",
    )


def judge(run: Path, gates: Sequence[Gate], scope: GateScope) -> GatesRecord:
    """Compares the metrics of `run` with `gates` and writes `RUN/gates.json`.

    `gates` contains at least one gate, checked by `check_gates`; `scope` defines the models and
    cells to compare.

    Raises:
        RunError: Rows that a gate needs are missing.
    """
    reader = _Reader(run)
    results = [result for gate in gates for result in _results(gate, scope, reader)]
    record = GatesRecord(passed=all(result.passed for result in results), gates=results)
    write_text(run / GATES_FILE, record.model_dump_json(indent=2) + "\n")
    return record


def check_run(run: Path, gates: Sequence[Gate]) -> GateScope:
    """Checks that `judge` can compare all models and cells of a stored run; returns them.

    Raises:
        UsageError: The folder contains no evaluation, or a gate does not apply to it.
        RunError: The run is not complete.
    """
    record = read_record(run)
    scope = scope_of(record)
    check_gates(gates, scope)
    if record.status != "complete":
        raise RunError(
            f"`{run}` is incomplete (status: {record.status}), so no gate can be checked.",
            "Scores of a subset of the images would be compared with limits for all images.",
            "Complete it with the same `robust eval` command, then check the gates again.",
        )
    reader = _Reader(run)
    for model in scope.models:
        for cell in scope.cells:  # files of a complete run can be lost, such as by an upload
            reader.check_complete(model, cell, reader.store.rows(model, cell, scope.task, _IDS))
    return scope


def read_gates(run: Path) -> GatesRecord | None:
    """The results of the last check of `run`; None without one."""
    path = run / GATES_FILE
    return GatesRecord.model_validate_json(path.read_bytes()) if path.is_file() else None


def gate_error(run: Path, record: GatesRecord) -> GateError:
    """The error that lists the failed gates of `run`."""
    reasons = "\n".join(f"  `{result.gate}`: {result.words}." for result in record.failed)
    return GateError(
        f"{len(record.failed)} of {len(record.gates)} gates failed in `{run}`.",
        reasons,
        f"The run is complete; `{run / 'report.md'}` contains all scores.",
        run,
    )


class _Reader:
    """Reads the rows of a run; each cell is read once."""

    def __init__(self, run: Path) -> None:
        self.run, self.store, self.record = run, Store(run), read_record(run)
        self.expected = self.record.dataset.images - self.store.skipped()["image_id"].nunique()
        self._rows: dict[tuple[str, Cell], pd.DataFrame] = {}

    def rows(self, model: str, cell: Cell) -> pd.DataFrame:
        """The rows of one cell; raises RunError if some are missing."""
        key = (model, cell)
        if key not in self._rows:
            rows = self.store.rows(model, cell, self.record.task)
            self.check_complete(model, cell, rows)
            self._rows[key] = rows
        return self._rows[key]

    def check_complete(self, model: str, cell: Cell, rows: pd.DataFrame) -> None:
        """Raises RunError if `rows` are not those of all images."""
        if len(rows) != self.expected or rows.empty:
            raise RunError(
                f"`{self.run}` has missing rows of `{model}` under {_label(cell)}.",
                f"{len(rows):,} of {self.expected:,} exist, so no gate can be checked.",
                "Complete the run with the same `robust eval` command.",
            )

    def units(self, model: str, cell: Cell) -> pd.Series[float]:
        """The values whose mean is the score: correctness by image, or dice by group."""
        rows = self.rows(model, cell)
        if self.record.task == "cls":
            correct = (rows["prediction"] == rows["target"]).to_numpy(dtype=float)
            return pd.Series(correct, index=rows["image_id"].to_numpy(dtype=object))
        groups = np.unique(rows["group"].to_numpy(dtype=object))
        return pd.Series(group_dice(rows), index=groups)


def _results(gate: Gate, scope: GateScope, reader: _Reader) -> Iterator[GateResult]:
    cells = _cells(gate, scope)
    for model in _models(gate, scope):
        if canonical(gate.target) == MEAN:
            value, interval = _mean_of_cells(gate, model, cells, reader)
            yield _result(gate, scope.task, model, _mean_label(cells), value, interval)
            continue
        for cell in cells:
            value, interval = _cell_value(gate, model, cell, reader)
            yield _result(gate, scope.task, model, _label(cell), value, interval)


def _cell_value(
    gate: Gate, model: str, cell: Cell, reader: _Reader
) -> tuple[float, Interval | None]:
    """The value of this cell in the results table, and its interval."""
    record = reader.record
    clean = reader.rows(model, CLEAN)
    numbers = cell_numbers(record.task, clean, reader.rows(model, cell), record.seed)
    column = "drop" if gate.is_drop else _SCORE[record.task]
    low, high = numbers[f"{column}_low"], numbers[f"{column}_high"]
    return numbers[column], None if low is None else Interval(low, high)


def _mean_of_cells(
    gate: Gate, model: str, cells: Sequence[Cell], reader: _Reader
) -> tuple[float, Interval | None]:
    """The mean over cells and its interval, paired by image (or group).

    The value of an image is its mean over the cells. For images, the interval is `mean_interval`;
    for groups, it is the bootstrap interval, as for a single cell.
    """
    values = pd.concat([reader.units(model, cell) for cell in cells], axis=1).mean(axis=1)
    if gate.is_drop:
        values = reader.units(model, CLEAN) - values
    unit_values = values.to_numpy(dtype=np.float64)
    mean = float(unit_values.mean())
    bounds = DIFFERENCES_OF_SHARES if gate.is_drop else SHARES
    if reader.record.task == "seg":
        return mean, Bootstrap(reader.record.seed).mean(unit_values, bounds)
    return mean, mean_interval(unit_values, bounds)


def _result(
    gate: Gate, task: TaskName, model: str, target: str, value: float, interval: Interval | None
) -> GateResult:
    scale = _SCALE[task]
    low, high = (None, None) if interval is None else (scale * interval.low, scale * interval.high)
    # Rounded to far more digits than messages have, so that 7 of 10 is not below a limit of 70 %.
    scaled = round(scale * value, 9)
    passed = scaled <= gate.limit if gate.is_drop else scaled >= gate.limit
    certain = low is not None and high is not None and not low <= gate.limit <= high
    unit: Literal["%", "points", "dice"] = "dice"
    if task == "cls":
        unit = "points" if gate.is_drop else "%"
    return GateResult(
        gate=str(gate), model=model, target=target,
        measure="drop" if gate.is_drop else ("top1" if task == "cls" else "dice"), unit=unit,
        value=scaled, low=low, high=high, limit=gate.limit, passed=passed, certain=certain,
    )  # fmt: skip


def _mean_label(cells: Sequence[Cell]) -> str:
    count = len({cell.transform for cell in cells})
    transforms = f"{count} transform{'s' if count > 1 else ''}"
    if len(cells) > count:
        return f"mean over {len(cells)} severities of {transforms}"
    return f"mean over {transforms}"


def _label(cell: Cell) -> str:
    if cell == CLEAN:
        return "clean images"
    return f"{cell.transform}, severity {cell.severity}" if cell.severity else cell.transform
