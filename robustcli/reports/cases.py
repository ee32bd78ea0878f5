"""The best, median and worst cases of a segmenter, read from what its evaluation left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustcli.core.names import file_name
from robustcli.evaluation.panel_record import Panel, read_panels
from robustcli.evaluation.record import MaskPreprocessingRecord, ModelRecord
from robustcli.reports.document import Figure
from robustcli.reports.figures.panels import Case, draw_panels
from robustcli.reports.findings import Findings
from robustcli.reports.numbers import fraction


def case_figures(
    findings: Findings, model: ModelRecord, into: Path, called: str
) -> tuple[Figure, ...]:
    """The picture of the cases of `model`, drawn into `into`/figures; none where none were kept.

    Args:
        findings: An evaluation of segmenters.
        model: One of its models.
        into: The directory of the report.
        called: How the report calls the model.
    """
    panels = [panel for panel in read_panels(findings.run) if panel.model == model.name]
    cases = [case for p in panels if (case := _case(findings.run, p, _threshold(model)))]
    if not cases:
        return ()
    path = f"figures/cases-{file_name(called)}.png"
    draw_panels(cases, into / path)
    return (Figure(path, _caption(model, called)),)


def _caption(model: ModelRecord, called: str) -> str:
    return (
        f"Untransformed images of {called} by dice, one image per group with foreground: the "
        f"best, the median and the worst, each with its id. Foreground is a probability of at "
        f"least {_threshold(model):.3g}."
    )


def _threshold(model: ModelRecord) -> float:
    assert isinstance(model.preprocessing, MaskPreprocessingRecord)
    return model.preprocessing.threshold


def _case(run: Path, panel: Panel, threshold: float) -> Case | None:
    """The case of `panel`; None where its pictures cannot be read any more."""
    folder = panel.folder(run)
    try:
        image = _pixels(folder / "image.png", "RGB")
        truth = _pixels(folder / "truth.png", "L") > 127
        prediction = _pixels(folder / "prediction.png", "L") / 255 >= threshold
    except OSError:
        return None
    title = f"{panel.rank} {panel.number}: dice {fraction(panel.dice)}, {panel.image_id}"
    return Case(title, image, truth, prediction)


def _pixels(path: Path, mode: str) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert(mode))
