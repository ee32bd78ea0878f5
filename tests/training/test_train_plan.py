"""The plan of a training: lookups, forecast, announcements; controls without a scan."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import robustcli
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load, resolve
from robustcli.adapters.networks import create_model
from robustcli.adapters.trainable import transfer
from robustcli.adapters.training_run import WeightsHeader, write_weights
from robustcli.core.errors import UsageError
from robustcli.data.mask_values import MaskReading
from robustcli.evaluation.cell_table import table
from robustcli.finetuning.config import FinetuneConfig
from robustcli.models.ablation import has_scan, removed_parameters
from robustcli.models.architectures import architecture, everything_decays
from robustcli.training import recipes
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import Decoded
from robustcli.training.engine import run_training, train_record
from robustcli.training.lit_module import SegmenterModule
from robustcli.training.recipes import recipe_for
from robustcli.training.record import read_train_record
from robustcli.training.segmenter_training import (
    LOGIT_HALF,
    decision_words,
    foreground_threshold,
    split_record,
)
from robustcli.training.train_plan import forecast_training, plan_training, step_seconds
from tests.training.images import decoded, write_pairs
from tests.training.runs import (
    RECIPE,
    TINY_UMAMBA,
    TINY_VMAMBA,
    Recorder,
    tiny_classifier,
    tiny_umamba,
    tiny_unet,
    weights_of,
)


@pytest.mark.usefixtures("unscored")
def test_the_forecast_matches_the_training(data: Path, tmp_path: Path) -> None:
    config = tiny_unet(
        data, tmp_path / "run", epochs=1, accumulate=2, model_args={"features": [16, 32, 64]}
    )
    forecast = forecast_training(config, Recorder())
    assert not (tmp_path / "run").exists()
    assert (forecast.images, forecast.groups) == ({"train": 12, "val": 1, "test": 1},) * 2
    assert forecast.steps == 2  # three batches per epoch, two per step
    assert forecast.pixels_bytes == 13 * 32 * 32 * 4
    assert 0 < forecast.seconds < 60
    assert not forecast.started
    run = run_training(config)
    assert forecast_training(config, Recorder()).started
    other = replace(config, weights=run / "weights.safetensors")
    for start in (run_training, forecast_training):
        with pytest.raises(UsageError, match=r"(?s)other settings.*hash of the weights"):
            start(other, Recorder())
    files = [*(tmp_path / "run" / "checkpoints").iterdir(), tmp_path / "run/weights.safetensors"]
    assert forecast.disk_bytes == pytest.approx(sum(f.stat().st_size for f in files), rel=0.1)


def test_a_dry_run_refuses_the_folder_of_another_run(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"kind": "finetune"}')
    with pytest.raises(UsageError, match="contains a fine-tuning, not a training"):
        forecast_training(tiny_unet(data, tmp_path / "run"), Recorder())


def test_weights_and_random_weights_exclude_each_other(data: Path, tmp_path: Path) -> None:
    config = tiny_unet(data, tmp_path / "run", weights=tmp_path / "a.pth", untrained=True)
    with pytest.raises(UsageError, match=r"a.pth` and `--untrained` exclude each other"):
        plan_training(config, Recorder())


def test_text_and_json_contain_the_same_forecast(data: Path, tmp_path: Path) -> None:
    forecast = forecast_training(tiny_unet(data, tmp_path / "run", protocol="paper"), Recorder())
    parsed = json.loads(forecast.as_json())
    assert parsed["recipe"]["loss"] == "dice"
    text = forecast.as_text()
    assert f"{parsed['parameters']:,} parameters" in text
    assert "paper, logit >= 0.5" in text
    assert "train 11 images of 11 images" in text


def test_a_seed_of_a_split_that_depends_on_none_is_named(data: Path, tmp_path: Path) -> None:
    def is_named(**overrides: Any) -> bool:
        listener = Recorder()
        plan_training(tiny_unet(data, tmp_path / "run", split_seed=5, **overrides), listener)
        return any("`--split-seed 5`: no effect" in line for line in listener.lines)

    assert is_named(protocol="paper")
    assert not is_named(protocol="paper", limit=12)  # it selects the images
    assert not is_named()


def test_weights_of_imagenet_are_not_needed_for_it(data: Path, tmp_path: Path) -> None:
    config = tiny_unet(
        data, tmp_path / "run", model="resnet18_seg", model_args={}, window=64, batch_size=1
    )
    assert forecast_training(config, Recorder()).parameters == 13_930_497


def test_protocol_parts_and_recipe_are_announced(data: Path, tmp_path: Path) -> None:
    listener = Recorder()
    plan_training(tiny_unet(data, tmp_path / "run"), listener)
    assert listener.lines == [
        "Protocol `patient`: train 12 images, val 1 image, test 1 image (train part, split by "
        "image, seed 0).",
        "Recipe `patient` (ours): 3 epochs, batch 4, window 16, bce-dice loss, AdamW at 0.01, "
        "warmup-cosine, augmentation light.",
    ]


def test_a_default_is_announced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUST_DATA_SEGMENTATION", raising=False)
    listener = Recorder()
    config = tiny_unet(tmp_path, tmp_path / "run", limit=30)
    default_plan = plan_training(type(config)(model="ulvm", limit=30), listener)
    assert listener.lines[0].startswith(
        "`--data` is not set; using nuclei-mini (a demonstration set), 30 images, "
    )
    assert " photos, " in listener.lines[1]
    assert default_plan.recipe.name == "nuclei-mini"
    assert default_plan.run.parent == Path("runs")


def test_other_images_or_masks_of_the_same_names_are_another_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "first", 8)
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    for kind in ("images", "masks"):
        shutil.copytree(tmp_path / "first", tmp_path / kind)
        shutil.copy(tmp_path / kind / kind / "001.png", tmp_path / kind / kind / "002.png")
    first, copy, images, masks = (
        plan_training(replace(tiny_unet(tmp_path / name, Path()), out=None), Recorder()).run
        for name in ("first", "copy", "images", "masks")
    )
    assert first == copy
    assert len({first, images, masks}) == 3


def test_a_foreign_folder_is_refused(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="is not empty and contains no run"):
        plan_training(tiny_unet(data, run), Recorder())
    with pytest.raises(UsageError, match="is a file"):
        plan_training(tiny_unet(data, run / "thesis.tex"), Recorder())


def test_a_run_is_no_network(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    header = WeightsHeader(
        model="ulvm", arguments={}, window=16, channels="rgb", threshold=0.5, protocol="patient",
        trained_on="elsewhere", images_sha256="0" * 64,
    )  # fmt: skip
    (tmp_path / "mine").mkdir()
    write_weights(tmp_path / "mine" / "weights.safetensors", {"w": torch.zeros(1)}, header)
    with pytest.raises(UsageError, match=r"`--model mine` is a folder"):
        plan_training(tiny_unet(data, tmp_path / "run", model="mine", model_args={}), Recorder())


def test_a_network_goes_before_a_folder_of_its_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ulvm").mkdir()
    (tmp_path / "ulvm" / "run.json").write_text("{}")
    plan = plan_training(tiny_unet(data, tmp_path / "run", model="ulvm", model_args={}), Recorder())
    assert plan.entry.name == "ulvm"


@pytest.mark.parametrize(
    ("overrides", "option"),
    [
        ({"seed": 2**63}, "--seed 9223372036854775808"),
        ({"seed": -(2**63) - 1}, "--seed -9223372036854775809"),
        ({"seed": 2**63 - 2, "seeds": 3}, "--seed 9223372036854775808"),
        ({"split_seed": 2**64}, "--split-seed 18446744073709551616"),
    ],
)
def test_a_seed_that_no_column_holds_is_refused(
    data: Path, tmp_path: Path, overrides: dict[str, Any], option: str
) -> None:
    with pytest.raises(UsageError, match=f"`{option}` is out of range"):
        plan_training(tiny_unet(data, tmp_path / "run", **overrides), Recorder())


@pytest.mark.parametrize(("images", "available"), [(1, "1 is"), (2, "2 are")])
def test_fewer_images_than_parts_cannot_be_split(
    tmp_path: Path, images: int, available: str
) -> None:
    data = write_pairs(tmp_path / "data", images)
    with pytest.raises(UsageError, match="cannot be split by image") as caught:
        plan_training(tiny_unet(data, tmp_path / "run"), Recorder())
    assert f"only {available} available" in caught.value.why
    assert "`--protocol paper`" not in caught.value.todo  # needs as many images


@pytest.mark.parametrize("launcher", ["--devices", "torchrun"])
def test_a_batch_divides_among_the_processes_whoever_starts_them(
    launcher: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if launcher == "torchrun":
        variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        for name, value in (variables | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
            monkeypatch.setenv(name, value)
    config = tiny_unet(
        data, tmp_path / "run", batch_size=5, devices=2 if launcher == "--devices" else 1
    )
    with pytest.raises(UsageError, match="batch of 5 cannot be divided evenly among 2 processes"):
        plan_training(config, Recorder())


def test_all_devices_of_a_machine_without_gpu_are_explained(data: Path, tmp_path: Path) -> None:
    listener = Recorder()
    assert (
        plan_training(tiny_unet(data, tmp_path / "run", devices="all"), listener).machine.world == 1
    )
    assert "`--devices all` counts GPUs; on cpu it is 1 process." in listener.lines[0]


def test_the_measured_step_time_grows_with_the_batch() -> None:
    network = architecture("unet").build(features=(8, 16))
    module = SegmenterModule(
        network, replace(recipe_for("unet", "patient", "x"), window=64), channels="rgb",
        decays=everything_decays, val_groups=(),
    )  # fmt: skip
    started = time.perf_counter()
    # The best of three measurements, because another process may interrupt one.
    few_seconds, many_seconds = (
        min(step_seconds(module, size, torch.device("cpu")) for _ in range(3)) for size in (1, 16)
    )
    assert 0 < few_seconds < many_seconds < time.perf_counter() - started


def test_a_logit_of_a_half_as_a_probability(tmp_path: Path) -> None:
    assert pytest.approx(1 / (1 + math.exp(-0.5)), abs=1e-15) == LOGIT_HALF
    data = write_pairs(tmp_path / "data", 10)
    recipe = plan_training(tiny_unet(data, tmp_path / "run", protocol="paper"), Recorder()).recipe
    assert foreground_threshold(recipe, probabilities=False) == LOGIT_HALF
    assert foreground_threshold(recipe, probabilities=True) == 0.5
    assert foreground_threshold(replace(recipe, decision="probability"), probabilities=False) == 0.5


def test_the_decision_in_words() -> None:
    assert decision_words(0.5) == "probability >= 0.5"
    assert decision_words(LOGIT_HALF) == "logit >= 0.5 (probability >= 0.622)"


def test_a_part_counts_images_groups_and_empty_masks(tmp_path: Path) -> None:
    split = plan_training(
        tiny_unet(write_pairs(tmp_path / "data", 10), tmp_path / "run"), Recorder()
    ).splits.train
    pixels = decoded(8)
    pixels[3] = Decoded(pixels[3].image, np.zeros_like(pixels[3].mask))
    split_counts = split_record(split, (item.mask for item in pixels))
    assert (split_counts.images, split_counts.groups, split_counts.empty) == (8, 8, 1)


def test_a_part_names_the_classes_that_it_does_not_show(tmp_path: Path) -> None:
    split = plan_training(
        tiny_unet(write_pairs(tmp_path / "data", 10), tmp_path / "run"), Recorder()
    ).splits.train
    assert split_record(split, [np.zeros((2, 2), np.uint8)]).absent is None, (
        "masks of two values have no class names"
    )
    names = ("liver", "kidney", "spleen")
    mask_reading = MaskReading(None, classes=names, class_values=((1,), (2,), (4,)))
    split_of_classes = replace(split, reading=mask_reading)
    masks = [np.array([[0, 1], [255, 0]], np.uint8), np.array([[3, 1]], np.uint8)]
    assert split_record(split_of_classes, masks).absent == ["kidney"]
    assert split_record(split_of_classes, [*masks, np.array([[2]], np.uint8)]).absent is None


WIDTHS = {"widths": [8, 8, 8, 16, 16]}


@pytest.fixture(scope="module")
def control(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """Returns a trained UL-VM-UNet without its scan."""
    out, listener = tmp_path_factory.mktemp("control") / "run", Recorder()
    run_training(_ulvm(data, out, ablate="scan"), listener)
    return out, listener


def _ulvm(data: Path, out: Path, **changes: Any) -> TrainConfig:
    return tiny_unet(data, out, **{"model": "ulvm", "model_args": WIDTHS, "epochs": 1, **changes})


def test_a_control_is_announced_recorded_and_rebuilt_from_its_run(control):
    run, listener = control
    removed = removed_parameters(create_model("ulvm", **WIDTHS, ablate="scan"))
    full_network = create_model("ulvm", **WIDTHS)
    count = sum(torch.Size(shape).numel() for shape in removed.values())
    assert f"{count:,} parameters that only the scan uses are removed" in "\n".join(listener.lines)
    record = read_train_record(run)
    assert record.arguments == {**WIDTHS, "ablate": "scan"}
    assert record.network == "ulvm without scan"
    assert record.parameters == sum(p.numel() for p in full_network.parameters()) - count
    assert record.scan_backend is None
    with safe_open(run / "weights.safetensors", framework="pt") as file:
        assert '"ablate":"scan"' in file.metadata()["robust"]
    model = load(ModelRequest(str(run)), "seg")
    assert not has_scan(model.network)
    assert not model.facts.scans
    assert model.network.state_dict().keys() == weights_of(run).keys()
    assert table(run / "test")["dice"].between(0, 1).all()


def test_evaluating_the_run_gives_its_own_numbers(control, data, tmp_path):
    run, _ = control
    options = {"out": tmp_path / "eval", "split": "test", "device": "cpu"}
    reevaluated = robustcli.evaluate(str(run), str(data), ["identity"], **options).table()
    stored_table = table(run / "test")
    assert reevaluated["n"].tolist() == stored_table["n"].tolist()
    assert reevaluated["dice"].tolist() == pytest.approx(stored_table["dice"].tolist(), abs=1e-6)


def test_a_control_has_a_folder_of_its_own():
    config, digest = TrainConfig("ulvm_v5"), "d"
    recipe = recipe_for("ulvm_v5", "patient", "x")
    ablated = replace(config, ablate="scan")
    assert ablated == replace(config, ablate="scan", model_args={"ablate": "scan"})
    full_name, folder = (c.directory(recipe, digest).name for c in (config, ablated))
    assert full_name.startswith("train-ulvm_v5-")
    assert folder.startswith("train-ulvm_v5-no-scan-")
    assert full_name.rsplit("-", 1)[1] != folder.rsplit("-", 1)[1]
    tuned_name = FinetuneConfig(ablated).directory(Path(folder)).name
    assert tuned_name.startswith("finetune-ulvm_v5-no-scan-")


@pytest.mark.parametrize("model", ["unet", "umamba-nomamba", "resenc", "smp:Unet/resnet18"])
def test_a_network_without_a_scan_names_those_that_have_one(data, tmp_path, model):
    config = tiny_unet(data, tmp_path / "run", model=model, model_args={}, ablate="scan")
    with pytest.raises(UsageError, match="has no state-space scan") as caught:
        plan_training(config, Recorder())
    assert f"`{model}`" in caught.value.what
    assert all(name in caught.value.todo for name in ("ulvm_v5", "vim", "umamba-enc", "vmunet"))
    assert "umamba-nomamba" not in caught.value.todo
    assert not (tmp_path / "run").exists()


def test_training_on_from_a_control_stays_a_control(control, data, tmp_path):
    run, _ = control
    listener = Recorder()
    config = _ulvm(data, tmp_path / "run", weights=run, model_args={})
    plan = plan_training(config, listener)
    assert plan.config.model_args == {**WIDTHS, "ablate": "scan"}
    assert "A control of `ulvm`" in "\n".join(listener.lines)
    network, origin = plan.task.network(plan.config, plan.entry, plan.index)
    assert not has_scan(network)
    assert origin == str(run / "weights.safetensors")


def test_training_on_with_another_split_warns_of_held_out_images(control, data, tmp_path):
    run, _ = control
    warnings = {}
    for seed in (0, 1):
        listener = Recorder()
        plan = plan_training(
            _ulvm(data, tmp_path / f"{seed}", weights=run, model_args={}, seed=seed), listener
        )
        warnings[seed] = [line for line in listener.lines if line.startswith("WARNING")]
    assert warnings[0] == []
    assert "held-out image: the scores are too high. Use the split" in warnings[1][0]
    record = train_record(plan, plan.task.start(plan).network, "x")
    assert record.initial_weights.startswith("x (these weights were trained on ")


def test_the_published_dice_is_not_that_of_a_control(data, tmp_path):
    config = tiny_unet(data, tmp_path / "run", model="ulvm_v5", model_args={}, protocol="paper")
    assert plan_training(config, Recorder()).recipe.expected_dice == 0.8633
    ablated = replace(config, ablate="scan")
    assert plan_training(ablated, Recorder()).recipe.expected_dice is None


# Weights.


def test_weights_of_a_scan_are_ignored_with_a_message(tmp_path, caplog):
    full_network = create_model("ulvm", **WIDTHS)
    save_file(full_network.state_dict(), tmp_path / "whole.safetensors")
    with caplog.at_level(logging.WARNING):
        ablated = create_model(
            "ulvm", weights=tmp_path / "whole.safetensors", **WIDTHS, ablate="scan"
        )
    removed = removed_parameters(ablated)
    count = sum(full_network.state_dict()[name].numel() for name in removed)
    assert f"{len(removed)} tensors of the scan skipped ({count:,} numbers" in caplog.text
    state = full_network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ablated.state_dict().items())


def test_a_part_of_a_scan_is_refused(tmp_path):
    state = create_model("ulvm", **WIDTHS).state_dict()
    del state["encoder3.0.mamba.A_log"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(UsageError, match="29 unknown"):
        create_model("ulvm", weights=tmp_path / "part.safetensors", **WIDTHS, ablate="scan")


def test_weights_of_a_control_do_not_fit_the_network_with_its_scan(tmp_path):
    save_file(create_model("ulvm", **WIDTHS, ablate="scan").state_dict(),
              tmp_path / "w.safetensors")  # fmt: skip
    with pytest.raises(UsageError, match="does not contain the weights") as caught:
        create_model("ulvm", weights=tmp_path / "w.safetensors", **WIDTHS)
    assert "--model-arg ablate=scan" in caught.value.todo


@pytest.mark.parametrize(
    ("model", "options"),
    [("umambabot", {"features": [8, 16]}), ("vim", {"depth": 2}), ("vmamba-pico", TINY_VMAMBA)],
)
def test_weights_of_a_control_load_strictly(tmp_path, model, options):
    network = create_model(model, **options, ablate="scan")
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    reloaded = create_model(model, weights=tmp_path / "w.safetensors", **options, ablate="scan")
    assert all(map(torch.equal, network.state_dict().values(), reloaded.state_dict().values()))


def test_pretrained_weights_go_into_a_control_but_for_the_scan(caplog):
    entry = resolve("umamba-pico")
    full_network = create_model("umamba-pico", **TINY_UMAMBA)
    control = create_model("umamba-pico", **TINY_UMAMBA, ablate="scan")
    with caplog.at_level(logging.WARNING):
        copied = transfer(
            control, full_network.state_dict(), entry, ("decoder.seg_layers.",), "FILE"
        )
    assert "5 tensors of the scan skipped" in caplog.text
    assert set(copied) == {n for n in control.state_dict() if "seg_layers" not in n}
    state = {n: t for n, t in full_network.state_dict().items() if not n.endswith("mamba.D")}
    with pytest.raises(UsageError, match=r"`mamba_layer.mamba.A_log` is unknown"):
        transfer(control, state, entry, ("decoder.seg_layers.",), "FILE")


# Other trainings.


@pytest.mark.usefixtures("unscored")
def test_a_classifier_without_its_scan_trains(photos, tmp_path):
    run = run_training(tiny_classifier(photos, tmp_path / "run", epochs=1, ablate="scan"))
    assert not any("A_logs" in name for name in load_file(run / "weights.safetensors"))
    assert read_train_record(run).network == "vmamba-pico without scan"


@pytest.mark.usefixtures("unscored")
@pytest.mark.parametrize(
    ("model", "arguments"),
    [("umamba-nomamba", TINY_UMAMBA), ("resenc", {**TINY_UMAMBA, "n_blocks": [1, 2]})],
)
def test_controls_train_with_nnunets_recipe(data, tmp_path, model, arguments, monkeypatch):
    """Uses deep supervision, patches and the batches of a plan, as U-Mamba does."""
    monkeypatch.setitem(recipes.NAMED_RECIPES, "nnunet-light", RECIPE)
    settings = {"model": model, "model_args": arguments, "window": 16, "epochs": 1}
    run = run_training(tiny_umamba(data, tmp_path / "run", **settings))
    metrics = pd.read_csv(run / "metrics.csv")
    assert not metrics.isna().any(axis=None)
    plan = plan_training(tiny_umamba(data, tmp_path / "other", **settings), Recorder())
    module = plan.task.lit_module(plan, create_model(model, **arguments))
    assert module.network.decoder.deep_supervision
