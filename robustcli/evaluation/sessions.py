"""Time and resources of a run: one JSON file per process that worked on the run.

Timings are not part of the rows, so an interrupted and resumed run has the same rows as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from robustcli.core.io import reading, write_text
from robustcli.core.rundir import Record
from robustcli.tasks.record import ModelCost


class DeviceUse(Record):
    """Resource use of a CUDA device, from NVML and torch; None if unknown."""

    peak_memory_bytes: int
    utilisation_percent: float | None
    energy_joules: float | None


class Session(Record):
    """Time and resources of one process."""

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
    """All sessions of the run, oldest first."""
    sessions = []
    for file in (run / "sessions").glob("*.json"):
        remedy = "Remove the file: the report is then written without the costs of this session."
        with reading(file, remedy):
            sessions.append(Session.model_validate_json(file.read_text(encoding="utf-8")))
    return sorted(sessions, key=lambda session: session.started)


@dataclass(frozen=True)
class Speed:
    """Speed of one model: images, seconds, and images per second (None without forward passes)."""

    model: str
    images: int
    seconds: float
    images_per_second: float | None


@dataclass(frozen=True)
class Costs:
    """The costs of a run, summed over its sessions.

    `seconds` is the sum of the times of all sessions, `waiting_share` is the share of it in which
    models waited for images (None if `seconds` is 0). `devices` are the distinct devices with
    threads and batch size; `device` is None if no session used CUDA.
    """

    sessions: int
    seconds: float
    waiting_share: float | None
    devices: tuple[str, ...]
    device: DeviceUse | None


def speed(sessions: Sequence[Session], model: str) -> Speed:
    """Speed of `model`: number of images divided by the seconds of its forward passes."""
    costs = [session.models[model] for session in sessions if model in session.models]
    images, seconds = sum(cost.images for cost in costs), sum(cost.seconds for cost in costs)
    return Speed(model, images, seconds, images / seconds if images and seconds else None)


def costs(sessions: Sequence[Session]) -> Costs:
    """Sums the costs of `sessions`."""
    seconds = sum(session.seconds for session in sessions)
    waiting = sum(session.waiting_seconds for session in sessions)
    return Costs(
        len(sessions),
        seconds,
        waiting / seconds if seconds else None,
        tuple(
            dict.fromkeys(
                f"{session.device}, {session.threads} threads, batch size {session.batch_size}"
                for session in sessions
            )
        ),
        _device_use(sessions),
    )


def _device_use(sessions: Sequence[Session]) -> DeviceUse | None:
    used = [(session.seconds, session.device_use) for session in sessions if session.device_use]
    if not used:
        return None
    energies = [use.energy_joules for _, use in used if use.energy_joules is not None]
    percents = [
        (s, use.utilisation_percent) for s, use in used if use.utilisation_percent is not None
    ]
    seconds = sum(seconds for seconds, _ in percents)
    return DeviceUse(
        peak_memory_bytes=max(use.peak_memory_bytes for _, use in used),
        utilisation_percent=sum(s * p for s, p in percents) / seconds if seconds else None,
        energy_joules=sum(energies) if energies else None,
    )
