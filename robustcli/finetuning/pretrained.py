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

from robustcli.adapters import create
from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.checkpoint import read_torch, read_weights
from robustcli.adapters.families import FAMILIES
from robustcli.adapters.loading import differences, shapes_of
from robustcli.adapters.training_run import read_trained
from robustcli.adapters.transfer import fill_body, transfer
from robustcli.core.errors import UsageError
from robustcli.core.names import canonical
from robustcli.models.aliases import without_aliases
from robustcli.models.umamba import UMamba
from robustcli.models.umamba_config import Pair
from robustcli.nnunet.files import find_checkpoint, is_results_folder, recognised
from robustcli.nnunet.plan import PLANS, NnUNetPlan, read_plan

# U-Mamba as nnU-Net left it: weights, plan, normalisation and what else its checkpoint says.
#
# No code in a checkpoint is run: it is read by torch's restricted unpickler, in which the NumPy
# numbers of nnU-Net's log are replaced by empty stand-ins (`robustcli.adapters.checkpoint`).
#
# Source: nnU-Net v2.1.1 as in U-Mamba 28459e3, `nnUNetTrainer.save_checkpoint`.


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
        network = create.create(found.model, found.options)
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
    if isinstance(network, UMamba):
        transfer(network, pretrained.state, patch=pretrained.patch, origin=pretrained.origin)
    else:
        fill_body(network, pretrained.state, entry, heads, pretrained.origin)
