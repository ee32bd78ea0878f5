"""How `robust eval` gets each kind of classifier: one row per builder of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from robustcli.adapters import own, timm_library
from robustcli.adapters.first_pass import IMG_SIZE
from robustcli.adapters.preprocessing import Preprocessing, input_channels

OFFICIAL = Preprocessing(resize=256, crop=224)
"""Of VMamba's and Vim's own evaluations."""
PICO = Preprocessing(
    resize=32, crop=32, interpolation="bilinear",
    mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
)  # fmt: skip

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Builder:
    """What makes a network of a variant.

    Args:
        fresh: Of variant and arguments: as initialised.
        load: Of variant, weights, their origin and arguments: with weights.
        preprocessing: Of variant and network: its own.
        scans: Whether the selective scan runs in it.
    """

    fresh: Callable[[str, Arguments], nn.Module]
    load: Callable[[str, Mapping[str, Tensor], str, Arguments], nn.Module]
    preprocessing: Callable[[str, nn.Module], Preprocessing]
    scans: bool


def _load(
    variant: str, state: Mapping[str, Tensor], origin: str, arguments: Arguments
) -> nn.Module:
    return own.load_classifier(variant, state, origin=origin, options=arguments)


def _official(variant: str, network: nn.Module) -> Preprocessing:
    """VMamba's and Vim's own; at the size that the network was built for, where it has one."""
    if variant == "vmamba-pico":
        return PICO
    side = min(getattr(network.config, "image", (OFFICIAL.crop,)))
    if variant == "vim":  # for CIFAR, whose photos are not cut
        return replace(PICO, resize=side, crop=side)
    return Preprocessing(resize=side * 256 // 224, crop=side)


def _timm_fresh(variant: str, arguments: Arguments) -> nn.Module:
    return timm_library.create(variant, pretrained=False, arguments=arguments)


def _timm_load(
    variant: str, state: Mapping[str, Tensor], origin: str, arguments: Arguments
) -> nn.Module:
    return timm_library.load(variant, state, origin=origin, arguments=arguments)


def _timm_preprocessing(variant: str, network: nn.Module) -> Preprocessing:
    return timm_library.preprocessing(network)


def own_preprocessing(
    builder: str, variant: str, network: nn.Module, arguments: Arguments
) -> Preprocessing:
    """The preprocessing of a network, in the channels and the size that it was built for.

    Raises:
        UsageError: It is built for a number of channels that images here do not have.
    """
    own = BUILDERS[builder].preprocessing(variant, network).of_channels(input_channels(arguments))
    side = arguments.get(IMG_SIZE)
    return own.of_size(side) if builder == "timm" and isinstance(side, int) else own


_OURS = Builder(own.create, _load, _official, scans=True)
BUILDERS: dict[str, Builder] = {
    "vmamba": _OURS,
    "vim": _OURS,
    "timm": Builder(_timm_fresh, _timm_load, _timm_preprocessing, scans=False),
}
