"""The report of an explanation: page, figures, files of numbers, and the table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.core.names import counted, file_name
from robustcli.explanation.methods import ExplanationMethod
from robustcli.explanation.record import Arrays, ExplainRecord, read_arrays
from robustcli.metrics.explanation_scores import ExplanationCell, field_sides
from robustcli.reports.explanation_findings import (
    SANITY,
    SHIFT,
    SIMILARITY,
    ExplanationFindings,
    error_title,
    explanation_results,
    explanation_summary,
    in_sentence,
    read_explanation,
    relative,
    shown,
    shown_difference,
    shown_mean,
    table_notes,
    title_of,
)
from robustcli.reports.figures.images import (
    MapTile,
    PanelLine,
    ReceptiveField,
    draw_explanation,
    draw_fields,
)
from robustcli.reports.markdown import Picture, from_template
from robustcli.reports.numbers import MISSING, cell_label, confidence, is_missing
from robustcli.reports.pages import Page, grid, in_ascii
from robustcli.reports.statistics import bundled_names
from robustcli.tasks.record import PANELS_FOLDER
from robustcli.transforms.base import CLEAN

IN_WORDS = {
    "integrated-gradients": (
        "Integrates the gradient of the score of the class from the mean colour to the photo. The "
        "sum over all pixels is the change of the score."
    ),
    "occlusion": "Covers one patch after another and measures the drop of the score of the class.",
    "grad-cam": (
        "Weights the feature maps of one layer by the gradient of the score of the class: coarse, "
        "but based on the features of the last layers."
    ),
    "relevance": (
        "Propagates the score back through the network by rules that conserve the sum, so that "
        "each pixel gets its share of the score."
    ),
    "attention": (
        "Expresses the selective scan as attention and follows it through all layers: shows the "
        "pixels that contribute to the output, independent of the class."
    ),
    "class-attention": (
        "Hidden attention weighted by the gradient of the score of the class: shows the pixels "
        "that contribute to the score of the class."
    ),
    "maximised-photo": (
        "Changes the photo step by step to increase the score of the class: shows the features "
        "that the network associates with the class."
    ),
    "maximised-noise": (
        "Starts from noise instead of the photo: shows an image with a high score for the class."
    ),
    "erf": "How much each pixel of the input influences the centre of the last feature map.",
    "erf-untrained": "The same for the weights of the network before training.",
}
"""Description of each method, by its name."""
CHOICES = {
    "ids": "those that were named",
    "worst": "those with the largest drop of the score under the transforms",
    "class": "those of one class",
    "subset": "a random subset",
}


@dataclass(frozen=True)
class FieldExtent:
    """The size of an effective receptive field.

    Args:
        name: See NETWORKS.
        maps: Number of averaged maps.
        sides: See `explanation_scores.field_sides`.
    """

    name: str
    maps: int
    sides: dict[float, float]


@dataclass(frozen=True)
class ExplanationGallery:
    """The figures of an explanation; empty tuples for kinds without figures.

    Args:
        maps: Figures of localised features, one per photo and transform.
        learned: Figures of learned features, one per photo and transform.
        fields: Figures of effective receptive fields.
        extents: Sizes of the receptive fields in `fields`.
        left_out: Number of (photo, transform) pairs that are not drawn.
    """

    maps: tuple[Picture, ...] = ()
    learned: tuple[Picture, ...] = ()
    fields: tuple[Picture, ...] = ()
    extents: tuple[FieldExtent, ...] = ()
    left_out: int = 0


NO_PANELS = ExplanationGallery()


def explanation_report(run: Path, out: Path | None = None) -> Page:
    """The page of the explanation in `run`; draws its figures into `out`, by default `run`.

    Raises:
        UsageError: The explanation does not exist or cannot be read.
        RunError: A file of rows or arrays is damaged.
    """
    explanation = read_explanation(run, out)
    text = explanation_page(explanation, draw_explanation_gallery(explanation))
    return Page(explanation_results(explanation), text, terminal=explanation_text(explanation))


def explanation_page(
    explanation: ExplanationFindings, gallery: ExplanationGallery = NO_PANELS
) -> str:
    """The Markdown of the page, with the figures of `gallery`."""
    return from_template(
        "explanation",
        explanation=explanation,
        gallery=gallery,
        summary=explanation_summary(explanation),
        in_words=IN_WORDS,
        choices=CHOICES,
        notes=lambda cells, names: table_notes(explanation, cells, names),
        title_of=title_of,
        error_title=error_title,
        relative=relative,
        shown_mean=shown_mean,
        sanity=SANITY,
        shown=shown,
        shown_difference=shown_difference,
        similarity=SIMILARITY,
        shift=SHIFT,
    )


def explanation_text(explanation: ExplanationFindings) -> str:
    """The table and the sentences for a terminal, in ASCII except for names."""
    header = (
        *("method", "transform", "class", "photos", "flipped"),
        *("similarity", "shift, %", "insertion", "deletion"),
    )
    cells = explanation.transformed or explanation.cells
    blocks = [grid(header, [_line(cell) for cell in cells])] if cells else []
    notes = table_notes(explanation, cells, (SIMILARITY, SHIFT, "insertion_auc", "deletion_auc"))
    sentences = [*(f"Not available: {note}" for note in notes), *explanation_summary(explanation)]
    other_titles = [m.title for kind in ("learned", "model") for m in explanation.named(kind)]
    if other_titles:
        sentences.append(f"Only in the report: {', '.join(other_titles)}.")
    if explanation.is_partial:
        count = counted(len(explanation.photos), "photo")
        sentences.insert(0, f"Partial: {count} of {len(explanation.record.images)} have rows.")
    return in_ascii("\n\n".join([*blocks, "\n".join(sentences)])).strip()


def _line(cell: ExplanationCell) -> tuple[str, ...]:
    means = cell.means
    return (
        title_of(cell.key.method),
        cell_label(cell.key.transform, cell.key.severity),
        cell.key.target_kind,
        str(cell.n),
        MISSING if cell.key.transform == CLEAN.transform else str(cell.flipped),
        shown_mean(SIMILARITY, means[SIMILARITY]),
        shown_mean(SHIFT, means[SHIFT]),
        *(shown(name, means[name].value) for name in ("insertion_auc", "deletion_auc")),
    )


PANELS_SHOWN = 24
"""Largest number of (photo, transform) pairs that are drawn; the run contains the arrays of all."""
NETWORKS = {"erf": "as trained", "erf-untrained": "before training"}
"""Description of the network of a receptive field, by method."""
_FILES_KEPT = 12  # files of arrays in memory: one per method


def draw_explanation_gallery(explanation: ExplanationFindings) -> ExplanationGallery:
    """Draws all figures for which an explanation has data."""
    pairs = _pairs(explanation)
    drawn = _drawn(pairs, explanation.record)
    drawer = PanelDrawer(explanation)
    maps, learned = (
        [drawer.panel(number, rows, kind) for number, rows in drawn]
        for kind in ("localised", "learned")
    )
    fields, extents = _fields(explanation)
    return ExplanationGallery(
        tuple(picture for picture in maps if picture is not None),
        tuple(picture for picture in learned if picture is not None),
        fields,
        extents,
        len(pairs) - len(drawn),
    )


def _pairs(explanation: ExplanationFindings) -> list[tuple[int, pd.DataFrame]]:
    """Pairs of a photo's number and its rows under one transform, ordered by photo."""
    methods = [m.name for kind in ("localised", "learned") for m in explanation.named(kind)]
    of_photos = explanation.rows[explanation.rows["method"].isin(methods)]
    rows = dict(list(of_photos.groupby(["image_id", "transform", "severity"], sort=False)))
    return [
        (number, rows[key])
        for number, image_id in enumerate(explanation.record.images, start=1)
        for transform in explanation.record.transforms
        if (key := (image_id, transform.name, transform.severity)) in rows
    ]


def _drawn(
    pairs: list[tuple[int, pd.DataFrame]], record: ExplainRecord
) -> list[tuple[int, pd.DataFrame]]:
    """At most PANELS_SHOWN of the pairs: the first photos, or spread over photos without an order.

    A subset is sorted by name, so that its first photos are often all of one class.
    """
    if record.choice.rule in ("subset", "class") and len(pairs) > PANELS_SHOWN:
        numbers = list(dict.fromkeys(number for number, _ in pairs))
        count = max(1, PANELS_SHOWN * len(numbers) // len(pairs))
        spread = {numbers[k * len(numbers) // count] for k in range(count)}
        pairs = [pair for pair in pairs if pair[0] in spread]
    return pairs[:PANELS_SHOWN]


class PanelDrawer:
    """Draws panels; caches the arrays of the last files read."""

    def __init__(self, explanation: ExplanationFindings) -> None:
        self.explanation = explanation
        self.names = bundled_names(explanation.record.dataset)
        self.masks = explanation.record.task == "seg"  # the labels of masks contain the target kind
        known = explanation.rows.dropna(subset=["target_class", "target_label"])
        self.labels = dict(zip(known["target_class"], known["target_label"], strict=True))
        self._read = lru_cache(maxsize=_FILES_KEPT)(self._arrays)

    def _arrays(self, file: str) -> Arrays:
        return read_arrays(self.explanation.run, file)

    def panel(self, number: int, rows: pd.DataFrame, kind: str) -> Picture | None:
        """The figure of one photo under one transform, with all methods of a kind.

        None if no method of the kind has rows.
        """
        methods = [m for m in self.explanation.named(kind) if (rows["method"] == m.name).any()]
        if not methods:
            return None
        first = rows.iloc[0]
        label = cell_label(str(first["transform"]), int(first["severity"]))
        views = {
            name: of_view
            for view, name in (("clean", "clean"), ("transformed", label))
            if len(of_view := rows[rows["view"] == view])
        }
        # If no view has two target classes, each view needs one column instead of two.
        single_column = all(_targets(of_view)[1] is None for of_view in views.values())
        lines = [
            PanelLine("", [t for v in views.values() for t in self._photo_tiles(v, single_column)])
        ]
        for method in methods:
            tiles = [
                tile
                for of_view in list(views.values())[: None if method.from_photo else 1]
                for tile in self._tiles(of_view[of_view["method"] == method.name])[
                    : 1 if single_column else 2
                ]
            ]
            lines.append(PanelLine(method.title, tiles))
        path = (
            f"{PANELS_FOLDER}/{'learned-' * (kind == 'learned')}{number:03d}-{file_name(label)}.png"
        )
        draw_explanation(
            lines, self.explanation.out / path, columns=list(views),
            scale=kind == "localised",
        )  # fmt: skip
        return Picture(path, self._caption(number, views, methods, kind))

    def _photo_tiles(self, rows: pd.DataFrame, single_column: bool) -> list[MapTile]:
        """The photo of a view and the model's prediction.

        The prediction is next to the photo, or above it in a single column.
        """
        photo, answers = self.photo(rows.iloc[0]), self._answers(rows)
        if single_column:
            return [MapTile(", ".join(answers), photo)]
        return [MapTile("", photo), MapTile("", note="\n\n".join(answers))]

    def photo(self, row: pd.Series) -> NDArray[np.uint8]:
        """The photo of a row as the network received it, uint8 (H, W, 3)."""
        arrays = self._read(str(row["array_file"]))
        pixels: NDArray[np.uint8] = arrays.photos[int(row["photo_index"])]
        return pixels

    def _answers(self, rows: pd.DataFrame) -> list[str]:
        """The target classes of one view and the model's prediction, with probabilities."""
        answer, (first, second) = rows.iloc[0]["prediction"], _targets(rows)
        answers, shown = [], []
        if first is not None:
            role = str(first["target_kind"])
            if role == "true" and not is_missing(answer) and answer == first["target_class"]:
                role = "true and predicted"
            answers.append(_sure(first) if self.masks else f"{role} {_sure(first)}")
            shown.append(first["target_class"])
        if second is not None:
            is_answer = is_missing(answer) or answer == second["target_class"]
            role = "predicted" if is_answer else "for comparison"
            answers.append(_sure(second) if self.masks else f"{role} {_sure(second)}")
            shown.append(second["target_class"])
        if not is_missing(answer) and answer not in shown:
            answers.append(f"predicted {self.class_name(answer)}")
        return answers

    def class_name(self, index: Any) -> str:
        """The name of a class: its label in the rows, else in the label space, else its number."""
        number = int(index)
        if number in self.labels:
            return str(self.labels[number])
        return self.names[number] if number < len(self.names) else f"class {number}"

    def _tiles(self, rows: pd.DataFrame) -> list[MapTile]:
        """The maps of one method in one view: for the true class and for the predicted class."""
        none = rows[rows["target_kind"] == "none"]
        if len(none):
            return [self.tile(none.iloc[0], "of no class"), MapTile("")]
        first, second = _targets(rows)
        if first is None:
            return [MapTile("", note="not computed"), MapTile("")]
        if second is None:
            title = f"true and predicted: {first['target_label']}"
            return [
                self.tile(first, title),
                MapTile("", note="the predicted class is the true class"),
            ]
        return [
            self.tile(
                row, str(row["target_label"]) if self.masks else f"{kind}: {row['target_label']}"
            )
            for kind, row in (("true", first), ("predicted", second))
        ]

    def tile(self, row: pd.Series, title: str) -> MapTile:
        """The map of a row over its photo, or the generated image."""
        arrays = self._read(str(row["array_file"]))
        index = int(row["array_index"])
        if arrays.pictures is not None:
            reached: Any = row.get("picture_probability")
            if not is_missing(reached):
                title += f" ({confidence(reached)})"
            return MapTile(title, arrays.pictures[index])
        relevance = arrays.maps[index]
        if not np.isfinite(relevance).all():
            return MapTile(title, note="no map: it is not finite")
        if not relevance.any():
            title += " (a map of zeros)"
        return MapTile(title, arrays.photos[int(row["photo_index"])], relevance)

    def _caption(
        self, number: int, views: dict[str, pd.DataFrame], methods: Sequence[ExplanationMethod],
        kind: str,
    ) -> str:  # fmt: skip
        first = next(iter(views.values())).iloc[0]
        caption = ". ".join(
            f"{'Clean' if name == 'clean' else f'Under {name}'}: {'; '.join(self._answers(rows))}"
            for name, rows in views.items()
        )
        by = ", ".join(in_sentence(method.name) for method in methods)
        what = (
            f"Maps by {by}: yellow supports the {'mask' if self.masks else 'class'}, blue opposes "
            "it"
            if kind == "localised"
            else f"Images by {by} for the class above each image, with the probability of the "
            "class in it"
        )
        return f"Photo {number}, {first['image_id']}. {caption}. {what}."


def _sure(row: pd.Series) -> str:
    """The target class of a row with its probability, as text."""
    if is_missing(row["probability"]):
        return str(row["target_label"])
    return f"{row['target_label']} ({confidence(float(row['probability']))})"


def _targets(rows: pd.DataFrame) -> tuple[pd.Series | None, pd.Series | None]:
    """The row of the true class in one view, and that of the predicted class if it differs.

    If only one of the two exists, it is returned first. Two masks never count as equal.
    """
    by_kind = {str(row["target_kind"]): row for _, row in rows.iterrows()}
    true, predicted = by_kind.get("true"), by_kind.get("predicted")
    if true is None or predicted is None:
        return (predicted if true is None else true), None
    classes = true["target_class"], predicted["target_class"]
    same = not any(map(is_missing, classes)) and classes[0] == classes[1]
    return true, None if same else predicted


# Effective receptive fields, averaged over the images of the run.


def _fields(
    explanation: ExplanationFindings,
) -> tuple[tuple[Picture, ...], tuple[FieldExtent, ...]]:
    fields, extents = [], []
    for method in explanation.named("model"):
        influence, count = _mean_map(explanation, method.name)
        if influence is not None:
            name = NETWORKS.get(method.name, method.title)
            fields.append(ReceptiveField(name, influence))
            extents.append(FieldExtent(name, count, field_sides(influence)))
    if not fields:
        return (), ()
    path = f"{PANELS_FOLDER}/receptive-fields.png"
    draw_fields(fields, explanation.out / path)
    caption = (
        "How much each pixel of the input influences the centre of the last feature map, colours "
        "are scaled by the square root; the solid square contains 50 % of the influence, the "
        "dashed square 95 %. Right: the mean of the middle eighth of the rows, on a logarithmic "
        "scale."
    )
    return (Picture(path, caption),), tuple(extents)


def _mean_map(
    explanation: ExplanationFindings, method: str
) -> tuple[NDArray[np.float64] | None, int]:
    """The mean of the maps of clean images, and their number."""
    rows = explanation.rows
    rows = rows[(rows["method"] == method) & (rows["view"] == "clean")]
    rows = rows.drop_duplicates("image_id")
    total: NDArray[np.float64] | None = None
    for file, of_file in rows.groupby("array_file", sort=False):
        maps = read_arrays(explanation.run, str(file)).maps[of_file["array_index"].to_numpy()]
        part = np.abs(maps.astype(np.float64)).sum(axis=0)
        total = part if total is None else total + part
    return (None if total is None else total / len(rows)), len(rows)
