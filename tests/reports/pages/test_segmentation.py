from pathlib import Path

from robustcli.evaluation.metrics import table
from robustcli.reports.document import Figure
from robustcli.reports.pages.segmentation import segmentation
from tests.builders import IDENTITY, paper21
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter
from tests.reports.pages.headings import sections


def test_the_sections_stand_in_their_order(tmp_path: Path) -> None:
    cells = (IDENTITY, *paper21(1)[:1], *paper21(5)[:1])
    models = (segmenter("a"), segmenter("b"))
    page = segmentation(build_masks(tmp_path, MaskPlan(models=models, transforms=cells)))
    assert sections(page) == [
        *("Best and worst transforms", "All transforms", "Dice over severity"),
        *("Best, median and worst cases", "What the transforms do", "Skipped images", "Speed"),
        *("Assumptions and settings", "Models", "How to repeat it"),
    ]
    assert page.results.equals(table(tmp_path))
    figures = [block.path for block in page.document.blocks if isinstance(block, Figure)]
    assert {"figures/cases-a.png", "figures/cases-b.png"} <= set(figures)
    assert all((tmp_path / figure).is_file() for figure in figures)
