"""VMamba: a hierarchical vision backbone whose token mixer scans the image in four directions.

Source: Liu et al., "VMamba: Visual State Space Model" (arXiv 2401.10166) and its code release;
reimplemented from the published facts. The nine ImageNet-1K checkpoints load unchanged:
parameter names and shapes are equal. Deviation: feature maps are channels-last (B, H, W, C) in all
variants, so that norms and projections read contiguous memory; the layout does not change the
function. The token mixer, SS2D, is also that of VM-UNet and Swin-UMamba, and can be built without
its scan (`robustcli.models.ablation`).

Shapes: B batch, H and W of the current stage, C channels, D inner channels, K directions, N state
size, R rank of the step-size projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.models.ablation import Ablation, ScanBlock, ablate_network
from robustcli.models.architectures import changed
from robustcli.models.blocks import rising_rates
from robustcli.models.mamba import state_decay, state_logs, step_size_bias
from robustcli.models.scan import ss2d_scan
from robustcli.models.scan.base import CROSS

# VMamba's `forward_type`: a name that defines scan directions, gate and norm of the mixer. Source:
# the code release of VMamba (arXiv 2401.10166). A name is a core, then suffixes in a fixed order:
# one for the norm, `_nozact`, `_noz`, `_oact`, `_no32`. Cores that differ only in kernels and
# precision are the same function here, which always sums in float32. Not supported: the cascade
# `v052dc` and the norms `_ondwconv3`, `_oncnorm` and `_onsoftmax`, because the published
# descriptions do not define them; `v2`, which fails in the release; Mamba-2's `m0`, which has no
# checkpoints.

_NORMS: dict[str, Literal["none", "sigmoid"]] = {"_onnone": "none", "_onsigmoid": "sigmoid"}
_ROW, _BACK = "row", "row-reversed"
_CORES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("v0", "v01", "v02", "v03", "v3", "v04", "v05"), CROSS),
    "v051d": (_ROW,) * 4,
    "v052d": (_ROW, _ROW, _BACK, _BACK),
}


@dataclass(frozen=True)
class Mixing:
    """Arguments of `SS2D` that a `forward_type` defines."""

    directions: tuple[str, ...] = CROSS
    gate: bool = True
    gate_activation: bool = True  # the gate passes through silu
    norm: Literal["layer", "none", "sigmoid"] = "layer"
    out_activation: bool = False  # the normed output passes through gelu


def mixing(forward_type: str) -> Mixing:
    """Parses a `forward_type` into arguments of `SS2D`.

    Args:
        forward_type: For example `v05_noz`, that of all s1l* and s2l* checkpoints, or
            `v052d_onnone_oact`.

    Raises:
        UsageError: The core is unknown, or a suffix is unknown or out of order.
    """
    remainder = forward_type.removesuffix("_no32")  # disables what we never do
    remainder, out_activation = _stripped(remainder, "_oact")
    remainder, no_gate = _stripped(remainder, "_noz")
    remainder, raw_gate = _stripped(remainder, "_nozact")
    suffix = next((suffix for suffix in _NORMS if remainder.endswith(suffix)), "")
    core = remainder.removesuffix(suffix)
    if core not in _CORES:
        raise UsageError(
            f"`forward_type` `{forward_type}` is not known.",
            f"Expected one of {', '.join(_CORES)}, then of {', '.join(_NORMS)}, _nozact, _noz, "
            f"_oact and _no32 those that apply, in this order.",
        )
    norm = _NORMS[suffix] if suffix else "layer"
    return Mixing(_CORES[core], not no_gate, not raw_gate, norm, out_activation)


def _stripped(name: str, suffix: str) -> tuple[str, bool]:
    return name.removesuffix(suffix), name.endswith(suffix)


# SS2D, the token mixer: a selective scan over the image in four directions.

_NORM_LAYERS: dict[str, type[nn.Module]] = {"none": nn.Identity, "sigmoid": nn.Sigmoid}


class SS2D(ScanBlock):
    """Two-dimensional selective scan with its projections; maps (B, H, W, C) to the same shape.

    Args:
        dim: Channels C.
        d_state: State size N.
        ratio: Ratio of inner channels D to C.
        gate: Whether the output is multiplied by silu of a second projection of the input.
        conv_bias: Whether the depthwise convolution has a bias.
        directions: Directions of the scan, as in `ss2d_scan`.
        gate_activation: Whether the gate passes through silu.
        norm: Layer after the sum of the directions: LayerNorm, identity, or a sigmoid.
        out_activation: Whether the normalised sum passes through gelu, before the gate.
    """

    scan_parts = ("x_proj_weight", "A_logs", "Ds", "dt_projs_weight", "dt_projs_bias")

    def __init__(
        self, dim: int, *, d_state: int, ratio: float, gate: bool, conv_bias: bool,
        directions: tuple[str, ...] = CROSS, gate_activation: bool = True,
        norm: Literal["layer", "none", "sigmoid"] = "layer", out_activation: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        D, N = int(ratio * dim), d_state
        self.rank, self.gate, self.directions = math.ceil(dim / 16), gate, directions
        self.gate_activation, self.out_activation = gate_activation, out_activation
        K, R = len(directions), self.rank
        self.x_proj_weight = nn.Parameter(_uniform((K, R + 2 * N, D), D**-0.5))
        self.A_logs = nn.Parameter(state_logs(K * D, N))
        self.Ds = nn.Parameter(torch.ones(K * D))
        self.dt_projs_weight = nn.Parameter(_uniform((K, D, R), R**-0.5))
        self.dt_projs_bias = nn.Parameter(step_size_bias((K, D)))
        self.out_norm = nn.LayerNorm(D) if norm == "layer" else _NORM_LAYERS[norm]()
        self.in_proj = nn.Linear(dim, 2 * D if gate else D, bias=False)
        self.conv2d = nn.Conv2d(D, D, 3, padding=1, groups=D, bias=conv_bias)
        self.out_proj = nn.Linear(D, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the mixer, (B, H, W, C)."""
        x = self.in_proj(x)
        z = None
        if self.gate:
            x, z = x.chunk(2, -1)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2)))  # (B, D, H, W)
        y = self._normed(self._scan(x).permute(0, 2, 3, 1)).to(x.dtype)  # (B, H, W, D)
        if self.out_activation:
            y = F.gelu(y)
        if z is not None:
            y = y * (F.silu(z) if self.gate_activation else z)
        mixed: Tensor = self.out_proj(y)
        return mixed

    def _normed(self, y: Tensor) -> Tensor:
        """The normalised sum of the directions, in the dtype of `y`: float32 for half inputs."""
        norm = self.out_norm
        if not isinstance(norm, nn.LayerNorm):
            changed: Tensor = norm(y)
            return changed
        weight, bias = norm.weight.to(y.dtype), norm.bias.to(y.dtype)
        return F.layer_norm(y, norm.normalized_shape, weight, bias, norm.eps)

    def _scan(self, x: Tensor) -> Tensor:
        """The sum of the scan's outputs over the directions, (B, D, H, W); K * x without the scan.

        The projections are per pixel, so no cross-scanned copy is made: the arguments of each
        direction are stored by pixel, and the scan reads them in the order of the direction.
        """
        K = len(self.directions)
        if not self.scans:
            return K * x.to(torch.promote_types(x.dtype, torch.float32))  # dtype of a scan's output
        B, D, H, W = x.shape
        N, R = self.A_logs.shape[1], self.rank
        tokens = x.permute(0, 2, 3, 1).reshape(-1, D)  # (B*H*W, D)
        projected = F.linear(tokens, self.x_proj_weight.flatten(0, 1)).view(-1, K, R + 2 * N)
        low, Bs, Cs = projected.split((R, N, N), -1)
        delta = torch.bmm(low.transpose(0, 1), self.dt_projs_weight.transpose(1, 2).to(low.dtype))
        return ss2d_scan(
            x,
            delta.view(K, B, H, W, D).permute(1, 0, 4, 2, 3),  # (B, K, D, H, W)
            state_decay(self.A_logs),
            Bs.reshape(B, H, W, K, N).permute(0, 3, 4, 1, 2),  # (B, K, N, H, W)
            Cs.reshape(B, H, W, K, N).permute(0, 3, 4, 1, 2),
            self.Ds,
            self.dt_projs_bias.flatten(),
            directions=self.directions,
        )


def _uniform(shape: tuple[int, ...], bound: float) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound)


# The stems and the downsampling layers, on channels-last maps. Source: the code release of VMamba
# (arXiv 2401.10166); reimplemented from the published facts. The indices in each Sequential
# are those of the release, because parameter names contain them.


class Permute(nn.Module):
    """Permutes dimensions, as a layer of a Sequential; has no parameters."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """`x` with its dimensions in `order`."""
        return x.permute(self.order)


def _to_last() -> Permute:
    return Permute(0, 2, 3, 1)


def _to_first() -> Permute:
    return Permute(0, 3, 1, 2)


def stem_v1(dim: int) -> nn.Sequential:
    """A 4x4 convolution with stride 4 and a norm; maps (B, 3, H, W) to (B, H/4, W/4, C)."""
    return nn.Sequential(nn.Conv2d(3, dim, 4, 4), _to_last(), nn.LayerNorm(dim))


def stem_v2(dim: int, strides: tuple[int, int]) -> nn.Sequential:
    """Two 3x3 convolutions; maps (B, 3, H, W) to (B, H/s, W/s, C), s the product of `strides`."""
    return nn.Sequential(
        nn.Conv2d(3, dim // 2, 3, strides[0], 1),
        _to_last(),
        nn.LayerNorm(dim // 2),
        _to_first(),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, strides[1], 1),
        _to_last(),
        nn.LayerNorm(dim),
    )


def downsample_v3(dim: int) -> nn.Sequential:
    """A 3x3 convolution with stride 2 and a norm; maps (B, H, W, C) to (B, H/2, W/2, 2C)."""
    conv = nn.Conv2d(dim, 2 * dim, 3, 2, 1)
    return nn.Sequential(_to_first(), conv, _to_last(), nn.LayerNorm(2 * dim))


class PatchMerging(nn.Module):
    """Downsampling of the v0 checkpoints: concatenates 2x2 pixels, then norm and projection."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, ceil(H/2), ceil(W/2), 2C); odd sizes are zero-padded."""
        H, W = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(corners, -1)))
        return merged


@dataclass(frozen=True)
class VMambaConfig:
    """Configuration of a VMamba."""

    depths: tuple[int, ...]
    dim: int
    d_state: int = 1
    ssm_ratio: float = 2.0
    forward_type: str = "v05_noz"
    conv_bias: bool = False
    mlp_ratio: float = 4.0
    stem: Literal["v1", "v2"] = "v2"
    stem_strides: tuple[int, int] = (2, 2)
    downsample: Literal["v1", "v3"] = "v3"
    drop_path: float = 0.0
    num_classes: int = 1000
    ablate: Ablation | None = None

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage: doubled with every stage."""
        return tuple(self.dim * 2**stage for stage in range(len(self.depths)))


class Mlp(nn.Module):
    """Two linear layers with GELU between them, per pixel."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) to the same shape."""
        mixed: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return mixed


class VSSBlock(nn.Module):
    """Norm, SS2D and MLP with residuals; maps (B, H, W, C) to the same shape."""

    def __init__(self, dim: int, drop_path: float, config: VMambaConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = SS2D(
            dim, d_state=config.d_state, ratio=config.ssm_ratio, conv_bias=config.conv_bias,
            **asdict(mixing(config.forward_type)),
        )  # fmt: skip
        self.drop_path = DropPath(drop_path)
        if config.mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = Mlp(dim, int(dim * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """The output of the block, (B, H, W, C)."""
        x = x + self.drop_path(self.op(self.norm(x)))
        if hasattr(self, "mlp"):
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class VMambaStage(nn.Module):
    """Blocks at one resolution, then the downsampling to the next stage."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H/2, W/2, 2C), or to the same shape in the last stage."""
        out: Tensor = self.downsample(self.blocks(x))
        return out


class ClassifierHead(nn.Module):
    """Norm, global average pooling and linear classifier."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of `x` (B, H, W, C); with `pre_logits`, its pooled features."""
        pooled: Tensor = self.norm(x).mean((1, 2))
        return pooled if pre_logits else self.head(pooled)


class VMamba(nn.Module):
    """VMamba: maps images (B, 3, H, W), at least 32 x 32 pixels, to logits (B, num_classes)."""

    def __init__(self, config: VMambaConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.num_features = config.dims[-1]
        self.patch_embed = _stem(config)
        self.layers = nn.Sequential(*_stages(config))
        self.classifier = ClassifierHead(config.dims[-1], config.num_classes)
        self.apply(_initialise)
        ablate_network(self, config.ablate, model="vmamba")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The feature map of the last stage, (B, H/32, W/32, C), before the norm of the head."""
        features: Tensor = self.layers(self.patch_embed(x))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the feature map `x`; with `pre_logits`, its pooled features (B, C)."""
        head: Tensor = self.classifier(x, pre_logits)
        return head


def _stem(config: VMambaConfig) -> nn.Sequential:
    return stem_v1(config.dim) if config.stem == "v1" else stem_v2(config.dim, config.stem_strides)


def _stages(config: VMambaConfig) -> list[VMambaStage]:
    rates = rising_rates(config.drop_path, config.depths)
    shrink = PatchMerging if config.downsample == "v1" else downsample_v3
    last = len(config.depths) - 1
    return [
        VMambaStage(
            [VSSBlock(dim, rate, config) for rate in rates[stage]],
            nn.Identity() if stage == last else shrink(dim),
        )
        for stage, dim in enumerate(config.dims)
    ]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_V2 = VMambaConfig(depths=(2, 2, 5, 2), dim=96)
_V0 = VMambaConfig(
    depths=(2, 2, 9, 2), dim=96, d_state=16, forward_type="v0", conv_bias=True, mlp_ratio=0.0,
    stem="v1", downsample="v1",
)  # fmt: skip
VARIANTS: dict[str, VMambaConfig] = {
    "vmamba-t-v0": replace(_V0, drop_path=0.2),
    "vmamba-s-v0": replace(_V0, depths=(2, 2, 27, 2), drop_path=0.3),
    "vmamba-b-v0": replace(_V0, depths=(2, 2, 27, 2), dim=128, drop_path=0.6),
    "vmamba-t-s2l5": replace(_V2, drop_path=0.2),
    "vmamba-s-s2l15": replace(_V2, depths=(2, 2, 15, 2), drop_path=0.3),
    "vmamba-b-s2l15": replace(_V2, depths=(2, 2, 15, 2), dim=128, drop_path=0.6),
    "vmamba-t-s1l8": replace(_V2, depths=(2, 2, 8, 2), ssm_ratio=1.0, drop_path=0.2),
    "vmamba-s-s1l20": replace(_V2, depths=(2, 2, 20, 2), ssm_ratio=1.0, drop_path=0.3),
    "vmamba-b-s1l20": replace(_V2, depths=(2, 2, 20, 2), dim=128, ssm_ratio=1.0, drop_path=0.5),
    "vmamba-pico": VMambaConfig(
        depths=(1, 2, 2), dim=32, ssm_ratio=1.0, stem_strides=(2, 1), num_classes=10
    ),
}


def build(variant: str, **changes: object) -> VMamba:
    """Builds the network `variant` of VARIANTS with random weights; `changes` override its config.

    Raises:
        UsageError: An option is unknown.
    """
    return VMamba(changed(VARIANTS[variant], changes, model=variant))
