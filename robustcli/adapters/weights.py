"""Where a model's weights are: given, bundled, fetched before, or at an official address."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from robustcli.adapters.entry import ModelEntry
from robustcli.adapters.places import local_path
from robustcli.core.errors import RobustError, UsageError
from robustcli.data.download import fetch_file


def official_weights(entry: ModelEntry, *, offline: bool) -> Path:
    """The official weights file of `entry`, downloaded when it is not here yet.

    Raises:
        UsageError: It is not here and cannot be had; the message gives address, file and flag.
    """
    if entry.weights_url is None and entry.asset is None:
        raise UsageError(
            f"`{entry.name}` has no published weights.",
            "An untrained network knows nothing.",
            f"Train it (`robust train cls --model {entry.name} --data DIR`) and name the run's "
            "folder, or name weights with `--weights FILE`; `--untrained` takes it as initialised.",
        )
    path = local_path(entry)
    if path.is_file() or entry.weights_url is None:
        return path
    try:
        fetch_file(entry.weights_url, path, sha256=None, offline=offline)
    except RobustError as error:
        raise UsageError(
            f"The weights of `{entry.name}` are not here.",
            f"{error.what} {error.why} {entry.unchecked}".strip(),
            f"Download {entry.weights_url} to `{path}`, or name a copy with `--weights FILE`.",
        ) from error
    return path


def hash_state(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of every tensor, in name order."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
