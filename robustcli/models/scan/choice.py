"""Which backend serves: the forced one, else the first of the device's that works here."""

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
"""The backends tried on a device, fastest first; the reference serves everything else."""
_TOLERANCE = 1e-4  # of the largest value; a kernel that miscomputes is wrong in the first digit


_graphs: list[str] = []


@contextmanager
def scans_for_graphs() -> Iterator[None]:
    """Within the context `blockwise` serves every scan, as exported graphs need it.

    It goes before `ROBUST_SCAN_BACKEND`: a kernel has no place in a file that is used elsewhere,
    and the loop over time makes graphs of many thousand nodes.
    """
    _graphs.append("blockwise")
    try:
        yield
    finally:
        _graphs.pop()


class ScanWarning(RuntimeWarning):
    """A kernel that ought to work here does not, and something slower serves."""


def choose_backend(
    device: torch.device, dtype: torch.dtype, states: int = 1, scan: str = "ss2d_scan"
) -> str:
    """The name of the backend that serves tensors on `device` of `dtype`.

    `ROBUST_SCAN_BACKEND` forces one; else the fastest that works on the device serves. A compiled
    or exported graph keeps the backend chosen when it was made.

    Args:
        device: Where the tensors are.
        dtype: Type of the input.
        states: State size N.
        scan: The function that will be called, `ss2d_scan` or `selective_scan`.

    Raises:
        UsageError: The forced name is unknown.
        MachineError: The forced backend cannot run here, or not with these tensors.
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


# An environment look-up is nothing for a graph. `torch.compiler.assume_constant_result` sets this;
# to call it would import the compiler of torch, and triton: a second at every start.
choose_backend.__dict__["_dynamo_marked_constant"] = True


def reason_off(name: str, scan: str = "ss2d_scan") -> str | None:
    """None, or why backend `name` cannot be used on this machine; its kernels are tried once.

    Args:
        name: Of the backend.
        scan: The function that is tried, `ss2d_scan` or `selective_scan`.
    """
    reason = BACKENDS[name].available()
    if reason is not None or name == "reference":
        return reason
    if type(torch.empty(0)) is not torch.Tensor:  # being traced: nothing would really run
        return None
    return _trial(name, torch.is_grad_enabled(), scan)


@lru_cache
def _trial(name: str, gradients: bool, scan: str) -> str | None:
    """None, or what went wrong in a small scan, compared with the reference.

    It compiles no kernel that will not be used: only those of the function `scan`, and the backward
    pass only where gradients are wanted.
    """
    try:
        error = selfcheck.worst_error(BACKENDS[name], gradients=gradients, scans=(scan,))
    except Exception as failure:  # whatever a compiler or a driver raises
        why = f"its kernels fail: {type(failure).__name__}: {first_line(failure)}."
        return Broken(f"{why} {BACKENDS[name].remedy()}".rstrip())
    if not error < _TOLERANCE:
        return Broken(f"its kernels compute wrongly: {error:.0e} of the largest value off.")
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
            f"Unset {VARIABLE} to choose freely.",
        )
    return name


@lru_cache
def _warn_once(name: str, reason: str) -> None:
    warnings.warn(
        f"The scan backend `{name}` is installed but does not work: {reason} "
        "The scan runs as a loop over time in torch instead, many times slower (on a CPU 20 to 100 "
        "times). `robust doctor` shows every backend.",
        ScanWarning,
        stacklevel=3,
    )
