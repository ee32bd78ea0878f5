"""Lightning is silent, and only Lightning."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
import torch

from robustcli.core.errors import RunError
from robustcli.training.trainer import DurableCheckpoints, without_chatter

IO = DurableCheckpoints()


class Code:
    """Anything that is no tensor and no plain value."""


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "last.ckpt"
    IO.save_checkpoint({"state_dict": {"w": torch.arange(3.0)}, "epoch": 4}, file)
    found = IO.load_checkpoint(str(file))
    assert found["epoch"] == 4
    assert found["state_dict"]["w"].tolist() == [0, 1, 2]
    assert [path.name for path in file.parent.iterdir()] == ["last.ckpt"]
    IO.remove_checkpoint(file)
    IO.remove_checkpoint(file)
    assert not file.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "last.ckpt"
    IO.save_checkpoint({"epoch": 1}, file)
    usual = Path.open

    def full(path: Path, *arguments: object, **more: object) -> object:
        return usual(Path("/dev/full") if path.name[0] == "." else path, *arguments, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RunError, match="No space left on device"):
        IO.save_checkpoint({"epoch": 2, "w": torch.zeros(100_000)}, file)
    monkeypatch.undo()
    assert IO.load_checkpoint(file) == {"epoch": 1}


def test_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    torch.save({"epoch": Code()}, file)
    with pytest.raises(RunError, match="cannot be read"):
        IO.load_checkpoint(file, weights_only=False)


def test_a_damaged_one_is_told(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    IO.save_checkpoint({"epoch": 1, "w": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(RunError, match="cannot be read"):
        IO.load_checkpoint(file)


def test_notes_are_silenced_inside_and_back_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    with without_chatter():
        logging.getLogger("lightning.pytorch.utilities.rank_zero").info("GPU available: no")
        logger.error("this matters")
    assert [record.message for record in caplog.records] == ["this matters"]
    assert logger.level == before


def test_known_warnings_pass_and_others_do_not() -> None:
    with without_chatter():
        warnings.warn("The 'x' does not have many workers which may be a bottleneck.", stacklevel=1)
        with pytest.raises(UserWarning, match="something else"):
            warnings.warn("something else", stacklevel=1)
