"""Triton's own compiler accepts the kernels for GPUs that this machine need not have.

And what the backward pass takes of a GPU: the figures of `benchmarks/triton_registers.py`.
"""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from robustcli.models.scan import triton as backend
from robustcli.models.scan import triton_kernels
from tests.models.scan.cases import benchmark

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
    (triton_kernels.backward, BACK | ONLY_X),
    (triton_kernels.backward, BACK | dict.fromkeys(EVERYTHING, False) | {"OF_D": True}),
    (triton_kernels.backward, BACK | EVERYTHING | FROZEN),
]
NVIDIA, AMD = (GPUTarget("cuda", 90, 32), "cubin"), (GPUTarget("hip", "gfx942", 64), "hsaco")
QUICK = {NVIDIA: range(7), AMD: (0, 4)}  # AMD's compiler begins with the same code


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(
    ("kernel", "constants", "target", "binary"),
    [
        pytest.param(*launch, *target, marks=() if number in numbers else pytest.mark.slow)
        for target, numbers in QUICK.items()
        for number, launch in enumerate(KERNELS)
    ],
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


# The figures of the script.


@pytest.fixture(scope="module")
def registers():
    yield from benchmark("triton_registers")


def test_every_number_of_a_kernel_is_known_as_one():
    kernels = triton_kernels.forward, triton_kernels.slope_ends, triton_kernels.backward
    names = {p.name for kernel in kernels for p in kernel.params if not p.is_constexpr}
    assert names - {*HALF, *FLOAT} == {*triton_kernels.SIZES, *triton_kernels.BY_CHANNELS}


@pytest.mark.parametrize("states", [1, 16])
def test_four_programs_fit_beside_each_other_and_nothing_is_spilled(
    registers, states, monkeypatch, tmp_path
):
    if not registers.SUPPORTED:
        pytest.skip("the script needs a newer Triton, of torch 2.7")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, kernel, constants in registers.launches(backend.TILE):
        options = backend.compiler_options(name, states)
        used = registers.usage(kernel, constants | {"N": states}, "bfloat16", 90, True, options)
        assert used.registers <= 128
        assert used.spilled == 0
        assert used.occupancy(registers.PROCESSORS[90]) >= 0.25


def test_occupancy_by_hand(registers):
    """NVIDIA's calculator for compute capability 9.0 and 128 threads."""
    processor = registers.PROCESSORS[90]
    assert registers.Usage(128, 0, 1024).occupancy(processor) == 16 / 64  # 65,536 / (128 * 128)
    assert registers.Usage(129, 0, 1024).occupancy(processor) == 12 / 64  # 136 are given: 3 blocks
    assert registers.Usage(32, 0, 0).occupancy(processor) == 1.0
    assert registers.Usage(32, 0, 100_000).occupancy(processor) == 8 / 64  # by shared memory
