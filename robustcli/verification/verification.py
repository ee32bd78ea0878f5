"""Verifies that this machine reproduces a run: checks all rows, recomputes a sample of them.

All rows are checked against the data (images, classes, groups) and for contradictions. A sample of
the blocks (a model, a transform at a severity, up to 128 images) is recomputed with the settings in
the run's record: transformed pixels must have the stored digests, and predictions must agree within
`row_comparison.Tolerance`. Nothing is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from robustcli.adapters.model import Model
from robustcli.core.errors import RobustError, UsageError
from robustcli.core.io import parse_json
from robustcli.core.listener import Listener, Silent
from robustcli.core.machine import versions
from robustcli.core.rundir import RECORD_FILE, SEEDS_KIND, has_record
from robustcli.core.seeds import identity_seed
from robustcli.data.dataset import Sample
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.device import choose_device, device_name
from robustcli.evaluation.loader import Source, batch_stream
from robustcli.evaluation.look_up import EVALUATION_TASKS
from robustcli.evaluation.plan import Piece, parts_of
from robustcli.evaluation.record import RunRecord, read_record
from robustcli.models.scan.choice import choose_backend
from robustcli.tasks.base import Batch, Row, Task
from robustcli.transforms.base import Cell
from robustcli.transforms.registry import TransformCell
from robustcli.verification.recorded_inputs import (
    RecordedModels,
    VerifyConfig,
    find_images,
    find_transforms,
)
from robustcli.verification.row_comparison import (
    COMPARISONS,
    AnswerAgreement,
    ComparedBlock,
    DeviceKind,
)
from robustcli.verification.stored_rows import (
    RowBlock,
    StoredRows,
    check_rows,
    check_table,
    in_block,
)
from robustcli.verification.verification_result import Discrepancy, EvaluationCheck, Verification


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
    images = find_images(stored, recorded_models, config, check)
    cells = find_transforms(stored, config, check)
    check_rows(stored, images, check)
    blocks = _sample_blocks(stored, config, cells)
    models = recorded_models.loaded({block.model for block in blocks}, check)
    for model in models.values():
        model.to(device, record.precision)
    blocks = [block for block in blocks if block.model in models]
    check.sampled = [block.name for block in blocks]
    check.causes = _causes(record, device_name(device), models)
    _recompute(stored, blocks, models, cells, images, check, listener)
    check_table(run, record, check)
    return check


def _device_kind(device: str) -> DeviceKind:
    """The kind of a device from its type, or from its description in a record."""
    return "cpu" if device.startswith("cpu") else "mps" if device.startswith("mps") else "cuda"


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
            compared = ComparedBlock(rows[block], check.tolerance.value, AnswerAgreement())
            differences = COMPARISONS[record.task].compare(batch, predictors[name], compared)
            check.differences += [in_block(block, "predictions", d) for d in differences]
            check.agreement.add(compared.agreement)
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
            psnr_db = row["psnr_db"]
            if _is_same_psnr(psnr_db, measures.psnr_db) and row["changed"] == measures.changed:
                continue
            quantity, values = "PSNR (dB)", (str(psnr_db), str(measures.psnr_db))
        cell = batch.cell
        yield Discrepancy(
            "pixels", quantity, *values, None, cell.transform, cell.severity, image_id
        )


def _is_same_psnr(stored: Any, recomputed: float) -> bool:
    if stored is None or stored != stored:
        return recomputed != recomputed
    return float(stored) == recomputed or abs(float(stored) - recomputed) <= 1e-9 * abs(recomputed)


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
