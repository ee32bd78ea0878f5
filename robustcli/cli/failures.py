"""Error messages for exceptions of libraries, of the machine and of this program.

`LazyGroup.main` calls `print_unexpected` for every exception that is not a `RobustError`. It prints
what happened, why, and what to do next, and writes the complete traceback to a file that the
message names.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import click

from robustcli import __version__
from robustcli.cli.terminal import say_safely
from robustcli.core.errors import RobustError, run_of
from robustcli.core.machine import installed_version
from robustcli.data.named_datasets import data_home

SHOW = "ROBUST_TRACEBACK"
"""Environment variable that prints tracebacks on standard error."""
_PACKAGE = Path(__file__).parents[1]
_LINES, _WIDTH = 6, 300  # limits for messages of libraries
_LIBRARIES = re.compile(r"[\\/](?:site|dist)-packages[\\/]([^\\/]+)")
_STANDARD = Path(os.__file__).parent
_WORKER = re.compile(r"Caught (\w+) in ([^\n.]*(?:worker|thread|replica|rank)[^\n.]*)\.\n")
_FRAME = re.compile(r'^\s*File "(.+?)", line (\d+), in (\S+)', re.MULTILINE)
_LAST_LINE = re.compile(r"^((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)(?:: (.*))?$")
_ROBUSTS_FAULT = "This is probably a bug in robust"
_RESUME = "Finished results are kept; the same command continues from there."


@dataclass(frozen=True)
class Frame:
    """One frame of a traceback."""

    file: str
    line: int
    function: str

    @property
    def ours(self) -> bool:
        """Whether the code belongs to this program."""
        return Path(self.file).is_relative_to(_PACKAGE)

    @property
    def library(self) -> str | None:
        """Name of the installed package that contains the code; None for other code."""
        match = _LIBRARIES.search(self.file)
        return None if match is None or self.ours else match.group(1).removesuffix(".py")

    @property
    def standard(self) -> bool:
        """Whether the code belongs to Python's standard library."""
        in_standard = Path(self.file).is_relative_to(_STANDARD) and self.library is None
        return self.file.startswith("<") or (in_standard and not self.ours)


@dataclass(frozen=True)
class Raised:
    """An exception of this process, or one that a worker process sent as text.

    Args:
        kinds: Qualified names of its class and base classes.
        message: Its message.
        frames: Its traceback, innermost frame last.
        notes: Its notes (`add_note`), such as the images of the batch.
        process: Description of the process that raised it; empty for this process.
        number: `errno` of an OSError.
        file: File name of an OSError.
    """

    kinds: tuple[str, ...]
    message: str
    frames: tuple[Frame, ...]
    notes: tuple[str, ...] = ()
    process: str = ""
    number: int | None = None
    file: str | None = None

    @property
    def name(self) -> str:
        """Name of the class without the module."""
        return self.kinds[0].rsplit(".", 1)[-1]

    @property
    def text(self) -> str:
        """Class and message, truncated to a few lines."""
        lines = [line.rstrip()[:_WIDTH] for line in self.message.strip().splitlines()]
        cut = "\n".join(line for line in lines[:_LINES] if line)
        return f"{self.name}: {cut}" if cut else self.name

    def is_a(self, *names: str) -> bool:
        """Whether a class in `kinds` matches one of `names`: a class, or a module with a dot."""
        return any(
            kind == name or kind.endswith(f".{name}") or (name[-1] == "." and kind.startswith(name))
            for kind in self.kinds
            for name in names
        )

    def says(self, pattern: str) -> bool:
        """Whether the message matches the regular expression `pattern`."""
        return re.search(pattern, self.message, re.IGNORECASE) is not None


@dataclass(frozen=True)
class ErrorExplanation:
    """Parts of an error message.

    Args:
        what: What happened.
        todo: What to do next.
        exit_code: Exit code of the command.
        why: The reason; empty for the message of the exception.
    """

    what: str
    todo: str
    exit_code: int = 1
    why: str = field(default="")


def print_unexpected(error: Exception) -> int:
    """Prints an explanation of `error` and stores its traceback; returns the exit code."""
    raised = next(_chain(error))
    failure = explanation_of(error)
    shown = shows_tracebacks()
    if shown:
        click.echo(_traceback(error), err=True, nl=False)
    lines = [f"Error: {_rank()}{failure.what}", failure.why or raised.text, *raised.notes]
    if raised.process:
        lines.append(f"It was raised in a {raised.process}.")
    lines.append(failure.todo)
    if run_of(error) is not None:
        lines.append(_RESUME)
    file = keep_traceback(error)
    if file is not None:
        lines.append(f"The traceback is in `{file}`; `{SHOW}=1` prints it to the terminal.")
    elif not shown:
        lines.append(f"The traceback could not be written to a file:\n{_traceback(error)}")
    say_safely("\n".join(lines), err=True)
    return failure.exit_code


def print_known(error: RobustError) -> int:
    """Prints the message of `error` on standard error; returns the exit code."""
    if shows_tracebacks():
        click.echo(_traceback(error), err=True, nl=False)
    raised = next(_chain(error))
    message = raised.message if raised.process else str(error)  # without the worker's traceback
    say_safely(f"Error: {_rank()}{message}", err=True)
    return error.exit_code


def shows_tracebacks() -> bool:
    """Whether the user enabled tracebacks (`ROBUST_TRACEBACK=1`)."""
    return os.environ.get(SHOW, "0") not in ("", "0")


def explanation_of(error: Exception) -> ErrorExplanation:
    """Explanation of the first known exception in the chain of `error`, else by its origin."""
    for raised in _chain(error):
        for rule in _RULES:
            failure = rule(raised)
            if failure is not None:
                return failure
    return _by_origin(next(_chain(error)))


def keep_traceback(error: BaseException) -> Path | None:
    """Writes the traceback of `error` to a file; returns its path, None if no folder is writable.

    The file is stored in the folder of the failed run, else in `errors` in the data folder of the
    program, else in the folder for temporary files.
    """
    text = _traceback_text(error)
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    for folder in _folders(error):
        file = folder / f"error-{stamp}.txt"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return file
    return None


def _folders(error: BaseException) -> Iterator[Path]:
    run = run_of(error)
    if run is not None and run.is_dir():
        yield run
    yield data_home() / "errors"
    yield Path(tempfile.gettempdir()) / "robust-errors"


def _traceback_text(error: BaseException) -> str:
    packages = ("torch", "timm", "lightning", "numpy", "pillow", "pyarrow")
    return "\n".join(
        [
            f"Command:  {shlex.join(['robust', *sys.argv[1:]])}",
            f"Folder:   {Path.cwd()}",
            f"Time:     {datetime.now().astimezone().isoformat(timespec='seconds')}",
            f"Versions: robust {__version__}, Python {platform.python_version()}, "
            + ", ".join(f"{name} {installed_version(name) or 'none'}" for name in packages),
            f"System:   {platform.platform()}",
            "",
            _traceback(error),
        ]
    )


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _rank() -> str:
    """Prefix of messages with the rank of this process; empty for rank 0 or a single process."""
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    return "" if rank == "0" else f"Process {rank}: "


def _chain(error: BaseException) -> Iterator[Raised]:
    """Yields `error` and its causes; exceptions of workers are parsed from the text."""
    seen_ids: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen_ids:
        seen_ids.add(id(current))
        yield _of_worker(current) or _of_process(current)
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)


def _of_process(error: BaseException) -> Raised:
    filename = getattr(error, "filename", None)
    return Raised(
        _kinds(error), str(error),
        tuple(Frame(f.filename, f.lineno or 0, f.name)
              for f in traceback.extract_tb(error.__traceback__)),
        notes=tuple(getattr(error, "__notes__", ())),
        number=error.errno if isinstance(error, OSError) else None,
        file=None if filename is None else os.fsdecode(filename) if isinstance(filename, bytes)
        else str(filename),
    )  # fmt: skip


def _of_worker(error: BaseException) -> Raised | None:
    """Parses the exception of a worker process, whose traceback torch sends as text."""
    text = str(error)
    caught = _WORKER.match(text)
    if caught is None:
        return None
    frames = tuple(Frame(f, int(n), name) for f, n, name in _FRAME.findall(text))
    lines = text[caught.end() :].splitlines()
    # The message follows the last line of the traceback that contains the class name.
    starts = [i for i, line in enumerate(lines) if _names(line, caught.group(1))]
    message, kind = text, caught.group(1)
    if starts:
        match = _LAST_LINE.match(lines[starts[-1]])
        assert match is not None, "it was found by this pattern"
        kind = match.group(1)
        message = "\n".join([match.group(2) or "", *lines[starts[-1] + 1 :]]).strip()
    kinds = (kind, *(k for k in _kinds(error) if not k.endswith(caught.group(1))))
    notes = tuple(getattr(error, "__notes__", ()))
    number = _number_in(message) if "OSError" in kinds or "Errno" in message else None
    return Raised(kinds, message, frames, notes, caught.group(2), number)


def _names(line: str, kind: str) -> bool:
    match = _LAST_LINE.match(line)
    return match is not None and match.group(1).rsplit(".", 1)[-1] == kind


def _number_in(message: str) -> int | None:
    match = re.search(r"\[Errno (\d+)\]", message)
    return None if match is None else int(match.group(1))


def _kinds(error: BaseException) -> tuple[str, ...]:
    return tuple(
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
        for cls in type(error).__mro__
        if cls not in (Exception, BaseException, object)
    ) or (type(error).__name__,)


# Rules for known errors of libraries and of the system, the most specific first.


_SHARED_MEMORY = "shared memory|shm_open|torch_shm|/dev/shm"


def _memory(raised: Raised) -> ErrorExplanation | None:
    ran_out = raised.is_a("MemoryError", "OutOfMemoryError", "ArrowMemoryError") or raised.says(
        r"out of memory|can't allocate memory|not enough memory|DefaultCPUAllocator|bad_alloc|"
        r"CUBLAS_STATUS_ALLOC_FAILED|[Uu]nable to allocate|Cannot allocate memory"
    )
    if not (ran_out or raised.number == errno.ENOMEM) or raised.says(_SHARED_MEMORY):
        return None
    return ErrorExplanation(
        "Out of memory.",
        "Try a smaller `--batch-size`, fewer `--workers`, `--precision bf16`, or stop other "
        "programs that use the same memory.",
    )


def _one_value(raised: Raised) -> ErrorExplanation | None:
    if not raised.says("Expected more than 1 value per channel|more than 1 spatial element"):
        return None
    return ErrorExplanation(
        "A normalisation layer of the network received a single value per channel, for which no "
        "variance exists.",
        "Use a larger `--batch-size`, or a larger `--window`, or a network without batch norm.",
        exit_code=2,
    )


def _worker_ended(raised: Raised) -> ErrorExplanation | None:
    gone = raised.is_a("BrokenPipeError", "LostProcessError", "ConnectionResetError")
    if gone or raised.says("DataLoader worker .*(exited unexpectedly|killed by signal)|Bus error"):
        return ErrorExplanation(
            "A loader process ended without an error message.",
            "The operating system kills processes when memory runs out, and containers often have "
            "little shared memory (/dev/shm). Use fewer `--workers`; `--workers 0` needs no "
            "shared memory.",
        )
    if raised.says(_SHARED_MEMORY):
        return ErrorExplanation(
            "The loader processes have too little shared memory.",
            "Use fewer `--workers` (`--workers 0` needs none), or give the container more shared "
            "memory (`docker run --shm-size 8g`).",
        )
    return None


def _open_files(raised: Raised) -> ErrorExplanation | None:
    if raised.number not in (errno.EMFILE, errno.ENFILE) and not raised.says(
        "Too many open files|received 0 items of ancdata"
    ):
        return None
    return ErrorExplanation(
        "The limit of open files is reached.",
        "Raise the limit (`ulimit -n 65536`) or use fewer `--workers`.",
    )


def _processes(raised: Raised) -> ErrorExplanation | None:
    full_pipe = raised.says("write could not complete")  # standard output that does not block
    if (raised.number != errno.EAGAIN or full_pipe) and not raised.says("can't start new thread"):
        return None
    return ErrorExplanation(
        "The limit of processes and threads is reached.",
        "Raise the limit (`ulimit -u`, or that of the container), or start fewer: `--workers 0`, "
        "fewer `--devices`, `OMP_NUM_THREADS=1`.",
    )


def _connection(raised: Raised) -> ErrorExplanation | None:
    if not raised.is_a("DistNetworkError"):
        return None
    return ErrorExplanation(
        "The processes of this command cannot connect to each other.",
        "Check that this machine has a loopback interface (127.0.0.1), and that no firewall "
        "separates machines of one job; `--devices 1` needs no connection.",
    )


_SYSTEM = {
    errno.ENOSPC: ("The disk is full", "Free some space, or use another `--out`."),
    errno.EDQUOT: ("Your disk quota is exceeded", "Free some space, or use another `--out`."),
    errno.EFBIG: (
        "A file is too large for the file system, or for the limit of this shell (`ulimit -f`)",
        "Raise the limit, or use another `--out`.",
    ),
    errno.EROFS: ("The file system is read-only", "Use another `--out`."),
    errno.EACCES: ("Permission denied", "Change the permissions, or use another path."),
    errno.EPERM: ("Permission denied", "Change the permissions, or use another path."),
    errno.ENOENT: (
        "A file does not exist",
        "It may have been moved while the command was running.",
    ),
    errno.ENOTDIR: ("A file exists where a folder is expected", "Use another folder."),
    errno.EISDIR: ("A folder exists where a file is expected", "Use another file."),
    errno.ENAMETOOLONG: ("A file name is too long for the file system", "Use a shorter `--out`."),
    errno.EIO: ("The disk or the network drive failed", "Check it, then repeat the command."),
    errno.ESTALE: (
        "A file on the network drive is no longer available",
        "Check it, then repeat the command.",
    ),
}


def _system(raised: Raised) -> ErrorExplanation | None:
    if raised.number not in _SYSTEM or raised.is_a(*_NETWORK):
        return None
    what, todo = _SYSTEM[raised.number]
    return ErrorExplanation(f"{what}: `{raised.file}`." if raised.file else f"{what}.", todo)


_NETWORK = (
    "requests.", "urllib3.", "httpx.", "httpcore.", "huggingface_hub.", "urllib.error.",
    "socket.gaierror", "ssl.SSLError", "http.client.HTTPException",
)  # fmt: skip


def _network(raised: Raised) -> ErrorExplanation | None:
    if not raised.is_a(*_NETWORK):
        return None
    return ErrorExplanation(
        "A download failed.",
        "Repeat the command, or download the file elsewhere and pass it with `--weights FILE` or "
        "`--data DIR`.",
    )


def _device(raised: Raised) -> ErrorExplanation | None:
    if not raised.says(
        r"CUDA error|CUDA driver|cuDNN error|CUDNN_STATUS|CUBLAS_STATUS|NCCL|HIP error|"
        r"no kernel image|NVIDIA driver|compiled with CUDA|device-side assert|MPS backend"
    ):
        return None
    return ErrorExplanation(
        "The device failed.",
        "`robust doctor` tests it; `--device cpu` runs without it. Start the command again after "
        "this error.",
    )


def _library(raised: Raised) -> ErrorExplanation | None:
    if not raised.is_a("ImportError") and not raised.says("cannot open shared object file"):
        return None
    if raised.says("failed to map segment from shared object"):
        return ErrorExplanation(
            "A library that this command needs cannot be loaded into memory.",
            "The limit of address space is too small (`ulimit -v unlimited` removes it; login "
            "nodes often set one), or the file system of the library does not permit execution.",
            exit_code=3,
        )
    absent = re.search(r"(\S+): cannot open shared object file", raised.message)
    if absent is not None:
        return ErrorExplanation(
            "A library of the system is missing.",
            f"Install the package of your system that contains `{absent[1]}`; `robust doctor` "
            "tests what a run needs.",
            exit_code=3,
        )
    return ErrorExplanation(
        "A library that this command needs cannot be loaded.",
        "Install the program again (`pip install --force-reinstall`) in a separate environment; "
        "`robust doctor` shows the versions.",
        exit_code=3,
    )


def _damaged(raised: Raised) -> ErrorExplanation | None:
    if raised.is_a("pyarrow."):
        return ErrorExplanation(
            "A table file cannot be read or written.",
            "If a Parquet file of the run is damaged, remove it: the same command computes it "
            "again. If it is your own file, save it again.",
        )
    if raised.is_a("PIL.", "DecompressionBombError") or _deepest_library(raised) == "PIL":
        return ErrorExplanation("An image cannot be read or written.", "Repair or remove it.")
    if raised.is_a(
        "JSONDecodeError", "UnicodeDecodeError", "csv.Error", "pandas.errors.", "ValidationError",
        "yaml.", "TOMLDecodeError",
    ):  # fmt: skip
        return ErrorExplanation(
            "A file does not have the expected contents.",
            "Check the files that the command uses: one may be damaged, or written by another "
            "program or version.",
        )
    if raised.is_a(
        "SafetensorError", "UnpicklingError", "BadZipFile", "tarfile.", "zlib.error", "lzma.",
        "BadGzipFile",
    ) or raised.says("PytorchStreamReader"):  # fmt: skip
        return ErrorExplanation(
            "A file is damaged, or its format does not match its name.",
            "Copy or download it again: a partial download is the usual cause.",
        )
    return None


def _settings(raised: Raised) -> ErrorExplanation | None:
    if not raised.is_a("MisconfigurationException"):
        return None
    return ErrorExplanation(
        "Lightning does not accept these settings together.",
        "Change the options that it names, such as `--device`, `--devices` or `--precision`.",
        exit_code=2,
    )


_SHAPES = (
    r"size|shape|dimension|channel|height|width|kernel|mat1 and mat2|broadcast|divisible|"
    r"index .* out of|out of range|elements"
)


def _shapes(raised: Raised) -> ErrorExplanation | None:
    inside = _deepest_library(raised) in ("torch", "timm", "segmentation_models_pytorch")
    network = any("/nn/modules/module.py" in f.file.replace(os.sep, "/") for f in raised.frames)
    if not (inside and network and raised.says(_SHAPES)):
        return None
    return ErrorExplanation(
        "The network cannot process its inputs.",
        "Check the size of the images (`--crop`, `--window`), the number of channels and classes "
        "(`--model-arg`), and that the weights belong to this network. If these are correct, this "
        "is a bug in robust: report it with the traceback.",
    )


_RULES: Sequence[Callable[[Raised], ErrorExplanation | None]] = (
    _memory, _one_value, _network, _worker_ended, _open_files, _processes, _connection, _system,
    _device, _library, _damaged, _settings, _shapes,
)  # fmt: skip


def _deepest_library(raised: Raised) -> str | None:
    """Package whose code raised it; None for this program, Python, or code of the user."""
    deepest = next((frame for frame in reversed(raised.frames) if not frame.standard), None)
    return None if deepest is None else deepest.library


def _by_origin(raised: Raised) -> ErrorExplanation:
    """Explanation by the code that raised it: a library, a file of the user, or this program."""
    code = [frame for frame in raised.frames if not frame.standard]
    if not code or code[-1].ours:
        at = f" ({_position(code[-1])})" if code else ""
        return ErrorExplanation(
            f"{_ROBUSTS_FAULT}{at}.",
            "Please report it with the traceback and your command. No error in your command is "
            "known.",
        )
    caller = next((frame for frame in reversed(code) if frame.ours), None)
    called = "" if caller is None else f", called from {_position(caller)}"
    if code[-1].library is not None:
        return ErrorExplanation(
            f"The library `{code[-1].library}` raised an error{called}.",
            "If the message of the library refers to your options, files or sizes, change these. "
            f"Otherwise {_ROBUSTS_FAULT[0].lower()}{_ROBUSTS_FAULT[1:]}: please report it with "
            "the traceback.",
        )
    return ErrorExplanation(
        f"`{code[-1].file}` raised an error in line {code[-1].line}.",
        "Correct that file, then repeat the command.",
    )


def _position(frame: Frame) -> str:
    path = Path(frame.file)
    shown = path.relative_to(_PACKAGE.parent).as_posix() if frame.ours else str(path)
    return f"{shown}, line {frame.line}, in {frame.function}"
