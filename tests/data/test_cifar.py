"""CIFAR as its author publishes it: pixels, classes, splits and ids; no pickle is ever run."""

from __future__ import annotations

import os
import pickle
import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from robustcli.core.errors import UsageError
from robustcli.data.cifar import IMAGE_BYTES, PickledArray, read_pickle
from robustcli.data.decode import UnreadableImage, decode, image_size
from robustcli.data.sources import Classes, open_dataset
from robustcli.data.splits import SPLITS, split_dataset
from tests.data.published_files import (
    CIFAR10,
    cifar_images,
    planar,
    python2_pickle,
    tar_of,
    write_cifar10,
    write_cifar10_binary,
    write_cifar100,
)

TEST, LABELS = cifar_images(30, seed=9), [i % 10 for i in range(30)]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUST_HOME", str(tmp_path / "home"))


def opened(path, model="cifar10"):
    return open_dataset(str(path), Classes(model))


@pytest.fixture(params=["pickles", "binary", "pickles.tar.gz", "binary.tar"])
def cifar10(request, tmp_path):
    write = write_cifar10 if "pickles" in request.param else write_cifar10_binary
    folder = write(tmp_path / "unpacked", TEST, LABELS)
    if "tar" not in request.param:
        return folder
    packed = tmp_path / f"cifar-10.{request.param.partition('.')[2]}"
    return tar_of(folder, packed, "w:gz" if packed.suffix == ".gz" else "w")


def test_the_written_files_are_what_pickle_of_python_reads():
    content = python2_pickle({"labels": [1, 300, 70000], "data": planar(TEST)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy.core has moved; old pickles name it
        loaded = pickle.loads(content, encoding="bytes")
    assert loaded[b"labels"] == [1, 300, 70000]
    np.testing.assert_array_equal(loaded[b"data"], planar(TEST))


def test_test_images_have_the_published_order_pixels_and_classes(cifar10):
    dataset = opened(cifar10)
    test = [sample for sample in dataset.samples if sample.split == "test"]
    assert [sample.image_id for sample in test] == [f"test/{i:04d}" for i in range(30)]
    assert [sample.target for sample in test] == LABELS
    assert dataset.classes.names == CIFAR10
    for sample, pixels in zip(test, TEST, strict=True):
        np.testing.assert_array_equal(decode(sample.image), pixels)
        assert image_size(sample.image) == (32, 32)
    assert dataset.evaluated == "test"


def test_all_versions_are_one_data_set(tmp_path):
    sets = [
        opened(f"{write(tmp_path / 'a', TEST, LABELS)}:test")
        for write in (write_cifar10, write_cifar10_binary)
    ]
    assert sets[0].digest == sets[1].digest
    assert sets[0].contents == sets[1].contents


def test_training_images_go_on_counting_over_the_batches(tmp_path):
    dataset = opened(write_cifar10(tmp_path, TEST, LABELS))
    train = [sample for sample in dataset.samples if sample.split == "train"]
    assert [sample.image_id for sample in train] == [f"train/{i:05d}" for i in range(10)]
    assert [sample.target for sample in train] == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    np.testing.assert_array_equal(decode(train[3].image), cifar_images(2, seed=2)[1])


def test_cifar100_has_its_fine_classes(tmp_path):
    fine = [i * 7 % 100 for i in range(30)]
    dataset = open_dataset(str(write_cifar100(tmp_path, TEST, fine)), Classes())
    test = [sample for sample in dataset.samples if sample.split == "test"]
    names = [dataset.classes.names[sample.target] for sample in test]
    assert names == [f"fine_{label:02d}" for label in fine]
    np.testing.assert_array_equal(decode(test[5].image), TEST[5])


def test_published_splits_are_those_of_a_training(tmp_path):
    fine = [0, 1] * 15
    dataset = open_dataset(str(write_cifar100(tmp_path, TEST, fine)), Classes())
    parts = split_dataset(dataset, seed=0)
    assert {s.image_id.partition("/")[0] for s in parts.test.samples} == {"test"}
    assert len(parts.test.samples) == 30
    drawn = (*parts.train.samples, *parts.val.samples)
    assert {s.image_id.partition("/")[0] for s in drawn} == {"train"}


def test_the_validation_part_is_drawn_from_the_training_images_of_each_class(tmp_path):
    fine = [0, 1] * 15
    dataset = open_dataset(str(write_cifar100(tmp_path, TEST, fine)), Classes())
    parts = split_dataset(dataset, seed=0)
    counts = {name: Counter(s.target for s in getattr(parts, name).samples) for name in SPLITS}
    assert counts == {"train": {0: 12, 1: 12}, "val": {0: 3, 1: 3}, "test": {0: 15, 1: 15}}
    backwards = replace(dataset, samples=dataset.samples[::-1])
    for name in SPLITS:
        ids = {sample.image_id for sample in getattr(parts, name).samples}
        again = getattr(split_dataset(backwards, seed=0), name)
        assert ids == {sample.image_id for sample in again.samples}
    drawn = {sample.image_id for sample in parts.val.samples}
    assert drawn != {sample.image_id for sample in split_dataset(dataset, seed=1).val.samples}


class Exploit:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_hostile_pickle_is_refused_and_never_run(tmp_path, name, protocol):
    folder, victim = write_cifar10(tmp_path, TEST, LABELS), tmp_path / "made"
    (folder / name).write_bytes(pickle.dumps({"labels": Exploit(victim)}, protocol))
    with pytest.raises(UsageError, match=r"mkdir.*could run any program"):
        opened(folder)
    assert not victim.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cnumpy\ndtype\n(cnumpy\ndtype\ntR.",
        b"\x80\x02cnumpy\nndarray\n(K\x01tR.",
        b"(i__main__\nExploit\n.",
        b"(cos\nsystem\nX\x02\x00\x00\x00lso.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02Pname\n.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)\x81.",
    ],
)
def test_other_instructions_of_pickles_are_refused(content):
    with pytest.raises(UsageError, match="contents other than numbers"):
        read_pickle(content, "file")


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2, -5, 70000], "b": {"c": "text", "d": (1, 2, 3, 4)}, "e": None, "f": True},
        [],
        ["x" * 300, ("y",), (), {}],
    ],
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_as_pickle_loads_them(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol), "file") == value


@pytest.mark.parametrize(
    "key",
    [b")" + b"\x85" * 10**6, b")" + b"q\x00h\x00h\x00\x87" * 90],
    ids=["deep", "repeated"],
)  # fmt: skip
def test_a_tuple_is_no_key_because_its_hash_can_end_the_process_or_take_forever(key):
    with pytest.raises(UsageError, match=r"(?s)as a pickle.*key of a dictionary is not a string"):
        read_pickle(b"\x80\x02}" + key + b"K\x01s.", "file")


@pytest.mark.parametrize("protocol", [3, 4])
def test_an_array_saved_anew_by_python_3_is_found_where_it_lies(protocol):
    content = pickle.dumps({"data": planar(TEST)}, protocol)
    array = read_pickle(content, "file")["data"]
    assert isinstance(array, PickledArray)
    assert array.shape == (30, IMAGE_BYTES)
    assert content[array.start : array.start + TEST.size] == planar(TEST).tobytes()


@pytest.mark.parametrize("protocol", [3, 4])
def test_files_saved_anew_by_python_3_are_the_same_data_set(tmp_path, protocol):
    folder = write_cifar10(tmp_path, TEST, LABELS)
    digest = opened(folder).digest
    for name in ("test_batch", "batches.meta"):
        with warnings.catch_warnings(action="ignore"):  # numpy.core has moved
            loaded = pickle.loads((folder / name).read_bytes(), encoding="bytes")
        (folder / name).write_bytes(pickle.dumps(loaded, protocol))
    dataset = opened(folder)
    assert dataset.digest == digest
    np.testing.assert_array_equal(decode(dataset.samples[0].image), TEST[0])


def test_every_cut_of_a_pickle_is_an_error_in_words():
    content = python2_pickle({"labels": [1], "data": planar(TEST[:2])})
    for end in [*range(150), len(content) - 1, len(content) // 2]:
        with pytest.raises(UsageError, match=r"cannot be read as a pickle|contents other than"):
            read_pickle(content[:end], "file")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"labels": LABELS[:-1]}, r"shape \(30, 3072\); expected u1 of shape \(29, 3072\)"),
        ({"labels": [*LABELS[:-1], 10]}, "Image 29 has class 10 of 10"),
        ({"labels": "abc"}, "no list `labels` of class numbers"),
        ({"data": [1, 2]}, "no array `data`"),
        ({"data": planar(TEST)[:, :-1]}, r"shape \(30, 3071\)"),
    ],
)
def test_what_is_not_as_published_is_named(tmp_path, changes, named):
    folder = write_cifar10(tmp_path, TEST, LABELS)
    content = {"labels": LABELS, "data": planar(TEST)} | changes
    (folder / "test_batch").write_bytes(python2_pickle(content))
    with pytest.raises(UsageError, match=named):
        opened(folder)


def test_missing_batches_odd_lengths_and_two_copies_are_refused(tmp_path):
    folder = write_cifar10(tmp_path / "a", TEST, LABELS)
    binary = write_cifar10_binary(tmp_path / "binary", TEST, LABELS)
    write_cifar10(tmp_path / "b", TEST, LABELS)
    with pytest.raises(UsageError, match="contains CIFAR's files 2 times"):
        opened(tmp_path)
    (folder / "data_batch_3").unlink()
    with pytest.raises(UsageError, match="Missing: `data_batch_3`"):
        opened(folder)
    with (binary / "test_batch.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UsageError, match=r"not a multiple of 3,073"):
        opened(binary)


def test_a_file_cut_after_it_was_listed_is_an_unreadable_image(tmp_path):
    folder = write_cifar10_binary(tmp_path, TEST, LABELS)
    last = opened(folder).samples[-1].image
    content = (folder / "test_batch.bin").read_bytes()
    (folder / "test_batch.bin").write_bytes(content[:-5])
    with pytest.raises(UnreadableImage, match="3067 of 3072 bytes"):
        decode(last)
    assert decode(replace(last, offset=1)).shape == (32, 32, 3)
