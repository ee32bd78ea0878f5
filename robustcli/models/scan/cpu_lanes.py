"""A numba type for the CPU kernels: vectors of 16 float32 channels in SIMD registers.

Code with this type always uses SIMD instructions. LLVM's automatic vectoriser, in a loop over this
many arrays, either checks every pair of arrays for overlap at run time or leaves the loop scalar.
Processors with narrower registers split a vector into several registers; the results are equal.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

# mypy: allow-untyped-decorators, allow-subclassing-any


WIDTH = 16
_INT, _BYTE = ir.IntType(32), ir.IntType(8)
VECTOR, INTEGERS = ir.VectorType(ir.FloatType(), WIDTH), ir.VectorType(_INT, WIDTH)
_ZEROS = ir.Constant(VECTOR, [0.0] * WIDTH)
_BLANK = ir.Constant(VECTOR, ir.Undefined)


class _Lanes(types.Type):
    """Numba type of a vector of 16 float32 values (lanes)."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


LANES = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR)


def _spread(builder: Any, value: Any) -> Any:
    """Broadcasts a scalar `value` to all lanes; returns vectors unchanged."""
    if value.type == VECTOR:
        return value
    first = builder.insert_element(_BLANK, value, _INT(0))
    return builder.shuffle_vector(first, _BLANK, ir.Constant(INTEGERS, [0] * WIDTH))


def _define(symbol: Callable[[Any, Any], Any], instruction: str) -> None:
    """Defines the operator `symbol` for two vectors, and for a vector and a scalar."""
    pairs = [(LANES, LANES), (LANES, types.float32), (types.float32, LANES)]
    cases = {"cases": [signature(LANES, *pair) for pair in pairs]}
    infer_global(symbol)(type(f"_Lanes_{instruction}", (ConcreteTemplate,), cases))

    def emit(_: Any, builder: Any, __: Any, values: Any) -> Any:
        left, right = (_spread(builder, value) for value in values)
        # Allows fused multiply-add; NaN and infinity follow IEEE 754.
        return getattr(builder, instruction)(left, right, flags=("contract",))

    for pair in pairs:
        lower_builtin(symbol, *pair)(emit)


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
_define(operator.truediv, "fdiv")


def place(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    """Generates code for the address of array[at]."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _copy(builder: Any, source: Any, target: Any, count: Any) -> None:
    with cgutils.for_range(builder, count) as loop:
        value = builder.load(builder.gep(source, [loop.index]))
        builder.store(value, builder.gep(target, [loop.index]))


@intrinsic
def _load(_context: Any, array: Any, at: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        where = place(context, builder, sig.args[0], *values)
        found = builder.load(builder.bitcast(where, VECTOR.as_pointer()))
        found.align = 4
        return found

    return LANES(array, at), codegen


@intrinsic
def _load_part(_context: Any, array: Any, at: Any, count: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        where = place(context, builder, sig.args[0], *values[:2])
        kept = cgutils.alloca_once(builder, VECTOR)
        builder.store(_ZEROS, kept)
        _copy(builder, where, builder.bitcast(kept, ir.FloatType().as_pointer()), values[2])
        return builder.load(kept)

    return LANES(array, at, count), codegen


@intrinsic
def _store(_context: Any, array: Any, at: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        where = place(context, builder, sig.args[0], *values[:2])
        builder.store(values[2], builder.bitcast(where, VECTOR.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(array, at, value), codegen


@intrinsic
def _store_part(_context: Any, array: Any, at: Any, count: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        where = place(context, builder, sig.args[0], *values[:2])
        kept = cgutils.alloca_once(builder, VECTOR)
        builder.store(values[3], kept)
        _copy(builder, builder.bitcast(kept, ir.FloatType().as_pointer()), where, values[2])
        return context.get_dummy_value()

    return types.void(array, at, count, value), codegen


@njit(forceinline=True)
def load(array: Any, at: Any, count: Any) -> Any:
    """Loads `count` floats, starting with array[at]; remaining lanes are zero."""
    return _load(array, at) if count == WIDTH else _load_part(array, at, count)


@njit(forceinline=True)
def store(array: Any, at: Any, count: Any, value: Any) -> None:
    """Stores the first `count` lanes of `value`, starting at array[at]."""
    if count == WIDTH:
        _store(array, at, value)
    else:
        _store_part(array, at, count, value)


@intrinsic
def fill(_context: Any, number: Any) -> Any:
    """A vector with `number` in every lane."""

    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return _spread(builder, values[0])

    return LANES(number), codegen


@intrinsic
def total(_context: Any, value: Any) -> Any:
    """The sum of the lanes, by repeated halving: in the same order on every processor."""

    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        (lanes,) = values
        for half in (8, 4, 2, 1):
            order = ir.Constant(INTEGERS, [(i + half) % WIDTH for i in range(WIDTH)])
            lanes = builder.fadd(lanes, builder.shuffle_vector(lanes, _BLANK, order))
        return builder.extract_element(lanes, _INT(0))

    return types.float32(value), codegen


@intrinsic
def prefetch(_context: Any, array: Any, at: Any) -> Any:
    """Prefetches the cache line of array[at]."""

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        where = place(context, builder, sig.args[0], *values)
        where = builder.bitcast(where, _BYTE.as_pointer())
        shape = ir.FunctionType(ir.VoidType(), [where.type, _INT, _INT, _INT])
        function = builder.module.declare_intrinsic("llvm.prefetch", [where.type], shape)
        builder.call(
            function, [where, _INT(0), _INT(3), _INT(1)]
        )  # for reading, into all cache levels, data
        return context.get_dummy_value()

    return types.void(array, at), codegen


@intrinsic
def at_least(_context: Any, limit: Any, value: Any) -> Any:
    """Maximum of each lane and the scalar `limit`; NaN remains NaN."""
    return LANES(limit, value), _chooser(">")


@intrinsic
def at_most(_context: Any, limit: Any, value: Any) -> Any:
    """Minimum of each lane and the scalar `limit`; NaN remains NaN."""
    return LANES(limit, value), _chooser("<")


def _chooser(relation: str) -> Callable[..., Any]:
    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        limit, lanes = (_spread(builder, value) for value in values)
        return builder.select(builder.fcmp_ordered(relation, limit, lanes), limit, lanes)

    return codegen


@intrinsic
def minus_absolute(_context: Any, value: Any) -> Any:
    """-|x| of each lane."""

    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        signs = ir.Constant(INTEGERS, [-(2**31)] * WIDTH)
        return builder.bitcast(builder.or_(builder.bitcast(values[0], INTEGERS), signs), VECTOR)

    return LANES(value), codegen


@intrinsic
def power_of_two(_context: Any, value: Any) -> Any:
    """2**x of each lane, for integers x from -126 to 127."""

    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        whole = builder.fptosi(values[0], INTEGERS)
        biased = builder.add(whole, ir.Constant(INTEGERS, [127] * WIDTH))
        bits = builder.shl(biased, ir.Constant(INTEGERS, [23] * WIDTH))
        return builder.bitcast(bits, VECTOR)

    return LANES(value), codegen


@intrinsic
def multiply_add(_context: Any, left: Any, right: Any, added: Any) -> Any:
    """Computes left * right + added for each lane, fused if the processor supports this.

    With the operators * and +, LLVM decides about fusing by the other uses of the product.
    """

    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
        fused = builder.module.declare_intrinsic(f"llvm.fmuladd.v{WIDTH}f32", (), kind)
        return builder.call(fused, [_spread(builder, value) for value in values])

    return LANES(left, right, added), codegen


# --- exp, softplus and sigmoid of vectors ---------------------------------------------------------
#
# The functions of the C library are scalar. These are polynomials without branches: float32,
# relative error below 4e-7, NaN remains NaN.


_F = np.float32
_LOG2E, _LN2_HIGH, _LN2_LOW = _F(1.44269504), _F(0.693359375), _F(-2.12194440e-4)
_LOWEST, _HIGHEST = _F(-87.0), _F(88.0)
_MAGIC = _F(12582912.0)  # 1.5 * 2**23: adding and subtracting it rounds to the nearest integer
# e**r for |r| <= log(2)/2. Source: Cephes (Moshier), expf.c.
_E0, _E1, _E2 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_E3, _E4, _E5 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)
# log(1 + t) / t for 0 <= t <= 1: interpolation at Chebyshev nodes, relative error 5e-9.
_P0, _P1, _P2 = _F(0.9999999953848531), _F(-0.4999990399276394), _F(0.333300040352213)
_P3, _P4, _P5 = _F(-0.2495455887108236), _F(0.19678117256353023), _F(-0.15311863102217202)
_P6, _P7, _P8 = _F(0.10614264687062452), _F(-0.05706420076122008), _F(0.019907160925644585)
_P9 = _F(-0.0032563784727292254)


@njit(forceinline=True)
def exp(x: Any) -> Any:
    """e**x, for x clamped to [-87, 88]; e**-87 is 1.6e-38."""
    x = at_most(_HIGHEST, at_least(_LOWEST, x))
    whole = (x * _LOG2E + _MAGIC) - _MAGIC
    r = x - whole * _LN2_HIGH - whole * _LN2_LOW
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    p = p * r * r + r + _F(1.0)
    return p * power_of_two(whole)


@njit(forceinline=True)
def softplus(x: Any) -> Any:
    """log(1 + e**x), as max(x, 0) + log(1 + e**-|x|): also accurate for small values."""
    t = exp(minus_absolute(x))
    p = (((_P9 * t + _P8) * t + _P7) * t + _P6) * t + _P5
    p = ((((p * t + _P4) * t + _P3) * t + _P2) * t + _P1) * t + _P0
    return at_least(_F(0.0), x) + p * t


@njit(forceinline=True)
def sigmoid(x: Any) -> Any:
    """1 / (1 + e**-x), as e**min(x, 0) / (1 + e**-|x|)."""
    return exp(at_most(_F(0.0), x)) / (exp(minus_absolute(x)) + _F(1.0))


# --- Transposition of 16 x 16 tiles in registers, between time-major and channels-last layout -----


_U = np.uintp


@intrinsic
def _turn(_context: Any, source: Any, at: Any, step: Any, target: Any, to: Any, leap: Any) -> Any:
    """target[to + c*leap + r] = source[at + r*step + c] for r, c in 0..15."""

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        def row(index: int, number: int) -> Any:
            start, gap = values[index + 1], values[index + 2]
            shift = builder.mul(gap, ir.Constant(gap.type, number))
            found = place(
                context, builder, sig.args[index], values[index], builder.add(start, shift)
            )
            return builder.bitcast(found, VECTOR.as_pointer())

        rows = [builder.load(row(0, number), align=4) for number in range(WIDTH)]
        for number, turned in enumerate(_turned(builder, rows)):
            builder.store(turned, row(3, number), align=4)
        return context.get_dummy_value()

    return types.void(source, at, step, target, to, leap), codegen


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """Transposes 16 rows: swaps off-diagonal blocks of 8 x 8, then 4 x 4, 2 x 2 and 1 x 1."""
    for half in (8, 4, 2, 1):
        low = [n if not n & half else WIDTH + n - half for n in range(WIDTH)]
        high = [n + half if not n & half else WIDTH + n for n in range(WIDTH)]
        masks = [ir.Constant(INTEGERS, order) for order in (low, high)]
        pairs = [(n, n + half) for n in range(WIDTH) if not n & half]
        for a, b in pairs:
            rows[a], rows[b] = (builder.shuffle_vector(rows[a], rows[b], mask) for mask in masks)
    return rows


@njit(forceinline=True)
def turn(
    source: Any, at: Any, step: Any, rows: Any, columns: Any, target: Any, to: Any, leap: Any
) -> None:
    """target[to + c*leap + r] = source[at + r*step + c] for r < rows, c < columns, at most 16."""
    if rows == WIDTH and columns == WIDTH:
        _turn(source, at, step, target, to, leap)
    else:
        for r in range(rows):
            for c in range(columns):
                target[to + c * leap + r] = source[at + r * step + c]
