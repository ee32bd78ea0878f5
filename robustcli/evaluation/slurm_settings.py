"""Parsing of `--slurm KEY=VALUE,...` into parameters of submitit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from robustcli.core.errors import UsageError
from robustcli.core.names import nearest

CLUSTERS = ("slurm", "local")
_DURATION = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d{2}))?(?::(\d{2}))?")


@dataclass(frozen=True)
class _Setting:
    """A key of `--slurm`: submitit's parameter, the parser of the value, and its meaning."""

    parameter: str | None
    read: Callable[[str], Any]
    meaning: str


def _minutes(text: str) -> int:
    """Minutes of `60`, `1:30:00` (hours) or `2-12:00` (days), as SLURM reads them."""
    parts = _DURATION.fullmatch(text)
    if parts is None:
        raise ValueError(text)
    days, first, second, third = (int(part or 0) for part in parts.groups())
    if parts[1] is not None:
        return days * 1440 + first * 60 + second
    if parts[4] is not None:
        return first * 60 + second + (third > 0)
    return first + (second > 0)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _natural(text: str) -> int:
    if int(text) < 0:
        raise ValueError(text)
    return int(text)


SLURM_SETTINGS: dict[str, _Setting] = {
    "array": _Setting(None, _positive, "tasks of the job array"),
    "partition": _Setting("slurm_partition", str, "partition"),
    "time": _Setting("timeout_min", _minutes, "minutes of a task, or HH:MM:SS"),
    "gpus": _Setting("gpus_per_node", _natural, "GPUs of a task: 0 or 1"),
    "cpus": _Setting("cpus_per_task", _positive, "processor cores of a task"),
    "mem": _Setting("mem_gb", float, "gigabytes of memory of a task"),
    "parallel": _Setting("slurm_array_parallelism", _positive, "tasks that run at the same time"),
    "account": _Setting("slurm_account", str, "account"),
    "qos": _Setting("slurm_qos", str, "quality of service"),
    "constraint": _Setting("slurm_constraint", str, "feature that machines must have"),
    "exclude": _Setting("slurm_exclude", str, "machines to exclude"),
    "cluster": _Setting(None, str, "slurm, or local to test it with processes on this machine"),
}


@dataclass(frozen=True)
class SlurmSettings:
    """Parsed `--slurm`: number of tasks, kind of cluster, and parameters of submitit."""

    array: int
    cluster: str
    parameters: dict[str, Any]

    def in_words(self) -> str:
        """The tasks and where they run, for `--dry-run`."""
        if self.cluster == "local":
            return f"{_counted(self.array, 'process', 'processes')} of this machine, without SLURM"
        option_names = {s.parameter: key for key, s in SLURM_SETTINGS.items()}
        shown = [
            f"{option_names[name]}={value}" for name, value in self.parameters.items()
            if name not in ("gpus_per_node", "timeout_min", "slurm_array_parallelism")
        ]  # fmt: skip
        at_once = self.parameters.get("slurm_array_parallelism", self.array)
        device = "a GPU" if self.parameters["gpus_per_node"] else "processor cores"
        return (
            f"a SLURM job array of {_counted(self.array, 'task', 'tasks')}, at most "
            f"{min(at_once, self.array)} at the same time, each on {device} for at most "
            f"{_counted(self.parameters['timeout_min'], 'minute', 'minutes')} before it is requeued"
            + (f" ({', '.join(shown)})" if shown else "")
        )


def _counted(number: int, singular: str, plural: str) -> str:
    return f"{number:,} {singular if number == 1 else plural}"


def read_settings(texts: Mapping[str, str], device: str) -> SlurmSettings:
    """Parses `--slurm`; the default of `gpus` is 1, or 0 if `device` is `cpu`.

    Raises:
        UsageError: A key does not exist, or a value is invalid.
    """
    values: dict[str, Any] = {}
    for key, text in texts.items():
        setting = SLURM_SETTINGS.get(key)
        if setting is None:
            suggestions = [f"`{name}`" for name in nearest(key, SLURM_SETTINGS)]
            raise UsageError(
                f"`--slurm {key}=...` does not exist."
                + (f" Did you mean {' or '.join(suggestions)}?" if suggestions else ""),
                "",
                f"Keys: {', '.join(SLURM_SETTINGS)}.",
            )
        try:
            values[key] = setting.read(text)
        except ValueError as error:
            raise UsageError(
                f"`--slurm {key}={text}` is not a valid value of `{key}`.",
                f"`{key}` is: {setting.meaning}.",
                "Write it as in `--slurm partition=gpu,time=60,array=16`.",
            ) from error
    cluster = values.setdefault("cluster", "slurm")
    if cluster not in CLUSTERS or values.get("gpus", 0) > 1:
        wrong = "gpus" if cluster in CLUSTERS else "cluster"
        raise UsageError(
            f"`--slurm {wrong}={texts[wrong]}` is not possible.",
            f"`{wrong}` is: {SLURM_SETTINGS[wrong].meaning}.",
            "A task uses one device; `array` is the number of tasks.",
        )
    values.setdefault("gpus", 0 if device == "cpu" else 1)
    values.setdefault("time", 60)
    parameters = {
        setting.parameter: values[key] for key, setting in SLURM_SETTINGS.items()
        if setting.parameter is not None and key in values
    }  # fmt: skip
    return SlurmSettings(values.get("array", 1), cluster, parameters)
