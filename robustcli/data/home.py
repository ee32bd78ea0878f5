"""Where downloaded and unpacked data are kept."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def data_home() -> Path:
    """The folder for downloads: `ROBUST_HOME`, else the user's cache folder (it need not exist)."""
    chosen = os.environ.get("ROBUST_HOME")
    return Path(chosen).expanduser() if chosen else user_cache_path("robust", appauthor=False)
