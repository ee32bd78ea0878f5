"""Runs that are killed, run out of disk or are damaged, and finish as an unbroken run would.

Each test starts real processes of `robust`, harms them or their files at places drawn from a seed,
repeats the command until it ends with 0, and compares the bytes of all results with those of a run
that nothing disturbed. Slow: `make test-long` runs them. What each proves is proven in every run by
a faster one: tests/evaluation/test_distributed.py (a killed process), tests/training/test_engine.py
(a killed training), tests/core/test_io.py (order of writing), tests/evaluation/test_store.py (a
flipped bit), tests/core/test_rundir.py (two starts).
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
    # Of a training, results.csv has times as well.
    "train": ("weights.safetensors", "test/predictions/**/*.parquet", "test/results.csv"),
}
# `ROBUST_TEST_KILLS=5` makes a short round of it.
KILLS = {
    name: min(count, int(os.environ.get("ROBUST_TEST_KILLS", count)))
    for name, count in {"eval": 50, "train": 20}.items()
}


def start(arguments: Sequence[str], out: Path) -> subprocess.Popen[str]:
    """The command in a process group of its own, so that its workers are killed with it."""
    return subprocess.Popen(
        [*ROBUST, *arguments, "--out", str(out), "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def finish(arguments: Sequence[str], out: Path, code: int = 0) -> str:
    """What the command says, which ends with `code`."""
    process = start(arguments, out)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == code, said
    return said


def kill_after(process: subprocess.Popen[str], seconds: float) -> None:
    """Kills the process and those that it started, unless it ends before."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()  # its output, so that the pipe is closed


def results(run: Path) -> dict[str, bytes]:
    """The bytes of every file of results, by its path."""
    kind = "train" if (run / "test").is_dir() else "eval"
    paths = {path for pattern in RESULTS[kind] for path in run.glob(pattern)}
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(paths)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def unbroken(
    photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[tuple[str, ...], dict[str, bytes], float]]:
    """By command: its arguments, its results, and the seconds that it takes."""
    runs = {}
    for name, arguments in {"eval": EVAL, "train": (*TRAIN, "--data", str(photos))}.items():
        out, begun = tmp_path_factory.mktemp(name) / "run", time.monotonic()
        finish(arguments, out)
        runs[name] = arguments, results(out), time.monotonic() - begun
        assert runs[name][1], "there is something to compare"
    return runs


@pytest.mark.parametrize("name", KILLS)
def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(
    unbroken: dict[str, tuple[tuple[str, ...], dict[str, bytes], float]], tmp_path: Path, name: str
) -> None:
    arguments, expected, seconds = unbroken[name]
    moments, kills, rounds = random.Random(name), 0, 0
    while kills < KILLS[name]:
        run = tmp_path / str(rounds) / "run"  # a training is called by its folder
        rounds += 1
        for _ in range(10):
            process = start(arguments, run)
            try:
                process.communicate(timeout=moments.uniform(0.2, 1.1) * seconds)
                break
            except subprocess.TimeoutExpired:
                kill_after(process, 0)
                kills += 1
        finish(arguments, run)
        assert results(run) == expected
        assert not list(run.rglob("*.tmp")), "nothing half-written stays"
        shutil.rmtree(run)


def test_damaged_files_are_computed_again_and_named(
    unbroken: dict[str, tuple[tuple[str, ...], dict[str, bytes], float]], tmp_path: Path
) -> None:
    arguments, expected, _ = unbroken["eval"]
    run, draw = tmp_path / "run", random.Random("damage")
    finish(arguments, run)
    blocks = sorted(run.glob("*/**/block-*.parquet"))
    cut, flipped, empty, gone = draw.sample(blocks, 4)
    cut.write_bytes(cut.read_bytes()[: draw.randrange(1, cut.stat().st_size)])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 3] ^= 4
    flipped.write_bytes(bytes(content))
    empty.write_bytes(b"")
    gone.unlink()
    process = subprocess.run(
        [*ROBUST, *arguments, "--out", str(run)], capture_output=True, text=True, check=False,
        timeout=900,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    for path in (cut, flipped, empty):
        assert f"`{path}` is damaged: its rows are computed again." in process.stderr
    assert str(gone) not in process.stderr
    assert results(run) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a file system in memory with the given options of mount(8)."""
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
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("name", KILLS)
def test_a_full_disk_is_an_error_and_with_room_the_command_goes_on(
    unbroken: dict[str, tuple[tuple[str, ...], dict[str, bytes], float]],
    small_disk: Callable[[str], Path], name: str,
) -> None:  # fmt: skip
    arguments, expected, _ = unbroken[name]
    disk = small_disk("size=200k" if name == "eval" else "size=3m")
    said = finish(arguments, disk / "run", code=1)
    assert "no space left" in said.lower() or "disk is full" in said.lower()
    assert "Traceback" not in said
    subprocess.run(["mount", "-o", "remount,size=500m", str(disk)], check=True)
    finish(arguments, disk / "run")
    assert results(disk / "run") == expected


def test_a_folder_that_cannot_be_written_is_an_error(
    unbroken: dict[str, tuple[tuple[str, ...], dict[str, bytes], float]],
    small_disk: Callable[[str], Path],
) -> None:
    disk = small_disk("ro")
    said = finish(unbroken["eval"][0], disk / "run", code=1)
    assert "Read-only" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", KILLS)
def test_of_two_starts_at_once_one_works_and_the_other_says_why_not(
    unbroken: dict[str, tuple[tuple[str, ...], dict[str, bytes], float]], tmp_path: Path, name: str
) -> None:
    arguments, expected, _ = unbroken[name]
    run = tmp_path / "run"
    both = [start(arguments, run) for _ in range(2)]
    said = [process.communicate(timeout=900)[0] for process in both]
    codes = sorted(process.returncode for process in both)
    # The second may come when the first has finished, and then has nothing to do.
    assert codes in ([0, 0], [0, 1]), said
    if codes == [0, 1]:
        assert any("working in" in text for text in said), said
    finish(arguments, run)
    assert results(run) == expected


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], Path, float]:
    """Arguments of a fine-tuning, its run, and the seconds that it takes."""
    data = write_pairs(tmp_path_factory.mktemp("pairs") / "data", 14)
    arguments = (
        "finetune", "umamba-pico", "--data", str(data), "--device", "cpu", "--iterations", "20",
        "--mode", "scratch", "--mode", "full",
    )  # fmt: skip
    out, begun = tmp_path_factory.mktemp("finetune") / "run", time.monotonic()
    finish(arguments, out)
    return arguments, out, time.monotonic() - begun


def test_a_killed_fine_tuning_ends_with_the_same_weights(
    finetuned: tuple[tuple[str, ...], Path, float], tmp_path: Path
) -> None:
    arguments, unbroken, seconds = finetuned
    run, moments = tmp_path / "run", random.Random("finetune")
    for _ in range(min(3, KILLS["train"])):
        kill_after(start(arguments, run), moments.uniform(0.3, 0.9) * seconds)
    finish(arguments, run)
    weights = sorted(path.relative_to(unbroken) for path in unbroken.rglob("weights.safetensors"))
    assert len(weights) == 2
    for path in weights:
        assert (run / path).read_bytes() == (unbroken / path).read_bytes()
    assert not list(run.rglob("*.tmp"))


def test_a_killed_report_is_made_by_the_next_one(tmp_path: Path) -> None:
    """The rows are the run; whatever of the report a kill leaves, the next report replaces it."""
    run, moments = tmp_path / "run", random.Random("report")
    finish((*EVAL, "--limit", "100"), run)
    expected, begun = results(run), time.monotonic()
    subprocess.run([*ROBUST, "report", str(run)], capture_output=True, check=True, timeout=900)
    seconds = time.monotonic() - begun
    page = (run / "report.html").read_bytes()
    for _ in range(min(3, KILLS["train"])):
        process = subprocess.Popen(
            [*ROBUST, "report", str(run)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        kill_after(process, moments.uniform(0.5, 0.98) * seconds)
        assert (run / "report.html").read_bytes() == page, "the old page is whole"
    subprocess.run([*ROBUST, "report", str(run)], capture_output=True, check=True, timeout=900)
    assert results(run) == expected
    assert (run / "report.html").read_bytes() == page
    assert not list(run.rglob("*.tmp")), "nothing half-written stays"


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
            asked = self.headers["Range"]
            ranges.append(asked)
            first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(content) - first))
            self.send_header("ETag", '"v1"')
            if asked:
                self.send_header(
                    "Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}"
                )
            self.end_headers()
            with suppress(OSError):  # the process was killed
                for at in range(first, len(content), 100_000):
                    self.wfile.write(content[at : at + 100_000])
                    time.sleep(0.1)

        def log_message(self, *arguments: object) -> None:
            """Keeps the terminal clean."""

    target = tmp_path / "file.bin"
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/file.bin"
        command = [sys.executable, "-c", DOWNLOAD, url, str(target), digest]
        part, held = target.with_name("file.bin.part"), 0
        for _ in range(2):
            process = subprocess.Popen(command, start_new_session=True)
            while not part.is_file() or part.stat().st_size < held + 300_000:
                assert process.poll() is None
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            held = part.stat().st_size
            assert not target.exists(), "nothing stands under the final name"
        subprocess.run(command, check=True, timeout=600)
        server.shutdown()
        thread.join()
    assert target.read_bytes() == content
    assert not part.exists()
    begins = [int(asked.removeprefix("bytes=").partition("-")[0]) for asked in ranges if asked]
    assert len(begins) == 2, "the second and third start go on"
    assert 300_000 <= begins[0] < begins[1] <= held
