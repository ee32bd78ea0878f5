"""`robust publish`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from robustcli.cli import shared_options as options
from robustcli.cli.shared_options import FILE, as_json, offline, quiet
from robustcli.cli.stored_places import PlacesCommand, RunPlace
from robustcli.cli.terminal import say_safely


@click.command("publish", cls=PlacesCommand)
@click.argument("run", type=RunPlace("read"))
@click.option(
    "--to", "destination", required=True,
    type=click.Choice(["mlflow", "wandb", "trackio", "hub-card"]),
    help="A tracker, or hub-card: the files of a model card for the Hugging Face Hub.",
)  # fmt: skip
@click.option(
    "--project",
    help="Experiment (MLflow) or project. [default: the tracker's variable, else robust]",
)
@click.option(
    "--tracking", metavar="URI|DIR",
    help="MLflow's tracking URI, or the folder of the other trackers' files. [default: the "
    "tracker's own environment variables]",
)  # fmt: skip
@click.option("--name", help="Name of the run in the tracker. [default: the name of its folder]")
@click.option("--partial", is_flag=True, help="Also publish an incomplete run, marked as partial.")
@click.option("--no-pictures", is_flag=True, help="Do not send figures and report.html.")
@click.option("--out", type=FILE, help="hub-card: folder for README.md. [default: RUN/hub-card]")
@click.option("--model", help="hub-card: the model, if the run has several.")
@click.option(
    "--dataset-id", metavar="ORG/NAME",
    help="hub-card: the data set's name on the Hub; without it no .eval_results are written.",
)  # fmt: skip
@click.option("--task-id", default="default", show_default=True,
              help="hub-card: the task in the data set's eval.yaml.")  # fmt: skip
@click.option("--dataset-revision", help="hub-card: the data set's revision on the Hub.")
@click.option("--source-url", help="hub-card: address of the page with the results.")
@options.dry_run
@offline
@as_json
@quiet
def command(
    run: Path, destination: str, dry_run: bool, as_json: bool, quiet: bool, **values: Any
) -> None:
    """Send RUN to a tracker, or write its model card. docs/publish.md lists the data that is sent.

    \b
    robust publish runs/eval-vmamba-pico-1a2b3c4d --to mlflow --tracking sqlite:///mlflow.db
    robust publish runs/train-ulvm_v5-1a2b3c4d --to hub-card --out my-model
    """  # noqa: D301  click reads the backspace: keep these lines apart
    from robustcli.reports.publishing import publish
    from robustcli.reports.run_export import PublishConfig

    values["pictures"] = not values.pop("no_pictures")
    config = PublishConfig(run, destination, dry_run=dry_run, **values)  # type: ignore[arg-type]

    def say(text: str) -> None:
        if not quiet:
            say_safely(text, err=True)

    result = publish(config, say)
    click.echo(json.dumps(result.as_dict(), indent=1) if as_json else result.as_text())
