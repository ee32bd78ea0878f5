"""`--seeds N --dry-run`: the forecast of one seed and the number of unfinished seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from robustcli.core.listener import Listener
from robustcli.core.rundir import RunKind, has_record
from robustcli.training.config import TrainConfig
from robustcli.training.record import TRAINING
from robustcli.training.seed_runs import check_launcher, train_seeds_beside
from robustcli.training.seeds_record import read_seeds_record, seed_folder
from robustcli.training.train_forecast import forecast_plan
from robustcli.training.train_plan import plan_training


class SeedForecast(Protocol):
    """The forecast of one seed."""

    def as_json(self) -> str:
        """The forecast as one JSON object."""

    def as_text(self) -> str:
        """The forecast as lines of text."""


@dataclass(frozen=True)
class SeedsForecast:
    """The forecast of several seeds.

    Args:
        out: Folder of all seeds.
        seeds: All seeds.
        finished: The finished seeds in that folder.
        first_seed: Forecast of the first seed; those of the others are equal.
        parallel_seeds: Number of seeds trained at the same time, each on a separate device; 0 for
            one after the other.
    """

    out: str
    seeds: Sequence[int]
    finished: Sequence[int]
    first_seed: SeedForecast
    parallel_seeds: int = 0

    def as_json(self) -> str:
        """The forecast as one JSON object."""
        fields = {"out": self.out, "seeds": list(self.seeds), "finished": list(self.finished)}
        return json.dumps({**fields, "each": json.loads(self.first_seed.as_json())}, indent=2)

    def as_text(self) -> str:
        """The forecast as lines of text."""
        listed = ", ".join(map(str, self.seeds))
        finished = ", ".join(map(str, self.finished)) or "none"
        at_a_time = [f"Devices:    {self.parallel_seeds}, each trains one seed at a time"]
        return "\n".join(
            [
                f"Seeds:      {len(self.seeds)} ({listed}) in {self.out}; finished: {finished}",
                *(at_a_time if self.parallel_seeds else []),
                f"Values below are per seed; time and disk space count {len(self.seeds)} times.",
                self.first_seed.as_text(),
            ]
        )


def seeds_in(config: TrainConfig, run: Path, kind: RunKind[Any]) -> tuple[list[int], list[int]]:
    """All seeds of the folder `run`, and the finished ones among them."""
    count = config.seeds or 1
    if has_record(run) and not config.fresh:
        count = max(count, read_seeds_record(run).count)
    seeds = list(range(config.seed, config.seed + count))
    folders = {seed: seed_folder(run, seed) for seed in seeds}
    finished = [
        seed
        for seed, folder in folders.items()
        if has_record(folder) and not config.fresh and kind.read(folder).status == "complete"
    ]
    return seeds, finished


def forecast_train_seeds(config: TrainConfig, listener: Listener) -> SeedsForecast:
    """The forecast for the seeds of `config`; writes nothing.

    Raises:
        UsageError: A named model, data set or recipe does not exist, or options contradict each
            other.
    """
    check_launcher()
    parallel_seeds = train_seeds_beside(config)
    plan = plan_training(replace(config, devices=1) if parallel_seeds else config, listener)
    seeds, finished = seeds_in(config, plan.run, TRAINING)
    first = plan.for_seed(config.seed, seed_folder(plan.run, config.seed))
    return SeedsForecast(str(plan.run), seeds, finished, forecast_plan(first), parallel_seeds)
