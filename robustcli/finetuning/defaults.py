"""What `robust finetune` takes where nothing is said, and the lines that announce it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from robustcli.adapters.entry import ModelEntry
from robustcli.core.errors import UsageError
from robustcli.core.names import canonical
from robustcli.data.datasets import SEGMENTATION
from robustcli.data.defaults import default_data
from robustcli.finetuning.config import FinetuneConfig
from robustcli.training.config import TrainConfig
from robustcli.training.recipes import BUNDLED, OWN

TARGET = f"{BUNDLED}:stained"
BUNDLED_MODELS = {"umamba": "umamba-pico"}
"""Network to the small one of its kind whose weights come with this program."""
NNUNET = "nnunet"
_WINDOW, _BATCH = 128, 4
_STEPS = {False: 360, True: 60}
"""Of each mode by whether it shall be quick: 2 cores take them three times in under 10 minutes, or
2; see `docs/finetune.md`."""
_REPORTED_STEPS = 6000
"""Of each mode by nnU-Net's recipe: "Exploring SSMs for Vision Tasks", 24 epochs of 250."""


def with_defaults(config: FinetuneConfig, say: Callable[[str], None]) -> FinetuneConfig:
    """`config` with the bundled network and the target data where none are named.

    Args:
        config: As typed.
        say: Hears which, in a line each.
    """
    training = config.training
    small = BUNDLED_MODELS.get(canonical(training.model))
    if small and config.pretrained is None and training.data is None:
        say(
            f"No --pretrained and no --data: `{training.model}` is the bundled `{small}`, "
            "pretrained on the fluorescence images of nuclei-mini."
        )
        training = replace(training, model=small)
    if training.data is None:
        training = replace(training, data=_target(say))
    return replace(config, training=training)


def _target(say: Callable[[str], None]) -> str:
    found = default_data(SEGMENTATION)
    if found.origin != "bundled":
        say(f"No --data: using {found.data} ({found.origin}).")
        return found.data
    say(
        f"No --data: using {TARGET}, 34 images (a demonstration set: with so few held out, the "
        "intervals are wide)."
    )
    return TARGET


def light(training: TrainConfig, data: str) -> TrainConfig:
    """`training` with what 2 cores bear, where the user said nothing and the data are bundled.

    Args:
        training: As typed.
        data: Name of the data set.
    """
    ours = data.partition(":")[0] == BUNDLED and training.protocol == "patient"
    if not ours or training.recipe is not None:
        return training
    return replace(
        training,
        quick=False,
        window=training.window or _WINDOW,
        batch_size=training.batch_size or _BATCH,
    )


def usual_recipe(
    training: TrainConfig, entry: ModelEntry, data: str, say: Callable[[str], None]
) -> TrainConfig:
    """`training` with the recipe that serves where the user names none.

    That is a small one on bundled data, nnU-Net's for a U-Mamba, else the network's own.

    Args:
        training: As typed.
        entry: The network.
        data: Name of the data set.
        say: Hears of nnU-Net's.
    """
    small = light(training, data)
    typed = small is not training or training.recipe or training.protocol != "patient"
    if entry.family != "umamba" or typed:
        return small
    say(
        "No --recipe: a U-Mamba is trained as nnU-Net does, which takes a GPU. `--recipe "
        f"{NNUNET}-light` is the same for a CPU, `--recipe {OWN}` is ours."
    )
    return replace(training, recipe=NNUNET)


def usual_steps(typed: TrainConfig, training: TrainConfig, data: str) -> int | None:
    """Steps of each mode where the user says none; None where the recipe's epochs hold.

    Args:
        typed: The settings as typed.
        training: With the recipe of `usual_recipe`.
        data: Name of the data set.
    """
    if typed.epochs is not None:
        return None
    if light(typed, data) is not typed:
        return _STEPS[typed.quick]
    return None if typed.quick or training.recipe == typed.recipe else _REPORTED_STEPS


def no_weights(entry: ModelEntry) -> UsageError:
    """The error where there is nothing to fine-tune from."""
    small = BUNDLED_MODELS.get(entry.name)
    bundled = f" The small `{small}` comes with weights." if small else ""
    return UsageError(
        f"`{entry.name}` has no weights here to fine-tune.",
        f"Fine-tuning starts from trained weights.{bundled}",
        "Name some with `--pretrained FILE|RUN|FOLDER` (a training run: `robust train seg --model "
        f"{entry.name}`; or a results folder of nnU-Net), or train from random ones with "
        "`--mode scratch`.",
    )
