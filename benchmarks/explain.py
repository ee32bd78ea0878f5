"""Explanations: the time of all methods for eight photos, compared with the documented limit.

`python benchmarks/explain.py` explains eight photos, clean and under perspective, with every method
that supports MobileNetV2, shows progress, and prints one line per number. The exit code is 1 if the
limit is exceeded. Times do not depend on the weights: without `--weights` the network is untrained,
and without `--data` the photos are generated.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from robustcli.adapters.catalogue import ModelRequest
from robustcli.cli.terminal import ConsoleListener
from robustcli.data.labels import read_label_space
from robustcli.explanation.config import ExplainConfig
from robustcli.explanation.explaining import explain
from robustcli.explanation.record import read_explained_rows

MOST_SECONDS = 120.0
PHOTOS, SIDE = 8, 320


def make_photos(folder: Path) -> Path:
    """Writes eight noise images, each in the folder of an ImageNet class."""
    draw = np.random.default_rng(0)
    for name in read_label_space("imagenet-1k").ids[:PHOTOS]:
        (folder / name).mkdir(parents=True)
        pixels = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / "photo.png")
    return folder


def main() -> int:
    """Explains, and prints the time; returns 1 if the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="Weights file of timm's mobilenetv2_100.")
    parser.add_argument("--data", type=Path, help="Folder of ImageNet photos in class folders.")
    parser.add_argument("--out", type=Path, help="Keep the run in this folder.")
    parser.add_argument("--threads", type=int, default=2, help="Number of threads.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    request = ModelRequest(
        "mobilenetv2_100", options.weights, {"pad_type": "same"},
        {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize": 256, "crop": 224,
         "interpolation": "bilinear"},
        untrained=options.weights is None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or make_photos(Path(folder) / "photos")
        out = options.out or Path(folder) / "run"
        config = ExplainConfig(
            (request,), ("perspective",), str(data), out, limit=PHOTOS, methods=("*",), workers=0,
            fresh=True,
        )  # fmt: skip
        with ConsoleListener(quiet=False, unit="maps") as listener:
            started, busy = time.perf_counter(), time.process_time()
            explain(config, listener)
            seconds, busy = time.perf_counter() - started, time.process_time() - busy
        rows = read_explained_rows(out)
    computed = len(rows.drop_duplicates(["array_file", "array_index"]))
    print(f"{PHOTOS} photos, {rows['method'].nunique()} methods, {len(rows)} rows, {computed} maps")
    kept = seconds <= MOST_SECONDS
    print(f"seconds: {seconds:.1f} (at most {MOST_SECONDS:.0f}): {'kept' if kept else 'MISSED'}")
    print(f"processor seconds: {busy:.1f} on {options.threads} threads")
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(f"peak memory, MB: {peak / 1e6:,.0f}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
