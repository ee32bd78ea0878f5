"""Soak test of a long run: growth of memory, open files and threads, and slowdown per image.

`python benchmarks/soak.py` evaluates a small classifier on 200,000 tiny images (links to 16 files,
to save disk space), and samples the processes of the run once per second: memory, open files and
threads, files in shared memory, and rows on the disk. It prints the growth per 100,000 images, by a
linear fit to the samples without the first tenth of the work, and the time per image at the end
relative to the middle. `--epochs 500` tests a training instead, with the growth per 100 epochs. The
exit code is 1 if a limit is exceeded; see `LIMITS` and `SLOWER`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DISTINCT, SIDE = 16, 8
LIMITS = {"megabytes": 20.0, "open_files": 2.0, "threads": 1.0, "shared_files": 1.0}
"""Largest growth per 100,000 images or 100 epochs; allocators keep some freed memory."""
SLOWER = 1.3
"""Largest time per image in the last third of the work, relative to the middle third."""


@dataclass(frozen=True)
class Sample:
    """Resources used by the processes of the run at one time.

    Args:
        seconds: Seconds since the start of the run.
        done: Number of images with rows on the disk, or of finished epochs.
        megabytes: Resident memory, summed over the processes.
        open_files: Number of open files of all processes.
        threads: Number of threads of all processes.
        shared_files: Number of files in /dev/shm.
        processes: Number of processes.
    """

    seconds: float
    done: int
    megabytes: float
    open_files: int
    threads: int
    shared_files: int
    processes: int


def make_images(folder: Path, count: int) -> None:
    """Makes `count` links to `DISTINCT` PNG files, in class folders."""
    originals = []
    for number in range(DISTINCT):
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        originals.append(folder.with_name(f"original-{number}.png"))
        Image.fromarray(pixels).save(originals[-1])
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for number in range(count):
        name = CLASSES[number % len(CLASSES)]
        os.link(originals[number % DISTINCT], folder / name / f"{number:07d}.png")


def rows_written(run: Path) -> int:
    """Number of images in the blocks on the disk."""
    return 128 * sum(1 for _ in run.glob("predictions/*/*/*/block-*.parquet"))


def epochs_written(run: Path) -> int:
    """Number of epochs in `metrics.csv`."""
    try:
        with (run / "metrics.csv").open(encoding="utf-8") as file:
            return sum(1 for _ in csv.DictReader(file))
    except OSError:
        return 0


def sample(process: psutil.Process, begun: float, done: int) -> Sample | None:
    """Samples the run; None if a process ended meanwhile."""
    try:
        family = [process, *process.children(recursive=True)]
        shared = Path("/dev/shm")
        return Sample(
            time.monotonic() - begun, done,
            sum(member.memory_info().rss for member in family) / 1e6,
            sum(member.num_fds() if hasattr(member, "num_fds") else 0 for member in family),
            sum(member.num_threads() for member in family),
            len(list(shared.iterdir())) if shared.is_dir() else 0, len(family),
        )  # fmt: skip
    except psutil.Error:
        return None


def watch(command: list[str], count: Callable[[], int]) -> list[Sample]:
    """Runs `command`, with one sample per second; raises CalledProcessError if it fails."""
    begun, samples = time.monotonic(), []
    with subprocess.Popen(command) as child:
        process = psutil.Process(child.pid)
        while child.poll() is None:
            taken = sample(process, begun, count())
            if taken is not None:
                samples.append(taken)
            time.sleep(1.0)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return samples


def growth(samples: list[Sample], per: int) -> dict[str, float]:
    """Growth of each quantity per `per` images or epochs, by a linear fit to the samples."""
    last = samples[-1].done
    # Loader processes end before the run.
    processes = max(s.processes for s in samples)
    steady = [s for s in samples if last / 10 < s.done < last and s.processes == processes]
    done = [s.done for s in steady]
    slopes = {}
    for field in fields(Sample):
        if field.name in LIMITS:
            values = [getattr(s, field.name) for s in steady]
            slopes[field.name] = float(np.polyfit(done, values, 1)[0] * per)
    return slopes


def slowdown(samples: list[Sample]) -> float:
    """Time per image in the last third of the work, divided by that in the middle third."""
    last = samples[-1].done
    at = [next(s.seconds for s in samples if s.done >= share * last) for share in (1 / 3, 2 / 3, 1)]
    if at[0] == at[1]:
        raise SystemExit("The run ended too soon to measure its speed: test more images or epochs.")
    return (at[2] - at[1]) / (at[1] - at[0])


def main() -> int:
    """Runs the soak test; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, help="test a training with this number of epochs")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--samples", type=Path, help="write the samples to this JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "images", Path(folder) / "run"
        make_images(data, 200 if options.epochs else options.images)
        robust = [sys.executable, "-m", "robustcli"]
        common = ["--data", str(data), "--out", str(run), "--workers", str(options.workers)]
        common += ["--device", "cpu", "--quiet"]
        if options.epochs:
            what = ["train", "cls", "--model", "resnet-pico", "--untrained", "--epochs"]
            samples = watch(
                [*robust, *what, str(options.epochs), *common], lambda: epochs_written(run)
            )
            unit, per = "epochs", 100
        else:
            what = ["eval", "--model", "resnet-pico", "--transform", "identity"]
            what += ["--batch-size", "128"]
            samples = watch([*robust, *what, *common], lambda: rows_written(run))
            unit, per = "images", 100_000
    if options.samples is not None:
        options.samples.write_text(json.dumps([asdict(s) for s in samples]))
    slopes, slower, last = growth(samples, per), slowdown(samples), samples[-1]
    print(f"{last.done:,} {unit} in {last.seconds:,.0f} s, {len(samples):,} samples")
    print(f"most memory: {max(s.megabytes for s in samples):,.0f} MB in {last.processes} processes")
    for name, slope in slopes.items():
        print(f"{name}: {slope:+.2f} per {per:,} {unit} (limit {LIMITS[name]:g})")
    print(f"time per item, last third by middle third: {slower:.2f} (limit {SLOWER:g})")
    return int(slower > SLOWER or any(slopes[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
