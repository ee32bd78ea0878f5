"""What follows the last epoch: the chosen weights, and what they do on the held-out images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from robustcli.adapters.load import ModelRequest
from robustcli.adapters.nnunet_inference import NnUNetInference
from robustcli.adapters.weights import hash_state
from robustcli.adapters.weights_header import WeightsHeader, write_weights
from robustcli.data.pairs import PairIndex
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.listener import Listener
from robustcli.training.batches.cache import decoded_once
from robustcli.training.batches.samples import WholeSamples
from robustcli.training.checkpoint_io import DurableCheckpoints
from robustcli.training.config import TrainConfig
from robustcli.training.describe import threshold
from robustcli.training.keeping import BEST, FOLDER, LAST, MONITOR, KeepLastAndBest
from robustcli.training.module import SegmentationModule
from robustcli.training.paper import write_paper_rows
from robustcli.training.prepare import Selection
from robustcli.training.record import AVERAGED

WEIGHTS = "weights.safetensors"
BASELINE = "otsu"
_PREFIX = "network."
_WHY = {
    MONITOR: "the best dice on the validation images",
    AVERAGED: "the best moving average of the dice on validation patches",
}
_OVERLAP = 0.5  # of nnU-Net's windows


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
    """The weights of the best epoch by validation dice, or of the last one."""
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
    return Chosen(epoch, f"{_WHY[kept.get('monitor', MONITOR)]}, {kept['best_dice']:.4f}", state)


def save_weights(
    config: TrainConfig, selection: Selection, module: SegmentationModule, chosen: Chosen
) -> str:
    """Writes `RUN/weights.safetensors`; returns the hash of the weights."""
    patches = selection.recipe.patches
    header = WeightsHeader(
        model=selection.entry.name,
        arguments=dict(config.model_args),
        window=selection.recipe.window,
        channels=selection.channels,
        threshold=threshold(selection, probabilities=module.probabilities),
        protocol=config.protocol,
        trained_on=selection.index.digest,
        images_sha256=hash_ids(selection.splits.train),
        overlap=None if patches is None else _OVERLAP,
        nnunet=None if patches is None else NnUNetInference(patches.channels),
    )
    write_weights(selection.run / WEIGHTS, chosen.state, header)
    return hash_state(chosen.state)


def hash_ids(part: PairIndex) -> str:
    """SHA-256 (hex) over the ids of the images, a line each, in order."""
    return hashlib.sha256("".join(f"{p.image_id}\n" for p in part.pairs).encode()).hexdigest()


def score_as_the_paper(selection: Selection, module: SegmentationModule) -> None:
    """Writes `RUN/paper.parquet` from the test images, in the order of their ids."""
    pairs, recipe = selection.splits.test.pairs, selection.recipe
    module.to(selection.on.device)
    with decoded_once(pairs, selection.run / "cache") as decoded:
        samples = WholeSamples([pair.image_id for pair in pairs], decoded, recipe.window)
        write_paper_rows(selection.run, module, samples, batch_size=min(16, recipe.batch_size))


def evaluate_held_out(config: TrainConfig, selection: Selection, listener: Listener) -> None:
    """Evaluates the weights into `RUN/test`, and Otsu's threshold into `RUN/baseline`."""
    run = selection.run
    listener.say(f"Measuring on the {len(selection.splits.test.pairs)} held-out images.")
    for model, out in ((str(run), run / "test"), (BASELINE, run / "baseline")):
        run_evaluation(
            EvalConfig(
                models=(ModelRequest(model),),
                transforms=("identity",),
                data=config.data,
                out=out,
                split="test",
                splits_of=run,
                seed=config.seed,
                precision=config.precision,
                device=config.device,
                workers=config.workers,
                offline=config.offline,
                command=config.command,
            )
        )
