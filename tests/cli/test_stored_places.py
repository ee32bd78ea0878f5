"""Commands on runs and data in object stores, here in the memory of this process."""

from __future__ import annotations

import json
import tarfile
import uuid
from pathlib import Path
from typing import Any

import pytest

import robustcli
from robustcli.core.errors import UsageError
from robustcli.core.objects import ObjectStore

ASSETS = Path(__file__).parents[2] / "robustcli" / "assets"
EVAL = (
    "eval",
    "--model",
    "resnet-pico",
    "--transform",
    "fliplr",
    "--limit",
    "20",
    "--workers",
    "0",
)


@pytest.fixture(scope="module")
def data() -> str:
    """The address of 20 photos of each of two classes."""
    store = ObjectStore(f"memory://{uuid.uuid4().hex}/photos")
    with tarfile.open(ASSETS / "cifar10-mini.tar") as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            content = archive.extractfile(member) if folder in ("cat", "dog") else None
            if content is not None and len(store.listed(folder)) < 20:
                store.write(f"{folder}/{name}", content.read())
    return store.url


@pytest.fixture
def place() -> ObjectStore:
    return ObjectStore(f"memory://{uuid.uuid4().hex}/run")


def rows(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if "block-" in name}


def stored(place: ObjectStore) -> dict[str, bytes]:
    return {name: place.read(name) for name in place.listed() if not name.startswith(".")}


def test_an_evaluation_from_store_to_store_and_what_reads_it(
    robust: Any, data: str, place: ObjectStore, tmp_path: Path
) -> None:
    copy = ObjectStore(data)
    for name in copy.listed():
        copy.fetch(name, tmp_path / "photos" / name)
    assert robust(*EVAL, "--data", "photos", "--out", "local").code == 0
    local = {
        path.relative_to("local").as_posix(): path.read_bytes()
        for path in Path("local").rglob("*") if path.is_file()
    }  # fmt: skip

    dry = robust(*EVAL, "--data", data, "--out", place.url, "--dry-run")
    assert (dry.code, stored(place)) == (2, {}), "the data were never listed"
    done = robust(*EVAL, "--data", data, "--out", place.url)
    assert done.code == 0, done.err
    assert place.url in done.err
    assert len(rows(local)) == 4
    assert rows(stored(place)) == rows(local)
    record, here = json.loads(place.read("run.json")), json.loads(local["run.json"])
    assert record["dataset"].pop("location") == data
    here["dataset"].pop("location")
    assert record["dataset"] == here["dataset"]
    assert {"report.md", "report.html", "results.csv"} <= set(stored(place))
    assert robust(*EVAL, "--data", data, "--out", place.url, "--dry-run").code == 0

    place.remove("report.md")
    report = robust("report", place.url)
    assert (report.code, "report.md" in stored(place)) == (0, True)
    compared = robust("compare", f"{place.url}:resnet-pico", "local:resnet-pico")
    assert compared.code in (0, 2)
    assert "is not a run" not in compared.err
    twice = robust("compare", f"{place.url}:resnet-pico", f"{place.url}/:resnet-pico")
    assert "Another process" not in twice.err
    assert robust("report", place.url, f"{place.url}/").code == 0
    before = stored(place)
    assert robust("verify", place.url, "--sample", "1").code == 0
    assert stored(place) == before
    assert not Path("memory:").exists()


def test_gates_and_study_files(robust: Any, data: str, place: ObjectStore) -> None:
    Path("study.yaml").write_text(f"out: {place.url}\ndata: {data}\nfail_under: clean=100\n")
    ended = robust(*EVAL, "--config", "study.yaml")
    assert ended.code == 4, ended.err
    settings = json.loads(place.read("study.json"))["settings"]
    assert settings["out"]["value"] == place.url
    assert json.loads(place.read("gates.json"))["passed"] is False


REFUSED = [
    ("export", "resnet-pico", "--out", "s3://bucket/x"),
    ("publish", "runs/x", "--to", "hub-card", "--out", "s3://bucket/x"),
    ("report", "runs/x", "--format", "csv", "--file", "s3://bucket/x.csv"),
    ("predict", "--model", "resnet-pico", "s3://bucket/photos"),
    ("predict", "--model", "resnet-pico", "--data", "s3://bucket/photos"),
    ("eval", "--model", "s3://bucket/run", "--transform", "fliplr"),
    ("eval", "--model", "resnet-pico", "--weights", "s3://b/x.pth", "--transform", "fliplr"),
    ("eval", "--model", "resnet-pico", "--transform", "x", "--plugin", "s3://b/x.py"),
    ("eval", "--model", "resnet-pico", "--transform", "fliplr", "--labels", "gs://b/x.csv"),
    ("eval", "--model", "resnet-pico", "--transform", "fliplr", "--published", "gs://b/x"),
    ("eval", "--config", "s3://bucket/study.yaml"),
    ("eval", "--model", "resnet-pico", "--transform", "fliplr", "--out", "https://host/x"),
    ("eval", "--model", "resnet-pico", "--transform", "fliplr", "--out", "file:///tmp/x"),
    ("eval", "--model", "resnet-pico", "--transform", "fliplr", "--out", "s3:/bucket/x"),
    ("eval", "--model", "resnet-pico", "--transform", "fliplr", "--data", "ftp://host/x"),
    ("train", "seg", "--model", "ulvm_v5", "--data", "abc://host/x"),
    ("finetune", "ulvm_v5", "--pretrained", "s3://bucket/x"),
    ("finetune", "ulvm_v5", "--out", "hf://datasets/a/b"),
    ("explain", "--model", "s3://bucket/x"),
    ("explain", "--model", "resnet-pico", "--boxes", "s3://bucket/x.csv"),
    ("list", "transforms", "--published", "s3://bucket/x"),
]


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_what_cannot_be_in_a_store_is_refused_and_never_taken_for_a_folder(
    robust: Any, arguments: tuple[str, ...]
) -> None:
    before = sorted(Path().iterdir())
    ended = robust(*arguments)
    assert ended.code == 2
    assert "://" in ended.err
    assert [path for path in sorted(Path().iterdir()) if path.name != "home"] == [
        path for path in before if path.name != "home"
    ]


@pytest.mark.parametrize(
    "arguments",
    [("report",), ("compare",), ("verify",), ("explain",), ("publish", "--to", "hub-card")],
    ids=" ".join,
)
def test_an_address_without_a_run(
    robust: Any, place: ObjectStore, arguments: tuple[str, ...]
) -> None:
    ended = robust(*arguments, place.url)
    assert ended.code == 2
    assert f"`{place.url}` is not a run" in ended.err
    place.write("photo.jpg", b"x")
    ended = robust(*arguments, place.url)
    assert ended.code == 2
    assert f"`{place.url}` is not a run" in ended.err
    assert list(place.listed()) == ["photo.jpg"]


def test_the_functions_take_addresses_too(data: str, place: ObjectStore) -> None:
    run = robustcli.evaluate("resnet-pico", data, "fliplr", out=place.url, limit=10, workers=0)
    assert len(run.table()) == 2
    assert json.loads(place.read("run.json"))["status"] == "complete"
    assert robustcli.verify(place.url, sample=1).reproduced
    with pytest.raises(UsageError, match="in Python pass it as a string"):
        robustcli.evaluate("resnet-pico", data, "fliplr", out=Path(place.url), workers=0)
    with pytest.raises(UsageError, match="is not a local path"):
        robustcli.compare("a", "b", out="s3://bucket/x")
