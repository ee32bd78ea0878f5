"""Arguments of the scan at random, and the comparison of a backend with the float64 reference."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from robustcli.models.scan import dispatch, reference

Arguments = dict[str, Tensor | None]
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def sequence(
    batch: int, channels: int, length: int, states: int, *, groups: int = 0, seed: int = 0,
    options: bool = True,
) -> Arguments:  # fmt: skip
    """Arguments of `selective_scan`; `groups` 0 means B and C without a group axis."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    grouped = (batch, groups, states, length) if groups else (batch, states, length)
    return {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -torch.rand((channels, states), generator=generator) - 0.05,
        "B": normal(*grouped),
        "C": normal(*grouped),
        "D": normal(channels) if options else None,
        "z": normal(batch, channels, length) if options else None,
        "delta_bias": normal(channels) if options else None,
    }


def image(
    batch: int, channels: int, height: int, width: int, states: int, seed: int = 0,
    directions: int = 4,
) -> Arguments:  # fmt: skip
    """Arguments of `ss2d_scan`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "x": normal(batch, channels, height, width),
        "delta": normal(batch, directions, channels, height, width),
        "A": -torch.rand((directions * channels, states), generator=generator) - 0.05,
        "B": normal(batch, directions, states, height, width),
        "C": normal(batch, directions, states, height, width),
        "D": normal(directions * channels),
        "delta_bias": normal(directions * channels),
    }


def ss2d_by(backend: ModuleType, *args: Any, **kwargs: Any) -> Any:
    """`ss2d_scan` computed by `backend`, whatever the dispatcher would choose."""
    return scan_by(backend, "ss2d_scan", *args, **kwargs)


def selective_by(backend: ModuleType, *args: Any, **kwargs: Any) -> Any:
    """`selective_scan` computed by `backend`."""
    return scan_by(backend, "selective_scan", *args, **kwargs)


def scan_by(backend: ModuleType, function: str, *args: Any, **kwargs: Any) -> Any:
    """The scan called `function`, computed by `backend`."""
    name = backend.__name__.rsplit(".", 1)[1]
    with mock.patch.object(dispatch, "choose_backend", return_value=name):
        return getattr(dispatch, function)(*args, **kwargs)


def leaves(arguments: Arguments, dtype: torch.dtype | None = None) -> Arguments:
    """The same values as leaves of a graph, in `dtype`."""
    return {
        name: None if t is None else t.detach().clone().to(dtype or t.dtype).requires_grad_()
        for name, t in arguments.items()
    }


def assert_like_reference(
    backend: ModuleType, function: str, arguments: Arguments, tolerance: float = 2e-6,
    **flags: bool | tuple[str, ...],
) -> None:  # fmt: skip
    """Output and every gradient of `backend.function` are those of the reference in float64.

    The gradients of D and delta_bias are sums over images and time that can nearly cancel; their
    errors are therefore compared with the sums of the terms' magnitudes.
    """
    found, exact = leaves(arguments), leaves(arguments, torch.float64)
    y = scan_by(backend, function, **found, **flags)
    expected = scan_by(reference, function, **exact, **flags)
    assert y.shape == expected.shape
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device)
    y.backward(grad)
    expected.backward(grad.double())
    assert_close("y", y, expected, tolerance)
    sizes = {"D": _magnitudes_of_d(function, arguments, grad, **flags)}
    if arguments["delta_bias"] is not None:
        sizes["delta_bias"] = exact["delta"].grad.abs().sum((0, -1))
    for name, tensor in found.items():
        if tensor is not None:
            assert_close(name, tensor.grad, exact[name].grad, tolerance, sizes.get(name))


def _magnitudes_of_d(
    function: str, arguments: Arguments, grad: Tensor, **flags: bool | tuple[str, ...]
) -> Tensor | None:
    """The sum of |grad * input| for each element of D: its gradient where nothing cancels."""
    if arguments["D"] is None:
        return None
    inputs = {name: arguments[name].abs() for name in ("u", "x") if name in arguments}
    terms = leaves(
        {**arguments, **inputs, **({"z": None} if "z" in arguments else {})}, torch.float64
    )
    scan_by(reference, function, **terms, **flags).backward(grad.abs().double())
    return terms["D"].grad


def assert_close(
    name: str, found: Tensor, expected: Tensor, tolerance: float, size: Tensor | None = None
) -> None:
    """Equal up to `tolerance` of the largest value of `size`, or of `expected` without it."""
    scale = max((expected if size is None else size).abs().max().item(), 1e-6)
    error = (found.double() - expected).abs().max().item() / scale
    assert error < tolerance, f"{name}: {error:.1e} of the largest value {scale:.2e}"


SUBSETS = [
    ("x", "delta", "B", "C"), ("x", "delta", "B", "C", "A"), ("x", "delta", "B", "C", "D"),
    ("x",), ("delta",), ("A",), ("B",), ("C",), ("D",), ("delta_bias",),
]  # fmt: skip
"""Gradients that somebody may ask for; the first are those of frozen parameters of the scan.

The CPU compiles a kernel for each, which takes a second.
"""
FEW_SUBSETS = [SUBSETS[0], ("x",), ("A", "D"), ("B",), ("C", "delta_bias")]
"""Each gradient is asked for with and without the others."""


def assert_gradients_asked_for(
    backend: ModuleType, function: str, arguments: Arguments, subsets: Sequence[tuple[str, ...]],
    tolerance: float = 0, **flags: bool,
) -> None:  # fmt: skip
    """The gradients of each subset are those computed among all, to the bit, the others None."""
    among_all = _gradients(backend, function, arguments, tuple(arguments), **flags)
    for subset in subsets:
        names = tuple("u" if name == "x" and "u" in arguments else name for name in subset)
        for name, gradient in _gradients(backend, function, arguments, names, **flags).items():
            assert (gradient is not None) == (name in names), (names, name)
            if gradient is not None and tolerance:
                assert_close(f"{name} of {names}", gradient, among_all[name].double(), tolerance)
            elif gradient is not None:
                assert torch.equal(gradient, among_all[name]), (names, name)


def _gradients(
    backend: ModuleType, function: str, arguments: Arguments, asked: tuple[str, ...], **flags: bool
) -> Arguments:
    found = leaves(arguments)
    for name, t in found.items():
        if t is not None:
            t.requires_grad_(name in asked)
    y = scan_by(backend, function, **found, **flags)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device)
    y.backward(grad)
    return {name: None if t is None else t.grad for name, t in found.items()}


def benchmark(name: str) -> Iterator[ModuleType]:
    """The script `name` of `benchmarks` as a module, for a fixture."""
    spec = spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
