"""Control networks without a scan: announcement, record, rebuilding from the run, and weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from robustcli.core.errors import UsageError
from robustcli.evaluation.cell_table import table
from robustcli.finetuning.config import FinetuneConfig
from robustcli.models.ablation import has_scan, removed_parameters
from robustcli.training import recipes
from robustcli.training.config import TrainConfig
from robustcli.training.engine import run_training
from robustcli.training.recipes import recipe_for
from robustcli.training.record import read_train_record
from robustcli.training.train_plan import plan_training
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


def test_a_classifier_without_its_scan_trains(photos, tmp_path):
    run = run_training(tiny_classifier(photos, tmp_path / "run", epochs=1, ablate="scan"))
    assert not any("A_logs" in name for name in load_file(run / "weights.safetensors"))
    assert read_train_record(run).network == "vmamba-pico without scan"


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
