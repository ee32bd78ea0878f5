"""What a training step of each network for CIFAR takes, beside that of ViT.

`python benchmarks/zoo_speed.py` takes steps of 64 images of 32 x 32 pixels, forward, backward and
Adam, of the networks in turn, so that other programs slow all of them alike. It prints milliseconds
and images per second of each, by the median step, and its time in ViT's. The goal for `vim`
(patches of 4 pixels) on the CPU is at most 3 times. `--core` counts the processor time of all
threads instead of seconds, for a busy machine: what a step costs, not how well threads share it.
About a minute.
"""

from __future__ import annotations

import argparse
import statistics
import time

from robustcli.core.machine import wait_briefly

wait_briefly()  # before torch loads OpenMP, as `robust` does it

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import robustcli  # noqa: E402

NETWORKS = ("vit", "vim", "resnet9", "vmamba-pico", "resnet-pico")
BATCH = 64


class Steps:
    """Training steps of one network on made-up images."""

    def __init__(self, name: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = robustcli.create_model(name).to(device).train()
        self.optimizer = torch.optim.Adam(self.network.parameters())
        self.images = torch.rand(BATCH, 3, 32, 32, device=device)
        self.targets = torch.randint(10, (BATCH,), device=device)

    def step(self) -> float:
        """Takes a step; returns its loss, for which the device must be done."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(self.images), self.targets)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def main() -> None:
    """Prints a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--core", action="store_true")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.core else time.perf_counter
    device = torch.device(arguments.device)
    every = {name: Steps(name, device) for name in arguments.networks}
    times: dict[str, list[float]] = {name: [] for name in every}
    for number in range(arguments.steps + 2):
        for name, steps in every.items():
            started = clock()
            steps.step()
            if number >= 2:
                times[name].append(clock() - started)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    first = medians[arguments.networks[0]]
    print(f"{torch.get_num_threads()} threads, batch {BATCH}, {'core ' * arguments.core}time")
    for name, seconds in medians.items():
        rate = BATCH / seconds
        print(f"{name:<14} {1000 * seconds:8.1f} ms  {rate:8.0f} images/s  {seconds / first:6.2f}")


if __name__ == "__main__":
    main()
