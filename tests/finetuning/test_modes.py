"""What each mode changes in a training, and what it costs."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from robustcli.adapters import networks
from robustcli.core.errors import UsageError
from robustcli.core.listener import NamedListener
from robustcli.finetuning import modes
from robustcli.finetuning.config import LORA_LAYERS
from robustcli.finetuning.finetune_plan import FinetunePlan, plan_finetuning
from robustcli.finetuning.freezing import FreezeAfterProfile, KeepFrozen, ProfileGradients
from robustcli.finetuning.modes import (
    ALPHA,
    RANK,
    MeasureCosts,
    Modes,
    adapt,
    merged,
    optimizer_bytes,
    peak_resident,
    projections,
    start_anew,
    trainable,
)
from robustcli.finetuning.record import STEPS, ModeCosts
from robustcli.finetuning.selection import Decision
from robustcli.training.processes import Enough
from tests.finetuning.tunings import network, tuning, write_pretrained
from tests.training.images import write_pairs
from tests.training.runs import Heard

HEADS = ("decoder.seg_layers.",)
IMAGES = torch.linspace(0, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
VMUNET = {"dim": 8, "depths": [1, 1, 1, 1], "depths_decoder": [1, 1, 1, 1]}


def adapted(seed: int = 0) -> nn.Module:
    made = network().eval()
    adapt(made, HEADS, LORA_LAYERS, name="umamba", seed=seed)
    return made


def test_only_adapters_and_heads_train() -> None:
    trained = {n for n, p in adapted().named_parameters() if p.requires_grad}
    assert trained == {
        "decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias",
        *(f"mamba_layer.mamba.{layer}.lora_{part}.default.weight"
          for layer in ("in_proj", "x_proj", "out_proj") for part in "AB"),
    }  # fmt: skip


def test_the_output_is_at_first_as_it_was() -> None:
    with torch.no_grad():
        found, expected = adapted()(IMAGES), network().eval()(IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_adapters_are_those_of_the_seed() -> None:
    one, twin, other = (adapted(seed).state_dict() for seed in (0, 0, 1))
    key = "mamba_layer.mamba.in_proj.lora_A.default.weight"
    assert torch.equal(one[key], twin[key])
    assert not torch.equal(one[key], other[key])
    assert one[key].shape == (RANK, 8)


def test_merged_weights_say_the_same_as_the_adapters_and_as_pefts() -> None:
    made = adapted()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.5)
        expected = made(IMAGES)
        plain = network(seed=99).eval()
        plain.load_state_dict(merged(made.state_dict()))
        found = plain(IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, network().eval()(IMAGES), atol=1e-3)
    theirs = copy.deepcopy(made).get_submodule("mamba_layer.mamba.x_proj")
    theirs.merge()  # type: ignore[operator]
    torch.testing.assert_close(
        plain.get_parameter("mamba_layer.mamba.x_proj.weight"),
        theirs.get_parameter("base_layer.weight"),
    )


def test_merging_by_hand() -> None:
    state = {
        "x.base_layer.weight": torch.eye(2),
        "x.base_layer.bias": torch.ones(2),
        "x.lora_A.default.weight": torch.tensor([[1.0, 2.0]]),
        "x.lora_B.default.weight": torch.tensor([[1.0], [0.0]]),
        "y.weight": torch.zeros(1),
    }
    plain = merged(state)
    assert list(plain) == ["x.weight", "x.bias", "y.weight"]
    scale = ALPHA / RANK
    assert plain["x.weight"].tolist() == [[1 + scale, 2 * scale], [0, 1]]


def test_projections_are_found_by_the_type_of_their_module() -> None:
    found = projections(networks.create("vmunet", VMUNET), LORA_LAYERS)
    assert len(found) == 2 * 8  # in and out of eight blocks
    assert {name.rsplit(".", 1)[1] for name in found} == {"in_proj", "out_proj"}
    vim = networks.create("vim-t", {"depth": 1, "img_size": 32})
    bidirectional = projections(vim, LORA_LAYERS)
    assert {name.rsplit(".", 1)[1] for name in bidirectional} == {
        "in_proj", "x_proj", "x_proj_b", "out_proj",
    }  # fmt: skip
    assert {name.rsplit(".", 1)[1] for name in projections(vim, ["x_proj"])} == {
        "x_proj", "x_proj_b",
    }  # fmt: skip


def test_layers_that_no_block_has_are_an_error_that_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="no linear layer `q_proj`") as caught:
        adapt(network(), HEADS, ("in_proj", "q_proj"), name="umamba", seed=0)
    assert "`x_proj`" in caught.value.why


def test_a_network_without_projections() -> None:
    with pytest.raises(UsageError, match="`--mode lora` cannot be used with `unet`"):
        adapt(
            networks.create("unet", {"features": [4, 8]}), ("conv.",), LORA_LAYERS,
            name="unet", seed=0,
        )  # fmt: skip


def test_what_a_mode_says_has_its_name_before_it() -> None:
    heard = Heard()
    listener = NamedListener(heard)
    listener.say("Recipe.")
    for mode in ("full", "freeze"):
        listener.begin(mode)
        listener.start(10, 0)
        listener.say("Epoch 1: loss 0.5.")
        listener.advance(4)
    assert heard.lines == ["Recipe.", "full: Epoch 1: loss 0.5.", "freeze: Epoch 1: loss 0.5."]
    assert (heard.total, heard.done) == (10, 4)


def test_without_a_mode_lines_are_as_they_are() -> None:
    heard = Heard()
    listener = NamedListener(heard)
    listener.begin("profile")
    listener.start(1, 0)
    listener.begin("")
    listener.say("Done.")
    assert heard.lines == ["Done."]


KNOWN = [Decision("encoder.stem.0.conv1.weight", 108, False, None, True, "by name")]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> FinetunePlan:
    folder = tmp_path_factory.mktemp("given")
    weights = write_pretrained(folder / "weights.safetensors")
    return plan_finetuning(
        tuning(write_pairs(folder / "data", 14), folder / "run", weights), Heard()
    )


def modes_of(plan: FinetunePlan, known: list[Decision] | None = None) -> Modes:
    return Modes(plan, known)


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("scratch", [MeasureCosts]),
        ("full", [MeasureCosts]),
        ("freeze", [MeasureCosts, ProfileGradients, FreezeAfterProfile]),
        ("lora", [MeasureCosts, KeepFrozen]),
    ],
)
def test_who_watches(plan: FinetunePlan, tmp_path: Path, mode: str, kinds: list[type]) -> None:
    """Costs come before the freeze that a step brings about."""
    start = modes_of(plan).start(mode, tmp_path)  # type: ignore[arg-type]
    assert [type(callback) for callback in start.callbacks] == kinds


def test_known_decisions_need_no_profile(plan: FinetunePlan, tmp_path: Path) -> None:
    _, keep = modes_of(plan, KNOWN).start("freeze", tmp_path).callbacks
    assert isinstance(keep, KeepFrozen)
    assert keep.names == [KNOWN[0].name]


def test_adapters_are_written_merged_and_all_else_as_it_is(
    plan: FinetunePlan, tmp_path: Path
) -> None:
    lora, full = (modes_of(plan).start(mode, tmp_path) for mode in ("lora", "full"))
    adapted, plain = lora.network.state_dict(), full.network.state_dict()
    merged = lora.export(adapted)
    assert merged.keys() == plain.keys() != adapted.keys()
    assert all(torch.equal(merged[name], plain[name]) for name in plain)  # B begins at 0
    unchanged = full.export(plain)
    assert all(unchanged[name] is plain[name] for name in plain)


def test_a_profile_alone_ends_when_it_has_decided(plan: FinetunePlan) -> None:
    profiler, freezing = modes_of(plan).profiling().callbacks
    assert isinstance(profiler, ProfileGradients)
    assert profiler.iterations == 2
    assert isinstance(freezing, FreezeAfterProfile)
    with pytest.raises(Enough):
        freezing.on_decisions([])


MODULE: Any = SimpleNamespace(device=torch.device("cpu"))


def trained(run: Path, measured: MeasureCosts, steps: range, optimizer: Any) -> None:
    for step in steps:
        trainer: Any = SimpleNamespace(
            is_global_zero=True, global_step=step, optimizers=[optimizer]
        )
        measured.on_train_batch_start(trainer, MODULE, None, step)
        measured.on_train_batch_end(trainer, MODULE, None, None, step)
    measured.on_validation_start(trainer, MODULE)
    measured.on_validation_end(trainer, MODULE)
    measured.on_train_end(trainer, MODULE)


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the system tells, in this order."""
    told: list[int] = []
    monkeypatch.setattr(modes, "peak_resident", lambda device: told.pop(0))
    monkeypatch.setattr(modes, "start_anew", lambda device: None)
    return told


def test_a_line_per_step_and_the_costs_at_the_end(tmp_path: Path, peaks: list[int]) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    measured = MeasureCosts(tmp_path, net)
    peaks.append(500)
    trained(tmp_path, measured, range(1, 3), optimizer)
    net.bias.requires_grad_(False)
    again = MeasureCosts(tmp_path, net)  # after an interruption
    again.load_state_dict(measured.state_dict())
    peaks.append(300)
    trained(tmp_path, again, range(3, 5), optimizer)
    lines = pd.read_csv(tmp_path / "iterations.csv")
    assert tuple(lines.columns) == STEPS
    assert lines["iteration"].tolist() == [1, 2, 3, 4]
    assert lines["trainable"].tolist() == [8, 8, 6, 6]
    costs = ModeCosts.model_validate_json((tmp_path / "costs.json").read_text())
    assert (costs.trainable, costs.peak_memory_bytes) == (6, 300)  # since the freeze
    assert costs.optimizer_bytes == optimizer_bytes(optimizer) == 2 * 4 * 8 + 2 * 4


def test_without_a_freeze_the_peak_is_that_of_all_epochs(tmp_path: Path, peaks: list[int]) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    measured = MeasureCosts(tmp_path, net)
    for peak in (500, 300):
        peaks.append(peak)
        trained(tmp_path, measured, range(1, 2), optimizer)
    costs = ModeCosts.model_validate_json((tmp_path / "costs.json").read_text())
    assert (costs.peak_memory_bytes, costs.optimizer_bytes) == (500, 0)


def test_trainable_counts_elements() -> None:
    net = nn.Linear(3, 2)
    assert trainable(net) == 8
    net.weight.requires_grad_(False)
    assert trainable(net) == 2


CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_what_was_taken_counts_until_it_is_started_anew() -> None:
    start_anew(CPU)
    before = peak_resident(CPU)
    block = bytearray(1 << 27)
    block[::4096] = b"x" * len(block[::4096])
    with_block = peak_resident(CPU)
    assert with_block >= before + (1 << 26)
    del block
    assert peak_resident(CPU) > with_block - (1 << 26)  # the kernel counts in batches


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_PROCESS", tmp_path / "nowhere")
    start_anew(CPU)
    assert peak_resident(CPU) == 0
