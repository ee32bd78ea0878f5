"""Diagnoses this machine: versions, devices, scan backends, caches, disk."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.fetching import is_here
from robustcli.core.errors import MachineError, RobustError
from robustcli.core.machine import check_opencv, installed_version, versions
from robustcli.data.named_datasets import data_home
from robustcli.evaluation.device import gpu_without_torch
from robustcli.models.scan import cpu
from robustcli.models.scan.base import Broken
from robustcli.models.scan.dispatch import BACKENDS, SCANS, choose_backend, reason_off, worst_error

EXTRAS = {
    "onnx": ("onnx", "onnxruntime"), "hf": ("datasets", "transformers"),
    "clip": ("open_clip_torch",), "smp": ("segmentation-models-pytorch",), "mlflow": ("mlflow",),
    "wandb": ("wandb",), "trackio": ("trackio",), "cuda": ("mamba-ssm",),
    "ray": ("ray",), "slurm": ("submitit",), "remote": ("gcsfs", "s3fs"),
    "medical": ("h5py", "nibabel"), "export": ("onnx", "onnxruntime", "onnxscript"),
}  # fmt: skip
"""Optional packages by the extra that installs them, as in `pyproject.toml`."""
MOST_ERROR = 1e-5  # relative to the largest value; float32 against float64


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis; `off` means that an optional part is absent."""

    name: str
    state: Literal["ok", "off", "broken"]
    detail: str


def diagnose() -> list[Check]:
    """All checks, in the order of the output. Takes a few seconds, because kernels are run."""
    return [*_versions(), *_system(), *_extras(), *_devices(), *_backends(), *_storage()]


def _versions() -> Iterator[Check]:
    for name, installed in versions().items():
        yield Check(name, "ok", installed)
    try:
        import torchvision.ops  # noqa: F401  fails if the versions do not match
    except (ImportError, RuntimeError) as error:
        yield Check("torch and torchvision", "broken", f"are not compatible: {error}")
    try:
        check_opencv()
    except MachineError as error:
        yield Check("opencv", "broken", f"{error.what} {error.why} {error.todo}")


_SETTINGS = re.compile(
    r"(OMP|MKL|OPENBLAS|NUMBA|TORCH|PYTORCH|CUDA|NVIDIA|HIP|TRITON|NCCL|SLURM|HF_HUB|ROBUST)_\w+|"
    r"(LOCAL_)?(RANK|WORLD_SIZE)"
)
"""Names of environment variables that affect a run."""
_OF_A_PERSON = re.compile(r"USER|_UID|_GID|MAIL|ACCOUNT|SUBMIT_HOST")
"""Excluded variables, such as SLURM_JOB_USER, which identify a person."""


def _system() -> Iterator[Check]:
    yield Check("system", "ok", f"{platform.platform()}, {platform.machine()}")
    memory = psutil.virtual_memory()
    cores = psutil.cpu_count() or 1
    usable = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 0
    limited = f" ({usable} usable by this process)" if usable and usable != cores else ""
    yield Check(
        "machine", "ok",
        f"{cores} cores{limited}, {memory.total / 1e9:.1f} GB of memory, "
        f"{memory.available / 1e9:.1f} GB free",
    )  # fmt: skip
    settings = [
        f"{name}: {value}"
        for name, value in sorted(os.environ.items())
        if _SETTINGS.fullmatch(name) and not _OF_A_PERSON.search(name)
    ]
    yield Check("environment", "ok", "; ".join(settings) or "no setting of torch, CUDA or robust")


def _extras() -> Iterator[Check]:
    for extra, packages in EXTRAS.items():
        found = {package: installed_version(package) for package in packages}
        installed = ", ".join(f"{package} {number}" for package, number in found.items() if number)
        missing = [package for package, number in found.items() if not number]
        detail = installed
        if missing:
            have = f" ({installed})" if installed else ""
            lacking = f"{' and '.join(missing)} not installed{have}"
            detail = f"{lacking}: pip install 'robustcli[{extra}]'"
        yield Check(f"extra: {extra}", "off" if missing else "ok", detail)


def _devices() -> Iterator[Check]:
    threads = torch.get_num_threads()
    yield Check("cpu", "ok", f"{threads} thread{'' if threads == 1 else 's'}")
    for index in range(torch.cuda.device_count()):
        yield Check(f"cuda:{index}", "ok", torch.cuda.get_device_name(index))
    if not torch.cuda.is_available():
        unusable = gpu_without_torch()
        none = f"torch {torch.__version__} finds no CUDA device"
        yield Check("cuda", "broken" if unusable else "off", unusable or none)
    if torch.backends.mps.is_available():
        yield Check("mps", "ok", "an Apple GPU; scans are computed on the CPU and copied")
    else:
        yield Check("mps", "off", "no Apple GPU")


def _backends() -> Iterator[Check]:
    try:
        gpus = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        kinds = ["cpu", *(kind for kind, available in gpus.items() if available)]
        serving = {kind: choose_backend(torch.device(kind), torch.float32) for kind in kinds}
    except RobustError as error:
        yield Check("scan", "broken", f"{error.what} {error.why}")
        return
    for name, backend in BACKENDS.items():
        reason = next(filter(None, (reason_off(name, scan) for scan in SCANS)), None)
        if reason is not None:
            yield Check(f"scan: {name}", "broken" if isinstance(reason, Broken) else "off", reason)
            continue
        largest_error = worst_error(backend)
        serves = "".join(f"serves {kind}, " for kind, chosen in serving.items() if chosen == name)
        details = f", {cpu.describe()}" if name == "cpu" else ""
        yield Check(
            f"scan: {name}",
            "ok" if largest_error < MOST_ERROR else "broken",
            f"{serves}differs from the float64 reference by {largest_error:.1e} at most{details}",
        )


def _storage() -> Iterator[Check]:
    yield _place("downloads", data_home(), "`ROBUST_HOME` sets another folder")
    yield _place("this folder", Path.cwd(), "use another one, or `--out`")
    downloaded = [entry.name for entry in CATALOGUE.values() if is_here(entry)]
    yield Check("weights here", "ok", ", ".join(downloaded) or "none")


def _place(name: str, folder: Path, todo: str) -> Check:
    existing = next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check(name, "off", f"{folder} is not writable: {todo}")
    return Check(name, "ok", f"{folder}, {shutil.disk_usage(existing).free / 1e9:.1f} GB free")
