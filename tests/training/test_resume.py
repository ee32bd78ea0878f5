"""Which settings may differ between two commands on one run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from robustcli.core.errors import UsageError
from robustcli.evaluation.record import DatasetRecord
from robustcli.training.nnunet.patchwise import Patchwise
from robustcli.training.record import RecipeRecord, TrainRecord
from robustcli.training.resume import differences, is_done, joined


def record(recipe: dict[str, Any] | None = None, **said: Any) -> TrainRecord:
    how: dict[str, Any] = {
        "loss": "dice", "optimizer": "Adam", "lr": 0.1, "weight_decay": 0.0, "batch_size": 4,
        "schedule": "constant", "accumulate": 1, "epochs": 5, "clip": None, "window": 64,
        "augmentation": "none", "patience": None, "precision": "fp32", "expected_dice": None,
        "source": "ours",
    }  # fmt: skip
    usual: dict[str, Any] = {
        "command": "first", "status": "running", "created": datetime(2026, 1, 1, tzinfo=UTC),
        "updated": datetime(2026, 1, 1, tzinfo=UTC), "seed": 0, "protocol": "paper",
        "model": "unet", "family": "unet", "parameters": 1, "initial_weights": "none",
        "initial_weights_sha256": "0", "grouping": "image", "splits": {}, "decision": "x",
        "versions": {}, "device": "cpu", "threads": 1,
        "dataset": DatasetRecord(
            name="d", location="here", label_space="foreground", classes=2, images=9,
            images_available=9, subset=None, demonstration=False, digest="00",
        ),
    }  # fmt: skip
    return TrainRecord(**(usual | said), recipe=RecipeRecord(**(how | (recipe or {}))))


def said(old: TrainRecord, new: TrainRecord) -> list[str]:
    return list(differences(old, new))


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"seed": 1}, "`--seed` was 0, now it is 1"),
        ({"protocol": "patient"}, "`--protocol` was paper, now it is patient"),
        ({"model": "ulvm"}, "`--model` was unet"),
        ({"devices": 2}, "`--devices` was 1"),
        ({"initial_weights_sha256": "1"}, "--weights, --untrained"),
        ({"recipe": {"batch_size": 8}}, "`--batch-size` was 4, now it is 8"),
        ({"recipe": {"precision": "bf16"}}, "`--precision` was fp32"),
        ({"recipe": {"images_per_epoch": 7}}, "--quick"),
        ({"recipe": {"epochs": 4}}, "epochs cannot be taken back"),
        ({"recipe": {"patches": Patchwise(), "name": "nnunet"}}, "`--recipe` was , now it is nnun"),
    ],
)
def test_what_decides_the_weights_is_named(change: dict[str, Any], flag: str) -> None:
    found = said(record(), record(**change))
    assert len(found) == 1
    assert flag in found[0]


def test_more_epochs_are_no_difference_with_a_constant_rate() -> None:
    assert said(record(), record({"epochs": 9})) == []
    cosine = {"schedule": "warmup-cosine"}
    found = said(record(cosine), record(cosine | {"epochs": 9}))
    assert "`--epochs` was 5, now it is 9: the learning rate of its schedule" in found[0]


@pytest.mark.parametrize("change", [{"device": "cuda"}, {"threads": 4}, {"versions": {"a": "1"}}])
def test_what_decides_rounding_only_is_none(change: dict[str, Any]) -> None:
    assert said(record(), record(**change)) == []


def test_the_message_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="`run` holds a training with other settings") as caught:
        joined(Path("run"), record(), record(seed=3))
    assert "another `--out`" in caught.value.todo


def test_going_on_keeps_the_beginning_and_the_costs() -> None:
    old = record(peak_memory_bytes=5, energy_joules=2.0, weights_sha256="w")
    later = datetime(2026, 2, 1, tzinfo=UTC)
    new = joined(Path("run"), old, record(command="second", created=later))
    assert new.command == "first\nsecond"
    assert new.created == old.created
    assert (new.peak_memory_bytes, new.energy_joules, new.weights_sha256) == (5, 2.0, "w")
    assert joined(Path("run"), new, record(command="second")).command == "first\nsecond"


def test_done_is_complete_and_no_more_epochs() -> None:
    complete = record(status="complete")
    assert is_done(complete, record())
    assert not is_done(complete, record({"epochs": 6}))
    assert not is_done(record(status="failed"), record())


def test_patches_are_the_same_when_read_back() -> None:
    own = record({"patches": Patchwise(7)})
    again = TrainRecord.model_validate_json(own.model_dump_json())
    assert said(again, own) == []
    assert "or its plan is another" in said(record({"patches": Patchwise(8)}), own)[0]
