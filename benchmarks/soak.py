"""Whether a long run stays as small and as fast as it began: memory, handles, seconds per image.

`python benchmarks/soak.py` evaluates a small classifier on 200,000 tiny images (names of 16 files
on the disk, so that they take no room), and looks once a second at the processes of the run: their
memory, open files and threads, the files in shared memory, and the rows on the disk. It prints
what grew per 100,000 images by a straight line through the samples, the first tenth of the work
left out, and how long an image takes at the end compared with the middle. `--epochs 500` soaks a
training instead, per 100 epochs. Ends with 1 where anything grows; see `LIMITS`.
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
"""What may grow per 100,000 images or 100 epochs: allocators keep some memory, nothing else."""
SLOWER = 1.3
"""How much longer an image may take in the last third of the work than in the middle one."""


@dataclass(frozen=True)
class Sample:
    """What the processes of the run hold at one moment.

    Args:
        seconds: Since the run began.
        done: Images whose rows are on the disk, or finished epochs.
        megabytes: Resident memory, summed over the processes.
        open_files: Of all processes.
        threads: Of all processes.
        shared_files: In /dev/shm.
        processes: How many there are.
    """

    seconds: float
    done: int
    megabytes: float
    open_files: int
    threads: int
    shared_files: int
    processes: int


def make_images(folder: Path, count: int) -> None:
    """`count` names of `DISTINCT` PNG files, in folders of their classes."""
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
    """Images of the blocks that are on the disk."""
    return 128 * sum(1 for _ in run.glob("predictions/*/*/*/block-*.parquet"))


def epochs_written(run: Path) -> int:
    """Epochs in `metrics.csv`."""
    try:
        with (run / "metrics.csv").open(encoding="utf-8") as file:
            return sum(1 for _ in csv.DictReader(file))
    except OSError:
        return 0


def sample(process: psutil.Process, begun: float, done: int) -> Sample | None:
    """The run now; None where a process has just ended."""
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
    """The samples of a run, one a second; raises CalledProcessError where it fails."""
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
    """By measure, what a straight line through the samples says of `per` images or epochs."""
    last = samples[-1].done
    # The processes of a loader end before the run does.
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
    """The time of an image in the last third of the work, by that in the middle one."""
    last = samples[-1].done
    at = [next(s.seconds for s in samples if s.done >= share * last) for share in (1 / 3, 2 / 3, 1)]
    return (at[2] - at[1]) / (at[1] - at[0])


def main() -> int:
    """Runs the soak; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, help="soak a training of so many epochs")
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
