"""Half inputs, autocast and mixed dtypes: the state, A, D and the bias stay in float32."""

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.models.scan import cpu, reference, selective_scan, ss2d_scan
from tests.models.scan.cases import assert_close, image, leaves, selective_by, sequence, ss2d_by

BACKENDS = [reference, cpu]
LARGE = ("x", "delta", "B", "C", "u", "z")


def halves(arguments, dtype):
    return {k: v.to(dtype) if k in LARGE else v for k, v in arguments.items()}


def exact(arguments):
    return {k: v.double() for k, v in arguments.items()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(backend, dtype):
    arguments = halves(image(1, 6, 4, 5, 3), dtype)
    plain = ss2d_by(backend, **arguments)
    with torch.autocast("cpu", dtype):
        found = ss2d_by(backend, **arguments)
    assert found.dtype == torch.float32
    assert torch.equal(found, plain)
    assert_close("y", found, ss2d_by(reference, **exact(arguments)), 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_long_memory_survives_autocast(backend):
    """3,000 steps that each add 1: a state in bfloat16 stops at 256, in float16 at 2,048."""
    ones = torch.ones(1, 1, 3000)
    arguments = {"u": ones, "delta": ones, "A": torch.full((1, 1), -1e-9), "B": ones, "C": ones}
    with torch.autocast("cpu", torch.bfloat16):
        given = {k: v.bfloat16() if k in LARGE else v for k, v in arguments.items()}
        _, last = selective_by(backend, **given, return_last_state=True)
    assert last.dtype == torch.float32
    assert last.item() == pytest.approx(3000, rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_activations_in_float16_give_no_nan(backend):
    arguments = image(1, 6, 6, 6, 4)
    arguments["x"] = (arguments["x"] * 2e4).clamp(-6e4, 6e4)  # float16 ends at 65,504
    given = leaves(halves(arguments, torch.float16))
    y = ss2d_by(backend, **given)
    assert torch.isfinite(y).all()
    assert y.abs().max() > 65_504
    y.mean().backward()
    for name in ("A", "D", "delta_bias"):
        assert torch.isfinite(given[name].grad).all()
        assert given[name].grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["u", "delta", "B", "C", "A", "D", "z", "delta_bias"])
def test_mixed_dtypes_are_taken(name):
    arguments = sequence(1, 4, 6, 2)
    arguments[name] = arguments[name].half()
    y = selective_scan(**arguments, delta_softplus=True)
    assert y.dtype == arguments["u"].dtype
    expected = selective_by(reference, **exact(arguments), delta_softplus=True)
    assert_close("y", y, expected, 1e-3 if name == "u" else 5e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_other_dtypes_are_named(dtype):
    arguments = sequence(1, 4, 6, 2)
    with pytest.raises(
        UsageError, match=r"`u` has the wrong dtype.\nExpected float16, bfloat16, f"
    ):
        selective_scan(**{**arguments, "u": arguments["u"].to(dtype)})
    pixels = image(1, 4, 2, 3, 2)
    with pytest.raises(UsageError, match="`x` has the wrong dtype"):
        ss2d_scan(**{**pixels, "x": pixels["x"].to(dtype)})
