"""`robust report`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from robustcli.cli.results import print_gates, results_document
from robustcli.cli.shared_options import FILE, as_json, gates, quiet
from robustcli.cli.stored_places import PlacesCommand, RunPlace
from robustcli.cli.study import joined_gates
from robustcli.cli.terminal import say_safely
from robustcli.core.errors import GateError, UsageError

# Equal to `reports.render.REPORT_FORMATS`, which is imported late so that `--help` is fast.
DOCUMENT_FORMATS = ("latex", "csv", "json", "markdown", "html")


@click.command("report", cls=PlacesCommand)
@click.argument("runs", nargs=-1, required=True, type=RunPlace("read"))
@click.option(
    "--out",
    type=RunPlace(of_run=False),
    help="Write the report of one run into this folder, not into the run; of several trainings, "
    "only one report over all.  [default: the folder of each run; for several trainings also "
    "runs/report-HASH]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(DOCUMENT_FORMATS),
    help="Print one document of this format instead of the table: LaTeX tables (booktabs), all "
    "numbers as CSV or JSON, or the complete report.",
)
@click.option("--file", type=FILE, help="Write the document of --format into this file.")
@click.option(
    "--html-samples",
    type=click.IntRange(min=0),
    help="Maximum number of photos per cell in report.html, from those that the run stored; 0 for "
    "none.  [default: 6]",
)
@gates
@as_json
@quiet
def command(
    runs: tuple[Path, ...], out: Path | None, form: str | None, file: Path | None,
    html_samples: int | None, fail_under: tuple[str, ...], fail_drop: tuple[str, ...],
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Write the reports of RUNS again from their files, without torch and without the images.

    For several trainings of one task, also write a report over all of them: scores, costs and
    tests.
    """
    from robustcli.reports.pages import run_kind, write_page
    from robustcli.reports.render import report_page
    from robustcli.reports.zoo_page import zoo_report

    runs = tuple({run.resolve(): run for run in runs}.values())  # each once
    gated = bool(fail_under or fail_drop)
    failures = _failed_gates(runs, out, fail_under, fail_drop)
    # The report of several seeds links to those in their folders: `--out` is for one over them.
    zoo = out is not None and (len(runs) > 1 or run_kind(runs[0]) == "seeds")
    if zoo and html_samples is not None:
        raise UsageError(
            "`--html-samples` has no effect on a report over several trainings.",
            "It contains no photos; those of each training do.",
            "Omit `--html-samples`, or omit `--out` to write the report of each training.",
        )
    if form is not None or file is not None:
        _print_document(runs, out, form, file, html_samples, zoo=zoo, as_json=as_json, quiet=quiet)
    else:
        terminal, reports = [], []
        for run in () if zoo else runs:
            page = report_page(run, out)
            reports.append(write_page(page, out or run, html_samples))
            terminal.append(page.terminal)
        over_all = (out if zoo else None) or _folder_over_all(runs)
        if over_all is not None:
            page = zoo_report(runs, over_all)
            reports.append(write_page(page, over_all))
            terminal.append(page.terminal)
        folders = [report.parent for report in reports]
        if as_json:
            documents = {str(folder): results_document(folder, gates=gated) for folder in folders}
            click.echo(json.dumps(documents, indent=2))
        else:
            for folder, report, text in zip(folders, reports, terminal, strict=True):
                say_safely(text)
                if gated:
                    print_gates(folder)
                if not quiet:
                    say_safely(f"Report: {report}")
    if failures:
        raise joined_gates(failures)


def _folder_over_all(runs: Sequence[Path]) -> Path | None:
    """Default folder of the report over all `runs`; None if the runs get no common report.

    Prints the folder, or why trainings get no common report.
    """
    from robustcli.reports.pages import run_kind
    from robustcli.reports.zoo_page import default_folder
    from robustcli.training.record import read_train_record

    distinct = {run.resolve() for run in runs}
    if len(distinct) < 2 or any(run_kind(run) != "train" for run in runs):
        return None
    if len({read_train_record(run).task for run in runs}) > 1:
        click.echo(
            "No report over all runs: the trainings are of classifiers and of segmenters, which "
            "have different scores.",
            err=True,
        )
        return None
    folder = default_folder(runs)
    click.echo(
        f"`--out` is not set: the report over all {len(distinct)} trainings is written to "
        f"{folder}.",
        err=True,
    )
    return folder


def _failed_gates(
    runs: Sequence[Path], out: Path | None, fail_under: Sequence[str], fail_drop: Sequence[str]
) -> list[GateError]:
    """Errors of the runs that break a gate; every gate must apply to every run."""
    from robustcli.evaluation.gates import check_run, gate_error, judge, parse_gates
    from robustcli.reports.pages import run_kind

    gates = parse_gates(fail_under, fail_drop)
    if not gates:
        return []
    if out is not None:
        raise UsageError(
            f"`{gates[0]}` and `--out` cannot be used together.",
            "The results of gates are stored in the run and are part of its report.",
            "Omit `--out`.",
        )
    for run in runs:
        if run_kind(run) in ("train", "finetune", "explanation", "seeds"):
            raise UsageError(
                f"`{gates[0]}` cannot be used with `{run}`, which is not an evaluation.",
                "Gates are limits for the scores of evaluations.",
                f"Pass the folder of the evaluation, such as `{_evaluation_in(run)}`.",
            )
    scopes = {run: check_run(run, gates) for run in runs}  # all, before the first is written
    records = {run: judge(run, gates, scope) for run, scope in scopes.items()}
    return [gate_error(run, record) for run, record in records.items() if not record.passed]


def _evaluation_in(run: Path) -> Path:
    """Path of the first evaluation in `run`; the default path for a training without one."""
    candidates = [run / "test", *sorted(run.glob("*/test")), *sorted(run.glob("*/*/test"))]
    return next((test for test in candidates if test.is_dir()), run / "test")


def _print_document(
    runs: tuple[Path, ...], out: Path | None, form: str | None, file: Path | None,
    html_samples: int | None, *, zoo: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    from robustcli.core.io import write_text
    from robustcli.reports.markdown import moved_page
    from robustcli.reports.render import REPORT_FORMATS, document, zoo_document

    chosen = next((suffix for suffix in REPORT_FORMATS if suffix == form), None)
    if chosen is None:
        raise UsageError("`--file` needs a document.", "", f"Add `--format {DOCUMENT_FORMATS[0]}`.")
    if as_json:
        raise UsageError(
            f"`--json` and `--format {form}` cannot be used together.",
            "",
            "Use `--json` for the results of all runs, or `--format json` for those of one run.",
        )
    if html_samples is not None and chosen not in ("html", "markdown"):
        raise UsageError(
            f"`--html-samples` and `--format {form}` cannot be used together.",
            "Only report.html contains photos, and this format does not write it.",
            "Omit `--html-samples`.",
        )
    if out is not None and not zoo and chosen not in ("html", "markdown"):
        raise UsageError(
            f"`--out` and `--format {form}` cannot be used together for one run.",
            "The document is not written into a folder, and contains no links to files in it.",
            "Omit `--out`; `--file FILE` writes the document into a file.",
        )
    if len(runs) > 1 and out is None:
        raise UsageError(
            f"`--format {form}` writes the document of one run; got {len(runs)} runs.",
            "",
            "Pass one run, or compare trainings with `--out FOLDER`.",
        )
    if zoo and out is not None:
        content = zoo_document(runs, out, chosen)
    else:
        content = document(runs[0], chosen, html_samples, out)
    if file is None:
        click.echo(content, nl=False)
        return
    if chosen == "markdown":
        content = moved_page(content, out or runs[0], file.parent)
    write_text(file, content)
    if not quiet:
        click.echo(f"Written: {file}", err=True)
