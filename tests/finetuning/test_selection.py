"""What each rule freezes, on statistics small enough to decide by hand."""

from __future__ import annotations

import math

import pytest

from robustcli.core.errors import UsageError
from robustcli.finetuning.gradients import STATISTIC_KINDS, Statistic
from robustcli.finetuning.rules import FreezeRule
from robustcli.finetuning.selection import fits_pattern, freeze_decisions


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


def test_threshold_takes_what_is_below_it_in_mamba_blocks() -> None:
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
    ("share", "expected"),
    [(0.3, []), (0.34, ["mamba.A_log"]), (0.7, ["mamba.A_log", "mamba.D"])],
)
def test_quantile_takes_the_lowest_share_of_the_scope(share: float, expected: list[str]) -> None:
    assert frozen(FreezeRule(quantile=share)) == expected


def test_pattern_takes_names() -> None:
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
    why = {
        d.name: d.why
        for d in freeze_decisions(NETWORK, FreezeRule(threshold=1e-6), ("seg_layers.",))
    }
    assert why == {
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
    with pytest.raises(UsageError, match="`--freeze decoder` fits no parameter"):
        freeze_decisions(NETWORK, FreezeRule(pattern="decoder"))


def test_heads_alone_are_not_enough_for_a_threshold_and_are_for_a_pattern() -> None:
    heads = ("seg_layers.",)
    with pytest.raises(UsageError, match="Nothing would be left to train but the heads") as caught:
        freeze_decisions(NETWORK, FreezeRule(threshold=1.0, scope="all"), heads)
    assert "highest useful threshold is 0.01, which leaves one tensor" in caught.value.todo
    unused = {**NETWORK, "mamba.unused": statistic(math.nan)}  # has nothing to learn from
    with pytest.raises(UsageError, match="Nothing would be left to train but the heads"):
        freeze_decisions(unused, FreezeRule(threshold=1.0, scope="all"), heads)
    probe = freeze_decisions(NETWORK, FreezeRule(pattern="*"), heads)
    assert [d.name for d in probe if not d.frozen] == ["seg_layers.0"]
    with pytest.raises(UsageError, match="Every one of the 5 tensors fits"):
        freeze_decisions(NETWORK, FreezeRule(pattern="*"))


def test_the_highest_useful_threshold_is_rounded_down() -> None:
    network = {"a": statistic(1.23456e-4), "b": statistic(1e-9)}
    with pytest.raises(UsageError) as caught:
        freeze_decisions(network, FreezeRule(threshold=1.0))
    assert "threshold is 0.000123, which" in caught.value.todo
    useful = freeze_decisions(network, FreezeRule(threshold=1.23e-4))
    assert [d.frozen for d in useful] == [False, True]
