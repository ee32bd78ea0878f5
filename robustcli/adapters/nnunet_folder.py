"""Where in a results folder of nnU-Net the checkpoint lies.

RESULTS/DATASET/Trainer__plans__configuration/{plans.json, dataset.json}
                                             /fold_X/checkpoint_{final,best,latest}.pth
"""

from __future__ import annotations

from pathlib import Path

from robustcli.core.errors import UsageError

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
"""In the order in which they are taken: finished, best so far, newest."""


def is_results_folder(path: Path) -> bool:
    """Whether `path` is a folder that `find_checkpoint` finds its way in."""
    return path.is_dir() and bool(_folds(path))


def find_checkpoint(path: Path, *, fold: str | None = None) -> Path:
    """The checkpoint that `path` stands for.

    Args:
        path: A checkpoint, a fold's folder, a trainer's folder, or a data set's folder.
        fold: Which fold (`0`, `all`), where there are several.

    Raises:
        UsageError: There is none, or there are several to choose from.
    """
    if path.is_file():
        return path
    folds = _folds(path)
    if fold is not None:
        folds = [folder for folder in folds if folder.name == f"fold_{fold}"] or _no_fold(
            path, fold, folds
        )
    if not folds:
        raise UsageError(
            f"`{path}` holds no checkpoint of nnU-Net.",
            "Expected `Trainer__plans__configuration/fold_X/checkpoint_final.pth`, or a folder on "
            "that way.",
            "Name the file itself, or the folder that `nnUNetv2_train` wrote.",
        )
    if len(folds) > 1:
        raise UsageError(
            f"`{path}` holds {len(folds)} trainings.",
            f"They are {', '.join(f'`{folder.relative_to(path)}`' for folder in folds)}.",
            "Name the folder of one of them.",
        )
    return next(folds[0] / name for name in CHECKPOINTS if (folds[0] / name).is_file())


def _folds(path: Path) -> list[Path]:
    """The folders with a checkpoint in or below `path`, at the depths where nnU-Net has them."""
    found = {path, *path.glob("fold_*"), *path.glob("*__*__*/fold_*")}
    return sorted(f for f in found if any((f / name).is_file() for name in CHECKPOINTS))


def _no_fold(path: Path, fold: str, folds: list[Path]) -> list[Path]:
    raise UsageError(
        f"`{path}` has no fold `{fold}`.",
        f"It has {', '.join(f'`{folder.name}`' for folder in folds) or 'no folds at all'}.",
        "Name one that it has.",
    )
