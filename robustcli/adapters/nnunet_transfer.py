"""Trained weights into a network for another task, by nnU-Net's own rule.

Every tensor but those of the segmentation heads must be there in the same shape; the heads stay as
they were initialised, even where they would fit.
Source: nnU-Net v2.1.1, `load_pretrained_weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from robustcli.adapters.loading import Shapes, choose, shapes_of
from robustcli.core.errors import UsageError
from robustcli.models.aliases import without_aliases
from robustcli.models.umamba import UMamba
from robustcli.models.umamba_config import Pair, UMambaConfig

HEADS = ".seg_layers."
_PATCH = (
    "Weights of `umamba-enc` depend on the patch size: train with the patch of the pretraining's "
    "plan."
)


@torch.no_grad()
def transfer(
    network: UMamba, state: Mapping[str, Tensor], *, patch: Pair | None = None,
    origin: str = "the weights",
) -> list[str]:  # fmt: skip
    """Copies `state` into `network` but for the heads; the names of what was copied, in order.

    Args:
        network: A U-Mamba of ours.
        state: Weights under our names, or under all of nnU-Net's.
        patch: The patch of the plan that they were trained with, where it is known.
        origin: Where the weights come from, for messages.

    Raises:
        UsageError: A tensor is missing or of another shape; nothing was copied. Each is named. Or
            all fit, but tokens are channels at one patch size and pixels at the other.
    """
    if patch is not None:
        _check_tokens(network.config, patch)
    own = network.state_dict()
    names = [name for name in own if HEADS not in name]
    shapes = shapes_of(own)
    choice = choose(state, shapes, convert=without_aliases, heads=(f"decoder{HEADS}",))
    given, theirs = choice.state, shapes_of(choice.state)
    wrong = [name for name in names if theirs.get(name) != shapes[name]]
    if wrong:
        raise UsageError(
            "The pretrained weights do not fit the network.",
            f"Of {len(names)} tensors, {len(wrong)} differ: {_said(wrong, shapes, theirs)}.",
            _advice(wrong, theirs),
        )
    for name in names:
        own[name].copy_(given[name])
    choice.announce(origin)
    return names


def _check_tokens(config: UMambaConfig, patch: Pair) -> None:
    """Shapes can agree by chance while a layer reads something else: upstream would not notice."""
    theirs = replace(config, patch_size=patch)
    stages = range((len(config.features) + 1) % 2, len(config.features), 2)
    if any(config.tokens(stage) != theirs.tokens(stage) for stage in stages):
        raise UsageError(
            "The pretrained weights do not fit the network.",
            f"They are for patches of {patch[0]} x {patch[1]} pixels, the network is for "
            f"{config.patch[0]} x {config.patch[1]}.",
            _PATCH,
        )


def _said(wrong: list[str], expected: Shapes, given: Shapes) -> str:
    return "; ".join(
        f"`{name}` is {given[name]}, not {expected[name]}"
        if name in given
        else f"`{name}` is missing"
        for name in wrong
    )


def _advice(wrong: list[str], given: Shapes) -> str:
    inputs = {"encoder.stem.0.conv1.weight", "encoder.stem.0.conv3.weight"}
    if set(wrong) <= inputs:
        return "The number of input channels must be that of the pretraining."
    if all(".mamba_layers." in name and name in given for name in wrong):
        return _PATCH
    return (
        "Plan the new data set with the pretraining's plan: in nnU-Net that is "
        "`nnUNetv2_move_plans_between_datasets`."
    )
