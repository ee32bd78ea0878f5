"""Reports of large runs: time, peak memory and the size of the page, against what is promised.

`python benchmarks/reports.py` makes an evaluation of two classifiers with 1,000,000 rows (22,728
images, 22 transforms, blocks as `robust eval` writes them), renders it in a process of its own, and
prints a line a number. Its exit code is 1 where a promise is not kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from robustcli.evaluation.config import BLOCK_SIZE
from robustcli.evaluation.store import INPUT_SCHEMA, Store
from robustcli.metrics.columns import PREDICTION_SCHEMA
from robustcli.transforms.base import Cell

sys.path.insert(0, str(Path(__file__).parents[1]))  # the made-up runs are those of the tests
from tests.builders import IDENTITY, RunPlan, build_run, model, paper21

MOST = {"seconds": 10.0, "peak memory, MB": 1000.0, "report.html, MB": 5.0}
CLASSES = 1000
_CHILD = """
import json, resource, sys, time
started = time.perf_counter()
from pathlib import Path
from robustcli.reports.render import render
imported = time.perf_counter()
render(Path(sys.argv[1]))
busy = time.process_time()
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps([imported - started, time.perf_counter() - imported, busy, peak]))
"""


def make_run(run: Path, rows: int) -> int:
    """Writes a complete evaluation of two models with about `rows` rows; how many there are."""
    models, transforms = (model("vmamba-b"), model("swin-b")), (IDENTITY, *paper21())
    images = -(-rows // (len(models) * len(transforms)))
    plan = RunPlan(models=models, transforms=transforms, images=images, classes=CLASSES,
                   block_size=BLOCK_SIZE, done=0.0)  # fmt: skip
    build_run(run, plan)
    store, draw = Store(run), np.random.default_rng(0)
    ids = np.array([f"n{i % CLASSES:08d}/ILSVRC2012_val_{i:08d}.JPEG" for i in range(images)])
    for number, transform in enumerate(transforms):
        cell = Cell(transform.name, transform.severity)
        for block, start in enumerate(range(0, images, BLOCK_SIZE)):
            part = slice(start, min(start + BLOCK_SIZE, images))
            for entry in models:
                table = _predictions(ids[part], start, 0.85 - 0.02 * number, draw)
                _write(store.prediction_path(entry.name, cell, block), table)
            _write(store.input_path("r256c224", cell, block), _inputs(ids[part], number, draw))
    return images * len(models) * len(transforms)


def _predictions(
    ids: NDArray[np.str_], start: int, share: float, draw: np.random.Generator
) -> pa.Table:
    n = len(ids)
    target = (np.arange(start, start + n) % CLASSES).astype(np.int32)
    right = draw.random(n) < share
    prediction = np.where(right, target, (target + draw.integers(1, CLASSES, n)) % CLASSES)
    top5 = (prediction[:, None] + np.arange(5)) % CLASSES
    probability = draw.uniform(0.3, 1, n).astype(np.float32)
    of_target = np.where(right, probability, (1 - probability) / 2).astype(np.float32)
    offsets = pa.array(np.arange(0, 5 * n + 1, 5, dtype=np.int32))
    lists = pa.ListArray.from_arrays(offsets, pa.array(top5.ravel().astype(np.int32)))
    columns = [pa.array(ids), pa.array(target), pa.array(prediction.astype(np.int32)), lists,
               pa.array(probability), pa.array(of_target)]  # fmt: skip
    return pa.Table.from_arrays(columns, schema=PREDICTION_SCHEMA)


def _inputs(ids: NDArray[np.str_], number: int, draw: np.random.Generator) -> pa.Table:
    n = len(ids)
    psnr = np.where(number == 0, np.inf, draw.normal(20, 4, n))
    columns = [pa.array(ids), pa.array([f"{value:016x}" for value in draw.integers(0, 2**62, n)]),
               pa.array(psnr), pa.array(np.full(n, number > 0))]  # fmt: skip
    return pa.Table.from_arrays(columns, schema=INPUT_SCHEMA)


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def main() -> int:
    """Makes the run, renders it, prints the numbers; 1 where one is above what is promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--run", type=Path, help="keep the run here, and use it again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or Path(folder) / "run"
        if not (run / "run.json").is_file():
            started = time.perf_counter()
            rows = make_run(run, options.rows)
            print(f"a run of {rows:,} rows, made in {time.perf_counter() - started:.0f} s")
        process = subprocess.run(
            [sys.executable, "-c", _CHILD, str(run)], check=True, capture_output=True, text=True
        )
        imports, seconds, busy, peak = json.loads(process.stdout)
        size = (run / "report.html").stat().st_size
    numbers = {"seconds": imports + seconds, "peak memory, MB": peak / 1e6,
               "report.html, MB": size / 1e6}  # fmt: skip
    print(f"(of the seconds, {imports:.1f} are imports; of a processor's time, {busy:.1f} s)")
    for name, number in numbers.items():
        print(f"{name}: {number:.2f} (goal: at most {MOST[name]:g})")
    return int(any(numbers[name] > most for name, most in MOST.items()))


if __name__ == "__main__":
    sys.exit(main())
