"""Natural shifts of ImageNet: class numbers, masked answers, several true classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.data.labels import label_space
from robustcli.data.natural_shifts import find_shift
from robustcli.data.sources import Classes, open_dataset

WNIDS = label_space("imagenet-1k").ids
PIXELS = np.zeros((4, 4, 3), np.uint8)


def write(folder, *names):
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS).save(target)
    return folder


def opened(path, **options):
    return open_dataset(str(path), Classes("imagenet-1k", **options))


@pytest.mark.parametrize(
    ("name", "shift"),
    [
        ("imagenet-a", "ImageNet-A"), ("ImageNet_R", "ImageNet-R"),
        ("imagenet-r.tar", "ImageNet-R"),
        ("imagenetv2-matched-frequency-format-val", "ImageNet-V2"), ("sketch", "ImageNet-Sketch"),
        ("imagenet-a/val", "ImageNet-A"), ("imagenet", None), ("imagenet-real", None),
        ("imagenet-100", None),
    ],
)  # fmt: skip
def test_shifts_are_known_by_the_name_of_their_folder(tmp_path, name, shift):
    found = find_shift(tmp_path / name)
    assert (found and found.name) == shift


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_a_and_r_let_models_answer_with_their_200_classes(tmp_path, name):
    chosen = np.random.default_rng(0).choice(1000, 200, replace=False)
    folder = write(tmp_path / name, *(f"{WNIDS[i]}/0.5_x.png" for i in chosen))
    (folder / "README.txt").write_text("ImageNet-A")
    dataset = opened(folder)
    assert dataset.answers == tuple(sorted(chosen))
    assert any("200 classes only" in note for note in dataset.notes)
    assert {sample.image_id: sample.target for sample in dataset.samples} == {
        f"{WNIDS[i]}/0.5_x.png": i for i in chosen
    }
    assert opened(folder, answers="all").answers is None
    assert opened(f"{folder}:{WNIDS[chosen[0]]}").answers == dataset.answers


def test_fewer_classes_than_published_are_refused_unless_asked_for(tmp_path):
    folder = write(tmp_path / "imagenet-a", f"{WNIDS[3]}/a.png", f"{WNIDS[990]}/a.png")
    with pytest.raises(UsageError, match="2 of the 200 classes of ImageNet-A"):
        opened(folder)
    assert opened(folder, answers="present").answers == (3, 990)
    assert opened(folder, answers="all").answers is None


def test_other_data_are_masked_only_on_request(tmp_path):
    folder = write(tmp_path / "mine", f"{WNIDS[3]}/a.png", f"{WNIDS[990]}/a.png")
    assert opened(folder).answers is None
    assert opened(folder, answers="present").answers == (3, 990)


def test_folders_of_v2_are_numbers_of_classes_not_places_in_an_alphabet(tmp_path):
    some = [0, 1, 2, 9, 10, 11, 99, 100, 101, 999]  # as words: 0, 1, 10, 100, 101, 11, 2, 9, ...
    folder = write(
        tmp_path / "imagenetv2-matched-frequency-format-val", *(f"{i}/{i}.png" for i in some)
    )
    dataset = opened(folder)
    assert {sample.image_id: sample.target for sample in dataset.samples} == {
        f"{i}/{i}.png": i for i in some
    }
    assert dataset.answers is None


def test_sketch_has_wnids(tmp_path):
    folder = write(tmp_path / "imagenet-sketch" / "sketch", f"{WNIDS[7]}/sketch_0.png")
    assert [sample.target for sample in opened(folder).samples] == [7]


def real(path, *labels):
    path.write_text(json.dumps(labels))
    return path


def val(number):
    return f"ILSVRC2012_val_{number:08d}.png"


def test_real_gives_several_classes_and_leaves_images_without_out(tmp_path):
    folder = write(tmp_path / "val", *(val(number) for number in (1, 2, 3)))
    labels = real(tmp_path / "real.json", [5, 3], [], [999], [1])
    dataset = opened(folder, labels=labels)
    assert [(s.image_id, s.target, s.also) for s in dataset.samples] == [
        (val(1), 5, (3,)), (val(3), 999, ()),
    ]  # fmt: skip
    assert any("1 of 3 images have no label" in note for note in dataset.notes)
    other = real(tmp_path / "other.json", [5, 4], [], [999], [1])
    assert opened(folder, labels=other).digest != dataset.digest


def test_real_labels_go_by_number_also_in_class_folders(tmp_path):
    folder = write(tmp_path / "val", f"{WNIDS[0]}/{val(2)}", f"{WNIDS[1]}/{val(1)}")
    dataset = opened(folder, labels=real(tmp_path / "real.json", [11], [22, 22]))
    assert {s.image_id: (s.target, s.also) for s in dataset.samples} == {
        f"{WNIDS[0]}/{val(2)}": (22, ()), f"{WNIDS[1]}/{val(1)}": (11, ()),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[[1], 2]", "no list of ReaL labels"),
        ("[[1], [1000]]", "no list of ReaL labels"),
        ("[[1], [true]]", "no list of ReaL labels"),
        ("[[1]", "cannot be read as JSON"),
        ("[[1]]", "no labels for `ILSVRC2012_val_00000002"),
    ],
)
def test_wrong_real_files_are_refused(tmp_path, content, named):
    folder = write(tmp_path / "val", val(1), val(2))
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(UsageError, match=named):
        opened(folder, labels=tmp_path / "real.json")

    write(folder, "photo.png")
    with pytest.raises(UsageError, match=r"no labels for `photo\.png`"):
        opened(folder, labels=real(tmp_path / "real.json", [1], [1]))
