"""S4's two forms are one function, and its discretisation is SciPy's."""

import numpy as np
import pytest
import torch
from scipy.signal import cont2discrete

from robustcli.models.mamba import ssm_convolution, ssm_kernel, ssm_recurrence, zero_order_hold
from robustcli.models.scan import selective_scan


def _system(channels=3, states=4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    A = -draw(channels, states).exp()
    return A, draw(channels, states), draw(channels, states), 0.3 * draw(channels).exp(), draw


@pytest.mark.parametrize("length", [1, 2, 33, 256])
def test_recurrence_equals_convolution(length):
    A, B, C, step, draw = _system()
    x = draw(2, 3, length)
    Abar, Bbar = zero_order_hold(A, B, step)
    unrolled = ssm_recurrence(x, Abar, Bbar, C)
    assert torch.allclose(
        ssm_convolution(x, ssm_kernel(Abar, Bbar, C, length)), unrolled, atol=1e-12
    )


def test_zero_order_hold_is_scipys():
    A, B, C, step, _ = _system()
    Abar, Bbar = zero_order_hold(A, B, step)
    for d in range(3):
        system = (A[d].diag().numpy(), B[d][:, None].numpy(), C[d][None].numpy(), np.zeros((1, 1)))
        exact_a, exact_b, *_ = cont2discrete(system, float(step[d]), method="zoh")
        assert np.allclose(Abar[d].diag().numpy(), exact_a, atol=1e-12)
        assert np.allclose(Bbar[d].numpy(), exact_b[:, 0], atol=1e-12)


def test_the_kernel_begins_as_written():
    A, B, C, step, _ = _system()
    Abar, Bbar = zero_order_hold(A, B, step)
    K = ssm_kernel(Abar, Bbar, C, 3)
    assert torch.allclose(K[:, 0], (C * Bbar).sum(1))
    assert torch.allclose(K[:, 2], (C * Abar * Abar * Bbar).sum(1))


def test_the_selective_scan_with_constant_parameters_is_this_convolution():
    """With Euler's Bbar = dB, which is what Mamba takes."""
    A, B, C, step, draw = _system(channels=1)
    x = draw(2, 1, 50)
    constant = [p[0, :, None].expand(2, 4, 50) for p in (B, C)]
    y = selective_scan(x, step[:, None].expand(2, 1, 50), A, *constant)
    Abar, Bbar = (step[:, None] * A).exp(), step[:, None] * B
    assert torch.allclose(y, ssm_convolution(x, ssm_kernel(Abar, Bbar, C, 50)), atol=1e-12)
