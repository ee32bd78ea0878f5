"""What belongs on the contact sheets: the samples that the run left, with their PSNR."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from robustcli.evaluation.metrics import IDENTITY
from robustcli.evaluation.record import TransformRecord
from robustcli.evaluation.store import Cell, Store
from robustcli.reports.figures.contact import Tile
from robustcli.reports.findings import Findings
from robustcli.reports.numbers import decimal, is_missing

ABREAST = 5
TRIED = 100  # images among which an evaluation looks for one with foreground


@dataclass(frozen=True)
class ContactLines:
    """The tiles line by line: single cells together, each scale of severities on its own line.

    The clean photo comes first, once.
    """

    single: list[list[Tile]]
    graded: list[list[Tile]]


def contact_lines(findings: Findings) -> ContactLines:
    """The lines of both sheets; both are empty when there are no samples of transformed photos."""
    if not (findings.run / "samples").is_dir():
        return ContactLines([], [])
    single, graded = _split(findings.record.transforms)
    clean = Tile(findings.run / "samples" / "clean.png", "clean", "as it is")
    tiles = [_tile(findings, transform) for transform in single]
    scales = [line for group in graded for line in _in_lines([_tile(findings, t) for t in group])]
    if tiles:
        return ContactLines(_in_lines([clean, *tiles]), scales)
    return ContactLines([], [[clean], *scales] if scales else [])


def _split(
    transforms: list[TransformRecord],
) -> tuple[list[TransformRecord], list[list[TransformRecord]]]:
    groups: dict[str, list[TransformRecord]] = {}
    for transform in transforms:
        if transform.severity:
            groups.setdefault(transform.name, []).append(transform)
    scales = {name: group for name, group in groups.items() if len(group) > 1}
    single = [
        transform
        for transform in transforms
        if transform.name != "identity" and not (transform.severity and transform.name in scales)
    ]
    return single, list(scales.values())


def _in_lines(tiles: list[Tile]) -> list[list[Tile]]:
    return [tiles[start : start + ABREAST] for start in range(0, len(tiles), ABREAST)]


def _tile(findings: Findings, transform: TransformRecord) -> Tile:
    name = f"{transform.name}-s{transform.severity}.png"
    note = _psnr(findings, Cell(transform.name, transform.severity))
    return Tile(
        findings.run / "samples" / name,
        transform.name,
        f"severity {transform.severity}, {note}" if transform.severity else note,
    )


def _psnr(findings: Findings, cell: Cell) -> str:
    """The PSNR of the sample, as the first model's view has it."""
    sample = _sample(findings, cell)
    if sample.empty:
        return "PSNR unknown"
    if not sample["changed"].all():
        return "unchanged"
    value = float(sample["psnr_db"].mean())
    return "PSNR unknown" if is_missing(value) else f"PSNR {decimal(value)} dB"


def _sample(findings: Findings, cell: Cell) -> pd.DataFrame:
    """The measures of the shown image; no row where it was not measured yet.

    Classifiers: the first image of the run. Segmenters: the first one with foreground.
    """
    store, first = Store(findings.run), findings.models[0]
    if findings.record.task == "cls":
        block = store.input_path(first.view, cell, 0)
        if not block.is_file():
            return pd.DataFrame()
        return pd.read_parquet(block, partitioning=None).head(1)
    rows = store.masks(first.name, IDENTITY).head(TRIED)
    shown = pd.concat([rows[rows["tp"] + rows["fn"] > 0], rows])["image_id"].head(1)
    inputs = store.inputs(first.view, cell)
    return inputs[inputs["image_id"].isin(shown)]
