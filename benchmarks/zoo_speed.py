"""Time of a training step of each CIFAR network, relative to ViT.

`python benchmarks/zoo_speed.py` runs training steps (forward, backward, Adam) on 64 images of
32 x 32 pixels. The networks alternate, so that other load affects all of them equally. It prints
the milliseconds and images per second of each network, by the median step, and its time relative to
ViT. The goal for `vim` (patches of 4 pixels) on the CPU is at most 3. `--core` measures the
processor time of all threads instead of wall-clock time, for busy machines; it does not show how
well the threads share the work. Takes about a minute.
"""

from __future__ import annotations

import argparse
import statistics
import time

from robustcli.core.machine import wait_briefly

wait_briefly()  # before torch loads OpenMP, as in `robust`

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import robustcli  # noqa: E402

NETWORKS = ("vit", "vim", "resnet9", "vmamba-pico", "resnet-pico")
BATCH = 64


class Steps:
    """Training steps of one network on generated images."""

    def __init__(self, name: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = robustcli.create_model(name).to(device).train()
        self.optimizer = torch.optim.Adam(self.network.parameters())
        self.images = torch.rand(BATCH, 3, 32, 32, device=device)
        self.targets = torch.randint(10, (BATCH,), device=device)

    def step(self) -> float:
        """Runs a step; returns its loss, which synchronises the device."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(self.images), self.targets)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def main() -> None:
    """Prints one line per network."""
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
