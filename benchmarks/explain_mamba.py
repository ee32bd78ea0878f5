"""Time of explanations of VMamba-T and Vim-T at 224 pixels, relative to a training step.

    python benchmarks/explain_mamba.py [--rounds 5] [--batch 2] [--network vmamba-t]

Each row alternates the explanation and a training step (forward, and backward to all parameters) of
the same network in one process, on the same images, and prints the ratio of medians and the goal.
Weights are random, because the time does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from tabulate import tabulate
from torch import Tensor

from robustcli.explanation.hidden_attention import class_attention, hidden_attention
from robustcli.explanation.layer_methods import receptive_field
from robustcli.explanation.network import ExplainedNetwork
from robustcli.explanation.relevance import relevance
from robustcli.models.architectures import architecture

METHODS = {
    "relevance": (relevance, 3.0),
    "attention": (hidden_attention, 3.0),
    "class-attention": (class_attention, 3.0),
    "erf": (receptive_field, 3.0),
}


def network(name: str) -> ExplainedNetwork:
    """The network `name` with initial weights, in the form that explanation methods need."""
    module = architecture(name).build().eval().requires_grad_(False)
    classes = tuple(str(number) for number in range(1000))
    return ExplainedNetwork(module, torch.device("cpu"), "cls", name.split("-")[0], classes)


def training_step(name: str, images: Tensor, targets: Tensor) -> Callable[[], None]:
    """A function that runs one forward and backward pass."""
    module = architecture(name).build().train()

    def call() -> None:
        module.zero_grad()
        torch.nn.functional.cross_entropy(module(images), targets).backward()

    return call


def medians(calls: tuple[Callable[[], object], ...], rounds: int) -> list[float]:
    """Median seconds of each call; the calls alternate, after one warm-up each."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for call, seconds in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if turn:
                seconds.append(time.perf_counter() - started)
    return [statistics.median(seconds) for seconds in times]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2, help="Images per step and explanation.")
    parser.add_argument("--network", action="append", help="Repeatable. Default: vmamba-t, vim-t.")
    options = parser.parse_args()
    images = torch.randn(options.batch, 3, 224, 224)
    targets = torch.arange(options.batch)
    rows = []
    for name in options.network or ("vmamba-t", "vim-t"):
        explained, step = network(name), training_step(name, images, targets)
        explanations = [
            partial(method, explained, images, targets, batch_size=options.batch)
            for method, _ in METHODS.values()
        ]
        trained, *explaining = medians((step, *explanations), options.rounds)
        for (method, (_, goal)), seconds in zip(METHODS.items(), explaining, strict=True):
            numbers = (f"{1e3 * seconds:.0f}", f"{1e3 * trained:.0f}", f"{seconds / trained:.2f}")
            rows.append((name, method, *numbers, f"{goal:g}"))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {options.batch}")
    headers = ("network", "method", "ms", "training step ms", "ratio", "at most")
    print(tabulate(rows, headers, disable_numparse=True))


if __name__ == "__main__":
    main()
