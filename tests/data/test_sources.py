"""From `--data` to a data set with classes or masks, over every kind of place and the real sets."""

from __future__ import annotations

import csv
import tarfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.data.dataset import Dataset
from robustcli.data.sources import (
    Classes,
    DefaultData,
    Masks,
    default_data,
    groups_file,
    open_dataset,
    variable_for,
)
from tests.training.images import write_photos

MASKS = Masks(surveyed=False)
Photos = Callable[..., Path]
MakeTar = Callable[..., Path]
WNIDS = ("n01440764/a.jpg", "n01494475/b.jpg", "n01494475/deep/er/c.jpg")
PAIRED = ("images/x/a.jpg", "masks/x/a.png", "images/b.jpg", "masks/b.png")
CLASSES = Classes("imagenet-1k")


def _open(data: object, model: str = "imagenet-1k", **options: object) -> Dataset:
    return open_dataset(str(data), Classes(model, **options))  # type: ignore[arg-type]


def _targets(index: Dataset) -> dict[str, int]:
    return {image.image_id: image.target for image in index.samples}


def _photos_with(kind: Classes | Masks, photos: Photos, root: str = "data") -> Path:
    """Photos with one of two classes, or with masks."""
    return photos(*(PAIRED if isinstance(kind, Masks) else WNIDS), root=root)


kinds = pytest.mark.parametrize("kind", [CLASSES, Classes(), MASKS])


@pytest.mark.parametrize(
    ("kind", "folder", "ids"),
    [
        (CLASSES, "n01494475", ["n01494475/b.jpg", "n01494475/deep/er/c.jpg"]),
        (Classes(), "n01494475/deep", ["n01494475/deep/er/c.jpg"]),
        (MASKS, "x", ["x/a.jpg"]),
    ],
)
def test_one_folder_of_the_ids(
    kind: Classes | Masks, folder: str, ids: list[str], photos: Photos
) -> None:
    root = _photos_with(kind, photos)
    dataset, part = open_dataset(str(root), kind), open_dataset(f"{root}:{folder}", kind)
    assert [sample.image_id for sample in part.samples] == ids
    assert part.samples == tuple(s for s in dataset.samples if s.image_id in ids)
    assert (part.name, part.available, part.subset) == (f"data:{folder}", len(ids), None)
    assert part.label_space == dataset.label_space


def test_a_folder_may_be_typed_in_another_unicode_form(photos: Photos) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for form, root in ((composed, "composed"), (decomposed, "decomposed")):
        data = photos(f"{form}/a.jpg", "dog/b.jpg", root=root)
        for folder in (composed, decomposed, f"./{composed}/"):
            part = open_dataset(f"{data}:{folder}", Classes())
            assert [sample.image_id for sample in part.samples] == [f"{composed}/a.jpg"]


@kinds
def test_a_path_with_a_colon_is_a_path(kind: Classes | Masks, photos: Photos) -> None:
    assert open_dataset(str(_photos_with(kind, photos, "data:x")), kind).name == "data:x"


@kinds
def test_a_folder_that_is_not_there(kind: Classes | Masks, photos: Photos) -> None:
    root = _photos_with(kind, photos)
    message = (
        r"data` has no folder `y`\.\nIts folders: `.*` \(1\).*\.\nWrite `--data .*data:FOLDER`"
    )
    with pytest.raises(UsageError, match=message):
        open_dataset(f"{root}:y", kind)


@kinds
@pytest.mark.parametrize("data", ["nowhere", "C:\\data", "nowhere:x"])
def test_what_is_not_there(kind: Classes | Masks, data: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_dataset(data, kind)
    assert caught.value.what == f"No data set was found at `{data}`."
    assert caught.value.why.startswith("It is neither the name of a data set nor a file or folder")


@pytest.mark.parametrize(
    ("kind", "data", "meant"),
    [
        (CLASSES, "cifar10-min1", "cifar10-mini"),
        (Classes(), "imagenet-samples", "imagenet-sample"),
        (MASKS, "nuclei-mimi", "nuclei-mini"),
    ],
)
def test_a_name_that_is_nearly_right(kind: Classes | Masks, data: str, meant: str) -> None:
    message = rf"No data set was found at `{data}`\.\nDid you mean the data set `{meant}`"
    with pytest.raises(UsageError, match=message):
        open_dataset(data, kind)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (CLASSES, "nuclei-mini", r"has masks, not classes\.\n.*\n.*data are for `imagenet-1k`"),
        (Classes(), "nuclei-mini", r"has masks, not classes\.\n.*\n.*which data have classes"),
        (MASKS, "cifar10-mini", r"has no masks\.\n.*`cifar10`\.\n.*`--data nuclei-mini`"),
    ],
)
def test_named_data_of_the_other_kind(kind: Classes | Masks, data: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_dataset(data, kind)


@kinds
def test_a_file_that_is_no_data(kind: Classes | Masks, photos: Photos) -> None:
    file = photos("a.jpg") / "a.jpg"
    with pytest.raises(UsageError, match=r"a\.jpg` cannot be read as data\.\nExpected a folder"):
        open_dataset(str(file), kind)


@pytest.mark.parametrize(
    ("kind", "todo"),
    [
        (CLASSES, "Pass the folder whose subfolders"),
        (Classes(), "Pass the folder whose subfolders"),
        (MASKS, "Put the files into one of these layouts"),
    ],
)
def test_an_empty_folder(kind: Classes | Masks, todo: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=rf"empty` contains no images\.\n.*\n{todo}"):
        open_dataset(str(tmp_path / "empty"), kind)
    (tmp_path / "empty" / "val.tar").touch()
    with pytest.raises(
        UsageError, match=r"To read a tar file of this folder, pass it: `--data .*val\.tar`"
    ):
        open_dataset(str(tmp_path / "empty"), kind)


@pytest.mark.parametrize(
    ("kind", "label_space", "variable", "bundled"),
    [
        (Classes("cifar10"), "cifar10", "ROBUST_DATA_CIFAR10", "cifar10-mini"),
        (MASKS, "segmentation", "ROBUST_DATA_SEGMENTATION", "nuclei-mini"),
    ],
)
def test_the_default_is_of_the_environment_the_settings_or_bundled(
    kind: Classes | Masks, label_space: str, variable: str, bundled: str, photos: Photos,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    default = open_dataset(None, kind)
    assert (default.name, default.demonstration) == (bundled, True)
    names = PAIRED if isinstance(kind, Masks) else ("cat/a.jpg", "dog/b.jpg")
    Path("robust.toml").write_text(f'[data]\n{label_space} = "{photos(*names, root="told")}"\n')
    assert (open_dataset(None, kind).name, open_dataset(None, kind).demonstration) == (
        "told", False,
    )  # fmt: skip
    monkeypatch.setenv(variable, str(photos(*names, root="set")))
    assert open_dataset(None, kind).name == "set"


def test_imagenet_targets_are_those_of_the_published_list(shared: Path) -> None:
    sample = shared / "imagenet_sample"
    with (sample / "classes.csv").open() as file:
        published = {row["wnid"]: int(row["index"]) for row in csv.DictReader(file)}
    index = _open(sample / "val")
    assert len(index.samples) == 500
    assert index.name == "imagenet_sample/val"
    for image in index.samples:
        assert image.target == published[image.image.path.parent.name]
    by_torchvision = {
        name: i for i, name in enumerate(sorted(p.name for p in sample.glob("val/*")))
    }
    assert by_torchvision["n01494475"] == 0
    assert index.samples[0].target == 4


def test_folders_of_wnids(photos: Photos) -> None:
    expected = {"n01440764/a.jpg": 0, "n01494475/b.jpg": 4, "n01494475/deep/er/c.jpg": 4}
    index = _open(photos(*WNIDS, "loose.jpg"))
    assert _targets(index) == expected
    assert list(_targets(index)) == sorted(expected)
    assert (index.available, index.subset, index.demonstration) == (3, None, False)
    assert index.label_space.name == "imagenet-1k"


@pytest.mark.parametrize(
    ("names", "label_space", "targets"),
    [
        (["Great White Shark/a.jpg", "tench/b.jpg"], None, [2, 0]),
        (["0007/a.jpg", "999/b.jpg"], "imagenet-1k", [7, 999]),
        (["n01440764_tench.JPEG", "n01494475_hammerhead.JPEG"], None, [0, 4]),
    ],
)
def test_names_and_indices_of_classes(
    names: list[str], label_space: str | None, targets: list[int], photos: Photos
) -> None:
    dataset = _open(photos(*names), label_space=label_space)
    assert _targets(dataset) == dict(zip(names, targets, strict=True))


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
    with pytest.raises(UsageError, match=r"is between 0 and 999\. .* are ILSVRC ids, not indices"):
        _open(root, label_space="imagenet-1k", labels=tmp_path / "l.txt")


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


def test_tars_of_one_class_and_of_flat_photos(make_tar: MakeTar) -> None:
    assert _targets(_open(make_tar(["n01494475/sub/a.jpg"]))) == {"n01494475/sub/a.jpg": 4}
    names = [f"imagenet-sample-images-22d0/{n}" for n in ("n01440764_tench.JPEG", "README.md")]
    assert _targets(_open(make_tar(names))) == {"n01440764_tench.JPEG": 0}


def test_a_tar_with_a_labels_file(make_tar: MakeTar, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("a.jpg tench\n")
    assert _targets(_open(make_tar(["val/a.jpg"]), labels=tmp_path / "l.txt")) == {"a.jpg": 0}


def test_2_000_photos_are_indexed_in_a_second(tmp_path: Path) -> None:
    """The 50,000 images of ImageNet's validation set then take less than half a minute."""
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        for number in range(1_000):
            (tmp_path / folder / f"{number}.jpg").touch()
    start = time.process_time()
    index = _open(tmp_path, "cifar10")
    assert time.process_time() - start < 1
    assert len(index.samples) == 2_000


def test_classes_that_the_model_does_not_have(photos: Photos) -> None:
    message = (
        r"does not fit the model\.\nIts classes are `imagenet-1k` .* predicts classes of `cifar10`"
    )
    with pytest.raises(UsageError, match=message):
        _open(photos(*WNIDS), "cifar10")


def test_labels_beside_a_manifest(photos: Photos) -> None:
    root = photos("a.jpg")
    (root / "m.csv").write_text("path,label\na.jpg,tench\n")
    with pytest.raises(UsageError, match=r"`--labels .*` cannot be used with `--data .*m\.csv`"):
        _open(root / "m.csv", labels=root / "l.txt")


def test_class_folders_are_the_classes(tmp_path: Path) -> None:
    index = open_dataset(str(write_photos(tmp_path / "paints", 2)), Classes())
    assert (index.name, index.label_space.ids) == ("paints", ("blue", "green", "red"))
    ids = [image.image_id for image in index.samples]
    assert ids[:3] == ["blue/000.png", "blue/001.png", "green/000.png"]
    assert [i.target for i in index.samples] == [0, 0, 1, 1, 2, 2]
    assert {i.split for i in index.samples} == {None}


def test_folders_of_parts_say_the_part(tmp_path: Path) -> None:
    for part in ("train", "validation", "test"):
        write_photos(tmp_path / "paints" / part, 1)
    index = open_dataset(str(tmp_path / "paints"), Classes())
    assert index.label_space.ids == ("blue", "green", "red")
    assert {i.image_id: i.split for i in index.samples if i.target == 0} == {
        "train/blue/000.png": "train", "validation/blue/000.png": "val",
        "test/blue/000.png": "test",
    }  # fmt: skip


def test_a_tar_of_the_same_has_the_same_ids(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_photos(tmp_path / "paints" / part, 1)
    with tarfile.open(tmp_path / "paints.tar", "w") as tar:
        tar.add(tmp_path / "paints", "outer/paints")
    folder, packed = (
        open_dataset(str(tmp_path / name), Classes()) for name in ("paints", "paints.tar")
    )
    assert packed.digest == folder.digest
    assert [i.split for i in packed.samples] == [i.split for i in folder.samples]


def test_all_classes_of_a_known_label_space_are_that(tmp_path: Path) -> None:
    index = open_dataset("cifar10-mini", Classes())
    assert (index.label_space.name, index.demonstration) == ("cifar10", True)
    again = open_dataset("cifar10-mini", Classes("cifar10"))
    assert again.digest == index.digest


def test_a_manifest_may_say_the_part(tmp_path: Path) -> None:
    write_photos(tmp_path, 2)
    rows = [
        f"{c}/{n:03}.png,{c},{'Training' if n else 'test'}" for c in ("red", "blue") for n in (0, 1)
    ]
    (tmp_path / "paints.csv").write_text("\n".join(["path,label,split", *rows]))
    index = open_dataset(str(tmp_path / "paints.csv"), Classes())
    assert index.label_space.ids == ("blue", "red")
    assert [i.split for i in index.samples] == ["test", "train", "test", "train"]


def test_the_evaluation_finds_the_parts_of_a_model_that_was_trained_so(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_photos(tmp_path / "paints" / part, 1)
    dataset = open_dataset(str(tmp_path / "paints"), Classes())
    paints = Classes("paints", label_space=dataset.label_space, splits=True)
    index = open_dataset(str(tmp_path / "paints"), paints)
    assert index.digest == dataset.digest


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.png"], "does not contain the classes of its images"),
        (["cat/a.png"], "has one class only, `cat`"),
        ([], "contains no images"),
    ],
)
def test_what_has_no_classes_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    root = tmp_path / "pets"
    root.mkdir()
    for name in files:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    with pytest.raises(UsageError, match=message):
        open_dataset(str(root), Classes())


@pytest.mark.parametrize("folder", ["lgg_jpeg", "lgg_jpeg/kaggle_3m"])
def test_lgg(shared: Path, folder: str) -> None:
    index = open_dataset(str(shared / folder), MASKS)
    assert (len(index.samples), index.available, index.grouping) == (3929, 3929, "patient")
    assert len(index.groups) == 110
    # A patient is TCGA_<site>_<number>, the folder adds the date: one date each.
    assert len({group.rsplit("_", 1)[0] for group in index.groups}) == 110
    for pair in index.samples:
        patient, name = pair.image_id.split("/")
        assert pair.group == patient == pair.image.path.parent.name
        assert pair.mask.path.name == name.replace(".tif", "_mask.tif")
    assert index.name == ("lgg_jpeg/kaggle_3m" if "/" in folder else "lgg_jpeg")


def test_a_parent_gives_the_same_ids_and_digest(shared: Path) -> None:
    dataset = open_dataset(str(shared / "lgg_original"), MASKS)
    assert dataset.digest == open_dataset(str(shared / "lgg_original" / "kaggle_3m"), MASKS).digest
    assert len(dataset.groups) == 4


def test_roads(shared: Path) -> None:
    index = open_dataset(str(shared / "massachusetts_roads"), MASKS)
    assert (len(index.samples), len(index.groups), index.grouping) == (89, 38, "photo")
    assert index.tolerance == 3
    assert Counter(pair.split for pair in index.samples) == {"train": 70, "val": 10, "test": 9}
    splits_of = {
        group: {p.split for p in index.samples if p.group == group} for group in index.groups
    }
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert splits_of["17278960_15"] == {"train"}


def test_microscopy(shared: Path) -> None:
    index = open_dataset(str(shared / "dsb2018_pairs"), MASKS)
    assert (len(index.samples), len(index.groups), index.grouping) == (194, 194, "image")
    assert not index.demonstration


def test_order_on_the_disk_does_not_matter(photos: Photos, make_tar: MakeTar) -> None:
    index = open_dataset(str(photos(*PAIRED)), MASKS)
    assert [pair.image_id for pair in index.samples] == ["b.jpg", "x/a.jpg"]
    for file in ("p.tar", "p.tar.gz"):
        tar = make_tar([f"outer/{name}" for name in reversed(PAIRED)], file)
        packed = open_dataset(str(tar), MASKS)
        assert packed.digest == index.digest
        assert packed.samples[0].mask.member == "outer/masks/b.png"


def test_groups_beside_the_pairs(photos: Photos, make_tar: MakeTar, tmp_path: Path) -> None:
    folder, packed = photos(*PAIRED), make_tar(PAIRED, "p.tar.gz")
    assert groups_file(packed) == tmp_path / "p.groups.csv"
    for file in (folder / "groups.csv", groups_file(packed)):
        file.write_text("image,patient\nb,one\nx/a,one\n")
    for data in (folder, packed):
        index = open_dataset(str(data), MASKS)
        assert (index.groups, index.grouping) == (("one",), "patient")


def test_a_manifest_is_named_as_data(photos: Photos) -> None:
    root = photos("a.jpg", "b.jpg", "m.png")
    (root / "m.csv").write_text("image,mask,patient\nb.jpg,m.png,p\na.jpg,m.png,p\n")
    index = open_dataset(str(root / "m.csv"), MASKS)
    assert (index.name, [p.image_id for p in index.samples]) == ("m.csv", ["a.jpg", "b.jpg"])


def test_parts_are_no_classes(photos: Photos) -> None:
    """`train` and `test` are neither, whether one class lies in them or none."""
    folder = photos("train/cat/a.jpg", "test/cat/b.jpg", root="one")
    with pytest.raises(UsageError, match="has one class only, `cat`"):
        open_dataset(str(folder), Classes())
    none = photos("train/a.jpg", "test/b.jpg", root="none")
    with pytest.raises(UsageError, match="does not contain the classes of its images"):
        open_dataset(str(none), Classes())
    vehicles = photos("train/a.jpg", "truck/b.jpg", root="vehicles")
    assert open_dataset(str(vehicles), Classes()).classes.ids == ("train", "truck")


def test_a_group_in_two_splits_is_a_leak(photos: Photos) -> None:
    root = photos("a.jpg", "b.jpg", "m.png")
    (root / "m.csv").write_text(
        "image,mask,patient,split\na.jpg,m.png,p,train\nb.jpg,m.png,p,test\n"
    )
    message = (
        r"puts 1 of 1 groups into more than one split\.\nIf a patient is in both training and "
        r"test, .*`p`"
    )
    with pytest.raises(UsageError, match=message):
        open_dataset(str(root / "m.csv"), MASKS)


def _squares(root: Path, *folders: str, value: int) -> Path:
    for folder in folders:
        for place in ("images", "masks"):
            (root / place / folder).mkdir(parents=True)
        for number in range(3):
            mask = np.zeros((8, 8), np.uint8)
            mask[number : number + 3, 2:5] = value
            Image.fromarray(mask).save(root / "masks" / folder / f"{number}.png")
            Image.new("RGB", (8, 8)).save(root / "images" / folder / f"{number}.png")
    return root


def test_one_decision_about_masks_holds_for_every_part(tmp_path: Path) -> None:
    root = _squares(tmp_path / "data", "one", "two", value=3)
    dataset, part = open_dataset(str(root), Masks()), open_dataset(f"{root}:one", Masks())
    assert dataset.reading is not None
    assert dataset.reading.foreground == (3,)
    assert part.reading == dataset.reading
    assert {pair.reading for pair in part.samples} == {dataset.reading}
    assert part.notes == dataset.notes
    assert len(part.samples) == 3
    assert "foreground 3, background 0" in part.notes[0]
    assert open_dataset(str(root), Masks(ignore=3, foreground="nonzero")).reading != dataset.reading


def test_leftovers_beside_pairs_do_not_count(tmp_path: Path) -> None:
    root = _squares(tmp_path / "data", "one", value=255)
    (root / "masks" / "one" / ".ipynb_checkpoints").mkdir()
    (root / "masks" / "one" / ".ipynb_checkpoints" / "0-checkpoint.png").touch()
    (root / "images" / "one" / "._0.png").touch()
    dataset = open_dataset(str(root), Masks())
    assert len(dataset.samples) == 3
    assert "2 files with suffixes of images" in dataset.notes[0]
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(root, "data")
    packed = open_dataset(str(tmp_path / "x.tar"), Masks())
    assert [pair.image_id for pair in packed.samples] == [pair.image_id for pair in dataset.samples]
    assert "2 files with suffixes of images" in packed.notes[0]


@pytest.fixture
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


in_an_empty_folder = pytest.mark.usefixtures("_in_an_empty_folder")


@in_an_empty_folder
def test_the_environment_comes_before_the_settings_and_these_before_the_bundled_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("robust.toml").write_text("[other]\nx = 1\n")
    assert default_data("cifar10") == DefaultData("cifar10-mini", "bundled")
    Path("robust.toml").write_text('[data]\nCIFAR10 = "my"\nimagenet_1k = "from/toml"\n')
    assert default_data("cifar10").data == "my"
    assert default_data("imagenet-1k") == DefaultData("from/toml", "`robust.toml`")
    monkeypatch.setenv(variable_for("imagenet-1k"), "from/env")
    assert default_data("imagenet-1k").data == "from/env"
    assert "ROBUST_DATA_IMAGENET_1K" in default_data("imagenet-1k").origin


@in_an_empty_folder
def test_without_any_the_three_ways_are_shown() -> None:
    with pytest.raises(UsageError) as caught:
        default_data("imagenet-1k")
    assert caught.value.exit_code == 2
    ways = caught.value.todo.splitlines()[1:]
    assert ways[0].strip() == "--data DIR"
    assert "ROBUST_DATA_IMAGENET_1K=DIR" in ways[1]
    assert '`imagenet-1k = "DIR"` below `[data]` in `robust.toml`' in ways[1]
    assert "--data imagenet-sample, after `robust fetch imagenet-sample`" in ways[2]


@in_an_empty_folder
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[data\n", r"`robust\.toml` cannot be read"),
        (f"x = {'[' * 50_000}", r"`robust\.toml` cannot be read"),
        ("[data]\nimagenet-1k = 3\n", r"`imagenet-1k` must be a string\.\n.*got `3`"),
        ('data = "x"\n', r"`data` must be a table\.\nGot `x`"),
    ],
)
def test_wrong_settings(content: str, message: str) -> None:
    Path("robust.toml").write_text(content)
    with pytest.raises(UsageError, match=message):
        default_data("imagenet-1k")
