"""The report of an explanation: page, files of numbers, and the table for a terminal."""

from __future__ import annotations

from pathlib import Path

from robustcli.metrics.explanation_scores import ExplanationCell, Mean
from robustcli.reports.console import grid
from robustcli.reports.explanation_findings import (
    SANITY,
    SHIFT,
    SIMILARITY,
    ExplanationFindings,
    error_title,
    explanation_results,
    explanation_summary,
    read_explanation,
    relative,
    shown,
    shown_difference,
    shown_mean,
    table_notes,
    title_of,
)
from robustcli.reports.explanation_panels import (
    NO_PANELS,
    ExplanationGallery,
    draw_explanation_gallery,
)
from robustcli.reports.markdown import from_template
from robustcli.reports.numbers import EN_DASH, MISSING, cell_label, counted
from robustcli.reports.pages import Page
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


def explanation_report(run: Path) -> Page:
    """The page of the explanation in `run`; draws its figures.

    Raises:
        UsageError: The explanation does not exist or cannot be read.
        RunError: A file of rows or arrays is damaged.
    """
    explanation = read_explanation(run)
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
    return "\n\n".join([*blocks, "\n".join(sentences)]).replace(EN_DASH, "-").strip()


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
        _plain(means["insertion_auc"]),
        _plain(means["deletion_auc"]),
    )


def _plain(mean: Mean) -> str:
    return MISSING if mean.value is None else f"{mean.value:.3f}"
