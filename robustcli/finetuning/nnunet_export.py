"""Trained networks as nnU-Net's results folders: `OUT/MODE/nnunet/TRAINER__PLANS__2d/`.

They are U-Mambas and residual encoders. The plan there and in the checkpoint's `init_args` is that
of the pretrained weights, or one like nnU-Net's, with this network's topology, the classes of
the data, and the normalisation that the network was trained with.
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
"""What dividing bytes by 255 is in nnU-Net."""


def export_nnunet(plan: TrainPlan) -> bool:
    """Writes the trained network of a mode unless it is there; returns False if nnU-Net has none.

    That is where no trainer of nnU-Net builds it, as a control without its scan, or where its
    stages do not double their features up to a limit, which no plan describes.
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
    """The plan that `network` and its training follow."""
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
    """The labels of `dataset.json` by name; nnU-Net keeps two names for itself."""
    names = classes or ("foreground",)
    kept = ("background", "ignore")
    return {
        "background": 0,
        **{f"class {n}" if name in kept else name: n for n, name in enumerate(names, 1)},
    }


def _topology(network: StagedConfig) -> dict[str, Any]:
    stages = len(network.features)
    if isinstance(network, ResEncConfig):
        encoder = {"UNet_class_name": "ResidualEncoderUNet"}
        blocks = network.n_blocks
    else:
        assert isinstance(network, UMambaConfig), "there are no others that a plan describes"
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
    """As the network was trained, whatever the plan of its pretraining says."""
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
