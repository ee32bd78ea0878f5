"""The stages of a U-shaped network as an nnU-Net plan sets them.

Source: the plans of nnU-Net v2 (Isensee et al., "nnU-Net", Nature Methods 2021). U-Mamba and
nnU-Net's residual encoder are built from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

from torch import Tensor, nn

from robustcli.core.errors import UsageError

Pair = tuple[int, int]


@dataclass(frozen=True)
class StagedConfig:
    """The stages of the encoder, highest resolution first; the decoder goes back through them.

    `strides` and `kernels` have one entry per stage, or `kernels` is one value for all;
    `n_conv_decoder` has one entry less.
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
        """Height and width of the plan's patch."""
        return as_pair(self.patch_size)

    @property
    def stage_strides(self) -> tuple[Pair, ...]:
        """The stride with which each stage begins."""
        return tuple(map(as_pair, self.strides))

    @property
    def stage_kernels(self) -> tuple[Pair, ...]:
        """The kernel of each stage's convolutions."""
        return tuple(map(as_pair, each(self.kernels, len(self.features))))

    @property
    def reductions(self) -> tuple[Pair, ...]:
        """The factor between the input and each stage's map."""
        return tuple(accumulate(self.stage_strides, lambda a, b: (a[0] * b[0], a[1] * b[1])))

    @property
    def bound_to_patch(self) -> bool:
        """Whether some weights have the size of the patch, so that no other input can be taken."""
        return False


class StagedUNet(nn.Module):
    """A segmenter that is built from such a plan: images (B, C, H, W) to class scores."""

    config: StagedConfig

    def supervise_deeply(self) -> None:
        """Switches to outputs at every resolution: a list, highest first."""
        decoder: Any = self.decoder
        decoder.deep_supervision = True


def scores_of(outputs: list[Tensor], *, deep_supervision: bool) -> Tensor | list[Tensor]:
    """The output of a decoder, of what its stages answer, deepest first."""
    return outputs[::-1] if deep_supervision else outputs[0]


def as_pair(value: int | Pair) -> Pair:
    """`value` for both axes."""
    return (value, value) if isinstance(value, int) else value


def each(value: Any, count: int) -> tuple[Any, ...]:
    """`value` for each of `count` stages."""
    return (value,) * count if isinstance(value, int) else tuple(value)
