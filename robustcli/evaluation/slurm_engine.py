"""`--engine slurm`: tasks of an evaluation as a SLURM job array, through submitit.

A task of the array computes every Nth piece. SLURM may stop a task at its time limit or pre-empt
it; submitit then requeues the task, and it computes the rest of its pieces. `RUN/slurm` contains
the logs, `jobs.json` with the ids of all jobs (so that a repeated command waits for the jobs of the
previous command), and `outcome-*.json` with the result of each task. The result files of submitit,
which are pickles, are not read.

`cluster=local` uses processes of this machine instead of SLURM, for testing.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from robustcli.core.errors import MachineError, RunError, UsageError, first_line
from robustcli.core.io import parse_json, write_text
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.engines import (
    MakeWorker,
    PieceTask,
    PoolForecast,
    TaskOutcome,
    TaskRunner,
)
from robustcli.evaluation.slurm_settings import SlurmSettings, read_settings

FOLDER, JOBS = "slurm", "jobs.json"
_POLL_SECONDS = {"slurm": 5.0, "local": 0.5}
_ASK_SECONDS = 60.0  # between queries to SLURM about jobs without an outcome file
_LATE_SECONDS = 10.0  # delay until a file on a network file system is visible
_MOST_TIMEOUTS = 1000  # how often submitit requeues a task at its time limit
_JOB_ID = re.compile(r"\d+(_\d+)?")


class ArrayTask:
    """A task of the array: submitit calls it in the job, and again after a pre-emption."""

    def __init__(self, make_worker: MakeWorker, pieces: Sequence[Any], outcome: Path) -> None:
        self._make_worker, self._pieces, self._outcome = make_worker, pieces, outcome

    def __call__(self) -> None:
        """Computes the missing rows of the task and writes the outcome file."""
        outcome = TaskRunner(self._make_worker).run(self._pieces)
        write_text(self._outcome, json.dumps(asdict(outcome)) + "\n")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The task that submitit requeues: the same one, which skips finished rows."""
        return submitit.helpers.DelayedSubmission(self)


class SlurmEngine:
    """Engine for SLURM; uses `slurm` and `device` of `config`."""

    name = "slurm"

    def __init__(self, config: EvalConfig) -> None:
        self._settings = read_settings(config.slurm, config.device)
        self.device = config.device
        if config.devices is not None:
            raise UsageError(
                f"`--devices {config.devices}` cannot be used with `--engine slurm`.",
                "Each task of the array uses one device.",
                "Set the number of tasks: `--slurm array=16`.",
            )

    def forecast(self) -> PoolForecast:
        """See `engines.Engine`; does not ask SLURM."""
        return PoolForecast(self._settings.in_words(), self._settings.array)

    @contextmanager
    def pool(self, run: Path, say: Callable[[str], None]) -> Iterator[SlurmPool]:
        """See `engines.Engine`: waits for the jobs of an earlier command, if they still run."""
        pool = SlurmPool(self._settings, run.absolute() / FOLDER, say)
        try:
            pool.await_earlier()
            yield pool
        finally:
            pool.close()


class SlurmPool:
    """The jobs of one command; see `engines.WorkerPool`."""

    def __init__(self, settings: SlurmSettings, folder: Path, say: Callable[[str], None]) -> None:
        self._settings, self._folder, self._say = settings, folder, say
        self._executor = _executor(settings, folder)
        self._working: list[tuple[Any, PieceTask, Path]] = []
        self._earlier: list[Any] = []
        self._query_time, self._dead_since = time.monotonic(), dict[str, float]()
        self.tasks = settings.array
        self.processes = settings.array if settings.cluster == "local" else 1

    def start(self, make_worker: MakeWorker, tasks: Sequence[PieceTask]) -> None:
        """See `engines.WorkerPool`: submits one array."""
        paths = [self._folder / f"outcome-{uuid.uuid4().hex}.json" for _ in tasks]
        calls = [
            ArrayTask(make_worker, task.as_plain(), path)
            for task, path in zip(tasks, paths, strict=True)
        ]
        try:
            jobs = self._executor.submit_array(calls)
        except (FailedJobError, FailedSubmissionError) as error:
            raise RunError(
                "SLURM rejected the job.",
                str(error).strip()[-500:],
                "Change `--slurm`. Finished results are kept.",
            ) from error
        self._working += zip(jobs, tasks, paths, strict=True)
        self._write_ids()
        ids = dict.fromkeys(job.job_id.partition("_")[0] for job in jobs)
        size_in_words = f"an array of {len(jobs)} tasks" if len(jobs) > 1 else "one task"
        self._say(f"Submitted job {', '.join(ids)}, {size_in_words}; logs: `{self._folder}`.")

    def ended(self) -> list[tuple[PieceTask, TaskOutcome]]:
        """See `engines.WorkerPool`."""
        ended = [
            (entry, outcome) for entry in self._working
            if (outcome := self._outcome_of(entry)) is not None
        ]  # fmt: skip
        for entry, _ in ended:
            self._working.remove(entry)
        if ended:
            self._write_ids()
        else:
            time.sleep(_POLL_SECONDS[self._settings.cluster])
        return [(task, outcome) for (_, task, _), outcome in ended]

    def await_earlier(self) -> None:
        """Waits for the jobs of an earlier command that ended without cancelling them."""
        self._earlier = [job for job in self._earlier_jobs() if not job.done(force_check=True)]
        if self._earlier:
            ids = dict.fromkeys(job.job_id.partition("_")[0] for job in self._earlier)
            self._say(
                f"Job {', '.join(ids)} of an earlier command is still running: waiting for it. "
                "Ctrl-C cancels it."
            )
        while self._earlier:
            time.sleep(_POLL_SECONDS[self._settings.cluster])
            self._earlier = [job for job in self._earlier if not self._is_done(job)]

    def close(self) -> None:
        """Cancels jobs that have not ended."""
        jobs = [*self._earlier, *(job for job, _, _ in self._working)]
        if not jobs:
            return
        self._say(f"Cancelling {len(jobs)} task{'s' * (len(jobs) > 1)}.")
        for job in jobs:
            job.cancel(check=False)
        self._earlier, self._working = [], []
        self._write_ids()

    def _outcome_of(self, entry: tuple[Any, PieceTask, Path]) -> TaskOutcome | None:
        """TaskOutcome of a task; None while it runs or is queued."""
        job, _, path = entry
        if path.is_file():
            return TaskOutcome(**parse_json(path.read_bytes()))
        if not self._is_done(job):
            return None
        since = self._dead_since.setdefault(job.job_id, time.monotonic())
        if time.monotonic() - since < _LATE_SECONDS:
            return None
        return TaskOutcome(
            death=f"Job {job.job_id} ended without an error message ({job.state}); its log is "
            f"`{job.paths.stderr}`."
        )

    def _is_done(self, job: Any) -> bool:
        """Whether a job has ended; queries SLURM (for all jobs) at most every _ASK_SECONDS."""
        ask = time.monotonic() - self._query_time > _ASK_SECONDS
        if ask:
            self._query_time = time.monotonic()
        return bool(job.done(force_check=ask))

    def _earlier_jobs(self) -> list[Any]:
        """The jobs in `jobs.json`; none for `cluster=local`, whose processes cannot be queried."""
        path = self._folder / JOBS
        if self._settings.cluster != "slurm" or not path.is_file():
            return []
        ids: object = None
        with suppress(ValueError):
            ids = parse_json(path.read_bytes())
        if not isinstance(ids, list) or not all(_JOB_ID.fullmatch(str(job_id)) for job_id in ids):
            self._say(
                f"`{path}` is damaged: the command does not wait for jobs of an earlier command."
            )
            return []
        return [submitit.SlurmJob(self._folder, str(job_id)) for job_id in ids]

    def _write_ids(self) -> None:
        ids = [job.job_id for job, _, _ in self._working]
        write_text(self._folder / JOBS, json.dumps(ids) + "\n")


def _executor(settings: SlurmSettings, folder: Path) -> Any:
    """Submitit's executor for the jobs.

    Raises:
        MachineError: This machine cannot submit jobs to SLURM.
        UsageError: Submitit rejects a parameter.
    """
    try:
        executor = submitit.AutoExecutor(
            folder, cluster=settings.cluster, slurm_max_num_timeout=_MOST_TIMEOUTS
        )
    except RuntimeError as error:
        raise MachineError(
            "This machine cannot submit jobs to SLURM.",
            f"{first_line(error)}",
            "Run the command on a login node; `--slurm cluster=local` tests it with processes on "
            "this machine.",
        ) from error
    try:
        executor.update_parameters(name="robust", **settings.parameters)
    except (ValueError, NameError, AssertionError) as error:
        raise UsageError("submitit rejected `--slurm`.", str(error), "Change the value.") from error
    return executor
