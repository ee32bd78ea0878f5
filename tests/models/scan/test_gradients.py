"""A backward pass computes the gradients that are asked for, with the same bits, and no others.

The Triton kernels have the same tests in `test_triton.py`.
"""

from __future__ import annotations

import pytest
import torch

from robustcli.models.scan import base, cpu, ss2d_scan
from tests.models.scan.cases import (
    FEW_SUBSETS,
    SUBSETS,
    assert_gradients_asked_for,
    image,
    sequence,
    ss2d_by,
)


@pytest.fixture
def written(monkeypatch):
    """The arrays that the kernels of the backward pass were given to write, one list a call."""
    calls, work = [], cpu._work

    def spy(name, *rest):
        if name.startswith("backward"):
            calls.append(rest[-1])
        work(name, *rest)

    monkeypatch.setattr(cpu, "_work", spy)
    return calls


@pytest.mark.parametrize(
    ("function", "subsets"),
    [
        ("ss2d_scan", FEW_SUBSETS),
        ("selective_scan", FEW_SUBSETS[::2]),
        pytest.param("ss2d_scan", SUBSETS, marks=pytest.mark.slow),
        pytest.param("selective_scan", SUBSETS, marks=pytest.mark.slow),
    ],
)
def test_no_other_gradient_is_computed_and_none_changes_by_a_bit(written, function, subsets):
    if function == "ss2d_scan":
        arguments, flags = image(2, 19, 5, 7, 3), {}
    else:  # longer than a chunk
        arguments, flags = sequence(2, 38, 70, 3, groups=2), {"delta_softplus": True}
    assert_gradients_asked_for(cpu, function, arguments, subsets, **flags)
    places = ["x" if name == "u" else name for name in arguments if name != "z"]
    made = [[t is not None for t in call] for call in written]
    assert made == [[True] * 7, *([name in subset for name in places] for subset in subsets)]


@pytest.mark.parametrize("names", SUBSETS)
def test_states_are_kept_only_for_gradients_that_read_them(monkeypatch, names):
    kept, scan = [], cpu.scan_cpu

    def spy(*arguments):
        found = scan(*arguments)
        kept.append(found[2].numel() > 0)
        return found

    monkeypatch.setattr(cpu, "scan_cpu", spy)
    arguments = image(1, 3, 2, 2, 2)
    for name in names:
        arguments[name].requires_grad_()
    ss2d_by(cpu, **arguments)
    assert kept == [bool({"delta", "A", "C", "delta_bias"} & set(names))]


def test_compiled_it_asks_for_the_same():
    compiled = torch.compile(ss2d_scan, fullgraph=True, backend="aot_eager")
    found = []
    for scan in (ss2d_scan, compiled):
        arguments = image(1, 8, 4, 4, 2)
        for name in ("A", "D"):
            arguments[name].requires_grad_()
        scan(**arguments).sum().backward()
        found.append([t.grad for t in arguments.values()])
    for eager, traced in zip(*found, strict=True):
        assert (eager is None) == (traced is None)
        assert eager is None or torch.equal(eager, traced)


@pytest.mark.parametrize("used", ["y", "state"])
def test_autograd_fills_no_array_with_zeros_for_the_kept_states(monkeypatch, used):
    given = []
    monkeypatch.setattr(
        cpu, "grads_or_zeros",
        lambda x, A, *found: given.append(found) or base.grads_or_zeros(x, A, *found),
    )  # fmt: skip
    u, delta, A, B, C, D, _, bias = sequence(3, 20, 9, 2).values()
    by_step = (u.mT, delta.mT[None], A.mT[None], B.mT[None], C.mT[None], D[None], bias[None])
    tensors = [t.contiguous().requires_grad_() for t in by_step]
    y, state, _ = cpu.scan_cpu(*tensors, 1, 9, 0, 20, True, True)
    (y if used == "y" else state).sum().backward()
    assert [t is None for t in given[0]] == [used == "state", used == "y"]
