"""Which backend serves, its trial and warning, and what is said of arguments that do not fit."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings

import numba.core.caching
import numba.core.imputils
import pytest
import torch
from llvmlite import ir
from torch.overrides import TorchFunctionMode

from robustcli.core.errors import MachineError, UsageError
from robustcli.models.scan import (
    base,
    cpu,
    cpu_kernels,
    dispatch,
    mamba_ssm,
    reference,
    selective_scan,
    ss2d_scan,
    triton,
)
from robustcli.models.scan.base import Broken
from robustcli.models.scan.cpu import run
from robustcli.models.scan.dispatch import SCANS, worst_error
from tests.models.scan.cases import image, sequence

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
REAL_TRIAL = dispatch._trial


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No choice of another test is remembered, and none of these is kept."""
    caches = (REAL_TRIAL, dispatch._warn_once, base.missing)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def works(monkeypatch):
    """Every backend is there and passes its trial."""
    for backend in (cpu, triton, mamba_ssm):
        monkeypatch.setattr(backend, "available", lambda: None)
    monkeypatch.setattr(dispatch, "_trial", lambda name, gradients, scan: None)


def test_the_cpu_kernels_serve_float32_and_the_reference_float64():
    assert dispatch.choose_backend(torch.device("cpu"), torch.float32) == "cpu"
    assert dispatch.choose_backend(torch.device("cpu"), torch.float64) == "reference"
    assert dispatch.choose_backend(torch.device("xpu"), torch.float32) == "reference"


def test_a_backend_can_be_forced_and_an_unknown_one_is_named(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "Reference")
    assert dispatch.choose_backend(torch.device("cpu"), torch.float32) == "reference"
    monkeypatch.setenv(dispatch.VARIABLE, "cpuu")
    with pytest.raises(UsageError, match=r"No scan backend is called `cpuu`.\nDid you mean `cpu`"):
        dispatch.choose_backend(torch.device("cpu"), torch.float32)


def test_without_numba_the_reference_serves_and_forced_it_says_why(monkeypatch):
    monkeypatch.setattr(cpu, "available", lambda: "numba is not installed")
    assert dispatch.choose_backend(torch.device("cpu"), torch.float32) == "reference"
    monkeypatch.setenv(dispatch.VARIABLE, "cpu")
    with pytest.raises(
        MachineError, match=r"`ROBUST_SCAN_BACKEND=cpu` cannot be used.\nnumba is not"
    ):
        dispatch.choose_backend(torch.device("cpu"), torch.float32)


@pytest.mark.usefixtures("works")
def test_the_order_on_cuda(monkeypatch):
    def chosen(dtype=torch.float16, states=16):
        return dispatch.choose_backend(CUDA, dtype, states)

    assert chosen() == "triton"
    assert chosen(torch.float64) == "reference"
    monkeypatch.setattr(triton, "available", lambda: "triton is not installed.")
    assert chosen() == "mamba_ssm"
    assert chosen(states=257) == "reference"
    monkeypatch.setattr(mamba_ssm, "available", lambda: "mamba-ssm is not installed.")
    assert chosen() == "reference"


def test_a_kernel_that_fails_is_left_with_one_warning(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(cpu, "scan", fail)
    expected = (
        "`cpu` is installed but does not work: its kernels fail: RuntimeError: Failed to find C "
        r"compiler\. The kernels .* Installed are .* The scan runs as a loop .* slower"
    )
    with pytest.warns(dispatch.ScanWarning, match=expected):
        assert dispatch.choose_backend(CPU, torch.float32) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.choose_backend(CPU, torch.float32) == "reference"
    assert torch.isfinite(ss2d_scan(**image(1, 2, 2, 2, 1))).all()


INSTALLED = r"Installed are numba [\d.]+ and llvmlite [\d.]+; the kernels are tested with numba "


def test_a_numba_without_what_the_kernels_import_is_left_with_the_reason(monkeypatch):
    kernels = [m for m in sys.modules if re.match(r"robustcli\.models\.scan\.cpu_", m)]
    for module in kernels:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(numba.core.imputils, "lower_builtin")
    expected = f"numba is installed but cannot be used: ImportError: .*lower_builtin.* {INSTALLED}"
    with pytest.warns(dispatch.ScanWarning, match=expected):
        assert dispatch.choose_backend(CPU, torch.float32) == "reference"
    assert torch.isfinite(ss2d_scan(**image(1, 2, 2, 2, 1))).all()
    monkeypatch.setenv(dispatch.VARIABLE, "cpu")
    with pytest.raises(MachineError, match=INSTALLED):
        dispatch.choose_backend(CPU, torch.float32)


@pytest.fixture
def uncached(monkeypatch):
    """Entries are compiled anew, and numba finds no folder for its cache."""
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    cpu_kernels.entry.cache_clear()
    yield
    cpu_kernels.entry.cache_clear()


@pytest.mark.usefixtures("uncached")
def test_an_llvmlite_that_builds_no_such_code_is_left_with_the_reason(monkeypatch):
    monkeypatch.delattr(ir.IRBuilder, "atomic_rmw")
    expected = f"its kernels fail: AttributeError: .*atomic_rmw.* {INSTALLED}"
    with pytest.warns(dispatch.ScanWarning, match=expected):
        assert dispatch.choose_backend(CPU, torch.float32, scan="selective_scan") == "reference"


@pytest.mark.usefixtures("uncached")
def test_kernels_are_compiled_where_no_cache_can_be_written(monkeypatch):
    def entry(digest, _):
        def count(work):
            work[0] += digest != 0

        return count

    monkeypatch.setitem(cpu_kernels._ENTRIES, "count", entry)
    work = torch.tensor([41])
    run(cpu_kernels.entry("count"), work.data_ptr(), 1)
    assert work.tolist() == [42]


def test_each_of_the_two_scans_is_tried_by_itself(monkeypatch):
    def fail_on_sequences(arguments, settings, scan=cpu.scan):
        if not settings.directions:
            raise RuntimeError("no such instruction")
        return scan(arguments, settings)

    monkeypatch.setattr(cpu, "scan", fail_on_sequences)
    assert dispatch.choose_backend(CPU, torch.float32) == "cpu"
    with pytest.warns(dispatch.ScanWarning, match="its kernels fail: RuntimeError: no such instr"):
        y = selective_scan(**sequence(1, 2, 3, 1))
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("factor", [1.0, float("nan")])
def test_a_kernel_that_computes_wrongly_is_left(monkeypatch, factor):
    assert worst_error(cpu) < 1e-5  # what `robust doctor` allows: sums of 2,100 terms in float32

    def broken(arguments, settings):
        return factor * arguments.x * arguments.B.sum() + sum(t.sum() for t in arguments), None

    monkeypatch.setattr(cpu, "scan", broken)
    assert all(not worst_error(cpu, scans=(scan,)) <= 0.1 for scan in SCANS)
    with pytest.warns(dispatch.ScanWarning, match="kernels return wrong results: the error is "):
        assert dispatch.choose_backend(CPU, torch.float32) == "reference"


def test_a_library_that_cannot_be_imported_is_broken(monkeypatch, tmp_path):
    (tmp_path / "halfway").mkdir()
    (tmp_path / "halfway" / "__init__.py").write_text("raise OSError('libcuda.so.1: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    reason = base.missing("halfway", "halfway")
    assert isinstance(reason, Broken)
    assert "cannot be used: OSError: libcuda.so.1: no such file" in reason
    monkeypatch.setattr(cpu, "available", lambda: reason)
    with pytest.warns(dispatch.ScanWarning, match="libcuda.so.1"):
        assert dispatch.choose_backend(CPU, torch.float32) == "reference"


def test_a_library_that_is_absent_is_no_warning():
    reason = base.missing("no_such_library", "no_such_library")
    assert reason == "no_such_library is not installed (`pip install no_such_library`)."
    assert not isinstance(reason, Broken)


def test_the_trial_works_where_gradients_do_not():
    with torch.inference_mode():
        assert dispatch.reason_off("cpu") is None
    with torch.autocast("cpu", torch.bfloat16):
        assert dispatch.reason_off("cpu") is None


@pytest.mark.parametrize(
    ("name", "device", "dtype", "why"),
    [
        ("cpu", CPU, torch.float64, r"It computes in float32; the tensors are torch.float64"),
        ("cpu", CUDA, torch.float32, r"It supports the CPU and MPS; the tensors are on cuda"),
        ("triton", CPU, torch.float32, r"It supports CUDA devices; the tensors are on cpu"),
        ("mamba_ssm", CPU, torch.float32, r"It supports CUDA devices; the tensors are on cpu"),
    ],
)
@pytest.mark.usefixtures("works")
def test_a_forced_backend_says_what_it_does_not_take(monkeypatch, name, device, dtype, why):
    monkeypatch.setenv(dispatch.VARIABLE, name)
    with pytest.raises(MachineError, match=rf"`ROBUST_SCAN_BACKEND={name}` cannot be used.\n{why}"):
        dispatch.choose_backend(device, dtype)


def test_a_forced_backend_without_its_gpu_says_so(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with pytest.raises(MachineError, match=r"no CUDA device: torch .* finds none"):
        selective_scan(**sequence(1, 2, 3, 1))


def test_the_import_brings_no_compiler():
    heavy = ("numba", "triton", "mamba_ssm", "torch._dynamo")
    code = f"import sys, robustcli.models.scan; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


class Scans(torch.nn.Module):
    """Both scans through the door."""

    def forward(self, over_image, over_sequence):
        y = ss2d_scan(**over_image, directions=("row", "column-reversed"))
        return y, selective_scan(**over_sequence, delta_softplus=True)


@pytest.fixture
def inputs():
    return image(1, 4, 3, 2, 2, directions=2), sequence(1, 4, 5, 2)


@pytest.mark.parametrize("forced", ["reference", "cpu"])
def test_compiles_without_a_graph_break(monkeypatch, inputs, forced):
    monkeypatch.setenv(dispatch.VARIABLE, forced)
    torch.compiler.reset()
    compiled = torch.compile(Scans(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), Scans()(*inputs))


def test_exports_with_the_operator_inside(inputs):
    program = torch.export.export(Scans(), inputs, strict=True)
    torch.testing.assert_close(program.module()(*inputs), Scans()(*inputs))
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(torch.ops.robustcli.scan_cpu.default) == 1
    assert targets.count(torch.ops.robustcli.scan_cpu_sequence.default) == 1


def late(scan, of_gradients):
    """`scan`, wrong from step 2,000 on: in its output, or in the gradients alone."""

    def wrong(arguments, settings):
        y, state = scan(arguments, settings)
        if y.shape[1] < 2000:
            return y, state
        if of_gradients:
            y.register_hook(lambda grad: torch.cat([grad[:, :2000], -grad[:, 2000:]], 1))
            return y, state
        return torch.cat([y[:, :2000], y[:, 2000:] * 1.01], 1), state

    return wrong


@pytest.mark.parametrize("scan", dispatch.SCANS)
@pytest.mark.parametrize("of_gradients", [True, False])
def test_a_kernel_that_is_wrong_on_long_sequences_alone_is_left(monkeypatch, of_gradients, scan):
    assert dispatch.LONG > 2048
    monkeypatch.setattr(cpu, "scan", late(cpu.scan, of_gradients))
    with pytest.warns(dispatch.ScanWarning, match="kernels return wrong results: the error is "):
        assert dispatch.choose_backend(CPU, torch.float32, scan=scan) == "reference"


@pytest.mark.parametrize("name", dispatch.SCANS)
def test_the_long_check_agrees_with_the_reference(name):
    """Both in float64, over fewer steps, with the gradients."""
    generator = torch.Generator().manual_seed(3)
    inputs = [t.double() for t in dispatch._long_arguments(name, generator)]
    short = [t[..., :50] if t.ndim >= 3 else t for t in inputs]
    scans = dispatch._FLOAT64[name], lambda *a: dispatch._scan(reference, name, *a)
    for one, other in zip(*(dispatch._outputs(scan, short) for scan in scans), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_would_take_seconds_is_not_tried_on_a_long_sequence(monkeypatch):
    """The reference, and kernels under an interpreter."""
    monkeypatch.setattr(dispatch, "_long_arguments", None)
    assert dispatch.worst_error(reference) < 1e-5  # float32 beside float64
    monkeypatch.setattr(cpu, "interpreted", lambda: True, raising=False)
    assert dispatch.worst_error(cpu) < 1e-5


# Arguments.


@pytest.mark.parametrize(
    ("name", "shape"),
    [("u", (2, 4)), ("u", (2, 4, 0)), ("delta", (2, 4, 6)), ("A", (5, 3)), ("B", (2, 3, 6)),
     ("C", (1, 3, 5)), ("D", (3,)), ("z", (2, 4, 1)), ("delta_bias", (4, 1))],
)  # fmt: skip
def test_a_wrong_shape_of_a_sequence_is_named(name, shape):
    arguments = sequence(2, 4, 5, 3)
    arguments[name] = torch.zeros(shape)
    with pytest.raises(UsageError, match=rf"`{name}` has the wrong shape.\nExpected .*"):
        selective_scan(**arguments)
    with pytest.raises(UsageError, match="Its 3 groups do not divide the 4 channels"):
        selective_scan(**{**sequence(2, 4, 5, 3), "B": torch.zeros(2, 3, 3, 5)})


@pytest.mark.parametrize(
    ("name", "shape"), [("x", (1, 4, 5)), ("delta", (1, 3, 4, 2, 3)), ("B", (1, 4, 9, 2, 3))]
)
def test_a_wrong_shape_of_an_image_is_named(name, shape):
    arguments = image(1, 4, 2, 3, 2)
    arguments[name] = torch.zeros(shape)
    with pytest.raises(UsageError, match=f"`{name}` has the wrong shape"):
        ss2d_scan(**arguments)


def test_complex_numbers_and_other_devices_are_refused():
    arguments = sequence(2, 4, 5, 3)
    with pytest.raises(UsageError, match="`A` has the wrong dtype"):
        selective_scan(**{**arguments, "A": arguments["A"].to(torch.complex64)})
    with pytest.raises(
        UsageError, match=r"`D` is on the wrong device.\nThe input is on cpu, `D` on meta"
    ):
        selective_scan(**{**arguments, "D": arguments["D"].to("meta")})


class Calls(TorchFunctionMode):
    """Counts the scans that it sees, and doubles their input."""

    def __init__(self) -> None:
        super().__init__()
        self.scans = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (selective_scan, ss2d_scan):
            self.scans.append(func)
            args = (2 * args[0], *args[1:])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("scan", "arguments"),
    [(selective_scan, sequence(1, 4, 6, 2)), (ss2d_scan, image(1, 4, 2, 3, 2))],
)
def test_a_mode_of_torch_sees_a_scan_as_one_operation_and_may_change_it(scan, arguments):
    first = next(iter(arguments))
    doubled = scan(**{**arguments, first: 2 * arguments[first]})
    with Calls() as calls:
        torch.testing.assert_close(scan(**arguments), doubled)
    assert calls.scans == [scan]
