"""`robust eval` of what cannot be carried out: exit code 2, and what to do about it."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from scipy.stats import binomtest

from robustcli.data import splits
from robustcli.evaluation import evaluate
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.record import read_record
from tests.cli.conftest import Asked, Robust, python

MODEL = ["--model", "vmamba-pico", "--untrained"]
SMALL = ["eval", *MODEL, "--limit", "20", "--transform", "identity", "--workers", "0",
         "--device", "cpu"]  # fmt: skip
COLUMNS = {
    *("model", "transform", "severity", "n", "correct", "top1", "top1_low", "top1_high", "top5"),
    *("clean_top1", "drop", "retention", "unchanged_share", "psnr_db"),
}


@pytest.fixture
def configs(asked: Asked) -> list[EvalConfig]:
    """The configurations that the command made."""
    return asked(evaluate, "run_evaluation")


def test_as_typed_in_a_shell(tmp_path: Path) -> None:
    """The one whole run through a process of its own: standard output is one JSON document."""
    arguments = [*SMALL, "--json", "--out", "run"]
    process = python("-m", "robustcli", *arguments)
    assert process.returncode == 0, process.stderr
    (row,) = json.loads(process.stdout)
    assert set(row) >= COLUMNS
    assert (row["model"], row["transform"], row["severity"], row["n"]) == (
        "vmamba-pico", "identity", 0, 20
    )  # fmt: skip
    assert row["top1"] == row["correct"] / 20 == row["clean_top1"]
    lines = process.stderr.splitlines()
    assert lines[0].startswith(
        "`--data` is not set; using cifar10-mini (a demonstration set), 20 images, "
    )
    assert lines[-1].startswith("20 of 20 predictions, done in ")
    record = read_record(tmp_path / "run")
    assert record.command == shlex.join(["robust", *arguments])
    assert (record.status, record.models[0].untrained) == ("complete", True)


def test_the_table_and_the_report_and_going_on(robust: Robust, tmp_path: Path) -> None:
    first = robust(*SMALL)
    assert first.code == 0
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert folder.name.startswith("eval-vmamba-pico-")
    report = folder.relative_to(tmp_path) / "report.md"
    assert first.out.splitlines()[-1] == f"Report: {report}"
    assert "identity" in first.out
    assert " of 20" in first.out
    assert report.is_file()
    assert {"run.json", "results.csv", "results.json", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    again = robust(*SMALL, "--transform", "fliplr", "--quiet")
    assert again.code == 0
    assert again.err == ""
    assert "fliplr" in again.out
    assert "Report:" not in again.out
    assert [t.name for t in read_record(folder).transforms] == ["identity", "fliplr"]


PRINTING = """
from torch import nn
from robustcli.transforms import transform

print("imported")


class Net(nn.Module):
    def forward(self, x):
        print("called")
        return x.flatten(1)[:, :10]


@transform(name="brighter")
def brighter(image, rng, value):
    print("transformed")
    return image
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_lines_that_code_of_the_user_prints_are_not_in_the_document(
    robust: Robust, workers: str
) -> None:
    Path("mine.py").write_text(PRINTING)
    arguments = ("--model", "mine.py:Net", "--plugin", "mine.py", "--transform", "brighter",
                 "--data", "cifar10-mini", "--limit", "4", "--workers", workers, "--device", "cpu",
                 "--resize", "32", "--crop", "32", "--json")  # fmt: skip
    outcome = robust("eval", *arguments, "--out", "run")
    assert outcome.code == 0, outcome.err
    assert [row["transform"] for row in json.loads(outcome.out)] == ["identity", "brighter"]
    assert "called" in outcome.err
    assert json.loads(robust("eval", *arguments, "--dry-run").out)["images"] == 4
    code = ("--plugin", "mine.py", "--run-code")  # the recorded command is that of pytest
    outcome = robust("verify", "run", *code, "--device", "cpu", "--json")
    assert json.loads(outcome.out)["reproduced"], outcome.err
    photos = ("predict", "--model", "mine.py:Net", "--resize", "32", "--crop", "32", "--json")
    assert json.loads(robust(*photos, "--data", "cifar10-mini", "--limit", "1").out)["images"] == 1


def test_a_dry_run_computes_nothing(robust: Robust, tmp_path: Path) -> None:
    outcome = robust(*SMALL, "--transform", "paper21", "--dry-run", "--json", "--out", "run")
    assert outcome.code == 0
    forecast = json.loads(outcome.out)
    assert (forecast["images"], len(forecast["cells"]), forecast["predictions"]) == (20, 22, 440)
    assert not (tmp_path / "run").exists()
    text = robust(*SMALL, "--dry-run", "--out", "run")
    assert "Predictions: 20 to compute, 0 already exist" in text.out
    assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_what_the_run_would_refuse(robust: Robust) -> None:
    assert robust(*SMALL, "--out", "run").code == 0
    repeated = robust(*SMALL, "--dry-run", "--out", "run")
    assert "Predictions: 0 to compute, 20 already exist" in repeated.out
    other = (*SMALL, "--seed", "3", "--out", "run")  # another subset of as many images
    refusal = robust(*other)
    assert refusal.code == 2
    assert robust(*other, "--dry-run") == refusal
    discarded = robust(*other, "--fresh", "--dry-run")
    assert "Predictions: 20 to compute, 0 already exist" in discarded.out


def test_every_option_reaches_the_configuration(robust: Robust, configs: list[EvalConfig]) -> None:
    robust(
        "eval", "--model", "resnet18", "--weights", "w.pth", "--model-arg", "pad_type=same",
        "--model-arg", "num_classes=10", "--resize", "256", "--crop", "224", "--interpolation",
        "bilinear", "--mean", "0.5,0.5,0.5", "--std", "0.1,0.2,0.3", "--data", "photos",
        "--label-space", "cifar10", "--labels", "l.csv", "--per-class", "15", "--limit", "7",
        "--allow-unreadable", "0.5", "--transform", "fog*", "--transform", "paper21", "--severity",
        "1,3", "--plugin", "p.py", "--apply-at", "crop", "--out", "o", "--seed", "4", "--device",
        "cuda", "--precision", "bf16", "--batch-size", "9", "--workers", "2", "--fresh",
        "--offline",
    )  # fmt: skip
    (config,) = configs
    (model,) = config.models
    assert (model.name, model.weights, model.untrained) == ("resnet18", Path("w.pth"), False)
    assert model.arguments == {"pad_type": "same", "num_classes": 10}
    assert model.preprocessing == {
        "resize": 256, "crop": 224, "interpolation": "bilinear", "mean": (0.5, 0.5, 0.5),
        "std": (0.1, 0.2, 0.3),
    }  # fmt: skip
    assert model.label_space == config.label_space == "cifar10"
    assert (config.transforms, config.severities) == (("fog*", "paper21"), (1, 3))
    assert (config.data, config.labels, config.out) == ("photos", Path("l.csv"), Path("o"))
    assert (config.per_class, config.limit, config.allow_unreadable) == (15, 7, 0.5)
    assert (config.plugins, config.apply_at, config.seed) == ((Path("p.py"),), "crop", 4)
    assert (config.device, config.precision) == ("cuda", "bf16")
    assert (config.batch_size, config.workers, config.fresh, config.offline) == (9, 2, True, True)


def test_defaults(robust: Robust, configs: list[EvalConfig]) -> None:
    robust("eval", "--model", "a", "--model", "b", "--transform", "all")
    (config,) = configs
    assert [model.name for model in config.models] == ["a", "b"]
    assert all(not model.preprocessing and not model.arguments for model in config.models)
    assert (config.data, config.out, config.severities, config.seed) == (None, None, None, 0)
    assert (config.apply_at, config.precision, config.device) == ("original", "fp32", "auto")
    assert (config.fresh, config.offline) == (False, False)


def test_a_scan_backend_can_be_forced(
    robust: Robust, configs: list[EvalConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUST_SCAN_BACKEND", "cpu")
    robust(*SMALL, "--scan-backend", "reference")
    assert os.environ["ROBUST_SCAN_BACKEND"] == "reference"


def test_missing_rows_end_with_1_and_are_counted_wherever_numbers_are(
    robust: Robust, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = evaluate.shared
    typed = [*SMALL, "--transform", "fliplr", "--out", "run"]
    with monkeypatch.context() as losing:
        losing.setattr(evaluate, "shared", lambda *a: [p.only(p.cells[:1]) for p in real(*a)])
        outcome = robust(*typed, "--fail-under", "fliplr=100")
    assert outcome.code == 1
    assert "gates" not in outcome.err
    assert "Partial run (status: partial): 20 of 40 predictions are missing." in outcome.out
    missing = "20 of 40 predictions are missing.\nMissing: 20 of `vmamba-pico` under fliplr"
    assert missing in outcome.err
    assert "20 of 40 predictions are missing" in Path("run/report.md").read_text()
    assert "Partial run" in robust("report", "run").out
    assert robust(*typed).code == 0
    assert "Partial" not in Path("run/report.md").read_text()


def eval_of(model: str, transform: str = "identity", *more: str) -> list[str]:
    """The arguments of an evaluation."""
    return ["eval", "--model", model, "--transform", transform, *more]


def pico(*more: str) -> list[str]:
    """Those of one that would run, but for `more`."""
    return eval_of("vmamba-pico", "identity", *more)


REFUSED = {
    "unknown model": (eval_of("vmamba-pcio"), "No model is called `vmamba-pcio`.\nDid you mean "),
    "timm's typo": (eval_of("resnet5O"), "Did you mean `resnet50` or "),
    "unknown transform": (eval_of("vmamba-pico", "perspektive"), "Did you mean `perspective`"),
    "no glob matches": (eval_of("vmamba-pico", "zz*"), "No transform matches `zz*`."),
    "no data": (eval_of("vmamba-t"), "No data is specified for the label space `imagenet-1k`"),
    "no such data": (pico("--data", "nowhere"), "No data set was found at"),
    "other label space": (
        eval_of("vmamba-t", "identity", "--data", "cifar10-mini"), "imagenet-1k"
    ),
    "weights file": (
        pico("--weights", "none.pth"), "weights file `none.pth`"
    ),
    "unknown device": (pico("--device", "tpuu"), "`--device tpuu`"),
    "unknown argument": (
        pico("--untrained", "--model-arg", "width=3"), "width=..."
    ),
    "one file for two": (
        pico("--model", "vmamba-t", "--weights", "w.pth"),
        "`--weights` and `--model-arg` can only be used with one `--model`.\nGot 2 models.\nRun "
        "the command once",
    ),
    "two label spaces": (
        pico("--model", "vmamba-t"), "models have different classes"
    ),
    "twice": (pico("--model", "VMAMBA_pico"), "was given twice"),
    "not empty": (pico("--untrained", "--out", "full"), "is not empty"),
    "too many a class": (
        pico("--untrained", "--per-class", "97"),
        "`--per-class 97` is more than the data set has",
    ),
    "no model": (["eval", "--transform", "identity"], "Missing option '--model'"),
    "no transform": (["eval", "--model", "vmamba-pico"], "Missing option '--transform'"),
    "std of two": (pico("--std", "1,2"), "`--std 1,2` has 2 numbers."),
    "std of zero": (
        pico("--untrained", "--std", "0,1,1"), "above zero"
    ),
    "no pixels": (pico("--crop", "0"), "--crop"),
    "no number": (pico("--limit", "few"), "--limit"),
    "no pair": (pico("--model-arg", "x"), "`x` is not KEY=VALUE"),
    "wrong precision": (pico("--precision", "fp8"), "--precision"),
    "other backend": (
        pico("--untrained", "--scan-backend", "cpuu"), "`cpu`"
    ),
    "other backend without a scan": (
        ("eval", "--model", "otsu", "--transform", "identity", "--scan-backend", "cpuu"), "`cpu`"
    ),
    "weights of an untrained network": (
        pico("--untrained", "--weights", "none.pth"), "exclude each other"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_carried_out_ends_with_2_and_says_why(
    robust: Robust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setenv("ROBUST_SCAN_BACKEND", "")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    arguments, words = REFUSED[case]
    outcome = (
        robust(*arguments, "--device", "cpu") if "--device" not in arguments else robust(*arguments)
    )
    assert outcome.code == 2, outcome.err
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert (tmp_path / "full" / "thesis.txt").exists()


def test_missing_weights_give_address_file_and_flag(robust: Robust, tmp_path: Path) -> None:
    (tmp_path / "photos" / "n01440764").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "photos" / "n01440764" / "tench.jpg")
    outcome = robust(*eval_of("vmamba-t", "identity", "--data", "photos", "--offline"))
    file = "vssm1_tiny_0230s_ckpt_epoch_264.pth"
    assert outcome.code == 2
    assert outcome.err.startswith("Error: The weights of `vmamba-t` are not on this machine.\n")
    assert (
        f"https://github.com/MzeroMiko/VMamba/releases/download/%23v2cls/{file} to " in outcome.err
    )
    assert (
        f"`{tmp_path / 'home' / 'weights' / file}`, or pass a copy with `--weights FILE`"
        in outcome.err
    )
    assert not (tmp_path / "runs").exists()


def test_a_quick_look_says_its_error_and_time_before_it_runs(
    robust: Robust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "QUICK_IMAGES", 41)  # the usual 381 are in tests/data
    typed = ["eval", *MODEL, "--transform", "fliplr", "--quick", "--workers", "0", "--out", "run",
             "--device", "cpu"]  # fmt: skip
    outcome = robust(*typed)
    assert outcome.code == 0
    _, quick, time, *_ = outcome.err.splitlines()
    low, high = binomtest(20, 41).proportion_ci(method="wilson")
    assert quick == (
        "Quick look at 41 of 960 images: the error of top-1 will be at most "
        f"+-{50 * (high - low):.1f} percentage points (95 %)."
    )
    assert re.fullmatch(
        r"The evaluation will take about .* on this machine \(estimated from a short test\); all "
        r"960 images would take .*\.",
        time,
    )
    record = read_record(Path("run"))
    assert record.dataset.images == 41
    subset = "quick look: 41 images distributed over the classes, seed 0"
    assert record.dataset.subset == subset
    assert subset in Path("run/report.md").read_text("utf-8")
    again = robust(*typed)
    assert "The evaluation will take" not in again.err
    forecast = json.loads(robust(*typed, "--dry-run", "--json").out)
    assert (forecast["images"], forecast["pool_images"]) == (41, 960)
    assert f"+-{50 * (high - low):.1f} percentage points" in forecast["precision"]


@pytest.mark.parametrize("option", ["--limit", "--per-class"])
def test_a_quick_look_chooses_its_size_itself(robust: Robust, option: str) -> None:
    outcome = robust("eval", *MODEL, "--transform", "fliplr", "--quick", option, "3")
    assert outcome.code == 2
    assert f"`--quick` cannot be used with `{option}`" in outcome.err


def test_a_quick_look_at_masks_counts_groups(robust: Robust) -> None:
    outcome = robust("eval", "--model", "otsu", "--transform", "fliplr", "--quick", "--dry-run",
                  "--split", "all")  # fmt: skip
    assert outcome.code == 0
    groups = 62
    typical, worst = (1.96 * spread / groups**0.5 for spread in (0.2, 0.5))
    assert f"mean dice over {groups} of " in outcome.out
    assert f"about +-{typical:.2f} (95 %) if" in outcome.out
    assert f"at most +-{worst:.2f}" in outcome.out


GATED = [*SMALL, "--transform", "fliplr", "--out", "run"]


def test_gates_end_with_4_say_why_and_can_be_others_later(robust: Robust) -> None:
    outcome = robust(*GATED, "--fail-under", "fliplr=100", "--fail-drop", "90")
    assert outcome.code == 4
    assert "Error: 1 of 2 gates failed in `run`.\n  `--fail-under fliplr=100`: `vmamba-pico`, " in (
        outcome.err
    )
    assert "Gates: 1 of 2 passed" in outcome.out
    assert "**Gates: 1 of 2 failed.**" in Path("run/report.md").read_text("utf-8")
    assert "**failed**: `--fail-under fliplr=100`: `vmamba-pico`, fliplr: top-1" in (
        Path("run/report.md").read_text("utf-8")
    )
    assert read_record(Path("run")).status == "complete"
    # The complete run is gated again, by others and by none.
    outcome = robust(*GATED, "--fail-under", "clean=100", "--json")
    assert outcome.code == 4
    document = json.loads(outcome.out)
    assert [row["transform"] for row in document["results"]] == ["identity", "fliplr"]
    (gate,) = document["gates"]["gates"]
    assert not gate["passed"]
    assert gate["value"] == pytest.approx(100 * document["results"][0]["top1"])
    assert robust(*GATED).code == 0
    assert not Path("run/gates.json").exists()
    assert "Gates" not in Path("run/report.md").read_text("utf-8")


def test_a_gate_for_another_transform_ends_before_anything_runs(robust: Robust) -> None:
    outcome = robust(*GATED, "--fail-under", "flipud=70")
    assert outcome.code == 2
    assert "specifies a transform that is not in the run: `flipud`" in outcome.err
    assert not Path("run").exists()
