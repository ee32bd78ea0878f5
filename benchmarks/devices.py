"""Speedup of two processes over one: an evaluation, explanations, predictions and two trainings.

`python benchmarks/devices.py` runs the commands of docs/engines.md on the bundled data, on the CPU
with one thread per process: each command with `--devices 1` and `--devices 2`. Two seeds of a
training run one after the other with `--devices 1`, and in parallel with `--devices 2`. The
commands alternate, so that other load on the machine affects all of them. Prints seconds, ratios,
and the load of the machine. The seconds of an evaluation are those from its first to its last row;
the others are of the complete command, with the start of each process. Takes about twelve minutes
on two free cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from robustcli.evaluation.record import read_sessions

EVAL = ("eval", "--model", "vmamba-pico", "--transform", "paper21", "--data", "cifar10-mini")
EXPLAIN = (
    *("explain", "--model", "vmamba-pico", "--method", "integrated-gradients"),
    *("--transform", "identity", "--data", "cifar10-mini"),
)
PREDICT = ("predict", "cifar10-mini", "--model", "vmamba-pico", "--batch-size", "1")
SEEDS = ("train", "cls", "--model", "resnet-pico", "--untrained", "--seeds", "2")


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder for a run."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name) / "run"


def seconds(arguments: tuple[str, ...], devices: int) -> float:
    """Seconds from the first to the last row of an evaluation; else of the complete command."""
    with folder() as run:
        command = [
            sys.executable,
            "-m",
            "robustcli",
            *arguments,
            "--device",
            "cpu",
            "--out",
            str(run),
        ]
        begun = time.perf_counter()
        subprocess.run(
            [*command, "--devices", str(devices), "--quiet"], check=True, capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if arguments[0] != "eval":
            return time.perf_counter() - begun
        sessions = read_sessions(run)
        ends = [session.started.timestamp() + session.seconds for session in sessions]
        return max(ends) - min(session.started.timestamp() for session in sessions)


def main() -> None:
    """Times the commands, which alternate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="repetitions of each command")
    parser.add_argument("--limit", type=int, default=960, help="number of images of the evaluation")
    parser.add_argument("--photos", type=int, default=192, help="number of explained images")
    parser.add_argument("--epochs", type=int, default=40, help="epochs of each seed")
    options = parser.parse_args()
    commands = {
        "evaluation": (*EVAL, "--limit", str(options.limit), "--workers", "0"),
        "explanations": (*EXPLAIN, "--limit", str(options.photos)),
        "predictions": PREDICT,
        "two seeds": (*SEEDS, "--epochs", str(options.epochs)),
    }
    times: dict[tuple[str, int], list[float]] = {}
    load = []
    for _ in range(options.rounds):
        for name, arguments in commands.items():
            for devices in (1, 2):
                load.append(os.getloadavg()[0])
                times.setdefault((name, devices), []).append(seconds(arguments, devices))
    now, cores = datetime.now(), os.cpu_count()
    print(f"{now:%d %B %Y}, {cores} cores, load {min(load):.1f} to {max(load):.1f}")
    for name in commands:
        alone, both = (statistics.median(times[name, devices]) for devices in (1, 2))
        print(
            f"{name:<13} 1 process {alone:7.1f} s   2 processes {both:7.1f} s   {alone / both:.2f}"
        )


if __name__ == "__main__":
    main()
