"""The commands as functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from robustcli.adapters.catalogue import ModelRequest
from robustcli.core.objects import names_url, path_here
from robustcli.core.rundir import has_record
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.record import RunRecord, read_record
from robustcli.explanation.explained_rows import read_arrays, read_explained_rows
from robustcli.explanation.record import ExplainRecord, read_explain_record
from robustcli.finetuning.record import (
    DECISIONS,
    PROFILE,
    FinetuneRecord,
    Mode,
    read_finetune_record,
)
from robustcli.reports.comparison import Comparison, read_comparison
from robustcli.reports.seeds_comparison import (
    SeedsComparison,
    names_seeds_only,
    read_seeds_comparison,
    write_seeds_comparison,
)
from robustcli.training.record import TrainRecord, read_train_record
from robustcli.training.seeds_record import SeedsRecord, read_seeds_record

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from torch import nn

    from robustcli.adapters.exported import ExportFormat
    from robustcli.core.working_copy import Use
    from robustcli.evaluation.exporting import Exported
    from robustcli.finetuning.selection import FreezeRule
    from robustcli.reports.publishing import PublishResult
    from robustcli.verification.verification_result import Verification


ModelLike: TypeAlias = "str | nn.Module | Callable[..., nn.Module]"


@dataclass(frozen=True)
class _RunFolder:
    path: Path

    def report(self) -> Path:
        """Renders the report; returns the path of `report.md`."""
        from robustcli.reports.render import render  # draws pictures: a second to import

        return render(self.path)


@dataclass(frozen=True)
class Run(_RunFolder):
    """A run in its folder."""

    @property
    def record(self) -> RunRecord:
        """What the run was made of (`run.json`)."""
        return read_record(self.path)

    def table(self) -> pd.DataFrame:
        """One row per model, transform and severity; the columns of `results.csv`."""
        return table(self.path)


@dataclass(frozen=True)
class ExplanationRun(_RunFolder):
    """An explanation in its folder."""

    @property
    def record(self) -> ExplainRecord:
        """What was explained and how (`run.json`)."""
        return read_explain_record(self.path)

    def rows(self) -> pd.DataFrame:
        """A row per method, photo, view and target, with the scores of its map.

        The columns are those of `robustcli.explanation.explained_rows.EXPLAINED_SCHEMA`.
        """
        return read_explained_rows(self.path)

    def arrays(self, row: Mapping[str, Any]) -> ExplainedArrays:
        """The map, the photo and the picture that a row of `rows()` names."""
        arrays = read_arrays(self.path, str(row["array_file"]))
        index, pictures = int(row["array_index"]), arrays.pictures
        return ExplainedArrays(
            arrays.maps[index].astype("float32"),
            arrays.photos[int(row["photo_index"])],
            None if pictures is None else pictures[index],
        )


@dataclass(frozen=True)
class ExplainedArrays:
    """The arrays of one row of an explanation.

    Args:
        relevance: float32 (H, W), evidence for the target per pixel.
        photo: uint8 (H, W, 3), as the network saw it before normalisation.
        picture: uint8 (H, W, 3) that the network made (learned features); else None.
    """

    relevance: NDArray[np.float32]
    photo: NDArray[np.uint8]
    picture: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Training(_RunFolder):
    """A training run in its folder."""

    @property
    def record(self) -> TrainRecord:
        """What was trained and how (`run.json`)."""
        return read_train_record(self.path)

    @property
    def weights(self) -> Path:
        """The chosen weights; the folder itself is a model name too."""
        from robustcli.adapters.training_run import weights_in

        return weights_in(self.path)

    @property
    def test(self) -> Run:
        """The evaluation on the held-out images."""
        return Run(self.path / "test")


@dataclass(frozen=True)
class SeedFolder(_RunFolder):
    """Several seeds of a training or of a fine-tuning in their folder."""

    @property
    def record(self) -> SeedsRecord:
        """Which seeds of what (`run.json`)."""
        return read_seeds_record(self.path)

    @property
    def runs(self) -> dict[int, Training | Finetuning]:
        """The run of each seed that has begun."""
        kind = Training if self.record.of == "train" else Finetuning
        folders = self.record.folders(self.path)
        return {seed: kind(folder) for seed, folder in folders.items() if has_record(folder)}

    def table(self) -> pd.DataFrame:
        """A row per seed, then the mean and its intervals; the columns of `results.csv`."""
        from robustcli.reports.seeds_findings import read_seeds
        from robustcli.reports.seeds_page import seeds_results

        return seeds_results(read_seeds(self.path))


@dataclass(frozen=True)
class Finetuning(_RunFolder):
    """A fine-tuning in its folder."""

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
        table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["model"])
        return table.rename(columns={"model": "mode"})

    def profile(self) -> pd.DataFrame:
        """The gradients that decided: a row per iteration and tensor (`gradients.parquet`)."""
        import pandas as pd

        return pd.read_parquet(self.path / PROFILE)

    def decisions(self) -> pd.DataFrame:
        """What became of every tensor, and why (`frozen.csv`)."""
        import pandas as pd

        return pd.read_csv(self.path / DECISIONS, dtype={"shape": str})


def evaluate(
    model: ModelLike | Sequence[ModelLike] | Mapping[str, ModelLike],
    data: str | Path | None,
    transforms: str | Sequence[str],
    *,
    out: str | Path,
    weights: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    untrained: bool = False,
    classes: Sequence[str] | None = None,
    **options: Any,
) -> Run:
    """The run that `robust eval` would make, computed as far as it is missing.

    Args:
        model: One or several names; or torch.nn.Modules in memory, classes of them or functions
            that return one. A dictionary gives each its name in tables. A network in memory comes
            back in its mode and on its device.
        data: A folder, tar, manifest or data set name; None for the default of the label space.
        transforms: Names, globs or presets, one or several.
        out: Folder of the run, or its address in an object store (docs/remote.md).
        weights: A weights file, with one model only.
        model_args: For the model's builder.
        preprocessing: `resize`, `crop`, `interpolation`, `mean`, `std` to override.
        untrained: Evaluate the network as initialised.
        classes: Names of the outputs of a network of one's own, in their order; else they are
            recognised by their number, or named by `label_space`.
        options: Further fields of `robustcli.evaluation.config.EvalConfig` (`severities`, `seed`,
            `per_class`, `limit`, `quick`, `fail_under`, `fail_drop`, `device`, `devices`,
            `precision`, `batch_size`, `workers`, ...).

    Raises:
        UsageError: Something named does not exist or does not fit together.
        RunError: Computing failed, rows are missing at the end, or another process works in `out`;
            finished blocks are kept.
        GateError: The run is complete, and a number breaks a limit of `fail_under` or `fail_drop`.
    """
    # Reading runs, comparing and reporting them needs no torch.
    from robustcli.adapters.foreign import borrowed
    from robustcli.evaluation import evaluate as evaluation
    from robustcli.evaluation.config import EvalConfig

    models = _by_name(model)
    transform_names = [transforms] if isinstance(transforms, str) else list(transforms)
    requests = tuple(
        ModelRequest(
            name,
            None if weights is None else path_here(weights),
            dict(model_args or {}),
            dict(preprocessing or {}),
            options.get("label_space"),
            untrained,
            module,
            None if classes is None else tuple(classes),
        )
        for name, module in models
    )
    place = None if data is None else str(data)
    with _opened(out) as folder, borrowed(module for _, module in models):
        config = EvalConfig(requests, tuple(transform_names), place, folder, **options)
        return Run(evaluation.evaluate(config))


@contextmanager
def _opened(place: str | Path, use: Use = "work") -> Iterator[Path]:
    """The folder `place`; for an address of an object store, the folder of this machine for it."""
    if not names_url(place):
        yield Path(place)
        return
    from robustcli.core.working_copy import opened
    from robustcli.data.named_datasets import data_home

    with opened(str(place), data_home(), lambda _: None, use) as folder:
        yield folder


def _by_name(
    model: ModelLike | Sequence[ModelLike] | Mapping[str, ModelLike],
) -> list[tuple[str, object]]:
    """Each model's name, and the network in memory or what builds it; None where a name is all."""
    if isinstance(model, Mapping):
        return [
            (
                network if isinstance(network, str) else name,
                None if isinstance(network, str) else network,
            )
            for name, network in model.items()
        ]
    several = model if isinstance(model, Sequence) and not isinstance(model, str) else [model]
    return [
        (network, None)
        if isinstance(network, str)
        else (getattr(network, "__name__", None) or type(network).__name__, network)
        for network in several
    ]


def explain(
    model: ModelLike | None = None,
    data: str | Path | None = None,
    transforms: str | Sequence[str] = (),
    *,
    out: str | Path | None = None,
    run: str | Path | None = None,
    images: Sequence[str] = (),
    worst: int | None = None,
    class_name: str | None = None,
    methods: str | Sequence[str] = (),
    weights: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    untrained: bool = False,
    classes: Sequence[str] | None = None,
    **options: Any,
) -> ExplanationRun:
    """The explanation that `robust explain` would make, computed as far as it is missing.

    Args:
        model: A name, or a torch.nn.Module in memory, a class of them or a function that returns
            one; with `run` one of its models, or None.
        data: A folder, tar, manifest or data set name; None for the default of the label space.
        transforms: Names, globs or presets, one or several; none explains untouched photos.
        out: Folder of the run; None for `runs/explain-MODEL-HASH`.
        run: The folder of an evaluation, whose model, images and predictions are taken.
        images: Ids of photos.
        worst: So many photos that lose most under the transforms.
        class_name: The true class of the photos; of a segmenter of several classes the one whose
            pixels are explained, by its name or number.
        methods: Names or globs of `robustcli.explanation.methods.METHODS`; none for the usual ones.
        weights: A file of weights; with `run` one that has moved.
        model_args: For the builder.
        preprocessing: Changes to how the model sees photos.
        untrained: Explains a network without trained weights.
        classes: The classes of a network in memory, in the order of its outputs.
        options: Further fields of `robustcli.explanation.config.ExplainConfig` (`layer`, `sanity`,
            `limit`, `seed`, `device`, `batch_size`, ...).

    Raises:
        UsageError: Something named does not exist or does not fit together.
        MachineError: The data or the weights of a finished run are not here.
        RunError: Some maps could not be computed; all others are kept.
    """
    from robustcli.adapters.foreign import borrowed
    from robustcli.explanation.config import ExplainConfig
    from robustcli.explanation.explaining import explain as run_explanation

    named = [] if model is None else _by_name(model)
    requests = tuple(
        ModelRequest(
            name,
            None if weights is None or run is not None else path_here(weights),
            dict(model_args or {}),
            dict(preprocessing or {}),
            options.get("label_space"),
            untrained,
            module,
            None if classes is None else tuple(classes),
        )
        for name, module in named
    )
    with ExitStack() as stack:
        config = ExplainConfig(
            requests,
            (transforms,) if isinstance(transforms, str) else tuple(transforms),
            None if data is None else str(data),
            None if out is None else stack.enter_context(_opened(out)),
            source=None if run is None else stack.enter_context(_opened(run, "read")),
            moved=() if weights is None or run is None else (path_here(weights),),
            images=tuple(images),
            worst=worst,
            class_name=class_name,
            methods=(methods,) if isinstance(methods, str) else tuple(methods),
            **options,
        )
        stack.enter_context(borrowed(module for _, module in named))
        return ExplanationRun(run_explanation(config))


def compare(
    *runs: str | Path, out: str | Path | None = None, force_common: bool = False
) -> Comparison | SeedsComparison:
    """What `robust compare` says of the models of `runs`; `.table()` has it as numbers.

    Args:
        runs: Folders of evaluations, trainings or fine-tunings, or `RUN:MODEL` for one of a run's
            models (`RUN:MODE` of a fine-tuning, `RUN:seed-1` of several seeds). Folders of
            several seeds alone are compared by the means over their seeds.
        out: Folder for a report; None for none.
        force_common: Compares what the runs have in common where they differ; `differences` and
            `left_out` of the result say what that is.

    Raises:
        UsageError: There are fewer than two models, a run has no results yet, or runs differ in
            more than their models and `force_common` is False; the message names each difference.
    """
    from robustcli.reports.comparison_page import check_out, write_comparison

    folder = None if out is None else path_here(out, "`out`")
    if folder is not None:
        check_out(folder)
    if names_seeds_only(runs):
        seeds = read_seeds_comparison(runs, force_common=force_common)
        if folder is not None:
            write_seeds_comparison(seeds, folder, "robustcli.compare(...)")
        return seeds
    comparison = read_comparison(runs, force_common=force_common)
    if folder is not None:
        write_comparison(comparison, folder, "robustcli.compare(...)")
    return comparison


@overload
def train(
    model: str, data: str | Path | None = None, *, out: str | Path, seeds: None = None,
    **options: Any,
) -> Training: ...  # fmt: skip
@overload
def train(
    model: str, data: str | Path | None = None, *, out: str | Path, seeds: int, **options: Any
) -> SeedFolder: ...
def train(
    model: str, data: str | Path | None = None, *, out: str | Path, seeds: int | None = None,
    **options: Any,
) -> Training | SeedFolder:  # fmt: skip
    """The training that `robust train` would do, as far as it is not done yet.

    Args:
        model: A model of `robust list models`, `smp:ARCHITECTURE/ENCODER` or any timm name.
        data: A folder, manifest or data set name; None for the default of segmenters.
        out: Folder of the run.
        seeds: So many seeds, from `seed` on, beside each other in `out`; None for one training.
        options: Further fields of `robustcli.training.config.TrainConfig` (`protocol`, `epochs`,
            `lr`, `batch_size`, `seed`, `device`, ...); `ablate="scan"` trains the control of a
            Mamba network.

    Raises:
        UsageError: Something named does not exist or does not fit together.
        RunError: Training failed; the last finished epoch is kept, and so are the other seeds.
    """
    # Lightning takes seconds to import, which evaluating need not wait for.
    from robustcli.training.config import TrainConfig
    from robustcli.training.engine import run_training

    place = None if data is None else str(data)
    with _opened(out) as folder:
        config = TrainConfig(model, place, folder, seeds=seeds, **options)
        if seeds is None:
            return Training(run_training(config))
        from robustcli.training.seed_runs import train_seeds

        return SeedFolder(train_seeds(config))


@overload
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
    lora_layers: Sequence[str] = ("in_proj", "x_proj", "out_proj"),
    seeds: None = None,
    **options: Any,
) -> Finetuning: ...
@overload
def finetune(
    model: str,
    data: str | Path | None = None,
    *,
    out: str | Path,
    seeds: int,
    pretrained: str | Path | None = None,
    mode: Literal["scratch", "full", "freeze", "lora", "all"] = "all",
    rule: FreezeRule | None = None,
    profile_iterations: int | None = None,
    profile: str | Path | None = None,
    profile_only: bool = False,
    iterations: int | None = None,
    sweep: bool = False,
    lora_layers: Sequence[str] = ("in_proj", "x_proj", "out_proj"),
    **options: Any,
) -> SeedFolder: ...
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
    lora_layers: Sequence[str] = ("in_proj", "x_proj", "out_proj"),
    seeds: int | None = None,
    **options: Any,
) -> Finetuning | SeedFolder:
    """The fine-tuning that `robust finetune` would do, as far as it is not done yet.

    Args:
        model: A model of `robust list models`, or any timm name.
        data: A folder, manifest or data set name; None for the default of segmenters.
        out: Folder of the run.
        pretrained: A file of weights, a training run, or a results folder of nnU-Net; None for the
            bundled weights.
        mode: What is trained; `all` is scratch, full and freeze.
        rule: What is frozen (`robustcli.finetuning.selection.FreezeRule`); None for the documented
            threshold.
        profile_iterations: Profiled steps.
        profile: A profile to take instead of measuring one.
        profile_only: Stop when the profile is there.
        iterations: Steps of each mode.
        sweep: Also train by other rules, and time what each saves.
        lora_layers: Projections of state-space blocks that get adapters in mode `lora`.
        seeds: So many seeds, from `seed` on, beside each other in `out`; None for one.
        options: Further fields of `robustcli.training.config.TrainConfig` (`lr`, `seed`, ...).

    Raises:
        UsageError: Something named does not exist or does not fit together, or nothing would be
            left to train.
        RunError: Training failed; the last finished epoch is kept.
    """
    from robustcli.finetuning.config import FinetuneConfig
    from robustcli.finetuning.mode_trainings import run_finetuning
    from robustcli.finetuning.selection import make_rule
    from robustcli.training.config import TrainConfig

    weights = None if pretrained is None else path_here(pretrained, "`pretrained`")
    known = None if profile is None else path_here(profile, "`profile`")
    with _opened(out) as folder:
        training = TrainConfig(
            model, None if data is None else str(data), folder,
            **{"command": "robustcli.finetune(...)", "seeds": seeds, **options},
        )  # fmt: skip
        config = FinetuneConfig(
            training, weights, mode, rule or make_rule(), profile_iterations, known, profile_only,
            iterations, sweep, tuple(lora_layers),
        )  # fmt: skip
        if seeds is None:
            return Finetuning(run_finetuning(config))
        from robustcli.finetuning.seed_tunings import finetune_seeds

        return SeedFolder(finetune_seeds(config))


def verify(
    run: str | Path,
    *,
    sample: int | None = 8,
    weights: str | Path | Sequence[str | Path] = (),
    **options: Any,
) -> Verification:
    """Whether this machine reproduces a run; nothing in its folder is changed.

    Args:
        run: The folder of an evaluation, a training or a fine-tuning.
        sample: Blocks to recompute of each evaluation; None for all.
        weights: Files of weights or training runs that have moved; chosen by digest.
        options: Further fields of `robustcli.verification.recorded_inputs.VerifyConfig` (`seed`,
            `data`, `label_space`, `labels`, `plugins`, `device`, `offline`).

    Raises:
        UsageError: There is no readable run, or nothing in it to verify.
        MachineError: The data, the weights or a plugin of the run are not here.
    """
    from robustcli.verification.recorded_inputs import VerifyConfig
    from robustcli.verification.verification import verify as run_verification

    moved = (weights,) if isinstance(weights, str | Path) else tuple(weights)
    with _opened(run, "read") as folder:
        return run_verification(
            VerifyConfig(folder, sample, weights=tuple(map(path_here, moved)), **options)
        )


def export(
    model: ModelLike,
    *,
    out: str | Path | None = None,
    formats: ExportFormat | Sequence[ExportFormat] = "onnx",
    weights: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    untrained: bool = False,
    label_space: str | None = None,
    classes: Sequence[str] | None = None,
    **options: Any,
) -> tuple[Exported, ...]:
    """The files that `robust export` would write, one for each format.

    Args:
        model: A name or the folder of a training run; or a torch.nn.Module in memory, a class of
            them or a function that returns one.
        out: A file, or the folder for the files; None for `runs/export-MODEL-HASH`.
        formats: `onnx`, `torchscript` or both.
        weights: A file of weights.
        model_args: For the builder.
        preprocessing: Changes to how the model sees images.
        untrained: Exports a network without trained weights.
        label_space: The classes, where the weights do not say them.
        classes: The classes of a network in memory, in the order of its outputs.
        options: Further fields of `robustcli.evaluation.exporting.ExportConfig` (`opset`,
            `image_size`, `dynamic_batch`, `fresh`, `offline`).

    Raises:
        UsageError: The model is unknown or cannot be exported, or other files are in the way.
        MachineError: Packages that a format needs are not installed.
        RunError: An exporter cannot express the network, or a file's answers differ from torch's.
    """
    from robustcli.adapters.foreign import borrowed
    from robustcli.evaluation.exporting import ExportConfig
    from robustcli.evaluation.exporting import export as run_export

    ((name, module),) = _by_name(model)
    request = ModelRequest(
        name, None if weights is None else path_here(weights), dict(model_args or {}),
        dict(preprocessing or {}), label_space, untrained, module,
        None if classes is None else tuple(classes),
    )  # fmt: skip
    chosen: tuple[ExportFormat, ...] = (formats,) if isinstance(formats, str) else tuple(formats)
    with borrowed([module]):
        return run_export(
            ExportConfig(
                request, chosen, None if out is None else path_here(out, "`out`"), **options
            )
        )


def publish(
    run: str | Path, to: Literal["mlflow", "wandb", "trackio", "hub-card"], **options: Any
) -> PublishResult:
    """Sends a run to a tracker, or writes its model card.

    Args:
        run: The folder of an evaluation, a training or a fine-tuning.
        to: Where to.
        options: Further fields of `robustcli.reports.publishing.PublishConfig` (`project`,
            `tracking`, `name`, `partial`, `pictures`, `out`, `model`, `dataset_id`, `dry_run`,
            `offline`, ...).

    Raises:
        UsageError: There is no readable run, it is partial, or `offline` forbids it.
        MachineError: The tracker's package is not installed.
        RunError: The tracker refused, or a file could not be written.
    """
    from robustcli.reports.publishing import PublishConfig
    from robustcli.reports.publishing import publish as send_run

    with _opened(run, "read") as folder:
        return send_run(PublishConfig(folder, to, **options))
