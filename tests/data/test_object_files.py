"""Data sets in object stores are the same as those of a folder with the same files."""

from __future__ import annotations

import json
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustcli.core import objects
from robustcli.core.errors import RunError, UsageError
from robustcli.core.objects import ObjectStore
from robustcli.data import object_files
from robustcli.data.dataset import Dataset, UnreadableImage
from robustcli.data.decode import decode, image_size
from robustcli.data.named_datasets import data_home
from robustcli.data.object_files import LIMIT, ObjectImages, fetch_ahead, split_address
from robustcli.data.sources import Classes, Masks, open_dataset

MakePhotos = Callable[..., Path]
NAMES = (
    "cat/a.jpg", "cat/b.JPG", "cat/deep/é.jpg", "dog/a.jpg", "dog/c d#%.png", "dog/._a.jpg",
    ".git/x.jpg", "dog/notes.txt",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PAUSES_S", (0.0,))


@pytest.fixture
def put() -> Callable[[Path], ObjectStore]:
    """Copies a folder, or a file, to an address of a store in memory."""

    def copy(source: Path) -> ObjectStore:
        store = ObjectStore(f"memory://{uuid.uuid4().hex}/{source.name}")
        if source.is_file():
            store.send("", source)
        for file in source.rglob("*"):
            if file.is_file():
                store.send(file.relative_to(source).as_posix(), file)
        return store

    return copy


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The objects that are read from now on."""
    names, real = list[str](), ObjectStore.read

    def read(self: ObjectStore, name: str) -> bytes:
        names.append(name)
        return real(self, name)

    monkeypatch.setattr(ObjectStore, "read", read)
    return names


def same(here: Dataset, there: Dataset) -> None:
    """Asserts that two data sets differ in nothing but where they are."""
    assert [s.image_id for s in here.samples] == [s.image_id for s in there.samples]
    assert (here.digest, here.contents, here.name) == (there.digest, there.contents, there.name)
    for one, other in zip(here.samples, there.samples, strict=True):
        np.testing.assert_array_equal(decode(one.image), decode(other.image))
        assert image_size(one.image) == image_size(other.image)
        assert one.group == other.group


def test_a_folder_with_classes(photos: MakePhotos, put: Any, monkeypatch: Any) -> None:
    folder = photos(*NAMES)
    store, listings = put(folder), list[str]()
    real = ObjectStore.listed
    monkeypatch.setattr(
        ObjectStore, "listed",
        lambda self, below="": (listings.append(self.url), real(self, below))[1],
    )  # fmt: skip
    here, there = open_dataset(str(folder), Classes()), open_dataset(store.url, Classes())
    assert len(here.samples) == 5
    same(here, there)
    assert there.location == store.url
    assert listings == [store.url]
    assert [n.replace(str(folder), "X") for n in here.notes] == [
        n.replace(store.url, "X") for n in there.notes
    ]
    assert str(there.samples[0].image) == f"{store.url}/cat/a.jpg"


def test_a_folder_with_masks_and_groups(tmp_path: Path, put: Any) -> None:
    for number in range(4):
        for kind, mode in (("images", "RGB"), ("masks", "L")):
            file = tmp_path / "set" / kind / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((8, 8), np.uint8)
            pixels[: number + 1] = 255
            Image.fromarray(pixels).convert(mode).save(file)
    rows = "".join(f"{number}.png,p{number // 2}\n" for number in range(4))
    (tmp_path / "set" / "groups.csv").write_text("image,patient\n" + rows)
    (tmp_path / "set" / "labels.json").write_text('{"255": "nucleus"}')
    here = open_dataset(str(tmp_path / "set"), Masks())
    there = open_dataset(put(tmp_path / "set").url, Masks())
    same(here, there)
    assert there.groups == here.groups
    assert there.mask_classes == here.mask_classes
    assert there.reading == here.reading


@pytest.mark.parametrize("name", ["photos.tar", "photos.tar.gz"])
def test_an_archive_and_a_folder_in_it(make_tar: Any, put: Any, name: str) -> None:
    archive = make_tar(["val/cat/a.jpg", "val/dog/b.jpg", "train/cat/c.jpg"], name)
    store = put(archive)
    same(open_dataset(f"{archive}:val", Classes(splits=True)),
         open_dataset(f"{store.url}:val", Classes(splits=True)))  # fmt: skip


def test_addresses_with_a_folder() -> None:
    assert split_address("s3://b/x.tar:val/") == ("s3://b/x.tar", "val")
    assert split_address("s3://b/x:y") == ("s3://b/x:y", None)
    assert split_address("s3://b/x") == ("s3://b/x", None)


def test_images_are_read_once_and_then_from_the_cache(
    photos: MakePhotos, put: Any, reads: list[str]
) -> None:
    store = put(photos("cat/a.jpg", "dog/b.jpg"))
    for _ in range(2):
        samples = open_dataset(store.url, Classes()).samples
        pixels = [decode(sample.image) for sample in samples]
    assert sorted(reads) == ["cat/a.jpg", "dog/b.jpg"]
    for file in (data_home() / "objects").glob("*/bytes/*/*"):
        content = bytearray(file.read_bytes())
        content[10] ^= 1
        file.write_bytes(content)
    again = [decode(sample.image) for sample in open_dataset(store.url, Classes()).samples]
    assert len(reads) == 4, "a damaged copy is not used"
    np.testing.assert_array_equal(again[0], pixels[0])


@pytest.mark.parametrize("limit", ["0", "1e-6"])
def test_the_cache_is_bounded(
    photos: MakePhotos, put: Any, reads: list[str], monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setenv(LIMIT, limit)
    store = put(photos(*(f"{name}/{n}.jpg" for name in ("cat", "dog") for n in range(3))))
    for _ in range(2):
        for sample in open_dataset(store.url, Classes()).samples:
            sample.image.read()
    cached = list((data_home() / "objects").glob("*/bytes/*/*"))
    assert sum(file.stat().st_size for file in cached) <= float(limit) * 1e9
    assert len(reads) == 12 - len(cached)


def test_a_limit_that_is_no_number(photos: MakePhotos, put: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv(LIMIT, "many")
    with pytest.raises(UsageError, match=r"(?s)ROBUST_OBJECT_CACHE_GB.*`many`"):
        open_dataset(put(photos("cat/a.jpg", "dog/b.jpg")).url, Classes())


def test_what_changed_since_the_listing_is_unreadable(photos: MakePhotos, put: Any) -> None:
    store = put(photos("cat/a.jpg", "cat/b.jpg", "dog/b.jpg"))
    samples = open_dataset(store.url, Classes()).samples
    store.write("cat/a.jpg", b"longer" * 1000)
    store.remove("cat/b.jpg")
    with pytest.raises(UnreadableImage, match="when it was listed"):
        decode(samples[0].image)
    with pytest.raises(UnreadableImage, match="cannot be read"):
        decode(samples[1].image)
    decode(samples[2].image)


def test_a_broken_connection_is_no_unreadable_image(
    photos: MakePhotos, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must end the run: else images would be left out without a reason of their own."""
    samples = open_dataset(put(photos("cat/a.jpg", "dog/b.jpg")).url, Classes()).samples

    def broken(self: ObjectStore, name: str) -> bytes:
        raise self._broken(name, ConnectionResetError("the line is dead"))

    monkeypatch.setattr(ObjectStore, "read", broken)
    with pytest.raises(RunError, match="the line is dead"):
        decode(samples[0].image)
    with pytest.raises(RunError, match="the line is dead"):
        fetch_ahead(samples)


def test_images_are_fetched_ahead_and_sent_to_workers_without_them(
    photos: MakePhotos, put: Any, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, "0")
    samples = open_dataset(put(photos("cat/a.jpg", "dog/b.jpg")).url, Classes()).samples
    fetch_ahead(samples)
    assert sorted(reads) == ["cat/a.jpg", "dog/b.jpg"]
    sent = pickle.loads(pickle.dumps(samples))
    contents = [sample.image.read() for sample in samples]
    assert len(reads) == 2
    assert [sample.image.read() for sample in sent] == contents
    assert len(reads) == 4


def test_offline_what_was_read_before_is_there(
    photos: MakePhotos, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = put(photos("cat/a.jpg", "dog/b.jpg"))
    with pytest.raises(UsageError, match=r"(?s)network must not be used.*never listed"):
        open_dataset(store.url, Classes(offline=True))
    first = open_dataset(store.url, Classes()).samples
    contents = [first[0].image.read()]
    monkeypatch.setattr(ObjectStore, "_system", lambda self: pytest.fail("the network is used"))
    samples = open_dataset(store.url, Classes(offline=True)).samples
    assert samples[0].image.read() == contents[0]
    with pytest.raises(UsageError, match=r"(?s)network must not be used.*never read"):
        samples[1].image.read()


@pytest.mark.parametrize(
    ("name", "message"),
    [("table.csv", "manifests refer to files"), ("photo.jpg", "is not supported")],
)
def test_what_is_no_data_set(put: Any, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(UsageError, match=f"(?s){message}"):
        open_dataset(put(tmp_path / name).url, Classes())
    with pytest.raises(UsageError, match="No data was found at"):
        open_dataset("memory://nowhere/at-all", Classes())


def test_names_that_lead_out_of_the_folder_are_left_out(
    photos: MakePhotos, put: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = put(photos("cat/a.jpg", "dog/b.jpg"))
    hostile = ("../../x.jpg", "cat//x.jpg", "dog/../../y.jpg", "cat\\x.jpg", "cat/a.jpg/z.jpg")
    listed = {**store.listed(), **{name: objects.StoredObject(1, "1") for name in hostile}}
    monkeypatch.setattr(ObjectStore, "listed", lambda self, below="": listed)
    dataset = open_dataset(store.url, Classes())
    assert [sample.image_id for sample in dataset.samples] == ["cat/a.jpg", "dog/b.jpg"]
    assert any("5 files" in note for note in dataset.notes)


def test_volumes_and_tables_are_fetched_as_files(tmp_path: Path, put: Any) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    for number in range(2):
        pixels = np.full((6, 6), 1, np.uint8)
        pixels[: number + 1] = 0
        Image.fromarray(pixels).save(tmp_path / "set" / "images" / f"{number}.png")
        np.save(tmp_path / "set" / "masks" / f"{number}.npy", pixels)
    here = open_dataset(str(tmp_path / "set"), Masks())
    there = open_dataset(put(tmp_path / "set").url, Masks())
    same(here, there)
    assert there.samples[0].image.rows is not None
    assert there.samples[0].mask.rows is None


def test_the_listing_that_is_kept_has_a_version(photos: MakePhotos, put: Any) -> None:
    store = put(photos("cat/a.jpg", "dog/b.jpg"))
    open_dataset(store.url, Classes())
    (kept,) = (data_home() / "objects").glob("*/listing.json")
    content = json.loads(kept.read_text())
    assert (content["schema_version"], content["url"]) == (1, store.url)
    kept.write_text(json.dumps({**content, "schema_version": 99}))
    with pytest.raises(UsageError, match="never listed"):
        open_dataset(store.url, Classes(offline=True))


def test_numbers_of_images_do_not_make_them_unequal(photos: MakePhotos, put: Any) -> None:
    """Each image is a key of caches: comparing all names each time would take for ever."""
    samples = open_dataset(put(photos("cat/a.jpg", "dog/b.jpg")).url, Classes()).samples
    assert isinstance(samples[0].image.rows, ObjectImages)
    assert hash(samples[0].image) == hash(samples[0].image)
    assert samples[0].image != samples[1].image
    assert object_files.folder_at(Path("elsewhere")) is None
