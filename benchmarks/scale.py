"""Simulates how an evaluation scales from 1 to 1,000 workers with failures; not a measurement.

    python benchmarks/scale.py [--runs 8] [--plot scale-efficiency.png]

The work is divided by `evaluation.plan`: blocks of 128 images, and fewer transforms per piece if
there are many workers. A transform of a block is durable when its files are written; if a worker
fails, its later results are lost. Workers crash and are pre-empted at random, some are slow, each
start loads the models, and the file system processes a limited number of files per second. Compares
four ways to run the same work (`POLICIES`). All random numbers depend only on the seed and the
number of the worker. Takes some minutes; `docs/scale.md` explains the results.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal, cast

from matplotlib.figure import Figure
from tabulate import tabulate

from robustcli.core.machine import usable_cores
from robustcli.data.dataset import Sample
from robustcli.evaluation.plan import Piece, share_of, shared
from robustcli.transforms.base import Cell

Policy = Literal["one job", "torchrun", "array", "free"]
POLICIES: dict[Policy, str] = {
    "one job": "fixed shares; if a worker fails, the next run of the command computes its share",
    "torchrun": "fixed shares; after any failure, all workers restart and divide the rest again",
    "array": "fixed shares; a worker that fails restarts and continues its share",
    "free": "each free worker gets the next piece; others take over those of a failed worker",
}
HOUR = 3600.0
WORKERS = (1, 10, 30, 100, 300, 1000)
_BOOKED = {"computing": "lost", "dead": "waiting", "idle": "waiting"}
"""Time category of activities with another name; `_durable` counts the time of finished cells."""
LIMIT = 14 * 24 * HOUR
MOST_STARTS = 40
"""Limits after which a run is aborted: simulated seconds, and starts of all workers."""


@dataclass(frozen=True)
class Job:
    """The evaluation.

    Args:
        images: Number of images of the data set.
        cells: Number of transforms times severities, including clean images.
        models: Number of models.
        images_per_second: Throughput of one model on one worker.
        block: Number of images per block.
        turns: Number of batches of a block, which one worker computes one after the other, each
            under all cells: results of a block are durable only after the last batch.
    """

    images: int = 50_000
    cells: int = 64
    models: int = 3
    images_per_second: float = 1000.0
    block: int = 128
    turns: int = 1

    @property
    def files_per_cell(self) -> int:
        """Files per cell of a block: predictions of each model, and statistics of its images."""
        return self.models + 1

    @property
    def files(self) -> int:
        """Number of files of the finished run, without reports."""
        return -(-self.images // self.block) * self.cells * self.files_per_cell

    @property
    def seconds(self) -> float:
        """Model time: seconds of one worker without starts, writes and failures."""
        return self.images * self.cells * self.models / self.images_per_second


@dataclass(frozen=True)
class Cluster:
    """The machines and the file system; times are in seconds.

    Args:
        start: Time from the start of a worker to its first batch: imports, loading of the models.
        crash: Mean time between crashes of a worker; its machine remains, and is paid for.
        preempt: Mean time between pre-emptions of a machine; absent machines are not paid for.
        away: Mean time that a pre-empted machine is absent.
        repeat: Time until the command of a partial run is repeated.
        slow_share: Probability that a worker is slow.
        slowness: Factor of the computing time of slow workers.
        read: Time to check one file of the plan on the shared file system.
        write: Time to write one file durably.
        files_per_second: Largest number of files that all workers together can write per second;
            further writes are queued.
    """

    start: float = 0.0
    crash: float = math.inf
    preempt: float = math.inf
    away: float = 0.0
    repeat: float = 0.0
    slow_share: float = 0.0
    slowness: float = 2.0
    read: float = 0.0
    write: float = 0.0
    files_per_second: float = math.inf


@dataclass(frozen=True)
class Outcome:
    """The result of one simulated run, in seconds.

    Args:
        elapsed: Time from the start until all rows are durable, or until the run was aborted.
        ended: Whether all rows are durable.
        spent: Paid time by category: `useful` (model time of rows that were kept), `slow`
            (additional time of slow workers), `lost` (results that were lost), `writing`,
            `starting`, `waiting` (for the plan, for other workers, or for the end of the run).
    """

    elapsed: float
    ended: bool
    spent: dict[str, float]

    @property
    def paid(self) -> float:
        """Paid time of all workers."""
        return sum(self.spent.values())

    @property
    def efficiency(self) -> float:
        """Useful time as a share of the paid time."""
        return self.spent["useful"] / self.paid

    @property
    def lost(self) -> float:
        """Lost time relative to the useful time."""
        return self.spent["lost"] / self.spent["useful"] if self.spent["useful"] else math.inf


@dataclass
class _Worker:
    """A worker; its scheduled events are ignored if its `epoch` has changed since."""

    factor: float
    draws: random.Random
    pieces: deque[Piece] = field(default_factory=deque)
    activity: str = "waiting"
    since: float = 0.0
    epoch: int = 0
    back: float = 0.0
    piece: Piece | None = None
    cells: deque[Cell] = field(default_factory=deque)
    computing: float = 0.0


class Simulation:
    """Event-based simulation of one run.

    Args:
        job: The evaluation.
        cluster: The machines.
        workers: Number of workers.
        policy: How the work is distributed.
        seed: Seed of all random numbers; those of a worker are equal under each policy.
    """

    def __init__(self, job: Job, cluster: Cluster, workers: int, policy: Policy, seed: int) -> None:
        self._job, self._cluster, self._policy = job, cluster, policy
        self._now, self._planned_at, self._disk_free_at = 0.0, 0.0, 0.0
        self._starts_of_all, self._is_between_rounds = 0, False
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._missing = dict.fromkeys(
            (piece.block, cell) for piece in _pieces(job) for cell in piece.cells
        )
        self._blocks = {piece.block: piece for piece in _pieces(job)}
        draws = [random.Random(f"{seed}/{number}") for number in range(workers)]
        self._workers = [
            _Worker(cluster.slowness if rng.random() < cluster.slow_share else 1.0, rng)
            for rng in draws
        ]
        self._in_rounds = policy in ("one job", "torchrun")

    def run(self) -> Outcome:
        """Simulates the run; returns its result."""
        if self._in_rounds:
            self._begin_round()
        else:
            self._begin_alone()
        while self._missing and self._now < LIMIT and self._starts_of_all <= MOST_STARTS:
            self._now, _, act = heapq.heappop(self._events)
            act()
        for worker in self._workers:
            self._becomes(worker, "done")
        spent = {
            name: self._spent[name]
            for name in ("useful", "slow", "lost", "writing", "starting", "waiting")
        }
        return Outcome(self._now, not self._missing, spent)

    # Events.

    def _at(self, time: float, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, act))

    def _at_worker(self, time: float, worker: _Worker, act: Callable[[_Worker], None]) -> None:
        """Calls `act` at `time`, unless the worker fails or is stopped earlier."""
        epoch = worker.epoch
        self._at(time, lambda: act(worker) if worker.epoch == epoch else None)

    def _becomes(self, worker: _Worker, activity: str) -> None:
        """Changes the activity of a worker, and adds the time of the last one to its category."""
        elapsed = self._now - worker.since
        self._spent[_BOOKED.get(worker.activity, worker.activity)] += elapsed
        if worker.activity == "computing" and worker.piece is not None:
            # Earlier batches of cells that are not durable yet are lost too.
            block = len(worker.piece.images) * self._job.models / self._job.images_per_second
            before = block * (1 - 1 / self._job.turns) * worker.factor
            if len(worker.cells) < len(worker.piece.cells):
                self._spent["lost"] += len(worker.cells) * before
        worker.activity, worker.since = activity, self._now

    def _starts(self, worker: _Worker, then: Callable[[_Worker], None]) -> None:
        worker.epoch += 1
        worker.piece = None
        self._becomes(worker, "starting")
        self._draw_failure(worker)
        self._at_worker(self._now + self._cluster.start, worker, then)

    def _draw_failure(self, worker: _Worker) -> None:
        crash, preempt = (
            worker.draws.expovariate(1 / mean) if math.isfinite(mean) else math.inf
            for mean in (self._cluster.crash, self._cluster.preempt)
        )
        if min(crash, preempt) < math.inf:
            away = preempt < crash
            self._at_worker(
                self._now + min(crash, preempt), worker, lambda worker: self._fails(worker, away)
            )

    def _fails(self, worker: _Worker, away: bool) -> None:
        worker.epoch += 1
        piece, cells = worker.piece, tuple(worker.cells)
        self._becomes(worker, "away" if away else "dead")
        worker.piece = None
        mean = self._cluster.away
        worker.back = self._now + (worker.draws.expovariate(1 / mean) if away and mean else 0.0)
        if self._in_rounds:
            self._round_loses(worker, away)
            return
        if piece is not None:
            worker.pieces.appendleft(piece.only(cells))
        self._at_worker(worker.back, worker, lambda worker: self._starts(worker, self._ready))
        if self._policy == "free":
            self._wake_idle()

    # Policies with independent workers: `array` and `free`.

    def _begin_alone(self) -> None:
        pieces = shared(_pieces(self._job), len(self._workers))
        pool: deque[Piece] = deque(pieces)
        for number, worker in enumerate(self._workers):
            share = share_of(pieces, number, len(self._workers))
            worker.pieces = pool if self._policy == "free" else deque(share)
            self._starts(worker, self._ready)

    def _ready(self, worker: _Worker) -> None:
        """Called when a worker has started: reads the files of its share, unless the driver did."""
        self._becomes(worker, "waiting")
        planned = self._job.files * self._cluster.read
        if self._policy == "array":
            planned = self._now + planned / len(self._workers)
        self._at_worker(max(self._now, planned), worker, self._next)

    def _wake_idle(self) -> None:
        for worker in self._workers:
            if worker.activity == "idle":
                worker.activity = "waiting"
                self._next(worker)

    # Policies with coupled workers: `one job` and `torchrun`.

    def _begin_round(self) -> None:
        self._starts_of_all += 1
        self._is_between_rounds = False
        looking = self._job.files * self._cluster.read
        self._planned_at = self._now + self._cluster.start + looking
        for worker in self._workers:
            worker.pieces.clear()
            self._starts(worker, lambda worker: self._becomes(worker, "waiting"))
        number = self._starts_of_all
        self._at(self._planned_at, lambda: self._deal(number))

    def _deal(self, number: int) -> None:
        """Distributes the missing work, unless round `number` has ended."""
        if number != self._starts_of_all or self._is_between_rounds:
            return
        cells: dict[int, list[Cell]] = {}
        for block, cell in self._missing:
            cells.setdefault(block, []).append(cell)
        missing = [self._blocks[block].only(some) for block, some in cells.items()]
        count = len(self._workers)
        pieces = shared(missing, count)
        for rank, worker in enumerate(self._workers):
            worker.pieces = deque(share_of(pieces, rank, count))
        for worker in self._workers:
            self._next(worker)

    def _round_loses(self, worker: _Worker, away: bool) -> None:
        if away:
            self._at_worker(worker.back, worker, lambda worker: self._becomes(worker, "dead"))
        if self._policy == "torchrun":
            self._end_round(0.0)
        elif (
            worker is self._workers[0]  # without the first process, the others end
            or self._now < self._planned_at  # if a process is missing at the start, all end
            or not self._is_anyone_busy()
        ):
            self._end_round(self._cluster.repeat)

    def _is_anyone_busy(self) -> bool:
        return any(w.activity in ("starting", "waiting", "computing") for w in self._workers)

    def _end_round(self, pause: float) -> None:
        begin = self._now + pause
        self._is_between_rounds = True
        for worker in self._workers:
            if worker.activity == "away":
                begin = max(begin, worker.back)
                continue
            worker.epoch += 1
            self._becomes(worker, "dead")
            worker.piece = None
        self._at(begin, self._begin_round)

    # Computing.

    def _next(self, worker: _Worker) -> None:
        """Starts the next piece of a worker, or ends the worker."""
        self._becomes(worker, "waiting")
        if worker.pieces:
            worker.piece = worker.pieces.popleft()
            worker.cells = deque(worker.piece.cells)
            self._compute(worker)
            return
        worker.piece = None
        if self._policy == "array":
            self._becomes(worker, "done")
            worker.epoch += 1
        elif self._policy == "free":
            worker.activity = "idle"
        else:
            worker.activity = "dead"  # it has finished, and its machine waits for the others
            if worker is not self._workers[0]:
                worker.epoch += 1
            if not self._is_anyone_busy():
                self._end_round(self._cluster.repeat)

    def _compute(self, worker: _Worker) -> None:
        """Starts the computation of the next cell of the worker's piece."""
        self._becomes(worker, "computing")
        assert worker.piece is not None
        cell = len(worker.piece.images) * self._job.models / self._job.images_per_second
        nominal = cell / self._job.turns
        if len(worker.cells) == len(worker.piece.cells):
            nominal += cell * (1 - 1 / self._job.turns) * len(worker.cells)
        worker.computing = nominal * worker.factor
        self._at_worker(self._now + worker.computing, worker, self._write)

    def _write(self, worker: _Worker) -> None:
        files = self._job.files_per_cell
        begin = max(self._now, self._disk_free_at)
        self._disk_free_at = begin + files / self._cluster.files_per_second
        self._at_worker(self._disk_free_at + files * self._cluster.write, worker, self._durable)

    def _durable(self, worker: _Worker) -> None:
        """Called when the files of a cell of a block are written."""
        assert worker.piece is not None
        cell = len(worker.piece.images) * self._job.models / self._job.images_per_second
        booked = self._now - worker.since
        worker.since = self._now
        self._spent["writing"] += booked - worker.computing
        self._spent["useful"] += cell
        self._spent["slow"] += cell * (worker.factor - 1)
        worker.activity = "waiting"
        del self._missing[worker.piece.block, worker.cells.popleft()]
        if worker.cells:
            self._compute(worker)
        else:
            self._next(worker)


@cache
def _pieces(job: Job) -> tuple[Piece, ...]:
    """One piece per block, as from `EvaluationPlan.missing` at the start of a run."""
    names = tuple(f"model-{number}" for number in range(job.models))
    cells = [Cell(f"transform-{number}", 0) for number in range(job.cells)]
    pieces = []
    for block, first in enumerate(range(0, job.images, job.block)):
        images = cast("tuple[Sample, ...]", tuple(range(first, min(first + job.block, job.images))))
        pieces.append(
            Piece(block, images, dict.fromkeys(cells, names), dict.fromkeys(cells, ("original",)))
        )
    return tuple(pieces)


# The tables and the figure.


@dataclass(frozen=True)
class Scene:
    """The job and the cluster of one table."""

    name: str
    job: Job
    cluster: Cluster


_SHARED_FILES = Cluster(
    start=40.0, crash=500 * HOUR, preempt=8 * HOUR, away=600.0, repeat=60.0, slow_share=0.05,
    read=0.001, write=0.005, files_per_second=5000.0,
)  # fmt: skip
SCENES = (
    Scene("GPUs, 1,000 images/s", Job(), _SHARED_FILES),
    Scene("CPU nodes, 20 images/s", Job(images_per_second=20.0, turns=2), _SHARED_FILES),
    Scene("CPU nodes, 20 images/s, no pre-emption", Job(images_per_second=20.0, turns=2),
          replace(_SHARED_FILES, preempt=math.inf)),
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """Results of several runs of one policy: the median, and the interval of 90 % of the runs.

    `ended` is the share of runs that were not aborted.
    """

    workers: int
    policy: Policy
    hours: tuple[float, float, float]
    efficiency: tuple[float, float, float]
    lost: tuple[float, float, float]
    ended: float


def summary(
    job: Job, cluster: Cluster, workers: int, policy: Policy, seeds: Sequence[int]
) -> Summary:
    """Simulates one run per seed; returns the summary of the results."""
    outcomes = [Simulation(job, cluster, workers, policy, seed).run() for seed in seeds]
    return Summary(
        workers,
        policy,
        spread([outcome.elapsed / HOUR for outcome in outcomes]),
        spread([outcome.efficiency for outcome in outcomes]),
        spread([outcome.lost for outcome in outcomes]),
        statistics.mean(outcome.ended for outcome in outcomes),
    )


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 5th and 95th percentile of at least one value."""
    ordered = sorted(values)

    def quantile(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return quantile(0.5), quantile(0.05), quantile(0.95)


def table(summaries: Sequence[Summary]) -> str:
    """The summaries as a Markdown table."""
    rows = []
    for line in summaries:
        ended = f"{line.hours[0]:.3g} h ({line.hours[1]:.3g} to {line.hours[2]:.3g})"
        late = f"{1 - line.ended:.0%} aborted after {MOST_STARTS} starts"
        efficiency = [f"{100 * value:.0f}" for value in line.efficiency]
        lost = [f"{100 * value:.2g}" for value in line.lost]
        finished_work = not math.isnan(line.lost[0])
        rows.append(
            [
                f"{line.workers:,}",
                line.policy,
                ended if line.ended == 1 else late,
                f"{efficiency[0]} % ({efficiency[1]} to {efficiency[2]})",
                f"{lost[0]} % ({lost[1]} to {lost[2]})" if finished_work else "no useful work",
            ]
        )
    heads = ("workers", "policy", "time to the end", "efficiency", "lost work")
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


_COLOURS = {"one job": "#D55E00", "torchrun": "#CC79A7", "array": "#0072B2", "free": "#009E73"}
_MARKS = {"one job": "s", "torchrun": "^", "array": "o", "free": "D"}


def plot(results: dict[str, list[Summary]], path: Path) -> None:
    """Plots efficiency over the number of workers, with one panel per scene."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True)
    for axes, (name, summaries) in zip(panels, results.items(), strict=True):
        for policy in POLICIES:
            lines = [line for line in summaries if line.policy == policy]
            workers = [line.workers for line in lines]
            middle, low, high = (
                [100 * line.efficiency[place] for line in lines] for place in range(3)
            )
            axes.plot(workers, middle, color=_COLOURS[policy], marker=_MARKS[policy], label=policy)
            axes.fill_between(workers, low, high, color=_COLOURS[policy], alpha=0.2, linewidth=0)
        axes.set_xscale("log")
        axes.set_ylim(0, 100)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("workers")
        axes.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("useful share of the paid time (%)")
    panels[0].legend(fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Prints the job and a table for each scene, and draws the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, default=8, help="Simulated runs per line of the tables."
    )
    parser.add_argument("--plot", type=Path, help="Plot efficiency over workers to this file.")
    options = parser.parse_args()
    results: dict[str, list[Summary]] = {}
    for scene in SCENES:
        hours = scene.job.seconds / HOUR
        print(f"\n{scene.name}: {hours:,.1f} hours of model time, {scene.job.files:,} files\n")
        lines = [(workers, policy) for workers in WORKERS for policy in POLICIES]
        with ProcessPoolExecutor(usable_cores()) as pool:
            summaries = [
                pool.submit(summary, scene.job, scene.cluster, *line, range(options.runs))
                for line in lines
            ]
            results[scene.name] = [future.result() for future in summaries]
        print(table(results[scene.name]), flush=True)
    if options.plot is not None:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
