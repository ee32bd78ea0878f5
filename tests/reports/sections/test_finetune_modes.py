from dataclasses import replace
from pathlib import Path

import pytest

from robustcli.reports.document import Figure
from robustcli.reports.finetuning import read_finetuning
from robustcli.reports.finetuning_gallery import FinetuningGallery
from robustcli.reports.sections.finetune_modes import COSTS, modes
from robustcli.reports.sections.relaxed import RELAXED, relaxed_cells
from tests.reports.finetune_runs import ROADS, FinetunePlan, build_finetuning
from tests.reports.sections.told import line_of, told

GALLERY = FinetuningGallery(modes=(Figure("figures/modes.png", "Curves."),))


def section(run: Path, plan: FinetunePlan) -> str:
    return told(modes(read_finetuning(build_finetuning(run, plan)), GALLERY))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run in which everything is there."""
    return section(tmp_path_factory.mktemp("run"), FinetunePlan())


def test_modes_stand_beside_otsu(complete: str) -> None:
    assert line_of(complete, "mode ") == ["mode", "dice", "IoU", "dice minus full", "p"]
    assert "elaxed" not in complete
    full, freeze, otsu = (line_of(complete, f"`{name}`") for name in ("full", "freeze", "otsu"))
    assert full[3:] == ["\N{EN DASH}", "\N{EN DASH}"]
    assert freeze[3].startswith("-0.004 (-0.0")
    assert freeze[4] == "0.016"
    assert otsu[1].startswith("0.643 (")
    assert "![Curves.](figures/modes.png)" in complete


def test_what_each_mode_cost_is_in_a_table(complete: str) -> None:
    page = complete.split("### What each mode cost")[1].split("###")[0]
    assert line_of(page, "mode ") == list(COSTS)
    assert line_of(page, "`freeze`") == [
        *("`freeze`", "4.17", "0.240 s (0.237 s\N{EN DASH}0.243 s)", "198,912", "1,088"),
        *("0.796 MB", "699 MiB", "23.0 s", "6"),
    ]


def test_what_is_not_known_yet_is_a_dash(tmp_path: Path) -> None:
    page = section(tmp_path, FinetunePlan(modes=("full", "freeze"), unmeasured=("freeze",)))
    assert line_of(page, "`freeze`")[1:] == ["\N{EN DASH}"] * 4
    costs = line_of(page.split("What each mode cost")[1], "`freeze`")
    assert costs[1:7] == ["\N{EN DASH}"] * 6
    assert costs[-1] == "2"


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (FinetunePlan(modes=()), ""),
        (FinetunePlan(modes=("full",), waiting=("full",)), "None has begun yet."),
    ],
)
def test_without_a_mode_there_is_no_table(tmp_path: Path, plan: FinetunePlan, words: str) -> None:
    page = section(tmp_path, plan)
    assert words in page
    assert "|" not in page


def test_memory_that_nobody_measured_is_a_dash(tmp_path: Path) -> None:
    run = build_finetuning(tmp_path, FinetunePlan(modes=("full",)))
    costs = run / "full" / "costs.json"
    costs.write_text('{"trainable": 5, "optimizer_bytes": 20, "peak_memory_bytes": null}')
    page = told(modes(read_finetuning(run), GALLERY))
    assert line_of(page.split("What each mode cost")[1], "`full`")[6] == "\N{EN DASH}"


def test_of_roads_the_relaxed_numbers_stand_beside_dice_and_iou(tmp_path: Path) -> None:
    found = read_finetuning(build_finetuning(tmp_path, replace(ROADS, unmeasured=("scratch",))))
    page = told(modes(found, GALLERY))
    assert line_of(page, "mode ") == [*("mode", "dice", "IoU", *RELAXED, "dice minus full", "p")]
    freeze = found.of("freeze")
    assert freeze is not None
    assert freeze.training.test is not None
    shown = [str(cell[0]) for cell in relaxed_cells(freeze.training.test.numbers)]
    assert line_of(page, "`freeze`")[3:5] == shown
    assert line_of(page, "`freeze`")[5].startswith("-0.004 (")
    assert line_of(page, "`scratch`")[1:] == ["\N{EN DASH}"] * 6
    assert len(line_of(page, "`otsu`")) == 7
    assert "within 3 pixels of a true one" in page
