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

from torch import Tensor, nn

from robustcli.adapters.body import fill_body
from robustcli.adapters.entry import ModelEntry
from robustcli.adapters.families import FAMILIES
from robustcli.adapters.nnunet import read_nnunet
from robustcli.adapters.nnunet_folder import is_results_folder
from robustcli.adapters.nnunet_plan import NnUNetPlan
from robustcli.adapters.nnunet_transfer import transfer
from robustcli.adapters.training_run import read_trained
from robustcli.core.errors import UsageError
from robustcli.core.names import canonical
from robustcli.models.umamba import UMamba
from robustcli.models.umamba_config import Pair

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


def fill(network: nn.Module, given: Pretrained, entry: ModelEntry, heads: tuple[str, ...]) -> None:
    """Copies the weights into `network` but for its heads.

    Raises:
        UsageError: A tensor is missing or of another shape; nothing was copied. Each is named.
    """
    if isinstance(network, UMamba):
        transfer(network, given.state, patch=given.patch, origin=given.origin)
    else:
        fill_body(network, given.state, entry, heads, given.origin)
