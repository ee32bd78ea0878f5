"""`robust fetch`."""

from __future__ import annotations

import json

import click

from robustcli.cli.shared_options import as_json, offline, quiet


@click.command("fetch")
@click.argument("names", nargs=-1, required=True)
@offline
@as_json
@quiet
def command(names: tuple[str, ...], offline: bool, as_json: bool, quiet: bool) -> None:
    """Download weights or data sets by NAME. An interrupted download is continued."""
    from robustcli.adapters.fetching import fetch

    fetched = [fetch(name, offline=offline) for name in names]
    if as_json:
        click.echo(json.dumps([{"name": f.name, "path": str(f.path), "sha256": f.sha256,
                                "pinned": f.pinned} for f in fetched], indent=2))  # fmt: skip
        return
    for file in fetched:
        click.echo(f"{file.name}: {file.path}")
        if not quiet:
            known = (
                "as published"
                if file.pinned
                else "none is published; stored to check later downloads"
            )
            click.echo(f"  SHA-256 {file.sha256} ({known})")
