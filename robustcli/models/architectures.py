"""Registry of the networks, validation of their options, and their weight-decay rules.

Listing the networks does not import torch: the module of a network is imported when it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from robustcli.core.errors import UsageError
from robustcli.core.names import check_options, find

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from torch import Tensor, nn

    Config = TypeVar("Config", bound=DataclassInstance)


Decays = Callable[[str, "nn.Parameter"], bool]
"""Weight-decay rule: whether the parameter with this name is decayed."""


# Weight-decay rules. Source: the training code of each project. VMamba excludes biases and all
# one-dimensional tensors; its `A_logs` and `dt_projs_bias` have two dimensions and are decayed.
# Mamba and Vim exclude A and D (of both directions); Vim also excludes its position and class
# embeddings. The other networks for CIFAR use Vim's rule, so that only the network differs between
# them. The segmentation projects decay all parameters.

_MARKED = ("A_log", "A_b_log", "pos_embed", "pos_embedding", "cls_token")  # D has one dimension


def vmamba_decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight-decay rule of VMamba: all parameters except biases and one-dimensional tensors."""
    return parameter.ndim > 1 and not name.endswith(".bias")


def mamba_decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight-decay rule of Mamba and Vim: as VMamba, also without A and the embeddings."""
    return vmamba_decays(name, parameter) and name.rsplit(".", 1)[-1] not in _MARKED


def everything_decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight-decay rule of the segmentation projects: all parameters."""
    return True


@dataclass(frozen=True)
class Architecture:
    """Registry entry of one network: its module, variant and weight-decay rule.

    `module` is the module of `robustcli.models` with the function `build` and the table `VARIANTS`.
    `decays` is an argument of `parameter_groups`, the rule of the network's original training code.
    """

    name: str
    family: str
    task: Literal["cls", "seg"]
    module: str
    variant: str
    decays: Decays

    @property
    def scans(self) -> bool:
        """Whether the network has a state-space scan, which `ablate="scan"` removes."""
        return self.family in _SCANNING and self.name not in _SCANLESS

    def build(self, **options: object) -> nn.Module:
        """Builds the network with new random weights; `options` override its configuration.

        Raises:
            UsageError: An option is unknown or invalid.
        """
        module = import_module(f"robustcli.models.{self.module}")
        network: nn.Module = module.build(self.variant, **options)
        return network


_VMAMBA = {
    "vmamba-t": "vmamba-t-s1l8",
    "vmamba-s": "vmamba-s-s2l15",
    "vmamba-b": "vmamba-b-s2l15",
}  # the three models on VMamba's front page
_VMAMBA |= {
    name: name
    for name in (
        *("vmamba-t-s1l8", "vmamba-t-s2l5", "vmamba-t-v0"),
        *("vmamba-s-s2l15", "vmamba-s-s1l20", "vmamba-s-v0"),
        *("vmamba-b-s2l15", "vmamba-b-s1l20", "vmamba-b-v0", "vmamba-pico"),
    )
}
_VIM = ("vim-t", "vim-t-plus", "vim-s", "vim-s-plus", "vim-b", "vim")
# Family, module and names of the further classifiers, and of the segmenters.
_CLASSIFIERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("vit", "cifar_networks", ("vit",)),
    ("resnet9", "cifar_networks", ("resnet9",)),
    ("cifar-resnet", "cifar_networks", ("cifar-resnet18", "cifar-resnet50")),
)
_SEGMENTERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("umamba", "umamba", ("umamba", "umamba-enc", "umamba-nomamba", "umamba-pico")),
    ("vmunet", "vmunet", ("vmunet",)),
    ("swin-umamba", "swin_umamba", ("swin-umamba", "swin-umamba-d", "swin-umamba-pico")),
    ("ulvm", "ulvm", ("ulvm", *(f"ulvm_v{i}" for i in range(1, 7)))),
    ("umambabot", "umambabot", ("umambabot", "umambabot_pp")),
    ("resenc", "resenc", ("resenc",)),
    ("segformer", "segformer", ("segformer",)),
    ("unet", "conv_segmenters", ("unet",)),
    ("resnet_seg", "conv_segmenters", ("resnet18_seg", "resnet50_seg")),
)
_SCANNING = ("vmamba", "vim", "umamba", "vmunet", "swin-umamba", "ulvm", "umambabot")  # families
_SCANLESS = ("umamba-nomamba",)  # members of these


def _architectures() -> Iterator[Architecture]:
    for name, variant in _VMAMBA.items():
        yield Architecture(name, "vmamba", "cls", "vmamba", variant, vmamba_decays)
    for name in _VIM:
        yield Architecture(name, "vim", "cls", "vim", name, mamba_decays)
    for family, module, names in _CLASSIFIERS:
        for name in names:
            yield Architecture(name, family, "cls", module, name, mamba_decays)
    for family, module, names in _SEGMENTERS:
        for name in names:
            yield Architecture(name, family, "seg", module, name, everything_decays)


ARCHITECTURES: dict[str, Architecture] = {a.name: a for a in _architectures()}


def architecture(name: str) -> Architecture:
    """The architecture called `name`, in any spelling.

    Raises:
        UsageError: No network has this name; the message suggests the nearest names.
    """
    registered = find(name, ARCHITECTURES, kind="network", listing="robust list models")
    return ARCHITECTURES[registered]


def changed(config: Config, changes: dict[str, object], *, model: str) -> Config:
    """A copy of `config` with `changes`; lists become tuples, because configurations are immutable.

    Args:
        config: The configuration of the variant.
        changes: New values by field name.
        model: Name of the variant, for the message.

    Raises:
        UsageError: A name in `changes` is not a field of the configuration.
    """
    check_options(changes, [field.name for field in fields(config)], owner=model)
    return replace(config, **{option: _frozen(value) for option, value in changes.items()})


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def check_multiple(x: Tensor, step: tuple[int, int]) -> None:
    """Raises UsageError unless height and width of `x` (B, C, H, W) are multiples of `step`."""
    height, width = x.shape[-2:]
    if height % step[0] or width % step[1]:
        needed = f"{step[0]}" if step[0] == step[1] else f"{step[0]} and {step[1]}"
        raise UsageError(
            f"The input is {height} x {width} pixels, which the network does not support.",
            f"Height and width must be multiples of {needed}, because the network halves and "
            "doubles the resolution.",
            "Resize or pad the images.",
        )


def parameter_groups(
    network: nn.Module, weight_decay: float, decays: Decays
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: the decayed parameters, then those without weight decay.

    Empty groups are omitted.

    Args:
        network: The network; its frozen parameters are omitted.
        weight_decay: Weight decay of the first group.
        decays: One of the rules of this module.
    """
    split: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            split[decays(name, parameter)].append(parameter)
    rates = {True: weight_decay, False: 0.0}
    return [{"params": split[kind], "weight_decay": rates[kind]} for kind in split if split[kind]]
