"""Removes the state-space scan from networks, for controls that measure its contribution.

`ablate="scan"` in the configuration of a network replaces every selective scan by the identity: in
each direction, the output is the input of the scan. The rest of the block is kept: the input and
output projections, the depthwise convolution with its activation, the gate and the norm. The result
is MambaOut's gated convolution block (Yu and Wang, "MambaOut: Do We Really Need Mamba for Vision?",
arXiv 2405.07992), which is defined as the Mamba block without its state-space model.

Parameters that only the scan uses are removed: A, D, the projection to step sizes, B and C
(`x_proj`), and the projection of the step sizes (`dt_proj`). If they were kept, they would count as
parameters and be decayed, although they affect no output. An ablated network therefore has fewer
parameters than the original; `removed_parameters` lists the difference. D is removed too, although
it could scale the output of the identity: in a Mamba block the following output projection can
learn the same scale.

An ablated block equals a block with a scan whose C is 0 and whose D is 1, the initial value of D.
With the same seed, an ablated network and the original start from the same values in all parameters
that both have.
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
    """Base class of blocks with a selective scan, which can be removed.

    `scan_parts` are the names of the parameters and layers that only the scan uses.
    """

    scan_parts: ClassVar[tuple[str, ...]]
    removed: Mapping[str, tuple[int, ...]] = {}
    """Names and shapes of the parameters that were removed with the scan; empty if it is kept."""
    scans: bool = True  # no property: torch 2.6 cannot compile a property of a subclass
    """Whether the block still has its scan."""

    def remove_scan(self) -> None:
        """Replaces the scan by the identity and removes the parameters that only the scan uses."""
        self.removed, self.scans = self.scan_parameters, False
        for part in self.scan_parts:
            setattr(self, part, None)

    @property
    def scan_parameters(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters that only the scan uses."""
        return {
            name: tuple(parameter.shape)
            for name, parameter in self.named_parameters()
            if name.split(".")[0] in self.scan_parts
        }


def scan_blocks(network: nn.Module) -> dict[str, ScanBlock]:
    """The blocks of `network`, by name, that have a scan or had one before the ablation."""
    modules = network.named_modules()
    return {name: module for name, module in modules if isinstance(module, ScanBlock)}


def has_scan(network: nn.Module) -> bool:
    """Whether any block of `network` still has its scan."""
    return any(block.scans for block in scan_blocks(network).values())


def ablate_network(network: nn.Module, ablation: str | None, *, model: str) -> None:
    """Removes the scan from `network` if its configuration requests this.

    Called after initialisation, so that the remaining parameters do not depend on the ablation.

    Args:
        network: The network; changed in place.
        ablation: `scan`, or None for no change.
        model: Name of the network, for messages.

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
        f"`--ablate {SCAN}` cannot be used with `{model}`.",
        "It has no state-space scan.",
        f"Omit it; networks with a scan: {', '.join(names)}.",
    )


def scan_parameters(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of `network` that only its scans use."""
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
