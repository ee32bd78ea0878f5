"""The training of a classifier, end to end, on photos of three colours."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from robustcli import create_model
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.adapters.training_run import ClassifierHeader, read_header
from robustcli.core.errors import UsageError
from robustcli.data.splits import read_earlier_splits, read_splits
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.exporting import ExportConfig, export
from robustcli.evaluation.store import Store
from robustcli.models.multiply_adds import count_multiply_adds
from robustcli.reports.render import render
from robustcli.reports.training_findings import read_training
from robustcli.reports.training_page import training_table
from robustcli.tasks.heldout import training_data
from robustcli.training.config import TrainConfig
from robustcli.training.engine import run_training
from robustcli.training.record import VALIDATIONS, read_train_record
from robustcli.training.train_plan import plan_training
from robustcli.transforms.base import Cell
from tests.training.images import write_photos
from tests.training.runs import (
    TINY_VMAMBA,
    Recorder,
    Run,
    recorded_training,
    tiny_classifier,
    weights_of,
    words_of,
)


@pytest.fixture(scope="module")
def finished_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return recorded_training(tiny_classifier(photos, tmp_path_factory.mktemp("whole") / "run"))


def test_a_training_announces_its_settings(finished_run: Run) -> None:
    lines = "\n".join(finished_run[1].lines)
    assert "Parts: train 30 images, val 3 images, test 3 images" in lines
    assert "Recipe `classes` (ours): 3 epochs, batch 10, window 32" in lines
    assert "top-1" in lines
    assert "dice" not in lines


def test_the_record_and_the_curves_are_a_classifiers(finished_run: Run) -> None:
    run = finished_run[0]
    record = read_train_record(run)
    assert (record.task, record.status, record.model) == ("cls", "complete", "vmamba-pico")
    assert (record.dataset.label_space, record.dataset.classes) == ("paints", 3)
    assert record.splits["test"].images == 3
    metrics = pd.read_csv(run / "metrics.csv")
    assert list(metrics) == list(VALIDATIONS["cls"].metrics)
    assert metrics["val_f1"].between(0, 1).all()
    assert (metrics["val_seconds"].to_numpy() < metrics["seconds"].to_numpy()).all()
    network = create_model("vmamba-pico", num_classes=3, **TINY_VMAMBA)
    assert record.multiply_adds == count_multiply_adds(
        lambda: network(torch.zeros(1, 3, 32, 32)), network
    )
    best = metrics["val_top1"].to_numpy().argmax() + 1
    assert record.chosen_epoch == best
    assert record.chosen_why.startswith("the best top-1 on the validation images")


def test_nothing_in_the_folder_speaks_of_dice(finished_run: Run, blank_figures: None) -> None:
    run = finished_run[0]
    render(run)
    for file in ["metrics.csv", "report.md", "report.html", "results.csv"]:
        assert "dice" not in words_of(run / file), file
    assert "dice" not in training_table(read_training(run))
    assert "most frequent class" in training_table(read_training(run))


def test_the_header_of_the_weights_describes_preprocessing_and_classes(
    finished_run: Run, photos: Path
) -> None:
    header = read_header(finished_run[0] / "weights.safetensors")
    assert isinstance(header, ClassifierHeader)
    assert header.classes == ("blue", "green", "red")
    assert (header.model, header.arguments) == ("vmamba-pico", TINY_VMAMBA)
    assert header.preprocessing["crop"] == 32
    assert set(header.seen) <= {
        i for i, part in read_splits(finished_run[0] / "splits.csv").items() if part == "train"
    }
    classifier = load(ModelRequest(str(finished_run[0])), "cls")
    assert classifier.facts.label_space == "paints"
    assert classifier.facts.pretraining == "trained here"
    reloaded = load(ModelRequest("vmamba-pico", finished_run[0] / "weights.safetensors"), "cls")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(classifier.logits(images), reloaded.logits(images))


def test_the_held_out_images_are_those_that_were_measured(finished_run: Run) -> None:
    run = finished_run[0]
    parts = read_splits(run / "splits.csv")
    rows = Store(run / "test").rows("run", Cell("identity", 0), "cls")
    assert set(rows["image_id"]) == {i for i, part in parts.items() if part == "test"}
    splits = read_train_record(run).splits
    assert {name: (split.images, split.groups, split.empty) for name, split in splits.items()} == {
        "train": (30, 30, None),
        "val": (3, 3, None),
        "test": (3, 3, None),
    }


def _evaluated(
    run: Path, photos: Path, out: Path, **overrides: Any
) -> tuple[pd.DataFrame, Recorder]:
    listener = Recorder()
    config = EvalConfig(
        (ModelRequest(str(run)),),
        ("identity",),
        data=str(photos),
        out=out,
        device="cpu",
        **overrides,
    )
    run_evaluation(config, listener)
    return table(out), listener


def test_its_own_data_is_evaluated_without_what_it_was_trained_on(
    finished_run: Run, photos: Path, tmp_path: Path
) -> None:
    scores, listener = _evaluated(finished_run[0], photos, tmp_path / "own")
    assert scores["n"].tolist() == [3]
    assert "held out" in "\n".join(listener.lines)
    assert _evaluated(finished_run[0], photos, tmp_path / "all", split="all")[0]["n"].tolist() == [
        36
    ]


def test_other_photos_with_the_same_names_are_all_evaluated(
    finished_run: Run, tmp_path: Path
) -> None:
    other_photos = write_photos(tmp_path / "paints", 5, seed=9)
    assert _evaluated(finished_run[0], other_photos, tmp_path / "other")[0]["n"].tolist() == [15]


@pytest.mark.usefixtures("unscored")
def test_a_training_learns_three_colours(photos: Path, tmp_path: Path) -> None:
    run = run_training(tiny_classifier(photos, tmp_path / "run", epochs=8))
    assert pd.read_csv(run / "metrics.csv")["val_top1"].iloc[-1] == 1.0


def test_batch_norm_and_a_window_of_ones_own(photos: Path, tmp_path: Path) -> None:
    config = tiny_classifier(
        photos, tmp_path / "run", model="resnet-pico", model_args={}, window=48, epochs=1
    )
    run = run_training(config)
    classifier = load(ModelRequest(str(run)), "cls")
    assert (classifier.preprocessing.crop, classifier.facts.label_space) == (48, "paints")
    state = weights_of(run)
    tracked = [name for name in state if name.endswith("num_batches_tracked")]
    assert {int(state[name]) for name in tracked} == {3}


CIFAR = ["vim", "cifar-resnet18", "vmamba-pico"]


@pytest.mark.parametrize("name", CIFAR)
def test_a_network_for_cifar_has_data_and_a_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROBUST_DATA_CIFAR10", raising=False)
    monkeypatch.chdir(tmp_path)  # a folder without `robust.toml`
    listener = Recorder()
    plan = plan_training(TrainConfig(name, task="cls", device="cpu"), listener)
    assert listener.lines[0].startswith(
        "`--data` is not set; using cifar10-mini (a demonstration set), 960 im"
    )
    assert (plan.recipe.name, plan.recipe.window, plan.entry.name) == ("cifar10-mini", 32, name)
    sizes = [len(part.samples) for part in (plan.splits.train, plan.splits.val, plan.splits.test)]
    assert sizes == [760, 100, 100]
    named_plan = plan_training(TrainConfig(name, "cifar10-mini", device="cpu"), Recorder())
    assert named_plan.run == plan.run


def test_data_that_the_user_set_go_before_the_bundled_photos(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUST_DATA_CIFAR10", str(photos))
    listener = Recorder()
    plan = plan_training(tiny_classifier(None, tmp_path / "run"), listener)
    assert (plan.index.name, plan.recipe.name) == ("paints", "classes")
    assert "`--data` is not set; using paints, 36 images" in listener.lines[0]


def test_resnet18_is_trained_with_a_stem_for_small_images(tmp_path: Path) -> None:
    config = tiny_classifier(
        "cifar10-mini", tmp_path / "run", model="ResNet18", model_args={"depths": [1, 1, 1, 1]}
    )
    listener = Recorder()
    plan = plan_training(config, listener)
    assert (plan.entry.name, plan.config.model) == ("cifar-resnet18", "cifar-resnet18")
    assert "`ResNet18` refers to `cifar-resnet18` here" in listener.lines[0]
    assert "11,173,962 parameters" in listener.lines[0]
    assert "`--model timm:resnet18`" in listener.lines[0]


def test_a_class_without_test_images_is_announced(photos: Path, tmp_path: Path) -> None:
    for colour in ("blue", "green", "red"):
        (tmp_path / "parts" / "train").mkdir(parents=True, exist_ok=True)
        shutil.copytree(photos / colour, tmp_path / "parts" / "train" / colour)
    for colour in ("blue", "green"):
        shutil.copytree(photos / colour, tmp_path / "parts" / "test" / colour)
    listener = Recorder()
    plan_training(tiny_classifier(tmp_path / "parts", tmp_path / "run"), listener)
    assert "test 24 images (none of `red`)" in "\n".join(listener.lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model_args": {**TINY_VMAMBA, "num_classes": 3}},
            "`--model-arg num_classes` cannot be used for",
        ),
        ({"protocol": "paper"}, "`--protocol paper` cannot be used with classifiers"),
        ({"model": "vim-t", "model_args": {}, "window": 40}, "40 x 40 pixels; this Vim needs 224"),
        (
            {"data": None, "model": "test_vit", "model_args": {}},
            "`--data` is not set, and `test_vit` has no default",
        ),
        ({"limit": 6}, "has too few images"),
        ({"task": "seg"}, "`vmamba-pico` is a classifier"),
    ],
)
def test_what_cannot_be_trained(
    photos: Path, tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    settings = {"data": photos, **overrides}
    with pytest.raises(UsageError, match=message):
        run_training(tiny_classifier(settings.pop("data"), tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_weights_from_a_file_are_kept_except_the_head(finished_run: Run, tmp_path: Path) -> None:
    two_classes = write_photos(tmp_path / "two", 6)
    for photo in (two_classes / "red").iterdir():
        photo.unlink()
    config = tiny_classifier(two_classes, tmp_path / "run", weights=finished_run[0], model_args={})
    plan = plan_training(config, Recorder())
    network, origin = plan.task.network(config, plan.entry, plan.index)
    state, start_weights = network.state_dict(), weights_of(finished_run[0])
    assert origin == str(finished_run[0] / "weights.safetensors")
    for name, tensor in state.items():
        if name.startswith("classifier.head"):
            assert tensor.shape[0] == 2
        else:
            assert torch.equal(tensor, start_weights[name]), name


def test_images_of_the_initial_weights_are_not_evaluated_as_held_out(
    finished_run: Run, photos: Path, tmp_path: Path
) -> None:
    """Both data sets have images of the same names."""
    first, photos_of = finished_run[0], {"first": photos}
    photos_of["second"] = write_photos(tmp_path / "others" / "paints", 12, seed=1)
    second, _ = recorded_training(
        tiny_classifier(
            photos_of["second"], tmp_path / "second", weights=first, epochs=1, split_seed=5
        )
    )
    splits = {run.name: read_splits(run / "splits.csv") for run in (second, first)}
    splits["first"] = splits.pop(first.name)
    assert splits["first"] != splits["second"]
    assert read_earlier_splits(second / "earlier_splits.csv") == [splits["first"]]
    headers = {run: read_header(run / "weights.safetensors") for run in (first, second)}
    assert [each.seen for each in headers[second].earlier] == [headers[first].seen]
    exported = tmp_path / "exported.pt"
    export(ExportConfig(ModelRequest(str(second)), ("torchscript",), exported))
    for model in (second, exported):
        for name, parts in splits.items():
            out = tmp_path / f"{model.stem} {name}"
            _, listener = _evaluated(model, photos_of[name], out)
            rows = Store(out).rows(model.name, Cell("identity", 0), "cls")
            assert set(rows["image_id"]) == {i for i, part in parts.items() if part == "test"}
            initial = " (its initial weights)" if name == "first" else ""
            message = f"`{model}`{initial} was trained on this data: only the 3 of 36 images"
            assert message in "\n".join(listener.lines)
    checkpoint = ModelRequest("vmamba-pico", weights=second / "checkpoints" / "last.ckpt")
    assert training_data(checkpoint).earlier[0].parts == splits["first"]
    third = tiny_classifier(photos, tmp_path / "third", weights=second, split_seed=1)
    listener = Recorder()
    plan = plan_training(third, listener)
    assert [dict(each.parts) for each in plan.earlier] == [splits["second"], splits["first"]]
    assert any(line.startswith("WARNING: These weights were trained") for line in listener.lines)
    (second / "earlier_splits.csv").unlink()
    with pytest.raises(UsageError, match=r"not known which images `.*` \(its initial weights\)"):
        _evaluated(second, photos, tmp_path / "unknown")
