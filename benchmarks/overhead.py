"""Overhead of `robust` in addition to the model: start, data loading, memory.

The two times of a ratio are measured in the same run of this script.

    python benchmarks/overhead.py            # about five minutes on two cores
    python benchmarks/overhead.py --quick    # about one minute

1. Seconds of `robust --help` and `robust list`, best of five.
2. ConvNeXt-B with cheap transforms of 500x375 JPEG photos: the time of the run relative to the time
   of only the forward passes, alternating, both with all cores. The difference is
   decoding, transforms, resizing, row files and waiting.
3. Peak resident memory of a run over n and over 8 n images.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

TRANSFORMS = ("fliplr", "invert", "multiply")


def make_photos(folder: Path, count: int) -> Path:
    """Writes `count` smooth 500x375 JPEGs to `folder`, in ImageNet's class folder of the tench."""
    place = folder / "n01440764"
    place.mkdir(parents=True)
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
        photo = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        photo.save(place / f"{number:05d}.jpg", quality=90)
    return folder


def best_start(*arguments: str) -> float:
    """Seconds of the fastest of five starts of `robust ARGUMENTS`."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "robustcli", *arguments], check=True, capture_output=True
        )
        times.append(time.perf_counter() - started)
    return min(times)


def run_seconds(data: Path, out: Path, model: str) -> tuple[float, float, int]:
    """A run's seconds from first batch to last row, seconds of waiting, and number of inputs."""
    command = [
        sys.executable, "-m", "robustcli", "eval", "--model", model, "--untrained", "--quiet",
        "--data", str(data), "--out", str(out), "--device", "cpu", "--fresh",
        *(part for name in TRANSFORMS for part in ("--transform", name)),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    session = json.loads(next((out / "sessions").iterdir()).read_text())
    return session["seconds"], session["waiting_seconds"], session["models"][model]["images"]


def forward_seconds(model: str, inputs: int, batch: int = 32) -> float:
    """Seconds of the same number of forward passes without any other work."""
    from robustcli.adapters.catalogue import ModelRequest
    from robustcli.adapters.load import load

    classifier = load(ModelRequest(model, untrained=True), "cls")
    side = classifier.preprocessing.crop
    views = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    classifier.logits(views)
    started = time.perf_counter()
    for _ in range(inputs // batch):
        classifier.logits(views)
    return (time.perf_counter() - started) * inputs / (inputs // batch * batch)


def peak_memory(data: Path, out: Path) -> float:
    """Peak resident memory in MB of a run of a small model over `data`, including its workers."""
    script = (
        "import resource, sys, robustcli\n"
        "robustcli.evaluate('resnet10t', sys.argv[1], 'fliplr', out=sys.argv[2], untrained=True,"
        " device='cpu', workers=1)\n"
        "print(sum(resource.getrusage(who).ru_maxrss for who in"
        " (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))\n"
    )
    command = [sys.executable, "-c", script, str(data), str(out)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    scale = 1024 if platform.system() == "Linux" else 1024 * 1024
    return int(result.stdout) / scale


def main() -> None:
    """Prints the three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    images, rounds, few = (32, 1, 64) if quick else (64, 3, 128)
    for arguments in (("--help",), ("list", "models"), ("list", "transforms")):
        print(f"robust {' '.join(arguments)}: {best_start(*arguments):.2f} s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_photos(folder / "photos", images)
        # First, because a process inherits the peak memory of its parent.
        small = peak_memory(make_photos(folder / "few", few), folder / "few-run")
        large = peak_memory(make_photos(folder / "many", 8 * few), folder / "many-run")
        print(f"peak memory: {small:.0f} MB for {few} images, {large:.0f} MB for {8 * few}, "
              f"ratio {large / small:.3f}")  # fmt: skip
        ratios = []
        for turn in range(rounds):
            whole, waiting, inputs = run_seconds(data, folder / f"run{turn}", "convnext-b")
            alone = forward_seconds("convnext-b", inputs)
            ratios.append(whole / alone)
            print(f"convnext-b, {inputs} inputs: run {whole:.1f} s (waiting {waiting:.1f} s), "
                  f"forward passes alone {alone:.1f} s, ratio {ratios[-1]:.3f}")  # fmt: skip
        print(f"median ratio of run to forward passes alone: {np.median(ratios):.3f}")


if __name__ == "__main__":
    main()
