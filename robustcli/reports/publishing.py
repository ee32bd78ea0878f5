"""`robust publish`: sends a run to a tracker, or writes a model card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from robustcli.core.errors import UsageError
from robustcli.core.io import write_text
from robustcli.reports.hub_card import card_files, card_folder
from robustcli.reports.run_export import PublishConfig, RunExport, Target, read_run_export
from robustcli.reports.trackers import Sent, send

_SHOWN = 12
"""Largest number of parameters and of metrics in the text of a dry run; JSON has all."""


@dataclass(frozen=True)
class PublishResult:
    """What was sent or written, or would be in a dry run.

    Args:
        export: The exported data.
        target: The tracker, or `hub-card`.
        sent: The result of the tracker; None for a dry run or a card.
        files: Files of the card that were written, or would be, by path.
        dry_run: Whether nothing was sent or written.
        note: What was left out, and why; empty if nothing was.
    """

    export: RunExport
    target: Target
    sent: Sent | None
    files: dict[str, str]
    dry_run: bool
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The result as a dictionary, for JSON."""
        export = self.export
        return {
            "run": export.name,
            "to": self.target,
            "dry_run": self.dry_run,
            "key": export.key,
            "digest": export.digest,
            "partial": export.partial,
            "sent": None if self.sent is None else asdict(self.sent),
            "parameters": export.parameters,
            "metrics": export.metrics,
            "epochs": len(export.epochs),
            "files": self.files if self.target == "hub-card" else _sizes(export),
            "note": self.note,
        }

    def as_text(self) -> str:
        """The result as text, for a terminal."""
        export = self.export
        if self.target == "hub-card":
            begun = "Would write" if self.dry_run else "Wrote"
            lines = [f"{begun} {path}" for path in self.files]
            lines += [text for path, text in self.files.items() if self.dry_run and path == _CARD]
            return "\n".join([*lines, *([self.note] if self.note else [])])
        if self.sent is not None and self.sent.state == "unchanged":
            return (
                f"`{export.name}` is in {self.sent.place} already, as run {self.sent.run_id}; no "
                "data was sent."
            )
        count = (
            f"{len(export.parameters)} parameters, {len(export.metrics)} metrics, "
            + (f"{len(export.epochs)} epochs, " if export.epochs else "")
            + f"{len(_sizes(export))} files"
        )
        marked = " (marked as partial)" if export.partial else ""
        if self.sent is not None:
            return (
                f"`{export.name}`{marked} was {self.sent.state} in {self.sent.place} as run "
                f"{self.sent.run_id}: {count}."
            )
        return "\n".join([f"Would send `{export.name}`{marked}: {count}.", *self._everything()])

    def _everything(self) -> list[str]:
        export = self.export
        parameters = [f"  {name} = {value}" for name, value in export.parameters.items()]
        metrics = [f"  {name} = {value:.6g}" for name, value in export.metrics.items()]
        files = [f"  {name} ({size:,} bytes)" for name, size in _sizes(export).items()]
        return [
            *("Parameters:", *_some(parameters)),
            *("Metrics:", *_some(metrics)),
            *("Files:", *files),
        ]


_CARD = "README.md"


def _some(lines: list[str]) -> list[str]:
    count = len(lines) - _SHOWN
    note = [f"  ... and {count} more (`--json` lists all)"] if count > 0 else []
    return [*lines[:_SHOWN], *note]


def _sizes(export: RunExport) -> dict[str, int]:
    return {name: len(content) for name, content in export.files().items()}


_OF_TRACKERS = ("project", "tracking", "name", "pictures")
_OF_CARDS = ("out", "model", "dataset_id", "task_id", "dataset_revision", "source_url")


def _check_options(config: PublishConfig) -> None:
    """Raises UsageError if an option is set that does not apply to the destination."""
    is_card = config.destination == "hub-card"
    for name in _OF_TRACKERS if is_card else _OF_CARDS:
        if getattr(config, name) != getattr(PublishConfig, name):
            flag = "--no-pictures" if name == "pictures" else f"--{name.replace('_', '-')}"
            raise UsageError(
                f"`{flag}` cannot be used with `--to {config.destination}`.",
                "It is an option of trackers, and a model card is only written to a folder."
                if is_card
                else "It is an option of model cards; trackers get all results of the run.",
                "Omit it.",
            )
    if config.dataset_id is None and config.task_id != PublishConfig.task_id:
        raise UsageError(
            "`--task-id` cannot be used without `--dataset-id`.",
            "It is the task of that data set, and is only written to .eval_results.",
            "Add `--dataset-id ORG/NAME`, or omit it.",
        )


def publish(config: PublishConfig, say: Callable[[str], None] = lambda _: None) -> PublishResult:
    """Sends a run to a tracker, or writes its model card.

    Args:
        config: The settings.
        say: Receives messages on defaults that are used.

    Raises:
        UsageError: The run does not exist or cannot be read, it is partial, an option does not
            apply to the destination, or `--offline` forbids sending it.
        MachineError: The tracker's package is not installed.
        RunError: The tracker refused, or a file could not be written.
    """
    _check_options(config)
    export = read_run_export(
        config.run, partial=config.partial, pictures=config.pictures, rendered=not config.dry_run
    )
    if config.destination == "hub-card":
        return _card(export, config)
    sent = None if config.dry_run else send(export, config, say)
    return PublishResult(export, config.destination, sent, {}, config.dry_run)


def _card(export: RunExport, config: PublishConfig) -> PublishResult:
    files, out = card_files(export, config), card_folder(config)
    for path, text in () if config.dry_run else files.items():
        write_text(path, text)
    note = (
        ""
        if config.dataset_id
        else "No .eval_results files were written: they need the name of a benchmark data set on "
        "the Hub (`--dataset-id ORG/NAME`, and `--task-id`)."
    )
    named = {
        (path.relative_to(out).as_posix() if config.dry_run else str(path)): text
        for path, text in files.items()
    }
    return PublishResult(export, "hub-card", None, named, config.dry_run, note)
