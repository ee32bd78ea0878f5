"""Evaluations that run out of memory continue with smaller batches and print one message."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined,unused-ignore]

from robustcli.adapters import segmenter as segmenter_module
from robustcli.adapters.classifier import Classifier
from robustcli.adapters.segmenter import MaskPreprocessing, Segmenter
from robustcli.core.errors import RunError
from robustcli.core.ranks import Ranks
from robustcli.data.decode import UnreadableImage
from robustcli.evaluation import evaluate, loader
from robustcli.evaluation.distributed import Group, _AllRanks, _Counter
from robustcli.evaluation.prediction import PredictConfig, predict
from robustcli.evaluation.record import read_record
from robustcli.tasks import classification, segmentation
from tests.evaluation import cells, photos
from tests.evaluation.test_evaluate import contents, small_blocks
from tests.training.runs import Recorder

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = {"cls": (photos.config, photos.make_photos), "seg": (cells.config, cells.make_pairs)}
MODEL_METHODS = {"cls": (Classifier, "logits"), "seg": (Segmenter, "probabilities")}
PREPARATIONS = {"cls": classification.ViewPreparation, "seg": segmentation.PairPreparation}
PICO = replace(photos.PICO, untrained=False)  # threads share the generator of random weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {task: make(tmp_path_factory.mktemp(task) / "data") for task, (_, make) in TASKS.items()}


def config(task: str, data: dict[str, Path], out: Path, **changes: Any) -> Any:
    models = {"cls": {"models": (PICO,)}, "seg": {}}[task]
    return TASKS[task][0](data[task], out, "fliplr", **(models | changes))


def limit_memory(monkeypatch: pytest.MonkeyPatch, task: str, most: int) -> None:
    """Makes the models of `task` run out of memory above `most` images."""
    kind, name = MODEL_METHODS[task]
    compute = getattr(kind, name)

    def run_out(self: Any, images: Any) -> Any:
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return compute(self, images)

    monkeypatch.setattr(kind, name, run_out)


@pytest.mark.parametrize(
    ("task", "changes"),
    [("cls", {}), ("cls", {"precision": "bf16"}), ("seg", {})],
)
def test_rows_are_those_of_the_smaller_batch(data, tmp_path, monkeypatch, task, changes):
    small_blocks(monkeypatch, 8)
    expected = evaluate.evaluate(config(task, data, tmp_path / "two", batch_size=2, **changes))
    limit_memory(monkeypatch, task, 2)
    listener = Recorder()
    run = evaluate.evaluate(config(task, data, tmp_path / "run", batch_size=8, **changes), listener)
    assert contents(run) == contents(expected)
    assert read_record(run).status == "complete"
    lines = [line for line in listener.lines if "memory" in line]
    name = "vmamba-pico" if task == "cls" else "otsu"
    assert lines == [f"Out of memory on cpu: `{name}` continues with batches of 2."]


def test_of_an_image_that_does_not_fit_size_and_device_are_named(data, tmp_path, monkeypatch):
    small_blocks(monkeypatch, 4)
    expected = evaluate.evaluate(config("cls", data, tmp_path / "unbroken"))
    run, batch_lengths = tmp_path / "run", []
    with pytest.MonkeyPatch.context() as patch:
        compute = Classifier.logits

        def run_out(self: Any, views: Any) -> Any:
            batch_lengths.append(len(views))
            if len(batch_lengths) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return compute(self, views)

        patch.setattr(Classifier, "logits", run_out)
        with pytest.raises(
            RunError, match="`vmamba-pico` does not fit into the memory of cpu"
        ) as e:
            evaluate.evaluate(config("cls", data, run))
    assert "one image of 32x32 pixels" in e.value.why
    assert "`--precision bf16`" in e.value.todo
    kept_rows = contents(run)
    assert kept_rows
    assert kept_rows.items() <= contents(expected).items()
    assert contents(evaluate.evaluate(config("cls", data, run))) == contents(expected)


@pytest.mark.parametrize(("task", "workers"), [("cls", 0), ("cls", 2), ("seg", 0)])
def test_a_loader_that_runs_out_goes_on_with_halves(data, tmp_path, monkeypatch, task, workers):
    """The failure happens after the first transform of a batch, which is not repeated."""
    small_blocks(monkeypatch, 8)
    expected = evaluate.evaluate(config(task, data, tmp_path / "two", batch_size=2))
    kind = PREPARATIONS[task]
    prepare = kind.prepare

    def run_out(self: Any, items: Any, *rest: Any, **keywords: Any) -> Any:
        for number, prepared in enumerate(prepare(self, items, *rest, **keywords)):
            if number and len(items) > 2:
                np.empty(1 << 60, np.uint8)  # raises NumPy's own MemoryError
            yield prepared

    monkeypatch.setattr(kind, "prepare", run_out)
    listener = Recorder()
    settings = config(task, data, tmp_path / "run", batch_size=8, workers=workers)
    run = evaluate.evaluate(settings, listener)
    assert contents(run).keys() == contents(expected).keys()
    names = [name for name in contents(run) if "fliplr" in name]
    assert {name: contents(run)[name] for name in names} == {
        name: contents(expected)[name] for name in names
    }
    assert sum("Out of memory in a loader process" in line for line in listener.lines) == 1
    assert listener.done == listener.total


@pytest.mark.parametrize(("task", "workers"), [("cls", 0), ("cls", 2), ("seg", 0)])
def test_a_batch_of_large_photos_comes_in_parts(data, tmp_path, monkeypatch, task, workers):
    small_blocks(monkeypatch, 8)
    expected = evaluate.evaluate(config(task, data, tmp_path / "two", batch_size=2))
    monkeypatch.setattr(loader, "_bytes_of", lambda decoded: 1)
    monkeypatch.setattr(loader, "_MOST_BYTES", 2)
    listener = Recorder()
    settings = config(task, data, tmp_path / "run", batch_size=8, workers=workers)
    run = evaluate.evaluate(settings, listener)
    assert contents(run) == contents(expected)
    assert listener.done == listener.total


def test_the_size_of_a_decoded_image_is_that_of_its_arrays() -> None:
    pixels, mask = np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.int16)
    assert [loader._bytes_of(decoded) for decoded in (pixels, (pixels, mask))] == [18, 30]


def test_an_image_that_a_loader_cannot_hold_is_named(data, tmp_path, monkeypatch):
    decode = classification.decode

    def run_out(ref: Any) -> Any:
        if ref.relative == "dog/1.png":
            raise MemoryError
        return decode(ref)

    monkeypatch.setattr(classification, "decode", run_out)
    with pytest.raises(RunError, match=r"`dog/1\.png` and its transforms do not fit into"):
        evaluate.evaluate(config("cls", data, tmp_path / "run"))


def test_unreadable_images_count_in_a_batch_that_comes_in_halves(data, tmp_path, monkeypatch):
    small_blocks(monkeypatch, 8)
    decode = classification.decode

    def damaged(ref: Any) -> Any:
        if ref.relative == "dog/1.png":
            raise UnreadableImage("damaged")
        return decode(ref)

    monkeypatch.setattr(classification, "decode", damaged)
    settings = {"allow_unreadable": 0.5}
    expected = evaluate.evaluate(config("cls", data, tmp_path / "two", batch_size=2, **settings))
    decode_all = evaluate.Source._decode_first

    def run_out(self: Any, images: Any) -> Any:
        if len(images) > 2:
            raise MemoryError
        return decode_all(self, images)

    monkeypatch.setattr(evaluate.Source, "_decode_first", run_out)
    run = evaluate.evaluate(config("cls", data, tmp_path / "run", batch_size=8, **settings))
    assert contents(run) == contents(expected)


def test_what_another_rank_announces_reaches_the_user_once() -> None:
    store, listener = HashStore(), Recorder()
    first, second = (Group(Ranks(rank, 2, rank, 2), store) for rank in range(2))
    counter_of_all = _AllRanks(store, listener)
    first.announce("halved", counter_of_all)
    second.announce("halved", _Counter(store))
    second.announce("of the second alone", _Counter(store))
    counter_of_all.look()
    counter_of_all.look()
    assert listener.lines == ["halved", "of the second alone"]


def test_labels_are_those_of_the_smaller_batch(data, monkeypatch):
    settings = PredictConfig(PICO, (data["cls"],), device="cpu", batch_size=2)
    expected = predict(settings).table()
    limit_memory(monkeypatch, "cls", 2)
    listener = Recorder()
    labelled = predict(replace(settings, batch_size=8), listener)
    pd.testing.assert_frame_equal(labelled.table(), expected)
    assert listener.lines[-1:] == [
        "Out of memory on cpu: `vmamba-pico` continues with batches of 2."
    ]


class Doubling(torch.nn.Module):
    """Returns the red channel; runs out of memory above one window."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        if len(windows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return windows[:, :1]


def test_a_large_image_goes_on_with_fewer_windows_at_once(monkeypatch):
    facts: Any = type("Facts", (), {"name": "red"})
    monkeypatch.setattr(segmenter_module, "is_probability", lambda _: True)
    large = Segmenter(Doubling(), MaskPreprocessing(8), facts)
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    listener = Recorder()
    forward = segmentation.MaskRows(large, announce=listener.say).forward
    (masks,) = forward([image])
    np.testing.assert_array_equal(masks[0], image[..., 0] >= 128)
    assert large.most_windows == 1
    assert listener.lines == [
        "Out of memory on cpu: `red` now processes the windows of an image in batches of 1."
    ]
