"""Fine-tunings end to end: files, resuming, several processes, and errors that stop them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from robustcli.adapters.training_run import weights_in
from robustcli.core.errors import RunError, UsageError
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.record import read_record
from robustcli.finetuning.mode_trainings import run_finetuning
from robustcli.finetuning.record import DECISION_COLUMNS, STEPS, ModeCosts, read_finetune_record
from robustcli.finetuning.selection import FreezeRule
from robustcli.reports.render import render
from robustcli.training.lit_module import SegmenterModule
from robustcli.training.record import read_train_record
from robustcli.training.trainer import KeepLastAndBest
from tests.finetuning.tunings import HALF_RULE, MakeConfig, network, tiny_tuning, write_pretrained
from tests.training.images import write_pairs
from tests.training.runs import (
    Interrupting,
    Recorder,
    Run,
    kill_when_stopped,
    last_weights,
    same_state,
    weights_of,
)
from tests.training.test_processes import run_script


@pytest.fixture(scope="module")
def finished_run(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Returns an uninterrupted run of all three modes."""
    listener, out = Recorder(), tmp_path_factory.mktemp("whole") / "run"
    return run_finetuning(tiny_tuning(data, out, weights, rule=HALF_RULE), listener), listener


def decisions(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "frozen.csv", dtype={"shape": str})


def frozen(run: Path) -> set[str]:
    rows = decisions(run)
    return set(rows["name"][rows["frozen"] == 1])


def test_a_fine_tuning_writes_the_documented_files(finished_run: Run) -> None:
    run, _ = finished_run
    names = {path.name for path in run.iterdir() if path.name[0] != "."}
    assert names == {"run.json", "gradients.parquet", "frozen.csv", "scratch", "full", "freeze"}
    for mode in ("scratch", "full", "freeze"):
        assert read_train_record(run / mode).status == "complete"
        assert table(run / mode / "test")["dice"].between(0, 1).all()
        steps = pd.read_csv(run / mode / "iterations.csv")
        assert tuple(steps.columns) == STEPS
        assert steps["iteration"].tolist() == list(range(1, 10))
        assert (steps["seconds"] > 0).all()


def test_its_folder_is_no_training_and_the_message_names_a_mode(finished_run: Run) -> None:
    run, _ = finished_run
    with pytest.raises(UsageError, match="contains 3 trainings, one for each mode") as caught:
        weights_in(run)
    assert f"`{run / 'freeze'}`" in caught.value.todo
    with pytest.raises(UsageError, match="contains a fine-tuning, not an evaluation") as caught:
        read_record(run)
    assert f"`{run / 'scratch'}`" in caught.value.todo


def test_the_record_says_what_was_done(weights: Path, finished_run: Run) -> None:
    record = read_finetune_record(finished_run[0])
    assert (record.status, record.model, record.modes) == (
        "complete", "umamba", ["scratch", "full", "freeze"],
    )  # fmt: skip
    assert (record.epochs, record.iterations, record.profile_iterations) == (3, 9, 2)
    assert (record.pretrained, record.profile) == (str(weights), "measured")
    assert record.heads == ["decoder.seg_layers."]
    assert (record.rule.quantile, record.rule.scope) == (0.5, "all")
    count = int(decisions(finished_run[0]).query("frozen == 1")["count"].sum())
    assert (record.saving.parameters, record.saving.frozen) == (record.parameters, count)
    assert record.saving.optimizer_bytes_saved == 8 * count  # AdamW's two moments
    assert 0 < record.saving.flops_saved < record.saving.flops


@pytest.mark.usefixtures("unscored")
def test_frozen_tensors_do_not_change_and_leave_the_optimizer(
    make_config: MakeConfig, weights: Path
) -> None:
    """Momentum and weight decay are on, which would move them otherwise."""
    rule = FreezeRule(pattern="encoder.*")
    run = run_finetuning(make_config(mode="freeze", rule=rule, epochs=1))
    before, after = weights_of(weights.parent), last_weights(run / "freeze")
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert unchanged == {name for name in before if name.startswith("encoder.")} == frozen(run)
    costs = ModeCosts.model_validate_json((run / "freeze" / "costs.json").read_text())
    moved_count = sum(tensor.numel() for name, tensor in before.items() if name not in unchanged)
    assert costs.trainable == moved_count
    assert costs.optimizer_bytes == pytest.approx(8 * moved_count, rel=0.05)
    record = read_finetune_record(run)
    assert (record.profile, record.profile_iterations) == ("none", 0)
    assert not (run / "gradients.parquet").exists()


@pytest.mark.usefixtures("unscored")
def test_named_parameters_are_frozen_after_the_given_steps(
    make_config: MakeConfig, weights: Path
) -> None:
    rule = FreezeRule(pattern="encoder.*")
    run = run_finetuning(make_config(mode="freeze", rule=rule, profile_iterations=4, epochs=2))
    record, rows = read_finetune_record(run), decisions(run)
    assert (record.profile, record.profile_iterations) == ("measured", 4)
    assert frozen(run) == {name for name in rows["name"] if name.startswith("encoder.")}
    trainable = record.parameters - int(rows["count"][rows["frozen"] == 1].sum())
    steps = pd.read_csv(run / "freeze" / "iterations.csv")["trainable"].tolist()
    assert steps == [record.parameters] * 4 + [trainable] * 2
    before, after = weights_of(weights.parent), last_weights(run / "freeze")
    assert not torch.equal(
        before["encoder.stem.0.conv1.weight"], after["encoder.stem.0.conv1.weight"]
    )


def test_the_profile_decides_after_its_steps(finished_run: Run) -> None:
    run, listener = finished_run
    profile, rows = pd.read_parquet(run / "gradients.parquet"), decisions(run)
    assert sorted(profile["iteration"].unique()) == [0, 1]
    assert tuple(rows.columns) == DECISION_COLUMNS
    means = profile.groupby("name")["mean_abs"].mean()
    assert rows.set_index("name")["statistic"].to_dict() == pytest.approx(means.to_dict())
    heads = rows["name"].str.startswith("decoder.seg_layers.")
    half = int(0.5 * (~heads).sum())
    lowest = rows[~heads].nsmallest(half, "statistic")["name"]
    assert frozen(run) == set(lowest)
    steps = pd.read_csv(run / "freeze" / "iterations.csv")["trainable"].tolist()
    total = read_finetune_record(run).parameters
    trainable = total - int(rows["count"][rows["frozen"] == 1].sum())
    assert steps == [total] * 2 + [trainable] * 7
    assert any(f"freeze: Frozen: {half} of {len(rows)} tensors" in line for line in listener.lines)


def test_modes_begin_alike_and_see_the_same_data(finished_run: Run) -> None:
    run, listener = finished_run
    metrics = {m: pd.read_csv(run / m / "metrics.csv") for m in ("scratch", "full", "freeze")}
    norm = {m: rows["grad_norm"].tolist() for m, rows in metrics.items()}
    assert norm["full"][0] == pytest.approx(norm["freeze"][0], rel=0.2)
    assert metrics["full"]["train_loss"][0] == pytest.approx(
        metrics["freeze"]["train_loss"][0], 0.05
    )
    assert metrics["full"]["train_loss"][0] != metrics["scratch"]["train_loss"][0]
    splits = {m: (run / m / "splits.csv").read_text() for m in metrics}
    assert len(set(splits.values())) == 1
    recipes = {read_train_record(run / m).recipe.model_dump_json() for m in metrics}
    assert len(recipes) == 1
    recipe_lines = [line for line in listener.lines if line.startswith("Recipe")]
    assert len(recipe_lines) == 1


@pytest.mark.usefixtures("unscored")
def test_a_threshold_that_freezes_nothing_is_full_fine_tuning(make_config: MakeConfig) -> None:
    listener = Recorder()
    rule = FreezeRule(threshold=0.0)
    for mode in ("full", "freeze"):
        run = run_finetuning(make_config(mode=mode, rule=rule, epochs=1), listener)
    assert same_state(weights_of(run / "full"), weights_of(run / "freeze"))
    assert any("Frozen: 0 of" in line for line in listener.lines)
    assert any("The smallest statistic in scope is" in line for line in listener.lines)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(
    make_config: MakeConfig, data: Path, weights: Path, finished_run: Run, tmp_path: Path
) -> None:
    """A real process is killed in epoch 2 of the mode that freezes, after its freeze."""
    run = tmp_path / "run"
    kill_when_stopped(_CHILD, data, weights, run)
    listener = Recorder()
    run_finetuning(make_config(run, rule=HALF_RULE), listener)
    for mode in ("scratch", "full", "freeze"):
        assert same_state(last_weights(run / mode), last_weights(finished_run[0] / mode))
        assert same_state(weights_of(run / mode), weights_of(finished_run[0] / mode))
    assert not any("freeze: Epoch 1 of" in line for line in listener.lines)
    for file in ("frozen.csv", "gradients.parquet"):
        assert (run / file).read_bytes() == (finished_run[0] / file).read_bytes()
    steps = [pd.read_csv(r / "freeze" / "iterations.csv") for r in (run, finished_run[0])]
    assert steps[0]["trainable"].tolist() == steps[1]["trainable"].tolist()
    resumed_record, expected_record = (read_finetune_record(r) for r in (run, finished_run[0]))
    assert (resumed_record.status, resumed_record.saving) == ("complete", expected_record.saving)


_CHILD = """
import sys
from pathlib import Path
from robustcli.finetuning.mode_trainings import run_finetuning
from tests.finetuning.tunings import HALF_RULE, tiny_tuning
from tests.training.runs import Stopping

data, weights, run = map(Path, sys.argv[1:])
run_finetuning(tiny_tuning(data, run, weights, rule=HALF_RULE), Stopping(after=19))  # in epoch 2
"""


@pytest.mark.usefixtures("unscored")
@pytest.mark.parametrize("last", [{"epochs": 1}, {"epochs": 9, "patience": 1, "lr": 1e-20}])
def test_a_kill_after_the_last_epoch_keeps_the_costs(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: dict[str, Any]
) -> None:
    out, save = tmp_path / "run", KeepLastAndBest.on_train_epoch_end

    def killed(self: Any, trainer: Any, module: Any) -> None:
        save(self, trainer, module)
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            raise KeyboardInterrupt

    config = make_config(out, mode="full", **last)
    with monkeypatch.context() as patch:
        patch.setattr(KeepLastAndBest, "on_train_epoch_end", killed)
        with pytest.raises(KeyboardInterrupt):
            run_finetuning(config)
    run_finetuning(config)
    epochs = len(pd.read_csv(out / "full" / "metrics.csv"))
    steps = pd.read_csv(out / "full" / "iterations.csv")
    assert steps["iteration"].tolist() == list(range(1, 3 * epochs + 1))
    assert (out / "full" / "costs.json").is_file()


@pytest.mark.usefixtures("unscored")
def test_an_interruption_while_profiling(make_config: MakeConfig, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"mode": "freeze", "rule": HALF_RULE, "profile_iterations": 5}
    config = make_config(**settings, epochs=2)
    uninterrupted = run_finetuning(make_config(tmp_path / "one", **settings, epochs=2))
    with pytest.raises(KeyboardInterrupt):
        run_finetuning(config, Interrupting(after=12))  # in the fourth step, after one epoch
    assert not (tmp_path / "run" / "gradients.parquet").exists()
    run = run_finetuning(config)
    assert same_state(last_weights(run / "freeze"), last_weights(uninterrupted / "freeze"))
    file = "gradients.parquet"
    assert (run / file).read_bytes() == (uninterrupted / file).read_bytes()


def test_the_same_command_again_does_nothing(make_config: MakeConfig, finished_run: Run) -> None:
    run, listener = finished_run[0], Recorder()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("weights.safetensors")}
    run_finetuning(make_config(run, rule=HALF_RULE), listener)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("weights.safetensors")}
    assert sum("is already finished" in line for line in listener.lines) == 3


def test_a_profile_only_run_equals_the_profile_of_the_mode_that_freezes(
    make_config: MakeConfig, finished_run: Run
) -> None:
    config = make_config(rule=HALF_RULE, profile_only=True)
    run = run_finetuning(config)
    file_names = {path.name for path in run.iterdir()} - {".owner"}
    assert file_names == {"run.json", "gradients.parquet", "frozen.csv"}
    for file in ("frozen.csv", "gradients.parquet"):
        assert (run / file).read_bytes() == (finished_run[0] / file).read_bytes()
    record = read_finetune_record(run)
    assert (record.status, record.modes, record.saving is None) == ("complete", [], False)
    listener = Recorder()
    run_finetuning(config, listener)
    assert any("The profile exists" in line for line in listener.lines)


def test_a_profile_from_a_file_freezes_before_the_first_step(
    make_config: MakeConfig, weights: Path, finished_run: Run, blank_figures: None
) -> None:
    profile = finished_run[0] / "gradients.parquet"
    config = make_config(mode="freeze", rule=HALF_RULE, profile=profile, epochs=1)
    run = run_finetuning(config)
    assert (run / "frozen.csv").read_bytes() == (finished_run[0] / "frozen.csv").read_bytes()
    assert (run / "gradients.parquet").read_bytes() == profile.read_bytes()
    before, after = weights_of(weights.parent), last_weights(run / "freeze")
    assert all(torch.equal(before[name], after[name]) for name in frozen(run))
    record = read_finetune_record(run)
    assert record.profile == str(profile)
    assert record.profile_sha256 is not None
    assert record.profile_iterations == read_finetune_record(finished_run[0]).profile_iterations
    assert "frozen from the first iteration" in (render(run)).read_text(encoding="utf-8")
    elsewhere = replace(config, profile=run / "gradients.parquet")
    assert run_finetuning(elsewhere) == run, "the same profile by another path"
    run_finetuning(elsewhere.with_training(fresh=True))
    assert (run / "gradients.parquet").read_bytes() == profile.read_bytes()


def test_a_profile_of_another_model(
    make_config: MakeConfig, finished_run: Run, tmp_path: Path
) -> None:
    foreign = write_pretrained(tmp_path / "other.safetensors", features=[4, 12])
    config = make_config(
        tmp_path / "run", foreign, rule=HALF_RULE, profile=finished_run[0] / "gradients.parquet"
    )
    with pytest.raises(UsageError, match=r"`--profile .*` belongs to another model") as caught:
        run_finetuning(config)
    assert "has no `encoder.stages.1.0.conv1.weight` of shape (8, 4, 3, 3)" in caught.value.why
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("unscored")
def test_modes_join_a_run_that_is_there(make_config: MakeConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_finetuning(make_config(out, mode="full", epochs=1))
    assert not (out / "frozen.csv").exists()
    run_finetuning(make_config(out, mode="freeze", rule=HALF_RULE, epochs=1))
    record = read_finetune_record(out)
    assert (record.modes, record.status, record.rule.quantile) == (
        ["full", "freeze"], "complete", 0.5,
    )  # fmt: skip
    assert record.saving is not None


@pytest.mark.usefixtures("unscored")
def test_a_training_that_ends_before_its_profile_says_so(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    early: dict[str, Any] = {"patience": 1, "lr": 1e-20, "epochs": 9, "profile_iterations": 20}
    heard = Recorder()
    run = run_finetuning(make_config(tmp_path / "run", mode="freeze", **early), heard)
    assert not (run / "frozen.csv").exists()
    assert any("Mode `freeze` froze no tensor" in line for line in heard.lines)
    config = make_config(tmp_path / "profile", profile_only=True, **early)
    with pytest.raises(RunError, match="No profile was written") as caught:
        run_finetuning(config)
    assert "`--patience`" in caught.value.why


@pytest.mark.usefixtures("unscored")
def test_a_threshold_that_freezes_everything_names_the_highest_useful_one(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    high = FreezeRule(threshold=1e9, scope="all")
    with pytest.raises(UsageError, match="No tensor would be trained except the heads") as caught:
        run_finetuning(make_config(out, rule=high))
    assert read_finetune_record(out).status == "failed"
    assert [path.name for path in out.iterdir() if path.name[0] != "." and path.is_dir()] == [
        "freeze"
    ]  # no other files exist yet
    highest = float(caught.value.todo.split("threshold is ")[1].split(",")[0])
    useful_rule = FreezeRule(threshold=highest, scope="all")
    config = make_config(tmp_path / "other", mode="freeze", rule=useful_rule,
        profile=out / "gradients.parquet", epochs=1,
    )  # fmt: skip
    rows = decisions(run_finetuning(config))
    trained = rows[(rows["frozen"] == 0) & ~rows["name"].str.startswith("decoder.seg_layers.")]
    assert len(trained) == 1


def test_a_nan_gradient_stops_the_training(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original_step = SegmenterModule.training_step
    steps = 0

    def nan_step(self: SegmenterModule, batch: Any, batch_idx: int) -> torch.Tensor:
        nonlocal steps
        steps += 1
        loss = original_step(self, batch, batch_idx)
        if steps == 5:
            parameter = self.network.get_parameter("decoder.seg_layers.0.bias")
            parameter.register_hook(lambda gradient: gradient * torch.nan)
        return loss

    monkeypatch.setattr(SegmenterModule, "training_step", nan_step)
    message = r"parameters \(`decoder.seg_layers.0.bias`\) is not finite in epoch 2, step 5"
    with pytest.raises(RunError, match=message):
        run_finetuning(make_config(mode="freeze", rule=HALF_RULE))
    assert read_finetune_record(tmp_path / "run").status == "failed"
    final_weights = last_weights(tmp_path / "run" / "freeze")
    assert all(torch.isfinite(tensor).all() for tensor in final_weights.values())


def test_a_profile_is_not_taken_from_gradients_that_are_no_numbers(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original_step = SegmenterModule.training_step

    def nan_step(self: SegmenterModule, batch: Any, batch_idx: int) -> torch.Tensor:
        parameter = self.network.get_parameter("encoder.stem.0.conv1.bias")
        parameter.register_hook(lambda gradient: gradient * torch.nan)
        return original_step(self, batch, batch_idx)

    monkeypatch.setattr(SegmenterModule, "training_step", nan_step)
    with pytest.raises(RunError, match="is not finite in epoch 1, step 1"):
        run_finetuning(make_config(profile_only=True))
    assert not (tmp_path / "run" / "gradients.parquet").exists()


def test_lora_trains_adapters_and_leaves_a_plain_network(
    make_config: MakeConfig, weights: Path
) -> None:
    run = run_finetuning(make_config(mode="lora", epochs=1))
    before, after = weights_of(weights.parent), weights_of(run / "lora")
    assert after.keys() == before.keys()
    changed_names = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in changed_names if not name.startswith("decoder.seg_layers.")} == {
        f"mamba_layer.mamba.{layer}.weight" for layer in ("in_proj", "x_proj", "out_proj")
    }
    network().load_state_dict(after)  # strictly
    assert table(run / "lora" / "test")["dice"].between(0, 1).all()
    second_listener = Recorder()
    run_finetuning(make_config(mode="lora", epochs=1), second_listener)
    assert any("is already finished" in line for line in second_listener.lines)


@pytest.mark.usefixtures("unscored")
def test_a_network_without_state_space_blocks(make_config: MakeConfig, tmp_path: Path) -> None:
    listener = Recorder()
    settings: dict[str, Any] = {"model": "unet", "model_args": {"features": [4, 8]}, "epochs": 1}
    scratch_run = run_finetuning(make_config(tmp_path / "one", None, mode="scratch", **settings))
    run_finetuning(
        make_config(tmp_path / "two", scratch_run / "scratch", mode="freeze", **settings), listener
    )
    assert any("`unet` has no state-space block" in line for line in listener.lines)
    with pytest.raises(UsageError, match="`--mode lora` cannot be used with `unet`"):
        run_finetuning(
            make_config(tmp_path / "three", scratch_run / "scratch", mode="lora", **settings),
            listener,
        )


_SCRIPT = """
import sys
from pathlib import Path
from robustcli.finetuning.mode_trainings import run_finetuning
from tests.finetuning.tunings import HALF_RULE, tiny_tuning

data, weights, out = map(Path, sys.argv[1:])
tuning = tiny_tuning(data, out, weights, mode="freeze", rule=HALF_RULE, epochs=2, devices=2)
run_finetuning(tuning)
print("finished")
"""


@pytest.mark.slow
def test_two_processes_freeze_what_one_does(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 14)
    weights = write_pretrained(tmp_path / "weights.safetensors")
    run = tmp_path / "run"
    run_script(_SCRIPT, tmp_path, data, weights, run)
    record = read_finetune_record(run)
    assert (record.status, record.modes) == ("complete", ["freeze"])
    train_record = read_train_record(run / "freeze")  # fewer modes than devices share the steps
    assert (train_record.status, train_record.devices) == ("complete", 2)
    single = run_finetuning(
        tiny_tuning(data, tmp_path / "single", weights, mode="freeze", rule=HALF_RULE, epochs=2)
    )
    joint, single_frozen = (pd.read_csv(r / "frozen.csv")["frozen"].tolist() for r in (run, single))
    equal = sum(a == b for a, b in zip(joint, single_frozen, strict=True))
    assert equal >= len(joint) - 4, "more than near ties differ"
    steps = pd.read_csv(run / "freeze" / "iterations.csv")["trainable"].tolist()
    assert steps[0] == steps[1] > steps[2] == steps[-1]
