"""Segmenters of several classes: heads, trainings, reports and predicted masks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load, resolve
from robustcli.adapters.trainable import start_segmenter
from robustcli.adapters.training_run import WeightsHeader, read_header
from robustcli.core.errors import UsageError
from robustcli.data.mask_classes import network_class_names
from robustcli.data.sources import Masks, open_dataset
from robustcli.data.splits import take
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.exporting import ExportConfig, export
from robustcli.evaluation.mask_files import predict_masks
from robustcli.evaluation.store import Store, write_rows
from robustcli.metrics.mask_scores import class_dice, pooled_scores
from robustcli.reports.render import document, render
from robustcli.training.engine import run_training
from robustcli.training.lit_module import class_counts
from robustcli.training.record import read_train_record
from robustcli.transforms.base import CLEAN, Cell
from robustcli.verification.recorded_run import VerifyConfig
from robustcli.verification.verification import verify
from tests.imaginary_gpu import GPU, imaginary_gpu
from tests.training.runs import Recorder, tiny_unet

NAMES = ("disc", "ring")
COLOURS = ((210, 60, 40), (40, 90, 220))
ON_EIGHT: dict[str, Any] = {"split": "all", "limit": 8, "device": "cpu", "workers": 0}


def write_classes(folder: Path, count: int, *, size: int = 24, classes: bool = True) -> Path:
    """Writes pairs with two squares of two colours; the masks contain 0, 1 and 2."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        image = rng.integers(90, 110, (size, size, 3)).astype(np.uint8)
        mask = np.zeros((size, size), np.uint8)
        for index, colour in enumerate(COLOURS, 1):
            top, left = rng.integers(0, size // 2 - 8, 2)
            left += (index - 1) * size // 2
            image[top : top + 8, left : left + 8] = colour
            mask[top : top + 8, left : left + 8] = index
        Image.fromarray(image).save(folder / "images" / f"{number:03d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:03d}.png")
    if classes:
        table = {str(number): name for number, name in enumerate(NAMES, 1)}
        (folder / "labels.json").write_text(json.dumps(table), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("classes") / "data", 20)


@pytest.fixture(scope="module")
def training(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a training whose network distinguishes the squares."""
    out = tmp_path_factory.mktemp("trained") / "run"
    return run_training(
        tiny_unet(
            data, out, epochs=8, lr=0.02, window=24, aug="none", batch_size=2,
            model_args={"features": [8, 16]},
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(
    training: Path, data: Path, tmp_path_factory: pytest.TempPathFactory, blank_figures: None
) -> Path:
    run = run_evaluation(
        EvalConfig(
            (ModelRequest(str(training)),), ("fliplr", "invert"), data=str(data),
            out=tmp_path_factory.mktemp("evaluated") / "run", **ON_EIGHT,
        )
    )  # fmt: skip
    render(run)
    return run


def test_counts_of_a_validation_batch_are_those_of_its_masks():
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(0, 4, (2, 5, 1, 9, 8))
    is_counted = rng.random((5, 1, 9, 8)) < 0.7
    tensors = (torch.from_numpy(a) for a in (predicted, truth, is_counted))
    value = class_counts(*tensors, 3).numpy()
    for image in range(5):
        for number in range(1, 4):
            p, t = (a[image] == number for a in (predicted, truth))
            expected = [(p & t), (p & ~t), (~p & t)]
            assert value[image, number - 1].tolist() == [
                (e & is_counted[image]).sum() for e in expected
            ]


# Heads.


def test_a_head_of_other_classes_is_new_and_everything_else_is_kept(tmp_path, training):
    entry, arguments = resolve("unet"), {"features": [8, 16]}
    state = load_file(training / "weights.safetensors")
    restarted, origin = start_segmenter(
        entry, arguments, seed=1, weights=training, classes=("a", "b", "c")
    )
    fresh_network, _ = start_segmenter(entry, arguments, seed=1, classes=("a", "b", "c"))
    assert "except its head" in origin
    for name, tensor in restarted.state_dict().items():
        if name.startswith("conv."):
            assert torch.equal(tensor, fresh_network.state_dict()[name])
            assert len(tensor) == 4
        else:
            assert torch.equal(tensor, state[name]), name
    of_foreground, origin = start_segmenter(entry, arguments, seed=1, weights=training)
    assert "except its head" in origin
    assert len(of_foreground.state_dict()["conv.weight"]) == 1
    assert torch.equal(of_foreground.state_dict()["encoder1.0.weight"], state["encoder1.0.weight"])
    continued, origin = start_segmenter(entry, arguments, seed=1, weights=training, classes=NAMES)
    assert "new" not in origin
    assert all(torch.equal(t, state[name]) for name, t in continued.state_dict().items())


def test_weights_of_another_body_are_refused(training):
    with pytest.raises(UsageError, match="do not match"):
        start_segmenter(
            resolve("unet"),
            {"features": [8, 32]},
            seed=0,
            weights=training,
            classes=("a", "b", "c"),
        )


# A training, its evaluation, report, prediction and verification.


def test_the_network_learns_the_classes(training, data):
    record = read_train_record(training)
    assert record.recipe.loss == "ce-dice"
    assert record.dataset.mask_classes == NAMES
    assert record.decision == "the most probable class"
    header = read_header(training / "weights.safetensors")
    assert isinstance(header, WeightsHeader)
    assert (header.mask_classes, header.arguments["num_classes"]) == (NAMES, 3)
    assert float(table(training / "test")["dice"][0]) > 0.9
    assert not (training / "baseline").exists()  # Otsu's threshold has two values only


def test_rows_are_those_of_the_predicted_masks(evaluated, training, data):
    segmenter = load(ModelRequest(str(training)), "seg")
    assert segmenter.classes == NAMES
    rows = Store(evaluated).rows("run", CLEAN, "seg")
    dataset = take(open_dataset(str(data), Masks()), limit=8, seed=0)
    pooled = []
    for sample, row in zip(dataset.samples, rows.to_dict("records"), strict=True):
        with Image.open(sample.image.path) as image, Image.open(sample.mask.path) as mask:
            (predicted,) = segmenter.predict([np.array(image)])
            truth = np.array(mask)
        counts = [[((predicted == c) & (truth == c)).sum(), ((predicted == c) & (truth != c)).sum(),
                   ((predicted != c) & (truth == c)).sum()] for c in (1, 2)]  # fmt: skip
        stored_counts = np.stack([row[f"class_{name}"] for name in ("tp", "fp", "fn")], axis=1)
        assert stored_counts.tolist() == [[int(n) for n in of_class] for of_class in counts]
        pooled.append(counts)
    dice, iou = pooled_scores(np.array(pooled), list(rows["group"]))
    line = table(evaluated).iloc[0]
    assert (line["dice"], line["iou"]) == (pytest.approx(dice), pytest.approx(iou))


def test_classes_move_with_the_image(evaluated):
    """A mirrored image is as hard as the image; if masks were not mirrored, the Dice would be 0."""
    by_transform = table(evaluated).set_index("transform")["dice"]
    assert by_transform["fliplr"] > 0.9
    assert by_transform["invert"] < by_transform["identity"]


def test_a_run_of_one_class_has_no_columns_of_classes(evaluated, data, tmp_path, training):
    """The same network and masks, read as foreground: any class against background."""
    run = run_evaluation(
        EvalConfig(
            (ModelRequest(str(training)),), ("identity",), data=str(data), out=tmp_path / "run",
            foreground="nonzero", **ON_EIGHT,
        )
    )  # fmt: skip
    (file,) = (run / "predictions").rglob("*.parquet")
    assert not [name for name in pq.read_schema(file).names if name.startswith("class_")]
    class_rows = Store(evaluated).rows("run", CLEAN, "seg")
    plain_rows = Store(run).rows("run", CLEAN, "seg")
    assert list(plain_rows) == [name for name in class_rows if not name.startswith("class_")]
    # Foreground is where the classes together are more probable than the background.
    assert (plain_rows["tp"] + plain_rows["fn"]).tolist() == (
        class_rows["tp"] + class_rows["fn"]
    ).tolist()
    assert not (run / "classes.csv").exists()


def test_the_report_names_each_class_and_the_worst_one(evaluated):
    classes = pd.read_csv(evaluated / "classes.csv")
    assert set(classes["name"]) == {*NAMES, "any class"}
    assert len(classes) == 3 * len(table(evaluated))
    rows = Store(evaluated).rows("run", Cell("invert", 0), "seg")
    cell_classes = classes[(classes["transform"] == "invert") & (classes["class"] > 0)]
    np.testing.assert_allclose(cell_classes["dice"], class_dice(rows))
    worst_class = NAMES[int(class_dice(rows).argmin())]
    text = (evaluated / "report.md").read_text(encoding="utf-8")
    (line,) = [row for row in text.splitlines() if row.startswith("| `invert`") and "clean" in row]
    assert worst_class in line
    assert "2 classes and background" in text
    statistics = json.loads((evaluated / "statistics.json").read_text(encoding="utf-8"))
    assert len(statistics["classes"]) == len(classes)
    assert {path.name for path in (evaluated / "figures").glob("c*-run.png")} >= {
        "cases-run.png", "classes-run.png", "confusion-run.png",
    }  # fmt: skip
    assert "ring" in document(evaluated, "latex")
    assert json.loads(document(evaluated, "json"))[0]["dice"] == table(evaluated)["dice"][0]


def test_predicted_masks_are_indices_that_the_data_reader_reads_back(training, data, tmp_path):
    out = tmp_path / "images-of" / "masks"
    prediction = predict_masks(
        load(ModelRequest(str(training)), "seg"), [data / "images"], out, overlays=True
    )
    segmenter = load(ModelRequest(str(training)), "seg")
    with Image.open(data / "images" / "000.png") as image:
        (expected,) = segmenter.predict([np.array(image)])
    with Image.open(out / "000.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.array(mask), expected)
        colours = np.array(mask.convert("RGB"))
    assert prediction.labels == out / "labels.json"
    labels = json.loads(prediction.labels.read_text(encoding="utf-8"))
    assert [labels[str(n)]["name"] for n in range(3)] == ["background", *NAMES]
    for number in (1, 2):
        mask_colours = {tuple(pixel) for pixel in colours[expected == number]}
        assert mask_colours == {tuple(bytes.fromhex(labels[str(number)]["colour"][1:]))}
    # As a data set, together with the images.
    (out.parent / "images").symlink_to(data / "images")
    for overlay in out.glob("*_overlay.png"):
        overlay.unlink()
    dataset = open_dataset(str(out.parent), Masks(classes=prediction.labels))
    assert dataset.mask_classes == NAMES
    repeated = predict_masks(segmenter, [data / "images"], out)
    assert repeated.existing == len(prediction.masks)


def test_masks_of_other_classes_in_the_folder_are_an_error(training, data, tmp_path):
    (tmp_path / "labels.json").write_text('{"1": "cat"}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"labels.json` already exists"):
        predict_masks(load(ModelRequest(str(training)), "seg"), [data / "images"], tmp_path)


def test_verification_reproduces_a_run_and_finds_a_changed_count(evaluated, data):
    config = VerifyConfig(evaluated, device="cpu")
    assert verify(config).reproduced
    (file,) = (evaluated / "predictions").rglob("transform=invert/severity=0/*.parquet")
    original_bytes = file.read_bytes()
    rows = pq.read_table(file, partitioning=None)
    changed_rows = rows.to_pylist()
    changed_rows[0]["class_tp"][0] += 1
    write_rows(file, changed_rows, rows.schema.remove_metadata())
    try:
        (check,) = verify(config).checks
        value = {difference.quantity for difference in check.differences}
    finally:
        file.write_bytes(original_bytes)
    assert "class_confusion" in value


# What does not go together.


def test_the_papers_protocol_is_of_one_class(data, tmp_path):
    with pytest.raises(UsageError, match=r"(?s)`--protocol paper` cannot be used.*2 classes"):
        run_training(tiny_unet(data, tmp_path / "run", protocol="paper"))


def test_another_number_of_outputs_contradicts_the_masks(data, tmp_path):
    arguments = {"features": [4, 8], "num_classes": 5}
    with pytest.raises(UsageError, match=r"(?s)num_classes=5` contradicts.*need 3 outputs"):
        run_training(tiny_unet(data, tmp_path / "run", model_args=arguments))


def test_a_class_that_no_training_image_shows(data, tmp_path):
    config = tiny_unet(data, tmp_path / "run", mask_classes="1=disc,2=ring,3=star")
    with pytest.raises(UsageError, match=r"training images of `data` contains `star`"):
        run_training(config)


def test_a_model_of_one_class_is_refused_on_masks_of_several(data, tmp_path):
    config = EvalConfig(
        (ModelRequest("otsu"),), ("identity",), data=str(data), out=tmp_path / "run", device="cpu"
    )
    message = r"(?s)`otsu` tells foreground from background; the masks have 2 classes"
    with pytest.raises(UsageError, match=message):
        run_evaluation(config)
    assert not (tmp_path / "run").exists()


def test_a_model_of_other_classes_is_refused(training, data, tmp_path):
    config = EvalConfig(
        (ModelRequest(str(training)),), ("identity",), data=str(data), out=tmp_path / "run",
        device="cpu", mask_classes="1=cat,2=dog",
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"(?s)trained for other classes.*disc, ring.*cat, dog"):
        run_evaluation(config)


def test_nnunets_recipe_trains_several_classes(data, tmp_path):
    listener = Recorder()
    config = tiny_unet(
        data, tmp_path / "run", epochs=1, recipe="nnunet-light", lr=None, window=16, batch_size=2,
        model_args={"features": [4, 8]},
    )  # fmt: skip
    config = replace(config, limit=10)
    run = run_training(config, listener)
    record: Any = read_train_record(run)
    assert record.dataset.mask_classes == NAMES
    assert read_header(run / "weights.safetensors").nnunet is not None  # type: ignore[union-attr]
    assert np.isfinite(float(table(run / "test")["dice"][0]))


def test_validation_counts_are_made_on_the_device_of_the_masks():
    """Losses are not tested: the imaginary GPU does not intercept `one_hot`."""
    predicted, truth = np.random.default_rng(1).integers(0, 3, (2, 2, 1, 5, 5))
    with imaginary_gpu():
        tensors = [torch.from_numpy(values).to(GPU) for values in (predicted, truth)]
        value = class_counts(*tensors, tensors[1] >= 0, 2).cpu()
    assert value[..., 0].sum() == ((predicted == truth) & (truth > 0)).sum()


def test_the_classes_of_a_network_are_named_by_a_table_only():
    assert network_class_names(None) == ()
    assert network_class_names("0=background,1=cat,2=dog,255=ignore") == ("cat", "dog")
    for option in ("all", "1=cat"):
        with pytest.raises(UsageError, match="does not contain the classes of a network"):
            network_class_names(option)


def test_an_exported_network_read_back_tells_the_same_classes(training, evaluated, data, tmp_path):
    (file,) = export(ExportConfig(ModelRequest(str(training)), ("torchscript",), tmp_path / "n.pt"))
    output = file.sidecar.output
    assert (output.classes, output.threshold) == (("background", *NAMES), None)
    assert file.sidecar.parity[0].decided > 0
    run = run_evaluation(
        EvalConfig(
            (ModelRequest(str(file.path)),), ("fliplr",), data=str(data), out=tmp_path / "run",
            **ON_EIGHT,
        )
    )  # fmt: skip
    columns = ["image_id", "class_tp", "class_fp", "class_fn"]
    exported_rows, rows = (
        Store(r).rows(n, CLEAN, "seg") for r, n in ((run, "n.pt"), (evaluated, "run"))
    )
    for name in columns[1:]:
        assert np.abs(np.stack(exported_rows[name]) - np.stack(rows[name])).max() <= 1, (
            "counts differ by more than a rounded pixel"
        )
    assert exported_rows["image_id"].tolist() == rows["image_id"].tolist()
