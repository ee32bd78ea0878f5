"""What a finished run prints, whatever its kind."""

from __future__ import annotations

from pathlib import Path

import click


def show(run: Path, *, as_json: bool, quiet: bool) -> None:
    """Renders the report of `run` and prints its results."""
    from robustcli.reports.render import render

    report = render(run)
    if as_json:
        click.echo((run / "results.json").read_text(encoding="utf-8"), nl=False)
        return
    click.echo(results_table(run))
    if not quiet:
        click.echo(f"Report: {report}")


def results_table(run: Path) -> str:
    """The table of `run` for a terminal."""
    from robustcli.reports.console import (
        accuracy_table,
        finetune_table,
        mask_table,
        statistics_lines,
        training_table,
    )
    from robustcli.reports.findings import read_findings
    from robustcli.reports.pages import kind_of

    kind = kind_of(run)
    if kind == "train":
        return training_table(run)
    if kind == "finetune":
        return finetune_table(run)
    findings = read_findings(run)
    shown = mask_table(findings.table) if kind == "seg" else accuracy_table(findings.table)
    shown = "\n".join([shown, *statistics_lines(findings.statistics)])
    if not findings.is_partial:
        return shown
    return f"{shown}\nPartial run (status: {findings.record.status}): {findings.progress}."
