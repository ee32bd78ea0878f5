"""`robust compare`."""

from __future__ import annotations

from pathlib import Path

import click

from robustcli.cli.shared_options import as_json, quiet, typed_command
from robustcli.cli.stored_places import PlacesCommand, RunPlace
from robustcli.cli.terminal import say_safely


@click.command("compare", cls=PlacesCommand)
@click.argument("runs", nargs=-1, required=True, type=RunPlace("read", member=True))
@click.option(
    "--out",
    type=RunPlace(of_run=False),
    help="Also write report.md, report.html, results.csv, results.json and figures into "
    "this folder.",
)
@click.option(
    "--force-common",
    is_flag=True,
    help="If the runs differ, compare only the results that all of them have, and list the others.",
)
@as_json
@quiet
def command(
    runs: tuple[str, ...], out: Path | None, force_common: bool, as_json: bool, quiet: bool
) -> None:
    """Compare models by paired tests over the images: which one is better, with confidence.

    RUNS are folders of `robust eval`, `train` or `finetune`, or RUN:MODEL (RUN:MODE of a
    fine-tuning, RUN:seed-1 of several seeds) for one model of a run. Folders of several seeds
    (`--seeds`) are compared by the means over their seeds. Needs neither torch nor the
    images.

    \b
    robust compare runs/eval-vmamba-pico-1a2b3c4d runs/eval-resnet18-5e6f7a8b
    robust compare runs/eval-1a2b3c4d:vmamba-b runs/eval-1a2b3c4d:swin-b --out comparison
    """  # noqa: D301  click reads the backspace: keep these lines apart
    from robustcli.reports.pages import check_out

    if out is not None:
        check_out(out)
    from robustcli.reports import comparison as of_runs
    from robustcli.reports import seeds_comparison

    typed = typed_command()
    if seeds_comparison.names_seeds_only(runs):
        seeds = seeds_comparison.read_seeds_comparison(runs, force_common=force_common)
        text, document = seeds_comparison.seeds_comparison_text(seeds), seeds.as_json()
        report = out and seeds_comparison.write_seeds_comparison(seeds, out, typed)
    else:
        comparison = of_runs.read_comparison(runs, force_common=force_common)
        text, document = of_runs.comparison_text(comparison), comparison.as_json()
        report = out and of_runs.write_comparison(comparison, out, typed)
    if as_json:
        click.echo(document, nl=False)
        return
    say_safely(text)
    if report is not None and not quiet:
        say_safely(f"Report: {report}")
