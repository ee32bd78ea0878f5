"""The interface of loaded models, and their first forward pass with a generated image.

The first pass runs before images are decoded or files written. An error of the network becomes a
message with the shape of the input, the input that the network expects (if it can be determined),
and the option that changes it. For timm networks the expected input is determined on torch's `meta`
device, which computes only shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from robustcli.adapters.preprocessing import check_side
from robustcli.core.errors import RobustError, RunError, UsageError, first_line

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
CONTIGUOUS_ONLY: tuple[type[nn.Module], ...] = (nn.GroupNorm,)
"""Layers that are inexact on channels-last images on CPUs: torch's group norm subtracts the squared
mean from the mean of squares in float32, which changes outputs by up to 1e-3 on photos."""
GREY_NOTE = "`{}` has one input channel: images are converted to greyscale (luma of ITU-R BT.601)."
"""Announcement for a model with greyscale input."""


@contextmanager
def number_format(device: torch.device, precision: Precision) -> Iterator[None]:
    """Context of forward passes: autocast for bf16 and fp16, full float32 for fp32.

    By default, torch rounds the operands of float32 convolutions to TF32 (10 bits of mantissa) on
    NVIDIA GPUs, so that predictions would differ from those of other devices.
    """
    autocast = AUTOCAST.get(precision)
    with torch.autocast(device.type, autocast, enabled=autocast is not None), _without_tf32():
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    mkldnn: Any = torch.backends.mkldnn
    places: list[Any] = []
    if hasattr(matmul, "fp32_precision"):  # since torch 2.9
        places = [cudnn.conv, cudnn.rnn, matmul, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]
    newer = [place.fp32_precision for place in places]
    try:
        older = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has used the newer settings, which the older ones cannot read
        older = None
    try:
        if older is not None:  # both, because torch refuses to read settings that disagree
            cudnn.allow_tf32 = False
            torch.set_float32_matmul_precision("highest")
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        if older is not None:
            cudnn.allow_tf32 = older[0]
            torch.set_float32_matmul_precision(older[1])
        for place, value in zip(places, newer, strict=True):
            place.fp32_precision = value


_INITIALISES = frozenset(
    {
        *("uniform_", "normal_", "constant_", "kaiming_uniform_", "kaiming_normal_"),
        *("erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_", "copy_"),  # of `trunc_normal_`
    }
)


class _SkippedInitialisation(TorchFunctionMode):
    """Skips operations that only change values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _INITIALISES:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Context that constructs networks on torch's `meta` device, on which tensors have no values.

    Initialisation is skipped: torch computes the result's shape of each of its steps in Python,
    which would take most of the time.
    """
    with torch.device("meta"), _SkippedInitialisation():
        yield


def needs_contiguous(network: nn.Module) -> bool:
    """Whether `network` has a layer that needs contiguous images (`CONTIGUOUS_ONLY`)."""
    return any(isinstance(layer, CONTIGUOUS_ONLY) for layer in network.modules())


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model for records.

    `scans` tells whether it uses the selective scan. `code_sha256` is the digest of the Python file
    that builds it.
    """

    name: str
    family: str
    builder: str
    arguments: dict[str, object]
    parameters: int
    weights: str
    weights_sha256: str
    pretraining: str
    untrained: bool
    label_space: str
    scans: bool
    code_sha256: str | None = None


SelfT = TypeVar("SelfT", bound="Model")


class Model(Protocol):
    """A network in eval mode on its device, with its preprocessing and precision."""

    network: nn.Module
    facts: ModelFacts
    notes: tuple[str, ...]
    """Announcements about loading, one line each."""
    device: torch.device
    precision: Precision

    @property
    def preprocessing(self) -> Any:
        """Preprocessing of the input: a dataclass with a `view`."""

    def to(self: SelfT, device: torch.device, precision: Precision) -> SelfT:
        """Moves this model to `device` and `precision`; returns it."""

    def try_out(self) -> None:
        """Runs one generated image through the network.

        Raises:
            UsageError: The network cannot process images of its preprocessing, or its output is
                not that of its task; the message states the expected input.
        """

    @property
    def predict(self) -> Callable[..., Any]:
        """Maps inputs of equal length, one item per image, to predictions.

        The inputs of a classifier are preprocessed images and true classes, those of a segmenter
        are images of any size.
        """


IMG_SIZE = "img_size"
"""The builder argument, of timm and of ours, of networks with a fixed input size."""
_SEED = 0
_ABOUT_DEVICE = ("CUDA", "cuDNN", "CUBLAS", "driver", "HIP", "MPS", "out of memory", "memory:")
_ABOUT_SIZE = ("size", "pixel", "shape", "side", "image", "window")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Trial:
    """A first forward pass.

    Args:
        name: Name of the network, for messages.
        builder: Builder and variant, such as `timm:resnet18`.
        arguments: Builder arguments.
        shape: Channels, height and width of the image.
        size_flag: The option that sets the image size; empty without one.
        precision: Precision of the forward pass.
    """

    name: str
    builder: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, int, int] = (3, 224, 224)
    size_flag: str = "--crop"
    precision: str = "fp32"

    @property
    def side(self) -> int:
        """Side of the image in pixels."""
        return self.shape[1]

    @property
    def variant(self) -> str | None:
        """Timm's name of the network; None for other networks."""
        builder, _, variant = self.builder.partition(":")
        return variant if builder == "timm" else None


def made_up_image(shape: tuple[int, int, int]) -> Tensor:
    """The generated image, uint8 (1, *shape): noise with a fixed seed."""
    check_side(max(shape[1:]), "--crop")
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randint(
        0, 256, (1, *shape), dtype=torch.uint8, generator=generator, device=generator.device
    )


def first_pass(forward: Callable[[], _T], trial: Trial) -> _T:
    """The result of `forward`, which runs the network on the generated image.

    Raises:
        UsageError: The network cannot process such an image.
    """
    try:
        with torch.inference_mode():
            return forward()
    except RobustError as error:
        about_size = any(word in str(error).lower() for word in _ABOUT_SIZE)
        todo = _flagged(error.todo, trial) if about_size else error.todo
        # A network does not know the name by which the user called it.
        what = error.what.replace("which the network does", f"which `{trial.name}` does")
        raise UsageError(what, error.why, todo) from error
    except MemoryError:
        raise
    except Exception as error:
        if any(word in str(error) for word in _ABOUT_DEVICE):
            raise  # caused by the machine or a lack of memory, not by the image
        raise _refused(trial, error) from error


def check_class_scores(scores: object, classes: int | None, trial: Trial) -> None:
    """Checks that a classifier returns one finite number per image and class.

    Raises:
        UsageError: It returns something else.
    """
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != 1:
        raise UsageError(
            f"`{trial.name}` does not have the output of a classifier.",
            f"For one image, its output has shape {shape}; expected (1, {classes or 'classes'}).",
            "Omit the `--model-arg` that changes its output (`features_only`, `global_pool`).",
        )
    check_finite(scores.float().softmax(1), trial)


def check_finite(values: Tensor, trial: Trial) -> None:
    """Raises UsageError if the output for the generated image is not finite."""
    if not torch.isnan(values).any():
        return
    reason, advice = _beyond_range(trial.precision)
    raise UsageError(
        f"`{trial.name}` returns NaN (not a number) for a synthetic image.",
        reason or "Its weights contain values that are not finite, or far too large.",
        advice or "Pass other weights with `--weights FILE`.",
    )


class NotFiniteError(RunError):
    """A network returned NaN for an image of the data."""


def check_probabilities(values: NDArray[np.float32], name: str, precision: Precision) -> None:
    """Checks the probabilities that the model `name` predicts for images of the data.

    The generated image does not exceed the range of a precision that a real image may exceed.
    Without this check, such an image would count as a prediction of an arbitrary class.

    Raises:
        NotFiniteError: A probability is NaN.
    """
    if not np.isnan(values.min(initial=0)):  # the minimum of values with a NaN is NaN
        return
    reason, advice = _beyond_range(precision)
    raise NotFiniteError(
        f"`{name}` returns NaN (not a number) for an image.",
        reason or "The network computes values that are not finite from this image.",
        advice or "Pass other weights with `--weights FILE`, or data without the image.",
    )


def _beyond_range(precision: str) -> tuple[str, str]:
    """Why an output is NaN, and what to do; empty for full precision."""
    if precision == "fp32":
        return "", ""
    alternative = "bf16` or `--precision fp32" if precision == "fp16" else "fp32"
    return (
        f"Its intermediate values exceed the range of `--precision {precision}`.",
        f"Use `--precision {alternative}`.",
    )


@contextmanager
def norms_of_one_value(network: nn.Module) -> Iterator[list[str]]:
    """Collects names of batch norms with a single value per channel and image.

    Names are added during forward passes with one image in the context. Such a layer needs at
    least two images in training, because a single value has no variance.
    """
    seen_names: dict[str, None] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            values = inputs[0]
            if values.ndim > 1 and values.numel() == values.shape[1]:
                seen_names[name] = None
                names[:] = seen_names

        return look

    names: list[str] = []
    norms = [(name, m) for name, m in network.named_modules() if isinstance(m, _BatchNorm)]
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in norms]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _flagged(todo: str, trial: Trial) -> str:
    """The advice of a network of ours, in terms of command-line options."""
    if not trial.size_flag:
        return todo
    if IMG_SIZE in todo:
        return (
            f"Set its size with `{trial.size_flag}`, or build it for this size with `--model-arg "
            f"{IMG_SIZE}={trial.side}`."
        )
    return f"{todo} `{trial.size_flag} {trial.side}` sets the size.".strip()


def _refused(trial: Trial, error: Exception) -> UsageError:
    channels, side = trial.shape[0], trial.side
    shape = (1, *trial.shape)
    reason = f"{type(error).__name__}: {first_line(error)}"
    why = f"Its first forward pass, of an input of shape {shape}, ended with {reason.rstrip('.')}."
    if "channels, but got" in str(error) or "to have 1 channels" in str(error):
        return UsageError(
            f"`{trial.name}` does not accept images with {channels} channels.",
            why,
            "Omit `--model-arg in_chans=...`, or set it to the number of its weights (3 for "
            "colour, 1 for greyscale).",
        )
    requirement, todo = _wants(trial)
    return UsageError(
        f"`{trial.name}` does not accept images of {side} x {side} pixels.",
        " ".join(part for part in (why, requirement) if part),
        todo,
    )


def _wants(trial: Trial) -> tuple[str, str]:
    """The input that the network expects, and advice, as far as it can be determined."""
    flag = trial.size_flag
    if trial.variant is None:
        advice = "Use the size that it was published for"
        return "", f"{advice}: omit `{flag}`." if flag else f"{advice}."
    config = timm.get_pretrained_cfg(trial.variant)
    native_side = int(config.input_size[-1]) if config is not None else None
    built_side = trial.arguments.get(IMG_SIZE)
    if isinstance(built_side, int) and _works(trial, built_side, built_side):
        return f"It is built for {built_side} x {built_side} pixels.", f"Use `{flag} {built_side}`."
    options, requirement = [], ""
    if native_side is not None and native_side != trial.side and _works(trial, native_side):
        requirement = f"It is made for {native_side} x {native_side} pixels."
        options.append(f"use `{flag} {native_side}`")
    if built_side is None and _works(trial, trial.side, trial.side):
        options.append(f"build it for this size with `--model-arg {IMG_SIZE}={trial.side}`")
    smallest = _smallest(trial, native_side)
    if smallest is not None:
        requirement += f" The smallest supported size is {smallest} x {smallest}."
    todo = ", or ".join(options) or "Use another size or another model"
    return requirement.strip(), f"{todo[0].upper()}{todo[1:]}."


def _smallest(trial: Trial, native_side: int | None) -> int | None:
    """The smallest supported side above that of the image, for networks without a fixed size."""
    if native_side is None or native_side <= trial.side or not _works(trial, native_side):
        return None
    if not all(
        _works(trial, native_side + extra) for extra in (1, 8)
    ):  # some larger sizes do not work
        return None
    low, high = trial.side, native_side
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _works(trial, middle) else (middle, high)
    return high


def _works(trial: Trial, side: int, img_size: int | None = None) -> bool:
    """Whether the network, built with `img_size` if given, accepts squares of `side` pixels."""
    assert trial.variant is not None, "only timm's are tried"
    size_argument = {} if img_size is None else {IMG_SIZE: img_size}
    try:
        with shapes_only():
            network = timm.create_model(
                trial.variant, pretrained=False, **{**trial.arguments, **size_argument}
            ).eval()
        with torch.device("meta"), torch.inference_mode():
            for module in network.modules():
                if isinstance(module, _ConvNd):
                    module.register_forward_hook(_check_not_empty)
            network(torch.empty(1, trial.shape[0], side, side))
    except Exception:
        return False
    return True


def _check_not_empty(module: nn.Module, inputs: object, output: Tensor) -> None:
    """Raises ValueError for images smaller than the kernel, which torch 2.6 accepts on `meta`."""
    if output.numel() == 0:
        raise ValueError("the kernel is larger than the image")
