"""Runs several seeds of one training, or of one fine-tuning, beside each other in one folder.

All seeds have the same parts of it; what differs between them is
the initialisation and the order of the images. A seed that fails does not keep the others from
being trained.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

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
from robustcli.core.ranks import ranks
from robustcli.core.rundir import RunKind, check_folder, has_record
from robustcli.tasks.record import dataset_record
from robustcli.training.config import TrainConfig
from robustcli.training.engine import run_plan, train_record
from robustcli.training.processes import end_of_others, helped_run
from robustcli.training.record import TRAINING
from robustcli.training.seeds_record import (
    SEEDS,
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
from robustcli.training.train_plan import plan_training
from robustcli.training.training_task import TrainPlan, TrainStart

OnFailure = Callable[[int, Exception], None]
"""Hears of each seed that fails, when it does."""
_log = logging.getLogger("robustcli")


class SeedsError(RunError):
    """Some seeds are not finished; the others are, and are kept.

    Args:
        run: The folder of all.
    """

    def __init__(self, run: Path, what: str, why: str, todo: str) -> None:
        super().__init__(what, why, todo)
        self.run = run


@dataclass(frozen=True)
class SeedRuns:
    """What is run once for each seed.

    Args:
        run: The folder of all.
        of: The command that makes each seed's run.
        kind: The run folders of that command.
        plan: Of the first seed: data, settings, devices.
        fresh: Whether to discard what the folder holds.
        start: Runs a seed into its folder.
        separately: A seed's run in a process of its own.
        beside: Devices on which whole seeds run beside each other; 0 where they run one after the
            other, each on all devices.
        differences: Sentences on how the settings of a seed differ from those of the run in its
            folder, which is of the same kind.
    """

    run: Path
    of: Literal["train", "finetune"]
    kind: RunKind[Any]
    plan: TrainPlan
    fresh: bool
    start: Callable[[int, Path, Listener], object]
    differences: Callable[[int, Path], Iterator[str]]
    separately: Callable[[int, Path], SeparateRun]
    beside: int = 0

    def record(self) -> SeedsRecord:
        """The record of seeds that begin."""
        config, now, plan = self.plan.config, datetime.now(UTC), self.plan
        return SeedsRecord(
            of=self.of,
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
    """Trains the `config.seeds` seeds from `config.seed` on, as far as they are not there yet.

    Returns:
        The folder that holds them: RUN/seed-0, RUN/seed-1, ...

    Raises:
        UsageError: Something named does not exist or does not fit together.
        SeedsError: Some seeds failed; all others are finished.
    """
    check_launcher()
    beside = train_seeds_beside(config)
    if beside:
        config = replace(config, devices=1)
    plan = plan_training(config, listener_of_first(listener))

    def start(seed: int, out: Path, heard: Listener) -> None:
        seed_plan = plan.for_seed(seed, out)
        run_plan(seed_plan, _start(seed_plan), heard)

    def differences(seed: int, out: Path) -> Iterator[str]:
        seed_plan = plan.for_seed(seed, out)
        begin = _start(seed_plan)
        new = train_record(seed_plan, begin.network, begin.origin)
        yield from TRAINING.differences(TRAINING.read(out), new)

    def separately(seed: int, out: Path) -> SeparateRun:
        return SeparateRun(f"seed {seed}", _train_seed, (config, seed, out))

    runs = SeedRuns(
        plan.run, "train", TRAINING, plan, config.fresh, start, differences, separately, beside
    )
    return run_seeds(runs, listener, on_failure)


def _train_seed(config: TrainConfig, seed: int, out: Path, device: str, listener: Listener) -> None:
    """Trains one seed on `device`, in a process of its own."""
    plan = plan_training(replace(config, device=device), Silent()).for_seed(seed, out)
    run_plan(plan, _start(plan), listener)


def train_seeds_beside(config: TrainConfig) -> int:
    """`seeds_beside` of trainings."""
    return seeds_beside(config, lambda run: TRAINING.read(run).devices)


def seeds_beside(config: TrainConfig, devices_of: Callable[[Path], int]) -> int:
    """Devices on which whole seeds are trained beside each other; 0 for one after the other.

    Seeds that an earlier version has begun to train on several devices each go on so.
    """
    count = devices_beside(config.device, config.devices, config.seeds or 1)
    if count and config.out is not None and not config.fresh:
        first = seed_folder(config.out, config.seed)
        if has_record(first) and devices_of(first) > 1:
            return 0
    return count


def _start(plan: TrainPlan) -> TrainStart:
    return TrainStart(*plan.task.network(plan.config, plan.entry, plan.index))


def listener_of_first(listener: Listener | None) -> Listener:
    """`listener` in the process that talks to the user, else one that listens to nothing."""
    return (listener if ranks().first else None) or Silent()


def check_launcher() -> None:
    """Raises UsageError where a launcher started several processes, which end with one training."""
    if ranks().world > 1 and helped_run() is None:
        raise UsageError(
            "`--seeds` does not go with torchrun, `srun` or `mpirun`.",
            "Their processes end with the first training.",
            "Use `--devices N`, which starts the processes of each seed, or train one seed at a "
            "time with `--seed N --split-seed 0`.",
        )


def run_seeds(
    runs: SeedRuns, listener: Listener | None = None, on_failure: OnFailure | None = None
) -> Path:
    """Runs each seed that is not finished; returns the folder of all.

    Raises:
        UsageError: The folder holds other things, or runs with other settings.
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
            runs.run, runs.record(), fresh=runs.fresh, more=lambda old: _differences(runs, old)
        )
        _announce(record, runs, heard)
        with SEEDS.closing(runs.run):
            run_all = _run_beside if runs.beside else _run_in_turn
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
            f"`{runs.run}` was begun with {record.count} seeds: all of them are finished, not "
            f"only {config.seeds}."
        )
    listed = ", ".join(map(str, record.seeds))
    heard.say(
        f"{record.count} seed{'s' * (record.count != 1)} ({listed}), all with the training, "
        "validation and test images of the first."
    )


def _run_in_turn(
    runs: SeedRuns, folders: Mapping[int, Path], heard: NamedListener, on_failure: OnFailure | None
) -> list[SeedFailure]:
    """Runs one seed after the other; returns those that failed."""
    return [
        failure
        for seed, folder in folders.items()
        if (failure := _run_one(runs, seed, folder, heard, on_failure)) is not None
    ]


def _run_beside(
    runs: SeedRuns, folders: Mapping[int, Path], heard: NamedListener, on_failure: OnFailure | None
) -> list[SeedFailure]:
    """Runs the seeds on `runs.beside` devices at a time; returns those that failed."""
    separate = {seed: runs.separately(seed, folder) for seed, folder in folders.items()}
    names = [run.name for run in separate.values()]
    announce_beside(runs.beside, names, heard.say)
    failures: list[SeedFailure] = []

    def failed(run: SeparateRun, error: Exception) -> None:
        seed = next(seed for seed, other in separate.items() if other is run)
        if isinstance(error, UsageError | MachineError):  # settings and machine are those of all
            raise error
        with suppress(type(error)), errors_of(folders[seed]):
            raise error
        failures.append(_failure(seed, error, heard.say, on_failure, f"seed {seed} failed"))

    config = runs.plan.config
    run_beside([*separate.values()], runs.beside, config.device, heard, failed)
    return sorted(failures, key=lambda failure: failure.seed)


def _failure(
    seed: int, error: Exception, say: Callable[[str], None], on_failure: OnFailure | None,
    failed: str = "failed",
) -> SeedFailure:  # fmt: skip
    """Tells of a seed that failed, and keeps why in a line."""
    (on_failure or _log_failure)(seed, error)
    what = error.what if isinstance(error, RobustError) else type(error).__name__
    why = error.why if isinstance(error, RobustError) else first_line(error)
    say(f"{failed}: {what} The other seeds go on.")
    return SeedFailure(seed=seed, error=f"{what} {why}".strip())


def _run_one(
    runs: SeedRuns, seed: int, folder: Path, heard: NamedListener, on_failure: OnFailure | None
) -> SeedFailure | None:
    """Runs one seed; what went wrong where it failed in a way that others need not fail in."""
    heard.begin(f"seed {seed}")
    try:
        with errors_of(folder):
            runs.start(seed, folder, heard)
        return None
    except (UsageError, MachineError):  # settings and machine are the same for all
        raise
    except Exception as error:
        failure = _failure(seed, error, heard.say, on_failure)
    # After the handler, which holds the frames of the error and with them the network.
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
        f"`{run}` lacks {len(failures)} of its {record.count} seeds: {listed}.",
        "\n".join(f"Seed {failure.seed}: {failure.error}" for failure in failures),
        "The others are finished, and the report is of these. The same command tries again what is "
        "missing, from the last finished epoch of each.",
    )


def _differences(runs: SeedRuns, old: SeedsRecord) -> Iterator[str]:
    """How the settings differ from those of the first seed that has begun; the others are alike."""
    for seed, folder in old.folders(runs.run).items():
        if has_record(folder):
            yield from runs.differences(seed, folder)
            return


def _discard(runs: SeedRuns) -> None:
    """Removes what the runs of all seeds consist of.

    Raises:
        RunError: Another process works in one of them.
    """
    if not has_record(runs.run):
        return
    for folder in read_seeds_record(runs.run).folders(runs.run).values():
        if folder.is_dir():
            with runs.kind.held(folder):
                runs.kind.discard(folder)


def _help(runs: SeedRuns, helped: Path) -> NoReturn:
    """Trains in a process that the first one started for a run in `helped`, and ends it."""
    config = runs.plan.config
    count = config.seeds or 1
    if has_record(runs.run):
        count = max(count, read_seeds_record(runs.run).count)
    for seed in range(config.seed, config.seed + count):
        folder = seed_folder(runs.run, seed)
        if helped.is_relative_to(folder.absolute()):
            runs.start(seed, folder, Silent())
    end_of_others()
