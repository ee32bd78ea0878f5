"""Mamba-1 blocks for token sequences: the unidirectional block and Vim's bidirectional block.

Source: Gu and Dao, "Mamba" (arXiv 2312.00752), and Zhu et al., "Vision Mamba" (arXiv 2401.09417);
reimplemented from the published facts, with the parameter names of their code releases.
Deviation: both directions of the bidirectional block run as one scan over twice the channels, and
the gate, which is equal for both, multiplies their sum. Both blocks can be built without the scan
(`robustcli.models.ablation`).

Shapes: B batch, L tokens, C channels of the tokens, D inner channels, N state size, R rank of the
step-size projection.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.models.ablation import ScanBlock
from robustcli.models.scan import selective_scan

_EXPANSION = 2  # ratio of inner channels D to channels of the tokens
_WIDTH = 4  # of the causal convolutions


def step_size_bias(shape: tuple[int, ...]) -> Tensor:
    """Initial biases: their softplus is log-uniform in [0.001, 0.1], at least 1e-4 (as Mamba)."""
    step = torch.empty(shape).uniform_(math.log(1e-3), math.log(0.1)).exp().clamp(min=1e-4)
    return step + torch.log(-torch.expm1(-step))


def state_logs(channels: int, d_state: int) -> Tensor:
    """Initial value of log(-A), (D, N): the logarithms of 1..N in each row (channel)."""
    return torch.arange(1.0, d_state + 1).log().repeat(channels, 1)


def state_decay(logs: Tensor) -> Tensor:
    """A = -exp(logs), at least in float32: half precision would change the slowest states."""
    return -logs.to(torch.promote_types(logs.dtype, torch.float32)).exp()


class Mamba(ScanBlock):
    """Unidirectional Mamba block without residual; maps tokens (B, L, C) to the same shape.

    Args:
        dim: Channels of the tokens.
        d_state: State size N.
    """

    scan_parts = ("A_log", "D", "x_proj", "dt_proj")

    def __init__(self, dim: int, d_state: int = 16) -> None:
        super().__init__()
        D, R = _EXPANSION * dim, math.ceil(dim / 16)
        self.A_log = nn.Parameter(state_logs(D, d_state))
        self.D = nn.Parameter(torch.ones(D))
        self.in_proj = nn.Linear(dim, 2 * D, bias=False)
        self.conv1d = nn.Conv1d(D, D, _WIDTH, groups=D)
        self.x_proj = nn.Linear(D, R + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(R, D)
        self.out_proj = nn.Linear(D, dim, bias=False)
        _start_steps(self.dt_proj)

    def forward(self, tokens: Tensor) -> Tensor:
        """The mixed tokens, (B, L, C)."""
        x, z = self.in_proj(tokens).chunk(2, -1)  # (B, L, D)
        y = F.silu(_causal(x, self.conv1d))
        if self.scans:
            delta, B, C = _selection(y, self.x_proj, self.dt_proj)
            y = _scan(y, delta, self.A_log, B, C, self.D, self.dt_proj.bias)
        mixed: Tensor = self.out_proj(y * F.silu(z))
        return mixed


class BidirectionalMamba(ScanBlock):
    """Vim's bidirectional mixer "v2": maps tokens (B, L, C) to the same shape.

    The two directions have separate weights, except for the shared input and output projections.
    Their outputs are averaged. Names with `_b` belong to the direction that processes the tokens
    from last to first.

    Args:
        dim: Channels of the tokens.
        d_state: State size N.
    """

    scan_parts = (
        *("A_log", "D", "x_proj", "dt_proj"),
        *("A_b_log", "D_b", "x_proj_b", "dt_proj_b"),
    )

    def __init__(self, dim: int, d_state: int = 16) -> None:
        super().__init__()
        D, R = _EXPANSION * dim, math.ceil(dim / 16)
        self.A_log = nn.Parameter(state_logs(D, d_state))
        self.D = nn.Parameter(torch.ones(D))
        self.A_b_log = nn.Parameter(state_logs(D, d_state))
        self.D_b = nn.Parameter(torch.ones(D))
        self.in_proj = nn.Linear(dim, 2 * D, bias=False)
        self.conv1d = nn.Conv1d(D, D, _WIDTH, groups=D)
        self.x_proj = nn.Linear(D, R + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(R, D)
        self.conv1d_b = nn.Conv1d(D, D, _WIDTH, groups=D)
        self.x_proj_b = nn.Linear(D, R + 2 * d_state, bias=False)
        self.dt_proj_b = nn.Linear(R, D)
        self.out_proj = nn.Linear(D, dim, bias=False)
        _start_steps(self.dt_proj)

    def forward(self, tokens: Tensor) -> Tensor:
        """The mixed tokens, (B, L, C)."""
        x, z = self.in_proj(tokens).chunk(2, -1)  # (B, L, D)
        ahead = F.silu(_causal(x, self.conv1d))
        back = F.silu(_causal(x.flip(1), self.conv1d_b))
        if self.scans:
            ahead, back = self._scanned(ahead, back)
        mixed: Tensor = self.out_proj((ahead + back.flip(1)) * F.silu(z) / 2)
        return mixed

    def _scanned(self, ahead: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of both scans, (B, L, D) each."""
        selections = (
            _selection(ahead, self.x_proj, self.dt_proj),
            _selection(back, self.x_proj_b, self.dt_proj_b),
        )
        delta, B, C = zip(*selections, strict=True)
        y_ahead, y_back = _scan(
            torch.cat((ahead, back), -1),
            torch.cat(delta, -1),
            torch.cat((self.A_log, self.A_b_log)),
            torch.stack(B, -2),
            torch.stack(C, -2),
            torch.cat((self.D, self.D_b)),
            torch.cat((self.dt_proj.bias, self.dt_proj_b.bias)),
        ).chunk(2, -1)
        return y_ahead, y_back


def _start_steps(dt_proj: nn.Linear) -> None:
    nn.init.uniform_(dt_proj.weight, -(dt_proj.in_features**-0.5), dt_proj.in_features**-0.5)
    with torch.no_grad():
        dt_proj.bias.copy_(step_size_bias((dt_proj.out_features,)))


def _selection(u: Tensor, x_proj: nn.Linear, dt_proj: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
    """The input-dependent arguments of the scan: delta (B, L, D), B and C (B, L, N).

    Delta excludes the bias of `dt_proj`, which the scan adds before the softplus.
    """
    R = dt_proj.in_features
    N = (x_proj.out_features - R) // 2
    low, B, C = x_proj(u).split((R, N, N), -1)
    return F.linear(low, dt_proj.weight), B, C


def _causal(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Causal convolution of x (B, L, D) along L.

    Computed as a two-dimensional convolution of height 1, for which torch has a channels-last
    kernel: on a CPU this is 3 to 12 times as fast as `conv` on the transposed tokens, measured for
    D from 16 to 1024.
    """
    padded = F.pad(x, (0, 0, conv.kernel_size[0] - 1, 0)).transpose(1, 2)  # (B, D, L + 3)
    mixed = F.conv2d(padded[:, :, None], conv.weight[:, :, None], conv.bias, groups=conv.groups)
    return mixed[:, :, 0].transpose(1, 2)


def _scan(
    u: Tensor, delta: Tensor, logs: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    """The scan for token-major arguments (B, L, D); B and C are (B, L, N) or (B, L, G, N)."""
    order = (0, 2, 1) if B.ndim == 3 else (0, 2, 3, 1)
    y = selective_scan(
        u.transpose(1, 2),
        delta.transpose(1, 2),
        state_decay(logs),
        B.permute(order),
        C.permute(order),
        D,
        delta_bias=bias,
        delta_softplus=True,
    )
    assert isinstance(y, Tensor)
    return y.transpose(1, 2)
