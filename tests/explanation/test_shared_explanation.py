"""Several processes write the files of one process, and so does a command after an interruption."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustcli.adapters.catalogue import ModelRequest
from robustcli.core.errors import RunError, UsageError
from robustcli.evaluation import distributed
from robustcli.evaluation.distributed import Group
from robustcli.evaluation.evaluate import evaluate
from robustcli.explanation import block, input_methods
from robustcli.explanation import explaining as engine
from robustcli.explanation.config import ExplainConfig
from robustcli.explanation.explaining import explain, run_explanation, units_of
from robustcli.explanation.methods import METHODS
from robustcli.explanation.record import read_explain_record
from robustcli.transforms.base import CLEAN, Cell
from tests.evaluation.photos import config, make_photos
from tests.evaluation.test_distributed import in_threads

REPOSITORY = Path(__file__).parents[2]
PICO = ModelRequest("vmamba-pico")  # trained: threads share the generator of random weights
NAMED = ("cat/1.png", "ship/0.png", "dog/2.png")
METHOD_NAMES = ("grad-cam", "occlusion", "maximised-noise", "attention", "erf")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Maps differ in rounding by the number of threads, which processes share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_methods, "CLIMB_STEPS", 2)
        patch.setattr(input_methods, "WINDOWS_ACROSS", 2)
        patch.setattr(block, "CURVE_STEPS", 2)
        patch.setattr("robustcli.explanation.explaining.BLOCK_PHOTOS", 2)
        yield


def settings(data, out, **changes):
    chosen = {
        "images": NAMED, "methods": METHOD_NAMES, "workers": 0, "device": "cpu", "batch_size": 2,
        "models": (PICO,), "transforms": ("fliplr", "invert", "flipud"),
    } | changes  # fmt: skip
    models, transforms = chosen.pop("models"), chosen.pop("transforms")
    return ExplainConfig(models, transforms, None if data is None else str(data), out, **chosen)


def files(run):
    paths = [path for name in ("rows", "evaluation") for path in (run / name).rglob("*.*")]
    kept = [p for p in paths if p.suffix in (".parquet", ".npz") and "images" not in p.parts]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted(kept)}


@pytest.fixture(scope="module")
def expected(photos, few_steps, tmp_path_factory):
    """Returns the run of one process, and its files."""
    run = explain(settings(photos, tmp_path_factory.mktemp("alone") / "run", sanity=True))
    return run, files(run)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_share_blocks_methods_and_transforms(photos, expected, tmp_path, world):
    run = tmp_path / "run"
    assert in_threads([settings(photos, run, sanity=True)] * world, run_explanation) == {}
    assert files(run) == expected[1]
    assert len(expected[1]) == 2 * 2 * (4 * 3 + 1)  # blocks, kinds of files, methods x transforms
    assert read_explain_record(run).status == "complete"


def test_the_bytes_do_not_depend_on_the_files_that_were_finished(photos, expected, tmp_path):
    """Maps of clean photos were computed in other batches after an interruption."""
    run = shutil.copytree(expected[0], tmp_path / "run")
    for path in sorted((run / "rows").rglob("*.parquet"))[1::2]:
        path.unlink()
    assert len(files(run)) < len(expected[1])
    explain(settings(photos, run, sanity=True))
    assert files(run) == expected[1]


def test_ranks_evaluate_to_find_the_worst_photos(photos, tmp_path):
    changes = {"images": (), "worst": 2, "transforms": ("invert",), "methods": ("grad-cam",)}
    alone = explain(settings(photos, tmp_path / "alone", **changes))
    run = tmp_path / "run"
    assert in_threads([settings(photos, run, **changes)] * 2, run_explanation) == {}
    assert files(run) == files(alone)
    assert any("evaluation/predictions" in name for name in files(run))
    source = evaluate(config(photos, tmp_path / "eval", "fliplr", "invert", models=(PICO,)))
    of_run = changes | {"models": (), "source": source}
    assert in_threads([settings(None, tmp_path / "of", **of_run)] * 2, run_explanation) == {}
    rows = {name: text for name, text in files(alone).items() if name.startswith("rows")}
    assert files(tmp_path / "of") == rows


def test_a_dead_process_is_named_and_the_same_command_continues(
    photos, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(distributed, "RANK_SILENCE_SECONDS", 60.0)  # until the rank dies
    monkeypatch.setattr(Group, "_fail", lambda self, error: None)  # without a last message
    real, written = engine.write_block, []

    def dying(*arguments):
        if threading.current_thread().name == "rank 1":
            written.append(arguments)
            if len(written) == 3:
                distributed.RANK_SILENCE_SECONDS = 0.2
                raise SystemExit
        real(*arguments)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(engine, "write_block", dying)
        raised = in_threads([settings(photos, run, sanity=True)] * 2, run_explanation)
    assert "Process 1 of 2 ended without an error message." in str(raised[0])
    assert "of 26 files with maps are missing" in str(raised[0])
    assert raised[0].exit_code == 1
    assert read_explain_record(run).status == "partial"
    assert files(run).items() < expected[1].items()
    explain(settings(photos, run, sanity=True))
    assert files(run) == expected[1]


def test_maps_on_the_disk_of_another_machine_are_missing(photos, tmp_path, monkeypatch):
    """All processes end without an error, but the folder of the first lacks files."""
    real = engine.write_block

    def elsewhere(*arguments):
        if threading.current_thread().name != "rank 1":
            real(*arguments)

    monkeypatch.setattr(engine, "write_block", elsewhere)
    asked = settings(photos, tmp_path / "run", methods=("grad-cam",))
    raised = in_threads([asked] * 2, run_explanation)
    assert list(raised) == [0]
    assert raised[0].exit_code == 1
    assert "`--out` must be a folder that all processes share" in str(raised[0])
    assert read_explain_record(tmp_path / "run").status == "partial"


def test_a_folder_that_the_ranks_do_not_share_is_refused_at_the_start(
    photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(distributed, "SIGHT_SECONDS", 0.2)
    asked = [settings(photos, tmp_path / name, methods=("grad-cam",)) for name in "ab"]
    raised = in_threads(asked, run_explanation)
    assert "`--out` to a folder that all processes share" in str(raised[0])
    assert raised[0].exit_code == 3
    assert files(tmp_path / "a") == {}


def test_failures_of_all_ranks_are_told(photos, tmp_path, monkeypatch):
    real = block.BlockExplanation.explain

    def failing(self, method, cell, *rest):
        if method.name == "grad-cam":
            raise RunError(f"{method.name} under {cell.transform}.", "A test.", "Nothing.")
        return real(self, method, cell, *rest)

    monkeypatch.setattr(block.BlockExplanation, "explain", failing)
    asked = settings(photos, tmp_path / "run", methods=("grad-cam", "attention"))
    raised = in_threads([asked] * 2, run_explanation)
    assert list(raised) == [0]
    assert str(raised[0]).startswith("grad-cam under fliplr. (and 5 more)")
    assert read_explain_record(tmp_path / "run").status == "partial"
    assert len(files(tmp_path / "run")) == 2 * 2 * 3


def test_a_rank_that_would_explain_something_else_is_refused(photos, tmp_path):
    asked = settings(photos, tmp_path / "run", methods=("grad-cam",))
    for change, message in (
        ({"methods": ("attention",)}, "in: settings"),
        ({"transforms": ("invert",)}, "in: transforms"),
        ({"seed": 1}, "in: settings"),
    ):
        raised = in_threads([asked, replace(asked, **change)], run_explanation)
        assert isinstance(raised[0], UsageError)
        assert "Process 1 of 2" in str(raised[0])
        assert message in str(raised[0])
    assert not (tmp_path / "run").exists()


def test_units_keep_methods_together_and_cover_all_files():
    cells = [Cell(name, 0) for name in ("a", "b", "c")]
    slow, fast = METHODS["occlusion"], METHODS["grad-cam"]
    missing = {n: [(method, cell) for method in (slow, fast) for cell in cells] for n in range(3)}
    assert units_of(missing, 1) == [
        (n, method.name, [("a", 0), ("b", 0), ("c", 0)])
        for method in (slow, fast)
        for n in range(3)
    ]
    for ranks in (1, 2, 5, 40):
        units = units_of(missing, ranks)
        covered = [(n, name, cell) for n, name, of_unit in units for cell in of_unit]
        assert len(covered) == len(set(covered)) == 18
        assert len(units) >= min(18, 4 * ranks) or ranks == 1
    assert units_of({}, 2) == []
    assert units_of({4: [(fast, CLEAN)]}, 8) == [(4, "grad-cam", [("identity", 0)])]


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow  # starts processes; the tests above run the same with threads
@pytest.mark.parametrize("launcher", [TORCHRUN, ()], ids=["torchrun", "devices"])
def test_the_command_in_two_processes(photos, tmp_path, launcher):
    asked = {"images": (), "worst": 3, "methods": ("attention", "erf"), "batch_size": 2}
    explain(settings(photos, tmp_path / "alone", **asked))
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "robustcli", "explain", "--device", "cpu", "--model",
         "vmamba-pico", "--data", str(photos), "--out", str(tmp_path / "run"), "--worst", "3",
         "--method", "attention", "--method", "erf", "--batch-size", "2", "--workers", "0",
         "--transform", "fliplr", "--transform", "invert", "--transform", "flipud", "--json",
         *(() if launcher else ("--devices", "2"))],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=REPOSITORY, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[")
    assert {n.rpartition(".")[2] for n in files(tmp_path / "run")} == {"npz", "parquet"}
    assert read_explain_record(tmp_path / "run").status == "complete"
