"""Rules of freezing in words."""

from __future__ import annotations

import pandas as pd

from robustcli.finetuning.record import RuleRecord
from robustcli.reports.document import Mono, Text, text
from robustcli.reports.numbers import decimal, is_missing

STATISTICS = {
    "mean_abs": "mean of |g|",
    "rms": "root mean square of g",
    "max_abs": "largest |g|",
    "abs_mean": "|mean of g|",
}


def statistic_name(rule: RuleRecord) -> str:
    """What a rule compares."""
    over = ", relative to the weight's rms" if rule.relative else ""
    return f"{STATISTICS[rule.kind]} over a tensor's elements{over}"


def rule_words(rule: RuleRecord) -> Text:
    """What a rule freezes."""
    if rule.pattern is not None:
        return text("tensors called ", Mono(rule.pattern))
    where = "of state-space blocks" if rule.scope == "mamba" else "of the whole network"
    name = statistic_name(rule)
    if rule.quantile is not None:
        share = decimal(100 * rule.quantile, 0)
        return text(f"the {share} % of the tensors {where} with the smallest {name}")
    return text(f"tensors {where} whose {name} is below {rule.threshold:g}")


def is_within(rule: RuleRecord, mamba: pd.Series) -> pd.Series:
    """Which tensors a rule chooses from; all where it is about all or there is no such block.

    Args:
        rule: The rule.
        mamba: Per tensor, whether it belongs to a state-space block.
    """
    narrow = rule.scope == "mamba" and rule.pattern is None and bool(mamba.any())
    return mamba if narrow else mamba | True


def rule_label(row: pd.Series) -> str:
    """What a line of a sweep (`finetune_record.SWEEP`) freezes, in few letters."""
    if row["frozen_share"] == 0:
        return "nothing frozen"
    if not pd.isna(row["pattern"]):
        return "all but the heads" if row["pattern"] == "*" else str(row["pattern"])
    if not is_missing(row["quantile"]):
        return f"smallest {row['quantile']:g}"
    return f"below {row['threshold']:g}"


def rule_scope(row: pd.Series) -> str:
    """What a line of a sweep chooses from."""
    if not pd.isna(row["pattern"]):
        return "by name"
    return "state-space blocks" if row["scope"] == "mamba" else "all tensors"
