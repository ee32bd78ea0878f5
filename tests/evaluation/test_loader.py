"""The stream of batches: its content, and equal pixels for every distribution of the work."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from collections import Counter
from dataclasses import replace
from multiprocessing.context import ForkProcess

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch.utils.data import dataloader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import RunError
from robustcli.core.signals import interruptible
from robustcli.data.decode import decode
from robustcli.data.sources import Classes, open_dataset
from robustcli.evaluation.loader import WorkerLoader, batch_stream
from robustcli.evaluation.store import INPUT_SCHEMA, Store, write_rows
from robustcli.tasks import classification
from robustcli.tasks.base import ORIGINAL, mean_squared_error, measure
from robustcli.tasks.classification import Views
from robustcli.training.datamodule import BaseDataModule, BatchSettings
from robustcli.transforms.base import Transform
from tests.evaluation.photos import CROP24, CROP32, make_photos, source


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = make_photos(tmp_path_factory.mktemp("photos"))
    return open_dataset(str(folder), Classes("cifar10"))


def digests(stream) -> dict[tuple[str, str], tuple[str, bytes, bytes]]:
    """Returns the digest and the pixels of both views per transform and image."""
    records = {}
    for batch in stream:
        for position, image_id in enumerate(batch.image_ids):
            measured = batch.measures[ORIGINAL][position].digest
            pixels = [
                batch.inputs.views[v][position].numpy().tobytes()
                for v in (CROP32.view, CROP24.view)
            ]
            records[batch.cell.transform, image_id] = (measured, *pixels)
    return records


NAMES = ("affine", "cutout", "multiply_per_channel", "piecewise_affine", "fast_snowy_landscape")


def test_the_images_of_a_batch_are_in_page_locked_memory_for_a_gpu(index, tmp_path, monkeypatch):
    """Torch's DataLoader pins only what it knows and what has a method `pin_memory`."""
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone()
    )
    batch = next(iter(source(index, tmp_path, "affine", batch_size=3)))
    views = batch.pin_memory().inputs.views
    assert [id(v) for v in pinned] == [id(v) for v in batch.inputs.views.values()]
    assert all(torch.equal(views[name], view) for name, view in batch.inputs.views.items())


@pytest.mark.parametrize(
    ("workers", "batch_size", "order"),
    [(0, 1, (1, 0)), (0, 7, (0, 1)), (2, 3, (0, 1)), (2, 2, (1, 0))],
)
def test_pixels_do_not_depend_on_workers_batches_or_order(
    index, tmp_path, workers, batch_size, order
):
    expected = digests(source(index, tmp_path, *NAMES))
    assert len(expected) == 12 * 6
    rearranged = source(index, tmp_path, *NAMES, batch_size=batch_size, order=order)
    assert digests(batch_stream(rearranged, workers, pin=False)) == expected


GRAIN = """
from robustcli.transforms import transform

@transform(severities=[20, 60])
def grain(image, rng, value):
    noise = rng.integers(-value, value + 1, image.shape)
    return (image + noise).clip(0, 255).astype("uint8")
"""


@pytest.mark.slow  # each process imports torch, eleven seconds
def test_spawned_workers_make_the_same_pixels(index, tmp_path):
    """The start method of Windows and macOS, with bundled and user-defined transforms."""
    plugin = tmp_path / "grain.py"
    plugin.write_text(GRAIN)
    stream = source(index, tmp_path, "affine", "grain", severities=(2,), plugins=(plugin,))
    assert digests(batch_stream(stream, 2, pin=False, start_method="spawn")) == digests(stream)


def test_another_seed_gives_other_pixels(index, tmp_path):
    first = digests(source(index, tmp_path, "affine"))
    second = digests(source(index, tmp_path, "affine", seed=1))
    assert all(first[key] != second[key] for key in first if key[0] == "affine")
    assert all(first[key] == second[key] for key in first if key[0] == "identity")


def test_every_image_is_decoded_once(index, tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        classification, "decode", lambda ref: decoded.append(ref.relative) or decode(ref)
    )
    list(source(index, tmp_path, *NAMES))
    assert sorted(decoded) == [ref.image_id for ref in index.samples]


def test_three_models_share_decoding_transforms_and_views(index, tmp_path, monkeypatch):
    """Two of the models use the same view, which is computed once."""
    calls = Counter()

    def count(owner, name, key):
        function = getattr(owner, name)

        def counting(*arguments, **keywords):
            calls[key(arguments[0])] += 1
            return function(*arguments, **keywords)

        monkeypatch.setattr(owner, name, counting)

    count(classification, "decode", lambda _: "decode")
    count(Transform, "for_image", lambda transform: transform.name)
    count(Preprocessing, "apply", lambda preprocessing: preprocessing.view)
    two_models = source(index, tmp_path, *NAMES)
    views = {**two_models.preparation.model_views, "third": CROP32.view}
    parts = [
        replace(
            part, piece=replace(part.piece, models=dict.fromkeys(part.piece.cells, tuple(views)))
        )
        for part in two_models.parts
    ]
    batches = list(
        replace(
            two_models, parts=parts, preparation=replace(two_models.preparation, model_views=views)
        )
    )
    assert all(batch.models == ("small", "large", "third") for batch in batches)
    photos, cells = 12, len(NAMES) + 1
    assert calls == {
        "decode": photos,
        **dict.fromkeys(("identity", *NAMES), photos),
        CROP32.view: photos * cells,
        CROP24.view: photos * cells,
    }


@pytest.mark.parametrize("workers", [1, 4])
def test_no_batch_is_lost_or_repeated_when_files_appear_meanwhile(index, tmp_path, workers):
    """Workers once skipped blocks because of files that were written meanwhile."""
    stream = source(index, tmp_path, *NAMES, batch_size=2)
    batches = []
    for batch in batch_stream(stream, workers, pin=False):
        batches.append((batch.block, batch.first, batch.cell.transform))
        for model in batch.models:
            path = Store(tmp_path).prediction_path(model, batch.cell, batch.block)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    # 12 images in blocks of seven, in batches of two.
    assert len(batches) == len(set(batches)) == 6 * (4 + 3)


def test_only_the_views_of_waiting_models_are_made(index, tmp_path):
    first = source(index, tmp_path, "fliplr", order=(0,))
    row = {"image_id": "a", "digest": "", "psnr_db": 1.0, "changed": True}
    for cell in first.parts[0].piece.cells:
        path = Store(tmp_path).prediction_path("large", cell, 0)
        write_rows(path, [row] * 7, INPUT_SCHEMA)
    stream = source(index, tmp_path, "fliplr", order=(0,))
    assert all(set(batch.inputs.views) == {CROP32.view} for batch in stream)


def test_unreadable_images_are_left_out_with_the_reason(tmp_path):
    folder = make_photos(tmp_path / "photos")
    (folder / "cat" / "1.png").write_bytes(b"no picture")
    index = open_dataset(str(folder), Classes("cifar10"))
    batches = list(source(index, tmp_path / "run", "identity"))
    assert [b.unreadable for b in batches if b.unreadable] == [
        [("cat/1.png", "not in a supported image format (JPEG, PNG, PPM, BMP, TIFF, WEBP, GIF)")]
    ]
    assert sum(len(b.image_ids) for b in batches) == 11


def test_an_error_of_a_worker_is_passed_on_unchanged(tmp_path):
    folder = make_photos(tmp_path / "photos")
    plugin = tmp_path / "half.py"
    plugin.write_text(
        "from robustcli.transforms import transform\n"
        "@transform()\n"
        "def half(image, rng, value):\n"
        "    return image[: len(image) // 2].copy()\n"
    )
    index = open_dataset(str(folder), Classes("cifar10"))
    stream = source(index, tmp_path / "run", "half", at_crop=True, plugins=(plugin,))
    items = list(batch_stream(stream, 1, pin=False))
    assert isinstance(items[-1], RunError)
    assert "`half` changed the size of a crop" in str(items[-1])


RNG = np.random.default_rng(0)
CLEAN = RNG.integers(0, 256, (31, 17, 3), np.uint8)


def test_psnr_is_that_of_scikit_image():
    other = RNG.integers(0, 256, CLEAN.shape, np.uint8)
    expected = peak_signal_noise_ratio(CLEAN, other, data_range=255)
    assert measure(CLEAN, other).psnr_db == pytest.approx(expected, rel=1e-12)


def test_extreme_and_single_differences():
    black, white = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8)
    assert mean_squared_error(black, white) == 255**2
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 3), (37, 50, 3), (1500, 2000, 3)):
        first, second = (rng.integers(0, 256, shape, np.uint8) for _ in range(2))
        second.flags.writeable = False
        exact = np.square(first.astype(np.int64) - second).sum() / first.size
        assert mean_squared_error(first, second) == exact
    assert measure(black, white).psnr_db == 0.0

    unchanged = measure(CLEAN, CLEAN.copy())
    assert (unchanged.psnr_db, unchanged.changed) == (np.inf, False)
    other = CLEAN.copy()
    other[3, 4, 1] ^= 1
    assert measure(CLEAN, other).changed
    assert measure(CLEAN, other).digest != measure(CLEAN, CLEAN).digest


def test_another_size_has_no_psnr_and_the_digest_depends_on_shape_and_not_on_memory_order():
    smaller = measure(CLEAN, CLEAN[:-1])
    assert np.isnan(smaller.psnr_db)
    assert smaller.changed
    assert measure(CLEAN, CLEAN.reshape(17, 31, 3)).digest != measure(CLEAN, CLEAN).digest
    fortran = np.asfortranarray(CLEAN)
    assert measure(CLEAN, fortran).digest == measure(CLEAN, CLEAN).digest


@pytest.mark.parametrize("batch", ["evaluation", "training"])
def test_full_shared_memory_is_an_error_of_the_loader(monkeypatch, batch):
    """torch's thread that sends batches would only print it, and the loader would wait forever."""

    def refuse(*_):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refuse)
    if batch == "evaluation":
        loader = batch_stream([Views([], [], {"m": torch.zeros(4)})], 1, pin=False)
    else:
        settings = BatchSettings(seed=0, workers=1)
        loader = BaseDataModule(lambda s: (torch.stack(s),), settings).loader([torch.zeros(4)])
    monkeypatch.setattr(loader, "timeout", 20)
    with pytest.raises(RuntimeError, match="unable to allocate shared memory"):
        next(iter(loader))


def test_the_limit_of_processes_is_the_only_error_that_is_reported(monkeypatch):
    """The finaliser of an iterator with a part of its workers fails; Python prints its error."""
    start, started, unraisable = ForkProcess.start, [], []

    def refuse(process):
        if not started:
            started.append(process)
            return start(process)
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(ForkProcess, "start", refuse)
    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append(args.exc_value))
    with pytest.raises(BlockingIOError):
        iter(WorkerLoader(range(4), num_workers=2, multiprocessing_context="fork"))
    gc.collect()
    assert unraisable == []


def test_a_signal_while_workers_start_takes_effect_when_all_have_started(monkeypatch):
    """The finaliser of an iterator with a part of its workers fails; Python prints its error."""
    start, started, unraisable = ForkProcess.start, [], []

    def start_and_signal(process):
        start(process)
        started.append(process)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ForkProcess, "start", start_and_signal)
    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append(args.exc_value))
    loader = WorkerLoader(range(4), num_workers=2, multiprocessing_context="fork")
    with pytest.raises(KeyboardInterrupt), interruptible():
        iter(loader)
    assert len(started) == 2
    gc.collect()
    assert unraisable == []


def test_an_error_in_the_finaliser_of_a_loader_is_not_printed(monkeypatch):
    """At exit, torch reports a loader process that the signal to this process has ended too."""
    unraisable, shut_down = [], _MultiProcessingDataLoaderIter._shutdown_workers

    def shut_down_and_fail(stream):
        shut_down(stream)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", shut_down_and_fail)
    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append(args.exc_value))
    stream = iter(WorkerLoader(range(4), num_workers=1, multiprocessing_context="fork"))
    assert next(stream) == 0
    del stream
    gc.collect()
    assert unraisable == []


def test_iterators_of_another_torch_need_no_private_names(monkeypatch):
    """A class without the methods of today's, and one that cannot be extended."""

    class Sevens:
        def __init__(self, loader):
            pass

        def __next__(self):
            return 7

    for iterator in (Sevens, lambda loader: iter([7])):
        monkeypatch.setattr(dataloader, "_MultiProcessingDataLoaderIter", iterator)
        stream = iter(WorkerLoader(range(4), num_workers=1, multiprocessing_context="fork"))
        assert next(stream) == 7
        del stream
