"""Weights and data by name, onto this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.places import hub_file, local_path
from robustcli.core.errors import RunError, UsageError
from robustcli.core.names import find
from robustcli.data.datasets import DATASETS
from robustcli.data.download import fetch_dataset, fetch_file, file_sha256


@dataclass(frozen=True)
class Fetched:
    """Where a download lies; `pinned` if its hash was known beforehand."""

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
    known = find(
        name, [*CATALOGUE, *datasets], kind="model or data set", listing="robust list models"
    )
    if known in datasets:
        path = fetch_dataset(known, offline=offline)
        return Fetched(known, path, file_sha256(path), datasets[known].sha256 is not None)
    entry = CATALOGUE[known]
    if entry.builder == "timm":
        path = _from_hub(entry.variant, offline)
        return Fetched(known, path, file_sha256(path), pinned=True)
    if entry.weights_url is None and entry.asset is None:
        raise UsageError(
            f"`{known}` has no published weights.",
            "",
            f"Train it: `robust train {entry.task} --model {known}`.",
        )
    path = local_path(entry)
    if entry.weights_url is not None:
        fetch_file(entry.weights_url, path, sha256=None, offline=offline)
    return Fetched(known, path, file_sha256(path), pinned=entry.asset is not None)


def _from_hub(variant: str, offline: bool) -> Path:
    """Timm's weights through the hub's client, which resumes and checks by itself."""
    cached = hub_file(variant)
    if cached is not None:
        return cached
    if offline:
        raise UsageError(f"`{variant}` is not in the hub's cache, and `--offline` is set.")
    from huggingface_hub import hf_hub_download

    from robustcli.adapters.hub import hub, why_none

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
