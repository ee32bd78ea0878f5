"""Runs and data on an S3 server on the loopback address.

`core/test_objects.py`, `core/test_working_copy.py` and `data/test_object_files.py` cover the same
in every run of the suite, without a network.
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
from robustcli.core.errors import RunError
from robustcli.core.io import write_bytes, write_text
from robustcli.core.objects import ObjectStore
from robustcli.core.working_copy import opened
from robustcli.data.object_files import LIMIT
from robustcli.data.sources import Classes, open_dataset
from robustcli.evaluation.loader import batch_stream
from tests.evaluation.photos import make_photos, source
from tests.evaluation.store_contract import check_objects
from tests.evaluation.test_evaluate import contents
from tests.evaluation.test_loader import digests

pytestmark = [
    pytest.mark.slow,
    # Warnings of the libraries of server and client.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@contextmanager
def serving() -> Iterator[Any]:
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


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with serving():
        yield


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(objects, "PAUSES_S", (0.0,))
    monkeypatch.setenv("ROBUST_HOME", str(tmp_path / "home"))


@pytest.mark.usefixtures("server")
def test_objects_of_any_name_and_size_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_objects("s3", tmp_path, monkeypatch)


@pytest.mark.usefixtures("server")
def test_a_run_goes_on_elsewhere(tmp_path: Path) -> None:
    for machine, kept_blocks in (("a", []), ("b", ["block-000000.parquet"])):
        with opened("s3://bucket/runs/one", tmp_path / machine, [].append, "work") as run:
            assert [file.name for file in run.glob("predictions/*")] == kept_blocks
            write_text(run / "run.json", machine)
            write_bytes(run / "predictions" / f"block-{len(kept_blocks):06d}.parquet", b"rows")
            busy_error = pytest.raises(RunError, match="Another process is working in `s3://")
            with busy_error, opened("s3://bucket/runs/one", tmp_path / "c", [].append, "work"):
                pass
    files = [name for name in ObjectStore("s3://bucket/runs/one").listed() if name[0] != "."]
    assert files == [
        "predictions/block-000000.parquet", "predictions/block-000001.parquet", "run.json"
    ]  # fmt: skip


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("limit", ["0", "1"])
@pytest.mark.parametrize(
    ("workers", "method"), [(0, None), (1, "fork"), (2, "fork"), (4, "fork"), (2, "spawn")]
)
def test_workers_read_the_same_pixels_as_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, method: str | None, limit: str
) -> None:
    """The first process reads from the store before it forks, as a listing does."""
    monkeypatch.setenv(LIMIT, limit)
    folder = make_photos(tmp_path / "photos")
    url = f"s3://bucket/photos-{workers}-{method}-{limit}"
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


@pytest.mark.usefixtures("server")
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
    assert f"Everything is in `{url}/run`" in output
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

    gone = pytest.raises(RunError, match=r"(?s)are not in `s3://bucket/runs/gone`.*cannot be")
    with serving() as server, gone as e:
        compute(server)
    assert str(run) in e.value.todo
    assert (run / "predictions" / "block-000000.parquet").read_bytes() == b"rows"
