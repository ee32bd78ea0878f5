from datetime import UTC, datetime
from pathlib import Path

import pytest

from robustcli.evaluation.sessions import DeviceUse, ModelCost, Session, write_session
from robustcli.reports.findings import read_findings
from robustcli.reports.sections.cost import cost
from tests.builders import IDENTITY, RunPlan, build_run, model
from tests.reports.sections.told import line_of, told


@pytest.fixture
def run(tmp_path: Path) -> Path:
    build_run(tmp_path, RunPlan(models=(model("a"), model("b")), transforms=(IDENTITY,)))
    (tmp_path / "sessions" / "00000000.json").unlink()
    return tmp_path


def session(use: DeviceUse | None) -> Session:
    return Session(
        started=datetime(2025, 1, 1, tzinfo=UTC),
        seconds=100,
        waiting_seconds=5,
        device="NVIDIA H100",
        threads=8,
        batch_size=64,
        models={"a": ModelCost(images=5000, seconds=40)},
        device_use=use,
    )


def test_speed_per_model_and_what_the_device_did(run: Path) -> None:
    use = DeviceUse(peak_memory_bytes=3 * 2**30, utilisation_percent=87.25, energy_joules=7200)
    write_session(run, "a", session(use))
    page = told(cost(read_findings(run)))
    assert line_of(page, "`a`")[1:] == ["125.0", "5,000", "40.0"]
    assert line_of(page, "`b`")[1:] == ["\N{EN DASH}", "0", "0.0"]
    for fact in (
        "1 session, 100.0 s in all; the models waited for images 5.0 % of it.",
        "On NVIDIA H100, 8 threads, batch size 64.",
        "Peak device memory: 3.00 GiB.",
        "Mean device utilisation: 87.2 %.",
        "Energy of the device: 2.00 Wh.",
    ):
        assert f"- {fact}\n" in page


def test_what_was_not_measured_is_not_mentioned(run: Path) -> None:
    unknown = DeviceUse(peak_memory_bytes=2**30, utilisation_percent=None, energy_joules=None)
    write_session(run, "a", session(unknown))
    page = told(cost(read_findings(run)))
    assert "Peak device memory: 1.00 GiB." in page
    assert "utilisation" not in page
    assert "Energy" not in page
    write_session(run, "a", session(None))
    assert "Peak" not in told(cost(read_findings(run)))


def test_without_sessions_there_are_no_timings(run: Path) -> None:
    assert "No timings were recorded." in told(cost(read_findings(run)))
