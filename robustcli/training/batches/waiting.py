"""How long training waits for its data, through Lightning's own profiling points."""

from __future__ import annotations

import time

from lightning.pytorch.profilers import Profiler

_FETCH = "train_dataloader_next"


class WaitingTime(Profiler):
    """Sums the seconds spent fetching batches, until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._started = 0.0

    def start(self, action_name: str) -> None:
        """Lightning begins `action_name`."""
        if action_name.endswith(_FETCH):
            self._started = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Lightning has done `action_name`."""
        if action_name.endswith(_FETCH):
            self.seconds += time.perf_counter() - self._started

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def summary(self) -> str:
        """Nothing: the share stands in `metrics.csv`."""
        return ""
