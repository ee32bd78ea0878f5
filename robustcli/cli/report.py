"""`robust report`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from robustcli.cli.results import results_document, results_table
from robustcli.cli.shared_options import FILE, as_json, gates, quiet
from robustcli.cli.study import joined_gates
from robustcli.core.errors import GateError, UsageError


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=FILE)
@click.option("--out", type=FILE, help="Write one report over several trainings into this folder.")
@gates
@as_json
@quiet
def command(
    runs: tuple[Path, ...], out: Path | None, fail_under: tuple[str, ...],
    fail_drop: tuple[str, ...], as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Write the reports of RUNS again from their files, without torch and without the images."""
    from robustcli.reports.render import render, render_zoo

    failures = _failed_gates(runs, out, fail_under, fail_drop)
    if out is not None:
        reports, runs = [render_zoo(runs, out)], (out,)
    else:
        reports = [render(run) for run in runs]
    gated = bool(fail_under or fail_drop)
    if as_json:
        documents = {str(run): results_document(run, gates=gated) for run in runs}
        click.echo(json.dumps(documents, indent=2))
    else:
        for run, report in zip(runs, reports, strict=True):
            if out is None:
                click.echo(results_table(run, gates=gated))
            if not quiet:
                click.echo(f"Report: {report}")
    if failures:
        raise joined_gates(failures)


def _failed_gates(
    runs: Sequence[Path], out: Path | None, fail_under: Sequence[str], fail_drop: Sequence[str]
) -> list[GateError]:
    """The errors of the runs that break a gate; each run must fit all gates."""
    from robustcli.evaluation.gates import gate_error, judge_run, parse_gates
    from robustcli.reports.render import kind_of

    wanted = parse_gates(fail_under, fail_drop)
    if not wanted:
        return []
    for run in runs:
        if out is not None or kind_of(run) in ("train", "finetune"):
            raise UsageError(
                f"`{wanted[0]}` does not go with a report over trainings.",
                "Gates limit the numbers of evaluations.",
                f"Name the evaluation itself, such as `{run / 'test'}`.",
            )
    records = {run: judge_run(run, wanted) for run in runs}
    return [gate_error(run, record) for run, record in records.items() if not record.passed]
