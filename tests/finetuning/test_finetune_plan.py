"""What a fine-tuning needs, and what stops it before anything is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.data import sources
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.dry_run import forecast_finetuning
from robustcli.finetuning.finetune_plan import plan_finetuning
from robustcli.finetuning.mode_trainings import run_finetuning
from robustcli.finetuning.record import read_finetune_record
from robustcli.finetuning.selection import FreezeRule
from robustcli.finetuning.starts import SegmenterFinetuning
from robustcli.training.config import TrainConfig
from robustcli.training.engine import run_training
from robustcli.training.train_forecast import forecast_training
from tests.adapters import nnunet_files
from tests.finetuning.tunings import TINY, Tune, tuning
from tests.training.images import write_photos
from tests.training.runs import Heard, small


def test_modes_differ_in_the_body_and_agree_in_the_heads(
    tune: Tune, weights: Path, tmp_path: Path
) -> None:
    plan = plan_finetuning(tune(), Heard())
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
def test_how_long_it_is(tune: Tune, said: dict[str, Any], epochs: int, profiled: int) -> None:
    """Three steps are an epoch; a profile takes 20, but at most half of all."""
    plan = plan_finetuning(tune(**said), Heard())
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
    with pytest.raises(UsageError, match="can only process patches of 32 x 32 pixels") as caught:
        plan_finetuning(config, Heard())
    assert "`--window 32`" in caught.value.todo
    free = replace(config, training=replace(config.training, window=None))
    assert plan_finetuning(free, Heard()).training.recipe.window == 32


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"model": "otsu"}, "`otsu` cannot be trained"),
        ({"model": "umamba-enc"}, "`umamba-enc` has no weights on this machine to fine-tune"),
        ({"model": "unet"}, "`unet` has no weights on this machine to fine-tune"),
        ({"iterations": 5, "epochs": 2}, "`--iterations` and `--epochs` exclude each other"),
        ({"profile": Path("p"), "profile_only": True}, "`--profile` and `--profile-only` exclude"),
        ({"pretrained": Path("nowhere")}, "`--pretrained nowhere` does not exist"),
        ({"profile_iterations": 9}, "`--profile-iterations 9` leaves no steps for training"),
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


def test_torchrun_takes_one_mode(tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (said | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="torchrun trains one mode at a time"):
        plan_finetuning(tune(), Heard())


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


def test_weights_that_do_not_fit_stop_it_by_name(tune: Tune) -> None:
    config = tune(model_args={"features": [4, 12]})
    with pytest.raises(UsageError, match="do not fit") as caught:
        plan_finetuning(config, Heard())
    assert "`mamba_layer.mamba.in_proj.weight` is (32, 8), not (48, 12)" in caught.value.why


def test_a_foreign_folder_is_not_written_into(data: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("not a run")
    with pytest.raises(UsageError, match="is not empty and contains no run"):
        plan_finetuning(tuning(data, tmp_path, weights), Heard())


def test_without_a_profile_it_says_that_one_decides(tune: Tune, tmp_path: Path) -> None:
    told = forecast_finetuning(tune(), Heard())
    assert (told.decisions, told.saving, told.profile_iterations) == (None, None, 2)
    assert told.training.steps == 9
    text = told.as_text()
    assert "Modes:      scratch, full, freeze; the time is for each of 3" in text
    assert "decided by a profile of the first 2 steps" in text
    assert "Sweep:" not in text
    assert not (tmp_path / "run").exists()


def test_a_sweep_says_how_much_more_it_is(tune: Tune) -> None:
    told = forecast_finetuning(tune(sweep=True), Heard())
    assert (
        f"Sweep:      up to {len(SegmenterFinetuning.rules)} further rules, each with the same "
        "number of steps" in told.as_text()
    )


def test_names_say_exactly_what_the_run_then_freezes(tune: Tune, tmp_path: Path) -> None:
    rule = FreezeRule(pattern="encoder.*")
    config = tune(mode="freeze", rule=rule, epochs=1)
    told = forecast_finetuning(config, Heard())
    assert told.decisions is not None
    assert told.saving is not None
    run_finetuning(config)
    assert read_finetune_record(tmp_path / "run").saving == told.saving
    frozen = [d.count for d in told.decisions if d.frozen]
    assert told.saving.frozen == sum(frozen)
    text = told.as_text()
    assert f"Frozen:     {sum(frozen):,} of {told.saving.parameters:,} (" in text
    assert text.count("frozen: fits `encoder.*`") == len(frozen)
    assert forecast_finetuning(config, Heard()).training.started


def test_nothing_is_frozen_in_other_modes(tune: Tune) -> None:
    told = forecast_finetuning(tune(mode="full"), Heard())
    assert told.profile_iterations == 0
    assert "Freezing:   none in these modes" in told.as_text()
    profile = tune(profile_only=True)
    assert "none: the profile only" in forecast_finetuning(profile, Heard()).as_text()


def test_it_is_json_too(tune: Tune, tmp_path: Path) -> None:
    rule = FreezeRule(pattern="encoder.*")
    told = forecast_finetuning(tune(tmp_path / "r", rule=rule), Heard())
    parsed = json.loads(told.as_json())
    assert parsed["modes"] == ["scratch", "full", "freeze"]
    assert {d["frozen"] for d in parsed["decisions"]} == {True, False}


def test_what_would_be_refused_is_refused_now(tune: Tune, tmp_path: Path) -> None:
    rule = FreezeRule(pattern="nothing")
    with pytest.raises(UsageError, match="`--freeze nothing` matches no parameter"):
        forecast_finetuning(tune(tmp_path / "r", rule=rule), Heard())


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was opened so far; every way to open a data set ends in one of these two functions."""
    seen: list[str] = []
    for name in ("_with_classes", "_with_masks"):
        opening = getattr(sources, name)

        def counted(*arguments: object, _opening: object = opening) -> object:
            seen.append(str(arguments[0]))
            return _opening(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(sources, name, counted)
    return seen


@pytest.mark.parametrize("said", [{"iterations": 4}, {"epochs": 1, "mode": "freeze"}])
def test_a_fine_tuning_of_one_or_three_modes(
    tune: Tune, data: Path, openings: list[str], said: dict[str, Any]
) -> None:
    config = tune(**said)
    forecast_finetuning(config, Heard())
    assert openings == [str(data)]
    run = run_finetuning(config)
    assert openings == [str(data)] * 2
    assert all((run / mode / "test" / "run.json").is_file() for mode in config.modes)
    run_finetuning(config)
    assert openings == [str(data)] * 3


def test_a_training_with_its_measurements(data: Path, openings: list[str], tmp_path: Path) -> None:
    config = small(data, tmp_path / "run", epochs=1)
    forecast_training(config, Heard())
    assert openings == [str(data)]
    run = run_training(config)
    assert openings == [str(data)] * 2
    assert all((run / part / "run.json").is_file() for part in ("test", "baseline"))


def test_a_training_of_a_classifier(openings: list[str], tmp_path: Path) -> None:
    data = write_photos(tmp_path / "photos", 6)
    config = small(
        data, tmp_path / "run", model="resnet18", model_args={}, window=32, epochs=1, lr=None
    )
    run = run_training(config)
    assert openings == [str(data)]
    assert (run / "test" / "run.json").is_file()
