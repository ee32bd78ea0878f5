"""Exceptions of libraries, of the system and of this program as the user hears of them."""

from __future__ import annotations

import errno
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset

from robustcli.cli import failures
from robustcli.cli.failures import explanation_of, keep_traceback, print_known, print_unexpected
from robustcli.cli.main import main
from robustcli.core.errors import RunError, errors_of, run_of
from robustcli.tasks.base import Forward
from tests.cli.conftest import Robust

FILE = re.compile(r"The traceback is in `(.+?)`")


class Failing(Dataset[int]):
    """Raises what it is given, in a worker process."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: int) -> int:
        raise self.error


def raised(action: Callable[[], Any]) -> Exception:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def of_worker(error: Exception) -> Exception:
    """As it comes out of a loader process, which torch would wait five seconds for."""
    try:
        raise error
    except Exception:
        sent = pickle.dumps(ExceptionWrapper(where="in DataLoader worker process 0"))
    return raised(pickle.loads(sent).reraise)


def told_by(error: Exception, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = print_unexpected(error)
    return code, capsys.readouterr().err


def damaged_table(folder: Path) -> Exception:
    (folder / "a.parquet").write_bytes(b"PAR1 and no table PAR1")
    return raised(lambda: pq.read_table(folder / "a.parquet"))


def norm_of_one(_: Path) -> Exception:
    return raised(lambda: nn.BatchNorm2d(4)(torch.zeros(1, 4, 1, 1)))


def too_small(_: Path) -> Exception:
    return raised(lambda: nn.Sequential(nn.Conv2d(3, 4, 7))(torch.zeros(1, 3, 5, 5)))


def other_channels(_: Path) -> Exception:
    return raised(lambda: nn.Sequential(nn.Conv2d(3, 4, 3))(torch.zeros(1, 1, 9, 9)))


def no_memory(_: Path) -> Exception:
    return raised(lambda: torch.empty(1 << 60, dtype=torch.uint8))


def no_image(folder: Path) -> Exception:
    from PIL import Image

    (folder / "a.png").write_bytes(b"no image")
    return raised(lambda: Image.open(folder / "a.png"))


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (norm_of_one, 2, "single value per channel.*Expected more than 1.*larger `--batch-size`"),
        (too_small, 1, "cannot process its inputs.*Kernel size.*`--crop`, `--window`"),
        (other_channels, 1, "cannot process its inputs.*channels.*`--model-arg`"),
        (no_memory, 1, "Out of memory.*smaller `--batch-size`"),
        (damaged_table, 1, "A table file cannot be read.*Arrow.*remove it"),
        (no_image, 1, "An image cannot be read.*a.png.*Repair"),
        (lambda _: pa.ArrowInvalid("x"), 1, "A table file cannot be read"),
        (lambda _: torch.OutOfMemoryError("CUDA out of memory."), 1, "Out of memory"),
        (lambda _: RuntimeError("CUDA error: device-side assert triggered"), 1, "device failed"),
        (lambda _: RuntimeError("unable to allocate shared memory(shm) for file </torch_7>"), 1,
         "too little shared memory.*--shm-size"),
        (lambda _: RuntimeError("Too many open files"), 1, "limit of open files.*ulimit"),
        (lambda _: BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), 1,
         "limit of processes.*ulimit -u"),
        (lambda _: RuntimeError("can't start new thread"), 1, "limit of processes.*--workers 0"),
        (lambda _: torch.distributed.DistNetworkError("errno: 101 - Network is unreachable"), 1,
         "cannot connect to each other.*loopback.*--devices 1"),
        (lambda _: OSError(errno.EFBIG, "File too large"), 1, "too large.*ulimit -f"),
        (lambda _: OSError(errno.ENOSPC, "No space", "/x/y"), 1, "The disk is full.*`/x/y`.*Free"),
        (lambda _: PermissionError(errno.EACCES, "Denied", "/x"), 1, "Permission denied: `/x`"),
        (lambda _: OSError(errno.ENAMETOOLONG, "Too long", "y"), 1, "name is too long"),
        (lambda _: RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 1,
         "A loader process ended.*--workers 0"),
        (lambda _: ModuleNotFoundError("No module named 'cv2'"), 3, "cannot be loaded.*cv2"),
        (lambda _: ImportError("libX.so.1: cannot open shared object file: No such file"), 3,
         "library of the system is missing.*package.*contains `libX.so.1`"),
        (lambda _: ImportError("lib.so: failed to map segment from shared object"), 3,
         "loaded into memory.*lib.so.*ulimit -v unlimited"),
        (lambda _: raised(lambda: json.loads("{")), 1, "does not have the expected contents"),
        (lambda _: MisconfigurationException("No such precision."), 2, "Lightning.*precision"),
    ],
)  # fmt: skip
def test_errors_that_are_known(
    make: Callable[[Path], Exception], code: int, words: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    error = make(tmp_path)
    found, output = told_by(error, capsys)
    assert found == code
    assert re.search(words, output, re.DOTALL), output
    assert "Traceback (most recent call last)" not in output
    file = FILE.search(output)
    assert file is not None
    assert type(error).__name__ in Path(file.group(1)).read_text(encoding="utf-8")


def test_the_cause_counts_where_the_error_says_nothing() -> None:
    def wrapped() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/x")
        except OSError as error:
            raise RuntimeError("could not save") from error

    assert explanation_of(raised(wrapped)).what == "The disk is full: `/x`."


def test_an_error_of_ours_is_called_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, _: object) -> int:
            return 1

    model = SimpleNamespace(device=torch.device("cpu"), predict=lambda *_: 0)
    forward = Forward(model)  # type: ignore[arg-type]
    error = raised(lambda: forward(object()))  # type: ignore[arg-type]
    code, output = told_by(error, capsys)
    assert code == 1
    assert output.startswith(
        "Error: This is probably a bug in robust (robustcli/tasks/base.py, line "
    )
    assert "TypeError: object of type 'object' has no len()" in output
    assert "report it with the traceback" in output


def test_an_error_of_an_unknown_library_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    _, output = told_by(raised(lambda: np.zeros(3).reshape(2, 2).dot(np.zeros(5))), capsys)
    assert "cannot reshape array" in output
    _, output = told_by(raised(lambda: torch.zeros(2).index_select(5, torch.zeros(1))), capsys)
    assert "raised an error" in output


def test_an_error_in_a_users_file_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def f():\n    return 1 / 0\n", encoding="utf-8")
    names: dict[str, Any] = {}
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), names)
    _, output = told_by(raised(names["f"]), capsys)
    assert output.startswith(f"Error: `{file}` raised an error in line 2.\nZeroDivisionError")


def test_a_worker_keeps_its_own_message(capsys: pytest.CaptureFixture[str]) -> None:
    loader = DataLoader(Failing(ValueError("the palette\nis odd")), num_workers=1)
    code, output = told_by(raised(lambda: list(loader)), capsys)
    assert code == 1
    assert "\nValueError: the palette\nis odd\n" in output
    assert "It was raised in a DataLoader worker process 0." in output
    assert "Caught" not in output


def test_a_worker_without_memory_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    _, output = told_by(of_worker(MemoryError("Unable to allocate 8 GiB")), capsys)
    assert output.startswith("Error: Out of memory.\nMemoryError: Unable to allocate 8 GiB\n")


def test_what_a_worker_says_for_the_user_stays_in_three_parts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = of_worker(RunError("The pair `a` cannot be read.", "It is torn.", "Repair it."))
    assert isinstance(error, RunError)
    assert print_known(error) == 1
    output = capsys.readouterr().err
    assert output == "Error: The pair `a` cannot be read.\nIt is torn.\nRepair it.\n"


def test_the_traceback_lies_in_the_folder_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        with errors_of(tmp_path / "outer"), errors_of(tmp_path):
            raise ValueError("odd")

    error = raised(fail)
    assert run_of(error) == tmp_path
    _, output = told_by(error, capsys)
    (file,) = tmp_path.glob("error-*.txt")
    assert f"The traceback is in `{file}`" in output
    assert "the same command continues" in output
    text = file.read_text(encoding="utf-8")
    assert "Command:  robust" in text
    assert "ValueError: odd" in text
    assert "torch " in text


def test_without_any_folder_the_traceback_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(failures, "_folders", lambda _: [tmp_path / "file" / "below"])
    error = raised(lambda: 1 // 0)
    assert keep_traceback(error) is None
    _, output = told_by(error, capsys)
    assert "Traceback (most recent call last)" in output


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_tracebacks_are_shown_where_asked_for(
    value: str, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROBUST_TRACEBACK", value)
    head = "Traceback (most recent call last)"
    _, output = told_by(raised(lambda: 1 // 0), capsys)
    assert (head in output) is shown

    def refuse() -> None:
        try:
            raise ValueError("of a library")
        except ValueError as error:
            raise RunError("No.") from error

    assert print_known(raised(refuse)) == 1  # type: ignore[arg-type]
    output = capsys.readouterr().err
    assert output.endswith("Error: No.\n")
    assert ("of a library" in output) is shown


def test_the_process_of_several_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    _, output = told_by(ValueError("x"), capsys)
    assert output.startswith("Error: Process 1: ")


@pytest.mark.parametrize("name", ["eval", "train", "finetune", "predict", "report", "fetch"])
def test_every_command_has_the_mechanism(
    name: str, robust: Robust, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    command = main.get_command(click.Context(main), name)
    assert command is not None
    monkeypatch.setattr(command, "make_context", fail)
    outcome = robust(name)
    assert outcome.code == 1
    assert outcome.out == ""
    assert "mat1 and mat2 shapes" in outcome.err
    assert FILE.search(outcome.err)
