"""Registers every released VMamba and Vim model with timm when this module is imported.

`timm.create_model("vmamba_base_s2l15", num_classes=10)` then works as for the models of timm, with
`pretrained=True` for the official weights (ImageNet-1K). By default, the rate of stochastic depth
(`drop_path_rate`) is that of the training of the release.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from robustcli.adapters import timm_families
from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.timm_families import weights_filter
from robustcli.core.errors import UsageError, first_line

__all__: list[str] = []  # filled by timm during registration

_SIZES = {"t": "tiny", "s": "small", "b": "base"}


def timm_name(release: str) -> str:
    """The timm name of `release`, e.g. `vmamba_base_s2l15` for `vmamba-b-s2l15`."""
    family, size, *version_parts = release.split("-")
    return "_".join((family, _SIZES[size], *version_parts))


_RELEASES = {
    timm_name(entry.name): entry
    for entry in CATALOGUE.values()
    if entry.builder in ("vmamba", "vim") and entry.weights_url is not None and not entry.alias
}


def _cfg(release: str) -> dict[str, Any]:
    entry = _RELEASES[release]
    vmamba = entry.builder == "vmamba"
    network = timm_families.TimmVMamba if vmamba else timm_families.TimmVim
    return {
        "url": entry.weights_url,
        "custom_load": True,  # `load_pretrained` executes no code in the official files
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": not vmamba,
        "pool_size": (7, 7) if vmamba else None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": network.first_conv,
        "classifier": "classifier.head" if vmamba else "head",
        "license": entry.licence.lower(),
        "origin_url": entry.source,
        "paper_ids": "arXiv:2401.10166" if vmamba else "arXiv:2401.09417",
    }


default_cfgs = generate_default_cfgs({f"{name}.in1k": _cfg(name) for name in _RELEASES})


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    family, variant = _RELEASES[name].family, _RELEASES[name].variant

    def entrypoint(pretrained: bool = False, **options: Any) -> nn.Module:
        # Default of timm: all stages of a hierarchical network, else the last three layers.
        out_indices = options.pop("out_indices", None)
        out_indices = out_indices or ((0, 1, 2, 3) if family == "vmamba" else 3)
        try:
            network: nn.Module = build_model_with_cfg(
                lambda **arguments: timm_families.build(family, variant, **arguments),
                name,
                pretrained,
                pretrained_filter_fn=weights_filter,
                feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
                **options,
            )
        except OSError as error:
            raise _no_weights(name, error) from error
        return network

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"`{_RELEASES[name].name}` as a timm model."
    return entrypoint


def _no_weights(name: str, error: OSError) -> UsageError:
    entry = _RELEASES[name]
    return UsageError(
        f"The weights of `{name}` cannot be loaded.",
        f"{first_line(error)}. {entry.unchecked}".rstrip(),
        f"Download {entry.weights_url}, and load the file with "
        "`pretrained_cfg_overlay={'file': PATH, 'custom_load': True}`.",
    )


for _name in _RELEASES:
    globals()[_name] = register_model(_entrypoint(_name))
