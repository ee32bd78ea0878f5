"""Statistics of the rows of an evaluation beyond its table: verdicts and rankings of models.

For classifiers also calibration, scores of each class, hard images and published accuracies.
They are computed from the rows at first use, so that they exist for old runs too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.adapters.catalogue import CATALOGUE, ModelEntry
from robustcli.core.errors import UsageError
from robustcli.core.names import TaskName
from robustcli.data.labels import BUNDLED_SPACES, read_label_space
from robustcli.evaluation.record import RunRecord
from robustcli.metrics.class_scores import (
    BINS,
    Calibration,
    ClassOutcome,
    MacroF1,
    calibration,
    class_outcomes,
    confusions,
    is_correct,
    macro_f1_with_interval,
)
from robustcli.metrics.columns import PIXEL_COLUMNS, distinct_ids, in_same_order
from robustcli.metrics.intervals import Bootstrap, Interval, wilson_interval
from robustcli.metrics.mask_scores import group_dice
from robustcli.metrics.paired import smallest_exact_p, smallest_p
from robustcli.metrics.verdicts import (
    ALPHA,
    Agreement,
    CellKey,
    Claim,
    Flips,
    ModelRows,
    Rank,
    Verdict,
    agreements,
    claims,
    flips,
    rank_probabilities,
    transform_verdicts,
    verdicts,
)
from robustcli.tasks.record import (
    DatasetRecord,
    MaskPreprocessingRecord,
    ModelRecord,
    PreprocessingRecord,
)
from robustcli.transforms.base import CLEAN

CLEAN_CELL = (CLEAN.transform, CLEAN.severity)


@dataclass(frozen=True)
class Statistics:
    """Statistics of the models of one task; those of segmenters unless a subclass overrides them.

    If rows are missing, models are compared on the images that they have in common.

    Args:
        record: Record of the run, or of the first of several runs with the same images and
            transforms.
        rows: Rows by model and cell: all columns of an evaluation except `top5`; to compare models
            at least the columns `row_columns`.
    """

    record: RunRecord
    rows: ModelRows

    row_columns: ClassVar[Sequence[str]] = ("image_id", "group", *PIXEL_COLUMNS)
    test: ClassVar[str] = "sign-flip test of the dice of groups"

    @property
    def unit(self) -> str:
        """Name of the unit of resampling and tests, in the singular."""
        return self.record.grouping or "image"

    @property
    def words(self) -> str:
        """Sentences on how differences are tested."""
        return (
            f"Test: sign flips of the differences of {self.unit}s; interval: paired bootstrap "
            f"over {self.unit}s."
        )

    @property
    def mean_words(self) -> str:
        """How a transform with several severities is tested, as text."""
        return f"each {self.unit}'s mean over them"

    @staticmethod
    def smallest_p(units: int) -> float:
        """The smallest possible p-value with this number of units."""
        return smallest_p(units)

    @staticmethod
    def scores(rows: pd.DataFrame) -> NDArray[np.float64]:
        """The score of each unit of a cell, in [0, 1]."""
        return group_dice(rows)

    @property
    def transformed(self) -> dict[str, dict[CellKey, pd.DataFrame]]:
        """The rows without those of clean images."""
        return {
            model: {cell: rows for cell, rows in cells.items() if cell != CLEAN_CELL}
            for model, cells in self.rows.items()
        }

    @property
    def bootstrap(self) -> Bootstrap:
        """The bootstrap with the run's seed."""
        return Bootstrap(self.record.seed)

    # Comparison of the models; empty for a single model.

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Verdicts for every pair of models under every transform, clean images included."""
        return transform_verdicts(self.rows, self.record.task, self.bootstrap)

    @cached_property
    def severity_verdicts(self) -> list[Verdict]:
        """Verdicts for each severity; empty if no transform has several severities."""
        cells = dict.fromkeys(cell for cells in self.rows.values() for cell in cells)
        if len({transform for transform, _ in cells}) == len(cells):
            return []
        return verdicts(self.rows, self.record.task, self.bootstrap)

    @cached_property
    def claims(self) -> list[Claim]:
        """Per pair of models, the number of transforms in which one of them is ahead."""
        return claims(v for v in self.verdicts if v.transform != CLEAN.transform)

    @property
    def sentences(self) -> list[str]:
        """One sentence per pair of models: the claim, or the verdict on clean images."""
        if self.claims:
            return [claim.sentence() for claim in self.claims]
        return [_on_clean_images(verdict) for verdict in self.verdicts]

    @property
    def pairs(self) -> dict[tuple[str, str], list[Verdict]]:
        """The verdicts of each pair of models."""
        table: dict[tuple[str, str], list[Verdict]] = {}
        for verdict in self.verdicts:
            table.setdefault((verdict.first, verdict.second), []).append(verdict)
        return table

    @property
    def smallest_adjusted_p(self) -> float:
        """The smallest possible adjusted p-value in `verdicts`."""
        units = max((verdict.groups for verdict in self.verdicts), default=0)
        return min(1.0, self.smallest_p(units) * max(1, len(self.verdicts)))

    @cached_property
    def ranking(self) -> list[Rank]:
        """The models by their mean over transforms, or by their clean score without transforms."""
        if len(self.rows) < 2:
            return []
        rows = self.transformed if any(self.transformed.values()) else self.rows
        return rank_probabilities(rows, self.record.task, self.bootstrap)

    # Agreement of predictions between models, and with each model's clean predictions.

    @property
    def agreements(self) -> list[Agreement]:
        """The agreement of each pair of classifiers in each cell; empty for segmenters."""
        return []

    @property
    def flips(self) -> list[Flips]:
        """The changes of each classifier's predictions by each cell; empty for segmenters."""
        return []

    def further_lists(self) -> dict[str, Any]:
        """Further lists of `statistics.json`, by key."""
        return {}

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that are written to separate files, by file name."""
        levels = (("transform", self.verdicts), ("severity", self.severity_verdicts))
        lines = [{"level": level} | _verdict_fields(v) for level, table in levels for v in table]
        if not lines:
            return {}
        return {"verdicts.csv": pd.DataFrame(lines).astype({"severity": "Int64"})}


def _on_clean_images(verdict: Verdict) -> str:
    names = verdict.first, verdict.second
    if verdict.outcome == "no difference shown":
        return f"No difference between {names[0]} and {names[1]} is shown on clean images."
    ahead, behind = names if verdict.outcome == "first ahead" else names[::-1]
    return f"{ahead} is ahead of {behind} on clean images."


# Machine-readable files.


def statistics_json(statistics: Statistics, extra: Mapping[str, Any]) -> str:
    """All statistics as one JSON document; shares are fractions in [0, 1], missing ones null.

    Args:
        statistics: Statistics of one run.
        extra: Further entries, by key.
    """
    document = {
        "schema_version": 1,
        "alpha": ALPHA,
        "correction": "Holm 1979, over all lines of a list of verdicts",
        "test": statistics.test,
        "claims": [asdict(claim) | {"sentence": claim.sentence()} for claim in statistics.claims],
        "verdicts": [_verdict_fields(verdict) for verdict in statistics.verdicts],
        "severity_verdicts": [_verdict_fields(verdict) for verdict in statistics.severity_verdicts],
        "ranking": [asdict(rank) for rank in statistics.ranking],
        **statistics.further_lists(),
        **extra,
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _verdict_fields(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict) | {"outcome": verdict.outcome}


# Classifiers.


CLASS_IMAGES = 5
"""Smallest number of clean images with which a class is listed among the worst and best classes."""
MODELS_SHOWN, CLASSES_SHOWN, CONFUSIONS_SHOWN, PHOTOS_SHOWN = 5, 5, 10, 10


@dataclass(frozen=True)
class ClassNumbers:
    """Scores of one class for one model.

    Args:
        model: The model.
        target: Index of the class.
        name: Name of the class.
        n: Number of its clean images.
        correct: Number of these that are classified correctly.
        top1: Share of these that are classified correctly.
        top1_low: Lower end of its 95 % Wilson interval.
        top1_high: Upper end of its 95 % Wilson interval.
        transformed_top1: Mean of the same share over all transforms and severities.
        predicted: Number of clean images of any class that are predicted as this class.
        precision: Share of the class among these; None if there are none. `top1` is the recall.
        f1: Harmonic mean of precision and `top1`; 0 if no image is correct.
    """

    model: str
    target: int
    name: str
    n: int
    correct: int
    top1: float
    top1_low: float
    top1_high: float
    transformed_top1: float | None
    predicted: int
    precision: float | None
    f1: float


@dataclass(frozen=True)
class ConfusionNumbers:
    """How often a model predicts a wrong class for the images of another class.

    Args:
        model: The model.
        target: Name of the true class.
        prediction: Name of the predicted class.
        clean: Number of clean images with this confusion.
        transformed: Number of transformed images with this confusion, over all cells.
        images: Number of transformed images of the true class, over all cells.
    """

    model: str
    target: str
    prediction: str
    clean: int
    transformed: int
    images: int


@dataclass(frozen=True)
class HardPhoto:
    """An image that models often classify wrongly.

    Args:
        image_id: The image.
        target: Name of its class.
        wrong: Number of wrong predictions, over all models and transforms, clean included.
        answers: Number of predictions, over the same.
        called: The most frequent wrong prediction.
    """

    image_id: str
    target: str
    wrong: int
    answers: int
    called: str


@dataclass(frozen=True)
class Anchor:
    """A model's clean accuracy next to its published accuracy.

    Args:
        model: Name of the model in the run.
        published: Published top-1, in [0, 1].
        source: Source of the published number.
        n: Number of images of the run.
        top1: Clean accuracy of the run.
        low: Lower end of its 95 % Wilson interval.
        high: Upper end of its 95 % Wilson interval.
        status: Whether the published number is `inside` or `outside` the interval; `not comparable`
            if the images are not those of ImageNet's validation set.
        images: Origin of the images, judged by their file names.
        settings: The preprocessing and weights of the run, as text.
    """

    model: str
    published: float
    source: str
    n: int
    top1: float
    low: float
    high: float
    status: Literal["inside", "outside", "not comparable"]
    images: str
    settings: str


@dataclass(frozen=True)
class ClassifierStatistics(Statistics):
    """The statistics of an evaluation of classifiers."""

    row_columns: ClassVar[Sequence[str]] = ("image_id", "target", "prediction")
    test: ClassVar[str] = "McNemar's exact test; for means over severities the exact sign-flip test"

    @property
    def unit(self) -> str:
        """See `Statistics.unit`: every image is an independent unit."""
        return "image"

    @property
    def words(self) -> str:
        """See `Statistics.words`."""
        return "Test: McNemar's exact test; interval: Newcombe's paired interval."

    @property
    def mean_words(self) -> str:
        """See `Statistics.mean_words`."""
        return "each image's mean over them (exact sign-flip test, adjusted Wald interval)"

    @staticmethod
    def smallest_p(units: int) -> float:
        """See `Statistics.smallest_p`."""
        return smallest_exact_p(units)

    @staticmethod
    def scores(rows: pd.DataFrame) -> NDArray[np.float64]:
        """See `Statistics.scores`."""
        return is_correct(rows).astype(np.float64)

    @cached_property
    def agreements(self) -> list[Agreement]:
        """Agreement of each pair of models in each cell."""
        return agreements(self.rows)

    @cached_property
    def flips(self) -> list[Flips]:
        """Changes of each model's predictions by each cell, against the clean images."""
        return flips(self.rows, CLEAN_CELL)

    # Calibration of the confidences.

    @cached_property
    def calibration(self) -> dict[tuple[str, str, int], Calibration]:
        """Calibration by model, transform and severity, of the cells that have rows."""
        cells = {
            (model, *cell): calibration(rows, self.bootstrap)
            for model, of_model in self.rows.items()
            for cell, rows in of_model.items()
        }
        return {key: numbers for key, numbers in cells.items() if numbers is not None}

    # Hard classes and images.

    @cached_property
    def class_names(self) -> Mapping[int, str]:
        """Names of all classes that are the target or prediction of an image, by class index.

        All cells are searched, because a partial run can lack clean images.
        """
        frames = [rows for cells in self.rows.values() for rows in cells.values() if len(rows)]
        indices = {
            int(index)
            for rows in frames
            for column in ("target", "prediction")
            for index in pd.unique(rows[column])
        }
        known = bundled_names(self.record.dataset)
        folders = _class_folders(max(frames, key=len)) if frames else {}
        return {
            index: known[index] if index < len(known) else folders.get(index, f"class {index}")
            for index in sorted(indices)
        }

    @cached_property
    def classes(self) -> list[ClassNumbers]:
        """Scores of every class of every model, ordered by model and class index."""
        return [line for model in self.rows for line in self._classes_of(model)]

    def _classes_of(self, model: str) -> Iterator[ClassNumbers]:
        clean = self.rows[model].get(CLEAN_CELL)
        if clean is None:
            return
        cells = [
            {line.target: line.recall for line in _outcomes(rows)}
            for rows in self.transformed[model].values()
        ]
        for line in _outcomes(clean):
            if line.recall is None:
                continue  # predicted for images of other classes only
            recalls = (cell.get(line.target) for cell in cells)
            under = [recall for recall in recalls if recall is not None]
            yield ClassNumbers(
                model,
                line.target,
                self.class_names[line.target],
                line.n,
                line.correct,
                line.recall,
                *wilson_interval(line.correct, line.n),
                float(np.mean(under)) if under else None,
                line.predicted,
                line.precision,
                line.f1,
            )

    @cached_property
    def macro_f1(self) -> dict[str, MacroF1]:
        """Macro F1 on the clean images, by model; models without clean images are left out."""
        scores = {
            model: macro_f1_with_interval(cells[CLEAN_CELL], self.bootstrap)
            for model, cells in self.rows.items()
            if CLEAN_CELL in cells
        }
        return {model: score for model, score in scores.items() if score is not None}

    @property
    def extreme_classes(self) -> list[tuple[str, ClassNumbers]]:
        """The worst and best classes of the first MODELS_SHOWN models, labelled `worst` or `best`.

        The worst have the lowest upper ends of their intervals, the best the highest lower ends.
        A model whose classes all have the same accuracy has neither.
        """
        return [pair for model in list(self.rows)[:MODELS_SHOWN] for pair in self._extremes(model)]

    def _extremes(self, model: str) -> list[tuple[str, ClassNumbers]]:
        lines = [c for c in self.classes if c.model == model and c.n >= CLASS_IMAGES]
        if len({(c.top1, c.transformed_top1) for c in lines}) < 2:
            return []
        most = min(CLASSES_SHOWN, len(lines) // 2)
        worst = sorted(lines, key=lambda c: (c.top1_high, c.transformed_top1 or 0.0))[:most]
        other_lines = [c for c in lines if c not in worst]
        best = sorted(other_lines, key=lambda c: (-c.top1_low, -(c.transformed_top1 or 0.0)))[:most]
        return [*(("worst", line) for line in worst), *(("best", line) for line in best[::-1])]

    @cached_property
    def confusions(self) -> list[ConfusionNumbers]:
        """The most frequent confusions of each model, over all transforms."""
        return [line for model in self.rows for line in self._confusions_of(model)]

    def _confusions_of(self, model: str) -> Iterator[ConfusionNumbers]:
        cells = [rows for rows in self.transformed[model].values() if len(rows)]
        clean = self.rows[model].get(CLEAN_CELL)
        frames = cells or ([] if clean is None else [clean])
        if not frames:
            return
        everything = pd.concat([rows[["target", "prediction"]] for rows in frames])
        sizes = everything["target"].value_counts()
        for line in confusions(everything, CONFUSIONS_SHOWN):
            clean_count = 0
            if clean is not None:
                is_same = clean["target"].eq(line.target) & clean["prediction"].eq(line.prediction)
                clean_count = int(is_same.sum())
            yield ConfusionNumbers(
                model,
                self.class_names[line.target],
                self.class_names[line.prediction],
                clean_count,
                line.count if cells else 0,
                int(sizes[line.target]) if cells else 0,
            )

    @cached_property
    def hard_photos(self) -> list[HardPhoto]:
        """The images with the highest share of wrong predictions.

        Ties are ordered by the mean probability of the true class, lowest first.
        """
        frames = [rows for cells in self.rows.values() for rows in cells.values() if len(rows)]
        if not frames:
            return []
        by_image = _answers_by_image(frames)
        by_image["share"] = by_image["wrong"] / by_image["answers"]
        order = ["share", "probability"]
        hardest = by_image[by_image["wrong"] > 0].sort_values(
            order, ascending=[False, True], kind="stable"
        )
        shown = hardest.head(PHOTOS_SHOWN)
        rows = pd.concat([rows[rows["image_id"].isin(shown.index)] for rows in frames])
        wrong = rows.loc[~is_correct(rows), ["image_id", "prediction"]]
        return [self._hard_photo(wrong, line) for line in shown.itertuples()]

    def _hard_photo(self, wrong: pd.DataFrame, line: Any) -> HardPhoto:
        called = int(wrong.loc[wrong["image_id"].eq(line.Index), "prediction"].mode().iloc[0])
        names = self.class_names
        return HardPhoto(
            str(line.Index),
            names[int(line.target)],
            int(line.wrong),
            int(line.answers),
            names[called],
        )

    # Clean accuracy against the published accuracy, to detect a wrong set-up.

    @cached_property
    def anchors(self) -> list[Anchor]:
        """One per model with a published ImageNet-1K accuracy.

        Models whose weights cannot be the published ones are left out.
        """
        if self.record.dataset.label_space != "imagenet-1k":
            return []
        anchors = map(self._anchor, self.record.models)
        return [anchor for anchor in anchors if anchor is not None]

    def _anchor(self, model: ModelRecord) -> Anchor | None:
        entry, clean = _published(model), self.rows[model.name].get(CLEAN_CELL)
        if entry is None or entry.published is None or clean is None or clean.empty:
            return None
        published, correct, n = entry.published / 100, int(is_correct(clean).sum()), len(clean)
        interval = wilson_interval(correct, n)
        images = self._unlike_published or _whose_images(clean["image_id"])
        return Anchor(
            model.name,
            published,
            entry.source,
            n,
            correct / n,
            *interval,
            _status(published, interval) if images == _VALIDATION else "not comparable",
            images,
            f"{preprocessing_words(model)}, weights {model.weights}",
        )

    @property
    def _unlike_published(self) -> str | None:
        """Why the clean accuracy cannot be compared with the published one; None if it can."""
        if self.record.dataset.several_labels:
            return (
                "images with several true classes (ReaL labels); the published value is for the "
                "original labels"
            )
        if self.record.dataset.answers is not None:
            return (
                "predictions among a subset of the classes; the published value is for "
                "predictions among all classes"
            )
        return None

    # Files.

    def further_lists(self) -> dict[str, Any]:
        """See `Statistics.further_lists`."""
        return {
            "agreement": [
                asdict(line)
                | {"n": line.n, "share": line.share, "error_consistency": line.error_consistency}
                for line in self.agreements
            ],
            "flips": [
                asdict(line)
                | {"n": line.n, "rate": line.rate}
                | dict(zip(("rate_low", "rate_high"), line.rate_interval, strict=True))
                for line in self.flips
            ],
            "calibration_bins": BINS,
            "calibration": [
                dict(zip(("model", "transform", "severity"), key, strict=True)) | asdict(numbers)
                for key, numbers in self.calibration.items()
            ],
            "macro_f1": [{"model": m} | asdict(score) for m, score in self.macro_f1.items()],
            "confusions": [asdict(line) for line in self.confusions],
            "hard_photos": [asdict(line) for line in self.hard_photos],
            "anchors": [asdict(line) for line in self.anchors],
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """See `Statistics.tables`."""
        classes = pd.DataFrame(map(asdict, self.classes))
        return super().tables() | ({} if classes.empty else {"classes.csv": classes})


STATISTICS: Mapping[TaskName, type[Statistics]] = {"cls": ClassifierStatistics, "seg": Statistics}


def _answers_by_image(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The numbers of `wrong` and of all `answers` of each image in `frames`, sorted by id.

    Also its `target`, and the mean `probability` of the true class. Frames are added one by one: a
    table of all rows of a large run would need several times the memory of the rows.
    """
    images = pd.Index(pd.concat(distinct_ids(frames)).unique())
    images = images.sort_values()
    wrong, answers, target = np.zeros((3, len(images)), np.int64)
    probability, ids, places = np.zeros(len(images)), pd.Series(dtype=object), np.empty(0, int)
    for rows in reversed(frames):  # the target is that of the first frame with the image
        if not in_same_order(ids, rows["image_id"]):
            ids = rows["image_id"]
            places = images.get_indexer(ids)
        np.add.at(wrong, places, ~is_correct(rows))
        np.add.at(answers, places, 1)
        np.add.at(probability, places, rows["target_probability"].to_numpy(float))
        target[places] = rows["target"]
    columns = {"wrong": wrong, "answers": answers, "target": target}
    return pd.DataFrame(columns | {"probability": probability / answers}, index=images)


def _outcomes(rows: pd.DataFrame) -> list[ClassOutcome]:
    return class_outcomes(*(rows[name].to_numpy(int) for name in ("target", "prediction")))


def bundled_names(dataset: DatasetRecord) -> tuple[str, ...]:
    """The class names of a bundled label space in order; empty for any other label space."""
    if dataset.label_space not in BUNDLED_SPACES:
        return ()
    try:
        names = read_label_space(dataset.label_space).names
    except UsageError:
        return ()
    fits = len(names) == dataset.classes or dataset.label_space == "imagenet-1k"
    return tuple(names) if fits else ()


def _class_folders(rows: pd.DataFrame) -> dict[int, str]:
    """The folder name of each class whose images are in one folder without another class."""
    folders = rows["image_id"].astype(str).str.split("/").str[-2]
    pairs = pd.DataFrame({"target": rows["target"], "folder": folders}).dropna().drop_duplicates()
    of_class = pairs[~pairs.duplicated("target", keep=False)]
    named = of_class[~of_class["folder"].isin(pairs["folder"][pairs.duplicated("folder")])]
    return {int(t): str(f) for t, f in zip(named["target"], named["folder"], strict=True)}


# File names of ImageNet-1K's validation and training images.
_VALIDATION = "images of ImageNet-1K's validation set"
_NAMES = (
    (re.compile(r"(?:.*/)?ILSVRC2012_val_\d{8}\.\w+"), _VALIDATION),
    (
        re.compile(r"(?:.*/)?n\d{8}_\d+\.\w+"),
        "training images of ImageNet-1K, according to their names",
    ),
)
_OTHERS = (
    "images that are not named as ImageNet-1K's validation set (`ILSVRC2012_val_00000001.JPEG`); "
    "samples of one photo per class are probably training images"
)


def _whose_images(image_ids: Iterable[str]) -> str:
    ids = list(map(str, image_ids))
    for pattern, words in _NAMES:
        if all(pattern.fullmatch(image_id) for image_id in ids):
            return words
    return _OTHERS


def _status(published: float, interval: Interval) -> Literal["inside", "outside"]:
    return "inside" if interval.low <= published <= interval.high else "outside"


def _published(model: ModelRecord) -> ModelEntry | None:
    """The catalogue's entry for `model`, if its weights can be the published ones."""
    if model.untrained or model.label_space != "imagenet-1k":
        return None
    for entry in CATALOGUE.values():
        if model.builder == f"{entry.builder}:{entry.variant}" and entry.published is not None:
            official = model.pretraining in (entry.pretraining, "unknown (weights from a file)")
            return entry if official and not model.arguments else None
    return None


def preprocessing_words(model: ModelRecord) -> str:
    """The preprocessing of a model as text."""
    record = model.preprocessing
    if isinstance(record, PreprocessingRecord):
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (record.mean, record.std))
        resize = "no resize" if record.resize is None else f"resize {record.resize}"
        mode = "" if record.mode == "center" else f" ({record.mode})"
        return f"{resize}, crop {record.crop}{mode}, {record.interpolation}, mean {mean}, std {std}"
    assert isinstance(record, MaskPreprocessingRecord)
    nnunet = ", nnU-Net's normalisation" if record.nnunet else ""
    return (
        f"window {record.window_in_words}, {record.channels}, threshold {record.threshold:g}, "
        f"overlap {record.overlap:g}{nnunet}"
    )
