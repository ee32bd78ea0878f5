"""The scan of tensors on an Apple GPU: computed by the CPU kernel, copied there and back.

There is none where these tests are made. A tensor that says it is on `mps`, holds its numbers on
the CPU and refuses to be mixed with the CPU's stands for it; autograd does not take such a tensor,
so the gradients are checked with CUDA in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from robustcli.models.scan import cpu, dispatch, reference, selective_scan, ss2d_scan
from tests.models.scan.cases import image, sequence

CPU, MPS = torch.device("cpu"), torch.device("mps")


class Distant(Tensor):
    """A tensor on `mps` that holds its numbers on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Distant:
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), dtype=held.dtype, device=MPS
        )

    def __init__(self, held: Tensor) -> None:
        assert held.dtype != torch.float64, "MPS has no float64"
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


@contextmanager
def fake_mps() -> Iterator[None]:
    """While it is on, tensors can be sent to `mps`."""
    send = Tensor.to

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args != (MPS,):
            return send(tensor, *args, **kwargs)
        return tensor if isinstance(tensor, Distant) else Distant(tensor)

    with patch.object(Tensor, "to", to):
        yield


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operator where its tensors are, and refuses tensors of two devices."""
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    distant = [isinstance(t, Distant) for t in tensors]
    assert all(distant) or not any(distant), f"{func}: tensors on two devices"
    target = kwargs.get("device")
    there = any(distant) if target is None else target.type == "mps"
    args, kwargs = tree_map(lambda t: t.held if isinstance(t, Distant) else t, (args, kwargs))
    result = func(*args, **(kwargs if target is None else {**kwargs, "device": CPU}))
    return tree_map(lambda t: Distant(t) if there and isinstance(t, Tensor) else t, result)


def sent(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: Distant(v) if isinstance(v, Tensor) else v for k, v in arguments.items()}


def test_the_kernel_serves_where_it_can_and_else_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert dispatch.choose_backend(MPS, dtype) == "cpu"
    assert dispatch.choose_backend(MPS, torch.float64) == "reference"
    monkeypatch.setattr(cpu, "available", lambda: "numba is not installed.")
    assert dispatch.choose_backend(MPS, torch.float32) == "reference"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_images_scan_comes_back_to_the_gpu(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    arguments = {
        k: v.to(dtype) if k in ("x", "delta", "B", "C") else v
        for k, v in image(2, 4, 5, 6, 3).items()
    }
    with torch.no_grad():
        expected = ss2d_scan(**arguments)
    monkeypatch.setattr(reference, "scan", None)  # would be called by a loop in Python
    with torch.no_grad(), fake_mps():
        y = ss2d_scan(**sent(arguments))
    assert (y.device, y.dtype) == (MPS, torch.float32)
    torch.testing.assert_close(y.held, expected, rtol=0, atol=0)


@pytest.mark.parametrize("gated", [True, False])
def test_a_sequences_scan_comes_back_with_its_state(gated: bool) -> None:
    arguments = sequence(2, 6, 9, 3)
    if not gated:
        arguments = {**arguments, "z": None, "D": None, "delta_bias": None}
    with torch.no_grad():
        expected = selective_scan(**arguments, return_last_state=True)
    with torch.no_grad(), fake_mps():
        found = selective_scan(**sent(arguments), return_last_state=True)
    for one, other in zip(found, expected, strict=True):
        assert one.device == MPS
        torch.testing.assert_close(one.held, other, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("over_image", [True, False])
def test_gradients_come_back_to_the_gpu(monkeypatch: pytest.MonkeyPatch, over_image: bool) -> None:
    """With CUDA in the place of MPS: the same copies, and a device that autograd takes."""
    monkeypatch.setattr(cpu, "_DEVICES", ("cpu", "cuda"))
    monkeypatch.setenv(dispatch.VARIABLE, "cpu")
    scan = ss2d_scan if over_image else selective_scan
    arguments = image(2, 4, 5, 6, 3) if over_image else sequence(2, 6, 9, 3)
    results = []
    for device in ("cpu", "cuda"):
        tensors = {
            k: v.detach().to(device).requires_grad_() if isinstance(v, Tensor) else v
            for k, v in arguments.items()
        }
        y = scan(**tensors)
        assert y.device.type == device
        leaves = [t for t in tensors.values() if isinstance(t, Tensor)]
        gradients = torch.autograd.grad(y.square().sum(), leaves)
        assert all(g.device.type == device for g in gradients)
        results.append([y.detach().cpu(), *(g.cpu() for g in gradients)])
    for one, other in zip(*results, strict=True):
        # The gate is computed on the GPU, in float32 of its own.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
