"""`--seeds` as typed: what is printed, exit codes, and what other commands say of the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import robustcli
from robustcli.core.errors import RunError
from robustcli.training import engine, seed_runs
from robustcli.training.record import read_train_record
from robustcli.training.training_task import TrainPlan
from tests.cli.conftest import Robust, put_run
from tests.training.images import write_photos

TINY = ["--model", "vmamba-pico", "--model-arg", "depths=[1,1]", "--model-arg", "dim=8",
        "--epochs", "1", "--batch-size", "10", "--device", "cpu", "--workers", "0",
        "--data", "paints"]  # fmt: skip


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `paints/` and, once a test made it, `run/`."""
    folder = tmp_path_factory.mktemp("seeded")
    write_photos(folder / "paints", 5)
    return folder


@pytest.fixture
def here(_trained: Path, robust: Robust, tmp_path: Path) -> Path:
    """The working folder with data and two finished seeds."""
    shutil.copytree(_trained / "paints", "paints")
    put_run(_trained / "run", lambda: robust("train", "cls", *TINY, "--seeds", "2", "--out", "run"))
    return tmp_path


def test_a_finished_folder_prints_its_table_again(robust: Robust, here: Path) -> None:
    outcome = robust("train", "cls", *TINY, "--seeds", "2", "--out", "run")
    assert outcome.code == 0
    assert "seed 1: `run/seed-1` is already finished" in outcome.err
    lines = outcome.out.splitlines()
    assert [line.split()[:2] for line in lines[2:4]] == [["seed", "0"], ["seed", "1"]]
    assert lines[-1] == "Report: run/report.md"
    assert robust("report", "run").out.splitlines()[:4] == lines[:4]
    assert (here / "run" / "seed-1" / "report.html").is_file()
    rows = json.loads(robust("train", "cls", *TINY, "--seeds", "2", "--out", "run", "--json").out)
    assert [(row["level"], row["seed"]) for row in rows] == [
        ("seed", 0), ("seed", 1), ("mean", None),
    ]  # fmt: skip


def test_a_study_file_and_a_dry_run(robust: Robust, here: Path) -> None:
    study = here / "study.yaml"
    study.write_text(
        "model: vmamba-pico\nmodel-arg: ['depths=[1,1]', dim=8]\nepochs: 1\nbatch-size: 10\n"
        "device: cpu\nworkers: 0\ndata: paints\nseeds: 3\nout: run\n"
    )
    outcome = robust("train", "cls", "--config", "study.yaml", "--dry-run", "--json", "--quiet")
    assert outcome.code == 0, outcome.err
    forecast = json.loads(outcome.out)["forecast"]
    assert (forecast["seeds"], forecast["finished"]) == ([0, 1, 2], [0, 1])
    assert Path(forecast["each"]["out"]).name == "seed-0"
    assert not (here / "run" / "seed-2").exists()


def test_a_failed_seed_is_told_the_others_are_shown_and_the_code_is_1(
    robust: Robust, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(plan: TrainPlan, *rest: Any) -> Path:
        if plan.config.seed == 1:
            (here / "run" / "seed-1").mkdir(exist_ok=True)
            raise ZeroDivisionError("of this test")
        return engine.run_plan(plan, *rest)

    monkeypatch.setattr(seed_runs, "run_plan", failing)
    outcome = robust("train", "cls", *TINY, "--seeds", "2", "--out", "run", "--quiet")
    assert outcome.code == 1
    assert "ZeroDivisionError: of this test" in outcome.err
    assert "`run` is incomplete: 1 of its 2 seeds failed: 1." in outcome.err
    assert "seed 0" in outcome.out  # the report of what is there
    (traceback,) = (here / "run" / "seed-1").glob("error-*.txt")
    assert "ZeroDivisionError" in traceback.read_text()


def test_a_split_seed_makes_one_seed_of_several(robust: Robust, here: Path) -> None:
    outcome = robust("train", "cls", *TINY, "--seed", "1", "--split-seed", "0", "--out",
                  "run/seed-1", "--quiet")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert read_train_record(here / "run" / "seed-1").split_seed == 0


def test_other_commands_name_the_folder_of_a_seed(robust: Robust, here: Path) -> None:
    outcome = robust("eval", "--model", "run", "--data", "paints", "--transform", "identity")
    assert outcome.code == 2
    assert "contains 2 trainings, one for each seed" in outcome.err
    assert "`run/seed-0`" in outcome.err
    assert "one for each seed" in robust("publish", "run", "--to", "hub-card").err
    assert "contains 2 seeds" in robust("compare", "run", "run/seed-0").err
    outcome = robust("eval", "--model", "run/seed-1", "--data", "paints", "--transform", "identity",
                  "--device", "cpu", "--workers", "0", "--out", "ev")  # fmt: skip
    assert outcome.code == 0, outcome.err


def test_every_seed_is_verified(robust: Robust, here: Path) -> None:
    outcome = robust("verify", "run", "--device", "cpu", "--json")
    assert outcome.code == 0, outcome.err + outcome.out
    assert len(json.loads(outcome.out)["evaluations"]) == 2


def test_the_functions_do_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output: dict[str, Any] = {
        "model_args": {"depths": [1, 1], "dim": 8}, "epochs": 1, "batch_size": 10,
        "device": "cpu", "workers": 0,
    }  # fmt: skip
    folder = robustcli.train("vmamba-pico", "paints", out="run", seeds=2, **output)
    assert isinstance(folder, robustcli.SeedFolder)
    assert folder.record.seeds == (0, 1)
    assert [type(run) for run in folder.runs.values()] == [robustcli.Training] * 2
    table = folder.table()
    mean = table[table["level"] == "mean"].iloc[0]
    values = [run.test.table()["top1"].iloc[0] for run in folder.runs.values()]  # type: ignore[union-attr]
    assert mean["score"] == pytest.approx(sum(values) / 2)
    monkeypatch.setattr(seed_runs, "run_plan", _out_of_memory)
    with pytest.raises(RunError, match="1 of its 3 seeds failed: 2"):
        robustcli.train("vmamba-pico", "paints", out="run", seeds=3, **output)


def _out_of_memory(plan: TrainPlan, *rest: Any) -> Path:
    if plan.config.seed == 2:
        raise MemoryError
    return engine.run_plan(plan, *rest)
