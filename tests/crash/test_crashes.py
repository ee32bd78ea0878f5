"""Runs that are killed, run out of disk space or are damaged give the results of undisturbed runs.

Each test starts real processes of `robust`, disturbs them or their files at positions drawn from a
seed, repeats the command until it exits with 0, and compares the bytes of all results with those of
an undisturbed run. Slow: `make test-long` runs them. Faster tests cover the same in every run of
the suite: tests/evaluation/test_distributed.py (a killed process), tests/training/test_engine.py (a
killed training), tests/core/test_io.py (order of writing), tests/evaluation/test_store.py (a
flipped bit), tests/core/test_ownership.py (two concurrent starts).
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.training.images import write_pairs, write_photos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

ROBUST = (sys.executable, "-m", "robustcli")
EVAL = (
    *("eval", "--model", "resnet-pico", "--model", "vmamba-pico", "--transform", "gaussian_noise"),
    *("--transform", "affine", "--data", "cifar10-mini", "--device", "cpu"),
)
TRAIN = (
    *("train", "cls", "--model", "resnet-pico", "--quick", "--device", "cpu", "--untrained"),
    *("--epochs", "4"),
)
RESULTS = {
    "eval": ("predictions/**/*.parquet", "inputs/**/*.parquet", "results.csv"),
    # results.csv of a training also contains times.
    "train": ("weights.safetensors", "test/predictions/**/*.parquet", "test/results.csv"),
}
Runs = dict[str, tuple[tuple[str, ...], dict[str, bytes], float]]
"""Arguments, result files and duration by command."""
# `ROBUST_TEST_KILLS=5` shortens the test.
KILL_COUNTS = {
    name: min(count, int(os.environ.get("ROBUST_TEST_KILLS", count)))
    for name, count in {"eval": 50, "train": 20}.items()
}


def start_command(arguments: Sequence[str], out: Path) -> subprocess.Popen[str]:
    """Starts the command in a process group, so that its workers are killed with it."""
    return subprocess.Popen(
        [*ROBUST, *arguments, "--out", str(out), "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def finish_command(arguments: Sequence[str], out: Path, code: int = 0) -> str:
    """Runs the command, which must exit with `code`; returns its output."""
    process = start_command(arguments, out)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output
    return output


def kill_after(process: subprocess.Popen[str], seconds: float) -> None:
    """Kills the process and its children, unless it ends earlier."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()  # reads its output, so that the pipe is closed


def results(run: Path) -> dict[str, bytes]:
    """Returns the bytes of every result file by its path."""
    kind = "train" if (run / "test").is_dir() else "eval"
    paths = {path for pattern in RESULTS[kind] for path in run.glob(pattern)}
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(paths)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def uninterrupted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Returns arguments, results and duration by command."""
    runs = {}
    for name, arguments in {"eval": EVAL, "train": (*TRAIN, "--data", str(photos))}.items():
        out, started_at = tmp_path_factory.mktemp(name) / "run", time.monotonic()
        finish_command(arguments, out)
        runs[name] = arguments, results(out), time.monotonic() - started_at
        assert runs[name][1], "the run must have results"
    return runs


@pytest.mark.parametrize("name", KILL_COUNTS)
def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(
    uninterrupted: Runs, tmp_path: Path, name: str
) -> None:
    arguments, expected, seconds = uninterrupted[name]
    moments, kills, rounds = random.Random(name), 0, 0
    while kills < KILL_COUNTS[name]:
        run = tmp_path / str(rounds) / "run"  # a training is named after its folder
        rounds += 1
        for _ in range(10):
            process = start_command(arguments, run)
            try:
                process.communicate(timeout=moments.uniform(0.2, 1.1) * seconds)
                break
            except subprocess.TimeoutExpired:
                kill_after(process, 0)
                kills += 1
        finish_command(arguments, run)
        assert results(run) == expected
        assert not list(run.rglob("*.tmp")), "temporary files must be removed"
        shutil.rmtree(run)


def test_damaged_files_are_computed_again_and_named(uninterrupted: Runs, tmp_path: Path) -> None:
    arguments, expected, _ = uninterrupted["eval"]
    run, draw = tmp_path / "run", random.Random("damage")
    finish_command(arguments, run)
    blocks = sorted(run.glob("*/**/block-*.parquet"))
    truncated, flipped, emptied, deleted = draw.sample(blocks, 4)
    truncated.write_bytes(truncated.read_bytes()[: draw.randrange(1, truncated.stat().st_size)])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 3] ^= 4
    flipped.write_bytes(bytes(content))
    emptied.write_bytes(b"")
    deleted.unlink()
    process = subprocess.run(
        [*ROBUST, *arguments, "--out", str(run)], capture_output=True, text=True, check=False,
        timeout=900,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    for path in (truncated, flipped, emptied):
        assert f"`{path}` is damaged: its rows are computed again." in process.stderr
    assert str(deleted) not in process.stderr
    assert results(run) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Returns a function that mounts a file system in memory with options of mount(8)."""
    mounted = []

    def make(options: str) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system needs root on Linux")
        mounted.append(place)
        return place

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", KILL_COUNTS)
def test_a_full_disk_is_an_error_and_with_room_the_command_goes_on(
    uninterrupted: Runs,
    small_disk: Callable[[str], Path], name: str,
) -> None:  # fmt: skip
    arguments, expected, _ = uninterrupted[name]
    disk = small_disk("size=200k" if name == "eval" else "size=3m")
    output = finish_command(arguments, disk / "run", code=1)
    assert "no space left" in output.lower() or "disk is full" in output.lower()
    assert "Traceback" not in output
    subprocess.run(["mount", "-o", "remount,size=500m", str(disk)], check=True)
    finish_command(arguments, disk / "run")
    assert results(disk / "run") == expected


def test_a_folder_that_cannot_be_written_is_an_error(
    uninterrupted: Runs, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("ro")
    output = finish_command(uninterrupted["eval"][0], disk / "run", code=1)
    assert "Read-only" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("name", KILL_COUNTS)
def test_of_two_starts_at_once_one_works_and_the_other_says_why_not(
    uninterrupted: Runs, tmp_path: Path, name: str
) -> None:
    arguments, expected, _ = uninterrupted[name]
    run = tmp_path / "run"
    processes = [start_command(arguments, run) for _ in range(2)]
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    codes = sorted(process.returncode for process in processes)
    # The second may start after the first has finished, and then has nothing to do.
    assert codes in ([0, 0], [0, 1]), outputs
    if codes == [0, 1]:
        assert any("working in" in text for text in outputs), outputs
    finish_command(arguments, run)
    assert results(run) == expected


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], Path, float]:
    """Returns the arguments, the run and the duration of a fine-tuning."""
    data = write_pairs(tmp_path_factory.mktemp("pairs") / "data", 14)
    arguments = (
        "finetune", "umamba-pico", "--data", str(data), "--device", "cpu", "--iterations", "20",
        "--mode", "full",
    )  # fmt: skip
    out, started_at = tmp_path_factory.mktemp("finetune") / "run", time.monotonic()
    finish_command(arguments, out)
    return arguments, out, time.monotonic() - started_at


def test_a_killed_fine_tuning_ends_with_the_same_weights(
    finetuned: tuple[tuple[str, ...], Path, float], tmp_path: Path
) -> None:
    arguments, uninterrupted, seconds = finetuned
    run, moments = tmp_path / "run", random.Random("finetune")
    for _ in range(min(3, KILL_COUNTS["train"])):
        kill_after(start_command(arguments, run), moments.uniform(0.3, 0.9) * seconds)
    finish_command(arguments, run)
    weights = sorted(
        path.relative_to(uninterrupted) for path in uninterrupted.rglob("weights.safetensors")
    )
    assert len(weights) == 1
    for path in weights:
        assert (run / path).read_bytes() == (uninterrupted / path).read_bytes()
    assert not list(run.rglob("*.tmp"))


def test_a_killed_report_is_made_by_the_next_one(tmp_path: Path) -> None:
    """The rows are the results; the next report replaces a partial report."""
    run, moments = tmp_path / "run", random.Random("report")
    finish_command((*EVAL, "--limit", "100"), run)
    expected, started_at = results(run), time.monotonic()
    subprocess.run([*ROBUST, "report", str(run)], capture_output=True, check=True, timeout=900)
    seconds = time.monotonic() - started_at
    page = (run / "report.html").read_bytes()
    for _ in range(min(3, KILL_COUNTS["train"])):
        process = subprocess.Popen(
            [*ROBUST, "report", str(run)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        kill_after(process, moments.uniform(0.5, 0.98) * seconds)
        assert (run / "report.html").read_bytes() == page, "the previous page must be complete"
    subprocess.run([*ROBUST, "report", str(run)], capture_output=True, check=True, timeout=900)
    assert results(run) == expected
    assert (run / "report.html").read_bytes() == page
    assert not list(run.rglob("*.tmp")), "temporary files must be removed"


DOWNLOAD = """
import sys
from pathlib import Path
from robustcli.data.download import fetch_file
fetch_file(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], offline=False)
"""


def test_a_killed_download_goes_on_from_where_it_was(tmp_path: Path) -> None:
    content = random.Random("download").randbytes(4_000_000)
    digest, ranges = hashlib.sha256(content).hexdigest(), list[str | None]()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            header = self.headers["Range"]
            ranges.append(header)
            first = int(header.removeprefix("bytes=").partition("-")[0]) if header else 0
            self.send_response(206 if header else 200)
            self.send_header("Content-Length", str(len(content) - first))
            self.send_header("ETag", '"v1"')
            if header:
                self.send_header(
                    "Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}"
                )
            self.end_headers()
            with suppress(OSError):  # the process was killed
                for at in range(first, len(content), 100_000):
                    self.wfile.write(content[at : at + 100_000])
                    time.sleep(0.1)

        def log_message(self, *arguments: object) -> None:
            """Suppresses the server's log."""

    target = tmp_path / "file.bin"
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/file.bin"
        command = [sys.executable, "-c", DOWNLOAD, url, str(target), digest]
        partial_file, size = target.with_name("file.bin.part"), 0
        for _ in range(2):
            process = subprocess.Popen(command, start_new_session=True)
            while not partial_file.is_file() or partial_file.stat().st_size < size + 300_000:
                assert process.poll() is None
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            size = partial_file.stat().st_size
            assert not target.exists(), "the final name must not exist yet"
        subprocess.run(command, check=True, timeout=600)
        server.shutdown()
        thread.join()
    assert target.read_bytes() == content
    assert not partial_file.exists()
    starts = [int(header.removeprefix("bytes=").partition("-")[0]) for header in ranges if header]
    assert len(starts) == 2, "the second and third start must resume"
    assert 300_000 <= starts[0] < starts[1] <= size
