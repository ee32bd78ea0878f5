"""Reads nnU-Net's `plans.json` and `dataset.json`, or creates them for a data set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from robustcli.core.errors import UsageError
from robustcli.core.io import parse_json
from robustcli.core.names import find
from robustcli.models.blocks import Pair
from robustcli.models.umamba import plan_options
from robustcli.nnunet.normalisation import Channel, Intensities, Scheme

# Reading of `plans.json` and `dataset.json` for one 2D network and its data.
# Source: nnU-Net v2.1.1, `PlansManager`, `LabelManager`, `dataset.json` version 2.

# Names of the normalisations in plans and data sets. Source: nnU-Net v2.1.1,
# `channel_name_to_normalization_mapping` and the classes that it names.

CLASSES: Mapping[str, Scheme] = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "RescaleTo01Normalization": "rescale_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
    "NoNormalization": "none",
}
"""Maps nnU-Net's classes to the schemes of `robustcli.nnunet.normalisation`."""
_CHANNEL_NAMES: Mapping[str, Scheme] = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_0_1": "rescale_0_1",
    "rescale_to_0_1": "rescale_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}


def scheme_of_class(name: str) -> Scheme:
    """The scheme for the class `name` in a plan's `normalization_schemes`.

    Raises:
        UsageError: nnU-Net has no class of this name.
    """
    return CLASSES[find(name, CLASSES, kind="normalisation", listing="plans.json")]


def scheme_of_channel(name: str) -> Scheme:
    """The scheme for the channel `name` in `dataset.json`; z-scores for most names."""
    return _CHANNEL_NAMES.get(name.casefold(), "zscore")


PLANS, DATASET = "plans.json", "dataset.json"


@dataclass(frozen=True)
class NnUNetPlan:
    """One configuration of a plan, with the data set of the plan.

    Args:
        plans: The content of `plans.json`, as nnU-Net wrote it.
        dataset: The content of `dataset.json`.
        configuration: A key of `configurations` in `plans`, such as `2d`.

    Raises:
        UsageError: The configuration does not exist, is not two-dimensional, or is incomplete.
    """

    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    configuration: str = "2d"

    def __post_init__(self) -> None:
        try:  # reads everything now, because a foreign file can contain anything
            _ = self.options, self.patch, self.batch_size
            _ = self.channels, self.labels, self.ignore_label
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            part = f"its configuration `{self.configuration}`"
            raise _malformed(f"{PLANS}` or `{DATASET}", part, error) from error

    @property
    def name(self) -> str:
        """The name of the plan."""
        return str(self.plans.get("plans_name", "nnUNetPlans"))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The entries of the configuration, including inherited entries."""
        return _inherited(_mapping(self.plans, "configurations", PLANS), self.configuration)

    @property
    def options(self) -> dict[str, object]:
        """The network options of the plan, as options of `robustcli.models.umamba.build`."""
        return plan_options(self.settings)

    @property
    def patch(self) -> Pair:
        """Height and width of a patch in pixels."""
        height, width = self.settings["patch_size"]
        return int(height), int(width)

    @property
    def batch_size(self) -> int:
        """Number of patches per batch."""
        return int(self.settings.get("batch_size", 2))

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The names of the input channels in order."""
        key = "channel_names" if "channel_names" in self.dataset else "modality"
        names = _mapping(self.dataset, key, DATASET)
        return tuple(str(names[number]) for number in sorted(names, key=int))

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The normalisation of each input channel."""
        count = len(self.channel_names)
        schemes = self.settings.get("normalization_schemes", ["ZScoreNormalization"] * count)
        masked = self.settings.get("use_mask_for_norm", [False] * count)
        if not len(schemes) == len(masked) == count:
            raise UsageError(
                f"`{PLANS}` and `{DATASET}` belong to different trainings.",
                f"The plan normalises {len(schemes)} channels, but the data set has {count}.",
                "Use the two files of the same training.",
            )
        return tuple(
            Channel(scheme_of_class(scheme), bool(inside), self._intensities(c))
            for c, (scheme, inside) in enumerate(zip(schemes, masked, strict=True))
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in order, `background` first, without the ignore label.

        Raises:
            UsageError: The labels are regions, which may overlap, or do not map names to numbers.
        """
        values = dict(_mapping(self.dataset, "labels", DATASET))
        if any(not isinstance(value, int | list | tuple) for value in values.values()):
            raise _no_numbers(values)
        if any(not isinstance(value, int) for value in values.values()):
            raise UsageError(
                f"The labels in `{DATASET}` are regions.",
                "Each region is a list of labels, but networks trained here predict one class per "
                "pixel.",
                "Use a data set whose labels are plain numbers.",
            )
        return tuple(sorted((name for name in values if name != "ignore"), key=values.__getitem__))

    @property
    def ignore_label(self) -> int | None:
        """The label of pixels without annotation; None without one."""
        value = _mapping(self.dataset, "labels", DATASET).get("ignore")
        return None if value is None else int(value)

    def _intensities(self, channel: int) -> Intensities | None:
        by_channel = self.plans.get("foreground_intensity_properties_per_channel") or {}
        intensities = by_channel.get(str(channel))
        if not intensities:
            return None
        keys = ("mean", "std", "percentile_00_5", "percentile_99_5")
        return Intensities(*(float(intensities[key]) for key in keys))


def _no_numbers(values: Mapping[str, Any]) -> UsageError:
    """The error for labels that do not map names to numbers, with the correct notation."""
    swapped = all(name.strip().isdecimal() for name in values)
    numbers = {str(value): int(name) for name, value in values.items()} if swapped else {}
    texts = all(str(value).strip().isdecimal() for value in values.values())
    if not swapped and texts:
        numbers = {name: int(value) for name, value in values.items()}
    if swapped:
        why = "It maps numbers to names, as in nnU-Net 1."
    else:
        wrong = next(name for name, value in values.items() if not isinstance(value, int | list))
        why = f"The label `{wrong}` is {values[wrong]!r}, which is not a number."
    todo = f'Write `"labels": {json.dumps(numbers)}`.' if numbers else "Correct it."
    problem = "in reverse order" if swapped else "not a mapping of names to numbers"
    return UsageError(
        f"The labels in `{DATASET}` are {problem}.",
        f"{why} Expected a mapping of names to numbers, as in nnU-Net 2.",
        todo,
    )


def read_plan(folder: Path, configuration: str) -> NnUNetPlan:
    """Reads the plan and the data set description in `folder`.

    Raises:
        UsageError: A file is missing or malformed.
    """
    return NnUNetPlan(_json(folder / PLANS), _json(folder / DATASET), configuration)


def _inherited(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    registered = find(name, configurations, kind="configuration of the plan", listing=PLANS)
    configuration = dict(_mapping(configurations, registered, PLANS))
    parent = configuration.pop("inherits_from", None)
    if parent is None:
        return configuration
    candidates = {key: value for key, value in configurations.items() if key != registered}
    return _inherited(candidates, str(parent)) | configuration  # excluding itself, to avoid cycles


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"`{path}` cannot be read.",
            f"nnU-Net writes it into the folder of the folds: {error}",
            "Copy the complete results folder.",
        ) from error
    if not isinstance(content, Mapping):
        raise _malformed(str(path), "its content", TypeError("it is not a JSON object"))
    return content


def _mapping(document: Mapping[str, Any], key: str, file: str) -> Mapping[str, Any]:
    value = document.get(key)
    if not isinstance(value, Mapping) or not value:
        raise UsageError(
            f"`{file}` has no `{key}`.",
            f"It contains {', '.join(map(str, list(document)[:6])) or 'nothing'}.",
            "Use the original file of nnU-Net.",
        )
    return value


def _malformed(file: str, part: str, error: Exception) -> UsageError:
    return UsageError(
        f"`{file}` does not have the format of nnU-Net.",
        f"Reading {part}: {type(error).__name__}: {error}.",
        "Copy it again.",
    )


# Creation of a plan by the rules of nnU-Net's 2D planner for patch size, downsampling and batch
# size, for 2D images with square pixels. As in upstream, the memory is that of the plain U-Net: the
# memory of U-Mamba is not modelled.
# Source: nnU-Net v2.1.1, `ExperimentPlanner` and `get_pool_and_conv_props`, and the network's
# `compute_conv_feature_map_size`; reimplemented from the published rules.

LARGEST_PATCH = 2048
SMALLEST_EDGE = 4  # pixels of the last feature map
REFERENCE_VALUES = 85_000_000  # in all feature maps of a patch; then REFERENCE_BATCH patches fit
REFERENCE_BATCH = 12
LARGEST_SHARE = 0.05  # of all pixels of the data set in one batch
SMALLEST_BATCH = 2
CONVOLUTIONS = 2  # per stage
_CLASS_OF = {scheme: name for name, scheme in CLASSES.items()}


def make_plan(
    shape: Pair,
    channels: Sequence[str],
    *,
    images: int,
    labels: Sequence[str] = ("foreground",),
    name: str = "robust",
    features: tuple[int, int] = (32, 512),
) -> NnUNetPlan:
    """Creates the plan and `dataset.json` for a data set of 2D images.

    Args:
        shape: Median height and width of the images in pixels.
        channels: Names of the channels, such as `R, G, B`, which define the normalisation.
        images: Number of training images.
        labels: Names of the foreground classes.
        name: Name of the data set.
        features: Channels of the first stage, and largest number of channels of any stage;
            upstream's plans have (32, 512).

    Raises:
        UsageError: The images are too small for any downsampling.
    """
    if min(shape) < 1 or images < 1:
        raise UsageError(
            "A plan cannot be made for these images.",
            f"Got {images} images of {shape[0]} x {shape[1]}.",
            "Use images with pixels.",
        )
    start = (min(LARGEST_PATCH, shape[0]), min(LARGEST_PATCH, shape[1]))
    plan_topology = fitted(start, shape, classes=len(labels) + 1, features=features)
    if len(plan_topology.strides) < 2:
        raise UsageError(
            f"Patches of {start[0]} x {start[1]} pixels are too small for a U-Net.",
            f"One halving needs {2 * SMALLEST_EDGE} pixels along both axes.",
            "Enlarge the images.",
        )
    batch = batch_size(plan_topology, shape, images, classes=len(labels) + 1, features=features)
    settings = _settings(plan_topology, batch, shape, channels, features)
    plans = _plans(name, settings, shape, len(channels))
    return NnUNetPlan(plans, _dataset(channels, labels, images))


@dataclass(frozen=True)
class Topology:
    """A patch size and the strides of the network's stages.

    Args:
        patch: Height and width, multiples of the total stride.
        strides: Strides of each stage; the first is (1, 1).
    """

    patch: Pair
    strides: tuple[Pair, ...]

    @property
    def steps(self) -> Pair:
        """The total stride; height and width must be multiples of it."""
        return (math.prod(s[0] for s in self.strides), math.prod(s[1] for s in self.strides))


def topology(size: Pair) -> Topology:
    """The topology for a patch of about `size`.

    Edges of at least 8 pixels are halved; an edge that is halved without the other needs at least
    12 pixels.
    """
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
    """The largest topology, at most of size `start`, that fits the reference memory.

    The axis that is largest relative to the median `shape` is reduced first.
    """
    plan_topology = topology(start)
    while values(plan_topology, classes, features) > REFERENCE_VALUES:
        axis = max((0, 1), key=lambda a: (plan_topology.patch[a] / shape[a], a))
        # Uses the step of the smaller patch, because sizes in between may be valid too.
        smaller = topology(_less(plan_topology.patch, axis, plan_topology.steps[axis]))
        plan_topology = topology(_less(plan_topology.patch, axis, smaller.steps[axis]))
    return plan_topology


def values(topology: Topology, classes: int, features: tuple[int, int]) -> int:
    """The number of values in all feature maps of the plain U-Net for one patch, with heads."""
    reductions = accumulate(topology.strides, lambda a, b: (a[0] * b[0], a[1] * b[1]))
    sizes = [(topology.patch[0] // h) * (topology.patch[1] // w) for h, w in reductions]
    widths = [min(features[0] * 2**stage, features[1]) for stage in range(len(sizes))]
    encoder: int = sum(CONVOLUTIONS * w * s for w, s in zip(widths, sizes, strict=True))
    decoder: int = sum(
        ((CONVOLUTIONS + 1) * w + classes) * s for w, s in zip(widths[:-1], sizes[:-1], strict=True)
    )
    return encoder + decoder


def batch_size(
    topology: Topology, shape: Pair, images: int, *, classes: int, features: tuple[int, int]
) -> int:
    """The number of patches that fit the reference memory, at most a twentieth of all pixels."""
    fitting = round(REFERENCE_VALUES / values(topology, classes, features) * REFERENCE_BATCH)
    share = round(images * math.prod(shape) * LARGEST_SHARE / math.prod(topology.patch))
    return max(min(fitting, share), SMALLEST_BATCH)


def _less(patch: Pair, axis: int, step: int) -> Pair:
    return (patch[0] - step, patch[1]) if axis == 0 else (patch[0], patch[1] - step)


def _settings(
    topology: Topology, batch: int, shape: Pair, channels: Sequence[str], features: tuple[int, int]
) -> dict[str, Any]:
    stages = len(topology.strides)
    return {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch,
        "patch_size": list(topology.patch),
        "median_image_size_in_voxels": list(map(float, shape)),
        "spacing": [1.0, 1.0],
        "normalization_schemes": [_CLASS_OF[scheme_of_channel(c)] for c in channels],
        "use_mask_for_norm": [False] * len(channels),
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": features[0],
        "n_conv_per_stage_encoder": [CONVOLUTIONS] * stages,
        "n_conv_per_stage_decoder": [CONVOLUTIONS] * (stages - 1),
        "num_pool_per_axis": [int(math.log2(step)) for step in topology.steps],
        "pool_op_kernel_sizes": [list(stride) for stride in topology.strides],
        "conv_kernel_sizes": [[3, 3]] * stages,
        "unet_max_num_features": features[1],
        **_RESAMPLING,
        "batch_dice": True,
    }


# Resampling in upstream's inference; it has no effect for square pixels of equal size.
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
        # Empty: only the CT scheme reads the statistics, but nnU-Net looks up every channel.
        "foreground_intensity_properties_per_channel": {str(c): {} for c in range(channels)},
    }


def _dataset(channels: Sequence[str], labels: Sequence[str], images: int) -> dict[str, Any]:
    return {
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "labels": {label: number for number, label in enumerate(("background", *labels))},
        "numTraining": images,
        "file_ending": ".png",
    }
