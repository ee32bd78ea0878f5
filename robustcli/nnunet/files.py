"""Finds, reads and writes nnU-Net's results folders and checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.core.io import replacing, write_text
from robustcli.models.blocks import Pair, StagedUNet
from robustcli.models.resenc import ResEncUNet
from robustcli.models.umamba import UMamba, canonical_key, with_aliases
from robustcli.nnunet.normalisation import NnUNetInference
from robustcli.nnunet.plans_json import DATASET, PLANS, NnUNetPlan, read_plan

# Location of checkpoints in a results folder of nnU-Net:
# RESULTS/DATASET/Trainer__plans__configuration/{plans.json, dataset.json}
#                                              /fold_X/checkpoint_{final,best,latest}.pth

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
"""In order of preference: final, best and latest checkpoint."""


def is_results_folder(path: Path) -> bool:
    """Whether `path` is a folder in which `find_checkpoint` finds checkpoints."""
    return path.is_dir() and bool(_folds(path))


def find_checkpoint(path: Path, *, fold: str | None = None) -> Path:
    """Finds the checkpoint in `path`.

    Args:
        path: A checkpoint, or the folder of a fold, of a trainer or of a data set.
        fold: The fold (`0`, `all`), if there are several.

    Raises:
        UsageError: No checkpoint exists, or several folds contain one.
    """
    if path.is_file():
        return path
    folds = _folds(path)
    if fold is not None:
        all_folds, folds = folds, [folder for folder in folds if folder.name == f"fold_{fold}"]
        if not folds:
            raise UsageError(
                f"`{path}` has no fold `{fold}`.",
                f"It has {', '.join(f'`{folder.name}`' for folder in all_folds) or 'no folds'}.",
                "Pass one of these.",
            )
    if not folds:
        raise UsageError(
            f"`{path}` contains no checkpoint of nnU-Net.",
            "Expected `Trainer__plans__configuration/fold_X/checkpoint_final.pth`, or one of "
            "these folders.",
            "Pass the checkpoint file, or the folder that `nnUNetv2_train` wrote.",
        )
    if len(folds) > 1:
        raise UsageError(
            f"`{path}` contains {len(folds)} trainings.",
            f"These are {', '.join(f'`{folder.relative_to(path)}`' for folder in folds)}.",
            "Pass the folder of one training.",
        )
    return next(folds[0] / name for name in CHECKPOINTS if (folds[0] / name).is_file())


def _folds(path: Path) -> list[Path]:
    """The folders with a checkpoint in or below `path`, at the depths that nnU-Net uses."""
    folders = {path, *path.glob("fold_*"), *path.glob("*__*__*/fold_*")}
    return sorted(f for f in folders if any((f / name).is_file() for name in CHECKPOINTS))


# Reading of U-Mambas and residual encoders trained by nnU-Net: weights, plan and other entries of
# the checkpoint. Source: nnU-Net v2.1.1 as in U-Mamba 28459e3, `nnUNetTrainer.save_checkpoint`.

TRAINERS = {
    "umamba": "nnUNetTrainerUMambaBot",
    "umamba-enc": "nnUNetTrainerUMambaEnc",
    "resenc": "nnUNetTrainer",
}
"""Maps models to the trainer that writes their files; names of trainer variants such as
`...EncNoAMP` start with it. For `nnUNetTrainer`, `UNet_class_name` in the plan defines the
network."""
_MARKS = {
    "umamba": "mamba_layer.",
    "umamba-enc": "encoder.mamba_layers.",
    "resenc": "encoder.stem.convs.",
}


def recognised(file: Path, names: Collection[str], trainer: str) -> str:
    """Detects the model by the names of its tensors: `umamba`, `umamba-enc` or `resenc`.

    Args:
        file: The checkpoint, for messages.
        names: Names of its tensors, converted to this package's names.
        trainer: Name of the trainer class; empty if the file does not contain it.

    Raises:
        UsageError: The model is none of these, or the trainer belongs to another model.
    """
    by_keys = [
        model for model, mark in _MARKS.items() if any(key.startswith(mark) for key in names)
    ]
    if len(by_keys) != 1:
        raise UsageError(
            f"`{file}` contains no U-Mamba.",
            f"Its trainer is `{trainer or 'not named'}`. The network has no Mamba layer in the "
            "bottleneck or in the encoder, and it is not nnU-Net's residual encoder.",
            f"Expected a checkpoint of {' or '.join(TRAINERS.values())}.",
        )
    matching = [
        model
        for model, name in TRAINERS.items()
        if trainer.startswith(name) and name != TRAINERS["resenc"]  # prefix of the others
    ]
    if matching and matching != by_keys:
        raise UsageError(
            f"`{file}` is inconsistent.",
            f"Its trainer is `{trainer}`, but its weights are those of `{by_keys[0]}`.",
            "The file was changed after training. Use the original file.",
        )
    return by_keys[0]


_STEM, _HEAD = "encoder.stem.0.conv1.weight", "decoder.seg_layers.0.weight"
_FIRST = {"umamba": _STEM, "umamba-enc": _STEM, "resenc": "encoder.stem.convs.0.conv.weight"}
_BLOCKS = {"resenc": "n_blocks"}
"""Option name of the number of convolutions per encoder stage, for models without `n_conv`."""


@dataclass(frozen=True)
class NnUNetModel:
    """A trained network with its plan.

    Args:
        path: The checkpoint.
        model: A key of TRAINERS.
        plan: Plan and data set, which define patch, normalisation and labels.
        weights: Weights under this package's names, without aliases.
        trainer: Name of the trainer class.
        fold: `0`..`4` or `all`; empty if the file does not contain it.
        epochs: Number of finished epochs; None if the file does not contain it.
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
        """Number of channels of the images."""
        return int(self.weights[_FIRST[self.model]].shape[1])

    @property
    def num_classes(self) -> int:
        """Number of classes, including background."""
        return int(self.weights[_HEAD].shape[0])

    @property
    def options(self) -> dict[str, object]:
        """Options of `create_model(model, **options)` for a network that fits the weights."""
        sizes = {"in_channels": self.in_channels, "num_classes": self.num_classes}
        return {**planned_options(self.model, self.plan), **sizes}


def planned_options(model: str, plan: NnUNetPlan) -> dict[str, object]:
    """The options of the network `model` that `plan` defines, under the model's option names."""
    renamed = {"n_conv": _BLOCKS.get(model, "n_conv")}
    return {renamed.get(name, name): value for name, value in plan.options.items()}


def trained_model(file: Path, content: object, weights: Mapping[str, Tensor]) -> NnUNetModel:
    """The model of a loaded checkpoint.

    Args:
        file: The checkpoint. `plans.json` and `dataset.json` are read from the parent folder of the
            fold if they exist, else from the checkpoint's `init_args`.
        content: The content of the file.
        weights: Its `network_weights` under this package's names, without aliases.

    Raises:
        UsageError: The checkpoint belongs to another network, or its plan is missing or has another
            number of channels.
    """
    if not isinstance(content, Mapping) or "network_weights" not in content:
        raise UsageError(
            f"`{file}` is not a checkpoint of nnU-Net.",
            "It has no `network_weights`, which nnU-Net always writes.",
            "Pass weights without a plan with `--weights FILE` and the options of their plan.",
        )
    trainer = str(content.get("trainer_name", ""))
    name = recognised(file, weights, trainer)
    _check_whole(file, weights, (_FIRST[name], _HEAD))
    started = _started(content)
    epochs = content.get("current_epoch")
    model = NnUNetModel(
        file, name, _plan_of(file, started), weights, trainer,
        str(started.get("fold", file.parent.name.partition("fold_")[2])),
        epochs if isinstance(epochs, int) else None, _mirror_axes(content),
    )  # fmt: skip
    planned = len(model.plan.channel_names)
    if planned != model.in_channels:
        raise UsageError(
            f"The plan of `{file}` does not match its weights.",
            f"The data set has {planned} channels ({', '.join(model.plan.channel_names)}), but "
            f"the weights have {model.in_channels} input channels.",
            "Use the plan, data set and checkpoint of the same training.",
        )
    return model


def planned_inference(
    file: Path, content: object
) -> tuple[Pair, NnUNetInference, tuple[str, ...]] | None:
    """Patch size, settings of inference and names of the classes by the plan of a checkpoint.

    None without a plan. The names include that of the background.

    Unlike `trained_model`, it does not depend on the network.

    Args:
        file: The checkpoint.
        content: Its content.

    Raises:
        UsageError: The plan is damaged.
    """
    if not isinstance(content, Mapping) or "network_weights" not in content:
        return None
    started = _started(content)
    if "plans" not in started and not (file.parent.parent / PLANS).is_file():
        return None
    plan = _plan_of(file, started)
    return plan.patch, NnUNetInference(plan.channels, _mirror_axes(content)), plan.labels


def _started(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments with which the training was started; empty if the file lacks them."""
    started = content.get("init_args")
    return started if isinstance(started, Mapping) else {}


def _mirror_axes(content: Mapping[str, Any]) -> tuple[int, ...]:
    axes = content.get("inference_allowed_mirroring_axes")
    if not isinstance(axes, (tuple, list)):
        return ()
    return tuple(axis for axis in axes if isinstance(axis, int))


def _check_whole(file: Path, weights: Mapping[str, Tensor], needed: Sequence[str]) -> None:
    missing_keys = [key for key in needed if key not in weights]
    if missing_keys:
        raise UsageError(
            f"`{file}` does not contain a complete U-Mamba.",
            f"It lacks {', '.join(f'`{key}`' for key in missing_keys)}.",
            "Use the original checkpoint of nnU-Net.",
        )


def _plan_of(file: Path, started: Mapping[str, Any]) -> NnUNetPlan:
    configuration = str(started.get("configuration", ""))
    above = file.parent.parent
    if (above / PLANS).is_file():
        name_parts = above.name.split("__")
        return read_plan(above, configuration or (name_parts[-1] if len(name_parts) == 3 else "2d"))
    plans, dataset = started.get("plans"), started.get("dataset_json")
    if isinstance(plans, Mapping) and isinstance(dataset, Mapping):
        return NnUNetPlan(plans, dataset, configuration or "2d")
    raise UsageError(
        f"The plan of `{file}` is missing.",
        f"`{above}` contains no `{PLANS}`, and the checkpoint has no plan in its `init_args`.",
        "Copy the complete results folder, or pass the weights with the options of their plan.",
    )


# Conversion of the weights of a U-Mamba to upstream's names, including aliases, in upstream's
# order. Upstream registers most tensors under two or four names, and nnU-Net loads strictly.

_WRAPPER = re.compile(r"\.conv[12]\.(conv|norm)\.\w+$")


def upstream_state(network: nn.Module) -> dict[str, Tensor]:
    """The weights on the CPU under all of upstream's names, in upstream's order.

    Several names of a tensor share its storage, also in the file.
    """
    state = {key: tensor.detach().cpu() for key, tensor in network.state_dict().items()}
    full, position = with_aliases(state), {key: i for i, key in enumerate(state)}
    first = {_block(key): i for key, i in reversed(position.items())}

    def place(key: str) -> tuple[int, int, bool, int]:
        name = canonical_key(key)
        section = 1 if key.startswith("decoder.encoder.") else 2 * key.startswith("decoder.")
        return section, first[_block(name)], ".all_modules." in key, position[name]

    return {key: full[key] for key in sorted(full, key=place)}


def _block(name: str) -> str:
    """The name of the wrapper that registers the tensor `name` twice, or `name` without one."""
    return name.rpartition(".")[0].rpartition(".")[0] if _WRAPPER.search(name) else name


# Writing of checkpoints and results folders that nnU-Net (for U-Mamba: its fork) loads strictly. In
# addition to tensors, files only contain plain Python values, so that `torch.load` reads them with
# `weights_only=True`; files of upstream contain NumPy numbers and need `weights_only=False`.
#
# Source: nnU-Net v2.1.1 as in U-Mamba 28459e3, `nnUNetTrainer.save_checkpoint`.


_LOGGED = (
    *("mean_fg_dice", "ema_fg_dice", "dice_per_class_or_region", "train_losses", "val_losses"),
    *("lrs", "epoch_start_timestamps", "epoch_end_timestamps"),
)
"""Names of nnU-Net's log, whose lists of one value per epoch are empty here."""


def write_results(folder: Path, network: StagedUNet, *, plan: NnUNetPlan, epochs: int) -> Path:
    """Writes `Trainer__plans__configuration/` into `folder`: plan, data set and one checkpoint.

    Args:
        folder: The folder of the results.
        network: A trained network with a trainer, see `trainer_of`.
        plan: The plan of the network.
        epochs: Number of finished epochs.

    Returns:
        The folder `Trainer__plans__configuration`, for `nnUNetv2_predict_from_modelfolder -m`.

    Raises:
        UsageError: The plan does not fit the network.
        RunError: The files cannot be written.
    """
    _check(network, plan)
    top = folder / f"{trainer_of(network)}__{plan.name}__{plan.configuration}"
    with replacing(top / "fold_all" / CHECKPOINTS[0]) as temporary, temporary.open("wb") as file:
        torch.save(_checkpoint(network, plan, epochs), file)  # a path would be stored in the file
    write_text(top / PLANS, json.dumps(plan.plans, indent=4) + "\n")
    write_text(top / DATASET, json.dumps(plan.dataset, indent=4) + "\n")
    return top


def _checkpoint(network: StagedUNet, plan: NnUNetPlan, epochs: int) -> dict[str, Any]:
    """The contents of a checkpoint, with the state of a new optimizer."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1e-2, momentum=0.99, weight_decay=3e-5, nesterov=True
    )
    return {
        "network_weights": upstream_state(network),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": {name: [] for name in _LOGGED},
        "_best_ema": None,
        "current_epoch": epochs,
        "init_args": {
            "plans": dict(plan.plans),
            "configuration": plan.configuration,
            "fold": "all",
            "dataset_json": dict(plan.dataset),
            "unpack_dataset": True,
            "device": torch.device("cuda"),
        },
        "trainer_name": trainer_of(network),
        "inference_allowed_mirroring_axes": (0, 1),
    }


def trainer_of(network: StagedUNet) -> str | None:
    """The name of nnU-Net's trainer for `network`; None if no trainer builds it."""
    if isinstance(network, ResEncUNet):
        return TRAINERS["resenc"]
    assert isinstance(network, UMamba), "a plan describes no other networks"
    if network.config.ablate is not None or network.config.mamba == "none":
        return None
    return TRAINERS["umamba" if network.config.mamba == "bottleneck" else "umamba-enc"]


def _check(network: StagedUNet, plan: NnUNetPlan) -> None:
    config = network.config
    planned = dict(plan.options, in_channels=len(plan.channel_names), num_classes=len(plan.labels))
    has = {
        "patch_size": config.patch,
        "kernels": config.stage_kernels,
        "strides": config.stage_strides,
        "features": config.features,
        "in_channels": config.in_channels,
        "num_classes": config.num_classes,
    }
    wrong = [key for key, value in has.items() if planned[key] != value]
    if wrong:
        raise UsageError(
            "The network does not match the plan.",
            "; ".join(f"`{key}` is {has[key]}, but {planned[key]} in the plan" for key in wrong)
            + ".",
            "Save it with the plan from which it was built.",
        )
