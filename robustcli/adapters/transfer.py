"""Weights of another task into a network: everything but its heads, which are new."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from robustcli.adapters import timm_library
from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.families import FAMILIES, family_of
from robustcli.adapters.loading import Shapes, choose, counts, load_strictly, shapes_of
from robustcli.core.errors import UsageError
from robustcli.models.resnet_seg import ResNetSeg
from robustcli.models.umamba import Pair, UMamba, UMambaConfig

_INPUTS = {"encoder.stem.0.conv1.weight", "encoder.stem.0.conv3.weight"}
_PATCH = (
    "Weights of `umamba-enc` depend on the patch size: train with the patch of the pretraining's "
    "plan."
)


@torch.no_grad()
def transfer(
    network: nn.Module, state: Mapping[str, Tensor], entry: ModelEntry, heads: tuple[str, ...],
    origin: str, *, patch: Pair | None = None,
) -> list[str]:  # fmt: skip
    """Copies `state` into `network` but for its heads; the names of what was copied, in order.

    The heads stay as they were initialised, even where they would fit. Source: nnU-Net v2.1.1,
    `load_pretrained_weights`.

    Args:
        network: Changed in place.
        state: Weights under official names or ours.
        entry: What the network is.
        heads: Beginnings of the names of the tensors that stay as they are.
        origin: Where the weights come from, for messages.
        patch: Of a U-Mamba: the patch of the plan that they were trained with, where it is known.

    Raises:
        UsageError: A tensor is missing, unknown or of another shape; nothing was copied. Each is
            named. Or all fit, but the tokens of a U-Mamba are channels at one patch size and pixels
            at the other.
    """
    if isinstance(network, UMamba) and patch is not None:
        _check_tokens(network.config, patch, entry, origin)
    own = network.state_dict()
    remarks: tuple[str, ...] = ()
    if entry.builder == "timm":
        choice, remarks = timm_library.chosen(entry.variant, network, state)
    else:
        choice = choose(state, shapes_of(own), convert=partial(_converted, entry), heads=heads)
    names = [name for name in own if not name.startswith(heads)]
    if not choice.fits:
        expected, theirs = shapes_of(own), shapes_of(choice.state)
        needed = [name for name in names if name in theirs or not counts(name)]
        wrong = [name for name in needed if theirs.get(name) != expected[name]]
        wrong += [name for name in theirs if name not in own and not name.startswith(heads)]
        raise UsageError(
            f"The weights of `{origin}` do not fit `{entry.name}`.",
            f"Of {len(names)} tensors, {len(wrong)} differ: {_said(wrong, expected, theirs)}.",
            _advice(network, wrong, theirs),
        )
    copied = [name for name in names if name in choice.state]
    for name in copied:
        own[name].copy_(choice.state[name])
    choice.announce(origin, *remarks)
    return copied


def _converted(entry: ModelEntry, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    family = family_of(state)
    return FAMILIES[family].convert(state) if family and family == entry.family else state


def _check_tokens(config: UMambaConfig, patch: Pair, entry: ModelEntry, origin: str) -> None:
    """Shapes can agree by chance while a layer reads something else: upstream would not notice."""
    theirs = replace(config, patch_size=patch)
    stages = range((len(config.features) + 1) % 2, len(config.features), 2)
    if any(config.tokens(stage) != theirs.tokens(stage) for stage in stages):
        raise UsageError(
            f"The weights of `{origin}` do not fit `{entry.name}`.",
            f"They are for patches of {patch[0]} x {patch[1]} pixels, the network is for "
            f"{config.patch[0]} x {config.patch[1]}.",
            _PATCH,
        )


def _said(wrong: list[str], expected: Shapes, theirs: Shapes) -> str:
    return "; ".join(
        f"`{name}` is missing"
        if name not in theirs
        else f"`{name}` is {theirs[name]}, not {expected[name]}"
        if name in expected
        else f"`{name}` is unknown"
        for name in wrong
    )


def _advice(network: nn.Module, wrong: list[str], theirs: Shapes) -> str:
    if not isinstance(network, UMamba):
        return "Name the network that they are of, with the `--model-arg` that it was trained with."
    if set(wrong) <= _INPUTS:
        return "The number of input channels must be that of the pretraining."
    if all(".mamba_layers." in name and name in theirs for name in wrong):
        return _PATCH
    return (
        "Plan the new data set with the pretraining's plan: in nnU-Net that is "
        "`nnUNetv2_move_plans_between_datasets`."
    )


# --- Weights of an image classifier in the encoder of a segmenter ---------------------------------

# The children of torchvision's ResNet by their place in the encoder; relu and maxpool hold nothing.
_RESNET = {
    "conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"
}  # fmt: skip
_HEADS = ("fc.", "classifier.", "head.", "last_linear.")


def is_encoder_file(state: Mapping[str, Tensor]) -> bool:
    """Whether `state` is a classifier's rather than a segmenter's, which has more than an encoder.

    All tensors of an encoder may have a common prefix, `encoder.` too.
    """
    within = [key.startswith("encoder.") for key in state]
    return all(within) or not any(within)


def load_encoder(network: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Copies a classifier's weights into `network.encoder`; the classifier's head is left out.

    Args:
        network: A ResNet segmenter, or one whose encoder has the names of the classifier.
        state: Of timm's or torchvision's ResNet, or of the encoder itself.
        origin: Where the weights come from, for the message.

    Raises:
        UsageError: They are of another encoder.
    """
    encoder = network.get_submodule("encoder")

    def convert(named: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        body = {key: tensor for key, tensor in named.items() if not key.startswith(_HEADS)}
        ours = isinstance(network, ResNetSeg)
        return {_name(key): tensor for key, tensor in body.items()} if ours else body

    choice = choose(state, shapes_of(encoder.state_dict()), convert=convert, whole=True)
    advice = "Name weights of the encoder's own architecture, as timm or torchvision has them."
    load_strictly(encoder, choice.state, model="the encoder", origin=origin, advice=advice)
    choice.announce(origin)


def _name(key: str) -> str:
    child, _, rest = key.partition(".")
    return f"{_RESNET.get(child, child)}.{rest}"
