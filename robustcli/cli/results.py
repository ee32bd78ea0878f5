"""Output of finished runs and of `--dry-run`, shared by commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import click

from robustcli.cli.study import current_invocation
from robustcli.cli.terminal import ConsoleListener, print_json, say_safely
from robustcli.core.errors import RobustError


class PrintablePlan(Protocol):
    """Forecast or plan of a command, for `--dry-run`."""

    def as_json(self) -> str:
        """The plan as a JSON object."""

    def as_text(self) -> str:
        """The plan as text of several lines."""


def show(run: Path, *, as_json: bool, quiet: bool, gates: bool = False) -> None:
    """Writes the report of `run` and prints its results; with `gates`, also results of gates."""
    from robustcli.reports.pages import write_page
    from robustcli.reports.render import report_page

    invocation = current_invocation()
    if invocation is not None:
        invocation.record(run)
    page = report_page(run)
    report = write_page(page, run)
    if as_json:
        print_document(str(run), results_document(run, gates=gates))
    else:
        say_safely(page.terminal)
        if gates:
            print_gates(run)
        if not quiet:
            say_safely(f"Report: {report}")


@contextmanager
def finished_seeds_on_error(*, as_json: bool, quiet: bool) -> Iterator[None]:
    """Context manager: if some seeds fail, shows the results of the finished seeds."""
    from robustcli.training.seed_runs import SeedsError

    try:
        yield
    except SeedsError as error:
        show(error.run, as_json=as_json, quiet=quiet)
        raise


def seed_error_printer(listener: ConsoleListener) -> Callable[[int, Exception], None]:
    """A callback that prints why a seed failed and stores the traceback of unexpected errors."""

    def print_error(seed: int, error: Exception) -> None:
        from robustcli.cli.failures import print_known, print_unexpected

        listener.stop()
        if isinstance(error, RobustError):
            print_known(error)
        else:
            print_unexpected(error)

    return print_error


def show_plan(plan: PrintablePlan, *, as_json: bool) -> None:
    """Prints the plan for `--dry-run`; the JSON of a study also contains its settings."""
    invocation = current_invocation()
    if not as_json:
        say_safely(plan.as_text())
    elif invocation is None:
        print_json(plan.as_json())
    else:
        document = {"settings": invocation.settings, "forecast": json.loads(plan.as_json())}
        print_document(f"run {invocation.number + 1}", document)


def print_document(name: str, document: Any) -> None:
    """Prints `document` as JSON; in a study, stores it by `name` for printing at the end."""
    invocation = current_invocation()
    if invocation is None:
        print_json(json.dumps(document, indent=1))
    else:
        invocation.documents[name] = document


def results_document(run: Path, *, gates: bool) -> Any:
    """Records of a run with a report; with gates, `{"results": records, "gates": gates}`."""
    from robustcli.evaluation.gates import read_gates

    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    if not gates:
        return results
    checked = read_gates(run)
    return {"results": results, "gates": checked and checked.model_dump(mode="json")}


def print_gates(run: Path) -> None:
    """Prints the number of passed gates of `run`; the error of the command lists failed ones."""
    from robustcli.evaluation.gates import read_gates

    checked = read_gates(run)
    if checked is not None:
        passed = sum(result.passed for result in checked.gates)
        click.echo(f"Gates: {passed} of {len(checked.gates)} passed; the report shows each.")
