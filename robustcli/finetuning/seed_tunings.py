"""`robust finetune --seeds N`: trains every mode with every seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.core.listener import Listener, Silent
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.finetune_plan import (
    finetune_record,
    first_mode,
    mode_differences,
    plan_finetuning,
)
from robustcli.finetuning.mode_trainings import (
    devices_begun,
    modes_beside,
    run_finetune_plan,
)
from robustcli.finetuning.record import FINETUNING
from robustcli.training.seed_runs import (
    OnFailure,
    SeedRuns,
    check_launcher,
    listener_of_first,
    run_seeds,
    seeds_beside,
)
from robustcli.training.side_by_side import SeparateRun


def finetune_seeds(
    config: FinetuneConfig, listener: Listener | None = None, on_failure: OnFailure | None = None
) -> Path:
    """Fine-tunes with `config.training.seeds` seeds, counted from `config.training.seed`.

    Returns:
        The common folder, with the runs RUN/seed-0/MODE, RUN/seed-1/MODE, ...

    Raises:
        UsageError: A named model, data set or file does not exist, or options contradict each
            other.
        SeedsError: Some seeds failed; all others are finished.
    """
    check_scores(config)
    check_launcher()
    parallel_seeds = seeds_beside(config.training, devices_begun)
    modes = None if parallel_seeds else modes_beside(config)
    if parallel_seeds or modes is not None:
        config = replace(config, training=replace(config.training, devices=1))
    plan = plan_finetuning(config, listener_of_first(listener))

    def start(seed: int, out: Path, heard: Listener) -> None:
        of_seed = None if modes is None else modes.for_seed(seed, out)
        run_finetune_plan(plan.for_seed(seed, out), heard, of_seed)

    def separately(seed: int, out: Path) -> SeparateRun:
        return SeparateRun(f"seed {seed}", _tune_seed, (config, seed, out))

    def differences(seed: int, out: Path) -> Iterator[str]:
        seed_plan = plan.for_seed(seed, out)
        network, _ = seed_plan.network(first_mode(seed_plan))
        old = FINETUNING.read(out)
        yield from FINETUNING.differences(old, finetune_record(seed_plan, network))
        yield from mode_differences(seed_plan, old)

    fresh = config.training.fresh
    runs = SeedRuns(
        plan.run, "finetune", FINETUNING, plan.training, fresh, start, differences, separately,
        parallel_seeds,
    )  # fmt: skip
    return run_seeds(runs, listener, on_failure)


def _tune_seed(
    config: FinetuneConfig, seed: int, out: Path, device: str, listener: Listener
) -> None:
    """Fine-tunes with one seed on `device`; called in a separate process."""
    config = replace(config, training=replace(config.training, device=device))
    run_finetune_plan(plan_finetuning(config, Silent()).for_seed(seed, out), listener)


def check_scores(config: FinetuneConfig) -> None:
    """Raises UsageError if no mode is trained, because the seeds would have no scores."""
    if config.profile_only:
        raise UsageError(
            "`--seeds` and `--profile-only` exclude each other.",
            "A profile has no score to average over seeds.",
            "Omit one of them.",
        )
