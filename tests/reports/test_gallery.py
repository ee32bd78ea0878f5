from pathlib import Path

import pytest
from PIL import Image

from robustcli.reports.findings import read_findings
from robustcli.reports.gallery import Gallery, draw_gallery
from robustcli.reports.measure import DICE
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.mask_runs import MaskPlan, build_masks


def names(gallery: Gallery) -> list[str]:
    kinds = (gallery.bars, gallery.overview, gallery.multiples, gallery.contact)
    return [Path(figure.path).stem for kind in kinds for figure in kind]


CASES = {
    "paper21": (paper21()[:4], ["best_and_worst", "all_transforms", "contact_sheet"]),
    "imagenet-c": (imagenet_c()[:5], ["best_and_worst", "severities", "contact_sheet_severities"]),
    "one severity": (
        imagenet_c(severities=(3,))[:3],
        ["best_and_worst", "all_transforms", "contact_sheet"],
    ),
    "both": (
        [*paper21()[:1], *paper21(1)[:1], *paper21(5)[:1]],
        [
            *("best_and_worst", "all_transforms", "severities", "contact_sheet"),
            "contact_sheet_severities",
        ],
    ),
    "identity alone": ([], []),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_has_the_pictures_that_its_cells_allow(tmp_path: Path, case: str) -> None:
    transforms, expected = CASES[case]
    build_run(tmp_path, RunPlan(transforms=(IDENTITY, *transforms), images=10))
    gallery = draw_gallery(read_findings(tmp_path))
    assert names(gallery) == expected
    for name in expected:
        with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
            assert picture.width > 200


def test_nothing_is_drawn_of_a_run_that_has_not_begun(tmp_path: Path) -> None:
    plan = RunPlan(transforms=(IDENTITY, *paper21()[:2]), done=0.0, samples=False)
    assert names(draw_gallery(read_findings(build_run(tmp_path, plan)))) == []


def test_captions_say_what_is_shown(tmp_path: Path) -> None:
    models = (model("a"), model("b"))
    plan = RunPlan(models=models, transforms=(IDENTITY, *imagenet_c()[:15]), images=10)
    gallery = draw_gallery(read_findings(build_run(tmp_path, plan)))
    assert gallery.bars[0].caption == (
        "The 2 best and the 1 worst transforms by top-1 averaged over the models, with 95 % Wilson "
        "intervals. A transform with severities is shown at its highest."
    )


def test_segmenters_have_the_same_pictures_of_dice(tmp_path: Path) -> None:
    cells = (IDENTITY, *paper21()[:2], *paper21(1)[:1], *paper21(5)[:1])
    gallery = draw_gallery(read_findings(build_masks(tmp_path, MaskPlan(transforms=cells))), DICE)
    assert names(gallery) == ["best_and_worst", "all_transforms", "severities"]
    assert gallery.overview[0].caption.startswith("Dice per transform with 95 % bootstrap")
    assert gallery.overview[0].caption.endswith("dashed: clean dice of each model.")
    assert "by dice averaged over the models" in gallery.bars[0].caption
    assert gallery.multiples[0].caption.startswith("Dice over severity with 95 % bootstrap")
