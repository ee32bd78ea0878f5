""""""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustcli.evaluation.record import TransformRecord
from robustcli.evaluation.sessions import DeviceUse, Session, write_session
from robustcli.metrics.severity_scores import corruption_errors
from robustcli.reports.document import Mono, Strong
from robustcli.reports.evaluation_sections import (
    bold_note,
    breaking,
    cost,
    demonstration,
    images,
    opening,
    settings,
    severity,
    subset,
    value,
    value_range,
    value_table,
)
from robustcli.reports.findings import Findings, read_findings
from robustcli.reports.measure import DICE
from robustcli.tasks.record import DatasetRecord, ModelCost
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter
from tests.reports.told import NO_PICTURES, line_of, told


def test_a_value_and_its_interval_are_told_by_their_measure(tmp_path: Path) -> None:
    row = read_findings(build_masks(tmp_path)).table.iloc[0]
    assert value(row, DICE) == f"{row['dice']:.3f}"
    assert value_range(row, DICE, "-") == f"{row['dice_low']:.3f}-{row['dice_high']:.3f}"


def test_bold_is_explained_where_something_is_bold(tmp_path: Path) -> None:
    one = read_findings(build_masks(tmp_path / "a"))
    models = (segmenter("a"), segmenter("b"))
    two = read_findings(build_masks(tmp_path / "b", MaskPlan(models=models)))
    assert bold_note(one) == []
    assert "whether or not the difference is more than chance" in told(bold_note(two))
    assert told([value_table(two, DICE)]).count("**") == 2 * 7


@pytest.fixture
def run(tmp_path: Path) -> Path:
    build_run(tmp_path, RunPlan(models=(model("a"), model("b")), transforms=(IDENTITY,)))
    (tmp_path / "sessions" / "00000000.json").unlink()
    return tmp_path


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


def test_speed_per_model_and_what_the_device_did(run: Path) -> None:
    use = DeviceUse(peak_memory_bytes=3 * 2**30, utilisation_percent=87.25, energy_joules=7200)
    write_session(run, "a", session(use))
    page = told(cost(read_findings(run)))
    assert line_of(page, "`a`")[1:] == ["125.0", "5,000", "40.0"]
    assert line_of(page, "`b`")[1:] == ["\N{EN DASH}", "0", "0.0"]
    for fact in (
        "1 session, 100.0 s in all; the models waited for images 5.0 % of it.",
        "On NVIDIA H100, 8 threads, batch size 64.",
        "Peak device memory: 3.00 GiB.",
        "Mean device utilisation: 87.2 %.",
        "Energy of the device: 2.00 Wh.",
    ):
        assert f"- {fact}\n" in page


def test_what_was_not_measured_is_not_mentioned(run: Path) -> None:
    unknown = DeviceUse(peak_memory_bytes=2**30, utilisation_percent=None, energy_joules=None)
    write_session(run, "a", session(unknown))
    page = told(cost(read_findings(run)))
    assert "Peak device memory: 1.00 GiB." in page
    assert "utilisation" not in page
    assert "Energy" not in page
    write_session(run, "a", session(None))
    assert "Peak" not in told(cost(read_findings(run)))


def test_without_sessions_there_are_no_timings(run: Path) -> None:
    assert "No timings were recorded." in told(cost(read_findings(run)))


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


DATASET = DatasetRecord(
    name="roads", location="roads", label_space="foreground", classes=2, images=1500,
    images_available=1500, subset=None, demonstration=False, digest="",
)  # fmt: skip


def test_a_whole_set_of_its_own_needs_no_notice() -> None:
    assert demonstration(DATASET) == subset(DATASET) == []


def test_a_part_is_named_and_counted() -> None:
    part = DATASET.model_copy(update={"images_available": 2000, "subset": "part of `x`"})
    assert subset(part, "Part.") == [
        (Strong("Part."), " 1,500 of 2,000 images (part of ", Mono("x"), ").")
    ]
    unnamed = part.model_copy(update={"subset": None})
    assert subset(unnamed) == [(Strong("Subset."), " 1,500 of 2,000 images.")]


WHOLE = {"images_available": 60}


def page_opening(run: Path, **changes: Any) -> str:
    settings = {"transforms": (IDENTITY, *paper21()[:3]), "dataset": WHOLE, **changes}
    return told(opening(read_findings(build_run(run, RunPlan(**settings)))))


def test_the_title_says_what_was_measured(tmp_path: Path) -> None:
    text = page_opening(tmp_path, models=(model("a"), model("b")))
    expected = "# Top-1 accuracy of `a`, `b` under 3 transforms: `imagenet-val`, 60 images\n"
    assert text.startswith(expected)


def test_many_models_are_counted_not_listed(tmp_path: Path) -> None:
    assert "accuracy of 4 models under" in page_opening(tmp_path, models=[model(n) for n in "abcd"])


def test_a_finished_run_on_all_images_has_no_notices(tmp_path: Path) -> None:
    assert "**" not in page_opening(tmp_path)


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
    assert notice in page_opening(tmp_path, **changes)


def page_settings(run: Path, **changes: Any) -> str:
    cells = (IDENTITY, *paper21()[:1], *imagenet_c()[:1])
    plan = RunPlan(**{"transforms": cells, **changes})
    return told(settings(read_findings(build_run(run, plan))))


def test_parameters_are_shown_and_the_assumed_ones_marked(tmp_path: Path) -> None:
    text = page_settings(tmp_path)
    assert "Parameters assumed:" in text
    assert line_of(text, "`additive_gaussian_noise`") == [
        *("`additive_gaussian_noise`", "paper21"),
        *("`strength=[0.0, 0.5], per_channel=true`", "assumed"),
    ]
    assert line_of(text, "`c_gaussian_noise, severity 1`")[1:] == [
        *("imagenet-c", "`severity=1`", "given")
    ]


def test_without_assumed_parameters_none_are_claimed(tmp_path: Path) -> None:
    text = page_settings(tmp_path / "a", transforms=(IDENTITY, *imagenet_c()[:1]))
    assert "assumed" not in text
    assert "Transform parameters" not in page_settings(tmp_path / "b", transforms=(IDENTITY,))


@pytest.mark.parametrize(
    "fact",
    [
        "Images: `imagenet-val` at `photos/val`, 10 classes of label space `imagenet-1k`; "
        "60 of 50,000 images.",
        "Subset: 15 per class, seed 0.",
        f"Digest of the image list: `{'cd' * 32}`.",
        "Transforms act on the image after the model's own resize and crop (`--apply-at crop`).",
        "Seed: 7. Precision: bf16.",
    ],
)
def test_every_choice_is_stated(tmp_path: Path, fact: str) -> None:
    record = {"seed": 7, "precision": "bf16", "apply_at": "crop"}
    assert fact in page_settings(
        tmp_path, record=record, dataset={"subset": "15 per class, seed 0"}
    )


def test_models_are_described_so_that_they_can_be_found_again(tmp_path: Path) -> None:
    models = (
        model("a", arguments={"pad_type": "same"}, scan_backend="reference"),
        model("b", "imagenet-22k"),
        model("c", untrained=True, weights="", weights_sha256=""),
    )
    text = page_settings(tmp_path, models=models)
    assert line_of(text, "`a`")[1:] == [
        *('`a.in1k, pad_type="same"`', "89,000,000", "imagenet-1k", "reference"),
        *("`a.safetensors`", f"`{'ab' * 32}`"),
    ]
    assert line_of(text, "`b`")[3:5] == ["imagenet-22k", "none"]
    assert line_of(text, "`c`")[3:] == ["untrained", "none", "none", "none"]
    inputs = text.split("| model")[2]
    assert line_of(inputs, "`a`")[1:] == [
        *("256 px", "224 px", "center", "bicubic", "0.5, 0.5, 0.5", "0.5, 0.5, 0.5")
    ]


def test_the_run_can_be_repeated(tmp_path: Path) -> None:
    text = page_settings(tmp_path)
    command = "robust eval --model vmamba-b --data photos/val --transform paper21 --seed 0"
    assert f"```text\n{command}\n```" in text
    assert "Versions: imgaug 0.4.2, python 3.11.2, robustcli 0.1.0, torch 2.6.0." in text
    assert "Device: cpu (2 threads)." in text


def findings(run: Path, cells: list[TransformRecord], images: int = 30) -> Findings:
    plan = RunPlan(models=(model("a"), model("b")), transforms=(IDENTITY, *cells), images=images)
    return read_findings(build_run(run, plan))


def test_a_run_without_scales_has_no_such_section(tmp_path: Path) -> None:
    assert severity(findings(tmp_path, paper21()[:2]), NO_PICTURES) == []


def test_breaking_points_are_the_first_severity_below_half(tmp_path: Path) -> None:
    found = findings(tmp_path, imagenet_c()[:10])
    page = told(severity(found, NO_PICTURES))
    for name in ("c_gaussian_noise", "c_shot_noise"):
        expected = []
        for entry in "ab":
            rows = found.of_model(entry)
            clean = rows["top1"].iloc[0]
            steps = rows[rows["transform"] == name]
            below = steps.loc[steps["top1"] < clean / 2, "severity"]
            expected.append("> 5" if below.empty else str(below.min()))
        assert line_of(page, f"`{name}`")[1:] == expected
    assert "mCE" not in page


def test_a_model_without_its_cells_leaves_a_gap_and_moves_nobody(tmp_path: Path) -> None:
    findings(tmp_path, imagenet_c()[:5])
    for file in tmp_path.glob("predictions/model=a/transform=c_*/severity=*/*.parquet"):
        file.unlink()
    page = told(severity(read_findings(tmp_path), NO_PICTURES))
    gap, there = line_of(page, "`c_gaussian_noise`")[1:]
    assert gap == "\N{EN DASH}"
    assert there != gap


def test_corruption_errors_follow_when_the_benchmark_is_complete(tmp_path: Path) -> None:
    found = findings(tmp_path, imagenet_c(), images=10)
    page = told(severity(found, NO_PICTURES)).split("corruption errors")[1]
    first, second = corruption_errors(
        found.table,
        label_space=found.record.dataset.label_space,
        families={t.name: t.family for t in found.record.transforms},
    )
    assert line_of(page, "mCE")[1:] == [f"{100 * first.mce:.1f}", f"{100 * second.mce:.1f}"]
    assert line_of(page, "relative")[1] == f"{100 * first.relative_mce:.1f}"
    assert line_of(page, "`fog`")[2] == f"{100 * second.by_corruption['fog']:.1f}"


def test_segmenters_break_where_less_than_half_of_their_dice_is_left(tmp_path: Path) -> None:
    cells = (IDENTITY, *(cell for step in (1, 2, 5) for cell in paper21(step)[:1]))
    found = read_findings(build_masks(tmp_path, MaskPlan(transforms=cells)))
    page = told(breaking(found, NO_PICTURES, DICE, "Dice over severity"))
    rows = found.table
    below = rows.loc[rows["dice"] < rows["dice"].iloc[0] / 2, "severity"]
    assert line_of(page, "`additive_gaussian_noise`")[1] == str(below.min())
    assert page.startswith("## Dice over severity")
    assert "keeps less than half of its clean dice;" in page
