"""Reads the rows of an evaluation, and checks them against the data and for contradictions."""

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
from robustcli.evaluation.store import INPUT_SCHEMA, Store, fits_checksum
from robustcli.tasks.base import Row
from robustcli.transforms.base import Cell
from robustcli.verification.row_comparison import COMPARISONS, RowDifference
from robustcli.verification.verification_result import Discrepancy, EvaluationCheck


@dataclass(frozen=True)
class RowBlock:
    """Identifies the rows of one model, one cell, and up to `block_size` images."""

    model: str
    cell: Cell
    number: int

    @property
    def name(self) -> str:
        """Model, transform, severity and number, joined by slashes."""
        return f"{self.model}/{self.cell.transform}/{self.cell.severity}/{self.number}"


class StoredRows:
    """The rows in the folder `run` of an evaluation; `damaged` maps unreadable files to errors."""

    def __init__(self, run: Path, record: RunRecord) -> None:
        self.run, self.record, self.store = run, record, Store(run)
        self.cells = [Cell(t.name, t.severity) for t in record.transforms]
        self.damaged: dict[Path, str] = {}

    @cached_property
    def blocks(self) -> list[RowBlock]:
        """All blocks with a file, in the order of the record."""
        count = -(-self.record.dataset.images // self.record.block_size)
        blocks = (
            RowBlock(model.name, cell, number)
            for model in self.record.models
            for cell in self.cells
            for number in range(count)
        )
        return [block for block in blocks if self.path(block).is_file()]

    def path(self, block: RowBlock) -> Path:
        """The file of a block."""
        return self.store.prediction_path(block.model, block.cell, block.number)

    def rows(self, block: RowBlock) -> list[Row] | None:
        """The rows of a block; None if its file is damaged."""
        schema = EVALUATION_TASKS[self.record.task]().schema(self.record.dataset)
        return self._read(self.path(block), schema)

    def inputs(self, view: str, cell: Cell, number: int) -> dict[str, Row] | None:
        """The measures of the transformed images by image id; None without a readable file."""
        path = self.store.input_path(view, cell, number)
        rows = self._read(path, INPUT_SCHEMA) if path.is_file() else None
        return None if rows is None else {str(row["image_id"]): row for row in rows}

    @cached_property
    def skipped(self) -> set[str]:
        """The ids of images that the run could not read."""
        return set(self.store.skipped()["image_id"])

    @cached_property
    def images(self) -> dict[int, dict[str, bool]]:
        """By block, the ids that at least half of its files contain, and whether all files do."""
        counts: dict[int, Counter[str]] = defaultdict(Counter)
        files: Counter[int] = Counter()
        for block in self.blocks:
            rows = self.rows(block)
            if rows is not None:
                files[block.number] += 1
                counts[block.number].update({str(row["image_id"]) for row in rows})
        return {
            number: {
                image_id: count == files[number]
                for image_id, count in sorted(block_counts.items())
                if 2 * count >= files[number]
            }
            for number, block_counts in counts.items()
        }

    def _read(self, path: Path, schema: pa.Schema) -> list[Row] | None:
        try:
            rows: list[Row] = pq.read_table(path, schema=schema, partitioning=None).to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:
            self.damaged[path] = str(error).splitlines()[0][:200]
            return None
        return rows


def check_rows(stored: StoredRows, images: Mapping[str, Sample], check: EvaluationCheck) -> None:
    """Adds damaged files, and rows that contradict the data or themselves, to `check`."""
    comparison = COMPARISONS[stored.record.task]
    for block in stored.blocks:
        rows = stored.rows(block)
        if rows is None:
            path = stored.path(block)
            check.differences.append(
                Discrepancy(
                    "rows", path.relative_to(stored.run).as_posix(), "a damaged file",
                    "a file of rows", block.model, block.cell.transform, block.cell.severity,
                    note=stored.damaged[path],
                )
            )  # fmt: skip
            continue
        path = stored.path(block)
        if not fits_checksum(path):  # the checks of the rows below may find the changed row
            check.differences.append(
                Discrepancy(
                    "rows", path.relative_to(stored.run).as_posix(),
                    "damaged or edited: its checksum does not match", "as written",
                    block.model, block.cell.transform, block.cell.severity,
                )
            )  # fmt: skip
        check.rows += len(rows)
        counts = Counter(str(row["image_id"]) for row in rows)
        differences = [
            RowDifference(image_id, "rows of the image", counts[image_id], 1)
            for image_id in stored.images[block.number]
            if image_id in images and counts[image_id] != 1
        ]
        for row in rows:
            image_id = str(row["image_id"])
            if image_id in images:
                differences += comparison.contradictions(row, images[image_id])
            else:
                unknown = RowDifference(
                    image_id, "image", image_id, None, "not an image of the run"
                )
                differences.append(unknown)
        check.differences += [in_block(block, "rows", difference) for difference in differences]


def in_block(block: RowBlock, place: str, difference: RowDifference) -> Discrepancy:
    """The discrepancy for a difference in a row of `block`."""
    return Discrepancy(
        place, difference.quantity, difference.stored, difference.recomputed, block.model,
        block.cell.transform, block.cell.severity, difference.image_id, difference.note,
    )  # fmt: skip


def check_table(run: Path, record: RunRecord, check: EvaluationCheck) -> None:
    """Adds the values of `results.csv`, if it exists, that differ from its rows to `check`.

    Cells with rows that are known to be wrong are skipped, because their values follow from the
    rows.
    """
    path = run / "results.csv"
    if not path.is_file() or any("damaged" in str(d.stored) for d in check.differences):
        return
    wrong = {(d.model, d.transform, d.severity) for d in check.differences}
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
        written_line = written.get((model, transform, severity))
        if written_line is None:
            pairs: dict[str, tuple[Any, Any]] = {"line": ("none", "one")}
        else:
            names = (name for name in expected if name in written_line)
            pairs = {name: (written_line[name], expected[name]) for name in names}
            pairs = {name: pair for name, pair in pairs.items() if not _is_same_number(*pair)}
        note = "computed from its rows; `robust report` writes it again"
        check.differences += [
            Discrepancy("results.csv", quantity, *pair, model, transform, severity, note=note)
            for quantity, pair in pairs.items()
        ]


def _lines_of(numbers: pd.DataFrame) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The lines of a table of results by model, transform and severity."""
    lines = ({str(k): v for k, v in line.items()} for line in numbers.to_dict("records"))
    return {
        (str(line.pop("model")), str(line.pop("transform")), int(line.pop("severity"))): line
        for line in lines
    }


def _is_same_number(written: Any, expected: Any) -> bool:
    try:
        first, second = float(written), float(expected)
    except (TypeError, ValueError):
        return False
    if first != first or second != second:
        return first != first and second != second
    return first == second or abs(first - second) <= 1e-9 * abs(second)
