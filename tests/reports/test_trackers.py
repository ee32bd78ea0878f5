"""Runs in local stores of trackers, read with the trackers' functions.

The trackers are optional: tests of a tracker that is not installed are skipped.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest

from robustcli.core.errors import MachineError, UsageError
from robustcli.reports import trackers
from robustcli.reports.run_export import PublishConfig, RunExport, read_run_export
from robustcli.reports.trackers import send
from tests.builders import IDENTITY, RunPlan, build_run, model, paper21
from tests.reports.train_runs import build_training

# Warnings of the trackers and of their dependencies.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("blank_figures")]
PLAN = RunPlan(
    models=(model("hf-hub:timm/swin.b"),), transforms=(IDENTITY, paper21()[0]), images=20
)
MORE = replace(PLAN, transforms=(IDENTITY, *paper21()[:2]), record={"precision": "bf16"})


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, blank_figures: None) -> RunExport:
    return read_run_export(build_run(tmp_path_factory.mktemp("sent") / "run", PLAN))


@pytest.fixture(scope="module")
def continued_export(tmp_path_factory: pytest.TempPathFactory, export: RunExport) -> RunExport:
    copy = shutil.copytree(export.run, tmp_path_factory.mktemp("continued") / "run")
    return read_run_export(build_run(Path(copy), MORE))


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test, before its run is made, without an optional package."""
    reason = f"`{name}` is an optional package"
    return pytest.mark.skipif(find_spec(name) is None, reason=reason)


@pytest.fixture(params=["sqlite", "file"])
def mlflow_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return str(tmp_path / "mlruns")
    pytest.importorskip("sqlalchemy", reason="MLflow's database store needs it")
    return f"sqlite:///{tmp_path}/mlflow.db"


@needs("mlflow")
def test_mlflow(
    export: RunExport, continued_export: RunExport, mlflow_uri: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)  # with a database, artifacts are stored in ./mlruns
    destination = PublishConfig(export.run, "mlflow", "study", mlflow_uri, offline=True)
    sent_run = send(export, destination)
    assert sent_run.state == "created"
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=mlflow_uri)
    run = client.get_run(sent_run.run_id)
    assert run.info.run_name == "run"
    assert client.get_experiment(run.info.experiment_id).name == "study"
    assert run.data.params == export.parameters
    assert run.data.metrics == export.metrics
    assert {file.path for file in client.list_artifacts(sent_run.run_id)} >= {
        "report.md",
        "figures",
    }
    copied = Path(client.download_artifacts(sent_run.run_id, "results.csv", str(tmp_path)))
    pd.testing.assert_frame_equal(pd.read_csv(copied), export.table)

    assert send(export, destination) == replace(sent_run, state="unchanged")
    messages: list[str] = []
    updated = send(continued_export, destination, messages.append)
    assert updated == replace(sent_run, state="updated")
    assert len(client.search_runs([run.info.experiment_id])) == 1
    run = client.get_run(sent_run.run_id)
    assert run.data.metrics == continued_export.metrics
    assert run.data.params["precision"] == "fp32"
    assert run.data.tags["changed.precision"] == "bf16"
    assert "MLflow cannot change parameters" in messages[0]


@needs("mlflow")
def test_mlflow_gets_each_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = str(tmp_path / "mlruns")
    training = read_run_export(build_training(tmp_path / "train"))
    destination = PublishConfig(training.run, "mlflow", tracking=uri)
    sent_run = send(training, destination)
    send(replace(training, digest="another"), destination)
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    history = client.get_metric_history(sent_run.run_id, "epoch/train_loss")
    losses = pd.read_csv(tmp_path / "train" / "metrics.csv").set_index("epoch")["train_loss"]
    assert {item.step: item.value for item in history} == pytest.approx(dict(losses))
    assert len(history) == len(losses)


@needs("mlflow")
def test_offline_refuses_servers(export: RunExport, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = PublishConfig(export.run, "mlflow", offline=True)
    with pytest.raises(UsageError, match=r"`--offline` forbids sending to `https://host\.test`"):
        send(export, replace(offline, tracking="https://host.test"))
    monkeypatch.setenv("TRACKIO_SPACE_ID", "ann/space")
    with pytest.raises(UsageError, match=r"`--offline` forbids sending to `databricks`"):
        send(export, replace(offline, tracking="databricks"))
    with pytest.raises(UsageError, match="`--offline` forbids sending to `ann/space`"):
        send(export, replace(offline, destination="trackio"))


@needs("wandb")
def test_wandb_offline(export: RunExport, continued_export: RunExport, tmp_path: Path) -> None:
    messages: list[str] = []
    destination = PublishConfig(export.run, "wandb", "study", str(tmp_path / "wb"))
    sent_run = send(export, destination, messages.append)  # without a login
    assert (sent_run.state, sent_run.run_id) == ("created", export.key)
    assert "Weights & Biases has no login" in messages[0]
    config, summary = read_wandb(Path(sent_run.place), export.key)
    assert {name: json.loads(value) for name, value in config.items() if name != "_wandb"} == (
        export.parameters
    )
    numbers = {name: json.loads(value) for name, value in summary.items()}
    assert {name: numbers[name] for name in export.metrics} == export.metrics
    (table,) = Path(sent_run.place).rglob("results*.table.json")
    table_rows = json.loads(table.read_text())
    assert table_rows["columns"] == list(export.table.columns)
    assert len(table_rows["data"]) == len(export.table)

    assert send(export, destination) == replace(sent_run, state="unchanged")
    updated = send(continued_export, destination)
    assert (updated.state, updated.run_id) == ("updated", export.key)
    folders = sorted(path.name for path in (tmp_path / "wb" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(name.endswith(export.key) for name in folders)  # one run after synchronisation
    file_names = [path.name for path in Path(updated.place).rglob("*") if path.is_file()]
    assert "wandb-metadata.json" not in file_names  # host, user, paths, arguments
    assert "requirements.txt" not in file_names


def read_wandb(folder: Path, key: str) -> tuple[dict[str, str], dict[str, str]]:
    """Returns config and summary of an offline run, as JSON by name."""
    from wandb.proto import wandb_internal_pb2

    config: dict[str, str] = {}
    summary: dict[str, str] = {}
    for content in log_records((folder / f"run-{key}.wandb").read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        for update in (*record.run.config.update, *record.config.update):
            config[update.key or "/".join(update.nested_key)] = update.value_json
        for update in record.summary.update:
            summary[update.key or "/".join(update.nested_key)] = update.value_json
    return config, summary


def log_records(content: bytes) -> Iterator[bytes]:
    """Yields the records of a LevelDB log with a header of 7 bytes and blocks of 32 KiB.

    Source: github.com/google/leveldb, doc/log_format.md.
    """
    offset, record_bytes = 7, b""
    while offset + 7 <= len(content):
        bytes_left = 32768 - offset % 32768
        if bytes_left < 7:
            offset += bytes_left
            continue
        length, kind = struct.unpack("<HB", content[offset + 4 : offset + 7])
        record_bytes += content[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a complete record, or its last part
            yield record_bytes
            record_bytes = b""


@needs("trackio")
def test_trackio(export: RunExport, continued_export: RunExport, tmp_path: Path) -> None:
    """Runs in a subprocess, because Trackio selects its folder on import."""
    import subprocess
    import sys

    script = tmp_path / "check.py"
    script.write_text(_TRACKIO)
    command = [sys.executable, "-W", "ignore", str(script)]
    command += [str(export.run), str(continued_export.run)]
    process = subprocess.run(
        [*command, str(tmp_path / "store")], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    text = json.loads(process.stdout.splitlines()[-1])
    assert text["states"] == ["created", "unchanged", "updated"]
    assert text["runs"] == ["run"]
    assert text["config"] == continued_export.parameters
    assert text["metrics"] == pytest.approx(continued_export.metrics)
    assert text["steps"] == 1


_TRACKIO = """
import json, sys
from dataclasses import replace
from pathlib import Path
from robustcli.reports.run_export import read_run_export
from robustcli.reports.run_export import PublishConfig
from robustcli.reports.trackers import send

run, more, store = map(Path, sys.argv[1:])
destination = PublishConfig(run, "trackio", "study", str(store), name="run", offline=True)
first = read_run_export(run, rendered=False)
states = [send(first, destination).state, send(first, destination).state]
second = read_run_export(more, rendered=False)
assert second.key == first.key
states.append(send(second, destination).state)

import trackio
from trackio.sqlite_storage import SQLiteStorage

runs = list(trackio.Api().runs("study"))
config = {k: v for k, v in runs[0].config.items() if not k.startswith("_")}
config["run"] = "run"
logs = SQLiteStorage.get_logs("study", "run", run_id=runs[0].id)
metrics = {k: v for k, v in logs[-1].items() if k in second.metrics}
print(json.dumps({"states": states, "runs": [one.name for one in runs], "config": config,
                  "metrics": metrics, "steps": len(logs)}))
"""


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(trackers, "import_module", missing)
    for tracker in ("mlflow", "wandb", "trackio"):
        with pytest.raises(MachineError, match=rf"pip install 'robustcli\[{tracker}\]'"):
            send(cast(RunExport, None), PublishConfig(tmp_path, tracker))
