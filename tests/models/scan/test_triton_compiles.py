"""Triton's own compiler accepts the kernels for GPUs that this machine need not have."""

import inspect

import pytest

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from robustcli.models.scan import triton_kernels

HALF = ("x", "delta", "B", "C", "ddelta")
FLOAT = ("A", "skip", "bias", "out", "state", "borders", "starts", "spans", "dy", "ends", "before",
         "state_grads", "work", "dx", "dA", "dB", "dC", "dskip", "dbias")  # fmt: skip
TILE = {"N": 3, "T": 16, "DB": 32}
EVERYTHING = dict.fromkeys(
    ("OF_X", "OF_DELTA", "OF_A", "OF_B", "OF_C", "OF_D", "OF_BIAS", "STATES", "STATE_GRADS"), True
)
BACK = TILE | {"SOFTPLUS": True}
FROZEN = {"OF_A": False, "OF_D": False, "OF_BIAS": False}
ONLY_X = dict.fromkeys(EVERYTHING, False) | {"OF_X": True, "STATE_GRADS": True}
KERNELS = [
    (triton_kernels.forward, TILE | {"SOFTPLUS": True, "KEEP": True, "LOCAL": False}),
    (triton_kernels.forward, TILE | {"SOFTPLUS": False, "KEEP": False, "LOCAL": True}),
    (triton_kernels.carry, {"N": 3, "NB": 4, "DB": 32, "REVERSED": True}),
    (triton_kernels.slope_ends, TILE | {"SOFTPLUS": True}),
    (triton_kernels.backward, BACK | EVERYTHING),
    (triton_kernels.backward, BACK | EVERYTHING | FROZEN),
    (triton_kernels.backward, BACK | ONLY_X),
    (triton_kernels.backward, BACK | dict.fromkeys(EVERYTHING, False) | {"OF_D": True}),
]


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(("kernel", "constants"), KERNELS)
@pytest.mark.parametrize(
    ("target", "binary"),
    [(GPUTarget("cuda", 90, 32), "cubin"), (GPUTarget("hip", "gfx942", 64), "hsaco")],
)
def test_compiles(kernel, constants, target, binary):
    kinds = dict.fromkeys(HALF, "*bf16") | dict.fromkeys(FLOAT, "*fp32")
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else kinds.get(n, "i32") for n in names}
    if "constexprs" in inspect.signature(ASTSource).parameters:
        values = {"constexprs": {(names.index(n),): value for n, value in constants.items()}}
    else:  # Triton 3.2, of torch 2.6
        if binary == "hsaco":
            pytest.skip("Triton 3.2 needs an installation of ROCm for this")
        signature = {n: kind for n, kind in signature.items() if kind != "constexpr"}
        values = {"constants": constants}
    source = ASTSource(fn=kernel, signature=signature, **values)
    compiled = triton.compile(source, target=target, options={"enable_fp_fusion": True})
    assert compiled.asm[binary]
