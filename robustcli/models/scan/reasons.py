"""Why a backend cannot serve: absent, broken, or not made for these tensors."""

from __future__ import annotations

import importlib
import importlib.util
from functools import lru_cache

import torch

from robustcli.core.errors import first_line

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What kernels with a float32 state take; float64 is the reference's."""


class Broken(str):
    """A reason that deserves a warning: the backend is installed and ought to work here."""


@lru_cache
def missing(package: str, kernels: str, remedy: str | None = None) -> str | None:
    """None, or why the module `kernels`, which needs `package`, cannot be imported.

    Tried once per process: a library that fails half-way through its import may not say so twice.

    Args:
        package: The library, by the name that it is imported and installed by.
        kernels: The module that needs it.
        remedy: What to do if the import fails; by default, to install `package` anew.
    """
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed (`pip install {package}`)."
    try:
        importlib.import_module(kernels)
    except Exception as error:  # whatever a broken build raises
        return Broken(
            f"{package} is installed but cannot be used: {type(error).__name__}: "
            f"{first_line(error)}. {remedy or f'Try `pip install --force-reinstall {package}`.'}"
        )
    return None
