"""The CPU kernels against the reference: any shape, layout and value; as torch operators."""

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.models.scan import cpu, reference, selective_scan, ss2d_scan
from tests.models.scan.cases import (
    assert_close,
    assert_like_reference,
    image,
    leaves,
    scan_by,
    selective_by,
    sequence,
    ss2d_by,
)

QUICK = settings(max_examples=25, deadline=None)


@QUICK
@given(
    batch=st.sampled_from([1, 2, 5]),
    groups=st.sampled_from([0, 1, 2, 3]),
    per_group=st.integers(1, 23),
    length=st.integers(1, 70),
    states=st.sampled_from([1, 2, 3, 8, 16, 17, 32]),
    softplus=st.booleans(),
    options=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_sequence(batch, groups, per_group, length, states, softplus, options, seed):
    channels = max(1, groups) * per_group
    arguments = sequence(batch, channels, length, states, groups=groups, seed=seed, options=options)
    if not softplus:  # a negative step would grow without bound
        arguments["delta"] = arguments["delta"].abs() * 0.1
        arguments["delta_bias"] = None
    assert_like_reference(cpu, "selective_scan", arguments, 5e-6, delta_softplus=softplus)


@QUICK
@given(
    batch=st.sampled_from([1, 3]), channels=st.integers(1, 80), height=st.integers(1, 9),
    width=st.integers(1, 9), states=st.sampled_from([1, 2, 16]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_image(batch, channels, height, width, states, seed):
    assert_like_reference(
        cpu, "ss2d_scan", image(batch, channels, height, width, states, seed), 5e-6
    )


@pytest.mark.parametrize(
    ("channels", "length"), [(64, 300), pytest.param(65, 2050, marks=pytest.mark.slow), (192, 129)]
)
def test_lengths_beyond_one_chunk(channels, length):
    assert_like_reference(cpu, "selective_scan", sequence(1, channels, length, 8), 1e-5,
                          delta_softplus=True)  # fmt: skip


def test_batch_of_64():
    assert_like_reference(cpu, "ss2d_scan", image(64, 4, 3, 3, 1), 5e-6)


def test_layouts_do_not_matter():
    arguments = image(2, 24, 5, 6, 2)
    expected = ss2d_by(cpu, **arguments)
    arguments["x"] = arguments["x"].to(memory_format=torch.channels_last)
    arguments["delta"] = (
        arguments["delta"].permute(1, 0, 3, 4, 2).contiguous().permute(1, 0, 4, 2, 3)
    )
    arguments["B"] = torch.cat([arguments["B"]] * 2, 2)[:, :, :2]
    assert torch.equal(ss2d_by(cpu, **arguments), expected)


@pytest.mark.parametrize(
    ("groups", "per_group", "length", "N"),
    [(1, 20, 37, 16), (2, 24, 65, 16), (2, 5, 3, 16), (1, 70, 300, 1), (3, 17, 130, 3)],
)
def test_tokens_and_rows_of_time_give_the_same_bits(groups, per_group, length, N):
    """What lies with the channels of a step side by side is read so, by other kernels."""
    torch.manual_seed(0)
    D = groups * per_group
    tensors = [torch.randn(2, length, D), torch.randn(2, length, D), -torch.rand(D, N),
               torch.randn(2, groups, N, length), torch.randn(2, groups, N, length),
               torch.randn(D), torch.randn(D)]  # fmt: skip
    weights = torch.randn(2, D, length)
    results = []
    for rows in (False, True):
        u, delta, A, B, C, skip, bias = arguments = leaves_of(tensors)
        turned = [t.transpose(1, 2) for t in (u, delta)]
        turned = [t.contiguous() for t in turned] if rows else turned
        y, state = selective_scan(*turned, A, B, C, skip, None, bias, True, True)
        ((y * weights).sum() + state.sum()).backward()
        results.append([y, state, *(tensor.grad for tensor in arguments)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def leaves_of(tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("function", ["ss2d_scan", "selective_scan"])
def test_threads_do_not_change_a_bit(function):
    # Too much for the caller alone.
    if function == "ss2d_scan":
        arguments, flags = image(2, 100, 9, 9, 4), {}
    else:
        arguments, flags = sequence(2, 100, 90, 4, groups=2), {"delta_softplus": True}
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            given_now = leaves(arguments)
            y = scan_by(cpu, function, **given_now, **flags)
            y.sum().backward()
            found.append([y.detach(), *(tensor.grad for tensor in given_now.values())])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_keep_a_float32_state(dtype):
    arguments = image(1, 8, 6, 6, 4)
    halves = {k: v.to(dtype) if k in ("x", "delta", "B", "C") else v for k, v in arguments.items()}
    y = ss2d_by(cpu, **halves)
    assert y.dtype == torch.float32
    assert_close("y", y, ss2d_by(reference, **{k: v.double() for k, v in halves.items()}), 2e-6)


def test_last_state():
    arguments = sequence(2, 7, 33, 5, options=False)
    _, found = selective_by(cpu, **arguments, return_last_state=True, delta_softplus=True)
    exact = {k: None if v is None else v.double() for k, v in arguments.items()}
    _, expected = selective_by(reference, **exact, return_last_state=True, delta_softplus=True)
    assert_close("state", found, expected, 2e-6)


def test_gradient_through_the_last_state():
    found, exact = (leaves(sequence(2, 7, 33, 5, options=False), d) for d in (None, torch.float64))
    for backend, given_now in ((cpu, found), (reference, exact)):
        _, last = selective_by(backend, **given_now, return_last_state=True, delta_softplus=True)
        (last**2).sum().backward()
    for name in ("u", "delta", "A", "B"):
        assert_close(name, found[name].grad, exact[name].grad, 5e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["x", "delta", "B"])
def test_bad_values_go_through_and_stay_in_their_sequence(name, value):
    arguments = image(2, 20, 4, 4, 2)
    clean = ss2d_by(cpu, **arguments)
    arguments[name][0].view(-1)[7] = value
    y = ss2d_by(cpu, **arguments)
    harmless = name == "delta" and value == -math.inf  # softplus makes it a step of zero
    assert harmless or not torch.isfinite(y[0]).all()
    assert torch.equal(y[1], clean[1])


def test_large_activations_do_not_overflow_the_exponential():
    arguments = image(1, 16, 5, 5, 4)
    arguments["delta"] = arguments["delta"] * 1e4
    y = ss2d_by(cpu, **arguments)
    assert torch.isfinite(y).all()
    assert_close("y", y, ss2d_by(reference, **{k: v.double() for k, v in arguments.items()}), 1e-5)


# The check itself looks at `.grad` of tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_operators_pass_torchs_own_checks():
    arguments = sequence(2, 6, 9, 3)
    u, delta, A, B, C, D, _, bias = arguments.values()
    by_step = (u.mT, delta.mT[None], A.mT[None], B.mT[None], C.mT[None], D[None], bias[None])
    order, offset = torch.arange(9, dtype=torch.int32)[None], torch.zeros(1, dtype=torch.int32)
    tensors = [t.contiguous().requires_grad_() for t in by_step]
    torch.library.opcheck(torch.ops.robustcli.scan_cpu, (*tensors, order, offset, True, True))
    by_time = (u, delta, A.mT[None], B[:, None], C[:, None], D[None], bias[None])
    tensors = [t.contiguous().requires_grad_() for t in by_time]
    torch.library.opcheck(torch.ops.robustcli.scan_cpu_sequence, (*tensors, True, True))
    y, state, borders = cpu.scan_cpu_sequence(*[t.detach() for t in tensors], True, True)
    ones = torch.ones_like(y), torch.ones_like(state)
    for asked in ([True] * 7, [False, True, False, False, True, False, True]):
        torch.library.opcheck(
            torch.ops.robustcli.scan_cpu_sequence_backward,
            (*(t.detach() for t in tensors), borders, True, *ones, asked),
        )


@pytest.mark.parametrize(("channels", "length"), [(16, 16), (17, 15), (130, 33)])
def test_whole_tiles_and_parts_of_them(channels, length):
    arguments = sequence(2, channels, length, 3)
    assert_like_reference(cpu, "selective_scan", arguments, 5e-6, delta_softplus=True)


def test_a_forked_process_scans_like_its_parent():
    # Too much for the caller alone, each tensor too little for torch's threads: torch's own
    # operations hang in a forked process when they use them.
    arguments = image(1, 20, 20, 15, 4)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = ss2d_by(cpu, **arguments)  # torch's OpenMP pool exists from here on
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1  # for an exception, which must not return into pytest
            try:
                os.write(write, ss2d_by(cpu, **arguments).numpy().tobytes())
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            found = pipe.read()
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)
    assert found == expected.numpy().tobytes()


def test_compiles_without_a_graph_break():
    arguments = image(1, 8, 4, 4, 2)
    compiled = torch.compile(ss2d_scan, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**arguments), ss2d_scan(**arguments))


def test_parameters_need_not_be_contiguous():
    arguments = image(1, 6, 3, 4, 2)
    expected = ss2d_by(cpu, **arguments)
    arguments["A"] = arguments["A"].t().contiguous().t()
    arguments["D"] = torch.stack([arguments["D"]] * 2, 1)[:, 0]
    assert torch.equal(ss2d_by(cpu, **arguments), expected)
