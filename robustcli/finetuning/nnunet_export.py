"""Trained networks as nnU-Net's results folders: `OUT/MODE/nnunet/TRAINER__PLANS__2d/`.

Supported are U-Mambas and residual encoders. The plans in `plans.json` and in the checkpoint's
`init_args` are those of the pretrained weights, or new ones in nnU-Net's format, with the topology
of the network, the classes of the data and the normalisation of the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robustcli.adapters import networks
from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.training_run import WEIGHTS
from robustcli.finetuning.record import NNUNET
from robustcli.models.resenc import ResEncConfig
from robustcli.models.stages import StagedConfig, StagedUNet, each
from robustcli.models.umamba import UMambaConfig
from robustcli.nnunet.files import Progress, trainer_of, write_results
from robustcli.nnunet.plans_json import CLASSES, DATASET, NnUNetPlan, make_plan
from robustcli.training.procedures.base import Procedure
from robustcli.training.procedures.nnunet import PLANNED
from robustcli.training.record import read_train_record
from robustcli.training.training_task import TrainPlan

_COLOURS = ("R", "G", "B")
_SMALLEST = (32, 32)
_CLASS_OF = {scheme: name for name, scheme in CLASSES.items()}
_IN_UNIT = "RGBTo01Normalization"
"""nnU-Net's name for dividing pixel bytes by 255."""


def export_nnunet(plan: TrainPlan) -> bool:
    """Writes the trained network of a mode unless it exists; False if nnU-Net cannot build it.

    That is the case if no nnU-Net trainer builds the network (for example `--ablate scan`), or if
    the number of features does not double per stage up to a limit, which no plan can describe.
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
    nnunet_plan = plan_of(plan, network.config)
    if nnunet_plan.options["features"] != tuple(network.config.features):
        return False
    epochs = read_train_record(run).chosen_epoch or 0
    write_results(run / NNUNET, network, plan=nnunet_plan, fold="all", progress=Progress(epochs))
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
