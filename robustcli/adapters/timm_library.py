"""timm models by timm's names, with their preprocessing and pretraining.

Importing this module registers `resnet_pico` with timm: a residual network of the size of
`vmamba-pico`, made of timm's blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from timm.data import resolve_data_config
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    get_pretrained_cfg_value,
    is_model,
    model_entrypoint,
    register_model,
)
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import Tensor, nn

from robustcli.adapters import timm_library  # noqa: F401 (registers its network with timm)
from robustcli.adapters.catalogue import IN1K
from robustcli.adapters.fetching import hub, hub_failure_reason, hub_file
from robustcli.adapters.model import shapes_only
from robustcli.adapters.preprocessing import CIFAR10, Preprocessing, overridden
from robustcli.adapters.strict_loading import (
    Choice,
    choose,
    head_classes,
    heads_in,
    load_strictly,
    shapes_of,
)
from robustcli.core.errors import UsageError, first_line
from robustcli.core.names import nearest

# Parts of timm's tags for other data than ImageNet-1K, or for models trained with it (SWAG and
# SEER: Instagram; BiT's distilled ResNet-50: a teacher that saw ImageNet-21k).
_LARGER = (
    "in22k", "in21k", "inw21k", "in12k", "jft", "laion", "lvd", "openai", "merged", "yfcc", "ig1b",
    "ssld", "swag", "seer", "clip", "datacomp", "webli", "dfn", "m30m", "m38m", "goog_distilled",
)  # fmt: skip
_FILE_ARGUMENTS = ("checkpoint_path", "cache_dir", "pretrained_cfg")
_ONLY_IN1K = re.compile(r"(^|_)in1k(_\d+)?$")  # the number is the image size


def has_architecture(name: str) -> bool:
    """Whether timm has an architecture of this name (a tag can follow after a dot)."""
    return bool(is_model(plain_name(name)))


def all_names() -> list[str]:
    """Timm's names, each followed by those with its tags."""
    names: list[str] = timm.list_models(include_tags=True)
    return sorted({*timm.list_models(), *names})


def suggestions(name: str) -> list[str]:
    """Timm's names similar to `name`."""
    return nearest(name.split(".")[0], timm.list_models())


def create(
    name: str, arguments: Mapping[str, Any], *, pretrained: bool = False, offline: bool = False
) -> nn.Module:
    """The timm network `name` in eval mode, with its published weights if `pretrained`.

    Weights are read from the hub's cache or downloaded; if `offline`, only from the cache.

    Raises:
        UsageError: The architecture has no such argument or tag, or the weights are unavailable.
    """
    files = [key for key in _FILE_ARGUMENTS if arguments.get(key) is not None]
    if files:
        raise UsageError(
            f"The argument `{files[0]}` of timm is not supported.",
            "With it, timm reads or writes files that are not checked here.",
            "Omit it; `--weights FILE` loads weights.",
        )
    if pretrained and offline:
        check_offline(name)
    try:
        with hub(offline=offline or hub_file(name) is not None) if pretrained else nullcontext():
            network: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except OSError as error:
        raise _no_weights(name, hub_failure_reason(error, offline=offline)) from error
    except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError, KeyError) as error:
        raise UsageError(
            f"timm cannot build `{name}`.",
            f"The error is: {first_line(error)}",
            "Check the tag after the dot and `--model-arg`.",
        ) from error
    except Exception as error:
        # The hub's client raises exceptions of four libraries; all mean that the download failed.
        raise _no_weights(name, hub_failure_reason(error, offline=offline)) from error
    return network.eval()


def check_offline(name: str) -> None:
    """Raises UsageError if timm would download without the hub's client and its offline mode."""
    url = _url(name)
    if url and not Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1]).is_file():
        raise _no_weights(name, "`--offline` forbids downloads")


def _url(name: str) -> str | None:
    """The address of the weights `name`, for the few that are not on the hub."""
    config = get_pretrained_cfg(name)
    return config.url or None if config is not None and not config.hf_hub_id else None


def _no_weights(name: str, why: str) -> UsageError:
    return UsageError(
        f"The weights of `{name}` could not be downloaded.",
        f"The reason: {why}.",
        f"They are at {_url(name) or f'https://huggingface.co/timm/{name} (model.safetensors)'}: "
        "pass a copy with `--weights FILE`.",
    )


def plain_name(name: str) -> str:
    """`name` without `timm:` and without the prefix of timm's repositories on the hub."""
    return re.sub(r"^(timm:|(hf[-_]hub:)?timm/)", "", name.strip())


def with_weights(
    name: str, state: Mapping[str, Tensor], origin: str, arguments: Mapping[str, Any]
) -> nn.Module:
    """The timm network `name` with the weights `state`, in eval mode.

    timm's checkpoint filter converts the names of the authors. Without `num_classes` in the
    arguments, the network gets the number of classes of the head in the file.

    Raises:
        UsageError: The weights are of another network.
    """
    network = create(name, pretrained=False, arguments=arguments)
    choice, translated = choose_weights(name, network, state)
    classes = head_classes(network, choice.state)
    if choice.fits and classes not in (None, network.num_classes):
        if "num_classes" in arguments:
            raise _contradicted(name, origin, arguments, classes)
        head_note = f"its head has {classes} classes, so that `{name}` has {classes} too"
        arguments = {**arguments, "num_classes": classes}
        network = create(name, pretrained=False, arguments=arguments)
        choice, translated = choose_weights(name, network, state)
        translated = (*translated, head_note)
    advice = _advice(name, network, choice)
    load_strictly(network, choice.state, model=name, origin=origin, advice=advice)
    choice.announce(origin, *translated)
    return network.eval()


def choose_weights(
    name: str, network: nn.Module, state: Mapping[str, Tensor]
) -> tuple[Choice, tuple[str, ...]]:
    """Selects the weights for `network` in `state`, with any head.

    Args:
        name: timm's name of the network.
        network: The network as built.
        state: The weights as read.
    """
    expected, heads = shapes_of(network.state_dict()), heads_in(network)
    choice = choose(state, expected, heads=heads)
    if choice.fits and head_classes(network, choice.state) is not None:
        return choice, ()
    translate = checkpoint_filter(name)
    if translate is None:
        return choice, ()

    def convert(file_state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        try:
            translated: Mapping[str, Tensor] = translate(dict(file_state), network)
        except Exception:  # filters raise any exception on unknown names
            return file_state
        return translated

    renamed_choice = choose(state, expected, convert=convert, heads=heads)
    if not renamed_choice.fits:
        return choice, ()
    filter_module = model_entrypoint(name.split(".")[0]).__module__
    remark = f"its tensors are renamed by timm's filter of `{filter_module}`"
    return renamed_choice, (remark, *_resized(renamed_choice))


def checkpoint_filter(name: str) -> Callable[..., Any] | None:
    """Timm's checkpoint filter for the authors' names of the network `name`; None without one.

    Every family passes its filter to the function of timm that reads published weights. That
    function is replaced here while timm builds the network again, to record the filter. It is built
    without memory for its weights, unless its constructor reads them (RegNet before timm 1.0.22).
    """
    filters: list[Callable[..., Any] | None] = []

    def record(*_: object, filter_fn: Callable[..., Any] | None = None, **__: object) -> None:
        filters.append(filter_fn)

    with patch("timm.models._builder.load_pretrained", record):
        try:
            with shapes_only():
                create(name, pretrained=True, arguments={})
        except UsageError:
            create(name, pretrained=True, arguments={})
    return filters[0] if filters else None


def _resized(choice: Choice) -> tuple[str, ...]:
    """Names of tensors that the filter resized: positions for another image size."""
    before, after = shapes_of(choice.file_state), shapes_of(choice.state)
    changed = [key for key in after if "pos" in key and before.get(key, after[key]) != after[key]]
    if not changed:
        return ()
    first = changed[0]
    return (f"`{first}` is resized from {before[first]} to {after[first]}",)


def _advice(name: str, network: nn.Module, choice: Choice) -> str | None:
    """Advice if only the head is missing."""
    missing_keys = set(network.state_dict()) - set(choice.state)
    if missing_keys and all(key.startswith(heads_in(network)) for key in missing_keys):
        return (
            "The file contains only the network without its head: train a head with `robust "
            f"finetune {name} --pretrained FILE --data DIR`."
        )
    return None


def _contradicted(
    name: str, origin: str, arguments: Mapping[str, Any], classes: int | None
) -> UsageError:
    """The error if the user and the weights have different numbers of classes."""
    requested = arguments["num_classes"]
    return UsageError(
        f"`num_classes={requested}` contradicts the weights in `{origin}`.",
        f"Their head has {classes} classes, but {requested} were requested for `{name}`.",
        f"Omit it, or use `--model-arg num_classes={classes}`; for other classes, fine-tune: "
        f"`robust finetune {name} --pretrained {origin} --data DIR`.",
    )


def timm_preprocessing(network: nn.Module) -> Preprocessing:
    """The preprocessing of timm's pretrained configuration, at the training size.

    Raises:
        UsageError: The crop mode is not supported.
    """
    config = resolve_data_config({}, model=network, use_test_size=False)
    side, mode = config["input_size"][-1], config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise UsageError(
            f"timm's crop mode `{mode}` is not supported.", "", "Specify `--resize` and `--crop`."
        )
    scale = math.floor(side / config["crop_pct"])
    mean, std = tuple(config["mean"]), tuple(config["std"])
    base = Preprocessing(
        scale, side, config["interpolation"], mode="squash" if mode == "squash" else "center"
    ).of_channels(len(mean))
    return overridden(base, {"mean": mean, "std": std})[0]  # some have 0 to 255


def pretraining(name: str) -> str:
    """Pretraining data of timm's weights `name`, from the tag."""
    tag = name.split(".", 1)[1] if "." in name else str(get_pretrained_cfg_value(name, "tag") or "")
    if any(word in tag for word in _LARGER):
        return f"more than ImageNet-1K (timm tag {tag})"
    return IN1K if _ONLY_IN1K.search(tag) else f"timm tag {tag or 'none'}"


# `resnet-pico`. Both bundled classifiers take 32 x 32 pixels and have three stages, of 16 x 16,
# 8 x 8 and 4 x 4 positions.

default_cfgs = generate_default_cfgs(
    {
        "resnet_pico.cifar10": {
            "num_classes": 10,
            "input_size": (3, CIFAR10.crop, CIFAR10.crop),
            "pool_size": (4, 4),
            "crop_pct": 1.0,
            "interpolation": CIFAR10.interpolation,
            "mean": CIFAR10.mean,
            "std": CIFAR10.std,
            "first_conv": "stem.conv",
            "classifier": "head.fc",
            "license": "apache-2.0",
        }
    }
)
_STAGES = ((1, 32, 1), (1, 64, 2), (2, 120, 2))
"""Blocks, channels and stride of each stage."""


@register_model  # type: ignore[untyped-decorator,unused-ignore]
def resnet_pico(pretrained: bool = False, **options: Any) -> nn.Module:
    """A ResNet for 32 x 32 pixels: four basic blocks, a 3 x 3 stem of stride 2, no max-pooling."""
    blocks = tuple(
        ByoBlockCfg(type="basic", d=depth, c=channels, s=stride, gs=0)
        for depth, channels, stride in _STAGES
    )
    network: nn.Module = build_model_with_cfg(
        ByobNet,
        "resnet_pico",
        pretrained,
        model_cfg=ByoModelCfg(blocks=blocks, stem_chs=32, stem_type="3x3", stem_pool=""),
        feature_cfg={"flatten_sequential": True, "out_indices": (0, 1, 2)},
        **options,
    )
    return network
