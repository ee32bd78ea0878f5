"""What each mode changes in a training."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from robustcli.adapters import networks
from robustcli.core.errors import UsageError
from robustcli.finetuning.finetune_plan import FinetunePlan, plan_finetuning
from robustcli.finetuning.mode_costs import MeasureCosts
from robustcli.finetuning.modes import ALPHA, RANK, ModeListener, Modes, adapt, merged, projections
from robustcli.finetuning.profiler import FreezeAfterProfile, KeepFrozen, ProfileGradients
from robustcli.finetuning.selection import Decision
from robustcli.training.training_task import Enough
from tests.finetuning.tunings import network, tuning, write_pretrained
from tests.training.pairs import write_pairs
from tests.training.runs import Heard

HEADS = ("decoder.seg_layers.",)
IMAGES = torch.linspace(0, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
VMUNET = {"dim": 8, "depths": [1, 1, 1, 1], "depths_decoder": [1, 1, 1, 1]}


def adapted(seed: int = 0) -> nn.Module:
    made = network().eval()
    adapt(made, HEADS, name="umamba", seed=seed)
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
    found = projections(networks.create("vmunet", VMUNET))
    assert len(found) == 2 * 8  # in and out of eight blocks
    assert {name.rsplit(".", 1)[1] for name in found} == {"in_proj", "out_proj"}
    bidirectional = projections(networks.create("vim-t", {"depth": 1, "img_size": 32}))
    assert {name.rsplit(".", 1)[1] for name in bidirectional} == {
        "in_proj", "x_proj", "x_proj_b", "out_proj",
    }  # fmt: skip


def test_a_network_without_projections() -> None:
    with pytest.raises(UsageError, match="`--mode lora` finds nothing to adapt in `unet`"):
        adapt(networks.create("unet", {"features": [4, 8]}), ("conv.",), name="unet", seed=0)


def test_what_a_mode_says_has_its_name_before_it() -> None:
    heard = Heard()
    listener = ModeListener(heard)
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
    listener = ModeListener(heard)
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


def modes(plan: FinetunePlan, known: list[Decision] | None = None) -> Modes:
    return Modes(plan, known, lambda rows: None, lambda decisions: None)


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
    made = modes(plan).tuning(mode, tmp_path)  # type: ignore[arg-type]
    network, _ = made.start(plan.training)
    assert [type(callback) for callback in made.callbacks(network)] == kinds


def test_known_decisions_need_no_profile(plan: FinetunePlan, tmp_path: Path) -> None:
    made = modes(plan, KNOWN).tuning("freeze", tmp_path)
    _, keep = made.callbacks(made.start(plan.training)[0])
    assert isinstance(keep, KeepFrozen)
    assert keep.names == [KNOWN[0].name]


def test_adapters_are_written_merged_and_all_else_as_it_is(
    plan: FinetunePlan, tmp_path: Path
) -> None:
    lora = modes(plan).tuning("lora", tmp_path)
    adapted = lora.start(plan.training)[0].state_dict()
    plain = modes(plan).tuning("full", tmp_path).start(plan.training)[0].state_dict()
    merged = lora.export(adapted)
    assert merged.keys() == plain.keys() != adapted.keys()
    assert all(torch.equal(merged[name], plain[name]) for name in plain)  # B begins at 0
    unchanged = modes(plan).tuning("full", tmp_path).export(plain)
    assert all(unchanged[name] is plain[name] for name in plain)


def test_a_profile_alone_ends_when_it_has_decided(plan: FinetunePlan) -> None:
    made = modes(plan).profiling()
    profiler, freezing = made.callbacks(made.start(plan.training)[0])
    assert isinstance(profiler, ProfileGradients)
    assert profiler.iterations == 2
    assert isinstance(freezing, FreezeAfterProfile)
    with pytest.raises(Enough):
        freezing.tell([])
