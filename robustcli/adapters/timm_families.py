"""VMamba and Vim with the methods that timm expects; forward pass and weights are unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import lecun_normal_, trunc_normal_
from timm.models import adapt_input_conv, checkpoint, checkpoint_seq
from torch import Tensor, nn

from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.strict_loading import (
    FAMILIES,
    classes_in,
    load_strictly,
    recognise,
    shapes_of,
)
from robustcli.core.errors import UsageError
from robustcli.models.architectures import ARCHITECTURES, changed
from robustcli.models.vim import VARIANTS as VIMS
from robustcli.models.vim import Layer, Vim, VimConfig, fit_positions
from robustcli.models.vmamba import VARIANTS as VMAMBAS
from robustcli.models.vmamba import VMamba, VMambaConfig, VMambaStage


class TimmContract(nn.Module):
    """Mixin with timm's methods for head, input channels, weights and weight decay.

    Names and shapes in the state dict do not change.
    """

    family: ClassVar[str]
    first_conv: ClassVar[str]
    pools: ClassVar[tuple[str, ...]]
    num_classes: int
    num_features: int

    def adopt(self, in_chans: int, global_pool: str, drop_rate: float) -> None:
        """Sets timm's common options: input channels, pooling and dropout of the head."""
        self.in_chans, self.drop_rate = in_chans, drop_rate
        self.head_hidden_size = self.num_features
        self._set_pool(global_pool)
        conv = self.get_submodule(self.first_conv)
        assert isinstance(conv, nn.Conv2d)
        if conv.in_channels != in_chans:
            shape = (conv.out_channels, in_chans, *conv.kernel_size)
            conv.in_channels, conv.weight = in_chans, nn.Parameter(conv.weight.new_empty(shape))
            conv.reset_parameters()

    @property
    def classifier_name(self) -> str:
        """Name of the linear layer of the head."""
        return FAMILIES[self.family].heads[0]

    def get_classifier(self) -> nn.Module:
        """The linear layer of the head; an identity without classes."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the linear layer by a new one, or by an identity for 0 classes.

        Args:
            num_classes: Number of classes of the new head.
            global_pool: One of `pools`; None keeps the pooling, "" disables it.

        Raises:
            UsageError: There is no such pooling.
        """
        if global_pool is not None:
            self._set_pool(global_pool)
        self.num_classes = num_classes
        head: nn.Module = nn.Identity()
        if num_classes > 0:
            head = nn.Linear(self.num_features, num_classes)
            trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            like = next(self.parameters())
            head.to(like.device, like.dtype)
        self.set_submodule(self.classifier_name, head)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay in the official training code."""
        decays = next(a for a in ARCHITECTURES.values() if a.family == self.family).decays
        return {name for name, parameter in self.named_parameters() if not decays(name, parameter)}

    def load_pretrained(self, checkpoint_path: str | Path, prefix: str = "") -> None:
        """Loads an official file, for timm's `pretrained=True`.

        As everywhere in timm, a head for another number of classes keeps its initialisation, and
        the first convolution is adapted to the number of input channels. All other tensors must
        match.

        Raises:
            UsageError: The file does not contain weights of this network.
        """
        path = Path(checkpoint_path)
        state = {key.removeprefix(prefix): tensor for key, tensor in read_weights(path).items()}
        really = recognise(state)
        advice = f"These are the weights of `{really}`: use this name." if really else None
        fitted = self.fitted(FAMILIES[self.family].convert(state))
        load_strictly(self, fitted, model=type(self).__name__, origin=str(path), advice=advice)

    def fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """`state` with an adapted first convolution, and with this network's head if it differs."""
        conv = f"{self.first_conv}.weight"
        if conv in state and state[conv].shape[1] != self.in_chans:
            state = {**state, conv: adapt_input_conv(self.in_chans, state[conv])}
        if classes_in(shapes_of(state), self.family) == self.num_classes:
            return state
        head = f"{self.classifier_name}."
        without_head = {key: tensor for key, tensor in state.items() if not key.startswith(head)}
        own_head = {key: t for key, t in self.state_dict().items() if key.startswith(head)}
        return without_head | own_head

    def _set_pool(self, global_pool: str) -> None:
        if global_pool not in ("", *self.pools):
            raise UsageError(
                f"`global_pool={global_pool}` is unknown.",
                "This network supports pooling by "
                f"{' or '.join(f'`{pool}`' for pool in self.pools)}.",
                'Use one of these, or "" for no pooling.',
            )
        self.global_pool = global_pool


def chosen(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """The selected feature numbers, with timm's meaning of `indices`.

    Args:
        count: Number of features.
        indices: Feature numbers, negative ones from the end; an int selects that many last
            features; None selects all.

    Raises:
        UsageError: There is no such feature.
    """
    if indices is None:
        return list(range(count))
    positions = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
    if not positions or not all(-count <= index < count for index in positions):
        raise UsageError(
            f"`out_indices={indices}` selects features that this network does not have.",
            f"It has {count}, numbered from 0; a single number N selects the last N.",
        )
    return [index % count for index in positions]


def weights_filter(state: dict[str, Tensor], network: TimmContract) -> dict[str, Tensor]:
    """Converts `state`, which timm read from an official file, to the names of `network`."""
    return FAMILIES[network.family].convert(state)


# Vim with timm's methods. Shapes: B batch, M patches, C channels; the class token is at M // 2 of
# the M + 1 tokens.


class RecomputedLayer(Layer):
    """A layer that is recomputed in the backward pass while `grad_checkpointing` is on."""

    grad_checkpointing = False

    def __init__(self, layer: Layer) -> None:
        nn.Module.__init__(self)
        self.mixer, self.norm, self.drop_path = layer.mixer, layer.norm, layer.drop_path

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Layer.forward`."""
        if not self.grad_checkpointing:
            return super().forward(hidden, residual)
        recomputed: tuple[Tensor, Tensor] = checkpoint(super().forward, hidden, residual)
        return recomputed


class TimmVim(TimmContract, Vim):
    """Vim as a timm model. Its tokens are (B, M + 1, C), the class token in the middle.

    Args:
        config: Configuration of the network.
        in_chans: Number of input channels.
        global_pool: `token` (as released), `avg` over all tokens, or "" for scores of each token.
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
        """Logits of the tokens (B, M + 1, C); with `pre_logits`, the features before the head."""
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
        """Residual streams of the patches after the selected layers, and the final tokens.

        Args:
            x: Images (B, channels, height, width).
            indices: Layer numbers; an int selects that many last layers; None selects all.
            norm: Whether to apply the final norm to each.
            stop_early: No effect; `prune_intermediate_layers` removes unused layers.
            output_fmt: `NCHW` or `NLC`, both without the class token.
            intermediates_only: Whether to return only the list.
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
        """Removes the layers after the last selected one; returns the selected numbers."""
        take = chosen(len(self.layers), indices)
        self.layers = self.layers[: max(take) + 1]
        if prune_norm:
            self.norm_f.requires_grad_(False)  # unused at the end of the forward pass
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameters to layers, for timm's layer-wise learning rates."""
        blocks = [(r"^layers\.(\d+)", None), (r"^norm_f", (99999,))]
        return {"stem": r"^cls_token|pos_embed|patch_embed", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each layer in the backward pass instead of storing activations."""
        for layer in self.layers:
            assert isinstance(layer, RecomputedLayer)
            layer.grad_checkpointing = enable

    def fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `TimmContract.fitted`; also resizes the position embedding to the image size."""
        really = recognise(state)
        if really is not None and VIMS[really].stride != self.config.stride:
            return super().fitted(state)  # another patch size is another network
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


# VMamba with timm's methods. Shapes: B batch; H, W and C of the last stage's map.


class StageBlocks(nn.Sequential):
    """Blocks of a stage, recomputed in the backward pass while `grad_checkpointing` is on."""

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
    """VMamba as a timm model, with channels-last feature maps like timm's Swin (`output_fmt`).

    Args:
        config: Configuration of the network.
        in_chans: Number of input channels.
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
            stage.blocks = StageBlocks(*stage.blocks)
            module_name = f"layers.{number}.blocks"
            self.feature_info.append(
                {"num_chs": dim, "reduction": stride * 2**number, "module": module_name}
            )
        self.adopt(in_chans, global_pool, drop_rate)
        if config.num_classes == 0:
            self.reset_classifier(0)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the map (B, H, W, C); with `pre_logits`, the features before the head."""
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
        """Maps of the selected stages before downsampling, and the last map.

        Args:
            x: Images (B, channels, height, width).
            indices: Stage numbers; an int selects that many last stages; None selects all.
            norm: Whether to apply the head's norm to the last stage's map.
            stop_early: Whether to skip the stages after the last selected one.
            output_fmt: `NCHW` or `NHWC`.
            intermediates_only: Whether to return only the list.
        """
        assert output_fmt in ("NCHW", "NHWC"), "Output format must be one of NCHW or NHWC."
        take = chosen(len(self.layers), indices)
        last, maps = len(self.layers) - 1, []
        x = self.patch_embed(x)
        for number, stage in enumerate(self._stages()[: max(take) + 1 if stop_early else None]):
            x = stage.blocks(x)
            if number in take:
                normalised = self.classifier.norm(x) if norm and number == last else x
                maps.append(normalised.permute(0, 3, 1, 2) if output_fmt == "NCHW" else normalised)
            x = stage.downsample(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages after the last selected one; returns the selected numbers."""
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
        """Patterns that assign parameters to layers, for timm's layer-wise learning rates."""
        groups = [
            (r"^layers\.(\d+)\.blocks\.(\d+)", None),
            (r"^layers\.(\d+)\.downsample", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else groups}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of storing activations."""
        for stage in self._stages():
            assert isinstance(stage.blocks, StageBlocks)
            stage.blocks.grad_checkpointing = enable

    def _stages(self) -> list[VMambaStage]:
        return [stage for stage in self.layers if isinstance(stage, VMambaStage)]


_FAMILIES: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "vim": (TimmVim, VIMS), "vmamba": (TimmVMamba, VMAMBAS)
}  # fmt: skip
_TIMMS_OPTIONS = ("in_chans", "global_pool", "drop_rate")
OPTIONS = (*_TIMMS_OPTIONS, "drop_path_rate")
"""Options in addition to the fields of a configuration."""


def build(family: str, variant: str, **options: object) -> TimmContract:
    """The network `variant` of a `family` with initial weights.

    Args:
        family: `vim` or `vmamba`.
        variant: Name of the network.
        options: `OPTIONS`, and changes to its configuration.

    Raises:
        UsageError: An option is unknown.
    """
    network, variants = _FAMILIES[family]
    of_timm = {name: options.pop(name) for name in _TIMMS_OPTIONS if name in options}
    drop_path = options.pop("drop_path_rate", None)
    if drop_path is not None:
        options["drop_path"] = drop_path
    built: TimmContract = network(changed(variants[variant], options, model=variant), **of_timm)
    return built
