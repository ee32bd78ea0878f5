"""The classifier that training begins with: a network for the classes of the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcli.adapters.body import fill_body
from robustcli.adapters.builders import BUILDERS, own_preprocessing
from robustcli.adapters.entry import ModelEntry
from robustcli.adapters.first_pass import Tried, first_pass, made_up
from robustcli.adapters.loading import heads_in
from robustcli.adapters.preprocessing import Preprocessing, input_channels
from robustcli.adapters.training_run import read_trained
from robustcli.core.seeds import identity_seed

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
    fill_body(network, trained.state, entry, heads_in(network), str(trained.path))
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
    return own_preprocessing(entry.builder, entry.variant, fresh(entry, given, 0), given)


def _check_size(entry: ModelEntry, arguments: Mapping[str, Any], sized: Preprocessing) -> None:
    shape = (sized.channels, sized.crop, sized.crop)
    kind = f"{entry.builder}:{entry.variant}"
    tried = Tried(entry.name, kind, arguments, shape, size_flag="--window")
    network = fresh(entry, arguments, 0).eval()
    first_pass(lambda: network(made_up(shape).float() / 255), tried)
