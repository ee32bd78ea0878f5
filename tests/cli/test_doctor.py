"""`robust doctor`: what it found, and exit code 3 when something is broken."""

from __future__ import annotations

import json
import platform
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import numba
import pytest
import torch
from torch import Tensor

from robustcli.evaluation import diagnosis
from robustcli.evaluation.diagnosis import Check
from robustcli.models.scan import cpu, dispatch
from robustcli.models.scan.base import ScanInputs, ScanSettings
from tests.cli.conftest import Robust


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels pass without being tried."""
    monkeypatch.setattr(diagnosis, "worst_error", lambda backend: 1e-7)


def test_on_this_machine_nothing_is_broken(robust: Robust) -> None:
    outcome = robust("doctor", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    checks = {check["name"]: check for check in json.loads(outcome.out)}
    assert all(set(check) == {"name", "state", "detail"} for check in checks.values())
    assert {check["state"] for check in checks.values()} <= {"ok", "off"}
    assert checks["torch"]["detail"] == torch.__version__.split("+")[0]
    assert checks["scan: reference"]["state"] == "ok"
    assert ("cuda" in checks) is not torch.cuda.is_available()


@pytest.fixture
def without_opengl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without the system's OpenGL library, such as the image `python:3.12-slim`."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/cv2.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')"
    )
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "cv2", raising=False)


REMEDY = f"opencv-python-headless=={version('opencv-python-headless')}"


@pytest.mark.usefixtures("quick", "without_opengl")
def test_opencv_without_the_systems_library_is_broken(robust: Robust) -> None:
    outcome = robust("doctor", "--json")
    check = next(c for c in json.loads(outcome.out) if c["name"] == "opencv")
    assert (outcome.code, check["state"]) == (3, "broken")
    assert "libGL.so.1: cannot open" in check["detail"]
    assert REMEDY in check["detail"]


@pytest.mark.usefixtures("without_opengl")
@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "--model", "vmamba-pico", "--transform", "perspective"),
        ("predict", "--model", "vmamba-pico", "cifar10-mini", "--limit", "2"),
        ("explain", "--model", "vmamba-pico", "--transform", "perspective", "--limit", "2"),
        ("train", "cls", "--model", "vmamba-pico"),
        ("train", "seg", "--model", "umamba-pico"),
        ("finetune", "umamba-pico"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_run_that_needs_opencv_ends_before_it_computes(
    robust: Robust, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = robust(*arguments)
    assert outcome.code == 3, outcome.err
    assert "libGL.so.1: cannot open shared object file" in outcome.err
    assert REMEDY in outcome.err
    assert not Path("runs").exists()


@pytest.mark.usefixtures("quick")
def test_json_has_what_a_bug_report_needs_and_nothing_private(
    robust: Robust, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "somebody"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ROBUST_HOME", str(home / "cache"))
    monkeypatch.setenv("HF_HUB_TOKEN", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    outcome = robust("doctor", "--json")
    checks = {check["name"]: check["detail"] for check in json.loads(outcome.out)}
    assert "OMP_NUM_THREADS: 3" in checks["environment"]
    assert "HF_HUB_TOKEN: ***" in checks["environment"]
    assert "cores" in checks["machine"]
    assert platform.machine() in checks["system"]
    assert "somebody" not in outcome.out
    assert "hf_AbCd" not in outcome.out


@pytest.mark.usefixtures("quick")
def test_cache_folders_that_cannot_be_read_are_reported(
    robust: Robust, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `su`, which can keep HOME; a name that is too long is an error for root too."""
    for name in ("ROBUST_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, f"/tmp/{'x' * 300}")
    monkeypatch.setattr("os.access", lambda path, mode: mode == 0 and str(path) == "/")
    outcome = robust("doctor", "--json")
    assert outcome.code == 0, outcome.err
    checks = {check["name"]: check for check in json.loads(outcome.out)}
    assert checks["downloads"]["state"] == "off"
    assert "not writable: `ROBUST_HOME` sets another folder" in checks["downloads"]["detail"]
    monkeypatch.undo()
    for name in ("ROBUST_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, f"/tmp/{'x' * 300}")
    for names in ("models", "datasets"):
        outcome = robust("list", names)
        assert outcome.code == 0, outcome.err


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("variable", "value"),
    [("ROBUST_DATA_IMAGENET_1K", "{home}/imagenet/val"), ("ROBUST_HOME", "{server}/cache"),
     ("SLURM_SUBMIT_DIR", "{home}"), ("SLURM_JOB_USER", "somebody"), ("SLURM_JOB_GID", "somebody"),
     ("SLURM_JOB_ACCOUNT", "somebody"), ("NCCL_TOPO_FILE", "file://{home}/topo.xml"),
     ("ROBUST_STORE", "s3://AKIAIOSFODNN7EXAMPLE:somebody-secret@host/bucket"),
     ("TORCH_API_KEY", "somebody-secret"), ("HF_HUB_PROXY", "http://me:somebody-secret@proxy:80"),
     ("ROBUST_URL", "https://x.org/?token=somebody-secret&y=1")],
)  # fmt: skip
def test_json_shows_nobody_and_no_secret(
    robust: Robust, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str
) -> None:
    """Whatever a variable that is shown holds; the home may be a link to a server's folder."""
    server = tmp_path / "server" / "somebody"
    (server / "cache").mkdir(parents=True)
    home = tmp_path / "somebody"
    home.symlink_to(server)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv(variable, value.format(home=home, server=server))
    monkeypatch.chdir(home)
    outcome = robust("doctor", "--json")
    assert "OMP_NUM_THREADS: 3" in outcome.out
    assert "somebody" not in outcome.out
    assert "AKIAIOSFODNN7EXAMPLE" not in outcome.out


@pytest.mark.usefixtures("quick")
def test_a_backend_that_is_off_says_why(robust: Robust, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available", lambda: "numba is not installed")
    outcome = robust("doctor")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    (line,) = (line for line in lines if "scan: cpu" in line)
    assert line.startswith("- scan: cpu ")
    assert line.endswith("numba is not installed")
    (line,) = (line for line in lines if "scan: reference" in line)
    assert "serves cpu" in line


@pytest.mark.usefixtures("quick")
def test_on_an_apple_gpu_the_cpu_kernel_serves(
    robust: Robust, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.ops  # noqa: F401  its first import asks torch itself, not the lambda below

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    lines = robust("doctor").out.splitlines()
    (line,) = (line for line in lines if "scan: cpu" in line)
    assert "serves cpu, serves mps, differs" in line
    (line,) = (line for line in lines if " mps " in line and "scan" not in line.split()[1])
    assert line.endswith("an Apple GPU; scans are computed on the CPU and copied")


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_backend_that_computes_wrongly_ends_with_3(
    robust: Robust, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.setattr(diagnosis, "worst_error", lambda backend: 0.5 if backend is cpu else 1e-7)
    outcome = robust("doctor", *flags)
    assert outcome.code == 3
    if flags:
        broken = [c["name"] for c in json.loads(outcome.out) if c["state"] == "broken"]
        assert broken == ["scan: cpu"]
    else:
        (line,) = (line for line in outcome.out.splitlines() if line.startswith("!"))
        assert line.startswith("! scan: cpu")
        assert "differs from the float64 reference by 5.0e-01" in line


@pytest.mark.parametrize("scan", ["ss2d_scan", "selective_scan"])
def test_a_backend_whose_kernels_do_not_compile_ends_with_3_and_the_versions(
    robust: Robust, monkeypatch: pytest.MonkeyPatch, scan: str
) -> None:
    real_scan = cpu.scan

    def fail(arguments: ScanInputs, settings: ScanSettings) -> tuple[Tensor, Tensor]:
        if bool(settings.directions) is (scan == "ss2d_scan"):
            raise AttributeError("'IRBuilder' object has no attribute 'gep'")
        return real_scan(arguments, settings)

    monkeypatch.setattr(cpu, "scan", fail)
    dispatch._trial.cache_clear()
    dispatch._warn_once.cache_clear()
    with pytest.warns(dispatch.ScanWarning) if scan == "ss2d_scan" else nullcontext():
        outcome = robust("doctor")
    dispatch._trial.cache_clear()
    assert outcome.code == 3
    (line,) = (line for line in outcome.out.splitlines() if line.startswith("!"))
    assert "its kernels fail: AttributeError: 'IRBuilder' object has no attribute 'gep'." in line
    assert f"Installed are numba {numba.__version__} and llvmlite" in line
    (line,) = (line for line in outcome.out.splitlines() if "scan: reference" in line)
    assert ("serves cpu" in line) is (scan == "ss2d_scan")


@pytest.mark.usefixtures("quick")
def test_a_forced_backend_that_does_not_exist_is_broken(
    robust: Robust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUST_SCAN_BACKEND", "tritonn")
    outcome = robust("doctor")
    assert outcome.code == 3
    assert "No scan backend is called `tritonn`." in outcome.out


def test_lines_are_aligned(robust: Robust, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        Check("a", "ok", "fine"),
        Check("long name", "off", "absent"),
        Check("b", "broken", "x"),
    ]
    monkeypatch.setattr(diagnosis, "diagnose", lambda: checks)
    outcome = robust("doctor")
    assert outcome.out == "  a          fine\n- long name  absent\n! b          x\n"
    assert outcome.code == 3
