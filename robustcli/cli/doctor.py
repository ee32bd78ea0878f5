"""`robust doctor`."""

from __future__ import annotations

import json
import sys

import click

from robustcli.cli.shared_options import as_json


@click.command("doctor")
@as_json
def command(as_json: bool) -> None:
    """Show versions, devices, scan backends, caches and disk. Exit code 3: a check failed.

    The output of --json is meant for bug reports. It contains no secrets and no path of your home
    folder.
    """
    from robustcli.evaluation.diagnosis import diagnose

    checks = diagnose()
    if as_json:  # is pasted into bug reports
        from robustcli.reports.redaction import Redactor

        shown = Redactor()
        fields = [{**vars(check), "detail": shown.text(check.detail)} for check in checks]
        click.echo(json.dumps(fields, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            mark = {"ok": " ", "off": "-", "broken": "!"}[check.state]
            click.echo(f"{mark} {check.name:<{width}}  {check.detail}")
    if any(check.state == "broken" for check in checks):
        sys.exit(3)
