"""The linear state-space model whose parameters do not depend on the input (S4).

Source: Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces"
(arXiv 2111.00396), with a diagonal state matrix as in every model here. From

    h'(t) = A h(t) + B x(t),    y(t) = C h(t)

zero-order hold with step d gives Abar = exp(dA) and Bbar = (dA)^-1 (exp(dA) - 1) dB. The recurrence
h_t = Abar h_{t-1} + Bbar x_t, y_t = C h_t then equals the convolution of x with the kernel
K = (C Bbar, C Abar Bbar, ..., C Abar^{L-1} Bbar). The selective scan lets d, B and C depend on the
input, which ends the convolution, and takes the simpler Bbar = dB.

Shapes: D channels, N state size, L steps; leading dimensions of x are free.
"""

from __future__ import annotations

import torch
from torch import Tensor


def zero_order_hold(A: Tensor, B: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Abar and Bbar, (D, N) each.

    Args:
        A: Diagonal of the state matrix (D, N), without zeros.
        B: Input matrix (D, N).
        step: Step size per channel, (D), positive.
    """
    exponent = step[:, None] * A
    return exponent.exp(), torch.expm1(exponent) / A * B


def recurrence(x: Tensor, Abar: Tensor, Bbar: Tensor, C: Tensor) -> Tensor:
    """Y (..., D, L) from x (..., D, L), step by step: L operations in sequence, O(L)."""
    state = x.new_zeros(*x.shape[:-1], Abar.shape[1])
    ys = []
    for t in range(x.shape[-1]):
        state = Abar * state + Bbar * x[..., t, None]
        ys.append((C * state).sum(-1))
    return torch.stack(ys, -1)


def kernel(Abar: Tensor, Bbar: Tensor, C: Tensor, length: int) -> Tensor:
    """The convolution kernel K, (D, length)."""
    powers = Abar[..., None] ** torch.arange(length, device=Abar.device)  # (D, N, L)
    return (C[..., None] * Bbar[..., None] * powers).sum(1)


def convolution(x: Tensor, K: Tensor) -> Tensor:
    """Y (..., D, L): the causal convolution of x with K, (D, L), all steps at once, O(L log L)."""
    length = x.shape[-1]
    spectrum = torch.fft.rfft(x, 2 * length) * torch.fft.rfft(K, 2 * length)
    y: Tensor = torch.fft.irfft(spectrum, 2 * length)
    return y[..., :length]
