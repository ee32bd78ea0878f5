"""Data sets and addresses of the Hugging Face hub, from a hub on the loopback interface."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from robustcli.core.errors import MachineError, RunError, UsageError
from robustcli.core.objects import ObjectStore
from robustcli.data.decode import decode
from robustcli.data.hub_datasets import class_names, parse_hub_name
from robustcli.data.labels import LabelSpace, read_label_space
from robustcli.data.object_files import LIMIT
from robustcli.data.sources import Classes, Masks, open_dataset
from robustcli.data.splits import take
from robustcli.evaluation.loader import batch_stream
from tests.data.hub_server import ANIMALS, FEATURES, REPO, Hub, animals, hub_here, parquet, png
from tests.evaluation.photos import make_photos, source
from tests.evaluation.test_loader import digests

pytest.importorskip("datasets", reason="needs the extra `hf`: pip install 'robustcli[hf]'")
# Of the hub's client and `datasets`, about themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SPACE = LabelSpace("animals", ANIMALS, ANIMALS)
FILES = {
    "data/train-00000-of-00002.parquet": animals(0, 10),
    "data/train-00001-of-00002.parquet": animals(10, 9),
    "data/test-00000-of-00001.parquet": animals(300, 7),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with hub_here(tmp_path_factory.mktemp("cache")) as hub:
        yield hub


@pytest.fixture
def hub(server: Hub) -> Hub:
    server.branches.clear()
    server.served.clear()
    server.asked.clear()
    server.torn = 0
    server.push(FILES)
    return server


def evaluated(data: str, **options):
    return open_dataset(data, Classes("animals", SPACE, **options))


def test_an_evaluation_takes_the_test_split_and_announces_split_and_commit(hub: Hub) -> None:
    commit = hub.push(FILES)
    dataset = evaluated(f"hf:{REPO}")
    assert [s.image_id for s in dataset.samples] == [f"test/{n}.png" for n in range(300, 307)]
    assert [s.target for s in dataset.samples] == [n % 3 for n in range(300, 307)]
    assert dataset.name == "animals:test"
    assert dataset.location == f"hf:{REPO}@{commit}:test"
    notes = " ".join(dataset.notes)
    assert f"`main` is the commit {commit}" in notes
    assert "`test` is used" in notes
    pixels = [decode(s.image)[0, 0].tolist() for s in dataset.samples]
    assert pixels == [[n % 256, n // 256, 7] for n in range(300, 307)]


def test_the_recorded_location_opens_the_same_data(hub: Hub) -> None:
    first = evaluated(f"hf:{REPO}:train")
    again = evaluated(first.location)
    assert (again.digest, again.contents, again.location) == (
        first.digest, first.contents, first.location,
    )  # fmt: skip
    assert len(first.samples) == 19


def test_training_takes_all_parts(hub: Hub) -> None:
    dataset = open_dataset(f"hf:{REPO}", Classes())
    assert dataset.classes.ids == ANIMALS
    assert {(s.image_id.partition("/")[0], s.split) for s in dataset.samples} == {
        ("train", "train"), ("test", "test"),
    }  # fmt: skip
    assert len(dataset.samples) == 26
    single = open_dataset(f"hf:{REPO}@main:train", Classes())
    assert {s.split for s in single.samples} == {None}
    assert {s.image_id for s in single.samples} < {s.image_id for s in dataset.samples}


def test_a_subset_fetches_labels_and_the_row_groups_of_its_images_only(hub: Hub) -> None:
    noise = np.random.default_rng(0).bytes(40_000)
    large = [{"bytes": png(n) + noise, "path": f"{n}.png"} for n in range(40)]
    file = parquet({"image": large, "label": [n % 3 for n in range(40)]}, FEATURES, group=4)
    hub.push({"data/test.parquet": file})
    dataset = evaluated(f"hf:{REPO}")
    labels = sum(hub.served.values())
    assert labels < 200_000 < len(file) / 8, "labels and the footer, which is read by 64 kB"
    part = take(dataset, limit=2, seed=1)
    groups = {s.image.rows.cache_path for s in part.samples}
    for sample in part.samples:
        decode(sample.image)
    assert sum(hub.served.values()) < labels + 66_000 + len(groups) * 4 * 42_000
    assert [p for p in sorted(groups) if p.is_file()] == sorted(groups)
    before = dict(hub.served)
    for sample in part.samples:
        decode(sample.image)
    assert hub.served == before, "downloaded data and finished results are kept"


def test_a_subset_does_not_depend_on_files_and_row_groups(hub: Hub) -> None:
    first = take(evaluated(f"hf:{REPO}:train"), per_class=3, limit=None, seed=5)
    hub.push({"data/train.parquet": animals(0, 19)})
    other = take(evaluated(f"hf:{REPO}:train"), per_class=3, limit=None, seed=5)
    assert [s.image_id for s in first.samples] == [s.image_id for s in other.samples]
    assert first.digest == other.digest
    assert first.contents != other.contents, "another commit is never taken for the same"


def test_a_moved_branch_is_another_data_set_and_the_commit_the_old_one(hub: Hub) -> None:
    before = evaluated(f"hf:{REPO}")
    hub.push({"data/test.parquet": animals(100, 7)})
    assert evaluated(f"hf:{REPO}").contents != before.contents
    assert evaluated(before.location).contents == before.contents


@pytest.mark.parametrize(("columns", "features", "ids"), [
    ({"image_id": [7, 5, 6]}, {"image_id": {"dtype": "int64", "_type": "Value"}}, ["5", "6", "7"]),
    ({"file_name": ["a/x.jpg", "b/x.jpg", "c.jpg"]},
     {"file_name": {"dtype": "string", "_type": "Value"}}, ["a/x.jpg", "b/x.jpg", "c.jpg"]),
    ({"id": ["same", "same", "c"]}, {"id": {"dtype": "string", "_type": "Value"}}, ["0", "1", "2"]),
    ({"id": ["../x", "b", "c"]}, {"id": {"dtype": "string", "_type": "Value"}}, ["0", "1", "2"]),
    ({"id": ["a", None, "c"]}, {"id": {"dtype": "string", "_type": "Value"}}, ["0", "1", "2"]),
])  # fmt: skip
def test_ids_are_those_of_the_data_where_they_are_ids(hub, columns, features, ids) -> None:
    images = [{"bytes": png(n), "path": None} for n in range(3)]
    file = parquet({"image": images, "label": [0, 1, 2], **columns}, FEATURES | features)
    hub.push({"data/test.parquet": file})
    dataset = evaluated(f"hf:{REPO}")
    assert [s.image_id for s in dataset.samples] == [f"test/{name}" for name in ids]


def test_row_numbers_are_padded_so_that_their_order_is_that_of_the_rows(hub: Hub) -> None:
    hub.push({"data/test.parquet": animals(0, 12, path="")})
    dataset = evaluated(f"hf:{REPO}")
    assert [s.image_id for s in dataset.samples] == [f"test/{n:02d}" for n in range(12)]
    assert [s.target for s in dataset.samples] == [n % 3 for n in range(12)]


def test_columns_are_found_without_notes_of_the_library(hub: Hub) -> None:
    images = [{"bytes": png(n), "path": f"{n}.png"} for n in range(6)]
    words = [ANIMALS[n % 3] for n in range(6)]
    hub.push({"data/test.parquet": parquet({"img": images, "label": words, "size": [1] * 6})})
    assert [s.target for s in evaluated(f"hf:{REPO}").samples] == [0, 1, 2, 0, 1, 2]


def test_several_columns_that_could_be_it_are_named_not_guessed(hub: Hub) -> None:
    images = [{"bytes": png(n), "path": f"{n}.png"} for n in range(4)]
    coarse = {"names": ["tame", "wild"], "_type": "ClassLabel"}
    columns = {"img": images, "fine_label": [0, 1, 2, 0], "label": [0, 1, 1, 0]}
    features = {"img": FEATURES["image"], "fine_label": FEATURES["label"], "label": coarse}
    hub.push({"data/test.parquet": parquet(columns, features)})
    with pytest.raises(UsageError, match=r"`fine_label`.*are suitable[\s\S]*\?label=COLUMN"):
        evaluated(f"hf:{REPO}")
    dataset = evaluated(f"hf:{REPO}?label=fine_label")
    assert [s.target for s in dataset.samples] == [0, 1, 2, 0]
    assert dataset.location.endswith(":test?label=fine_label")
    with pytest.raises(UsageError, match="no column is called `colour`"):
        evaluated(f"hf:{REPO}?label=colour")
    with pytest.raises(UsageError, match="`label` contains no images"):
        evaluated(f"hf:{REPO}?image=label&label=fine_label")


def test_masks_are_read_from_their_own_column(hub: Hub) -> None:
    def mask(n: int) -> bytes:
        out, values = io.BytesIO(), np.zeros((12, 12), np.uint8)
        values[:n] = 255
        Image.fromarray(values).save(out, "PNG")
        return out.getvalue()

    columns = {
        "image": [{"bytes": png(n), "path": f"{n}.png"} for n in range(5)],
        "mask": [{"bytes": mask(n), "path": f"m{n}.png"} for n in range(5)],
    }
    features = {"image": FEATURES["image"], "mask": FEATURES["image"]}
    hub.push({"data/train.parquet": parquet(columns, features)})
    dataset = open_dataset(f"hf:{REPO}", Masks())
    assert [s.image_id for s in dataset.samples] == [f"train/{n}.png" for n in range(5)]
    for n, sample in enumerate(dataset.samples):
        assert decode(sample.image)[0, 0, 0] == n
        assert (decode(sample.mask)[:, :, 0] == 255).sum() == 12 * n
    hub.push(FILES)
    with pytest.raises(UsageError, match=r"not known which column .*mask of each image"):
        open_dataset(f"hf:{REPO}", Masks())


def test_images_without_a_class_are_refused_and_another_split_is_taken(hub: Hub) -> None:
    images = [{"bytes": png(n), "path": f"{n}.png"} for n in range(4)]
    hidden = parquet({"image": images, "label": [-1] * 4}, FEATURES)
    hub.push({"data/test.parquet": hidden, "data/validation.parquet": animals(0, 6)})
    dataset = evaluated(f"hf:{REPO}")
    assert dataset.name == "animals:validation"
    assert any("`test` has no labels" in note for note in dataset.notes)
    with pytest.raises(UsageError, match="`test` of `hf:somebody/animals` has images without a"):
        evaluated(f"hf:{REPO}:test")
    some = parquet({"image": images, "label": [0, None, 1, 2]}, FEATURES)
    hub.push({"data/test.parquet": some})
    with pytest.raises(UsageError, match="1 rows of its column `label` have no value"):
        evaluated(f"hf:{REPO}")


def test_a_split_without_rows_and_wrong_metadata_are_named(hub: Hub) -> None:
    empty = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())})
    out = io.BytesIO()
    pq.write_table(empty, out)
    hub.push({"data/test-0.parquet": out.getvalue()})
    with pytest.raises(UsageError, match=r"split `test` of `hf:.*` has no rows"):
        evaluated(f"hf:{REPO}")
    images = [{"bytes": png(0), "path": None}]
    repeated = {**FEATURES, "label": {"names": ["cat", "cat"], "_type": "ClassLabel"}}
    hub.push({"data/test-0.parquet": parquet({"image": images, "label": [0]}, repeated)})
    with pytest.raises(UsageError, match=r"cannot determine the columns of `hf:.*\n.*duplicated"):
        evaluated(f"hf:{REPO}")


def test_offline_needs_what_was_fetched_and_nothing_else(hub: Hub) -> None:
    with pytest.raises(UsageError, match="The commit of `main` was never looked up"):
        evaluated(f"hf:{REPO}", offline=True)
    commit = hub.push(FILES)
    with pytest.raises(UsageError, match="list of files was never downloaded"):
        evaluated(f"hf:{REPO}@{commit}", offline=True)
    first = evaluated(f"hf:{REPO}")
    decode(first.samples[0].image)
    with pytest.raises(UsageError, match="split `train` were never downloaded"):
        evaluated(f"hf:{REPO}:train", offline=True)
    hub.asked.clear()
    offline = evaluated(f"hf:{REPO}", offline=True)
    assert offline.contents == first.contents
    assert decode(offline.samples[0].image).tolist() == decode(first.samples[0].image).tolist()
    with pytest.raises(UsageError, match="Row group 1 of `data/test-00000"):
        decode(offline.samples[-1].image)
    assert hub.asked == []


def test_a_broken_transfer_is_tried_again_then_named_and_never_an_unreadable_image(hub) -> None:
    dataset = evaluated(f"hf:{REPO}:train")
    hub.torn = 2
    assert decode(dataset.samples[0].image).shape == (12, 12, 3)
    hub.torn = 100
    with pytest.raises(RunError, match=r"could not be read from the hub[\s\S]*repeat the command"):
        decode(dataset.samples[-1].image)
    hub.torn = 0
    assert decode(dataset.samples[-1].image).shape == (12, 12, 3)


def test_a_broken_transfer_of_labels_keeps_nothing_half(hub: Hub) -> None:
    evaluated(f"hf:{REPO}:test")
    hub.torn = 100
    with pytest.raises(RunError, match="could not be read from the hub"):
        evaluated(f"hf:{REPO}:train")
    hub.torn = 0
    assert len(evaluated(f"hf:{REPO}:train").samples) == 19


def test_samples_go_to_worker_processes(hub: Hub) -> None:
    dataset = evaluated(f"hf:{REPO}")
    copied = pickle.loads(pickle.dumps(dataset.samples[2]))
    assert copied == dataset.samples[2]
    assert decode(copied.image).tolist() == decode(dataset.samples[2].image).tolist()


@pytest.mark.parametrize(("data", "match"), [
    ("hf:animals", "is not a valid name of a data set on the Hugging Face hub"),
    ("hf:a/b?colour=x", "`colour` is not one of"),
    ("hf:a/b?label=", "`label` is not one of"),
    ("hf:somebody/nothing", "has no data set `somebody/nothing`"),
    ("hf:somebody/animals@v9", "no revision `v9`"),
    ("hf:somebody/animals:tset", r"no split `tset`[\s\S]*Did you mean `test`"),
])  # fmt: skip
def test_what_is_not_there_is_named(hub, data, match) -> None:
    with pytest.raises(UsageError, match=match):
        evaluated(data)


def test_other_formats_and_code_are_refused(hub: Hub) -> None:
    hub.push({"data/test/cat/1.png": png(1), "data/test/dog/2.png": png(2)})
    with pytest.raises(UsageError, match=r"not published as Parquet[\s\S]*refs/convert/parquet"):
        evaluated(f"hf:{REPO}")
    marker = Path("run-by-robust")
    hub.push({"animals.py": f"open({str(marker)!r}, 'w')".encode()})
    with pytest.raises(UsageError, match="cannot determine the files"):
        evaluated(f"hf:{REPO}")
    assert not marker.exists()


def test_a_repository_of_several_configurations_needs_one(hub: Hub) -> None:
    card = b"""---
configs:
- config_name: small
  data_files: small/*.parquet
- config_name: large
  data_files: large/*.parquet
---
"""
    hub.push(
        {"README.md": card, "small/a.parquet": animals(0, 3), "large/a.parquet": animals(0, 9)}
    )
    with pytest.raises(UsageError, match=r"\?config=NAME"):
        evaluated(f"hf:{REPO}")
    assert len(evaluated(f"hf:{REPO}?config=small").samples) == 3
    assert len(evaluated(f"hf:{REPO}?config=large").samples) == 9


def test_labels_beside_it_are_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already contains the class of each image"):
        evaluated(f"hf:{REPO}", labels=tmp_path / "labels.csv")


def test_the_library_is_named_where_it_is_missing(hub, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MachineError, match=r"robustcli\[hf\]"):
        evaluated(f"hf:{REPO}")


def test_an_old_library_is_refused_because_it_might_run_code(hub, monkeypatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(MachineError, match=r"datasets 4\.0 or newer"):
        evaluated(f"hf:{REPO}")


def test_names() -> None:
    name = parse_hub_name("hf:ilsvrc/imagenet-1k@refs/convert/parquet:validation?config=default")
    assert (name.repo, name.revision, name.split, name.config) == (
        "ilsvrc/imagenet-1k", "refs/convert/parquet", "validation", "default",
    )  # fmt: skip
    assert name.spelled("c" * 40, "test") == f"hf:ilsvrc/imagenet-1k@{'c' * 40}:test?config=default"


def test_classes_in_the_order_of_a_label_space_are_its_classes() -> None:
    space = read_label_space("imagenet-1k")
    published = [f"{name.replace('_', ' ')}, another name" for name in space.names]
    assert class_names(published) == list(space.ids)
    assert published.count("crane, another name") == 2
    moved = [*published[1:], published[0]]
    names = class_names(moved)
    assert names[:2] == moved[:2], "in another order they are other classes"
    assert len(set(names)) == 1000, "both cranes have their number"


pytest.importorskip("datasets", reason="needs the extra `hf`: pip install 'robustcli[hf]'")
# `hf://datasets/...`: images in a repository, read as objects.


URL = f"hf://datasets/{REPO}/val"


@pytest.fixture
def photos(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """12 photos in a folder, and the same ones in the repository, one with an awkward name."""
    monkeypatch.setenv("ROBUST_HOME", str(tmp_path / "home"))
    folder = make_photos(tmp_path / "photos")
    (folder / "cat" / "1.png").rename(folder / "cat" / "1 #é%.png")
    files = {
        f"val/{file.relative_to(folder).as_posix()}": file.read_bytes()
        for file in folder.rglob("*.png")
    }
    hub.push({**files, "README.md": b"# Animals", "train/cat/0.png": b"other"})
    return folder


@pytest.mark.parametrize("limit", ["0", "1"])
@pytest.mark.parametrize(
    ("workers", "method"),
    [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)],
)
def test_workers_read_the_same_pixels_as_from_a_folder(
    hub: Hub, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int,
    method: str | None, limit: str,
) -> None:  # fmt: skip
    """The first process has read from the hub before it forks, as a listing does."""
    monkeypatch.setenv(LIMIT, limit)
    here = open_dataset(str(photos), Classes("cifar10"))
    there = open_dataset(URL, Classes("cifar10"))
    assert (here.digest, here.contents) == (there.digest, there.contents)
    assert there.location == URL
    hub.asked.clear()
    expected = digests(source(here, tmp_path / "here", "affine"))
    made = source(there, tmp_path / "there", "affine")
    assert digests(batch_stream(made, workers, pin=False, start_method=method)) == expected
    reads = [path for path in hub.asked if "/resolve/" in path]
    assert bool(reads) == (limit == "0"), "the digest has read each photo into the cache"


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("hf://datasets/no/body/val", "hf://datasets/no/body"),
        (f"hf://datasets/{REPO}@nowhere/val", f"hf://datasets/{REPO}@nowhere"),
    ],
)
def test_a_repository_that_is_not_there(url: str, named: str) -> None:
    with pytest.raises(UsageError, match=f"`{named}` does not exist") as error:
        open_dataset(url, Classes("cifar10"))
    assert "HF_TOKEN" in error.value.todo
    assert "bucket" not in str(error.value)


@pytest.mark.usefixtures("photos")
def test_an_object_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        ObjectStore(URL).read("cat/9.png")
    assert not ObjectStore(f"hf://datasets/{REPO}/nothing").listed()
