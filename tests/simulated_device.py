"""Runs `robust` with a simulated CUDA device, so that mixed devices are found without a GPU.

    python -m tests.simulated_device eval --model vmamba-pico --device cuda ...

Tensors "on the GPU" are wrappers of CPU tensors: their `device` is `cuda:0`, and an operation that
mixes them with CPU tensors of one or more dimensions is an error, as on a real GPU. Results are
those of the CPU, bit by bit. Kernels, autocast and memory of a GPU are not simulated. The network
runs the CPU's scan. Only the process itself is simulated: use `--workers 0` and one device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

# mypy: allow-untyped-calls, disable-error-code="no-untyped-call"

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_MAY_MIX = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::_index_put_impl_")
_PROPERTIES = SimpleNamespace(
    name="simulated", uuid="0", multi_processor_count=4, total_memory=2**34, major=9, minor=0
)
_ANSWERS: dict[str, Any] = {  # of functions of torch.cuda
    "is_available": True,
    "is_initialized": True,
    "is_bf16_supported": True,
    "device_count": 1,
    "current_device": 0,
    "get_device_name": "simulated GPU",
    "get_device_properties": _PROPERTIES,
    "get_device_capability": (9, 0),
    "max_memory_allocated": 2**20,
    "mem_get_info": (2**33, 2**34),
    "get_rng_state_all": [],
}
_WITHOUT_ANSWER = (
    *("synchronize", "empty_cache", "set_device", "reset_peak_memory_stats"),
    *("manual_seed", "manual_seed_all", "set_rng_state_all"),
)


class OnDevice(Tensor):
    """A tensor on the simulated device; `held` is the tensor with its data."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, layout=held.layout, device="cpu", requires_grad=False,
        )  # fmt: skip
        made.held = held
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Files contain the data."""
        return self.held.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Calls `func` unchanged."""
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls `func` with the data, unless it mixes devices."""
        kwargs, name = kwargs or {}, func._schema.name
        values, _ = tree_flatten((args, kwargs))
        tensors = [value for value in values if isinstance(value, Tensor)]
        elsewhere = [t for t in tensors if not isinstance(t, OnDevice) and t.ndim]
        if elsewhere and not name.startswith(_MAY_MIX):
            raise RuntimeError(f"Expected all tensors to be on the same device ({name}).")
        held = {id(t.held): t for t in tensors if isinstance(t, OnDevice)}
        result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if name == "aten::copy_" and not isinstance(args[0], OnDevice):
            return args[0]
        return tree_map(lambda t: held.get(id(t), OnDevice(t)) if type(t) is Tensor else t, result)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


class _ToDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return OnDevice(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _held(gradient)


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: OnDevice) -> Tensor:
        return x.held.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return OnDevice(gradient)


def _moved(value: Any, kind: str | None) -> Any:
    if kind == "cuda" and isinstance(value, Tensor) and not isinstance(value, OnDevice):
        return _ToDevice.apply(value)
    if kind == "cpu" and isinstance(value, OnDevice):
        return _ToCpu.apply(value)
    return value


def _kind(value: Any) -> str | None:
    """`cuda` or `cpu` if `value` is a device or a tensor on one."""
    if isinstance(value, Tensor):
        return "cuda" if isinstance(value, OnDevice) else "cpu"
    kind = str(value).partition(":")[0] if isinstance(value, str | torch.device) else ""
    return kind if kind in ("cuda", "cpu") else None


class Simulation(TorchFunctionMode):
    """While active, `cuda` as a device of torch's functions is the simulated device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Calls `func` on the CPU and moves its result."""
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if func in _MOVES:
            return _moved(first, _MOVES[func])
        if func in _ANSWERED and isinstance(first, OnDevice):
            return _ANSWERED[func](*args)
        if func is torch.Tensor.to:
            return _to(func, args, kwargs)
        kind = _kind(kwargs["device"]) if kwargs.get("device") is not None else None
        if kind is not None:
            kwargs["device"] = CPU
        return tree_map(lambda value: _moved(value, kind), func(*args, **kwargs))


def _copied(tensor: OnDevice, memo: dict[int, Any]) -> Any:
    if id(tensor) not in memo:
        copy: Tensor = OnDevice(tensor.held.clone())
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy
    return memo[id(tensor)]


def _refused(*_: Any) -> None:
    raise TypeError("can't convert cuda:0 device type tensor to numpy.")


_MOVES = {torch.Tensor.cpu: "cpu", torch.Tensor.cuda: "cuda", torch.Tensor.pin_memory: None}
_ANSWERED: dict[Any, Callable[..., Any]] = {
    torch.Tensor.device.__get__: lambda _: CUDA,  # type: ignore[attr-defined]
    torch.Tensor.is_cuda.__get__: lambda _: True,  # type: ignore[attr-defined]
    torch.Tensor.numpy: _refused,
    torch.Tensor.__array__: _refused,
    torch.Tensor.tolist: lambda tensor: tensor.held.tolist(),
    torch.Tensor.__deepcopy__: _copied,
}


def _to(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`Tensor.to`, for all of its forms."""
    tensor, *others = args
    kinds = [_kind(value) for value in (*others, kwargs.get("device"))]
    others = [o.dtype if isinstance(o, Tensor) else o for o in others]
    others = [o for o in others if _kind(o) is None and not isinstance(o, bool)]
    kept = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking")}
    if others or kept:
        tensor = func(tensor, *others, **kept)
    return _moved(tensor, next((kind for kind in kinds if kind), None))


class _NoGradients:
    """Stands for `torch.inference_mode`, in which wrappers cannot be made."""

    def __init__(self, mode: Any = True) -> None:
        self.mode = mode

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with torch.no_grad() if self.mode else nullcontext():
                return function(*args, **kwargs)

        return wrapped

    def __enter__(self) -> None:
        self.context = torch.no_grad() if self.mode else nullcontext()
        self.context.__enter__()

    def __exit__(self, *error: object) -> None:
        self.context.__exit__(*error)


def _simulate() -> None:
    """Replaces what asks for a driver, for the rest of the process."""
    for name in _WITHOUT_ANSWER:
        setattr(torch.cuda, name, lambda *_, **__: None)
    for name, answer in _ANSWERS.items():
        setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
    torch.inference_mode = _NoGradients  # type: ignore[assignment, misc]
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    for check in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        setattr(torch.optim.Optimizer, check, lambda _: None)

    # Imported only now, because decorators of the package use torch.inference_mode.
    from robustcli.models.scan import dispatch

    choose = dispatch.choose_backend
    dispatch.choose_backend = lambda device, *others: choose(CPU, *others)


if __name__ == "__main__":
    _simulate()
    from robustcli.cli import main

    with Simulation():
        main()
