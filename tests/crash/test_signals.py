"""SIGTERM and Ctrl+C during every command: exit code 130, no leftovers, and resuming.

Each test starts a real process, waits until its work has started, and sends the signal: to the
process only, as `kill` and Kubernetes do, or to its process group, as a terminal and SLURM do.
Slow: `make test-long` runs them. In every run of the suite, tests/cli/test_main.py tests the exit
code and tests/training/test_seed_runs.py a training that SIGTERM ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.crash.test_crashes import ROBUST, finish_command, results
from tests.training.images import write_pairs, write_photos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHARED = Path("/dev/shm")
MINUTES = 600.0  # enough for a busy machine


@dataclass(frozen=True)
class Case:
    """A command and the moment at which it is stopped.

    Args:
        arguments: Without `--out`; `{pairs}`, `{photos}` and `{run}` are folders of the tests.
        in_the_middle: Tests with output folder and process whether the work has started.
        has_out: Whether the command takes `--out`.
    """

    arguments: tuple[str, ...]
    in_the_middle: Callable[[Path, psutil.Process], bool]
    has_out: bool = True


def has_file(pattern: str, out: Path, process: psutil.Process) -> bool:
    """Returns a test for a file of that pattern in the output."""
    return any(out.glob(pattern))


def has_loaded(library: str, out: Path, process: psutil.Process) -> bool:
    """Returns a test for a library that the process has loaded."""
    return any(library in mapped.path for mapped in process.memory_maps())


EVAL = (
    "eval", "--model", "resnet-pico", "--transform", "affine", "--data", "cifar10-mini",
    "--device", "cpu",
)  # fmt: skip
BLOCK = partial(has_file, "predictions/**/*.parquet")
EPOCH = partial(has_file, "**/metrics.csv")
SEG = ("--model-arg", "features=[4,8]", "--window", "16", "--batch-size", "4", "--lr", "0.01")
TRAINED = ("--data", "{photos}", "--device", "cpu", "--untrained", "--epochs", "40")
CASES = {
    **{f"eval-workers-{n}": Case((*EVAL, "--workers", str(n)), BLOCK) for n in (0, 1, 2, 4)},
    "eval-devices-2": Case((*EVAL, "--devices", "2"), BLOCK),
    "train-seg": Case(
        ("train", "seg", "--model", "unet", "--data", "{pairs}", "--device", "cpu", "--epochs",
         "40", "--workers", "2", *SEG), EPOCH,
    ),
    "train-cls-seeds": Case(
        ("train", "cls", "--model", "resnet-pico", "--seeds", "2", *TRAINED), EPOCH
    ),
    "finetune": Case(
        ("finetune", "umamba-pico", "--data", "{pairs}", "--device", "cpu", "--iterations", "400",
         "--mode", "full"), EPOCH,
    ),
    "predict": Case(
        ("predict", "--model", "otsu", "--data", "{many}"), partial(has_file, "**/*.png")
    ),
    "predict-labels": Case(
        ("predict", "--model", "vmamba-pico", "--data", "{crowd}"),
        partial(has_loaded, "libtorch_python"),
    ),
    "explain": Case(
        ("explain", "--model", "vmamba-pico", "--transform", "affine", "--method", "grad-cam",
         "--limit", "32", "--workers", "2", "--device", "cpu"), partial(has_file, "**/*.parquet"),
    ),
    "export": Case(
        ("export", "vmamba-pico", "--format", "torchscript"), partial(has_loaded, "libtorch_python")
    ),  # ONNX needs optional packages
    "report": Case(("report", "{run}"), partial(has_loaded, "libarrow"), has_out=False),
}  # fmt: skip


SIGNALS = {
    "sigterm-one": (signal.SIGTERM, False),
    "sigint-all": (signal.SIGINT, True),
    "sigterm-all": (signal.SIGTERM, True),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Writes the data and the run that the commands use."""
    folder = tmp_path_factory.mktemp("data")
    write_pairs(folder / "pairs", 14)
    write_pairs(folder / "many", 400)
    write_photos(folder / "photos")
    write_photos(folder / "crowd", 1000)
    finish_command((*EVAL, "--limit", "40"), folder / "run")
    return {name: str(folder / name) for name in ("pairs", "many", "photos", "crowd", "run")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Returns the results of the evaluation; all processes use one thread."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    finish_command(EVAL, out)
    return results(out)


@pytest.fixture(autouse=True)
def no_segment_is_left() -> Iterator[None]:
    """Compares the shared-memory files of this test's processes before and after."""
    before = set(SHARED.iterdir()) if SHARED.is_dir() else set()
    yield
    after = set(SHARED.iterdir()) if SHARED.is_dir() else set()
    leftovers = {path for path in after - before if "torch_" in path.name or "pym-" in path.name}
    assert not {path for path in leftovers if _owner_is_gone(path)}


def _heed_ctrl_c() -> None:
    """Restores Ctrl+C, which shells disable in background processes and their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _owner_is_gone(path: Path) -> bool:
    """Returns whether the process named in a segment of torch (`torch_PID_...`) has ended."""
    number = path.name.split("_")[1] if "_" in path.name else path.name.split("-")[1]
    return not psutil.pid_exists(int(number))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("number", "to_group"), SIGNALS.values(), ids=SIGNALS.keys())
def test_a_signal_ends_it_with_130_and_it_goes_on(
    folders: dict[str, str],
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
    name: str,
    number: signal.Signals,
    to_group: bool,
) -> None:
    case, out = CASES[name], tmp_path / "run"
    out_arguments = (
        ("--out", str(out if name != "export" else out / "model.pt")) if case.has_out else ()
    )
    command = [*ROBUST, *(word.format(**folders) for word in case.arguments), *out_arguments]
    with (tmp_path / "stderr").open("w+") as errors:
        process = subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
            stderr=errors, start_new_session=True, preexec_fn=_heed_ctrl_c,
        )  # fmt: skip
        process_info = psutil.Process(process.pid)
        deadline = time.monotonic() + MINUTES
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if case.in_the_middle(out, process_info):
                    break
            except psutil.Error:
                break
            time.sleep(0.05)
        assert process.poll() is None, (tmp_path / "stderr").read_text()
        children = process_info.children(recursive=True)
        if to_group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        code = process.wait(120)
    message = (tmp_path / "stderr").read_text()
    assert code == 130, message
    assert message.count("Interrupted. Written files are kept") == 1, message
    assert "Traceback" not in message, message
    _, survivors = psutil.wait_procs(children, timeout=20)
    assert not survivors, "a process outlives the command"
    second_run = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert second_run.returncode == 0, second_run.stderr
    if name.startswith("eval"):
        assert results(out) == uninterrupted
