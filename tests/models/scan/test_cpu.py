"""The CPU kernels against the reference: any shape, layout and value; as torch operators.

Also their threads, torch's pool or Python threads, and that they write within their buffers.
"""

from __future__ import annotations

import ctypes
import math
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.models.scan import cpu, reference, selective_scan
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
    ("channels", "length", "states"),
    [
        *((16, 16, 3), (17, 15, 3), (130, 33, 3)),  # whole tiles and parts of them
        *((64, 300, 8), (192, 129, 8), pytest.param(65, 2050, 8, marks=pytest.mark.slow)),  # chunks
    ],
)
def test_tiles_and_chunks(channels, length, states):
    arguments = sequence(2, channels, length, states)
    assert_like_reference(cpu, "selective_scan", arguments, 1e-5, delta_softplus=True)


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
    arguments["A"] = arguments["A"].t().contiguous().t()
    arguments["D"] = torch.stack([arguments["D"]] * 2, 1)[:, 0]
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


def test_last_state_and_the_gradient_through_it():
    found, exact = (leaves(sequence(2, 7, 33, 5, options=False), d) for d in (None, torch.float64))
    states = []
    for backend, given_now in ((cpu, found), (reference, exact)):
        _, last = selective_by(backend, **given_now, return_last_state=True, delta_softplus=True)
        (last**2).sum().backward()
        states.append(last)
    assert_close("state", *states, 2e-6)
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
@pytest.mark.parametrize("by_time", [False, True])
def test_operators_pass_torchs_own_checks(by_time):
    u, delta, A, B, C, D, _, bias = sequence(2, 6, 9, 3).values()
    if by_time:
        laid = (u, delta, A.mT[None], B[:, None], C[:, None], D[None], bias[None])
        path, operators = (), ("scan_cpu_sequence", "scan_cpu_sequence_backward")
    else:
        laid = (u.mT, delta.mT[None], A.mT[None], B.mT[None], C.mT[None], D[None], bias[None])
        path, operators = (1, 9, 0, 6), ("scan_cpu", "scan_cpu_backward")
    forward, backward = (getattr(torch.ops.robustcli, name) for name in operators)
    tensors = [t.contiguous().requires_grad_() for t in laid]
    torch.library.opcheck(forward, (*tensors, *path, True, True))
    fixed = [t.detach() for t in tensors]
    y, state, borders = forward(*fixed, *path, True, True)
    ones = torch.ones_like(y), torch.ones_like(state)
    asked = [False, True, False, False, True, False, True]
    torch.library.opcheck(backward, (*fixed, borders, *path, True, *ones, asked))


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


@pytest.fixture
def threads():
    """Sets torch's number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def without_openmp(monkeypatch):
    monkeypatch.setattr(cpu, "_openmp", lambda: None)


def callers(count):
    """The thread ids that a run calls its entry from, and what it passes on."""
    found, lock = [], threading.Lock()

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def entry(work):
        with lock:
            found.append((threading.get_native_id(), work))

    cpu.run(ctypes.cast(entry, ctypes.c_void_p).value, 4711, count)
    assert len(found) == count
    assert {work for _, work in found} == {4711}
    return [thread for thread, _ in found]


def test_one_thread_and_little_work_are_the_callers(threads):
    threads(2)
    assert callers(1) == [threading.get_native_id()]
    assert cpu._threads((4, 1, 256, 64, 1, 64)) == 1
    assert cpu._threads((4, 1, 257, 64, 1, 64)) == 2


@pytest.mark.parametrize(
    ("count", "channels", "expected"),
    [
        (1, 256, 64),
        (2, 256, 64),
        (3, 256, 48),
        (4, 256, 64),
        (8, 256, 32),
        (99, 256, 16),
        (2, 96, 48),
    ],
)
def test_channels_are_shared_evenly_by_the_threads(threads, count, channels, expected):
    threads(count)
    assert cpu._block_of_outputs(1, (4, 1, 3136, channels, 1, channels)) == expected


@pytest.mark.parametrize("block", [16, 48, 64])
def test_outputs_have_the_same_bits_for_any_block_of_channels(block, monkeypatch):
    scans = [(ss2d_by, image(2, 70, 9, 8, 3)), (selective_by, sequence(2, 70, 40, 3, groups=2))]
    expected = [scan(cpu, **arguments) for scan, arguments in scans]
    monkeypatch.setattr(cpu, "_block_of_outputs", lambda *_: block)
    found = [scan(cpu, **arguments) for scan, arguments in scans]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.skipif(cpu._openmp() is None, reason="torch's OpenMP pool is not in reach")
def test_two_threads_are_torchs_own(threads):
    threads(2)
    torch.ones(1 << 20).add_(1)  # torch's pool starts
    before = set(os.listdir("/proc/self/task")) if os.path.isdir("/proc") else None  # noqa: PTH208, PTH112
    found = callers(2)
    assert threading.get_native_id() in found
    if before is not None:
        assert {str(thread) for thread in found} <= before  # none was started for us


@pytest.mark.usefixtures("without_openmp")
def test_python_threads_take_over_and_compute_the_same_bits(threads):
    arguments = image(2, 50, 20, 15, 2)  # too much for the caller alone
    threads(1)
    expected = ss2d_by(cpu, **arguments)
    threads(3)
    assert threading.get_native_id() in callers(3)
    assert torch.equal(ss2d_by(cpu, **arguments), expected)


def test_says_which_threads_it_runs_in(monkeypatch):
    monkeypatch.setattr(cpu, "_openmp", lambda: print)
    assert cpu.describe() == "in torch's OpenMP threads"
    monkeypatch.setattr(cpu, "_openmp", lambda: None)
    assert (
        "torch's OpenMP pool is not accessible (it has no `GOMP_parallel`, as on Windows)"
        in cpu.describe()
    )


def test_a_library_without_the_function_is_no_pool(monkeypatch):
    """As on Windows: torch's library is called otherwise, or another OpenMP is linked with it."""
    cpu._openmp.cache_clear()
    try:
        monkeypatch.setattr(ctypes, "CDLL", lambda path: object())
        assert cpu._openmp() is None
        cpu._openmp.cache_clear()
        monkeypatch.setattr(cpu, "_LIBRARIES", ())
        assert cpu._openmp() is None
    finally:
        cpu._openmp.cache_clear()


ROOT = Path(__file__).parents[3]
ALLOCATOR = "libc_malloc_debug.so.0"


def scan_random_shapes(seed: int, number: int) -> None:
    """Scans sequences and images of random shapes, forward and backward."""
    draw = random.Random(seed)
    for _ in range(number):
        if draw.random() < 0.5:
            arguments, name = sequence(
                draw.randint(1, 3), draw.randint(1, 40), draw.randint(1, 70),
                draw.choice([1, 2, 3, 5, 16, 17]), groups=draw.choice([0, 1]),
                options=draw.random() < 0.5,
            ), "selective_scan"  # fmt: skip
        else:
            arguments, name = image(
                draw.randint(1, 2), draw.randint(1, 40), draw.randint(1, 9), draw.randint(1, 9),
                draw.choice([1, 2, 3, 16]),
            ), "ss2d_scan"  # fmt: skip
        for tensor in arguments.values():
            if tensor is not None and draw.random() < 0.8:
                tensor.requires_grad_()
        output = scan_by(cpu, name, **arguments)
        if output.requires_grad:
            output.square().sum().backward()


@pytest.mark.slow
def test_random_shapes_stay_within_their_memory() -> None:
    trial = subprocess.run(
        [sys.executable, "-c", ""], env={**os.environ, "LD_PRELOAD": ALLOCATOR},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if trial.returncode or trial.stderr:  # the loader names a library that it does not find
        pytest.skip(f"needs glibc's checked allocator ({ALLOCATOR})")
    run = subprocess.run(
        [sys.executable, "-c",
         "from tests.models.scan.test_cpu import scan_random_shapes; "
         "scan_random_shapes(1, 300); print('finished')"],
        env={**os.environ, "LD_PRELOAD": ALLOCATOR, "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "2"},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert "finished" in run.stdout
