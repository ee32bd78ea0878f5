"""Where a checkpoint lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.adapters.nnunet_folder import find_checkpoint, is_results_folder
from robustcli.core.errors import UsageError

TRAINER = "nnUNetTrainerUMambaBot__nnUNetPlans__2d"


def made(folder: Path, *places: str) -> Path:
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (("best", "final", "latest"), "final"),
        (("best", "latest"), "best"),
        (("latest",), "latest"),
    ],
)
def test_the_finished_one_comes_first(tmp_path: Path, there: tuple[str, ...], taken: str) -> None:
    made(tmp_path, *(f"fold_0/checkpoint_{name}.pth" for name in there))
    assert find_checkpoint(tmp_path).name == f"checkpoint_{taken}.pth"


def test_the_fold_can_be_named(tmp_path: Path) -> None:
    made(tmp_path, *(f"{TRAINER}/fold_{fold}/checkpoint_final.pth" for fold in ("0", "all")))
    assert find_checkpoint(tmp_path, fold="all").parent.name == "fold_all"
    with pytest.raises(UsageError, match=r"no fold `3`\.\nIt has `fold_0`, `fold_all`"):
        find_checkpoint(tmp_path, fold="3")


def test_several_trainings_are_a_choice_for_the_user(tmp_path: Path) -> None:
    made(tmp_path, *(f"{TRAINER}/fold_{fold}/checkpoint_final.pth" for fold in (0, 1)))
    with pytest.raises(UsageError, match=r"(?s)holds 2 trainings.*fold_0`.*fold_1`.*one of them"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["", "nothing-here"])
def test_a_folder_without_any(tmp_path: Path, name: str) -> None:
    (tmp_path / "fold_0").mkdir()
    with pytest.raises(UsageError, match=r"(?s)holds no checkpoint of nnU-Net.*fold_X/checkpoint_"):
        find_checkpoint(tmp_path / name)


def test_a_results_folder_is_known_from_others(tmp_path: Path) -> None:
    assert not is_results_folder(tmp_path)
    made(tmp_path, f"{TRAINER}/fold_0/checkpoint_best.pth")
    places = (tmp_path, tmp_path / TRAINER, tmp_path / TRAINER / "fold_0")
    assert all(is_results_folder(place) for place in places)
    assert not is_results_folder(tmp_path / TRAINER / "fold_0" / "checkpoint_best.pth")
