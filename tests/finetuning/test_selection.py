"""Rules that select frozen parameters, their results, and announcements."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from robustcli.core.errors import UsageError
from robustcli.finetuning.finetune_plan import plan_finetuning
from robustcli.finetuning.freezing import read_frozen, write_decisions
from robustcli.finetuning.gradients import STATISTIC_KINDS, Statistic
from robustcli.finetuning.record import DECISION_COLUMNS
from robustcli.finetuning.selection import (
    Decision,
    FreezeRule,
    fits_pattern,
    freeze_decisions,
    make_rule,
)
from tests.finetuning.tunings import MakeConfig, network
from tests.training.runs import Recorder


@pytest.mark.parametrize("value", [-1e-6, math.inf, math.nan])
def test_threshold_must_be_a_size(value: float) -> None:
    with pytest.raises(UsageError, match="not a valid gradient threshold"):
        FreezeRule(threshold=value)


@pytest.mark.parametrize("value", [0.0, 1.0, 30.0])
def test_quantile_must_be_a_share(value: float) -> None:
    with pytest.raises(UsageError, match="not a fraction"):
        FreezeRule(quantile=value)


@pytest.mark.parametrize("limits", [{}, {"threshold": 1e-6, "quantile": 0.3}])
def test_one_rule_at_a_time(limits: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        FreezeRule(**limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_the_share_of_the_early_change_must_be_one(value: float) -> None:
    with pytest.raises(UsageError, match="not a fraction of the early change"):
        make_rule(change=value)


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


def test_pattern_without_a_match() -> None:
    with pytest.raises(UsageError, match="`--freeze decoder` matches no parameter"):
        freeze_decisions(NETWORK, FreezeRule(pattern="decoder"))


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
    assert decisions is not None
    assert {d.name.split(".")[0] for d in decisions if d.frozen} == {"encoder"}
    assert plan_finetuning(make_config(), Recorder()).known_decisions(network()) is None
    profile_plan = plan_finetuning(make_config(rule=rule, profile_only=True), Recorder())
    assert profile_plan.known_decisions(network()) is None


def test_the_file_gives_the_names_back(make_config: MakeConfig, tmp_path: Path) -> None:
    plan = plan_finetuning(make_config(rule=FreezeRule(pattern="encoder")), Recorder())
    decisions = plan.known_decisions(network())
    assert decisions is not None
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
    assert decisions is not None
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
