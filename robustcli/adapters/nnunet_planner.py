"""A plan for a data set that has none, by the rules of nnU-Net's 2D planner.

Source: nnU-Net v2.1.1, `ExperimentPlanner`; written anew from the published rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from robustcli.adapters.nnunet_plan import NnUNetPlan
from robustcli.adapters.nnunet_schemes import CLASSES, scheme_of_channel
from robustcli.adapters.nnunet_topology import (
    CONVOLUTIONS,
    SMALLEST_BATCH,
    SMALLEST_EDGE,
    Topology,
    batch_size,
    fitted,
)
from robustcli.core.errors import UsageError
from robustcli.models.umamba_config import Pair

LARGEST_PATCH = 2048
_CLASS_OF = {scheme: name for name, scheme in CLASSES.items()}


def make_plan(
    shape: Pair,
    channels: Sequence[str],
    *,
    images: int,
    labels: Sequence[str] = ("foreground",),
    name: str = "robust",
    most_patch: int | None = None,
    most_batch: int | None = None,
    features: tuple[int, int] = (32, 512),
) -> NnUNetPlan:
    """The plan, with its `dataset.json`, of a data set of 2D images.

    Args:
        shape: Median height and width of its images, in pixels.
        channels: Names of its channels, as `R, G, B`; they decide the normalisation.
        images: How many there are for training.
        labels: Its foreground classes.
        name: Of the data set.
        most_patch: Largest edge of a patch, where memory or time are short.
        most_batch: Largest batch, likewise.
        features: Of the first stage, and the most of any; upstream's plans have (32, 512).

    Raises:
        UsageError: The images, or the patches asked for, are too small for any halving.
    """
    if min(shape) < 1 or images < 1:
        raise UsageError(
            "There is nothing to plan for.", f"Came {images} images of {shape[0]} x {shape[1]}."
        )
    most = min(LARGEST_PATCH, most_patch or LARGEST_PATCH)
    start = (min(most, shape[0]), min(most, shape[1]))
    found = fitted(start, shape, classes=len(labels) + 1, features=features)
    if len(found.strides) < 2:
        raise UsageError(
            f"Patches of {start[0]} x {start[1]} pixels are too small for a U-Net.",
            f"One halving needs {2 * SMALLEST_EDGE} pixels along both axes.",
            "Enlarge the images, or allow larger patches.",
        )
    batch = batch_size(found, shape, images, classes=len(labels) + 1, features=features)
    batch = max(SMALLEST_BATCH, min(batch, most_batch or batch))
    settings = _settings(found, batch, shape, channels, features)
    plans = _plans(name, settings, shape, len(channels))
    return NnUNetPlan(plans, _dataset(channels, labels, images))


def _settings(
    found: Topology, batch: int, shape: Pair, channels: Sequence[str], features: tuple[int, int]
) -> dict[str, Any]:
    stages = len(found.strides)
    return {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch,
        "patch_size": list(found.patch),
        "median_image_size_in_voxels": list(map(float, shape)),
        "spacing": [1.0, 1.0],
        "normalization_schemes": [_CLASS_OF[scheme_of_channel(c)] for c in channels],
        "use_mask_for_norm": [False] * len(channels),
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": features[0],
        "n_conv_per_stage_encoder": [CONVOLUTIONS] * stages,
        "n_conv_per_stage_decoder": [CONVOLUTIONS] * (stages - 1),
        "num_pool_per_axis": [int(math.log2(step)) for step in found.steps],
        "pool_op_kernel_sizes": [list(stride) for stride in found.strides],
        "conv_kernel_sizes": [[3, 3]] * stages,
        "unet_max_num_features": features[1],
        **_RESAMPLING,
        "batch_dice": True,
    }


# How upstream's inference resamples; with square pixels of one size it has nothing to do.
_RESAMPLING = {
    f"resampling_fn_{what}": "resample_data_or_seg_to_shape"
    for what in ("data", "seg", "probabilities")
} | {
    f"resampling_fn_{what}_kwargs": {
        "is_seg": what == "seg", "order": 3 if what == "data" else 1, "order_z": 0,
        "force_separate_z": None,
    }
    for what in ("data", "seg", "probabilities")
}  # fmt: skip


def _plans(name: str, settings: dict[str, Any], shape: Pair, channels: int) -> dict[str, Any]:
    return {
        "dataset_name": name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [999.0, 1.0, 1.0],
        "original_median_shape_after_transp": [1, *shape],
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": settings},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        # Not measured: only CT's scheme reads them, but nnU-Net looks every channel up.
        "foreground_intensity_properties_per_channel": {str(c): {} for c in range(channels)},
    }


def _dataset(channels: Sequence[str], labels: Sequence[str], images: int) -> dict[str, Any]:
    return {
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "labels": {label: number for number, label in enumerate(("background", *labels))},
        "numTraining": images,
        "file_ending": ".png",
    }
