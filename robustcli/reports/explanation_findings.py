"""Findings of an explanation: its rows as numbers and text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from robustcli.core.names import counted
from robustcli.explanation.methods import METHODS, ExplanationMethod
from robustcli.explanation.record import ExplainRecord, read_explain_record, read_explained_rows
from robustcli.metrics.explanation_scores import (
    CONTRASTED,
    ERRORS,
    FEWEST,
    SCORES,
    ErrorSummary,
    ExplanationCell,
    FlipContrast,
    Mean,
    error_summary,
    explanation_cells,
    sanity_summary,
)
from robustcli.metrics.intervals import Bootstrap
from robustcli.reports.numbers import cell_label, decimal
from robustcli.reports.pages import typed_table
from robustcli.transforms.base import CLEAN

SIMILARITY, SHIFT = CONTRASTED
SANITY = "sanity_similarity"
ERROR_OF = {"integrated-gradients": "completeness_error", "relevance": "conservation_error"}
"""Column of the numerical check of each method that has one."""
UNCHANGED = 0.5
"""Mean rank correlation with the maps of shuffled weights from which maps count as unchanged.

A convention of this program: the source (Adebayo et al., NeurIPS 2018) defines no limit.
"""
INCOMPLETE = 0.25
"""Median relative error from which the sum of maps does not represent the score; a convention."""
SCORE_TITLES = {
    "insertion_auc": "Insertion",
    "deletion_auc": "Deletion",
    "pointing_hit": "Pointing game",
    "map_similarity": "Similarity",
    "centroid_shift": "Shift",
    "sanity_similarity": "Sanity",
    "completeness_error": "Completeness error",
    "conservation_error": "Conservation error",
    "map_similarity_difference": "Interval of the difference of similarity",
    "centroid_shift_difference": "Interval of the difference of shift",
}
_NO_TRANSFORM = "no transform was requested, see `--transform`"
_KEYS = ("model", "method", "transform", "severity", "view", "target_kind")


@dataclass(frozen=True)
class ExplanationFindings:
    """A run of `robust explain`, read once.

    Args:
        run: Folder of the run.
        record: Settings of the run.
        rows: All finished rows (columns: EXPLAINED_SCHEMA).
        out: Folder into which figures are drawn.
    """

    run: Path
    record: ExplainRecord
    rows: pd.DataFrame
    out: Path

    @cached_property
    def methods(self) -> list[ExplanationMethod]:
        """Methods in the order of the run; methods unknown to this version are left out."""
        return [METHODS[name] for name in self.record.methods if name in METHODS]

    def named(self, kind: str) -> list[ExplanationMethod]:
        """The methods of a kind (`localised`, `learned`, `model`)."""
        return [method for method in self.methods if method.kind == kind]

    @cached_property
    def cells(self) -> list[ExplanationCell]:
        """The scores of the localised maps, in the order of methods and transforms."""
        rows = self.rows[self.rows["method"].isin([m.name for m in self.named("localised")])]
        methods = [method.name for method in self.methods]
        transforms = [(t.name, t.severity) for t in self.record.transforms]
        cells = explanation_cells(rows, Bootstrap(self.record.seed))

        def order(cell: ExplanationCell) -> tuple[int, int, str, int]:
            key = cell.key
            known = (key.transform, key.severity) in transforms
            place = transforms.index((key.transform, key.severity)) if known else len(transforms)
            target = ("true", "predicted", "none").index(key.target_kind)
            return methods.index(key.method), place, key.view, target

        return sorted(cells, key=order)

    @property
    def transformed(self) -> list[ExplanationCell]:
        """The cells of transformed photos, whose maps are compared with those of clean photos."""
        return [cell for cell in self.cells if cell.key.view == "transformed"]

    @cached_property
    def errors(self) -> dict[str, ErrorSummary]:
        """Errors of each method's numerical check over all its maps, for methods that have one."""
        present = [method.name for method in self.methods if method.name in ERROR_OF]
        return {
            name: error_summary(
                self.rows.loc[self.rows["method"] == name, ERROR_OF[name]].to_numpy(dtype=float)
            )
            for name in present
        }

    @cached_property
    def sanity(self) -> dict[str, Mean]:
        """Mean similarity of each method's maps with the maps of shuffled weights."""
        means = sanity_summary(self.rows, Bootstrap(self.record.seed))
        return {m.name: means[m.name] for m in self.methods if m.name in means}

    @property
    def photos(self) -> list[str]:
        """The photos that have a row, in the order of the run."""
        present = set(self.rows["image_id"])
        return [image_id for image_id in self.record.images if image_id in present]

    @property
    def is_partial(self) -> bool:
        """Whether the run is incomplete."""
        return self.record.status != "complete"

    @cached_property
    def moved(self) -> dict[str, str]:
        """Whether the clean maps were transformed like the pixels before the comparison.

        By transform: `all`, `none` or `some`; only transforms with a comparison are included.
        """
        known = self.rows[self.rows["map_moved"].notna()]
        labels = [
            cell_label(t, s) for t, s in zip(known["transform"], known["severity"], strict=True)
        ]
        return {
            str(label): "all" if moved.all() else "some" if moved.any() else "none"
            for label, moved in known["map_moved"].groupby(labels, sort=False)
        }


def read_explanation(run: Path, out: Path | None = None) -> ExplanationFindings:
    """The explanation in the folder `run`, complete or not; see `read_findings`.

    Raises:
        UsageError: The explanation does not exist or cannot be read.
        RunError: A file of rows is damaged.
    """
    return ExplanationFindings(run, read_explain_record(run), read_explained_rows(run), out or run)


def title_of(method: str) -> str:
    """The title of a method, or its name if it is unknown to this version."""
    return METHODS[method].title if method in METHODS else method


def in_sentence(method: str) -> str:
    """The title of a method inside a sentence; a name such as Grad-CAM keeps its capital."""
    title = title_of(method)
    return title if title[1:] != title[1:].lower() else title.lower()


# Machine-readable results.


def explanation_columns() -> tuple[str, ...]:
    """The columns of results.csv, see docs/explain.md."""
    means = (f"{s}{end}" for s in SCORES for end in ("", "_low", "_high", "_n"))
    contrasts = (
        f"{s}_{part}"
        for s in CONTRASTED
        for part in ("flipped", "flipped_n", "kept", "kept_n", *_DIFFERENCE)
    )
    errors = (f"{e}_{part}" for e in ERRORS for part in ("n", "median", "p95", "largest"))
    return (*_KEYS, "n", "flipped", *means, *contrasts, *errors, "why_absent")


_DIFFERENCE = ("difference", "difference_low", "difference_high")


def explanation_results(explanation: ExplanationFindings) -> pd.DataFrame:
    """One row per cell with `explanation_columns`; `why_absent` explains every missing number."""
    names = explanation_columns()
    counts = [n for n in names if n in ("severity", "n", "flipped") or n.endswith("_n")]
    words = [name for name in (*_KEYS, "why_absent") if name != "severity"]
    rows = [_row(explanation, cell) for cell in explanation.cells]
    return typed_table(rows, names, words=words, counts=counts)


def _row(explanation: ExplanationFindings, cell: ExplanationCell) -> dict[str, Any]:
    flipped = None if cell.key.transform == CLEAN.transform else cell.flipped
    row: dict[str, Any] = {**cell.key._asdict(), "n": cell.n, "flipped": flipped}
    for name, mean in cell.means.items():
        row |= {name: mean.value, f"{name}_low": mean.low}
        row |= {f"{name}_high": mean.high, f"{name}_n": mean.n}
    for name, contrast in cell.contrasts.items():
        row |= {f"{name}_flipped": contrast.flipped.value, f"{name}_kept": contrast.kept.value}
        row |= {f"{name}_flipped_n": contrast.flipped.n, f"{name}_kept_n": contrast.kept.n}
        ends = (contrast.difference, contrast.low, contrast.high)
        row |= {f"{name}_{part}": end for part, end in zip(_DIFFERENCE, ends, strict=True)}
    for name, error in cell.errors.items():
        row |= {f"{name}_n": error.n, f"{name}_median": error.median}
        row |= {f"{name}_p95": error.p95, f"{name}_largest": error.largest}
    row["why_absent"] = "; ".join(
        f"{name}: {why}" for name, why in absences(explanation, cell).items()
    )
    return row


def absences(explanation: ExplanationFindings, cell: ExplanationCell) -> dict[str, str]:
    """Why scores of a cell, or their intervals, are missing; by score."""
    reasons: dict[str, str] = {}
    if cell.key.transform == CLEAN.transform:
        reasons["flipped"] = _NO_TRANSFORM
    for name, mean in cell.means.items():
        if mean.value is None:
            reasons[name] = why_no_score(explanation, cell, name)
        elif mean.low is None:
            reasons[name] = f"no interval from {counted(mean.n, 'photo')}"
    for name, contrast in cell.contrasts.items():
        if cell.means[name].value is not None and contrast.low is None:
            reasons[f"{name}_difference"] = few_photos(contrast)
    for name, error in cell.errors.items():
        if not error.n:
            reasons[name] = why_no_score(explanation, cell, name)
    return reasons


def why_no_score(explanation: ExplanationFindings, cell: ExplanationCell, name: str) -> str:
    """The reason why no photo of `cell` has the score `name`."""
    method, task = cell.key.method, explanation.record.task
    if name in ERRORS:
        owners = [title_of(m) for m, error in ERROR_OF.items() if error == name]
        if method not in ERROR_OF or ERROR_OF[method] != name:
            return f"a check only for {owners[0].lower()}"
    if name in CONTRASTED and cell.key.view == "clean":
        return (
            "compares the transformed photo's map with the clean photo's"
            if explanation.transformed
            else _NO_TRANSFORM
        )
    if name == SANITY and not explanation.record.sanity:
        return "not requested (`--sanity`)"
    if name == SANITY:
        return "computed on other maps of this method"
    if name == "pointing_hit" and explanation.record.boxes is not None:
        return "none of the photos has a box in view, or the maps are constant"
    if name == "pointing_hit" and task == "cls":
        return "the positions of objects are not known (`--boxes`)"
    if name in ("insertion_auc", "deletion_auc") and cell.key.target_kind == "none":
        return "the map does not refer to a class, so the probability of a class cannot be computed"
    if name in CONTRASTED:
        return "maps are constant, or the photos have too little of the scene in common"
    return "every map is constant or not finite"


def table_notes(
    explanation: ExplanationFindings, cells: Iterable[ExplanationCell], names: Iterable[str]
) -> list[str]:
    """Why numbers of a table are missing: each reason once, with the scores that it affects."""
    shown, by_reason = list(names), dict[str, list[str]]()
    for cell in cells:
        for name, why in absences(explanation, cell).items():
            if name in shown and SCORE_TITLES[name] not in by_reason.setdefault(why, []):
                by_reason[why].append(SCORE_TITLES[name])
    return [f"{', '.join(titles)} ({why})." for why, titles in by_reason.items()]


def few_photos(contrast: FlipContrast) -> str:
    """Why a difference between flipped and kept photos has no interval."""
    return f"{contrast.flipped.n} flipped and {contrast.kept.n} kept; {FEWEST} of each are needed"


# Sentences.


def explanation_summary(explanation: ExplanationFindings) -> list[str]:
    """Sentences on the maps: whether they can be trusted, and how they depend on flips.

    The first sentences compare the maps of photos whose prediction a transform flips with the maps
    of photos whose prediction it keeps.
    """
    return [
        *_contrast_sentences(explanation),
        *_sanity_sentences(explanation),
        *_error_sentences(explanation),
    ]


def _contrast_sentences(explanation: ExplanationFindings) -> Iterator[str]:
    """A sentence per significant difference; the other comparisons are grouped by reason."""
    what = "class" if explanation.record.task == "cls" else "mask"
    chance: dict[str, list[str]] = {}
    too_few: dict[str, list[str]] = {}
    for cell in explanation.transformed:
        if cell.key.target_kind == "predicted":
            continue
        for name in (SHIFT, SIMILARITY):
            contrast = cell.contrasts[name]
            if contrast.shown:
                yield _shown_difference(cell, name, contrast, what)
            elif contrast.low is not None:
                subject = f"{title_of(cell.key.method)} under {_transform(cell)}"
                chance.setdefault(subject, []).append(_interval(name, contrast))
            elif cell.means[name].n and name == SHIFT:
                counts = f"{cell.flipped} flipped, {cell.n - cell.flipped} kept"
                too_few.setdefault(f"{_transform(cell)} ({counts})", []).append(cell.key.method)
    for subject, intervals in chance.items():
        yield (
            f"{subject}: no difference shown between photos whose prediction flips and photos that "
            f"keep theirs ({'; '.join(intervals)})."
        )
    if too_few:
        yield (
            f"Too few photos to compare flipped with kept predictions under {', '.join(too_few)}: "
            f"{FEWEST} of each are needed."
        )


def _shown_difference(cell: ExplanationCell, name: str, contrast: FlipContrast, target: str) -> str:
    of = "" if cell.key.target_kind == "none" else f" of the true {target}"
    subject = f"Under {_transform(cell)} the {in_sentence(cell.key.method)} map{of}"
    flipped_is_larger = (contrast.difference or 0) > 0
    groups = [(contrast.flipped, "flips"), (contrast.kept, "stays")]
    (larger, event), (smaller, opposite) = groups if flipped_is_larger else groups[::-1]
    unit = " %" if name == SHIFT else ""
    first, second = (f"{shown(name, group.value)}{unit}" for group in (larger, smaller))
    if name == SHIFT:
        what = f"moves if the prediction {event}, but not if it {opposite}"
        if smaller.value:
            times = decimal((larger.value or 0) / smaller.value)
            what = f"moves {times} times as far if the prediction {event} as if it {opposite}"
        numbers = f"{first} of the diagonal (n = {larger.n}) compared with {second}"
    else:
        what = (
            f"is more similar to that of the clean photo if the prediction {event} than if it "
            f"{opposite}"
        )
        numbers = f"rank correlation {first} (n = {larger.n}) compared with {second}"
    return f"{subject} {what}: {numbers} (n = {smaller.n}); {_interval(name, contrast)}."


def _interval(name: str, contrast: FlipContrast) -> str:
    what = "distance" if name == SHIFT else "rank correlation"
    unit = " percentage points" if name == SHIFT else ""
    value, low, high = (shown(name, v) for v in (contrast.difference, contrast.low, contrast.high))
    return f"difference of {what} {value}{unit}, 95 % interval {low} to {high}"


def _transform(cell: ExplanationCell) -> str:
    return cell_label(cell.key.transform, cell.key.severity)


def _sanity_sentences(explanation: ExplanationFindings) -> Iterator[str]:
    means = explanation.sanity
    changed = [m for m, mean in means.items() if mean.value is not None and mean.value < UNCHANGED]
    if changed:
        numbers = ", ".join(f"{in_sentence(m)} {shown_mean(SANITY, means[m])}" for m in changed)
        yield (
            f"Sanity check passed: maps change with shuffled weights (rank correlation): {numbers}."
        )
    for method in means:
        if method not in changed:
            yield (
                f"Sanity check failed: with shuffled weights, the {in_sentence(method)} map "
                f"hardly changes (rank correlation {shown_mean(SANITY, means[method])}). It is "
                "hardly related to the learned weights."
            )


def _error_sentences(explanation: ExplanationFindings) -> Iterator[str]:
    for method, error in explanation.errors.items():
        if error.median is None:
            continue
        promise = (
            "the sum of the maps of integrated gradients differs from the change of the score"
            if ERROR_OF[method] == "completeness_error"
            else "the sum of the relevance of pixels and constants differs from the score"
        )
        failed = error.median >= INCOMPLETE
        yield (
            f"Check{' failed' if failed else ''}: {promise} by {relative(error.median)} in the "
            f"median and by {relative(error.p95)} in the 95th percentile of "
            f"{counted(error.n, 'map')}."
        )
        if failed and method == "integrated-gradients":
            yield (
                "The score changes abruptly between the mean colour and the photo, for example "
                "behind instance norms: do not use these maps of integrated gradients."
            )


def relative(value: float | None) -> str:
    """A relative error, rounded to its significant digits."""
    if value is None:
        return decimal(None)
    if value >= 0.995:
        return f"{100 * value:.0f} %"
    return f"{100 * value:.2g} %" if value >= 1e-4 else f"{value:.0e}"


def error_title(method: str) -> str:
    """The title of the numerical check of a method."""
    return SCORE_TITLES[ERROR_OF[method]]


def shown(name: str, value: float | None) -> str:
    """A mean score as text for a table; shares of the diagonal and of photos are in percent."""
    if name in (SHIFT, "pointing_hit"):
        return decimal(None if value is None else 100 * value)
    return decimal(value, 3 if name.endswith("_auc") else 2)


def shown_mean(name: str, mean: Mean) -> str:
    """A mean with its interval, if it has one."""
    if mean.low is None:
        return shown(name, mean.value)
    return f"{shown(name, mean.value)} ({shown(name, mean.low)} to {shown(name, mean.high)})"


def shown_difference(name: str, contrast: FlipContrast) -> str:
    """The difference between flipped and kept photos with its sign and interval."""
    if contrast.difference is None:
        return decimal(None)
    sign = "+" if contrast.difference > 0 else ""
    value = f"{sign}{shown(name, contrast.difference)}"
    if contrast.low is None:
        return value
    return f"{value} ({shown(name, contrast.low)} to {shown(name, contrast.high)})"
