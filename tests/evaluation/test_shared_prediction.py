"""Several processes predict the bytes of one process, and a repeated command continues."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustcli.adapters.catalogue import ModelRequest
from robustcli.core.errors import RunError, UsageError
from robustcli.evaluation import distributed, mask_files, photo_labels, prediction
from robustcli.evaluation.distributed import Group
from robustcli.evaluation.prediction import PredictConfig, predict, run_prediction
from tests.evaluation.photos import make_photos
from tests.evaluation.test_distributed import in_threads

pytestmark = pytest.mark.usefixtures("one_thread")

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = make_photos(tmp_path_factory.mktemp("data") / "photos")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def labels(photos, out, **changes):
    settings = {"device": "cpu", "batch_size": 2, "top": 3} | changes
    return PredictConfig(ModelRequest("vmamba-pico"), (photos,), out, **settings)


def masks(photos, out, **changes):
    settings = {"device": "cpu", "batch_size": 2, "overlays": True} | changes
    return PredictConfig(ModelRequest("otsu"), (photos,), out, **settings)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_photos(photos, tmp_path, world):
    predict(labels(photos, tmp_path / "alone"))
    assert in_threads([labels(photos, tmp_path / "shared")] * world, run_prediction) == {}
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
    assert set(files(tmp_path / "shared")) == {"labels.csv", "labels.json"}


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_images_of_a_segmenter(photos, tmp_path, world):
    with pytest.raises(RunError, match="1 of 13 images cannot be read"):
        predict(masks(photos, tmp_path / "alone"))
    raised = in_threads([masks(photos, tmp_path / "shared")] * world, run_prediction)
    assert list(raised) == [0]
    assert "1 of 13 images cannot be read" in str(raised[0])
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
    assert len(files(tmp_path / "shared")) == 2 * 12 + 1


def test_an_interrupted_command_continues_its_labels(photos, tmp_path, monkeypatch):
    predict(labels(photos, tmp_path / "alone"))
    out, computed = tmp_path / "out", []

    def stopping(self, number, batch):
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(number)
        real(self, number, batch)

    real = photo_labels.LabelParts.put
    with monkeypatch.context() as patch:
        patch.setattr(photo_labels.LabelParts, "put", stopping)
        with pytest.raises(KeyboardInterrupt):
            predict(labels(photos, out))
    assert not (out / "labels.csv").exists()
    (kept,) = out.glob(".parts-*/batch-000001.json")
    kept.write_text("{")  # damaged: computed again
    monkeypatch.setattr(
        photo_labels.LabelParts, "put",
        lambda self, number, batch: computed.append(number) or real(self, number, batch),
    )  # fmt: skip
    predict(labels(photos, out))
    assert computed == [0, 1, 2, 1, 3, 4, 5, 6]
    assert files(out) == files(tmp_path / "alone")


@pytest.mark.parametrize("change", [{"fresh": True}, {"top": 2}, {"batch_size": 3}])
def test_batches_of_other_settings_are_not_used(photos, tmp_path, monkeypatch, change):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "write_labels", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(labels(photos, out))
    assert len(list(out.glob(".parts-*/*"))) == 7
    computed = []
    real = photo_labels.LabelParts.put
    monkeypatch.setattr(
        photo_labels.LabelParts, "put",
        lambda self, number, batch: computed.append(number) or real(self, number, batch),
    )  # fmt: skip
    predict(labels(photos, out, **change))
    assert computed == list(range(-(-13 // change.get("batch_size", 2))))
    assert set(files(out)) == {"labels.csv", "labels.json"}


def dying_in_rank_1(real):
    """`real`, which ends the second rank at its second call without a last message."""
    calls = []

    def dying(*arguments):
        if threading.current_thread().name == "rank 1":
            calls.append(arguments)
            if len(calls) == 2:
                distributed.RANK_SILENCE_SECONDS = 0.2
                raise SystemExit
        return real(*arguments)

    return dying


@pytest.mark.parametrize("settings", [labels, masks])
def test_a_dead_process_is_named_and_the_same_command_continues(
    photos, tmp_path, monkeypatch, settings
):
    monkeypatch.setattr(distributed, "RANK_SILENCE_SECONDS", 60.0)  # until the rank dies
    monkeypatch.setattr(Group, "_fail", lambda self, error: None)  # without a last message
    with monkeypatch.context() as patch:
        for owner, name in ((photo_labels.LabelParts, "put"), (mask_files, "_write")):
            patch.setattr(owner, name, dying_in_rank_1(getattr(owner, name)))
        raised = in_threads([settings(photos, tmp_path / "out")] * 2, run_prediction)
    assert "Process 1 of 2 ended without an error message." in str(raised[0])
    assert raised[0].exit_code == 1
    what = "4 photos of 13 are not" if settings is labels else "masks of 13 are missing"
    assert what in str(raised[0])
    kept = {name: text for name, text in files(tmp_path / "out").items() if "unread" not in name}
    assert kept
    for folder in ("out", "alone"):
        with suppress(RunError):  # one image of the segmenter cannot be read
            predict(settings(photos, tmp_path / folder))
    assert files(tmp_path / "out") == files(tmp_path / "alone")


@pytest.mark.parametrize("settings", [labels, masks])
def test_results_on_the_disk_of_another_machine_are_missing(
    photos, tmp_path, monkeypatch, settings
):
    """All processes end without an error, but the folder of the first lacks files."""
    name = "put" if settings is labels else "_write"
    owner = photo_labels.LabelParts if settings is labels else mask_files
    real = getattr(owner, name)

    def elsewhere(*arguments):
        if threading.current_thread().name != "rank 1":
            real(*arguments)

    monkeypatch.setattr(owner, name, elsewhere)
    raised = in_threads([settings(photos, tmp_path / "out")] * 2, run_prediction)
    assert list(raised) == [0]
    assert raised[0].exit_code == 1
    assert "`--out` must be a folder that all processes share" in str(raised[0])
    assert not (tmp_path / "out" / "labels.csv").exists()


@pytest.mark.parametrize("settings", [labels, masks])
def test_a_folder_that_the_ranks_do_not_share_is_refused_at_the_start(
    photos, tmp_path, monkeypatch, settings
):
    monkeypatch.setattr(distributed, "SIGHT_SECONDS", 0.2)
    raised = in_threads([settings(photos, tmp_path / name) for name in "ab"], run_prediction)
    assert "`--out` to a folder that all processes share" in str(raised[0])
    assert raised[0].exit_code == 3
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_rank_that_would_predict_something_else_is_refused(photos, tmp_path):
    config = labels(photos, tmp_path / "out")
    for change, message in (
        ({"limit": 3}, "in: images"),
        ({"top": 1}, "in: settings"),
        ({"batch_size": 3}, "in: settings"),
    ):
        raised = in_threads([config, replace(config, **change)], run_prediction)
        assert isinstance(raised[0], UsageError)
        assert "Process 1 of 2" in str(raised[0])
        assert message in str(raised[0])
    assert not (tmp_path / "out").exists()


def test_a_network_in_memory_cannot_be_shared(photos, tmp_path):
    request = ModelRequest("own", module=torch.nn.Identity())
    with pytest.raises(UsageError, match=r"`devices=2` cannot be used with `own`"):
        predict(replace(labels(photos, tmp_path / "out", devices=2), model=request))


def robust(*arguments, launcher=()):
    """Runs `robust predict` on the CPU in processes of its own."""
    return subprocess.run(
        [sys.executable, *launcher, "-m", "robustcli", "predict", "--device", "cpu", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=REPOSITORY, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow  # starts a process; test_ranks_share_the_photos is the same with threads
def test_devices_are_processes_that_share_the_photos(photos, tmp_path):
    """Without files, the processes pass their labels in a temporary folder."""
    alone, shared = (predict(labels(photos, None, devices=devices)) for devices in (None, 2))
    assert shared.document == alone.document
    assert len(shared.table()) == 12


@pytest.mark.slow  # starts processes; the tests above run the same with threads
@pytest.mark.parametrize("launcher", [TORCHRUN, ()], ids=["torchrun", "devices"])
@pytest.mark.parametrize("model", ["vmamba-pico", "otsu"])
def test_the_command_in_two_processes(tmp_path, launcher, model):
    photos = make_photos(tmp_path / "photos")
    options = ("--model", model, str(photos), "--limit", "9", "--batch-size", "2", "--json")
    alone = robust(*options, "--out", str(tmp_path / "alone"))
    shared = robust(
        *options, "--out", str(tmp_path / "shared"), *(() if launcher else ("--devices", "2")),
        launcher=launcher,
    )  # fmt: skip
    assert (alone.returncode, shared.returncode) == (0, 0), shared.stderr
    assert shared.stdout.replace("shared", "alone") == alone.stdout
    assert shared.stderr.count("done in") == 1
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
