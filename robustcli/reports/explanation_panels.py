"""The pictures of an explanation: which ones a run has, drawn into `RUN/panels/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustcli.core.names import file_name
from robustcli.explanation.explained_rows import Arrays, read_arrays
from robustcli.explanation.methods import ExplanationMethod
from robustcli.metrics.explanation_scores import field_sides
from robustcli.reports.cell_photos import bundled_names
from robustcli.reports.explanation_findings import ExplanationFindings, in_sentence
from robustcli.reports.figures.explanation_maps import (
    MapTile,
    PanelLine,
    ReceptiveField,
    draw_explanation,
    draw_fields,
)
from robustcli.reports.markdown import Picture
from robustcli.reports.numbers import cell_label, is_missing, percent
from robustcli.tasks.record import PANELS_FOLDER

PANELS_SHOWN = 24
"""Pairs of a photo and a transform that are drawn; the arrays of all are in the run."""
NETWORKS = {"erf": "as trained", "erf-untrained": "before training"}
"""Of which network a receptive field is."""
_DIGITS = 1  # as many images as give a percentage one decimal
_NBSP = "\N{NO-BREAK SPACE}"
_FILES_KEPT = 12  # files of arrays in memory: one per method


@dataclass(frozen=True)
class FieldExtent:
    """How large an effective receptive field is.

    Args:
        name: See NETWORKS.
        maps: Over how many it is averaged.
        sides: See `explanation_scores.field_sides`.
    """

    name: str
    maps: int
    sides: dict[float, float]


@dataclass(frozen=True)
class ExplanationGallery:
    """The figures of each kind that there are; an empty tuple where there is nothing to show.

    Args:
        maps: Localised features, one picture per photo and transform.
        learned: Learned features, likewise.
        fields: Effective receptive fields.
        extents: The numbers of `fields`.
        left_out: Pairs of a photo and a transform that are not drawn.
    """

    maps: tuple[Picture, ...] = ()
    learned: tuple[Picture, ...] = ()
    fields: tuple[Picture, ...] = ()
    extents: tuple[FieldExtent, ...] = ()
    left_out: int = 0


NO_PANELS = ExplanationGallery()


def draw_explanation_gallery(explanation: ExplanationFindings) -> ExplanationGallery:
    """Draws every picture that an explanation has data for."""
    pairs = _pairs(explanation)
    drawer = PanelDrawer(explanation)
    maps, learned = (
        [drawer.panel(number, rows, kind) for number, rows in pairs[:PANELS_SHOWN]]
        for kind in ("localised", "learned")
    )
    fields, extents = _fields(explanation)
    return ExplanationGallery(
        tuple(picture for picture in maps if picture is not None),
        tuple(picture for picture in learned if picture is not None),
        fields,
        extents,
        max(0, len(pairs) - PANELS_SHOWN),
    )


def _pairs(explanation: ExplanationFindings) -> list[tuple[int, pd.DataFrame]]:
    """The number of a photo with its rows under one transform; photo by photo."""
    methods = [m.name for kind in ("localised", "learned") for m in explanation.named(kind)]
    of_photos = explanation.rows[explanation.rows["method"].isin(methods)]
    rows = dict(list(of_photos.groupby(["image_id", "transform", "severity"], sort=False)))
    return [
        (number, rows[key])
        for number, image_id in enumerate(explanation.record.images, start=1)
        for transform in explanation.record.transforms
        if (key := (image_id, transform.name, transform.severity)) in rows
    ]


class PanelDrawer:
    """Draws panels; of the files with arrays it keeps the last ones."""

    def __init__(self, explanation: ExplanationFindings) -> None:
        self.explanation = explanation
        self.names = bundled_names(explanation.record.dataset)
        known = explanation.rows.dropna(subset=["target_class", "target_label"])
        self.labels = dict(zip(known["target_class"], known["target_label"], strict=True))
        self._read = lru_cache(maxsize=_FILES_KEPT)(self._arrays)

    def _arrays(self, file: str) -> Arrays:
        return read_arrays(self.explanation.run, file)

    def panel(self, number: int, rows: pd.DataFrame, kind: str) -> Picture | None:
        """The picture of one photo under one transform by all methods of a kind."""
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
        lines = [PanelLine("", [t for v in views.values() for t in self._photo_tiles(v)])]
        for method in methods:
            tiles = [
                tile
                for of_view in list(views.values())[: None if method.from_photo else 1]
                for tile in self._tiles(of_view[of_view["method"] == method.name])
            ]
            lines.append(PanelLine(method.title, tiles))
        path = f"{PANELS_FOLDER}/{_stem(kind)}{number:03d}-{file_name(label)}.png"
        draw_explanation(
            lines, self.explanation.run / path, columns=list(views),
            scale=kind == "localised",
        )  # fmt: skip
        return Picture(path, self._caption(number, views, methods, kind))

    def _photo_tiles(self, rows: pd.DataFrame) -> list[MapTile]:
        """The photo of one view, and beside it what the model says of it."""
        note = "\n\n".join(self._answers(rows))
        return [MapTile("", self.photo(rows.iloc[0])), MapTile("", note=note)]

    def photo(self, row: pd.Series) -> NDArray[np.uint8]:
        """The photo of a row as the network saw it, uint8 (H, W, 3)."""
        arrays = self._read(str(row["array_file"]))
        pixels: NDArray[np.uint8] = arrays.photos[int(row["photo_index"])]
        return pixels

    def _answers(self, rows: pd.DataFrame) -> list[str]:
        """What the model says of the photo in one view: classes with probabilities."""
        by_kind = {row["target_kind"]: row for _, row in rows.iterrows()}
        true, predicted = by_kind.get("true"), by_kind.get("predicted")
        answer = rows.iloc[0]["prediction"]
        shown, answers = [], []
        if true is not None:
            both = not is_missing(answer) and answer == true["target_class"]
            answers.append(f"{'true and predicted' if both else 'true'} {_sure(true)}")
            shown.append(true["target_class"])
        if predicted is not None and (true is None or not _same_target(true, predicted)):
            chosen = is_missing(answer) or answer == predicted["target_class"]
            answers.append(f"{'predicted' if chosen else 'for comparison'} {_sure(predicted)}")
            shown.append(predicted["target_class"])
        if not is_missing(answer) and answer not in shown:
            answers.append(f"predicted {self.class_name(answer)}")
        return answers

    def class_name(self, index: Any) -> str:
        """What the class `index` is called: as in the rows, by its label space, or by number."""
        number = int(index)
        if number in self.labels:
            return str(self.labels[number])
        return self.names[number] if number < len(self.names) else f"class {number}"

    def _tiles(self, rows: pd.DataFrame) -> list[MapTile]:
        """The maps of one method and view: for the true class, and for the predicted one."""
        by_kind = {row["target_kind"]: row for _, row in rows.iterrows()}
        if "none" in by_kind:
            return [self.tile(by_kind["none"], "of no class"), MapTile("")]
        true, predicted = by_kind.get("true"), by_kind.get("predicted")
        if true is None or predicted is None or _same_target(true, predicted):
            row = predicted if true is None else true
            if row is None:
                return [MapTile("", note="not computed"), MapTile("")]
            title = f"true and predicted: {row['target_label']}"
            return [self.tile(row, title), MapTile("", note="the predicted class is the true one")]
        return [
            self.tile(true, f"true: {true['target_label']}"),
            self.tile(predicted, f"predicted: {predicted['target_label']}"),
        ]

    def tile(self, row: pd.Series, title: str) -> MapTile:
        """The map of a row over its photo, or the picture that was made."""
        arrays = self._read(str(row["array_file"]))
        index = int(row["array_index"])
        if arrays.pictures is not None:
            reached: Any = row.get("picture_probability")
            if not is_missing(reached):
                title += f" ({percent(reached, _DIGITS)}{_NBSP}%)"
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
        said = ". ".join(
            f"{'Clean' if name == 'clean' else f'Under {name}'}: {'; '.join(self._answers(rows))}"
            for name, rows in views.items()
        )
        by = ", ".join(in_sentence(method.name) for method in methods)
        what = (
            f"Maps by {by}: yellow speaks for the class, blue against it"
            if kind == "localised"
            else f"Pictures made by {by} for the class above each, with its probability there"
        )
        return f"Photo {number}, {first['image_id']}. {said}. {what}."


def _stem(kind: str) -> str:
    return "learned-" if kind == "learned" else ""


def _sure(row: pd.Series) -> str:
    """The target of a row with its probability."""
    if is_missing(row["probability"]):
        return str(row["target_label"])
    return f"{row['target_label']} ({percent(float(row['probability']), _DIGITS)}{_NBSP}%)"


def _same_target(one: pd.Series, other: pd.Series) -> bool:
    """Whether both rows explain the same class; two masks never are."""
    classes = one["target_class"], other["target_class"]
    return not any(map(is_missing, classes)) and classes[0] == classes[1]


# Effective receptive fields: the mean over the images of the run.


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
    draw_fields(fields, explanation.run / path)
    caption = (
        "How much each pixel of the input influences the centre of the last feature map, colours "
        "by square root; the solid square holds 50 % of the influence, the dashed one 95 %. Right: "
        "the rows through the centre, on a logarithmic scale."
    )
    return (Picture(path, caption),), tuple(extents)


def _mean_map(
    explanation: ExplanationFindings, method: str
) -> tuple[NDArray[np.float64] | None, int]:
    """The mean of the maps of untransformed images, and how many there are."""
    rows = explanation.rows
    rows = rows[(rows["method"] == method) & (rows["view"] == "clean")]
    rows = rows.drop_duplicates("image_id")
    total: NDArray[np.float64] | None = None
    for file, of_file in rows.groupby("array_file", sort=False):
        maps = read_arrays(explanation.run, str(file)).maps[of_file["array_index"].to_numpy()]
        part = np.abs(maps.astype(np.float64)).sum(axis=0)
        total = part if total is None else total + part
    return (None if total is None else total / len(rows)), len(rows)
