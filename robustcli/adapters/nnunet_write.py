"""Checkpoints and results folders that nnU-Net's U-Mamba loads strictly.

Only plain Python values lie beside the tensors, so that `torch.load` reads the file with
`weights_only=True`; upstream's own files hold NumPy numbers and need the unsafe way.

Source: nnU-Net v2.1.1 as in U-Mamba 28459e3, `nnUNetTrainer.save_checkpoint`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcli.adapters.nnunet_keys import upstream_state
from robustcli.adapters.nnunet_kind import TRAINERS
from robustcli.adapters.nnunet_plan import DATASET, PLANS, NnUNetPlan
from robustcli.adapters.nnunet_progress import Progress
from robustcli.core.atomic import replacing, write_text
from robustcli.core.errors import UsageError
from robustcli.models.umamba import UMamba


def write_results(
    folder: Path,
    network: UMamba,
    *,
    plan: NnUNetPlan,
    fold: int | str,
    progress: Progress,
    name: str = "checkpoint_final.pth",
) -> Path:
    """Writes `Trainer__plans__configuration/` into `folder`: plan, data set and one checkpoint.

    Returns:
        The folder `Trainer__plans__configuration`, for `nnUNetv2_predict_from_modelfolder -m`.

    Raises:
        UsageError: The plan is not the network's.
        RunError: The file system refused.
    """
    top = folder / f"{trainer_of(network)}__{plan.name}__{plan.configuration}"
    write_checkpoint(top / f"fold_{fold}" / name, network, plan=plan, fold=fold, progress=progress)
    write_text(top / PLANS, json.dumps(plan.plans, indent=4) + "\n")
    write_text(top / DATASET, json.dumps(plan.dataset, indent=4) + "\n")
    return top


def write_checkpoint(
    path: Path,
    network: UMamba,
    *,
    plan: NnUNetPlan,
    fold: int | str,
    progress: Progress,
    mirror_axes: tuple[int, ...] = (0, 1),
) -> None:
    """Writes a checkpoint of `network` to `path`, durably.

    Args:
        path: The file; nnU-Net calls it `checkpoint_final.pth` or `checkpoint_best.pth`.
        network: The trained network.
        plan: What it was built from.
        fold: 0..4, or `all`.
        progress: How far its training has come.
        mirror_axes: Axes that inference may flip.

    Raises:
        UsageError: The plan is not the network's.
        RunError: The file system refused.
    """
    _check(network, plan)
    content = {
        "network_weights": upstream_state(network),
        "optimizer_state": _optimizer_state(network, progress.optimizer),
        "grad_scaler_state": progress.scaler.state_dict() if progress.scaler else None,
        "logging": {key: _lists(value) for key, value in asdict(progress.log).items()},
        "_best_ema": progress.best_ema,
        "current_epoch": progress.epochs,
        "init_args": {
            "plans": dict(plan.plans),
            "configuration": plan.configuration,
            "fold": fold,
            "dataset_json": dict(plan.dataset),
            "unpack_dataset": True,
            "device": torch.device("cuda"),
        },
        "trainer_name": trainer_of(network),
        "inference_allowed_mirroring_axes": mirror_axes,
    }
    with replacing(path) as beside:
        torch.save(content, beside)


def trainer_of(network: UMamba) -> str:
    """The name of nnU-Net's trainer for `network`."""
    return TRAINERS["umamba" if network.config.mamba == "bottleneck" else "umamba-enc"]


def _optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """The state of an SGD over all parameters, as upstream's is, with the moments there are."""
    kept = optimizer.param_groups[0] if optimizer else {}
    sgd = torch.optim.SGD(
        network.parameters(), lr=kept.get("lr", 1e-2), momentum=kept.get("momentum", 0.99),
        weight_decay=kept.get("weight_decay", 3e-5), nesterov=True,
    )  # fmt: skip
    for parameter in network.parameters():
        if optimizer and parameter in optimizer.state:
            sgd.state[parameter] = dict(optimizer.state[parameter])
    return sgd.state_dict()


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def _check(network: UMamba, plan: NnUNetPlan) -> None:
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
            "The network is not the plan's.",
            "; ".join(f"`{key}` is {has[key]}, the plan says {planned[key]}" for key in wrong)
            + ".",
            "Write it with the plan that it was built from.",
        )
