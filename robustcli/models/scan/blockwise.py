"""The scan as a few large operations of torch, for exported graphs, which cannot contain kernels.

The loop of `reference` is sequential: its graph has some thousand nodes per scan. Here the steps
are divided into blocks of `RADIX` steps. First, all blocks are computed in parallel, one step after
the other, each with an initial state of zero. Then the state at the end of the previous block,
multiplied by the decay since, is added to each state. These end states follow the same recurrence
on a sequence that is `RADIX` times shorter; they are computed recursively. L steps take about
2 * RADIX * log(L) / log(RADIX) operations and O(L) multiplications.

Numerically stable in float32: only the decays exp(dt A), at most 1, are multiplied with each other.
There is no division by decays and no sum of logarithms, so that a decay that underflows correctly
becomes 0. (Exponentiating a cumulative sum of dt A and dividing by it overflows after some hundred
steps.)

Differentiable, for any float dtype and any device. The code does not depend on the batch size, so
that a traced graph can be used for any batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcli.models.scan.base import CODES, ScanInputs, ScanSettings

RADIX = 8
"""Steps per block. Speed is similar for 4 to 16; less means more levels, more means more nodes."""
_AT_ONCE = 2**24
"""Maximum number of values of a tensor of states; directions are batched up to this limit."""


def available() -> str | None:
    """None: this backend runs on every machine with torch."""
    return None


def refuses(device: torch.device, dtype: torch.dtype, states: int) -> str | None:
    """None: every device and float dtype is supported."""
    return None


def remedy() -> str:
    """Empty: the backend has no kernels."""
    return ""


def scan(arguments: ScanInputs, settings: ScanSettings) -> tuple[Tensor, Tensor]:
    """See `base.Backend`. Computes in float32, or in float64 if x is float64."""
    x, delta, A, B, C, D, bias = (
        t.to(torch.promote_types(arguments.x.dtype, torch.float32)) for t in arguments
    )
    (K, N, channels), L = map(int, A.shape), int(x.shape[1])
    if settings.directions:
        x = x.expand(K, -1, -1, -1)  # (K, S, L, D)
    else:
        x = x.unflatten(2, (K, channels)).permute(2, 0, 1, 3)
    steps = torch.cat((x, delta, B, C), -1)
    if settings.directions:
        steps = torch.stack([_scan_order(t, k, settings) for k, t in enumerate(steps.unbind(0))])
    most = max(1, _AT_ONCE // (L * N * channels))
    parts = zip(steps.split(most), A.split(most), D.split(most), bias.split(most), strict=True)
    scanned = [_scanned(*part, softplus=settings.softplus) for part in parts]
    y, state = (torch.cat(ts) for ts in zip(*scanned, strict=True))
    if settings.directions:
        y = torch.stack([_by_pixel(t, k, settings) for k, t in enumerate(y.unbind(0))]).sum(0)
    else:
        y = y.permute(1, 2, 0, 3).flatten(2)  # (S, L, K*D)
    return y, state


def _scan_order(t: Tensor, k: int, settings: ScanSettings) -> Tensor:
    """Permutes `t` (S, L, C) from pixel order to the order of direction k."""
    code = CODES[settings.directions[k]]
    if code & 1:
        image = t.unflatten(1, (int(settings.height), int(settings.width)))
        t = image.transpose(1, 2).flatten(1, 2)
    return t.flip(1) if code & 2 else t


def _by_pixel(t: Tensor, k: int, settings: ScanSettings) -> Tensor:
    """The inverse of `_scan_order`."""
    code = CODES[settings.directions[k]]
    t = t.flip(1) if code & 2 else t
    if code & 1:
        image = t.unflatten(1, (int(settings.width), int(settings.height)))
        t = image.transpose(1, 2).flatten(1, 2)
    return t


def _scanned(
    steps: Tensor, A: Tensor, D: Tensor, bias: Tensor, *, softplus: bool
) -> tuple[Tensor, Tensor]:
    """Outputs y (K, S, L, D) and last states (K, S, N, D) of K groups of sequences.

    `steps` (K, S, L, 2 * D + 2 * N) is the concatenation of u, delta, B and C.
    """
    _, N, channels = map(int, A.shape)
    u, delta, B, C = steps.split((channels, channels, N, N), -1)
    delta = delta + bias[:, None, None]
    dt = F.softplus(delta) if softplus else delta
    decay = torch.exp(dt[:, :, :, None] * A[:, None, None])  # (K, S, L, N, D)
    inputs = B[..., None] * (dt * u)[:, :, :, None]
    states = _states(decay, inputs)
    y = (C[..., None] * states).sum(3) + D[:, None, None] * u
    return y, states[:, :, -1]


def _states(decay: Tensor, inputs: Tensor) -> Tensor:
    """All states h_t = decay_t h_{t-1} + inputs_t, (K, S, L, N, D), with initial state zero."""
    L = int(decay.shape[2])
    if L == 1:
        return inputs + 0 * decay  # so that A and delta get gradients (zeros)
    if L <= RADIX:
        return torch.cat(_in_turn(decay.split(1, 2), inputs.split(1, 2)), 2)
    blocks = -(-L // RADIX)
    padding = (0, 0, 0, 0, 0, blocks * RADIX - L)
    if blocks * RADIX > L:
        decay, inputs = (F.pad(t, padding) for t in (decay, inputs))
    decay, inputs = (t.unflatten(2, (blocks, RADIX)) for t in (decay, inputs))
    decays = decay.split(1, 3)  # RADIX times (K, S, blocks, 1, N, D)
    alone = _in_turn(decays, inputs.split(1, 3))
    since = [decays[0]]
    for step in decays[1:]:
        since.append(since[-1] * step)
    ends = _states(since[-1].squeeze(3), alone[-1].squeeze(3))  # (K, S, blocks, N, D)
    before = F.pad(ends[:, :, :-1], (0, 0, 0, 0, 1, 0))
    states = torch.cat(alone, 3) + torch.cat(since, 3) * before[:, :, :, None]
    return states.flatten(2, 3)[:, :, :L]


def _in_turn(decays: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    states = [inputs[0]]
    for decay, added in zip(decays[1:], inputs[1:], strict=True):
        states.append(decay * states[-1] + added)
    return states
