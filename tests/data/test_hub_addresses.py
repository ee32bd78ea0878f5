"""`--data hf://datasets/...`: images in a repository of a hub on the loopback interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.core.objects import ObjectStore
from robustcli.data.object_files import LIMIT
from robustcli.data.sources import Classes, open_dataset
from robustcli.evaluation.loader import batch_stream
from tests.data.hub_server import REPO, Hub, hub_here
from tests.evaluation.photos import make_photos, source
from tests.evaluation.test_loader import digests

pytest.importorskip("datasets", reason="needs the extra `hf`: pip install 'robustcli[hf]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
URL = f"hf://datasets/{REPO}/val"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with hub_here(tmp_path_factory.mktemp("cache")) as server:
        yield server


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
