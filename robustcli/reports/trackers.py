"""Sends a run to MLflow, Weights & Biases or Trackio, without duplicates.

Each tracker finds the run by its key (`RunExport.key`). If the tracker has it with the same digest,
nothing is sent; with another digest (the run was resumed), the existing run is updated.
"""

from __future__ import annotations

import io
import json
import netrc
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from robustcli.core.errors import MachineError, RunError, UsageError, first_line
from robustcli.data.tables import Say
from robustcli.reports.run_export import PublishConfig, RunExport

PROJECT = "robust"
_KEY, _DIGEST = "robust.run_key", "robust.run_digest"
_MARKER = "robust.json"
"""File in the folder of an offline run of Weights & Biases, with its key and digest."""
_LOCAL_SCHEMES = ("", "file", "sqlite")


@dataclass(frozen=True)
class Sent:
    """The result of sending an export.

    Args:
        state: `created`, `updated`, or `unchanged` if the tracker had all of it.
        place: Location of the run, for the user.
        run_id: Id of the run in the tracker.
    """

    state: Literal["created", "updated", "unchanged"]
    place: str
    run_id: str


def send(export: RunExport, config: PublishConfig, say: Say = lambda _: None) -> Sent:
    """Sends `export` to the tracker of `config`.

    `say` receives messages on defaults that are used and on values that cannot be changed.

    Raises:
        MachineError: The tracker's package is not installed.
        UsageError: The tracker is configured to send to a place that `--offline` forbids.
        RunError: The tracker refused.
    """
    senders = {"mlflow": _send_mlflow, "wandb": _send_wandb, "trackio": _send_trackio}
    try:
        return senders[config.destination](export, config, say)
    except (MachineError, UsageError, RunError):
        raise
    except Exception as error:
        raise RunError(
            f"`{config.destination}` rejected the run.",
            f"The error is: {first_line(error)}.",
            "Correct this and repeat the command: data that was already sent is found by its key.",
        ) from error


def _project(config: PublishConfig, variable: str) -> str:
    """The experiment of MLflow or the project of the others; `variable` is that of its default."""
    return config.project or os.environ.get(variable) or PROJECT


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MachineError(
            f"`--to {name}` needs the package `{name}`.",
            f"It cannot be imported: {first_line(error)}.",
            f"Install it: `pip install 'robustcli[{name}]'`.",
        ) from error


@contextmanager
def _written(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A temporary folder that contains `files`."""
    with tempfile.TemporaryDirectory(prefix="robust-") as folder:
        for name, content in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield Path(folder)


def _refuse_network(place: str) -> UsageError:
    return UsageError(
        f"`--offline` forbids sending to `{place}`.",
        "The tracker is configured for a server on the network.",
        "Omit `--offline`, or set a local store with `--tracking`.",
    )


# MLflow: one run per key. Parameters cannot be changed there, so changed values become tags.


def _send_mlflow(export: RunExport, config: PublishConfig, say: Say) -> Sent:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = _package("mlflow")
    entities = import_module("mlflow.entities")
    uri = config.tracking or mlflow.get_tracking_uri()
    if "://" not in uri and uri != "databricks":
        uri = Path(uri).expanduser().absolute().as_uri()
    is_local = uri != "databricks" and urlsplit(uri).scheme in _LOCAL_SCHEMES
    if config.offline and not is_local:
        raise _refuse_network(uri)
    if uri.startswith("file:"):
        # MLflow 3 requires this if the store is a folder; databases (sqlite:///FILE) are newer.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = _experiment(client, config)
    if config.offline and not _is_local(experiment.artifact_location):
        raise _refuse_network(experiment.artifact_location)
    earlier = client.search_runs(
        [experiment.experiment_id], f"tags.`{_KEY}` = '{export.key}'", max_results=1
    )
    if earlier and earlier[0].data.tags.get(_DIGEST) == export.digest:
        return Sent("unchanged", uri, earlier[0].info.run_id)
    run = earlier[0] if earlier else client.create_run(
        experiment.experiment_id, run_name=config.name or export.name
    )  # fmt: skip
    run_id, known = run.info.run_id, run.data
    parameters = {_mlflow_name(name): value for name, value in export.parameters.items()}
    changed = {
        name: value for name, value in parameters.items() if known.params.get(name, value) != value
    }
    if changed:
        say(
            f"MLflow cannot change parameters: {len(changed)} changed parameters are stored as "
            f"tags `changed.NAME` ({', '.join(sorted(changed)[:3])})."
        )
    new = [
        entities.Param(name, value)
        for name, value in parameters.items()
        if name not in known.params
    ]
    tags = {_KEY: export.key, "robust.partial": str(export.partial).lower()}
    tags |= {f"changed.{name}": value for name, value in changed.items()}
    now = int(run.info.start_time)
    metrics = [
        entities.Metric(_mlflow_name(name), value, now, 0)
        for name, value in export.metrics.items()
        if known.metrics.get(_mlflow_name(name)) != value
    ]
    metrics += _new_epochs(client, run_id, export, entities.Metric, now)
    for items, most, argument in ((new, 100, "params"), (metrics, 1000, "metrics")):
        for first in range(0, len(items), most):
            client.log_batch(run_id, **{argument: items[first : first + most]})
    client.log_batch(run_id, tags=[entities.RunTag(name, value) for name, value in tags.items()])
    with _written(export.files()) as folder:
        client.log_artifacts(run_id, str(folder))
    client.set_tag(run_id, _DIGEST, export.digest)  # last: interrupted transfers are repeated
    client.set_terminated(run_id, "FINISHED")
    return Sent("updated" if earlier else "created", uri, run_id)


def _is_local(place: str) -> bool:
    """Whether a store of MLflow is on this machine: a path, or a URI without a host."""
    parts = urlsplit(place)
    return parts.scheme in _LOCAL_SCHEMES and not parts.netloc


def _experiment(client: Any, config: PublishConfig) -> Any:
    name = _project(config, "MLFLOW_EXPERIMENT_NAME")
    experiment = client.get_experiment_by_name(name)
    return experiment or client.get_experiment(client.create_experiment(name))


def _new_epochs(client: Any, run_id: str, export: RunExport, metric: Any, now: int) -> list[Any]:
    """The metrics of the epochs that the tracker does not have yet."""
    names = {name for _, numbers in export.epochs for name in numbers}
    known = {name: {m.step for m in client.get_metric_history(run_id, name)} for name in names}
    return [
        metric(name, value, now, epoch)
        for epoch, numbers in export.epochs
        for name, value in numbers.items()
        if epoch not in known[name]
    ]


def _mlflow_name(name: str) -> str:
    """`name` with the characters that MLflow forbids replaced by `_`."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


# Weights & Biases: the key is the id of the run, so that its server merges repeated transfers.


def _send_wandb(export: RunExport, config: PublishConfig, say: Say) -> Sent:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    wandb = _package("wandb")
    mode = _wandb_mode(config, say)
    folder = Path(config.tracking or os.environ.get("WANDB_DIR") or ".").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _offline_runs(folder, export.key)
    latest = list(earlier.items())[-1:]
    if mode == "offline" and latest and latest[0][1] == export.digest:
        return Sent("unchanged", str(latest[0][0]), export.key)
    settings = wandb.Settings(
        console="off", disable_code=True, disable_git=True, save_code=False, silent=True,
        x_save_requirements=False, x_disable_meta=True, x_disable_stats=True,
        x_disable_machine_info=True, program="robust publish", host="", username="", email="",
    )  # fmt: skip
    run = wandb.init(
        project=_project(config, "WANDB_PROJECT"), id=export.key, resume="allow",
        name=config.name or export.name, dir=str(folder), mode=mode, settings=settings,
        job_type=export.kind, tags=["partial"] if export.partial else None,
    )  # fmt: skip
    if dict(run.config).get("run_digest") == export.digest:
        place = str(run.url)
        run.finish()
        return Sent("unchanged", place, export.key)
    known = bool(dict(run.config)) or bool(earlier)
    run.config.update(export.parameters, allow_val_change=True)
    for epoch, numbers in export.epochs:
        run.log(numbers, step=epoch)
    pictures = {
        name: wandb.Image(str(path))
        for name, path in export.pictures.items()
        if path.suffix == ".png"
    }
    table = wandb.Table(dataframe=export.table.astype(object).where(
        export.table.notna(), None
    ))  # fmt: skip
    run.log({"results": table, **pictures})
    run.summary.update(export.metrics)
    with _written(export.files()) as written:
        artifact = wandb.Artifact(f"robust-{export.key}", type="robust-run")
        for name in export.files():
            artifact.add_file(str(written / name), name=name)
        run.log_artifact(artifact)
        marker = {"key": export.key, "digest": export.digest}
        marker_file = Path(run.dir) / _MARKER
        marker_file.write_text(json.dumps(marker), encoding="utf-8")
        place = str(Path(run.dir).parent if mode == "offline" else run.url)
        run.finish()
    if mode == "offline":
        say(f"No data was sent; `wandb sync {Path(run.dir).parent}` sends it.")
    return Sent("updated" if known else "created", place, export.key)


def _wandb_mode(config: PublishConfig, say: Say) -> Literal["online", "offline"]:
    wandb_mode = os.environ.get("WANDB_MODE", "")
    if config.offline or wandb_mode in ("offline", "dryrun"):
        return "offline"
    if wandb_mode == "disabled":
        raise UsageError(
            "`WANDB_MODE=disabled` neither sends nor stores data.",
            "",
            "Unset it, or use `WANDB_MODE=offline`.",
        )
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    with suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc(os.environ.get("NETRC")).authenticators(host):
            return "online"
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    say("Weights & Biases has no login on this machine (`wandb login`): the run is stored offline.")
    return "offline"


def _offline_runs(folder: Path, key: str) -> dict[Path, str]:
    """The offline runs with this id below `folder`, with the digest of each."""
    digests = {}
    for path in sorted((folder / "wandb").glob(f"offline-run-*-{key}")):
        with suppress(OSError, ValueError, KeyError):
            marker = json.loads((path / "files" / _MARKER).read_text(encoding="utf-8"))
            digests[path] = str(marker["digest"])
    return digests


# Trackio: an existing run with the key in the local store is replaced.


def _send_trackio(export: RunExport, config: PublishConfig, say: Say) -> Sent:
    server = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
    if server and config.offline:
        raise _refuse_network(server)
    if config.tracking:
        os.environ["TRACKIO_DIR"] = str(Path(config.tracking).expanduser().absolute())
    if not server:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # else it asks the Hub for a user
    trackio = _package("trackio")
    project, name = _project(config, "TRACKIO_PROJECT"), config.name or export.name
    earlier = [] if server else _trackio_runs(trackio, project, export.key)
    if any((run.config or {}).get("run_digest") == export.digest for run in earlier):
        return Sent("unchanged", _trackio_place(project, server), earlier[0].name)
    for run in earlier:
        run.delete()
    with redirect_stdout(io.StringIO()):  # it prints how to open its dashboard
        run = trackio.init(
            project=project, name=name, group=export.kind, config=export.parameters,
            resume="allow" if server else "never", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        for epoch, numbers in export.epochs:
            trackio.log(numbers, step=epoch)
        last = max((epoch for epoch, _ in export.epochs), default=0)
        table = export.table.astype(object).where(export.table.notna(), None)
        pictures = {
            name: trackio.Image(str(path))
            for name, path in export.pictures.items()
            if path.suffix == ".png"
        }
        everything = {"results": trackio.Table(dataframe=table), **export.metrics, **pictures}
        trackio.log(everything, step=last)
        with _written(export.files()) as folder:
            trackio.log_artifact(folder, name=f"robust-{export.key}", type="robust-run")
            trackio.finish()
    if server:
        say("A Trackio server adds data that is sent again to the run with the same name.")
    return Sent("updated" if earlier else "created", _trackio_place(project, server), run.name)


def _trackio_runs(trackio: Any, project: str, key: str) -> list[Any]:
    """The runs with this key in the local store."""
    try:
        runs = list(trackio.Api().runs(project))
    except ValueError:  # the project does not exist yet
        return []
    return [run for run in runs if (run.config or {}).get("run_key") == key]


def _trackio_place(project: str, server: str | None) -> str:
    if server:
        return server
    folder = import_module("trackio.utils").TRACKIO_DIR
    return str(Path(folder) / f"{project}.db")
