"""Speedup of two processes over one, for an evaluation and for trainings with several seeds.

`python benchmarks/devices.py` runs the commands of docs/engines.md on the bundled data, on the CPU
with one thread per process: an evaluation with `--devices 1` and `--devices 2`, and two seeds with
`--devices 1` (one after the other) and `--devices 2` (in parallel). The commands alternate, so that
other load on the machine affects all of them. Prints seconds, ratios, and the load of the machine.
The seconds of an evaluation are those from its first to its last row; those of two seeds are of the
complete command, with the start of each process. Takes about eight minutes on two free cores.
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
    parser.add_argument("--epochs", type=int, default=40, help="epochs of each seed")
    options = parser.parse_args()
    commands = {
        "evaluation": (*EVAL, "--limit", str(options.limit), "--workers", "0"),
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
            f"{name:<12} 1 process {alone:7.1f} s   2 processes {both:7.1f} s   {alone / both:.2f}"
        )


if __name__ == "__main__":
    main()
