"""What every loaded model has, and its first forward pass, of one made-up image.

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
GREY = "`{}` reads one channel: images are turned into greyscale (luma of ITU-R BT.601)."
"""What is announced of a model that reads greyscale images."""


@dataclass(frozen=True)
class ModelFacts:
    """What a record says of a model beside its preprocessing; `scans`: it needs the scan."""

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
    """What is tried.

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
    """The image that is tried, uint8 (1, *shape): noise, the same every time."""
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randint(0, 256, (1, *shape), dtype=torch.uint8, generator=generator)


def first_pass(forward: Callable[[], _T], tried: Trial) -> _T:
    """What `forward` returns, which puts the image that is tried through the network.

    Raises:
        UsageError: The network cannot take such an image.
    """
    try:
        with torch.inference_mode():
            return forward()
    except RobustError as error:
        raise UsageError(error.what, error.why, _flagged(error.todo, tried)) from error
    except MemoryError:
        raise
    except Exception as error:
        if any(word in str(error) for word in _ABOUT_DEVICE):
            raise  # the machine's fault, or a lack of memory: not one of the image
        raise _refused(tried, error) from error


def check_scores(scores: object, classes: int | None, tried: Trial) -> None:
    """Checks that a classifier says one finite number per image and class.

    Raises:
        UsageError: It says something else.
    """
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != 1:
        raise UsageError(
            f"`{tried.name}` does not answer as a classifier.",
            f"For one image it gives {shape}; expected (1, {classes or 'classes'}).",
            "Leave out the `--model-arg` that changes its output (`features_only`, `global_pool`).",
        )
    check_finite(scores.float().softmax(1), tried)


def check_finite(values: Tensor, tried: Trial) -> None:
    """Raises UsageError where the answer to an ordinary image is not a number."""
    if not torch.isnan(values).any():
        return
    if tried.precision == "fp32":
        raise UsageError(
            f"`{tried.name}` answers a made-up image with NaN (not a number).",
            "Its weights hold values that are not finite, or far too large.",
            "Name other weights with `--weights FILE`.",
        )
    other = "bf16` or `--precision fp32" if tried.precision == "fp16" else "fp32"
    raise UsageError(
        f"`{tried.name}` answers a made-up image with NaN (not a number).",
        f"Values inside it leave the range of `--precision {tried.precision}`.",
        f"Use `--precision {other}`.",
    )


@contextmanager
def norms_of_one_value(network: nn.Module) -> Iterator[list[str]]:
    """The batch norms that see one value per channel of an image that goes through `network`.

    Names are added while images, one at a time, go through it in the context. In training such a
    norm needs two images at least: of a single value there is no variance.
    """
    found: dict[str, None] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            given = inputs[0]
            if given.ndim > 1 and given.numel() == given.shape[1]:
                found[name] = None
                names[:] = found

        return look

    names: list[str] = []
    norms = [(name, m) for name, m in network.named_modules() if isinstance(m, _BatchNorm)]
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in norms]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _flagged(todo: str, tried: Trial) -> str:
    """What a network of ours advises, in the options of the command line."""
    if not tried.size_flag:
        return todo
    if IMG_SIZE in todo:
        return (
            f"Give its own size with `{tried.size_flag}`, or build it for this one with "
            f"`--model-arg {IMG_SIZE}={tried.side}`."
        )
    return f"{todo} `{tried.size_flag} {tried.side}` sets the size.".strip()


def _refused(tried: Trial, error: Exception) -> UsageError:
    channels, side = tried.shape[0], tried.side
    shape = (1, *tried.shape)
    said = f"{type(error).__name__}: {first_line(error)}"
    why = f"Its first forward pass, of an input of shape {shape}, ended with {said.rstrip('.')}."
    if _is_about_channels(error):
        return UsageError(
            f"`{tried.name}` does not take images of {channels} channels.",
            why,
            "Leave out `--model-arg in_chans=...`, or name the number that its weights are for "
            "(3 for colour, 1 for greyscale).",
        )
    wants, todo = _wants(tried)
    return UsageError(
        f"`{tried.name}` cannot take images of {side} x {side} pixels.",
        " ".join(part for part in (why, wants) if part),
        todo,
    )


def _is_about_channels(error: Exception) -> bool:
    text = str(error)
    return "channels, but got" in text or "to have 1 channels" in text


def _wants(tried: Trial) -> tuple[str, str]:
    """What the network wants, and what to do; as far as it can be found out."""
    flag = tried.size_flag
    if tried.variant is None:
        known = "Use the size that it was published for"
        return "", f"{known}: leave out `{flag}`." if flag else f"{known}."
    config = timm.get_pretrained_cfg(tried.variant)
    own = int(config.input_size[-1]) if config is not None else None
    built = tried.arguments.get(IMG_SIZE)
    if isinstance(built, int) and _works(tried, built, built):
        return f"It is built for {built} x {built} pixels.", f"Use `{flag} {built}`."
    options, wants = [], ""
    if own is not None and own != tried.side and _works(tried, own):
        wants = f"It is made for {own} x {own} pixels."
        options.append(f"use `{flag} {own}`")
    if built is None and _works(tried, tried.side, tried.side):
        options.append(f"build it for this size with `--model-arg {IMG_SIZE}={tried.side}`")
    smallest = _smallest(tried, own)
    if smallest is not None:
        wants += f" The smallest that it takes is {smallest} x {smallest}."
    todo = ", or ".join(options) or "Use another size or another model"
    return wants.strip(), f"{todo[0].upper()}{todo[1:]}."


def _smallest(tried: Trial, own: int | None) -> int | None:
    """The smallest side above that of the image that the network takes, where sizes are free."""
    if own is None or own <= tried.side or not _works(tried, own):
        return None
    if not all(_works(tried, own + more) for more in (1, 8)):  # not every size above serves
        return None
    low, high = tried.side, own
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _works(tried, middle) else (middle, high)
    return high


def _works(tried: Trial, side: int, img_size: int | None = None) -> bool:
    """Whether the network, perhaps built for `img_size`, takes squares of `side` pixels."""
    assert tried.variant is not None, "only timm's are tried"
    more = {} if img_size is None else {IMG_SIZE: img_size}
    try:
        with torch.device("meta"), torch.inference_mode():
            network = timm.create_model(
                tried.variant, pretrained=False, **{**tried.arguments, **more}
            ).eval()
            for module in network.modules():
                if isinstance(module, _ConvNd):
                    module.register_forward_hook(_check_not_empty)
            network(torch.empty(1, tried.shape[0], side, side))
    except Exception:
        return False
    return True


def _check_not_empty(module: nn.Module, inputs: object, output: Tensor) -> None:
    """Raises ValueError for an image smaller than the kernel, which torch 2.6 allows on `meta`."""
    if output.numel() == 0:
        raise ValueError("the kernel is larger than the image")
