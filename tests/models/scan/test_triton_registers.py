"""What the backward pass takes of a GPU: the figures of `benchmarks/triton_registers.py`."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: F401  absent where Triton has no compiler

from robustcli.models.scan import triton as backend

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "triton_registers.py"


@pytest.fixture(scope="module")
def registers():
    spec = importlib.util.spec_from_file_location("triton_registers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.slow
@pytest.mark.parametrize("states", [1, 16])
def test_four_programs_fit_beside_each_other_and_nothing_is_spilled(
    registers, states, monkeypatch, tmp_path
):
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
