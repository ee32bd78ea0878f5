"""Reports and comparisons of large runs: time, memory and page size, compared with the goals.

`python benchmarks/reports.py` generates runs of classifiers in the format of `robust eval`: one of
two models with 1,000,000 rows, and two of one model each with 15,000 images under 22 transforms. It
renders the first and compares the other two (`robust compare A B --out FOLDER`), each in a separate
process, and prints one line per number. The exit code is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from robustcli.evaluation.config import BLOCK_SIZE
from robustcli.evaluation.store import INPUT_SCHEMA, WRITTEN, Store
from robustcli.metrics.columns import PREDICTION_SCHEMA
from robustcli.transforms.base import Cell

sys.path.insert(0, str(Path(__file__).parents[1]))  # the generated runs are those of the tests
from tests.builders import IDENTITY, RunPlan, build_run, model, paper21

GOALS = {"seconds": 10.0, "peak memory, MB": 1000.0, "report.html, MB": 5.0}
COMPARE_GOALS = {"seconds": 5.0, "report.html, MB": 5.0}
CLASSES, COMPARED_IMAGES = 1000, 15_000
_MEASURED = """
import json, resource, sys, time
from pathlib import Path
started, folders = time.perf_counter(), [Path(folder) for folder in sys.argv[1:]]
{work}
seconds = time.perf_counter() - started
try:  # on Linux, `ru_maxrss` would count the process that started this one
    status = Path("/proc/self/status").read_text().split()
    peak = 1024 * int(status[status.index("VmHWM:") + 1])
except OSError:
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps([seconds, time.process_time(), peak]))
"""
_RENDER = """
from robustcli.reports.render import render
render(folders[0])
"""
_COMPARE = """
from robustcli.reports.comparison import read_comparison
from robustcli.reports.comparison import comparison_text, write_comparison
comparison = read_comparison(folders[:2])
write_comparison(comparison, folders[2], "benchmark")
comparison_text(comparison)
"""


def make_run(run: Path, images: int, models: Sequence[str], seed: int = 0) -> int:
    """Writes a complete evaluation of `models` on `images` images; returns its number of rows."""
    entries, transforms = tuple(map(model, models)), (IDENTITY, *paper21())
    plan = RunPlan(models=entries, transforms=transforms, images=images, classes=CLASSES,
                   block_size=BLOCK_SIZE, done=0.0)  # fmt: skip
    build_run(run, plan)
    store, draw, pixels = Store(run), np.random.default_rng(seed), np.random.default_rng(0)
    ids = np.array([f"n{i % CLASSES:08d}/ILSVRC2012_val_{i:08d}.JPEG" for i in range(images)])
    for number, transform in enumerate(transforms):
        cell = Cell(transform.name, transform.severity)
        for block, start in enumerate(range(0, images, BLOCK_SIZE)):
            part = slice(start, min(start + BLOCK_SIZE, images))
            for entry in entries:
                table = _predictions(ids[part], start, 0.85 - 0.02 * number, draw)
                _write(store.prediction_path(entry.name, cell, block), table)
            _write(
                store.input_path(entries[0].view, cell, block), _inputs(ids[part], number, pixels)
            )
    return images * len(entries) * len(transforms)


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
    pq.write_table(table, path, **WRITTEN)


def main() -> int:
    """Makes the runs, measures both commands, prints the numbers; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the rendered run")
    parser.add_argument("--runs", type=Path, help="folder that keeps the runs for reuse")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = options.runs or Path(folder)
        two = ("vmamba-b", "swin-b")
        large = _made(runs / f"rows-{options.rows}", -(-options.rows // 44), two)
        single = [_made(runs / n, COMPARED_IMAGES, [n], seed) for seed, n in enumerate(two)]
        kept = _measured("report", _RENDER, [large], GOALS)
        kept &= _measured("compare", _COMPARE, [*single, runs / "comparison"], COMPARE_GOALS)
    return int(not kept)


def _made(run: Path, images: int, models: Sequence[str], seed: int = 0) -> Path:
    """The run in the folder `run`, made if it does not exist."""
    if not (run / "run.json").is_file():
        started = time.perf_counter()
        rows = make_run(run, images, models, seed)
        print(f"{run.name}: {rows:,} rows, made in {time.perf_counter() - started:.0f} s")
    return run


def _measured(name: str, work: str, folders: Sequence[Path], goals: Mapping[str, float]) -> bool:
    """Measures `work` in a new process, including imports; returns whether the goals are met."""
    command = [sys.executable, "-c", _MEASURED.format(work=work), *map(str, folders)]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, busy, peak = json.loads(process.stdout)
    size = (folders[-1] / "report.html").stat().st_size
    numbers = {"seconds": seconds, "seconds of a processor": busy, "peak memory, MB": peak / 1e6,
               "report.html, MB": size / 1e6}  # fmt: skip
    for what, number in numbers.items():
        goal = f" (goal: at most {goals[what]:g})" if what in goals else ""
        print(f"{name}: {what}: {number:.2f}{goal}")
    return all(numbers[what] <= most for what, most in goals.items())


if __name__ == "__main__":
    sys.exit(main())
