"""`run.json` of several seeds beside each other, of a training or of a fine-tuning.

RUN/run.json        what follows here
RUN/seed-0/, ...    a training run (`training.record`) or a fine-tuning (`finetuning.record`) for
                    each seed, called by it
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
    """A seed that did not come to its end, and why, in a line."""

    seed: int
    error: str


class SeedsRecord(BaseRunRecord):
    """All of a folder's `run.json`.

    `of` is the command; the seeds are the `count` numbers from `seed` on. `split_seed` chose the
    parts of the data of all of them. `failures` are those of the last command that worked here.
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
    """Where the run of `seed` lies."""
    return run / f"seed-{seed}"


_FLAGS = {
    "of": "The command",
    "model": "The network",
    "arguments": "`--model-arg`",
    "seed": "`--seed`",
    "split_seed": "`--split-seed`",
}


def _differences(old: SeedsRecord, new: SeedsRecord) -> Iterator[str]:
    """Sentences on what differs for all seeds; more of them are no difference."""
    yield from changed_fields(old, new, _FLAGS)
    options = "`--data`, `--limit`, `--split-seed`"
    yield from dataset_differences(old.dataset, new.dataset, options)


def _kept(old: SeedsRecord, new: SeedsRecord) -> dict[str, Any]:
    """Seeds are added, and none is taken back."""
    return {"count": max(old.count, new.count)}


SEEDS = RunKind(
    SeedsRecord,
    "several seeds",
    "robust train --seeds N` or `robust finetune --seeds N",
    ("figures",),
    ("results.csv", "results.json", "report.md", "report.html"),
    _differences,
    _kept,
    results=tuple(f"seed-*/{depth}{name}" for depth in ("", "*/") for name in FIRST_RESULTS),
)
"""The folders of `robust train --seeds` and `robust finetune --seeds`."""


def read_seeds_record(run: Path) -> SeedsRecord:
    """The record of the seeds in the folder `run`; raises as `RunKind.read` does."""
    return SEEDS.read(run)
