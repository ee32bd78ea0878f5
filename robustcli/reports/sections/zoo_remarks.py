"""What the reader must know before subtracting a published number from an own one."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.reports.document import Mono, Span, Text, joined, text
from robustcli.reports.published import other_experiment, published
from robustcli.reports.training import Training
from robustcli.reports.zoo_rows import ZooRow, label


def zoo_remarks(rows: Sequence[ZooRow], trainings: Sequence[Training]) -> list[Text]:
    """Where the published numbers come from, in what the trainings differ, and known slips."""
    remarks = [
        text(
            "Published: “Mamba-Based Tumor Segmentation”, Table I, and its notebooks for IoU: LGG, "
            "protocol paper, 100 epochs."
        )
    ]
    remarks += _other_experiments(trainings)
    printed = {row.printed.model: row.printed for row in rows if row.printed}
    remarks += [
        text(Mono(line.model), f": {line.remark}") for line in printed.values() if line.remark
    ]
    return remarks


def _other_experiments(trainings: Sequence[Training]) -> list[Text]:
    """In what the trainings differ from the published ones, those that differ alike together."""
    alike: dict[str, list[Span]] = {}
    for training in trainings:
        if published(training.record.model) is not None:
            reasons = "; ".join(other_experiment(training.record))
            alike.setdefault(reasons, []).append(Mono(label(training, trainings)))
    return [
        text(
            *joined(names),
            f": another experiment than the published one ({reasons}), so the difference says "
            "nothing of the network alone."
            if reasons
            else ": the published experiment, but for seeds, the order of files and the machine.",
        )
        for reasons, names in alike.items()
    ]
