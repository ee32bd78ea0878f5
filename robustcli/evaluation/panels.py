"""Pictures of the best, the median and the worst cases of a segmenter, for its report."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from robustcli.adapters.segmenter import Segmenter
from robustcli.core.atomic import write_bytes
from robustcli.data.masks import decode_pair
from robustcli.data.pairs import PairRef
from robustcli.evaluation.mask_scores import dice
from robustcli.evaluation.panel_record import Panel, Rank, read_panels, write_panels
from robustcli.evaluation.store import Cell, Store

OF_EACH = 2
LONGEST = 512  # pixels of the longer side of a picture
_IDENTITY = Cell("identity", 0)


def draw_panels(
    run: Path, pairs: Sequence[PairRef], segmenters: Mapping[str, Segmenter]
) -> list[Panel]:
    """The panels of the run, those of `segmenters` drawn anew where their choice has changed.

    Args:
        run: The run's folder, which holds their rows of untransformed images.
        pairs: The images of the run.
        segmenters: By their names in the run.
    """
    drawn, by_id = read_panels(run), {pair.image_id: pair for pair in pairs}
    for name, segmenter in segmenters.items():
        chosen = choose_panels(name, Store(run).masks(name, _IDENTITY))
        if chosen == [panel for panel in drawn if panel.model == name]:
            continue
        if chosen:
            shutil.rmtree(chosen[0].folder(run).parent, ignore_errors=True)
        for panel in chosen:
            _draw(panel.folder(run), by_id[panel.image_id], segmenter)
        drawn = [*(panel for panel in drawn if panel.model != name), *chosen]
        write_panels(run, drawn)
    return drawn


def choose_panels(model: str, rows: pd.DataFrame) -> list[Panel]:
    """The cases to show, best first: up to OF_EACH of each rank, no image twice.

    A group stands in the order by the dice of its image with the most foreground, so that each case
    is another patient and shows something. Groups without foreground are left out.

    Args:
        model: Whose rows they are.
        rows: Of untransformed images (columns: `store.MASK_SCHEMA`).
    """
    found = rows.assign(dice=dice(rows), true=rows["tp"] + rows["fn"])
    found = found[found["true"] > 0].sort_values(["true", "image_id"], ascending=[False, True])
    cases = found.drop_duplicates("group").sort_values(
        ["dice", "image_id"], ascending=[False, True]
    )
    return [
        Panel(
            model=model,
            rank=rank,
            number=number,
            image_id=str(cases["image_id"].iloc[place]),
            group=str(cases["group"].iloc[place]),
            dice=float(cases["dice"].iloc[place]),
        )
        for rank, number, place in _places(len(cases))
    ]


def _places(count: int) -> list[tuple[Rank, int, int]]:
    """Rank, number and place of the cases to show among `count` in falling order."""
    near_median = sorted(range(count), key=lambda place: (abs(place - (count - 1) / 2), place))
    orders: dict[Rank, list[int]] = {
        "best": list(range(count)),
        "worst": list(range(count))[::-1],
        "median": near_median,
    }
    taken: set[int] = set()
    chosen: list[tuple[Rank, int, int]] = []
    for number in range(1, OF_EACH + 1):
        for rank, order in orders.items():
            place = next((place for place in order if place not in taken), None)
            if place is not None:
                taken.add(place)
                chosen.append((rank, number, place))
    return sorted(chosen, key=lambda one: one[2])


def _draw(folder: Path, pair: PairRef, segmenter: Segmenter) -> None:
    image, truth = decode_pair(pair)
    probability = segmenter.probabilities([image])[0]
    grey = np.rint(255 * probability).astype(np.uint8)
    write_bytes(folder / "image.png", _png(image, Image.Resampling.LANCZOS))
    truth_grey = np.where(truth == 1, 255, 0).astype(np.uint8)
    write_bytes(folder / "truth.png", _png(truth_grey, Image.Resampling.NEAREST))
    write_bytes(folder / "prediction.png", _png(grey, Image.Resampling.BILINEAR))


def _png(pixels: NDArray[np.uint8], resampling: Image.Resampling) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail((LONGEST, LONGEST), resampling)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
