"""A backward pass computes the gradients that are asked for, with the same bits, and no others.

The Triton kernels have the same tests in `test_triton.py`.
"""

from __future__ import annotations

import pytest
import torch

from robustcli.models.scan import base, cpu, reference, ss2d_scan
from tests.models.scan.cases import (
    SUBSETS,
    assert_gradients_asked_for,
    image,
    scan_by,
    sequence,
    ss2d_by,
)


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
def test_of_an_image(backend):
    assert_gradients_asked_for(backend, "ss2d_scan", image(2, 19, 5, 7, 3), SUBSETS)


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
def test_of_a_sequence_longer_than_a_chunk(backend):
    arguments = sequence(2, 38, 70, 3, groups=2)
    assert_gradients_asked_for(backend, "selective_scan", arguments, SUBSETS, delta_softplus=True)


def by_step():
    """Arguments of the operator `scan_cpu`, tensors only: 3 sequences of 9 steps, 20 channels."""
    u, delta, A, B, C, D, _, bias = sequence(3, 20, 9, 2).values()
    laid = (u.mT, delta.mT[None], A.mT[None], B.mT[None], C.mT[None], D[None], bias[None])
    order, offset = torch.arange(9, dtype=torch.int32)[None], torch.zeros(1, dtype=torch.int32)
    return [*(t.contiguous() for t in laid), order, offset]


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


@pytest.mark.parametrize("names", SUBSETS)
@pytest.mark.parametrize("function", ["ss2d_scan", "selective_scan"])
def test_no_array_is_made_for_what_nobody_wants(written, function, names):
    arguments = image(1, 3, 2, 2, 2) if function == "ss2d_scan" else sequence(1, 3, 4, 2)
    places = [name for name in arguments if name != "z"]
    for name in names:
        arguments["u" if name == "x" and "u" in arguments else name].requires_grad_()
    scan_by(cpu, function, **arguments).sum().backward()
    expected = [("x" if name == "u" else name) in names for name in places]
    assert [[t is not None for t in call] for call in written] == [expected]


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


# The check itself looks at `.grad` of tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("asked", [(0, 1, 3, 4), (0,), (5, 6)])
def test_operators_pass_torchs_own_checks(asked):
    tensors = by_step()
    given = [t.requires_grad_() if n in asked else t for n, t in enumerate(tensors)]
    torch.library.opcheck(torch.ops.robustcli.scan_cpu, (*given, True, True))
    y, state, borders = cpu.scan_cpu(*tensors, True, True)
    fixed = [t.detach() for t in (*tensors, borders)]
    ones = torch.ones_like(y.detach()), torch.ones_like(state.detach())
    torch.library.opcheck(
        torch.ops.robustcli.scan_cpu_backward, (*fixed, True, *ones, [n in asked for n in range(7)])
    )


@pytest.mark.parametrize("names", [("x", "delta", "B", "C"), ("x",), ("A", "D")])
def test_compiled_it_asks_for_the_same(names):
    compiled = torch.compile(ss2d_scan, fullgraph=True, backend="aot_eager")
    found = []
    for scan in (ss2d_scan, compiled):
        arguments = image(1, 8, 4, 4, 2)
        for name in names:
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
    tensors = [t.requires_grad_() if n < 7 else t for n, t in enumerate(by_step())]
    y, state, _ = cpu.scan_cpu(*tensors, True, True)
    (y if used == "y" else state).sum().backward()
    assert [t is None for t in given[0]] == [used == "state", used == "y"]


def test_gradients_are_spread_over_their_places():
    a, b = torch.ones(1), torch.zeros(1)
    asked = (False, True, False, False, False, False, True)
    assert base.spread([a, b], asked) == [None, a, None, None, None, None, b]
