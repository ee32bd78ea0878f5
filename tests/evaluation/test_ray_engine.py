"""`--engine ray` on a cluster of two real nodes, one of which is stopped during the run."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.record import read_record
from tests.evaluation.photos import config, make_photos
from tests.evaluation.test_evaluate import contents
from tests.training.test_jobs import free_port

ray = pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.slow,  # test_engines.py uses a pool in memory
    pytest.mark.timeout(1800),
]

TOKEN = secrets.token_hex(32)
REPOSITORY = Path(__file__).parents[2]
SEEN_PLUGIN = '''
import os
import time
from pathlib import Path

from robustcli.transforms import transform

SEEN = Path(__file__).with_name("seen")


@transform()
def seen(image, rng, value):
    """Records the parent process, which is the raylet on a Ray node."""
    SEEN.mkdir(exist_ok=True)
    (SEEN / str(os.getppid())).touch()
    time.sleep(0.02)
    image[:2] = rng.integers(256)
    return image
'''
NAMES = ("seen", "fliplr", "additive_gaussian_noise", "affine")


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # with 0, Ray refuses a second machine
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN,
    }  # fmt: skip


class Node:
    """Starts a Ray node with one core on the loopback address."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1",
             "--num-gpus=0", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000",
             "--disable-usage-stats", *options],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def raylets(self) -> set[int]:
        """Returns the processes of the node that start workers."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return {child.pid for child in children if child.name() == "raylet"}

    def stop(self, number: int) -> None:
        """Sends a signal to every process of the node."""
        with suppress(psutil.NoSuchProcess):
            node_process = psutil.Process(self.process.pid)
            for process in (*node_process.children(recursive=True), node_process):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        self.process.communicate(timeout=60)


@pytest.fixture
def nodes() -> Iterator[tuple[str, Node, Node]]:
    """Returns the address of a cluster without dashboard, and its two nodes."""
    # Paths of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        address = f"127.0.0.1:{free_port()}"
        port = address.partition(":")[2]
        head = Node("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
        second: Node | None = None
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and not listens(int(port)):
                assert head.process.poll() is None, head.process.communicate()[0]
                time.sleep(0.5)
            second = Node(f"--address={address}")
            while time.monotonic() < deadline and machines(address) < 2:
                assert second.process.poll() is None, second.process.communicate()[0]
            yield address, head, second
        finally:
            for node in filter(None, (second, head)):
                node.stop(signal.SIGKILL)


def machines(address: str) -> int:
    """Returns the number of live machines of the cluster."""
    count = (
        f"import ray; ray.init({address!r}, log_to_driver=False, logging_level='ERROR'); "
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    status = subprocess.run(
        [sys.executable, "-c", count], env=environment(), capture_output=True, text=True, check=True
    )
    return next(int(line) for line in status.stdout.splitlines() if line.isdigit())


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: object, process: subprocess.Popen[str], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.1)


def robust_eval(
    photos: Path, out: Path, plugin: Path, *options: str,
    program: tuple[str, str] = ("-m", "robustcli"),
) -> subprocess.Popen[str]:  # fmt: skip
    names = (argument for name in NAMES for argument in ("--transform", name))
    return subprocess.Popen(
        [sys.executable, *program, "eval", "--model", "vmamba-pico", "--untrained",
         "--data", str(photos), "--out", str(out), "--device", "cpu", "--batch-size", "4",
         "--workers", "0", "--plugin", str(plugin), *names, "--engine", "ray", *options],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_node_that_is_stopped_loses_nothing(
    nodes: tuple[str, Node, Node], tmp_path: Path
) -> None:
    address, _, second = nodes
    photos, plugin = make_photos(tmp_path / "photos", per_class=96), tmp_path / "seen.py"
    plugin.write_text(SEEN_PLUGIN)
    process = robust_eval(photos, tmp_path / "run", plugin, "--address", address)
    call_log = tmp_path / "seen"
    wait_until(
        lambda: call_log.is_dir() and second.raylets() & {int(p.name) for p in call_log.iterdir()},
        process,
    )
    assert process.poll() is None, process.communicate()[0]
    second.stop(signal.SIGKILL)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert "2 machines, 2 workers" in output
    assert "is assigned to another worker" in output
    assert read_record(tmp_path / "run").status == "complete"
    plain_config = config(photos, tmp_path / "plain", *NAMES, plugins=(plugin,))
    assert contents(tmp_path / "run") == contents(run_evaluation(plain_config))


def test_ctrl_c_ends_the_workers_and_the_same_command_goes_on(
    nodes: tuple[str, Node, Node], tmp_path: Path
) -> None:
    address = nodes[0]
    photos, plugin = make_photos(tmp_path / "photos", per_class=48), tmp_path / "seen.py"
    plugin.write_text(SEEN_PLUGIN)
    run, options = tmp_path / "run", ("--address", address)
    process = robust_eval(photos, run, plugin, *options)
    wait_until(lambda: len(contents(run)) >= 2, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert read_record(run).status == "partial"
    kept_rows = contents(run)
    second_process = robust_eval(photos, run, plugin, *options)
    output, _ = second_process.communicate(timeout=900)
    assert second_process.returncode == 0, output
    assert kept_rows.items() <= contents(run).items()
    assert read_record(run).status == "complete"


IMPATIENT_MAIN = """
import sys
from robustcli.cli import main
from robustcli.evaluation import ray_engine
ray_engine.LOST_SECONDS = 10.0
sys.exit(main())
"""


def test_without_the_head_of_the_cluster_the_command_ends(
    nodes: tuple[str, Node, Node], tmp_path: Path
) -> None:
    address, head, _ = nodes
    photos, plugin = make_photos(tmp_path / "photos", per_class=48), tmp_path / "seen.py"
    plugin.write_text(SEEN_PLUGIN)
    process = robust_eval(
        photos, tmp_path / "run", plugin, "--address", address, program=("-c", IMPATIENT_MAIN)
    )
    wait_until((tmp_path / "seen").is_dir, process)
    head.stop(signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output


def test_a_dry_run_asks_the_cluster_and_starts_nothing(
    nodes: tuple[str, Node, Node], tmp_path: Path
) -> None:
    photos, plugin = make_photos(tmp_path / "photos"), tmp_path / "seen.py"
    plugin.write_text(SEEN_PLUGIN)
    options = ("--address", nodes[0], "--dry-run")
    process = robust_eval(photos, tmp_path / "run", plugin, *options)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    port = nodes[0].rpartition(":")[2]
    assert f":{port}: 2 machines, 2 workers, one for each processor core" in output
    assert "Tasks:       5, each of at most 12 predictions" in output  # a task for each transform
    assert not (tmp_path / "run").exists()


def test_a_cluster_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    photos, plugin = make_photos(tmp_path / "photos"), tmp_path / "seen.py"
    plugin.write_text(SEEN_PLUGIN)
    address = f"127.0.0.1:{free_port()}"
    process = robust_eval(photos, tmp_path / "run", plugin, "--address", address)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3, output
    assert f"`--address {address}`: no Ray cluster responds" in output
