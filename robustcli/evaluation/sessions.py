"""What computing cost: one JSON file per process that worked on a run.

Timings live apart from the rows: an interrupted run ends with the same rows as an unbroken one.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from robustcli.core.atomic import write_text
from robustcli.evaluation.record import Record


class ModelCost(Record):
    """What the forward passes of one model cost: images (model inputs) and seconds."""

    images: int = 0
    seconds: float = 0.0


class DeviceUse(Record):
    """CUDA only, through NVML and torch: peak bytes, mean utilisation in percent, joules."""

    peak_memory_bytes: int
    utilisation_percent: float | None
    energy_joules: float | None


class Session(Record):
    """One process's work on the run."""

    started: datetime
    seconds: float
    waiting_seconds: float
    device: str
    threads: int
    batch_size: int
    models: dict[str, ModelCost]
    device_use: DeviceUse | None = None


def write_session(run: Path, identity: str, session: Session) -> None:
    """Writes `RUN/sessions/<identity>.json` durably."""
    write_text(run / "sessions" / f"{identity}.json", session.model_dump_json(indent=2) + "\n")


def read_sessions(run: Path) -> list[Session]:
    """Every session of the run, oldest first."""
    files = (run / "sessions").glob("*.json")
    sessions = [Session.model_validate_json(file.read_text(encoding="utf-8")) for file in files]
    return sorted(sessions, key=lambda session: session.started)
