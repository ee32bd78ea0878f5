"""Format of `run.json` in a folder with several seeds of a training or fine-tuning.

RUN/run.json        `SeedsRecord`
RUN/seed-0/, ...    a training run (`training.record`) or a fine-tuning (`finetuning.record`) per
                    seed
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from robustcli.core.names import TaskName
from robustcli.core.rundir import BaseRunRecord, Record, RunKind, changed_fields
from robustcli.tasks.record import DatasetRecord, dataset_differences
from robustcli.training.record import FIRST_RESULTS


class SeedFailure(Record):
    """A seed that failed, with the reason in one line."""

    seed: int
    error: str


class SeedsRecord(BaseRunRecord):
    """The content of `run.json` in a folder with several seeds.

    `of` is the command. The seeds are `count` consecutive numbers from `seed`. `split_seed` is the
    seed of their common data split. `failures` are those of the last command in this folder.
    """

    kind: Literal["seeds"] = "seeds"
    of: Literal["train", "finetune"]
    task: TaskName
    status: Literal["running", "complete", "failed"]
    seed: int
    count: int
    split_seed: int
    model: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    dataset: DatasetRecord
    failures: list[SeedFailure] = Field(default_factory=list)

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, in order."""
        return tuple(range(self.seed, self.seed + self.count))

    def folders(self, run: Path) -> dict[int, Path]:
        """The folder of each seed."""
        return {seed: seed_folder(run, seed) for seed in self.seeds}


def seed_folder(run: Path, seed: int) -> Path:
    """The run folder of `seed`."""
    return run / f"seed-{seed}"


_FLAGS = {
    "of": "The command",
    "model": "The network",
    "arguments": "`--model-arg`",
    "seed": "`--seed`",
    "split_seed": "`--split-seed`",
}


def _differences(old: SeedsRecord, new: SeedsRecord) -> Iterator[str]:
    """One sentence per setting that differs; a larger number of seeds is allowed."""
    yield from changed_fields(old, new, _FLAGS)
    options = "`--data`, `--limit`, `--split-seed`"
    yield from dataset_differences(old.dataset, new.dataset, options)


def _kept_fields(old: SeedsRecord, new: SeedsRecord) -> dict[str, Any]:
    """Keeps all seeds of the old record."""
    return {"count": max(old.count, new.count)}


SEEDS = RunKind(
    SeedsRecord,
    "several seeds",
    "robust train --seeds N` or `robust finetune --seeds N",
    ("figures",),
    ("results.csv", "results.json", "report.md", "report.html"),
    _differences,
    _kept_fields,
    results=tuple(f"seed-*/{depth}{name}" for depth in ("", "*/") for name in FIRST_RESULTS),
)
"""Defines the folders of `robust train --seeds` and `robust finetune --seeds`."""


def read_seeds_record(run: Path) -> SeedsRecord:
    """The record of the seeds in the folder `run`; raises the errors of `RunKind.read`."""
    return SEEDS.read(run)
