"""From `--data` to an index, over every layout."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from robustcli.core.errors import UsageError
from robustcli.data.index import ImageIndex
from robustcli.data.open import open_index

Photos = Callable[..., Path]
MakeTar = Callable[..., Path]
WNIDS = ("n01440764/a.jpg", "n01494475/b.jpg", "n01494475/deep/er/c.jpg")


def _open(data: object, model: str = "imagenet-1k", **options: object) -> ImageIndex:
    return open_index(str(data), model_label_space=model, **options)  # type: ignore[arg-type]


def _targets(index: ImageIndex) -> dict[str, int]:
    return {image.image_id: image.target for image in index.images}


def test_imagenet_targets_are_those_of_the_published_list(shared: Path) -> None:
    sample = shared / "imagenet_sample"
    with (sample / "classes.csv").open() as file:
        published = {row["wnid"]: int(row["index"]) for row in csv.DictReader(file)}
    index = _open(sample / "val")
    assert len(index.images) == 500
    assert index.name == "imagenet_sample/val"
    for image in index.images:
        assert image.target == published[image.path.parent.name]
    by_torchvision = {
        name: i for i, name in enumerate(sorted(p.name for p in sample.glob("val/*")))
    }
    assert by_torchvision["n01494475"] == 0
    assert index.images[0].target == 4


def test_folders_of_wnids(photos: Photos) -> None:
    expected = {"n01440764/a.jpg": 0, "n01494475/b.jpg": 4, "n01494475/deep/er/c.jpg": 4}
    index = _open(photos(*WNIDS, "loose.jpg"))
    assert _targets(index) == expected
    assert list(_targets(index)) == sorted(expected)
    assert (index.available, index.subset, index.demonstration) == (3, None, False)
    assert index.label_space.name == "imagenet-1k"


def test_folders_of_class_names(photos: Photos) -> None:
    index = _open(photos("Great White Shark/a.jpg", "tench/b.jpg"))
    assert _targets(index) == {"Great White Shark/a.jpg": 2, "tench/b.jpg": 0}


def test_folders_of_indices_with_their_label_space(photos: Photos) -> None:
    index = _open(photos("0007/a.jpg", "999/b.jpg"), label_space="imagenet-1k")
    assert _targets(index) == {"0007/a.jpg": 7, "999/b.jpg": 999}


def test_a_classes_file_gives_the_order(photos: Photos, tmp_path: Path) -> None:
    (tmp_path / "pets.txt").write_text("dog\ncat\n")
    root = photos("cat/a.jpg", "dog/b.jpg")
    index = _open(root, "pets", label_space=str(tmp_path / "pets.txt"))
    assert _targets(index) == {"cat/a.jpg": 1, "dog/b.jpg": 0}
    assert index.label_space.name == "pets"


def test_flat_val_with_a_labels_file(photos: Photos, tmp_path: Path) -> None:
    root = photos("ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG", root="val")
    (tmp_path / "l.txt").write_text("n01751748\n65\n")
    targets = _targets(_open(root, label_space="imagenet-1k", labels=tmp_path / "l.txt"))
    assert list(targets.values()) == [65, 65]


def test_labels_of_ilsvrc_ids_are_refused(photos: Photos, tmp_path: Path) -> None:
    root = photos("a.JPEG", "b.JPEG")
    (tmp_path / "l.txt").write_text("490\n1000\n")
    with pytest.raises(
        UsageError, match=r"lies between 0 and 999\. .* are ILSVRC ids, not indices"
    ):
        _open(root, label_space="imagenet-1k", labels=tmp_path / "l.txt")


def test_flat_folder_with_wnids_in_the_names(photos: Photos) -> None:
    index = _open(photos("n01440764_tench.JPEG", "n01494475_hammerhead.JPEG"))
    assert list(_targets(index).values()) == [0, 4]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_manifests(photos: Photos, suffix: str) -> None:
    root = photos("x/a.jpg", "b.jpg")
    frame = pd.DataFrame({"path": ["x/a.jpg", "b.jpg"], "label": ["hammerhead", "n01440764"]})
    manifest = root / f"m{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(manifest)
    else:
        frame.to_csv(manifest, index=False, sep="," if suffix == ".csv" else "\t")
    assert _targets(_open(manifest)) == {"b.jpg": 0, "x/a.jpg": 4}


@pytest.mark.parametrize("prefix", ["", "./", "val/", "a/b/val/"])
@pytest.mark.parametrize("file", ["p.tar", "p.tar.gz"])
def test_tars_with_or_without_outer_folders(make_tar: MakeTar, file: str, prefix: str) -> None:
    index = _open(make_tar([prefix + name for name in WNIDS], file))
    assert _targets(index) == {name: 4 if "n01494475" in name else 0 for name in WNIDS}


def test_a_tar_with_one_class_keeps_its_class_folder(make_tar: MakeTar) -> None:
    assert _targets(_open(make_tar(["n01494475/sub/a.jpg"]))) == {"n01494475/sub/a.jpg": 4}


def test_a_tar_of_flat_photos_as_github_packs_them(make_tar: MakeTar) -> None:
    names = [f"imagenet-sample-images-22d0/{n}" for n in ("n01440764_tench.JPEG", "README.md")]
    assert _targets(_open(make_tar(names))) == {"n01440764_tench.JPEG": 0}


def test_a_tar_with_a_labels_file(make_tar: MakeTar, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("a.jpg tench\n")
    assert _targets(_open(make_tar(["val/a.jpg"]), labels=tmp_path / "l.txt")) == {"a.jpg": 0}


def test_the_bundled_set_is_the_default_for_cifar10(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    index = open_index(None, model_label_space="cifar10")
    assert (index.name, index.demonstration) == ("cifar10-mini", True)


def test_50_000_photos_are_indexed_in_seconds(tmp_path: Path) -> None:
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        for number in range(25_000):
            (tmp_path / folder / f"{number}.jpg").touch()
    start = time.process_time()
    index = _open(tmp_path, "cifar10")
    assert time.process_time() - start < 8
    assert len(index.images) == 50_000


@pytest.mark.parametrize("data", ["nowhere", "cifar10-min1"])
def test_what_is_not_there(data: str) -> None:
    message = {
        "nowhere": "It is no folder or file here",
        "cifar10-min1": "mean the data set `cifar",
    }
    with pytest.raises(UsageError, match=rf"There is no data at `{data}`\.\n.*{message[data]}"):
        _open(data)


def test_a_file_that_is_no_data(photos: Photos) -> None:
    file = photos("a.jpg") / "a.jpg"
    with pytest.raises(UsageError, match=r"a\.jpg` cannot be read as data\.\nExpected a folder"):
        _open(file)


def test_classes_that_the_model_does_not_have(photos: Photos) -> None:
    message = r"does not fit the model\.\nIts classes are `imagenet-1k` .* answers in `cifar10`"
    with pytest.raises(UsageError, match=message):
        _open(photos(*WNIDS), "cifar10")


def test_labels_beside_a_manifest(photos: Photos) -> None:
    root = photos("a.jpg")
    (root / "m.csv").write_text("path,label\na.jpg,tench\n")
    with pytest.raises(UsageError, match=r"`--labels .*` does not go with `--data .*m\.csv`"):
        _open(root / "m.csv", labels=root / "l.txt")


def test_data_with_masks_are_not_for_classifiers() -> None:
    with pytest.raises(UsageError, match="`--data nuclei-mini` has masks, no classes"):
        open_index("nuclei-mini", model_label_space="cifar10")
