"""A gradient profile as a file, `gradients.parquet`, and whether one is of a given network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from robustcli.core.atomic import replacing
from robustcli.core.errors import UsageError
from robustcli.finetuning.gradients import SCHEMA, statistics


def write_profile(path: Path, rows: pd.DataFrame, model: str) -> None:
    """Writes a profile of `model` as Parquet, durably."""
    schema = SCHEMA.with_metadata({"model": model})
    table = pa.Table.from_pandas(rows, schema=schema, preserve_index=False)
    with replacing(path) as beside:
        pq.write_table(table, beside, compression="zstd")


def read_profile(path: Path, network: nn.Module, model: str) -> pd.DataFrame:
    """The rows of the profile at `path`, which must be of `network`.

    Raises:
        UsageError: There is no profile, or it is of another network.
    """
    if not path.is_file():
        raise UsageError(
            f"`--profile {path}` does not exist.", "", "Make one with `--profile-only`."
        )
    try:
        table = pq.read_table(path, schema=SCHEMA)
        origin = (pq.read_schema(path).metadata or {}).get(b"model", b"").decode()
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            f"`--profile {path}` cannot be read.",
            f"Expected a file `gradients.parquet` of `robust finetune`: {error}",
            "Make one with `--profile-only`.",
        ) from error
    rows: pd.DataFrame = table.to_pandas()
    _check_same(path, rows, network, origin, model)
    return rows


def _check_same(
    path: Path, rows: pd.DataFrame, network: nn.Module, origin: str, model: str
) -> None:
    own = {name: tuple(p.shape) for name, p in network.named_parameters()}
    theirs = {name: statistic.shape for name, statistic in statistics(rows).items()}
    names = dict.fromkeys([*theirs, *own])
    other = [name for name in names if own.get(name) != theirs.get(name)]
    if other:
        raise UsageError(
            f"`--profile {path}` is of another model.",
            f"It was made of `{origin}`; {_difference(other[0], own, theirs, model)} "
            f"({len(other)} of {len(names)} tensors differ).",
            "Profile this model with `--profile-only`.",
        )


def _difference(
    name: str, own: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]], model: str
) -> str:
    if name in theirs:
        return f"`{model}` has no `{name}` of shape {theirs[name]}"
    return f"it lacks `{name}` of shape {own[name]}, which `{model}` has"
