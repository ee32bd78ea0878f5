"""The Triton kernels against the reference: on CUDA, or in Triton's interpreter without a GPU.

The interpreter must be asked for before triton is imported, so where there is no GPU this file runs
itself in a process of its own, on tiny inputs cut into tiny tiles.
"""

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.models.scan import dispatch, reference, triton
from tests.models.scan.cases import (
    FEW_SUBSETS,
    SUBSETS,
    assert_close,
    assert_gradients_asked_for,
    assert_like_reference,
    image,
    leaves,
    selective_by,
    sequence,
    ss2d_by,
)

ROOT = Path(__file__).parents[3]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def kernels(test):
    """Marks a test that runs kernels."""
    test = pytest.mark.usefixtures("tiny")(test)
    return test if INTERPRETED else pytest.mark.gpu(test)


def slow(value):
    """A value whose branch another one takes too, or another test."""
    return pytest.param(value, marks=pytest.mark.slow)


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.fixture
def tiny(monkeypatch):
    """Tiles of 32 numbers in the interpreter, which walks them one by one."""
    if triton.available() is not None:
        pytest.skip(str(triton.available()))
    if INTERPRETED:
        monkeypatch.setattr(triton, "TILE", 32)
        builder = importlib.import_module("triton.runtime.interpreter").InterpreterBuilder
        if not hasattr(builder, "get_int1_ty"):  # forgotten in the interpreter of Triton 3.2
            int1 = importlib.import_module("triton.language").int1
            monkeypatch.setattr(builder, "get_int1_ty", lambda _: int1, raising=False)


CUTS = ("merged", "by direction", "in sections")


def every_cut_of(names, *shapes):
    """Each shape in one way to cut the work, and, slow, in all."""
    return pytest.mark.parametrize(
        ("cut", *names),
        [
            pytest.param(way, *shape, marks=pytest.mark.slow if (number + n) % 3 else ())
            for number, shape in enumerate(shapes)
            for n, way in enumerate(CUTS)
        ],
        indirect=["cut"],
    )


@pytest.fixture(params=CUTS)
def cut(request, monkeypatch, tiny):
    """Each way to cut the work into programs."""
    wanted = {"merged": 1, "by direction": 6, "in sections": 64}[request.param]
    monkeypatch.setattr(triton, "wanted_programs", lambda _: wanted)


def on_device(arguments):
    return {k: None if v is None else v.to(DEVICE) for k, v in arguments.items()}


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="the kernels run right here")
def test_everything_in_the_interpreter(request):
    pytest.importorskip("triton")
    chosen = request.config.option.markexpr  # without the slow ones where this run is without
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))),
            *("-W", "default::DeprecationWarning"),  # of an old interpreter's own use of NumPy
            *("-m", chosen),
        ],
        cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
    assert "skipped" in run.stdout  # this one
    assert int(run.stdout.split(" passed")[0].split()[-1]) >= 20


@kernels
@every_cut_of(
    ("batch", "channels", "height", "width", "states"),
    *((2, 3, 3, 2, 1), (1, 9, 1, 5, 2), (1, 1, 1, 1, 2), (1, 2, 1, 2, 16)),
)
def test_an_image(cut, batch, channels, height, width, states):
    arguments = on_device(image(batch, channels, height, width, states))
    assert_like_reference(triton, "ss2d_scan", arguments, 5e-6)


@kernels
@pytest.mark.parametrize("directions", [("row",) * 2, ("column-reversed", "row", "row-reversed")])
def test_other_directions(directions):
    arguments = on_device(image(1, 2, 3, 2, 1, directions=len(directions)))
    assert_like_reference(triton, "ss2d_scan", arguments, 5e-6, directions=directions)


@kernels
@every_cut_of(
    ("batch", "channels", "length", "states", "groups", "options"),
    *((2, 4, 9, 2, 2, True), (1, 3, 1, 3, 0, True), (1, 9, 11, 1, 1, False), (1, 3, 5, 1, 3, True)),
)
def test_a_sequence(cut, batch, channels, length, states, groups, options):
    arguments = sequence(batch, channels, length, states, groups=groups, options=options)
    assert_like_reference(triton, "selective_scan", on_device(arguments), 5e-6, delta_softplus=True)


@pytest.mark.parametrize("cut", ["in sections", slow("merged")], indirect=True)
@kernels
def test_without_softplus_and_with_the_last_state(cut):
    arguments = sequence(2, 3, 9, 2, options=False)
    arguments["delta"] = arguments["delta"].abs() * 0.1
    found, exact = (leaves(on_device(arguments), d) for d in (None, torch.float64))
    for backend, given in ((triton, found), (reference, exact)):
        y, last = selective_by(backend, **given, return_last_state=True)
        (y.sum() + (last**2).sum()).backward()
    for name in ("u", "delta", "A", "B", "C"):
        assert_close(name, found[name].grad, exact[name].grad, 5e-6)


@kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, slow(torch.float16)])
def test_half_inputs_keep_a_float32_state_and_get_half_gradients(dtype):
    arguments = on_device(image(1, 3, 3, 3, 2))
    halves = {k: v.to(dtype) if k in ("x", "delta", "B", "C") else v for k, v in arguments.items()}
    given, exact = leaves(halves), leaves(halves, torch.float64)
    y, expected = ss2d_by(triton, **given), ss2d_by(reference, **exact)
    assert y.dtype == torch.float32
    assert_close("y", y, expected, 2e-6)
    y.sum().backward()
    expected.sum().backward()
    for name, leaf in given.items():
        assert leaf.grad.dtype == leaf.dtype
        assert_close(name, leaf.grad, exact[name].grad, 1e-2 if leaf.dtype == dtype else 5e-6)


@kernels
def test_layouts_do_not_matter():
    arguments = on_device(image(1, 4, 2, 3, 2))
    expected = ss2d_by(triton, **arguments)
    arguments["x"] = arguments["x"].to(memory_format=torch.channels_last)
    arguments["A"] = arguments["A"].t().contiguous().t()
    arguments["B"] = torch.cat([arguments["B"]] * 2, 2)[:, :, :2]
    assert torch.equal(ss2d_by(triton, **arguments), expected)


@kernels
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy, in the interpreter
@pytest.mark.parametrize("value", [math.nan, slow(math.inf)])
def test_bad_values_go_through_and_stay_in_their_sequence(value):
    arguments = on_device(image(2, 2, 1, 3, 1))
    clean = ss2d_by(triton, **arguments)
    arguments["x"][0, 1, 0, 1] = value
    given = leaves(arguments)
    y = ss2d_by(triton, **given)
    y.sum().backward()
    assert not torch.isfinite(y[0, 1]).all()
    assert torch.equal(y[1], clean[1])
    assert torch.isfinite(given["delta"].grad[1]).all()


@kernels
@pytest.mark.parametrize("dtype", [torch.float16, slow(torch.float32), slow(torch.bfloat16)])
def test_extreme_steps_give_no_nan(dtype):
    """Steps from 0 to 60,000, at which every decay is 0 or 1, in the largest numbers of float16."""
    arguments = on_device(image(1, 2, 2, 3, 2))
    arguments["delta"] = (arguments["delta"] * 1e5).clamp(-6e4, 6e4)
    halves = {k: v.to(dtype) if k in ("x", "delta", "B", "C") else v for k, v in arguments.items()}
    given, exact = leaves(halves), leaves(halves, torch.float64)
    y, expected = ss2d_by(triton, **given), ss2d_by(reference, **exact)
    assert_close("y", y, expected, 5e-6)
    slope = 1e-6  # of every output, so that gradients stay within float16
    (y.sum() * slope).backward()
    (expected.sum() * slope).backward()
    for name, leaf in given.items():
        assert torch.isfinite(leaf.grad).all(), name
        assert_close(
            name, leaf.grad, exact[name].grad, 5e-6 if leaf.dtype == torch.float32 else 1e-2
        )


@pytest.mark.gpu  # the interpreter runs one program after the other
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_call_gives_the_same_bits():
    arguments = on_device(image(1, 3, 3, 3, 2))
    twice = [leaves(arguments), leaves(arguments)]
    for given in twice:
        ss2d_by(triton, **given).sum().backward()
    for name in arguments:
        assert torch.equal(twice[0][name].grad, twice[1][name].grad)


@kernels
@pytest.mark.parametrize("wanted", [64, slow(1)])  # in sections, merged
def test_gradients_nobody_asks_for_change_no_bit_of_the_others(monkeypatch, wanted):
    monkeypatch.setattr(triton, "wanted_programs", lambda _: wanted)
    arguments = on_device(image(1, 2, 1, 5, 1))  # two chunks
    # The GPU's compiler may fuse other multiplications where the code around them is another.
    subsets = SUBSETS if wanted == 1 else FEW_SUBSETS
    assert_gradients_asked_for(triton, "ss2d_scan", arguments, subsets, 0 if INTERPRETED else 2e-6)


@kernels
def test_gradients_asked_for_of_a_sequence():
    arguments = on_device(sequence(2, 4, 5, 1, groups=2))
    assert_gradients_asked_for(
        triton, "selective_scan", arguments, SUBSETS[:1], 0 if INTERPRETED else 2e-6,
        delta_softplus=True,
    )  # fmt: skip


@kernels
def test_kernels_are_told_what_is_wanted_and_no_array_is_made_for_the_rest(monkeypatch):
    kernels = importlib.import_module("robustcli.models.scan.triton_kernels")
    told, kernel = [], kernels.backward

    class Spy:
        def __getitem__(self, grid):
            def launch(*arguments, **settings):
                told.append((arguments, settings))
                return kernel[grid](*arguments, **settings)

            return launch

    monkeypatch.setattr(kernels, "backward", Spy())
    arguments = on_device(image(1, 2, 2, 2, 2))
    for name in ("x", "C"):
        arguments[name].requires_grad_()
    ss2d_by(triton, **arguments).sum().backward()
    (given, settings), places = told[0], kernel.arg_names
    flags = {name.removeprefix("OF_") for name, yes in settings.items() if "OF_" in name and yes}
    assert flags == {"X", "C"}
    grad = given[places.index("dy")]
    targets = ("dx", "ddelta", "dA", "dB", "dC", "dskip", "dbias")
    made = {name for name in targets if given[places.index(name)] is not grad}
    assert made == {"dx", "dC"}


@kernels
def test_the_door_tries_the_kernels_first(monkeypatch):
    errors = []

    def check(*args, **kwargs):
        errors.append(worst_error(*args, **kwargs))
        return errors[-1]

    worst_error = dispatch.worst_error
    monkeypatch.setattr(dispatch, "worst_error", check)
    small = list(image(1, 3, 2, 2, 1).values())
    monkeypatch.setattr(dispatch, "_arguments", lambda *_: small)
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    dispatch._trial.cache_clear()
    with torch.inference_mode():
        assert dispatch.choose_backend(torch.device(DEVICE), torch.float16) == "triton"
    assert 0 < errors[0] < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("channels", "side", "states"), [(96, 56, 1), (65, 31, 16), (8, 128, 32)])
def test_real_sizes(channels, side, states):
    arguments = on_device(image(2, channels, side, side, states))
    assert_like_reference(triton, "ss2d_scan", arguments, 2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_autocast_keeps_the_state_in_float32():
    arguments = on_device(image(1, 8, 8, 8, 4))
    arguments["x"] = arguments["x"].half() * 1e3
    with torch.autocast("cuda", torch.float16):
        y = ss2d_by(triton, **arguments)
    assert y.dtype == torch.float32
    assert_close("y", y, ss2d_by(reference, **{k: v.double() for k, v in arguments.items()}), 1e-5)


@pytest.mark.skipif(INTERPRETED, reason="says the opposite")
def test_it_says_why_it_is_off(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device: torch" in triton.available()
    monkeypatch.setattr(triton, "missing", lambda *_: "triton is not installed")
    assert triton.available() == "triton is not installed"


def test_more_numbers_than_the_kernels_count_are_refused():
    side, A = 2**15, torch.empty(2, 1, device="meta")
    x = torch.empty(1, 2, side, side, device="meta")
    each = torch.empty(1, 1, 2, side, side, device="meta")
    with pytest.raises(UsageError, match=r"1073741824 steps of 2 channels are too many.\nThe Trit"):
        ss2d_by(triton, x, each, A, each[:, :, :1], each[:, :, :1], directions=("row",))


def test_it_refuses_what_it_does_not_take():
    cuda = torch.device("cuda")
    assert triton.refuses(cuda, torch.float32, 16) is None
    assert "float64" in triton.refuses(cuda, torch.float64, 16)
    if not INTERPRETED:
        assert "on cpu" in triton.refuses(torch.device("cpu"), torch.float32, 16)


# The check itself looks at `.grad` of tensors that are no leaves.
@kernels
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_operators_pass_torchs_own_checks():
    u, delta, A, B, C, D, _, bias = on_device(sequence(1, 3, 5, 2)).values()
    by_step = (u.mT, delta.mT[None], A.mT[None], B.mT[None], C.mT[None], D[None], bias[None])
    tensors = [t.contiguous().requires_grad_() for t in by_step]
    torch.library.opcheck(
        torch.ops.robustcli.scan_triton, (*tensors, 1, 5, 0, 3, True, True),
        test_utils=CHECKS,
    )  # fmt: skip
    tensors = [t.detach() for t in tensors]
    y, state, borders = triton.scan_triton(*tensors, 1, 5, 0, 3, True, True)
    ones = torch.ones_like(y), torch.ones_like(state)
    for asked in ([True] * 7, [True, True, False, True, True, False, False], [False] * 6 + [True]):
        torch.library.opcheck(
            torch.ops.robustcli.scan_triton_backward,
            (*tensors, borders, 1, 5, 0, 3, True, *ones, asked), test_utils=CHECKS,
        )  # fmt: skip
