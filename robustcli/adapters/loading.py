"""Weights into a network, all of them or an error that says what differs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from robustcli.core.errors import UsageError

Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name to shape."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def load_strictly(
    network: nn.Module, state: Mapping[str, Tensor], *, model: str, origin: str, advice: str | None
) -> None:
    """Copies `state` into `network`; every name and shape must be the network's.

    Args:
        network: Where the weights go.
        state: The weights.
        model: The network's name, for the message.
        origin: Where the weights come from, for the message.
        advice: What to do if they do not fit, where that is known, for the message.

    Raises:
        UsageError: A name is missing, unknown, or of another shape.
    """
    expected, given = shapes_of(network.state_dict()), shapes_of(state)
    if expected != given:
        raise UsageError(
            f"`{origin}` does not hold the weights of `{model}`.",
            differences(expected, given),
            advice or "Name the model that the file was made for.",
        )
    network.load_state_dict(dict(state))


def differences(expected: Shapes, given: Shapes, most: int = 3) -> str:
    """The first few names and shapes in which `given` is not `expected`, in words."""
    missing = [key for key in expected if key not in given]
    unknown = [key for key in given if key not in expected]
    other = [key for key in expected if key in given and expected[key] != given[key]]
    parts = []
    if other:
        shown = "; ".join(f"`{k}` is {given[k]}, not {expected[k]}" for k in other[:most])
        parts.append(f"{len(other)} of another shape ({shown})")
    if missing:
        parts.append(f"{len(missing)} missing ({', '.join(f'`{k}`' for k in missing[:most])})")
    if unknown:
        parts.append(f"{len(unknown)} unknown ({', '.join(f'`{k}`' for k in unknown[:most])})")
    return f"Of {len(expected)} expected tensors: {', '.join(parts)}."
