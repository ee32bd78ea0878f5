"""What fine-tuning changes in a training: where it starts from, and what watches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import lightning.pytorch as pl
from torch import Tensor, nn


class Enough(Exception):  # noqa: N818  nothing went wrong
    """Ends a training that has given all that was wanted of it, in all its processes at once."""


@dataclass(frozen=True)
class Tuning:
    """The places where `run_training` asks; a plain training has none.

    Args:
        start: Gives the network that training begins with, and where its weights come from.
        callbacks: Of that network: what Lightning calls besides the usual.
        export: Of the trained network's state: that of the plain network, to be written.
    """

    start: Callable[[], tuple[nn.Module, str]]
    callbacks: Callable[[nn.Module], Sequence[pl.Callback]]
    export: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
