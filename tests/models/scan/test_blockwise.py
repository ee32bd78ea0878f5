"""The blockwise scan against the reference: values, gradients, long sequences, traced graphs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.models.scan import blockwise, cpu, dispatch, reference, selective_scan, ss2d_scan
from robustcli.models.scan.dispatch import scans_for_graphs
from tests.models.scan.cases import (
    assert_close,
    assert_like_reference,
    image,
    leaves,
    selective_by,
    sequence,
    ss2d_by,
)

QUICK = settings(max_examples=12, deadline=None)
LENGTHS = (1, 2, 7, 8, 9, 63, 64, 65, 130)
"""Around a block and around a block of blocks."""


@QUICK
@given(
    batch=st.sampled_from([1, 3]), groups=st.sampled_from([0, 1, 2]), per_group=st.integers(2, 5),
    length=st.sampled_from(LENGTHS[2:]), states=st.sampled_from([1, 3]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_sequence(batch, groups, per_group, length, states, seed):
    channels = max(1, groups) * per_group
    arguments = sequence(batch, channels, length, states, groups=groups, seed=seed)
    assert_like_reference(blockwise, "selective_scan", arguments, 5e-6, delta_softplus=True)


@QUICK
@given(
    batch=st.sampled_from([1, 2]), channels=st.integers(2, 5), height=st.integers(2, 9),
    width=st.integers(2, 9), states=st.sampled_from([1, 3]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_image(batch, channels, height, width, states, seed):
    arguments = image(batch, channels, height, width, states, seed)
    assert_like_reference(blockwise, "ss2d_scan", arguments, 5e-6)


def test_directions_one_by_one_give_the_same(monkeypatch: pytest.MonkeyPatch):
    arguments = image(2, 3, 5, 4, 2)
    together = ss2d_by(blockwise, **arguments)
    monkeypatch.setattr(blockwise, "_AT_ONCE", 1)
    assert_close("y", ss2d_by(blockwise, **arguments), together.double(), 1e-6)


def test_last_state_of_every_length():
    for length in LENGTHS:
        arguments = sequence(2, 4, length, 3, groups=2)
        assert_like_reference(blockwise, "selective_scan", arguments, 5e-6, delta_softplus=True)
        _, state = selective_by(blockwise, **arguments, return_last_state=True)
        exact = leaves(arguments, torch.float64)
        _, expected = selective_by(reference, **exact, return_last_state=True)
        assert_close("state", state, expected, 5e-6)


@pytest.mark.parametrize("rate", [1e-4, 1.0, 300.0])
def test_decays_of_any_speed_on_a_long_sequence(rate):
    """Where exp of a cumulative sum overflows: a state that forgets at once, 3,000 steps long."""
    arguments = sequence(1, 2, 3_000, 2, options=False)
    arguments["A"] = arguments["A"] * rate
    y = selective_by(blockwise, **arguments, delta_softplus=True)
    exact = {k: None if t is None else t.double() for k, t in arguments.items()}
    expected = selective_by(reference, **exact, delta_softplus=True)
    # 5.4e-6 with the slowest decay, where the rounding of products near 1 adds up; the loop 1.4e-6.
    assert_close("y", y, expected, 2e-5)


def test_a_traced_graph_serves_every_batch_without_kernels(recwarn):
    def network(x):
        delta, B = x[:, None].expand(-1, 4, -1, -1, -1), x[:, None, :3].expand(-1, 4, -1, -1, -1)
        y = ss2d_scan(x, delta, A, B, B)
        u = y.flatten(2)
        return selective_scan(u, u, A[:5], u[:, :3], u[:, :3], delta_softplus=True)

    A = -torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) - 0.05
    generator = torch.Generator().manual_seed(1)
    with scans_for_graphs():
        traced = torch.jit.trace(network, torch.rand(2, 5, 4, 6, generator=generator))
    assert "robust::" not in str(traced.graph)
    for batch in (1, 2, 3):
        x = torch.rand(batch, 5, 4, 6, generator=generator)
        assert_close("y", traced(x), network(x), 5e-6)


def test_graphs_choose_it_whatever_is_forced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    device = torch.device("cpu")
    with scans_for_graphs():
        assert dispatch.choose_backend(device, torch.float32) == "blockwise"
    assert dispatch.choose_backend(device, torch.float32) == "reference"
    monkeypatch.setenv(dispatch.VARIABLE, "blockwise")
    arguments = image(1, 4, 3, 3, 2)
    assert torch.equal(ss2d_scan(**arguments), ss2d_by(blockwise, **arguments))
    assert not torch.equal(ss2d_by(cpu, **arguments), torch.zeros(1))
