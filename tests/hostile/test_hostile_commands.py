"""Damaged and hostile images among photos, through `robust eval` and `robust predict`.

`test_hostile_images.py` proves for the same files that the decoder gives the right pixels or
refuses them; here each refused file must be named once, and must change nothing for the others.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from robustcli.adapters.catalogue import ModelRequest
from robustcli.cli.main import main
from robustcli.data.dataset import UnreadableImage
from robustcli.data.decode import decode_bytes
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.record import read_record
from robustcli.evaluation.store import Store
from robustcli.transforms.base import CLEAN, Cell
from tests.evaluation.photos import CLASSES, config, make_photos
from tests.hostile.conftest import Robust
from tests.hostile.images import HostileImage, corpus

PICO = ModelRequest("vmamba-pico")
MODEL = ("--model", "vmamba-pico", "--device", "cpu")
SHOWN = 20  # images that a message names; it says where all of them are
BITS = 1e-6  # of a probability: images are in other batches beside other ones
_OF_EACH_KIND = (
    *("bomb of scans.jpg", "bomb of 60,000 x 60,000.png", "bomb in a text.png", "16 bits.png"),
    *("palette with alpha.png", "CMYK.jpeg", "1 x 1.png", "1 x 3000.png", "animated.gif"),
    *("cut at 0.7.jpg", "empty.png", "really PNG.jpeg", "zeros.jpg", "pickle.png", "numbers.tif"),
    *("looping EXIF.jpg", "postscript.tif", "wrong checksum.png", "less 1.webp"),
)


def sample() -> list[HostileImage]:
    """A file of each kind."""
    images = {image.name: image for image in corpus()}
    return [images[name] for name in _OF_EACH_KIND]


@dataclass(frozen=True)
class Folders:
    """Photos with hostile images among them in `every`, those that can be read in `good`.

    `refused` has the ids of the images that cannot be read.
    """

    every: Path
    good: Path
    refused: tuple[str, ...]

    @classmethod
    def of(cls, images: Sequence[HostileImage], place: Path) -> Folders:
        """12 photos and `images`, in folders of classes."""
        every, refused = make_photos(place / "every"), []
        shutil.copytree(every, place / "good")
        for number, image in enumerate(images):
            image_id = f"{CLASSES[number % len(CLASSES)]}/{image.name}"
            (every / image_id).write_bytes(image.content)
            try:
                decode_bytes(image.content)
                (place / "good" / image_id).write_bytes(image.content)
            except UnreadableImage:
                refused.append(image_id)
        return cls(every, place / "good", tuple(sorted(refused)))


def check_named(text: str, refused: Sequence[str]) -> None:
    """Each refused image has a line of its own with a reason, up to `SHOWN` of them."""
    lines = [line.strip() for line in text.splitlines()]
    for image_id in refused[:SHOWN]:
        named = [line for line in lines if line.startswith(f"{image_id}: ")]
        assert len(named) == 1, image_id
        assert len(named[0]) > len(image_id) + 10, named
    if len(refused) > SHOWN:
        assert f"and {len(refused) - SHOWN} more; all are in `" in text


def check_evaluation(
    robust: Robust, folders: Folders, transform: str, workers: int, seconds: float
) -> None:
    asked = ("eval", *MODEL, "--transform", transform, "--workers", str(workers))
    total = sum(1 for file in folders.every.rglob("*") if file.is_file())
    text = robust(*asked, "--data", folders.every, "--out", "run", code=1, seconds=seconds)
    assert " images cannot be read" in text
    assert not Path("run", "results.csv").exists()
    assert read_record(Path("run")).status != "complete"

    allowed = (*asked, "--allow-unreadable", "1", "--data", folders.every, "--out", "run")
    text = robust(*allowed, code=0, seconds=seconds)
    assert f"{len(folders.refused)} of {total} images are left out of every number" in text
    assert f"{len(folders.refused)} of {total} images left out of every number" in text
    check_named(text, folders.refused)
    skipped = Store(Path("run")).skipped()
    assert sorted(skipped["image_id"]) == list(folders.refused)
    assert skipped["reason"].str.len().gt(8).all()
    assert not skipped["reason"].str.contains("\n").any()

    good = config(folders.good, Path("good-run"), transform, models=(PICO,), batch_size=None)
    run_evaluation(good)
    transforms = read_record(Path("good-run")).transforms
    for cell in (Cell(t.name, t.severity) for t in transforms):
        found, expected = (
            Store(Path(run)).rows("vmamba-pico", cell, "cls") for run in ("run", "good-run")
        )
        assert len(expected) == total - len(folders.refused)
        pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=0, atol=BITS)
    views = {model.view for model in read_record(Path("good-run")).models} | {"original"}
    inputs = [
        Store(Path(run)).inputs(v, CLEAN) for run in ("run", "good-run") for v in sorted(views)
    ]
    for found, expected in zip(inputs[: len(views)], inputs[len(views) :], strict=True):
        pd.testing.assert_frame_equal(found, expected)


def check_labels(robust: Robust, folders: Folders, batch_size: int, seconds: float) -> None:
    asked = ("predict", *MODEL, "--batch-size", str(batch_size))
    total = sum(1 for file in folders.every.rglob("*") if file.is_file())
    text = robust(*asked, folders.every, "--out", "labels", code=1, seconds=seconds)
    assert f"{len(folders.refused)} of {total} photos cannot be read; all others are la" in text
    check_named(text, folders.refused)
    document = json.loads(Path("labels", "labels.json").read_text(encoding="utf-8"))
    assert [photo["image"] for photo in document["unreadable"]] == list(folders.refused)
    robust(*asked, folders.good, "--out", "good-labels", code=0, seconds=seconds)
    found, expected = (
        list(csv.DictReader(Path(out, "labels.csv").read_text(encoding="utf-8").splitlines()))
        for out in ("labels", "good-labels")
    )
    assert len(expected) == total - len(folders.refused)
    for row, other in zip(found, expected, strict=True):
        assert (row["image"], row["class"]) == (other["image"], other["class"])
        assert float(row["probability"]) == pytest.approx(float(other["probability"]), abs=2 * BITS)


@pytest.fixture
def some(tmp_path: Path) -> Folders:
    return Folders.of(sample(), tmp_path)


def test_an_evaluation_names_what_it_cannot_read(robust: Robust, some: Folders) -> None:
    assert 8 < len(some.refused) < SHOWN
    check_evaluation(robust, some, "affine", workers=2, seconds=20)


def test_predict_names_what_it_cannot_read(robust: Robust, some: Folders) -> None:
    check_labels(robust, some, batch_size=5, seconds=20)


def test_json_is_not_mixed_with_the_names(
    some: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("ROBUST_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([
            *("eval", *MODEL, "--transform", "identity", "--workers", "0", "--json"),
            *("--data", str(some.every), "--allow-unreadable", "1"),
        ])  # fmt: skip
    shown = capsys.readouterr()
    assert stopped.value.code == 0
    assert json.loads(shown.out)[0]["n"] == 12 + len(sample()) - len(some.refused)
    check_named(shown.err, some.refused)


def test_a_folder_without_one_readable_image(robust: Robust, tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / "none" / name).mkdir(parents=True)
        (tmp_path / "none" / name / "a.png").write_bytes(b"no picture")
    asked = ("eval", *MODEL, "--transform", "fliplr", "--workers", "0", "--data", "none")
    assert "4 images cannot be read; the limit is 0" in robust(*asked, "--out", "a", code=1)
    text = robust(*asked, "--out", "a", "--allow-unreadable", "1", code=1)
    check_named(text, [f"{name}/a.png" for name in sorted(CLASSES)])
    check_named(
        robust("predict", *MODEL, "none", code=1), [f"{name}/a.png" for name in sorted(CLASSES)]
    )


@pytest.mark.slow  # all 234 files; the tests above prove the same with one of each kind
@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_of_the_whole_corpus(robust: Robust, tmp_path: Path, workers: int) -> None:
    check_evaluation(robust, Folders.of(corpus(), tmp_path), "paper21", workers, seconds=120)


@pytest.mark.slow  # as above
@pytest.mark.parametrize("batch_size", [1, 64])
def test_predict_with_the_whole_corpus(robust: Robust, tmp_path: Path, batch_size: int) -> None:
    check_labels(robust, Folders.of(corpus(), tmp_path), batch_size, seconds=60)
