"""Checkpoints of nnU-Net as models: the plan in or next to a file defines its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.checkpoint import Weights, read_torch, read_weights
from robustcli.adapters.networks import create
from robustcli.adapters.segmenter import MaskPreprocessing
from robustcli.adapters.strict_loading import shapes_of, tensor_differences
from robustcli.core.errors import UsageError
from robustcli.core.names import canonical
from robustcli.models.blocks import StagedUNet
from robustcli.models.umamba import without_aliases
from robustcli.nnunet.files import (
    TRAINERS,
    NnUNetModel,
    find_checkpoint,
    planned_inference,
    trained_model,
)


def read_nnunet(path: Path, *, fold: str | None = None) -> NnUNetModel:
    """The model in a results folder of nnU-Net, a fold's folder, or a single checkpoint.

    No code in a checkpoint is run: it is read by torch's restricted unpickler, in which the NumPy
    numbers of nnU-Net's log are replaced by empty placeholders (`robustcli.adapters.checkpoint`).

    Raises:
        UsageError: There is no checkpoint; it contains code or is damaged; it is of another
            network; its plan is missing or does not match its weights.
    """
    file = find_checkpoint(path, fold=fold)
    return _read(file, read_torch(file), read_weights(file))


def model_with_plan(
    entry: ModelEntry, file: Path, state: Mapping[str, Tensor]
) -> NnUNetModel | None:
    """The network of `entry` with its plan, if `file` is a checkpoint of nnU-Net with a plan.

    None for other files, checkpoints without a plan, and networks that no plan defines.

    Args:
        entry: The catalogue entry of the network.
        file: The file with the weights.
        state: The weights in `file`.

    Raises:
        UsageError: The checkpoint is of another network, or its plan does not match its weights.
    """
    if entry.network not in TRAINERS or not _of_nnunet(state):
        return None
    content = read_torch(file)
    if planned_inference(file, content) is None:
        return None
    model = _read(file, content, state)
    if canonical(model.model) != canonical(entry.network):
        raise UsageError(
            f"`{file}` does not contain the weights of `{entry.network}`.",
            f"By the names of its tensors it contains weights of `{model.model}`.",
            f"Use these weights with the model `{model.model}`.",
        )
    return model


def planned_preprocessing(
    base: MaskPreprocessing, file: Path, state: Mapping[str, Tensor], network: nn.Module
) -> MaskPreprocessing | None:
    """The preprocessing of `network` by the plan of its checkpoint; None without a plan.

    Args:
        base: The preprocessing of the network without regard to its weights.
        file: The file with the weights.
        state: The weights in `file`.
        network: The network with these weights.

    Raises:
        UsageError: The plan is damaged.
    """
    planned = planned_inference(file, read_torch(file)) if _of_nnunet(state) else None
    if planned is None:
        return None
    patch, inference = planned
    window = base.window
    if isinstance(network, StagedUNet) and not network.config.bound_to_patch:
        window = replace(network.config, patch_size=patch).square
    return replace(base, window=window, nnunet=inference)


def planned_classes(model: NnUNetModel) -> tuple[str, ...]:
    """The names of the classes 1 to K of `model`; empty for foreground and background."""
    names = model.plan.labels[1:]
    return names if len(names) > 1 and model.num_classes == len(names) + 1 else ()


def _of_nnunet(state: Mapping[str, Tensor]) -> bool:
    return isinstance(state, Weights) and state.key_path == "network_weights"


def _read(file: Path, content: object, state: Mapping[str, Tensor]) -> NnUNetModel:
    """The model in the checkpoint `file`, whose plan fits its weights."""
    model = trained_model(file, content, without_aliases(state))
    with torch.device("meta"):
        network = create(model.model, model.options)
    expected, shapes = shapes_of(network.state_dict()), shapes_of(model.weights)
    if expected != shapes:
        height, width = model.plan.patch
        raise UsageError(
            f"The plan of `{model.path}` does not match its weights.",
            tensor_differences(expected, shapes),
            f"The plan's patch is {height} x {width}, on which the weights of `umamba-enc` "
            "depend. Use the plan of the training."
            if model.model == "umamba-enc"
            else "Use the plan of the training.",
        )
    return model
