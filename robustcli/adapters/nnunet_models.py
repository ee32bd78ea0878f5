"""Checkpoints of nnU-Net as models: the plan in or next to a file defines its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.checkpoint import Weights, read_torch, read_weights
from robustcli.adapters.model import shapes_only
from robustcli.adapters.networks import create
from robustcli.adapters.segmenter import MaskPreprocessing
from robustcli.adapters.strict_loading import shapes_of, tensor_differences
from robustcli.core.errors import UsageError
from robustcli.core.names import canonical
from robustcli.models.blocks import Pair
from robustcli.models.umamba import without_aliases
from robustcli.nnunet.files import (
    TRAINERS,
    NnUNetModel,
    find_checkpoint,
    planned_inference,
    trained_model,
)
from robustcli.nnunet.normalisation import NnUNetInference


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


@dataclass(frozen=True)
class PlannedWeights:
    """What the plan of a checkpoint defines.

    Args:
        patch: Height and width of the patches of the training.
        inference: Normalisation and flips.
        labels: The names of the classes, with that of the background.
        model: The network; None for networks that no plan defines.
    """

    patch: Pair
    inference: NnUNetInference
    labels: tuple[str, ...]
    model: NnUNetModel | None

    def classes(self, network: nn.Module) -> tuple[str, ...]:
        """The names of the classes 1 to K of `network`; empty for foreground and background."""
        fit = getattr(network, "num_classes", None) == len(self.labels)
        return self.labels[1:] if len(self.labels) > 2 and fit else ()

    def preprocessing(self, base: MaskPreprocessing) -> MaskPreprocessing:
        """`base`, the preprocessing without regard to the weights, with that of the plan."""
        height, width = self.patch
        window = height if height == width else (height, width)
        return replace(base, window=window, nnunet=self.inference)


def planned_weights(
    entry: ModelEntry, file: Path, state: Mapping[str, Tensor]
) -> PlannedWeights | None:
    """What the plan defines for the network of `entry`, if `file` is a checkpoint of nnU-Net.

    None for other files and for checkpoints without a plan.

    Args:
        entry: The catalogue entry of the network.
        file: The file with the weights.
        state: The weights in `file`.

    Raises:
        UsageError: The plan is damaged or does not match its weights, or the checkpoint is of
            another network.
    """
    if not (isinstance(state, Weights) and state.key_path == "network_weights"):
        return None
    content = read_torch(file)
    planned = planned_inference(file, content)
    if planned is None:
        return None
    if entry.network not in TRAINERS:
        return PlannedWeights(*planned, model=None)
    model = _read(file, content, state)
    if canonical(model.model) != canonical(entry.network):
        raise UsageError(
            f"`{file}` does not contain the weights of `{entry.network}`.",
            f"By the names of its tensors it contains weights of `{model.model}`.",
            f"Use these weights with the model `{model.model}`.",
        )
    return PlannedWeights(*planned, model=model)


def _read(file: Path, content: object, state: Mapping[str, Tensor]) -> NnUNetModel:
    """The model in the checkpoint `file`, whose plan fits its weights."""
    model = trained_model(file, content, without_aliases(state))
    with shapes_only():
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
