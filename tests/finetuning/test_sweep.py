"""Sweeps over freezing rules: the tried rules, and the files of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from robustcli.core.errors import UsageError
from robustcli.evaluation.cell_table import table
from robustcli.finetuning import sweep
from robustcli.finetuning.finetuning_task import SegmenterFinetuning
from robustcli.finetuning.freezing import FreezeAfterSteps
from robustcli.finetuning.gradients import Statistic
from robustcli.finetuning.mode_trainings import run_finetuning
from robustcli.finetuning.modes import Modes
from robustcli.finetuning.record import SWEEP, SWEEP_FILE
from robustcli.finetuning.selection import FreezeRule
from robustcli.finetuning.sweep import Ratio, candidates, name_of, seconds_ratios, steps_before
from robustcli.models.architectures import architecture, everything_decays
from robustcli.training.lit_module import SegmenterModule
from robustcli.training.recipes import recipe_for
from tests.finetuning.tunings import MakeConfig
from tests.training.runs import Recorder

CPU = torch.device("cpu")


@pytest.fixture
def module() -> SegmenterModule:
    network = architecture("unet").build(features=(8, 16))
    return SegmenterModule(
        network, recipe_for("unet", "patient", "x"), channels="rgb", decays=everything_decays,
        val_groups=(),
    )  # fmt: skip


def test_a_step_without_backward_pass_is_shorter(module: SegmenterModule) -> None:
    names = [name for name, _ in module.network.named_parameters()]
    head = [name for name in names if "head" in name or name.startswith(names[-1].split(".")[0])]
    initial = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    body = [name for name in names if name not in head]
    base_ratio, body_ratio = seconds_ratios(module, [[], body], 2, CPU, rounds=7)
    assert body_ratio.low <= body_ratio.median <= body_ratio.high < 0.9
    assert base_ratio.median == pytest.approx(1, abs=0.4)
    for name, parameter in module.network.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter, initial[name])


def test_ratios_are_computed_within_a_round(
    module: SegmenterModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratios do not change if a machine slows down; the first two rounds are dropped."""
    order: list[float] = []

    def fake(lit_module: SegmenterModule, size: int, device: torch.device) -> Callable[[], float]:
        share = 1.0 if all(p.requires_grad for p in lit_module.network.parameters()) else 0.5

        def step() -> float:
            order.append(share)
            number = (len(order) + 1) // 2  # round number, from 1
            return 2.0**number * (share if number > 2 else 1 / share)

        return step

    monkeypatch.setattr(sweep, "make_step", fake)
    first = next(name for name, _ in module.network.named_parameters())
    (ratio,) = seconds_ratios(module, [[first]], 1, CPU, rounds=6)
    assert (ratio.median, ratio.low, ratio.high) == (0.5, 0.5, 0.5)
    assert order == [1.0, 0.5, 0.5, 1.0] * 4


RULES = SegmenterFinetuning.rules

ENCODER = ["encoder.stages.0.w", "encoder.stages.1.w", "encoder.stages.2.w"]
NAMES = (*ENCODER, "mamba_layer.A_log", "mamba_layer.D", "head.w")
SIZES = (1e-3, 1e-2, 1e-2, 1e-4, 1e-1, 1.0)
STATISTICS = {
    name: Statistic((10,), name.startswith("mamba"), 1.0, {"mean_abs": size, "rms": 2 * size})
    for name, size in zip(NAMES, SIZES, strict=True)
}


def frozen_by(rule: FreezeRule) -> dict[str, list[str]]:
    return {name_of(c.rule): c.frozen for c in candidates(STATISTICS, rule, ["head"], RULES)}


def test_each_set_comes_once_and_the_runs_own_rule_first() -> None:
    rule = FreezeRule(threshold=5e-3, scope="all")
    frozen_names = frozen_by(rule)
    assert next(iter(frozen_names)) == "all-mean_abs-0.005"
    assert frozen_names["all-mean_abs-0.005"] == ["encoder.stages.0.w", "mamba_layer.A_log"]
    assert frozen_names["mamba-mean_abs-1e-06"] == []
    assert frozen_names["mamba-mean_abs-q0.5"] == ["mamba_layer.A_log"]
    assert frozen_names["name-encoder._"] == ENCODER
    assert ENCODER[:2] in frozen_names.values()
    sets = [frozenset(names) for names in frozen_names.values()]
    assert len(set(sets)) == len(sets)


def test_the_share_is_of_elements() -> None:
    shares = [
        c.share for c in candidates(STATISTICS, FreezeRule(pattern="encoder.*"), ["head"], RULES)
    ]
    assert shares[0] == pytest.approx(0.5)


def test_rules_that_fit_no_name_are_left_out() -> None:
    renamed = {name.replace("encoder", "down"): s for name, s in STATISTICS.items()}
    patterns = [
        c.rule.pattern for c in candidates(renamed, FreezeRule(quantile=0.5), ["head"], RULES)
    ]
    assert "encoder.*" not in patterns
    assert "mamba_layer.*" in patterns


def test_every_rule_has_a_folder_of_its_own() -> None:
    rules = [*RULES, FreezeRule(threshold=1e-3, relative=True), FreezeRule(0.001, kind="rms")]
    names = [name_of(rule) for rule in rules]
    assert len(set(names)) == len(rules)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") for name in names)


def test_a_sweep_writes_its_rules_scores_and_times(
    make_config: MakeConfig, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = (FreezeRule(threshold=0.0), FreezeRule(pattern="encoder.*"))
    monkeypatch.setattr(SegmenterFinetuning, "rules", rules)
    waits = {}
    start_of = Modes.start
    monkeypatch.setattr(
        Modes,
        "start",
        lambda self, mode, out: waits.update({out.name: self.waiting}) or start_of(self, mode, out),
    )
    ratios = [Ratio(0.7, 0.6, 0.8), Ratio(1.0, 0.9, 1.1), Ratio(0.5, 0.4, 0.6)]
    calls = []
    monkeypatch.setattr(
        sweep, "seconds_ratios", lambda module, frozen, size, device: calls.append(frozen) or ratios
    )
    out, rule = tmp_path / "run", FreezeRule(quantile=0.5, scope="all")
    config = make_config(out, rule=rule, epochs=1, profile_iterations=1, sweep=True)
    run_finetuning(config, Recorder())
    rows = pd.read_csv(out / SWEEP_FILE)
    assert list(rows) == list(SWEEP)
    assert rows["seconds_ratio"].tolist() == [0.7, 1.0, 0.5]
    assert rows["pattern"].tolist()[2] == "encoder.*"
    assert rows["after_steps"].tolist() == [1, 1, 1]  # `--profile-iterations` was set
    assert waits["all-mean_abs-q0.5-after-1"] == 1
    assert waits["name-encoder._-after-1"] == 1
    assert rows["frozen_share"].tolist()[1] == 0
    assert rows["dice"][1] == table(out / "full" / "test")["dice"][0]
    swept_run = out / "sweep" / "name-encoder._-after-1"
    assert rows["dice"][2] == table(swept_run / "test")["dice"][0]
    start_weights = load_file(weights)
    waiting = out / "sweep" / "all-mean_abs-q0.5-after-1"
    by_mode, by_sweep = (
        load_file(run / "weights.safetensors") for run in (out / "freeze", waiting)
    )
    for name, tensor in by_mode.items():  # the run's rule, as mode `freeze` applies it
        assert torch.equal(tensor, by_sweep[name])
    assert any(not torch.equal(by_sweep[name], start_weights[name]) for name in calls[0][0])
    before = (out / SWEEP_FILE).read_bytes()
    run_finetuning(config, Recorder())
    assert (out / SWEEP_FILE).read_bytes() == before


def test_a_sweep_needs_gradients(make_config: MakeConfig) -> None:
    rule = FreezeRule(pattern="encoder.*")
    config = make_config(epochs=1, sweep=True, rule=rule)
    with pytest.raises(UsageError, match=r"`--sweep` needs a profile; `--freeze encoder\.\*`"):
        run_finetuning(config, Recorder())


@pytest.mark.parametrize(
    "overrides", [{"mode": "freeze"}, {"mode": "full"}, {"profile_only": True}]
)
def test_a_sweep_needs_full_and_a_profile(
    make_config: MakeConfig, overrides: dict[str, object]
) -> None:
    config = make_config(epochs=1, sweep=True, **overrides)
    with pytest.raises(UsageError, match=r"`--sweep` compares with(.|\n)*Use `--mode all`"):
        run_finetuning(config, Recorder())


@pytest.mark.parametrize(
    ("overrides", "by_gradient", "by_name"),
    [({}, 20, 0), ({"profile_iterations": 7}, 7, 7), ({"profile": Path("p.parquet")}, 0, 0)],
)
def test_a_rule_of_the_sweep_waits_as_the_mode_does(
    overrides: dict[str, object], by_gradient: int, by_name: int
) -> None:
    settings = {"profile": None, "profile_iterations": None, **overrides}
    steps = settings["profile_iterations"] or 20
    plan: Any = SimpleNamespace(config=SimpleNamespace(**settings), profile_iterations=steps)
    assert steps_before(plan, FreezeRule(change=0.5, kind="change")) == by_gradient
    assert steps_before(plan, FreezeRule(pattern="encoder.*")) == by_name


def test_a_freeze_after_some_steps_trains_all_before_and_survives_an_interruption() -> None:
    def optimizer_of(network: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)

    def step(network: torch.nn.Module, callback: FreezeAfterSteps, trainer: Any) -> list[bool]:
        before = [p.detach().clone() for p in network.parameters()]
        (optimizer,) = trainer.optimizers
        optimizer.zero_grad(set_to_none=True)
        network(torch.ones(2, 3)).sum().backward()
        callback.on_before_optimizer_step(trainer, None, optimizer)  # type: ignore[arg-type]
        optimizer.step()
        callback.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
        return [torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]

    network = torch.nn.Linear(3, 2)
    callback = FreezeAfterSteps(network, ["weight"], 2)
    trainer = SimpleNamespace(optimizers=[optimizer_of(network)])
    assert step(network, callback, trainer) == [False, False]
    resumed = FreezeAfterSteps(network, ["weight"], 2)
    resumed.load_state_dict(callback.state_dict())
    assert step(network, resumed, trainer) == [False, False]
    assert step(network, resumed, trainer) == [True, False]
    reloaded = FreezeAfterSteps(network, ["weight"], 2)
    reloaded.load_state_dict(resumed.state_dict())
    assert (reloaded.names, reloaded.pending) == (["weight"], [])
