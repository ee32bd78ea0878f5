from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from robustcli.evaluation.record import MaskPreprocessingRecord
from robustcli.reports import cases
from robustcli.reports.cases import case_figures
from robustcli.reports.figures.panels import Case
from robustcli.reports.findings import read_findings
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    found: list[Case] = []
    monkeypatch.setattr(cases, "draw_panels", lambda shown, path: found.extend(shown))
    return found


def test_each_panel_is_a_case_with_its_rank_dice_and_id(tmp_path: Path, drawn: list[Case]) -> None:
    findings = read_findings(build_masks(tmp_path))
    (figure,) = case_figures(findings, findings.models[0], tmp_path, "ulvm_v5")
    assert figure.path == "figures/cases-ulvm_v5.png"
    assert [case.title for case in drawn] == [
        "best 1: dice 0.900, p00/slice-0000.tif",
        "median 1: dice 0.600, p01/slice-0001.tif",
        "worst 1: dice 0.300, p02/slice-0002.tif",
    ]
    first, second = drawn[:2]
    assert (first.truth == first.prediction).all()
    assert (second.truth != second.prediction).any()
    assert first.image.shape == (48, 64, 3)


def test_the_models_own_threshold_makes_the_mask(tmp_path: Path, drawn: list[Case]) -> None:
    strict = MaskPreprocessingRecord(window=128, channels="rgb", threshold=0.95, overlap=0.5)
    plan = MaskPlan(models=(segmenter("a"), segmenter("b", preprocessing=strict)))
    findings = read_findings(build_masks(tmp_path, plan))
    for model in findings.models:
        case_figures(findings, model, tmp_path, model.name)
    # The pictures say 230 / 255 = 0.902.
    assert [case.prediction.any() for case in drawn] == [True] * 3 + [False] * 3


def test_pictures_that_are_gone_are_left_out(tmp_path: Path, drawn: list[Case]) -> None:
    findings = read_findings(build_masks(tmp_path))
    (tmp_path / "panels/ulvm_v5/best-1/truth.png").unlink()
    (tmp_path / "panels/ulvm_v5/worst-1/image.png").write_bytes(b"no picture")
    assert case_figures(findings, findings.models[0], tmp_path, "a")
    assert [case.title[:6] for case in drawn] == ["median"]


def test_without_panels_there_is_no_figure(tmp_path: Path) -> None:
    findings = read_findings(build_masks(tmp_path, replace(MaskPlan(), panels=False)))
    assert case_figures(findings, findings.models[0], tmp_path, "a") == ()
    assert not (tmp_path / "figures").exists()


def test_a_name_with_a_slash_is_a_file_name(tmp_path: Path) -> None:
    models = (segmenter("smp:Unet/resnet34"),)
    findings = read_findings(build_masks(tmp_path, MaskPlan(models=models)))
    (figure,) = case_figures(findings, models[0], tmp_path, "smp:Unet/resnet34")
    with Image.open(tmp_path / figure.path) as picture:
        assert picture.width > 600
