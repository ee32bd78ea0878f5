"""Runs and data on an emulator of Google Cloud Storage, on the loopback address.

`test_object_server.py` does the same with S3, and more of it; `core/test_objects.py` and
`core/test_working_copy.py` prove it in every run, without a network.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from robustcli.core import objects
from robustcli.core.io import write_bytes, write_text
from robustcli.core.objects import ObjectStore
from robustcli.core.working_copy import opened
from robustcli.data.sources import Classes, open_dataset
from robustcli.evaluation.loader import batch_stream
from tests.evaluation.photos import make_photos, source
from tests.evaluation.store_contract import check_objects
from tests.evaluation.test_loader import digests

pytestmark = [
    pytest.mark.slow,
    # Of the libraries of the emulator and the client.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
_NEEDED = "needs `pip install gcp-storage-emulator gcsfs`"


@pytest.fixture(scope="module", autouse=True)
def _emulator() -> Iterator[None]:
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason=_NEEDED)
    gcsfs = pytest.importorskip("gcsfs", reason=_NEEDED)
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    port = server._api._httpd.server_address[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        # Asks Google for the kind of each bucket, which the emulator cannot tell.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setenv("GOOGLE_CLOUD_PROJECT", "project")
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield
        gcsfs.GCSFileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(objects, "PAUSES_S", (0.0,))
    monkeypatch.setenv("ROBUST_HOME", str(tmp_path / "home"))


def test_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_objects("gs", tmp_path, monkeypatch)


def test_a_run_goes_on_elsewhere(tmp_path: Path) -> None:
    for machine, before in (("a", []), ("b", ["block-000000.parquet"])):
        with opened("gs://bucket/runs/one", tmp_path / machine, [].append, "work") as run:
            assert [file.name for file in run.glob("predictions/*")] == before
            write_text(run / "run.json", machine)
            write_bytes(run / "predictions" / f"block-{len(before):06d}.parquet", b"rows")
    files = [name for name in ObjectStore("gs://bucket/runs/one").listed() if name[0] != "."]
    assert files == [
        "predictions/block-000000.parquet", "predictions/block-000001.parquet", "run.json"
    ]  # fmt: skip


@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (2, "spawn")])
def test_workers_read_the_same_pixels_as_from_a_folder(
    tmp_path: Path, workers: int, method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUST_OBJECT_CACHE_GB", "0")
    folder = make_photos(tmp_path / "photos")
    url = f"gs://bucket/photos-{workers}-{method}"
    for file in folder.rglob("*.png"):
        ObjectStore(url).send(file.relative_to(folder).as_posix(), file)
    here, there = (
        open_dataset(str(folder), Classes("cifar10")),
        open_dataset(url, Classes("cifar10")),
    )
    assert (here.digest, here.contents) == (there.digest, there.contents)
    expected = digests(source(here, tmp_path / "here", "affine"))
    made = source(there, tmp_path / "there", "affine")
    assert digests(batch_stream(made, workers, pin=False, start_method=method)) == expected
