"""Run folders of strangers: no command executes the code that a record or a header names.

Each hostile run would create the file `executed` if any of its code ran.
"""

from __future__ import annotations

import json
import shlex
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import robustcli
from robustcli.adapters import timm_library
from robustcli.adapters.networks import create_model
from robustcli.adapters.training_run import write_weights
from robustcli.core.errors import MachineError, RobustError, UsageError
from robustcli.evaluation.evaluate import evaluate
from tests.adapters.files import header
from tests.evaluation.photos import config, make_photos
from tests.hostile.conftest import Robust

Record = dict[str, Any]
CODE = """
from pathlib import Path
Path({flag!r}).touch()
from torch import nn
from robustcli.transforms import transform

@transform()
def dark(image, rng, value):
    return image // 2

def build():
    return nn.Sequential(nn.Conv2d(3, 10, 20), nn.AdaptiveAvgPool2d(1))
"""


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos in `data` and an evaluation of them in `run`."""
    folder = tmp_path_factory.mktemp("evaluated")
    make_photos(folder / "data", per_class=1)
    evaluate(config(folder / "data", folder / "run", "fliplr"))
    return folder


def _system(record: Record, folder: Path) -> None:
    """A function of an installed module, with arguments: no file is needed."""
    command = shlex.join(["touch", str(folder / "executed")])
    record["models"][0] |= {"builder": "import:os:system", "arguments": {"command": command}}


def _system_by_name(record: Record, folder: Path) -> None:
    """The same as the name of a model of the catalogue."""
    builder = record["models"][0]["builder"]
    _system(record, folder)
    record["models"][0] |= {"builder": builder, "name": "os:system", "untrained": False}


def _system_by_other_kinds(record: Record, folder: Path) -> None:
    """The same as a network of another source."""
    _system(record, folder)
    record["models"][0] |= {"builder": "onnx:os:system"}


def _system_in_weights(record: Record, folder: Path) -> None:
    """The same in the header of the recorded weights."""
    _system(record, folder)
    write_weights(folder / "w.safetensors", {"x": torch.zeros(1)}, header("os:system"))
    record["models"][0] |= {
        "builder": "zoo:ulvm_v2", "weights": str(folder / "w.safetensors"), "untrained": False,
    }  # fmt: skip


def _python_file(record: Record, folder: Path) -> None:
    record["models"][0] |= {"builder": f"import:{folder / 'code.py'}:build", "arguments": {}}


def _module_here(record: Record, folder: Path) -> None:
    record["models"][0] |= {"builder": "import:code_here:build", "arguments": {}}
    shutil.copy(folder / "code.py", "code_here.py")


def _plugin(record: Record, folder: Path) -> None:
    path = folder / "code.py"
    record["command"] += f"\nrobust eval --plugin={shlex.quote(str(path))}"
    record["transforms"][1]["parameters"] = {"value": None, "file": path.name, "sha256": "0" * 64}


def _torchscript(record: Record, folder: Path) -> None:
    path = folder / "net.ts"
    with warnings.catch_warnings(action="ignore"):  # newer torch deprecates it
        network = nn.Sequential(nn.Conv2d(3, 10, 20), nn.AdaptiveAvgPool2d(1))
        torch.jit.trace(network, torch.zeros(1, 3, 20, 20)).save(str(path))
    record["models"][0] |= {"builder": f"torchscript:{path}", "weights": str(path)}


HOSTILE: tuple[Callable[[Record, Path], None], ...] = (
    *(_system, _system_by_name, _system_by_other_kinds, _system_in_weights),
    *(_python_file, _module_here, _plugin, _torchscript),
)
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("verify", "RUN"),
    ("verify", "RUN", "--weights", "w.safetensors"),
    ("explain", "RUN"),
    ("explain", "RUN", "--model", "os:system"),
    ("explain", "--model", "RUN", "--data", "data"),
    ("report", "RUN"),
    ("compare", "RUN", "RUN2"),
    ("publish", "RUN", "--to", "hub-card"),
    ("predict", "--model", "RUN", "data"),
    ("export", "RUN"),
    ("finetune", "vmamba-pico", "--data", "data", "--pretrained", "RUN"),
    ("train", "cls", "--model", "vmamba-pico", "--data", "data", "--out", "RUN", "--dry-run"),
    ("eval", "--model", "RUN", "--data", "data"),
    ("eval", "--model", "resnet-pico", "--data", "data", "--transform", "fliplr", "--out", "RUN",
     "--dry-run"),
)  # fmt: skip


@pytest.fixture
def hostile(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Record, Path], None]], Path]:
    """Builds a hostile run in `RUN` of the present folder; `executed` would prove its code ran."""
    monkeypatch.chdir(tmp_path)
    flag = tmp_path / "executed"

    def read_torchscript(*_: object, **__: object) -> None:
        flag.touch()

    def build(change: Callable[[Record, Path], None]) -> Path:
        run = Path(shutil.copytree(evaluated / "run", "RUN"))
        shutil.copytree(evaluated / "run", "RUN2")
        shutil.copytree(evaluated / "data", "data")
        (tmp_path / "code.py").write_text(CODE.format(flag=str(flag)), encoding="utf-8")
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        change(record, tmp_path)
        (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
        monkeypatch.setattr("torch.jit.load", read_torchscript)
        return run

    return build


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__.strip("_"))
def test_no_command_executes_what_a_record_names(
    robust: Robust,
    hostile: Callable[[Callable[[Record, Path], None]], Path],
    change: Callable[[Record, Path], None],
    blank_figures: None,
) -> None:
    hostile(change)
    if not Path("w.safetensors").exists():
        write_weights(Path("w.safetensors"), {"x": torch.zeros(1)}, header("os:system"))
    for command in COMMANDS:
        robust(*command, code=(0, 1, 2, 3), seconds=30)
        assert not Path("executed").exists(), command
    for refused in (robustcli.verify, lambda run: robustcli.explain(run=run)):
        with pytest.raises((UsageError, MachineError)):
            refused("RUN")
        assert not Path("executed").exists()


@pytest.mark.parametrize("command", ["verify", "explain"])
def test_the_user_can_allow_the_code_of_a_run_after_its_files_and_arguments_were_listed(
    robust: Robust, hostile: Callable[[Callable[[Record, Path], None]], Path], command: str
) -> None:
    hostile(lambda record, folder: (_system(record, folder), _plugin(record, folder))[0])
    text = robust(command, "RUN", code=2)
    assert f"network `os:system` command=touch {Path.cwd()}/executed" in text
    assert f"plugin: `{Path.cwd()}/code.py`, SHA-256" in text
    assert "(changed since the run)" in text
    assert "--run-code" in text
    robust(command, "RUN", "--run-code", code=(1, 2, 3), seconds=30)
    assert Path("executed").exists()


def test_weights_of_a_stranger_do_not_name_code(robust: Robust, tmp_path: Path) -> None:
    command = shlex.join(["touch", str(tmp_path / "executed")])
    named = header("os:system", arguments={"command": command})
    Path("training").mkdir()
    write_weights(Path("training/weights.safetensors"), {"x": torch.zeros(1)}, named)
    make_photos(Path("data"), per_class=1)
    for arguments in (
        ("predict", "--model", "training", "data"), ("export", "training"),
        ("eval", "--model", "training", "--data", "data"),
        ("explain", "--model", "training", "--data", "data"),
        ("finetune", "ulvm_v2", "--pretrained", "training", "--data", "data"),
    ):  # fmt: skip
        robust(*arguments, code=2)
    with pytest.raises(RobustError):
        create_model("ulvm_v2", weights="training/weights.safetensors")
    assert not Path("executed").exists()


def test_arguments_of_a_header_do_not_let_timm_read_other_files() -> None:
    with pytest.raises(UsageError, match="`checkpoint_path` of timm is not supported"):
        timm_library.create("resnet18", {"checkpoint_path": "pickle.pth"})
