"""Where the weights of a model are: given, bundled, fetched before, or at an official address."""

from __future__ import annotations

import hashlib
import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from robustcli.adapters.catalogue import ModelEntry
from robustcli.core.errors import RobustError, UsageError
from robustcli.data.download import fetch_file
from robustcli.data.named_datasets import data_home

if TYPE_CHECKING:
    from torch import Tensor


def local_path(entry: ModelEntry) -> Path:
    """Where the weights of an entry of its own are, or would be after `robust fetch`."""
    if entry.asset is not None:
        return Path(str(files("robustcli") / "assets" / entry.asset))
    assert entry.weights_file is not None, f"{entry.name} has no weights of its own"
    return data_home() / "weights" / entry.weights_file


def hub_file(variant: str) -> Path | None:
    """Timm's weights `variant` in the hub's cache; None while they are not there.

    The cache's layout is public (huggingface_hub, "Understand caching"); reading it here keeps the
    client's slow import out of `robust list`.
    """
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{caches}/huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    snapshots = cache / f"models--timm--{variant}" / "snapshots"
    found = sorted(snapshots.glob("*/model.safetensors"))
    return found[-1] if found else None


def is_here(entry: ModelEntry) -> bool:
    """Whether the weights of `entry` are on this machine."""
    if entry.builder == "timm":
        return hub_file(entry.variant) is not None
    if entry.asset is None and entry.weights_file is None:
        return False
    return local_path(entry).is_file()


# Where a model's weights are: given, bundled, fetched before, or at an official address.


def official_weights(entry: ModelEntry, *, offline: bool) -> Path:
    """The official weights file of `entry`, downloaded when it is not here yet.

    Raises:
        UsageError: It is not here and cannot be had; the message gives address, file and flag.
    """
    if entry.weights_url is None and entry.asset is None:
        raise UsageError(
            f"`{entry.name}` has no published weights.",
            "An untrained network knows nothing.",
            f"Train it (`robust train {entry.task} --model {entry.name}`) and name the run's "
            "folder, or name weights with `--weights FILE`; `--untrained` takes the network as "
            "initialised.",
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
    import torch  # `robust list` looks for weights without it

    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
