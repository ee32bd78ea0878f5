"""Engines: workers compute the pieces of a plan once each and write the rows of one process."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from robustcli.core.errors import MachineError, RunError, UsageError
from robustcli.core.io import write_text
from robustcli.core.listener import Silent
from robustcli.core.machine import versions
from robustcli.core.objects import ObjectStore
from robustcli.core.working_copy import opened
from robustcli.evaluation import engines
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.engines import (
    PieceTask,
    PoolForecast,
    TaskOutcome,
    TaskRunner,
    deal,
    engine_of,
)
from robustcli.evaluation.evaluate import IncompleteRun, PieceWorker, run_evaluation
from robustcli.evaluation.forecast import forecast
from robustcli.evaluation.plan import EvaluationPlan
from robustcli.evaluation.record import EVALUATION, read_record, read_sessions
from robustcli.evaluation.slurm_engine import ArrayTask, SlurmPool, read_settings
from robustcli.evaluation.store import Store
from robustcli.transforms.base import Cell
from tests.evaluation.photos import config
from tests.evaluation.test_distributed import computed_inputs
from tests.evaluation.test_evaluate import contents, small_blocks

NAMES = ("fliplr", "additive_gaussian_noise", "affine")


class InProcessPool:
    """Workers in this process that exchange pickled data as remote workers do.

    `dies` contains the runs of tasks, counted from 0, before which a worker dies.
    """

    def __init__(self, tasks: int, dies: Sequence[int]) -> None:
        self.tasks, self.processes = tasks, 1
        self.dies, self.runs, self.queue = set(dies), 0, list[tuple[Any, PieceTask]]()
        self.attempts = Counter[int]()
        self.closed = False

    def start(self, make_worker: Callable[[], PieceWorker], tasks: Sequence[PieceTask]) -> None:
        self.queue += [(pickle.dumps(make_worker), task) for task in tasks]

    def ended(self) -> list[tuple[PieceTask, TaskOutcome]]:
        make_worker, task = self.queue.pop(0)
        number, self.runs = self.runs, self.runs + 1
        self.attempts[task.number] += 1
        if number in self.dies:
            return [(task, TaskOutcome("node7", death="The node is gone."))]
        pieces = pickle.loads(pickle.dumps(task.as_plain()))
        return [(task, TaskRunner(pickle.loads(make_worker)).run(pieces))]


class InProcessEngine:
    name = "here"

    def __init__(self, tasks: int = 3, dies: Sequence[int] = (), device: str = "cpu") -> None:
        self.device = device
        self.workers = InProcessPool(tasks, dies)

    def forecast(self) -> PoolForecast:
        return PoolForecast("in this process", self.workers.tasks)

    @contextmanager
    def pool(self, run: Path, say: Callable[[str], None]) -> Iterator[InProcessPool]:
        try:
            yield self.workers
        finally:
            self.workers.closed = True


@pytest.fixture(scope="module")
def expected_rows(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Returns the row files of one process, in blocks of eight."""
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, 8)
        return contents(
            run_evaluation(config(photos, tmp_path_factory.mktemp("plain") / "run", *NAMES))
        )


def test_an_engines_workers_write_the_rows_of_one_process(
    photos: Path, expected_rows: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch, 8)
    monkeypatch.chdir(tmp_path)
    engine = InProcessEngine()
    run = run_evaluation(config(photos, Path("run"), *NAMES), engine=engine)
    assert contents(run) == expected_rows
    assert computed_inputs(run) == 4 * 28
    assert len(read_sessions(run)) == engine.workers.runs == 3
    assert engine.workers.closed
    record = read_record(run)
    assert record.status == "complete"
    assert record.device == read_sessions(run)[0].device
    second_engine = InProcessEngine()
    run_evaluation(config(photos, Path("run"), *NAMES), engine=second_engine)
    assert second_engine.workers.runs == 0


@pytest.mark.parametrize(("tasks", "apply_at"), [(3, "crop"), (100, "original")])
def test_a_dry_run_announces_the_tasks_of_the_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int, apply_at: Any
) -> None:
    small_blocks(monkeypatch, 8)
    monkeypatch.setattr("robustcli.evaluation.forecast._seconds_per_image", lambda *_: 0.0)
    settings = config(photos, tmp_path / "run", *NAMES, apply_at=apply_at)

    def announced(**changes: Any) -> tuple[int, int]:
        with monkeypatch.context() as patch:
            patch.setattr(
                "robustcli.evaluation.forecast.engine_of", lambda _: InProcessEngine(tasks)
            )
            plan = forecast(replace(settings, **changes), Silent())
        assert plan.engine is not None
        assert "Engine:      here: in this process\nTasks:  " in plan.as_text()
        assert json.loads(plan.as_json())["engine"]["name"] == "here"
        return plan.engine.tasks, plan.engine.largest_task

    started = list[tuple[int, int]]()
    start = InProcessPool.start

    def counted(self: InProcessPool, make_worker: Any, given: Sequence[PieceTask]) -> None:
        sizes = [sum(piece.forwards for piece in task.pieces) for task in given]
        started.append((len(given), max(sizes)))
        start(self, make_worker, given)

    monkeypatch.setattr(InProcessPool, "start", counted)
    expected = announced()
    assert not (tmp_path / "run").exists()
    dies = (0, expected[0], expected[0] + 1)  # each worker of the first task
    with pytest.raises(IncompleteRun):
        run_evaluation(settings, engine=InProcessEngine(tasks, dies=dies))
    assert started[0] == expected
    rest = announced()
    assert rest[1] < expected[1] or rest[0] < expected[0]
    run_evaluation(settings, engine=InProcessEngine(tasks))
    assert started[-1] == rest
    assert announced() == (0, 0)
    assert announced(fresh=True) == expected


class PoolElsewhere(InProcessPool):
    """Workers whose files this process does not see as its own, like those of other processes."""

    def __init__(self, place: ObjectStore, tasks: int) -> None:
        super().__init__(tasks, ())
        self.place, self.before = place, list[int]()

    def ended(self) -> list[tuple[PieceTask, TaskOutcome]]:
        deadline = time.monotonic() + 60
        while (rows := self.rows()) < 8 * self.runs and time.monotonic() < deadline:
            time.sleep(0.01)
        self.before.append(rows)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("robustcli.core.io._OBSERVERS", [])
            return super().ended()

    def rows(self) -> int:
        """Number of row files in the store."""
        return sum("block-" in name for name in self.place.listed())


def test_rows_reach_an_object_store_while_workers_compute(
    photos: Path, expected_rows: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four tasks of eight files: predictions and inputs of four blocks under one transform."""
    small_blocks(monkeypatch, 8)
    place, engine = ObjectStore(f"memory://{uuid.uuid4().hex}/run"), InProcessEngine()
    engine.workers = PoolElsewhere(place, tasks=4)
    with opened(place.url, tmp_path / "home", [].append, "work") as folder:
        run = run_evaluation(config(photos, folder, *NAMES), engine=engine)
        (run / "slurm").mkdir()
        write_text(run / "slurm" / "1_submitted.pkl", "code")
    assert engine.workers.before == [0, 8, 16, 24]
    stored = {name: place.read(name) for name in place.listed()}
    assert {
        name: hashlib.sha256(stored[name]).hexdigest() for name in expected_rows
    } == expected_rows
    assert not any(name.startswith("slurm/") for name in stored)
    assert json.loads(stored["run.json"])["status"] == "complete"


def test_the_job_array_in_words() -> None:
    text = {"partition": "gpu", "time": "1:30:00", "array": "16", "parallel": "4"}
    assert read_settings(text, "auto").in_words() == (
        "a SLURM job array of 16 tasks, at most 4 at the same time, each on a GPU for at most 90 "
        "minutes before it is requeued (partition=gpu, cpus: SLURM's default, often one core)"
    )
    assert (
        read_settings({**text, "cpus": "8"}, "auto")
        .in_words()
        .endswith("requeued (partition=gpu, cpus=8)")
    )
    local = read_settings({"cluster": "local", "array": "2"}, "cpu")
    assert local.in_words() == "2 processes of this machine, without SLURM"


def test_the_task_of_a_dead_worker_goes_to_another_one(
    photos: Path, expected_rows: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch, 8)
    engine = InProcessEngine(dies=(0, 2))
    run = run_evaluation(config(photos, tmp_path / "run", *NAMES), engine=engine)
    assert contents(run) == expected_rows
    assert computed_inputs(run) == 4 * 28
    assert sorted(engine.workers.attempts.values()) == [1, 2, 2]


def test_a_task_that_ends_every_worker_is_given_up_and_the_others_are_kept(
    photos: Path, expected_rows: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch, 8)
    settings = config(photos, tmp_path / "run", *NAMES)
    engine = InProcessEngine(tasks=2, dies=(0, 2, 3))
    with pytest.raises(IncompleteRun, match="3 workers ended while computing task 1 of 2") as error:
        run_evaluation(settings, engine=engine)
    assert "The node is gone." in str(error.value)
    assert read_record(tmp_path / "run").status == "partial"
    assert 0 < len(contents(tmp_path / "run")) < len(expected_rows)
    run_evaluation(settings, engine=InProcessEngine())
    assert contents(tmp_path / "run") == expected_rows
    assert computed_inputs(tmp_path / "run") == 4 * 28


def test_a_worker_that_would_compute_something_else_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_enter, wrong_versions = engines.WorkerAssignment.enter, {**versions(), "torch": "1.0"}

    def enter(assignment: engines.WorkerAssignment) -> None:
        monkeypatch.setattr("robustcli.evaluation.look_up.versions", lambda: wrong_versions)
        real_enter(assignment)

    monkeypatch.setattr(engines.WorkerAssignment, "enter", enter)
    engine = InProcessEngine()
    with pytest.raises(UsageError, match=r"differs from .* in: package versions") as error:
        run_evaluation(config(photos, tmp_path / "run"), engine=engine)
    assert "`torch`: 1.0 instead of" in str(error.value)
    assert engine.workers.closed
    assert engine.workers.attempts == {0: 1}, "no retry: other workers have the same versions"


def test_a_worker_writes_nothing_into_a_run_that_was_restarted(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that a killed command has left in a queue start later and do this."""
    settings = config(photos, tmp_path / "run")
    late_results: list[tuple[Any, Any]] = []
    real = InProcessPool.start

    def start(
        self: InProcessPool, make_worker: Callable[[], PieceWorker], tasks: list[PieceTask]
    ) -> None:
        late_results.append((make_worker, tasks[0].as_plain()))
        real(self, make_worker, tasks)

    monkeypatch.setattr(InProcessPool, "start", start)
    with pytest.raises(IncompleteRun):
        run_evaluation(settings, engine=InProcessEngine(tasks=1, dies=(0, 1, 2)))
    worker = late_results[0][0]()
    run_evaluation(replace(settings, fresh=True, transforms=("invert",)))
    rows_of_new_run = contents(tmp_path / "run")
    with pytest.raises(RunError, match="was started again by another command"):
        worker.compute(late_results[0][1])
    assert contents(tmp_path / "run") == rows_of_new_run


def test_a_folder_that_a_worker_does_not_have_is_an_error(photos: Path, tmp_path: Path) -> None:
    assignment = engines.WorkerAssignment(config(photos, tmp_path / "elsewhere"), "{}", {})
    outcome = TaskRunner(lambda: PieceWorker(assignment)).run([])
    assert outcome.error is not None
    assert outcome.error["kind"] == "MachineError"
    assert "that all machines share" in outcome.error["todo"]


def test_errors_of_libraries_are_left_to_other_workers() -> None:
    def make_worker() -> PieceWorker:
        raise ValueError("CUDA error: uncorrectable ECC error encountered")

    outcome = TaskRunner(make_worker).run([])
    assert outcome.error is None
    assert outcome.death == "ValueError: CUDA error: uncorrectable ECC error encountered"


@pytest.mark.parametrize("tasks", [1, 2, 3, 16, 100])
def test_every_piece_is_distributed_once(tmp_path: Path, tasks: int) -> None:
    cells = tuple(Cell(name, 0) for name in "abcde")
    images: Any = tuple(f"image {number}" for number in range(21))
    plan = EvaluationPlan(Store(tmp_path), images, cells, ("one", "two"), ("view",), 4)
    tasks_of_workers = deal(plan.missing(), tasks)
    assert len(tasks_of_workers) <= tasks
    item_counts = Counter(
        (piece.block, cell, model)
        for task in tasks_of_workers for piece in task.pieces for cell in piece.cells
        for model in piece.models[cell]
    )  # fmt: skip
    assert set(item_counts.values()) == {1}
    assert len(item_counts) == 6 * len(cells) * 2
    assert deal((), tasks) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slurm": {"array": "2"}}, "`--slurm` can only be used with `--engine slurm`"),
        ({"address": "h:1", "engine": "slurm"}, "`--address` can only be used with `--engine ray`"),
    ],
)
def test_options_of_another_engine_are_refused(
    changes: dict[str, Any], message: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        engine_of(config(photos, tmp_path, **changes))


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named_with_its_extra(
    engine: Any, package: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MachineError, match=f"needs the package `{package}`") as error:
        engine_of(config(photos, tmp_path, engine=engine))
    assert f"robustcli[{engine}]" in str(error.value)


def test_an_engine_and_a_launcher_contradict_each_other(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 MASTER_ADDR=h MASTER_PORT=1"
    for name, value in (assignment.split("=") for assignment in job.split()):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="`--engine ray` contradicts the launcher"):
        engine_of(config(photos, tmp_path, engine="ray"))


def test_the_command_plans_on_the_cpu_for_workers_with_gpus(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    messages: list[str] = []
    config_cuda: EvalConfig = config(photos, tmp_path, device="cuda")
    assert engines.leading(config_cuda, messages.append).device == "cpu"
    assert "planning runs on the CPU" in messages[0]
    assert engines.leading(replace(config_cuda, device="auto"), messages.append).device == "auto"
    engine = InProcessEngine(device="cuda")
    with pytest.raises(UsageError, match=r"Worker on .*: `--device cuda` is not available"):
        run_evaluation(replace(config_cuda, out=tmp_path / "run", device="cpu"), engine=engine)


def test_settings_of_slurm_by_submitits_names() -> None:
    text = {"partition": "gpu", "time": "60", "array": "16", "mem": "32", "exclude": "n1,n2"}
    settings = read_settings(text, "auto")
    assert (settings.array, settings.cluster) == (16, "slurm")
    assert settings.parameters == {
        "slurm_partition": "gpu", "timeout_min": 60, "mem_gb": 32.0, "slurm_exclude": "n1,n2",
        "gpus_per_node": 1,
    }  # fmt: skip
    assert read_settings({}, "cpu").parameters["gpus_per_node"] == 0


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30:00", 90), ("2-0", 2880), ("1-12:30", 2190), ("5:00", 5), ("0:30", 1)],
)
def test_times_of_slurm_are_minutes(text: str, minutes: int) -> None:
    """Formats of `man sbatch`: minutes, minutes:seconds, hours:minutes:seconds, days-hours."""
    assert read_settings({"time": text}, "cpu").parameters["timeout_min"] == minutes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partion": "gpu"}, "Did you mean `partition`"),
        ({"array": "0"}, "`--slurm array=0` is not a valid value"),
        ({"time": "soon"}, "`--slurm time=soon` is not a valid value"),
        ({"gpus": "2"}, "`--slurm gpus=2` is not possible"),
        ({"cluster": "kubernetes"}, "`--slurm cluster=kubernetes` is not possible"),
    ],
)
def test_wrong_settings_of_slurm_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_settings(settings, "cpu")


def test_a_preemption_in_the_code_of_a_user_is_no_error_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitit's signal handler requeues the task and raises SystemExit wherever it interrupts."""
    helpers = SimpleNamespace(DelayedSubmission=lambda task: task)
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(helpers=helpers))
    preemptions = ["the first attempt"]

    class Preempted:
        def compute(self, pieces: Sequence[Any]) -> None:
            if preemptions:
                preemptions.pop()
                task.checkpoint()
                raise RunError("The transform failed.", "Its function raised SystemExit.")

    outcome = tmp_path / "outcome.json"
    task = ArrayTask(Preempted, (), outcome)
    with pytest.raises(SystemExit):
        task()
    assert not outcome.exists()
    task()
    assert json.loads(outcome.read_text())["error"] is None


def test_the_folder_of_slurm_belongs_to_the_run(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "mine").mkdir()
    EVALUATION.discard(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


class _Call:
    """A call of a simulated actor of Ray; `machine` is where it runs."""

    def __init__(self, machine: list[bool], answer: object) -> None:
        self.machine, self.answer = machine, answer

    def remote(self, *_: object) -> _Call:
        return _Call(self.machine, self.answer)  # each call has its own reference


class _Actor:
    def __init__(self, machine: list[bool]) -> None:
        self.ready, self.run = _Call(machine, "host"), _Call(machine, TaskOutcome("host"))


def test_idle_actors_of_a_dead_machine_do_not_use_up_the_attempts_of_a_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine with four actors dies while all are idle; another machine has one actor."""

    class RayError(Exception):
        pass

    def get(call: _Call) -> object:
        if not call.machine[0]:
            raise RayError("The actor died.")
        return call.answer

    def wait(calls: list[_Call], **_: object) -> tuple[list[_Call], list[_Call]]:
        return calls, []

    nodes = [{"Alive": True, "Resources": {"CPU": 4}}, {"Alive": True, "Resources": {"CPU": 1}}]
    alive, dead = [True], [True]
    actors = iter([*(_Actor(dead) for _ in range(4)), _Actor(alive)])
    library: Any = ModuleType("ray")
    library.exceptions = ModuleType("ray.exceptions")
    library.exceptions.RayError = RayError
    library.get, library.wait, library.nodes = get, wait, lambda: nodes
    library.cluster_resources = lambda: {"CPU": 5}
    library.kill = lambda actor: None
    library.remote = lambda **_: lambda _: SimpleNamespace(remote=lambda _: next(actors))
    monkeypatch.setitem(sys.modules, "ray", library)
    monkeypatch.setitem(sys.modules, "ray.exceptions", library.exceptions)
    monkeypatch.delitem(sys.modules, "robustcli.evaluation.ray_engine", raising=False)
    pool = import_module("robustcli.evaluation.ray_engine").RayPool(
        EvalConfig((), (), device="cpu"), lambda _: None
    )
    monkeypatch.delitem(sys.modules, "robustcli.evaluation.ray_engine")
    tasks = [PieceTask(number, ()) for number in range(5)]
    pool.start(lambda: None, tasks)
    assert pool.ended() == []  # the actors start
    ended = pool.ended()
    assert [task.number for task, _ in ended] == [0, 1, 2, 3, 4]
    pool.start(lambda: None, tasks[:1])
    dead[0] = False
    nodes.pop(0)
    deaths = 0
    for _ in range(10):
        for task, outcome in pool.ended():
            if outcome.death is None:
                pool.close()
                assert deaths <= 1
                return
            deaths += 1
            pool.start(lambda: None, [task])
    pytest.fail("the task was not computed")


class TerminatedWorker:
    """Receives SIGTERM with its loader process, whose error it raises."""

    def compute(self, pieces: Sequence[Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise RunError("A loader process ended.")


def test_a_terminated_task_has_no_outcome(tmp_path: Path) -> None:
    """SLURM requeues it; an error as its outcome would cancel all tasks of the command."""
    before = signal.getsignal(signal.SIGTERM)
    task = ArrayTask(TerminatedWorker, ["piece"], tmp_path / "outcome.json")
    with pytest.raises(SystemExit) as ending:
        task()
    assert ending.value.code == 128 + signal.SIGTERM
    assert not (tmp_path / "outcome.json").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_preempted_job_that_is_not_requeued_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """With PreemptMode=CANCEL this state is the last one; submitit takes it for a requeued job."""
    states = ["RUNNING", "PREEMPTED", "PENDING", "PREEMPTED", "PREEMPTED"]
    job: Any = SimpleNamespace(job_id="7", state="", done=lambda force_check: False)
    pool: Any = SimpleNamespace(_query_time=float("inf"), _preempted_since={})
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    ended = []
    for state in states:
        now += 120
        job.state = state
        ended.append(SlurmPool._is_done(pool, job))
    assert ended == [False, False, False, False, False]
    now += 120
    assert SlurmPool._is_done(pool, job)
