"""Freezing decisions that are known before training starts; announcing and writing decisions."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from robustcli.core.io import write_bytes, write_text
from robustcli.finetuning.finetune_plan import FinetunePlan
from robustcli.finetuning.freezing import saving
from robustcli.finetuning.gradients import mamba_parameters, read_profile, statistics, unmeasured
from robustcli.finetuning.record import DECISION_COLUMNS, DECISIONS, PROFILE, SavingRecord
from robustcli.finetuning.selection import Decision, freeze_decisions


def write_decisions(path: Path, decisions: Sequence[Decision], network: nn.Module) -> None:
    """Writes the `decisions` for the tensors of `network` durably to `path` (`OUT/frozen.csv`)."""
    shapes = {n: "x".join(map(str, p.shape)) or "1" for n, p in network.named_parameters()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(DECISION_COLUMNS)
    for d in decisions:
        statistic = "" if d.statistic is None else repr(d.statistic)
        row = [d.name, shapes[d.name], d.count, int(d.mamba), statistic, int(d.frozen), d.why]
        writer.writerow(row)
    write_text(path, text.getvalue())


_MOMENTS = {"Adam": 2, "AdamW": 2, "SGD": 1}
_TRIED = 2
"""Batch size of the step whose operations are counted: batch normalisation needs two images."""


def known_decisions(plan: FinetunePlan, network: nn.Module) -> list[Decision] | None:
    """Decisions from an existing profile or a name pattern; None if a profile is measured later.

    Raises:
        UsageError: The profile is of another model, or no parameter would be left to train.
    """
    config = plan.config
    if config.profile is not None:
        rows = read_profile(config.profile, network, plan.entry.name)
        return freeze_decisions(statistics(rows), config.rule, plan.heads)
    return named_decisions(plan, network) if config.at_once else None


def named_decisions(plan: FinetunePlan, network: nn.Module) -> list[Decision] | None:
    """Decisions from a name pattern; None if the rule needs gradients.

    Raises:
        UsageError: The pattern matches no parameter, or no parameter would be left to train.
    """
    if plan.config.rule.pattern is None:
        return None
    return freeze_decisions(unmeasured(network), plan.config.rule, plan.heads)


def write_known(plan: FinetunePlan, decisions: Sequence[Decision], network: nn.Module) -> None:
    """Writes decisions that were known before training, and the profile that they come from."""
    if plan.config.profile is not None:
        write_bytes(plan.run / PROFILE, plan.config.profile.read_bytes())
    write_decisions(plan.run / DECISIONS, decisions, network)


def announce_decisions(
    decisions: Sequence[Decision], plan: FinetunePlan, network: nn.Module,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Reports the frozen share of the parameters, and the reason if it is zero."""
    frozen = [d for d in decisions if d.frozen]
    total = sum(d.count for d in decisions)
    share = sum(d.count for d in frozen) / total
    say(
        f"Frozen: {len(frozen)} of {len(decisions)} tensors, {sum(d.count for d in frozen):,} of "
        f"{total:,} parameters ({share:.1%})."
    )
    rule = plan.config.rule
    if frozen or rule.pattern is not None:
        return
    if rule.scope == "mamba" and not mamba_parameters(network):
        say(
            f"`{plan.entry.name}` has no state-space block, so `--freeze-scope mamba` has no "
            "effect; `--freeze-scope all` selects from all tensors."
        )
        return
    lowest = _lowest(decisions, rule.scope, plan.heads)
    if lowest is not None:
        say(f"The smallest statistic in scope is {lowest.statistic:.3g}, of `{lowest.name}`.")


def _lowest(decisions: Sequence[Decision], scope: str, heads: tuple[str, ...]) -> Decision | None:
    scoped = [
        d
        for d in decisions
        if d.statistic is not None and (d.mamba or scope == "all") and not d.name.startswith(heads)
    ]
    return min(scoped, key=lambda d: d.statistic or 0.0, default=None)


def saving_of(plan: FinetunePlan, frozen: Sequence[str], network: nn.Module) -> SavingRecord:
    """Memory and operations that freezing the parameters `frozen` saves in one training step."""
    recipe = plan.training.recipe
    images = torch.rand(_TRIED, *plan.training.input_shape)
    moments = _MOMENTS[recipe.optimizer]
    tried = saving(network.train(), frozen, images, _any_loss, moments=moments)
    times = recipe.batch_size * recipe.accumulate / _TRIED
    flops, saved = round(times * tried.flops), round(times * tried.flops_saved)
    return tried.model_copy(update={"flops": flops, "flops_saved": saved})


def _any_loss(output: Tensor | Sequence[Tensor]) -> Tensor:
    """A stand-in loss over all outputs, so that every trainable parameter gets a gradient.

    The number of operations of a real loss is negligible compared with the network.
    """
    levels = [output] if isinstance(output, Tensor) else output
    return torch.stack([level.square().mean() for level in levels]).sum()


def frozen_names(run: Path) -> list[str]:
    """Names of the frozen tensors in the `frozen.csv` of the run folder `run`."""
    rows = pd.read_csv(run / DECISIONS, dtype={"shape": str})
    return [str(name) for name in rows["name"][rows["frozen"] == 1]]
