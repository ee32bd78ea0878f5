"""Training steps of segmenters on this machine's CPU, per million multiply-adds.

    python benchmarks/segmenters.py [--rounds 5] [--size 256]

The networks alternate in one process, with batch size 2. Two of them are U-Nets of
segmentation_models_pytorch: `wide` has a ResNet-18 encoder (five halvings, 64 to 512 channels,
similar to `ulvm_v5`); `narrow` has a MobileNetV2 encoder and few channels in the decoder, and its
multiply-adds are closer to those of `ulvm_v5`. The last columns are ratios of medians, each divided
by the multiply-adds of its network. Weights are random, because the time does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import segmentation_models_pytorch as smp
import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robustcli.models.architectures import architecture
from robustcli.models.mamba import Mamba

NAMES = ("ulvm", "ulvm_v5", "umambabot", "unet")
NARROW = (64, 32, 16, 8, 4)
PER_STATE = 3
"""Multiply-adds of the scan per position, channel and state: decay, input, output."""


def multiply_adds(network: nn.Module, images: Tensor) -> float:
    """Millions of multiply-adds of a forward pass, including the scan."""
    scans = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        nonlocal scans
        assert isinstance(module, Mamba)
        batch, length, _ = inputs[0].shape
        scans += PER_STATE * batch * length * module.A_log.numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, Mamba)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    for hook in hooks:
        hook.remove()
    return float(counter.get_total_flops() / 2 + scans) / 1e6


def training_step(network: nn.Module, images: Tensor) -> Callable[[], None]:
    """A function that runs one forward and backward pass on `images`."""
    network.train()

    def call() -> None:
        network.zero_grad()
        network(images).square().mean().backward()

    return call


def alternated(calls: list[Callable[[], None]], rounds: int) -> list[float]:
    """Median seconds of each call; the calls alternate, after one warm-up each."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for call, found in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if turn:
                found.append(time.perf_counter() - started)
    return [statistics.median(found) for found in times]


def networks() -> dict[str, nn.Module]:
    """The networks by name; first the two of segmentation_models_pytorch."""
    theirs = {
        "smp Unet, wide": smp.Unet("resnet18", encoder_weights=None),
        "smp Unet, narrow": smp.Unet("mobilenet_v2", encoder_weights=None, decoder_channels=NARROW),
    }
    return theirs | {name: architecture(name).build() for name in NAMES}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    images = torch.randn(2, 3, options.size, options.size)
    known = networks()
    work = [multiply_adds(network, images) for network in known.values()]
    steps = [training_step(network, images) for network in known.values()]
    seconds = alternated(steps, options.rounds)
    each = [1e3 * took / adds for took, adds in zip(seconds, work, strict=True)]
    rows = [
        (name, f"{adds:.0f}", f"{1e3 * took:.0f}", f"{took / seconds[0]:.2f}",
         f"{one / each[0]:.2f}", f"{one / each[1]:.2f}")
        for name, adds, took, one in zip(known, work, seconds, each, strict=True)
    ]  # fmt: skip
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, side {options.size}")
    per = "per multiply-add"
    heads = ("network", "million multiply-adds", "ms a step", "time / wide", f"{per} / wide",
             f"{per} / narrow")  # fmt: skip
    print(tabulate(rows, heads, disable_numparse=True))
    print("Goal of `ulvm_v5`, per multiply-add: at most 2.")


if __name__ == "__main__":
    main()
