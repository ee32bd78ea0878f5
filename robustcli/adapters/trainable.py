"""Networks at the start of a training: randomly initialised, or with pretrained weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.adapters import smp_library, timm_library
from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.model import Trial, first_pass, made_up_image
from robustcli.adapters.networks import BUILDERS, is_trainable, own_preprocessing
from robustcli.adapters.preprocessing import Preprocessing, input_channels
from robustcli.adapters.strict_loading import (
    FAMILIES,
    Shapes,
    ablation_remarks,
    choose,
    counts,
    family_of,
    fitted_to_ablation,
    heads_in,
    load_strictly,
    shapes_of,
)
from robustcli.adapters.training_run import Header, read_trained
from robustcli.core.errors import UsageError
from robustcli.core.seeds import identity_seed
from robustcli.models.blocks import Pair, StagedUNet
from robustcli.models.conv_segmenters import ResNetSeg
from robustcli.models.swin_umamba import SwinUMamba, SwinUMambaD, encoder_weights
from robustcli.models.umamba import UMamba, UMambaConfig

NUM_CLASSES = "num_classes"
_SMP_HEAD = ("segmentation_head.",)
_INPUTS = {"encoder.stem.0.conv1.weight", "encoder.stem.0.conv3.weight"}
_PATCH = (
    "Weights of `umamba-enc` depend on the patch size: train with the patch size of the "
    "pretraining."
)


@torch.no_grad()
def transfer(
    network: nn.Module, state: Mapping[str, Tensor], entry: ModelEntry, heads: tuple[str, ...],
    origin: str, *, patch: Pair | None = None,
) -> list[str]:  # fmt: skip
    """Copies `state` except for the heads into `network`; returns the copied names in order.

    Heads keep their initialisation, even if their shapes match. Source: nnU-Net v2.1.1,
    `load_pretrained_weights`.

    Args:
        network: Changed in place.
        state: Weights under official names or ours.
        entry: Catalogue entry of the network.
        heads: Name prefixes of tensors that are not copied.
        origin: Origin of the weights, for messages.
        patch: For a U-Mamba, the patch size of the pretraining plan, if known.

    Raises:
        UsageError: Tensors are missing, unknown or have other shapes; the message names each, and
            nothing is copied. Or all shapes match, but the tokens of a U-Mamba are channels for one
            patch size and pixels for the other.
    """
    if isinstance(network, UMamba) and patch is not None:
        _check_tokens(network.config, patch, entry, origin)
    network_state = network.state_dict()
    remarks: tuple[str, ...] = ()

    def convert(file_state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return fitted_to_ablation(network, _converted(entry, file_state))

    if entry.builder == "timm":
        choice, remarks = timm_library.choose_weights(entry.variant, network, state)
    else:
        choice = choose(state, shapes_of(network_state), convert=convert, heads=heads)
        remarks = ablation_remarks(network, _converted(entry, choice.file_state))
    names = [name for name in network_state if not name.startswith(heads)]
    if not choice.fits:
        expected, file_shapes = shapes_of(network_state), shapes_of(choice.state)
        needed = [name for name in names if name in file_shapes or not counts(name)]
        mismatched = [name for name in needed if file_shapes.get(name) != expected[name]]
        mismatched += [
            name for name in file_shapes if name not in network_state and not name.startswith(heads)
        ]
        raise UsageError(
            f"The weights of `{origin}` do not match `{entry.name}`.",
            f"Of {len(names)} tensors, {len(mismatched)} differ: "
            f"{_described_mismatch(mismatched, expected, file_shapes)}.",
            _advice(network, mismatched, file_shapes),
        )
    copied = [name for name in names if name in choice.state]
    for name in copied:
        network_state[name].copy_(choice.state[name])
    choice.announce(origin, *remarks)
    return copied


def _converted(entry: ModelEntry, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    family = family_of(state)
    return FAMILIES[family].convert(state) if family and family == entry.family else state


def _check_tokens(config: UMambaConfig, patch: Pair, entry: ModelEntry, origin: str) -> None:
    """Detects layers whose shapes match by chance although their tokens differ."""
    pretrained = replace(config, patch_size=patch)
    stages = range((len(config.features) + 1) % 2, len(config.features), 2)
    if any(config.tokens(stage) != pretrained.tokens(stage) for stage in stages):
        raise UsageError(
            f"The weights of `{origin}` do not match `{entry.name}`.",
            f"They are for patches of {patch[0]} x {patch[1]} pixels, but the network is for "
            f"{config.patch[0]} x {config.patch[1]}.",
            _PATCH,
        )


def _described_mismatch(mismatched: list[str], expected: Shapes, file_shapes: Shapes) -> str:
    return "; ".join(
        f"`{name}` is missing"
        if name not in file_shapes
        else f"`{name}` is {file_shapes[name]}, not {expected[name]}"
        if name in expected
        else f"`{name}` is unknown"
        for name in mismatched
    )


def _advice(network: nn.Module, mismatched: list[str], file_shapes: Shapes) -> str:
    if not isinstance(network, StagedUNet):
        return "Specify the network to which they belong, with the `--model-arg` of its training."
    if set(mismatched) <= _INPUTS:
        return "The number of input channels must be that of the pretraining."
    if all(".mamba_layers." in name and name in file_shapes for name in mismatched):
        return _PATCH
    return (
        "Use the plan of the pretraining for the new data set: in nnU-Net with "
        "`nnUNetv2_move_plans_between_datasets`."
    )


# The children of torchvision's ResNet by index in the encoder; relu and maxpool have no weights.
_RESNET = {
    "conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"
}  # fmt: skip
_HEADS = ("fc.", "classifier.", "head.", "last_linear.")


def is_encoder_file(state: Mapping[str, Tensor]) -> bool:
    """Whether `state` is of a classifier; a segmenter has more than an encoder.

    All tensors of an encoder can have a common prefix, such as `encoder.`.
    """
    within = [key.startswith("encoder.") for key in state]
    return all(within) or not any(within)


def load_encoder(network: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Copies a classifier's weights without its head into `network.encoder`.

    Args:
        network: A ResNet segmenter, or one whose encoder has the names of the classifier.
        state: Weights of timm's or torchvision's ResNet, or of the encoder.
        origin: Origin of the weights, for the message.

    Raises:
        UsageError: The weights are of another encoder.
    """
    encoder = network.get_submodule("encoder")

    def convert(file_state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        renamed = _resnet_name if isinstance(network, ResNetSeg) else str
        return {
            renamed(key): tensor for key, tensor in file_state.items() if not key.startswith(_HEADS)
        }

    choice = choose(state, shapes_of(encoder.state_dict()), convert=convert, complete=True)
    advice = "Pass weights of the same encoder architecture, in the format of timm or torchvision."
    load_strictly(encoder, choice.state, model="the encoder", origin=origin, advice=advice)
    choice.announce(origin)


def _resnet_name(key: str) -> str:
    child, _, remainder = key.partition(".")
    return f"{_RESNET.get(child, child)}.{remainder}"


_PATCH_EMBEDDING = "patch_embed."
_SwinUMamba = SwinUMamba | SwinUMambaD


def _is_vmambas(state: Mapping[str, Tensor]) -> bool:
    """Whether `state` is of a VMamba alone, and not of a segmenter that has one as its encoder."""
    mark = FAMILIES["vmamba"].mark
    return family_of(state) in (None, "vmamba") and any(re.search(mark, key) for key in state)


def load_vmamba_encoder(network: _SwinUMamba, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Copies a VMamba classifier's weights without its head into the encoder of a Swin-UMamba.

    Tensors of the patch embedding that `encoder_weights` omits keep their initial values; a warning
    names them.

    Args:
        network: Changed in place.
        state: Weights of a VMamba under the names of any of its releases.
        origin: Origin of the weights, for messages.

    Raises:
        UsageError: The weights are of another encoder.
    """
    encoder = network.vssm_encoder
    encoder_state = encoder.state_dict()

    def copied(file_state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        weights = encoder_weights(network, FAMILIES["vmamba"].convert(file_state))
        return fitted_to_ablation(encoder, weights)

    def convert(file_state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        initial_state = {
            key: value for key, value in encoder_state.items() if key.startswith(_PATCH_EMBEDDING)
        }
        return {**initial_state, **copied(file_state)}

    choice = choose(state, shapes_of(encoder_state), convert=convert)
    advice = (
        "Its encoder is a VMamba of version v0 with the same depths and widths: that of "
        "`swin-umamba` and `swin-umamba-d` is `vmamba-t-v0`."
    )
    load_strictly(encoder, choice.state, model="the encoder", origin=origin, advice=advice)
    taken = copied(choice.file_state)
    remaining = ", ".join(f"`{name}`" for name in encoder_state if name not in taken)
    remark = (
        f"{len(taken)} of {len(encoder_state)} tensors of the encoder are copied, its head is not "
        "used"
    )
    initial = f"{remaining} keep their initial values" if remaining else ""
    choice.announce(origin, *filter(None, (remark, initial)))


_IMAGENET = {"resnet18_seg": "resnet18.tv_in1k", "resnet50_seg": "resnet50.tv_in1k"}
"""timm's names of torchvision's IMAGENET1K_V1, the initial weights of the tumour paper."""


def heads_of(entry: ModelEntry) -> tuple[str, ...]:
    """Name prefixes of the output layers of a segmenter."""
    if entry.builder == "smp":
        return _SMP_HEAD
    return FAMILIES[entry.family].head_prefixes


def for_classes(arguments: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Builder `arguments` of a segmenter with outputs for `classes` and background.

    Without classes, `arguments` are unchanged.
    """
    return {**arguments, NUM_CLASSES: len(classes) + 1} if classes else dict(arguments)


def carried_arguments(header: Header | None) -> dict[str, Any]:
    """Builder arguments of the weights with `header`, for a training on other data.

    Without the number of outputs that a segmenter got from the classes of its masks.
    """
    several = bool(getattr(header, "mask_classes", ()))
    arguments = {} if header is None else dict(header.arguments)
    return {name: arguments[name] for name in arguments if name != NUM_CLASSES or not several}


def check_class_count(arguments: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Raises UsageError if the typed number of outputs does not match the classes."""
    outputs = arguments.get(NUM_CLASSES)
    if classes and outputs not in (None, len(classes) + 1):
        raise UsageError(
            f"`--model-arg {NUM_CLASSES}={outputs}` contradicts the masks.",
            f"Background and {', '.join(classes)} need {len(classes) + 1} outputs.",
            "Omit it: the number of classes is determined from the masks.",
        )


def start_segmenter(
    entry: ModelEntry, arguments: Mapping[str, Any], *, seed: int, weights: Path | None = None,
    untrained: bool = False, offline: bool = False, classes: Sequence[str] = (),
) -> tuple[nn.Module, str]:  # fmt: skip
    """The segmenter with its initial weights, and their origin in words.

    Networks whose recipe needs an ImageNet encoder get its weights, or raise an error; all others
    get their documented random initialisation.

    Args:
        entry: Catalogue entry of the network.
        arguments: Builder arguments.
        seed: Seed of the random initialisation.
        weights: A file or the folder of a training run with initial weights; for a network with
            an ImageNet encoder also a file of that encoder in timm's or torchvision's format, and
            for a Swin-UMamba a file of its VMamba encoder.
        untrained: Whether to use random weights for every recipe.
        offline: Forbids downloads.
        classes: Mask classes without background; empty for foreground. A head for other classes
            in `weights` is not used.

    Raises:
        UsageError: The network has no weights to train, or the weights are of another network, or
            the ImageNet encoder is unavailable.
    """
    if entry.task != "seg" or not is_trainable(entry):
        raise UsageError(
            f"`{entry.name}` is not a segmenter that can be trained.", "", "Use another model."
        )
    arguments = for_classes(arguments, classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(identity_seed("start", entry.variant, seed, bits=63))
        if weights is not None and not untrained:
            return _from_file(entry, weights, arguments, classes)
        if untrained or not wants_imagenet(entry):
            network = BUILDERS[entry.builder].create(entry.variant, arguments)
            return network, f"none: initialised with seed {seed}"
        return _from_imagenet(entry, arguments, offline)


def wants_imagenet(entry: ModelEntry) -> bool:
    """Whether the recipe of the network needs an ImageNet encoder."""
    return entry.builder == "smp" or entry.network in _IMAGENET


def _from_file(
    entry: ModelEntry, weights: Path, options: Mapping[str, Any], classes: Sequence[str]
) -> tuple[nn.Module, str]:
    trained = read_trained(weights, entry)
    builder = BUILDERS[entry.builder]
    encoder_alone = family_of(trained.state) is None and is_encoder_file(trained.state)
    if wants_imagenet(entry) and encoder_alone:
        network = builder.create(entry.variant, options)
        load_encoder(network, trained.state, origin=str(weights))
        return network, f"encoder: {trained.path}"
    if entry.family == "swin-umamba" and _is_vmambas(trained.state):
        network = builder.create(entry.variant, options)
        assert isinstance(network, _SwinUMamba)
        load_vmamba_encoder(network, trained.state, origin=str(trained.path))
        return network, f"encoder: {trained.path}"
    arguments = {**carried_arguments(trained.header), **options}
    trained_classes = getattr(trained.header, "mask_classes", ())
    if tuple(classes) != trained_classes:
        network = builder.create(entry.variant, arguments)
        transfer(network, trained.state, entry, heads_of(entry), str(trained.path))
        of_file = (
            f"of {len(trained_classes)} other classes" if trained_classes else "of other masks"
        )
        return network, (
            f"{trained.path}, except its head, which is {of_file}: the head is initialised with "
            "the seed"
        )
    assert builder.with_weights is not None, "checked above"
    origin = str(trained.path)
    return builder.with_weights(entry.variant, trained.state, origin, arguments), origin


def _from_imagenet(
    entry: ModelEntry, options: Mapping[str, Any], offline: bool
) -> tuple[nn.Module, str]:
    try:
        if entry.builder == "smp":
            network = smp_library.create(entry.variant, options, pretrained=True, offline=offline)
            return network, f"encoder: {entry.variant.split('/')[1]}, ImageNet-1K"
        network = BUILDERS[entry.builder].create(entry.variant, options)
        source = _IMAGENET[entry.network]
        encoder = timm_library.create(source, pretrained=True, arguments={}, offline=offline)
    except UsageError as error:
        raise UsageError(
            f"`{entry.name}` starts from ImageNet weights, which are not on this machine.",
            f"{error.what} {error.why}",
            "Pass a file of its encoder, in the format of timm or torchvision, with `--weights "
            "FILE`, or start from random weights with `--untrained`.",
        ) from error
    load_encoder(network, encoder.state_dict(), origin=source)
    return network, f"encoder: https://huggingface.co/timm/{source}"


def start_classifier(
    entry: ModelEntry, classes: int, arguments: Mapping[str, Any], *, seed: int,
    weights: Path | None = None,
) -> tuple[nn.Module, str]:  # fmt: skip
    """The classifier for `classes` classes, and the origin of its weights in words.

    Args:
        entry: Catalogue entry of the network.
        classes: Number of classes; the last layer is always new.
        arguments: Builder arguments.
        seed: Seed of the random initialisation.
        weights: A file or the folder of a training run with weights for all other layers.

    Raises:
        UsageError: The arguments are invalid, or the weights are of another network.
    """
    trained = None if weights is None else read_trained(weights, entry)
    header_arguments = {} if trained is None or trained.header is None else trained.header.arguments
    network = initialised(entry, {**header_arguments, **arguments, NUM_CLASSES: classes}, seed)
    if trained is None:
        return network, f"none: initialised with seed {seed}"
    transfer(network, trained.state, entry, heads_in(network), str(trained.path))
    return network, str(trained.path)


def initialised(entry: ModelEntry, arguments: Mapping[str, Any], seed: int) -> nn.Module:
    """The network initialised with `seed`, float32, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(identity_seed("start", entry.variant, seed, bits=63))
        return BUILDERS[entry.builder].create(entry.variant, arguments).float()


def sized_preprocessing(
    entry: ModelEntry, arguments: Mapping[str, Any], window: int | None
) -> Preprocessing:
    """The network's preprocessing, for squares of `window` pixels if given.

    Raises:
        UsageError: The network does not support images of that size.
    """
    native = _native(entry, json.dumps(dict(arguments), sort_keys=True))
    if window is None or window == native.crop:
        return native
    sized = native.of_size(window)
    _check_size(entry, arguments, sized)
    return sized


@lru_cache(maxsize=8)
def _native(entry: ModelEntry, arguments: str) -> Preprocessing:
    options = json.loads(arguments)
    input_channels(options)  # checked before building
    preprocessing = own_preprocessing(entry, initialised(entry, options, 0), options)
    assert isinstance(preprocessing, Preprocessing), "only classifiers come here"
    return preprocessing


def _check_size(entry: ModelEntry, arguments: Mapping[str, Any], sized: Preprocessing) -> None:
    shape = (sized.channels, sized.crop, sized.crop)
    builder = f"{entry.builder}:{entry.variant}"
    trial = Trial(entry.name, builder, arguments, shape, size_flag="--window")
    network = initialised(entry, arguments, 0).eval()
    first_pass(lambda: network(made_up_image(shape).float() / 255), trial)
