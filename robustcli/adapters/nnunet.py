"""U-Mamba as nnU-Net left it: weights, plan, normalisation and what else its checkpoint says.

No code in a checkpoint is run: it is read by torch's restricted unpickler, in which the NumPy
numbers of nnU-Net's log are replaced by empty stand-ins (`robustcli.adapters.checkpoint`).

Source: nnU-Net v2.1.1 as in U-Mamba 28459e3, `nnUNetTrainer.save_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustcli.adapters import own
from robustcli.adapters.checkpoint import read_torch, read_weights
from robustcli.adapters.loading import differences, shapes_of
from robustcli.adapters.nnunet_folder import find_checkpoint
from robustcli.adapters.nnunet_kind import recognised
from robustcli.adapters.nnunet_plan import PLANS, NnUNetPlan, read_plan
from robustcli.core.errors import UsageError
from robustcli.models.aliases import without_aliases

_FIRST, _HEAD = "encoder.stem.0.conv1.weight", "decoder.seg_layers.0.weight"


@dataclass(frozen=True)
class NnUNetModel:
    """A trained U-Mamba.

    Args:
        path: The checkpoint.
        model: `umamba` or `umamba-enc`.
        plan: Plan and data set; they give patch, normalisation and labels.
        weights: Under our names, each tensor once.
        trainer: The class that trained it.
        fold: `0`..`4` or `all`; empty where the file does not say.
        epochs: Finished epochs; None where the file does not say.
        mirror_axes: Axes to flip at inference, 0 for height.
    """

    path: Path
    model: str
    plan: NnUNetPlan
    weights: Mapping[str, Tensor]
    trainer: str
    fold: str
    epochs: int | None
    mirror_axes: tuple[int, ...]

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return int(self.weights[_FIRST].shape[1])

    @property
    def num_classes(self) -> int:
        """Classes, the background included."""
        return int(self.weights[_HEAD].shape[0])

    @property
    def options(self) -> dict[str, object]:
        """For `create_model(model, **options)`: the network that the weights are for."""
        sizes = {"in_channels": self.in_channels, "num_classes": self.num_classes}
        return {**self.plan.options, **sizes}


def read_nnunet(path: Path, *, fold: str | None = None) -> NnUNetModel:
    """The model in a results folder, a fold's folder, or a checkpoint by itself.

    Args:
        path: See `nnunet_folder.find_checkpoint`. `plans.json` and `dataset.json` are taken from
            the folder above the fold where they are there, else from the checkpoint's `init_args`.
        fold: Which fold, where there are several.

    Raises:
        UsageError: There is no checkpoint; it holds code or is damaged; it is of another network;
            its plan is missing or does not fit its weights.
    """
    file = find_checkpoint(path, fold=fold)
    content = _content(file)
    weights = without_aliases(read_weights(file))
    trainer = str(content.get("trainer_name", ""))
    model = recognised(file, weights, trainer)
    _check_whole(file, weights)
    started = content.get("init_args")
    started = started if isinstance(started, Mapping) else {}
    found = NnUNetModel(
        file, model, _plan(file, started), weights, trainer,
        str(started.get("fold", file.parent.name.partition("fold_")[2])),
        _whole(content.get("current_epoch")), _axes(content),
    )  # fmt: skip
    _check(found)
    return found


def _content(file: Path) -> Mapping[str, Any]:
    content = read_torch(file)
    if not isinstance(content, Mapping) or "network_weights" not in content:
        raise UsageError(
            f"`{file}` is no checkpoint of nnU-Net.",
            "It lacks `network_weights`, which nnU-Net writes.",
            "Give bare weights with `--weights FILE` and the options of their plan.",
        )
    return content


def _check_whole(file: Path, weights: Mapping[str, Tensor]) -> None:
    lacking = [key for key in (_FIRST, _HEAD) if key not in weights]
    if lacking:
        raise UsageError(
            f"`{file}` does not hold a whole U-Mamba.",
            f"It lacks {', '.join(f'`{key}`' for key in lacking)}.",
            "Use the checkpoint as nnU-Net wrote it.",
        )


def _plan(file: Path, started: Mapping[str, Any]) -> NnUNetPlan:
    configuration = str(started.get("configuration", ""))
    above = file.parent.parent
    if (above / PLANS).is_file():
        named = above.name.split("__")
        return read_plan(above, configuration or (named[-1] if len(named) == 3 else "2d"))
    plans, dataset = started.get("plans"), started.get("dataset_json")
    if isinstance(plans, Mapping) and isinstance(dataset, Mapping):
        return NnUNetPlan(plans, dataset, configuration or "2d")
    raise UsageError(
        f"The plan of `{file}` is missing.",
        f"There is no `{PLANS}` in `{above}`, and the checkpoint has none in its `init_args`.",
        "Copy the whole results folder, or give the bare weights with the options of their plan.",
    )


def _check(found: NnUNetModel) -> None:
    planned = len(found.plan.channel_names)
    if planned != found.in_channels:
        raise UsageError(
            f"The plan of `{found.path}` does not fit its weights.",
            f"The data set has {planned} channels ({', '.join(found.plan.channel_names)}), the "
            f"weights read {found.in_channels}.",
            "Put plan, data set and checkpoint of one training together.",
        )
    with torch.device("meta"):
        network = own.create(found.model, found.options)
    expected, given = shapes_of(network.state_dict()), shapes_of(found.weights)
    if expected != given:
        height, width = found.plan.patch
        raise UsageError(
            f"The plan of `{found.path}` does not fit its weights.",
            differences(expected, given),
            f"The plan's patch is {height} x {width}, on which weights of `umamba-enc` depend: use "
            "the plan that it was trained with."
            if found.model == "umamba-enc"
            else "Use the plan that it was trained with.",
        )


def _axes(content: Mapping[str, Any]) -> tuple[int, ...]:
    axes = content.get("inference_allowed_mirroring_axes")
    axes = axes if isinstance(axes, (tuple, list)) else ()
    return tuple(axis for axis in axes if isinstance(axis, int))


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
