"""A device that is none: shows what would fail on a GPU because tensors of two devices meet.

Tensors that are sent to `GPU` stay on the CPU and are remembered by their memory, and so is
whatever is computed from them. An operation of torch on remembered and other tensors raises, as it
does with CUDA; single numbers, and what is made of them alone, may be mixed. Speed, precision and
kernels are those of the CPU. Backward hooks in Python are not followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from robustcli.models.scan import selective_scan, ss2d_scan

GPU, CPU = torch.device("cpu", 1), torch.device("cpu")
_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
_INDEX = torch.ops.aten.index.Tensor  # takes indices on the CPU


class _Memory:
    """Which tensors are on the imaginary GPU, and which may be on either device."""

    def __init__(self) -> None:
        self.sent: set[int] = set()
        self.neutral: set[int] = set()
        self.kept: list[Any] = []  # so that no address is given to another tensor
        self.in_scan = False

    def has(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.sent

    def is_neutral(self, tensor: Tensor) -> bool:
        is_sent = self.has(tensor)
        address = tensor.untyped_storage().data_ptr()
        return not is_sent and (tensor.ndim == 0 or address in self.neutral)

    def add(self, tensor: Tensor, addresses: set[int] | None = None) -> None:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            (self.sent if addresses is None else addresses).add(storage.data_ptr())
            self.kept.append(storage)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


class _Operations(TorchDispatchMode):
    """Follows the devices through every operation."""

    def __init__(self, memory: _Memory) -> None:
        super().__init__()
        self.memory = memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = _tensors((args, kwargs or {}))
        sent = [self.memory.has(tensor) for tensor in inputs]
        neutral = [self.memory.is_neutral(tensor) for tensor in inputs]
        if func in _COPIES:
            sent = sent[:1]
        elif func is not _INDEX and func.namespace == "aten" and not self.memory.in_scan:
            on_cpu = any(not a and not b for a, b in zip(sent, neutral, strict=True))
            assert not (any(sent) and on_cpu), f"{func} on tensors of two devices"
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if any(sent):
                self.memory.add(tensor)
            elif inputs and all(neutral):
                self.memory.add(tensor, self.memory.neutral)
        return result


class _Functions(TorchFunctionMode):
    """Sends tensors, and says where they are."""

    def __init__(self, memory: _Memory) -> None:
        super().__init__()
        self.memory = memory

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func == Tensor.device.__get__:
            return GPU if self.memory.has(args[0]) else CPU
        if name in ("numpy", "__array__"):
            assert not self.memory.has(args[0]), "numpy() of a tensor on the GPU"
        if name == "to" and len(args) > 1 and isinstance(args[1], Tensor):
            args = (args[0], GPU if self.memory.has(args[1]) else CPU, args[1].dtype, *args[2:])
        devices = [v for v in (*args[1:], kwargs.get("device")) if isinstance(v, torch.device)]
        if name == "cpu" or (name == "to" and devices):
            dtypes = [v for v in (*args[1:], kwargs.get("dtype")) if isinstance(v, torch.dtype)]
            return self._sent(args[0], CPU if name == "cpu" else devices[0], dtypes)
        self.memory.in_scan = func in (selective_scan, ss2d_scan)  # this mode is off inside
        result = func(*args, **kwargs)
        self.memory.in_scan = False
        if kwargs.get("device") == GPU:
            for tensor in _tensors(result):
                self.memory.add(tensor)
        return result

    def _sent(self, tensor: Tensor, device: torch.device, dtypes: list[torch.dtype]) -> Tensor:
        moved = tensor.to(dtypes[0], copy=True) if dtypes else tensor.clone()
        address = moved.untyped_storage().data_ptr()
        self.memory.sent.discard(address)
        if device == GPU:
            self.memory.add(moved)
        return moved


@contextmanager
def imaginary_gpu(*networks: nn.Module) -> Iterator[None]:
    """While it is on, `networks` are on `GPU`, and tensors can be sent there."""
    memory = _Memory()
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            memory.add(tensor)
    with _Operations(memory), _Functions(memory):
        yield
