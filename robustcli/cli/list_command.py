"""`robust list`."""

from __future__ import annotations

import json
from collections.abc import Callable

import click

from robustcli.cli.shared_options import as_json
from robustcli.core.names import matching

Row = dict[str, object]


@click.command("list")
@click.argument("kind", type=click.Choice(["models", "transforms", "datasets", "recipes"]))
@click.argument("pattern", default="*")
@as_json
def command(kind: str, pattern: str, as_json: bool) -> None:
    """Show what can be named: models, transforms, datasets, recipes; all or those like PATTERN."""
    rows = _ROWS[kind]()
    names = matching(pattern, [str(row["name"]) for row in rows], kind=kind.rstrip("s"),
                     listing=f"robust list {kind}")  # fmt: skip
    chosen = [row for row in rows if row["name"] in names]
    click.echo(json.dumps(chosen, indent=2) if as_json else _grid(chosen))
    if kind == "models" and not as_json:
        click.echo("Any timm name works too, with its tag; and smp:ARCHITECTURE/ENCODER.")


def _models() -> list[Row]:
    from robustcli.adapters.cache_paths import is_here
    from robustcli.adapters.catalogue import CATALOGUE

    return [
        {
            "name": entry.name,
            "task": entry.task,
            "family": entry.family,
            "is": entry.variant,
            "parameters": entry.parameters,
            "published top-1 %": entry.published if entry.task == "cls" else None,
            "published dice": entry.published if entry.task == "seg" else None,
            "published iou": entry.published_iou,
            "pretraining": entry.pretraining,
            "weights here": "yes" if is_here(entry) else "no",
            "licence": entry.licence,
            "source": entry.weights_url or entry.source,
            "remark": entry.remark,
        }
        for entry in CATALOGUE.values()
    ]


def _transforms() -> list[Row]:
    from robustcli.transforms.registry import transforms

    return [
        {
            "name": one.name,
            "family": one.family,
            "severities": ",".join(map(str, one.available())),
            "moves pixels": "yes" if one.geometric else "no",
            "parameters": "assumed" if one.assumed else "defined",
            "does": one.summary,
        }
        for one in transforms()
    ]


def _datasets() -> list[Row]:
    from robustcli.data.named_datasets import DATASETS, installed

    return [
        {
            "name": one.name,
            "for": one.label_space,
            "images": one.images,
            "here": "yes" if one.bundled or installed(one.name) else "no",
            "licence": one.licence,
            "source": one.source,
        }
        for one in DATASETS
    ]


def _recipes() -> list[Row]:
    from robustcli.training.recipes import listed, listed_by_name, listed_classes

    return [
        {
            "name": model,
            "protocol": protocol,
            "epochs": recipe.epochs,
            "batch": recipe.batch_size,
            "window": recipe.window or None,
            "loss": recipe.loss,
            "optimizer": recipe.optimizer,
            "lr": recipe.lr,
            "schedule": recipe.schedule,
            "expected dice": recipe.expected_dice,
            "source": recipe.source,
        }
        for model, protocol, recipe in (*listed(), *listed_by_name(), *listed_classes())
    ]


_ROWS: dict[str, Callable[[], list[Row]]] = {
    "models": _models,
    "transforms": _transforms,
    "datasets": _datasets,
    "recipes": _recipes,
}


def _grid(rows: list[Row]) -> str:
    from tabulate import tabulate

    body = [[_text(value) for value in row.values()] for row in rows]
    return tabulate(body, headers=list(rows[0]), disable_numparse=True)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else str(value)
