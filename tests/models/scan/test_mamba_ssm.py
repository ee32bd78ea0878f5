"""The bridge to mamba-ssm, with a module of its name whose kernel is the reference."""

import importlib.machinery
import sys

import pytest
import torch

from robustcli.core.errors import MachineError
from robustcli.models.scan import base, dispatch, mamba_ssm, reference
from tests.models.scan.cases import (
    assert_close,
    assert_like_reference,
    image,
    selective_by,
    sequence,
    ss2d_by,
)

INTERFACE = """
import torch
from robustcli.models.scan import reference
from tests.models.scan.cases import selective_by

calls = []

def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
                      return_last_state=False):
    calls.append(u.dtype)
    assert u.dtype == delta.dtype == B.dtype == C.dtype  # as the compiled kernel demands
    assert A.dtype == torch.float32
    assert all(t is None or t.dtype == torch.float32 for t in (D, delta_bias))
    return selective_by(
        reference, u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state
    )
"""


@pytest.fixture
def build(monkeypatch, tmp_path):
    """A mamba-ssm installation with the compiled kernel."""
    (tmp_path / "mamba_ssm" / "ops").mkdir(parents=True)
    for package in ("mamba_ssm", "mamba_ssm/ops"):
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "mamba_ssm/ops/selective_scan_interface.py").write_text(INTERFACE)
    (tmp_path / "selective_scan_cuda.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    base.missing.cache_clear()
    yield tmp_path
    for name in [n for n in sys.modules if n.split(".")[0] == "mamba_ssm"]:
        del sys.modules[name]
    base.missing.cache_clear()


@pytest.mark.usefixtures("build")
def test_a_sequence():
    arguments = sequence(2, 6, 7, 3, groups=2)
    assert_like_reference(mamba_ssm, "selective_scan", arguments, 5e-6, delta_softplus=True)


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("directions", [("row",) * 2, ("column-reversed", "row", "column")])
def test_an_image(directions):
    arguments = image(2, 3, 4, 3, 2, directions=len(directions))
    assert_like_reference(mamba_ssm, "ss2d_scan", arguments, 5e-6, directions=directions)


@pytest.mark.usefixtures("build")
def test_the_last_state_comes_too():
    arguments = sequence(1, 3, 5, 2)
    found = selective_by(mamba_ssm, **arguments, delta_softplus=True, return_last_state=True)
    exact = selective_by(reference, **arguments, delta_softplus=True, return_last_state=True)
    torch.testing.assert_close(found, exact)


@pytest.mark.usefixtures("build")
def test_an_image_of_halves_is_summed_in_float32():
    arguments = image(1, 3, 4, 3, 2)
    halves = {k: v.half() if k in ("x", "delta", "B", "C") else v for k, v in arguments.items()}
    y = ss2d_by(mamba_ssm, **halves)
    assert y.dtype == torch.float32
    assert sys.modules["mamba_ssm.ops.selective_scan_interface"].calls == [torch.float32]
    assert_close("y", y, ss2d_by(reference, **{k: v.double() for k, v in halves.items()}), 2e-6)


@pytest.mark.usefixtures("build")
def test_mixed_dtypes_become_the_inputs():
    arguments = sequence(1, 3, 5, 2)
    arguments["u"], arguments["D"] = arguments["u"].half(), arguments["D"].half()
    assert selective_by(mamba_ssm, **arguments, delta_softplus=True).dtype == torch.float16


def test_it_says_why_it_is_off_and_how_to_get_it(monkeypatch, build):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert mamba_ssm.available() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in mamba_ssm.available()
    (build / "selective_scan_cuda.py").unlink()
    importlib.invalidate_caches()
    assert "installed without its kernel `selective_scan_cuda`" in mamba_ssm.available()
    assert "MAMBA_KEEP_CUDA_BUILD=TRUE pip install" in mamba_ssm.available()


@pytest.mark.skipif(
    importlib.machinery.PathFinder.find_spec("mamba_ssm") is not None, reason="it is installed"
)
def test_forced_but_absent(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "mamba-ssm")
    with pytest.raises(MachineError, match=r"mamba-ssm is not installed. `MAMBA_KEEP_CUDA_BUILD"):
        dispatch.choose_backend(torch.device("cuda"), torch.float32)


def test_it_refuses_more_states_than_its_kernel_takes():
    cuda = torch.device("cuda")
    assert mamba_ssm.refuses(cuda, torch.float32, 256) is None
    assert "at most 256 states; `A` has 257" in mamba_ssm.refuses(cuda, torch.float32, 257)
