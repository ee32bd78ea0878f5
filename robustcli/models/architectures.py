"""The networks by name. Listing imports no torch: a builder is named and imported when called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from robustcli.core.names import find

if TYPE_CHECKING:
    from torch import nn

    from robustcli.models.weight_decay import Decays


_ROOM = "robustcli.models"


@dataclass(frozen=True)
class Architecture:
    """One name: which builder makes it, from which variant, and how its upstream decays weights.

    `builder` and `decay` are `module:attribute` inside `robustcli.models`.
    """

    name: str
    family: str
    task: Literal["cls", "seg"]
    builder: str
    variant: str
    decay: str

    def build(self, **options: object) -> nn.Module:
        """The network, freshly initialised, with `options` to its configuration.

        Raises:
            UsageError: An option is unknown or does not fit.
        """
        network: nn.Module = _load(self.builder)(self.variant, **options)
        return network

    def decays(self) -> Decays:
        """The rule for `robustcli.models.weight_decay.parameter_groups`."""
        rule: Decays = _load(self.decay)
        return rule


def _load(target: str) -> Any:
    module, attribute = target.split(":")
    return getattr(import_module(f"{_ROOM}.{module}"), attribute)


_VMAMBA = {
    "vmamba-t": "vmamba-t-s1l8",
    "vmamba-s": "vmamba-s-s2l15",
    "vmamba-b": "vmamba-b-s2l15",
}  # the three of VMamba's front page
_VMAMBA |= {
    name: name
    for name in (
        *("vmamba-t-s1l8", "vmamba-t-s2l5", "vmamba-t-v0"),
        *("vmamba-s-s2l15", "vmamba-s-s1l20", "vmamba-s-v0"),
        *("vmamba-b-s2l15", "vmamba-b-s1l20", "vmamba-b-v0", "vmamba-pico"),
    )
}
_VIM = ("vim-t", "vim-t-plus", "vim-s", "vim-s-plus", "vim-b", "vim")
_ULVM = ("ulvm", *(f"ulvm_v{i}" for i in range(1, 7)))
_ALL = "weight_decay:everything_decays"


def _architectures() -> Iterator[Architecture]:
    for name, variant in _VMAMBA.items():
        decay = "weight_decay:vmamba_decays"
        yield Architecture(name, "vmamba", "cls", "vmamba:build", variant, decay)
    for name in _VIM:
        yield Architecture(name, "vim", "cls", "vim:build", name, "weight_decay:mamba_decays")
    for name in ("umamba", "umamba-enc", "umamba-pico"):
        yield Architecture(name, "umamba", "seg", "umamba:build", name, _ALL)
    yield Architecture("vmunet", "vmunet", "seg", "vmunet:build", "vmunet", _ALL)
    for name in _ULVM:
        yield Architecture(name, "ulvm", "seg", "ulvm:build", name, _ALL)
    for name in ("umambabot", "umambabot_pp"):
        yield Architecture(name, "umambabot", "seg", "umambabot:build", name, _ALL)
    for name in ("unet", "segformer"):
        yield Architecture(name, name, "seg", f"{name}:build", name, _ALL)
    for name in ("resnet18_seg", "resnet50_seg"):
        yield Architecture(name, "resnet_seg", "seg", "resnet_seg:build", name, _ALL)


ARCHITECTURES: dict[str, Architecture] = {a.name: a for a in _architectures()}


def architecture(name: str) -> Architecture:
    """The architecture called `name`, in any spelling.

    Raises:
        UsageError: There is none; the message offers the nearest names.
    """
    known = find(name, ARCHITECTURES, kind="network", listing="robust list models")
    return ARCHITECTURES[known]
