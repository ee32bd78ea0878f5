"""VMamba with the methods that timm expects; the forward pass and the weights are VMamba's own.

Shapes: B batch, H and W of the last stage's map, C its channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from timm.models import checkpoint_seq
from torch import Tensor, nn

from robustcli.adapters.timm_contract import TimmContract, chosen
from robustcli.models.model_options import changed
from robustcli.models.vmamba import VARIANTS, Stage, VMamba, VMambaConfig


class Blocks(nn.Sequential):
    """A stage's blocks, recomputed in the backward pass while `grad_checkpointing` is on."""

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        if self.grad_checkpointing:
            recomputed: Tensor = checkpoint_seq(list(self), x)
            return recomputed
        for block in self:
            x = block(x)
        return x


class TimmVMamba(TimmContract, VMamba):
    """VMamba as a timm model. Its maps are channels-last inside (`output_fmt`, as Swin's).

    Args:
        config: Of the network.
        in_chans: Channels of the images.
        global_pool: `avg`, or "" for scores of every position.
        drop_rate: Dropout before the head.
    """

    family, first_conv, pools, output_fmt = "vmamba", "patch_embed.0", ("avg",), "NHWC"

    def __init__(
        self, config: VMambaConfig, *, in_chans: int = 3, global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(replace(config, num_classes=max(config.num_classes, 1)))
        self.config = config
        stride = config.stem_strides[0] * config.stem_strides[1]
        self.feature_info = []
        for number, (stage, dim) in enumerate(zip(self._stages(), config.dims, strict=True)):
            stage.blocks = Blocks(*stage.blocks)
            where = f"layers.{number}.blocks"
            self.feature_info.append(
                {"num_chs": dim, "reduction": stride * 2**number, "module": where}
            )
        self.adopt(in_chans, global_pool, drop_rate)
        if config.num_classes == 0:
            self.reset_classifier(0)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the map (B, H, W, C); with `pre_logits`, the features that they come from."""
        if self.global_pool:
            x = super().forward_head(x, pre_logits=True)
        else:
            x = self.classifier.norm(x)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.classifier.head(x)

    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = None, norm: bool = False,
        stop_early: bool = False, output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:  # fmt: skip
        """The maps of the chosen stages, before their downsampling; and the last of all.

        Args:
            x: Images (B, channels, height, width).
            indices: Numbers of stages; the last so many if an int; all if None.
            norm: Whether the last stage's map goes through the head's norm.
            stop_early: Leave out the stages after the last chosen one.
            output_fmt: `NCHW` or `NHWC`.
            intermediates_only: Return the list alone.
        """
        assert output_fmt in ("NCHW", "NHWC"), "Output format must be one of NCHW or NHWC."
        take = chosen(len(self.layers), indices)
        last, maps = len(self.layers) - 1, []
        x = self.patch_embed(x)
        for number, stage in enumerate(self._stages()[: max(take) + 1 if stop_early else None]):
            x = stage.blocks(x)
            if number in take:
                kept = self.classifier.norm(x) if norm and number == last else x
                maps.append(kept.permute(0, 3, 1, 2) if output_fmt == "NCHW" else kept)
            x = stage.downsample(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages after the last chosen one; the numbers of the chosen ones."""
        take = chosen(len(self.layers), indices)
        most = max(take)
        shorter = most < len(self.layers) - 1
        self.layers = self.layers[: most + 1]
        self._stages()[-1].downsample = nn.Identity()
        if shorter:
            self.num_features = self.head_hidden_size = self.feature_info[most]["num_chs"]
        if shorter or prune_norm:
            self.set_submodule("classifier.norm", nn.Identity())
        if shorter or prune_head:
            self.reset_classifier(0, "")
        return take

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into layers, for timm's layer-wise learning rates."""
        each = [(r"^layers\.(\d+)\.blocks\.(\d+)", None), (r"^layers\.(\d+)\.downsample", (99999,))]
        return {"stem": r"^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else each}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training recomputes each block instead of keeping its inner values."""
        for stage in self._stages():
            assert isinstance(stage.blocks, Blocks)
            stage.blocks.grad_checkpointing = enable

    def _stages(self) -> list[Stage]:
        return [stage for stage in self.layers if isinstance(stage, Stage)]


def build(
    variant: str, *, in_chans: int = 3, global_pool: str = "avg", drop_rate: float = 0.0,
    drop_path_rate: float | None = None, **changes: object,
) -> TimmVMamba:  # fmt: skip
    """The network `variant`, freshly initialised; `changes` are to its configuration.

    Raises:
        UsageError: An option is unknown.
    """
    if drop_path_rate is not None:
        changes["drop_path"] = drop_path_rate
    config = changed(VARIANTS[variant], changes, model=variant)
    return TimmVMamba(config, in_chans=in_chans, global_pool=global_pool, drop_rate=drop_rate)
