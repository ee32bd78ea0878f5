"""Exported networks: equal outputs, description file, errors, and reloading."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import robustcli
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.exported import Sidecar, sidecar_path
from robustcli.adapters.load import header_for, load
from robustcli.adapters.networks import create
from robustcli.adapters.training_run import write_weights
from robustcli.core.errors import MachineError, RunError, UsageError
from robustcli.data.splits import split_dataset, write_splits
from robustcli.evaluation import export_formats, exporting
from robustcli.evaluation.evaluate import evaluate
from robustcli.evaluation.exporting import ExportConfig, Exported
from tests.adapters.files import header, vim_as_run
from tests.evaluation.cells import pairs_in
from tests.evaluation.photos import config, make_photos

TINY = {"depths": [1, 1], "dim": 8}
CLASSIFIER = ModelRequest("vmamba-pico", arguments=TINY, untrained=True)
UMAMBA = {"features": (4, 8, 16), "strides": (1, 2, 2), "n_conv": 1}
SEGMENTER = ModelRequest("umamba", arguments=UMAMBA, untrained=True)


@pytest.fixture(autouse=True, scope="module")
def quick_export() -> Iterator[None]:
    """Reduces the number of passes and photos; the comparisons are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "_SECONDS", 0.0)
        patch.setattr(exporting, "_LEAST_PASSES", 1)
        patch.setattr(exporting, "_REAL", 5)
        yield


def exported(request: ModelRequest, out: Path, **changes: Any) -> Exported:
    settings: dict[str, Any] = {"formats": ("torchscript",), "out": out} | changes
    (file,) = exporting.export(ExportConfig(request, **settings))
    return file


@pytest.fixture(scope="module")
def classifier_file(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(CLASSIFIER, tmp_path_factory.mktemp("cls") / "net.pt")


def jit_load(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.load")  # deprecated in new releases
        return torch.jit.load(str(path))


def rows_of(run: Path) -> pd.DataFrame:
    parts = sorted((run / "predictions").rglob("*.parquet"))
    return pd.concat(map(pd.read_parquet, parts), ignore_index=True)


def test_the_file_and_its_description_serve_elsewhere(classifier_file: Exported, tmp_path: Path):
    """Reproduces the probabilities with json, PIL, NumPy and torch, without this package."""
    description = json.loads(sidecar_path(classifier_file.path).read_text(encoding="utf-8"))
    network = jit_load(classifier_file.path)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 41, 3), np.uint8)
    entry = description["input"]
    preprocessing = entry["preprocessing"]
    width, height = preprocessing["resize"], int(preprocessing["resize"] * 50 / 41)
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    top = round((height - preprocessing["crop"]) / 2)
    view = np.asarray(picture)[top : top + preprocessing["crop"]]
    values = (view * np.float32(entry["scale"]) - np.float32(entry["mean"])) / entry["std"]
    images = torch.from_numpy(values.astype(np.float32).transpose(2, 0, 1)[None].copy())
    probabilities = network(images).softmax(1)[0]
    model = load(CLASSIFIER, "cls")
    views = torch.from_numpy(model.preprocessing.apply(pixels).copy()).permute(2, 0, 1)[None]
    torch.testing.assert_close(probabilities, model.logits(views).softmax(1)[0], rtol=0, atol=1e-5)
    assert entry["channels"] == "rgb"
    assert description["output"]["class_names"][0] == "airplane"
    assert description["model"]["untrained"] is True
    assert description["versions"]["torch"] == version("torch")


def test_parity_and_speed_are_recorded(classifier_file: Exported):
    sidecar = classifier_file.sidecar
    assert [row.inputs for row in sidecar.parity] == ["noise", "cifar10-mini photos"]
    assert all(row.difference <= row.allowed for row in sidecar.parity)
    assert all(row.agreeing == row.decided == row.images for row in sidecar.parity)
    assert {row.batch for row in sidecar.speed} == {1, 8}
    assert any("TorchScript" in row.engine for row in sidecar.speed)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch(classifier_file: Exported, batch: int):
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
    with torch.inference_mode():
        expected = load(CLASSIFIER, "cls").network(x)
        outputs = jit_load(classifier_file.path)(x)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-5)


def test_a_classifier_read_back_gives_the_same_rows(classifier_file: Exported, tmp_path: Path):
    data = make_photos(tmp_path / "photos")
    file = ModelRequest(str(classifier_file.path))
    runs = [evaluate(config(data, tmp_path / "a", models=(CLASSIFIER,))),
            evaluate(config(data, tmp_path / "b", models=(file,)))]  # fmt: skip
    original, back = map(rows_of, runs)
    assert len(original) == 24
    pd.testing.assert_frame_equal(original, back, rtol=0, atol=1e-5)
    assert load(file, "cls").facts.untrained
    with pytest.raises(UsageError, match=r"input has 32 x 32 pixels"):
        load(replace(file, preprocessing={"crop": 48}), "cls").try_out()


def test_a_training_read_back_is_held_to_its_test_images(tmp_path: Path):
    """The weights describe everything unusual: BGR, a threshold, a window."""
    index = pairs_in(tmp_path / "cells")
    arguments = {"features": (2, 4)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        state = create("unet", arguments).state_dict()
    weights_header = header("unet", arguments=arguments, trained_on=index.digest, window=32)
    write_weights(tmp_path / "run" / "weights.safetensors", state, weights_header)
    write_splits(tmp_path / "run" / "splits.csv", split_dataset(index, seed=0))
    original = ModelRequest(str(tmp_path / "run"))
    exported_model = ModelRequest(str(exported(original, tmp_path / "seg.pt").path))
    assert header_for(original) == header_for(exported_model)
    assert load(exported_model, "seg").preprocessing == load(original, "seg").preprocessing
    rows = [
        rows_of(evaluate(config(tmp_path / "cells" / "pairs.csv", tmp_path / name, models=(m,))))
        for name, m in (("a", original), ("b", exported_model))
    ]
    assert 0 < rows[0].image_id.nunique() < len(index.samples)
    pd.testing.assert_frame_equal(rows[0], rows[1], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_mamba_segmenter_of_another_size(tmp_path: Path):
    """Tests of classifiers and of a U-Net prove the same in every run of the suite."""
    file = exported(SEGMENTER, tmp_path / "u.pt", image_size=32, dynamic_batch=False)
    assert file.sidecar.input.shape == (1, 3, 32, 32)
    assert file.sidecar.output.scores == "logits"
    masks = load(ModelRequest(str(file.path)), "seg").preprocessing
    assert (masks.window, masks.threshold) == (32, file.sidecar.output.threshold)
    assert file.sidecar.parity[1].decided == 5 * 32 * 32


class OwnNet(nn.Module):
    """Returns logits of four classes, from the mean of each channel, in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(x.mean((2, 3)))}


def test_options_change_the_described_preprocessing_only_where_they_are_set(tmp_path: Path):
    settings = {"threshold": 0.3, "channels": "bgr", "overlap": 0.25}
    request = replace(SEGMENTER, preprocessing=settings)
    file = exported(request, tmp_path, image_size=32).path
    typed = {"crop": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    for chosen, statistics in (({}, (None, None)), (typed, ((0.5,) * 3, (0.25,) * 3))):
        model = load(ModelRequest(str(file), preprocessing=chosen), "seg")
        preprocessing = model.preprocessing
        assert (preprocessing.threshold, preprocessing.channels) == (0.3, "bgr")
        assert (preprocessing.window, preprocessing.overlap) == (32, 0.25)
        assert (preprocessing.mean, preprocessing.std) == statistics
        assert not any("by default" in note for note in model.notes)
    with pytest.raises(UsageError, match=r"(?s)`--crop 64` cannot be used.*input has 32 x 32"):
        load(ModelRequest(str(file), preprocessing={"crop": 64}), "seg")


def test_a_network_in_memory(tmp_path: Path):
    classes = ["a", "b", "c", "d"]
    network = OwnNet().train()
    (file,) = robustcli.export(
        network, out=tmp_path, formats="torchscript", classes=classes, image_size=16,
        preprocessing={"crop": 16, "resize": 16},
    )  # fmt: skip
    assert network.training
    assert file.path == tmp_path / "OwnNet.pt"
    assert file.sidecar.output.classes == tuple(classes)
    reloaded = load(ModelRequest(str(file.path)), "cls")
    assert reloaded.preprocessing.crop == 16
    x = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(reloaded.network(x), network.eval()(x)["logits"])


def test_outputs_that_are_no_classes_are_not_in_the_file(tmp_path: Path):
    request = vim_as_run(tmp_path / "as_run.pth")
    file = exported(request, tmp_path / "out")
    original, reloaded = load(request, "cls"), load(ModelRequest(str(file.path)), "cls")
    views = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert reloaded.logits(views).shape == (3, 10)
    torch.testing.assert_close(reloaded.logits(views), original.logits(views))


def test_what_is_there_is_kept_and_other_files_are_not_replaced(
    classifier_file: Exported, tmp_path: Path
):
    before = classifier_file.path.read_bytes()
    second_export = exported(CLASSIFIER, classifier_file.path)
    assert (second_export.existed, second_export.sidecar) == (True, classifier_file.sidecar)
    other_model = replace(CLASSIFIER, arguments={**TINY, "dim": 16})
    with pytest.raises(UsageError, match=r"other settings \(model"):
        exported(other_model, classifier_file.path)
    assert classifier_file.path.read_bytes() == before
    foreign_file = tmp_path / "net.pt"
    foreign_file.write_bytes(b"mine")
    with pytest.raises(UsageError, match="already exists"):
        exported(CLASSIFIER, foreign_file)
    assert foreign_file.read_bytes() == b"mine"
    assert not exported(CLASSIFIER, foreign_file, fresh=True).existed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pt", "net.pt.json"]


def test_a_file_that_was_changed_is_not_described(classifier_file: Exported, tmp_path: Path):
    copy = tmp_path / classifier_file.path.name
    copy.write_bytes(classifier_file.path.read_bytes())
    sidecar_path(copy).write_bytes(sidecar_path(classifier_file.path).read_bytes())
    assert load(ModelRequest(str(copy)), "cls").facts.label_space == "cifar10"
    with copy.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UsageError, match=r"describes another file|cannot be read"):
        load(ModelRequest(str(copy)), "cls")


def test_a_damaged_description(classifier_file: Exported, tmp_path: Path):
    copy = tmp_path / classifier_file.path.name
    os.link(classifier_file.path, copy)
    description = classifier_file.sidecar.model_dump(mode="json")
    description["input"]["preprocessing"]["crop"] = 0
    sidecar_path(copy).write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be read"):
        load(ModelRequest(str(copy)), "cls")
    sidecar_path(copy).write_text("{}", encoding="utf-8")  # of another program
    assert load(ModelRequest(str(copy)), "cls").preprocessing.crop != 0


def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Wrong(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x) * 1.01

    write = export_formats.FORMATS["torchscript"].write
    row = replace(
        export_formats.FORMATS["torchscript"],
        write=lambda network, path, options: write(Wrong(network), path, options),
    )
    monkeypatch.setitem(export_formats.FORMATS, "torchscript", row)
    with pytest.raises(RunError, match="was deleted") as failure:
        exported(CLASSIFIER, tmp_path / "net.pt")
    assert failure.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_traced(tmp_path: Path):
    class Stubborn(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.jit.is_tracing():
                raise TypeError("not with me")
            return x.mean((2, 3)).repeat(1, 2)[:, :4]

    with pytest.raises(RunError, match=r"cannot be exported.*\n.*not with me"):
        robustcli.export(
            Stubborn(), out=tmp_path, formats="torchscript", classes=list("abcd"),
            preprocessing={"crop": 16},
        )  # fmt: skip


def test_a_file_for_one_number_of_images_is_answered_with_the_option_for_it(tmp_path: Path):
    class Counting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)).repeat(1, 2)[:, :4] + torch.zeros(len(x), 4)

    settings: dict[str, Any] = {
        "formats": "torchscript", "classes": list("abcd"), "preprocessing": {"crop": 16},
    }  # fmt: skip
    with pytest.raises(RunError, match=r"(?s)cannot be exported.*with 3 images.*`--fixed-batch`"):
        robustcli.export(Counting(), out=tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []
    (file,) = robustcli.export(Counting(), out=tmp_path, dynamic_batch=False, **settings)
    assert file.sidecar.input.shape[0] == 1


def test_what_is_refused(classifier_file: Exported, tmp_path: Path, monkeypatch: Any):
    with pytest.raises(UsageError, match="already an exported file"):
        exported(ModelRequest(str(classifier_file.path)), tmp_path)
    with pytest.raises(UsageError, match="cannot be exported"):
        exported(ModelRequest("otsu"), tmp_path)
    with pytest.raises(UsageError, match="does not have the suffix of torchscript"):
        exported(CLASSIFIER, tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="`--opset 17` cannot be used without `--format onnx`"):
        exported(CLASSIFIER, tmp_path, opset=17)
    with pytest.raises(UsageError, match="`--label-space` cannot be used with segmenters"):
        exported(replace(SEGMENTER, label_space="cifar10"), tmp_path)
    monkeypatch.setattr(export_formats, "_ONNX_PACKAGES", ("onnx",))
    row = replace(export_formats.FORMATS["onnx"], packages=("no_such_package",))
    monkeypatch.setitem(export_formats.FORMATS, "onnx", row)
    with pytest.raises(MachineError, match=r"pip install 'robustcli\[export\]'"):
        exported(CLASSIFIER, tmp_path, formats=("onnx",))
    assert list(tmp_path.iterdir()) == []


def test_description_survives_its_own_format(classifier_file: Exported):
    text = sidecar_path(classifier_file.path).read_text(encoding="utf-8")
    assert Sidecar.model_validate_json(text) == classifier_file.sidecar


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "fixed"])
def test_onnx_read_back(tmp_path: Path, dynamic: bool):
    """`test_a_classifier_read_back_gives_the_same_rows` covers it in every run of the suite."""
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="needs the extra `export`")
    file = exported(CLASSIFIER, tmp_path, formats=("onnx",), dynamic_batch=dynamic)
    assert file.sidecar.opset == export_formats.OPSET
    assert file.sidecar.input.shape[0] == ("batch" if dynamic else 1)
    data = make_photos(tmp_path / "photos")
    exported_model = ModelRequest(str(file.path))
    rows = [rows_of(evaluate(config(data, tmp_path / name, models=(model,))))
            for name, model in (("a", CLASSIFIER), ("b", exported_model))]  # fmt: skip
    pd.testing.assert_frame_equal(rows[0], rows[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "norm",
    [nn.InstanceNorm2d(6, affine=True), nn.InstanceNorm2d(6), nn.GroupNorm(2, 6),
     nn.GroupNorm(3, 6, affine=False)],
    ids=["instance", "instance without weights", "group", "group without weights"],
)  # fmt: skip
def test_norms_of_onnx_files_equal_torch_in_float64(norm: nn.Module):
    network = nn.Sequential(nn.Conv2d(3, 6, 3), norm).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    rowwise = export_formats.with_rowwise_norms(network)
    assert isinstance(rowwise[1], export_formats.RowwiseNorm)
    assert network[1] is norm, "the network itself is not changed"
    assert [id(p) for p in rowwise.parameters()] == [id(p) for p in network.parameters()]
    images = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    torch.testing.assert_close(rowwise(images), network(images), rtol=1e-12, atol=1e-12)


def test_norms_with_running_statistics_are_exported_as_they_are():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True))
    assert not any(
        isinstance(layer, export_formats.RowwiseNorm)
        for layer in export_formats.with_rowwise_norms(network).modules()
    )
