"""Run folders: opening, continuing, refusing, discarding and closing them, for every command.

RUN/run.json            the record: settings and status of the run
RUN/.owner/000001.json  the process that works in the folder, see `ownership`
RUN/error-*.txt         tracebacks of errors that ended the run

A command describes its runs by a `RunKind`: the model of the record, the files of a run, the
settings that must be equal to continue a run, and the fields that a continued record keeps.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from robustcli.core.errors import UsageError, errors_of
from robustcli.core.io import (
    TEMPORARY_FILES,
    parse_json,
    remove_folder,
    remove_leftovers,
    write_text,
)
from robustcli.core.names import printable
from robustcli.core.ownership import Ownership, owned

RECORD_FILE = "run.json"
STUDY_FILE = "study.json"
"""The settings of a command that was called with a study file, see `cli.study`."""
SEEDS_KIND, FINETUNE_KIND = "seeds", "finetune"
"""`kind` in the records of folders with one run per seed, and with one training per mode."""
_EVALUATION = "evaluation"
"""Kind of the records that have no `kind`."""
ERROR_FILES = f"error-{'[0-9]' * 8}-{'[0-9]' * 6}-[0-9]*.txt"
"""Glob of the tracebacks in a run's folder: date, time and process, see `cli.failures`."""
_LONGEST_VALUE = 80  # characters of a setting in a message
_CONTEXT = 20  # characters before a difference of two long settings


class Record(BaseModel):
    """Base class of file formats; unknown keys are errors: newer files must not be misread."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _as_valid_text(cls, values: Any) -> Any:
        """Escapes paths that are not valid UTF-8, which JSON cannot contain."""
        if isinstance(values, dict):
            return {
                k: v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v
                for k, v in values.items()
            }
        return values


def _as_spelled_now(device: str) -> str:
    names = re.sub(r"\b1 threads\b", "1 thread", device).split(" and ")
    return " and ".join(dict.fromkeys(names))


DeviceName = Annotated[str, AfterValidator(_as_spelled_now)]
"""Description of a device, or of several (`machine.with_earlier`); earlier versions wrote `1
threads`, which must not count as another device."""


class BaseRunRecord(Record):
    """Fields of `run.json` for every command.

    `command` has one line per command that worked on the run. Subclasses define the values of
    `status`; all have `running`, `complete` and `failed`.
    """

    schema_version: int = 1
    command: str
    status: str
    created: datetime
    updated: datetime


RecordT = TypeVar("RecordT", bound=BaseRunRecord)


@dataclass
class Ending:
    """The final status of a run without an error; the command can change it."""

    status: str = "complete"


@dataclass(frozen=True)
class RunKind(Generic[RecordT]):
    """The run folders of one command.

    Args:
        record: Model of `run.json`.
        name: Name of such a run in messages, with its article: `a training run`.
        command: The command that makes such runs.
        folders: Folders of a run, relative to the run folder.
        files: Globs of files of a run besides its record and tracebacks.
        differences: Yields one sentence, with the option, per setting of a new record that
            contradicts the old one.
        kept_fields: Returns the fields of a continued record, from the old and the new one, besides
            `command` and `created`. Status `complete` means that there is nothing left to do.
        temporary: Folders that are useless after their process has ended.
        interrupted: The status after Ctrl+C.
        results: Globs of the first result files. A failed run without any of them can restart with
            other settings; without globs, no run can.
    """

    record: type[RecordT]
    name: str
    command: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    differences: Callable[[RecordT, RecordT], Iterator[str]]
    kept_fields: Callable[[RecordT, RecordT], dict[str, Any]] = lambda old, new: {}
    temporary: tuple[str, ...] = field(default=(), kw_only=True)
    interrupted: str = field(default="running", kw_only=True)
    results: tuple[str, ...] = field(default=(), kw_only=True)

    def read(self, run: Path) -> RecordT:
        """The record of the run in the folder `run`.

        Raises:
            UsageError: There is no run, or its record is damaged or of another kind of run.
        """
        path = run / RECORD_FILE
        if not path.is_file():
            raise UsageError(
                f"`{run}` is not a run.",
                f"It contains no `{RECORD_FILE}`."
                if run.exists()
                else "The folder does not exist.",
                "Pass a run folder, as created by `--out`.",
            )
        newest = self.record.model_fields["schema_version"].default
        try:
            record = self.record.model_validate_json(path.read_text(encoding="utf-8"))
            if record.schema_version > newest:
                raise _newer(
                    path,
                    f"Its format version is {record.schema_version}; the newest supported version "
                    f"is {newest}.",
                )
            return record
        except ValidationError as error:
            kind = self.record.model_fields.get("kind")
            refuse_other_kind(run, _EVALUATION if kind is None else kind.default, self.name)
            first = error.errors()[0]
            if first["type"] == "extra_forbidden" and _is_one_of(self.record, path):
                name = ".".join(map(str, first["loc"]))
                raise _newer(path, f"This version has no setting `{name}`.") from error
            raise UsageError(
                f"`{path}` is not the record of {self.name}.",
                f"{first['msg']} at {'.'.join(map(str, first['loc'])) or 'the top'}.",
                f"Pass a run folder of `{self.command}`, or use the version of `robust` that "
                "wrote this file.",
            ) from error

    def write(self, run: Path, record: RecordT) -> None:
        """Writes `RUN/run.json` durably."""
        write_text(run / RECORD_FILE, record.model_dump_json(indent=2) + "\n")

    def update(self, run: Path, **changes: Any) -> None:
        """Rewrites the record of `run` with `changes`."""
        changes = {**changes, "updated": datetime.now(UTC)}
        self.write(run, self.read(run).model_copy(update=changes))

    @contextmanager
    def held(self, run: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[Ownership]:
        """Creates and owns the folder `run`, and removes temporary files of killed processes.

        Attaches the folder to errors in the context (`errors.run_of`).

        Args:
            run: The folder.
            say: Receives a message if the test for another live process takes long.

        Raises:
            RunError: Another process works there, or the folder cannot be made.
            UsageError: The name of the folder is not valid UTF-8.
        """
        try:
            str(run).encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"`{printable(str(run))}` is not valid UTF-8.",
                "The libraries that write results accept only names in UTF-8.",
                "Choose another folder with `--out`.",
            ) from error
        with owned(run, say) as ownership, errors_of(run):
            for name in self.temporary:
                shutil.rmtree(run / name, ignore_errors=True)
            remove_leftovers(run.rglob(TEMPORARY_FILES))
            yield ownership

    def open(
        self, run: Path, new: RecordT, *, fresh: bool,
        further_differences: Callable[[RecordT], Iterator[str]] = lambda _: iter(()),
    ) -> RecordT:  # fmt: skip
        """Writes and returns the record of a new run, or of one that continues the run in `run`.

        A run with status `complete` after `kept_fields` is not changed. A failed run without
        results restarts if its settings differ, for example after an unreadable image was removed.

        Args:
            run: The folder, owned by this process.
            new: The record of a new run.
            fresh: Whether to discard an earlier run.
            further_differences: Further differences from the old run that are not in the records.

        Raises:
            UsageError: The folder holds a run of another kind, or one with other settings; the
                message names the first.
        """
        if fresh:
            self.discard(run)
        if has_record(run):
            new = self._continued(run, self.read(run), new, further_differences)
        if new.status != "complete":
            self.write(run, new)
        return new

    def _continued(
        self,
        run: Path,
        old: RecordT,
        new: RecordT,
        further_differences: Callable[[RecordT], Iterator[str]],
    ) -> RecordT:
        if self._restarts(run, [*self.differences(old, new), *further_differences(old)]):
            self.discard(run)
            return new
        commands = "\n".join(dict.fromkeys([*old.command.splitlines(), new.command]))
        kept_fields = {"command": commands, "created": old.created, **self.kept_fields(old, new)}
        return new.model_copy(update=kept_fields)

    def check_continues(
        self, run: Path, new: RecordT,
        further_differences: Callable[[RecordT], Iterator[str]] = lambda _: iter(()),
    ) -> None:  # fmt: skip
        """Raises UsageError if `open` would refuse the run in `run`.

        Nothing is written; `new` can lack parts that are not known yet, such as loaded models.
        """
        old = self.read(run)
        self._restarts(run, [*self.differences(old, new), *further_differences(old)])

    def _restarts(self, run: Path, differences: Sequence[str]) -> bool:
        """Whether a run without results restarts because of `differences` in its settings.

        Raises:
            UsageError: There are differences, and the run has results.
        """
        if differences and self.results and not any(any(run.glob(g)) for g in self.results):
            return True
        for difference in differences:
            raise UsageError(
                f"`{run}` contains {self.name} with other settings.",
                difference,
                "Use another `--out` (or omit it to get a separate folder), or discard the run "
                "with `--fresh`.",
            )
        return False

    def discard(self, run: Path) -> None:
        """Removes the files of a run, and no other files.

        Raises:
            RunError: Files remain.
        """
        for name in (*self.folders, *self.temporary):
            remove_folder(run / name)
        for path in self._own_files(run):
            path.unlink(missing_ok=True)

    def _own_files(self, run: Path) -> Iterator[Path]:
        for pattern in (RECORD_FILE, STUDY_FILE, ERROR_FILES, *self.files):
            yield from run.glob(pattern)

    def check_kept(self, run: Path, inputs: Iterable[tuple[str, str | Path | None]]) -> None:
        """Raises UsageError if `discard` would remove an input of the command that discards.

        Args:
            run: The folder.
            inputs: Pairs of an option and the file or folder that it names, if any.
        """
        folders = [run / name for name in (*self.folders, *self.temporary)]
        removed = [path.resolve() for path in (*folders, *self._own_files(run)) if path.exists()]
        home = run.resolve()
        for option, name in inputs:
            if name is None or not Path(name).expanduser().exists():
                continue
            place = Path(name).expanduser().resolve()
            # A data set can contain the run, and the run's folder the data set.
            of_run = option != "--data" and place.is_relative_to(home)
            if any(
                place.is_relative_to(path) or (of_run and path.is_relative_to(place))
                for path in removed
            ):
                raise UsageError(
                    f"`--fresh` would delete `{name}`, which `{option}` reads.",
                    f"It belongs to the run in `{run}`.",
                    "Use another `--out`, or move it to another folder first.",
                )

    @contextmanager
    def closing(self, run: Path) -> Iterator[Ending]:
        """Sets the status of `run` at the end: that of `Ending`, or `failed` after an error."""
        ending = Ending()
        try:
            yield ending
        except Exception:
            self.update(run, status="failed")
            raise
        except BaseException:
            self.update(run, status=self.interrupted)
            raise
        self.update(run, status=ending.status)


def _is_one_of(record: type[BaseRunRecord], path: Path) -> bool:
    """Whether the file `path` has all required fields of `record`."""
    keys = parse_json(path.read_text(encoding="utf-8")).keys()
    return all(name in keys for name, field in record.model_fields.items() if field.is_required())


_KINDS = (
    (_EVALUATION, "an evaluation", "Pass the folder to `robust report` or `robust explain`."),
    ("explanation", "an explanation", "Pass the folder to `robust report`."),
    ("train", "a training", "Pass the folder to `--model`, `robust predict` or `robust report`."),
    (
        SEEDS_KIND,
        "several seeds",
        "Pass the folder of one seed, such as `{}`; `--seeds` continues all of them.",
    ),
    (
        FINETUNE_KIND,
        "a fine-tuning",
        "Pass the folder of one of its modes, such as `{}`.",
    ),
)
"""`kind` of each record, what its folder contains, and what to do with the folder."""


def refuse_other_kind(run: Path, own: str, name: str) -> None:
    """Raises UsageError if `run` contains another known kind of run than `own`, called `name`."""
    head = _head(run / RECORD_FILE)
    kind = head.get("kind", _EVALUATION if "transforms" in head else None)
    for known, found, todo in _KINDS:
        if kind == known != own:
            if kind in (SEEDS_KIND, FINETUNE_KIND):
                todo = todo.format(run / _first_folder(head))
            raise UsageError(f"`{run}` contains {found}, not {name}.", "", todo)


def _first_folder(head: Mapping[str, Any]) -> str:
    """The folder of the first seed or mode in the record `head`."""
    if head["kind"] == SEEDS_KIND:
        return f"seed-{head.get('seed', 0)}"
    modes = head.get("modes")
    return str(modes[0]) if isinstance(modes, list) and modes else "freeze"


def _head(path: Path) -> dict[str, Any]:
    """The content of the record `path`; empty if it is damaged, which the caller reports."""
    with suppress(ValueError, OSError):
        head = parse_json(path.read_text(encoding="utf-8"))
        if isinstance(head, dict):
            return head
    return {}


def _newer(path: Path, why: str) -> UsageError:
    return UsageError(
        f"`{path}` was written by a newer version of `robust`.",
        why,
        "Update this installation: `pip install --upgrade robustcli`.",
    )


def has_record(run: Path) -> bool:
    """Whether the folder `run` contains a run of any kind."""
    return (run / RECORD_FILE).is_file()


def check_folder(run: Path) -> None:
    """Raises UsageError if the folder contains files but no run."""
    if run.is_file():
        raise UsageError(f"`{run}` is a file.", "", "Pass a folder with `--out`.")
    if not has_record(run) and run.is_dir() and any(p.name[0] != "." for p in run.iterdir()):
        raise UsageError(
            f"`{run}` is not empty and contains no run.", "", "Choose another folder with `--out`."
        )


def changed_fields(old: Record, new: Record, flags: Mapping[str, str]) -> Iterator[str]:
    """One sentence per different field, such as "`--lr` was 0.1, now it is 0.2".

    Args:
        old: The old record.
        new: The new record.
        flags: Maps fields to the beginning of the sentence, such as the option.
    """
    for name, flag in flags.items():
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            earlier, later = _shown(before, now)
            yield f"{flag} was {earlier}, now it is {later}."


def _shown(before: object, now: object) -> tuple[str, str]:
    """Two different values as short texts that differ."""
    if isinstance(before, Record) and isinstance(now, Record):
        fields = [key for key, value in before if getattr(now, key, None) != value]
        before, now = (
            " ".join(f"{key}={getattr(record, key, None)}" for key in fields)
            for record in (before, now)
        )
    texts = str(before), str(now)
    equal = next((n for n, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), 0)
    start = 0 if equal < _LONGEST_VALUE - 3 else equal - _CONTEXT
    first, second = (f"{'...' if start else ''}{text[start:]}" for text in texts)
    return _shortened(first), _shortened(second)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
