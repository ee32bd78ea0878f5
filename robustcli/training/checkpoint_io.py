"""Lightning's checkpoints written durably and read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from robustcli.core.atomic import replacing
from robustcli.core.errors import RunError, first_line


class DurableCheckpoints(CheckpointIO):
    """Writes beside, fsyncs and renames: a checkpoint is there whole or as it was before."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Writes `checkpoint` to `path`.

        Raises:
            RunError: The file system refused; the file is as it was.
        """
        # Into a file that Python opened: torch's own writer hides why the disk refused.
        with replacing(Path(path)) as beside, beside.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What `path` holds; code in it is refused.

        Raises:
            RunError: The file is missing or damaged.
        """
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes raise anything
            raise RunError(
                f"The checkpoint `{path}` cannot be read.",
                first_line(error),
                "Start again with `--fresh`.",
            ) from error
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes `path`, if it is there."""
        Path(path).unlink(missing_ok=True)
