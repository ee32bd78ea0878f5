"""Which backend serves, and what is said of arguments that do not fit."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from robustcli.core.errors import MachineError, UsageError
from robustcli.models.scan import cpu, dispatch, selective_scan, ss2d_scan
from robustcli.models.scan.dispatch import SCANS, worst_error
from tests.models.scan.cases import image, sequence


def test_the_cpu_kernels_serve_float32_and_the_reference_float64():
    assert dispatch.choose_backend(torch.device("cpu"), torch.float32) == "cpu"
    assert dispatch.choose_backend(torch.device("cpu"), torch.float64) == "reference"
    assert dispatch.choose_backend(torch.device("xpu"), torch.float32) == "reference"


def test_a_backend_can_be_forced(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "Reference")
    assert dispatch.choose_backend(torch.device("cpu"), torch.float32) == "reference"


def test_an_unknown_backend_is_named(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "cpuu")
    with pytest.raises(UsageError, match=r"No scan backend is called `cpuu`.\nDid you mean `cpu`"):
        dispatch.choose_backend(torch.device("cpu"), torch.float32)


def test_a_forced_backend_that_is_absent_says_why(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "cpu")
    monkeypatch.setattr(cpu, "available", lambda: "numba is not installed")
    with pytest.raises(
        MachineError, match=r"`ROBUST_SCAN_BACKEND=cpu` cannot be used.\nnumba is not"
    ):
        dispatch.choose_backend(torch.device("cpu"), torch.float32)


def test_without_numba_the_reference_serves(monkeypatch):
    monkeypatch.setattr(cpu, "available", lambda: "numba is not installed")
    assert dispatch.choose_backend(torch.device("cpu"), torch.float32) == "reference"


@pytest.mark.parametrize(
    ("name", "shape"),
    [("u", (2, 4)), ("delta", (2, 4, 6)), ("A", (5, 3)), ("B", (2, 3, 6)), ("C", (1, 3, 5)),
     ("D", (3,)), ("z", (2, 4, 1)), ("delta_bias", (4, 1))],
)  # fmt: skip
def test_a_wrong_shape_of_a_sequence_is_named(name, shape):
    arguments = sequence(2, 4, 5, 3)
    arguments[name] = torch.zeros(shape)
    expected = "delta" if name == "u" and len(shape) == 3 else name
    with pytest.raises(UsageError, match=rf"`{expected}` has the wrong shape.\nExpected .*"):
        selective_scan(**arguments)


@pytest.mark.parametrize(
    ("name", "shape"), [("x", (1, 4, 5)), ("delta", (1, 3, 4, 2, 3)), ("B", (1, 4, 9, 2, 3))]
)
def test_a_wrong_shape_of_an_image_is_named(name, shape):
    arguments = image(1, 4, 2, 3, 2)
    arguments[name] = torch.zeros(shape)
    with pytest.raises(UsageError, match=f"`{name}` has the wrong shape"):
        ss2d_scan(**arguments)


def test_groups_must_divide_the_channels():
    arguments = sequence(2, 4, 5, 3)
    arguments["B"] = torch.zeros(2, 3, 3, 5)
    with pytest.raises(UsageError, match="Its 3 groups do not divide the 4 channels"):
        selective_scan(**arguments)


def test_an_empty_input_is_refused():
    arguments = sequence(2, 4, 5, 3)
    arguments["u"] = torch.zeros(2, 4, 0)
    with pytest.raises(UsageError, match="`u` has the wrong shape"):
        selective_scan(**arguments)


def test_complex_numbers_and_other_devices_are_refused():
    arguments = sequence(2, 4, 5, 3)
    with pytest.raises(UsageError, match="`A` has the wrong dtype"):
        selective_scan(**{**arguments, "A": arguments["A"].to(torch.complex64)})
    with pytest.raises(
        UsageError, match=r"`D` is on the wrong device.\nThe input is on cpu, `D` on meta"
    ):
        selective_scan(**{**arguments, "D": arguments["D"].to("meta")})


def test_the_self_check_finds_a_broken_backend(monkeypatch):
    assert worst_error(cpu) < 1e-5  # what `robust doctor` allows: sums of 2,100 terms in float32

    def broken(arguments, settings):
        return arguments.x * arguments.B.sum() + sum(t.sum() for t in arguments), None

    monkeypatch.setattr(cpu, "scan", broken)
    for scan in SCANS:
        assert worst_error(cpu, scans=(scan,)) > 0.1


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
