"""Registers, spills, shared memory and occupancy of the Triton kernels, on a machine without a GPU.

    python benchmarks/triton_registers.py [--architecture 90] [--all-tiles]

Triton's compiler makes the binaries for an NVIDIA GPU of the given compute capability, and NVIDIA's
`cuobjdump`, which is part of Triton, reports their resources. Spilled registers are stored in
memory. Occupancy is the share of a multiprocessor's warps that can run at the same time, limited by
registers, shared memory and the number of blocks. This script measures no times.

Two layouts: `16-fold` has channels in multiples of 16 and aligned memory, as in networks, and reads
four values at a time; `any` is used for odd numbers of channels. Images and sequences use the same
binaries. Requires Triton 3.3, which belongs to torch 2.7, or newer.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from tabulate import tabulate
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from robustcli.models.scan import triton as backend
from robustcli.models.scan import triton_kernels as kernels

OF_INPUT_DTYPE = ("x", "delta", "B", "C", "ddelta")
DTYPES = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}
ALL_GRADIENTS = dict.fromkeys(
    ("OF_X", "OF_DELTA", "OF_A", "OF_B", "OF_C", "OF_D", "OF_BIAS", "STATES", "STATE_GRADS"), True
)
SUPPORTED = "constexprs" in inspect.signature(ASTSource).parameters
"""Whether this Triton is new enough."""
CHANNELS = 32  # channels of a tile in use
WARPS = 4  # Triton's default, used by the launches
OTHER_TILES = (1024, 256)  # steps times channels, shown for comparison


@dataclass(frozen=True)
class Processor:
    """Resources of a multiprocessor. Source: CUDA C++ Programming Guide, compute capabilities."""

    shared: int  # bytes for all blocks
    warps: int = 64
    blocks: int = 32
    registers: int = 65_536
    registers_at_once: int = 256  # allocation unit of registers per warp
    shared_of_system: int = 1_024  # additional bytes per block


PROCESSORS = {80: Processor(167_936), 90: Processor(233_472), 100: Processor(233_472)}


@dataclass(frozen=True)
class Usage:
    """Resources of a compiled kernel: registers and spilled bytes per thread, shared per block."""

    registers: int
    spilled: int
    shared: int

    def occupancy(self, processor: Processor) -> float:
        """The share of the processor's warps that can run at the same time, 0 to 1."""
        unit = processor.registers_at_once
        of_warp = -(-self.registers * 32 // unit) * unit
        blocks = min(
            processor.registers // of_warp // WARPS,
            processor.shared // (self.shared + processor.shared_of_system),
            processor.warps // WARPS,
            processor.blocks,
        )
        return blocks * WARPS / processor.warps


def usage(
    kernel: Any, constants: dict[str, Any], dtype: str, architecture: int, aligned: bool,
    options: dict[str, Any],
) -> Usage:  # fmt: skip
    """Compiles `kernel`, and reads its resources from the binary.

    Args:
        kernel: A function of `triton_kernels`.
        constants: Constants of the kernel, by name.
        dtype: Dtype of the input, a key of `DTYPES`.
        architecture: Compute capability times ten.
        aligned: Whether the number of channels and memory addresses are multiples of 16.
        options: Options of the compiler.
    """
    names = kernel.arg_names
    signature = {}
    for name in names:
        pointer = DTYPES[dtype] if name in OF_INPUT_DTYPE else "*fp32"
        kind = "i32" if name in (*kernels.SIZES, *kernels.BY_CHANNELS) else pointer
        signature[name] = "constexpr" if name in constants else kind
    settings: dict[str, Any] = {
        "constexprs": {(names.index(name),): value for name, value in constants.items()}
    }
    if "attrs" in inspect.signature(ASTSource).parameters and aligned:
        multiples = [n for n in names if n in kernels.BY_CHANNELS or signature[n].startswith("*")]
        settings["attrs"] = {(names.index(n),): [["tt.divisibility", 16]] for n in multiples}
    source = ASTSource(fn=kernel, signature=signature, **settings)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    counts = resources(compiled.asm["cubin"])
    return Usage(counts["REG"], counts["STACK"], compiled.metadata.shared)


def resources(binary: bytes) -> dict[str, int]:
    """Resources of the only kernel in `binary` by `cuobjdump`: REG, STACK, SHARED and others."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in re.findall(r"([A-Z]+):(\d+)", printed)}


def launches(tile: int) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yields each scan kernel of a training: its name, the kernel, and its constants."""
    shape = {"T": tile // CHANNELS, "DB": CHANNELS, "SOFTPLUS": True}
    yield "forward", kernels.forward, shape | {"KEEP": True, "LOCAL": False}
    yield "backward", kernels.backward, shape | ALL_GRADIENTS


def table(architecture: int, tiles: tuple[int, ...]) -> list[tuple[str, int, Usage]]:
    """Rows (description, tile, usage) for both passes, 1 and 16 states, all dtypes and layouts."""
    found = []
    for tile in tiles:
        for states in (1, 16):
            for name, kernel, constants in launches(tile):
                options = backend.compiler_options(name, states)
                for dtype in DTYPES:
                    for aligned, layout in ((True, "16-fold"), (False, "any")):
                        used = usage(
                            kernel, constants | {"N": states}, dtype, architecture, aligned, options
                        )
                        what = f"{name}, N {states}, {dtype}, {layout}"
                        found.append((what, tile, used))
    return found


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", type=int, default=90, choices=sorted(PROCESSORS))
    parser.add_argument("--all-tiles", action="store_true", help="Also compile other tile sizes.")
    arguments = parser.parse_args()
    if not SUPPORTED:
        parser.exit(2, f"Triton {triton.__version__} is too old: use torch 2.7 or newer.\n")
    processor = PROCESSORS[arguments.architecture]
    tiles = (backend.TILE, *(OTHER_TILES if arguments.all_tiles else ()))
    rows = table(arguments.architecture, tiles)
    cells = [
        (what, tile, used.registers, used.spilled, used.shared, f"{used.occupancy(processor):.0%}")
        for what, tile, used in rows
    ]
    header = ("kernel", "tile", "registers", "spilled bytes", "shared bytes", "occupancy")
    print(f"Triton {triton.__version__}, compute capability {arguments.architecture / 10:g}")
    print(tabulate(cells, header, tablefmt="pipe"))


if __name__ == "__main__":
    main()
