"""`benchmarks/gpu.py` up to the device: its parts on tiny shapes, and how it reports failures."""

import importlib
import json
import subprocess
import sys

import pytest
import torch

from tests.models.scan.cases import BENCHMARKS, benchmark

SCRIPT = BENCHMARKS / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    yield from benchmark("gpu")


def dry_run(folder, parts):
    """The document of a dry run of `parts`; the interpreter needs a process of its own."""
    pytest.importorskip("triton")
    command = [
        sys.executable,
        str(SCRIPT),
        "--dry-run",
        "--out",
        str(folder),
        "--parts",
        parts,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads((folder / "gpu.json").read_text())
    assert (folder / "gpu.md").read_text() in done.stdout
    assert list(document["parts"]) == parts.split(",")
    assert {entries[-1]["status"] for entries in document["parts"].values()} == {"complete"}
    return document


@pytest.mark.slow  # processes that import torch, six seconds
def test_a_dry_run_of_the_scan(tmp_path):
    document = dry_run(tmp_path, "parity,scan")
    comparisons = [e for e in document["parts"]["parity"] if e["kind"] == "parity"]
    assert {e["dtype"] for e in comparisons} == {"float32", "float16", "bfloat16"}
    assert all(e["passed"] and 0 < e["error"] < e["tolerance"] for e in comparisons)
    assert "torch" in document["machine"]["versions"]


@pytest.mark.slow
def test_a_dry_run_of_networks(tmp_path):
    dry_run(tmp_path, "networks,variants")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_of_whole_evaluations(tmp_path):
    document = dry_run(tmp_path, "loader,devices")
    assert sum(e["kind"] == "parity" for e in document["parts"]["devices"]) >= 4


def run_with(gpu, monkeypatch, folder, **parts):
    """The exit code of a dry run of other parts."""
    made = {name: gpu.Part(function, 5) for name, function in parts.items()}
    monkeypatch.setattr(gpu, "PARTS", made)
    monkeypatch.setattr(gpu, "shrink_tiles", lambda: None)
    command = ["gpu.py", "--dry-run", "--out", str(folder), "--parts", ",".join(parts)]
    monkeypatch.setattr(sys, "argv", command)
    return gpu.main()


def test_a_part_that_fails_is_reported_with_its_rows_and_the_others_go_on(
    gpu, monkeypatch, tmp_path, capsys
):
    def broken(bench):
        yield gpu.row(step=1)
        raise RuntimeError("an illegal memory access")

    def incomplete(bench):
        importlib.import_module("no_such_package")
        yield gpu.row(step=1)

    def works(bench):
        yield gpu.goal("speed", 2.0, 1.5, at_least=True)
        yield gpu.goal("seconds", 2.0, 1.3, at_least=False)

    parts = {"broken": broken, "incomplete": incomplete, "works": works}
    assert run_with(gpu, monkeypatch, tmp_path, **parts) == 1
    text = (tmp_path / "gpu.md").read_text()
    assert "### broken: failed: RuntimeError: an illegal memory access\n\n| step |" in text
    assert "### incomplete: not run: `no_such_package` is missing" in text
    assert "Goal speed >= 1.5: 2.00, reached" in text
    assert "Goal seconds <= 1.3: 2.00, not reached" in text
    assert "broken: failed" in capsys.readouterr().err


@pytest.mark.parametrize("passed", [True, False])
def test_the_exit_code_says_whether_every_comparison_held(gpu, monkeypatch, tmp_path, passed):
    def compared(bench):
        yield {"kind": "parity", "scan": "a scan", "error": 0.5, "passed": passed}

    assert run_with(gpu, monkeypatch, tmp_path, compared=compared) == (0 if passed else 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_ends_with_3(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 3
    assert "No CUDA device" in capsys.readouterr().err


def test_the_parts_fit_into_eight_minutes(gpu):
    assert sum(part.seconds for part in gpu.PARTS.values()) <= 480
