"""Numba types for the CPU kernels: vectors of 16 or 64 float32 values in SIMD registers.

Code with these types always uses SIMD instructions. LLVM's automatic vectoriser, in a loop over
this many arrays, either checks every pair of arrays for overlap at run time or leaves the loop
scalar. Processors with narrower registers split a vector into several registers; the results are
equal.

exp and softplus are chains of dependent instructions, each of which waits for several cycles for
the one before. `exp_of_four` and `softplus_of_four` therefore compute four independent vectors of
16 as one of 64, which the compiler splits into four chains whose instructions alternate.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

# mypy: allow-untyped-decorators, allow-subclassing-any


WIDTH = 16
FOUR = 4  # vectors whose exponentials are computed together
_INT, _BYTE = ir.IntType(32), ir.IntType(8)
VECTOR, INTEGERS = ir.VectorType(ir.FloatType(), WIDTH), ir.VectorType(_INT, WIDTH)
_ZEROS = ir.Constant(VECTOR, [0.0] * WIDTH)
_BLANK = ir.Constant(VECTOR, ir.Undefined)


class _Lanes(types.Type):
    """Numba type of a vector of `count` float32 values (lanes)."""

    def __init__(self, count: int) -> None:
        super().__init__(name=f"float32x{count}")
        self.count = count


LANES, WIDE = _Lanes(WIDTH), _Lanes(FOUR * WIDTH)


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.FloatType(), kind.count))


def _indices(numbers: Sequence[int]) -> Any:
    """A constant vector of 32-bit integers, such as the order of a shuffle."""
    return ir.Constant(ir.VectorType(_INT, len(numbers)), list(numbers))


def _spread(builder: Any, value: Any, count: int = WIDTH) -> Any:
    """Broadcasts a scalar `value` to `count` lanes; returns vectors unchanged."""
    if isinstance(value.type, ir.VectorType):
        return value
    blank = ir.Constant(ir.VectorType(ir.FloatType(), count), ir.Undefined)
    first = builder.insert_element(blank, value, _INT(0))
    return builder.shuffle_vector(first, blank, _indices([0] * count))


def _define(symbol: Callable[[Any, Any], Any], instruction: str) -> None:
    """Defines the operator `symbol` for two vectors, and for a vector and a scalar."""
    kinds, scalar = (LANES, WIDE), types.float32
    pairs = [pair for v in kinds for pair in ((v, v), (v, scalar), (scalar, v))]
    results = [kind for kind in kinds for _ in range(3)]
    cases = {"cases": [signature(v, *pair) for v, pair in zip(results, pairs, strict=True)]}
    infer_global(symbol)(type(f"_Lanes_{instruction}", (ConcreteTemplate,), cases))

    def emit(_: Any, builder: Any, sig: Any, values: Any) -> Any:
        left, right = (_spread(builder, value, sig.return_type.count) for value in values)
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
            function, [where, _INT(0), _INT(2), _INT(1)]
        )  # for reading, into all cache levels, data
        return context.get_dummy_value()

    return types.void(array, at), codegen


@intrinsic
def at_least(_context: Any, limit: Any, value: Any) -> Any:
    """Maximum of each lane and the scalar `limit`; NaN remains NaN."""
    return value(limit, value), _chooser(">")


@intrinsic
def at_most(_context: Any, limit: Any, value: Any) -> Any:
    """Minimum of each lane and the scalar `limit`; NaN remains NaN."""
    return value(limit, value), _chooser("<")


def _chooser(relation: str) -> Callable[..., Any]:
    def codegen(_: Any, builder: Any, sig: Any, values: Any) -> Any:
        limit, lanes = (_spread(builder, value, sig.return_type.count) for value in values)
        return builder.select(builder.fcmp_ordered(relation, limit, lanes), limit, lanes)

    return codegen


@intrinsic
def one_if_positive(_context: Any, value: Any, other: Any) -> Any:
    """1 in each lane where `value` is above 0, else the lane of `other`."""

    def codegen(_: Any, builder: Any, sig: Any, values: Any) -> Any:
        kind = values[0].type
        zeros, ones = (ir.Constant(kind, [number] * kind.count) for number in (0.0, 1.0))
        return builder.select(builder.fcmp_ordered(">", values[0], zeros), ones, values[1])

    return value(value, other), codegen


@intrinsic
def minus_absolute(_context: Any, value: Any) -> Any:
    """-|x| of each lane."""

    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        kind = values[0].type
        signs = _indices([-(2**31)] * kind.count)
        return builder.bitcast(builder.or_(builder.bitcast(values[0], signs.type), signs), kind)

    return value(value), codegen


@intrinsic
def _power_of_two(_context: Any, value: Any) -> Any:
    """2**n of each lane, whose value is `_MAGIC` + n with an integer n from -126 to 127.

    The lowest bits of such a float32 are 127 + n, which is the exponent field of 2**n.
    """

    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        kind = values[0].type
        shift = _indices([23] * kind.count)
        return builder.bitcast(builder.shl(builder.bitcast(values[0], shift.type), shift), kind)

    return value(value), codegen


@intrinsic
def multiply_add(_context: Any, left: Any, right: Any, added: Any) -> Any:
    """Computes left * right + added for each lane, fused if the processor supports this.

    With the operators * and +, LLVM decides about fusing by the other uses of the product.
    """
    vector = next(kind for kind in (left, right, added) if isinstance(kind, _Lanes))

    def codegen(_: Any, builder: Any, sig: Any, values: Any) -> Any:
        count = sig.return_type.count
        operands = [_spread(builder, value, count) for value in values]
        kind = ir.FunctionType(operands[0].type, [operands[0].type] * 3)
        name = f"llvm.fmuladd.v{count}f32"
        return builder.call(builder.module.declare_intrinsic(name, (), kind), operands)

    return vector(left, right, added), codegen


@intrinsic
def _joined(_context: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """One vector of 64 lanes from four of 16."""

    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        order = _indices(range(2 * WIDTH))
        halves = [builder.shuffle_vector(*values[n : n + 2], order) for n in (0, 2)]
        return builder.shuffle_vector(*halves, _indices(range(4 * WIDTH)))

    return WIDE(a, b, c, d), codegen


@intrinsic
def _split(_context: Any, value: Any) -> Any:
    """The four vectors of 16 lanes of one of 64."""
    result = types.UniTuple(LANES, FOUR)

    def codegen(context: Any, builder: Any, __: Any, values: Any) -> Any:
        parts = [
            builder.shuffle_vector(
                values[0], values[0], _indices(range(n * WIDTH, n * WIDTH + WIDTH))
            )
            for n in range(FOUR)
        ]
        return context.make_tuple(builder, result, parts)

    return result(value), codegen


# --- exp, softplus and sigmoid of vectors ---------------------------------------------------------
#
# The functions of the C library are scalar. These are polynomials without branches: float32,
# relative error below 4e-7, NaN remains NaN.


_F = np.float32
_LOG2E, _LN2_HIGH, _LN2_LOW = _F(1.44269504), _F(0.693359375), _F(-2.12194440e-4)
_LOWEST, _HIGHEST = _F(-87.0), _F(88.0)
# 1.5 * 2**23 + 127: adding it rounds to the nearest integer, see `_power_of_two`.
_MAGIC = _F(12583039.0)
# (e**r - 1 - r) / r**2 for |r| <= log(2)/2: minimax for e**r, relative error 3e-9.
_E0, _E1, _E2 = _F(4.999999345e-01), _F(1.666652063e-01), _F(4.166838805e-02)
_E3, _E4 = _F(8.368716907e-03), _F(1.381459859e-03)
# log(1 + t) / t for 0 <= t <= 1: minimax, relative error 3e-8.
_P0, _P1, _P2 = _F(9.999999699e-01), _F(-4.999949311e-01), _F(3.331909633e-01)
_P3, _P4, _P5 = _F(-2.484297918e-01), _F(1.910599660e-01), _F(-1.366322649e-01)
_P6, _P7, _P8 = _F(7.822574285e-02), _F(-2.950511867e-02), _F(5.232665842e-03)


@njit(forceinline=True)
def exp(x: Any) -> Any:
    """e**x, for x clamped to [-87, 88]; e**-87 is 1.6e-38."""
    return _exp_above_lowest(at_most(_HIGHEST, x))


@njit(forceinline=True)
def _exp_above_lowest(x: Any) -> Any:
    """e**x for x up to 88, clamped to -87."""
    x = at_least(_LOWEST, x)
    shifted = multiply_add(x, _LOG2E, _MAGIC)
    whole = shifted - _MAGIC
    r = multiply_add(whole, -_LN2_LOW, multiply_add(whole, -_LN2_HIGH, x))
    p = multiply_add(multiply_add(_E4, r, _E3), r, _E2)
    p = multiply_add(multiply_add(p, r, _E1), r, _E0)
    return multiply_add(p, r * r, r + _F(1.0)) * _power_of_two(shifted)


@njit(forceinline=True)
def _log_of_one_plus(t: Any, added: Any) -> Any:
    """log(1 + t) + added, for 0 <= t <= 1."""
    p = multiply_add(multiply_add(multiply_add(_P8, t, _P7), t, _P6), t, _P5)
    p = multiply_add(multiply_add(multiply_add(p, t, _P4), t, _P3), t, _P2)
    return multiply_add(multiply_add(multiply_add(p, t, _P1), t, _P0), t, added)


@njit(forceinline=True)
def softplus(x: Any) -> Any:
    """log(1 + e**x), as max(x, 0) + log(1 + e**-|x|): also accurate for small values."""
    return _log_of_one_plus(_exp_above_lowest(minus_absolute(x)), at_least(_F(0.0), x))


@njit(forceinline=True)
def softplus_and_slope(x: Any) -> Any:
    """log(1 + e**x), and its derivative 1 / (1 + e**-x), as e**min(x, 0) / (1 + e**-|x|)."""
    t = _exp_above_lowest(minus_absolute(x))
    return _log_of_one_plus(t, at_least(_F(0.0), x)), one_if_positive(x, t) / (t + _F(1.0))


# --- The same for four vectors at a time ----------------------------------------------------------
#
# Only registers of 512 bits are numerous enough for four chains; with others, the vectors are
# computed one after the other, and each is several registers, thus several chains, by itself.


def _has_wide_registers() -> bool:
    """Whether numba compiles for a processor with AVX-512."""
    features = config.CPU_FEATURES
    if features is None:
        features = "" if config.CPU_NAME == "generic" else get_host_cpu_features()
    return "+avx512f" in features


_JOINS = _has_wide_registers()


@njit(forceinline=True)
def exp_of_four(a: Any, b: Any, c: Any, d: Any) -> Any:
    """`exp` of four vectors."""
    if _JOINS:
        return _split(exp(_joined(a, b, c, d)))
    return exp(a), exp(b), exp(c), exp(d)


@njit(forceinline=True)
def softplus_of_four(a: Any, b: Any, c: Any, d: Any) -> Any:
    """`softplus` of four vectors."""
    if _JOINS:
        return _split(softplus(_joined(a, b, c, d)))
    return softplus(a), softplus(b), softplus(c), softplus(d)


@njit(forceinline=True)
def softplus_and_slope_of_four(a: Any, b: Any, c: Any, d: Any) -> Any:
    """`softplus_and_slope` of four vectors: four values, then four slopes."""
    if _JOINS:
        value, slope = softplus_and_slope(_joined(a, b, c, d))
        return _split(value), _split(slope)
    (av, ad), (bv, bd) = softplus_and_slope(a), softplus_and_slope(b)
    (cv, cd), (dv, dd) = softplus_and_slope(c), softplus_and_slope(d)
    return (av, bv, cv, dv), (ad, bd, cd, dd)


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
