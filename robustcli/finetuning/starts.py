"""What fine-tuning starts from, and what it does otherwise for classifiers and for segmenters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from robustcli.adapters import timm_library
from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.fetching import local_path, official_weights
from robustcli.adapters.load import resolve
from robustcli.adapters.loading import heads_in
from robustcli.adapters.networks import learns
from robustcli.adapters.trainable import start_weights, transfer, wants_imagenet
from robustcli.adapters.training_run import read_trained
from robustcli.core.errors import UsageError
from robustcli.core.names import canonical
from robustcli.data.named_datasets import SEGMENTATION
from robustcli.data.sources import default_data
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.nnunet_export import export_nnunet
from robustcli.finetuning.pretrained import Pretrained, fill, heads_of, read_pretrained
from robustcli.finetuning.rules import SHARES, FreezeRule
from robustcli.models.umamba import UMamba
from robustcli.training.classifier_training import no_data
from robustcli.training.config import TrainConfig
from robustcli.training.recipes import BUNDLED, OWN
from robustcli.training.training_task import TrainPlan

# What fine-tuning does otherwise for classifiers than for segmenters; the rest of this
# room does not know which it has.


class FinetuneProtocol(ABC):
    """What fine-tuning does otherwise for classifiers than for segmenters."""

    rules: ClassVar[Sequence[FreezeRule]]
    """What a sweep tries."""

    @abstractmethod
    def with_defaults(self, config: FinetuneConfig, say: Callable[[str], None]) -> FinetuneConfig:
        """`config` with what is taken where nothing is named, which `say` hears.

        Raises:
            UsageError: There is nothing to take.
        """

    @abstractmethod
    def pretrained(self, config: FinetuneConfig, entry: ModelEntry) -> Pretrained | None:
        """The weights to start from; None where the recipe gives them or none are needed.

        Raises:
            UsageError: They are not here, or of another network.
        """

    @abstractmethod
    def heads(self, entry: ModelEntry, network: Callable[[], nn.Module]) -> tuple[str, ...]:
        """Beginnings of the names of the layers that are new in the target task.

        Args:
            entry: What is known of the network.
            network: Makes it.
        """

    @abstractmethod
    def fill(
        self, network: nn.Module, pretrained: Pretrained, entry: ModelEntry, heads: tuple[str, ...]
    ) -> None:
        """Copies the weights into `network` but for its heads.

        Raises:
            UsageError: A tensor is missing or of another shape; nothing was copied.
        """

    def sized(self, training: TrainConfig, entry: ModelEntry) -> TrainConfig:
        """`training` with the window that the network's weights demand."""
        return training

    def usual_recipe(
        self, training: TrainConfig, entry: ModelEntry, data: str, say: Callable[[str], None]
    ) -> TrainConfig:
        """`training` with the recipe that serves on `data` where none is named; `say` hears it."""
        return training

    def usual_steps(self, typed: TrainConfig, training: TrainConfig, data: str) -> int | None:
        """Steps of each mode on `data` where none are named; None where the recipe's epochs hold.

        Args:
            typed: The settings as typed.
            training: What `usual_recipe` made of them.
            data: Name of the data set.
        """
        return None

    def export(self, plan: TrainPlan) -> None:
        """Writes what the finished training of a mode leaves beside its training run: nothing."""
        return


# The defaults of `robust finetune` for segmenters, and the lines that announce them.


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


# Fine-tuning of classifiers: the weights that `robust eval` takes, for the classes of new data.


class Classifiers(FinetuneProtocol):
    """Which class an image shows; a sweep also trains the last layer alone."""

    rules: ClassVar[Sequence[FreezeRule]] = (*SHARES, FreezeRule(pattern="*"))

    def with_defaults(self, config: FinetuneConfig, say: Callable[[str], None]) -> FinetuneConfig:
        """See `FinetuneProtocol.with_defaults`: there is no target to take."""
        if config.training.data is None:
            raise no_data(resolve(config.training.model))
        return config

    def pretrained(self, config: FinetuneConfig, entry: ModelEntry) -> Pretrained | None:
        """See `FinetuneProtocol.pretrained`: a file or run, else what `robust eval` takes."""
        if config.pretrained is not None:
            return _named(config.pretrained, entry, config.training.model_args)
        if config.modes == ("scratch",) and entry.asset is None:
            return None
        return _published(config, entry)

    def heads(self, entry: ModelEntry, network: Callable[[], nn.Module]) -> tuple[str, ...]:
        """See `FinetuneProtocol.heads`: what timm's contract calls the classifier."""
        return heads_in(network())

    def fill(
        self, network: nn.Module, pretrained: Pretrained, entry: ModelEntry, heads: tuple[str, ...]
    ) -> None:
        """See `FinetuneProtocol.fill`."""
        transfer(network, pretrained.state, entry, heads, pretrained.origin)


def _named(path: Path, entry: ModelEntry, arguments: Mapping[str, Any]) -> Pretrained:
    if not path.exists():
        raise UsageError(
            f"`--pretrained {path}` does not exist.",
            "Expected a file of weights, or a training run.",
            "Check the path; `--mode scratch` needs no weights.",
        )
    trained = read_trained(path, entry)
    said = trained.header.arguments if trained.header else {}
    return Pretrained(str(trained.path), {**said, **arguments}, trained.state)


def _published(config: FinetuneConfig, entry: ModelEntry) -> Pretrained:
    training = config.training
    try:
        state, origin = _state(entry, training.model_args, offline=training.offline)
    except UsageError as error:
        raise UsageError(
            f"`{entry.name}` has no weights here to fine-tune.",
            f"{error.what} {error.why} (A dry run downloads nothing either.)"
            if training.offline
            else f"{error.what} {error.why}",
            "Name a file or a training run with `--pretrained`, or train from random weights with "
            "`--mode scratch`.",
        ) from error
    return Pretrained(origin, dict(training.model_args), state)


def _state(
    entry: ModelEntry, arguments: Mapping[str, Any], *, offline: bool
) -> tuple[Mapping[str, Tensor], str]:
    if entry.builder == "timm":
        network = timm_library.create(
            entry.variant, pretrained=True, arguments=arguments, offline=offline
        )
        return network.state_dict(), entry.source
    state = read_weights(official_weights(entry, offline=offline))
    bundled = "the bundled " if entry.asset is not None else ""
    return state, f"{bundled}`{entry.name}`, trained on {entry.pretraining}"


# Fine-tuning of segmenters: bundled weights and data, and nnU-Net's files in and out.


class Segmenters(FinetuneProtocol):
    """Foreground and background of every pixel; prefixes of U-Mamba save the most in a sweep.

    Nothing before the first trained layer has a way back.
    """

    rules: ClassVar[Sequence[FreezeRule]] = (
        *SHARES[:2],
        FreezeRule(pattern="mamba_layer.*"),
        *SHARES[2:],
        FreezeRule(pattern="encoder.stem.*,encoder.stages.0.*"),
        FreezeRule(pattern="encoder.stem.*,encoder.stages.[01].*"),
        FreezeRule(pattern="encoder.*"),
    )

    def with_defaults(self, config: FinetuneConfig, say: Callable[[str], None]) -> FinetuneConfig:
        """See `FinetuneProtocol.with_defaults`."""
        return with_defaults(config, say)

    def pretrained(self, config: FinetuneConfig, entry: ModelEntry) -> Pretrained | None:
        """See `FinetuneProtocol.pretrained`."""
        arguments = config.training.model_args
        if config.pretrained is not None:
            return read_pretrained(config.pretrained, entry, arguments)
        if not learns(entry):
            return None
        if entry.asset is not None:  # also for `scratch` alone: other modes may join it later
            found = read_pretrained(local_path(entry), entry, arguments)
            origin = f"the bundled `{entry.name}`, trained on {entry.pretraining}"
            return replace(found, origin=origin)
        if config.modes == ("scratch",) or wants_imagenet(entry):
            return None
        raise no_weights(entry)

    def heads(self, entry: ModelEntry, network: Callable[[], nn.Module]) -> tuple[str, ...]:
        """See `FinetuneProtocol.heads`: known by the family."""
        return heads_of(entry)

    def fill(
        self, network: nn.Module, pretrained: Pretrained, entry: ModelEntry, heads: tuple[str, ...]
    ) -> None:
        """See `FinetuneProtocol.fill`."""
        fill(network, pretrained, entry, heads)

    def usual_recipe(
        self, training: TrainConfig, entry: ModelEntry, data: str, say: Callable[[str], None]
    ) -> TrainConfig:
        """See `FinetuneProtocol.usual_recipe`."""
        return usual_recipe(training, entry, data, say)

    def usual_steps(self, typed: TrainConfig, training: TrainConfig, data: str) -> int | None:
        """See `FinetuneProtocol.usual_steps`."""
        return usual_steps(typed, training, data)

    def sized(self, training: TrainConfig, entry: ModelEntry) -> TrainConfig:
        """See `FinetuneProtocol.sized`: a U-Mamba-Enc's weights have its patch's size."""
        if entry.family != "umamba":
            return training
        network, _ = start_weights(entry.name, None, True, True, 0, training.model_args)
        assert isinstance(network, UMamba)
        config = network.config
        if not any(config.tokens(stage)[1] for stage in range(len(config.features))):
            return training
        height, width = config.patch
        if height != width or training.window not in (None, height):
            raise UsageError(
                f"`{entry.name}` here takes patches of {height} x {width} pixels only.",
                "Some of its Mamba layers read whole channels as tokens, so its weights have the "
                "size of its plan's patch; training cuts squares of `--window`.",
                f"Leave out `--window`, or use `--window {height}`."
                if height == width
                else "Use weights that were trained with a square patch.",
            )
        return replace(training, window=height)

    def export(self, plan: TrainPlan) -> None:
        """See `FinetuneProtocol.export`: a U-Mamba as nnU-Net has it."""
        export_nnunet(plan)


# Which protocol a model has.


PROTOCOLS: dict[str, type[FinetuneProtocol]] = {"cls": Classifiers, "seg": Segmenters}


def protocol_of(entry: ModelEntry) -> FinetuneProtocol:
    """The protocol of `entry`."""
    return PROTOCOLS[entry.task]()
