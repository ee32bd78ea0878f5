"""What follows the last epoch: the chosen weights, and what they do on the held-out images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.fetching import state_digest
from robustcli.adapters.training_run import write_weights
from robustcli.data.dataset import Dataset
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.training.callbacks import BEST, FOLDER, LAST, KeepLastAndBest
from robustcli.training.lit_module import LitModule
from robustcli.training.record import AVERAGED, VALIDATIONS
from robustcli.training.trainer import DurableCheckpoints
from robustcli.training.training_task import TrainPlan

WEIGHTS = "weights.safetensors"
_PREFIX = "network."
_BY_DICE = VALIDATIONS["seg"].score
_WHY = {
    one.score: f"the best {one.word} on the validation images" for one in VALIDATIONS.values()
} | {AVERAGED: "the best moving average of the dice on validation patches"}


@dataclass(frozen=True)
class Chosen:
    """The weights that a training ends with.

    Args:
        epoch: After which they were, the first being 1.
        why: Why these, in words.
        state: The network's own.
    """

    epoch: int
    why: str
    state: dict[str, Tensor]


def chosen_weights(run: Path, *, best: bool) -> Chosen:
    """The weights of the best epoch by what was watched, or of the last one."""
    folder = run / FOLDER
    checkpoint = DurableCheckpoints().load_checkpoint(folder / (BEST if best else LAST))
    state = {
        key.removeprefix(_PREFIX): tensor
        for key, tensor in checkpoint["state_dict"].items()
        if key.startswith(_PREFIX)
    }
    epoch = int(checkpoint["epoch"]) + 1
    if not best:
        return Chosen(epoch, "the last epoch, as protocol `paper` has it", state)
    kept = checkpoint["callbacks"][KeepLastAndBest.__qualname__]
    return Chosen(epoch, f"{_WHY[kept.get('monitor', _BY_DICE)]}, {kept['best_dice']:.4f}", state)


def save_weights(plan: TrainPlan, lit_module: LitModule, chosen: Chosen) -> str:
    """Writes `RUN/weights.safetensors`; returns the hash of the weights."""
    write_weights(plan.run / WEIGHTS, chosen.state, plan.task.header(plan, lit_module.network))
    return state_digest(chosen.state)


def hash_ids(part: Dataset) -> str:
    """SHA-256 (hex) over the ids of the images, a line each, in order."""
    return hashlib.sha256("".join(f"{p.image_id}\n" for p in part.samples).encode()).hexdigest()


def evaluate_test_images(plan: TrainPlan, model: str, out: Path) -> None:
    """Evaluates `model` on the held-out images of the training, into the folder `out`.

    Raises:
        IncompleteRun: Some images were not evaluated; the same command computes the rest.
    """
    config = plan.config
    run_evaluation(
        EvalConfig(
            models=(ModelRequest(model),),
            transforms=("identity",),
            data=config.data,
            dataset=plan.dataset,
            out=out,
            split="test",
            splits_of=plan.run,
            seed=config.seed,
            precision=config.precision,
            device=config.device,
            workers=config.workers,
            offline=config.offline,
            foreground=config.foreground,
            ignore=config.ignore,
            command=config.command,
        )
    )
