"""From `--data` to pairs, over every layout and the real sets."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.data.open_pairs import groups_file, open_masked, open_pairs

Photos = Callable[..., Path]
MakeTar = Callable[..., Path]
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


def test_order_on_the_disk_does_not_matter(photos: Photos, make_tar: MakeTar) -> None:
    index = open_pairs(str(photos(*PAIRED)))
    assert [pair.image_id for pair in index.pairs] == ["b.jpg", "x/a.jpg"]
    for file in ("p.tar", "p.tar.gz"):
        packed = open_pairs(str(make_tar([f"outer/{name}" for name in reversed(PAIRED)], file)))
        assert packed.digest == index.digest
        assert packed.pairs[0].mask.member == "outer/masks/b.png"


def test_members_of_a_tar_are_found_by_offset(make_tar: MakeTar) -> None:
    path = make_tar(PAIRED)
    pair = open_pairs(str(path)).pairs[0]
    with tarfile.open(path) as archive:
        member = archive.getmember("masks/b.png")
    assert (pair.mask.offset, pair.mask.size) == (member.offset_data, member.size)


def test_groups_beside_the_pairs(photos: Photos, make_tar: MakeTar, tmp_path: Path) -> None:
    folder, packed = photos(*PAIRED), make_tar(PAIRED, "p.tar.gz")
    assert groups_file(packed) == tmp_path / "p.groups.csv"
    for file in (folder / "groups.csv", groups_file(packed)):
        file.write_text("image,patient\nb,one\nx/a,one\n")
    for data in (folder, packed):
        index = open_pairs(str(data))
        assert (index.groups, index.grouping) == (("one",), "patient")


def test_one_folder_of_the_ids(photos: Photos) -> None:
    root = photos(*PAIRED)
    index = open_pairs(f"{root}:x")
    assert ([p.image_id for p in index.pairs], index.name) == (["x/a.jpg"], "data:x")
    assert (index.available, index.subset) == (1, None)


def test_a_path_with_a_colon_is_a_path(photos: Photos) -> None:
    assert len(open_pairs(str(photos(*PAIRED, root="data:x"))).pairs) == 2


def test_a_folder_that_is_not_there(photos: Photos) -> None:
    root = photos(*PAIRED)
    message = r"data` has no folder `y`\.\nIts folders: `x` \(1\)\.\nWrite `--data .*data:FOLDER`"
    with pytest.raises(UsageError, match=message):
        open_pairs(f"{root}:y")


def test_a_manifest_is_named_as_data(photos: Photos) -> None:
    root = photos("a.jpg", "b.jpg", "m.png")
    (root / "m.csv").write_text("image,mask,patient\nb.jpg,m.png,p\na.jpg,m.png,p\n")
    index = open_pairs(str(root / "m.csv"))
    assert (index.name, [p.image_id for p in index.pairs]) == ("m.csv", ["a.jpg", "b.jpg"])


def test_a_group_in_two_splits_is_a_leak(photos: Photos) -> None:
    root = photos("a.jpg", "b.jpg", "m.png")
    (root / "m.csv").write_text(
        "image,mask,patient,split\na.jpg,m.png,p,train\nb.jpg,m.png,p,test\n"
    )
    message = r"puts 1 of 1 groups into more than one split\.\nA patient in training and test .*`p`"
    with pytest.raises(UsageError, match=message):
        open_pairs(str(root / "m.csv"))


def test_the_default_comes_from_the_environment(
    photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUST_DATA_SEGMENTATION", str(photos(*PAIRED)))
    assert len(open_pairs(None).pairs) == 2


def test_the_default_comes_from_the_settings(
    photos: Photos, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
def test_what_is_not_there(data: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_pairs(data)


def test_what_cannot_be_read(photos: Photos, tmp_path: Path) -> None:
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
