"""`robust report`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from robustcli.cli.options import FILE, as_json, quiet


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=FILE)
@as_json
@quiet
def command(runs: tuple[Path, ...], as_json: bool, quiet: bool) -> None:
    """Render the report of RUNS again from their rows; needs neither torch nor the data."""
    from robustcli.evaluation.metrics import table
    from robustcli.reports.console import accuracy_table
    from robustcli.reports.render import render

    reports = [render(run) for run in runs]
    if as_json:
        results = {str(run): json.loads((run / "results.json").read_text("utf-8")) for run in runs}
        click.echo(json.dumps(results, indent=2))
        return
    for run, report in zip(runs, reports, strict=True):
        click.echo(accuracy_table(table(run)))
        if not quiet:
            click.echo(f"Report: {report}")
