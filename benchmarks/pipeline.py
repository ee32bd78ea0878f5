"""Costs of an evaluation's pipeline, and time saved by sharing its work. Needs ImageNet photos.

    python benchmarks/pipeline.py --data PHOTOS    # all parts, half an hour on two cores
    python benchmarks/pipeline.py --data PHOTOS --part first-batch
    python benchmarks/pipeline.py --data PHOTOS --part one-pass --part models

`PHOTOS` is a folder of class folders named by WordNet ids, such as ImageNet's `val`. Each part
alternates two measurements in new processes, and prints the ratio of each pair and the median
ratio. Time is processor time of the process and its workers, which depends less on other load than
wall-clock time; the ratio of wall-clock times is also printed.

1. first-batch: `robust eval` until its first batch has rows, relative to `import torch, timm`.
2. one-pass: the 21 transforms of `paper21`, resized and cropped for one model, in one pass over the
   photos, relative to 21 passes of one transform each.
3. models: one run of three models under three transforms, relative to three runs of one model.
4. clean: `robust eval --transform identity` of one model, relative to a loop like that of timm's
   `validate.py`, over timm's loader with the same workers, batch size, resize and crop.
5. overhead: a run of ConvNeXt-B under cheap transforms, relative to only its forward passes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREE_MODELS = ("mobilenetv3_small_050", "tinynet_e", "lcnet_050")
CHEAP = ("fliplr", "invert", "multiply")
CLEAN_MODEL = "mobilenetv3_small_100"
LARGE_MODEL = "convnext-b"


def main() -> None:
    """Prints one line per pair of measurements, and the median ratio of each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=128, help="photos per measurement")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of both programs")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        _measure(options)
        return
    for part in options.part or PARTS:
        first, second = PARTS[part]
        ratios = []
        for turn in range(options.rounds):
            pair = [_in_process(options, name) for name in (first, second)]
            (work, clock), (other_work, other_clock) = pair
            ratios.append(work / other_work)
            print(f"{part} {turn + 1}: {first} {work:.2f} s, {second} {other_work:.2f} s, ratio "
                  f"{ratios[-1]:.3f} (by the clock {clock:.2f} s, {other_clock:.2f} s, "
                  f"{clock / other_clock:.3f})", flush=True)  # fmt: skip
        print(f"{part}: median ratio of {first} to {second}: {statistics.median(ratios):.3f}")


def _in_process(options: argparse.Namespace, name: str) -> tuple[float, float]:
    """Processor and wall-clock seconds of the measurement `name`, in a new process."""
    command = [
        sys.executable, __file__, "--data", str(options.data), "--limit", str(options.limit),
        "--workers", str(options.workers), "--measure", name,
    ]  # fmt: skip
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    work, clock = json.loads(result.stdout.splitlines()[-1])
    return work, clock


def _measure(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(MEASUREMENTS[options.measure](options, Path(folder))))


def _processor_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    before, started = _processor_seconds(), time.perf_counter()
    work()
    return _processor_seconds() - before, time.perf_counter() - started


def _imports(options: argparse.Namespace, folder: Path) -> tuple[float, float]:
    return _timed(lambda: subprocess.run([sys.executable, "-c", "import torch, timm"], check=True))


def _first_batch(options: argparse.Namespace, folder: Path) -> tuple[float, float]:
    script = (
        "import os, sys\n"
        "from robustcli.evaluation.evaluate import Runner\n"
        "take = Runner._take\n"
        "def first(self, batch):\n"
        "    take(self, batch)\n"
        "    os._exit(0)\n"
        "Runner._take = first\n"
        "from robustcli.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [
        *(sys.executable, "-c", script, "eval", "--model", CLEAN_MODEL, "--untrained", "--quiet"),
        *("--data", str(options.data), "--limit", "8", "--transform", "identity"),
        *("--workers", "0", "--device", "cpu", "--out", str(folder / "run")),
    ]
    return _timed(lambda: subprocess.run(command, check=True))


def _source(options: argparse.Namespace, transforms: list[str], folder: Path) -> Any:
    """The input batches for one model with inputs of 224 pixels; the model is not loaded."""
    from robustcli.adapters.preprocessing import Preprocessing
    from robustcli.data.sources import Classes, open_dataset
    from robustcli.data.splits import take
    from robustcli.evaluation.loader import Source
    from robustcli.evaluation.plan import EvaluationPlan, parts_of
    from robustcli.evaluation.store import Store
    from robustcli.tasks.base import ORIGINAL
    from robustcli.tasks.classification import ViewPreparation
    from robustcli.transforms.base import Cell
    from robustcli.transforms.registry import resolve_transforms

    photos = take(
        open_dataset(str(options.data), Classes("imagenet-1k")),
        limit=options.limit, per_class=None, seed=0,
    )  # fmt: skip
    cells = {
        Cell(cell.transform.name, cell.severity): cell
        for cell in resolve_transforms(transforms, None)[1:]
    }
    preprocessing = Preprocessing(256, 224)
    view = preprocessing.view
    preparation = ViewPreparation(cells, {view: preprocessing}, {"model": view}, 0, at_crop=False)
    plan = EvaluationPlan(
        Store(folder), photos.samples, tuple(cells), ("model",), (ORIGINAL,), 128
    )  # fmt: skip
    return Source(parts_of(plan.missing(), 32), preparation)


def _passes(options: argparse.Namespace, folder: Path, *, together: bool) -> tuple[float, float]:
    import torch

    from robustcli.transforms.paper21 import PAPER21

    torch.set_num_threads(1)
    names = [transform.name for transform in PAPER21]
    commands = [names] if together else [[name] for name in names]
    sources = [_source(options, command, folder) for command in commands]
    few = argparse.Namespace(**{**vars(options), "limit": 1})
    sum(1 for _ in _source(few, names, folder))  # warm-up: imports, loads kernels
    return _timed(lambda: [sum(1 for _ in source) for source in sources])


def _evaluate(
    options: argparse.Namespace, models: tuple[str, ...], transforms: tuple[str, ...], out: Path
) -> tuple[float, float]:
    """Seconds from the first batch to the last row of a run, without imports and reports."""
    import robustcli
    from robustcli.evaluation.evaluate import Runner

    run, seconds = Runner.run, list[tuple[float, float]]()

    def timed(self: Runner, workers: int, *, pin: bool) -> None:
        seconds.append(_timed(lambda: run(self, workers, pin=pin)))

    Runner.run = timed  # type: ignore[method-assign]
    try:
        robustcli.evaluate(
            list(models), str(options.data), list(transforms), out=str(out), untrained=True,
            device="cpu", workers=options.workers, limit=options.limit,
        )  # fmt: skip
    finally:
        Runner.run = run  # type: ignore[method-assign]
    return seconds[0]


def _warm(options: argparse.Namespace, folder: Path) -> None:
    few = argparse.Namespace(**{**vars(options), "limit": 4})
    _evaluate(few, THREE_MODELS[:1], CHEAP, folder / "warm")


def _three_together(options: argparse.Namespace, folder: Path) -> tuple[float, float]:
    _warm(options, folder)
    return _evaluate(options, THREE_MODELS, CHEAP, folder / "run")


def _three_apart(options: argparse.Namespace, folder: Path) -> tuple[float, float]:
    _warm(options, folder)
    runs = [_evaluate(options, (name,), CHEAP, folder / name) for name in THREE_MODELS]
    return sum(run[0] for run in runs), sum(run[1] for run in runs)


def _clean(options: argparse.Namespace, folder: Path) -> tuple[float, float]:
    _warm(options, folder)
    return _evaluate(options, (CLEAN_MODEL,), ("identity",), folder / "run")


def _timm_loop(options: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """The same photos and model with timm's data set, loader and accuracy."""
    import timm
    import torch
    from timm.data import create_dataset, create_loader, resolve_data_config
    from timm.utils import AverageMeter, accuracy

    model = timm.create_model(CLEAN_MODEL).eval()
    config = resolve_data_config({}, model=model)
    dataset = create_dataset("", root=str(options.data))
    dataset.reader.samples = dataset.reader.samples[: options.limit]

    def validate() -> None:
        loader = create_loader(
            dataset, input_size=config["input_size"], batch_size=32, use_prefetcher=False,
            interpolation=config["interpolation"], mean=config["mean"], std=config["std"],
            num_workers=options.workers, crop_pct=config["crop_pct"], device=torch.device("cpu"),
        )  # fmt: skip
        loss_of = torch.nn.CrossEntropyLoss()
        losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
        with torch.inference_mode():
            for images, targets in loader:
                logits = model(images)
                first, fifth = accuracy(logits, targets, topk=(1, 5))
                losses.update(loss_of(logits, targets).item(), len(images))
                top1.update(first.item(), len(images))
                top5.update(fifth.item(), len(images))

    limit, dataset.reader.samples = dataset.reader.samples, dataset.reader.samples[:4]
    validate()
    dataset.reader.samples = limit
    return _timed(validate)


def _large(options: argparse.Namespace, folder: Path) -> tuple[float, float]:
    few = argparse.Namespace(**{**vars(options), "limit": 1})
    _evaluate(few, (LARGE_MODEL,), CHEAP, folder / "warm")
    return _evaluate(options, (LARGE_MODEL,), CHEAP, folder / "run")


def _large_alone(options: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Only the forward passes of `_large`, in batches of 32 with a smaller last batch."""
    import torch

    from robustcli.adapters.catalogue import ModelRequest
    from robustcli.adapters.load import load

    model = load(ModelRequest(LARGE_MODEL, untrained=True), "cls")
    side = model.preprocessing.crop
    views = torch.randint(0, 256, (32, 3, side, side), dtype=torch.uint8)
    model.logits(views[:1])
    sizes = [32] * (options.limit // 32) + [options.limit % 32] * (options.limit % 32 > 0)
    return _timed(lambda: [model.logits(views[:n]) for n in sizes for _ in range(1 + len(CHEAP))])


PARTS = {
    "first-batch": ("first-batch", "imports"),
    "one-pass": ("one-by-one", "together"),
    "models": ("three-runs", "one-run"),
    "clean": ("robust", "timm"),
    "overhead": ("convnext-b-run", "convnext-b-alone"),
}
MEASUREMENTS: dict[str, Callable[[argparse.Namespace, Path], tuple[float, float]]] = {
    "first-batch": _first_batch,
    "imports": _imports,
    "one-by-one": lambda options, folder: _passes(options, folder, together=False),
    "together": lambda options, folder: _passes(options, folder, together=True),
    "three-runs": _three_apart,
    "one-run": _three_together,
    "robust": _clean,
    "timm": _timm_loop,
    "convnext-b-run": _large,
    "convnext-b-alone": _large_alone,
}


if __name__ == "__main__":
    main()
