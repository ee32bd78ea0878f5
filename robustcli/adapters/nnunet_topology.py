"""How large a patch is, how its network halves it and how many fit in a batch: nnU-Net's rules.

For 2D images with square pixels. As upstream, the memory is that of the plain U-Net: what U-Mamba
needs is not modelled.

Source: nnU-Net v2.1.1, `ExperimentPlanner` and `get_pool_and_conv_props`, and the network's
`compute_conv_feature_map_size`; written anew from the published rules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from robustcli.models.umamba_config import Pair

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
