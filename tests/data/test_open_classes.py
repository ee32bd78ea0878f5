"""Data with whatever classes it has, as training reads it."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.data.open import open_classes, open_index
from tests.training.photos import write_photos


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
