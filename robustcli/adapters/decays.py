"""Which parameters of a network weight decay touches, by where the network comes from."""

from __future__ import annotations

from torch import nn

from robustcli.adapters.entry import ModelEntry
from robustcli.models.registry import architecture
from robustcli.models.weight_decay import Decays, everything_decays, vmamba_decays

_OURS = ("zoo", "vmamba", "vim")


def decays_of(entry: ModelEntry, network: nn.Module | None = None) -> Decays:
    """Our networks' own rules; of timm's classifiers timm's, and of other segmenters everything.

    Args:
        entry: What the network is.
        network: The network, which timm's classifiers are asked.
    """
    if entry.builder in _OURS:
        return architecture(entry.variant).decays()
    if entry.builder == "timm" and network is not None:
        spared = frozenset(getattr(network, "no_weight_decay", set)())
        return lambda name, parameter: name not in spared and vmamba_decays(name, parameter)
    return everything_decays
