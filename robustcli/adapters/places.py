"""Where the weights of a catalogue entry lie on this machine, found without torch."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from robustcli.adapters.entry import ModelEntry
from robustcli.data.home import data_home


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
