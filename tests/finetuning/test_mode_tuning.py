"""What each mode changes in a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustcli.finetuning.freeze_callbacks import FreezeAfterProfile, KeepFrozen
from robustcli.finetuning.mode_costs import MeasureCosts
from robustcli.finetuning.mode_tuning import Enough, Modes
from robustcli.finetuning.profiling import ProfileGradients
from robustcli.finetuning.selection import Decision
from robustcli.finetuning.setup import Setup, set_up
from tests.finetuning.tunings import tuning, write_pretrained
from tests.training.pairs import write_pairs
from tests.training.runs import Heard

KNOWN = [Decision("encoder.stem.0.conv1.weight", 108, False, None, True, "by name")]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("given")
    weights = write_pretrained(folder / "weights.safetensors")
    return set_up(tuning(write_pairs(folder / "data", 14), folder / "run", weights), Heard())


def modes(setup: Setup, known: list[Decision] | None = None) -> Modes:
    return Modes(setup, known, lambda rows: None, lambda decisions: None)


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("scratch", [MeasureCosts]),
        ("full", [MeasureCosts]),
        ("freeze", [MeasureCosts, ProfileGradients, FreezeAfterProfile]),
        ("lora", [MeasureCosts, KeepFrozen]),
    ],
)
def test_who_watches(setup: Setup, tmp_path: Path, mode: str, kinds: list[type]) -> None:
    """Costs come before the freeze that a step brings about."""
    made = modes(setup).tuning(mode, tmp_path)  # type: ignore[arg-type]
    network, _ = made.start()
    assert [type(callback) for callback in made.callbacks(network)] == kinds


def test_known_decisions_need_no_profile(setup: Setup, tmp_path: Path) -> None:
    made = modes(setup, KNOWN).tuning("freeze", tmp_path)
    _, keep = made.callbacks(made.start()[0])
    assert isinstance(keep, KeepFrozen)
    assert keep.names == [KNOWN[0].name]


def test_adapters_are_written_merged_and_all_else_as_it_is(setup: Setup, tmp_path: Path) -> None:
    lora = modes(setup).tuning("lora", tmp_path)
    adapted = lora.start()[0].state_dict()
    plain = modes(setup).tuning("full", tmp_path).start()[0].state_dict()
    merged = lora.export(adapted)
    assert merged.keys() == plain.keys() != adapted.keys()
    assert all(torch.equal(merged[name], plain[name]) for name in plain)  # B begins at 0
    unchanged = modes(setup).tuning("full", tmp_path).export(plain)
    assert all(unchanged[name] is plain[name] for name in plain)


def test_a_profile_alone_ends_when_it_has_decided(setup: Setup) -> None:
    made = modes(setup).profiling()
    profiler, freezing = made.callbacks(made.start()[0])
    assert isinstance(profiler, ProfileGradients)
    assert profiler.iterations == 2
    assert isinstance(freezing, FreezeAfterProfile)
    with pytest.raises(Enough):
        freezing.tell([])
