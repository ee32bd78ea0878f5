"""What a fine-tuning needs, and what stops it before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.finetune_plan import plan_finetuning
from robustcli.training.config import TrainConfig
from tests.adapters import nnunet_files
from tests.finetuning.tunings import TINY, tuning, write_pretrained
from tests.training.pairs import write_pairs
from tests.training.runs import Heard


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("discs") / "data", 14)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained(tmp_path_factory.mktemp("weights") / "weights.safetensors")


def test_modes_differ_in_the_body_and_agree_in_the_heads(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    plan = plan_finetuning(tuning(data, tmp_path / "run", weights), Heard())
    (scratch, _), (full, origin) = plan.network("scratch"), plan.network("full")
    again, _ = plan.network("freeze")
    for name, tensor in full.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        if name.startswith(plan.heads):
            assert torch.equal(tensor, scratch.state_dict()[name])
    key = "mamba_layer.mamba.in_proj.weight"
    assert not torch.equal(full.state_dict()[key], scratch.state_dict()[key])
    assert origin == str(weights)
    assert plan.training.config.model_args == TINY  # of the weights' header
    assert not (tmp_path / "run").exists()


def test_scratch_alone_knows_the_bundled_weights_of_the_modes_that_may_join(
    data: Path, tmp_path: Path
) -> None:
    heard, config = Heard(), TrainConfig("umamba-pico", str(data), tmp_path / "run", epochs=1)
    alone = plan_finetuning(FinetuneConfig(config, mode="scratch"), heard)
    joined = plan_finetuning(FinetuneConfig(config, mode="full"), Heard())
    assert alone.pretrained is not None
    assert joined.pretrained is not None
    assert alone.pretrained.origin == joined.pretrained.origin
    assert not any("Starting from" in line for line in heard.lines)


@pytest.mark.parametrize(
    ("said", "epochs", "profiled"),
    [
        ({"iterations": 7}, 3, 2),
        ({"iterations": 6}, 2, 2),
        ({"epochs": 5}, 5, 2),
        ({"epochs": 50, "profile_iterations": None}, 50, 20),
        ({"epochs": 4, "profile_iterations": None}, 4, 6),
    ],
)
def test_how_long_it_is(
    data: Path, weights: Path, tmp_path: Path, said: dict[str, Any], epochs: int, profiled: int
) -> None:
    """Three steps are an epoch; a profile takes 20, but at most half of all."""
    plan = plan_finetuning(tuning(data, tmp_path / "run", weights, **said), Heard())
    assert (plan.training.recipe.epochs, plan.steps) == (epochs, 3 * epochs)
    assert plan.profile_iterations == profiled


def test_a_folder_of_its_own(data: Path, weights: Path, tmp_path: Path) -> None:
    config = tuning(data, tmp_path / "unused", weights)
    config = replace(config, training=replace(config.training, out=None))
    usual = plan_finetuning(config, Heard()).run
    assert usual.parts[0] == "runs"
    assert usual.name.startswith("finetune-umamba-")
    assert plan_finetuning(replace(config, mode="full"), Heard()).run == usual  # modes share it
    other = replace(config, training=replace(config.training, seed=1))
    assert plan_finetuning(other, Heard()).run != usual
    assert plan_finetuning(replace(config, profile_iterations=3), Heard()).run != usual


def test_the_bundled_network_needs_nothing(tmp_path: Path) -> None:
    heard = Heard()
    plan = plan_finetuning(FinetuneConfig(TrainConfig("umamba", out=tmp_path / "run")), heard)
    assert plan.entry.name == "umamba-pico"
    assert (plan.training.recipe.window, plan.training.recipe.batch_size) == (128, 4)
    assert 360 <= plan.steps < 366
    assert plan.profile_iterations == 20
    assert any("the bundled `umamba-pico`, trained on nuclei-mini:f" in x for x in heard.lines)


@pytest.mark.parametrize("model", ["umamba", "umamba-enc"])
def test_results_of_nnunet(data: Path, tmp_path: Path, model: str) -> None:
    """Its plan gives the network; its heads are as new as the target's."""
    made = nnunet_files.network(model)
    folder = nnunet_files.results(tmp_path / "results", nnunet_files.checkpoint(made))
    config = tuning(data, tmp_path / "run", folder, model=model, window=32)
    plan = plan_finetuning(config, Heard())
    network, origin = plan.network("full")
    assert origin.startswith("nnU-Net: ")
    own, theirs = network.state_dict(), made.state_dict()
    assert own.keys() == theirs.keys()
    for name, tensor in own.items():
        if not name.endswith("bias"):  # which begin at 0, wherever they are
            assert torch.equal(tensor, theirs[name]) != name.startswith("decoder.seg_layers.")


def test_windows_of_another_size_than_the_plans_patch(data: Path, tmp_path: Path) -> None:
    """U-Mamba-Enc's weights have its size."""
    made = nnunet_files.network("umamba-enc")
    folder = nnunet_files.results(tmp_path / "results", nnunet_files.checkpoint(made))
    config = tuning(data, tmp_path / "run", folder, model="umamba-enc", window=64)
    with pytest.raises(UsageError, match="takes patches of 32 x 32 pixels only") as caught:
        plan_finetuning(config, Heard())
    assert "`--window 32`" in caught.value.todo
    free = replace(config, training=replace(config.training, window=None))
    assert plan_finetuning(free, Heard()).training.recipe.window == 32


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"model": "otsu"}, "`otsu` has nothing to train"),
        ({"model": "umamba-enc"}, "`umamba-enc` has no weights here to fine-tune"),
        ({"model": "unet"}, "`unet` has no weights here to fine-tune"),
        ({"iterations": 5, "epochs": 2}, "`--iterations` and `--epochs` exclude each other"),
        ({"profile": Path("p"), "profile_only": True}, "`--profile` and `--profile-only` exclude"),
        ({"pretrained": Path("nowhere")}, "`--pretrained nowhere` does not exist"),
        ({"profile_iterations": 9}, "`--profile-iterations 9` leaves nothing to train"),
        ({"data": "nowhere"}, "nowhere"),
        ({"lr": -1.0}, "`--lr -1.0` is out of range"),
    ],
)
def test_what_stops_it(
    data: Path, weights: Path, tmp_path: Path, said: dict[str, Any], message: str
) -> None:
    said = {"pretrained": None if "model" in said else weights, "data": data, **said}
    config = tuning(said.pop("data"), tmp_path / "run", said.pop("pretrained"), **said)
    with pytest.raises(UsageError, match=message):
        plan_finetuning(config, Heard())
    assert not (tmp_path / "run").exists()


def test_torchrun_takes_one_mode(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (said | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="torchrun trains one mode at a time"):
        plan_finetuning(tuning(data, tmp_path / "run", weights), Heard())


def test_a_folder_is_no_network(data: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder of a training") as caught:
        plan_finetuning(tuning(data, tmp_path / "run", None, model=str(weights.parent)), Heard())
    assert f"robust finetune umamba --pretrained {weights.parent}" in caught.value.todo


def test_a_checkpoint_that_holds_code_is_not_run(data: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"state_dict": _Code(trace)}, tmp_path / "evil.pth")
    with pytest.raises(UsageError, match=r"evil\.pth"):
        plan_finetuning(tuning(data, tmp_path / "run", tmp_path / "evil.pth"), Heard())
    assert not trace.exists()


class _Code:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_weights_that_do_not_fit_stop_it_by_name(data: Path, weights: Path, tmp_path: Path) -> None:
    config = tuning(data, tmp_path / "run", weights, model_args={"features": [4, 12]})
    with pytest.raises(UsageError, match="do not fit") as caught:
        plan_finetuning(config, Heard())
    assert "`mamba_layer.mamba.in_proj.weight` is (32, 8), not (48, 12)" in caught.value.why


def test_a_foreign_folder_is_not_written_into(data: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("not a run")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        plan_finetuning(tuning(data, tmp_path, weights), Heard())
