"""The rows of a gradient profile as the lines of a picture."""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from robustcli.reports.figures.gradients import Limit, Trace
from robustcli.reports.finetuning import Finetuning
from robustcli.reports.rules import is_within

_LEAST_RMS = 1e-30  # as in `finetune.selection`: a weight of zeros divides nothing by 0
# Vim has a second set of tensors for the way back (`_b`); VMamba stacks four directions (`s`).
_KINDS = (
    *(("A_log", r"A(_b)?_logs?"), ("D", r"Ds?(_b)?"), ("dt_proj", r"dt_projs?\w*")),
    *(("x_proj", r"x_proj\w*"), ("in_proj", r"in_proj\w*"), ("out_proj", r"out_proj\w*")),
    *(("conv1d", r"conv1d\w*"), ("conv2d", r"conv2d\w*"), ("norm", r"\w*norm\w*")),
)
_OUTSIDE = {1: "scales", 2: "linear layers"}


def traces(found: Finetuning) -> list[Trace]:
    """A trace per tensor that the rule is about, the smallest mean first; none without a profile.

    Those of state-space blocks, or all where the rule is about all or there are no such blocks.
    """
    if found.profile is None or found.profile.empty:
        return []
    rule = found.record.rule
    rows = found.profile[is_within(rule, found.profile["mamba"])]
    values = rows[rule.kind] / (rows["weight_rms"].clip(lower=_LEAST_RMS) if rule.relative else 1)
    courses = {
        str(name): course.to_numpy(dtype=float)
        for name, course in values.groupby(rows["name"], sort=False)
    }
    first = rows.drop_duplicates("name")
    facts = zip(
        first["name"].tolist(), first["shape"].tolist(), first["mamba"].tolist(), strict=True
    )
    kinds = [kind_of_tensor(name, len(shape), inside=inside) for name, shape, inside in facts]
    frozen, labels = _frozen(found), short_names(list(courses))
    lines = [
        Trace(label, kind, values, _mean(values), name in frozen)
        for (name, values), label, kind in zip(courses.items(), labels, kinds, strict=True)
    ]
    return sorted(lines, key=lambda line: math.inf if line.mean is None else line.mean)


def _mean(values: NDArray[np.float64]) -> float | None:
    """The mean over the iterations that gave a gradient."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def limit(found: Finetuning, lines: list[Trace]) -> Limit | None:
    """Where `found`'s rule draws the line between `lines`; None where it is about names."""
    rule = found.record.rule
    if rule.threshold is not None:
        return Limit(f"threshold {rule.threshold:g}", rule.threshold)
    taken = [line.mean for line in lines if line.frozen and line.mean is not None]
    if rule.quantile is None or not taken:
        return None
    return Limit(f"the smallest {rule.quantile:g}: up to {max(taken):.1e}", max(taken))


def kind_of_tensor(name: str, dimensions: int, *, inside: bool) -> str:
    """What a tensor is: its part in a state-space block, else its kind of layer."""
    for part in reversed(name.split(".")) if inside else ():
        for kind, pattern in _KINDS:
            if re.fullmatch(pattern, part):
                return kind
    if name.endswith("bias"):
        return "biases"
    return _OUTSIDE.get(dimensions, "convolutions")


def short_names(names: list[str]) -> list[str]:
    """`names` without the modules that all of them are in."""
    if len(names) < 2:
        return [".".join(name.split(".")[-2:]) for name in names]
    parts = [name.split(".") for name in names]
    common = 0
    while all(len(p) > common + 1 for p in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    return [".".join(part[common:]) for part in parts]


def _frozen(found: Finetuning) -> frozenset[str]:
    if found.decisions is None:
        return frozenset()
    return frozenset(found.decisions.loc[found.decisions["frozen"], "name"])
