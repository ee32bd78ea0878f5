from pathlib import Path

import pytest

from robustcli.evaluation.record import MaskPreprocessingRecord
from robustcli.reports.findings import read_findings
from robustcli.reports.sections.mask_settings import mask_settings
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter
from tests.reports.sections.told import line_of, told


def page(run: Path, plan: MaskPlan) -> str:
    return told(mask_settings(read_findings(build_masks(run, plan))))


@pytest.mark.parametrize(
    "fact",
    [
        "Images: `kaggle_3m` at `lgg/kaggle_3m`; 24 of 24 images.",
        "Part of the data: the part that was held out. Subset: test part of `a`.",
        "A group is one patient: dice is pooled within it",
        f"Digest of the image list: `{'cd' * 32}`.",
        "Seed: 7. Precision: bf16.",
        "```text\nrobust eval --model ulvm_v5 --data lgg/kaggle_3m --transform paper21\n```",
        "Versions: robust 0.1.0, torch 2.6.0. Device: cpu (2 threads).",
    ],
)
def test_every_choice_is_stated(tmp_path: Path, fact: str) -> None:
    record = {"seed": 7, "precision": "bf16", "split": "test"}
    plan = MaskPlan(record=record, dataset={"subset": "test part of `a`"})
    assert fact in page(tmp_path, plan)


def test_how_each_model_sees_an_image_is_stated(tmp_path: Path) -> None:
    whole = MaskPreprocessingRecord(window=0, channels="bgr", threshold=0.62246, overlap=0.25)
    models = (segmenter("a"), segmenter("b", preprocessing=whole))
    inputs = page(tmp_path, MaskPlan(models=models)).split("| model")[2]
    assert line_of(inputs, "`a`")[1:] == ["128 px", "rgb", "probability 0.5", "50 %"]
    assert line_of(inputs, "`b`")[1:] == [
        *("none: the whole image", "bgr", "probability 0.6225", "25 %")
    ]


def test_the_source_of_the_relaxed_numbers_is_told_of_roads_only(tmp_path: Path) -> None:
    roads = MaskPlan(dataset={"tolerance": 3})
    assert "Relaxed precision and recall: 3 pixels, as V. Mnih" in page(tmp_path / "a", roads)
    assert "Relaxed" not in page(tmp_path / "b", MaskPlan())
