"""Weights of another task into a network: everything but its heads, which are new."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from robustcli.adapters import timm_library
from robustcli.adapters.entry import ModelEntry
from robustcli.adapters.families import FAMILIES, family_of
from robustcli.adapters.loading import choose, counts, shapes_of
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
        UsageError: A tensor is missing, unknown or of another shape; nothing was copied. Each is
            named.
    """
    own = network.state_dict()
    remarks: tuple[str, ...] = ()
    if entry.builder == "timm":
        choice, remarks = timm_library.chosen(entry.variant, network, state)
    else:
        choice = choose(state, shapes_of(own), convert=partial(_converted, entry), heads=heads)
    names = [name for name in own if not name.startswith(heads)]
    if not choice.fits:
        shapes, theirs = shapes_of(own), shapes_of(choice.state)
        needed = [name for name in names if name in theirs or not counts(name)]
        wrong = [name for name in needed if theirs.get(name) != shapes[name]]
        wrong += [name for name in theirs if name not in own and not name.startswith(heads)]
        raise _does_not_fit(wrong, shapes, theirs, len(names), entry, origin)
    with torch.no_grad():
        for name in names:
            if name in choice.state:
                own[name].copy_(choice.state[name])
    choice.announce(origin, *remarks)


def _converted(entry: ModelEntry, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    family = family_of(state)
    return FAMILIES[family].convert(state) if family and family == entry.family else state


def _does_not_fit(
    wrong: list[str], expected: Mapping[str, tuple[int, ...]],
    theirs: Mapping[str, tuple[int, ...]], count: int, entry: ModelEntry, origin: str,
) -> UsageError:  # fmt: skip
    said = "; ".join(
        f"`{name}` is missing"
        if name not in theirs
        else f"`{name}` is {theirs[name]}, not {expected[name]}"
        if name in expected
        else f"`{name}` is unknown"
        for name in wrong
    )
    return UsageError(
        f"The weights of `{origin}` do not fit `{entry.name}`.",
        f"Of {count} tensors, {len(wrong)} differ: {said}.",
        "Name the network that they are of, with the `--model-arg` that it was trained with.",
    )
