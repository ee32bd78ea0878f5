"""The modes of fine-tuning: trained parameters, callbacks, written weights and costs."""

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
from robustcli.training.processes import EndTraining
from tests.finetuning.tunings import network, tiny_tuning, write_pretrained
from tests.training.images import write_pairs
from tests.training.runs import Recorder

HEADS = ("decoder.seg_layers.",)
IMAGES = torch.linspace(0, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
VMUNET = {"dim": 8, "depths": [1, 1, 1, 1], "depths_decoder": [1, 1, 1, 1]}


def lora_network(seed: int = 0) -> nn.Module:
    result = network().eval()
    adapt(result, HEADS, LORA_LAYERS, name="umamba", seed=seed)
    return result


def test_only_adapters_and_heads_train() -> None:
    trainable_names = {n for n, p in lora_network().named_parameters() if p.requires_grad}
    assert trainable_names == {
        "decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias",
        *(f"mamba_layer.mamba.{layer}.lora_{side}.default.weight"
          for layer in ("in_proj", "x_proj", "out_proj") for side in "AB"),
    }  # fmt: skip


def test_the_output_is_unchanged_before_training() -> None:
    with torch.no_grad():
        output, expected = lora_network()(IMAGES), network().eval()(IMAGES)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_adapters_are_those_of_the_seed() -> None:
    first, repeated, other_seed = (lora_network(seed).state_dict() for seed in (0, 0, 1))
    key = "mamba_layer.mamba.in_proj.lora_A.default.weight"
    assert torch.equal(first[key], repeated[key])
    assert not torch.equal(first[key], other_seed[key])
    assert first[key].shape == (RANK, 8)


def test_merged_weights_give_the_output_of_the_adapters_and_of_peft() -> None:
    adapted = lora_network()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.5)
        expected = adapted(IMAGES)
        merged_network = network(seed=99).eval()
        merged_network.load_state_dict(merged(adapted.state_dict()))
        output = merged_network(IMAGES)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(output, network().eval()(IMAGES), atol=1e-3)
    peft_layer = copy.deepcopy(adapted).get_submodule("mamba_layer.mamba.x_proj")
    peft_layer.merge()  # type: ignore[operator]
    torch.testing.assert_close(
        merged_network.get_parameter("mamba_layer.mamba.x_proj.weight"),
        peft_layer.get_parameter("base_layer.weight"),
    )


def test_merging_by_hand() -> None:
    state = {
        "x.base_layer.weight": torch.eye(2),
        "x.base_layer.bias": torch.ones(2),
        "x.lora_A.default.weight": torch.tensor([[1.0, 2.0]]),
        "x.lora_B.default.weight": torch.tensor([[1.0], [0.0]]),
        "y.weight": torch.zeros(1),
    }
    merged_state = merged(state)
    assert list(merged_state) == ["x.weight", "x.bias", "y.weight"]
    scale = ALPHA / RANK
    assert merged_state["x.weight"].tolist() == [[1 + scale, 2 * scale], [0, 1]]


def test_projections_are_found_by_the_type_of_their_module() -> None:
    names = projections(networks.create("vmunet", VMUNET), LORA_LAYERS)
    assert len(names) == 2 * 8  # input and output of eight blocks
    assert {name.rsplit(".", 1)[1] for name in names} == {"in_proj", "out_proj"}
    vim = networks.create("vim-t", {"depth": 1, "img_size": 32})
    bidirectional = projections(vim, LORA_LAYERS)
    assert {name.rsplit(".", 1)[1] for name in bidirectional} == {
        "in_proj", "x_proj", "x_proj_b", "out_proj",
    }  # fmt: skip
    assert {name.rsplit(".", 1)[1] for name in projections(vim, ["x_proj"])} == {
        "x_proj", "x_proj_b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "message"),
    [(("in_proj", "q_proj"), "no linear layer `q_proj`"), ((), "`--lora-layers` names no layer")],
)
def test_layers_that_do_not_exist_are_an_error_that_lists_the_existing_ones(
    layers: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        adapt(network(), HEADS, layers, name="umamba", seed=0)
    assert "`x_proj`" in caught.value.why


def test_a_network_without_projections() -> None:
    with pytest.raises(UsageError, match="`--mode lora` cannot be used with `unet`"):
        adapt(
            networks.create("unet", {"features": [4, 8]}), ("conv.",), LORA_LAYERS,
            name="unet", seed=0,
        )  # fmt: skip


def test_messages_of_a_mode_start_with_its_name() -> None:
    recorder = Recorder()
    listener = NamedListener(recorder)
    listener.say("Recipe.")
    for mode in ("full", "freeze"):
        listener.begin(mode)
        listener.start(10, 0)
        listener.say("Epoch 1: loss 0.5.")
        listener.advance(4)
    assert recorder.lines == ["Recipe.", "full: Epoch 1: loss 0.5.", "freeze: Epoch 1: loss 0.5."]
    assert (recorder.total, recorder.done) == (10, 4)


def test_messages_without_a_mode_have_no_prefix() -> None:
    recorder = Recorder()
    listener = NamedListener(recorder)
    listener.begin("profile")
    listener.start(1, 0)
    listener.begin("")
    listener.say("Done.")
    assert recorder.lines == ["Done."]


DECISIONS = [Decision("encoder.stem.0.conv1.weight", 108, False, None, True, "by name")]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> FinetunePlan:
    folder = tmp_path_factory.mktemp("given")
    weights = write_pretrained(folder / "weights.safetensors")
    return plan_finetuning(
        tiny_tuning(write_pairs(folder / "data", 14), folder / "run", weights), Recorder()
    )


def modes_of(plan: FinetunePlan, decisions: list[Decision] | None = None) -> Modes:
    return Modes(plan, decisions)


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("scratch", [MeasureCosts]),
        ("full", [MeasureCosts]),
        ("freeze", [MeasureCosts, ProfileGradients, FreezeAfterProfile]),
        ("lora", [MeasureCosts, KeepFrozen]),
    ],
)
def test_each_mode_has_its_callbacks_in_order(
    plan: FinetunePlan, tmp_path: Path, mode: str, kinds: list[type]
) -> None:
    """Costs are measured before the freeze of the same step."""
    train_start = modes_of(plan).start(mode, tmp_path)  # type: ignore[arg-type]
    assert [type(callback) for callback in train_start.callbacks] == kinds


def test_known_decisions_need_no_profile(plan: FinetunePlan, tmp_path: Path) -> None:
    _, keep = modes_of(plan, DECISIONS).start("freeze", tmp_path).callbacks
    assert isinstance(keep, KeepFrozen)
    assert keep.names == [DECISIONS[0].name]


def test_adapters_are_written_merged_and_other_tensors_unchanged(
    plan: FinetunePlan, tmp_path: Path
) -> None:
    lora_start, full_start = (modes_of(plan).start(mode, tmp_path) for mode in ("lora", "full"))
    lora_state, full_state = lora_start.network.state_dict(), full_start.network.state_dict()
    merged = lora_start.export(lora_state)
    assert merged.keys() == full_state.keys() != lora_state.keys()
    # B is 0 at first.
    assert all(torch.equal(merged[name], full_state[name]) for name in full_state)
    unchanged = full_start.export(full_state)
    assert all(unchanged[name] is full_state[name] for name in full_state)


def test_a_profile_alone_ends_when_it_has_decided(plan: FinetunePlan) -> None:
    profiler, freezing = modes_of(plan).profiling().callbacks
    assert isinstance(profiler, ProfileGradients)
    assert profiler.iterations == 2
    assert isinstance(freezing, FreezeAfterProfile)
    with pytest.raises(EndTraining):
        freezing.on_decisions([])


MODULE: Any = SimpleNamespace(device=torch.device("cpu"))


def train_steps(run: Path, callback: MeasureCosts, steps: range, optimizer: Any) -> None:
    for step in steps:
        trainer: Any = SimpleNamespace(
            is_global_zero=True, global_step=step, optimizers=[optimizer], should_stop=False,
            current_epoch=0, max_epochs=1,
        )  # fmt: skip
        callback.on_train_batch_start(trainer, MODULE, None, step)
        callback.on_train_batch_end(trainer, MODULE, None, None, step)
    callback.on_validation_start(trainer, MODULE)
    callback.on_validation_end(trainer, MODULE)
    callback.on_save_checkpoint(trainer, MODULE, {})


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the system's peak memory by these values, in order."""
    peak_bytes: list[int] = []
    monkeypatch.setattr(modes, "peak_resident", lambda device: peak_bytes.pop(0))
    monkeypatch.setattr(modes, "start_anew", lambda device: None)
    return peak_bytes


def test_a_line_per_step_and_the_costs_at_the_end(tmp_path: Path, peaks: list[int]) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    callback = MeasureCosts(tmp_path, net)
    peaks.append(500)
    train_steps(tmp_path, callback, range(1, 3), optimizer)
    net.bias.requires_grad_(False)
    resumed = MeasureCosts(tmp_path, net)  # after an interruption
    resumed.load_state_dict(callback.state_dict())
    peaks.append(300)
    train_steps(tmp_path, resumed, range(3, 5), optimizer)
    lines = pd.read_csv(tmp_path / "iterations.csv")
    assert tuple(lines.columns) == STEPS
    assert lines["iteration"].tolist() == [1, 2, 3, 4]
    assert lines["trainable"].tolist() == [8, 8, 6, 6]
    costs = ModeCosts.model_validate_json((tmp_path / "costs.json").read_text())
    assert (costs.trainable, costs.peak_memory_bytes) == (6, 300)  # since the freeze
    assert costs.optimizer_bytes == optimizer_bytes(optimizer) == 2 * 4 * 8 + 2 * 4


def test_a_step_of_several_batches_is_one_line(
    tmp_path: Path, peaks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Linear(3, 2)
    callback = MeasureCosts(tmp_path, net)
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 24.0])  # batches of 1, 2 and 4 seconds
    monkeypatch.setattr(modes.time, "perf_counter", lambda: next(clock))
    for batch, finished_steps in enumerate([0, 1, 2]):  # the last batch of an epoch is a step
        trainer: Any = SimpleNamespace(global_step=finished_steps)
        callback.on_train_batch_start(trainer, MODULE, None, batch)
        callback.on_train_batch_end(trainer, MODULE, None, None, batch)
    assert callback.lines == [(1, 3.0, 8), (2, 4.0, 8)]


def test_without_a_freeze_the_peak_is_that_of_all_epochs(tmp_path: Path, peaks: list[int]) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    callback = MeasureCosts(tmp_path, net)
    for peak in (500, 300):
        peaks.append(peak)
        train_steps(tmp_path, callback, range(1, 2), optimizer)
    costs = ModeCosts.model_validate_json((tmp_path / "costs.json").read_text())
    assert (costs.peak_memory_bytes, costs.optimizer_bytes) == (500, 0)


def test_trainable_counts_elements() -> None:
    net = nn.Linear(3, 2)
    assert trainable(net) == 8
    net.weight.requires_grad_(False)
    assert trainable(net) == 2


CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="needs the peak memory of Linux")
def test_peak_memory_counts_until_it_is_reset() -> None:
    start_anew(CPU)
    before = peak_resident(CPU)
    block = bytearray(1 << 27)
    block[::4096] = b"x" * len(block[::4096])
    peak_with_block = peak_resident(CPU)
    assert peak_with_block >= before + (1 << 26)
    del block
    assert peak_resident(CPU) > peak_with_block - (1 << 26)  # the kernel counts in batches


def test_peak_memory_is_zero_if_the_system_does_not_report_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "_PROCESS", tmp_path / "nowhere")
    start_anew(CPU)
    assert peak_resident(CPU) == 0
