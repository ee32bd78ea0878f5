"""`robust publish`: dry runs, cards, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import robustcli
from tests.builders import IDENTITY, RunPlan, build_run, model, paper21
from tests.cli.conftest import Robust

PLAN = RunPlan(models=(model("vmamba-b"),), transforms=(IDENTITY, *paper21()[:2]), images=12)


def test_a_dry_run_sends_and_writes_nothing(robust: Robust, tmp_path: Path) -> None:
    robustcli.Run(build_run(tmp_path / "run", PLAN)).report()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    outcome = robust("publish", "run", "--to", "mlflow", "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("Would send `run`:")
    document = json.loads(robust("publish", "run", "--to", "wandb", "--dry-run", "--json").out)
    assert document["sent"] is None
    assert document["metrics"]["vmamba-b/identity/n"] == 12
    assert set(document["files"]) >= {"report.md", "run.json"}
    card = robust("publish", "run", "--to", "hub-card", "--dry-run")
    assert "## Robustness of `vmamba-b`" in card.out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_card_is_written(robust: Robust, tmp_path: Path) -> None:
    build_run(tmp_path / "run", PLAN)
    outcome = robust("publish", "run", "--to", "hub-card")
    assert outcome.code == 0
    assert "No .eval_results files" in outcome.out
    assert (tmp_path / "run" / "hub-card" / "README.md").is_file()
    options = ("--out", "card", "--dataset-id", "org/bench", "--json")
    document = json.loads(robust("publish", "run", "--to", "hub-card", *options).out)
    assert len(document["files"]) == 1 + 3
    assert len(list((tmp_path / "card" / ".eval_results").iterdir())) == 3


def test_what_is_refused(robust: Robust, tmp_path: Path) -> None:
    build_run(tmp_path / "run", replace(PLAN, done=0.5))
    outcome = robust("publish", "run", "--to", "hub-card")
    assert outcome.code == 2
    assert "--partial" in outcome.err
    assert robust("publish", "run", "--to", "hub-card", "--partial").code == 0
    card = (tmp_path / "run" / "hub-card" / "README.md").read_text()
    assert "Partial run" in card
    assert robust("publish", "nothing", "--to", "hub-card").code == 2
    assert robust("publish", "run", "--to", "elsewhere").code == 2
    outcome = robust("publish", "run", "--to", "hub-card", "--task-id", "x")
    assert outcome.code == 2
    assert "`--task-id` cannot be used without `--dataset-id`" in outcome.err


@pytest.mark.parametrize(
    ("to", "options", "flag"),
    [
        ("mlflow", ("--model", "vmamba-b"), "--model"),
        ("wandb", ("--dataset-id", "org/bench"), "--dataset-id"),
        ("hub-card", ("--no-pictures",), "--no-pictures"),
        ("hub-card", ("--name", "x"), "--name"),
    ],
)
def test_options_of_another_destination_are_refused(
    robust: Robust, tmp_path: Path, to: str, options: tuple[str, ...], flag: str
) -> None:
    build_run(tmp_path / "run", PLAN)
    outcome = robust("publish", "run", "--to", to, *options)
    assert outcome.code == 2
    assert f"`{flag}` cannot be used with `--to {to}`" in outcome.err
