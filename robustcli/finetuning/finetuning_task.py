"""The task-specific parts of a fine-tuning: default settings, initial weights, nnU-Net's folders.

Weights follow nnU-Net's rule: every tensor outside the heads must exist with the same shape; the
heads keep their random initialisation, even if their shapes match.
Source: nnU-Net v2.1.1, `load_pretrained_weights`.

Trained U-Mambas and residual encoders are also written as results folders of nnU-Net:
`OUT/MODE/nnunet/TRAINER__PLANS__2d/`. The plans in `plans.json` and in the checkpoint's `init_args`
are those of the pretrained weights, or new ones in nnU-Net's format, with the topology of the
network, the classes of the data and the normalisation of the training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustcli.adapters import networks, timm_library
from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.fetching import local_path, official_weights
from robustcli.adapters.networks import is_trainable
from robustcli.adapters.nnunet_models import read_nnunet
from robustcli.adapters.strict_loading import heads_in
from robustcli.adapters.trainable import carried_arguments, heads_of, wants_imagenet
from robustcli.adapters.training_run import WEIGHTS, read_trained
from robustcli.core.errors import UsageError
from robustcli.core.names import canonical, network_words
from robustcli.data.named_datasets import SEGMENTATION
from robustcli.data.sources import default_data
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.record import NNUNET
from robustcli.finetuning.selection import COMMON_RULES, FreezeRule
from robustcli.models.blocks import Pair, StagedConfig, StagedUNet, each
from robustcli.models.resenc import ResEncConfig
from robustcli.models.umamba import UMamba, UMambaConfig
from robustcli.nnunet.files import (
    is_results_folder,
    trainer_of,
    write_results,
)
from robustcli.nnunet.plans_json import CLASSES, DATASET, NnUNetPlan, make_plan
from robustcli.training.classifier_training import check_data, check_finetunes
from robustcli.training.config import TrainConfig
from robustcli.training.procedures.base import Procedure
from robustcli.training.procedures.nnunet import PLANNED
from robustcli.training.recipes import BUNDLED, OWN_RECIPE
from robustcli.training.record import read_train_record
from robustcli.training.training_task import TrainPlan

Announcer = Callable[[str], None]


@dataclass(frozen=True)
class Pretrained:
    """Pretrained weights and their network.

    Args:
        plan: nnU-Net's plan of the pretraining; None for other weights.
    """

    origin: str
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor]
    plan: NnUNetPlan | None = None

    @property
    def patch(self) -> Pair | None:
        """The patch size of the plan, (height, width) in pixels; None without a plan."""
        return None if self.plan is None else self.plan.patch


class FinetuneTask(ABC):
    """The task-specific parts of a fine-tuning; defaults are shared by both tasks."""

    rules: ClassVar[Sequence[FreezeRule]]
    """The freezing rules of a sweep."""
    files: ClassVar[str]
    """The kinds of path that `--pretrained` accepts, in words."""

    @abstractmethod
    def with_defaults(
        self, config: FinetuneConfig, entry: ModelEntry, say: Announcer
    ) -> FinetuneConfig:
        """`config` with the default network and data if none are named, announced through `say`.

        Raises:
            UsageError: There is no default.
        """

    @abstractmethod
    def pretrained(self, config: FinetuneConfig, entry: ModelEntry) -> Pretrained | None:
        """The initial weights; None if the recipe provides them or no mode needs any.

        Raises:
            UsageError: The weights do not exist, or are of another network.
        """

    @abstractmethod
    def heads(self, entry: ModelEntry, network: Callable[[], nn.Module]) -> tuple[str, ...]:
        """Name prefixes of the layers that are new in the target task."""

    def sized(self, training: TrainConfig, entry: ModelEntry) -> TrainConfig:
        """`training` with the window size that the network's weights need."""
        return training

    def usual_recipe(
        self, training: TrainConfig, entry: ModelEntry, data: str, say: Announcer
    ) -> TrainConfig:
        """`training` with the default recipe for the data set `data`, announced through `say`."""
        return training

    def usual_steps(self, typed: TrainConfig, training: TrainConfig, data: str) -> int | None:
        """Default number of steps of each mode; None to use the epochs of the recipe.

        Args:
            typed: The settings as typed.
            training: The result of `usual_recipe`.
            data: Name of the data set.
        """
        return None

    def export(self, plan: TrainPlan, say: Announcer) -> None:
        """Writes additional files after the training of a mode; by default none."""
        return

    def check_exists(self, pretrained: Path) -> None:
        """Raises UsageError if the weights of `--pretrained` do not exist."""
        if not pretrained.exists():
            raise UsageError(
                f"`--pretrained {pretrained}` does not exist.",
                f"Expected {self.files}.",
                "Check the path; `--mode scratch` needs no weights.",
            )

    def read_file(self, path: Path, entry: ModelEntry, arguments: Mapping[str, Any]) -> Pretrained:
        """Reads the weights at `path` for the network `entry`: a training run, or a weights file.

        Args:
            path: Path as typed.
            entry: Catalogue entry of the network.
            arguments: Builder arguments as typed; they override those stored in the file.

        Raises:
            UsageError: The weights do not exist, or are of another network.
        """
        self.check_exists(path)
        trained = read_trained(path, entry)
        options = {**carried_arguments(trained.header), **arguments}
        return Pretrained(str(trained.path), options, trained.state)


class ClassifierFinetuning(FinetuneTask):
    """Fine-tuning of classifiers; a sweep includes training of only the last layer."""

    rules: ClassVar[Sequence[FreezeRule]] = (*COMMON_RULES, FreezeRule(pattern="*"))
    files: ClassVar[str] = "a file of weights, or a training run"

    def with_defaults(
        self, config: FinetuneConfig, entry: ModelEntry, say: Announcer
    ) -> FinetuneConfig:
        """See `FinetuneTask.with_defaults`; the training plan looks up the default data set."""
        check_data(entry, config.training)
        check_finetunes(config.training)
        return config

    def pretrained(self, config: FinetuneConfig, entry: ModelEntry) -> Pretrained | None:
        """See `FinetuneTask.pretrained`: a file or run, else the weights of `robust eval`."""
        if config.pretrained is not None:
            return self.read_file(config.pretrained, entry, config.training.model_args)
        if config.modes == ("scratch",) and entry.asset is None:
            return None
        return _published(config, entry)

    def heads(self, entry: ModelEntry, network: Callable[[], nn.Module]) -> tuple[str, ...]:
        """See `FinetuneTask.heads`: the layers that timm's models name as the classifier."""
        return heads_in(network())


def _published(config: FinetuneConfig, entry: ModelEntry) -> Pretrained:
    """The weights of `robust eval`."""
    training = config.training
    arguments, offline = training.model_args, training.offline
    try:
        if entry.on_timms_hub:
            network = timm_library.create(
                entry.variant, pretrained=True, arguments=arguments, offline=offline
            )
            return Pretrained(entry.source, dict(arguments), network.state_dict())
        state = read_weights(official_weights(entry, offline=offline))
    except UsageError as error:
        dry = " (A dry run does not download weights.)" if training.offline else ""
        raise UsageError(
            f"`{entry.name}` has no weights on this machine to fine-tune.",
            f"{error.what} {error.why}{dry}",
            "Specify a file or a training run with `--pretrained`, or train from random weights "
            "with `--mode scratch`.",
        ) from error
    bundled = "the bundled " if entry.asset is not None else ""
    origin = f"{bundled}`{entry.name}`, trained on {entry.pretraining}"
    return Pretrained(origin, dict(arguments), state)


TARGET = f"{BUNDLED}:stained"
BUNDLED_MODELS = {"umamba": "umamba-pico"}
"""Maps a network to the small network of its family whose weights are bundled."""
NNUNET_RECIPE = "nnunet"
_WINDOW, _BATCH = 128, 4
_STEPS = {False: 360, True: 60}
"""Steps of each mode on the bundled data, by `--quick`. Three modes take less than 10 minutes on 2
cores, and less than 2 minutes with `--quick`; see `docs/finetune.md`."""
_REPORTED_STEPS = 6000
"""Steps of each mode with nnU-Net's recipe. Source: "Exploring SSMs for Vision Tasks", 24 epochs of
250 steps."""
_TWO_CLASSES = {"num_classes": 2, "in_channels": 3}  # foreground or not, in photos


class SegmenterFinetuning(FinetuneTask):
    """Fine-tuning of segmenters; a sweep also freezes prefixes of the network.

    Prefixes save the most, because no layer before the first trained one needs a backward pass.
    """

    rules: ClassVar[Sequence[FreezeRule]] = (
        *COMMON_RULES[:2],
        FreezeRule(pattern="mamba_layer.*"),
        *COMMON_RULES[2:],
        FreezeRule(pattern="encoder.stem.*,encoder.stages.0.*"),
        FreezeRule(pattern="encoder.stem.*,encoder.stages.[01].*"),
        FreezeRule(pattern="encoder.*"),
    )
    files: ClassVar[str] = "a file of weights, a training run, or a results folder of nnU-Net"

    def with_defaults(
        self, config: FinetuneConfig, entry: ModelEntry, say: Announcer
    ) -> FinetuneConfig:
        """See `FinetuneTask.with_defaults`: the bundled network and the target data."""
        training = config.training
        small = BUNDLED_MODELS.get(canonical(training.model))
        if small and config.pretrained is None and training.data is None:
            say(
                f"`--pretrained` and `--data` are not set; using `{training.model}`: the bundled "
                f"`{small}`, pretrained on the fluorescence images of nuclei-mini."
            )
            training = replace(training, model=small)
        if training.data is None:
            training = replace(training, data=_default_target(say))
        return replace(config, training=training)

    def pretrained(self, config: FinetuneConfig, entry: ModelEntry) -> Pretrained | None:
        """See `FinetuneTask.pretrained`."""
        arguments = config.training.model_args
        if config.pretrained is not None:
            return self.read_file(config.pretrained, entry, arguments)
        if not is_trainable(entry):
            return None
        if entry.asset is not None:  # also if only `scratch` is trained: other modes may follow
            origin = f"the bundled `{entry.name}`, trained on {entry.pretraining}"
            return replace(self.read_file(local_path(entry), entry, arguments), origin=origin)
        if config.modes == ("scratch",) or wants_imagenet(entry):
            return None
        raise no_weights(entry)

    def read_file(self, path: Path, entry: ModelEntry, arguments: Mapping[str, Any]) -> Pretrained:
        """See `FinetuneTask.read_file`: also a results folder or checkpoint of nnU-Net."""
        checkpoint = path.suffix == ".pth" and (path.parent.parent / "plans.json").is_file()
        if path.exists() and (is_results_folder(path) or checkpoint):
            return _from_nnunet(path, entry, arguments)
        return super().read_file(path, entry, arguments)

    def heads(self, entry: ModelEntry, network: Callable[[], nn.Module]) -> tuple[str, ...]:
        """See `FinetuneTask.heads`: defined by the family of the network."""
        return heads_of(entry)

    def usual_recipe(
        self, training: TrainConfig, entry: ModelEntry, data: str, say: Announcer
    ) -> TrainConfig:
        """See `FinetuneTask.usual_recipe`.

        A small recipe for bundled data, nnU-Net's recipe for a network that is built from an
        nnU-Net plan, else the default recipe of the network.
        """
        small = light(training, data)
        typed = small is not training or training.recipe or training.protocol != "patient"
        if entry.family not in PLANNED or typed:
            return small
        say(
            f"`--recipe` is not set; `{entry.name}` is trained with nnU-Net's recipe, which needs "
            f"a GPU. `--recipe {NNUNET_RECIPE}-light` is a smaller version for a CPU, `--recipe "
            f"{OWN_RECIPE}` is the recipe of this program."
        )
        return replace(training, recipe=NNUNET_RECIPE)

    def usual_steps(self, typed: TrainConfig, training: TrainConfig, data: str) -> int | None:
        """See `FinetuneTask.usual_steps`."""
        if typed.epochs is not None:
            return None
        if light(typed, data) is not typed:
            return _STEPS[typed.quick]
        return None if typed.quick or training.recipe == typed.recipe else _REPORTED_STEPS

    def sized(self, training: TrainConfig, entry: ModelEntry) -> TrainConfig:
        """See `FinetuneTask.sized`: the weights of U-Mamba-Enc depend on the patch size."""
        if entry.family != "umamba":
            return training
        with torch.device("meta"):
            network = networks.create(entry.variant, training.model_args)
        assert isinstance(network, UMamba)
        config = network.config
        if not config.bound_to_patch:
            return training
        height, width = config.patch
        if height != width or training.window not in (None, height):
            raise UsageError(
                f"`{entry.name}` can only process patches of {height} x {width} pixels with these "
                "weights.",
                "Some of its Mamba layers use complete channels as tokens, so that its weights "
                "depend on the patch size of its plan; training cuts squares of `--window`.",
                f"Omit `--window`, or use `--window {height}`."
                if height == width
                else "Use weights that were trained with a square patch.",
            )
        return replace(training, window=height)

    def export(self, plan: TrainPlan, say: Announcer) -> None:
        """See `FinetuneTask.export`: a results folder of nnU-Net if it can build the network."""
        if not export_nnunet(plan) and plan.entry.family in PLANNED:
            name = network_words(plan.entry.name, plan.config.model_args)
            say(
                f"No results folder of nnU-Net is written, because nnU-Net cannot build `{name}` "
                "for images of three channels and these masks."
            )


FINETUNE_TASKS: dict[str, FinetuneTask] = {
    "cls": ClassifierFinetuning(), "seg": SegmenterFinetuning()
}  # fmt: skip


def light(training: TrainConfig, data: str) -> TrainConfig:
    """`training` with window and batch for 2 cores, if the data are bundled and none are typed."""
    bundled = data.partition(":")[0] == BUNDLED and training.protocol == "patient"
    if not bundled or training.recipe is not None:
        return training
    return replace(
        training,
        quick=False,
        window=training.window or _WINDOW,
        batch_size=training.batch_size or _BATCH,
    )


def no_weights(entry: ModelEntry) -> UsageError:
    """The error for a network without weights to fine-tune."""
    small = BUNDLED_MODELS.get(entry.name)
    bundled = f" The small network `{small}` is bundled with weights." if small else ""
    return UsageError(
        f"`{entry.name}` has no weights on this machine to fine-tune.",
        f"Fine-tuning starts from trained weights.{bundled}",
        "Specify them with `--pretrained FILE|RUN|FOLDER` (a training run: `robust train seg "
        f"--model {entry.name}`; or a results folder of nnU-Net), or train from random weights "
        "with `--mode scratch`.",
    )


def _default_target(say: Announcer) -> str:
    default = default_data(SEGMENTATION)
    if default.origin != "bundled":
        say(f"`--data` is not set; using {default.data} ({default.origin}).")
        return default.data
    say(
        f"`--data` is not set; using {TARGET}, 34 images (a demonstration set: with so few "
        "held-out images, the intervals are wide)."
    )
    return TARGET


def _from_nnunet(path: Path, entry: ModelEntry, arguments: Mapping[str, Any]) -> Pretrained:
    model = read_nnunet(path)
    if canonical(model.model) != canonical(entry.network):
        raise UsageError(
            f"`--pretrained {path}` contains `{model.model}`.",
            f"The network to fine-tune is `{entry.name}`.",
            f"Use `robust finetune {model.model} --pretrained {path}`.",
        )
    if model.in_channels != _TWO_CLASSES["in_channels"]:
        raise UsageError(
            f"`--pretrained {path}` has {model.in_channels} input channels.",
            f"The channels are {', '.join(model.plan.channel_names)}; images of this data set "
            "have red, green, blue.",
            "Use weights that were trained on images with three channels.",
        )
    options = {**model.options, **_TWO_CLASSES, **arguments}
    origin = f"nnU-Net: {model.path} ({model.trainer}, {model.epochs} epochs)"
    return Pretrained(origin, options, model.weights, model.plan)


_COLOURS = ("R", "G", "B")
_SMALLEST = (32, 32)
_CLASS_OF = {scheme: name for name, scheme in CLASSES.items()}
_IN_UNIT = "RGBTo01Normalization"
"""nnU-Net's name for dividing pixel bytes by 255."""


def export_nnunet(plan: TrainPlan) -> bool:
    """Writes the trained network of a mode unless it exists; False if nnU-Net cannot build it.

    That is the case if no nnU-Net trainer builds the network (for example `--ablate scan`), if the
    number of features does not double per stage up to a limit, which no plan can describe, or if
    the inputs or outputs of the network are not the channels of the images and the classes.
    """
    run = plan.run
    if plan.entry.family not in PLANNED:
        return False
    if any((run / NNUNET).glob(f"*/{DATASET}")):  # what is written last
        return True
    network = networks.with_weights(
        plan.entry.variant, read_weights(run / WEIGHTS), origin=str(run),
        options=plan.config.model_args,
    )  # fmt: skip
    assert isinstance(network, StagedUNet)
    if trainer_of(network) is None:
        return False
    # nnU-Net predicts in windows of the plan's patch, `robust predict` in those of the training.
    trained = replace(network.config, patch_size=(plan.recipe.window,) * 2)
    if not (network.config.bound_to_patch or trained.bound_to_patch):
        network.config = trained
    nnunet_plan = plan_of(plan, network.config)
    if nnunet_plan.options["features"] != tuple(network.config.features):
        return False
    ends = network.config.in_channels, network.config.num_classes
    if ends != (len(nnunet_plan.channel_names), len(nnunet_plan.labels)):
        return False
    epochs = read_train_record(run).chosen_epoch or 0
    write_results(run / NNUNET, network, plan=nnunet_plan, epochs=epochs)
    return True


def plan_of(plan: TrainPlan, network: StagedConfig) -> NnUNetPlan:
    """The nnU-Net plan that describes `network` and its training."""
    train, recipe = plan.splits.train.samples, plan.recipe
    base = plan.config.plan
    if base is None:
        patch = (max(network.patch[0], _SMALLEST[0]), max(network.patch[1], _SMALLEST[1]))
        base = make_plan(patch, _COLOURS, images=len(train), name=plan.index.name)
    settings = {**base.settings, **_topology(network), **_normalisation(plan.procedure)}
    settings["batch_size"] = recipe.batch_size
    plans = {**base.plans, "configurations": {base.configuration: settings}}
    dataset = {
        "channel_names": {str(number): name for number, name in enumerate(_COLOURS)},
        "labels": labels_of(plan.index.mask_classes),
        "numTraining": len(train),
        "file_ending": ".png",
    }
    return NnUNetPlan(plans, dataset, base.configuration)


def labels_of(classes: Sequence[str]) -> dict[str, int]:
    """The labels of `dataset.json` by name; nnU-Net reserves two names."""
    names = classes or ("foreground",)
    reserved_names = ("background", "ignore")
    return {
        "background": 0,
        **{f"class {n}" if name in reserved_names else name: n for n, name in enumerate(names, 1)},
    }


def _topology(network: StagedConfig) -> dict[str, Any]:
    stages = len(network.features)
    if isinstance(network, ResEncConfig):
        encoder = {"UNet_class_name": "ResidualEncoderUNet"}
        blocks = network.n_blocks
    else:
        assert isinstance(network, UMambaConfig), "a plan describes no other networks"
        encoder, blocks = {}, network.n_conv
    return encoder | {
        "patch_size": list(network.patch),
        "conv_kernel_sizes": [list(kernel) for kernel in network.stage_kernels],
        "pool_op_kernel_sizes": [list(stride) for stride in network.stage_strides],
        "n_conv_per_stage_encoder": list(each(blocks, stages)),
        "n_conv_per_stage_decoder": list(each(network.n_conv_decoder, stages - 1)),
        "UNet_base_num_features": network.features[0],
        "unet_max_num_features": max(network.features),
    }


def _normalisation(procedure: Procedure) -> dict[str, Any]:
    """The normalisation of this training, which can differ from the plan of the pretraining."""
    channels = procedure.normalised
    if not channels:
        return {
            "normalization_schemes": [_IN_UNIT] * len(_COLOURS),
            "use_mask_for_norm": [False] * len(_COLOURS),
        }
    return {
        "normalization_schemes": [_CLASS_OF[channel.scheme] for channel in channels],
        "use_mask_for_norm": [channel.inside_only for channel in channels],
    }
