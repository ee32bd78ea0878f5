"""exp, softplus and sigmoid of sixteen lanes at once.

The C library's versions are calls on one number. These are polynomials without branches: float32,
relative error below 4e-7, NaN stays NaN.
"""

# mypy: allow-untyped-decorators
from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from robustcli.models.scan.cpu_lanes import at_least, at_most, minus_absolute, power_of_two

_F = np.float32
_LOG2E, _LN2_HIGH, _LN2_LOW = _F(1.44269504), _F(0.693359375), _F(-2.12194440e-4)
_LOWEST, _HIGHEST = _F(-87.0), _F(88.0)
_MAGIC = _F(12582912.0)  # 1.5 * 2**23: adding and subtracting it rounds to the nearest integer
# e**r for |r| <= log(2)/2. Source: Cephes (Moshier), expf.c.
_E0, _E1, _E2 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_E3, _E4, _E5 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)
# log(1 + t) / t for 0 <= t <= 1: interpolated at Chebyshev nodes, relative error 5e-9.
_P0, _P1, _P2 = _F(0.9999999953848531), _F(-0.4999990399276394), _F(0.333300040352213)
_P3, _P4, _P5 = _F(-0.2495455887108236), _F(0.19678117256353023), _F(-0.15311863102217202)
_P6, _P7, _P8 = _F(0.10614264687062452), _F(-0.05706420076122008), _F(0.019907160925644585)
_P9 = _F(-0.0032563784727292254)


@njit(forceinline=True)
def exp(x: Any) -> Any:
    """e**x; below -87 it is e**-87 (1.6e-38), above 88 it is e**88."""
    x = at_most(_HIGHEST, at_least(_LOWEST, x))
    whole = (x * _LOG2E + _MAGIC) - _MAGIC
    r = x - whole * _LN2_HIGH - whole * _LN2_LOW
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    p = p * r * r + r + _F(1.0)
    return p * power_of_two(whole)


@njit(forceinline=True)
def softplus(x: Any) -> Any:
    """log(1 + e**x), as max(x, 0) + log(1 + e**-|x|): exact for small values too."""
    t = exp(minus_absolute(x))
    p = (((_P9 * t + _P8) * t + _P7) * t + _P6) * t + _P5
    p = ((((p * t + _P4) * t + _P3) * t + _P2) * t + _P1) * t + _P0
    return at_least(_F(0.0), x) + p * t


@njit(forceinline=True)
def sigmoid(x: Any) -> Any:
    """1 / (1 + e**-x), as e**min(x, 0) / (1 + e**-|x|)."""
    return exp(at_most(_F(0.0), x)) / (exp(minus_absolute(x)) + _F(1.0))
