"""Speed of the scan on the CPU: this package, a torch loop over time, and mambapy's parallel scan.

    python benchmarks/scan.py [--rounds 5] [--rows 1] [--plot docs/images/scan-linearity.png]

Each row alternates the implementations in one process and prints ratios of medians and the goal.
Load from other programs changes the ratios; repeat until they are stable. The rows `image` are
VMamba's scan over 56 x 56 pixels: ours starts from the image and ends with the merged image; the
others get four sequences that are already cross-scanned, and do not merge them.

The limit is the time for only the memory traffic and the exponentials of the image scan: a kernel
that streams delta, the input and the output in memory order, once per direction, with the same
number of threads, and computes the same number of exponentials, including those of the step sizes,
without recurrence, logarithm or pixel order.

A second table has the time of only the backward pass, by requested gradients: all, those that are
needed if the parameters of the scan are frozen, and only those of the input and the step sizes.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mambapy.pscan import pscan
from matplotlib.figure import Figure
from numba import njit
from tabulate import tabulate
from torch import Tensor

from robustcli.models.scan import selective_scan, ss2d_scan
from robustcli.models.scan.base import of_image
from robustcli.models.scan.cpu_lanes import WIDTH, exp, load, store

# mypy: allow-untyped-decorators

Arguments = dict[str, Tensor]
LONG = 20.0  # seconds


@dataclass(frozen=True)
class Work:
    """One row of the table: shapes, direction, and goals as time ratios to loop and mambapy."""

    name: str
    batch: int
    groups: int
    channels: int
    length: int
    states: int
    backward: bool
    loop_goal: float
    image: bool = False
    mambapy_goal: float | None = None
    limit_goal: float | None = None


WORK = (
    Work(
        name="image, forward, 1 x 4*256 channels, L 3136, N 1",
        batch=1,
        groups=4,
        channels=1024,
        length=3136,
        states=1,
        backward=False,
        loop_goal=20,
        image=True,
        mambapy_goal=8,
        limit_goal=2,
    ),
    Work("image, forward + backward, the same", 1, 4, 1024, 3136, 1, True, 100, True),
    Work("forward, the same as four sequences", 1, 4, 1024, 3136, 1, False, 20, False, 8),
    Work("forward + backward, the same sequences", 1, 4, 1024, 3136, 1, True, 100, False, 8),
    Work("forward + backward, 4 x 32 channels, L 4096, N 16", 4, 1, 32, 4096, 16, True, 100),
    Work("forward, 1 x 512 channels, L 256, N 16", 1, 1, 512, 256, 16, False, 10),
)


def arguments(work: Work) -> Arguments:
    """Random arguments of `selective_scan`; they require gradients if the backward is timed."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    made = {
        "u": normal(work.batch, work.channels, work.length),
        "delta": normal(work.batch, work.channels, work.length),
        "A": -torch.rand((work.channels, work.states), generator=generator) - 0.05,
        "B": normal(work.batch, work.groups, work.states, work.length),
        "C": normal(work.batch, work.groups, work.states, work.length),
        "D": normal(work.channels),
        "delta_bias": normal(work.channels),
    }
    return {name: tensor.requires_grad_(work.backward) for name, tensor in made.items()}


def discretised(a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """exp(dt A) and dt B u, (B, L, D, N), and C repeated per channel, (B, L, D, N)."""
    per_group = a["u"].shape[1] // a["B"].shape[1]
    B, C = (a[name].repeat_interleave(per_group, 1).permute(0, 3, 1, 2) for name in ("B", "C"))
    dt = torch.nn.functional.softplus(a["delta"] + a["delta_bias"][:, None]).mT[..., None]
    return torch.exp(dt * a["A"]), dt * B * a["u"].mT[..., None], C


def loop(a: Arguments) -> Tensor:
    """The recurrence as a loop of torch operations over time, like the official fallback."""
    decay, drive, C = discretised(a)
    state, ys = torch.zeros_like(decay[:, 0]), []
    for t in range(decay.shape[1]):
        state = decay[:, t] * state + drive[:, t]
        ys.append((state * C[:, t]).sum(-1))
    return torch.stack(ys, -1) + a["D"][:, None] * a["u"]


def parallel(a: Arguments) -> Tensor:
    """The recurrence by mambapy's parallel scan."""
    decay, drive, C = discretised(a)
    states: Tensor = pscan(decay, drive)
    return (states * C).sum(-1).mT + a["D"][:, None] * a["u"]


def ours(a: Arguments) -> Tensor:
    """The recurrence by this package."""
    scan: Callable[..., object] = ss2d_scan if "x" in a else selective_scan
    y = scan(**a, delta_softplus=True)
    assert isinstance(y, Tensor)
    return y


@njit(nogil=True, error_model="numpy")
def _stream(
    delta: Any, x: Any, out: Any, directions: int, states: int, start: Any, stop: Any
) -> None:
    """Streams elements start..stop-1, multiples of 16, of each direction, with `states` + 1 exp."""
    lanes = np.uintp(WIDTH)
    count = np.uintp(x.size)
    for k in range(np.uintp(directions)):
        for i in range(start, stop, lanes):
            step, u = load(delta, k * count + i, lanes), load(x, i, lanes)
            total = exp(step)
            for n in range(states):
                total = total + exp(step * u + np.float32(n))
            store(out, i, lanes, total if k == 0 else total + load(out, i, lanes))


def limit(a: Arguments) -> Tensor:
    """Runs only the memory traffic and the exponentials of the image scan; the result is unused."""
    D, bias = a["D"], a["delta_bias"]
    laid = of_image(a["x"], a["delta"], a["A"], a["B"], a["C"], D, bias)
    delta, x = (t.contiguous().numpy().ravel() for t in (laid.delta, laid.x))
    out = torch.empty(laid.x.shape)
    directions, states, threads = laid.A.shape[0], laid.A.shape[1], torch.get_num_threads()
    share = x.size // threads // WIDTH * WIDTH
    ends = [*(np.uintp(share * n) for n in range(threads)), np.uintp(x.size // WIDTH * WIDTH)]

    def part(n: int) -> None:
        _stream(delta, x, out.numpy().ravel(), directions, states, ends[n], ends[n + 1])

    if threads == 1:
        part(0)
    else:
        list(_threads(threads).map(part, range(threads)))
    return out


@lru_cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)


def by_pixel(a: Arguments) -> Arguments:
    """Arguments of `ss2d_scan` of the same size, in the memory layout of VMamba's projections."""
    batch, groups, states, length = a["B"].shape
    side, channels = math.isqrt(length), a["u"].shape[1] // groups

    def laid_out(name: str, width: int) -> Tensor:
        steps = a[name].detach().view(batch, groups, width, side, side).permute(1, 0, 3, 4, 2)
        return steps.contiguous().permute(1, 0, 4, 2, 3).requires_grad_(a[name].requires_grad)

    x = a["u"].detach().view(batch, groups, channels, side, side)[:, 0]
    made = {
        "x": x.contiguous(memory_format=torch.channels_last).requires_grad_(a["u"].requires_grad),
        "delta": laid_out("delta", channels),
        "B": laid_out("B", states),
        "C": laid_out("C", states),
    }
    return {**{name: a[name] for name in ("A", "D", "delta_bias")}, **made}


CONTENDERS: dict[str, Callable[[Arguments], Tensor]] = {
    "ours": ours,
    "loop": loop,
    "mambapy": parallel,
}


def once(contender: Callable[[Arguments], Tensor], a: Arguments, backward: bool) -> float:
    """Seconds of one call, including the backward pass if `backward`.

    The gradient of the output is a dense tensor, as in a network, and its creation is not timed.
    Gradients of earlier calls are removed: adding to them is torch's work, not that of the scan.
    """
    for tensor in a.values():
        tensor.grad = None
    started = time.perf_counter()
    with torch.set_grad_enabled(backward):
        y = contender(a)
    seconds = time.perf_counter() - started
    if backward:
        slope = torch.ones_like(y)
        started = time.perf_counter()
        y.backward(slope)
        seconds += time.perf_counter() - started
    return seconds


def medians(work: Work, rounds: int) -> dict[str, float]:
    """Median seconds of each implementation; one slower than `LONG` seconds is called once."""
    a = arguments(work)
    own = by_pixel(a) if work.image else a
    contenders = CONTENDERS if work.limit_goal is None else CONTENDERS | {"limit": limit}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, contender in contenders.items():
            if times[name] and times[name][0] > LONG:
                continue
            seconds = once(contender, own if name in ("ours", "limit") else a, work.backward)
            if turn or seconds > LONG:  # the first call is a warm-up, unless it is long
                times[name].append(seconds)
    return {name: statistics.median(found) for name, found in times.items()}


ASKED: dict[str, tuple[str, ...]] = {
    "all": ("x", "u", "delta", "A", "B", "C", "D", "delta_bias"),
    "A, D, bias frozen": ("x", "u", "delta", "B", "C"),
    "x and delta": ("x", "u", "delta"),
}


def backward_medians(work: Work, rounds: int) -> dict[str, float]:
    """Median processor seconds of only our backward pass, for each entry of `ASKED`.

    The entries alternate in random order, with one thread: the differences are smaller than the
    effect of other load on wall-clock time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a = arguments(work)
    own = by_pixel(a) if work.image else a
    times: dict[str, list[float]] = {name: [] for name in ASKED}
    draw = random.Random(0)
    for turn in range(rounds + 1):
        for name, asked in draw.sample(list(ASKED.items()), len(ASKED)):
            given = {key: t.detach().requires_grad_(key in asked) for key, t in own.items()}
            y = ours(given)
            slope = torch.ones_like(y)
            started = time.process_time()
            y.backward(slope)
            if turn:  # the first round compiles
                times[name].append(time.process_time() - started)
    torch.set_num_threads(threads)
    return {name: statistics.median(found) for name, found in times.items()}


def partial_table(rounds: int) -> str:
    """The time of our backward pass by requested gradients: in ms, and relative to all."""
    rows = []
    for work in (w for w in WORK if w.backward):
        found = backward_medians(work, rounds)
        cells = [f"{1e3 * s:.1f} ({s / found['all']:.2f})" for s in found.values()]
        rows.append((work.name, *cells))
    return tabulate(rows, headers=("backward alone, one thread, ms", *ASKED), disable_numparse=True)


def linearity(rounds: int) -> list[tuple[int, float]]:
    """Pairs of length L and seconds per step of our scan, forward and backward.

    Batch 1, 32 channels, 16 states. The seconds are processor time of one thread, the minimum over
    the rounds, which depends little on other load.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    for exponent in range(8, 17):
        work = Work("", 1, 1, 32, 2**exponent, 16, True, 0)
        a = arguments(work)
        found.append((work.length, min(processor_time(a) for _ in range(rounds + 1)) / work.length))
    torch.set_num_threads(threads)
    return found


def processor_time(a: Arguments) -> float:
    """Processor seconds of our scan, forward and backward."""
    started = time.process_time()
    once(ours, a, True)
    return time.process_time() - started


def plot(costs: list[tuple[int, float]], path: Path) -> None:
    """Plots seconds over length, with a line of constant cost per step for comparison."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    lengths = [length for length, _ in costs]
    axes.loglog(lengths, [1e3 * n * s for n, s in costs], "o-", color="#0072B2", label="measured")
    last = costs[-1][1]
    axes.loglog(lengths, [1e3 * n * last for n in lengths], "--", color="#555555", label="linear")
    axes.set_xlabel("length L")
    axes.set_ylabel("forward + backward (ms of processor time)")
    axes.set_title("1 x 32 channels, N 16, CPU kernels, one thread")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Prints the table of ratios, then the cost per step for each length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only-partial", action="store_true", help="Print only the table of the backward pass."
    )
    parser.add_argument(
        "--rows", type=int, help="Print only this many rows of the first table, and nothing else."
    )
    parser.add_argument("--plot", type=Path, help="Plot the cost over the length to this file.")
    arguments_given = parser.parse_args()
    rounds = arguments_given.rounds
    if arguments_given.only_partial:
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
        print(partial_table(rounds))
        return
    rows = []
    for work in WORK[: arguments_given.rows]:
        found = medians(work, rounds)
        goal = "" if work.mambapy_goal is None else f"{work.mambapy_goal:g}"
        ours_ms, by_loop = 1e3 * found["ours"], found["loop"] / found["ours"]
        by_mambapy = found["mambapy"] / found["ours"]
        goals = f"{work.loop_goal:g}", goal
        by_limit = "", ""
        if work.limit_goal is not None:
            by_limit = f"{found['ours'] / found['limit']:.2f}", f"at most {work.limit_goal:g}"
        ratios = f"{by_loop:.1f}", goals[0], f"{by_mambapy:.1f}", goals[1]
        rows.append((work.name, f"{ours_ms:.1f}", *ratios, *by_limit))
    header = (
        "work", "ours ms", "loop / ours", "goal", "mambapy / ours", "goal", "ours / limit", "goal",
    )  # fmt: skip
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(tabulate(rows, headers=header, disable_numparse=True))
    if arguments_given.rows is not None:
        return
    print(f"\n{partial_table(rounds)}")
    print("\nforward + backward, 1 x 32 channels, N 16, one thread: microseconds a step")
    costs = linearity(rounds)
    print(tabulate([(length, f"{1e6 * s:.2f}") for length, s in costs], ("L", "us")))
    if arguments_given.plot is not None:
        plot(costs, arguments_given.plot)


if __name__ == "__main__":
    main()
