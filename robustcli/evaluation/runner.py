"""Computes the missing rows and writes one row file per finished cell of a block."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from robustcli.core.errors import RobustError, RunError
from robustcli.core.listener import Listener
from robustcli.core.watchdog import Watchdog
from robustcli.data.dataset import reasons_in_lines
from robustcli.evaluation.loader import Notice, Source, batch_stream
from robustcli.evaluation.store import INPUT_SCHEMA, SKIPPED_SCHEMA, Store, write_rows
from robustcli.tasks.base import Batch, Predictor, Row
from robustcli.transforms.base import Cell


@dataclass
class _Part:
    """The rows of one batch of a block by target file; `images` is the number of images."""

    images: int
    predictions: dict[str, list[Row]]
    inputs: dict[str, list[Row]]
    unreadable: list[Row]


@dataclass
class Runner:
    """Computes and writes the rows of one process.

    `source` yields the missing batches, `schema` defines the columns of the rows, `most_unreadable`
    is the tolerated number of unreadable images. `check` is called before rows are written and
    raises if this process must not write any more. `announce` receives messages that the user
    should get once.
    """

    store: Store
    source: Source
    models: Mapping[str, Predictor]
    schema: pa.Schema
    listener: Listener
    most_unreadable: int
    check: Callable[[], None] = lambda: None
    announce: Callable[[str], None] = lambda _: None
    waiting_seconds: float = 0.0
    _parts: dict[tuple[int, Cell], dict[int, _Part]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def run(self, workers: int, *, pin: bool) -> None:
        """Computes every batch of the source.

        Raises:
            RunError: Too many images are unreadable, a disk is full, or one image does not fit into
                memory. Finished blocks are kept.
        """
        unreadable, notices = self.store.reasons(), set[str]()
        with Watchdog(self.announce) as watchdog:
            stream = iter(batch_stream(self.source, workers, pin=pin, watchdog=watchdog))
            watchdog.start()
            while True:
                started = time.perf_counter()
                batch = next(stream, None)
                self.waiting_seconds += time.perf_counter() - started
                if batch is None:
                    return
                if isinstance(batch, RobustError):
                    raise batch
                if isinstance(batch, Notice):
                    if batch.text not in notices:
                        self.announce(batch.text)
                    notices.add(batch.text)
                    continue
                unreadable |= dict(batch.unreadable)
                self._take(batch)
                check_unreadable(unreadable, self.most_unreadable)

    def _take(self, batch: Batch[Any]) -> None:
        parts, images = self._parts[batch.block, batch.cell], len(batch.image_ids)
        images += len(batch.unreadable)
        parts[batch.first] = _Part(
            images,
            {model: self._answer(model, batch) for model in batch.models},
            {view: _input_rows(batch, view) for view in batch.measures},
            [{"image_id": name, "reason": reason} for name, reason in batch.unreadable],
        )
        self.listener.advance(images * len(batch.models))
        if sum(part.images for part in parts.values()) == batch.block_images:
            self.check()
            self._write(batch, [parts[first] for first in sorted(parts)])
            del self._parts[batch.block, batch.cell]

    def _answer(self, model: str, batch: Batch[Any]) -> list[Row]:
        try:
            return self.models[model].rows(batch) if batch.image_ids else []
        except Exception as error:
            first, last = batch.image_ids[0], batch.image_ids[-1]
            error.add_note(
                f"It was `{model}` under `{batch.cell.transform}`, `{first}` to `{last}`."
            )
            raise

    def _write(self, batch: Batch[Any], parts: list[_Part]) -> None:
        """Writes the list of unreadable images first, so that missing rows can be explained."""
        unreadable = [row for part in parts for row in part.unreadable]
        skipped = self.store.skipped_path(batch.block)
        if unreadable:
            write_rows(skipped, unreadable, SKIPPED_SCHEMA)
        else:
            skipped.unlink(missing_ok=True)  # the images were repaired after an earlier command
        for view in batch.measures:
            rows = [row for part in parts for row in part.inputs[view]]
            write_rows(self.store.input_path(view, batch.cell, batch.block), rows, INPUT_SCHEMA)
        for model in batch.models:
            rows = [row for part in parts for row in part.predictions[model]]
            path = self.store.prediction_path(model, batch.cell, batch.block)
            write_rows(path, rows, self.schema)


def _input_rows(batch: Batch[Any], view: str) -> list[Row]:
    return [
        {"image_id": name, "digest": m.digest, "psnr_db": m.psnr_db, "changed": m.changed}
        for name, m in zip(batch.image_ids, batch.measures[view], strict=True)
    ]


def check_unreadable(unreadable: Mapping[str, str], most: int) -> None:
    """Raises RunError if more than `most` images are unreadable; `unreadable` maps ids to reasons.

    The message is about the images that were read until then.
    """
    if len(unreadable) > most:
        raise RunError(
            f"{len(unreadable)} images cannot be read; the limit is {most}.",
            reasons_in_lines(dict(sorted(unreadable.items()))),
            "Repair the data, or raise the limit with `--allow-unreadable 0.05` (a fraction); the "
            "same command continues the run.",
        )
