"""The rows in the folder of an evaluation, held against the data and against themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from robustcli.data.dataset import Sample
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.look_up import EVALUATION_TASKS
from robustcli.evaluation.record import RunRecord
from robustcli.evaluation.store import INPUT_SCHEMA, Store
from robustcli.tasks.base import Row
from robustcli.transforms.base import Cell
from robustcli.verification.row_comparison import COMPARISONS, RowDifference
from robustcli.verification.verification_result import Discrepancy, EvaluationCheck


@dataclass(frozen=True)
class RowBlock:
    """The rows of one model, one transform at one severity, and up to `block_size` images."""

    model: str
    cell: Cell
    number: int

    @property
    def name(self) -> str:
        """For a list."""
        return f"{self.model}/{self.cell.transform}/{self.cell.severity}/{self.number}"


class StoredRows:
    """The rows in the folder of an evaluation, read once, each file by itself.

    Args:
        run: The folder.
        record: Of the run.
    """

    def __init__(self, run: Path, record: RunRecord) -> None:
        self.run, self.record, self.store = run, record, Store(run)
        self.cells = [Cell(t.name, t.severity) for t in record.transforms]
        self.damaged: dict[Path, str] = {}

    @cached_property
    def blocks(self) -> list[RowBlock]:
        """All blocks that have a file, in the order of the record."""
        count = -(-self.record.dataset.images // self.record.block_size)
        return [
            RowBlock(model.name, cell, number)
            for model in self.record.models
            for cell in self.cells
            for number in range(count)
            if self.path(RowBlock(model.name, cell, number)).is_file()
        ]

    def path(self, block: RowBlock) -> Path:
        """The file of a block."""
        return self.store.prediction_path(block.model, block.cell, block.number)

    def rows(self, block: RowBlock) -> list[Row] | None:
        """The rows of a block; None where its file is damaged."""
        schema = EVALUATION_TASKS[self.record.task]().schema(self.record.dataset)
        return self._read(self.path(block), schema)

    def inputs(self, view: str, cell: Cell, number: int) -> dict[str, Row] | None:
        """What is stored of transformed images, by id; None where there is no readable file."""
        path = self.store.input_path(view, cell, number)
        rows = self._read(path, INPUT_SCHEMA) if path.is_file() else None
        return None if rows is None else {str(row["image_id"]): row for row in rows}

    @cached_property
    def skipped(self) -> set[str]:
        """Images that the run could not read."""
        return set(self.store.skipped()["image_id"])

    @cached_property
    def images(self) -> dict[int, dict[str, bool]]:
        """The readable images of each block, sorted by id, and whether all of its files have them.

        They are those that at least half of the files have.
        """
        seen: dict[int, Counter[str]] = defaultdict(Counter)
        files: Counter[int] = Counter()
        for block in self.blocks:
            rows = self.rows(block)
            if rows is not None:
                files[block.number] += 1
                seen[block.number].update({str(row["image_id"]) for row in rows})
        return {
            number: {
                name: names[name] == files[number]
                for name in sorted(names)
                if 2 * names[name] >= files[number]
            }
            for number, names in seen.items()
        }

    def _read(self, path: Path, schema: pa.Schema) -> list[Row] | None:
        try:
            rows: list[Row] = pq.read_table(path, schema=schema, partitioning=None).to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:
            self.damaged[path] = str(error).splitlines()[0][:200]
            return None
        return rows


# Held against the data and against themselves.


def check_rows(stored: StoredRows, images: Mapping[str, Sample], check: EvaluationCheck) -> None:
    """Adds to `check` the damaged files, and the rows that contradict the data or themselves."""
    comparison = COMPARISONS[stored.record.task]
    for block in stored.blocks:
        rows = stored.rows(block)
        if rows is None:
            check.differences.append(_damaged(stored, stored.path(block), block))
            continue
        check.rows += len(rows)
        names = Counter(str(row["image_id"]) for row in rows)
        for name in stored.images[block.number]:
            if name in images and names[name] != 1:
                wrong = RowDifference(name, "rows of the image", names[name], 1)
                check.differences.append(row_difference(block, "rows", wrong))
        for row in rows:
            name = str(row["image_id"])
            if name not in images:
                unknown = RowDifference(name, "image", name, None, "no image of the run")
                check.differences.append(row_difference(block, "rows", unknown))
                continue
            for difference in comparison.contradictions(row, images[name]):
                check.differences.append(row_difference(block, "rows", difference))


def _damaged(stored: StoredRows, path: Path, block: RowBlock) -> Discrepancy:
    name = path.relative_to(stored.run).as_posix()
    return Discrepancy(
        "rows", name, "a damaged file", "a file of rows", block.model, block.cell.transform,
        block.cell.severity, note=stored.damaged[path],
    )  # fmt: skip


def row_difference(block: RowBlock, place: str, difference: RowDifference) -> Discrepancy:
    """The difference in a row of `block`."""
    return Discrepancy(
        place, difference.quantity, difference.stored, difference.recomputed, block.model,
        block.cell.transform, block.cell.severity, difference.image_id, difference.note,
    )  # fmt: skip


def check_table(run: Path, record: RunRecord, check: EvaluationCheck) -> None:
    """Adds to `check` where `results.csv`, if it is there, has other numbers than its rows give.

    Cells whose rows are known to be wrong are left out: their numbers follow the rows.
    """
    path = run / "results.csv"
    if not path.is_file() or any("damaged" in str(one.stored) for one in check.differences):
        return
    wrong = {(one.model, one.transform, one.severity) for one in check.differences}
    try:
        written = _lines_of(pd.read_csv(path, dtype={"model": str, "transform": str}))
    except (ValueError, KeyError) as error:
        values = "cannot be read", "a table"
        check.differences.append(
            Discrepancy("results.csv", "the file", *values, note=str(error)[:200])
        )
        return
    for (model, transform, severity), expected in _lines_of(table(run)).items():
        if (model, transform, severity) in wrong or (model, "identity", 0) in wrong:
            continue
        line = written.get((model, transform, severity))
        if line is None:
            lines: dict[str, tuple[Any, Any]] = {"line": ("none", "one")}
        else:
            both = ((name, (line[name], value)) for name, value in expected.items() if name in line)
            lines = {name: values for name, values in both if not _same_number(*values)}
        for quantity, values in lines.items():
            note = "what its rows give; `robust report` writes it anew"
            check.differences.append(
                Discrepancy("results.csv", quantity, *values, model, transform, severity, note=note)
            )


def _lines_of(numbers: pd.DataFrame) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The lines of a table of results by model, transform and severity."""
    keys = ("model", "transform", "severity")
    lines = ({str(k): v for k, v in line.items()} for line in numbers.to_dict("records"))
    return {
        (str(line[keys[0]]), str(line[keys[1]]), int(line[keys[2]])): {
            name: value for name, value in line.items() if name not in keys
        }
        for line in lines
    }


def _same_number(written: Any, expected: Any) -> bool:
    try:
        one, other = float(written), float(expected)
    except (TypeError, ValueError):
        return False
    return (one != one and other != other) or one == other or abs(one - other) <= 1e-9 * abs(other)
