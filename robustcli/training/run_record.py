"""A training as its record: what `run.json` says of it before it begins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version

import torch
from torch import nn

from robustcli.adapters.fetching import state_digest
from robustcli.core.machine import versions
from robustcli.data.dataset import Dataset
from robustcli.evaluation.device import device_name
from robustcli.models.mamba import Mamba
from robustcli.models.scan.choice import choose_backend
from robustcli.models.ss2d import SS2D
from robustcli.training.cache import Decoded
from robustcli.training.recipes import Recipe
from robustcli.training.record import RecipeRecord, SplitRecord, TrainRecord
from robustcli.training.training_task import TrainPlan

_PACKAGES = ("lightning", "monai")
LOGIT_HALF = 0.6224593312018546  # the probability at logit 0.5


def train_record(plan: TrainPlan, network: nn.Module, origin: str) -> TrainRecord:
    """The record of a training that begins; its splits are not counted yet.

    Args:
        plan: The training.
        network: With the weights that it starts from.
        origin: Where these come from.
    """
    config, recipe, now = plan.config, plan.recipe, datetime.now(UTC)
    facts = plan.task.facts(plan, network)
    return TrainRecord(
        task=plan.task.name,
        command=config.command,
        status="running",
        created=now,
        updated=now,
        seed=config.seed,
        protocol=facts.protocol,
        faults=list(facts.faults),
        model=plan.entry.name,
        family=plan.entry.family,
        arguments=json.loads(json.dumps(dict(config.model_args))),  # as they will be read back
        parameters=sum(p.numel() for p in network.parameters()),
        initial_weights=origin,
        initial_weights_sha256=state_digest(network.state_dict()),
        dataset=facts.dataset,
        grouping=plan.index.grouping,
        splits={},
        recipe=recipe_record(recipe),
        decision=facts.decision,
        versions=versions() | {package: version(package) for package in _PACKAGES},
        device=device_name(plan.machine.device),
        devices=plan.machine.world,
        scan_backend=_scan_backend(network, plan.machine.device),
        threads=torch.get_num_threads(),
    )


def threshold(recipe: Recipe, *, probabilities: bool) -> float:
    """The probability from which a pixel is foreground.

    Args:
        recipe: With the decision.
        probabilities: Whether the network says probabilities, which have no logit to threshold.
    """
    logit = recipe.decision == "logit" and not probabilities
    return LOGIT_HALF if logit else 0.5


def decision_words(probability: float) -> str:
    """The decision as reports name it."""
    if probability == LOGIT_HALF:
        return "logit >= 0.5, that is probability >= 0.622"
    return f"probability >= {probability:g}"


def split_record(part: Dataset, decoded: Sequence[Decoded]) -> SplitRecord:
    """How many images, groups, and images without foreground a part has."""
    empty = sum(not (one.mask == 1).any() for one in decoded)
    return SplitRecord(images=len(part.samples), groups=len(part.groups), empty=empty)


def recipe_record(recipe: Recipe) -> RecipeRecord:
    """The recipe as the record of a training keeps it."""
    described = asdict(recipe)
    described.pop("decision")
    return RecipeRecord(**described)


def _scan_backend(network: nn.Module, device: torch.device) -> str | None:
    scans = any(isinstance(module, (Mamba, SS2D)) for module in network.modules())
    return choose_backend(device, torch.float32) if scans else None
