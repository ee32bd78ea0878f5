"""Vim with the methods that timm expects; the forward pass and the weights are Vim's own.

Shapes: B batch, M patches, C channels; the class token is at M // 2 of the M + 1 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import lecun_normal_
from timm.models import checkpoint
from torch import Tensor, nn

from robustcli.adapters.families import recognise
from robustcli.adapters.timm_contract import TimmContract, chosen
from robustcli.models.model_options import changed
from robustcli.models.vim import VARIANTS, Layer, Vim, VimConfig, fit_positions


class RecomputedLayer(Layer):
    """A layer made of another's parts, recomputed backwards while `grad_checkpointing` is on."""

    grad_checkpointing = False

    def __init__(self, layer: Layer) -> None:
        nn.Module.__init__(self)
        self.mixer, self.norm, self.drop_path = layer.mixer, layer.norm, layer.drop_path

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """As Layer's."""
        if not self.grad_checkpointing:
            return super().forward(hidden, residual)
        recomputed: tuple[Tensor, Tensor] = checkpoint(super().forward, hidden, residual)
        return recomputed


class TimmVim(TimmContract, Vim):
    """Vim as a timm model. Its tokens are (B, M + 1, C), the class token in the middle.

    Args:
        config: Of the network.
        in_chans: Channels of the images.
        global_pool: `token` (the releases), `avg` over all tokens, or "" for scores of each.
        drop_rate: Dropout before the head.
    """

    family, first_conv, pools, output_fmt = "vim", "patch_embed.proj", ("token", "avg"), "NLC"

    def __init__(
        self, config: VimConfig, *, in_chans: int = 3, global_pool: str = "token",
        drop_rate: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(replace(config, num_classes=max(config.num_classes, 1)))
        self.config = config
        self.layers = nn.ModuleList(map(RecomputedLayer, self.layers))  # type: ignore[arg-type]
        about = {"num_chs": config.dim, "reduction": config.stride or config.patch_size}
        self.feature_info = [{**about, "module": f"layers.{i}"} for i in range(config.depth)]
        self.adopt(in_chans, global_pool, drop_rate)
        if in_chans != 3:
            lecun_normal_(self.patch_embed.proj.weight)
            assert self.patch_embed.proj.bias is not None
            nn.init.zeros_(self.patch_embed.proj.bias)
        if config.num_classes == 0:
            self.reset_classifier(0)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the tokens (B, M + 1, C); with `pre_logits`, what they come from."""
        if self.global_pool == "token":
            x = super().forward_head(x, pre_logits=True)
        elif self.global_pool == "avg":
            x = x.mean(1)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = None, norm: bool = False,
        stop_early: bool = False, output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:  # fmt: skip
        """The patches' sums of the residual stream after the chosen layers; and the final tokens.

        Args:
            x: Images (B, channels, height, width).
            indices: Numbers of layers; the last so many if an int; all if None.
            norm: Whether each goes through the final norm.
            stop_early: Without effect: `prune_intermediate_layers` removes what is not needed.
            output_fmt: `NCHW` or `NLC`; neither holds the class token.
            intermediates_only: Return the list alone.
        """
        assert output_fmt in ("NCHW", "NLC"), "Output format must be one of NCHW or NLC."
        take = chosen(len(self.layers), indices)
        sums: list[Tensor] = []
        hooks = [self.layers[i].register_forward_hook(_collect(sums)) for i in sorted(take)]
        try:
            tokens = self.forward_features(x)
        finally:
            for hook in hooks:
                hook.remove()
        maps = [self._patches(self.norm_f(s) if norm else s, output_fmt) for s in sums]
        return maps if intermediates_only else (tokens, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the layers after the last chosen one; the numbers of the chosen ones."""
        take = chosen(len(self.layers), indices)
        self.layers = self.layers[: max(take) + 1]
        if prune_norm:
            self.norm_f.requires_grad_(False)  # the forward pass ends with it, unused
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into layers, for timm's layer-wise learning rates."""
        blocks = [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))]
        return {"stem": r"^cls_token|pos_embed|patch_embed", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training recomputes each layer instead of keeping its inner values."""
        for layer in self.layers:
            assert isinstance(layer, RecomputedLayer)
            layer.grad_checkpointing = enable

    def fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """As for every family; and the position embedding resized to this network's images."""
        really = recognise(state)
        if really is not None and VARIANTS[really].stride != self.config.stride:
            return super().fitted(state)  # of coarser or finer patches: another network
        return fit_positions(super().fitted(state), self.config.grid)

    def _patches(self, tokens: Tensor, output_fmt: str) -> Tensor:
        patches = torch.cat((tokens[:, : self.middle], tokens[:, self.middle + 1 :]), 1)
        if output_fmt == "NLC":
            return patches
        B, _, C = patches.shape
        return patches.transpose(1, 2).reshape(B, C, *self.config.grid)


def _collect(sums: list[Tensor]) -> Any:
    def hook(_: nn.Module, __: object, output: tuple[Tensor, Tensor]) -> None:
        sums.append(output[0] + output[1])

    return hook


def build(
    variant: str, *, in_chans: int = 3, global_pool: str = "token", drop_rate: float = 0.0,
    drop_path_rate: float | None = None, **changes: object,
) -> TimmVim:  # fmt: skip
    """The network `variant`, freshly initialised; `changes` are to its configuration.

    Raises:
        UsageError: An option is unknown.
    """
    if drop_path_rate is not None:
        changes["drop_path"] = drop_path_rate
    config = changed(VARIANTS[variant], changes, model=variant)
    return TimmVim(config, in_chans=in_chans, global_pool=global_pool, drop_rate=drop_rate)
