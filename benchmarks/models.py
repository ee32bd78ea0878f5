"""Speed of VMamba relative to a ConvNeXt of equal size, and memory of UMambaEnc, on the CPU.

    python benchmarks/models.py [--rounds 5]

Each row alternates the two networks in one process and prints the ratio of medians and the goal.
Weights are random, because the time does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import timm
import torch
from tabulate import tabulate
from torch import Tensor, nn

from robustcli.models.architectures import architecture

MEMORY_SCRIPT = """
import resource, torch
from robustcli.models.architectures import architecture
network = architecture("umamba-enc").build(deep_supervision=True).train()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
outputs = network(torch.randn(1, 3, 256, 256))
sum(y.square().mean() for y in outputs).backward()
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def inference(network: nn.Module, images: Tensor) -> Callable[[], None]:
    """A function that runs `network` once on `images`."""
    network.eval()

    def call() -> None:
        with torch.inference_mode():
            network(images)

    return call


def training_step(network: nn.Module, images: Tensor) -> Callable[[], None]:
    """A function that runs one forward and backward pass on `images`."""
    network.train()

    def call() -> None:
        network.zero_grad()
        network(images).square().mean().backward()

    return call


def ratio(ours: Callable[[], None], theirs: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Median seconds of both, which alternate, after one warm-up each."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for call, found in zip((ours, theirs), times, strict=True):
            started = time.perf_counter()
            call()
            if turn:
                found.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def row(name: str, pair: tuple[float, float], goal: float) -> tuple[str, ...]:
    """One line of the table."""
    ours, theirs = pair
    return name, f"{1e3 * ours:.0f}", f"{1e3 * theirs:.0f}", f"{ours / theirs:.2f}", f"{goal:g}"


def print_memory() -> None:
    """Prints the peak memory of UMambaEnc; must run first, as processes inherit their parent's."""
    command = [sys.executable, "-c", MEMORY_SCRIPT]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    before, peak = (int(kilobytes) / 1e6 for kilobytes in found)
    print(
        f"UMambaEnc at 256, forward and backward: peak {peak:.2f} GB, {before:.2f} before; goal 4"
    )


def main() -> None:
    """Prints the memory of UMambaEnc at 256 pixels, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print_memory()
    rows = []
    vmamba, convnext = architecture("vmamba-b").build(), timm.create_model("convnext_base")
    for batch in (1, 8):
        images = torch.randn(batch, 3, 224, 224)
        pair = ratio(inference(vmamba, images), inference(convnext, images), rounds)
        rows.append(row(f"VMamba-B / ConvNeXt-B, inference, batch {batch}", pair, 1.5))
    vmamba, convnext = architecture("vmamba-t").build(), timm.create_model("convnext_tiny")
    images = torch.randn(8, 3, 224, 224)
    pair = ratio(training_step(vmamba, images), training_step(convnext, images), rounds)
    rows.append(row("VMamba-T / ConvNeXt-T, training step, batch 8", pair, 2))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(
        tabulate(rows, ("work", "ours ms", "theirs ms", "ratio", "at most"), disable_numparse=True)
    )


if __name__ == "__main__":
    main()
