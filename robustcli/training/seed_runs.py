"""Runs one training, or one fine-tuning, with several seeds in subfolders of one folder.

All seeds have the same split of the data; they differ in the initialisation and the order of the
images. If one seed fails, the others are trained nevertheless. `--dry-run` forecasts one seed and
counts the unfinished ones.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

import torch

from robustcli.core.errors import (
    MachineError,
    RobustError,
    RunError,
    UsageError,
    errors_of,
    first_line,
)
from robustcli.core.listener import Listener, NamedListener, Silent
from robustcli.core.names import counted
from robustcli.core.ranks import ranks
from robustcli.core.rundir import RunKind, check_folder, has_record
from robustcli.core.signals import interruptible, was_interrupted
from robustcli.tasks.record import dataset_record
from robustcli.training.config import TrainConfig
from robustcli.training.engine import run_plan
from robustcli.training.processes import end_of_others, helped_run
from robustcli.training.record import (
    SEEDS,
    TRAINING,
    SeedFailure,
    SeedsRecord,
    read_seeds_record,
    seed_folder,
)
from robustcli.training.side_by_side import (
    SeparateRun,
    announce_beside,
    devices_beside,
    run_beside,
)
from robustcli.training.train_plan import forecast_plan, plan_training, train_record
from robustcli.training.training_task import TrainPlan

OnFailure = Callable[[int, Exception], None]
"""Called with the number and the error of each failed seed."""
_log = logging.getLogger("robustcli")


class SeedsError(RunError):
    """Some seeds failed; the results of the others are kept.

    Args:
        run: Common folder of the seeds.
    """

    def __init__(self, run: Path, what: str, why: str, todo: str) -> None:
        super().__init__(what, why, todo)
        self.run = run


@dataclass(frozen=True)
class SeedRuns:
    """Defines what is run for each seed.

    Args:
        run: Common folder of the seeds.
        of: The command that is run for each seed.
        kind: Kind of the run folders of that command.
        plan: Plan of the first seed: data, settings, devices.
        fresh: Whether to discard existing runs in the folder.
        start: Runs a seed in this process, in the given folder.
        differences: Yields one sentence per setting of a seed that differs from the existing run in
            the given folder.
        separately: Returns the run of a seed for a separate process.
        parallel_seeds: Number of devices that each run one seed at a time; 0 if the seeds run one
            after the other, each on all devices.
    """

    run: Path
    of: Literal["train", "finetune"]
    kind: RunKind[Any]
    plan: TrainPlan
    fresh: bool
    start: Callable[[int, Path, Listener], object]
    differences: Callable[[int, Path], Iterator[str]]
    separately: Callable[[int, Path], SeparateRun]
    parallel_seeds: int = 0


def seeds_record(of: Literal["train", "finetune"], plan: TrainPlan) -> SeedsRecord:
    """The initial record of the seeds of `plan`."""
    config, now = plan.config, datetime.now(UTC)
    return SeedsRecord(
        of=of,
        task=plan.task.name,
        command=config.command,
        status="running",
        created=now,
        updated=now,
        seed=config.seed,
        count=config.seeds or 1,
        split_seed=config.parts_seed,
        model=plan.entry.name,
        arguments=json.loads(json.dumps(dict(config.model_args))),
        dataset=dataset_record(plan.index),
    )


def train_seeds(
    config: TrainConfig, listener: Listener | None = None, on_failure: OnFailure | None = None
) -> Path:
    """Trains `config.seeds` seeds from `config.seed` on; finished seeds are not trained again.

    Returns:
        The common folder, with the runs RUN/seed-0, RUN/seed-1, ...

    Raises:
        UsageError: A named model, data set or recipe does not exist, or options contradict each
            other.
        SeedsError: Some seeds failed; all others are finished.
    """
    parallel_seeds = _train_seeds_beside(config)
    if parallel_seeds:
        config = replace(config, devices=1)
    plan = plan_training(config, listener_of_first(listener))

    def start(seed: int, out: Path, heard: Listener) -> None:
        seed_plan = plan.for_seed(seed, out)
        run_plan(seed_plan, seed_plan.task.start(seed_plan), heard)

    def differences(seed: int, out: Path) -> Iterator[str]:
        seed_plan = plan.for_seed(seed, out)
        begin = seed_plan.task.start(seed_plan)
        new = train_record(seed_plan, begin.network, begin.origin)
        yield from TRAINING.differences(TRAINING.read(out), new)

    def separately(seed: int, out: Path) -> SeparateRun:
        return SeparateRun(f"seed {seed}", _train_seed, (config, seed, out))

    runs = SeedRuns(
        plan.run, "train", TRAINING, plan, config.fresh, start, differences, separately,
        parallel_seeds,
    )  # fmt: skip
    return run_seeds(runs, listener, on_failure)


def _train_seed(config: TrainConfig, seed: int, out: Path, device: str, listener: Listener) -> None:
    """Trains one seed on `device`; called in a separate process."""
    plan = plan_training(replace(config, device=device), Silent()).for_seed(seed, out)
    run_plan(plan, plan.task.start(plan), listener)


def _train_seeds_beside(config: TrainConfig) -> int:
    """`seeds_beside` for `robust train`."""
    return seeds_beside(config, lambda run: TRAINING.read(run).devices)


def seeds_beside(config: TrainConfig, devices_of: Callable[[Path], int]) -> int:
    """Number of devices that each train one seed at a time; 0 for one seed after the other.

    Seeds that an earlier version started on several devices each are resumed in the same way.

    Raises:
        UsageError: A launcher started several processes, which end after one training.
    """
    _check_launcher()
    count = devices_beside(config.device, config.devices, config.seeds or 1)
    if count and config.out is not None and not config.fresh:
        first = seed_folder(config.out, config.seed)
        if has_record(first) and devices_of(first) > 1:
            return 0
    return count


def listener_of_first(listener: Listener | None) -> Listener:
    """`listener` in the first process; in the others, a listener that ignores everything."""
    return (listener if ranks().first else None) or Silent()


def _check_launcher() -> None:
    if ranks().world > 1 and helped_run() is None:
        raise UsageError(
            "`--seeds` cannot be used with torchrun, `srun` or `mpirun`.",
            "The processes of these launchers end with the first training.",
            "Use `--devices N`, which starts the processes of each seed, or train one seed at a "
            "time with `--seed N --split-seed 0`.",
        )


def run_seeds(
    runs: SeedRuns, listener: Listener | None = None, on_failure: OnFailure | None = None
) -> Path:
    """Runs each unfinished seed; returns the common folder.

    Raises:
        UsageError: The folder contains other files, or runs with other settings.
        SeedsError: Some seeds failed; all others are finished.
    """
    heard = NamedListener(listener_of_first(listener))
    helped = helped_run()
    if helped is not None:
        _help(runs, helped)
    check_folder(runs.run)
    with SEEDS.held(runs.run, heard.say):
        if runs.fresh:
            _discard(runs)
        record = SEEDS.open(
            runs.run, seeds_record(runs.of, runs.plan), fresh=runs.fresh,
            further_differences=lambda old: _differences(runs, old),
        )  # fmt: skip
        _announce(record, runs, heard)
        with SEEDS.closing(runs.run):
            run_all = _run_beside if runs.parallel_seeds else _run_in_turn
            failures = run_all(runs, record.folders(runs.run), heard, on_failure)
            heard.begin("")
            SEEDS.update(runs.run, failures=failures)
            if failures:
                raise _unfinished(runs.run, record, failures)
    return runs.run


def _announce(record: SeedsRecord, runs: SeedRuns, heard: NamedListener) -> None:
    config = runs.plan.config
    if record.count > (config.seeds or 1):
        heard.say(
            f"`{runs.run}` was started with {record.count} seeds: all of them are trained, not "
            f"only {config.seeds}."
        )
    listed = ", ".join(map(str, record.seeds))
    heard.say(
        f"{counted(record.count, 'seed')} ({listed}), all with the training, "
        "validation and test images of the first seed."
    )


def _run_in_turn(
    runs: SeedRuns, folders: Mapping[int, Path], heard: NamedListener, on_failure: OnFailure | None
) -> list[SeedFailure]:
    """Runs one seed after the other; returns the failures."""
    return [
        failure
        for seed, folder in folders.items()
        if (failure := _run_one(runs, seed, folder, heard, on_failure)) is not None
    ]


def _run_beside(
    runs: SeedRuns, folders: Mapping[int, Path], heard: NamedListener, on_failure: OnFailure | None
) -> list[SeedFailure]:
    """Runs the seeds in parallel on `runs.parallel_seeds` devices; returns the failures."""
    separate = {seed: runs.separately(seed, folder) for seed, folder in folders.items()}
    names = [run.name for run in separate.values()]
    announce_beside(runs.parallel_seeds, names, heard.say)
    failures: list[SeedFailure] = []

    def failed(run: SeparateRun, error: Exception) -> None:
        seed = next(seed for seed, separate_run in separate.items() if separate_run is run)
        if isinstance(error, UsageError | MachineError):  # these errors concern all seeds
            raise error
        with suppress(type(error)), errors_of(folders[seed]):
            raise error
        failures.append(_failure(seed, error, heard.say, on_failure, f"seed {seed} failed"))

    config = runs.plan.config
    run_beside([*separate.values()], runs.parallel_seeds, config.device, heard, failed)
    return sorted(failures, key=lambda failure: failure.seed)


def _failure(
    seed: int, error: Exception, say: Callable[[str], None], on_failure: OnFailure | None,
    failed: str = "failed",
) -> SeedFailure:  # fmt: skip
    """Reports a failed seed; returns its record with the reason in one line."""
    (on_failure or _log_failure)(seed, error)
    what = error.what if isinstance(error, RobustError) else type(error).__name__
    why = error.why if isinstance(error, RobustError) else first_line(error)
    say(f"{failed}: {what} The other seeds continue.")
    return SeedFailure(seed=seed, error=f"{what} {why}".strip())


def _run_one(
    runs: SeedRuns, seed: int, folder: Path, heard: NamedListener, on_failure: OnFailure | None
) -> SeedFailure | None:
    """Runs one seed; returns its failure, but raises errors that concern all seeds."""
    heard.begin(f"seed {seed}")
    try:
        with interruptible(), errors_of(folder):
            runs.start(seed, folder, heard)
        return None
    except (UsageError, MachineError):  # these errors concern all seeds
        raise
    except Exception as error:
        if was_interrupted():
            raise KeyboardInterrupt from error
        failure = _failure(seed, error, heard.say, on_failure)
    # Outside of the handler, where the traceback no longer references the network.
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return failure


def _log_failure(seed: int, error: Exception) -> None:
    _log.error("Seed %d failed.", seed, exc_info=error)


def _unfinished(run: Path, record: SeedsRecord, failures: list[SeedFailure]) -> SeedsError:
    listed = ", ".join(str(failure.seed) for failure in failures)
    return SeedsError(
        run,
        f"`{run}` is incomplete: {len(failures)} of its {record.count} seeds failed: {listed}.",
        "\n".join(f"Seed {failure.seed}: {failure.error}" for failure in failures),
        "The other seeds are finished, and the report contains these. The same command continues "
        "the failed seeds, each from its last finished epoch.",
    )


def _differences(runs: SeedRuns, old: SeedsRecord) -> Iterator[str]:
    """Differences to the settings of the first started seed; all seeds share their settings."""
    for seed, folder in old.folders(runs.run).items():
        if has_record(folder):
            yield from runs.differences(seed, folder)
            return


def _discard(runs: SeedRuns) -> None:
    """Discards the runs of all seeds.

    Raises:
        RunError: Another process uses one of the runs.
    """
    if not has_record(runs.run):
        return
    for folder in read_seeds_record(runs.run).folders(runs.run).values():
        if folder.is_dir():
            with runs.kind.held(folder):
                runs.kind.discard(folder)


def _help(runs: SeedRuns, helped: Path) -> NoReturn:
    """Takes part in the training of `helped`, in a process started by `launched`; then exits."""
    config = runs.plan.config
    count = config.seeds or 1
    if has_record(runs.run):
        count = max(count, read_seeds_record(runs.run).count)
    for seed in range(config.seed, config.seed + count):
        folder = seed_folder(runs.run, seed)
        if helped.is_relative_to(folder.absolute()):
            runs.start(seed, folder, Silent())
    end_of_others()


class SeedForecast(Protocol):
    """The forecast of one seed."""

    def as_json(self) -> str:
        """The forecast as one JSON object."""

    def as_text(self) -> str:
        """The forecast as lines of text."""


@dataclass(frozen=True)
class SeedsForecast:
    """The forecast of several seeds.

    Args:
        out: Folder of all seeds.
        seeds: All seeds.
        finished: The finished seeds in that folder.
        first_seed: Forecast of the first seed; those of the others are equal.
        parallel_seeds: Number of seeds trained at the same time, each on a separate device; 0 for
            one after the other.
    """

    out: str
    seeds: Sequence[int]
    finished: Sequence[int]
    first_seed: SeedForecast
    parallel_seeds: int = 0

    def as_json(self) -> str:
        """The forecast as one JSON object."""
        fields = {"out": self.out, "seeds": list(self.seeds), "finished": list(self.finished)}
        return json.dumps({**fields, "each": json.loads(self.first_seed.as_json())}, indent=2)

    def as_text(self) -> str:
        """The forecast as lines of text."""
        listed = ", ".join(map(str, self.seeds))
        finished = ", ".join(map(str, self.finished)) or "none"
        at_a_time = [f"Devices:    {self.parallel_seeds}, each trains one seed at a time"]
        return "\n".join(
            [
                f"Seeds:      {len(self.seeds)} ({listed}) in {self.out}; finished: {finished}",
                *(at_a_time if self.parallel_seeds else []),
                f"Values below are per seed; time and disk space count {len(self.seeds)} times.",
                self.first_seed.as_text(),
            ]
        )


def seeds_in(
    of: Literal["train", "finetune"], plan: TrainPlan, run: Path, kind: RunKind[Any]
) -> tuple[list[int], list[int]]:
    """All seeds of the folder `run`, and the finished ones among them.

    Raises:
        UsageError: The folder contains another run, or seeds with other settings.
    """
    config = plan.config
    count = config.seeds or 1
    if has_record(run) and not config.fresh:
        SEEDS.check_continues(run, seeds_record(of, plan))
        count = max(count, read_seeds_record(run).count)
    seeds = list(range(config.seed, config.seed + count))
    folders = {seed: seed_folder(run, seed) for seed in seeds}
    finished = [
        seed
        for seed, folder in folders.items()
        if has_record(folder) and not config.fresh and kind.read(folder).status == "complete"
    ]
    return seeds, finished


def forecast_train_seeds(config: TrainConfig, listener: Listener) -> SeedsForecast:
    """The forecast for the seeds of `config`; writes nothing.

    Raises:
        UsageError: A named model, data set or recipe does not exist, or options contradict each
            other.
    """
    parallel_seeds = _train_seeds_beside(config)
    plan = plan_training(replace(config, devices=1) if parallel_seeds else config, listener)
    seeds, finished = seeds_in("train", plan, plan.run, TRAINING)
    first = plan.for_seed(config.seed, seed_folder(plan.run, config.seed))
    return SeedsForecast(str(plan.run), seeds, finished, forecast_plan(first), parallel_seeds)
