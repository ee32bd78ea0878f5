"""`robust predict` with classifiers: labels on the screen, as CSV, as JSON."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import robustcli
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.core.errors import UsageError
from robustcli.data.labels import read_label_space
from robustcli.evaluation import prediction
from robustcli.evaluation.mask_files import PredictedMasks
from robustcli.evaluation.photo_labels import list_photos
from tests.adapters.files import vim_as_run
from tests.cli.conftest import Robust
from tests.evaluation.photos import CLASSES, make_photos

PICO = ("predict", "--model", "vmamba-pico", "--device", "cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("b.png", "=1+2.png", "sub/a.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (36, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def probabilities(file: Path) -> np.ndarray:
    """Of each class, computed from the weights as `robust eval` does, one photo at a time."""
    model = load(ModelRequest("vmamba-pico"), "cls")
    with Image.open(file) as image:
        view = model.preprocessing.apply(np.array(image.convert("RGB"))).copy()
    logits = model.logits(torch.from_numpy(view).permute(2, 0, 1)[None])[0].numpy()
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


def test_labels_are_those_of_the_weights(robust: Robust, photos: Path):
    outcome = robust(*PICO, "photos", "--top", "3", "--json", "--batch-size", "2")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert [p["image"] for p in document["predictions"]] == ["=1+2.png", "b.png", "sub/a.png"]
    for photo in document["predictions"]:
        expected = probabilities(photos / photo["image"])
        best = np.argsort(-expected)[:3]
        assert [label["index"] for label in photo["labels"]] == best.tolist()
        given = [label["probability"] for label in photo["labels"]]
        np.testing.assert_allclose(given, expected[best], atol=2e-6)
    assert document["predictions"][0]["labels"][0]["name"] in outcome.out
    assert document["label_space"] == "cifar10"


def test_outputs_that_are_no_classes_do_not_take_the_names_of_classes(
    robust: Robust, photos: Path, tmp_path: Path
):
    arguments = [f"{k}={v}" for k, v in vim_as_run(tmp_path / "as_run.pth").arguments.items()]
    options = [word for argument in arguments for word in ("--model-arg", argument)]
    outcome = robust("predict", "--model", "vim", "--weights", "as_run.pth", *options,
                     "photos", "--top", "20", "--json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    names = set(read_label_space("cifar10").names)
    for photo in document["predictions"]:
        assert {label["name"] for label in photo["labels"]} == names


def test_a_segmenter_says_what_it_assumes_and_that_it_is_not_trained(robust: Robust, photos: Path):
    arguments = ("predict", "--model", "umamba-pico", "--device", "cpu", "photos", "--untrained")
    outcome = robust(*arguments, "--model-arg", "in_channels=1", "--out", "masks")
    assert outcome.code == 0
    assert "`umamba-pico` has one input channel: images are converted to greyscale" in outcome.err
    assert "`umamba-pico` is not trained: its masks are meaningless." in outcome.err
    assert len(list((photos.parent / "masks").rglob("*.png"))) == 3


def test_ids_are_those_of_eval(robust: Robust, tmp_path: Path):
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "set" / name).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / name / "x.png")
    assert robust("eval", *PICO[1:], "--transform", "identity", "--data", "set", "--out", "run",
                  "--quiet", "--workers", "0").code == 0  # fmt: skip
    (part,) = sorted(Path("run", "predictions").rglob("*.parquet"))
    rows = pd.read_parquet(part).sort_values("image_id")
    outcome = robust(*PICO, "set", "--json")
    predictions = json.loads(outcome.out)["predictions"]
    assert [p["image"] for p in predictions] == rows["image_id"].tolist()
    assert [[label["index"] for label in p["labels"]] for p in predictions] == [
        list(top5) for top5 in rows["top5"]
    ]
    given = [p["labels"][0]["probability"] for p in predictions]
    np.testing.assert_allclose(given, rows["probability"], atol=2e-6)


def test_csv_is_announced_safe_and_the_same_again(robust: Robust, photos: Path):
    outcome = robust(*PICO, "photos", "--top", "2", "--csv")
    assert outcome.code == 0, outcome.err
    (path,) = Path("runs").glob("predict-vmamba-pico-*/labels.csv")
    assert str(path) in outcome.out
    content = path.read_bytes()
    rows = list(csv.DictReader(content.decode().splitlines()))
    assert [row["image"] for row in rows] == ["'=1+2.png", "b.png", "sub/a.png"]
    assert list(rows[0]) == [
        *("image", "class", "name", "probability", "class_2", "name_2", "probability_2")
    ]
    expected = np.sort(probabilities(photos / "b.png"))[::-1]
    assert float(rows[1]["probability_2"]) == pytest.approx(expected[1], abs=2e-6)
    assert robust(*PICO, "photos", "--top", "2", "--csv", "--batch-size", "1").code == 0
    assert path.read_bytes() == content


def test_labels_of_other_photos_are_not_lost(robust: Robust, photos: Path):
    assert robust(*PICO, "photos/sub", "--out", "here").code == 0
    assert robust(*PICO, "photos/sub", "photos/b.png", "--out", "here").code == 0  # one is added
    content = Path("here", "labels.csv").read_bytes()
    outcome = robust(*PICO, "photos/b.png", "--out", "here")
    assert outcome.code == 2
    assert "contains the labels of 1 other photos, such as `a.png`" in outcome.err
    assert Path("here", "labels.csv").read_bytes() == content
    assert robust(*PICO, "photos/b.png", "--out", "here", "--fresh").code == 0
    assert Path("here", "labels.csv").read_bytes() != content


def test_a_csv_of_other_settings_is_not_replaced(robust: Robust, photos: Path):
    assert robust(*PICO, "photos", "--out", "here").code == 0
    content = Path("here", "labels.csv").read_bytes()
    outcome = robust(*PICO, "photos", "--out", "here", "--top", "1")
    assert outcome.code == 2
    assert "other settings (top)" in outcome.err
    assert Path("here", "labels.csv").read_bytes() == content
    assert robust(*PICO, "photos", "--out", "here", "--top", "1", "--fresh").code == 0
    assert Path("here", "labels.csv").read_bytes() != content
    Path("mine").mkdir()
    Path("mine", "labels.csv").write_text("mine")
    outcome = robust(*PICO, "photos", "--out", "mine")
    assert (outcome.code, Path("mine", "labels.csv").read_text()) == (2, "mine")


def test_photos_that_cannot_be_read(robust: Robust, photos: Path):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    outcome = robust(*PICO, "photos", "--json", "--out", "out")
    assert outcome.code == 1
    assert "1 of 4 photos cannot be read" in outcome.err
    document = json.loads(outcome.out)
    assert [entry["image"] for entry in document["unreadable"]] == ["broken.jpg"]
    assert len(document["predictions"]) == 3
    assert len(Path("out", "labels.csv").read_text().splitlines()) == 4
    alone = robust(*PICO, "photos/broken.jpg")
    assert alone.code == 1
    assert "1 of 1 photos cannot be read.\n" in alone.err
    outcome = robust(*PICO, "photos/broken.jpg", "--out", "none")
    assert outcome.code == 1
    assert Path("none", "labels.csv").read_text() == "image,class,name,probability\n"


def test_one_photo_beside_the_option(robust: Robust, photos: Path):
    outcome = robust(*PICO, "photos/b.png", "--data", "photos/sub", "--data", "photos/b.png")
    assert outcome.code == 0, outcome.err
    lines = [line.split()[0] for line in outcome.out.splitlines()[2:]]
    assert lines == ["a.png", "b.png"]


def test_equal_names_are_told_apart(photos: Path, monkeypatch: pytest.MonkeyPatch):
    other = photos.parent / "other"
    other.mkdir()
    (other / "b.png").write_bytes((photos / "b.png").read_bytes())
    monkeypatch.chdir(photos.parent)
    names = [ref.relative for ref in list_photos([Path("photos"), Path("other/b.png")])]
    assert names == ["=1+2.png", "other/b.png", "photos/b.png", "sub/a.png"]
    with pytest.raises(UsageError, match="`nowhere` does not exist"):
        list_photos([Path("nowhere")])


def test_links_to_one_photo_are_photos_as_in_an_evaluation(photos: Path):
    (photos / "link.png").symlink_to("b.png")
    (photos / "linked").symlink_to("sub")
    places = [photos, photos / "sub" / ".." / "sub", photos / "b.png"]
    names = [ref.relative for ref in list_photos(places)]
    assert names == ["=1+2.png", "b.png", "link.png", "linked/a.png", "sub/a.png"]


def test_a_photo_whose_name_is_not_unicode(robust: Robust, photos: Path):
    photo = photos / os.fsdecode(b"caf\xe9.png")
    photo.write_bytes((photos / "b.png").read_bytes())
    out = photos.parent / "out"
    places = (str(photo), str(photos), "--out", str(out))
    outcome = robust(*PICO, *places, "--top", "1", "--csv")
    assert outcome.code == 0, outcome.err
    names = [line.split(",")[0] for line in (out / "labels.csv").read_text().splitlines()]
    assert names.count(r"caf\xe9.png") == 1


def test_a_bundled_set_by_its_name(robust: Robust):
    outcome = robust(*PICO, "cifar10-mini", "--limit", "2", "--top", "1", "--json")
    assert outcome.code == 0, outcome.err
    assert len(json.loads(outcome.out)["predictions"]) == 2


OWN = """
import torch
class Own(torch.nn.Module):
    def forward(self, x):
        return torch.cat([x.mean((2, 3)), x.amax((2, 3)), x.amin((2, 3))[:, :1]], 1)
"""


def test_classes_that_nobody_named_are_numbers(robust: Robust, photos: Path):
    Path("own.py").write_text(OWN)
    own = ("predict", "--model", "own.py:Own", "photos", "--crop", "32", "--device", "cpu")
    outcome = robust(*own, "--json", "--top", "9")
    assert outcome.code == 0, outcome.err
    assert "are not known: labels are output numbers" in outcome.err
    labels = json.loads(outcome.out)["predictions"][0]["labels"]
    assert sorted(label["name"] for label in labels) == list("0123456")
    Path("classes.txt").write_text("\n".join(f"class {letter}" for letter in "abcdefg"))
    outcome = robust(*own, "--json", "--label-space", "classes.txt")
    assert json.loads(outcome.out)["predictions"][0]["labels"][0]["name"].startswith("class ")


def test_a_subset_is_that_of_eval_and_announced(robust: Robust, tmp_path: Path):
    make_photos(tmp_path / "set")
    assert robust("eval", *PICO[1:], "--transform", "identity", "--data", "set", "--out", "run",
                  "--limit", "6", "--seed", "3", "--quiet", "--workers", "0").code == 0  # fmt: skip
    (part,) = sorted(Path("run", "predictions").rglob("*.parquet"))
    evaluated = sorted(pd.read_parquet(part)["image_id"])
    outcome = robust(*PICO, "set", "--limit", "6", "--seed", "3", "--json")
    assert outcome.code == 0, outcome.err
    assert "`--limit`: using 6 of 12 photos, distributed at random over the folders (seed 3)." in (
        outcome.err
    )
    document = json.loads(outcome.out)
    assert [p["image"] for p in document["predictions"]] == evaluated
    assert document["subset"] == {"images": 6, "of": 12, "seed": 3}
    others = json.loads(robust(*PICO, "set", "--limit", "6", "--json").out)
    assert [p["image"] for p in others["predictions"]] != evaluated
    assert json.loads(robust(*PICO, "set", "--limit", "12", "--json").out)["subset"] is None


def test_a_subset_does_not_replace_the_labels_of_all_photos(
    robust: Robust, photos: Path, monkeypatch: pytest.MonkeyPatch
):
    assert robust(*PICO, "photos", "--out", "here").code == 0
    content = Path("here", "labels.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "label_batches", None)  # refused before anything is computed
        outcome = robust(*PICO, "photos", "--out", "here", "--limit", "1")
    assert outcome.code == 2
    assert "contains the labels of 2 other photos" in outcome.err
    assert Path("here", "labels.csv").read_bytes() == content
    names = {}
    for options in ((), ("--limit", "2"), ("--limit", "2", "--seed", "1")):
        assert robust(*PICO, "photos", "--csv", *options).code == 0
        names[options] = set(Path("runs").iterdir()) - set().union(*names.values())
    assert [len(new) for new in names.values()] == [1, 1, 1]  # a default folder each


def test_a_subset_of_the_images_of_a_segmenter(robust: Robust, tmp_path: Path):
    make_photos(tmp_path / "set")
    options = ("predict", "--model", "otsu", "--device", "cpu", "set", "--out", "masks")
    outcome = robust(*options, "--limit", "5", "--seed", "2", "--batch-size", "2", "--json")
    assert outcome.code == 0, outcome.err
    assert "using 5 of 12 images" in outcome.err
    masks = json.loads(outcome.out)
    assert len(masks) == 5
    assert {Path(mask).parent.name for mask in masks} == set(CLASSES)
    assert robust(*options, "--json").code == 0
    assert len(list(Path("masks").rglob("*.png"))) == 12


def test_a_dry_run_of_labels(robust: Robust, photos: Path):
    options = (*PICO, "photos", "--csv", "--limit", "2", "--dry-run")
    outcome = robust(*options, "--json")
    assert outcome.code == 0, outcome.err
    forecast = json.loads(outcome.out)
    assert (forecast["images"], forecast["pool_images"], forecast["existing"]) == (2, 3, 0)
    assert (forecast["download_bytes"], forecast["task"]) == (0, "cls")
    assert not Path("runs").exists()
    assert robust(*options[:-1]).code == 0
    assert [str(folder) for folder in Path("runs").iterdir()] == [forecast["out"]]
    outcome = robust(*options)
    assert "labels.csv, labels.json" in outcome.out
    assert "in place of the existing files" in outcome.out
    assert "2 of 3" in outcome.out
    outcome = robust(*PICO, "photos/b.png", "--out", forecast["out"], "--dry-run")
    assert (outcome.code, outcome.out) == (2, "")
    assert "contains the labels of" in outcome.err


def test_a_dry_run_of_weights_that_are_not_here(robust: Robust, photos: Path):
    outcome = robust(
        "predict", "--model", "resnet10t.c3_in1k", "--device", "cpu", "photos", "--csv",
        "--dry-run", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    forecast = json.loads(outcome.out)
    assert forecast["out"].endswith("-HASH")
    assert 10e6 < forecast["download_bytes"] < 30e6
    assert forecast["seconds"] > 0


def test_a_dry_run_of_masks(robust: Robust, photos: Path):
    options = ("predict", "--model", "otsu", "--device", "cpu", "--out", "masks")
    assert robust(*options, "photos/sub").code == 0
    before = sorted(Path("masks").iterdir())
    outcome = robust(*options, "photos/sub", "photos/b.png", "--overlays", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "Images:      2" in outcome.out
    assert "Masks:       2 to compute, 0 already exist" in outcome.out  # an overlay is missing
    assert "2 masks, 2 overlays in `masks`" in outcome.out
    outcome = robust(*options, "photos/sub", "photos/b.png", "--dry-run", "--json")
    assert json.loads(outcome.out)["existing"] == 1
    assert sorted(Path("masks").iterdir()) == before
    pico = ("--model", "umamba-pico", "--untrained")
    outcome = robust("predict", *pico, *options[3:], "photos/sub", "--dry-run")
    assert outcome.code == 2
    assert "was computed by another model" in outcome.err


def test_a_dry_run_refuses_the_classes_of_other_masks(robust: Robust, photos: Path):
    Path("masks").mkdir()
    Path("masks/labels.json").write_text("{}")
    network = ("--model", "umamba-pico", "--untrained", "--model-arg", "num_classes=3")
    options = ("predict", *network, "--classes", "1=a,2=b", "photos/b.png", "--out", "masks")
    for typed in (options, (*options, "--dry-run")):
        outcome = robust(*typed, "--device", "cpu")
        assert outcome.code == 2
        assert "labels.json` already exists" in outcome.err


def test_the_function_predicts_as_the_command(photos: Path):
    labels = robustcli.predict("vmamba-pico", photos, top=2, device="cpu", limit=2)
    assert isinstance(labels, prediction.PredictedLabels)
    assert list(labels.table()) == [
        *("image", "class", "name", "probability", "class_2", "name_2", "probability_2")
    ]
    assert (len(labels.table()), labels.csv) == (2, None)
    masks = robustcli.predict("otsu", [photos / "b.png", photos / "sub"], out="masks", device="cpu")
    assert isinstance(masks, PredictedMasks)
    assert masks.masks == (Path("masks/a.png"), Path("masks/b.png"))
    with pytest.raises(UsageError, match=r"no argument `batchsize`\. Did you mean `batch_size`"):
        robustcli.predict("otsu", photos, batchsize=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*PICO,), "No images were given"),
        ((*PICO, "photos", "--overlays"), "`--overlays` cannot be used with"),
        (("predict", "--model", "umamba-pico", "photos", "--csv"), "`--csv` cannot be used with"),
        (("predict", "--model", "umamba-pico", "photos"), "`--out` is missing"),
        (
            ("predict", "--model", "otsu", "photos", "--out", "m", "--label-space", "cifar10"),
            "`--label-space` cannot be used with",
        ),
        ((*PICO, "nowhere"), "`nowhere` does not exist"),
        ((*PICO, "nowhere", "--overlays", "--classes", "1=a"), "3 settings are wrong"),
        (("predict", "--model", "picco", "nowhere", "--dry-run"), "2 settings are wrong"),
        (("predict", "--model", "otsu", "photos", "--csv", "--classes", "1=a"), "3 settings are"),
    ],
)
def test_what_does_not_go_together(
    robust: Robust, photos: Path, arguments: tuple[str, ...], message: str
):
    outcome = robust(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
