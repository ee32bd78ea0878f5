"""Several processes on one training (DDP): the first writes and tells, the others only compute.

With `--devices N` Lightning starts the others from the first, when all is prepared. torchrun starts
all at once: the others then wait until the first has opened the run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch.distributed

_WAIT_SECONDS = 0.1
_LIGHTNINGS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


def is_first() -> bool:
    """Whether this process writes and tells."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def started_by_torchrun() -> bool:
    """Whether torchrun started this process and its siblings."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def release_others(run: Path) -> None:
    """Tells the processes of torchrun that the run is open."""
    if started_by_torchrun():
        _sign(run).touch()


def await_first(run: Path) -> None:
    """Waits until `release_others` was called; torchrun ends all when the first one fails."""
    while started_by_torchrun() and not _sign(run).exists():
        time.sleep(_WAIT_SECONDS)


def end_of_others() -> NoReturn:
    """Ends a process that is not the first, when the training is done."""
    leave_group()
    raise SystemExit(0)


def leave_group() -> None:
    """Ends the group that Lightning opened; what follows is the first process's alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def environment_kept() -> Iterator[None]:
    """Takes back what Lightning writes into the environment when it starts processes.

    A next training of this process would take it for being started by somebody else, and wait.
    """
    before = {name: os.environ.get(name) for name in _LIGHTNINGS}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _sign(run: Path) -> Path:
    job = os.environ["TORCHELASTIC_RUN_ID"]
    return run / f".open-{job}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
