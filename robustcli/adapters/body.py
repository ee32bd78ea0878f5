"""Weights of another task into a network: everything but its heads, which are new."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustcli.adapters.entry import ModelEntry
from robustcli.adapters.families import FAMILIES, family_of
from robustcli.adapters.loading import shapes_of
from robustcli.core.errors import UsageError


def fill_body(
    network: nn.Module, state: Mapping[str, Tensor], entry: ModelEntry, heads: tuple[str, ...],
    origin: str,
) -> None:  # fmt: skip
    """Copies `state` into `network` but for its heads.

    Args:
        network: Changed in place.
        state: Weights under official names or ours.
        entry: What the network is.
        heads: Beginnings of the names of the tensors that stay as they are.
        origin: Where the weights come from, for messages.

    Raises:
        UsageError: A tensor is missing or of another shape; nothing was copied. Each is named.
    """
    family = family_of(state)
    given = FAMILIES[family].convert(state) if family and family == entry.family else state
    own = network.state_dict()
    names = [name for name in own if not name.startswith(heads)]
    shapes, theirs = shapes_of(own), shapes_of(given)
    wrong = [name for name in names if theirs.get(name) != shapes[name]]
    if wrong:
        raise _does_not_fit(wrong, shapes, theirs, len(names), entry, origin)
    with torch.no_grad():
        for name in names:
            own[name].copy_(given[name])


def heads_in(network: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names of a classifier's last layers, which timm's contract tells."""
    told = network.get_classifier()  # type: ignore[operator]
    layers = told if isinstance(told, tuple | list) else (told,)
    return tuple(
        f"{name}." for name, module in network.named_modules() if any(module is x for x in layers)
    )


def _does_not_fit(
    wrong: list[str], expected: Mapping[str, tuple[int, ...]],
    theirs: Mapping[str, tuple[int, ...]], count: int, entry: ModelEntry, origin: str,
) -> UsageError:  # fmt: skip
    said = "; ".join(
        f"`{name}` is {theirs[name]}, not {expected[name]}"
        if name in theirs
        else f"`{name}` is missing"
        for name in wrong
    )
    return UsageError(
        f"The weights of `{origin}` do not fit `{entry.name}`.",
        f"Of {count} tensors, {len(wrong)} differ: {said}.",
        "Name the network that they are of, with the `--model-arg` that it was trained with.",
    )
