"""`create_model`: names, formats of every project, and agreement with the official code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from robustcli.adapters.create import create_model
from robustcli.core.errors import UsageError
from robustcli.models.aliases import canonical_key
from robustcli.models.registry import ARCHITECTURES
from tests.models import golden

TIMM = "test_resnet.r160_in1k"


def official(name: str, rule: golden.Rule = golden.strong) -> dict[str, Tensor]:
    """The state dict of the original class `name`, copies included, filled by `rule`."""
    state = {}
    for key, shape in golden.layout(name).items():
        value = np.asarray(rule(canonical_key(key), shape), np.float32)
        state[key] = torch.from_numpy(value)
    return state


def nnunet(state: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint as nnU-Net writes it."""
    return {
        "network_weights": state,
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.8)], "ema_fg_dice": [np.float64(0.7)]},
        "_best_ema": np.float64(0.81),
        "current_epoch": 1000,
        "init_args": {"fold": "all", "device": torch.device("cuda"), "unpack_dataset": True},
        "trainer_name": "nnUNetTrainerUMambaBot",
        "inference_allowed_mirroring_axes": (0, 1),
    }


# Name, golden, how its project saves, input shape, tolerance, options.
FILES = [
    ("vim-t", "vim_tiny", lambda s: {"model": s, "args": argparse.Namespace(lr=1e-3), "epoch": 3},
     (2, 3, 224, 224), 2e-5, {}),
    ("vmamba-t", "vmamba_tiny_s1l8", lambda s: {"model": s, "max_accuracy": 82.6},
     (2, 3, 224, 224), 2e-5, {}),
    ("umamba", "UMambaBot_2d", nnunet, (1, 3, 256, 256), 1e-4, {"deep_supervision": True}),
    ("umamba-enc", "UMambaEnc_2d", nnunet, (1, 3, 256, 256), 1e-3, {"deep_supervision": True}),
    ("vmunet", "vmunet", lambda s: s, (1, 3, 256, 256), 1e-4, {}),
    ("vmunet", "vmunet", lambda s: {"epoch": 9, "model_state_dict": s, "loss": 0.1},
     (1, 3, 256, 256), 1e-4, {}),
    ("ulvm", "ultralight_vm_unet", lambda s: {f"module.{k}": t for k, t in s.items()},
     (1, 3, 256, 256), 1e-4, {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layout", "wrap", "shape", "atol", "options"), FILES)
def test_a_file_as_its_project_writes_it_gives_the_official_outputs(
    tmp_path: Path, name: str, layout: str, wrap: Any, shape: tuple[int, ...], atol: float,
    options: dict[str, Any],
) -> None:  # fmt: skip
    stored = golden.arrays(f"{layout}.strong.npz")
    torch.save(wrap(official(layout)), tmp_path / "w.pth")
    network = create_model(name, weights=tmp_path / "w.pth", **options)
    with torch.no_grad():
        outputs = network(golden.images(*shape))
    if "logits" in stored:
        assert golden.distance(outputs, stored["logits"]) <= atol
        return
    for number, output in enumerate(outputs if isinstance(outputs, list) else [outputs]):
        step = int(stored[f"out{number}_stride"])
        thinned = output[:, :, ::step, ::step]
        assert golden.distance(thinned, stored[f"out{number}"]) <= atol


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_name_gives_an_evaluating_float32_network_on_the_cpu(name: str) -> None:
    if ARCHITECTURES[name].family in ("vmamba", "vim") and name not in ("vim", "vmamba-pico"):
        with torch.device("meta"):  # large ones without their numbers
            network = create_model(name)
    else:
        network = create_model(name)
        assert {p.device.type for p in network.parameters()} == {"cpu"}
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_float32_whatever_the_default_is() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        network = create_model("vmamba-pico")
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    state = {key: t.half() for key, t in create_model("vmamba-pico").state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    network = create_model("vmamba-pico", weights=str(tmp_path / "w.safetensors"))
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_our_own_file(tmp_path: Path) -> None:
    saved = create_model("ulvm_v2", num_classes=3)
    save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    again = create_model("ULVM-v2", weights=tmp_path / "weights.safetensors", num_classes=3)
    for key, tensor in saved.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], tensor, rtol=0, atol=0)


def test_load_then_reset_the_classifier(tmp_path: Path) -> None:
    """The way out that the message names."""
    torch.save(create_model("vmamba-pico").state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"call `model\.reset_classifier\(3\)`"):
        create_model("vmamba-pico", weights=tmp_path / "w.pth", num_classes=3)
    network = create_model("vmamba-pico", weights=tmp_path / "w.pth")
    network.reset_classifier(3)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_timms_models_too(tmp_path: Path) -> None:
    network = create_model("test_resnet.r160_in1k", num_classes=4)
    assert not network.training
    torch.save(network.state_dict(), tmp_path / "w.pth")
    again = create_model("test_resnet.r160_in1k", weights=tmp_path / "w.pth", num_classes=4)
    torch.testing.assert_close(network.state_dict(), again.state_dict(), rtol=0, atol=0)
    with torch.device("meta"):
        short = create_model("convnext-t")
    assert type(short) is timm.models.ConvNeXt


def test_a_timm_name_without_tag_is_ambiguous() -> None:
    with pytest.raises(UsageError, match=r"(?s)`resnet34` is timm's, .*Add the tag"):
        create_model("resnet34")


@pytest.mark.parametrize("name", ["test_resnet", "timm/test_resnet.r160_in1k", "vmamba-pico"])
def test_the_head_in_a_file_says_how_many_classes_there_are(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours = name == "vmamba-pico"
    saved = create_model(name, num_classes=4) if ours else timm.create_model(TIMM, num_classes=4)
    torch.save({"state_dict": saved.state_dict()}, tmp_path / "w.pth")
    caplog.clear()
    network = create_model(name, weights=tmp_path / "w.pth")
    torch.testing.assert_close(network.state_dict(), saved.state_dict(), rtol=0, atol=0)
    assert "its head tells 4 classes apart" in caplog.text


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match=r"No model is called `umanba`\.\nDid you mean `umamba`"):
        create_model("umanba")
