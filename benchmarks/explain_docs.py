"""Makes the figures and the findings of docs/explain.md.

    python benchmarks/explain_docs.py --mobilenet WEIGHTS --imagenet FOLDER [--photos 64]

One figure per method, for a MobileNetV2 with ImageNet weights (timm's `mobilenetv2_100`) on three
photos in the public domain that are included in scikit-image (CC0: `chelsea` by S. van der Walt,
`coffee` by R. Michetti, `rocket` by SpaceX), and for the bundled `vmamba-pico` on `cifar10-mini`.
Findings: the shift of the maps of both models, separately for photos whose prediction flips and
photos whose prediction stays, over `--photos` photos of `--imagenet` (folders named by WordNet id)
and 300 of `cifar10-mini`. Photos of `--imagenet` are measured but not shown. Takes about an hour on
one busy core.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import skimage.data
from PIL import Image

from robustcli.core.io import write_bytes
from robustcli.explanation.methods import METHODS, ExplanationMethod
from robustcli.reports.explanation_findings import (
    ExplanationFindings,
    explanation_summary,
    read_explanation,
)
from robustcli.reports.explanation_page import (
    PanelDrawer,
    draw_explanation_gallery,
)
from robustcli.reports.figures.images import MapTile, PanelLine, draw_explanation
from robustcli.tasks.record import PANELS_FOLDER

PHOTOS: dict[str, Callable[[], Any]] = {
    "n02124075/chelsea.png": skimage.data.chelsea,  # Egyptian cat
    "n07920052/coffee.png": skimage.data.coffee,  # espresso
    "n03773504/rocket.png": skimage.data.rocket,  # missile
}
MOBILENET = ("mobilenetv2_100", "--model-arg", "pad_type=same", "--mean", "0.5,0.5,0.5",
             "--std", "0.5,0.5,0.5", "--resize", "256", "--crop", "224",
             "--interpolation", "bilinear")  # fmt: skip
PICO = ("vmamba-pico",)
TRANSFORM = "perspective"
LARGEST = 150_000  # maximum size of a figure in bytes
PICO_PHOTOS = 300  # number of photos for the finding with vmamba-pico
FIELDS = 48  # number of photos over which receptive fields are averaged
SHOWN = (2, 1)  # number of photos in a figure, by model


def main() -> None:
    """Explains, draws the figures and prints the findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--mobilenet", type=Path, required=True, help="weights file of mobilenetv2_100"
    )
    parser.add_argument("--imagenet", required=True, help="ImageNet photos in class folders")
    parser.add_argument("--photos", type=int, default=64, help="number of measured photos")
    parser.add_argument("--out", type=Path, default=Path("runs/explain-docs"))
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    photos = options.out / "photos"
    for name, load in PHOTOS.items():
        _write_png(photos / name, load())
    mobilenet = (*MOBILENET, "--weights", str(options.mobilenet))
    every = ("--method", "*")
    shown = [
        explained(options.out / "mobilenetv2", mobilenet, "--data", str(photos), *every),
        explained(options.out / "vmamba-pico", PICO, "--worst", "2", *every),
    ]
    for method in METHODS.values():
        if method.kind != "model":
            draw_method(method, shown, options.images)
    fields = ("--limit", str(FIELDS), "--method", "erf*")
    draw_fields(explained(options.out / "fields", PICO, *fields), options.images)
    grad_cam = ("--method", "grad-cam")
    some = ("--limit", str(options.photos), "--data", options.imagenet)
    more = ("--limit", str(PICO_PHOTOS), "--method", "relevance")
    for run in (
        explained(options.out / "found-mobilenetv2", mobilenet, *some, *grad_cam),
        explained(options.out / "found-vmamba-pico", PICO, *more, *grad_cam),
    ):
        print(f"\n{run.record.model.name}, {len(run.photos)} photos of {run.record.dataset.name}")
        print("\n".join(explanation_summary(run)))


def explained(out: Path, model: Sequence[str], *options: str) -> ExplanationFindings:
    """Runs or resumes `robust explain` in `out`; returns its findings."""
    command = ["explain", "--model", *model, "--transform", TRANSFORM, "--out", str(out), *options]
    print("robust", *command, flush=True)
    subprocess.run([sys.executable, "-m", "robustcli", *command], check=True)
    return read_explanation(out)


def draw_method(
    method: ExplanationMethod, runs: Sequence[ExplanationFindings], images: Path
) -> None:
    """Draws the figure of one method: one row per photo, for each model that it supports."""
    lines = [
        line for run, most in zip(runs, SHOWN, strict=True) for line in _lines(method, run, most)
    ]
    if not lines:
        return
    path = images / f"explain-{method.name}.png"
    draw_explanation(lines, path, scale=method.kind == "localised")
    _compress(path)


def _lines(method: ExplanationMethod, run: ExplanationFindings, most: int) -> Iterator[PanelLine]:
    rows, drawer = run.rows[run.rows["method"] == method.name], PanelDrawer(run)
    photos = [image for image in run.photos if (rows["image_id"] == image).any()]
    for image in photos[:most]:
        of_photo = rows[rows["image_id"] == image]
        tiles: list[MapTile] = []
        views = (("clean", "clean"), ("transformed", TRANSFORM))
        for view, name in views[: None if method.from_photo else 1]:
            of_view = of_photo[of_photo["view"] == view]
            if method.from_photo:
                tiles.append(MapTile(name, drawer.photo(of_view.iloc[0])))
            tiles += _maps(of_view, drawer, view, of_photo=method.from_photo)
        heading = f"{run.record.model.name}: {Path(image).name}"
        yield PanelLine(heading, tiles)


def _maps(
    rows: pd.DataFrame, drawer: PanelDrawer, view: str, *, of_photo: bool
) -> Iterator[MapTile]:
    """The map of the true class, and for a transformed photo also that of the predicted class."""
    by_kind = {row["target_kind"]: row for _, row in rows.iterrows()}
    for kind in ("none", "true", "predicted"):
        # Pictures from noise depend only on the class, not on the view.
        if kind not in by_kind or (kind == "predicted" and view == "clean" and of_photo):
            continue
        row = by_kind[kind]
        if kind == "predicted" and row["target_class"] == by_kind["true"]["target_class"]:
            continue
        label = "of no class" if kind == "none" else f"{kind}: {row['target_label']}"
        yield drawer.tile(row, label)


def draw_fields(run: ExplanationFindings, images: Path) -> None:
    """Draws the figure of the receptive fields of a run, as in its report."""
    draw_explanation_gallery(run)
    content = (run.run / PANELS_FOLDER / "receptive-fields.png").read_bytes()
    write_bytes(images / "explain-receptive-fields.png", content)


def _write_png(path: Path, pixels: object) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")  # type: ignore[arg-type]
    write_bytes(path, content.getvalue())


def _compress(path: Path) -> None:
    """Converts a PNG to a JPEG of at most LARGEST bytes in the same folder."""
    with Image.open(path) as picture:
        drawn = picture.convert("RGB")
    for quality in range(88, 50, -4):
        content = io.BytesIO()
        drawn.save(content, "JPEG", quality=quality, subsampling=0, optimize=True)
        if content.tell() <= LARGEST:
            break
    write_bytes(path.with_suffix(".jpg"), content.getvalue())
    path.unlink()
    print(path.with_suffix(".jpg"), f"{content.tell() / 1000:.0f} kB, quality {quality}")


if __name__ == "__main__":
    main()
