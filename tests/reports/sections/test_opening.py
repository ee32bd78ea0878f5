from pathlib import Path
from typing import Any

import pytest

from robustcli.reports.findings import read_findings
from robustcli.reports.sections.opening import opening
from tests.builders import IDENTITY, RunPlan, build_run, model, paper21
from tests.reports.sections.told import told

WHOLE = {"images_available": 60}


def page(run: Path, **changes: Any) -> str:
    settings = {"transforms": (IDENTITY, *paper21()[:3]), "dataset": WHOLE, **changes}
    return told(opening(read_findings(build_run(run, RunPlan(**settings)))))


def test_the_title_says_what_was_measured(tmp_path: Path) -> None:
    text = page(tmp_path, models=(model("a"), model("b")))
    expected = "# Top-1 accuracy of `a`, `b` under 3 transforms: `imagenet-val`, 60 images\n"
    assert text.startswith(expected)


def test_many_models_are_counted_not_listed(tmp_path: Path) -> None:
    assert "accuracy of 4 models under" in page(tmp_path, models=[model(n) for n in "abcd"])


def test_a_finished_run_on_all_images_has_no_notices(tmp_path: Path) -> None:
    assert "**" not in page(tmp_path)


@pytest.mark.parametrize(
    ("changes", "notice"),
    [
        ({"dataset": {**WHOLE, "demonstration": True}}, "**Demonstration set.** `imagenet-val` is"),
        (
            {"dataset": {"images_available": 50000, "subset": "15 per class, seed 0"}},
            "**Subset.** 60 of 50,000 images (15 per class, seed 0).",
        ),
        (
            {"done": 0.5, "record": {"status": "partial"}},
            "**Partial run.** 120 of 240 predictions are missing: 4 of 4 cells lack images "
            "(status: partial).",
        ),
        (
            {"models": (model("a"), model("pico", untrained=True))},
            "**Untrained model.** Random weights, evaluated on request: `pico`.",
        ),
        (
            {"models": (model("a"), model("b", "imagenet-22k"))},
            "from the data and not from the architecture: `a` (imagenet-1k), `b` (imagenet-22k).",
        ),
    ],
)
def test_what_limits_the_numbers_is_said_first(
    tmp_path: Path, changes: dict[str, object], notice: str
) -> None:
    assert notice in page(tmp_path, **changes)
