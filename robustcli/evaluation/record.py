"""Files of an evaluation besides its rows, as Pydantic models: run.json, sessions, parity.json.

Timings are in `RUN/sessions`, one file per process that worked on the run, and not in the rows, so
that an interrupted and continued run has the same rows as any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from robustcli.core.io import reading, write_text
from robustcli.core.names import counted
from robustcli.core.rundir import BaseRunRecord, DeviceName, Record, RunKind, changed_fields
from robustcli.tasks.record import (
    DatasetRecord,
    EvaluatedPart,
    ModelCost,
    ModelRecord,
    RecordList,
    dataset_differences,
)
from robustcli.transforms.registry import TransformCell


class TransformRecord(Record):
    """A transform at one severity (0: its full range)."""

    name: str
    severity: int
    family: str
    geometric: bool
    parameters: dict[str, Any]
    assumed: bool


def transform_record(cell: TransformCell) -> TransformRecord:
    """The entry of one transform at one severity in `run.json`."""
    transform = cell.transform
    return TransformRecord(
        name=transform.name,
        severity=cell.severity,
        family=transform.family,
        geometric=transform.geometric,
        parameters=transform.parameters(cell.severity),
        assumed=transform.assumed,
    )


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
    device: DeviceName
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
            yield from old_models[model.name].code_differences(model)
    parameters = {(t.name, t.severity): t.parameters for t in old.transforms}
    for cell in new.transforms:
        if parameters.get((cell.name, cell.severity), cell.parameters) != cell.parameters:
            yield f"The parameters of transform `{cell.name}` have changed."


def _kept_fields(old: RunRecord, new: RunRecord) -> dict[str, Any]:
    """Fields of the merged record: old models and transforms first, block size of the old run.

    The tolerance stays that of the old run (None in runs of old versions), so that no cell mixes
    rows with and without it. Versions and device change only if rows are computed.
    """
    names = {model.name for model in old.models}
    cells = {(t.name, t.severity) for t in old.transforms}
    return {
        "block_size": old.block_size,
        "versions": old.versions,
        "device": old.device,
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


def read_record(run: Path) -> RunRecord:
    """The record of the evaluation in the folder `run`; see `RunKind.read`."""
    return EVALUATION.read(run)


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


# Sessions: time and resources of a run.


class DeviceUse(Record):
    """Resource use of a CUDA device, from NVML and torch; None if unknown."""

    peak_memory_bytes: int
    utilisation_percent: float | None
    energy_joules: float | None


class Session(Record):
    """Time and resources of one process."""

    started: datetime
    seconds: float
    waiting_seconds: float
    device: DeviceName
    threads: int
    batch_size: int
    models: dict[str, ModelCost]
    device_use: DeviceUse | None = None


def write_session(run: Path, identity: str, session: Session) -> None:
    """Writes `RUN/sessions/<identity>.json` durably."""
    write_text(run / "sessions" / f"{identity}.json", session.model_dump_json(indent=2) + "\n")


def read_sessions(run: Path) -> list[Session]:
    """All sessions of the run, oldest first."""
    sessions = []
    for file in (run / "sessions").glob("*.json"):
        remedy = "Remove the file: the report is then written without the costs of this session."
        with reading(file, remedy):
            sessions.append(Session.model_validate_json(file.read_text(encoding="utf-8")))
    return sorted(sessions, key=lambda session: session.started)


@dataclass(frozen=True)
class Speed:
    """Speed of one model: images, seconds, and images per second (None without forward passes)."""

    model: str
    images: int
    seconds: float
    images_per_second: float | None


@dataclass(frozen=True)
class Costs:
    """The costs of a run, summed over its sessions.

    `seconds` is the sum of the times of all sessions, `waiting_share` is the share of it in which
    models waited for images (None if `seconds` is 0). `devices` are the distinct devices with
    threads and batch size; `device` is None if no session used CUDA.
    """

    sessions: int
    seconds: float
    waiting_share: float | None
    devices: tuple[str, ...]
    device: DeviceUse | None


def speed(sessions: Sequence[Session], model: str) -> Speed:
    """Speed of `model`: number of images divided by the seconds of its forward passes."""
    costs = [session.models[model] for session in sessions if model in session.models]
    images, seconds = sum(cost.images for cost in costs), sum(cost.seconds for cost in costs)
    return Speed(model, images, seconds, images / seconds if images and seconds else None)


def costs(sessions: Sequence[Session]) -> Costs:
    """Sums the costs of `sessions`."""
    seconds = sum(session.seconds for session in sessions)
    waiting = sum(session.waiting_seconds for session in sessions)
    return Costs(
        len(sessions),
        seconds,
        waiting / seconds if seconds else None,
        tuple(
            dict.fromkeys(
                f"{session.device}, {counted(session.threads, 'thread')}, "
                f"batch size {session.batch_size}"
                for session in sessions
            )
        ),
        _device_use(sessions),
    )


def _device_use(sessions: Sequence[Session]) -> DeviceUse | None:
    used = [(session.seconds, session.device_use) for session in sessions if session.device_use]
    if not used:
        return None
    energies = [use.energy_joules for _, use in used if use.energy_joules is not None]
    percents = [
        (s, use.utilisation_percent) for s, use in used if use.utilisation_percent is not None
    ]
    seconds = sum(seconds for seconds, _ in percents)
    return DeviceUse(
        peak_memory_bytes=max(use.peak_memory_bytes for _, use in used),
        utilisation_percent=sum(s * p for s, p in percents) / seconds if seconds else None,
        energy_joules=sum(energies) if energies else None,
    )
