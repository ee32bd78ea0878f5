"""The settings, plan, forecast and record of a fine-tuning; errors before anything is written."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.data import sources
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.dry_run import forecast_finetuning
from robustcli.finetuning.finetune_plan import (
    FinetunePlan,
    finetune_record,
    mode_differences,
    options_without_effect,
    plan_finetuning,
)
from robustcli.finetuning.finetuning_task import SegmenterFinetuning
from robustcli.finetuning.mode_trainings import run_finetuning
from robustcli.finetuning.record import DECISIONS, FINETUNING, read_finetune_record
from robustcli.finetuning.selection import FreezeRule, make_rule
from robustcli.training.config import TrainConfig
from robustcli.training.engine import run_training
from robustcli.training.train_plan import forecast_training
from tests.finetuning.tunings import TINY, MakeConfig, network, tiny_tuning, write_pretrained
from tests.nnunet import nnunet_files
from tests.training.images import write_photos
from tests.training.runs import Recorder, tiny_classifier, tiny_unet


def test_modes_differ_in_the_body_and_agree_in_the_heads(
    make_config: MakeConfig, weights: Path, tmp_path: Path
) -> None:
    plan = plan_finetuning(make_config(), Recorder())
    (scratch, _), (full_network, origin) = plan.network("scratch"), plan.network("full")
    repeated, _ = plan.network("freeze")
    for name, tensor in full_network.state_dict().items():
        assert torch.equal(tensor, repeated.state_dict()[name])
        if name.startswith(plan.heads):
            assert torch.equal(tensor, scratch.state_dict()[name])
    key = "mamba_layer.mamba.in_proj.weight"
    assert not torch.equal(full_network.state_dict()[key], scratch.state_dict()[key])
    assert origin == str(weights)
    assert plan.training.config.model_args == TINY  # from the weights' header
    assert not (tmp_path / "run").exists()


def test_scratch_alone_knows_the_bundled_weights_of_the_modes_that_may_join(
    data: Path, tmp_path: Path
) -> None:
    listener, config = Recorder(), TrainConfig("umamba-pico", str(data), tmp_path / "run", epochs=1)
    scratch_plan = plan_finetuning(FinetuneConfig(config, mode="scratch"), listener)
    full_plan = plan_finetuning(FinetuneConfig(config, mode="full"), Recorder())
    assert scratch_plan.pretrained.origin == full_plan.pretrained.origin
    assert not any("Starting from" in line for line in listener.lines)


@pytest.mark.parametrize(
    ("overrides", "epochs", "profiled"),
    [
        ({"iterations": 7}, 3, 2),
        ({"iterations": 6}, 2, 2),
        ({"epochs": 5}, 5, 2),
        ({"epochs": 50, "profile_iterations": None}, 50, 20),
        ({"epochs": 4, "profile_iterations": None}, 4, 6),
    ],
)
def test_the_number_of_epochs_and_profiled_steps(
    make_config: MakeConfig, overrides: dict[str, Any], epochs: int, profiled: int
) -> None:
    """An epoch has three steps; a profile takes 20, but at most half of all steps."""
    plan = plan_finetuning(make_config(**overrides), Recorder())
    assert (plan.training.recipe.epochs, plan.steps) == (epochs, 3 * epochs)
    assert plan.profile_iterations == profiled


def test_a_run_without_out_has_a_folder_named_after_its_settings(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    config = tiny_tuning(data, tmp_path / "unused", weights)
    config = replace(config, training=replace(config.training, out=None))
    run = plan_finetuning(config, Recorder()).run
    assert run.parts[0] == "runs"
    assert run.name.startswith("finetune-umamba-")
    other_seed = replace(config, training=replace(config.training, seed=1))
    assert plan_finetuning(other_seed, Recorder()).run != run


def test_the_bundled_network_needs_nothing(tmp_path: Path) -> None:
    listener = Recorder()
    plan = plan_finetuning(FinetuneConfig(TrainConfig("umamba", out=tmp_path / "run")), listener)
    assert plan.entry.name == "umamba-pico"
    assert (plan.training.recipe.window, plan.training.recipe.batch_size) == (128, 4)
    assert 360 <= plan.steps < 366
    assert plan.profile_iterations == 20
    assert any("the bundled `umamba-pico`, trained on nuclei-mini:f" in x for x in listener.lines)


@pytest.mark.parametrize("model", ["umamba", "umamba-enc"])
def test_results_of_nnunet(data: Path, tmp_path: Path, model: str) -> None:
    """Its plan defines the network; its heads are replaced as for other targets."""
    source = nnunet_files.network(model)
    folder = nnunet_files.results(tmp_path / "results", nnunet_files.checkpoint(source))
    config = tiny_tuning(data, tmp_path / "run", folder, model=model, window=32)
    plan = plan_finetuning(config, Recorder())
    network, origin = plan.network("full")
    assert origin.startswith("nnU-Net: ")
    state, source_state = network.state_dict(), source.state_dict()
    assert state.keys() == source_state.keys()
    for name, tensor in state.items():
        if not name.endswith("bias"):  # biases start at 0
            assert torch.equal(tensor, source_state[name]) != name.startswith("decoder.seg_layers.")


def test_windows_of_another_size_than_the_plans_patch(data: Path, tmp_path: Path) -> None:
    """The weights of U-Mamba-Enc depend on the patch size."""
    source = nnunet_files.network("umamba-enc")
    folder = nnunet_files.results(tmp_path / "results", nnunet_files.checkpoint(source))
    config = tiny_tuning(data, tmp_path / "run", folder, model="umamba-enc", window=64)
    with pytest.raises(UsageError, match="can only process patches of 32 x 32 pixels") as caught:
        plan_finetuning(config, Recorder())
    assert "`--window 32`" in caught.value.todo
    without_window = replace(config, training=replace(config.training, window=None))
    assert plan_finetuning(without_window, Recorder()).training.recipe.window == 32


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": "otsu"}, "`otsu` cannot be trained"),
        ({"model": "umamba-enc"}, "`umamba-enc` has no weights on this machine to fine-tune"),
        ({"model": "unet"}, "`unet` has no weights on this machine to fine-tune"),
        ({"iterations": 5, "epochs": 2}, "`--iterations` and `--epochs` exclude each other"),
        ({"profile": Path("p"), "profile_only": True}, "`--profile` and `--profile-only` exclude"),
        ({"pretrained": Path("nowhere")}, "`--pretrained nowhere` does not exist"),
        ({"profile_iterations": 9}, "`--profile-iterations 9` leaves no steps for training"),
        (
            {"profile_iterations": 10, "profile_only": True},
            "`--profile-iterations 10` is more than the training has",
        ),
        (
            {"profile_iterations": None, "limit": 5, "epochs": 1},
            "A training of one step is too short for mode `freeze`",
        ),
        (
            {"profile_iterations": None, "rule": make_rule(change=0.5), "epochs": 1},
            "A training of 3 steps is too short for `--freeze-change`",
        ),
        ({"data": "nowhere"}, "nowhere"),
        ({"lr": -1.0}, "`--lr -1.0` is out of range"),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(
    data: Path, weights: Path, tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    overrides = {"pretrained": None if "model" in overrides else weights, "data": data, **overrides}
    config = tiny_tuning(
        overrides.pop("data"), tmp_path / "run", overrides.pop("pretrained"), **overrides
    )
    with pytest.raises(UsageError, match=message):
        plan_finetuning(config, Recorder())
    assert not (tmp_path / "run").exists()


def test_torchrun_takes_one_mode(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (variables | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="torchrun trains one mode at a time"):
        plan_finetuning(make_config(), Recorder())


def test_a_folder_is_no_network(data: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the folder of a training") as caught:
        plan_finetuning(
            tiny_tuning(data, tmp_path / "run", None, model=str(weights.parent)), Recorder()
        )
    assert f"robust finetune umamba --pretrained {weights.parent}" in caught.value.todo


def test_a_checkpoint_that_holds_code_is_not_run(data: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"state_dict": _Code(trace)}, tmp_path / "evil.pth")
    with pytest.raises(UsageError, match=r"evil\.pth"):
        plan_finetuning(tiny_tuning(data, tmp_path / "run", tmp_path / "evil.pth"), Recorder())
    assert not trace.exists()


class _Code:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_weights_that_do_not_fit_stop_it_by_name(make_config: MakeConfig) -> None:
    config = make_config(model_args={"features": [4, 12]})
    with pytest.raises(UsageError, match="do not match") as caught:
        plan_finetuning(config, Recorder())
    assert "`mamba_layer.mamba.in_proj.weight` is (32, 8), not (48, 12)" in caught.value.why


def test_without_a_profile_the_forecast_has_no_decisions(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    forecast = forecast_finetuning(make_config(), Recorder())
    assert (forecast.decisions, forecast.saving, forecast.profile_iterations) == (None, None, 2)
    assert forecast.training.steps == 9
    text = forecast.as_text()
    assert "Modes:      scratch, full, freeze; the time is for each of 3" in text
    assert "decided by a profile of the first 2 steps" in text
    assert "Sweep:" not in text
    assert not (tmp_path / "run").exists()


def test_the_forecast_of_a_sweep_counts_additional_steps(make_config: MakeConfig) -> None:
    forecast = forecast_finetuning(make_config(sweep=True), Recorder())
    assert (
        f"Sweep:      up to {len(SegmenterFinetuning.rules)} further rules, each with the same "
        "number of steps" in forecast.as_text()
    )


@pytest.mark.usefixtures("unscored")
def test_the_forecast_by_names_equals_the_frozen_parameters(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    rule = FreezeRule(pattern="encoder.*")
    config = make_config(mode="freeze", rule=rule, epochs=1)
    forecast = forecast_finetuning(config, Recorder())
    run_finetuning(config)
    assert read_finetune_record(tmp_path / "run").saving == forecast.saving
    frozen = [d.count for d in forecast.decisions if d.frozen]
    assert forecast.saving.frozen == sum(frozen)
    text = forecast.as_text()
    assert f"Frozen:     {sum(frozen):,} of {forecast.saving.parameters:,} (" in text
    assert text.count("frozen: matches `encoder.*`") == len(frozen)
    assert forecast_finetuning(config, Recorder()).training.started


def test_nothing_is_frozen_in_other_modes(make_config: MakeConfig) -> None:
    forecast = forecast_finetuning(make_config(mode="full"), Recorder())
    assert forecast.profile_iterations == 0
    assert "Freezing:   none in these modes" in forecast.as_text()
    profile = make_config(profile_only=True)
    assert "decided by a profile" in forecast_finetuning(profile, Recorder()).as_text()


def test_the_forecast_is_available_as_json(make_config: MakeConfig, tmp_path: Path) -> None:
    rule = FreezeRule(pattern="encoder.*")
    forecast = forecast_finetuning(make_config(tmp_path / "r", rule=rule), Recorder())
    parsed = json.loads(forecast.as_json())
    assert parsed["modes"] == ["scratch", "full", "freeze"]
    assert {d["frozen"] for d in parsed["decisions"]} == {True, False}


@pytest.fixture
def opened_datasets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records calls of the two functions that open a data set."""
    calls: list[str] = []
    for name in ("_with_classes", "_with_masks"):
        original = getattr(sources, name)

        def counting(*arguments: object, _opening: object = original) -> object:
            calls.append(str(arguments[0]))
            return _opening(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(sources, name, counting)
    return calls


def test_a_fine_tuning_opens_its_data_once(
    make_config: MakeConfig, data: Path, opened_datasets: list[str]
) -> None:
    config = make_config(iterations=3)
    forecast_finetuning(config, Recorder())
    assert opened_datasets == [str(data)]
    run = run_finetuning(config)
    assert opened_datasets == [str(data)] * 2
    assert all((run / mode / "test" / "run.json").is_file() for mode in config.modes)
    run_finetuning(config)
    assert opened_datasets == [str(data)] * 3


def test_a_training_opens_its_data_once(
    data: Path, opened_datasets: list[str], tmp_path: Path
) -> None:
    config = tiny_unet(data, tmp_path / "run", epochs=1)
    forecast_training(config, Recorder())
    assert opened_datasets == [str(data)]
    run = run_training(config)
    assert opened_datasets == [str(data)] * 2
    assert all((run / part / "run.json").is_file() for part in ("test", "baseline"))


def test_a_training_of_a_classifier(opened_datasets: list[str], tmp_path: Path) -> None:
    data = write_photos(tmp_path / "photos", 6)
    config = tiny_classifier(data, tmp_path / "run", model="resnet-pico", model_args={}, epochs=1)
    run = run_training(config)
    assert opened_datasets == [str(data)]
    assert (run / "test" / "run.json").is_file()


CONFIG = FinetuneConfig(TrainConfig("smp:Unet/resnet18"))
TRAINING_FOLDER = Path("runs/train-x-0a1b2c3d")


def test_the_defaults_are_those_of_the_documented_command() -> None:
    assert CONFIG.rule == FreezeRule(threshold=1e-6, scope="mamba", kind="mean_abs")
    assert CONFIG.modes == ("scratch", "full", "freeze")
    assert replace(CONFIG, mode="lora").modes == ("lora",)
    assert replace(CONFIG, profile_only=True).modes == ()


def test_the_name_of_the_folder_does_not_depend_on_the_modes() -> None:
    base_folder = CONFIG.directory(TRAINING_FOLDER)
    assert base_folder.parent == Path("runs")
    assert base_folder.name.startswith("finetune-smp-Unet-resnet18-")
    assert replace(CONFIG, mode="full", profile_only=True).directory(TRAINING_FOLDER) == base_folder


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrained": Path("w")},
        {"rule": FreezeRule(quantile=0.3)},
        {"profile_iterations": 3},
        {"profile": Path("p")},
        {"iterations": 7},
    ],
)
def test_other_settings_have_another_folder(changes: dict[str, object]) -> None:
    changed = replace(CONFIG, **changes)  # type: ignore[arg-type]
    assert changed.directory(TRAINING_FOLDER) != CONFIG.directory(TRAINING_FOLDER)
    assert CONFIG.directory(Path("runs/train-y")) != CONFIG.directory(TRAINING_FOLDER)
    named_folder = replace(changed, training=replace(CONFIG.training, out=Path("mine")))
    assert named_folder.directory(TRAINING_FOLDER) == Path("mine")


def open_run(make_config: MakeConfig, out: Path, **overrides: Any) -> FinetunePlan:
    plan = plan_finetuning(make_config(out, **overrides), Recorder())
    out.mkdir(exist_ok=True)
    record = finetune_record(plan, plan.network("full")[0])
    is_fresh = plan.training.config.fresh
    FINETUNING.open(
        out, record, fresh=is_fresh, further_differences=partial(mode_differences, plan)
    )
    return plan


def test_a_new_record_has_no_results(make_config: MakeConfig, tmp_path: Path) -> None:
    open_run(make_config, tmp_path / "run", mode="freeze")
    record = read_finetune_record(tmp_path / "run")
    assert (record.status, record.modes, record.saving) == ("running", ["freeze"], None)
    assert (record.rule.threshold, record.rule.scope) == (1e-6, "mamba")
    assert record.parameters > 1000
    assert len(str(record.pretrained_sha256)) == 64


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"seed": 1}, "`--seed` was 0, now it is 1|images differ"),
        ({"limit": 12}, "images differ: 14 of `data`, now 12"),
        ({"epochs": 4}, r"epochs .*`--iterations`.* was 3, now it is 4"),
        ({"rule": FreezeRule(1e-3)}, r"The threshold .* was 1e-06, now it is 0.001"),
        ({"rule": FreezeRule(1e-6, scope="all")}, "`--freeze-scope` was mamba, now it is all"),
        ({"rule": FreezeRule(1e-6, kind="rms")}, "`--statistic` was mean_abs, now it is rms"),
        ({"rule": FreezeRule(pattern="encoder")}, "`--freeze` was None, now it is encoder"),
        ({"profile_iterations": 3}, "`--profile-iterations` was 2, now it is 3"),
        ({"profile_only": True, "lr": 0.02}, "`--lr` was 0.01, now it is 0.02"),
        ({"window": 24, "profile_iterations": None}, "`--window` was 16, now it is 24"),
        ({"profile_only": True, "aug": "none"}, "`--aug` was light, now it is none"),
    ],
)
def test_other_settings_are_refused_by_name(
    make_config: MakeConfig, tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    open_run(make_config, tmp_path / "run")
    (tmp_path / "run" / DECISIONS).touch()
    config = make_config(tmp_path / "run", **overrides)
    for refused in (open_run, lambda *_, **__: forecast_finetuning(config, Recorder())):
        with pytest.raises(UsageError, match="a fine-tuning with other settings") as caught:
            refused(make_config, tmp_path / "run", **overrides)
        assert re.search(message, caught.value.why)
        assert "`--fresh`" in caught.value.todo


def test_stored_decisions_keep_their_rule_next_to_a_trained_mode(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """`--profile-only` in the folder of mode `full` would keep decisions of another rule."""
    out = tmp_path / "run"
    open_run(make_config, out, mode="full")
    (out / DECISIONS).touch()
    plan = open_run(make_config, out, profile_only=True)
    FINETUNING.update(out, saving=plan.saving([], plan.trial_network()))
    with pytest.raises(UsageError, match="a fine-tuning with other settings"):
        open_run(make_config, out, profile_only=True, rule=FreezeRule(1e-3))


@pytest.mark.parametrize(
    ("overrides", "sentences"),
    [
        ({}, []),
        (
            {"mode": "full", "rule": FreezeRule(quantile=0.5, scope="all", kind="rms")},
            ["`--freeze-quantile 0.5`, `--freeze-scope all`, `--statistic rms`, "
             "`--profile-iterations 2`: no effect, because no mode freezes tensors."],
        ),
        (
            {"mode": "scratch", "rule": make_rule(relative=0.1), "profile_iterations": None},
            ["`--freeze-relative 0.1`: no effect, because no mode freezes tensors.",
             "Mode `scratch` does not use the weights of `--pretrained "],
        ),
        (
            {"rule": FreezeRule(pattern="encoder", kind="rms"), "lora_layers": ("in_proj",)},
            ["`--statistic rms`: no effect, because `--freeze` selects tensors by name.",
             "`--lora-layers in_proj`: no effect, because only mode `lora` adds adapters."],
        ),
        (
            {"profile": Path("x.parquet")},
            ["`--profile-iterations 2`: no effect, because an existing profile is used"],
        ),
        (
            {"mode": "lora", "profile_only": True},
            ["`--mode lora`: no effect, because `--profile-only` trains no mode."],
        ),
    ],
)  # fmt: skip
def test_options_without_effect_are_named(
    make_config: MakeConfig, overrides: dict[str, Any], sentences: list[str]
) -> None:
    named = list(options_without_effect(make_config(**overrides)))
    assert [sentence[: len(start)] for sentence, start in zip(named, sentences, strict=True)] == (
        sentences
    )


def test_a_dry_run_refuses_adapters_that_the_network_cannot_get(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(mode="lora", lora_layers=("q_proj",))
    for run in (partial(forecast_finetuning, listener=Recorder()), run_finetuning):
        with pytest.raises(UsageError, match="no linear layer `q_proj`"):
            run(config)
    assert not (tmp_path / "run").exists()


def test_other_weights_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    open_run(make_config, tmp_path / "run")
    (tmp_path / "run" / DECISIONS).touch()
    other_weights = write_pretrained(tmp_path / "other.safetensors", seed=8)
    with pytest.raises(UsageError, match=r"\(`--pretrained`\) was"):
        open_run(make_config, tmp_path / "run", pretrained=other_weights)


def test_modes_add_up_and_commands_are_kept(make_config: MakeConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    open_run(make_config, out, mode="full", rule=FreezeRule(1e-3))
    created = read_finetune_record(out).created
    open_run(make_config, out, mode="freeze")  # the rule may change until parameters are frozen
    open_run(make_config, out, mode="scratch")
    record = read_finetune_record(out)
    assert record.modes == ["scratch", "full", "freeze"]
    assert record.created == created
    assert record.rule.threshold == 1e-6


def test_fresh_discards_files_of_the_run_only(make_config: MakeConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    open_run(make_config, out)
    (out / "freeze" / "checkpoints").mkdir(parents=True)
    (out / "sweep" / "encoder").mkdir(parents=True)
    error = "error-20260102-030405-17.txt"
    own_files = (error, f"freeze/{error}", "freeze/costs.json", "gradients.parquet", "frozen.csv",
            "sweep.csv")  # fmt: skip
    for name in (*own_files, "sweep/encoder/run.json", "mine.txt"):
        (out / name).write_text("x")
    open_run(make_config, out, fresh=True, epochs=4)
    assert {p.name for p in out.rglob("*") if p.is_file()} == {"run.json", "mine.txt"}
    FINETUNING.discard(out)
    assert not (out / "run.json").exists()


def test_another_kind_of_run_is_not_taken_over(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"kind": "train"}')
    with pytest.raises(UsageError, match="contains a training, not a fine-tuning"):
        open_run(make_config, tmp_path / "run")


def test_a_written_record_is_read_unchanged(make_config: MakeConfig, tmp_path: Path) -> None:
    rule = FreezeRule(quantile=0.3, kind="rms", scope="all")
    record = finetune_record(plan_finetuning(make_config(rule=rule), Recorder()), network())
    FINETUNING.write(tmp_path / "run", record)
    assert read_finetune_record(tmp_path / "run") == record
    assert (record.rule.quantile, record.rule.kind, record.rule.scope) == (0.3, "rms", "all")
