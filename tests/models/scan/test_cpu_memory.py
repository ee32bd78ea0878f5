"""The CPU kernels write within their buffers, for channel counts of any remainder.

glibc's checked allocator aborts a process that frees a buffer whose surroundings were changed.
Small overflows end in the padding of aligned buffers and are not seen; a buffer that is 64 numbers
too small is.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from robustcli.models.scan import cpu
from tests.models.scan.cases import image, scan_by, sequence

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
         "from tests.models.scan.test_cpu_memory import scan_random_shapes; "
         "scan_random_shapes(1, 300); print('finished')"],
        env={**os.environ, "LD_PRELOAD": ALLOCATOR, "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "2"},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert "finished" in run.stdout
