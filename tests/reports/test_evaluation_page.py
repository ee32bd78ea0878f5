"""Pages of evaluations: numbers, limitations, and omitted sections."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from robustcli.evaluation.cell_table import table
from robustcli.evaluation.record import EVALUATION, DeviceUse, Session, write_session
from robustcli.nnunet.normalisation import Channel, NnUNetInference
from robustcli.reports.evaluation_page import evaluation_report, evaluation_summary, evaluation_text
from robustcli.reports.findings import Findings, read_findings
from robustcli.reports.latex import evaluation_tables
from robustcli.tasks.record import MaskPreprocessingRecord, ModelCost
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.mask_runs import UNUSUAL_MASKS, MaskPlan, build_masks, segmenter
from tests.reports.page_parts import assert_golden, assert_states, introduction, line_of, section

pytestmark = pytest.mark.usefixtures("blank_figures")

DASH = "\N{EN DASH}"
CELLS = (IDENTITY, *paper21()[:4], *paper21(5)[:1])
SEGMENTERS = (segmenter("a"), segmenter("b"))


def findings(run: Path, **changes: Any) -> Findings:
    settings = {"models": (model("a"), model("b")), "transforms": CELLS, **changes}
    return read_findings(build_run(run, RunPlan(**settings)))


def page(run: Path, **changes: Any) -> str:
    return evaluation_text(findings(run, **changes))


def mask_findings(run: Path, **changes: Any) -> Findings:
    return read_findings(build_masks(run, MaskPlan(**{"models": SEGMENTERS, **changes})))


def mask_page(run: Path, **changes: Any) -> str:
    return evaluation_text(mask_findings(run, **changes))


def test_the_page_of_classifiers(tmp_path: Path) -> None:
    cells = (IDENTITY, *paper21()[:3], *imagenet_c()[:5])
    run = build_run(tmp_path, RunPlan(models=(model("a"), model("b")), transforms=cells))
    page = evaluation_report(run)
    assert_golden(page.markdown, "classification")
    assert page.results.equals(table(run))


def test_seven_models_on_one_image_have_no_probabilities_of_ranks(tmp_path: Path) -> None:
    models = [model(f"m{number}") for number in range(7)]
    text = page(tmp_path, models=models, images=1)
    line = line_of(section(text, "Ranking by the mean"), "`m6`")
    assert len(line) == 2, "the model and its mean"


def test_the_page_of_segmenters(tmp_path: Path) -> None:
    cells = (IDENTITY, *paper21()[:2], *paper21(1)[:1], *paper21(5)[:1])
    plan = MaskPlan(models=SEGMENTERS, transforms=cells, dataset={"tolerance": 3})
    page = evaluation_report(build_masks(tmp_path, plan))
    assert_golden(page.markdown, "segmentation")
    assert page.results.equals(table(tmp_path))
    assert all((tmp_path / f"figures/cases-{name}.png").is_file() for name in "ab")


# Numbers that the complete pages do not show.


def test_unfinished_cells_say_how_many_images_they_have(tmp_path: Path) -> None:
    findings(tmp_path)
    next(tmp_path.glob("predictions/model=a/transform=affine/*/block-000001.parquet")).unlink()
    for file in tmp_path.glob("predictions/model=a/transform=crop/*/*.parquet"):
        file.unlink()
    page = evaluation_text(read_findings(tmp_path))
    top1 = section(page, "Top-1 accuracy in")
    assert line_of(top1, "`affine`")[1].endswith("), n = 32")
    assert line_of(top1, "`crop`")[1] == "not yet"
    assert line_of(section(page, "Drop in"), "`crop`")[1] == "not yet"


def test_unfinished_cells_of_segmenters_say_so(tmp_path: Path) -> None:
    build_masks(tmp_path, MaskPlan(transforms=(IDENTITY, *paper21()[:3])))
    for file in tmp_path.glob("predictions/*/transform=crop/*/*.parquet"):
        file.unlink()
    page = evaluation_text(read_findings(tmp_path))
    assert line_of(section(page, "### Dice"), "`crop`")[1] == "not yet"
    assert line_of(section(page, "Drop in"), "`crop`")[1] == "not yet"


# Limitations and sources of the numbers.


ALL_IMAGES = {"images_available": 60}
FEW_CELLS = {"transforms": CELLS[:3], "dataset": ALL_IMAGES}
"""A finished run on all images, which has no notices."""
MODELS = (
    model("a", arguments={"pad_type": "same"}, scan_backend="reference"),
    model("b", "imagenet-22k", view="r224"),
    model("c", untrained=True, weights="", weights_sha256=""),
)


def skipped(count: int) -> list[tuple[str, str]]:
    return [(f"class-{i % 10:02d}/photo-{i:05d}.jpeg", "truncated") for i in range(count)]


def text_outside_tables(page: str) -> str:
    """Returns the text of a page outside of its numbers."""
    return f"{introduction(page)}\n{page[page.index('## Skipped images') :]}"


def test_the_pages_of_classifiers_in_other_states(tmp_path: Path) -> None:
    subset = {"images_available": 50000, "subset": "part of `x`, seed 0"}
    settings = {"seed": 7, "precision": "bf16", "apply_at": "crop"}
    states: dict[str, dict[str, object]] = {
        "a demonstration set": {"dataset": {**ALL_IMAGES, "demonstration": True}},
        "a subset": {"dataset": subset},
        "held-out images": {"dataset": subset, "record": {"split": "test"}},
        "half of the images": {"done": 0.5, "record": {"status": "partial"}},
        "one model": {"models": (model("a"),)},
        "four models": {"models": [model(name) for name in "abcd"]},
        "models of several kinds": {"models": MODELS},
        "clean images alone": {"transforms": (IDENTITY,)},
        "no parameters are assumed": {"transforms": (IDENTITY, *imagenet_c()[:1])},
        "one image was skipped": {"skipped": skipped(1)},
        "twelve images were skipped": {"skipped": skipped(12)},
        "other settings": {"record": settings},
    }
    pages = {
        name: text_outside_tables(page(tmp_path / str(n), **{**FEW_CELLS, **changes}))
        for n, (name, changes) in enumerate(states.items())
    }
    complete = page(tmp_path / "complete", **FEW_CELLS)
    assert "**" not in introduction(complete)
    assert_states(text_outside_tables(complete), pages, "classification-states")


def test_nothing_is_bold_for_one_model(tmp_path: Path) -> None:
    page_of_one = page(tmp_path, models=(model("a"),), dataset=ALL_IMAGES)
    assert "**" not in page_of_one
    assert "Bold" not in page_of_one


def test_no_best_value_is_bold_while_another_model_lacks_images(tmp_path: Path) -> None:
    build_run(tmp_path, RunPlan(models=MODELS[:2], transforms=CELLS[:3], images=64))
    for block in (tmp_path / "predictions" / "model=b").glob("transform=affine/*/*-000001.parquet"):
        block.unlink()
    EVALUATION.update(tmp_path, status="partial")
    lines = {
        line.split("`")[1]: line
        for line in section(evaluation_report(tmp_path).markdown, "Top-1 accuracy in").splitlines()
        if line.startswith("| `")
    }
    assert "n = 32" in lines["affine"]
    assert ["**" in lines[name] for name in ("identity", "affine")] == [True, False]
    latex = evaluation_tables(tmp_path).splitlines()
    bold = {line.split("}")[0]: "textbf" in line for line in latex if line.startswith(r"\texttt")}
    assert (bold[r"\texttt{identity"], bold[r"\texttt{affine"]) == (True, False)


def test_the_pages_of_segmenters_in_other_states(tmp_path: Path) -> None:
    preprocessing = MaskPreprocessingRecord(
        window=0, channels="bgr", threshold=0.62246, overlap=0.25
    )
    channel = Channel(scheme="zscore")
    peer = MaskPreprocessingRecord(
        window=64, channels="rgb", threshold=0.5, overlap=0.5,
        nnunet=NnUNetInference(channels=(channel, channel), mirror_axes=(0, 1)),
    )  # fmt: skip
    models = (segmenter("a", preprocessing=preprocessing), segmenter("b", preprocessing=peer))
    dataset = {"images_available": 194, "subset": "test part of `ulvm_v5`"}
    states: dict[str, dict[str, object]] = {
        "a demonstration set": {"dataset": {"demonstration": True}},
        "held-out images": {"dataset": dataset, "record": {"split": "test"}},
        "a subset": {"dataset": {"images_available": 99}},
        "it still runs": {"record": {"status": "running"}},
        "one model, untrained": {"models": (segmenter("a", untrained=True),)},
        "one group": {"groups": 1},
        "mixed pretraining": {"models": (SEGMENTERS[0], segmenter("b", pretraining="other data"))},
        "notes on the models": {
            "models": (
                segmenter("a", notes=["`a` converts colour images to greyscale.", "1 < 2 | 3"]),
                segmenter("b", notes=["1 < 2 | 3"]),
            )
        },
        "a baseline that learned nothing": {
            "models": (SEGMENTERS[0], segmenter("otsu", parameters=0, pretraining="none"))
        },
        "clean images alone, no cases": {"transforms": (IDENTITY,), "panels": False},
        "models that see images differently": {"models": models},
        "other settings": {
            "record": {"seed": 7, "precision": "bf16"},
            "dataset": {"masks": UNUSUAL_MASKS, "tolerance": 3},
        },
    }  # fmt: skip
    pages = {
        name: mask_page(tmp_path / str(n), **{"transforms": CELLS[:3], **changes})
        for n, (name, changes) in enumerate(states.items())
    }
    complete = mask_page(tmp_path / "complete", transforms=CELLS[:3])
    assert "**" not in introduction(complete)
    assert_states(complete, pages, "segmentation-states")


# Severity at which a model breaks.


def test_too_few_groups_have_no_brackets_for_their_intervals(tmp_path: Path) -> None:
    models = (segmenter("a"), segmenter("b"))
    run = build_masks(tmp_path, MaskPlan(models, (IDENTITY, paper21()[0]), images=4, groups=2))
    findings = read_findings(run)
    tables = evaluation_tables(run)
    for text in (evaluation_text(findings), evaluation_summary(findings), tables):
        assert not re.search(r"\((\N{EN DASH}|-+)\)", text)
    assert "$n = 4$ images, over 2 patients, without intervals." in tables


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ({"empty_every": 1}, "None: no image has foreground."),
        ({"done": 0.5}, "None yet: they are drawn when all images are evaluated."),
        ({}, "None: the run contains no pictures of untransformed images."),
    ],
)
def test_missing_cases_have_their_reason(tmp_path: Path, plan: dict[str, Any], reason: str) -> None:
    run = build_masks(tmp_path, MaskPlan(transforms=(IDENTITY,), panels=False, **plan))
    assert section(evaluation_text(read_findings(run)), "worst cases").strip() == reason


def test_a_run_without_scales_and_samples_has_no_such_sections(tmp_path: Path) -> None:
    text = page(tmp_path, transforms=CELLS[:3])
    assert "over severity" not in text
    assert "No contact sheet: the run contains no samples" in text


def test_a_model_without_its_cells_leaves_a_gap_and_moves_nobody(tmp_path: Path) -> None:
    findings(tmp_path, transforms=(IDENTITY, *imagenet_c()[:5]))
    for file in tmp_path.glob("predictions/model=a/transform=c_*/severity=*/*.parquet"):
        file.unlink()
    points = section(evaluation_text(read_findings(tmp_path)), "Breaking points")
    gap, original = line_of(points, "`c_gaussian_noise`")[1:]
    assert gap == DASH
    assert original != gap


def test_corruption_errors_follow_when_the_benchmark_is_complete(tmp_path: Path) -> None:
    cells = (IDENTITY, *imagenet_c()[:75])
    result = findings(tmp_path, models=(model("a"),), transforms=cells, images=10)
    page = section(evaluation_text(result), "corruption errors")
    (errors,) = result.corruption_errors
    assert line_of(page, "mCE")[1:] == [f"{100 * errors.mce:.1f}"]
    assert line_of(page, "relative")[1] == f"{100 * errors.relative_mce:.1f}"
    assert line_of(page, "`fog`")[1] == f"{100 * errors.by_corruption['fog']:.1f}"
    for easier in ({"answers": [0, 1, 2]}, {"several_labels": True}):  # AlexNet had neither
        data = result.record.dataset.model_copy(update=easier)
        record = result.record.model_copy(update={"dataset": data})
        assert replace(result, record=record).corruption_errors == []


# Images and costs of the run.


def session(use: DeviceUse | None) -> Session:
    return Session(
        started=datetime(2025, 1, 1, tzinfo=UTC),
        seconds=100,
        waiting_seconds=5,
        device="NVIDIA H100",
        threads=8,
        batch_size=64,
        models={"a": ModelCost(images=5000, seconds=40)},
        device_use=use,
    )


def test_speed_per_model_and_what_the_device_did(tmp_path: Path) -> None:
    result = findings(tmp_path, transforms=(IDENTITY,))
    (tmp_path / "sessions" / "00000000.json").unlink()
    assert "No timings were recorded." in evaluation_text(read_findings(tmp_path))
    use = DeviceUse(peak_memory_bytes=3 * 2**30, utilisation_percent=87.25, energy_joules=7200)
    write_session(tmp_path, "a", session(use))
    result = read_findings(tmp_path)
    speed = section(evaluation_text(result), "Speed")
    assert line_of(speed, "`a`")[1:] == ["125.0", "5,000", "40.0"]
    assert line_of(speed, "`b`")[1:] == [DASH, "0", "0.0"]
    for sentence in (
        "1 session, 100.0 s in total; the models waited for images during 5.0 % of this time.",
        "On NVIDIA H100, 8 threads, batch size 64.",
        "Peak device memory: 3.00 GiB.",
        "Mean device utilisation: 87.2 %.",
        "Energy of the device: 2.00 Wh.",
    ):
        assert f"- {sentence}\n" in speed
    # Omitted sections.
    unknown = DeviceUse(peak_memory_bytes=2**30, utilisation_percent=None, energy_joules=None)
    write_session(tmp_path, "a", session(unknown))
    speed = section(evaluation_text(read_findings(tmp_path)), "Speed")
    assert "Peak device memory: 1.00 GiB." in speed
    assert "utilisation" not in speed
    assert "Energy" not in speed
    write_session(tmp_path, "a", session(None))
    assert "Peak" not in evaluation_text(read_findings(tmp_path))


@pytest.mark.parametrize(("groups", "warned"), [(1, False), (5, True), (20, False)])
def test_intervals_over_few_groups_are_called_too_narrow(
    tmp_path: Path, groups: int, warned: bool
) -> None:
    page = mask_page(tmp_path, images=20, groups=groups)
    assert ("tend to be too narrow" in page) is warned
