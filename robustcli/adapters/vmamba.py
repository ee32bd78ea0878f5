"""VMamba from its official files: old names, and which of the releases a file is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

import torch
from torch import Tensor

from robustcli.adapters.loading import Shapes, load_strictly, shapes_of
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import UsageError, first_line
from robustcli.models.vmamba import VARIANTS, VMamba, build

OFFICIAL = Preprocessing(resize=256, crop=224)
PICO = Preprocessing(
    resize=32, crop=32, interpolation="bilinear",
    mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
)  # fmt: skip

# The names of the v0 files (VMamba issue 53) and ours, applied in this order.
_OLD_NAMES = (
    (re.compile(r"^patch_embed\.proj\."), "patch_embed.0."),
    (re.compile(r"^patch_embed\.norm\."), "patch_embed.2."),
    (re.compile(r"\.ln_1\."), ".norm."),
    (re.compile(r"\.self_attention\."), ".op."),
    (re.compile(r"^norm\."), "classifier.norm."),
    (re.compile(r"^head\."), "classifier.head."),
)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under today's names; projections stored as 1x1 convolutions become matrices."""
    return {_new_name(key): _matrix(key, tensor) for key, tensor in state.items()}


def _new_name(key: str) -> str:
    for pattern, new in _OLD_NAMES:
        key = pattern.sub(new, key)
    return key


def _matrix(key: str, tensor: Tensor) -> Tensor:
    pointwise = re.search(r"\.(in_proj|out_proj|fc1|fc2|reduction|head)\.weight$", key)
    return tensor.flatten(1) if pointwise and tensor.shape[2:] == (1, 1) else tensor


def create(variant: str, arguments: Mapping[str, Any]) -> VMamba:
    """The network `variant`, freshly initialised, in eval mode.

    Raises:
        UsageError: It takes no such argument, or not such a value.
    """
    takes = asdict(VARIANTS[variant])
    for argument in arguments:
        if argument not in takes:
            raise UsageError(
                f"`{variant}` takes no `--model-arg {argument}=...`.",
                f"It takes {', '.join(takes)}.",
            )
    try:
        return build(variant, **arguments).eval()
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        given = " ".join(f"{key}={value}" for key, value in arguments.items())
        raise UsageError(
            f"`{variant}` cannot be built with `--model-arg {given}`.",
            f"It says: {first_line(error)}",
            f"Its own are {' '.join(f'{key}={value}' for key, value in takes.items())}.",
        ) from error


def load(
    variant: str, state: Mapping[str, Tensor], *, origin: str, arguments: Mapping[str, Any]
) -> VMamba:
    """The network `variant` with the weights `state`, in eval mode.

    Raises:
        UsageError: The weights are of another network; if of another release, the message names it.
    """
    network = create(variant, arguments)
    converted = convert(state)
    given = shapes_of(converted)
    fits = given == shapes_of(network.state_dict())
    advice = None if fits else _advice(network, variant, given)
    load_strictly(network, converted, model=variant, origin=origin, advice=advice)
    return network


def _advice(network: VMamba, variant: str, given: Shapes) -> str | None:
    really, head = recognise(given), given.get("classifier.head.weight")
    if really is None or head is None:
        return None
    if really != variant:
        return f"These are the weights of `{really}`: use `--model {really}`."
    if head[0] != network.num_classes:
        return (
            f"They are of this model with {head[0]} classes: use "
            f"`--model-arg num_classes={head[0]}` and name them with `--label-space FILE`."
        )
    return f"They are the weights of `{variant}` as published: leave out `--model-arg`."


def recognise(shapes: Shapes) -> str | None:
    """The variant whose names and shapes these are, whatever the number of classes; else None."""
    return next((name for name in VARIANTS if _body(_layout(name)) == _body(shapes)), None)


@cache
def _layout(variant: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes_of(build(variant).state_dict())


def _body(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in shapes.items() if not key.startswith("classifier.head.")}
