"""`robust fetch`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from robustcli.cli.shared_options import as_json, offline, quiet

if TYPE_CHECKING:
    from robustcli.adapters.fetching import Fetched


@click.command("fetch")
@click.argument("names", nargs=-1, required=True)
@offline
@as_json
@quiet
def command(names: tuple[str, ...], offline: bool, as_json: bool, quiet: bool) -> None:
    """Download weights or data sets by NAME. An interrupted download is continued."""
    from robustcli.adapters.fetching import fetch

    fetched: list[Fetched] = []
    try:
        for name in names:
            fetched.append(fetch(name, offline=offline))
            if not as_json:
                click.echo(_as_text(fetched[-1], quiet=quiet))
    finally:  # after a failure, with the names before it
        if as_json and fetched:
            click.echo(json.dumps([{"name": f.name, "path": str(f.path), "sha256": f.sha256,
                                    "pinned": f.pinned} for f in fetched], indent=2))  # fmt: skip


def _as_text(file: Fetched, *, quiet: bool) -> str:
    known = "as published" if file.pinned else "none is published; stored to check later downloads"
    line = f"{file.name}: {file.path}"
    return line if quiet else f"{line}\n  SHA-256 {file.sha256} ({known})"
