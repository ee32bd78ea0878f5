"""User-defined classes: a weights file, a file with class names, and photos."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import robustcli
from robustcli.adapters import networks
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.adapters.training_run import ClassifierHeader, write_weights
from robustcli.core.errors import UsageError
from robustcli.evaluation.store import Store
from robustcli.transforms.base import Cell

NAMES = ("cat", "dog", "frog", "ship")
ORDER = ("ship", "frog", "dog", "cat")
TIMM = "test_resnet.r160_in1k"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Writes photos of four classes, a file that names them in another order, and a table."""
    generator = np.random.default_rng(0)
    rows = ["path,label"]
    for name in NAMES:
        (tmp_path / "four" / name).mkdir(parents=True)
        for number in range(2):
            pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "four" / name / f"{number}.png")
            rows.append(f"four/{name}/{number}.png,{name}")
    (tmp_path / "four.csv").write_text("\n".join(rows))
    (tmp_path / "four.txt").write_text("\n".join(ORDER))
    torch.manual_seed(0)
    torch.save(timm.create_model(TIMM, num_classes=4).state_dict(), tmp_path / "timm.pth")
    torch.save(
        networks.create("vmamba-pico", {"num_classes": 4}).state_dict(), tmp_path / "pico.pth"
    )
    return tmp_path


def evaluate(folder: Path, model: str = TIMM, **options: object) -> robustcli.Run:
    settings = {
        "out": folder / "run", "weights": folder / "timm.pth", "workers": 0,
        "label_space": str(folder / "four.txt"), "data": folder / "four",
    }  # fmt: skip
    return robustcli.evaluate(model, transforms="identity", **(settings | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("arguments", "data"), [({"num_classes": 4}, "four"), ({}, "four.csv")])
def test_all_images_in_the_order_of_the_file(
    folder: Path, arguments: dict[str, object], data: str
) -> None:
    run = evaluate(folder, model_args=arguments, data=folder / data)
    rows = Store(run.path).rows(TIMM, Cell("identity", 0), "cls")
    classes = [Path(image).parent.name for image in rows["image_id"]]
    assert len(rows) == 8
    assert [ORDER[target] for target in rows["target"]] == classes
    assert rows["prediction"].between(0, 3).all()
    record = json.loads((run.path / "run.json").read_text())
    assert record["dataset"]["label_space"] == record["models"][0]["label_space"] == "four"
    assert record["models"][0]["arguments"] == {"num_classes": 4}


def test_several_such_models_in_one_run(folder: Path) -> None:
    evaluate(folder)
    run = evaluate(folder, "vmamba-pico", weights=folder / "pico.pth")
    assert sorted(run.table()["model"]) == [TIMM, "vmamba-pico"]
    assert set(run.table()["n"]) == {8}


@pytest.mark.parametrize("names", [ORDER[:3], (*ORDER, "emu")])
def test_a_label_file_of_another_length_names_both_numbers(
    folder: Path, names: tuple[str, ...]
) -> None:
    (folder / "four.txt").write_text("\n".join(names))
    message = rf"has 4 classes; `.*four\.txt` has {len(names)}"
    with pytest.raises(UsageError, match=message):
        evaluate(folder)


def test_without_a_label_file_the_message_asks_for_one(folder: Path) -> None:
    message = r"has 4 classes; `imagenet-1k` has 1000(.|\n)*`--label-space"
    with pytest.raises(UsageError, match=message):
        evaluate(folder, label_space=None)


def test_a_label_file_of_a_bundled_name_is_not_that_label_space(folder: Path) -> None:
    (folder / "four.txt").rename(folder / "cifar10.txt")
    run = evaluate(folder, label_space=str(folder / "cifar10.txt"))
    assert run.record.dataset.label_space == "cifar10.txt"


def test_a_dry_run_knows_the_classes_too(folder: Path) -> None:
    from robustcli.adapters.catalogue import ModelRequest
    from robustcli.core.listener import Silent
    from robustcli.evaluation.config import EvalConfig
    from robustcli.evaluation.forecast import forecast

    space = str(folder / "four.txt")
    request = ModelRequest(TIMM, folder / "timm.pth", label_space=space)
    config = EvalConfig((request,), ("identity",), str(folder / "four"), folder / "dry",
                        label_space=space, workers=0)  # fmt: skip
    assert forecast(config, Silent()).predictions == 8


def test_a_label_file_in_another_order_than_that_of_a_training_is_refused(folder: Path) -> None:
    """Both label spaces are called `four` and differ in the order of the classes only."""
    run = folder / "trained"
    header = ClassifierHeader(
        model=TIMM, arguments={}, window=160, trained_on="ab", images_sha256="cd",
        label_space="four", classes=NAMES, class_names=NAMES,
        preprocessing=asdict(Preprocessing(168, 160)),
    )  # fmt: skip
    state = timm.create_model(TIMM, num_classes=4).state_dict()
    write_weights(run / "weights.safetensors", state, header)
    with pytest.raises(UsageError, match=r"contradicts(.|\n)*\(cat, dog.*\(ship, frog"):
        evaluate(folder, str(run), weights=None)
    (folder / "four.txt").write_text("\n".join(NAMES))
    assert set(evaluate(folder, str(run), weights=None).table()["n"]) == {8}
