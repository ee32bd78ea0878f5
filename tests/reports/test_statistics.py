"""Statistics of reports: verdicts, calibration, classes, photos, published accuracy."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from scipy import stats
from sklearn.metrics import brier_score_loss, confusion_matrix

from robustcli.adapters.catalogue import CATALOGUE, IN1K
from robustcli.data.dataset import FileRef, contents_digest
from robustcli.evaluation.cell_table import table_and_rows
from robustcli.evaluation.record import EVALUATION
from robustcli.evaluation.store import Store, write_rows
from robustcli.metrics.columns import PREDICTION_SCHEMA
from robustcli.metrics.verdicts import holm
from robustcli.reports import evaluation_page
from robustcli.reports.evaluation_page import (
    Gallery,
    draw_gallery,
    evaluation_text,
    images_of,
)
from robustcli.reports.findings import Findings, read_findings
from robustcli.reports.pages import Page
from robustcli.reports.render import report_page
from robustcli.reports.statistics import _answers_by_image
from robustcli.tasks.record import ModelRecord
from robustcli.transforms.base import Cell
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21, run_record
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter
from tests.reports.page_parts import line_of, section

pytestmark = pytest.mark.usefixtures("blank_figures")

MODELS = (model("a"), model("b"))
FOG, SNOW = paper21()[:2]


def run_of(
    run: Path,
    predictions: Mapping[str, Sequence[Sequence[int]]],
    targets: Sequence[int],
    ids: Sequence[str] | None = None,
    models: Sequence[ModelRecord] = (),
    **dataset: Any,
) -> Path:
    """Writes a run with predictions per model, under identity, then under FOG, SNOW, ..."""
    cells = (IDENTITY, *paper21())[: len(next(iter(predictions.values())))]
    plan = RunPlan(models=models or [model(name) for name in predictions], transforms=cells)
    plan = replace(plan, images=len(targets), dataset=dataset)
    EVALUATION.write(run, run_record(plan))
    ids = ids or [f"photos/{n:04}.jpg" for n in range(len(targets))]
    for name, predictions_of_model in predictions.items():
        for transform, values in zip(cells, predictions_of_model, strict=True):
            rows = [_row(i, t, p) for i, t, p in zip(ids, targets, values, strict=True)]
            path = Store(run).prediction_path(name, Cell(transform.name, transform.severity), 0)
            write_rows(path, rows, PREDICTION_SCHEMA)
    return run


def _row(image_id: str, target: int, prediction: int) -> dict[str, object]:
    probability = 0.9 if target == prediction else 0.6
    row = {"image_id": image_id, "target": target, "prediction": prediction, "top5": [prediction]}
    target_probability = probability if target == prediction else 0.1
    return row | {"probability": probability, "target_probability": target_probability}


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_page, "draw_gallery", lambda *_: Gallery())
        yield


def statistics_of(page: Page) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(page.files["statistics.json"])
    return document


# Verdicts.


def better_run(run: Path) -> Path:
    """Writes 40 images: `a` is right on 36 / 36 / 20, `b` on 20 / 35 / 34."""
    hits = {"a": (36, 36, 20), "b": (20, 35, 34)}
    predictions = {m: [[1] * k + [0] * (40 - k) for k in counts] for m, counts in hits.items()}
    return run_of(run, predictions, [1] * 40)


def test_verdicts_are_mcnemars_test_with_holms_correction(tmp_path: Path) -> None:
    page = report_page(better_run(tmp_path))
    document = statistics_of(page)
    p = [
        stats.binomtest(16, 16).pvalue,
        stats.binomtest(1, 1).pvalue,
        stats.binomtest(0, 14).pvalue,
    ]
    assert [v["p"] for v in document["verdicts"]] == pytest.approx(p)
    assert [v["p_adjusted"] for v in document["verdicts"]] == pytest.approx(holm(p))
    assert [v["difference"] for v in document["verdicts"]] == pytest.approx([0.4, 0.025, -0.35])
    outcomes = [v["outcome"] for v in document["verdicts"]]
    assert outcomes == ["first ahead", "no difference shown", "second ahead"]
    lines = list(csv.DictReader(io.StringIO(page.files["verdicts.csv"])))
    assert [float(line["p_adjusted"]) for line in lines] == pytest.approx(holm(p))
    assert {line["level"] for line in lines} == {"transform"}
    table = section(page.markdown, "`a` minus `b`")
    assert line_of(table, "`identity`")[3].startswith("+40.0 (")
    assert line_of(table, f"`{FOG.name}`")[1:3] == ["no difference shown", "40"]
    assert line_of(table, f"`{SNOW.name}`")[1:3] == ["**`b` ahead**", "40"]
    (claim,) = document["claims"]
    assert (claim["ahead"], claim["behind"], claim["open"]) == (0, 1, 1), (
        "identity must not be counted"
    )
    sentence = "b is ahead of a on 1 of 2 transforms, behind on 0, no difference shown on 1."
    assert sentence in page.markdown
    assert sentence in page.terminal


def test_single_severities_are_judged_beside_their_mean(tmp_path: Path) -> None:
    cells = (IDENTITY, *imagenet_c()[:5])
    run = build_run(tmp_path, RunPlan(models=MODELS, transforms=cells))
    document = statistics_of(report_page(run))
    mean = document["verdicts"][1]
    assert mean["severity"] is None
    severities = [v for v in document["severity_verdicts"] if v["transform"] == mean["transform"]]
    assert [v["severity"] for v in severities] == [1, 2, 3, 4, 5]
    assert mean["difference"] == pytest.approx(np.mean([v["difference"] for v in severities]))


def test_clean_images_alone_are_judged_too(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"a": [[1] * 20], "b": [[1] * 4 + [0] * 16]}, [1] * 20)
    page = report_page(run)
    assert "a is ahead of b on clean images." in page.markdown
    assert "a is ahead of b on clean images." in page.terminal


def test_one_model_has_no_verdict_but_all_else(tmp_path: Path) -> None:
    """The Brier score among all else is scikit-learn's."""
    run = build_run(tmp_path, RunPlan(transforms=(IDENTITY, FOG)))
    page = report_page(run)
    document = statistics_of(page)
    assert document["verdicts"] == document["claims"] == document["ranking"] == []
    assert "verdicts.csv" not in page.files
    assert len(document["calibration"]) == 2
    assert "Which model is better" not in page.markdown
    rows = Store(run).rows("vmamba-b", Cell("identity", 0), "cls")
    expected = brier_score_loss(rows["prediction"] == rows["target"], rows["probability"])
    assert document["calibration"][0]["brier"] == pytest.approx(expected)
    table = section(page.markdown, "Top-label Brier score")
    assert line_of(table, "`identity`")[1].startswith(f"{expected:.3f} (")


def test_an_unfinished_run_compares_what_both_models_have(tmp_path: Path) -> None:
    run = better_run(tmp_path)
    path = Store(run).prediction_path("b", Cell("identity", 0), 0)
    rows = Store(run).rows("b", Cell("identity", 0), "cls").head(10).to_dict("records")
    write_rows(path, rows, PREDICTION_SCHEMA)
    page = report_page(run)
    assert [v["n"] for v in statistics_of(page)["verdicts"]] == [10, 40, 40]
    assert "compared on the images that both models have so far" in page.markdown


def test_a_run_without_any_rows_has_empty_statistics(tmp_path: Path) -> None:
    run = build_run(tmp_path, RunPlan(models=MODELS, transforms=(IDENTITY, FOG), done=0))
    document = statistics_of(report_page(run))
    assert document["verdicts"] == document["ranking"] == document["calibration"] == []


def test_too_few_groups_for_any_verdict_are_named(tmp_path: Path) -> None:
    models = (segmenter("a"), segmenter("b"))
    run = build_masks(tmp_path, MaskPlan(models=models, groups=5))
    page = report_page(run)
    # The smallest p of 5 groups is 2 / 32; over 7 lines Holm multiplies it by 7.
    assert "**Too few patients for a verdict.**" in page.markdown
    assert "0.44" in page.markdown
    assert "calibration" not in statistics_of(page)


def test_many_models_have_all_their_pairs_in_the_table(tmp_path: Path) -> None:
    names = [model(f"m{i}") for i in range(5)]
    run = build_run(tmp_path, RunPlan(models=names, transforms=(IDENTITY, FOG)))
    page = report_page(run)
    assert len(statistics_of(page)["claims"]) == 10
    assert "Only 6 of 10 pairs are listed" in page.markdown
    ((picture,),) = [draw_gallery(read_findings(run)).differences]
    assert (run / picture.path).is_file()


# Classes.


def test_classes_and_confusions_are_counted(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], 20)
    predictions = [np.where(generator.random(60) < 0.6, targets, generator.integers(3, size=60))]
    predictions += [generator.integers(3, size=60), generator.integers(3, size=60)]
    page = report_page(run_of(tmp_path, {"a": predictions}, targets))
    document = statistics_of(page)
    lines = list(csv.DictReader(io.StringIO(page.files["classes.csv"])))
    matrix = confusion_matrix(targets, predictions[0])
    assert [int(line["correct"]) for line in lines] == matrix.diagonal().tolist()
    assert lines[0]["name"] == "tench"
    accuracies = [np.mean(a[:20] == 0) for a in predictions[1:]]
    assert float(lines[0]["transformed_top1"]) == pytest.approx(np.mean(accuracies))
    confusion = confusion_matrix([*targets, *targets], [*predictions[1], *predictions[2]])
    np.fill_diagonal(confusion, 0)
    assert document["confusions"][0]["transformed"] == confusion.max()
    assert document["confusions"][0]["images"] == 40


def test_classes_with_few_images_are_not_ranked(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"a": [[0, 1, 2, 3], [0, 1, 2, 0]]}, [0, 1, 2, 3])
    assert "Not listed: fewer than two classes have 5" in report_page(run).markdown


def test_classes_of_ones_own_are_named_by_their_folders(tmp_path: Path) -> None:
    ids = [f"val/{name}/{n}.png" for name in ("ant", "b|ee") for n in range(6)]
    run = run_of(tmp_path, {"a": [[0] * 12] * 2}, [0] * 6 + [1] * 6, ids, label_space="insects")
    names = read_findings(run).statistics.class_names
    assert names == {0: "ant", 1: "b|ee"}
    page = report_page(run).markdown
    assert line_of(section(page, "Most frequent confusions"), r"`b\|ee`")


def test_a_class_without_clean_images_yet_has_its_name(tmp_path: Path) -> None:
    ids = [f"{name}/{n}.png" for name in ("ant", "bee") for n in range(6)]
    run = run_of(tmp_path, {"a": [[0] * 12] * 2}, [0] * 6 + [1] * 6, ids, label_space="insects")
    for path in run.glob("predictions/*/transform=identity/**/*.parquet"):
        path.unlink()
    statistics = read_findings(run).statistics
    assert [(c.target, c.prediction) for c in statistics.confusions] == [("bee", "ant")]
    assert {photo.target for photo in statistics.hard_photos} == {"bee"}


def test_a_folder_with_two_classes_names_none_of_them(tmp_path: Path) -> None:
    ids = [f"{folder}/{n}.png" for folder in ("ant", "mixed", "mixed") for n in range(4)]
    ids = [f"{number}/{name}" for number, name in enumerate(ids)]
    run = run_of(tmp_path, {"a": [[0] * 12]}, [0] * 4 + [1] * 4 + [2] * 4, ids, label_space="own")
    names = read_findings(run).statistics.class_names
    assert names == {0: "ant", 1: "class 1", 2: "class 2"}


# The hardest photos.


def photo_run(tmp_path: Path) -> Path:
    folder, ids = tmp_path / "photos", [f"{n}.png" for n in range(6)]
    folder.mkdir()
    for number, name in enumerate(ids):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / name)
    digest = contents_digest(FileRef(name, folder / name) for name in ids)
    location = {"location": str(folder), "contents": digest}
    predictions = {"a": [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0]]}
    return run_of(tmp_path / "run", predictions, [1] * 6, ids, **location)


def test_the_hardest_photos_are_those_with_the_most_wrong_answers(tmp_path: Path) -> None:
    run = photo_run(tmp_path)
    photos = statistics_of(report_page(run))["hard_photos"]
    assert [(p["image_id"], p["wrong"]) for p in photos] == [
        ("5.png", 2), ("3.png", 1), ("4.png", 1),
    ]  # fmt: skip
    gallery = draw_gallery(read_findings(run))
    assert [picture.path for picture in gallery.hard_photos] == ["figures/hard_photos.png"]
    assert (run / "figures/hard_photos.png").is_file()
    assert "figures/hard_photos.png" in evaluation_text(read_findings(run), gallery)


def test_photos_come_from_the_data_of_the_run_alone(tmp_path: Path) -> None:
    run = photo_run(tmp_path)
    dataset, ids = read_findings(run).record.dataset, [f"{n}.png" for n in range(6)]
    images = images_of(dataset, ids, ["5.png"])
    assert not isinstance(images, str)
    assert images["5.png"][0, 0].tolist() == [200, 0, 0]
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "photos/0.png")
    assert "no longer those of the run" in str(images_of(dataset, ids, ["5.png"]))
    (tmp_path / "photos/0.png").unlink()
    assert "not all images are at" in str(images_of(dataset, ids, ["5.png"]))
    older_dataset = dataset.model_copy(update={"contents": None})
    assert "older version" in str(images_of(older_dataset, ids, ["5.png"]))


def test_without_the_photos_the_page_says_why(tmp_path: Path) -> None:
    run = photo_run(tmp_path)
    (tmp_path / "photos").rename(tmp_path / "gone")
    findings = read_findings(run)
    page = evaluation_text(findings, draw_gallery(findings))
    assert "No pictures: not all images are at" in section(page, "Photos with the most wrong")
    assert not (run / "figures/hard_photos.png").exists()


# Published accuracy.


def anchored(run: Path, correct: int, n: int = 200, **changes: Any) -> Findings:
    """Writes a run of swin-t (published: 81.388 %) with `n` images, `correct` of them right."""
    entry = CATALOGUE["swin-t"]
    record = model("swin-t", pretraining=IN1K, builder=f"timm:{entry.variant}", **changes)
    ids = [f"val/n01440764/ILSVRC2012_val_{i:08}.JPEG" for i in range(n)]
    predictions = {"swin-t": [[0] * correct + [1] * (n - correct)]}
    return read_findings(run_of(run, predictions, [0] * n, ids, [record]))


def test_a_clean_accuracy_near_the_published_one_is_confirmed(tmp_path: Path) -> None:
    (anchor,) = anchored(tmp_path, 163).statistics.anchors
    interval = stats.binomtest(163, 200).proportion_ci(method="wilson")
    assert (anchor.low, anchor.high) == pytest.approx((interval.low, interval.high))
    assert (anchor.published, anchor.status) == (0.81388, "inside")
    page = report_page(tmp_path)
    assert "agrees with the published 81.4 %" in page.markdown
    assert "WARNING" not in page.terminal


def test_a_clean_accuracy_outside_of_its_interval_is_announced(tmp_path: Path) -> None:
    (anchor,) = anchored(tmp_path, 140).statistics.anchors
    assert anchor.status == "outside"
    page = report_page(tmp_path)
    assert "**Clean accuracy differs from the published value.**" in page.markdown
    terminal = page.terminal
    assert "WARNING: swin-t has 70.0 % (63.3-75.9)" in terminal
    assert "crop 224, bicubic, mean 0.5, 0.5, 0.5" in terminal


def test_other_photos_than_the_validation_set_have_no_published_accuracy(tmp_path: Path) -> None:
    entry = CATALOGUE["swin-t"]
    record = model("swin-t", pretraining=IN1K, builder=f"timm:{entry.variant}")
    for ids, text in (
        ([f"n01440764_{i}.JPEG" for i in range(20)], "training images"),
        ([f"n01440764_tench_{i}.JPEG" for i in range(20)], "probably training images"),
    ):
        run = run_of(tmp_path / text, {"swin-t": [[1] * 20]}, [0] * 20, ids, [record])
        (anchor,) = read_findings(run).statistics.anchors
        assert anchor.status == "not comparable"
        page = report_page(run)
        assert text in page.markdown
        assert "WARNING" not in page.terminal


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"several_labels": True}, "several true classes"),
        ({"answers": [0, 1]}, "among a subset of the classes"),
    ],
)
def test_labels_and_answers_of_another_kind_are_not_the_published_measure(
    tmp_path: Path, changes: dict[str, object], text: str
) -> None:
    anchored(tmp_path, 100)
    record = json.loads((tmp_path / "run.json").read_text("utf-8"))
    record["dataset"] |= changes
    (tmp_path / "run.json").write_text(json.dumps(record))
    (anchor,) = read_findings(tmp_path).statistics.anchors
    assert anchor.status == "not comparable"
    page = report_page(tmp_path)
    assert text in page.markdown
    assert "WARNING" not in page.terminal


@pytest.mark.parametrize(
    "changes",
    [{"untrained": True}, {"pretraining": "trained here"}, {"arguments": {"img_size": 384}}],
)
def test_other_weights_than_the_published_ones_have_no_anchor(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    entry = CATALOGUE["swin-t"]
    record = model("swin-t", pretraining=IN1K, builder=f"timm:{entry.variant}")
    record = record.model_copy(update=changes)
    run = run_of(tmp_path, {"swin-t": [[1] * 20]}, [0] * 20, None, [record])
    assert read_findings(run).statistics.anchors == []


CELLS = (IDENTITY, *paper21()[:2])


def test_skipped_images_are_not_missing(tmp_path: Path) -> None:
    skipped = [("class-01/photo-00001.jpeg", "truncated")]
    findings = read_findings(build_run(tmp_path, RunPlan(transforms=CELLS, skipped=skipped)))
    assert (findings.expected, findings.n) == (59, 59)
    assert not findings.is_partial


def test_a_run_with_unfinished_cells_is_partial_whatever_its_status(tmp_path: Path) -> None:
    build_run(tmp_path, RunPlan(transforms=CELLS))
    next(tmp_path.glob("predictions/*/transform=affine/*/block-000001.parquet")).unlink()
    findings = read_findings(tmp_path)
    assert findings.record.status == "complete"
    assert list(findings.unfinished["transform"]) == ["affine"]
    assert findings.is_partial


@pytest.mark.parametrize("status", ["running", "partial", "failed"])
def test_a_run_that_did_not_end_well_is_partial(tmp_path: Path, status: str) -> None:
    plan = RunPlan(transforms=CELLS, record={"status": status})
    assert read_findings(build_run(tmp_path, plan)).is_partial


def test_classes_with_the_same_accuracy_are_neither_worst_nor_best(tmp_path: Path) -> None:
    targets = [n % 2 for n in range(10)]
    run = run_of(tmp_path, {"a": [targets, targets]}, targets)
    assert not read_findings(run).statistics.extreme_classes
    assert "or all have the same accuracy" in report_page(run).markdown


def test_answers_by_image_are_those_of_a_table_of_all_rows() -> None:
    generator, frames = np.random.default_rng(0), []
    for part in (slice(0, 30), slice(0, 30), slice(5, 40), slice(39, None, -2)):
        numbers = np.arange(40)[part]
        frames.append(
            pd.DataFrame(
                {
                    "image_id": [f"photo-{n:02}" for n in numbers],
                    "target": numbers % 4,
                    "prediction": generator.integers(4, size=len(numbers)),
                    "target_probability": generator.random(len(numbers), np.float32),
                }
            )
        )
    rows = pd.concat(frames).assign(wrong=lambda rows: rows["prediction"] != rows["target"])
    grouped = rows.groupby("image_id")
    ours = _answers_by_image(frames)
    assert list(ours.index) == sorted(set(rows["image_id"]))
    assert list(ours["wrong"]) == list(grouped["wrong"].sum())
    assert list(ours["answers"]) == list(grouped.size())
    assert list(ours["target"]) == list(grouped["target"].first())
    np.testing.assert_allclose(ours["probability"], grouped["target_probability"].mean(), 1e-6)


def test_the_rows_of_a_run_share_one_copy_of_their_ids(tmp_path: Path) -> None:
    if pd.__version__ < "3":
        pytest.skip("before pandas 3, ids are pointers to Python strings, which are shared")
    rows = table_and_rows(build_run(tmp_path, RunPlan(models=MODELS)))[1]
    arrays = [pa.array(f["image_id"].array) for cells in rows.values() for f in cells.values()]
    parts = [chunk for array in arrays for chunk in pa.chunked_array(array).chunks]
    assert len({chunk.buffers()[2].address for chunk in parts}) == len(parts) // len(arrays)
