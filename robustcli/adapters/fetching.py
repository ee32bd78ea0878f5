"""Local paths of weights, and downloads of weights and data."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from huggingface_hub import constants

from robustcli.adapters.catalogue import CATALOGUE, ModelEntry
from robustcli.core.errors import RobustError, RunError, UsageError, first_line
from robustcli.core.names import find
from robustcli.data.download import fetch_dataset, fetch_file, file_sha256
from robustcli.data.named_datasets import DATASETS, data_home

if TYPE_CHECKING:
    from torch import Tensor


def local_path(entry: ModelEntry) -> Path:
    """The local path of an entry's weights, whether `robust fetch` has run or not."""
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
    weight_files = sorted(snapshots.glob("*/model.safetensors"))
    return weight_files[-1] if weight_files else None


def is_here(entry: ModelEntry) -> bool:
    """Whether the weights of `entry` are on this machine."""
    if entry.on_timms_hub:
        return hub_file(entry.variant) is not None
    if entry.asset is None and entry.weights_file is None:
        return False
    return local_path(entry).is_file()


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


def state_digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of every tensor, in name order."""
    import torch  # `robust list` looks for weights without it

    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def hub(*, offline: bool) -> Iterator[None]:
    """A context in which the hub's client answers from its cache alone if it cannot be reached.

    Its client would try for three quarters of a minute and print each attempt.
    """
    logger = logging.getLogger("huggingface_hub")
    before, level = constants.HF_HUB_OFFLINE, logger.level
    constants.HF_HUB_OFFLINE = before or offline or unreachable() is not None
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        logger.setLevel(level)


def unreachable() -> str | None:
    """Why the hub cannot be reached from here; None if it may be, as always behind a proxy."""
    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    if urllib.request.getproxies():
        return None
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"the network knows no `{host}` ({error.strerror})"
    return None


def why_none(error: Exception, *, offline: bool) -> str:
    """The reason why no file came from the hub."""
    if offline:
        return "`--offline` forbids the network"
    return unreachable() or f"{type(error).__name__}: {first_line(error)}"


@dataclass(frozen=True)
class Fetched:
    """The path of a download; `pinned` if its hash was known beforehand."""

    name: str
    path: Path
    sha256: str
    pinned: bool


def fetch(name: str, *, offline: bool) -> Fetched:
    """The weights or the data set called `name`, downloaded if it is not here.

    Raises:
        UsageError: Nothing is called so, or it is not here and `offline` is set.
        RunError: The download failed.
    """
    datasets = {dataset.name: dataset for dataset in DATASETS}
    registered = find(
        name, [*CATALOGUE, *datasets], kind="model or data set", listing="robust list models"
    )
    if registered in datasets:
        path = fetch_dataset(registered, offline=offline)
        published = datasets[registered].sha256
        return Fetched(registered, path, published or file_sha256(path), published is not None)
    entry = CATALOGUE[registered]
    if entry.on_timms_hub:
        path = _from_hub(entry.variant, offline)
        return Fetched(registered, path, file_sha256(path), pinned=True)
    if entry.weights_url is None and entry.asset is None:
        raise UsageError(
            f"`{registered}` has no published weights.",
            "",
            f"Train it: `robust train {entry.task} --model {registered}`.",
        )
    path = local_path(entry)
    if entry.weights_url is not None:
        fetch_file(entry.weights_url, path, sha256=None, offline=offline)
    return Fetched(registered, path, file_sha256(path), pinned=entry.asset is not None)


def _from_hub(variant: str, offline: bool) -> Path:
    """Timm's weights through the hub's client, which resumes and checks by itself."""
    cached = hub_file(variant)
    if cached is not None:
        return cached
    if offline:
        raise UsageError(f"`{variant}` is not in the hub's cache, and `--offline` is set.")
    from huggingface_hub import hf_hub_download

    try:
        with hub(offline=offline):
            return Path(hf_hub_download(f"timm/{variant}", "model.safetensors"))
    except Exception as error:
        # The client raises classes of four libraries; all mean that no weights came.
        raise RunError(
            f"`{variant}` could not be downloaded.",
            f"The reason: {why_none(error, offline=offline)}.",
            f"It is at https://huggingface.co/timm/{variant}; use a copy with `--weights FILE`.",
        ) from error
