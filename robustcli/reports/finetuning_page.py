"""The report of a fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustcli.reports.findings import records
from robustcli.reports.finetuning_findings import Finetuning, read_finetuning
from robustcli.reports.finetuning_gallery import (
    NO_PICTURES,
    FinetuningGallery,
    draw_finetuning_gallery,
)
from robustcli.reports.finetuning_results import (
    against_full,
    finetuning_results,
    frozen_elements,
    pace,
)
from robustcli.reports.finetuning_words import (
    chosen_from,
    few_held_out,
    ordered,
    rule_label,
    rule_scope,
    saved,
    statistic_name,
    verdict,
)
from robustcli.reports.markdown import from_template
from robustcli.reports.pages import Page


def finetuning_report(run: Path) -> Page:
    """The page of the fine-tuning in `run`; its figures are drawn.

    Raises:
        UsageError: There is no readable fine-tuning.
    """
    finetuning = read_finetuning(run)
    return Page(
        finetuning_results(finetuning),
        finetuning_text(finetuning, draw_finetuning_gallery(finetuning)),
    )


def finetuning_text(finetuning: Finetuning, gallery: FinetuningGallery = NO_PICTURES) -> str:
    """The Markdown of the page, with the pictures of `gallery`."""
    return from_template(
        "finetuning",
        finetuning=finetuning,
        gallery=gallery,
        few=few_held_out(finetuning),
        statistic_name=statistic_name(finetuning.record.rule),
        frozen=_frozen(finetuning),
        verdict=verdict(finetuning),
        differences={run.mode: against_full(finetuning, run.mode) for run in finetuning.modes},
        paces={run.mode: pace(run) for run in finetuning.modes},
        frozen_elements=frozen_elements,
        chosen_from=[] if finetuning.decisions is None else chosen_from(finetuning),
        every_tensor=[] if finetuning.decisions is None else ordered(finetuning.decisions),
        rule_label=rule_label,
        rule_scope=rule_scope,
        saved=saved,
        sweep=[] if finetuning.sweep is None else records(finetuning.sweep),
    )


@dataclass(frozen=True)
class _Frozen:
    """How many tensors, and of their elements how many, a rule freezes.

    `smallest` is the smallest statistic that it looked at; None where there is none.
    """

    tensors: int
    elements: int
    of: int
    smallest: float | None

    @property
    def percent(self) -> float:
        """The share of the elements."""
        return 100 * self.elements / max(1, self.of)


def _frozen(finetuning: Finetuning) -> _Frozen | None:
    """What the rule froze; None until it is decided."""
    if finetuning.decisions is None:
        return None
    table = finetuning.decisions
    known = chosen_from(finetuning)["statistic"].dropna()
    return _Frozen(
        tensors=int(table["frozen"].sum()),
        elements=int(table.loc[table["frozen"], "count"].sum()),
        of=int(table["count"].sum()),
        smallest=float(known.iloc[0]) if len(known) else None,
    )
