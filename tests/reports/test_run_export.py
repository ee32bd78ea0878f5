"""Published parts of a run: numbers and digests, without secrets and private paths."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from robustcli.core.errors import UsageError
from robustcli.core.io import read_csv
from robustcli.reports.run_export import Redactor, RunExport, read_run_export
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.finetune_runs import FinetunePlan, build_finetuning
from tests.reports.train_runs import build_class_training, build_training

PLAN = RunPlan(
    models=(model("vmamba-b"), model("hf-hub:timm/swin.b")),
    transforms=(IDENTITY, paper21()[0], *imagenet_c(severities=(1, 3))[:2]),
    images=40,
)
pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, blank_figures: None) -> RunExport:
    return read_run_export(build_run(tmp_path_factory.mktemp("export") / "run", PLAN))


@pytest.fixture
def redactor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Redactor:
    (tmp_path / "ann" / "work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "ann" / "work")
    return Redactor(
        tmp_path / "ann", {"MY_TOKEN": "s3cr3t-value", "PATH": "/usr/bin:/bin", "A_KEY": "short"}
    )


def test_paths_are_relative_or_below_a_tilde(redactor: Redactor, tmp_path: Path) -> None:
    home = tmp_path / "ann"
    assert redactor.text(f"at {home}/work/runs/a and {home}/photos.") == "at runs/a and ~/photos."
    assert redactor.text(f'"{home}"') == '"~"'
    assert redactor.text("`/home/bob/x`, /Users/Eve/y, /root/z") == "`~/x`, ~/y, ~/z"
    assert redactor.text(r"C:\Users\Bob\x and C:/Users/Bob/y") == r"~\x and ~/y"
    assert redactor.text("https://example.org/home/bob") == "https://example.org/home/bob"
    assert redactor.text("data:image/png;base64,AB/home/xyz/AA") == (
        "data:image/png;base64,AB/home/xyz/AA"
    )
    assert redactor.path("/mnt/share/imagenet") == ".../imagenet"
    assert redactor.path("runs/a") == "runs/a"


@pytest.mark.parametrize(
    "secret",
    [
        "s3cr3t-value",
        "hf_abcdefghijklmnopqrstuvwxyz0123",
        "ghp_abcdefghijklmnopqrstuvwxyz0123",
        "AKIAABCDEFGHIJKLMNOP",
    ],
)
def test_secrets_are_hidden(redactor: Redactor, secret: str) -> None:
    for text in (f"--x {secret}", f"https://host/?q={secret}&b=1", f'{{"a": "{secret}"}}'):
        assert secret not in redactor.text(text)


def test_passwords_are_hidden_by_their_names(redactor: Redactor) -> None:
    assert redactor.text("password=abc&x=1") == "password=***&x=1"
    assert redactor.text("api_key: abc") == "api_key: ***"
    assert redactor.text("https://ann:pw@host/x") == "https://***@host/x"
    assert redactor.text("short tokens of a text") == "short tokens of a text"


def test_commands_lose_folders_of_elsewhere(redactor: Redactor, tmp_path: Path) -> None:
    command = f"robust eval --weights=/mnt/a/w.pt --data {tmp_path}/ann/d --out '/mnt/b c'"
    assert redactor.command(command) == "robust eval --weights=.../w.pt --data ~/d --out .../b c"


def test_metrics_are_the_table(export: RunExport) -> None:
    table = read_csv(export.run / "results.csv")
    row = table[(table["transform"] == "c_gaussian_noise") & (table["severity"] == 3)].iloc[0]
    prefix = "vmamba-b/c_gaussian_noise/severity-3"
    for column in ("n", "correct", "top1", "top1_low", "top1_high", "drop"):
        assert export.metrics[f"{prefix}/{column}"] == row[column]
    assert "hf-hub-timm-swin.b/additive_gaussian_noise/top1" in export.metrics
    assert "vmamba-b/identity/psnr_db" not in export.metrics  # infinite
    numbers = table.drop(columns=["model", "transform", "severity"])
    finite = numbers.replace([float("inf")], float("nan")).notna().to_numpy().sum()
    assert len(export.metrics) == finite


def test_metrics_of_models_whose_names_look_like_other_values(tmp_path: Path) -> None:
    names = ["007", "7", "null", "NA"]
    build_run(tmp_path, RunPlan(models=[model(name) for name in names], transforms=(IDENTITY,)))
    metrics = read_run_export(tmp_path).metrics
    assert all(f"{name}/identity/top1" in metrics for name in names)


def test_parameters_hold_versions_and_digests(export: RunExport) -> None:
    parameters = export.parameters
    assert parameters["models.vmamba-b.weights_sha256"] == "ab" * 32
    assert parameters["models.hf-hub-timm-swin.b.pretraining"] == "imagenet-1k"
    assert parameters["transforms.c_gaussian_noise-severity-3.parameters.severity"] == "3"
    assert {"dataset.digest", "versions.torch", "seed", "run_digest"} <= set(parameters)
    assert re.fullmatch("[0-9a-f]{64}", parameters["publisher.code_sha256"])


def test_the_key_stays_and_the_digest_follows_the_numbers(
    export: RunExport, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(export.run, tmp_path / "moved"))
    extended_plan = replace(PLAN, transforms=(*PLAN.transforms, paper21()[1]))
    extended = build_run(Path(shutil.copytree(export.run, tmp_path / "extended")), extended_plan)
    changed = Path(shutil.copytree(export.run, tmp_path / "changed"))
    file = next(changed.glob("predictions/*/transform=identity/*/*.parquet"))
    rows = pd.read_parquet(file)
    rows.loc[0, "probability"] = 0.5
    rows.to_parquet(file)
    for run, is_same in ((export.run, True), (moved, True), (extended, False), (changed, False)):
        other = read_run_export(run, rendered=False)
        assert other.key == export.key
        assert (other.digest == export.digest) is is_same


def test_a_partial_run_is_refused_unless_it_is_marked(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", replace(PLAN, done=0.5))
    with pytest.raises(UsageError, match=r"is partial: .* predictions are missing") as caught:
        read_run_export(run)
    assert "--partial" in str(caught.value)
    export = read_run_export(run, partial=True)
    assert export.partial
    assert export.parameters["partial"] == "true"


def test_trainings_have_epochs_and_finetunings_modes(tmp_path: Path) -> None:
    training = read_run_export(build_training(tmp_path / "train"))
    metrics = pd.read_csv(tmp_path / "train" / "metrics.csv")
    assert [epoch for epoch, _ in training.epochs] == list(metrics["epoch"])
    assert training.epochs[0][1]["epoch/train_loss"] == metrics["train_loss"][0]
    assert any(name.endswith("/dice_low") for name in training.metrics)
    classes = read_run_export(build_class_training(tmp_path / "classes"))
    assert any(name.endswith("/top1") for name in classes.metrics)
    plan = FinetunePlan(modes=("full", "freeze"))
    finetuning = read_run_export(build_finetuning(tmp_path / "finetune", plan))
    assert {name.split("/")[0] for name in finetuning.metrics} == {"full", "freeze"}
    assert finetuning.epochs == []


def test_files_are_cleaned_and_hold_no_image_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    location = "/home/ann/photos"
    record = {"command": "robust eval --x 0123456789abcdef"}
    plan = replace(PLAN, dataset={"location": location}, record=record)
    run = build_run(tmp_path / "run", plan)
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / "of_an_earlier_report.png").write_bytes(b"old")
    export = read_run_export(run)
    files = export.files()
    assert any(name.startswith("figures/") for name in files)
    assert "figures/of_an_earlier_report.png" not in files
    assert set(files) >= {"report.md", "report.html", "results.csv", "results.json", "run.json"}
    assert all(name.startswith("figures/") for name in set(files) - set(export.texts))
    exported_bytes = b"".join(files.values()) + json.dumps(export.parameters).encode()
    assert b"/home/ann" not in exported_bytes
    assert b"0123456789abcdef" not in exported_bytes
    assert b"~/photos" in files["report.md"]
    files_without_pictures = read_run_export(run, pictures=False).files()
    assert set(files_without_pictures) == {"report.md", "results.csv", "results.json", "run.json"}
