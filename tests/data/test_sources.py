"""From `--data` to pairs, over every layout and the real sets."""

from __future__ import annotations

import csv
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.data.dataset import ImageIndex
from robustcli.data.sources import groups_file, open_classes, open_index, open_masked, open_pairs
from tests.training.photos import write_photos

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


def test_class_folders_are_the_classes(tmp_path: Path) -> None:
    index = open_classes(str(write_photos(tmp_path / "paints", 2)))
    assert (index.name, index.label_space.ids) == ("paints", ("blue", "green", "red"))
    assert [i.image_id for i in index.images][:3] == [
        "blue/000.png",
        "blue/001.png",
        "green/000.png",
    ]
    assert [i.target for i in index.images] == [0, 0, 1, 1, 2, 2]
    assert {i.split for i in index.images} == {None}


def test_folders_of_parts_say_the_part(tmp_path: Path) -> None:
    for part in ("train", "validation", "test"):
        write_photos(tmp_path / "paints" / part, 1)
    index = open_classes(str(tmp_path / "paints"))
    assert index.label_space.ids == ("blue", "green", "red")
    assert {i.image_id: i.split for i in index.images if i.target == 0} == {
        "train/blue/000.png": "train", "validation/blue/000.png": "val",
        "test/blue/000.png": "test",
    }  # fmt: skip


def test_a_tar_of_the_same_has_the_same_ids(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_photos(tmp_path / "paints" / part, 1)
    with tarfile.open(tmp_path / "paints.tar", "w") as tar:
        tar.add(tmp_path / "paints", "outer/paints")
    folder, packed = (
        open_classes(str(tmp_path / "paints")),
        open_classes(str(tmp_path / "paints.tar")),
    )
    assert packed.digest == folder.digest
    assert [i.split for i in packed.images] == [i.split for i in folder.images]


def test_all_classes_of_a_known_label_space_are_that(tmp_path: Path) -> None:
    index = open_classes("cifar10-mini")
    assert (index.label_space.name, index.demonstration) == ("cifar10", True)
    again = open_index("cifar10-mini", model_label_space="cifar10")
    assert again.digest == index.digest


def test_a_manifest_may_say_the_part(tmp_path: Path) -> None:
    write_photos(tmp_path, 2)
    rows = [
        f"{c}/{n:03}.png,{c},{'Training' if n else 'test'}" for c in ("red", "blue") for n in (0, 1)
    ]
    (tmp_path / "paints.csv").write_text("\n".join(["path,label,split", *rows]))
    index = open_classes(str(tmp_path / "paints.csv"))
    assert index.label_space.ids == ("blue", "red")
    assert [i.split for i in index.images] == ["test", "train", "test", "train"]


def test_the_evaluation_finds_the_parts_of_a_model_that_was_trained_so(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_photos(tmp_path / "paints" / part, 1)
    own = open_classes(str(tmp_path / "paints"))
    index = open_index(
        str(tmp_path / "paints"), model_label_space="paints", label_space=own.label_space,
        parts=True,
    )  # fmt: skip
    assert index.digest == own.digest


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.png"], "does not say what its images show"),
        (["cat/a.png"], "has one class only, `cat`"),
        ([], "holds no images"),
    ],
)
def test_what_has_no_classes_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    root = tmp_path / "pets"
    root.mkdir()
    for name in files:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    with pytest.raises(UsageError, match=message):
        open_classes(str(root))


def test_masks_are_no_classes() -> None:
    with pytest.raises(UsageError, match="`--data nuclei-mini` has masks, no classes"):
        open_classes("nuclei-mini")


Photos_open_pairs = Callable[..., Path]
MakeTar_open_pairs = Callable[..., Path]
PAIRED = ("images/x/a.jpg", "masks/x/a.png", "images/b.jpg", "masks/b.png")


@pytest.mark.parametrize("folder", ["lgg_jpeg", "lgg_jpeg/kaggle_3m"])
def test_lgg(shared: Path, folder: str) -> None:
    index = open_pairs(str(shared / folder))
    assert (len(index.pairs), index.available, index.grouping) == (3929, 3929, "patient")
    assert len(index.groups) == 110
    # A patient is TCGA_<site>_<number>, the folder adds the date: one date each.
    assert len({group.rsplit("_", 1)[0] for group in index.groups}) == 110
    for pair in index.pairs:
        patient, name = pair.image_id.split("/")
        assert pair.group == patient == pair.image.path.parent.name
        assert pair.mask.path.name == name.replace(".tif", "_mask.tif")
    assert index.name == ("lgg_jpeg/kaggle_3m" if "/" in folder else "lgg_jpeg")


def test_a_parent_gives_the_same_ids_and_digest(shared: Path) -> None:
    whole = open_pairs(str(shared / "lgg_original"))
    assert whole.digest == open_pairs(str(shared / "lgg_original" / "kaggle_3m")).digest
    assert len(whole.groups) == 4


def test_roads(shared: Path) -> None:
    index = open_pairs(str(shared / "massachusetts_roads"))
    assert (len(index.pairs), len(index.groups), index.grouping) == (89, 38, "photo")
    assert index.tolerance == 3
    assert Counter(pair.split for pair in index.pairs) == {"train": 70, "val": 10, "test": 9}
    splits_of = {
        group: {p.split for p in index.pairs if p.group == group} for group in index.groups
    }
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert splits_of["17278960_15"] == {"train"}


def test_microscopy(shared: Path) -> None:
    index = open_pairs(str(shared / "dsb2018_pairs"))
    assert (len(index.pairs), len(index.groups), index.grouping) == (194, 194, "image")
    assert not index.demonstration


def test_order_on_the_disk_does_not_matter(
    photos: Photos_open_pairs, make_tar: MakeTar_open_pairs
) -> None:
    index = open_pairs(str(photos(*PAIRED)))
    assert [pair.image_id for pair in index.pairs] == ["b.jpg", "x/a.jpg"]
    for file in ("p.tar", "p.tar.gz"):
        packed = open_pairs(str(make_tar([f"outer/{name}" for name in reversed(PAIRED)], file)))
        assert packed.digest == index.digest
        assert packed.pairs[0].mask.member == "outer/masks/b.png"


def test_members_of_a_tar_are_found_by_offset(make_tar: MakeTar_open_pairs) -> None:
    path = make_tar(PAIRED)
    pair = open_pairs(str(path)).pairs[0]
    with tarfile.open(path) as archive:
        member = archive.getmember("masks/b.png")
    assert (pair.mask.offset, pair.mask.size) == (member.offset_data, member.size)


def test_groups_beside_the_pairs(
    photos: Photos_open_pairs, make_tar: MakeTar_open_pairs, tmp_path: Path
) -> None:
    folder, packed = photos(*PAIRED), make_tar(PAIRED, "p.tar.gz")
    assert groups_file(packed) == tmp_path / "p.groups.csv"
    for file in (folder / "groups.csv", groups_file(packed)):
        file.write_text("image,patient\nb,one\nx/a,one\n")
    for data in (folder, packed):
        index = open_pairs(str(data))
        assert (index.groups, index.grouping) == (("one",), "patient")


def test_one_folder_of_the_ids(photos: Photos_open_pairs) -> None:
    root = photos(*PAIRED)
    index = open_pairs(f"{root}:x")
    assert ([p.image_id for p in index.pairs], index.name) == (["x/a.jpg"], "data:x")
    assert (index.available, index.subset) == (1, None)


def test_a_path_with_a_colon_is_a_path(photos: Photos_open_pairs) -> None:
    assert len(open_pairs(str(photos(*PAIRED, root="data:x"))).pairs) == 2


def test_a_folder_that_is_not_there(photos: Photos_open_pairs) -> None:
    root = photos(*PAIRED)
    message = r"data` has no folder `y`\.\nIts folders: `x` \(1\)\.\nWrite `--data .*data:FOLDER`"
    with pytest.raises(UsageError, match=message):
        open_pairs(f"{root}:y")


def test_a_manifest_is_named_as_data(photos: Photos_open_pairs) -> None:
    root = photos("a.jpg", "b.jpg", "m.png")
    (root / "m.csv").write_text("image,mask,patient\nb.jpg,m.png,p\na.jpg,m.png,p\n")
    index = open_pairs(str(root / "m.csv"))
    assert (index.name, [p.image_id for p in index.pairs]) == ("m.csv", ["a.jpg", "b.jpg"])


def test_a_group_in_two_splits_is_a_leak(photos: Photos_open_pairs) -> None:
    root = photos("a.jpg", "b.jpg", "m.png")
    (root / "m.csv").write_text(
        "image,mask,patient,split\na.jpg,m.png,p,train\nb.jpg,m.png,p,test\n"
    )
    message = r"puts 1 of 1 groups into more than one split\.\nA patient in training and test .*`p`"
    with pytest.raises(UsageError, match=message):
        open_pairs(str(root / "m.csv"))


def test_the_default_comes_from_the_environment(
    photos: Photos_open_pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUST_DATA_SEGMENTATION", str(photos(*PAIRED)))
    assert len(open_pairs(None).pairs) == 2


def test_the_default_comes_from_the_settings(
    photos: Photos_open_pairs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("robust.toml").write_text(f'[data]\nsegmentation = "{photos(*PAIRED)}"\n')
    assert len(open_pairs(None).pairs) == 2


def test_else_the_bundled_set_is_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    index = open_pairs(None)
    assert (index.name, index.demonstration) == ("nuclei-mini", True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere", r"There is no data at `nowhere`\.\nIt is no folder or file here"),
        (
            "nuclei-mimi",
            r"There is no data at `nuclei-mimi`\.\nDid you mean the data set `nuclei-mi",
        ),
        ("C:\\data", r"There is no data at `C:\\data`"),
        ("cifar10-mini", r"`cifar10-mini` has no masks\.\n.*`cifar10`\.\n.*`--data nuclei-mini`"),
    ],
)
def test_what_is_not_there_open_pairs(data: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_pairs(data)


def test_what_cannot_be_read(photos: Photos_open_pairs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"b\.jpg` cannot be read as data\.\nExpected a folder"):
        open_pairs(str(photos(*PAIRED) / "images" / "b.jpg"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty` holds no images\.\n.*\nPut the files into one"):
        open_pairs(str(tmp_path / "empty"))


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
    whole, part = open_masked(str(root)), open_masked(f"{root}:one")
    assert whole.reading is not None
    assert whole.reading.foreground == (3,)
    assert part.reading == whole.reading
    assert {pair.reading for pair in part.pairs} == {whole.reading}
    assert part.notes == whole.notes
    assert len(part.pairs) == 3
    assert "foreground 3, background 0" in part.notes[0]
    assert open_masked(str(root), ignore=3, foreground="nonzero").reading != whole.reading


def test_leftovers_beside_pairs_do_not_count(tmp_path: Path) -> None:
    root = _squares(tmp_path / "data", "one", value=255)
    (root / "masks" / "one" / ".ipynb_checkpoints").mkdir()
    (root / "masks" / "one" / ".ipynb_checkpoints" / "0-checkpoint.png").touch()
    (root / "images" / "one" / "._0.png").touch()
    found = open_masked(str(root))
    assert len(found.pairs) == 3
    assert "2 files named like images" in found.notes[0]
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(root, "data")
    packed = open_masked(str(tmp_path / "x.tar"))
    assert [pair.image_id for pair in packed.pairs] == [pair.image_id for pair in found.pairs]
    assert "2 files named like images" in packed.notes[0]
