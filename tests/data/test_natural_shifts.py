"""Natural shifts of ImageNet: class numbers, masked answers, several true classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.data.decode import decode, image_size
from robustcli.data.labels import read_label_space
from robustcli.data.natural_shifts import find_shift, laion_c
from robustcli.data.sources import Classes, open_dataset

WNIDS = read_label_space("imagenet-1k").ids
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
    result = find_shift(tmp_path / name)
    assert (result and result.name) == shift


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_a_and_r_let_models_answer_with_their_200_classes(tmp_path, name):
    chosen = np.random.default_rng(0).choice(1000, 200, replace=False)
    folder = write(tmp_path / name, *(f"{WNIDS[i]}/0.5_x.png" for i in chosen))
    (folder / "README.txt").write_text("ImageNet-A")
    dataset = opened(folder)
    assert dataset.answers == tuple(sorted(chosen))
    assert any("only predict its 200 classes" in note for note in dataset.notes)
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
        ("[[1], 2]", "not a list of ReaL labels"),
        ("[[1], [1000]]", "not a list of ReaL labels"),
        ("[[1], [true]]", "not a list of ReaL labels"),
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


# ObjectNet: which object is which class of ImageNet stands in the data set's own tables.

OBJECTS = {
    "Alarm clock": "analog clock; digital clock",
    "Banana": "banana",
    "Hair dryer": "hand blower, blow dryer, blow drier, hair dryer, hair drier",
}
OBJECT_FOLDERS = {"alarm_clock": "Alarm clock", "banana": "Banana", "hair_dryer": "Hair dryer",
                  "air_freshener": "Air freshener"}  # fmt: skip


def objectnet(tmp_path, objects=OBJECTS, *, without=()):
    folder = tmp_path / "objectnet-1.0"
    for name in OBJECT_FOLDERS.keys() - set(without):
        pixels = np.full((12, 10, 3), (255, 0, 0), np.uint8)
        pixels[2:-2, 2:-2] = 9
        (folder / "images" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(folder / "images" / name / "a.png")
    (folder / "mappings").mkdir()
    tables = {"folder_to_objectnet_label": OBJECT_FOLDERS, "objectnet_to_imagenet_1k": objects}
    for name, table in tables.items():
        (folder / "mappings" / f"{name}.json").write_text(json.dumps(table))
    return folder


def test_an_object_may_be_several_classes_and_its_border_is_cut_off(tmp_path):
    dataset = opened(objectnet(tmp_path))
    clocks, banana, dryer = 409, 954, 589  # analog clock, banana, hand blower
    true = {s.image_id.split("/")[-2]: {s.target, *s.also} for s in dataset.samples}
    assert true == {"alarm_clock": {clocks, 530}, "banana": {banana}, "hair_dryer": {dryer}}
    assert dataset.answers == tuple(sorted({clocks, 530, banana, dryer}))
    assert any("1 image of other objects excluded" in note for note in dataset.notes)
    for sample in dataset.samples:
        assert decode(sample.image).shape == (8, 6, 3)
        assert image_size(sample.image) == (8, 6)
        assert np.unique(decode(sample.image)).tolist() == [9], "no red"


def test_objectnet_without_some_of_its_objects_is_refused_unless_asked_for(tmp_path):
    folder = objectnet(tmp_path, without=["banana"])
    with pytest.raises(UsageError, match="3 of the 4 classes of ObjectNet"):
        opened(folder)
    assert len(opened(folder, answers="present").answers) == 3


@pytest.mark.parametrize(("label", "named"), [
    ("unicorn", "`unicorn`"), ("banana, tench", "`banana, tench`"),
])  # fmt: skip
def test_a_table_of_objectnet_that_names_no_class_is_refused(tmp_path, label, named):
    with pytest.raises(UsageError, match=named):
        opened(objectnet(tmp_path, {"Banana": label}))


def test_a_damaged_table_of_objectnet_is_named(tmp_path):
    folder = objectnet(tmp_path)
    (folder / "mappings" / "objectnet_to_imagenet_1k.json").write_text("{")
    with pytest.raises(UsageError, match=r"objectnet_to_imagenet_1k\.json` of .* as JSON"):
        opened(folder)


# LAION-C: 16 superclasses.

SUPERCLASSES = (
    *("ball", "bird", "boat", "bottle", "butterfly", "car_truck", "cat", "chair", "dog", "fish"),
    *("fruit", "instruments", "primate", "snakes", "timekeeping", "tools"),
)  # fmt: skip


def test_superclasses_are_those_of_the_owners_table():
    known = laion_c()
    assert known.space.ids == SUPERCLASSES
    sizes = dict(zip(SUPERCLASSES, map(len, known.members), strict=True))
    assert (sizes["dog"], sizes["bird"], sizes["ball"], sum(sizes.values())) == (109, 49, 6, 285)
    members = [index for some in known.members for index in some]
    assert len(set(members)) == 285
    at = dict(zip(SUPERCLASSES, known.members, strict=True))
    assert {WNIDS.index(w) for w in ("n02799071", "n04540053")} <= set(at["ball"])
    assert WNIDS.index("n02066245") in at["fish"], "the grey whale, as its owners have it"


def test_folders_called_as_the_superclasses_are_laion_c(tmp_path):
    folder = write(tmp_path / "mosaic" / "intensity_level_3", *(f"{n}/1.png" for n in SUPERCLASSES))
    dataset = opened(folder)
    assert dataset.classes.ids == SUPERCLASSES
    assert dataset.members == laion_c().members
    assert dataset.answers is None
    assert [s.target for s in dataset.samples] == list(range(16))
    assert any("16 superclasses" in note for note in dataset.notes)
    with pytest.raises(UsageError, match="`--answers all` cannot be used with"):
        opened(folder, answers="all")
