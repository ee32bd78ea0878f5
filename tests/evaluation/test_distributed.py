"""Any number of workers, processes and ranks gives the rows of one process, computed once."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined,unused-ignore]

from robustcli.core.errors import MachineError, RobustError, RunError, UsageError
from robustcli.core.listener import Silent
from robustcli.core.ranks import Ranks
from robustcli.evaluation import distributed, evaluate
from robustcli.evaluation.distributed import Group, check_ranks_agree, count_devices
from robustcli.evaluation.evaluate import IncompleteRun, run_evaluation
from robustcli.evaluation.record import read_record, read_sessions
from tests.evaluation.photos import PICO, config, make_photos
from tests.evaluation.test_evaluate import contents, small_blocks
from tests.training.test_jobs import free_port

pytestmark = pytest.mark.usefixtures("one_thread")

REPOSITORY = Path(__file__).parents[2]
NAMES = ("fliplr", "additive_gaussian_noise", "affine")
SLOW_PLUGIN = '''
import time

from torch.utils.data import get_worker_info

from robustcli.transforms import transform


@transform()
def slow_one(image, rng, value):
    """Takes longer in one loader worker than in another, as real photos do."""
    worker = get_worker_info()
    time.sleep(0.001 if worker is None else 0.002 + 0.01 * worker.id)
    image[:2] = rng.integers(256)
    return image
'''
DEADLY_PLUGIN = '''
import os
import sys
from pathlib import Path

from robustcli.transforms import transform

MARK = Path(__file__).with_name("killed")


@transform()
def deadly(image, rng, value):
    """Kills one process of another evaluation, once."""
    if "help_first" in str(sys.orig_argv) and not MARK.exists():
        MARK.touch()
        os.kill(os.getpid(), 9)
    return image
'''


def computed_inputs(run):
    """Returns the number of model inputs that all processes of all commands computed."""
    return sum(cost.images for s in read_sessions(run) for cost in s.models.values())


# Number of workers and batch size: smaller than a block, larger than a block, equal to a block.
QUICK = {"model-bound": [(0, 7), (1, 1), (2, 8)], "loader-bound": [(1, 8), (2, 7), (4, 7)]}
CASES = [
    pytest.param(
        workers, batch_size, plugin, id=f"{workers}-{batch_size}-{bound}",
        marks=[] if (workers, batch_size) in QUICK[bound] else pytest.mark.slow,
    )
    for bound, plugin in (("model-bound", None), ("loader-bound", SLOW_PLUGIN))
    for workers in (0, 1, 2, 4)
    for batch_size in (1, 7, 8)
]  # fmt: skip


@pytest.fixture(scope="module")
def rows_of_one_process(photos, tmp_path_factory):
    """Returns the row files of a single process, computed once per plugin and batch size."""
    row_files = {}

    def rows(names, changes):
        key = (names, changes["batch_size"])
        if key not in row_files:
            out = tmp_path_factory.mktemp("alone") / "run"
            row_files[key] = contents(run_evaluation(config(photos, out, *names, **changes)))
        return row_files[key]

    return rows


@pytest.mark.parametrize(("workers", "batch_size", "plugin"), CASES)
def test_workers_and_batches_change_nothing(
    photos, rows_of_one_process, tmp_path, monkeypatch, workers, batch_size, plugin
):
    small_blocks(monkeypatch, 8)
    names, changes = NAMES[:1], {"batch_size": batch_size}
    if plugin is not None:
        (tmp_path / "slow.py").write_text(plugin)
        names, changes = ("slow_one",), changes | {"plugins": (tmp_path / "slow.py",)}
    run = run_evaluation(config(photos, tmp_path / "run", *names, workers=workers, **changes))
    assert contents(run) == rows_of_one_process(names, changes)
    assert len(contents(run)) == 2 * 2 * 4
    assert computed_inputs(run) == 2 * 28
    assert read_record(run).status == "complete"


@pytest.mark.parametrize("workers", [0, 3])
def test_batches_larger_than_the_usual_block(photos, tmp_path, monkeypatch, workers):
    """On CUDA a batch is as large as a block; images were once lost there."""
    small_blocks(monkeypatch, 4)
    settings = config(photos, tmp_path / "run", *NAMES, batch_size=9, workers=workers)
    run = run_evaluation(settings)
    assert computed_inputs(run) == 4 * 28
    assert read_record(run).block_size == 9
    assert read_record(run).status == "complete"


def trained_config(*args, **changes):
    """Uses the bundled weights: threads share the generator of random weights."""
    return config(*args, **{"models": (replace(PICO, untrained=False),), **changes})


def in_threads(configs, run=run_evaluation):
    """Calls `run` with `configs` as ranks of one group; returns the errors by rank."""
    messages, world, raised = HashStore(), len(configs), {}

    def work(rank):
        group = Group(Ranks(rank, world, rank, world), messages)
        try:
            run(configs[rank], Silent(), group)
        except (RobustError, SystemExit) as error:
            raised[rank] = error

    threads = [
        threading.Thread(target=work, args=(rank,), name=f"rank {rank}") for rank in range(world)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a rank does not return"
    return raised


def test_ranks_share_the_work(photos, tmp_path, monkeypatch):
    world = 3  # two: test_devices_are_processes_that_share_the_run
    small_blocks(monkeypatch, 8)
    expected_rows = run_evaluation(trained_config(photos, tmp_path / "plain", *NAMES))
    run = tmp_path / "run"
    assert in_threads([trained_config(photos, run, *NAMES)] * world) == {}
    assert contents(run) == contents(expected_rows)
    assert computed_inputs(run) == computed_inputs(expected_rows) == 4 * 28
    assert len(read_sessions(run)) == world


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": (PICO,)}, "in: models or weights"),
        ({"limit": 5}, "in: images"),
        ({"transforms": ("invert",)}, "in: transforms"),
        ({"seed": 1}, "in: settings"),
    ],
)
def test_a_rank_that_would_compute_something_else_is_refused(photos, tmp_path, changes, message):
    rank_config = trained_config(photos, tmp_path / "run")
    raised = in_threads([rank_config, replace(rank_config, **changes)])
    assert isinstance(raised[0], UsageError)
    assert "Process 1 of 2" in str(raised[0])
    assert message in str(raised[0])
    assert isinstance(raised[1], SystemExit)
    assert raised[1].code == 2
    assert not (tmp_path / "run").exists()


def test_a_folder_that_the_ranks_do_not_share_is_refused_at_the_start(
    photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(distributed, "SIGHT_SECONDS", 0.2)
    settings = [trained_config(photos, tmp_path / folder / "run") for folder in "ab"]
    raised = in_threads(settings)
    assert isinstance(raised[0], MachineError)
    assert "is not the same folder in all processes.\nProcess 1 of 2 (" in str(raised[0])
    assert isinstance(raised[1], SystemExit)
    assert raised[1].code == 3
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "run.json", "000001.json"
    }  # fmt: skip
    assert not (tmp_path / "b").exists()


def test_a_folder_may_show_the_files_of_other_machines_late(tmp_path, monkeypatch):
    real, looks = Path.iterdir, []

    def late(path):
        looks.append(path)
        return real(path) if len(looks) > 3 else iter(())

    monkeypatch.setattr(Path, "iterdir", late)
    checks = [tmp_path / "run"] * 2
    assert in_threads(checks, lambda folder, _, group: group.check_shared(folder)) == {}
    assert len(looks) == 4
    assert list(real(tmp_path / "run")) == []


def test_other_versions_are_refused(photos, tmp_path, monkeypatch):
    versions = iter([{"torch": "2.6.0"}, {"torch": "2.14.1"}])
    monkeypatch.setattr("robustcli.evaluation.look_up.versions", lambda: next(versions))
    raised = in_threads([trained_config(photos, tmp_path / "run")] * 2)
    assert "in: package versions" in str(raised[0])
    assert "`torch`: 2." in str(raised[0])


def test_ranks_on_several_machines_agree():
    """Host names may differ between ranks, because they are used in messages only."""
    settings = {rank: {"host": f"node{rank}", "settings": {"seed": 0}} for rank in range(2)}
    check_ranks_agree(settings)
    with pytest.raises(UsageError, match=r"Process 1 of 2 \(node1\) differs .* in: settings"):
        check_ranks_agree(settings | {1: {"host": "node1", "settings": {"seed": 1}}})


def test_a_rank_without_the_plugin_file_is_named(photos, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_PLUGIN)
    rank_config = trained_config(
        photos, tmp_path / "run", "slow_one", plugins=(tmp_path / "slow.py",)
    )
    raised = in_threads([rank_config, replace(rank_config, plugins=(tmp_path / "none.py",))])
    assert isinstance(raised[1], UsageError)
    assert type(raised[0]) is UsageError
    assert "Process 1 of 2" in str(raised[0])
    assert "none.py" in str(raised[0])


def test_unreadable_images_are_counted_over_all_ranks(tmp_path, monkeypatch):
    small_blocks(monkeypatch, 8)
    folder = make_photos(tmp_path / "photos", per_class=7)
    for name in ("airplane/0", "ship/0"):
        (folder / f"{name}.png").write_bytes(b"no picture")
    rank_config = trained_config(folder, tmp_path / "run", allow_unreadable=0.05)
    raised = in_threads([rank_config, rank_config])
    assert "2 images cannot be read; the limit is 1" in str(raised[0])
    run = run_evaluation(replace(rank_config, allow_unreadable=0.1))
    assert read_record(run).status == "complete"


def test_a_piece_that_nobody_computed_is_missed(photos, tmp_path, monkeypatch):
    small_blocks(monkeypatch, 8)
    real = evaluate.share_of
    monkeypatch.setattr(evaluate, "share_of", lambda *a: real(*a)[:-1])
    settings = config(photos, tmp_path / "run", *NAMES)
    with pytest.raises(IncompleteRun, match=r"partial: 16 of 112 predictions are missing") as error:
        run_evaluation(settings)
    assert "The same command computes only the missing predictions" in str(error.value)
    assert "4 of `vmamba-pico` under identity" in str(error.value)
    assert error.value.run == tmp_path / "run"
    assert read_record(tmp_path / "run").status == "partial"
    monkeypatch.undo()
    small_blocks(monkeypatch, 8)
    run = run_evaluation(settings)
    assert computed_inputs(run) == 4 * 28
    assert read_record(run).status == "complete"


@pytest.fixture(scope="module")
def expected_rows(photos, tmp_path_factory):
    return run_evaluation(config(photos, tmp_path_factory.mktemp("plain") / "run", *NAMES))


def test_devices_are_processes_that_share_the_run(photos, expected_rows, tmp_path):
    """Uses real processes and blocks of 128 images, so that cells of one block are distributed."""
    run = evaluate.evaluate(config(photos, tmp_path / "run", *NAMES, devices=2, workers=1))
    assert contents(run) == contents(expected_rows)
    assert computed_inputs(run) == 4 * 28
    assert len(read_sessions(run)) == 2


SILENT_PLUGIN = """
import threading

from robustcli.evaluation import distributed
from robustcli.transforms import transform


@transform()
def deadly(image, rng, value):
    if threading.current_thread().name == "rank 1":
        distributed.RANK_SILENCE_SECONDS = 0.2
        raise RuntimeError
    return image
"""


def test_a_rank_that_dies_leaves_a_partial_run_that_one_process_completes(
    photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(distributed, "RANK_SILENCE_SECONDS", 60.0)  # until the plugin changes it
    monkeypatch.setattr(Group, "_fail", lambda self, error: None)  # without a last message
    small_blocks(monkeypatch, 8)
    (tmp_path / "deadly.py").write_text(SILENT_PLUGIN)
    settings = trained_config(
        photos, tmp_path / "run", "deadly", *NAMES, plugins=(tmp_path / "deadly.py",)
    )
    raised = in_threads([settings] * 2)
    assert isinstance(raised[0], IncompleteRun)
    assert "of 2 ended without an error message" in str(raised[0])
    assert read_record(tmp_path / "run").status == "partial"
    kept_rows = contents(tmp_path / "run")
    run = run_evaluation(settings)
    assert kept_rows.items() < contents(run).items()
    assert contents(run) == contents(run_evaluation(replace(settings, out=tmp_path / "plain")))


RESTARTING_PLUGIN = """
import threading
from datetime import UTC, datetime
from pathlib import Path

from robustcli.evaluation.record import EVALUATION
from robustcli.transforms import transform


@transform()
def restarting(image, rng, value):
    if threading.current_thread().name == "rank 1":
        EVALUATION.update(Path(__file__).with_name("run"), created=datetime.now(UTC))
    return image
"""


def test_a_rank_writes_nothing_into_a_run_that_was_restarted(photos, tmp_path, monkeypatch):
    """If only the first process is killed, the others may still work."""
    small_blocks(monkeypatch, 32)
    (tmp_path / "restarting.py").write_text(RESTARTING_PLUGIN)
    settings = trained_config(
        photos, tmp_path / "run", "restarting", plugins=(tmp_path / "restarting.py",)
    )
    raised = in_threads([settings] * 2)
    assert "Process 1 of 2" in str(raised[0])
    assert "was started again by another command" in str(raised[1])
    assert not [name for name in contents(tmp_path / "run") if "restarting" in name]


@pytest.mark.slow  # starts a process; the test above is the same with threads
def test_a_killed_process_leaves_a_partial_run_that_one_process_completes(photos, tmp_path):
    (tmp_path / "deadly.py").write_text(DEADLY_PLUGIN)
    settings = config(
        photos, tmp_path / "run", "deadly", *NAMES, plugins=(tmp_path / "deadly.py",), devices=2
    )
    with pytest.raises(IncompleteRun, match="of 2 ended without an error message"):
        evaluate.evaluate(settings)
    assert read_record(tmp_path / "run").status == "partial"
    kept_rows = contents(tmp_path / "run")
    run = evaluate.evaluate(replace(settings, devices=None))
    assert kept_rows.items() < contents(run).items()
    assert contents(run) == contents(
        run_evaluation(replace(settings, out=tmp_path / "plain", devices=None))
    )


def torchrun(photos, out, world, *options, restarts=0):
    """Runs the command with torchrun and real ranks."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(world), "--max-restarts", str(restarts), "-m", "robustcli", "eval", "--model",
         "vmamba-pico", "--untrained", "--data", str(photos), "--out", str(out), "--device", "cpu",
         "--batch-size", "4", "--workers", "0", "--json",
         *(argument for name in NAMES for argument in ("--transform", name)), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=REPOSITORY, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_torchrun_shares_the_run_and_one_process_tells(photos, expected_rows, tmp_path):
    process = torchrun(photos, tmp_path / "run", 2)
    assert process.returncode == 0, process.stderr
    assert contents(tmp_path / "run") == contents(expected_rows)
    assert len(json.loads(process.stdout)) == 4
    assert computed_inputs(tmp_path / "run") == 4 * 28
    assert process.stderr.count("predictions, done in") == 1


@pytest.fixture(scope="module")
def deadly_rows(photos, tmp_path_factory):
    """Returns the row files under all transforms including `deadly`, without a killed process."""
    folder = tmp_path_factory.mktemp("deadly")
    (folder / "deadly.py").write_text(DEADLY_PLUGIN)
    settings = config(
        photos, folder / "run", *NAMES, "deadly", plugins=(folder / "deadly.py",)
    )  # fmt: skip
    return contents(run_evaluation(settings))


def write_deadly_plugin(rank, variable, folder):
    """Writes a transform that kills the process with number `rank` once."""
    condition = f'os.environ.get("{variable}") == "{rank}"'
    (folder / "deadly.py").write_text(
        DEADLY_PLUGIN.replace('"help_first" in str(sys.orig_argv)', condition)
    )
    return folder / "deadly.py"


@pytest.mark.slow  # nine interpreters; test_a_rank_that_dies_leaves_a_partial_run always runs
@pytest.mark.parametrize("killed", [0, 1])
def test_torchrun_restarts_a_killed_rank(photos, deadly_rows, tmp_path, killed):
    plugin = write_deadly_plugin(killed, "RANK", tmp_path)
    process = torchrun(
        photos, tmp_path / "run", 3, "--transform", "deadly", "--plugin", str(plugin), restarts=1
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "killed").exists()
    assert read_record(tmp_path / "run").status == "complete"
    assert contents(tmp_path / "run") == deadly_rows


SRUN = """
import sys
from robustcli.cli import main
from robustcli.evaluation import distributed
distributed.RANK_SILENCE_SECONDS = 5.0
sys.exit(main())
"""


def srun(photos, out, plugin, counts="3"):
    """Returns exit codes and output of three tasks with the environment of plain `srun`."""
    port = str(free_port())
    job = {
        "SLURM_NTASKS": "3", "SLURM_STEP_TASKS_PER_NODE": counts, "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "robust", "SLURM_STEP_NODELIST": "127.0.0.1",
        "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    names = (argument for name in (*NAMES, "deadly") for argument in ("--transform", name))
    command = [
        sys.executable, "-c", SRUN, "eval", "--model", "vmamba-pico", "--untrained", "--data",
        str(photos), "--out", str(out), "--device", "cpu", "--batch-size", "4", "--workers", "0",
        "--plugin", str(plugin), *names,
    ]  # fmt: skip
    tasks = [
        subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank),
                 "SLURM_NODEID": "0"},
        )
        for rank in range(3)
    ]  # fmt: skip
    outputs = [task.communicate(timeout=400)[0] for task in tasks]
    return [(task.returncode, text) for task, text in zip(tasks, outputs, strict=True)]


@pytest.mark.slow  # six interpreters; test_a_rank_that_dies_leaves_a_partial_run always runs
def test_plain_srun_shares_the_run_and_a_killed_task_is_named(photos, deadly_rows, tmp_path):
    plugin = write_deadly_plugin(1, "SLURM_PROCID", tmp_path)
    (first, first_output), (killed, _), (third, third_output) = srun(
        photos, tmp_path / "run", plugin
    )
    assert (first, killed, third) == (1, -9, 0), first_output + third_output
    assert "Process 1 of 3 ended without an error message" in first_output
    assert third_output == ""
    kept_rows = contents(tmp_path / "run")
    assert kept_rows.items() < deadly_rows.items()
    results = srun(photos, tmp_path / "run", plugin)
    assert [code for code, _ in results] == [0, 0, 0], results
    assert contents(tmp_path / "run") == deadly_rows


def test_more_devices_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="`--devices 3` is more than the devices of this machine"):
        count_devices(3, "auto")
    assert count_devices("all", "auto") == 1
    assert count_devices(3, "cpu") == 3
    assert count_devices(None, "auto") == 1
    with pytest.raises(UsageError, match="contradict each other"):
        count_devices(2, "cuda:1")


def test_each_rank_has_the_device_of_its_number(monkeypatch):
    from robustcli.evaluation.device import choose_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", Ranks(3, 4, 1, 2)) == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="one device for 2 processes"):
        choose_device("cuda:0", Ranks(3, 4, 1, 2))
    with pytest.raises(UsageError, match="for process 2 of 3"):
        choose_device("auto", Ranks(2, 3, 2, 3))


def test_nobody_waits_for_a_rank_that_gives_no_sign_of_life(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "RANK_SILENCE_SECONDS", 1.0)
    group = Group(Ranks(0, 2, 0, 2), HashStore())
    with pytest.raises(RunError, match="Process 1 of 2 ended without an error message"):
        run_evaluation(config(photos, tmp_path / "run", models=(PICO,)), group=group)
