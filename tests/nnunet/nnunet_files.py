"""A small U-Mamba and a results folder of nnU-Net with it, as U-Mamba's trainer leaves one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustcli.adapters import networks
from robustcli.models.blocks import StagedUNet
from robustcli.nnunet.files import TRAINERS, planned_options, trainer_of, upstream_state
from robustcli.nnunet.plans_json import NnUNetPlan, make_plan

PLAN = make_plan((32, 32), ("R", "G", "B"), images=50, labels=("road",), features=(4, 64))


def network(model: str = "umamba", plan: NnUNetPlan = PLAN, seed: int = 0) -> StagedUNet:
    """The network of `plan`, with any weights."""
    torch.manual_seed(seed)
    made = networks.create(
        model,
        {
            **planned_options(model, plan),
            "in_channels": len(plan.channel_names),
            "num_classes": len(plan.labels),
        },
    )
    assert isinstance(made, StagedUNet)
    return made


def checkpoint(made: StagedUNet, plan: NnUNetPlan = PLAN, **changes: Any) -> dict[str, Any]:
    """What `nnUNetTrainer.save_checkpoint` would save, NumPy numbers and all."""
    trainer = {TRAINERS["umamba-enc"]: "nnUNetTrainerUMambaEncNoAMP"}
    return {
        "network_weights": upstream_state(made),
        "optimizer_state": torch.optim.SGD(made.parameters(), 1e-2, 0.99).state_dict(),
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float64(0.5)],
            "ema_fg_dice": [np.float64(0.5)],
            "dice_per_class_or_region": [[np.float32(0.5)]],
            "train_losses": [np.float32(-0.1)],
            "epoch_end_timestamps": [1.5],
        },
        "_best_ema": np.float64(0.5),
        "current_epoch": 24,
        "init_args": {
            "plans": dict(plan.plans),
            "configuration": "2d",
            "fold": 3,
            "dataset_json": dict(plan.dataset),
            "unpack_dataset": True,
            "device": torch.device("cuda"),
        },
        "trainer_name": trainer.get(trainer_of(made), trainer_of(made)),
        "inference_allowed_mirroring_axes": (0, 1),
        **changes,
    }


def results(
    folder: Path, content: Any, *, plan: NnUNetPlan = PLAN, fold: str = "3",
    name: str = "checkpoint_final.pth",
) -> Path:  # fmt: skip
    """The trainer's folder in `folder`, with `content` as the checkpoint of a fold."""
    top = folder / "Dataset001_X" / "nnUNetTrainerUMambaBot__nnUNetPlans__2d"
    (top / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
    torch.save(content, top / f"fold_{fold}" / name)
    (top / "plans.json").write_text(json.dumps(plan.plans))
    (top / "dataset.json").write_text(json.dumps(plan.dataset))
    return top
