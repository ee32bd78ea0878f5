"""exp, softplus and sigmoid for the CPU kernels, such that LLVM turns loops over them into SIMD.

The C library's versions are calls, which keep a loop scalar. These are polynomials without
branches: float32, relative error below 3e-7, NaN stays NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_F = np.float32
_LOG2E, _LN2_HIGH, _LN2_LOW = _F(1.44269504), _F(0.693359375), _F(-2.12194440e-4)
_SQRT_HALF = _F(0.70710678)
_LOWEST, _HIGHEST = _F(-87.0), _F(88.0)
_MAGIC = _F(12582912.0)  # 1.5 * 2**23: adding and subtracting it rounds to the nearest integer
# Source of both polynomials: Cephes (Moshier), expf.c and logf.c.
_E0, _E1, _E2 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_E3, _E4, _E5 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)
_L0, _L1, _L2 = _F(7.0376836292e-2), _F(-1.1514610310e-1), _F(1.1676998740e-1)
_L3, _L4, _L5 = _F(-1.2420140846e-1), _F(1.4249322787e-1), _F(-1.6668057665e-1)
_L6, _L7, _L8 = _F(2.0000714765e-1), _F(-2.4999993993e-1), _F(3.3333331174e-1)


@intrinsic
def _float_of_bits(_context: Any, bits: Any) -> Any:
    def codegen(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def _bits_of_float(_context: Any, value: Any) -> Any:
    def codegen(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@njit(inline="always", fastmath={"contract"})
def exp32(x: Any) -> Any:
    """e**x in float32; below -87 it is e**-87 (1.6e-38), above 88 it is e**88."""
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    whole = (x * _LOG2E + _MAGIC) - _MAGIC
    r = x - whole * _LN2_HIGH - whole * _LN2_LOW
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    p = p * r * r + r + _F(1.0)
    return p * _float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))


@njit(inline="always", fastmath={"contract"})
def _log32(x: Any) -> Any:
    """log(x) in float32 for normal x > 0."""
    bits = _bits_of_float(x)
    exponent = _F((bits >> np.int32(23)) - np.int32(126))
    m = _float_of_bits((bits & np.int32(0x007FFFFF)) | np.int32(0x3F000000))  # in [0.5, 1)
    small = m < _SQRT_HALF
    exponent = exponent - _F(1.0) if small else exponent
    r = m + m - _F(1.0) if small else m - _F(1.0)
    s = r * r
    p = ((((_L0 * r + _L1) * r + _L2) * r + _L3) * r + _L4) * r + _L5
    p = ((p * r + _L6) * r + _L7) * r + _L8
    return p * r * s + exponent * _LN2_LOW - _F(0.5) * s + r + exponent * _LN2_HIGH


@njit(inline="always", fastmath={"contract"})
def softplus32(x: Any) -> Any:
    """log(1 + e**x) in float32; x itself above 20, as torch and the CUDA kernels have it."""
    e = exp32(x)
    w = _F(1.0) + e
    # log(1+e) loses e's low bits in 1+e; e/(w-1) gives them back (Kahan; HP-15C handbook).
    rest = w - _F(1.0)
    tiny = rest == _F(0.0)
    y = e if tiny else _log32(w) * (e / (_F(1.0) if tiny else rest))
    y = x if x > _F(20.0) else y
    return y if x == x else x


@njit(inline="always", fastmath={"contract"})
def sigmoid32(x: Any) -> Any:
    """1 / (1 + e**-x) in float32."""
    return _F(1.0) / (_F(1.0) + exp32(-x))
