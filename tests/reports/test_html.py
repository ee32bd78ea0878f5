"""Embedded pictures and photos of report.html, within the promised size."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustcli.core.errors import RobustError
from robustcli.evaluation.store import Store
from robustcli.reports import html
from robustcli.reports.cell_photos import read_photos
from robustcli.reports.findings import read_findings
from robustcli.reports.html import to_html
from robustcli.reports.pages import write_page
from robustcli.reports.render import render, report_page
from robustcli.tasks.record import SamplePhoto, write_sample_photos
from robustcli.transforms.base import Cell
from tests.builders import IDENTITY, RunPlan, build_run, model, paper21
from tests.reports.finetune_runs import FinetunePlan, build_finetuning
from tests.reports.mask_runs import MaskPlan, build_masks
from tests.reports.train_runs import build_training

pytestmark = pytest.mark.usefixtures("blank_figures")
CELLS = (IDENTITY, *paper21()[:2])
FIGURE = "# T\n\n![c](a.png)\n\n*c*\n"


def several_photos(run: Path, masks: bool = False) -> list[SamplePhoto]:
    """Writes three different photos to different blocks."""
    photos = []
    ids = [str(name) for name in Store(run).rows(
        read_findings(run).models[0].name, Cell("identity", 0), "seg" if masks else "cls"
    )["image_id"]]  # fmt: skip
    for number, position in enumerate((0, 10, 20), 1):
        photo = SamplePhoto(number=number, image_id=ids[position], position=position)
        photos.append(photo)
        for transform in read_findings(run).record.transforms:
            cell = Cell(transform.name, transform.severity)
            path = photo.picture(run, cell)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40), (40 * number, 100, 200)).save(path)
            for entry in read_findings(run).models if masks else ():
                mask = photo.mask(run, cell, entry.name)
                mask.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.eye(40, 60, dtype=np.uint8) * 255).save(mask)
    write_sample_photos(run, photos)
    return photos


def test_a_picture_is_embedded_without_a_loss_and_smaller(tmp_path: Path) -> None:
    pixels = np.full((90, 120, 3), 255, np.uint8)
    pixels[20:30, 10:100] = (0, 114, 178)
    Image.fromarray(pixels).save(tmp_path / "a.png", compress_level=0)
    page = to_html(FIGURE, tmp_path)
    content = re.search(r'src="data:image/webp;base64,([^"]*)"', page)
    raw = base64.b64decode(content[1])
    assert len(raw) < (tmp_path / "a.png").stat().st_size
    with Image.open(io.BytesIO(raw)) as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), pixels)
    assert 'class="picture chart"' in page
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)).save(
        tmp_path / "a.png"
    )
    assert "chart" not in to_html(FIGURE, tmp_path).partition("<main")[2].partition("</main")[0]


def test_a_page_stays_below_its_size_and_names_what_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    full_size = len(to_html(FIGURE, tmp_path))
    monkeypatch.setattr(html, "MOST_BYTES", full_size - 5000)
    page = to_html(FIGURE, tmp_path)
    assert len(page) < full_size - 5000
    assert "Not included in this file because of its size" in page
    assert "<code>a.png</code>" in page


def test_photos_have_the_answers_of_their_own_rows(tmp_path: Path) -> None:
    plan = RunPlan(models=(model("a"), model("b")), transforms=CELLS, block_size=8)
    run = build_run(tmp_path, plan)
    photos = several_photos(run)
    sheet = read_photos(read_findings(run))
    assert [cell.label for cell in sheet.cells] == [t.name for t in CELLS]
    for cell in sheet.cells:
        assert [photo.number for photo in cell.photos] == [1, 2, 3]
        for photo, expected in zip(cell.photos, photos, strict=True):
            for prediction in photo.answers:
                rows = Store(run).rows(prediction.model, Cell(cell.label, 0), "cls")
                (row,) = rows[rows["image_id"] == expected.image_id].to_dict("records")
                assert prediction.right == (row["prediction"] == row["target"])
                assert "75.0" in prediction.words
                assert expected.image_id in photo.name


def test_as_many_photos_as_asked_for_and_no_dead_link(tmp_path: Path) -> None:
    run = build_run(tmp_path, RunPlan(transforms=CELLS))
    several_photos(run)
    page = report_page(run)
    for limit, shown_photos in ((0, 0), (2, 2), (None, 3)):
        write_page(page, run, limit)
        html = (run / "report.html").read_text()
        assert html.count('<figure class="photo"') == shown_photos * len(CELLS)
        linked = set(re.findall(r'class="photos" href="#([\w-]+)"', html))
        assert linked <= set(re.findall(r' id="([\w-]+)"', html))
        assert bool(linked) == bool(shown_photos)
        assert ("of 3 that the run keeps" in html) == (limit == 2)


def test_masks_lie_on_their_photos(tmp_path: Path) -> None:
    run = build_masks(tmp_path, MaskPlan(transforms=CELLS))
    several_photos(run, masks=True)
    render(run)
    page = (run / "report.html").read_text()
    content = re.search(r'class="mask"[^>]*src="data:image/png;base64,([^"]*)"', page)
    with Image.open(io.BytesIO(base64.b64decode(content[1]))) as mask:
        alpha = np.asarray(mask.convert("RGBA"))[..., 3]
    assert np.array_equal(alpha > 0, np.eye(40, 60, dtype=bool))


@pytest.mark.slow
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path) -> None:
    """Each kind of file is cut in half: a report is written without it, or the error names it."""
    plans = {
        "cls": build_run(tmp_path / "cls", RunPlan(transforms=CELLS[:2], block_size=64)),
        "train": build_training(tmp_path / "train"),
        "tune": build_finetuning(tmp_path / "tune", FinetunePlan(modes=("full",))),
    }
    several_photos(plans["cls"])
    named_files = 0
    for run in plans.values():
        kinds = {(p.relative_to(run).parts[0], p.name): p for p in run.rglob("*") if p.is_file()}
        for path in kinds.values():
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(run, copy)
            content = path.read_bytes()
            (copy / path.relative_to(run)).write_bytes(content[: len(content) // 2])
            message = error_of(copy)
            assert message is None or path.name in message
            named_files += message is not None
    assert named_files > 15


def error_of(run: Path) -> str | None:
    try:
        render(run)
    except RobustError as error:
        return str(error)
    return None
