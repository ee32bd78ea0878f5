"""Any timm model by its own name, with its own preprocessing and pretraining."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
from huggingface_hub import constants as hub_constants
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg_value, is_model
from torch import Tensor, nn

from robustcli.adapters.catalogue import IN1K
from robustcli.adapters.loading import load_strictly
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import UsageError
from robustcli.core.names import nearest

# Data sets that timm's tags name beside ImageNet-1K.
_LARGER = (
    "in22k", "in21k", "in12k", "jft", "laion", "lvd", "openai", "merged", "yfcc", "ig1b", "ssl",
    "swsl", "sw_", "dino", "metaclip", "datacomp", "webli", "miil", "goog",
)  # fmt: skip


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
    try:
        with _hub(offline):
            network: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise UsageError(
            f"timm cannot build `{name}`.",
            f"It says: {str(error).splitlines()[0]}",
            "Check the tag after the dot and `--model-arg`.",
        ) from error
    except Exception as error:
        # The hub's client raises classes of four libraries; all mean that no weights came.
        raise UsageError(
            f"The weights of `{name}` could not be downloaded.",
            f"The attempt failed with: {type(error).__name__}: {str(error).splitlines()[0][:200]}",
            f"They are at https://huggingface.co/timm/{name} (model.safetensors): name a copy with "
            "`--weights FILE`.",
        ) from error
    return network.eval()


@contextmanager
def _hub(offline: bool) -> Iterator[None]:
    before = hub_constants.HF_HUB_OFFLINE
    hub_constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        hub_constants.HF_HUB_OFFLINE = before


def load(
    name: str, state: Mapping[str, Tensor], *, origin: str, arguments: Mapping[str, Any]
) -> nn.Module:
    """The timm network `name` with the weights `state`, in eval mode.

    Raises:
        UsageError: The weights are of another network.
    """
    network = create(name, pretrained=False, arguments=arguments)
    load_strictly(network, state, model=name, origin=origin, really=None)
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
    return Preprocessing(
        scale, side, config["interpolation"], mean, std, "squash" if mode == "squash" else "center"
    )


def pretraining(name: str) -> str:
    """What the weights that timm gives for `name` saw, from the tag."""
    tag = name.split(".", 1)[1] if "." in name else str(get_pretrained_cfg_value(name, "tag") or "")
    if any(word in tag for word in _LARGER):
        return f"more than ImageNet-1K (timm tag {tag})"
    return IN1K if tag.endswith("in1k") or tag == "in1k" else f"timm tag {tag or 'none'}"
