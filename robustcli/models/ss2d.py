"""SS2D, VMamba's token mixer: a selective scan over the image in four directions.

Source: Liu et al., "VMamba" (arXiv 2401.10166) and its code release; reimplemented from the
published facts, with its parameter names. VM-UNet uses the same mixer. It can be built
without its scan (`robustcli.models.ablation`).

Shapes: B batch, H and W of the map, C channels, D inner channels, K directions, N state size, R
rank of the step-size projection.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.models.ablation import ScanBlock
from robustcli.models.mamba import state_decay, state_logs, step_size_bias
from robustcli.models.scan import ss2d_scan
from robustcli.models.scan.base import CROSS

_NORMS: dict[str, type[nn.Module]] = {"none": nn.Identity, "sigmoid": nn.Sigmoid}


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
        self.out_norm = nn.LayerNorm(D) if norm == "layer" else _NORMS[norm]()
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
