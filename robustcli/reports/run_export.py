"""The data of a run for a tracker or a model card, without secrets and home paths.

Photos, masks, predictions of single images, weights and tracebacks are not sent. The record is sent
as parameters, the results table as metrics, and the report as files with their figures.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import pandas as pd

import robustcli
from robustcli.core.errors import UsageError
from robustcli.core.io import read_csv
from robustcli.core.names import file_name
from robustcli.core.rundir import has_record
from robustcli.reports.findings import read_findings
from robustcli.reports.finetuning_findings import read_finetuning
from robustcli.reports.pages import run_kind
from robustcli.reports.redaction import Redactor
from robustcli.reports.render import render
from robustcli.reports.training_findings import read_training
from robustcli.training.record import read_seeds_record

Target = Literal["mlflow", "wandb", "trackio", "hub-card"]
ExportKind = Literal["eval", "train", "finetune"]
_REPORT = ("report.md", "report.html", "results.csv", "results.json", "run.json")
_PICTURES = ("figures/**/*.png", "figures/**/*.svg")
_LINK = re.compile(r"\]\((figures/[^)\s]+)\)")
_NAMES = ("run", "mode", "model", "protocol", "dataset", "status", "transform", "recipe")
_ID_COLUMNS = (*_NAMES, "severity", "seed")
_LONGEST = 500
"""Largest length of a parameter in characters; trackers cut or refuse longer ones."""


@dataclass(frozen=True)
class PublishConfig:
    """Settings of `robust publish`; its `--help` describes them."""

    run: Path
    destination: Target
    project: str | None = None
    tracking: str | None = None
    name: str | None = None
    partial: bool = False
    pictures: bool = True
    out: Path | None = None
    model: str | None = None
    dataset_id: str | None = None
    task_id: str = "default"
    dataset_revision: str | None = None
    source_url: str | None = None
    dry_run: bool = False
    offline: bool = False


@dataclass(frozen=True)
class RunExport:
    """A run in the form in which it is sent to a tracker.

    Args:
        run: Folder of the run.
        kind: The command that created the run.
        key: Identifies the run; unchanged when it is resumed or published again.
        digest: SHA-256 of the record and of all rows; changes with any number of the run.
        partial: Whether the run is incomplete.
        record: `run.json`, cleaned.
        table: `results.csv`.
        history: A row per epoch of a training; empty for other runs.
        texts: Text files of the report, cleaned, by their path in the run.
        pictures: Figures, by their path in the run.
    """

    run: Path
    kind: ExportKind
    key: str
    digest: str
    partial: bool
    record: dict[str, Any]
    table: pd.DataFrame
    history: pd.DataFrame
    texts: dict[str, str]
    pictures: dict[str, Path]

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.run.resolve().name

    @cached_property
    def parameters(self) -> dict[str, str]:
        """The record, flattened, with the digests and the version of the publishing code."""
        parameters = {
            "kind": self.kind,
            "run": self.name,
            "partial": str(self.partial).lower(),
            "run_key": self.key,
            "run_digest": self.digest,
            "publisher.version": robustcli.__version__,
            "publisher.code_sha256": code_digest(),
        }
        for name, value in _flat(self.record):
            text = value if isinstance(value, str) else json.dumps(value)
            parameters.setdefault(
                name, text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
            )
        return parameters

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Every finite number of the results table, as `model/transform/severity/number`.

        Transforms at their full range have no severity in the name; for trainings the name contains
        only the model, for fine-tunings the mode.
        """
        metrics: dict[str, float] = {}
        for line in self.table.to_dict("records"):
            prefix = "/".join(_prefix({str(name): value for name, value in line.items()}))
            for name, value in line.items():
                if name in _ID_COLUMNS or isinstance(value, str | bool):
                    continue
                if value is not None and math.isfinite(value):
                    metrics[f"{prefix}/{name}"] = float(value)
        return metrics

    @cached_property
    def epochs(self) -> list[tuple[int, dict[str, float]]]:
        """Each epoch of a training with its numbers, as `epoch/number`."""
        lines = []
        for line in self.history.to_dict("records"):
            numbers = {
                f"epoch/{name}": float(value)
                for name, value in line.items()
                if name != "epoch" and math.isfinite(value)
            }
            lines.append((int(line["epoch"]), numbers))
        return lines

    def files(self) -> dict[str, bytes]:
        """The contents of the files that are sent, by their path in the run."""
        texts = {name: text.encode() for name, text in self.texts.items()}
        return texts | {name: path.read_bytes() for name, path in self.pictures.items()}


def _prefix(line: Mapping[str, Any]) -> Iterator[str]:
    yield file_name(str(line.get("mode") or line.get("model")))
    if "transform" in line:
        yield str(line["transform"])
        if int(line["severity"]):
            yield f"severity-{int(line['severity'])}"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a record by dotted path; models and transforms by their names."""
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _flat(entry, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
        for number, entry in enumerate(value):
            name = file_name(str(entry.get("name", number)))
            severity = f"-severity-{entry['severity']}" if entry.get("severity") else ""
            yield from _flat(entry, f"{prefix}.{name}{severity}")
    elif value is not None and value not in ({}, []):
        yield prefix, value


def code_digest() -> str:
    """SHA-256 (hex) over the sources of this program, in the order of their paths."""
    package = Path(robustcli.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


# From a folder to the exported data.


def read_run_export(
    run: Path, *, partial: bool = False, pictures: bool = True, rendered: bool = True
) -> RunExport:
    """The run in the folder `run`, ready to be sent.

    Args:
        run: Folder of an evaluation, a training or a fine-tuning.
        partial: Whether an incomplete run may be sent; it is marked.
        pictures: Whether figures are included, and `report.html`, which contains them.
        rendered: Whether to render the report first; else its existing files are used.

    Raises:
        UsageError: The run does not exist or cannot be read, or it is incomplete and `partial` is
            False.
        RunError: The report could not be written.
    """
    task = run_kind(run)
    if task == "explanation":
        raise UsageError(
            f"`{run}` is an explanation.",
            "Only evaluations, trainings and fine-tunings can be sent to trackers and the Hub.",
            "Share its `report.html`, which is one self-contained file.",
        )
    if task == "seeds":
        folders = list(read_seeds_record(run).folders(run).values())
        raise UsageError(
            f"`{run}` contains {len(folders)} runs, one for each seed.",
            "Only single runs, with their weights or curves, can be sent to trackers and the Hub.",
            f"Publish one of them, such as `{folders[0]}`, and share `{run / 'report.html'}`, "
            "which contains the mean over seeds with its interval.",
        )
    kind: ExportKind = "train" if task == "train" else "finetune" if task == "finetune" else "eval"
    record, missing = _record_and_missing(run, kind)
    if missing and not partial:
        raise UsageError(
            f"`{run}` is partial: {missing}.",
            "Its scores are not those of the complete run.",
            "Repeat the command that created it, which computes the rest, or publish it with "
            "`--partial`, which marks it.",
        )
    if rendered or not (run / "results.csv").is_file():
        render(run)
    redactor = Redactor()
    cleaned = redactor.value(record | {"command": ""})
    cleaned["command"] = redactor.command(str(record["command"]))
    names = [name for name in _REPORT if pictures or name != "report.html"]
    texts = {
        name: redactor.text((run / name).read_text(encoding="utf-8"))
        for name in names
        if (run / name).is_file() and name != "run.json"
    }
    texts["run.json"] = json.dumps(cleaned, indent=2) + "\n"
    history = run / "metrics.csv"
    return RunExport(
        run=run,
        kind=kind,
        key=run_key(record),
        digest=run_digest(run, record),
        partial=bool(missing),
        record=cleaned,
        table=read_csv(run / "results.csv", names=_NAMES),
        history=read_csv(history) if history.is_file() else pd.DataFrame(),
        texts=texts,
        pictures=_pictures(run) if pictures else {},
    )


def _record_and_missing(run: Path, kind: ExportKind) -> tuple[dict[str, Any], str]:
    """The record as JSON, and what the run lacks, as text; empty if complete."""
    if kind == "train":
        training = read_training(run)
        lacks = f"its status is `{training.record.status}`" if training.is_partial else ""
        lacks = lacks or ("" if training.test else "its weights were not evaluated yet")
        return training.record.model_dump(mode="json"), lacks
    if kind == "finetune":
        finetuning = read_finetuning(run)
        lacks = f"its status is `{finetuning.record.status}`" if finetuning.is_partial else ""
        lacks = lacks or ("" if finetuning.measured else "no mode was evaluated yet")
        return finetuning.record.model_dump(mode="json"), lacks
    findings = read_findings(run)
    lacks = findings.progress if findings.is_partial else ""
    return findings.record.model_dump(mode="json"), lacks


def _pictures(run: Path) -> dict[str, Path]:
    """The figures that the report shows; others are of earlier reports."""
    report = run / "report.md"
    links = _LINK.findall(report.read_text(encoding="utf-8")) if report.is_file() else ()
    shown = {(run / unquote(link)).with_suffix("") for link in links}
    paths = sorted(path for pattern in _PICTURES for path in run.glob(pattern))
    return {
        path.relative_to(run).as_posix(): path for path in paths if path.with_suffix("") in shown
    }


def run_key(record: Mapping[str, Any]) -> str:
    """16 hex digits that do not change when a run is resumed: of its start time and data."""
    dataset = record["dataset"]
    kind = record.get("kind", record.get("task"))
    known = [kind, record["created"], record["seed"], dataset["digest"], dataset.get("contents")]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


_ELSEWHERE = ("command", "updated", "status")
"""Fields of a record that do not affect its numbers."""
_LATER = ("multiply_adds",)
"""Fields that runs of older versions lack; without a value they do not enter the digest."""


def run_digest(run: Path, record: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the run's record without paths, and of all of its rows."""
    digest = hashlib.sha256(json.dumps(_identity(record), sort_keys=True).encode())
    for path in sorted(run.rglob("*.parquet")):
        relative = path.relative_to(run)
        if "predictions" in relative.parts:
            digest.update(f"{relative.as_posix()}\0".encode() + path.read_bytes())
    if has_record(run / "test") and (run / "metrics.csv").is_file():
        digest.update((run / "metrics.csv").read_bytes())
    return digest.hexdigest()


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    identity = {
        name: value
        for name, value in record.items()
        if name not in _ELSEWHERE and not (name in _LATER and value is None)
    }
    identity["dataset"] = {k: v for k, v in record["dataset"].items() if k != "location"}
    if "models" in identity:
        identity["models"] = [
            {k: v for k, v in model.items() if k != "weights"} for model in identity["models"]
        ]
    return identity
