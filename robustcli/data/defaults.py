"""Which data a command takes when none is named: never silently, the caller says which."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical
from robustcli.data.datasets import DATASETS
from robustcli.data.tables import read_text

SETTINGS = Path("robust.toml")


@dataclass(frozen=True)
class DefaultData:
    """What stands in for `--data`, and who said so (for the line that announces it)."""

    data: str
    origin: str


def default_data(label_space: str) -> DefaultData:
    """The data for models of `label_space`: from the environment, `robust.toml`, or bundled.

    Raises:
        UsageError: Nothing is set and nothing is bundled, or `robust.toml` cannot be read.
    """
    variable = variable_for(label_space)
    if os.environ.get(variable):
        return DefaultData(os.environ[variable], f"environment variable {variable}")
    configured = _from_settings(label_space)
    if configured is not None:
        return DefaultData(configured, f"`{SETTINGS}`")
    for dataset in DATASETS:
        if dataset.default_for and dataset.label_space == label_space:
            return DefaultData(dataset.name, "bundled")
    raise _none_set(label_space, variable)


def variable_for(label_space: str) -> str:
    """The environment variable that names the data: `ROBUST_DATA_IMAGENET_1K`."""
    return f"ROBUST_DATA_{canonical(label_space).replace('-', '_').upper()}"


def _from_settings(label_space: str) -> str | None:
    if not SETTINGS.is_file():
        return None
    data = _data_table()
    value = next((v for k, v in data.items() if canonical(k) == canonical(label_space)), None)
    if value is not None and not isinstance(value, str):
        raise UsageError(
            f"`{SETTINGS}`: `{label_space}` must be a text.",
            f"Expected the path or name of a data set, got `{value}`.",
            f'Write `{label_space} = "DIR"` below `[data]`.',
        )
    return value


def _data_table() -> dict[str, Any]:
    try:
        data = tomllib.loads(read_text(SETTINGS)).get("data", {})
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"`{SETTINGS}` cannot be read.", f"{error}.", "Correct it, or name data with `--data`."
        ) from error
    if not isinstance(data, dict):
        raise UsageError(
            f"`{SETTINGS}`: `data` must be a table.",
            f"Got `{data}`.",
            'Write `[data]` on a line of its own and `imagenet-1k = "DIR"` below it.',
        )
    return data


def _none_set(label_space: str, variable: str) -> UsageError:
    ways = [
        "--data DIR",
        f"{variable}=DIR in the environment, or `{label_space}" + ' = "DIR"` below `[data]` in '
        f"`{SETTINGS}`",
        *(
            f"--data {d.name}, after `robust fetch {d.name}` ({d.images:,} images)"
            for d in DATASETS
            if d.label_space == label_space
        ),
    ]
    return UsageError(
        f"No data is named for the label space `{label_space}`.",
        "None comes with robust, and none is set.",
        "Name some in one of these ways:\n" + "\n".join(f"  {way}" for way in ways),
    )
