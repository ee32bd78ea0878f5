"""The families of our networks as their files show them: which family, which member, how wide."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from robustcli.adapters.loading import Shapes, shapes_of
from robustcli.models.architectures import ARCHITECTURES
from robustcli.models.umamba import without_aliases

# VMamba's official files under today's names.


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


_PLAN = (
    "Give the options of its plan: `robustcli.models.umamba.plan_options` reads them from "
    "an entry of `configurations` in `plans.json`."
)


@dataclass(frozen=True)
class Family:
    """How one family's files look.

    Args:
        title: Its name, for messages.
        mark: A pattern at the beginning of a tensor's name that only its files hold.
        heads: Layers whose size is the number of classes.
        convert: Official names and shapes to ours.
        advice: What to do with a file of the family that fits none of its members.
    """

    title: str
    mark: str
    heads: tuple[str, ...]
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    advice: str = "It fits none of them as published: give the options that it was trained with."


FAMILIES: dict[str, Family] = {
    "vmamba": Family(
        "VMamba",
        r"layers\.0\.blocks\.0\.(op|self_attention)\.",
        ("classifier.head",),
        convert,
    ),
    "vim": Family("Vim", r"layers\.0\.mixer\.A_b_log$", ("head",)),
    "vmunet": Family("VM-UNet", r"vmunet\.", ("vmunet.final_conv",)),
    "umamba": Family(
        "U-Mamba",
        r"(mamba_layer|encoder\.mamba_layers)\.",
        ("decoder.seg_layers",),
        without_aliases,
        _PLAN,
    ),
    "umambabot": Family("UMambaBot", r"mamba\.A_log$", ("decoder.seg_layers",), without_aliases),
    "ulvm": Family("UL-VM-UNet", r"scab\.", ("final",)),
    "unet": Family("U-Net", r"upconv\d\.", ("conv",)),
    "segformer": Family("SegFormer", r"encoder\.stages\.0\.overlap_patch", ("head.predict",)),
    "resnet_seg": Family("the ResNet segmenters", r"encoder\.7\.0\.", ("decoder.6",)),
}


def family_of(names: Iterable[str]) -> str | None:
    """The key in FAMILIES of the family whose files hold such names; None for a foreign file."""
    known = list(names)
    return next(
        (key for key, family in FAMILIES.items() if any(re.match(family.mark, n) for n in known)),
        None,
    )


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """The network whose names and shapes `state` has, whatever its number of classes; else None."""
    family = family_of(state)
    if family is None:
        return None
    shapes = body(shapes_of(FAMILIES[family].convert(state)), family)
    return next((name for name in members(family) if body(layout(name), family) == shapes), None)


def members(family: str) -> list[str]:
    """The names in `family` that are not merely another name of a member."""
    own = [a for a in ARCHITECTURES.values() if a.family == family]
    return [a.name for a in own if a.name == a.variant]


@cache
def layout(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network `name` as published."""
    with torch.device("meta"):
        return shapes_of(ARCHITECTURES[name].build().state_dict())


def body(shapes: Shapes, family: str) -> dict[str, tuple[int, ...]]:
    """`shapes` without those that the number of classes decides."""
    heads = tuple(f"{head}." for head in FAMILIES[family].heads)
    return {key: shape for key, shape in shapes.items() if not key.startswith(heads)}


def classes_in(shapes: Shapes, family: str) -> int | None:
    """For how many classes weights of these shapes are; None without a head."""
    heads = tuple(f"{head}." for head in FAMILIES[family].heads)
    biases = [s[0] for key, s in shapes.items() if key.startswith(heads) and len(s) == 1]
    return biases[0] if biases else None
