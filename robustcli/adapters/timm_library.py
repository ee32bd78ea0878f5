"""Any timm model by its own name, with its own preprocessing and pretraining."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg, get_pretrained_cfg_value, is_model
from torch import Tensor, nn

from robustcli.adapters.entry import IN1K
from robustcli.adapters.hub import hub, why_none
from robustcli.adapters.loading import load_strictly
from robustcli.adapters.places import hub_file
from robustcli.adapters.preprocessing import Preprocessing, overridden
from robustcli.core.errors import UsageError, first_line
from robustcli.core.names import nearest

# What timm's tags call data beside ImageNet-1K, or models that saw such data (SWAG and SEER:
# Instagram; BiT's distilled ResNet-50: a teacher that saw ImageNet-21k).
_LARGER = (
    "in22k", "in21k", "inw21k", "in12k", "jft", "laion", "lvd", "openai", "merged", "yfcc", "ig1b",
    "ssld", "swag", "seer", "clip", "datacomp", "webli", "dfn", "m30m", "m38m", "goog_distilled",
)  # fmt: skip
_ONLY_IN1K = re.compile(r"(^|_)in1k(_\d+)?$")  # the number is a resolution


def known(name: str) -> bool:
    """Whether timm has an architecture of this name (a tag may follow a dot)."""
    return bool(is_model(name))


def suggestions(name: str) -> list[str]:
    """Timm's names that look like `name`."""
    return nearest(name.split(".")[0], timm.list_models())


def create(
    name: str, *, pretrained: bool, arguments: Mapping[str, Any], offline: bool = False
) -> nn.Module:
    """The timm network `name`, in eval mode; with its published weights if `pretrained`.

    Weights come from the hub's cache when they are there; if `offline`, from nowhere else.

    Raises:
        UsageError: The architecture takes no such argument, has no such tag, or no weights came.
    """
    if pretrained and offline:
        check_offline(name)
    try:
        with hub(offline=offline or hub_file(name) is not None) if pretrained else nullcontext():
            network: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except OSError as error:
        raise _no_weights(name, why_none(error, offline=offline)) from error
    except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, KeyError) as error:
        raise UsageError(
            f"timm cannot build `{name}`.",
            f"It says: {first_line(error)}",
            "Check the tag after the dot and `--model-arg`.",
        ) from error
    except Exception as error:
        # The hub's client raises classes of four libraries; all mean that no weights came.
        raise _no_weights(name, why_none(error, offline=offline)) from error
    return network.eval()


def check_offline(name: str) -> None:
    """Raises UsageError where timm would download past the hub's client, which knows of offline."""
    url = _url(name)
    if url and not Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1]).is_file():
        raise _no_weights(name, "`--offline` forbids the network")


def _url(name: str) -> str | None:
    """Where timm gets the weights `name` from, for the few that are not on the hub."""
    config = get_pretrained_cfg(name)
    return config.url or None if config is not None and not config.hf_hub_id else None


def _no_weights(name: str, why: str) -> UsageError:
    return UsageError(
        f"The weights of `{name}` could not be downloaded.",
        f"The reason: {why}.",
        f"They are at {_url(name) or f'https://huggingface.co/timm/{name} (model.safetensors)'}: "
        "name a copy with `--weights FILE`.",
    )


def load(
    name: str, state: Mapping[str, Tensor], *, origin: str, arguments: Mapping[str, Any]
) -> nn.Module:
    """The timm network `name` with the weights `state`, in eval mode.

    Raises:
        UsageError: The weights are of another network.
    """
    network = create(name, pretrained=False, arguments=arguments)
    load_strictly(network, state, model=name, origin=origin, advice=None)
    return network.eval()


def preprocessing(network: nn.Module) -> Preprocessing:
    """The network's own preprocessing, from timm's pretrained configuration, at its training size.

    Raises:
        UsageError: Its crop mode is one that this program does not have.
    """
    config = resolve_data_config({}, model=network, use_test_size=False)
    side, mode = config["input_size"][-1], config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise UsageError(
            f"timm's crop mode `{mode}` is not supported.", "", "Give `--resize` and `--crop`."
        )
    scale = math.floor(side / config["crop_pct"])
    mean, std = tuple(config["mean"]), tuple(config["std"])
    own = Preprocessing(
        scale, side, config["interpolation"], mode="squash" if mode == "squash" else "center"
    ).of_channels(len(mean))
    return overridden(own, {"mean": mean, "std": std})[0]  # some repositories' are of 0 to 255


def pretraining(name: str) -> str:
    """What the weights that timm gives for `name` saw, from the tag."""
    tag = name.split(".", 1)[1] if "." in name else str(get_pretrained_cfg_value(name, "tag") or "")
    if any(word in tag for word in _LARGER):
        return f"more than ImageNet-1K (timm tag {tag})"
    return IN1K if _ONLY_IN1K.search(tag) else f"timm tag {tag or 'none'}"
