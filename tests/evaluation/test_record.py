"""`run.json` of both tasks and of older versions; speed and costs, summed over sessions."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from robustcli.core.errors import UsageError
from robustcli.core.rundir import RECORD_FILE
from robustcli.evaluation.record import (
    EVALUATION,
    DeviceUse,
    RunRecord,
    Session,
    Speed,
    costs,
    read_record,
    speed,
)
from robustcli.tasks.record import MaskPreprocessingRecord, ModelCost, PreprocessingRecord
from tests.builders import RunPlan, build_run, model

WHEN = datetime(2026, 1, 2, tzinfo=UTC)
MASKS = MaskPreprocessingRecord(window=256, channels="bgr", threshold=0.62, overlap=0.5)


def test_a_record_without_keys_of_today_is_read_with_their_defaults(tmp_path):
    run = build_run(tmp_path, RunPlan())
    content = json.loads((run / RECORD_FILE).read_text())
    for key in ("task", "grouping", "split"):
        content.pop(key)
    for key in ("tolerance", "masks"):
        content["dataset"].pop(key)
    (run / RECORD_FILE).write_text(json.dumps(content))
    record = read_record(run)
    assert (record.task, record.grouping, record.split) == ("cls", None, None)
    assert (record.dataset.tolerance, record.dataset.masks) == (None, None)
    assert isinstance(record.models[0].preprocessing, PreprocessingRecord)


@pytest.mark.parametrize(
    ("stored", "device"),
    [
        ("cpu (x86_64, 1 threads)", "cpu (x86_64, 1 thread)"),
        ("cpu (x86_64, 1 threads) and cpu (x86_64, 1 thread)", "cpu (x86_64, 1 thread)"),
        ("cpu (x86_64, 11 threads) and NVIDIA H200", "cpu (x86_64, 11 threads) and NVIDIA H200"),
    ],
)
def test_devices_of_earlier_versions_are_read_as_spelled_now(tmp_path, stored, device):
    run = build_run(tmp_path, RunPlan())
    EVALUATION.update(run, device=stored)
    assert read_record(run).device == device


def test_a_segmenters_record_comes_back_as_it_was(tmp_path):
    record = read_record(build_run(tmp_path, RunPlan()))
    segmenter = model("unet", preprocessing=MASKS, label_space="foreground")
    changes = {"task": "seg", "grouping": "patient", "split": "test", "models": [segmenter]}
    record = record.model_copy(update=changes)
    EVALUATION.write(tmp_path, record)
    assert read_record(tmp_path) == record
    assert isinstance(read_record(tmp_path).models[0].preprocessing, MaskPreprocessingRecord)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "blue"}, r"\n.*has no setting `colour`"),
        ({"schema_version": 2}, "2; the newest supported version is 1"),
    ],
)
def test_keys_and_formats_of_a_newer_program_are_refused(tmp_path, change, message):
    run = build_run(tmp_path, RunPlan())
    content = json.loads((run / RECORD_FILE).read_text())
    (run / RECORD_FILE).write_text(json.dumps(content | change))
    with pytest.raises(UsageError, match=rf"(?s)newer version of `robust`.*{message}"):
        read_record(run)
    assert RunRecord.model_fields["schema_version"].default == 1


def session(seconds: float, waiting: float, images: int, use: DeviceUse | None = None) -> Session:
    return Session(
        started=datetime(2025, 1, 1, tzinfo=UTC),
        seconds=seconds,
        waiting_seconds=waiting,
        device="cuda" if use else "cpu",
        threads=2,
        batch_size=32,
        models={"a": ModelCost(images=images, seconds=seconds / 2)},
        device_use=use,
    )


def test_speed_is_images_over_seconds_of_all_sessions() -> None:
    assert speed([session(10, 1, 100), session(30, 1, 100)], "a") == Speed("a", 200, 20.0, 10.0)
    assert speed([session(10, 1, 100)], "b") == Speed("b", 0, 0, None)
    assert speed([session(0, 0, 0)], "a").images_per_second is None


def test_waiting_is_a_share_of_all_time() -> None:
    total = costs([session(10, 1, 5), session(30, 7, 5)])
    assert (total.sessions, total.seconds, total.waiting_share) == (2, 40, 0.2)
    assert total.devices == ("cpu, 2 threads, batch size 32",)
    assert total.device is None
    total = costs([])
    assert (total.sessions, total.seconds, total.waiting_share, total.devices) == (0, 0, None, ())


def test_device_use_is_highest_memory_mean_utilisation_over_time_and_summed_energy() -> None:
    uses = [
        DeviceUse(peak_memory_bytes=10, utilisation_percent=100, energy_joules=5),
        DeviceUse(peak_memory_bytes=30, utilisation_percent=20, energy_joules=None),
        DeviceUse(peak_memory_bytes=20, utilisation_percent=None, energy_joules=7),
    ]
    seconds = [10, 30, 50]
    device = costs([session(s, 0, 1, u) for s, u in zip(seconds, uses, strict=True)]).device
    assert device is not None
    assert device.peak_memory_bytes == 30
    assert device.utilisation_percent == pytest.approx((10 * 100 + 30 * 20) / 40)
    assert device.energy_joules == 12

    unknown = DeviceUse(peak_memory_bytes=1, utilisation_percent=None, energy_joules=None)
    assert costs([session(1, 0, 1, unknown)]).device == unknown
