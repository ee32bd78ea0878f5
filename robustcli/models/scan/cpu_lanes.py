"""Numba types for the CPU kernels: vectors of 16 or 64 float32 values in SIMD registers.

Code with these types always uses SIMD instructions. LLVM's automatic vectoriser, in a loop over
this many arrays, either checks every pair of arrays for overlap at run time or leaves the loop
scalar. Processors with narrower registers split a vector into several registers; the results are
equal.

exp and softplus are chains of dependent instructions, each of which waits for several cycles for
the one before. A vector of 64 is split by the compiler into four chains whose instructions
alternate.
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
FOUR = 4  # vectors of 16 in one of 64
_INT, _BYTE = ir.IntType(32), ir.IntType(8)
VECTOR, INTEGERS = ir.VectorType(ir.FloatType(), WIDTH), ir.VectorType(_INT, WIDTH)
_ZEROS = ir.Constant(VECTOR, [0.0] * WIDTH)
_BLANK = ir.Constant(VECTOR, ir.Undefined)

# Decorators of the functions that kernels call. Wrappers for calls from Python, which are not
# needed, would take a sixth of the compilation time.
_OPTIONS = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inlined = njit(forceinline=True, **_OPTIONS)
not_inlined = njit(**_OPTIONS)


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
        pointer = place(context, builder, sig.args[0], *values)
        vector = builder.load(builder.bitcast(pointer, VECTOR.as_pointer()))
        vector.align = 4
        return vector

    return LANES(array, at), codegen


@intrinsic
def _load_part(_context: Any, array: Any, at: Any, count: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        pointer = place(context, builder, sig.args[0], *values[:2])
        buffer = cgutils.alloca_once(builder, VECTOR)
        builder.store(_ZEROS, buffer)
        _copy(builder, pointer, builder.bitcast(buffer, ir.FloatType().as_pointer()), values[2])
        return builder.load(buffer)

    return LANES(array, at, count), codegen


@intrinsic
def _store(_context: Any, array: Any, at: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        pointer = place(context, builder, sig.args[0], *values[:2])
        builder.store(values[2], builder.bitcast(pointer, VECTOR.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(array, at, value), codegen


@intrinsic
def _store_part(_context: Any, array: Any, at: Any, count: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        pointer = place(context, builder, sig.args[0], *values[:2])
        buffer = cgutils.alloca_once(builder, VECTOR)
        builder.store(values[3], buffer)
        _copy(builder, builder.bitcast(buffer, ir.FloatType().as_pointer()), pointer, values[2])
        return context.get_dummy_value()

    return types.void(array, at, count, value), codegen


@inlined
def load(array: Any, at: Any, count: Any) -> Any:
    """Loads `count` floats, starting with array[at]; remaining lanes are zero."""
    return _load(array, at) if count == WIDTH else _load_part(array, at, count)


@inlined
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


def _prefetch(builder: Any, pointer: Any) -> None:
    """Generates a prefetch for reading, into the level-2 cache.

    The columns of an image can lie so that all their pixels compete for a few sets of the level-1
    cache, which would drop them before they are used.
    """
    pointer = builder.bitcast(pointer, _BYTE.as_pointer())
    shape = ir.FunctionType(ir.VoidType(), [pointer.type, _INT, _INT, _INT])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], shape)
    builder.call(function, [pointer, _INT(0), _INT(2), _INT(1)])


@intrinsic
def prefetch(_context: Any, array: Any, at: Any) -> Any:
    """Prefetches the cache line of array[at]."""

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        _prefetch(builder, place(context, builder, sig.args[0], *values))
        return context.get_dummy_value()

    return types.void(array, at), codegen


@intrinsic
def multiply_add(_context: Any, left: Any, right: Any, added: Any) -> Any:
    """Computes left * right + added for each lane, fused if the processor supports this.

    With the operators * and +, LLVM decides about fusing by the other uses of the product.
    """

    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return _fused(builder, *values)

    return LANES(left, right, added), codegen


def _fused(builder: Any, *values: Any) -> Any:
    """Generates code for a * b + c; numbers and scalars are broadcast."""
    vector = next(v.type for v in values if isinstance(getattr(v, "type", None), ir.VectorType))
    operands = [
        _constant(vector, v) if isinstance(v, float) else _spread(builder, v, vector.count)
        for v in values
    ]
    kind = ir.FunctionType(vector, [vector] * 3)
    name = f"llvm.fmuladd.v{vector.count}f32"
    return builder.call(builder.module.declare_intrinsic(name, (), kind), operands)


def _constant(kind: Any, number: float) -> Any:
    return ir.Constant(kind, [number] * kind.count)


def _polynomial(builder: Any, coefficients: Sequence[float], x: Any) -> Any:
    """Generates code for a polynomial; coefficients by ascending power."""
    *lower, before, last = coefficients
    value = _fused(builder, last, x, before)
    for coefficient in reversed(lower):
        value = _fused(builder, value, x, coefficient)
    return value


def _joined(builder: Any, vectors: Sequence[Any]) -> Any:
    """Generates code that joins one or four vectors of 16 lanes to one vector."""
    if len(vectors) == 1:
        return vectors[0]
    order = _indices(range(2 * WIDTH))
    halves = [builder.shuffle_vector(*vectors[n : n + 2], order) for n in (0, 2)]
    return builder.shuffle_vector(*halves, _indices(range(4 * WIDTH)))


def _parts(builder: Any, value: Any) -> list[Any]:
    """Generates code for the vectors of 16 lanes that `value` consists of."""
    if value.type == VECTOR:
        return [value]
    orders = (range(n, n + WIDTH) for n in range(0, value.type.count, WIDTH))
    return [builder.shuffle_vector(value, value, _indices(order)) for order in orders]


# --- exp and softplus of vectors ------------------------------------------------------------------
#
# The functions of the C library are scalar. These are polynomials without branches: float32,
# relative error below 4e-7, NaN remains NaN. They generate the code of LLVM directly: as functions
# that numba compiles, they would take most of the time that the kernels take to compile.


_LOG2E, _LN2_HIGH, _LN2_LOW = 1.44269504, 0.693359375, -2.12194440e-4
_LOWEST, _HIGHEST = -87.0, 88.0
_MAGIC = 12583039.0  # 1.5 * 2**23 + 127: adding it rounds to the nearest integer, see `_exp`
# (e**r - 1 - r) / r**2 for |r| <= log(2)/2: minimax for e**r, relative error 3e-9.
_EXP = (4.999999345e-01, 1.666652063e-01, 4.166838805e-02, 8.368716907e-03, 1.381459859e-03)
# log(1 + t) / t for 0 <= t <= 1: minimax, relative error 3e-8.
_LOG = (
    9.999999699e-01, -4.999949311e-01, 3.331909633e-01, -2.484297918e-01, 1.910599660e-01,
    -1.366322649e-01, 7.822574285e-02, -2.950511867e-02, 5.232665842e-03,
)  # fmt: skip


def _limited(builder: Any, relation: str, limit: float, x: Any) -> Any:
    """Generates code for the maximum (">") or minimum ("<") of x and a limit; NaN remains NaN."""
    bound = _constant(x.type, limit)
    return builder.select(builder.fcmp_ordered(relation, bound, x), bound, x)


def _exp(builder: Any, x: Any) -> Any:
    """Generates code for e**x, for x up to 88, clamped to -87."""
    flags, integers = ("contract",), ir.VectorType(_INT, x.type.count)
    x = _limited(builder, ">", _LOWEST, x)
    shifted = _fused(builder, x, _LOG2E, _MAGIC)
    exponent = builder.fsub(shifted, _constant(x.type, _MAGIC), flags=flags)
    r = _fused(builder, exponent, -_LN2_LOW, _fused(builder, exponent, -_LN2_HIGH, x))
    power = _fused(
        builder,
        _polynomial(builder, _EXP, r),
        builder.fmul(r, r, flags=flags),
        builder.fadd(r, _constant(x.type, 1.0), flags=flags),
    )
    # The lowest bits of `shifted` are 127 + exponent, which is the exponent field of 2**exponent.
    shift = _indices([23] * x.type.count)
    scale = builder.bitcast(builder.shl(builder.bitcast(shifted, integers), shift), x.type)
    return builder.fmul(power, scale, flags=flags)


def _softplus(builder: Any, x: Any) -> tuple[Any, Any]:
    """Generates code for log(1 + e**x) and its derivative 1 / (1 + e**-x).

    They are max(x, 0) + log(1 + t) and e**min(x, 0) / (1 + t), with t = e**-|x|: also accurate for
    small values. LLVM removes the code of a result that is not used.
    """
    integers = ir.VectorType(_INT, x.type.count)
    signs = _indices([-(2**31)] * x.type.count)
    below = builder.bitcast(builder.or_(builder.bitcast(x, integers), signs), x.type)
    t = _exp(builder, below)
    value = _fused(builder, _polynomial(builder, _LOG, t), t, _limited(builder, ">", 0.0, x))
    zeros, ones = _constant(x.type, 0.0), _constant(x.type, 1.0)
    above = builder.select(builder.fcmp_ordered(">", x, zeros), ones, t)
    return value, builder.fdiv(above, builder.fadd(t, ones), flags=("contract",))


def _has_wide_registers() -> bool:
    """Whether numba compiles for a processor with AVX-512."""
    features = config.CPU_FEATURES
    if features is None:
        features = "" if config.CPU_NAME == "generic" else get_host_cpu_features()
    return "+avx512f" in features


# Only registers of 512 bits are numerous enough for four chains. With others, the vectors are
# computed one after the other; each consists of several registers, thus of several chains.
_CHAINS = _has_wide_registers()


def _by_chains(function: Callable[[Any, Any], Any], builder: Any, x: Any) -> Any:
    """Generates code for `function`, of all lanes together or of each vector of 16."""
    if _CHAINS:
        return function(builder, x)
    return _joined(builder, [function(builder, part) for part in _parts(builder, x)])


@intrinsic
def exp(_context: Any, x: Any) -> Any:
    """e**x, for x clamped to [-87, 88]; e**-87 is 1.6e-38."""

    def clamped(builder: Any, x: Any) -> Any:
        return _exp(builder, _limited(builder, "<", _HIGHEST, x))

    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return _by_chains(clamped, builder, values[0])

    return x(x), codegen


@intrinsic
def softplus(_context: Any, x: Any) -> Any:
    """log(1 + e**x), also accurate for small values."""

    def codegen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return _by_chains(lambda *args: _softplus(*args)[0], builder, values[0])

    return x(x), codegen


@intrinsic
def softplus_and_slope(_context: Any, x: Any) -> Any:
    """log(1 + e**x), and its derivative 1 / (1 + e**-x)."""
    result = types.UniTuple(x, 2)

    def codegen(context: Any, builder: Any, __: Any, values: Any) -> Any:
        if _CHAINS:
            return context.make_tuple(builder, result, _softplus(builder, values[0]))
        pairs = [_softplus(builder, part) for part in _parts(builder, values[0])]
        vectors = [_joined(builder, parts) for parts in zip(*pairs, strict=True)]
        return context.make_tuple(builder, result, vectors)

    return result(x), codegen


# --- Several vectors at several places ------------------------------------------------------------
#
# A group is one or four units: a unit is 16 channels in one step. Tuples of one or four integers
# hold their first channels, their steps, or their places in an array. Values of a group are one
# vector of 16 or 64 lanes.


def _items(builder: Any, tuple_value: Any) -> list[Any]:
    return [builder.extract_value(tuple_value, n) for n in range(tuple_value.type.count)]


def _vector_of(group: Any) -> Any:
    return LANES if group.count == 1 else WIDE


def _vector_at(builder: Any, context: Any, kind: Any, array: Any, at: Any) -> Any:
    return builder.bitcast(place(context, builder, kind, array, at), VECTOR.as_pointer())


@intrinsic
def units(_context: Any, group: Any, i: Any, t: Any, padded: Any) -> Any:
    """First channels and steps of a group that starts with channel i of step t, and what follows.

    Units go through the `padded` channels of a step, then to the next step. Returns the channels,
    the steps, and channel and step of the unit after the group. Only the length of `group` counts.
    """
    number = types.uintp
    channels = types.UniTuple(number, group.count)
    result = types.Tuple((channels, channels, number, number))

    def codegen(context: Any, builder: Any, __: Any, values: Any) -> Any:
        _, i, t, padded = values
        positions: tuple[list[Any], list[Any]] = ([], [])
        for _n in range(group.count):
            positions[0].append(i)
            positions[1].append(t)
            after = builder.add(i, ir.Constant(i.type, WIDTH))
            last = builder.icmp_unsigned("==", after, padded)
            i = builder.select(last, ir.Constant(i.type, 0), after)
            t = builder.add(t, builder.zext(last, t.type))
        tuples = [context.make_tuple(builder, channels, numbers) for numbers in positions]
        return context.make_tuple(builder, result, [*tuples, i, t])

    return result(group, number, number, number), codegen


def _of_each(compute: Callable[..., Any]) -> Callable[..., Any]:
    """The code of `compute` for each item of the tuples among the arguments."""

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        count = sig.return_type.count
        lists = [
            _items(builder, v) if isinstance(kind, types.UniTuple) else [v] * count
            for kind, v in zip(sig.args, values, strict=True)
        ]
        results = [compute(context, builder, sig, *items) for items in zip(*lists, strict=True)]
        return context.make_tuple(builder, sig.return_type, results)

    return codegen


@intrinsic
def looked_up(_context: Any, order: Any, t: Any) -> Any:
    """The value of the int32 array `order`, at least 0, for each step of t."""

    def compute(context: Any, builder: Any, sig: Any, order: Any, t: Any) -> Any:
        pixel = builder.load(place(context, builder, sig.args[0], order, t))
        return builder.zext(pixel, t.type)

    return t(order, t), _of_each(compute)


@intrinsic
def places(_context: Any, base: Any, p: Any, stride: Any, i: Any) -> Any:
    """The places base + p * stride + i of the units."""

    def compute(_: Any, builder: Any, __: Any, base: Any, p: Any, stride: Any, i: Any) -> Any:
        return builder.add(builder.add(base, builder.mul(p, stride)), i)

    return p(types.uintp, p, types.uintp, i), _of_each(compute)


@intrinsic
def later(_context: Any, t: Any, steps: Any, last: Any) -> Any:
    """The step `steps` after each t, at most `last`."""

    def compute(_: Any, builder: Any, __: Any, t: Any, steps: Any, last: Any) -> Any:
        after = builder.add(t, steps)
        return builder.select(builder.icmp_unsigned("<", after, last), after, last)

    return t(t, types.uintp, types.uintp), _of_each(compute)


@intrinsic
def load_group(_context: Any, array: Any, at: Any) -> Any:
    """The vectors of a group, whose first floats are at the places `at`."""

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        vectors = [
            builder.load(_vector_at(builder, context, sig.args[0], values[0], item), align=4)
            for item in _items(builder, values[1])
        ]
        return _joined(builder, vectors)

    return _vector_of(at)(array, at), codegen


@intrinsic
def store_group(_context: Any, array: Any, at: Any, value: Any) -> Any:
    """The inverse of `load_group`."""

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        parts = _parts(builder, values[2])
        for item, part in zip(_items(builder, values[1]), parts, strict=True):
            builder.store(part, _vector_at(builder, context, sig.args[0], values[0], item), align=4)
        return context.get_dummy_value()

    return types.void(array, at, value), codegen


@intrinsic
def recur(
    _context: Any, decay: Any, du: Any, B: Any, at_b: Any, source: Any, at: Any, target: Any,
    to: Any,
) -> Any:  # fmt: skip
    """New states decay * state + du * B of a group, one unit after the other.

    A state is read from source[at] and written to target[to], where the next unit may read it.
    """

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        decays, dus = (_parts(builder, value) for value in values[:2])
        spots = [_items(builder, values[n]) for n in (3, 5, 7)]
        states = []
        for decay, du, b, source, target in zip(decays, dus, *spots, strict=True):
            weight = builder.load(place(context, builder, sig.args[2], values[2], b))
            added = builder.fmul(du, _spread(builder, weight), flags=("contract",))
            pointer = _vector_at(builder, context, sig.args[4], values[4], source)
            state = _fused(builder, decay, builder.load(pointer, align=4), added)
            pointer = _vector_at(builder, context, sig.args[6], values[6], target)
            builder.store(state, pointer, align=4)
            states.append(state)
        return _joined(builder, states)

    return decay(decay, du, B, at_b, source, at, target, to), codegen


@intrinsic
def broadcast(_context: Any, array: Any, at: Any) -> Any:
    """One float for each unit of a group, from the places `at`, in all lanes of the unit."""

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        vectors = [
            _spread(builder, builder.load(place(context, builder, sig.args[0], values[0], item)))
            for item in _items(builder, values[1])
        ]
        return _joined(builder, vectors)

    return _vector_of(at)(array, at), codegen


@intrinsic
def prefetch_group(_context: Any, array: Any, at: Any) -> Any:
    """Prefetches the cache lines of the places `at`."""

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        for item in _items(builder, values[1]):
            _prefetch(builder, place(context, builder, sig.args[0], values[0], item))
        return context.get_dummy_value()

    return types.void(array, at), codegen


# --- Transposition of 16 x 16 tiles in registers, between time-major and channels-last layout -----


_U = np.uintp


@intrinsic
def _turn(_context: Any, source: Any, at: Any, step: Any, target: Any, to: Any, leap: Any) -> Any:
    """target[to + c*leap + r] = source[at + r*step + c] for r, c in 0..15."""

    def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        def row(index: int, number: int) -> Any:
            start, gap = values[index + 1], values[index + 2]
            shift = builder.mul(gap, ir.Constant(gap.type, number))
            pointer = place(
                context, builder, sig.args[index], values[index], builder.add(start, shift)
            )
            return builder.bitcast(pointer, VECTOR.as_pointer())

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


@inlined
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
