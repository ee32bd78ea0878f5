"""`robust report`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from robustcli.cli.results import results_table
from robustcli.cli.shared_options import FILE, as_json, quiet


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=FILE)
@click.option("--out", type=FILE, help="Write one report over several trainings into this folder.")
@as_json
@quiet
def command(runs: tuple[Path, ...], out: Path | None, as_json: bool, quiet: bool) -> None:
    """Write the reports of RUNS again from their files, without torch and without the images."""
    from robustcli.reports.render import render, render_zoo

    if out is not None:
        reports, runs = [render_zoo(runs, out)], (out,)
    else:
        reports = [render(run) for run in runs]
    if as_json:
        results = {str(run): json.loads((run / "results.json").read_text("utf-8")) for run in runs}
        click.echo(json.dumps(results, indent=2))
        return
    for run, report in zip(runs, reports, strict=True):
        if out is None:
            click.echo(results_table(run))
        if not quiet:
            click.echo(f"Report: {report}")
