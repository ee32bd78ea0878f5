"""`run.json`: what a run was made of. These Pydantic models are the file format."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import (
    ValidationError,
)

from robustcli.core.errors import UsageError
from robustcli.core.io import write_text
from robustcli.tasks.record import DatasetRecord, ModelRecord, Record, Split

SCHEMA_VERSION = 1
FILE_NAME = "run.json"


RecordT = TypeVar("RecordT", bound=Record)


class TransformRecord(Record):
    """One cell of the run's transform axis: a transform at one severity (0: its full range)."""

    name: str
    severity: int
    family: str
    geometric: bool
    parameters: dict[str, Any]
    assumed: bool


class RunRecord(Record):
    """All of `run.json`; `command` holds every command that worked on it, a line each.

    `task`, `grouping` (what a group is: patient, photo, image) and `split` (the part of the data
    that was evaluated) are written for segmenters only.
    """

    schema_version: int = SCHEMA_VERSION
    task: Literal["cls", "seg"] = "cls"
    command: str
    status: Literal["running", "complete", "partial", "failed"]
    created: datetime
    updated: datetime
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
    split: Split | None = None


def write_record(run: Path, record: RunRecord) -> None:
    """Writes `RUN/run.json` durably."""
    # Older versions refuse keys that they do not know; what they can read stays as it was.
    absent = {"task", "grouping", "split"} if record.task == "cls" else None
    write_text(run / FILE_NAME, record.model_dump_json(indent=2, exclude=absent) + "\n")


def read_record(run: Path) -> RunRecord:
    """The record of the run in directory `run`.

    Raises:
        UsageError: There is no run there, or its file is damaged or of another schema version.
    """
    path = run / FILE_NAME
    if not path.is_file():
        raise UsageError(
            f"`{run}` is not a run.",
            f"It holds no `{FILE_NAME}`.",
            "Name a folder that `--out` made.",
        )
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise UsageError(
            f"`{path}` cannot be read.",
            f"It does not fit schema version {SCHEMA_VERSION}: {error.errors()[0]['msg']} "
            f"at {'.'.join(str(part) for part in error.errors()[0]['loc'])}.",
            "Use the `robust` version that wrote it, or start a new run with another `--out`.",
        ) from error


def read_record_of(run: Path, kind: type[RecordT], what: str, command: str) -> RecordT:
    """The record in directory `run` of another kind of run than an evaluation.

    Args:
        run: The directory.
        kind: Its model.
        what: What it is the record of, in words.
        command: What makes such runs.

    Raises:
        UsageError: There is none, or its file is damaged or of another kind.
    """
    path = run / FILE_NAME
    if not path.is_file():
        raise UsageError(
            f"`{run}` is not a run.", f"It holds no `{FILE_NAME}`.", "Name a folder of `--out`."
        )
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"`{path}` is not the record of {what}.",
            f"{first['msg']} at {'.'.join(str(part) for part in first['loc'])}.",
            f"Name a folder that `{command}` made with this version.",
        ) from error
