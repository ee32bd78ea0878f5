"""The Python API: each command of `robust` as a function.

Messages of the commands, such as a default that is used, go to the logger `robustcli` (level INFO).
If the program has not configured logging, they are printed on standard error;
`logging.getLogger("robustcli").setLevel("WARNING")` turns them off.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, overload

from robustcli.adapters.catalogue import ModelRequest
from robustcli.core.arguments import checked_arguments
from robustcli.core.errors import UsageError, shortened_text
from robustcli.core.io import read_csv
from robustcli.core.listener import Logged
from robustcli.core.machine import complete_user
from robustcli.core.objects import names_url, path_here
from robustcli.core.rundir import has_record
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.record import RunRecord, read_record
from robustcli.explanation.record import (
    ExplainRecord,
    read_arrays,
    read_explain_record,
    read_explained_rows,
)
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
from robustcli.training.record import SeedsRecord, TrainRecord, read_seeds_record, read_train_record

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from torch import nn

    from robustcli.adapters.exported import ExportFormat
    from robustcli.core.working_copy import Use
    from robustcli.evaluation.exporting import Exported
    from robustcli.evaluation.mask_files import PredictedMasks
    from robustcli.evaluation.prediction import PredictedLabels
    from robustcli.finetuning.selection import FreezeRule
    from robustcli.reports.publishing import PublishResult
    from robustcli.verification.verification import Verification

complete_user()

ModelLike: TypeAlias = "str | Path | nn.Module | Callable[..., nn.Module]"


@dataclass(frozen=True)
class _RunFolder:
    path: Path

    def report(self) -> Path:
        """Renders the report; returns the path of `report.md`."""
        from robustcli.reports.render import render  # imports plotting code, which takes a second

        return render(self.path)


@dataclass(frozen=True)
class Run(_RunFolder):
    """An evaluation run, by its folder."""

    @property
    def record(self) -> RunRecord:
        """Inputs, settings and status of the run (`run.json`)."""
        return read_record(self.path)

    def table(self) -> pd.DataFrame:
        """The results, one row per model, transform and severity; columns as in `results.csv`."""
        return table(self.path)


@dataclass(frozen=True)
class ExplanationRun(_RunFolder):
    """An explanation run, by its folder."""

    @property
    def record(self) -> ExplainRecord:
        """Inputs, settings and status of the explanation (`run.json`)."""
        return read_explain_record(self.path)

    def rows(self) -> pd.DataFrame:
        """The scores of all maps, one row per method, photo, view and target.

        The columns are those of `robustcli.explanation.record.EXPLAINED_SCHEMA`.
        """
        return read_explained_rows(self.path)

    def arrays(self, row: Mapping[str, Any]) -> ExplainedArrays:
        """The map, the photo and the picture of one row of `rows()`."""
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
        relevance: The map, float32 (H, W): evidence for the target per pixel.
        photo: The network's input before normalisation, uint8 (H, W, 3).
        picture: The generated picture, uint8 (H, W, 3), for methods that show learned features;
            else None.
    """

    relevance: NDArray[np.float32]
    photo: NDArray[np.uint8]
    picture: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Training(_RunFolder):
    """A training run, by its folder."""

    @property
    def record(self) -> TrainRecord:
        """Inputs, settings and status of the training (`run.json`)."""
        return read_train_record(self.path)

    @property
    def weights(self) -> Path:
        """Path of the selected weights. The run folder itself can also be used as a model name."""
        from robustcli.adapters.training_run import weights_in

        return weights_in(self.path)

    @property
    def test(self) -> Run:
        """The evaluation of the trained model on the held-out test images."""
        return Run(self.path / "test")


@dataclass(frozen=True)
class SeedFolder(_RunFolder):
    """Training or fine-tuning runs that differ only in their seed, by their common folder."""

    @property
    def record(self) -> SeedsRecord:
        """The seeds, and the settings that they share (`run.json`)."""
        return read_seeds_record(self.path)

    @property
    def runs(self) -> dict[int, Training | Finetuning]:
        """The run of each seed that was started, by seed."""
        kind = Training if self.record.of == "train" else Finetuning
        folders = self.record.folders(self.path)
        return {seed: kind(folder) for seed, folder in folders.items() if has_record(folder)}

    def table(self) -> pd.DataFrame:
        """One row per seed, then the mean and its intervals; columns as in `results.csv`."""
        from robustcli.reports.seeds_findings import read_seeds
        from robustcli.reports.seeds_page import seeds_results

        return seeds_results(read_seeds(self.path))


@dataclass(frozen=True)
class Finetuning(_RunFolder):
    """A fine-tuning run, by its folder."""

    @property
    def record(self) -> FinetuneRecord:
        """Inputs, settings and status of the fine-tuning (`run.json`)."""
        return read_finetune_record(self.path)

    def training(self, mode: Mode) -> Training:
        """The training run of one mode, e.g. `full`."""
        return Training(self.path / mode)

    def table(self) -> pd.DataFrame:
        """Test results of the finished modes: column `mode`, then those of an evaluation."""
        import pandas as pd

        modes = [m for m in self.record.modes if self.training(m).test.path.is_dir()]
        rows = [self.training(mode).test.table().assign(model=mode) for mode in modes]
        table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["model"])
        return table.rename(columns={"model": "mode"})

    def profile(self) -> pd.DataFrame:
        """The gradient profile: one row per iteration and tensor (`gradients.parquet`)."""
        import pandas as pd

        return pd.read_parquet(self.path / PROFILE)

    def decisions(self) -> pd.DataFrame:
        """Whether each tensor was trained or frozen, and why; one row per tensor (`frozen.csv`)."""
        return read_csv(self.path / DECISIONS, dtype={"shape": str})


@contextmanager
def _kept_random_state() -> Iterator[None]:
    """Restores the random generators of the caller: of Python, NumPy and torch (CPU and CUDA)."""
    import numpy as np
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  global
    # Reading the state of a GPU would start CUDA, which `device="cpu"` must not. A GPU that is
    # started later has the seed of torch's CPU generator, unless the caller seeds it separately.
    states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    seed = torch.initial_seed()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        if states is not None:
            torch.cuda.set_rng_state_all(states)
        else:
            torch.cuda.manual_seed_all(seed)


@_kept_random_state()
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
    """Evaluates models on transformed images, as `robust eval` does.

    Results that `out` already contains are not computed again, so an interrupted evaluation is
    resumed by the same call.

    Args:
        model: One model or several: names, paths of training runs, torch.nn.Module instances,
            module classes, or functions that return a module. In a dictionary, the keys are the
            names in result tables. A module instance is returned to its original mode and device
            after the call.
        data: An image folder, tar file, manifest or data set name; None for the data set of the
            training (of a training run), else the default data set of the model's label space.
        transforms: One or several transform names, glob patterns or presets.
        out: Folder of the run, or its address in an object store (docs/remote.md).
        weights: A weights file; only for a single model.
        model_args: Keyword arguments for the builder of the model.
        preprocessing: Overrides of `resize`, `crop`, `interpolation`, `mean` or `std`.
        untrained: Whether to evaluate the network with its initial weights.
        classes: Class names in the order of the network's outputs, for a network of your own. By
            default, the label space is `label_space`, or is recognised by the number of outputs.
        options: Further fields of `robustcli.evaluation.config.EvalConfig` (`severities`, `seed`,
            `per_class`, `limit`, `quick`, `fail_under`, `fail_drop`, `device`, `devices`,
            `precision`, `batch_size`, `workers`, ...).

    Raises:
        UsageError: An argument names something that does not exist, or arguments contradict each
            other.
        RunError: The computation failed, result rows are missing at the end, or another process
            writes to `out`; finished blocks are kept.
        GateError: The run is complete, and a result violates a limit of `fail_under` or
            `fail_drop`.
    """
    # Reading runs, comparing and reporting them needs no torch.
    from robustcli.adapters.foreign_files import borrowed
    from robustcli.evaluation import evaluate as evaluation
    from robustcli.evaluation.config import EvalConfig

    options = checked_arguments(
        EvalConfig, "evaluate", {"data": data, "transforms": transforms, **options},
        taken=("models", "out"),
    )  # fmt: skip
    requests = _requests(
        "evaluate", model, None if weights is None else path_here(weights), model_args,
        preprocessing, options.get("label_space"), untrained, classes,
    )  # fmt: skip
    with _opened(out) as folder, borrowed(request.module for request in requests):
        return Run(evaluation.evaluate(EvalConfig(requests, out=folder, **options), Logged()))


@contextmanager
def _opened(place: str | Path, use: Use = "work") -> Iterator[Path]:
    """The folder `place`; for an address in an object store, its local working folder."""
    if not names_url(place):
        yield Path(place)
        return
    from robustcli.core.working_copy import opened
    from robustcli.data.named_datasets import data_home

    with opened(str(place), data_home(), Logged().say, use) as folder:
        yield folder


def _requests(
    function: str,
    model: ModelLike | Sequence[ModelLike] | Mapping[str, ModelLike],
    weights: Path | None,
    model_args: Mapping[str, Any] | None,
    preprocessing: Mapping[str, Any] | None,
    label_space: str | None,
    untrained: bool,
    classes: Sequence[str] | None,
) -> tuple[ModelRequest, ...]:
    """One request per model; arguments as in `evaluate` and `export`, and name of the function."""
    from robustcli.adapters.preprocessing import Preprocessing

    if isinstance(model, Mapping):
        named = [(str(name), _path_as_name(network)) for name, network in model.items()]
    else:
        several = model if isinstance(model, Sequence) and not isinstance(model, str) else [model]
        networks = map(_path_as_name, several)
        named = [(getattr(n, "__name__", None) or type(n).__name__, n) for n in networks]
        unnamed = [name for name, network in named if not isinstance(network, str)]
        twice = next((name for name in unnamed if unnamed.count(name) > 1), None)
        if twice is not None:
            raise UsageError(
                f"`model` contains {unnamed.count(twice)} networks that are called `{twice}`.",
                "Rows and tables name each network, by default after its class or function.",
                "Pass a dictionary from names to networks, such as "
                f"`{{'first': {twice}(), 'second': {twice}()}}`.",
            )
    wrong = [n for _, n in named if not isinstance(n, str) and not callable(n)]
    if wrong or not named:
        raise UsageError(
            f"`model` is {'no network' if wrong else 'empty'}.",
            f"Got `{shortened_text(repr(wrong[0] if wrong else model))}`.",
            "Pass a name, a torch.nn.Module, a class of one, or a function that returns one.",
        )
    if weights is not None and len(named) > 1:
        raise UsageError(
            "`weights` can only be used with one model.",
            f"Got {len(named)} models.",
            "Call the function once for each model with the same `out`: the results are added to "
            "one run.",
        )
    changed = checked_arguments(Preprocessing, function, preprocessing or {})
    return tuple(
        ModelRequest(
            network if isinstance(network, str) else name,
            weights,
            dict(model_args or {}),
            changed,
            label_space,
            untrained,
            None if isinstance(network, str) else network,
            None if classes is None else tuple(classes),
            called=name if isinstance(model, Mapping) and isinstance(network, str) else None,
        )
        for name, network in named
    )


def _path_as_name(model: ModelLike) -> ModelLike:
    """`model`; for the path of a training run or of a file, the name of that model."""
    return str(model) if isinstance(model, Path) else model


@_kept_random_state()
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
    """Computes explanation maps of a model's predictions, as `robust explain` does.

    Maps that `out` already contains are not computed again.

    Args:
        model: A model name, a torch.nn.Module instance, a module class, or a function that returns
            a module. With `run`, the name of one of its models, or None for its first model.
        data: An image folder, tar file, manifest or data set name; None for the data set of the
            training (of a training run), else the default data set of the model's label space.
            With `run`, the present location of its data if it has moved.
        transforms: One or several transform names, glob patterns or presets. By default, untouched
            photos are explained; with `run`, photos under the transform with the lowest score.
        out: Folder of the run; None for `runs/explain-MODEL-HASH`.
        run: Folder of a finished evaluation, which defines model, images and predictions.
        images: Ids of the photos to explain.
        worst: Number of photos to explain, those whose score falls most under the transforms.
        class_name: For classifiers, the true class of the photos to explain. For segmenters with
            several classes, the name or number of the class whose pixels are explained.
        methods: Names or glob patterns of `robustcli.explanation.methods.METHODS`; by default, all
            methods that make a map of a photo and support the model.
        weights: A weights file. With `run`, the present path of weights that have moved.
        model_args: Keyword arguments for the builder of the model.
        preprocessing: Overrides of `resize`, `crop`, `interpolation`, `mean` or `std`.
        untrained: Whether to explain the network with its initial weights.
        classes: Class names in the order of the network's outputs, for a network of your own.
        options: Further fields of `robustcli.explanation.config.ExplainConfig` (`layer`, `sanity`,
            `limit`, `seed`, `device`, `devices`, `batch_size`, ...). `run_code=True` executes the
            Python and TorchScript code that `run` names.

    Raises:
        UsageError: An argument names something that does not exist, or arguments contradict each
            other, or `run` needs code and `run_code` is not set.
        MachineError: The data or the weights of `run` are not on this machine.
        RunError: Some maps could not be computed; all others are kept.
    """
    from robustcli.adapters.foreign_files import borrowed
    from robustcli.explanation.config import MODEL_OF_RUN, ExplainConfig, refuse_with_run
    from robustcli.explanation.explaining import explain as run_explanation

    options = checked_arguments(
        ExplainConfig, "explain",
        {
            "data": data, "transforms": transforms, "images": images, "worst": worst,
            "class_name": class_name, "methods": methods, **options,
        },
        taken=(
            "models", "out", "source", "moved", "engine", "slurm", "address", "mask_class",
            "fail_under", "fail_drop",
        ),
    )  # fmt: skip
    if run is not None:
        refuse_with_run(
            run,
            {
                "model_args": model_args, "preprocessing": preprocessing, "untrained": untrained,
                "classes": classes,
            },
            MODEL_OF_RUN,
        )  # fmt: skip
    requests = () if model is None else _requests(
        "explain", model, None if weights is None or run is not None else path_here(weights),
        model_args, preprocessing, options.get("label_space"), untrained, classes,
    )  # fmt: skip
    with ExitStack() as stack:
        config = ExplainConfig(
            requests,
            out=None if out is None else stack.enter_context(_opened(out)),
            source=None if run is None else stack.enter_context(_opened(run, "read")),
            moved=() if weights is None or run is None else (path_here(weights),),
            **options,
        )
        stack.enter_context(borrowed(request.module for request in requests))
        return ExplanationRun(run_explanation(config, Logged()))


@_kept_random_state()
def predict(
    model: ModelLike,
    data: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    untrained: bool = False,
    label_space: str | None = None,
    classes: Sequence[str] | None = None,
    **options: Any,
) -> PredictedLabels | PredictedMasks:
    """Labels photos with a classifier, or writes masks with a segmenter, as `robust predict` does.

    Photos that cannot be read are listed in `labelling.unreadable` of the result. Masks that `out`
    already contains are not computed again.

    Args:
        model: A model name, the folder of a training run, a torch.nn.Module instance, a module
            class, or a function that returns a module.
        data: Folders, images, archives (tar, zip) and names of data sets.
        out: Folder of the masks; for classifiers, of the files with the labels, None for no files.
        weights: A weights file.
        model_args: Keyword arguments for the builder of the model.
        preprocessing: Overrides of `resize`, `crop`, `interpolation`, `mean` or `std`.
        untrained: Whether to use the network with its initial weights.
        label_space: Name or file of the classes, if the weights do not define them.
        classes: Class names in the order of the network's outputs, for a network of your own.
        options: Further fields of `robustcli.evaluation.prediction.PredictConfig` (`top`,
            `overlays`, `limit`, `seed`, `batch_size`, `device`, `fresh`, ...).

    Raises:
        UsageError: An argument names something that does not exist, or does not apply to the model,
            or `out` contains results of other settings.
        RunError: Images of a segmenter cannot be read; the masks of all others were written.
    """
    from robustcli.adapters.foreign_files import borrowed
    from robustcli.evaluation.prediction import PredictConfig
    from robustcli.evaluation.prediction import predict as run_prediction

    options = checked_arguments(
        PredictConfig, "predict", {"data": data, **options}, taken=("model", "out")
    )
    (request,) = _requests(
        "predict", model, None if weights is None else path_here(weights), model_args,
        preprocessing, label_space, untrained, classes,
    )  # fmt: skip
    request = replace(request, number_classes=True)
    with ExitStack() as stack:
        folder = None if out is None else stack.enter_context(_opened(out))
        stack.enter_context(borrowed([request.module]))
        return run_prediction(PredictConfig(request, out=folder, **options), Logged())


def compare(
    *runs: str | Path, out: str | Path | None = None, force_common: bool = False
) -> Comparison | SeedsComparison:
    """Compares the models of several runs, as `robust compare` does.

    `.table()` of the result contains the numbers.

    Args:
        runs: Folders of evaluations, trainings or fine-tunings. `RUN:MODEL` selects one model of an
            evaluation, `RUN:MODE` one mode of a fine-tuning, `RUN:seed-1` one of several seeds.
            If all are folders of several seeds, the means over their seeds are compared.
        out: Folder for a report; None for no report.
        force_common: Whether to compare what the runs have in common if they differ in more than
            their models. `differences` of the result lists the differing settings;
            `left_out` of a `Comparison` lists the rows that are not compared.

    Raises:
        UsageError: The runs have fewer than two models, a run has no results yet, or runs differ in
            more than their models and `force_common` is False; the message lists each difference.
    """
    from robustcli.reports.comparison import write_comparison
    from robustcli.reports.pages import check_out

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
@_kept_random_state()
def train(
    model: str, data: str | Path | None = None, *, out: str | Path, seeds: int | None = None,
    **options: Any,
) -> Training | SeedFolder:  # fmt: skip
    """Trains a model, as `robust train` does.

    An interrupted training is resumed by the same call, from its last finished epoch.

    Args:
        model: A model of `robust list models`, `smp:ARCHITECTURE/ENCODER` or any timm name.
        data: A folder, manifest or data set name; None for the default data set of segmenters.
        out: Folder of the run.
        seeds: Number of trainings with different seeds, from `seed` on, each in a subfolder of
            `out`; None for a single training directly in `out`.
        options: Further fields of `robustcli.training.config.TrainConfig` (`protocol`, `epochs`,
            `lr`, `batch_size`, `seed`, `device`, ...). `ablate="scan"` trains a Mamba
            network without its scan, as a control.

    Raises:
        UsageError: An argument names something that does not exist, or arguments contradict each
            other.
        RunError: Training failed; the last finished epoch is kept, and so are the other seeds.
    """
    # Lightning takes seconds to import, and evaluations do not need it.
    from robustcli.training.config import TrainConfig
    from robustcli.training.engine import run_training

    options = checked_arguments(
        TrainConfig, "train", {"model": model, "data": data, "seeds": seeds, **options},
        taken=("out",),
    )  # fmt: skip
    with _opened(out) as folder:
        config = TrainConfig(out=folder, **options)
        if seeds is None:
            return Training(run_training(config, Logged()))
        from robustcli.training.seed_runs import train_seeds

        return SeedFolder(train_seeds(config, Logged()))


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
@_kept_random_state()
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
    """Fine-tunes a pretrained model, as `robust finetune` does.

    An interrupted fine-tuning is resumed by the same call; finished modes are not trained again.

    Args:
        model: A model of `robust list models`, or any timm name.
        data: A folder, manifest or data set name; None for the default data set of segmenters.
        out: Folder of the run.
        pretrained: A weights file, a training run, or a results folder of nnU-Net; None for the
            bundled weights.
        mode: `scratch` trains from initial weights, `full` all parameters, `freeze` those that
            `rule` does not freeze, `lora` adapters; `all` runs scratch, full and freeze.
        rule: Which parameters to freeze (`robustcli.finetuning.selection.FreezeRule`); None for the
            documented threshold.
        profile_iterations: Number of training steps in which gradients are profiled.
        profile: A gradient profile to use instead of measuring one.
        profile_only: Whether to stop after the gradient profile is measured.
        iterations: Number of training steps of each mode.
        sweep: Whether to train with other freeze rules too, and to time what each saves.
        lora_layers: Projections of state-space blocks that get adapters in mode `lora`.
        seeds: Number of fine-tunings with different seeds, from `seed` on, each in a subfolder of
            `out`; None for a single one directly in `out`.
        options: Further fields of `robustcli.training.config.TrainConfig` (`lr`, `seed`, ...).

    Raises:
        UsageError: An argument names something that does not exist, arguments contradict each
            other, or no trainable parameter would be left.
        RunError: Training failed; the last finished epoch is kept.
    """
    from robustcli.finetuning.config import FinetuneConfig
    from robustcli.finetuning.mode_trainings import run_finetuning
    from robustcli.finetuning.selection import make_rule
    from robustcli.training.config import TrainConfig

    weights = None if pretrained is None else path_here(pretrained, "`pretrained`")
    known = None if profile is None else path_here(profile, "`profile`")
    options = checked_arguments(
        TrainConfig, "finetune", {"model": model, "data": data, "seeds": seeds, **options},
        taken=("out", "weights", "untrained"),
    )  # fmt: skip
    own_options = checked_arguments(
        FinetuneConfig, "finetune",
        {
            "mode": mode, "rule": rule or make_rule(), "profile_iterations": profile_iterations,
            "profile_only": profile_only, "iterations": iterations, "sweep": sweep,
            "lora_layers": lora_layers,
        },
    )  # fmt: skip
    with _opened(out) as folder:
        training = TrainConfig(out=folder, **{"command": "robustcli.finetune(...)", **options})
        config = FinetuneConfig(training, weights, profile=known, **own_options)
        if seeds is None:
            return Finetuning(run_finetuning(config, Logged()))
        from robustcli.finetuning.mode_trainings import finetune_seeds

        return SeedFolder(finetune_seeds(config, Logged()))


@_kept_random_state()
def verify(
    run: str | Path,
    *,
    sample: int | None = 8,
    weights: str | Path | Sequence[str | Path] = (),
    **options: Any,
) -> Verification:
    """Checks whether this machine reproduces a run, as `robust verify` does.

    The folder of the run is not changed.

    Args:
        run: Folder of an evaluation, a training or a fine-tuning.
        sample: Number of blocks of each evaluation to compute again; None for all.
        weights: Present paths of weights files or training runs that have moved; each is matched to
            its model by its digest.
        options: Further fields of `robustcli.verification.recorded_run.VerifyConfig` (`seed`,
            `data`, `label_space`, `labels`, `plugins`, `device`, `offline`, `run_code`).
            `run_code=True` executes the Python and TorchScript code that the run names.

    Raises:
        UsageError: The folder contains no readable run or no results to verify, or the run needs
            code and `run_code` is not set.
        MachineError: The data, the weights or a plugin of the run are not on this machine.
    """
    from robustcli.verification.recorded_run import VerifyConfig
    from robustcli.verification.verification import verify as run_verification

    moved = (weights,) if isinstance(weights, str | Path) else tuple(weights)
    options = checked_arguments(
        VerifyConfig, "verify", {"sample": sample, **options}, taken=("run", "weights")
    )
    with _opened(run, "read") as folder:
        return run_verification(
            VerifyConfig(folder, weights=tuple(map(path_here, moved)), **options), Logged()
        )


@_kept_random_state()
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
    """Exports a model to files, one per format, as `robust export` does.

    Args:
        model: A model name, the folder of a training run, a torch.nn.Module instance, a module
            class, or a function that returns a module.
        out: Path of the file, or a folder for the files; None for `runs/export-MODEL-HASH`.
        formats: `onnx`, `torchscript` or both.
        weights: A weights file.
        model_args: Keyword arguments for the builder of the model.
        preprocessing: Overrides of the model's preprocessing, e.g. `crop`, `mean` or `std`.
        untrained: Whether to export the network with its initial weights.
        label_space: Name of the label space of the outputs, if the weights do not define it.
        classes: Class names in the order of the network's outputs, for a network of your own.
        options: Further fields of `robustcli.evaluation.exporting.ExportConfig` (`opset`,
            `image_size`, `dynamic_batch`, `fresh`, `offline`).

    Raises:
        UsageError: The model is unknown or cannot be exported, or `out` contains other files.
        MachineError: Packages that a format needs are not installed.
        RunError: The exporter does not support the network, or the outputs of an exported file
            differ from those of PyTorch.
    """
    from robustcli.adapters.foreign_files import borrowed
    from robustcli.evaluation.exporting import ExportConfig
    from robustcli.evaluation.exporting import export as run_export

    options = checked_arguments(
        ExportConfig, "export", {"formats": formats, **options}, taken=("model", "out")
    )
    (request,) = _requests(
        "export", model, None if weights is None else path_here(weights), model_args, preprocessing,
        label_space, untrained, classes,
    )  # fmt: skip
    place = None if out is None else path_here(out, "`out`")
    with borrowed([request.module]):
        return run_export(ExportConfig(request, out=place, **options), Logged())


def publish(
    run: str | Path, to: Literal["mlflow", "wandb", "trackio", "hub-card"], **options: Any
) -> PublishResult:
    """Sends a run to an experiment tracker, or writes its model card, as `robust publish` does.

    Args:
        run: Folder of an evaluation, a training or a fine-tuning.
        to: The tracker, or `hub-card` for a model card.
        options: Further fields of `robustcli.reports.run_export.PublishConfig` (`project`,
            `tracking`, `name`, `partial`, `pictures`, `out`, `model`, `dataset_id`, `dry_run`,
            `offline`, ...).

    Raises:
        UsageError: The folder contains no readable run, the run is partial, or the tracker needs a
            network and `offline` is set.
        MachineError: The package of the tracker is not installed.
        RunError: The tracker returned an error, or a file could not be written.
    """
    from robustcli.reports.publishing import publish as send_run
    from robustcli.reports.run_export import PublishConfig, Target

    if to not in get_args(Target):
        raise UsageError(
            f"`to={to!r}` is no tracker.",
            f"Expected {', '.join(map(repr, get_args(Target)))}.",
            "Pass one of these; `robust publish --help` describes them.",
        )
    options = checked_arguments(PublishConfig, "publish", options, taken=("run", "destination"))
    with _opened(run, "read") as folder:
        return send_run(PublishConfig(folder, to, **options), Logged().say)
