"""`--engine slurm`: tasks of an evaluation as a SLURM job array, through submitit.

A task of the array computes every Nth piece. SLURM may stop a task at its time limit or pre-empt
it; submitit then requeues the task, and it computes the rest of its pieces. `RUN/slurm` contains
the logs, `jobs.json` with the ids of all jobs (so that a repeated command waits for the jobs of the
previous command), and `outcome-*.json` with the result of each task. The result files of submitit,
which are pickles, are not read.

`cluster=local` uses processes of this machine instead of SLURM, for testing. Submitit, which is
optional, is imported in functions: `--slurm` is parsed without it.
"""

from __future__ import annotations

import json
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from robustcli.core.errors import MachineError, RunError, UsageError, first_line
from robustcli.core.io import parse_json, write_text
from robustcli.core.names import counted, nearest
from robustcli.core.signals import interruptible, was_interrupted
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.engines import (
    MakeWorker,
    PieceTask,
    PoolForecast,
    TaskOutcome,
    TaskRunner,
)

FOLDER, JOBS = "slurm", "jobs.json"
_POLL_SECONDS = {"slurm": 5.0, "local": 0.5}
_ASK_SECONDS = 60.0  # between queries to SLURM about jobs without an outcome file
_LATE_SECONDS = 10.0  # delay until a file on a network file system is visible
_MOST_TIMEOUTS = 1000  # how often submitit requeues a task at its time limit
_REQUEUED = 144  # exit code by which submitit's local executor knows a task to start again
_TERMINATED = 143  # 128 + SIGTERM
_PREEMPTED_SECONDS = 180.0  # after which a pre-empted task was not requeued, but cancelled
_JOB_ID = re.compile(r"\d+(_\d+)?")
CLUSTERS = ("slurm", "local")
_DURATION = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d{2}))?(?::(\d{2}))?")


class ArrayTask:
    """A task of the array: submitit calls it in the job, and again after a pre-emption."""

    def __init__(self, make_worker: MakeWorker, pieces: Sequence[Any], outcome: Path) -> None:
        self._make_worker, self._pieces, self._outcome = make_worker, pieces, outcome
        self._is_requeued = False

    def __call__(self) -> None:
        """Computes the missing rows of the task and writes the outcome file.

        Before the time limit, submitit's signal handler raises SystemExit. A network or transform
        of the user may be running, whose SystemExit counts as its error; the outcome is then void.
        A pre-emption, or `scancel`, sends SIGTERM to the task and its loader processes, and SIGKILL
        seconds later: submitit ignores SIGTERM, and the error of a loader would be the outcome.

        Raises:
            SystemExit: The task was requeued or terminated.
        """
        self._is_requeued = False
        try:
            with interruptible():
                outcome = TaskRunner(self._make_worker).run(self._pieces)
        except KeyboardInterrupt:
            sys.exit(_TERMINATED)
        if self._is_requeued:
            sys.exit(_REQUEUED)
        if was_interrupted():  # the outcome is a consequence of the signal
            sys.exit(_TERMINATED)
        write_text(self._outcome, json.dumps(asdict(outcome)) + "\n")

    def checkpoint(self) -> Any:
        """The task that submitit requeues: the same one, which skips finished rows."""
        import submitit

        self._is_requeued = True
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
        self._preempted_since: dict[str, float] = {}
        self.tasks = settings.array
        self.processes = settings.array if settings.cluster == "local" else 1

    def start(self, make_worker: MakeWorker, tasks: Sequence[PieceTask]) -> None:
        """See `engines.WorkerPool`: submits one array."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

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
        self._say(f"Cancelling {counted(len(jobs), 'task')}.")
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
        if job.done(force_check=ask):
            return True
        if job.state != "PREEMPTED":  # for submitit a task that will be requeued
            self._preempted_since.pop(job.job_id, None)
            return False
        since = self._preempted_since.setdefault(job.job_id, time.monotonic())
        return time.monotonic() - since > _PREEMPTED_SECONDS

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
        import submitit

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
    import submitit

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
    parameters = {**settings.parameters, "slurm_additional_parameters": {"requeue": True}}
    if "cpus_per_task" in parameters:  # since SLURM 22.05, srun does not inherit it from sbatch
        parameters["slurm_srun_args"] = [f"--cpus-per-task={parameters['cpus_per_task']}"]
    try:
        executor.update_parameters(name="robust", **parameters)
    except (ValueError, NameError, AssertionError) as error:
        raise UsageError("submitit rejected `--slurm`.", str(error), "Change the value.") from error
    return executor


# The value of `--slurm`: KEY=VALUE,...


@dataclass(frozen=True)
class _Setting:
    """A key of `--slurm`: submitit's parameter, the parser of the value, and its meaning."""

    parameter: str | None
    read: Callable[[str], Any]
    meaning: str


def _minutes(text: str) -> int:
    """Minutes of `60`, `1:30:00` (hours) or `2-12:00` (days), as SLURM reads them."""
    parts = _DURATION.fullmatch(text)
    if parts is None:
        raise ValueError(text)
    days, first, second, third = (int(part or 0) for part in parts.groups())
    if parts[1] is not None:
        return days * 1440 + first * 60 + second
    if parts[4] is not None:
        return first * 60 + second + (third > 0)
    return first + (second > 0)


def _at_least(least: int, text: str) -> int:
    if int(text) < least:
        raise ValueError(text)
    return int(text)


_positive, _natural = partial(_at_least, 1), partial(_at_least, 0)
SLURM_SETTINGS: dict[str, _Setting] = {
    "array": _Setting(None, _positive, "tasks of the job array"),
    "partition": _Setting("slurm_partition", str, "partition"),
    "time": _Setting("timeout_min", _minutes, "minutes of a task, or HH:MM:SS"),
    "gpus": _Setting("gpus_per_node", _natural, "GPUs of a task: 0 or 1"),
    "cpus": _Setting("cpus_per_task", _positive, "processor cores of a task"),
    "mem": _Setting("mem_gb", float, "gigabytes of memory of a task"),
    "parallel": _Setting("slurm_array_parallelism", _positive, "tasks that run at the same time"),
    "account": _Setting("slurm_account", str, "account"),
    "qos": _Setting("slurm_qos", str, "quality of service"),
    "constraint": _Setting("slurm_constraint", str, "feature that machines must have"),
    "exclude": _Setting("slurm_exclude", str, "machines to exclude"),
    "cluster": _Setting(None, str, "slurm, or local to test it with processes on this machine"),
}


@dataclass(frozen=True)
class SlurmSettings:
    """Parsed `--slurm`: number of tasks, kind of cluster, and parameters of submitit."""

    array: int
    cluster: str
    parameters: dict[str, Any]

    def in_words(self) -> str:
        """The tasks and where they run, for `--dry-run`."""
        if self.cluster == "local":
            return f"{counted(self.array, 'process', 'processes')} of this machine, without SLURM"
        option_names = {s.parameter: key for key, s in SLURM_SETTINGS.items()}
        shown = [
            f"{option_names[name]}={value}" for name, value in self.parameters.items()
            if name not in ("gpus_per_node", "timeout_min", "slurm_array_parallelism")
        ]  # fmt: skip
        if "cpus_per_task" not in self.parameters:
            shown.append("cpus: SLURM's default, often one core")
        at_once = self.parameters.get("slurm_array_parallelism", self.array)
        device = "a GPU" if self.parameters["gpus_per_node"] else "processor cores"
        return (
            f"a SLURM job array of {counted(self.array, 'task')}, at most "
            f"{min(at_once, self.array)} at the same time, each on {device} for at most "
            f"{counted(self.parameters['timeout_min'], 'minute')} before it is requeued"
            f" ({', '.join(shown)})"
        )


def read_settings(texts: Mapping[str, str], device: str) -> SlurmSettings:
    """Parses `--slurm`; the default of `gpus` is 1, or 0 if `device` is `cpu`.

    Raises:
        UsageError: A key does not exist, or a value is invalid.
    """
    values: dict[str, Any] = {}
    for key, text in texts.items():
        setting = SLURM_SETTINGS.get(key)
        if setting is None:
            suggestions = [f"`{name}`" for name in nearest(key, SLURM_SETTINGS)]
            raise UsageError(
                f"`--slurm {key}=...` does not exist."
                + (f" Did you mean {' or '.join(suggestions)}?" if suggestions else ""),
                "",
                f"Keys: {', '.join(SLURM_SETTINGS)}.",
            )
        try:
            values[key] = setting.read(text)
        except ValueError as error:
            raise UsageError(
                f"`--slurm {key}={text}` is not a valid value of `{key}`.",
                f"`{key}` is: {setting.meaning}.",
                "Write it as in `--slurm partition=gpu,time=60,array=16`.",
            ) from error
    cluster = values.setdefault("cluster", "slurm")
    if cluster not in CLUSTERS or values.get("gpus", 0) > 1:
        wrong = "gpus" if cluster in CLUSTERS else "cluster"
        raise UsageError(
            f"`--slurm {wrong}={texts[wrong]}` is not possible.",
            f"`{wrong}` is: {SLURM_SETTINGS[wrong].meaning}.",
            "A task uses one device; `array` is the number of tasks.",
        )
    values.setdefault("gpus", 0 if device == "cpu" else 1)
    values.setdefault("time", 60)
    parameters = {
        setting.parameter: values[key] for key, setting in SLURM_SETTINGS.items()
        if setting.parameter is not None and key in values
    }  # fmt: skip
    return SlurmSettings(values.get("array", 1), cluster, parameters)
