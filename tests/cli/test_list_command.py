"""`robust list`: what can be named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.data.named_datasets import DATASETS
from robustcli.transforms.registry import transforms
from tests.cli.conftest import Robust

NAMES = {
    "models": list(CATALOGUE),
    "transforms": [one.name for one in transforms()],
    "datasets": [one.name for one in DATASETS],
}


def listed(robust: Robust, *arguments: str) -> list[dict[str, Any]]:
    outcome = robust("list", *arguments, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    rows: list[dict[str, Any]] = json.loads(outcome.out)
    return rows


@pytest.mark.parametrize("kind", NAMES)
def test_everything_is_listed_in_its_order(robust: Robust, kind: str) -> None:
    assert [row["name"] for row in listed(robust, kind)] == NAMES[kind]
    outcome = robust("list", kind)
    assert outcome.code == 0
    first = [line.split()[0] for line in outcome.out.splitlines() if line]
    assert [name for name in first if name in NAMES[kind]] == NAMES[kind]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (
            ["models", "SWIN_*"],
            ["swin-t", "swin-s", "swin-b", "swin-umamba", "swin-umamba-d", "swin-umamba-pico"],
        ),
        (["models", "vmamba_B"], ["vmamba-b"]),
        (["transforms", "*affine"], ["affine", "piecewise_affine"]),
        (["datasets", "cifar*"], ["cifar10-mini", "cifar10", "cifar100"]),
        (["recipes", "NNUNET_light"], ["--recipe nnunet-light"]),
        (["recipes", "nnunet*"], ["--recipe nnunet", "--recipe nnunet-light"]),
        (["recipes", "vmunet"], ["vmunet"]),
    ],
)
def test_a_pattern_chooses(robust: Robust, arguments: list[str], names: list[str]) -> None:
    assert [row["name"] for row in listed(robust, *arguments)] == names


def test_names_of_timm_are_listed_if_no_other_matches(robust: Robust) -> None:
    rows = listed(robust, "models", "ResNet10T*")
    assert [row["name"] for row in rows] == ["resnet10t", "resnet10t.c3_in1k"]
    assert rows[0].keys() == listed(robust, "models", "vmamba-b")[0].keys()
    assert "resnet10t.c3_in1k  timm" in robust("list", "models", "resnet10t.*").out


def test_a_model_has_the_columns_of_the_interface(robust: Robust) -> None:
    (row,) = listed(robust, "models", "vmamba-b")
    assert row == {
        "name": "vmamba-b",
        "task": "cls",
        "family": "vmamba",
        "classes": "imagenet-1k",
        "is": "vmamba-b-s2l15",
        "parameters": 88_557_800,
        "published top-1 %": 83.9,
        "published dice": None,
        "published iou": None,
        "remark": "",
        "pretraining": "ImageNet-1K only",
        "weights here": "no",
        "licence": "MIT",
        "source": "https://github.com/MzeroMiko/VMamba/releases/download/"
        "%23v2cls/vssm_base_0229_ckpt_epoch_237.pth",
    }
    output = robust("list", "models", "vmamba-b").out
    assert "88,557,800" in output
    assert "83.9" in output
    assert "vssm_base_0229_ckpt_epoch_237.pth" not in output
    wide = robust("list", "models", "vmamba-b", "--wide").out
    assert "vssm_base_0229_ckpt_epoch_237.pth" in wide
    assert "ImageNet-1K only" in wide


@pytest.mark.parametrize("kind", ["models", "transforms", "datasets", "recipes"])
def test_what_is_listed_fits_120_columns(robust: Robust, kind: str) -> None:
    assert max(map(len, robust("list", kind).out.splitlines())) <= 120


def test_models_are_grouped_by_task(robust: Robust) -> None:
    classifiers, segmenters = robust("list", "models").out.split("Segmenters\n")
    assert classifiers.startswith("Classifiers\n")
    header = segmenters.split("\n")[1]
    assert "published dice" in header
    assert "top-1" not in header
    only = robust("list", "models", "vmamba-*").out
    assert "Segmenters" not in only


def test_weights_that_are_here_are_said_to_be(robust: Robust, tmp_path: Path) -> None:
    file = tmp_path / "home" / "weights" / "vssm_base_0229_ckpt_epoch_237.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    here = {
        row["name"] for row in listed(robust, "models", "vmamba-*") if row["weights here"] == "yes"
    }
    assert here - {"vmamba-pico"} == {"vmamba-b", "vmamba-b-s2l15"}


def test_a_model_without_published_number_leaves_the_column_empty(robust: Robust) -> None:
    assert listed(robust, "models", "vmamba-pico")[0]["published top-1 %"] is None
    assert "None" not in robust("list", "models").out


def test_otsu_needs_no_weights(robust: Robust) -> None:
    (row,) = listed(robust, "models", "otsu")
    assert row["weights here"] == "none needed"


def test_severities_are_a_range_in_the_table_and_a_list_in_json(robust: Robust) -> None:
    assert listed(robust, "transforms", "c_fog")[0]["severities"] == "1,2,3,4,5"
    assert "1-5" in robust("list", "transforms", "c_fog").out


def test_names_that_timm_has_too_are_explained_in_120_columns(robust: Robust) -> None:
    lines = robust("list", "models").out.splitlines()
    assert max(map(len, lines)) <= 120
    titles = [n for n, line in enumerate(lines) if line.startswith(("Classifiers", "Segmenters"))]
    assert len(titles) == 3
    group = "\n".join(lines[titles[1] : titles[2]])
    for name in ("vim", "vit", "resnet9", "cifar-resnet18", "cifar-resnet50", "vmamba-pico"):
        assert f"\n{name} " in group
    assert "vim-t" not in group
    (line,) = [line for line in lines if "--model resnet18" in line]
    assert "`cifar-resnet18`" in line
    assert "`timm:resnet18`" in line


def test_timm_is_mentioned_below_the_models(robust: Robust) -> None:
    assert robust("list", "models").out.endswith("with its tag; and smp:ARCHITECTURE/ENCODER.\n")


def test_transforms_say_what_they_do(robust: Robust) -> None:
    rows = {row["name"]: row for row in listed(robust, "transforms")}
    assert rows["perspective"]["moves pixels"] == "yes"
    assert rows["invert"]["moves pixels"] == "no"
    assert rows["perspective"]["parameters"] == "assumed"
    assert rows["identity"]["parameters"] == "defined"
    assert all(row["does"] for row in rows.values())


def test_bundled_data_are_here_and_others_are_not(robust: Robust) -> None:
    here = {row["name"]: row["here"] for row in listed(robust, "datasets")}
    assert here == {
        "cifar10-mini": "yes", "imagenet-sample": "no", "nuclei-mini": "yes", "cifar10": "no",
        "cifar100": "no",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models", "vmamba-x"], "Error: No model is called `vmamba-x`.\nDid you mean `vmamba-"),
        (
            ["transforms", "zz*"],
            "Error: No transform matches `zz*`.\n`robust list transforms` lists",
        ),
        (["datasets", "cifar"], "Error: No dataset is called `cifar`."),
    ],
)
def test_nothing_matches(robust: Robust, arguments: list[str], message: str) -> None:
    outcome = robust("list", *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(message)
    assert outcome.out == ""


def test_an_unknown_kind(robust: Robust) -> None:
    outcome = robust("list", "papers")
    assert outcome.code == 2
    assert "'models', 'transforms', 'datasets', 'recipes'" in outcome.err
