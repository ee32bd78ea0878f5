"""Runs and data in object stores: an S3 server and an emulator of Google Cloud Storage.

Both serve on the loopback address. `core/test_objects.py`, `core/test_working_copy.py` and
`data/test_object_files.py` cover the same in every run of the suite, without a network.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from robustcli.core import objects
from robustcli.core.errors import RunError, UsageError
from robustcli.core.io import write_bytes, write_text
from robustcli.core.objects import ObjectStore, StoredObject
from robustcli.core.working_copy import opened
from robustcli.data.object_files import LIMIT
from robustcli.data.sources import Classes, open_dataset
from robustcli.evaluation.loader import batch_stream
from tests.evaluation.photos import make_photos, source
from tests.evaluation.test_evaluate import contents
from tests.evaluation.test_loader import digests

pytestmark = [
    pytest.mark.slow,
    # Warnings of the libraries of servers and clients.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@contextmanager
def serving_s3() -> Iterator[Any]:
    """A server with the bucket `bucket`, and the environment that names it."""
    moto = pytest.importorskip("moto.server", reason="needs `pip install 'moto[server]' s3fs`")
    s3fs = pytest.importorskip("s3fs", reason="needs `pip install 'moto[server]' s3fs`")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().makedirs("bucket", exist_ok=True)  # servers share their buckets
        yield running
        running.stop()
        s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def serving_google() -> Iterator[None]:
    """An emulator with the bucket `bucket`, and the environment that names it."""
    needed = "needs `pip install gcp-storage-emulator gcsfs`"
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason=needed)
    gcsfs = pytest.importorskip("gcsfs", reason=needed)
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


@pytest.fixture(scope="module", params=["s3", "gs"])
def scheme(request: pytest.FixtureRequest) -> Iterator[str]:
    """The scheme of the URLs of a running server of each kind."""
    with serving_s3() if request.param == "s3" else serving_google():
        yield request.param


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(objects, "PAUSES_S", (0.0,))
    monkeypatch.setenv("ROBUST_HOME", str(tmp_path / "home"))


def test_objects_of_any_name_and_size_are_stored_listed_fetched_and_removed(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(f"{scheme}://bucket/objects")
    names = ("a", "b/c d", "b/é#%?.png", "b/+&=[x]*.bin")
    for name in names:
        store.write(name, name.encode())
    assert list(store.listed()) == sorted(names)
    assert [store.read(name).decode() for name in names] == list(names)
    assert len({stored.version for stored in store.listed().values()}) == len(names)
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * 40_000)
    monkeypatch.setattr(objects, "_ONE_PIECE", 2**20)
    monkeypatch.setattr(objects, "_PIECE", 2**20)
    store.send("large", large)
    stored = store.listed()["large"]
    assert stored.size == large.stat().st_size
    store.fetch("large", tmp_path / "fetched", stored)
    assert (tmp_path / "fetched").read_bytes() == large.read_bytes()
    store.remove("large")
    store.remove("large")
    assert list(store.listed()) == sorted(names)
    with pytest.raises(FileNotFoundError):
        store.read("large")
    with pytest.raises(FileNotFoundError):
        store.fetch("large", tmp_path / "again", StoredObject(2**22, "version"))
    with pytest.raises(UsageError, match=f"`{scheme}://nowhere` does not exist"):
        ObjectStore(f"{scheme}://nowhere/x").write("a", b"1")
    with pytest.raises(UsageError, match=f"`{scheme}://nowhere` does not exist"):
        ObjectStore(f"{scheme}://nowhere/x").listed()


def test_a_run_goes_on_elsewhere(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}://bucket/runs/one"
    for machine, kept_blocks in (("a", []), ("b", ["block-000000.parquet"])):
        with opened(url, tmp_path / machine, [].append, "work") as run:
            assert [file.name for file in run.glob("predictions/*")] == kept_blocks
            write_text(run / "run.json", machine)
            write_bytes(run / "predictions" / f"block-{len(kept_blocks):06d}.parquet", b"rows")
            busy_error = pytest.raises(RunError, match=f"Another process is working in `{url}")
            with busy_error, opened(url, tmp_path / "c", [].append, "work"):
                pass
    files = [name for name in ObjectStore(url).listed() if name[0] != "."]
    assert files == [
        "predictions/block-000000.parquet", "predictions/block-000001.parquet", "run.json"
    ]  # fmt: skip


@pytest.mark.parametrize("limit", ["0", "1"])
@pytest.mark.parametrize(
    ("workers", "method"), [(0, None), (1, "fork"), (2, "fork"), (4, "fork"), (2, "spawn")]
)
def test_workers_read_the_same_pixels_as_from_a_folder(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, method: str | None,
    limit: str,
) -> None:  # fmt: skip
    """The first process reads from the store before it forks, as a listing does."""
    monkeypatch.setenv(LIMIT, limit)
    folder = make_photos(tmp_path / "photos")
    url = f"{scheme}://bucket/photos-{workers}-{method}-{limit}"
    store = ObjectStore(url)
    for file in folder.rglob("*"):
        if file.is_file():
            store.send(file.relative_to(folder).as_posix(), file)
    local = open_dataset(str(folder), Classes("cifar10"))
    remote = open_dataset(url, Classes("cifar10"))
    assert (local.digest, local.contents) == (remote.digest, remote.contents)
    expected = digests(source(local, tmp_path / "here", "affine"))
    batches = source(remote, tmp_path / "there", "affine")
    with monkeypatch.context() as patch:
        patch.setattr("warnings.warn", lambda *arguments, **options: None)  # 4 workers on 2 cores
        stream = batch_stream(batches, workers, pin=False, start_method=method)
        assert digests(stream) == expected


@pytest.mark.parametrize("scheme", ["s3"], indirect=True)
@pytest.mark.usefixtures("scheme")
@pytest.mark.parametrize(
    ("engine", "package"),
    [
        (("ray", "--devices", "2"), "ray"),
        (("slurm", "--slurm", "array=2,cluster=local"), "submitit"),
    ],
    ids=["ray", "slurm"],
)
def test_workers_of_an_engine_read_and_compute_for_a_store(
    tmp_path: Path, engine: tuple[str, ...], package: str
) -> None:
    """`test_engines.py` proves in every run that rows are sent while workers compute."""
    pytest.importorskip(package, reason=f"needs `pip install {package}`")
    folder = make_photos(tmp_path / "photos", per_class=4)
    url = f"s3://bucket/engine-{package}"
    photos = ObjectStore(f"{url}/photos")
    for file in folder.rglob("*.png"):
        photos.send(file.relative_to(folder).as_posix(), file)

    def evaluate(data: object, out: object, *more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "robustcli", "eval", "--model", "vmamba-pico", "--untrained",
             "--transform", "fliplr", "--transform", "affine", "--device", "cpu", "--workers", "0",
             "--data", str(data), "--out", str(out), *more],
            env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    evaluate(folder, tmp_path / "local")
    local = contents(tmp_path / "local")
    output = evaluate(photos.url, f"{url}/run", "--engine", *engine)
    assert f"All files are in `{url}/run`" in output
    run = ObjectStore(f"{url}/run")
    assert {name: hashlib.sha256(run.read(name)).hexdigest() for name in local} == local
    assert json.loads(run.read("run.json"))["status"] == "complete"
    assert not [name for name in run.listed() if name.startswith("slurm/")]


def test_a_server_that_is_gone_ends_the_run_with_everything_kept(tmp_path: Path) -> None:
    run = Path()

    def compute(server: Any) -> None:
        nonlocal run
        with opened("s3://bucket/runs/gone", tmp_path / "a", [].append, "work") as run:
            write_text(run / "run.json", "{}")
            server.stop()
            write_bytes(run / "predictions" / "block-000000.parquet", b"rows")

    gone = pytest.raises(RunError, match=r"(?s)not uploaded to `s3://bucket/runs/gone`.*cannot be")
    with serving_s3() as server, gone as e:
        compute(server)
    assert str(run) in e.value.todo
    assert (run / "predictions" / "block-000000.parquet").read_bytes() == b"rows"
