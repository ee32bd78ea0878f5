"""`RUN/panels/panels.json`: which images of a segmenter's run are shown, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from robustcli.core.atomic import write_bytes
from robustcli.evaluation.record import Record
from robustcli.evaluation.store import model_folder

FOLDER = "panels"
FILE_NAME = "panels.json"
Rank = Literal["best", "median", "worst"]


class Panel(Record):
    """One image, untransformed, with its true and its predicted mask.

    Args:
        model: Its name in the run.
        rank: Among the groups with foreground, by dice.
        number: From 1, the most extreme (or the most typical) first.
        image_id: Of the shown image.
        group: That it stands for.
        dice: Of the shown image.
    """

    model: str
    rank: Rank
    number: int
    image_id: str
    group: str
    dice: float

    def folder(self, run: Path) -> Path:
        """Where `image.png`, `truth.png` (0 and 255) and `prediction.png` are.

        `prediction.png` is the foreground probability times 255. All three have the image's own
        size, or are reduced alike.
        """
        return model_folder(run / FOLDER, "", self.model) / f"{self.rank}-{self.number}"


_PANELS = TypeAdapter(list[Panel])


def read_panels(run: Path) -> list[Panel]:
    """The panels of a run, model by model, best first; none where nothing was drawn."""
    path = run / FOLDER / FILE_NAME
    return _PANELS.validate_json(path.read_bytes()) if path.is_file() else []


def write_panels(run: Path, panels: list[Panel]) -> None:
    """Writes `RUN/panels/panels.json` durably."""
    write_bytes(run / FOLDER / FILE_NAME, _PANELS.dump_json(panels, indent=2) + b"\n")
