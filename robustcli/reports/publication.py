"""What of a run goes to a tracker or a model card, free of secrets and of paths of a home folder.

Photos, masks, predictions of single images, weights and tracebacks stay. What is sent: the record
as parameters, the results table as metrics, and the files of the report with their figures.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

import robustcli
from robustcli.core.errors import UsageError
from robustcli.core.names import file_name
from robustcli.core.rundir import has_record
from robustcli.evaluation.record import read_record
from robustcli.finetuning.record import read_finetune_record
from robustcli.reports.findings import read_findings
from robustcli.reports.finetuning_findings import read_finetuning
from robustcli.reports.pages import kind_of
from robustcli.reports.render import render
from robustcli.reports.training_findings import read_training
from robustcli.training.record import read_train_record

Kind = Literal["eval", "train", "finetune"]
_REPORT = ("report.md", "report.html", "results.csv", "results.json", "run.json")
_PICTURES = ("figures/**/*.png", "figures/**/*.svg")
_ID_COLUMNS = ("run", "mode", "model", "protocol", "dataset", "status", "transform", "severity")
_LONGEST = 500
"""Characters of a parameter; trackers cut or refuse longer ones."""

# What must not leave the machine.


_SECRETS = re.compile(
    r"\b(?:hf|sk|ghp|gho|github_pat|glpat|xox[bp]|wandb_v\d)[-_][A-Za-z0-9_-]{16,}"
    r"|\bAKIA[0-9A-Z]{16}\b"
)
_NAMED_SECRET = re.compile(
    r"((?:token|secret|password|passwd|api[-_]?key|access[-_]?key)[\"']?\s*[=:]\s*[\"']?)"
    r"[^\s\"'&]+",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(\w://)[^/\s:@]+:[^/\s@]+@")
_SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
_HOMES = re.compile(
    r"(?<![A-Za-z0-9+/=.~_-])(?:/(?:home|Users)/[^/\s\"'`<>:]+|/root(?![\w.-])"
    r"|[A-Za-z]:[\\/]+Users[\\/]+[^\\/\s\"'`<>:]+)"
)
_HIDDEN = "***"


class Redactor:
    """Takes secrets and private paths out of texts.

    Args:
        home: The user's home folder; None for that of this process.
        environment: Whose values under names such as `HF_TOKEN` are secrets; None for this
            process's.
    """

    def __init__(
        self, home: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        variables = os.environ if environment is None else environment
        secrets = {
            value
            for name, value in variables.items()
            if _SECRET_VARIABLE.search(name) and len(value) >= 8
        }
        self._secrets = sorted(secrets, key=len, reverse=True)
        package = Path(robustcli.__file__).parent
        home = (home or Path.home()).absolute()
        places = {str(Path.cwd()): "", str(package.parent): "", str(home): "~"}
        self._places = sorted(places.items(), key=lambda pair: len(pair[0]), reverse=True)

    def text(self, text: str) -> str:
        """`text` with paths below this folder made relative, homes as `~`, and secrets hidden."""
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        text = _SECRETS.sub(_HIDDEN, text)
        text = _NAMED_SECRET.sub(rf"\g<1>{_HIDDEN}", text)
        text = _IN_URL.sub(rf"\g<1>{_HIDDEN}@", text)
        for place, shown in self._places:
            if len(place) > 1:
                start = rf"(?<![\w.~+/=-]){re.escape(place)}"
                text = re.sub(rf"{start}[\\/]", f"{shown}/" if shown else "", text)
                text = re.sub(rf"{start}(?![\w.-])", shown or ".", text)
        return _HOMES.sub("~", text)

    def path(self, value: str) -> str:
        """`value`, which may be a path: an absolute one of elsewhere keeps its last part."""
        cleaned = self.text(value)
        absolute = re.match(r"(?:/|[A-Za-z]:[\\/]).*[\\/]([^\\/]+)[\\/]?$", cleaned)
        return f".../{absolute[1]}" if absolute else cleaned

    def command(self, command: str) -> str:
        """A recorded command, every word of it cleaned as a path."""
        lines = []
        for line in command.splitlines():
            try:
                words = shlex.split(line)
            except ValueError:
                words = line.split()
            lines.append(" ".join(self._word(word) for word in words))
        return "\n".join(lines)

    def _word(self, word: str) -> str:
        option, sign, value = word.partition("=")
        if sign and option.startswith("-"):
            return self.text(f"{option}={self.path(value)}")
        return self.path(word)

    def value(self, value: Any) -> Any:
        """`value` of a record, with every text in it cleaned as a path."""
        if isinstance(value, str):
            return self.path(value)
        if isinstance(value, Mapping):
            return {self.path(str(key)): self.value(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(one) for one in value]
        return value


# What is sent.


@dataclass(frozen=True)
class Publication:
    """A run as a tracker gets it.

    Args:
        run: Its folder.
        kind: Which command made it.
        key: Names the run: the same however far it has come, and however often it is published.
        digest: SHA-256 of its record and of all of its rows: another one wherever a number of the
            run is another one.
        partial: Whether something of it is missing.
        record: `run.json`, cleaned.
        table: `results.csv`.
        history: Of a training, a line per epoch; empty for other runs.
        texts: Files of the report as text, cleaned, by their path in the run.
        pictures: Figures, by their path in the run.
    """

    run: Path
    kind: Kind
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
        """What the run is called: its folder."""
        return self.run.resolve().name

    @cached_property
    def parameters(self) -> dict[str, str]:
        """The record, flat, with the digests and the version of the code that published it."""
        found = {
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
            found.setdefault(name, text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}...")
        return found

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Every finite number of the results table, as `model/transform/severity/number`.

        Transforms at their full range have no severity in the name; trainings have the model alone,
        fine-tunings the mode.
        """
        found: dict[str, float] = {}
        for line in self.table.to_dict("records"):
            prefix = "/".join(_prefix({str(name): value for name, value in line.items()}))
            for name, value in line.items():
                if name in _ID_COLUMNS or isinstance(value, str | bool):
                    continue
                if value is not None and math.isfinite(value):
                    found[f"{prefix}/{name}"] = float(value)
        return found

    @cached_property
    def epochs(self) -> list[tuple[int, dict[str, float]]]:
        """Of a training: each epoch with its numbers, as `epoch/number`."""
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
        """The files that are sent, by their path in the run."""
        texts = {name: text.encode() for name, text in self.texts.items()}
        return texts | {name: path.read_bytes() for name, path in self.pictures.items()}


def _prefix(line: Mapping[str, Any]) -> Iterator[str]:
    yield file_name(str(line.get("mode") or line.get("model")))
    if "transform" in line:
        yield str(line["transform"])
        if int(line["severity"]):
            yield f"severity-{int(line['severity'])}"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a record by their path; models and transforms by their names."""
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from _flat(one, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        for number, one in enumerate(value):
            name = file_name(str(one.get("name", number)))
            severity = f"-severity-{one['severity']}" if one.get("severity") else ""
            yield from _flat(one, f"{prefix}.{name}{severity}")
    elif value is not None and value not in ({}, []):
        yield prefix, value


def code_digest() -> str:
    """SHA-256 (hex) over the sources of this program, in the order of their paths."""
    package = Path(robustcli.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


# From a folder to what is sent.


def read_publication(
    run: Path, *, partial: bool = False, pictures: bool = True, rendered: bool = True
) -> Publication:
    """The run in the folder `run`, ready to be sent.

    Args:
        run: Of an evaluation, a training or a fine-tuning.
        partial: Whether a run that is not complete may be sent; it is marked.
        pictures: Whether figures go along, and `report.html`, which holds them.
        rendered: Whether the report is rendered anew first; else its files are taken as they are.

    Raises:
        UsageError: There is no readable run, or it is partial and `partial` does not allow it.
        RunError: The report could not be written.
    """
    task = kind_of(run)
    if task == "explanation":
        raise UsageError(
            f"`{run}` is an explanation.",
            "Trackers and the Hub take the numbers of evaluations, trainings and fine-tunings.",
            "Pass on its `report.html`, which is one self-contained file.",
        )
    kind: Kind = "train" if task == "train" else "finetune" if task == "finetune" else "eval"
    record, missing = _record_and_missing(run, kind)
    if missing and not partial:
        raise UsageError(
            f"`{run}` is partial: {missing}.",
            "Its numbers are not those of the run that was asked for.",
            "Repeat the command that made it, which computes the rest, or publish it as it is, "
            "marked, with `--partial`.",
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
    return Publication(
        run=run,
        kind=kind,
        key=run_key(record),
        digest=run_digest(run, record),
        partial=bool(missing),
        record=cleaned,
        table=pd.read_csv(run / "results.csv"),
        history=pd.read_csv(history) if history.is_file() else pd.DataFrame(),
        texts=texts,
        pictures=_pictures(run) if pictures else {},
    )


def _record_and_missing(run: Path, kind: Kind) -> tuple[dict[str, Any], str]:
    """The record as JSON, and what the run lacks, in words; empty for nothing."""
    if kind == "train":
        training = read_training(run)
        lacks = f"its status is `{training.record.status}`" if training.is_partial else ""
        lacks = lacks or ("" if training.test else "its weights were not evaluated yet")
        return read_train_record(run).model_dump(mode="json"), lacks
    if kind == "finetune":
        finetuning = read_finetuning(run)
        lacks = f"its status is `{finetuning.record.status}`" if finetuning.is_partial else ""
        lacks = lacks or ("" if finetuning.measured else "no mode was evaluated yet")
        return read_finetune_record(run).model_dump(mode="json"), lacks
    findings = read_findings(run)
    return read_record(run).model_dump(mode="json"), (
        findings.progress if findings.is_partial else ""
    )


def _pictures(run: Path) -> dict[str, Path]:
    paths = sorted(path for pattern in _PICTURES for path in run.glob(pattern))
    return {path.relative_to(run).as_posix(): path for path in paths}


def run_key(record: Mapping[str, Any]) -> str:
    """16 hex digits that stay the same while a run is continued: when it began, and on what."""
    dataset = record["dataset"]
    kind = record.get("kind", record.get("task"))
    known = [kind, record["created"], record["seed"], dataset["digest"], dataset.get("contents")]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


_ELSEWHERE = ("command", "updated", "status")
"""Fields of a record that say nothing of its numbers."""


def run_digest(run: Path, record: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what the run was made of, without where that lay, and of all of its rows."""
    digest = hashlib.sha256(json.dumps(_identity(record), sort_keys=True).encode())
    for path in sorted(run.rglob("*.parquet")):
        relative = path.relative_to(run)
        if "predictions" in relative.parts:
            digest.update(f"{relative.as_posix()}\0".encode() + path.read_bytes())
    if has_record(run / "test") and (run / "metrics.csv").is_file():
        digest.update((run / "metrics.csv").read_bytes())
    return digest.hexdigest()


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in record.items() if name not in _ELSEWHERE}
    kept["dataset"] = {k: v for k, v in record["dataset"].items() if k != "location"}
    if "models" in kept:
        kept["models"] = [
            {k: v for k, v in model.items() if k != "weights"} for model in kept["models"]
        ]
    return kept
