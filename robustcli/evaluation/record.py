"""File format of `run.json` of an evaluation, as Pydantic models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from robustcli.core.rundir import BaseRunRecord, Record, RunKind, changed_fields
from robustcli.tasks.record import (
    DatasetRecord,
    EvaluatedPart,
    ModelRecord,
    RecordList,
    dataset_differences,
)


class TransformRecord(Record):
    """A transform at one severity (0: its full range)."""

    name: str
    severity: int
    family: str
    geometric: bool
    parameters: dict[str, Any]
    assumed: bool


class RunRecord(BaseRunRecord):
    """`run.json` of an evaluation.

    `grouping` is the kind of groups (patient, photo, image), for segmenters; `split` is the
    evaluated part of the data.
    """

    task: Literal["cls", "seg"] = "cls"
    status: Literal["running", "complete", "partial", "failed"]
    seed: int
    apply_at: Literal["original", "crop"]
    precision: Literal["fp32", "bf16", "fp16"]
    block_size: int
    dataset: DatasetRecord
    models: list[ModelRecord]
    transforms: list[TransformRecord]
    versions: dict[str, str]
    device: str
    grouping: str | None = None
    split: EvaluatedPart | None = None


# Settings that determine rows; device, versions, workers and batch size affect only rounding.
_FLAGS = {"seed": "`--seed`", "apply_at": "`--apply-at`", "precision": "`--precision`"}
_MODEL_FLAGS = {
    "builder": "`--model`",
    "weights_sha256": "the hash of the weights (`--weights`)",
    "arguments": "`--model-arg`",
    "preprocessing": "preprocessing (`--resize`, `--crop`, `--interpolation`, `--mean`, `--std`; "
    "for a segmenter: window, channels, threshold, overlap)",
    "untrained": "`--untrained`",
}


def _differences(old: RunRecord, new: RunRecord) -> Iterator[str]:
    options = "`--data`, `--per-class`, `--limit`, `--split`, `--seed`"
    yield from dataset_differences(old.dataset, new.dataset, options)
    yield from changed_fields(old, new, _FLAGS)
    old_models = {model.name: model for model in old.models}
    for model in new.models:
        if model.name in old_models:
            for text in changed_fields(old_models[model.name], model, _MODEL_FLAGS):
                yield f"Model `{model.name}`: {text}"
    parameters = {(t.name, t.severity): t.parameters for t in old.transforms}
    for cell in new.transforms:
        if parameters.get((cell.name, cell.severity), cell.parameters) != cell.parameters:
            yield f"The parameters of transform `{cell.name}` have changed."


def _kept_fields(old: RunRecord, new: RunRecord) -> dict[str, Any]:
    """Fields of the merged record: old models and transforms first, block size of the old run.

    The tolerance stays that of the old run (None in runs of old versions), so that no cell mixes
    rows with and without it.
    """
    names = {model.name for model in old.models}
    cells = {(t.name, t.severity) for t in old.transforms}
    return {
        "block_size": old.block_size,
        "dataset": new.dataset.model_copy(update={"tolerance": old.dataset.tolerance}),
        "models": [*old.models, *(m for m in new.models if m.name not in names)],
        "transforms": [
            *old.transforms,
            *(t for t in new.transforms if (t.name, t.severity) not in cells),
        ],
    }


EVALUATION = RunKind(
    RunRecord,
    "an evaluation",
    "robust eval",
    ("predictions", "inputs", "skipped", "sessions", "samples", "figures", "panels", "slurm"),
    (
        *("results.csv", "results.json", "report.md", "report.html"),
        *("gates.json", "parity.json"),
        *("statistics.json", "verdicts.csv", "classes.csv"),
    ),
    _differences,
    _kept_fields,
    interrupted="partial",
)
"""Definition of the run folders of `robust eval`."""


class CorruptionParity(Record):
    """Comparison of robust's own and the published corruption at one severity, as model inputs.

    `identical` of the `images` have equal pixels; `psnr_db` is the mean over the other images, None
    if all are identical.
    """

    transform: str
    severity: int
    model: str
    images: int
    identical: int
    psnr_db: float | None


PARITY = RecordList(
    CorruptionParity,
    "parity.json",
    "Remove the file and repeat the command: it compares them again.",
)


def read_record(run: Path) -> RunRecord:
    """The record of the evaluation in the folder `run`; see `RunKind.read`."""
    return EVALUATION.read(run)
