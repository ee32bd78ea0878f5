"""U-Mamba's configuration: what an nnU-Net plan says, and what follows from it.

Source: the plans of nnU-Net v2.1.1 and U-Mamba's constructor, which overrides the plan's number of
blocks in the deeper half of the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from robustcli.core.errors import UsageError

Pair = tuple[int, int]


@dataclass(frozen=True)
class UMambaConfig:
    """What an nnU-Net plan decides, and where the Mamba layers sit.

    `strides`, `kernels` and `n_conv` have one entry per stage, or are one value for all;
    `n_conv_decoder` has one entry less. `n_conv` are the plan's numbers: the deeper half of the
    stages gets one block whatever they say.
    """

    mamba: Literal["bottleneck", "encoder"]
    in_channels: int = 3
    num_classes: int = 2
    features: tuple[int, ...] = (32, 64, 128, 256, 512)
    strides: tuple[int | Pair, ...] = (1, 2, 2, 2, 2)
    kernels: int | tuple[int | Pair, ...] = 3
    n_conv: int | tuple[int, ...] = 2
    n_conv_decoder: int | tuple[int, ...] = 2
    patch_size: int | Pair = (256, 256)
    deep_supervision: bool = False

    def __post_init__(self) -> None:
        stages = len(self.features)
        for name, count in (
            ("strides", stages),
            ("kernels", stages),
            ("n_conv", stages),
            ("n_conv_decoder", stages - 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) and len(value) != count:
                raise UsageError(
                    f"`{name}` has {len(value)} entries.",
                    f"`features` has {stages} stages, so {count} are expected.",
                )

    @property
    def patch(self) -> Pair:
        """Height and width of the plan's patch."""
        return _pair(self.patch_size)

    @property
    def stage_strides(self) -> tuple[Pair, ...]:
        """The stride with which each stage begins."""
        return tuple(map(_pair, self.strides))

    @property
    def stage_kernels(self) -> tuple[Pair, ...]:
        """The kernel of each stage's convolutions."""
        return tuple(map(_pair, _each(self.kernels, len(self.features))))

    @property
    def reductions(self) -> tuple[Pair, ...]:
        """By how much each stage's map is smaller than the input."""
        return tuple(accumulate(self.stage_strides, lambda a, b: (a[0] * b[0], a[1] * b[1])))

    @property
    def encoder_blocks(self) -> tuple[int, ...]:
        """Blocks per encoder stage; the stem has as many as stage 0."""
        stages = len(self.features)
        return _first(_each(self.n_conv, stages), math.ceil(stages / 2))

    @property
    def decoder_blocks(self) -> tuple[int, ...]:
        """Blocks per decoder stage, the deepest first."""
        stages = len(self.features) - 1
        return _first(_each(self.n_conv_decoder, stages), math.ceil(stages / 2 + 0.5))

    def tokens(self, stage: int) -> tuple[int, bool]:
        """Channels of a token at `stage`, and whether a token is a channel's map (else a pixel).

        Tokens are channels where the map at the plan's patch size has no more pixels than features:
        the layer's weights then depend on the patch size, and so does the input size.
        """
        down, across = self.reductions[stage]
        pixels = (self.patch[0] // down) * (self.patch[1] // across)
        channelwise = self.mamba == "encoder" and pixels <= self.features[stage]
        return (pixels if channelwise else self.features[stage]), channelwise


def plan_options(configuration: Mapping[str, Any]) -> dict[str, object]:
    """The options of `robustcli.models.umamba.build` that one configuration of a plan decides.

    Args:
        configuration: An entry of `configurations` in nnU-Net's `plans.json`, such as `2d`.

    Raises:
        UsageError: The configuration lacks an entry, or is not two-dimensional.
    """
    missing = [key for key in _PLAN_KEYS if key not in configuration]
    if missing:
        raise UsageError(
            "The plan's configuration is not complete.",
            f"It lacks {', '.join(f'`{key}`' for key in missing)}.",
            "Pass one entry of `configurations` in nnU-Net's `plans.json`.",
        )
    patch, kernels, strides, encoder, decoder, base, most = (
        configuration[key] for key in _PLAN_KEYS
    )
    if len(patch) != 2:
        raise UsageError(
            f"The plan's patch has {len(patch)} dimensions.",
            "These networks are two-dimensional.",
            "Choose the plan's `2d` configuration.",
        )
    return {
        "patch_size": tuple(patch),
        "kernels": tuple(map(tuple, kernels)),
        "strides": tuple(map(tuple, strides)),
        "n_conv": tuple(encoder),
        "n_conv_decoder": tuple(decoder),
        "features": tuple(min(base * 2**stage, most) for stage in range(len(strides))),
    }


_PLAN_KEYS = (
    "patch_size",
    "conv_kernel_sizes",
    "pool_op_kernel_sizes",
    "n_conv_per_stage_encoder",
    "n_conv_per_stage_decoder",
    "UNet_base_num_features",
    "unet_max_num_features",
)


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


def _each(value: Any, count: int) -> tuple[Any, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value)


def _first(counts: tuple[int, ...], kept: int) -> tuple[int, ...]:
    """`counts` with 1 in place of every entry from `kept` on."""
    return counts[:kept] + (1,) * (len(counts) - kept)
