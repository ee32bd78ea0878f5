"""The networks and weights that a training starts from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcli.adapters import smp_library, timm_library
from robustcli.adapters.builders import BUILDERS, learns, own_preprocessing
from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.families import family_of
from robustcli.adapters.first_pass import Tried, first_pass, made_up
from robustcli.adapters.load import resolve
from robustcli.adapters.loading import heads_in
from robustcli.adapters.preprocessing import Preprocessing, input_channels
from robustcli.adapters.training_run import Trained, read_trained
from robustcli.adapters.transfer import is_encoder_file, load_encoder, transfer
from robustcli.core.errors import UsageError
from robustcli.core.seeds import identity_seed

# The weights that training starts from.


_IMAGENET = {"resnet18_seg": "resnet18.tv_in1k", "resnet50_seg": "resnet50.tv_in1k"}
"""Timm's names of torchvision's IMAGENET1K_V1, from which the tumour paper starts."""


def start_weights(
    name: str, weights: Path | None = None, untrained: bool = False, offline: bool = False,
    seed: int = 0, arguments: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, str]:  # fmt: skip
    """The network `name` as training begins with it, and where its weights come from, in words.

    Networks whose recipe starts from an ImageNet encoder do so, or stop; every other one starts
    from its documented initialisation, which the seed decides.

    Args:
        name: A segmenter.
        weights: A file or the folder of a training run to go on from; for a network with an
            ImageNet encoder also a file of that encoder, as timm or torchvision has it.
        untrained: Start from random numbers whatever the recipe says.
        offline: Forbids every download.
        seed: Initialises what no file gives.
        arguments: For the builder.

    Raises:
        UsageError: Unknown name, foreign weights, or an ImageNet encoder that is not here.
    """
    entry, options = resolve(name), dict(arguments or {})
    if entry.task != "seg" or not learns(entry):
        raise UsageError(f"`{entry.name}` is no segmenter that learns.", "", "Name another model.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(identity_seed("start", entry.variant, seed, bits=63))
        if weights is not None and not untrained:
            return _from_file(entry, weights, options)
        if untrained or not wants_imagenet(entry):
            return BUILDERS[entry.builder].fresh(entry.variant, options), _random(seed)
        return _from_imagenet(entry, options, offline)


def _random(seed: int) -> str:
    return f"none: initialised with seed {seed}"


def wants_imagenet(entry: ModelEntry) -> bool:
    """Whether the recipe of the network starts from an ImageNet encoder."""
    return entry.builder == "smp" or entry.network in _IMAGENET


def _from_file(
    entry: ModelEntry, weights: Path, options: Mapping[str, Any]
) -> tuple[nn.Module, str]:
    trained = read_trained(weights, entry)
    builder = BUILDERS[entry.builder]
    if wants_imagenet(entry) and _is_encoders(trained):
        network = builder.fresh(entry.variant, options)
        load_encoder(network, trained.state, origin=str(weights))
        return network, f"encoder: {trained.path}"
    given = {**(trained.header.arguments if trained.header else {}), **options}
    assert builder.load is not None, "checked above"
    return builder.load(entry.variant, trained.state, str(trained.path), given), str(trained.path)


def _is_encoders(trained: Trained) -> bool:
    return family_of(trained.state) is None and is_encoder_file(trained.state)


def _from_imagenet(
    entry: ModelEntry, options: Mapping[str, Any], offline: bool
) -> tuple[nn.Module, str]:
    try:
        if entry.builder == "smp":
            network = smp_library.create(entry.variant, options, pretrained=True, offline=offline)
            return network, f"encoder: {entry.variant.split('/')[1]}, ImageNet-1K"
        network = BUILDERS[entry.builder].fresh(entry.variant, options)
        source = _IMAGENET[entry.network]
        encoder = timm_library.create(source, pretrained=True, arguments={}, offline=offline)
    except UsageError as error:
        raise _no_encoder(entry, error) from error
    load_encoder(network, encoder.state_dict(), origin=source)
    return network, f"encoder: https://huggingface.co/timm/{source}"


def _no_encoder(entry: ModelEntry, error: UsageError) -> UsageError:
    return UsageError(
        f"`{entry.name}` starts from ImageNet weights, which are not here.",
        f"{error.what} {error.why}",
        "Name a file of its encoder, as timm or torchvision has it, with `--weights FILE`; or "
        "start from random numbers with `--untrained`.",
    )


# The classifier that training begins with: a network for the classes of the data.


CLASSES = "num_classes"


def start_classifier(
    entry: ModelEntry, classes: int, arguments: Mapping[str, Any], *, seed: int,
    weights: Path | None = None,
) -> tuple[nn.Module, str]:  # fmt: skip
    """The network for so many classes, and where its weights come from, in words.

    Args:
        entry: What it is.
        classes: How many it tells apart; its last layer is always new.
        arguments: For the builder.
        seed: Initialises what no file gives.
        weights: A file or the folder of a training run to take all but the last layer from.

    Raises:
        UsageError: It cannot be built so, or the weights are of another network.
    """
    trained = None if weights is None else read_trained(weights, entry)
    said = {} if trained is None or trained.header is None else trained.header.arguments
    network = fresh(entry, {**said, **arguments, CLASSES: classes}, seed)
    if trained is None:
        return network, f"none: initialised with seed {seed}"
    transfer(network, trained.state, entry, heads_in(network), str(trained.path))
    return network, str(trained.path)


def fresh(entry: ModelEntry, arguments: Mapping[str, Any], seed: int) -> nn.Module:
    """The network as initialised with `seed`, float32, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(identity_seed("start", entry.variant, seed, bits=63))
        return BUILDERS[entry.builder].fresh(entry.variant, arguments).float()


def sized_preprocessing(
    entry: ModelEntry, arguments: Mapping[str, Any], window: int | None
) -> Preprocessing:
    """The network's own preprocessing, or that for squares of `window` pixels.

    Raises:
        UsageError: The network takes no images of that size.
    """
    own = _native(entry, json.dumps(dict(arguments), sort_keys=True))
    if window is None or window == own.crop:
        return own
    sized = own.of_size(window)
    _check_size(entry, arguments, sized)
    return sized


@lru_cache(maxsize=8)
def _native(entry: ModelEntry, arguments: str) -> Preprocessing:
    given = json.loads(arguments)
    input_channels(given)  # checked before anything is built
    own = own_preprocessing(entry, fresh(entry, given, 0), given)
    assert isinstance(own, Preprocessing), "only classifiers come here"
    return own


def _check_size(entry: ModelEntry, arguments: Mapping[str, Any], sized: Preprocessing) -> None:
    shape = (sized.channels, sized.crop, sized.crop)
    kind = f"{entry.builder}:{entry.variant}"
    tried = Tried(entry.name, kind, arguments, shape, size_flag="--window")
    network = fresh(entry, arguments, 0).eval()
    first_pass(lambda: network(made_up(shape).float() / 255), tried)
