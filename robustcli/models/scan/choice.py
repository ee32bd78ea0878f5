"""Choice of the scan backend: the forced one, else the first one that works on the device."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from robustcli.core.errors import MachineError, first_line
from robustcli.core.names import find
from robustcli.models.scan import blockwise, cpu, mamba_ssm, reference, selfcheck, triton
from robustcli.models.scan.base import Backend, Broken

VARIABLE = "ROBUST_SCAN_BACKEND"
BACKENDS: dict[str, Backend] = {
    "reference": reference, "blockwise": blockwise, "cpu": cpu, "triton": triton,
    "mamba_ssm": mamba_ssm,
}  # fmt: skip
ORDER = {"cpu": ("cpu",), "mps": ("cpu",), "cuda": ("triton", "mamba_ssm")}
"""Backends to try per device type, fastest first; the reference is the fallback."""
_TOLERANCE = 1e-4  # relative to the largest value; errors of faulty kernels are far larger


_graphs: list[str] = []


@contextmanager
def scans_for_graphs() -> Iterator[None]:
    """Context in which every scan uses the backend `blockwise`, for export of graphs.

    Overrides `ROBUST_SCAN_BACKEND`: an exported file must run on other machines, so it cannot
    contain kernels, and the loop over time results in graphs with many thousand nodes.
    """
    _graphs.append("blockwise")
    try:
        yield
    finally:
        _graphs.pop()


class ScanWarning(RuntimeWarning):
    """Warns that an installed kernel does not work, so that a slower backend is used."""


def choose_backend(
    device: torch.device, dtype: torch.dtype, states: int = 1, scan: str = "ss2d_scan"
) -> str:
    """The name of the backend for tensors of `dtype` on `device`.

    This is the backend named in `ROBUST_SCAN_BACKEND`, else the fastest that works on the device. A
    compiled or exported graph keeps the backend that was chosen during its tracing.

    Args:
        device: Device of the tensors.
        dtype: Dtype of the input.
        states: State size N.
        scan: The function that will be called, `ss2d_scan` or `selective_scan`.

    Raises:
        UsageError: The forced name is unknown.
        MachineError: The forced backend cannot run on this machine or with these tensors.
    """
    if _graphs:
        return _graphs[-1]
    forced = os.environ.get(VARIABLE)
    if forced:
        return _forced(forced, device, dtype, states, scan)
    for name in ORDER.get(device.type, ()):
        if BACKENDS[name].refuses(device, dtype, states) is not None:
            continue
        reason = reason_off(name, scan)
        if reason is None:
            return name
        if isinstance(reason, Broken):
            _warn_once(name, reason)
    return "reference"


# Marks the result as a constant for torch.compile, which cannot trace an environment look-up. This
# is what `torch.compiler.assume_constant_result` sets; calling that function would import torch's
# compiler and triton, which takes one second at every start.
choose_backend.__dict__["_dynamo_marked_constant"] = True


def reason_off(name: str, scan: str = "ss2d_scan") -> str | None:
    """None, or why backend `name` cannot be used on this machine; tests its kernels once.

    Args:
        name: Name of the backend.
        scan: The function to test, `ss2d_scan` or `selective_scan`.
    """
    reason = BACKENDS[name].available()
    if reason is not None or name == "reference":
        return reason
    if type(torch.empty(0)) is not torch.Tensor:  # during tracing the kernels would not run
        return None
    return _trial(name, torch.is_grad_enabled(), scan)


@lru_cache
def _trial(name: str, gradients: bool, scan: str) -> str | None:
    """Tests a small scan against the reference: None, or what failed.

    Compiles only the kernels that will be used: those of the function `scan`, and those of the
    backward pass only with `gradients`.
    """
    try:
        error = selfcheck.worst_error(BACKENDS[name], gradients=gradients, scans=(scan,))
    except Exception as failure:  # whatever a compiler or a driver raises
        why = f"its kernels fail: {type(failure).__name__}: {first_line(failure)}."
        return Broken(f"{why} {BACKENDS[name].remedy()}".rstrip())
    if not error < _TOLERANCE:
        return Broken(
            f"its kernels return wrong results: the error is {error:.0e} of the largest value."
        )
    return None


def _forced(
    backend_name: str, device: torch.device, dtype: torch.dtype, states: int, scan: str
) -> str:
    name = find(backend_name, BACKENDS, kind="scan backend", listing="robust doctor")
    reason = reason_off(name, scan) or BACKENDS[name].refuses(device, dtype, states)
    if reason is not None:
        raise MachineError(
            f"`{VARIABLE}={backend_name}` cannot be used.",
            reason,
            f"Unset {VARIABLE} for automatic selection.",
        )
    return name


@lru_cache
def _warn_once(name: str, reason: str) -> None:
    warnings.warn(
        f"The scan backend `{name}` is installed but does not work: {reason} The scan runs as a "
        "loop over time in torch instead, many times slower (on a CPU 20 to 100 times). `robust "
        "doctor` shows all backends.",
        ScanWarning,
        stacklevel=3,
    )
