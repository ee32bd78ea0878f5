"""The commands as functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from robustcli.adapters.load import ModelRequest
from robustcli.adapters.training_run import weights_in
from robustcli.evaluation import evaluate as evaluation
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.record import RunRecord, read_record
from robustcli.finetuning.record import (
    DECISIONS,
    PROFILE,
    FinetuneRecord,
    Mode,
    read_finetune_record,
)
from robustcli.reports.render import render
from robustcli.training.record import TrainRecord, read_train_record

if TYPE_CHECKING:
    import pandas as pd

    from robustcli.finetuning.rules import FreezeRule


@dataclass(frozen=True)
class Run:
    """A run in its folder."""

    path: Path

    @property
    def record(self) -> RunRecord:
        """What the run was made of (`run.json`)."""
        return read_record(self.path)

    def table(self) -> pd.DataFrame:
        """One row per model, transform and severity; the columns of `results.csv`."""
        return table(self.path)

    def report(self) -> Path:
        """Renders the report; returns the path of `report.md`."""
        return render(self.path)


@dataclass(frozen=True)
class Training:
    """A training run in its folder."""

    path: Path

    @property
    def record(self) -> TrainRecord:
        """What was trained and how (`run.json`)."""
        return read_train_record(self.path)

    @property
    def weights(self) -> Path:
        """The chosen weights; the folder itself is a model name too."""
        return weights_in(self.path)

    @property
    def test(self) -> Run:
        """The evaluation on the held-out images."""
        return Run(self.path / "test")

    def report(self) -> Path:
        """Renders the report; returns the path of `report.md`."""
        return render(self.path)


@dataclass(frozen=True)
class Finetuning:
    """A fine-tuning in its folder."""

    path: Path

    @property
    def record(self) -> FinetuneRecord:
        """What was fine-tuned and how (`run.json`)."""
        return read_finetune_record(self.path)

    def training(self, mode: Mode) -> Training:
        """The training run of a mode."""
        return Training(self.path / mode)

    def table(self) -> pd.DataFrame:
        """A row per finished mode: `mode`, then the columns of its held-out evaluation."""
        import pandas as pd

        modes = [m for m in self.record.modes if self.training(m).test.path.is_dir()]
        rows = [self.training(mode).test.table().assign(model=mode) for mode in modes]
        found = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["model"])
        return found.rename(columns={"model": "mode"})

    def profile(self) -> pd.DataFrame:
        """The gradients that decided: a row per iteration and tensor (`gradients.parquet`)."""
        import pandas as pd

        return pd.read_parquet(self.path / PROFILE)

    def decisions(self) -> pd.DataFrame:
        """What became of every tensor, and why (`frozen.csv`)."""
        import pandas as pd

        return pd.read_csv(self.path / DECISIONS, dtype={"shape": str})

    def report(self) -> Path:
        """Renders the report; returns the path of `report.md`."""
        return render(self.path)


def evaluate(
    model: str | Sequence[str],
    data: str | Path | None,
    transforms: str | Sequence[str],
    *,
    out: str | Path,
    weights: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    untrained: bool = False,
    **options: Any,
) -> Run:
    """The run that `robust eval` would make, computed as far as it is missing.

    Args:
        model: One name or several.
        data: A folder, tar, manifest or data set name; None for the default of the label space.
        transforms: Names, globs or presets, one or several.
        out: Folder of the run.
        weights: A weights file, with one model only.
        model_args: For the model's builder.
        preprocessing: `resize`, `crop`, `interpolation`, `mean`, `std` to override.
        untrained: Evaluate the network as initialised.
        options: Further fields of `robustcli.evaluation.config.EvalConfig` (`severities`, `seed`,
            `per_class`, `limit`, `quick`, `fail_under`, `fail_drop`, `device`, `devices`,
            `precision`, `batch_size`, `workers`, ...).

    Raises:
        UsageError: Something named does not exist or does not fit together.
        RunError: Computing failed, rows are missing at the end, or another process works in `out`;
            finished blocks are kept.
        GateError: The run is complete, and a number breaks a limit of `fail_under` or `fail_drop`.
    """
    names = [model] if isinstance(model, str) else list(model)
    wanted = [transforms] if isinstance(transforms, str) else list(transforms)
    requests = tuple(
        ModelRequest(
            name,
            None if weights is None else Path(weights),
            dict(model_args or {}),
            dict(preprocessing or {}),
            options.get("label_space"),
            untrained,
        )
        for name in names
    )
    place = None if data is None else str(data)
    config = EvalConfig(requests, tuple(wanted), place, Path(out), **options)
    return Run(evaluation.evaluate(config))


def train(
    model: str, data: str | Path | None = None, *, out: str | Path, **options: Any
) -> Training:
    """The training that `robust train` would do, as far as it is not done yet.

    Args:
        model: A model of `robust list models`, `smp:ARCHITECTURE/ENCODER` or any timm name.
        data: A folder, manifest or data set name; None for the default of segmenters.
        out: Folder of the run.
        options: Further fields of `robustcli.training.config.TrainConfig` (`protocol`, `epochs`,
            `lr`, `batch_size`, `seed`, `device`, ...).

    Raises:
        UsageError: Something named does not exist or does not fit together.
        RunError: Training failed; the last finished epoch is kept.
    """
    # Lightning takes seconds to import, which evaluating need not wait for.
    from robustcli.training.config import TrainConfig
    from robustcli.training.engine import run_training

    place = None if data is None else str(data)
    return Training(run_training(TrainConfig(model, place, Path(out), **options)))


def finetune(
    model: str,
    data: str | Path | None = None,
    *,
    out: str | Path,
    pretrained: str | Path | None = None,
    mode: Literal["scratch", "full", "freeze", "lora", "all"] = "all",
    rule: FreezeRule | None = None,
    profile_iterations: int | None = None,
    profile: str | Path | None = None,
    profile_only: bool = False,
    iterations: int | None = None,
    sweep: bool = False,
    **options: Any,
) -> Finetuning:
    """The fine-tuning that `robust finetune` would do, as far as it is not done yet.

    Args:
        model: A model of `robust list models`, or any timm name.
        data: A folder, manifest or data set name; None for the default of segmenters.
        out: Folder of the run.
        pretrained: A file of weights, a training run, or a results folder of nnU-Net; None for the
            bundled weights.
        mode: What is trained; `all` is scratch, full and freeze.
        rule: What is frozen (`robustcli.finetuning.rules.FreezeRule`); None for the documented
            threshold.
        profile_iterations: Profiled steps.
        profile: A profile to take instead of measuring one.
        profile_only: Stop when the profile is there.
        iterations: Steps of each mode.
        sweep: Also train by other rules, and time what each saves.
        options: Further fields of `robustcli.training.config.TrainConfig` (`lr`, `seed`, ...).

    Raises:
        UsageError: Something named does not exist or does not fit together, or nothing would be
            left to train.
        RunError: Training failed; the last finished epoch is kept.
    """
    from robustcli.finetuning.config import FinetuneConfig
    from robustcli.finetuning.mode_trainings import run_finetuning
    from robustcli.finetuning.rules import make_rule
    from robustcli.training.config import TrainConfig

    training = TrainConfig(
        model, None if data is None else str(data), Path(out),
        **{"command": "robustcli.finetune(...)", **options},
    )  # fmt: skip
    config = FinetuneConfig(
        training, None if pretrained is None else Path(pretrained), mode, rule or make_rule(),
        profile_iterations, None if profile is None else Path(profile), profile_only, iterations,
        sweep,
    )  # fmt: skip
    return Finetuning(run_finetuning(config))
