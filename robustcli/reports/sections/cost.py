"""What the run cost: images per second, waiting, device."""

from __future__ import annotations

from robustcli.evaluation.costs import Costs, DeviceCost, costs, speed
from robustcli.reports.document import (
    Block,
    Heading,
    Listing,
    Mono,
    Paragraph,
    Table,
    Text,
    cells,
    text,
)
from robustcli.reports.findings import Findings
from robustcli.reports.numbers import counted, decimal


def cost(findings: Findings) -> list[Block]:
    """The section; one sentence when no session was recorded."""
    heading = Heading(2, text("Speed"))
    if not findings.sessions:
        return [heading, Paragraph(text("No timings were recorded."))]
    return [heading, _speed_table(findings), Listing(_facts(costs(findings.sessions)))]


def _speed_table(findings: Findings) -> Table:
    header = cells("model", "images per second", "images", "seconds in the model")
    speeds = [speed(findings.sessions, model.name) for model in findings.models]
    rows = [
        (
            text(Mono(s.model)),
            *cells(decimal(s.images_per_second), f"{s.images:,}", decimal(s.seconds)),
        )
        for s in speeds
    ]
    return Table(header, tuple(rows))


def _facts(total: Costs) -> tuple[Text, ...]:
    waiting = (
        ""
        if total.waiting_share is None
        else (f"; the models waited for images {decimal(100 * total.waiting_share)} % of it")
    )
    facts = [
        text(f"{counted(total.sessions, 'session')}, {decimal(total.seconds)} s in all{waiting}.")
    ]
    facts += [text(f"On {device}.") for device in total.devices]
    return (*facts, *(_device_facts(total.device) if total.device else ()))


def _device_facts(device: DeviceCost) -> list[Text]:
    facts = [f"Peak device memory: {decimal(device.peak_memory_bytes / 2**30, 2)} GiB."]
    if device.utilisation_percent is not None:
        facts.append(f"Mean device utilisation: {decimal(device.utilisation_percent)} %.")
    if device.energy_joules is not None:
        facts.append(f"Energy of the device: {decimal(device.energy_joules / 3600, 2)} Wh.")
    return [text(fact) for fact in facts]
