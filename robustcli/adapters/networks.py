"""Builds networks, with initial weights or those of a file; `robustcli.create_model`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustcli.adapters import smp_library, timm_families, timm_library
from robustcli.adapters.catalogue import CATALOGUE, ModelEntry
from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.model import IMG_SIZE
from robustcli.adapters.preprocessing import CIFAR10, Preprocessing, input_channels
from robustcli.adapters.segmenter import MaskPreprocessing, Otsu, native_window
from robustcli.adapters.strict_loading import (
    FAMILIES,
    Shapes,
    ablation_remarks,
    announce,
    body,
    choose,
    classes_in,
    family_of,
    fitted_to_ablation,
    load_strictly,
    members,
    recognise,
    shapes_of,
)
from robustcli.core.errors import UsageError, first_line
from robustcli.core.names import canonical, check_options, did_you_mean, nearest
from robustcli.models.ablation import scan_parameters
from robustcli.models.architectures import ARCHITECTURES, Architecture, architecture
from robustcli.models.vim import fit_positions

_CLASSIFIERS = ("vmamba", "vim")
"""Families with timm's methods."""


def create(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The network `name` of the registry with initial weights, in eval mode.

    Raises:
        UsageError: The network has no such option, or the value is invalid.
    """
    spec = architecture(name)
    _check_options(spec, options)
    try:
        if spec.family in _CLASSIFIERS:
            return timm_families.build(spec.family, spec.variant, **options).eval()
        return spec.build(**options).eval()
    except (TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
        typed = " ".join(f"{key}={value}" for key, value in options.items())
        raise UsageError(
            f"`{spec.name}` cannot be built with `{typed}`.",
            f"The error is: {first_line(error)}",
            "Compare with its default values: the fields of its `config` when built without "
            "options.",
        ) from error


def _check_options(spec: Architecture, options: Mapping[str, Any]) -> None:
    config = import_module(f"robustcli.models.{spec.module}").VARIANTS
    of_timm = timm_families.OPTIONS if spec.family in _CLASSIFIERS else ()
    own = [option for option in options if option not in of_timm]
    check_options(own, [field.name for field in fields(config[spec.variant])], owner=spec.name)


def with_weights(
    name: str, state: Mapping[str, Tensor], origin: str, options: Mapping[str, Any]
) -> nn.Module:
    """The network `name` with the weights `state`, in eval mode.

    Args:
        name: A name of the registry.
        state: Weights under official names or ours.
        origin: Origin of the weights, for messages.
        options: Builder arguments; `img_size` resizes the position embedding of a Vim.

    Raises:
        UsageError: The weights are of another network, which the message names if possible.
    """
    spec = architecture(name)
    network = create(name, options)

    def named(file_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        same_family = family_of(file_state) in (None, spec.family)
        return FAMILIES[spec.family].convert(file_state) if same_family else dict(file_state)

    def convert(file_state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        converted = fitted_to_ablation(network, named(file_state))
        if not isinstance(network, timm_families.TimmVim) or "img_size" not in options:
            return converted
        own = recognise(file_state) in (None, spec.variant)
        return fit_positions(converted, network.config.grid) if own else converted

    heads = FAMILIES[spec.family].head_prefixes
    choice = choose(state, shapes_of(network.state_dict()), convert=convert, heads=heads)
    advice = None
    if shapes_of(choice.state) != shapes_of(network.state_dict()):
        # A prefix can hide that the file is of a network that contains this one, as Swin-UMamba
        # VMamba. Only if it does not fit: `recognise` builds all networks of a family.
        of_file = choice.file_state if recognise(state) is None else state
        advice = _weights_advice(spec, network, of_file, options)
    load_strictly(network, choice.state, model=spec.name, origin=origin, advice=advice)
    choice.announce(origin, *ablation_remarks(network, named(choice.file_state)))
    return network


def with_classes_of_weights(
    name: str, state: Mapping[str, Tensor], origin: str, options: Mapping[str, Any]
) -> nn.Module:
    """Like `with_weights`, with the number of classes of the head in the file as default.

    Raises:
        UsageError: The weights are of another network, or of another number of classes.
    """
    if "num_classes" in options:
        return with_weights(name, state, origin=origin, options=options)
    spec = architecture(name)
    network, family = create(name, options), FAMILIES[spec.family]
    shapes = shapes_of(network.state_dict())

    def convert(file_state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return fitted_to_ablation(network, family.convert(file_state))

    choice = choose(state, shapes, convert=convert, heads=family.head_prefixes)
    classes = classes_in(shapes_of(choice.state), spec.family) if choice.fits else None
    if classes in (None, classes_in(shapes, spec.family)):
        return with_weights(name, state, origin=origin, options=options)
    network = with_weights(name, state, origin=origin, options={**options, "num_classes": classes})
    announce(f"`{origin}`: its head has {classes} classes, so that `{name}` has {classes} too.")
    return network


def _weights_advice(
    spec: Architecture, network: nn.Module, state: Mapping[str, Tensor], options: Mapping[str, Any]
) -> str | None:
    family = family_of(state)
    if family is None:
        return None
    recognised = recognise(state)
    if recognised is None and family == spec.family and _lacks_its_scan(network, state, family):
        return "They are weights of this network without its scan: add `--model-arg ablate=scan`."
    if recognised is not None and recognised != spec.variant:
        return f"These are the weights of `{recognised}`: use this name."
    if family != spec.family:
        return f"It is a file of {FAMILIES[family].title} ({', '.join(members(family))})."
    shapes = shapes_of(FAMILIES[family].convert(state))
    expected = shapes_of(network.state_dict())
    if body(shapes, family) == body(expected, family):
        return _other_classes(shapes, family, options)
    if recognised is not None:
        return f"They are the weights of `{recognised}` as published: omit the options."
    return _other_size(shapes, expected) or FAMILIES[family].advice


def _lacks_its_scan(network: nn.Module, state: Mapping[str, Tensor], family: str) -> bool:
    """Whether `state` lacks exactly the scan parameters of `network`."""
    shapes, expected = shapes_of(FAMILIES[family].convert(state)), shapes_of(network.state_dict())
    parts = scan_parameters(network)
    without = {name: shape for name, shape in expected.items() if name not in parts}
    return bool(parts) and body(shapes, family) == body(without, family)


def _other_classes(shapes: Shapes, family: str, options: Mapping[str, Any]) -> str | None:
    classes = classes_in(shapes, family)
    if classes is None:
        return "They have no head: the file contains only a backbone."
    if "num_classes" not in options:
        return (
            f"They are weights of this model with {classes} classes: set `num_classes={classes}` "
            f"(`--model-arg num_classes={classes}`, and specify the classes with `--label-space "
            "FILE`)."
        )
    layers = (
        head for head in FAMILIES[family].heads if any(key.startswith(f"{head}.") for key in shapes)
    )
    heads = " and ".join(f"`{head}`" for head in layers)
    requested = options["num_classes"]
    change = (
        f"call `model.reset_classifier({requested})`"
        if family in _CLASSIFIERS
        else f"replace {heads}"
    )
    return f"Load them with their own `num_classes={classes}`, then {change} and train it."


def _other_size(shapes: Shapes, expected: Shapes) -> str | None:
    """Advice if only the number of positions differs, because of another image size."""
    different = {key for key in {*shapes, *expected} if shapes.get(key) != expected.get(key)}
    if different - {"head.weight", "head.bias"} != {"pos_embed"}:
        return None
    side = math.isqrt(shapes["pos_embed"][1])
    return (
        f"They are for images with {side} x {side} patches: set `img_size`, in pixels, and the "
        "position embedding is resized to it."
    )


Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Builder:
    """Functions that build networks.

    Args:
        create: (variant, arguments) to the network with initial weights.
        with_weights: (variant, weights, origin, arguments) to the network with these weights; None
            for networks without weights.
        preprocessing: (variant, network) to the preprocessing.
        download: (variant, arguments, offline=...) to the network with weights of its library;
            None if the catalogue has the address of the weights.
    """

    create: Callable[[str, Arguments], nn.Module]
    with_weights: Callable[[str, Mapping[str, Tensor], str, Arguments], nn.Module] | None
    preprocessing: Callable[[str, nn.Module], Preprocessing | MaskPreprocessing]
    download: Callable[..., nn.Module] | None = None


def is_trainable(entry: ModelEntry) -> bool:
    """Whether `entry` has weights to train; baselines have none."""
    return BUILDERS[entry.builder].with_weights is not None


def own_preprocessing(
    entry: ModelEntry, network: nn.Module, arguments: Arguments
) -> Preprocessing | MaskPreprocessing:
    """The preprocessing of `network`, for its number of channels and input size.

    Raises:
        UsageError: The number of channels is not supported.
    """
    channels = input_channels(arguments)
    preprocessing = (
        BUILDERS[entry.builder].preprocessing(entry.variant, network).of_channels(channels)
    )
    side = arguments.get(IMG_SIZE) if entry.builder == "timm" else None
    if isinstance(preprocessing, Preprocessing) and isinstance(side, int):
        return preprocessing.of_size(side)
    return preprocessing


OFFICIAL = Preprocessing(resize=256, crop=224)
"""Preprocessing of VMamba's and Vim's evaluations."""


def _official(variant: str, network: nn.Module) -> Preprocessing:
    """VMamba's and Vim's preprocessing, at the input size of the network if it is fixed."""
    if variant == "vmamba-pico":
        return CIFAR10
    side = min(getattr(network.config, "image", (OFFICIAL.crop,)))
    if variant == "vim":
        return _of_cifar(variant, network)
    return Preprocessing(resize=side * 256 // 224, crop=side)


def _of_cifar(variant: str, network: nn.Module) -> Preprocessing:
    """Preprocessing for CIFAR, without crop, at the input size of the network."""
    size = getattr(network.config, "img_size", CIFAR10.crop)
    side = size if isinstance(size, int) else min(size)
    return replace(CIFAR10, resize=side, crop=side)


def _otsu(variant: str, arguments: Arguments) -> nn.Module:
    if arguments:
        raise UsageError(
            f"`{variant}` has no option `{next(iter(arguments))}=...`.", "It takes none."
        )
    return Otsu().eval()


def _windows(variant: str, network: nn.Module) -> MaskPreprocessing:
    return MaskPreprocessing(native_window(network))


_OURS = Builder(create, with_classes_of_weights, _official)
BUILDERS: dict[str, Builder] = {
    "vmamba": _OURS,
    "vim": _OURS,
    "cifar": Builder(create, with_classes_of_weights, _of_cifar),
    "timm": Builder(
        timm_library.create,
        timm_library.with_weights,
        lambda variant, network: timm_library.timm_preprocessing(network),
        partial(timm_library.create, pretrained=True),
    ),
    "zoo": Builder(create, with_classes_of_weights, _windows),
    "smp": Builder(smp_library.create, smp_library.with_weights, _windows),
    "otsu": Builder(
        _otsu,
        None,
        lambda variant, network: MaskPreprocessing(window=0),  # complete images
    ),
}


OUR_BUILDERS = ("vmamba", "vim", "cifar", "zoo")
"""Builders whose variants are names of `models.architectures.ARCHITECTURES`."""


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> nn.Module:
    """The network called `name`: float32, on the CPU, in eval mode.

    Args:
        name: One of our names in any spelling, a timm name (with its tag if there are no
            `weights`), or `smp:ARCHITECTURE/ENCODER`.
        weights: A file in the format of the model's authors or ours, loaded strictly. None keeps
            the initial weights of the authors' initialisation; nothing is downloaded.
        num_classes: Number of classes; None for that of the head in `weights`, or of the network.
        options: Changes to the network's configuration (`features`, `img_size`, ...).

    Raises:
        UsageError: The name or an option is unknown, or the file does not contain matching
            weights.
    """
    if num_classes is not None:
        options["num_classes"] = num_classes
    builder, variant = _resolve_builder(name, tagged=weights is None)
    if weights is None:
        return BUILDERS[builder].create(variant, options).float()
    load_weights = BUILDERS[builder].with_weights
    assert load_weights is not None, "every builder that has a name here has weights"
    return load_weights(variant, read_weights(Path(weights)), str(weights), options).float()


def _resolve_builder(name: str, *, tagged: bool) -> tuple[str, str]:
    """Builder and variant of the network called `name`.

    Args:
        name: Name as typed.
        tagged: Whether a timm name needs a tag that names the pretraining.
    """
    architectures = {canonical(key): entry for key, entry in ARCHITECTURES.items()}
    if canonical(name) in architectures:
        entry = architectures[canonical(name)]
        return "vmamba" if entry.task == "cls" else "zoo", entry.name
    if name.startswith(smp_library.SMP_PREFIX):
        return "smp", smp_library.smp_entry(name).variant
    short = {canonical(e.name): e.variant for e in CATALOGUE.values() if e.builder == "timm"}
    if canonical(name) in short:
        return "timm", short[canonical(name)]
    if timm_library.has_architecture(name):
        plain = timm_library.plain_name(name)
        if "." in plain or not tagged:
            return "timm", plain
        raise UsageError(
            f"`{name}` is a timm name without its pretraining.",
            "A name without a tag refers to different weights in different versions of timm.",
            f"Add the tag (`{name}.TAG`), or use `timm.create_model`.",
        )
    names = [*ARCHITECTURES, *(e.name for e in CATALOGUE.values() if e.builder == "timm")]
    raise UsageError(
        f"No model is called `{name}`.",
        did_you_mean(nearest(name, names)),
        f"Expected {', '.join(names)}, or any timm name with its tag.",
    )
