"""How each kind of network of the catalogue is made: one row per builder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from robustcli.adapters import create, smp_library, timm_library
from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.first_pass import IMG_SIZE
from robustcli.adapters.preprocessing import Preprocessing, input_channels
from robustcli.adapters.segmenter import MaskPreprocessing, Otsu, native_window
from robustcli.core.errors import UsageError

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Builder:
    """What makes a network of a variant.

    Args:
        fresh: Of variant and arguments: as initialised.
        load: Of variant, weights, their origin and arguments: with weights; None for what has none.
        preprocessing: Of variant and network: its own.
        download: Of variant, arguments and whether the network is forbidden: with the library's own
            weights; None where the catalogue says where the weights are.
    """

    fresh: Callable[[str, Arguments], nn.Module]
    load: Callable[[str, Mapping[str, Tensor], str, Arguments], nn.Module] | None
    preprocessing: Callable[[str, nn.Module], Preprocessing | MaskPreprocessing]
    download: Callable[[str, Arguments, bool], nn.Module] | None = None


def learns(entry: ModelEntry) -> bool:
    """Whether there is anything to train in `entry`; a baseline has no weights."""
    return BUILDERS[entry.builder].load is not None


def own_preprocessing(
    entry: ModelEntry, network: nn.Module, arguments: Arguments
) -> Preprocessing | MaskPreprocessing:
    """The preprocessing of `network`, in the channels and the size that it was built for.

    Raises:
        UsageError: It is built for a number of channels that images here do not have.
    """
    channels = input_channels(arguments)
    own = BUILDERS[entry.builder].preprocessing(entry.variant, network).of_channels(channels)
    side = arguments.get(IMG_SIZE)
    if entry.builder == "timm" and isinstance(own, Preprocessing) and isinstance(side, int):
        return own.of_size(side)
    return own


# Our classifiers.


OFFICIAL = Preprocessing(resize=256, crop=224)
"""Of VMamba's and Vim's own evaluations."""
PICO = Preprocessing(
    resize=32, crop=32, interpolation="bilinear",
    mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
)  # fmt: skip


def _load_classifier(
    variant: str, state: Mapping[str, Tensor], origin: str, arguments: Arguments
) -> nn.Module:
    return create.load_classifier(variant, state, origin=origin, options=arguments)


def _official(variant: str, network: nn.Module) -> Preprocessing:
    """VMamba's and Vim's own; at the size that the network was built for, where it has one."""
    if variant == "vmamba-pico":
        return PICO
    side = min(getattr(network.config, "image", (OFFICIAL.crop,)))
    if variant == "vim":  # for CIFAR, whose photos are not cut
        return replace(PICO, resize=side, crop=side)
    return Preprocessing(resize=side * 256 // 224, crop=side)


# Classifiers of timm.


def _timm_fresh(variant: str, arguments: Arguments) -> nn.Module:
    return timm_library.create(variant, pretrained=False, arguments=arguments)


def _timm_load(
    variant: str, state: Mapping[str, Tensor], origin: str, arguments: Arguments
) -> nn.Module:
    return timm_library.load(variant, state, origin=origin, arguments=arguments)


def _timm_preprocessing(variant: str, network: nn.Module) -> Preprocessing:
    return timm_library.preprocessing(network)


def _timm_download(variant: str, arguments: Arguments, offline: bool) -> nn.Module:
    return timm_library.create(variant, pretrained=True, arguments=arguments, offline=offline)


# Segmenters: ours, those of segmentation_models_pytorch, and the baseline without weights.


def _load_segmenter(
    variant: str, state: Mapping[str, Tensor], origin: str, arguments: Arguments
) -> nn.Module:
    return create.load(variant, state, origin=origin, options=arguments)


def _windows(variant: str, network: nn.Module) -> MaskPreprocessing:
    return MaskPreprocessing(native_window(network))


def _otsu(variant: str, arguments: Arguments) -> nn.Module:
    if arguments:
        raise UsageError(f"`{variant}` takes no `{next(iter(arguments))}=...`.", "It takes none.")
    return Otsu().eval()


def _whole_images(variant: str, network: nn.Module) -> MaskPreprocessing:
    return MaskPreprocessing(window=0)


_OURS = Builder(create.create, _load_classifier, _official)
BUILDERS: dict[str, Builder] = {
    "vmamba": _OURS,
    "vim": _OURS,
    "timm": Builder(_timm_fresh, _timm_load, _timm_preprocessing, _timm_download),
    "zoo": Builder(create.create, _load_segmenter, _windows),
    "smp": Builder(smp_library.create, smp_library.load, _windows),
    "otsu": Builder(_otsu, load=None, preprocessing=_whole_images),
}
