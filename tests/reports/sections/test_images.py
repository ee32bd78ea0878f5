from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustcli.reports.findings import read_findings
from robustcli.reports.sections.images import images
from tests.builders import IDENTITY, RunPlan, build_run, model, paper21
from tests.reports.sections.told import NO_PICTURES, line_of, told

CELLS = (IDENTITY, *paper21()[:5])


def page(run: Path, **changes: Any) -> str:
    findings = read_findings(build_run(run, RunPlan(**{"transforms": CELLS, **changes})))
    return told(images(findings, NO_PICTURES))


def test_changes_are_a_share_and_a_psnr(tmp_path: Path) -> None:
    text = page(tmp_path)
    for cell in CELLS:
        files = tmp_path.glob(f"inputs/*/transform={cell.name}/severity=0/*.parquet")
        rows = pd.concat(pd.read_parquet(file, partitioning=None) for file in files)
        changed = rows[rows["changed"]]
        psnr = f"{changed['psnr_db'].mean():.1f}" if len(changed) else "\N{EN DASH}"
        unchanged = f"{100 * (1 - len(changed) / len(rows)):.1f}"
        assert line_of(text, f"`{cell.name}`")[1:] == [unchanged, psnr]


def test_models_that_see_other_images_have_columns_of_their_own(tmp_path: Path) -> None:
    text = page(tmp_path, models=(model("a"), model("b", view="r224"), model("c")))
    assert line_of(text, "transform") == [
        *("transform", "unchanged % (r256c224)", "PSNR dB (r256c224)"),
        *("unchanged % (r224)", "PSNR dB (r224)"),
    ]


def test_a_run_without_samples_says_so(tmp_path: Path) -> None:
    assert "No contact sheet: the run holds no samples of transformed photos." in page(tmp_path)


@pytest.mark.parametrize(
    ("count", "intro", "listed"),
    [
        (0, "None: every image could be read.", 0),
        (1, "1 image of 60 could not be read: left out of every number.\n", 1),
        (12, "12 images of 60 could not be read: left out of every number. The first 10:", 10),
    ],
)
def test_skipped_images_are_counted_and_the_first_are_listed(
    tmp_path: Path, count: int, intro: str, listed: int
) -> None:
    skipped = [(f"class-{i % 10:02d}/photo-{i:05d}.jpeg", "truncated") for i in range(count)]
    text = page(tmp_path, skipped=skipped)
    assert intro in text
    assert text.count("jpeg`: truncated") == listed
