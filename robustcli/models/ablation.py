"""Removes the state-space scan from networks, for controls that measure its contribution.

`ablate="scan"` in the configuration of a network replaces every selective scan by the identity: the
block passes on what the scan would have read, each direction its own, and keeps what stands around
it, that is the projections in and out, the depthwise convolution with its activation, the gate and
the norm. What remains is MambaOut's gated convolution block (Yu and Wang, "MambaOut: Do We Really
Need Mamba for Vision?", arXiv 2405.07992), which it defines as the Mamba block without its
state-space model.

What only the scan reads is removed with it: A, D, the projection to step sizes, B and C (`x_proj`),
and that of the step sizes alone (`dt_proj`). Kept, they would count as parameters and be decayed
without an influence on any output. So a control has fewer parameters than its network, and says how
many. D is removed too, although it scales what the identity passes on: in a Mamba block the
projection out, which follows, can do the same.

The blocks equal those with a scan whose C is 0 and whose D is 1, its initial value. A network and
its control of one seed start from the same numbers in everything that both have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

from torch import nn

from robustcli.core.errors import UsageError
from robustcli.models.architectures import ARCHITECTURES

Ablation = Literal["scan"]
SCAN: Ablation = "scan"


class ScanBlock(nn.Module):
    """A block around a selective scan, which can be built without it.

    `scan_parts` are the names of its parameters and layers that only the scan reads.
    """

    scan_parts: ClassVar[tuple[str, ...]]
    removed: Mapping[str, tuple[int, ...]] = {}
    """Names and shapes of the parameters that were removed with the scan; empty with a scan."""

    def remove_scan(self) -> None:
        """Makes the scan the identity, and removes what only it reads."""
        self.removed = self.scan_parameters
        for part in self.scan_parts:
            setattr(self, part, None)

    @property
    def scan_parameters(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters that only the scan reads."""
        return {
            name: tuple(parameter.shape)
            for name, parameter in self.named_parameters()
            if name.split(".")[0] in self.scan_parts
        }

    @property
    def scans(self) -> bool:
        """Whether it has its scan."""
        return not self.removed


def scan_blocks(network: nn.Module) -> dict[str, ScanBlock]:
    """The blocks of `network` that have a scan, or had one before it was ablated, by name."""
    modules = network.named_modules()
    return {name: module for name, module in modules if isinstance(module, ScanBlock)}


def has_scan(network: nn.Module) -> bool:
    """Whether any block of `network` scans."""
    return any(block.scans for block in scan_blocks(network).values())


def ablate_network(network: nn.Module, ablation: str | None, *, model: str) -> None:
    """Removes from `network` what its configuration says, after everything was initialised.

    Args:
        network: Changed in place.
        ablation: `scan`, or None for nothing.
        model: Its name, for messages.

    Raises:
        UsageError: The ablation is unknown, or the network has no scan.
    """
    if ablation is None:
        return
    if ablation != SCAN:
        raise UsageError(
            f"`{model}` cannot be built with `ablate={ablation}`.",
            "",
            f"The only part that can be ablated is `{SCAN}`.",
        )
    blocks = scan_blocks(network)
    if not blocks:
        raise no_scan(model)
    for block in blocks.values():
        block.remove_scan()


def no_scan(model: str) -> UsageError:
    """The error for ablating a network that has no state-space scan."""
    names = [name for name, architecture in ARCHITECTURES.items() if architecture.scans]
    return UsageError(
        f"`--ablate {SCAN}` does not go with `{model}`.",
        "It has no state-space scan.",
        f"Leave it out; networks with a scan: {', '.join(names)}.",
    )


def scan_parameters(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of `network` that only its scans read."""
    return _of_network(network, lambda block: block.scan_parameters)


def removed_parameters(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters that `network` lacks because its scan was ablated."""
    return _of_network(network, lambda block: block.removed)


def _of_network(
    network: nn.Module, parameters: Callable[[ScanBlock], Mapping[str, tuple[int, ...]]]
) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.{parameter}" if name else parameter: shape
        for name, block in scan_blocks(network).items()
        for parameter, shape in parameters(block).items()
    }
