"""How data sets call their parts: words of folders and of columns to `train`, `val` and `test`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from robustcli.core.errors import UsageError

PART_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

_SHOWN = 5


def parts_in(path: Path, columns: Mapping[str, list[str]]) -> list[str | None] | None:
    """The part of each row of the table at `path`; None where it has no column `split`.

    Raises:
        UsageError: The column holds another word.
    """
    if "split" not in columns:
        return None
    unknown = sorted({value for value in columns["split"] if value.lower() not in PART_NAMES})
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        found = ", ".join(f"`{word}`" for word in unknown[:_SHOWN]) + more
        raise UsageError(
            f"`{path}` names {len(unknown)} unknown splits.",
            f"Column `split` holds {found}; expected `train`, `val` or `test`.",
            "Correct them, or remove the column: the split is then drawn.",
        )
    return [PART_NAMES[value.lower()] for value in columns["split"]]
