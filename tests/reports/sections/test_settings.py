from pathlib import Path
from typing import Any

import pytest

from robustcli.reports.findings import read_findings
from robustcli.reports.sections.settings import settings
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.sections.told import line_of, told


def page(run: Path, **changes: Any) -> str:
    cells = (IDENTITY, *paper21()[:1], *imagenet_c()[:1])
    plan = RunPlan(**{"transforms": cells, **changes})
    return told(settings(read_findings(build_run(run, plan))))


def test_parameters_are_shown_and_the_assumed_ones_marked(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "Parameters assumed:" in text
    assert line_of(text, "`additive_gaussian_noise`") == [
        *("`additive_gaussian_noise`", "paper21"),
        *("`strength=[0.0, 0.5], per_channel=true`", "assumed"),
    ]
    assert line_of(text, "`c_gaussian_noise, severity 1`")[1:] == [
        *("imagenet-c", "`severity=1`", "given")
    ]


def test_without_assumed_parameters_none_are_claimed(tmp_path: Path) -> None:
    text = page(tmp_path / "a", transforms=(IDENTITY, *imagenet_c()[:1]))
    assert "assumed" not in text
    assert "Transform parameters" not in page(tmp_path / "b", transforms=(IDENTITY,))


@pytest.mark.parametrize(
    "fact",
    [
        "Images: `imagenet-val` at `photos/val`, 10 classes of label space `imagenet-1k`; "
        "60 of 50,000 images.",
        "Subset: 15 per class, seed 0.",
        f"Digest of the image list: `{'cd' * 32}`.",
        "Transforms act on the image after the model's own resize and crop (`--apply-at crop`).",
        "Seed: 7. Precision: bf16.",
    ],
)
def test_every_choice_is_stated(tmp_path: Path, fact: str) -> None:
    record = {"seed": 7, "precision": "bf16", "apply_at": "crop"}
    assert fact in page(tmp_path, record=record, dataset={"subset": "15 per class, seed 0"})


def test_models_are_described_so_that_they_can_be_found_again(tmp_path: Path) -> None:
    models = (
        model("a", arguments={"pad_type": "same"}, scan_backend="reference"),
        model("b", "imagenet-22k"),
        model("c", untrained=True, weights="", weights_sha256=""),
    )
    text = page(tmp_path, models=models)
    assert line_of(text, "`a`")[1:] == [
        *('`a.in1k, pad_type="same"`', "89,000,000", "imagenet-1k", "reference"),
        *("`a.safetensors`", f"`{'ab' * 32}`"),
    ]
    assert line_of(text, "`b`")[3:5] == ["imagenet-22k", "none"]
    assert line_of(text, "`c`")[3:] == ["untrained", "none", "none", "none"]
    inputs = text.split("| model")[2]
    assert line_of(inputs, "`a`")[1:] == [
        *("256 px", "224 px", "center", "bicubic", "0.5, 0.5, 0.5", "0.5, 0.5, 0.5")
    ]


def test_the_run_can_be_repeated(tmp_path: Path) -> None:
    text = page(tmp_path)
    command = "robust eval --model vmamba-b --data photos/val --transform paper21 --seed 0"
    assert f"```text\n{command}\n```" in text
    assert "Versions: imgaug 0.4.2, python 3.11.2, robustcli 0.1.0, torch 2.6.0." in text
    assert "Device: cpu (2 threads)." in text
