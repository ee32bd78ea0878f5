"""A plan for a data set that has none, by the rules of nnU-Net's 2D planner.

Source: nnU-Net v2.1.1, `ExperimentPlanner`; written anew from the published rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from robustcli.core.errors import UsageError
from robustcli.models.umamba import Pair
from robustcli.nnunet.plans_json import CLASSES, NnUNetPlan, scheme_of_channel

# How large a patch is, how its network halves it and how many fit in a batch: nnU-Net's rules.
#
# For 2D images with square pixels. As upstream, the memory is that of the plain U-Net: what U-Mamba
# needs is not modelled.
#
# Source: nnU-Net v2.1.1, `ExperimentPlanner` and `get_pool_and_conv_props`, and the network's
# `compute_conv_feature_map_size`; written anew from the published rules.


SMALLEST_EDGE = 4  # of the last map
REFERENCE_VALUES = 85_000_000  # of all maps of one patch; with it REFERENCE_BATCH patches fit
REFERENCE_BATCH = 12
LARGEST_SHARE = 0.05  # of all pixels of the data set in one batch
SMALLEST_BATCH = 2
CONVOLUTIONS = 2  # per stage


@dataclass(frozen=True)
class Topology:
    """A patch and how the network's stages halve it.

    Args:
        patch: Height and width, multiples of all halvings together.
        strides: Per stage; the first is (1, 1).
    """

    patch: Pair
    strides: tuple[Pair, ...]

    @property
    def steps(self) -> Pair:
        """What height and width must be multiples of."""
        return (math.prod(s[0] for s in self.strides), math.prod(s[1] for s in self.strides))


def topology(size: Pair) -> Topology:
    """How a patch of about `size` is halved: while an edge has 8 pixels, alone while it has 12."""
    edges, grid, strides = list(size), [1, 1], [(1, 1)]
    while True:
        axes = [a for a in (0, 1) if edges[a] >= 2 * SMALLEST_EDGE]
        axes = [a for a in axes if grid[a] < 2 * min(grid[b] for b in axes)]
        if not axes or (len(axes) == 1 and edges[axes[0]] < 3 * SMALLEST_EDGE):
            break
        for a in axes:
            edges[a], grid[a] = math.ceil(edges[a] / 2), grid[a] * 2
        strides.append((2 if 0 in axes else 1, 2 if 1 in axes else 1))
    patch = (math.ceil(size[0] / grid[0]) * grid[0], math.ceil(size[1] / grid[1]) * grid[1])
    return Topology(patch, tuple(strides))


def fitted(start: Pair, shape: Pair, *, classes: int, features: tuple[int, int]) -> Topology:
    """The largest topology from `start` down that fits the reference memory.

    The axis that is largest against the median `shape` gives way first.
    """
    found = topology(start)
    while values(found, classes, features) > REFERENCE_VALUES:
        axis = max((0, 1), key=lambda a: (found.patch[a] / shape[a], a))
        # By the step of the smaller patch: sizes in between may be valid too.
        smaller = topology(_less(found.patch, axis, found.steps[axis]))
        found = topology(_less(found.patch, axis, smaller.steps[axis]))
    return found


def values(found: Topology, classes: int, features: tuple[int, int]) -> int:
    """How many values the maps of the plain U-Net have for one patch, its heads included."""
    reductions = accumulate(found.strides, lambda a, b: (a[0] * b[0], a[1] * b[1]))
    sizes = [(found.patch[0] // h) * (found.patch[1] // w) for h, w in reductions]
    widths = [min(features[0] * 2**stage, features[1]) for stage in range(len(sizes))]
    encoder: int = sum(CONVOLUTIONS * w * s for w, s in zip(widths, sizes, strict=True))
    decoder: int = sum(
        ((CONVOLUTIONS + 1) * w + classes) * s for w, s in zip(widths[:-1], sizes[:-1], strict=True)
    )
    return encoder + decoder


def batch_size(
    found: Topology, shape: Pair, images: int, *, classes: int, features: tuple[int, int]
) -> int:
    """As many patches as the reference memory holds, and at most a twentieth of all pixels."""
    fitting = round(REFERENCE_VALUES / values(found, classes, features) * REFERENCE_BATCH)
    share = round(images * math.prod(shape) * LARGEST_SHARE / math.prod(found.patch))
    return max(min(fitting, share), SMALLEST_BATCH)


def _less(patch: Pair, axis: int, step: int) -> Pair:
    return (patch[0] - step, patch[1]) if axis == 0 else (patch[0], patch[1] - step)


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
