"""Measures the time that freezing saves, the cost of the gradient profile, and the peak memory.

    python benchmarks/finetune.py            # umamba, 256 x 256, batch 2: minutes
    python benchmarks/finetune.py --quick    # umamba-pico, 64 x 64: about a minute

1. The time of training steps: full fine-tuning and several freezing rules, each with a separate
   network and optimizer, in one process, with nnU-Net's loss and SGD on patches of the bundled
   cells, drawn beforehand. The steps alternate in an order that changes every round. A ratio is the
   time of a rule's step divided by that of full fine-tuning in the same round; the table has the
   median over rounds and its 95 % interval (bootstrap over rounds). The rules use a profile of the
   first steps of full fine-tuning, measured here.
2. The cost of the profile: seconds of `GradientProfile.add` divided by seconds of the preceding
   step.
3. The peak resident memory of training steps of `umamba`, in a separate process.

Weights are the initial ones, or the bundled ones: the time does not depend on them, but the frozen
tensors do. The third column of the table is counted, with convolutions and matrix products only.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor, nn

from robustcli.adapters.fetching import local_path
from robustcli.adapters.load import resolve
from robustcli.adapters.trainable import heads_of, start_segmenter
from robustcli.data.masks import decode_pair
from robustcli.data.sources import Masks, open_dataset
from robustcli.finetuning.freezing import freeze, hold_statistics, saving
from robustcli.finetuning.gradients import GradientProfile
from robustcli.finetuning.gradients import statistics as gradient_statistics
from robustcli.finetuning.modes import peak_resident, start_anew
from robustcli.finetuning.selection import DOCUMENTED, FreezeRule, freeze_decisions
from robustcli.training.datamodule import BatchSettings, Decoded, DecodedSubset
from robustcli.training.lit_module import outputs
from robustcli.training.mask_samples import MaskBatch
from robustcli.training.procedures.nnunet import NnUNetModule, PatchData
from robustcli.training.recipes import NAMED_RECIPES, Recipe

RULES = {
    "mamba below 1e-6": FreezeRule(threshold=DOCUMENTED),
    "lowest 0.3 of all": FreezeRule(quantile=0.3, scope="all"),
    "lowest 0.6 of all": FreezeRule(quantile=0.6, scope="all"),
    "encoder.*": FreezeRule(pattern="encoder.*"),
}
DATA, IMAGES, BATCHES = "nuclei-mini:stained", 12, 8
PROFILE_GOAL, MEMORY_GOAL = 0.03, 3e9
FULL = "full"
Seconds = NDArray[np.float64]
"""Seconds of the three parts of a step: forward, backward, update."""


@dataclass
class Trainee:
    """A network in training with one freezing rule, and the seconds of its steps.

    Args:
        module: The module of the network, whose tensors `frozen` are frozen.
        frozen: Names of the frozen tensors.
    """

    module: NnUNetModule
    frozen: tuple[str, ...] = ()
    rounds: list[Seconds] = field(default_factory=list)

    def __post_init__(self) -> None:
        freeze(self.module.network, self.frozen)
        hold_statistics(self.module.network)
        self.optimizer = self.module.make_optimizer()

    def backward(self, batch: MaskBatch) -> tuple[float, float]:
        """Runs the forward and backward pass; returns the seconds of both."""
        began = time.perf_counter()
        loss = self.module.loss(outputs(self.module.network, batch.images), batch.masks)
        between = time.perf_counter()
        loss.backward()
        return between - began, time.perf_counter() - between

    def update(self) -> float:
        """Clips, takes the optimizer step and resets gradients; returns the seconds."""
        began = time.perf_counter()
        norm = self.module.recipe.clip
        assert norm is not None
        nn.utils.clip_grad_norm_(self.module.network.parameters(), norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - began

    def step(self, batch: MaskBatch) -> Seconds:
        """Runs a complete step; returns the seconds of its three parts."""
        return np.array([*self.backward(batch), self.update()])


def recipe_of(size: int, batch: int) -> Recipe:
    """The recipe of nnU-Net, with patches of `size` pixels."""
    return replace(NAMED_RECIPES["nnunet"], window=size, batch_size=batch)


def start(name: str) -> nn.Module:
    """The network `name` with its bundled weights, or else with initial weights."""
    entry = resolve(name)
    weights = None if entry.asset is None else local_path(entry)
    network, _ = start_segmenter(
        entry, {}, seed=0, weights=weights, untrained=weights is None, offline=True
    )
    return network.train()


def batches(recipe: Recipe) -> list[MaskBatch]:
    """Augmented, normalised patches of the bundled stained cells."""
    pairs = open_dataset(DATA, Masks(surveyed=False)).samples[:IMAGES]
    decoded = [Decoded(image, mask.view(np.uint8)) for image, mask in map(decode_pair, pairs)]
    part = DecodedSubset.of(pairs, decoded)
    loader = PatchData(part, part, recipe, BatchSettings(seed=0, workers=0)).train_dataloader()
    return [batch for batch, _ in zip(loader, range(BATCHES), strict=False)]


def cycle(given: Sequence[MaskBatch]) -> Iterator[MaskBatch]:
    """Repeats the batches endlessly."""
    while True:
        yield from given


def profiled(trainee: Trainee, stream: Iterator[MaskBatch], iterations: int) -> GradientProfile:
    """Profiles the next steps of `trainee`, and prints the cost of the profile."""
    profile = GradientProfile(trainee.module.network)
    shares = []
    for turn in range(iterations + 1):
        before = sum(trainee.backward(batch := next(stream))) if turn else 0.0
        if not turn:  # the first step of a process allocates memory
            trainee.step(next(stream))
            continue
        assert batch is not None
        began = time.perf_counter()
        profile.add()
        adding = time.perf_counter() - began
        shares.append(adding / (before + trainee.update()))
    share = statistics.median(shares)
    print(
        f"Profile: {share:.2%} of a step (median of {len(shares)}; goal: at most "
        f"{PROFILE_GOAL:.0%}, {'met' if share <= PROFILE_GOAL else 'missed'})."
    )
    return profile


def trainees(first: Trainee, profile: GradientProfile, model: str) -> dict[str, Trainee]:
    """One trainee per rule, with the weights of `first`, which trains all parameters."""
    found = {FULL: first}
    measured = gradient_statistics(profile.rows())
    for name, rule in RULES.items():
        decisions = freeze_decisions(measured, rule, heads_of(resolve(model)))
        frozen = tuple(d.name for d in decisions if d.frozen)
        module = NnUNetModule(copy.deepcopy(first.module.network), first.module.recipe)
        found[name] = Trainee(module, frozen)
    return found


def alternate(known: dict[str, Trainee], stream: Iterator[MaskBatch], rounds: int) -> None:
    """Runs one step of each trainee per round; the first one changes in every round."""
    names = list(known)
    for turn in range(rounds + 1):
        batch = next(stream)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            parts = known[name].step(batch)
            if turn:  # the first round is a warm-up
                known[name].rounds.append(parts)


def ratio(one: Trainee, full: Trainee) -> tuple[float, float, float]:
    """Median over rounds of the time of `one` divided by that of `full`; its 95 % interval."""
    ratios = np.array([a.sum() / b.sum() for a, b in zip(one.rounds, full.rounds, strict=True)])
    drawn = np.random.default_rng(0).choice(ratios, (4000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def table(known: dict[str, Trainee], sample: Tensor) -> str:
    """The table, with one line per rule."""
    lines = []
    for name, one in known.items():
        network, full = one.module.network, known[FULL].module.network
        work = saving(full, one.frozen, sample, moments=1)
        forward, backward, update = np.median(one.rounds, axis=0)
        seconds = forward + backward + update
        middle, low, high = ratio(one, known[FULL])
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        lines.append(
            (name, f"{1 - trained / work.parameters:.1%}", f"{work.flops_saved / work.flops:.1%}",
             f"{seconds:.3f}", *(f"{part / seconds:.0%}" for part in (forward, backward, update)),
             f"{middle:.3f}", f"{low:.3f}-{high:.3f}")
        )  # fmt: skip
    heads = ("rule", "frozen", "work saved", "s a step", "forward", "backward", "optimizer",
             "time / full", "95 % interval")  # fmt: skip
    return tabulate(lines, heads, disable_numparse=True)


def print_memory(model: str, size: int, batch: int) -> None:
    """Prints the peak memory of two steps on generated patches: total, and above the start."""
    cpu, recipe = torch.device("cpu"), recipe_of(size, batch)
    trainee = Trainee(NnUNetModule(start(model), recipe))
    images = torch.rand(batch, 3, size, size)
    made = MaskBatch(images, images[:, :1].round(), [], torch.arange(batch), images[:, :1] > 0)
    start_anew(cpu)
    before = peak_resident(cpu)
    for _ in range(2):
        trainee.step(made)
    peak = peak_resident(cpu)
    print(
        f"Memory: `{model}` at {size} x {size}, batch {batch}, with gradient and SGD: peak "
        f"{peak / 1e9:.2f} GB resident, {(peak - before) / 1e9:.2f} GB above the process with the "
        f"network alone (goal: below {MEMORY_GOAL / 1e9:.0f} GB, "
        f"{'met' if peak < MEMORY_GOAL else 'missed'})."
    )


def main() -> None:
    """Runs and prints the three measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model")
    parser.add_argument("--size", type=int)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--profile", type=int, help="number of profiled steps")
    parser.add_argument("--memory-only", action="store_true")
    asked = parser.parse_args()
    size = asked.size or (64 if asked.quick else 256)
    if asked.memory_only:
        print_memory(asked.model or "umamba", size, asked.batch)
        return
    model = asked.model or ("umamba-pico" if asked.quick else "umamba")
    recipe = recipe_of(size, asked.batch)
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads; {model}, {size} px, batch {asked.batch}")
    given = batches(recipe)
    first, stream = Trainee(NnUNetModule(start(model), recipe)), cycle(given)
    profile = profiled(first, stream, asked.profile or (10 if asked.quick else 20))
    known = trainees(first, profile, model)
    alternate(known, stream, asked.rounds or (30 if asked.quick else 12))
    print(table(known, given[0].images))
    memory = [sys.executable, __file__, "--memory-only", "--size", "256", "--batch", "2"]
    print(subprocess.run(memory, check=True, capture_output=True, text=True).stdout, end="")


if __name__ == "__main__":
    main()
