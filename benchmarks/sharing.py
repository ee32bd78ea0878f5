"""Slowdown of a network by other programs, for several ways in which OpenMP threads wait.

`python benchmarks/sharing.py` times a training step of ulvm_v5 (4 windows of 128 x 128) in separate
processes, while 0, 1 and 2 other processes count in a loop. OpenMP threads wait at the end of each
parallel loop; while they wait, they spin (fast on an idle machine, wasteful on a shared one) or
sleep. Prints the median seconds of a step, the ratio to the time with the settings of `robust` on
an idle machine, and that ratio divided by the fair ratio: with T threads and N busy processes on C
cores, a fair scheduler slows each thread down by (T + N) / C. The goal is 1.3. Takes about three
minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from robustcli.core.machine import usable_cores

SETTINGS = {
    "OpenMP's own": {"ROBUST_WAIT": "own"},
    "robust": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=20000": {"GOMP_SPINCOUNT": "20000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
CHILD = """
import os, statistics, sys, time
if os.environ.pop("ROBUST_WAIT", None) is None:
    from robustcli.core.machine import wait_briefly
    wait_briefly()
import torch
import robustcli
torch.manual_seed(0)
network = robustcli.create_model("ulvm_v5").train()
x = torch.rand(4, 3, 128, 128)
times = []
for step in range(int(sys.argv[1]) + 2):
    started = time.perf_counter()
    network(x).mean().backward()
    times.append(time.perf_counter() - started)
print(statistics.median(times[2:]))
"""


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Runs `count` processes inside the context that count without pause."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def seconds(settings: dict[str, str], steps: int) -> float:
    """Median seconds of a step in a process with the environment variables `settings`."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    told = subprocess.run(
        [sys.executable, "-c", CHILD, str(steps)], env={**clean, **settings}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    return float(told.stdout)


def main() -> None:
    """Times every setting with 0, 1 and 2 busy processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    steps = parser.parse_args().steps
    alone = None
    for count in (0, 1, 2):
        with busy(count):
            found = {name: seconds(settings, steps) for name, settings in SETTINGS.items()}
        alone = alone or found["robust"]
        cores = usable_cores()
        fair = max(1.0, (cores + count) / cores)
        for name, value in found.items():
            ratio = value / alone
            print(f"{count} busy  {name:<26} {value:7.3f} s  {ratio:6.2f}  {ratio / fair:6.2f}")


if __name__ == "__main__":
    main()
