"""Configuration of the stages of a U-shaped network, as in an nnU-Net plan.

Source: the plans of nnU-Net v2 (Isensee et al., "nnU-Net", Nature Methods 2021). U-Mamba and
nnU-Net's residual-encoder U-Net are built from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

from torch import Tensor, nn

from robustcli.core.errors import UsageError

Pair = tuple[int, int]


@dataclass(frozen=True)
class StagedConfig:
    """Stages of the encoder, highest resolution first; the decoder has them in reverse order.

    `features` and `strides` have one entry per stage. `kernels` has one entry per stage or is one
    value for all stages. `n_conv_decoder` has one entry less or is one value.
    """

    per_stage: ClassVar[tuple[str, ...]] = ("strides", "kernels")
    """Fields with one entry per stage."""

    in_channels: int = 3
    num_classes: int = 2
    features: tuple[int, ...] = (32, 64, 128, 256, 512)
    strides: tuple[int | Pair, ...] = (1, 2, 2, 2, 2)
    kernels: int | tuple[int | Pair, ...] = 3
    n_conv_decoder: int | tuple[int, ...] = 2
    patch_size: int | Pair = (256, 256)
    deep_supervision: bool = False

    def __post_init__(self) -> None:
        stages = len(self.features)
        counts = dict.fromkeys(self.per_stage, stages) | {"n_conv_decoder": stages - 1}
        for name, count in counts.items():
            value = getattr(self, name)
            if not isinstance(value, int) and len(value) != count:
                raise UsageError(
                    f"`{name}` has {len(value)} entries.",
                    f"`features` has {stages} stages, so {count} are expected.",
                )

    @property
    def patch(self) -> Pair:
        """Height and width of the patch of the plan."""
        return as_pair(self.patch_size)

    @property
    def stage_strides(self) -> tuple[Pair, ...]:
        """The stride of the first convolution of each stage."""
        return tuple(map(as_pair, self.strides))

    @property
    def stage_kernels(self) -> tuple[Pair, ...]:
        """The kernel size of the convolutions of each stage."""
        return tuple(map(as_pair, each(self.kernels, len(self.features))))

    @property
    def reductions(self) -> tuple[Pair, ...]:
        """Downsampling factors (height, width) from the input to the map of each stage."""
        return tuple(accumulate(self.stage_strides, lambda a, b: (a[0] * b[0], a[1] * b[1])))

    @property
    def bound_to_patch(self) -> bool:
        """Whether some weights depend on the patch size, so that the input must have this size."""
        return False


class SupervisedSegmenter(nn.Module, ABC):
    """Base class of segmenters with deep supervision: maps images (B, C, H, W) to class scores."""

    @abstractmethod
    def supervise_deeply(self) -> None:
        """Enables deep supervision: outputs become lists, highest resolution first."""


class StagedUNet(SupervisedSegmenter):
    """Base class of segmenters with a `StagedConfig`: maps images (B, C, H, W) to class scores."""

    config: StagedConfig

    def supervise_deeply(self) -> None:
        """See `SupervisedSegmenter`."""
        decoder: Any = self.decoder
        decoder.deep_supervision = True


def scores_of(outputs: list[Tensor], *, deep_supervision: bool) -> Tensor | list[Tensor]:
    """Decoder output: with deep supervision all `outputs` in reverse order, else the only one."""
    return outputs[::-1] if deep_supervision else outputs[0]


def as_pair(value: int | Pair) -> Pair:
    """`value` as a pair: an int is repeated for both axes."""
    return (value, value) if isinstance(value, int) else value


def each(value: Any, count: int) -> tuple[Any, ...]:
    """`value` as a tuple per stage: an int is repeated `count` times."""
    return (value,) * count if isinstance(value, int) else tuple(value)
