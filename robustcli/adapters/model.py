"""The interface of loaded models, and their first forward pass with a synthetic image.

The first pass comes before anything is decoded or written. What a network says of an input that it
cannot take becomes a message with the input's shape, what the network wants where that can be found
out, and the option that changes it. What timm's networks want is tried on torch's `meta` device,
which computes shapes only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from robustcli.core.errors import RobustError, UsageError, first_line

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
GREY_NOTE = "`{}` reads one channel: images are turned into greyscale (luma of ITU-R BT.601)."
"""What is announced of a model that reads greyscale images."""


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a model for records, beside its preprocessing; `scans`: it needs the scan."""

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


SelfT = TypeVar("SelfT", bound="Model")


class Model(Protocol):
    """A network in eval mode on its device, with its preprocessing and precision."""

    network: nn.Module
    facts: ModelFacts
    notes: tuple[str, ...]
    """What is to be announced of how it was loaded, a line each."""
    device: torch.device
    precision: Precision

    @property
    def preprocessing(self) -> Any:
        """How images become its input: a dataclass with a `view`."""

    def to(self: SelfT, device: torch.device, precision: Precision) -> SelfT:
        """This model, moved."""

    def try_out(self) -> None:
        """Puts one made-up image through the network.

        Raises:
            UsageError: It cannot take images of its preprocessing, or does not answer as a model
                of its task does; the message says what it wants.
        """

    @property
    def predict(self) -> Callable[..., Any]:
        """Of equally long inputs, one entry an image, to the answers.

        The inputs of a classifier are views and true classes, those of a segmenter images of any
        size.
        """


IMG_SIZE = "img_size"
"""The option of timm's and of our own builders for networks that are made for one size."""
_SEED = 0
_ABOUT_DEVICE = ("CUDA", "cuDNN", "CUBLAS", "driver", "HIP", "MPS", "out of memory", "memory:")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Trial:
    """The settings of a first forward pass.

    Args:
        name: The network's, for messages.
        builder: What makes it, and of which variant: `timm:resnet18`.
        arguments: For the builder.
        shape: Channels, height and width of the image.
        size_flag: The option that sets the image's size; empty where there is none.
        precision: Of the forward pass.
    """

    name: str
    builder: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, int, int] = (3, 224, 224)
    size_flag: str = "--crop"
    precision: str = "fp32"

    @property
    def side(self) -> int:
        """Of the image, in pixels."""
        return self.shape[1]

    @property
    def variant(self) -> str | None:
        """Timm's name of the network; None for a network of others."""
        builder, _, variant = self.builder.partition(":")
        return variant if builder == "timm" else None


def made_up_image(shape: tuple[int, int, int]) -> Tensor:
    """The synthetic image of the first pass, uint8 (1, *shape): noise from a fixed seed."""
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randint(0, 256, (1, *shape), dtype=torch.uint8, generator=generator)


def first_pass(forward: Callable[[], _T], trial: Trial) -> _T:
    """The result of `forward` for the synthetic image; its errors become advice.

    Raises:
        UsageError: The network cannot take such an image.
    """
    try:
        with torch.inference_mode():
            return forward()
    except RobustError as error:
        raise UsageError(error.what, error.why, _flagged(error.todo, trial)) from error
    except MemoryError:
        raise
    except Exception as error:
        if any(word in str(error) for word in _ABOUT_DEVICE):
            raise  # the machine's fault, or a lack of memory: not one of the image
        raise _refused(trial, error) from error


def check_class_scores(scores: object, classes: int | None, trial: Trial) -> None:
    """Checks that a classifier says one finite number per image and class.

    Raises:
        UsageError: It says something else.
    """
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != 1:
        raise UsageError(
            f"`{trial.name}` does not answer as a classifier.",
            f"For one image it gives {shape}; expected (1, {classes or 'classes'}).",
            "Leave out the `--model-arg` that changes its output (`features_only`, `global_pool`).",
        )
    check_finite(scores.float().softmax(1), trial)


def check_finite(values: Tensor, trial: Trial) -> None:
    """Raises UsageError where the answer to an ordinary image is not a number."""
    if not torch.isnan(values).any():
        return
    if trial.precision == "fp32":
        raise UsageError(
            f"`{trial.name}` answers a made-up image with NaN (not a number).",
            "Its weights hold values that are not finite, or far too large.",
            "Name other weights with `--weights FILE`.",
        )
    alternative = "bf16` or `--precision fp32" if trial.precision == "fp16" else "fp32"
    raise UsageError(
        f"`{trial.name}` answers a made-up image with NaN (not a number).",
        f"Values inside it leave the range of `--precision {trial.precision}`.",
        f"Use `--precision {alternative}`.",
    )


@contextmanager
def norms_of_one_value(network: nn.Module) -> Iterator[list[str]]:
    """The batch norms that see one value per channel of an image that goes through `network`.

    Names are added while images, one at a time, go through it in the context. In training such a
    norm needs two images at least: of a single value there is no variance.
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
    """The advice of one of our networks, in terms of command-line options."""
    if not trial.size_flag:
        return todo
    if IMG_SIZE in todo:
        return (
            f"Give its own size with `{trial.size_flag}`, or build it for this one with "
            f"`--model-arg {IMG_SIZE}={trial.side}`."
        )
    return f"{todo} `{trial.size_flag} {trial.side}` sets the size.".strip()


def _refused(trial: Trial, error: Exception) -> UsageError:
    channels, side = trial.shape[0], trial.side
    shape = (1, *trial.shape)
    reason = f"{type(error).__name__}: {first_line(error)}"
    why = f"Its first forward pass, of an input of shape {shape}, ended with {reason.rstrip('.')}."
    if _is_about_channels(error):
        return UsageError(
            f"`{trial.name}` does not take images of {channels} channels.",
            why,
            "Leave out `--model-arg in_chans=...`, or name the number that its weights are for "
            "(3 for colour, 1 for greyscale).",
        )
    requirement, todo = _wants(trial)
    return UsageError(
        f"`{trial.name}` cannot take images of {side} x {side} pixels.",
        " ".join(part for part in (why, requirement) if part),
        todo,
    )


def _is_about_channels(error: Exception) -> bool:
    text = str(error)
    return "channels, but got" in text or "to have 1 channels" in text


def _wants(trial: Trial) -> tuple[str, str]:
    """The image size that the network needs, if it can be found out, and the advice."""
    flag = trial.size_flag
    if trial.variant is None:
        advice = "Use the size that it was published for"
        return "", f"{advice}: leave out `{flag}`." if flag else f"{advice}."
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
        requirement += f" The smallest that it takes is {smallest} x {smallest}."
    todo = ", or ".join(options) or "Use another size or another model"
    return requirement.strip(), f"{todo[0].upper()}{todo[1:]}."


def _smallest(trial: Trial, native_side: int | None) -> int | None:
    """The smallest side above that of the image that the network takes, where sizes are free."""
    if native_side is None or native_side <= trial.side or not _works(trial, native_side):
        return None
    if not all(
        _works(trial, native_side + extra) for extra in (1, 8)
    ):  # not every size above serves
        return None
    low, high = trial.side, native_side
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _works(trial, middle) else (middle, high)
    return high


def _works(trial: Trial, side: int, img_size: int | None = None) -> bool:
    """Whether the network, perhaps built for `img_size`, takes squares of `side` pixels."""
    assert trial.variant is not None, "only timm's are tried"
    size_argument = {} if img_size is None else {IMG_SIZE: img_size}
    try:
        with torch.device("meta"), torch.inference_mode():
            network = timm.create_model(
                trial.variant, pretrained=False, **{**trial.arguments, **size_argument}
            ).eval()
            for module in network.modules():
                if isinstance(module, _ConvNd):
                    module.register_forward_hook(_check_not_empty)
            network(torch.empty(1, trial.shape[0], side, side))
    except Exception:
        return False
    return True


def _check_not_empty(module: nn.Module, inputs: object, output: Tensor) -> None:
    """Raises ValueError for an image smaller than the kernel, which torch 2.6 allows on `meta`."""
    if output.numel() == 0:
        raise ValueError("the kernel is larger than the image")
