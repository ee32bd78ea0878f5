"""Tiles of 16 x 16 turned between rows of time and rows of channels, in registers."""

# mypy: allow-untyped-decorators
from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from robustcli.models.scan.cpu_lanes import INTEGERS, VECTOR, WIDTH, place

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
    """The 16 rows as columns: swaps blocks off the diagonal, of 8 x 8 first, of 1 x 1 last."""
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
