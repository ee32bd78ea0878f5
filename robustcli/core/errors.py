"""Errors for the user, with three parts: what happened, why, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent

_RUN = "robust_run"


class RobustError(Exception):
    """An error meant for the user, never shown as a traceback.

    Args:
        what: What happened, naming the argument or file in backticks.
        why: What was expected and what came instead.
        todo: What to do next.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", todo: str = "") -> None:
        self.what, self.why, self.todo = what, why, todo
        super().__init__("\n".join(part for part in (what, why, todo) if part))


class RunError(RobustError):
    """The run failed; all finished parts are kept (exit code 1)."""


class UsageError(RobustError):
    """The command as typed cannot be carried out (exit code 2)."""

    exit_code = 2


class MachineError(RobustError):
    """The machine lacks something that the command needs (exit code 3)."""

    exit_code = 3


class GateError(RobustError):
    """A complete run violates a limit of `--fail-under` or `--fail-drop` (exit code 4).

    Args:
        run: The run folder.
    """

    exit_code = 4

    def __init__(self, what: str, why: str, todo: str, run: Path) -> None:
        super().__init__(what, why, todo)
        self.run = run


class CombinedUsageError(UsageError):
    """Several wrong settings.

    Args:
        errors: The error of each, at least two.
    """

    def __init__(self, errors: Sequence[UsageError]) -> None:
        listed = (f"{n}. {indent(str(error), '   ')[3:]}" for n, error in enumerate(errors, 1))
        super().__init__(f"{len(errors)} settings are wrong.", "\n".join(listed))
        self.errors = tuple(errors)


class UsageErrors:
    """Collects the errors of independent settings, so that one message shows all of them.

    `with errors:` around the lookup of each setting; `errors.check()` before the first use of the
    results. Other exceptions than UsageError leave the context.
    """

    def __init__(self) -> None:
        self._errors: dict[str, UsageError] = {}  # by message: two settings can have one cause

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, UsageError):
            return False
        errors = error.errors if isinstance(error, CombinedUsageError) else (error,)
        self._errors |= {str(error): error for error in errors}
        return True

    def check(self) -> None:
        """Raises the error of the only wrong setting, or a CombinedUsageError."""
        errors = list(self._errors.values())
        if errors:
            raise errors[0] if len(errors) == 1 else CombinedUsageError(errors)


_KINDS = {kind.__name__: kind for kind in (RobustError, RunError, UsageError, MachineError)}


def as_plain(error: RobustError) -> dict[str, str]:
    """`error` as a JSON-serialisable dictionary, for `raised_again` in another process."""
    kind = next(name for name in reversed(_KINDS) if isinstance(error, _KINDS[name]))
    return {"kind": kind, "what": error.what, "why": error.why, "todo": error.todo}


def raised_again(error: Mapping[str, str], sender: str = "") -> RobustError:
    """The error in the dictionary from `as_plain`; its message starts with `sender`."""
    return _KINDS[error["kind"]](sender + error["what"], error["why"], error["todo"])


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of the message of `error`, with at most `most` characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:most] if lines else type(error).__name__


def shortened_text(text: str, most: int = 200) -> str:
    """`text` from a file, shortened to `most` characters for a message."""
    return text if len(text) <= most else f"{text[: most - 4]} ..."


@contextmanager
def errors_of(run: Path) -> Iterator[None]:
    """Attaches the run folder `run` to exceptions that leave the context; see `run_of`."""
    try:
        yield
    except BaseException as error:
        if run_of(error) is None:
            setattr(error, _RUN, run)
        raise


@contextmanager
def located(where: str) -> Iterator[None]:
    """Adds the sentence `where` to errors that leave the context.

    It becomes part of the reason of a RunError, and a note of other errors.
    """
    try:
        yield
    except RunError as error:
        raise RunError(error.what, f"{where} {error.why}".strip(), error.todo) from error
    except Exception as error:
        error.add_note(where)
        raise


def run_of(error: BaseException) -> Path | None:
    """The run folder attached to `error` by `errors_of`; None without one."""
    run: Path | None = getattr(error, _RUN, None)
    return run
