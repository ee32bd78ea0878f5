"""The weights that fine-tuning starts from, in a network whose heads are new.

nnU-Net's rule for every network: all tensors but those of the heads must be there in the same
shape; the heads stay as they were initialised, even where they would fit.
Source: nnU-Net v2.1.1, `load_pretrained_weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.adapters import networks
from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.checkpoint import read_torch, read_weights
from robustcli.adapters.loading import FAMILIES, differences, shapes_of
from robustcli.adapters.trainable import transfer
from robustcli.adapters.training_run import read_trained
from robustcli.core.errors import UsageError
from robustcli.core.names import canonical
from robustcli.models.umamba import Pair, without_aliases
from robustcli.nnunet.files import NnUNetModel, find_checkpoint, is_results_folder, trained_model
from robustcli.nnunet.plans_json import NnUNetPlan

_SMP_HEAD = ("segmentation_head.",)
_OURS = {"num_classes": 2, "in_channels": 3}  # foreground or not, in photos


@dataclass(frozen=True)
class Pretrained:
    """Weights, and the network that they are for.

    Args:
        origin: Where they come from, in words.
        arguments: For the network's builder.
        state: The weights.
        plan: What they were trained with, where nnU-Net did it.
    """

    origin: str
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor]
    plan: NnUNetPlan | None = None

    @property
    def patch(self) -> Pair | None:
        """Of the plan."""
        return None if self.plan is None else self.plan.patch


def read_pretrained(path: Path, entry: ModelEntry, arguments: Mapping[str, Any]) -> Pretrained:
    """What `path` holds for the network `entry`.

    Args:
        path: A results folder or checkpoint of nnU-Net, a training run, or a file of weights.
        entry: The network.
        arguments: For its builder, as the user said; they go before those of the file.

    Raises:
        UsageError: There are no such weights, or they are of another network.
    """
    if not path.exists():
        raise UsageError(
            f"`--pretrained {path}` does not exist.",
            "Expected a file of weights, a training run, or a results folder of nnU-Net.",
            "Check the path; `--mode scratch` needs no weights.",
        )
    if is_results_folder(path) or _is_nnunets(path):
        return _nnunets(path, entry, arguments)
    trained = read_trained(path, entry)
    said = trained.header.arguments if trained.header else {}
    return Pretrained(str(trained.path), {**said, **arguments}, trained.state)


def _is_nnunets(path: Path) -> bool:
    return path.suffix == ".pth" and (path.parent.parent / "plans.json").is_file()


def _nnunets(path: Path, entry: ModelEntry, arguments: Mapping[str, Any]) -> Pretrained:
    found = read_nnunet(path)
    if canonical(found.model) != canonical(entry.network):
        raise UsageError(
            f"`--pretrained {path}` holds `{found.model}`.",
            f"The network to fine-tune is `{entry.name}`.",
            f"Use `robust finetune {found.model} --pretrained {path}`.",
        )
    if found.in_channels != _OURS["in_channels"]:
        raise UsageError(
            f"`--pretrained {path}` reads {found.in_channels} channels.",
            f"They are {', '.join(found.plan.channel_names)}; images here have red, green, blue.",
            "Use weights that were trained on images with three channels.",
        )
    options = {**found.options, **_OURS, **arguments}
    origin = f"nnU-Net: {found.path} ({found.trainer}, {found.epochs} epochs)"
    return Pretrained(origin, options, found.weights, found.plan)


def read_nnunet(path: Path, *, fold: str | None = None) -> NnUNetModel:
    """The model in a results folder of nnU-Net, a fold's folder, or a checkpoint by itself.

    No code in a checkpoint is run: it is read by torch's restricted unpickler, in which the NumPy
    numbers of nnU-Net's log are replaced by empty stand-ins (`robustcli.adapters.checkpoint`).

    Args:
        path: See `nnunet.files.find_checkpoint`.
        fold: Which fold, where there are several.

    Raises:
        UsageError: There is no checkpoint; it holds code or is damaged; it is of another network;
            its plan is missing or does not fit its weights.
    """
    file = find_checkpoint(path, fold=fold)
    model = trained_model(file, read_torch(file), without_aliases(read_weights(file)))
    with torch.device("meta"):
        network = networks.create(model.model, model.options)
    expected, given = shapes_of(network.state_dict()), shapes_of(model.weights)
    if expected != given:
        height, width = model.plan.patch
        raise UsageError(
            f"The plan of `{model.path}` does not fit its weights.",
            differences(expected, given),
            f"The plan's patch is {height} x {width}, on which weights of `umamba-enc` depend: use "
            "the plan that it was trained with."
            if model.model == "umamba-enc"
            else "Use the plan that it was trained with.",
        )
    return model


def heads_of(entry: ModelEntry) -> tuple[str, ...]:
    """Beginnings of the names of the layers that are new in the target task."""
    if entry.builder == "smp":
        return _SMP_HEAD
    return tuple(f"{head}." for head in FAMILIES[entry.family].heads)


def fill(
    network: nn.Module, pretrained: Pretrained, entry: ModelEntry, heads: tuple[str, ...]
) -> None:
    """Copies the weights into `network` but for its heads.

    Raises:
        UsageError: A tensor is missing or of another shape; nothing was copied. Each is named.
    """
    transfer(network, pretrained.state, entry, heads, pretrained.origin, patch=pretrained.patch)
