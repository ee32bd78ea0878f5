"""`robust list`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustcli.cli.shared_options import FILE, as_json
from robustcli.core.names import fits, matching

if TYPE_CHECKING:
    from robustcli.adapters.catalogue import ModelEntry
    from robustcli.transforms.base import Transform

ListedRow = dict[str, object]


@click.command("list")
@click.argument("kind", type=click.Choice(["models", "transforms", "datasets", "recipes"]))
@click.argument("pattern", default="*")
@click.option("--wide", is_flag=True, help="All columns, in lines longer than 120.")
@click.option(
    "--published",
    multiple=True,
    type=FILE,
    help="With transforms: also list the transforms in the folder of a corruption benchmark.",
)
@as_json
def command(
    kind: str, pattern: str, wide: bool, published: tuple[Path, ...], as_json: bool
) -> None:
    """List models, transforms, data sets or recipes whose names match PATTERN (default: all).

    If no model of the catalogue matches, timm's names that match are listed.
    """
    rows = _ROWS[kind]()
    if kind == "models" and not any(fits(pattern, str(row["name"])) for row in rows):
        rows += _of_timm(pattern)
    if published:
        rows += _published(kind, published)
    candidates = dict.fromkeys(name for row in rows for name in _names(row))
    names = matching(pattern, candidates, kind=kind.rstrip("s"), listing=f"robust list {kind}")
    chosen = [row for row in rows if not _names(row).isdisjoint(names)]
    if as_json:
        click.echo(json.dumps(chosen, indent=2))
        return
    hidden = () if wide else _LONG.get(kind, ())
    click.echo(_by_task(chosen, hidden) if kind == "models" else _grid(chosen, hidden))
    if hidden:
        click.echo(f"`--wide` shows more columns: {', '.join(hidden)}.")
    if kind == "models":
        click.echo(
            "`robust train cls --model resnet18` (`resnet50`) is `cifar-resnet18` (`-resnet50`); "
            "timm's is `timm:resnet18`."
        )
        click.echo("Any timm name works too, with its tag; and smp:ARCHITECTURE/ENCODER.")


def _names(row: ListedRow) -> set[str]:
    """The names of a row that a pattern can match: also that of the recipe of a network."""
    return {str(row[column]) for column in ("name", "recipe") if column in row}


def _models() -> list[ListedRow]:
    from robustcli.adapters.catalogue import CATALOGUE

    return [
        {
            "name": entry.name,
            "task": entry.task,
            "family": entry.family,
            "classes": entry.label_space,
            "is": entry.variant,
            "parameters": entry.parameters,
            "published top-1 %": entry.published if entry.task == "cls" else None,
            "published dice": entry.published if entry.task == "seg" else None,
            "published iou": entry.published_iou,
            "pretraining": entry.pretraining,
            "weights here": _weights_here(entry),
            "licence": entry.licence,
            "source": entry.weights_url or entry.source,
            "remark": entry.remark,
        }
        for entry in CATALOGUE.values()
    ]


def _of_timm(pattern: str) -> list[ListedRow]:
    """Rows of timm's names that match, with and without tags; what timm does not state is None."""
    from robustcli.adapters.timm_library import all_names

    unknown: ListedRow = dict.fromkeys(_models()[0])
    known = {"task": "cls", "family": "timm"}
    return [{**unknown, "name": name, **known} for name in all_names() if fits(pattern, name)]


def _weights_here(entry: ModelEntry) -> str:
    from robustcli.adapters.fetching import is_here

    if entry.parameters == 0:
        return "none needed"
    return "yes" if is_here(entry) else "no"


def _transforms() -> list[ListedRow]:
    from robustcli.transforms.registry import transforms

    return [_transform_row(transform) for transform in transforms()]


def _published(kind: str, folders: Sequence[Path]) -> list[ListedRow]:
    from robustcli.core.errors import UsageError
    from robustcli.evaluation.published_corruptions import find_published

    if kind != "transforms":
        raise UsageError(
            f"`--published` cannot be used with `robust list {kind}`.",
            "It lists the images of a corruption benchmark, which are transforms.",
            "Write `robust list transforms --published DIR`.",
        )
    return [_transform_row(transform) for transform in find_published(folders)]


def _transform_row(transform: Transform) -> ListedRow:
    return {
        "name": transform.name,
        "family": transform.family,
        "severities": ",".join(map(str, transform.available())),
        "moves pixels": "yes" if transform.geometric else "no",
        "parameters": "assumed" if transform.assumed else "defined",
        "does": transform.summary,
    }


def _datasets() -> list[ListedRow]:
    from robustcli.data.named_datasets import DATASETS, installed

    return [
        {
            "name": entry.name,
            "for": entry.label_space,
            "images": entry.images,
            "here": "yes" if entry.bundled or installed(entry.name) else "no",
            "licence": entry.licence,
            "source": entry.source,
        }
        for entry in DATASETS
    ]


def _recipes() -> list[ListedRow]:
    from robustcli.training.recipes import listed

    return [
        {
            "name": model,
            "recipe": recipe.name,  # as typed after `--recipe`
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
        for model, protocol, recipe in listed()
    ]


_ROWS: dict[str, Callable[[], list[ListedRow]]] = {
    "models": _models,
    "transforms": _transforms,
    "datasets": _datasets,
    "recipes": _recipes,
}


_LONG = {
    "models": ("classes", "is", "pretraining", "source", "remark"),
    "transforms": ("moves pixels", "parameters"),
    "datasets": ("source",),
    "recipes": ("recipe", "optimizer", "schedule", "source"),
}
"""Columns of each kind that are hidden by default to save space."""
_TITLES = {
    ("cls", False): "Classifiers",
    ("cls", True): "Classifiers for images of 32 x 32 pixels (parameters with 10 classes)",
    ("seg", False): "Segmenters",
}
"""Titles by task and by whether the network is for CIFAR."""


def _by_task(rows: list[ListedRow], hidden: Sequence[str]) -> str:
    """One table per group, without columns that are empty for all models of the group."""
    tables = []
    for kind, title in _TITLES.items():
        group = [row for row in rows if (row["task"], row["classes"] == "cifar10") == kind]
        if group:
            empty = [name for name in group[0] if all(row[name] in (None, "") for row in group)]
            tables.append(f"{title}\n\n{_grid(group, ('task', *empty, *hidden))}")
    return "\n\n".join(tables)


def _grid(rows: list[ListedRow], hidden: Sequence[str]) -> str:
    from tabulate import tabulate

    names = [name for name in rows[0] if name not in hidden]
    body = [[_text(name, row[name]) for name in names] for row in rows]
    return tabulate(body, headers=names, disable_numparse=True)


def _text(column: str, value: object) -> str:
    if value is None:
        return ""
    if column == "severities":
        first, *further = str(value).split(",")
        consecutive = further and int(further[-1]) - int(first) == len(further)
        return f"{first}-{further[-1]}" if consecutive else str(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
