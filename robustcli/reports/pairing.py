"""Finds the models that `robust compare` compares, checks their runs and pairs their rows by image.

A run is compared by the rows of its evaluation: that of `robust eval`, or the one on the held-out
images of a training or of a fine-tuning's modes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from robustcli.core.errors import UsageError
from robustcli.core.names import counted, find
from robustcli.core.rundir import has_record
from robustcli.evaluation.record import RunRecord, TransformRecord, read_record
from robustcli.evaluation.store import Store
from robustcli.finetuning.record import MODES, read_finetune_record
from robustcli.metrics.columns import distinct_ids, have_same_images, share_ids
from robustcli.metrics.verdicts import CellKey
from robustcli.reports.numbers import cell_label
from robustcli.reports.pages import run_kind
from robustcli.reports.statistics import CLEAN_CELL, STATISTICS
from robustcli.tasks.record import DatasetRecord, MaskPreprocessingRecord, ModelRecord
from robustcli.training.record import read_seeds_record, read_train_record
from robustcli.transforms.base import Cell

NAMED = 4  # most transforms or images that a message lists


@dataclass(frozen=True)
class EvaluatedRun:
    """An evaluation from which models are taken.

    Args:
        source: The run as the user named it; with the mode for a mode of a fine-tuning.
        folder: Folder of the evaluation's record and rows.
        trained: Whether it is the held-out evaluation of a training.
    """

    source: str
    folder: Path
    trained: bool = False

    @cached_property
    def record(self) -> RunRecord:
        """The `run.json` of the evaluation."""
        return read_record(self.folder)

    @cached_property
    def store(self) -> Store:
        """The rows of the evaluation."""
        return Store(self.folder)

    @cached_property
    def skipped(self) -> frozenset[str]:
        """The images that could not be read."""
        return frozenset(self.store.skipped()["image_id"])

    @property
    def expected(self) -> int:
        """Number of rows of a finished cell."""
        return self.record.dataset.images - len(self.skipped)

    @cached_property
    def cells(self) -> dict[CellKey, TransformRecord]:
        """The transforms by cell."""
        return {(t.name, t.severity): t for t in self.record.transforms}

    def images(self, model: ModelRecord, key: CellKey) -> pd.DataFrame:
        """The rows of a model in a cell, with the columns that are needed to compare models."""
        task = self.record.task
        return self.store.rows(model.name, Cell(*key), task, STATISTICS[task].row_columns)

    def pixels(self, view: str, key: CellKey, *, sample: bool) -> pd.Series:
        """Digests of the transformed pixels by image id; with `sample`, only of the first block."""
        columns = ("image_id", "digest")
        rows = self.store.inputs(view, Cell(*key), columns, first_block=sample)
        return rows.drop_duplicates("image_id").set_index("image_id")["digest"]


@dataclass(frozen=True)
class ComparedModel:
    """One model of a comparison; `label` is its unique name there."""

    label: str
    run: EvaluatedRun
    model: ModelRecord


# From the arguments of the user to models.


def find_models(names: Sequence[str], *, fewest: int = 2) -> tuple[list[ComparedModel], list[str]]:
    """The models named by `names` (RUN or RUN:MODEL), and sentences on what is not measured.

    A model that is named twice is included once. Models with equal names get the part of their
    run's path that distinguishes them.

    Raises:
        UsageError: A name is not that of a run or of a model in it, nothing of it is measured yet,
            or there are fewer than `fewest` models.
    """
    models: dict[tuple[Path, str], ComparedModel] = {}
    unmeasured: list[str] = []
    for name in names:
        run, chosen = split_name(name)
        for model in _OPENERS[run_kind(run)](run, chosen, unmeasured):
            models.setdefault((model.run.folder.resolve(), model.model.name), model)
    if len(models) < fewest:
        labels = [model.label for model in models.values()]
        only_one = f", but only one was found: `{labels[0]}`" if labels else ""
        raise UsageError(
            f"A comparison needs two models{only_one}.",
            "" if labels else "No run was passed.",
            "Pass a second run, or RUN:MODEL for another model of a run.",
        )
    return _distinguished(list(models.values())), unmeasured


def split_name(name: str) -> tuple[Path, str | None]:
    """Splits `RUN` or `RUN:MODEL`; names of models and folders may contain colons too."""
    ends = [i for i, character in enumerate(name) if character == ":"]
    for end in () if has_record(Path(name)) else ends:
        if has_record(Path(name[:end])):
            return Path(name[:end]), name[end + 1 :]
    return Path(name), None


def _models_of_evaluation(run: Path, chosen: str | None, _: list[str]) -> Iterator[ComparedModel]:
    evaluated = EvaluatedRun(str(run), run)
    models = {model.name: model for model in evaluated.record.models}
    if chosen is not None:
        listing = f"robust report {run}"
        models = {chosen: models[find(chosen, models, kind="model of this run", listing=listing)]}
    for model in models.values():
        yield ComparedModel(model.name, evaluated, model)


def _model_of_training(run: Path, chosen: str | None, _: list[str]) -> Iterator[ComparedModel]:
    record = read_train_record(run)
    if chosen is not None:
        find(chosen, [record.model], kind="model of this run", listing=f"robust report {run}")
    if not has_record(run / "test"):
        raise _not_measured(str(run), record.status)
    evaluated = EvaluatedRun(str(run), run / "test", trained=True)
    yield ComparedModel(record.network, evaluated, evaluated.record.models[0])


def _modes_of_finetuning(
    run: Path, chosen: str | None, unmeasured: list[str]
) -> Iterator[ComparedModel]:
    record = read_finetune_record(run)
    modes = [mode for mode in MODES if mode in record.modes]
    if chosen is not None:
        listing = f"robust report {run}"
        name = find(chosen, modes, kind="mode of this fine-tuning", listing=listing)
        modes = [mode for mode in modes if mode == name]
    measured = [mode for mode in modes if has_record(run / mode / "test")]
    if not measured:
        raise _not_measured(str(run), record.status)
    unmeasured += [
        f"Mode {mode} of `{run}` is not evaluated yet." for mode in modes if mode not in measured
    ]
    for mode in measured:
        evaluated = EvaluatedRun(f"{run}:{mode}", run / mode / "test", trained=True)
        yield ComparedModel(f"{record.network} {mode}", evaluated, evaluated.record.models[0])


def _not_measured(run: str, status: str) -> UsageError:
    return UsageError(
        f"`{run}` has no results on held-out images yet.",
        f"Its training is not finished (status: {status}).",
        "Finish it with its command (stored in `run.json`), then compare.",
    )


def _none_of_explanation(run: Path, _: str | None, __: list[str]) -> Iterator[ComparedModel]:
    raise UsageError(
        f"`{run}` is an explanation.",
        "It contains maps of a few photos, but no scores of a model.",
        "Pass evaluations (`robust eval`), trainings or fine-tunings.",
    )


def _models_of_seed(
    run: Path, chosen: str | None, unmeasured: list[str]
) -> Iterator[ComparedModel]:
    """The models of one of several seeds: `RUN:seed-1`, or `RUN:seed-1:MODE` of fine-tunings."""
    folders = {out.name: out for out in read_seeds_record(run).folders(run).values()}
    if chosen is None:
        first = next(iter(folders))
        raise UsageError(
            f"`{run}` contains {len(folders)} seeds.",
            "A comparison image by image with the other runs needs a single seed.",
            f"Select one of them, such as `{run}:{first}`, or compare only folders of seeds, by "
            "the mean over seeds of each image.",
        )
    name, _, mode = chosen.partition(":")
    listing = f"robust report {run}"
    seed = folders[find(name, folders, kind="seed of this run", listing=listing)]
    if not has_record(seed):
        raise _not_measured(str(seed), "not begun")
    yield from _OPENERS[run_kind(seed)](seed, mode or None, unmeasured)


_OPENERS: dict[str, Callable[[Path, str | None, list[str]], Iterator[ComparedModel]]] = {
    "cls": _models_of_evaluation,
    "seg": _models_of_evaluation,
    "train": _model_of_training,
    "finetune": _modes_of_finetuning,
    "explanation": _none_of_explanation,
    "seeds": _models_of_seed,
}


def _distinguished(models: Sequence[ComparedModel]) -> list[ComparedModel]:
    labels = unique_labels([(model.label, model.run.source) for model in models])
    return [replace(model, label=label) for model, label in zip(models, labels, strict=True)]


def unique_labels(models: Sequence[tuple[str, str]]) -> list[str]:
    """The labels of models (label, run); equal ones get the end of the run's path that differs."""
    paths: dict[str, list[tuple[str, ...]]] = {}
    for label, source in models:
        paths.setdefault(label, []).append(Path(source).resolve().parts)
    return [
        label
        if len(paths[label]) == 1
        else f"{label} ({_end(Path(source).resolve().parts, paths[label])})"
        for label, source in models
    ]


def _end(path: tuple[str, ...], paths: Sequence[tuple[str, ...]]) -> str:
    """The end of `path` of the smallest length at which all of `paths` differ."""
    depth = 1
    while len({parts[-depth:] for parts in paths}) < len(paths):
        depth += 1
    return "/".join(path[-depth:])


# Differences that prevent a comparison of runs.


@dataclass(frozen=True)
class SettingDifference:
    """A setting in which runs differ, as a sentence.

    With `forcible` differences, the runs can have comparable rows in common.
    """

    sentence: str
    forcible: bool = True


Differences = Iterator[SettingDifference]


def setting_differences(models: Sequence[ComparedModel]) -> list[SettingDifference]:
    """The settings in which the runs of `models` differ, so that their rows cannot be paired."""
    runs = list({model.run.folder.resolve(): model.run for model in models}.values())
    if len(runs) == 1:
        return []
    checks = (_task, _images, _transforms, _drawing, _unreadable, _thresholds)
    return [difference for check in checks for difference in check(runs, models)]


def _unlike(
    name: str, runs: Sequence[EvaluatedRun], values: Sequence[Hashable], *, forcible: bool = True
) -> Differences:
    """Yields a sentence with the value of each run; nothing if all values are equal.

    Args:
        name: Name of the setting, with the flags that select it.
        runs: The runs.
        values: One value per run; shown as text.
        forcible: See `SettingDifference`.
    """
    sources: dict[Hashable, list[str]] = {}
    for run, value in zip(runs, values, strict=True):
        sources.setdefault(value, []).append(f"`{run.source}`")
    if len(sources) > 1:
        parts = [f"{value} in {', '.join(names)}" for value, names in sources.items()]
        yield SettingDifference(f"{name}: {'; '.join(parts)}.", forcible)


def _task(runs: Sequence[EvaluatedRun], _: Sequence[ComparedModel]) -> Differences:
    names = {"cls": "classification", "seg": "segmentation"}
    tasks = list(_unlike("The task", runs, [names[r.record.task] for r in runs], forcible=False))
    if tasks:
        yield from tasks
        return
    datasets = [run.record.dataset for run in runs]
    spaces = [f"`{d.label_space}` ({counted(d.classes, 'class', 'classes')})" for d in datasets]
    yield from _unlike("The classes (`--label-space`)", runs, spaces, forcible=False)
    answers = [_answers(dataset) for dataset in datasets]
    yield from _unlike(
        "The classes that models may predict (`--answers`)", runs, answers, forcible=False
    )
    labels = ["several" if dataset.several_labels else "one" for dataset in datasets]
    yield from _unlike("True classes of an image", runs, labels, forcible=False)
    groupings = [run.record.grouping for run in runs]
    yield from _unlike("What a group of images is", runs, groupings, forcible=False)


def _answers(dataset: DatasetRecord) -> str:
    if dataset.answers is None:
        return "all"
    digest = hashlib.sha256(repr(dataset.answers).encode()).hexdigest()
    return f"{len(dataset.answers):,} of {dataset.classes:,}, digest {digest[:8]}"


def _images(runs: Sequence[EvaluatedRun], _: Sequence[ComparedModel]) -> Differences:
    datasets = [run.record.dataset for run in runs]
    if len({dataset.digest for dataset in datasets}) > 1:
        shown = [
            f"{d.images:,} of `{d.name}`{f' ({d.subset})' if d.subset else ''}, digest "
            f"{d.digest[:8]}"
            for d in datasets
        ]
        flags = "`--data`, `--per-class`, `--limit`, `--split`, `--seed`"
        yield from _unlike(f"The images, their classes or their order ({flags})", runs, shown)
    elif len({dataset.contents for dataset in datasets if dataset.contents}) > 1:
        shown = [f"`{d.location}`, digest {(d.contents or 'unknown')[:8]}" for d in datasets]
        yield from _unlike("The files have different contents (`--data`)", runs, shown)
    readings = [d.masks.words if d.masks else "as usual" for d in datasets]
    name = "How masks are read (`--foreground`, `--ignore`)"
    yield from _unlike(name, runs, readings, forcible=False)
    tolerances = [
        "none" if d.tolerance is None else counted(d.tolerance, "pixel") for d in datasets
    ]
    yield from _unlike("The tolerance of masks", runs, tolerances)


def _transforms(runs: Sequence[EvaluatedRun], _: Sequence[ComparedModel]) -> Differences:
    everywhere = list(dict.fromkeys(key for run in runs for key in run.cells))
    graded = {transform for transform, severity in everywhere if severity}
    missing: dict[tuple[str, ...], list[CellKey]] = {}
    for key in everywhere:
        lacking = tuple(f"`{run.source}`" for run in runs if key not in run.cells)
        if lacking:
            missing.setdefault(lacking, []).append(key)
    for lacking, keys in missing.items():
        verb = "lacks" if len(lacking) == 1 else "lack"
        yield SettingDifference(
            f"Transforms (`--transform`, `--severity`): {', '.join(lacking)} {verb} "
            f"{_some([_at_severity(key, graded) for key in keys])}."
        )
    for key in everywhere:
        having = [run for run in runs if key in run.cells]
        parameters = [run.cells[key].parameters for run in having]
        names = dict.fromkeys(name for values in parameters for name in values)
        changed = [n for n in names if any(p.get(n) != parameters[0].get(n) for p in parameters)]
        shown = [
            ", ".join(f"{n} = {values.get(n, 'not set')}" for n in changed) for values in parameters
        ]
        yield from _unlike(f"The parameters of {_cell_name(key)}", having, shown)


def _at_severity(key: CellKey, graded: Collection[str]) -> str:
    """The name of a cell, also for the full range of a transform in `graded`, with severities."""
    name, severity = key
    full_range = severity == 0 and name in graded
    return f"`{name}` at its full range" if full_range else _cell_name(key)


def _drawing(runs: Sequence[EvaluatedRun], _: Sequence[ComparedModel]) -> Differences:
    """Differences in settings of the random transforms; clean images depend on none of them."""
    transforming = [run for run in runs if set(run.cells) - {CLEAN_CELL}]
    if len(transforming) < 2:
        return
    seeds = [run.record.seed for run in transforming]
    yield from _unlike("The seed of transforms (`--seed`)", transforming, seeds)
    applied = [run.record.apply_at for run in transforming]
    yield from _unlike("`--apply-at`", transforming, applied)


def _unreadable(runs: Sequence[EvaluatedRun], _: Sequence[ComparedModel]) -> Differences:
    if len({run.skipped for run in runs}) > 1:
        shown = [f"{len(run.skipped)} ({_some(sorted(run.skipped))})" for run in runs]
        yield from _unlike("Images that could not be read", runs, shown)


def _thresholds(runs: Sequence[EvaluatedRun], models: Sequence[ComparedModel]) -> Differences:
    shown = []
    for run in runs:
        of_run = [m.model.preprocessing for m in models if m.run.folder == run.folder]
        values = {p.threshold for p in of_run if isinstance(p, MaskPreprocessingRecord)}
        shown.append(" and ".join(f"{value:g}" for value in sorted(values)))
    yield from _unlike("The probability threshold of the foreground", runs, shown)


def _cell_name(key: CellKey) -> str:
    return f"`{cell_label(*key)}`"


def _some(names: Sequence[str]) -> str:
    omitted_count = len(names) - NAMED
    suffix = f" and {omitted_count} more" if omitted_count > 0 else ""
    return (", ".join(names[:NAMED]) or "none") + suffix


# Pairing the rows by image.


@dataclass
class PairedRows:
    """Rows of the same images for every model.

    Args:
        rows: Rows by model and cell.
        left_out: Sentences on what the runs do not have in common.
        unfinished: The models that lack images of some cell; one of the sentences lists the cells.
    """

    rows: dict[str, dict[CellKey, pd.DataFrame]]
    left_out: list[str] = field(default_factory=list)
    unfinished: set[str] = field(default_factory=set)


def read_rows(models: Sequence[ComparedModel]) -> PairedRows:
    """The rows of the cells and images that all of `models` share, and what is left out.

    An image counts as the same in two runs if its id, class (or group) and pixels are equal. Pixels
    are compared by the digests that every evaluation records, of clean and transformed images. A
    cell is left out if it is not finished in every run, or if its transform produced different
    pixels.
    """
    paired = PairedRows({model.label: {} for model in models})
    shared = [k for k in models[0].run.cells if all(k in m.run.cells for m in models)]
    unfinished: list[str] = []
    other_pixels: list[CellKey] = []
    changed_files: set[str] = set()
    other_classes: set[str] = set()
    other_groups: set[str] = set()
    ids: pd.Series[str] | None = None
    for key in sorted(shared, key=lambda key: key != CLEAN_CELL):
        frames = [model.run.images(model.model, key) for model in models]
        lacking = [
            (m, len(frame))
            for m, frame in zip(models, frames, strict=True)
            if len(frame) < m.run.expected
        ]
        if lacking:
            unfinished += [
                f"{_cell_name(key)} of `{m.label}` ({n:,} of {m.run.expected:,} images)"
                for m, n in lacking
            ]
            paired.unfinished |= {m.label for m, _ in lacking}
            continue
        changed = _changed_pixels(models, frames, key)
        if key == CLEAN_CELL:
            changed_files = changed
        elif changed - changed_files:
            other_pixels.append(key)
            continue
        if not models[0].run.record.dataset.several_labels:
            other_classes |= _unequal(frames, "target")
        other_groups |= _unequal(frames, "group")
        for model, frame in zip(models, frames, strict=True):
            ids = share_ids(frame, ids)
            paired.rows[model.label][key] = frame
    reasons = (
        ("Not finished", unfinished),
        ("Different pixels after the transform", list(map(_cell_name, other_pixels))),
        ("Images with different pixels", sorted(changed_files)),
        ("Images of another class", sorted(other_classes)),
        ("Images of another group", sorted(other_groups)),
    )
    paired.left_out += [f"{reason}: {_some(names)}." for reason, names in reasons if names]
    _keep_common(paired, changed_files | other_classes | other_groups)
    order = {key: number for number, key in enumerate(shared)}
    for label, cells in paired.rows.items():
        paired.rows[label] = dict(sorted(cells.items(), key=lambda cell: order[cell[0]]))
    return paired


def _changed_pixels(
    models: Sequence[ComparedModel], frames: Sequence[pd.DataFrame], key: CellKey
) -> set[str]:
    """The images that all runs share, but for which two runs recorded different pixels in a cell.

    If settings that determine pixels differ, images without digests are included. Otherwise the
    first block of images is checked first: a different library version changes many images.
    """
    views = {(model.run.folder, model.model.view): model.run for model in models}
    if len({folder for folder, _ in views}) < 2:
        return set()
    common, needs_proof = _common_ids(frames), _pixels_may_differ(models, key)
    if len({view for _, view in views}) > 1:  # different crops: their pixels cannot be compared
        return set(common) if needs_proof else set()

    def changed(*, sample: bool) -> set[str]:
        records = [run.pixels(view, key, sample=sample) for (_, view), run in views.items()]
        digests = [record.reindex(common) for record in records]
        images: set[str] = set()
        for digest in digests[1:]:
            differ = digest.ne(digests[0])
            if not needs_proof:
                differ &= digest.notna() & digests[0].notna()
            images |= set(common[differ.to_numpy(dtype=bool)])
        return images

    if not needs_proof and not changed(sample=True):
        return set()
    return changed(sample=False)


def _pixels_may_differ(models: Sequence[ComparedModel], key: CellKey) -> bool:
    """Whether runs differ in a setting that determines the pixels of a cell."""
    runs = [model.run for model in models]
    datasets = [run.record.dataset for run in runs]
    files = {d.contents or d.digest for d in datasets if d.contents or not datasets[0].contents}
    if len({d.digest for d in datasets}) > 1 or len(files) > 1:
        return True
    drawn = {
        (run.record.seed, run.record.apply_at, repr(run.cells[key].parameters)) for run in runs
    }
    return key != CLEAN_CELL and len(drawn) > 1


def _common_ids(frames: Sequence[pd.DataFrame]) -> pd.Index:
    ids = [pd.Index(frame["image_id"].to_numpy(dtype=object)) for frame in frames]
    common: pd.Index = ids[0]
    for frame_ids in ids[1:]:
        common = common if common.equals(frame_ids) else common[common.isin(frame_ids)]
    return common


def _unequal(frames: Sequence[pd.DataFrame], column: str) -> set[str]:
    """The images whose value of `column` differs between tables; empty for tables without it.

    Of several true classes, a row contains the one that its model ranks highest, so that rows of
    the same image can differ; only the digests of the data contain all of them.
    """
    if column not in frames[0]:
        return set()
    common = _common_ids(frames)
    tables = [frame.set_index("image_id")[column].reindex(common) for frame in frames]
    return {str(i) for table in tables[1:] for i in common[(table != tables[0]).to_numpy()]}


def _keep_common(paired: PairedRows, unlike: set[str]) -> None:
    """Drops images that some model lacks in some cell, and the images in `unlike`."""
    frames = [frame for cells in paired.rows.values() for frame in cells.values()]
    if not frames or (not unlike and have_same_images(frames)):
        return
    ids = [set(column) for column in distinct_ids(frames)]
    shared = ids[0].intersection(*ids[1:])
    common = shared - unlike
    lost = sorted(ids[0].union(*ids[1:]) - shared)
    if lost:
        paired.left_out.append(f"Images that are not in all runs: {_some(lost)}.")
    for cells in paired.rows.values():
        for key, frame in cells.items():
            cells[key] = frame[frame["image_id"].isin(common)].reset_index(drop=True)
