"""Verifies that this machine reproduces a run: checks all rows, recomputes a sample of them.

All rows are checked against the data (images, classes, groups) and for contradictions. A sample of
the blocks (a model, a transform at a severity, up to 128 images) is recomputed with the settings in
the run's record: transformed pixels must have the stored digests, and predictions must agree within
`row_comparison.Tolerance`. Nothing is written.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from robustcli.adapters.model import Model, NotFiniteError
from robustcli.core.errors import RobustError, UsageError
from robustcli.core.io import parse_json, read_csv
from robustcli.core.listener import Listener, Silent
from robustcli.core.machine import check_opencv, versions
from robustcli.core.rundir import RECORD_FILE, SEEDS_KIND, has_record
from robustcli.core.seeds import identity_seed
from robustcli.data.dataset import Sample
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.device import choose_device, device_name
from robustcli.evaluation.loader import Source, batch_stream
from robustcli.evaluation.look_up import EVALUATION_TASKS
from robustcli.evaluation.plan import Piece, parts_of
from robustcli.evaluation.record import RunRecord, read_record
from robustcli.evaluation.store import fits_checksum
from robustcli.models.scan.dispatch import choose_backend
from robustcli.tasks.base import Batch, Row, Task
from robustcli.transforms.base import Cell
from robustcli.transforms.registry import TransformCell
from robustcli.verification.recorded_run import (
    RecordedModels,
    RowBlock,
    StoredRows,
    VerifyConfig,
    check_code,
    find_images,
    find_transforms,
)
from robustcli.verification.row_comparison import (
    COMPARISONS,
    ComparedBlock,
    DeviceKind,
    Discrepancy,
    EvaluationCheck,
    RowDifference,
)

_MOST_IN_TEXT = 10
"""Largest number of discrepancies in the text; JSON contains all."""


def verify(config: VerifyConfig, listener: Listener | None = None) -> Verification:
    """Verifies the run in `config.run` on this machine; only reads the folder.

    Raises:
        UsageError: The folder contains no readable run, or nothing to verify yet.
        MachineError: The data, the weights or a plugin of the run are not on this machine.
    """
    folders = _evaluations(config.run)
    checks = tuple(_check(folder, config, listener or Silent()) for folder in folders)
    return Verification(config.run, config.seed, checks)


def _evaluations(run: Path) -> list[Path]:
    """The evaluations in `run`: the run itself, or the held-out tests of its trainings."""
    head: Any = {}
    if has_record(run):
        try:
            head = parse_json((run / RECORD_FILE).read_text(encoding="utf-8"))
        except ValueError:
            head = {}
    kind = head.get("kind") if isinstance(head, dict) else None
    if kind == SEEDS_KIND:
        seeds = (run / f"seed-{head['seed'] + number}" for number in range(head["count"]))
        return [evaluation for seed in seeds for evaluation in _evaluations(seed)]
    if kind not in ("train", "finetune"):
        return [run]
    trainings = [run] if kind == "train" else [run / str(mode) for mode in head.get("modes", ())]
    tested = [training / "test" for training in trainings if has_record(training / "test")]
    if not tested:
        raise UsageError(
            f"`{run}` has no held-out evaluation yet.",
            f"Its status is `{head.get('status')}`; only evaluated images can be verified.",
            "Repeat the command that created it, which continues the run.",
        )
    return tested


def _check(run: Path, config: VerifyConfig, listener: Listener) -> EvaluationCheck:
    record = read_record(run)
    stored = StoredRows(run, record)
    device = choose_device(config.device)
    check_opencv()
    tolerance = COMPARISONS[record.task].tolerance(
        record.precision, _device_kind(record.device), _device_kind(device.type)
    )
    check = EvaluationCheck(run, record.task, record.status, tolerance, blocks=len(stored.blocks))
    if not stored.blocks:
        raise UsageError(
            f"`{run}` has no predictions yet.",
            "Its folder contains no block of rows.",
            "Repeat the command that created it, then verify it.",
        )
    recorded_models = RecordedModels(run, record, config)
    check_code(stored, recorded_models, config)
    images, dataset = find_images(stored, recorded_models, config, check)
    cells = find_transforms(stored, dataset, config, check)
    check.notes += recorded_models.unused_options()
    _check_rows(stored, images, check)
    blocks = _sample_blocks(stored, config, cells)
    models = recorded_models.loaded({block.model for block in blocks}, check)
    for model in models.values():
        model.to(device, record.precision)
    blocks = [block for block in blocks if block.model in models]
    check.sampled = [block.name for block in blocks]
    check.causes = _causes(record, device_name(device), models)
    _recompute(stored, blocks, models, cells, images, check, listener)
    _check_table(run, record, check)
    return check


def _device_kind(device: str) -> DeviceKind:
    """The kind of a device from its type, or from its description in a record.

    Of several devices, the one that is not a CPU: its rows differ most from those of other devices.
    """
    device = min(re.split(" and |, (?![^(]*[)])", device), key=lambda name: name.startswith("cpu"))
    return "cpu" if device.startswith("cpu") else "mps" if device.startswith("mps") else "cuda"


def _check_rows(stored: StoredRows, images: Mapping[str, Sample], check: EvaluationCheck) -> None:
    """Adds damaged files, and rows that contradict the data or themselves, to `check`."""
    comparison = COMPARISONS[stored.record.task]
    for block in stored.blocks:
        rows, path = stored.rows(block), stored.path(block)
        file = path.relative_to(stored.run).as_posix()
        if rows is None:
            values, note = ("a damaged file", "a file of rows"), stored.damaged[path]
            check.differences.append(_in_block(block, "rows", file, *values, note=note))
            continue
        if not fits_checksum(path):  # the checks of the rows below may find the changed row
            values = ("damaged or edited: its checksum does not match", "as written")
            check.differences.append(_in_block(block, "rows", file, *values))
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
        check.differences += [_in_row(block, "rows", difference) for difference in differences]


def _in_block(
    block: RowBlock, place: str, quantity: str, stored: Any, recomputed: Any,
    image_id: str | None = None, note: str = "",
) -> Discrepancy:  # fmt: skip
    cell = block.cell
    return Discrepancy(
        place, quantity, stored, recomputed, block.model, cell.transform, cell.severity, image_id,
        note,
    )  # fmt: skip


def _in_row(block: RowBlock, place: str, row: RowDifference) -> Discrepancy:
    values = row.quantity, row.stored, row.recomputed
    return _in_block(block, place, *values, row.image_id, row.note)


def _sample_blocks(
    stored: StoredRows, config: VerifyConfig, cells: Mapping[Cell, TransformCell]
) -> list[RowBlock]:
    """The blocks to recompute: first one of every model and cell, then a second one of each, ...

    The selection only depends on the seed and the names of the blocks.
    """
    blocks = [block for block in stored.blocks if block.cell in cells]
    blocks.sort(key=lambda block: identity_seed("verify", config.seed, block.name))
    counts: dict[tuple[str, Cell], int] = defaultdict(int)
    rounds: dict[RowBlock, int] = {}
    for block in blocks:
        rounds[block] = counts[block.model, block.cell]
        counts[block.model, block.cell] += 1
    blocks.sort(key=lambda block: rounds[block])  # stable: keeps the random order within a round
    return blocks[: config.sample]


def _recompute(
    stored: StoredRows,
    blocks: Sequence[RowBlock],
    models: Mapping[str, Model],
    cells: Mapping[Cell, TransformCell],
    images: Mapping[str, Sample],
    check: EvaluationCheck,
    listener: Listener,
) -> None:
    """Recomputes `blocks` and adds the differences from the stored rows to `check`."""
    record = stored.record
    task: Task[Any] = EVALUATION_TASKS[record.task]()
    config = EvalConfig(
        (), (), seed=record.seed, apply_at=record.apply_at, precision=record.precision
    )
    pieces = [
        _piece(stored, number, [block for block in blocks if block.number == number], images)
        for number in sorted({block.number for block in blocks})
    ]
    listener.start(sum(piece.forwards for piece in pieces), 0)
    if not pieces:
        return
    device = next(iter(models.values())).device
    source = Source(
        parts_of(pieces, task.batch_sizes[device.type]), task.preparation(models, cells, config)
    )
    predictors = {name: task.predictor(model, record.dataset) for name, model in models.items()}
    rows = {
        block: {str(row["image_id"]): row for row in stored.rows(block) or ()} for block in blocks
    }
    inputs: dict[tuple[str, Cell, int], dict[str, Row]] = {}
    for batch in batch_stream(source, 0, pin=False):
        if isinstance(batch, RobustError):
            raise batch
        for view in batch.measures:
            key = (view, batch.cell, batch.block)
            if key not in inputs:
                inputs[key] = stored.inputs(*key) or {}
            check.differences += _pixel_differences(batch, view, inputs[key], check)
        check.differences += [
            Discrepancy("rows", "image", "readable", "unreadable", image_id=image_id, note=reason)
            for image_id, reason in batch.unreadable
            if image_id not in stored.skipped
        ]
        for name in batch.models if batch.image_ids else ():
            block = RowBlock(name, batch.cell, batch.block)
            compared = ComparedBlock(rows[block], check.tolerance.value, check.agreement)
            try:
                differences = COMPARISONS[record.task].compare(batch, predictors[name], compared)
                check.differences += [_in_row(block, "predictions", d) for d in differences]
            except NotFiniteError:  # earlier versions stored rows of such outputs
                values = "output", "a prediction", "NaN (not a number)"
                note = f"for an image from `{batch.image_ids[0]}` to `{batch.image_ids[-1]}`"
                check.differences.append(_in_block(block, "predictions", *values, note=note))
        listener.advance((len(batch.image_ids) + len(batch.unreadable)) * len(batch.models))


def _piece(
    stored: StoredRows, number: int, blocks: Sequence[RowBlock], images: Mapping[str, Sample]
) -> Piece:
    """The work for the sampled blocks of the same images, which are decoded only once."""
    views = {model.name: model.view for model in stored.record.models}
    cells = list(dict.fromkeys(block.cell for block in blocks))
    models = {cell: tuple(b.model for b in blocks if b.cell == cell) for cell in cells}
    items = tuple(images[name] for name in stored.images.get(number, ()) if name in images)
    inputs = {cell: tuple(sorted({views[name] for name in models[cell]})) for cell in cells}
    return Piece(number, items, models, inputs)


def _pixel_differences(
    batch: Batch[Any], view: str, stored: Mapping[str, Row], check: EvaluationCheck
) -> Iterator[Discrepancy]:
    """Yields transformed images with pixels or PSNR that differ from the stored values."""
    for image_id, measures in zip(batch.image_ids, batch.measures[view], strict=True):
        row = stored.get(image_id)
        check.pixels += 1
        digest = "no readable row" if row is None else str(row["digest"])
        quantity, values = "digest of the pixels", (digest, measures.digest)
        if row is not None and digest == measures.digest:
            check.equal_pixels += 1
            psnr_db: Any = math.nan if row["psnr_db"] is None else row["psnr_db"]
            if _is_same_number(psnr_db, measures.psnr_db) and row["changed"] == measures.changed:
                continue
            quantity, values = "PSNR (dB)", (str(row["psnr_db"]), str(measures.psnr_db))
        cell = batch.cell
        yield Discrepancy(
            "pixels", quantity, *values, None, cell.transform, cell.severity, image_id
        )


def _causes(record: RunRecord, device: str, models: Mapping[str, Model]) -> list[str]:
    """Versions, device and scan backends that differ between this machine and the record."""
    installed = versions()
    causes = [
        f"{name} {installed.get(name, 'not installed')} here, {record.versions.get(name, 'none')} "
        "in the run"
        for name in sorted({*installed, *record.versions})
        if installed.get(name) != record.versions.get(name)
    ]
    if device != record.device:
        causes.append(f"device {device} here, {record.device} in the run")
    for model in record.models:
        if model.name in models and models[model.name].facts.scans:
            backend = choose_backend(models[model.name].device, torch.float32)
            if backend != model.scan_backend:
                causes.append(
                    f"scan backend of `{model.name}` {backend} here, {model.scan_backend} in the "
                    "run"
                )
    return causes


def _check_table(run: Path, record: RunRecord, check: EvaluationCheck) -> None:
    """Adds the values of `results.csv`, if it exists, that differ from its rows to `check`.

    Cells with rows that are known to be wrong are skipped, because their values follow from the
    rows.
    """
    path = run / "results.csv"
    if not path.is_file() or any("damaged" in str(d.stored) for d in check.differences):
        return
    wrong = {(d.model, d.transform, d.severity) for d in check.differences}
    try:
        written = _lines_of(read_csv(path, names=("model", "transform")))
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
