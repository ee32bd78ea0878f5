"""Rules that select frozen parameters, their results and announcements; sweeps over rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from robustcli.core.errors import UsageError
from robustcli.core.io import read_csv
from robustcli.evaluation.cell_table import table
from robustcli.finetuning import sweep
from robustcli.finetuning.finetune_plan import plan_finetuning
from robustcli.finetuning.finetuning_task import SegmenterFinetuning
from robustcli.finetuning.freezing import FreezeAfterSteps, read_frozen, write_decisions
from robustcli.finetuning.gradients import STATISTIC_KINDS, Statistic
from robustcli.finetuning.mode_trainings import run_finetuning
from robustcli.finetuning.modes import Modes
from robustcli.finetuning.record import DECISION_COLUMNS, SWEEP_FILE, SWEEPS
from robustcli.finetuning.selection import (
    Decision,
    FreezeRule,
    fits_pattern,
    freeze_decisions,
    make_rule,
)
from robustcli.finetuning.sweep import Ratio, candidates, name_of, seconds_ratios, steps_before
from robustcli.models.architectures import architecture, everything_decays
from robustcli.training.lit_module import SegmenterModule
from robustcli.training.recipes import recipe_for
from tests.finetuning.tunings import MakeConfig, network
from tests.training.runs import Recorder


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        *(
            ({"threshold": v}, "not a valid gradient threshold")
            for v in (-1e-6, math.inf, math.nan)
        ),
        *(({"quantile": v}, "not a fraction") for v in (0.0, 1.0, 30.0)),
        *(({"change": v}, "not a fraction of the early change") for v in (0.0, 1.0, -0.5)),
        *((limits, "exclude each other") for limits in ({}, {"threshold": 1e-6, "quantile": 0.3})),
    ],
)
def test_a_rule_has_one_value_in_its_range(limits: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FreezeRule(**limits)  # type: ignore[arg-type]


def test_a_rule_by_change_compares_nothing_else() -> None:
    assert make_rule(change=0.2) == FreezeRule(change=0.2, kind="change")
    with pytest.raises(UsageError, match="`--statistic rms` cannot be used with `--freeze-change`"):
        make_rule(change=0.2, kind="rms")


def test_a_rule_from_options() -> None:
    assert make_rule() == FreezeRule(threshold=1e-6)
    assert make_rule(relative=0.1) == FreezeRule(threshold=0.1, relative=True)
    assert make_rule(quantile=0.3, scope="all", kind="rms") == FreezeRule(
        quantile=0.3, kind="rms", scope="all"
    )
    assert make_rule(pattern="x") == FreezeRule(pattern="x")
    with pytest.raises(UsageError, match="exclude each other"):
        make_rule(threshold=1.0, relative=1.0)
    with pytest.raises(
        UsageError, match="`--freeze-relative -1` is not a valid gradient threshold"
    ):
        make_rule(relative=-1.0)


def statistic(value: float, *, mamba: bool = True, rms: float = 1.0) -> Statistic:
    return Statistic((4,), mamba, rms, dict.fromkeys(STATISTIC_KINDS, value))


NETWORK = {
    "encoder.conv": statistic(1e-8, mamba=False),
    "mamba.A_log": statistic(1e-7, rms=1e-4),
    "mamba.D": statistic(1e-5),
    "mamba.out": statistic(1e-2),
    "seg_layers.0": statistic(1e-9, mamba=False),
}


def frozen(rule: FreezeRule, heads: tuple[str, ...] = ()) -> list[str]:
    return [d.name for d in freeze_decisions(NETWORK, rule, heads) if d.frozen]


def test_threshold_selects_small_gradients_in_mamba_blocks() -> None:
    assert frozen(FreezeRule(threshold=1e-6)) == ["mamba.A_log"]
    assert frozen(FreezeRule(threshold=1e-7)) == []  # not below itself


def test_scope_all_never_takes_the_heads() -> None:
    rule = FreezeRule(threshold=1e-6, scope="all")
    assert frozen(rule) == ["encoder.conv", "mamba.A_log", "seg_layers.0"]
    assert frozen(rule, ("seg_layers.",)) == ["encoder.conv", "mamba.A_log"]


def test_relative_divides_by_the_weights_size() -> None:
    assert frozen(FreezeRule(threshold=1e-4, relative=True)) == ["mamba.D"]
    assert frozen(FreezeRule(threshold=1e-4)) == ["mamba.A_log", "mamba.D"]


@pytest.mark.parametrize(
    ("share", "expected"), [(0.3, []), (0.34, ["mamba.A_log"]), (0.7, ["mamba.A_log", "mamba.D"])]
)
def test_quantile_takes_the_lowest_share_of_the_scope(share: float, expected: list[str]) -> None:
    assert frozen(FreezeRule(quantile=share)) == expected


def settled(ratio: float) -> Statistic:
    return Statistic((4,), True, 1.0, dict.fromkeys(STATISTIC_KINDS, 1.0), ratio)


def test_change_selects_parameters_with_settled_gradients() -> None:
    network = {"a": settled(0.1), "b": settled(0.5), "c": settled(0.9), "d": settled(math.nan)}
    decisions = freeze_decisions(network, make_rule(change=0.5))
    assert [d.frozen for d in decisions] == [True, False, False, False]
    assert [d.statistic for d in decisions] == [0.1, 0.5, 0.9, None]
    assert [d.why for d in decisions] == [
        "below 0.5", "not below 0.5", "not below 0.5", "has no change to compare",
    ]  # fmt: skip


@pytest.mark.parametrize(("share", "tensors"), [(0.29, 100), (0.57, 100), (0.58, 50), (0.3, 10)])
def test_a_share_of_the_tensors_is_not_rounded_down_by_its_binary_digits(
    share: float, tensors: int
) -> None:
    network = {f"mamba.{n}": statistic(1e-6 * (n + 1)) for n in range(tensors)}
    decisions = freeze_decisions(network, FreezeRule(quantile=share))
    assert sum(d.frozen for d in decisions) == round(share * tensors)


def test_a_profile_without_changes_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match="needs the changes of gradients"):
        freeze_decisions(NETWORK, make_rule(change=0.5, scope="all"))


def test_pattern_selects_parameters_by_name() -> None:
    assert frozen(FreezeRule(pattern="encoder.*")) == ["encoder.conv"]
    assert frozen(FreezeRule(pattern="mamba")) == ["mamba.A_log", "mamba.D", "mamba.out"]
    assert frozen(FreezeRule(pattern="*"), ("seg_layers.",)) == [
        "encoder.conv", "mamba.A_log", "mamba.D", "mamba.out",
    ]  # fmt: skip


def test_several_patterns_are_separated_by_commas() -> None:
    assert [fits_pattern(name, "a.*, b.c") for name in ("a.x", "b.c.weight", "b.cc", "c")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_glob_selects_the_tensors_of_the_modules_that_it_matches() -> None:
    names = ("layer1.0.bn1.weight", "layer1.1.bn1.bias", "layer1.0.bn10.bias", "layer2.0.bn1.bias")
    assert [fits_pattern(name, "layer1.*.bn1") for name in names] == [True, True, False, False]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("encoder.*,mamba_layer", "`--freeze encoder.*,mamba_layer`: `mamba_layer` matches no par"),
        ("encoder.*, seg_layers", "`seg_layers` matches only layers that are new in this task."),
        ("seg_layers.0", "`--freeze seg_layers.0` matches only layers that are new in this task."),
        ("decoder", "`--freeze decoder` matches no parameter"),
    ],
)
def test_each_pattern_of_a_list_must_freeze_a_tensor(pattern: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        freeze_decisions(NETWORK, FreezeRule(pattern=pattern), ("seg_layers.",))
    assert message in caught.value.what
    rule = FreezeRule(pattern="encoder.*,")
    assert [d.name for d in freeze_decisions(NETWORK, rule) if d.frozen] == ["encoder.conv"]


def test_a_tensor_that_never_had_a_gradient_is_left_alone() -> None:
    network = {**NETWORK, "mamba.unused": statistic(math.nan)}
    decision = freeze_decisions(network, FreezeRule(threshold=1e-6))[-1]
    assert (decision.frozen, decision.statistic) == (False, None)
    assert decision.why == "never had a gradient"


def test_every_decision_says_why() -> None:
    expected_reasons = {
        d.name: d.why
        for d in freeze_decisions(NETWORK, FreezeRule(threshold=1e-6), ("seg_layers.",))
    }
    assert expected_reasons == {
        "encoder.conv": "not in a state-space block",
        "mamba.A_log": "below 1e-06",
        "mamba.D": "not below 1e-06",
        "mamba.out": "not below 1e-06",
        "seg_layers.0": "a head of the new task",
    }


def test_nothing_left_to_train_names_the_highest_useful_threshold() -> None:
    with pytest.raises(UsageError, match=r"highest useful threshold is 0\.01"):
        freeze_decisions(NETWORK, FreezeRule(threshold=1.0, scope="all"))
    assert len(frozen(FreezeRule(threshold=0.01, scope="all"))) == len(NETWORK) - 1


def test_heads_alone_are_not_enough_for_a_threshold_and_are_for_a_pattern() -> None:
    heads = ("seg_layers.",)
    with pytest.raises(UsageError, match="No tensor would be trained except the heads") as caught:
        freeze_decisions(NETWORK, FreezeRule(threshold=1.0, scope="all"), heads)
    assert "highest useful threshold is 0.01, which leaves one tensor" in caught.value.todo
    unused = {**NETWORK, "mamba.unused": statistic(math.nan)}  # has no gradient
    with pytest.raises(UsageError, match="No tensor would be trained except the heads"):
        freeze_decisions(unused, FreezeRule(threshold=1.0, scope="all"), heads)
    probe = freeze_decisions(NETWORK, FreezeRule(pattern="*"), heads)
    assert [d.name for d in probe if not d.frozen] == ["seg_layers.0"]
    with pytest.raises(UsageError, match="All 5 tensors match"):
        freeze_decisions(NETWORK, FreezeRule(pattern="*"))


def test_the_highest_useful_threshold_is_rounded_down() -> None:
    network = {"a": statistic(1.23456e-4), "b": statistic(1e-9)}
    with pytest.raises(UsageError) as caught:
        freeze_decisions(network, FreezeRule(threshold=1.0))
    assert "threshold is 0.000123, which" in caught.value.todo
    decisions = freeze_decisions(network, FreezeRule(threshold=1.23e-4))
    assert [d.frozen for d in decisions] == [False, True]


def test_names_decide_at_once_and_thresholds_later(make_config: MakeConfig) -> None:
    rule = FreezeRule(pattern="encoder")
    by_name = plan_finetuning(make_config(rule=rule), Recorder())
    decisions = by_name.known_decisions(network())
    assert {d.name.split(".")[0] for d in decisions if d.frozen} == {"encoder"}
    assert plan_finetuning(make_config(), Recorder()).known_decisions(network()) is None
    profile_plan = plan_finetuning(make_config(rule=rule, profile_only=True), Recorder())
    assert profile_plan.known_decisions(network()) is None


def test_the_file_gives_the_names_back(make_config: MakeConfig, tmp_path: Path) -> None:
    plan = plan_finetuning(make_config(rule=FreezeRule(pattern="encoder")), Recorder())
    decisions = plan.known_decisions(network())
    file = tmp_path / "frozen.csv"
    write_decisions(file, decisions, network())
    assert read_frozen(file) == [d.name for d in decisions if d.frozen]
    assert pd.read_csv(file)["statistic"].isna().all()


def test_a_frozen_prefix_saves_its_backward_pass(make_config: MakeConfig) -> None:
    plan, net = plan_finetuning(make_config(), Recorder()), network()
    names = [name for name, _ in net.named_parameters()]
    prefix = [name for name in names if name.startswith("encoder.")]
    savings = plan.saving(prefix, net)
    assert savings.parameters == sum(p.numel() for p in net.parameters())
    assert savings.frozen == sum(p.numel() for n, p in net.named_parameters() if n in prefix)
    assert savings.optimizer_bytes == 8 * savings.parameters
    assert 0.2 < savings.flops_saved / savings.flops < 0.6
    assert plan.saving([], net).flops_saved == 0
    assert all(p.requires_grad for p in net.parameters())


def test_decisions_are_announced(make_config: MakeConfig) -> None:
    plan = plan_finetuning(make_config(rule=FreezeRule(pattern="encoder")), Recorder())
    messages: list[str] = []
    decisions = plan.known_decisions(network())
    plan.announce(decisions, messages.append)
    count = sum(d.frozen for d in decisions)
    (line,) = messages
    assert line.startswith(f"Frozen: {count} of {len(decisions)} tensors, ")


def test_a_line_per_tensor(tmp_path: Path) -> None:
    net = nn.Module()
    net.scale = nn.Parameter(torch.tensor(1.0))
    net.layer = nn.Conv2d(3, 8, 3, bias=False)
    decisions = [
        Decision("scale", 1, True, None, False, "never had a gradient"),
        Decision("layer.weight", 216, False, 1.25e-7, True, "below 1e-06, with a comma"),
    ]
    write_decisions(tmp_path / "frozen.csv", decisions, net)
    rows = pd.read_csv(tmp_path / "frozen.csv", dtype={"shape": str})
    assert tuple(rows.columns) == DECISION_COLUMNS
    assert rows["shape"].tolist() == ["1", "8x3x3x3"]
    assert rows["statistic"].isna().tolist() == [True, False]
    assert rows["statistic"][1] == 1.25e-7
    assert rows[["mamba", "frozen"]].to_numpy().tolist() == [[1, 0], [0, 1]]
    assert rows["why"][1] == "below 1e-06, with a comma"


CPU = torch.device("cpu")


@pytest.fixture
def module() -> SegmenterModule:
    network = architecture("unet").build(features=(8, 16))
    recipe = replace(recipe_for("unet", "patient", "x"), window=128)
    return SegmenterModule(network, recipe, channels="rgb", decays=everything_decays, val_groups=())


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

ENCODER = ["encoder.stem.w", "encoder.stages.0.w", "encoder.stages.2.w"]
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
    frozen_sets = frozen_by(rule)
    assert next(iter(frozen_sets)) == "all-mean_abs-0.005"
    assert frozen_sets["all-mean_abs-0.005"] == ["encoder.stem.w", "mamba_layer.A_log"]
    assert frozen_sets["mamba-mean_abs-1e-06"] == []
    assert frozen_sets["mamba-mean_abs-q0.5"] == ["mamba_layer.A_log"]
    assert frozen_sets["name-encoder._"] == ENCODER
    assert ENCODER[:2] in frozen_sets.values()
    sets = [frozenset(names) for names in frozen_sets.values()]
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
    rows = read_csv(out / SWEEP_FILE)
    assert list(rows) == list(SWEEPS["seg"])
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
    assert len(calls) == 1, "finished steps are not timed again"


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
