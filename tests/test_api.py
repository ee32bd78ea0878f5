"""The package's own functions: there on use, and nothing heavy before."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import robustcli
from robustcli import api
from robustcli.adapters.networks import create_model
from robustcli.core.errors import UsageError
from robustcli.core.listener import Logged
from robustcli.reports.comparison import Comparison


def test_every_door_leads_to_its_function() -> None:
    elsewhere = {"create_model": create_model, "Comparison": Comparison}
    assert set(robustcli.__all__) >= {"Run", "Training", "create_model", "evaluate", "train"}
    for name in robustcli.__all__:
        assert getattr(robustcli, name) is (elsewhere.get(name) or getattr(api, name))


def test_an_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="'robustcli' has no attribute 'creat_model'"):
        robustcli.creat_model  # noqa: B018


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, robustcli; assert 'torch' not in sys.modules; print(robustcli.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == robustcli.__version__


def test_a_network_by_name() -> None:
    network = robustcli.create_model("vmamba-pico", num_classes=3)
    assert network.num_classes == 3


class Tiny(nn.Module):
    """A network of ten classes."""


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ([Tiny(), Tiny()], {}, r"2 networks that are called `Tiny`[\s\S]*'first': Tiny\(\)"),
        ([], {}, r"`model` is empty"),
        (None, {}, r"`model` is no network\.\nGot `None`"),
        ([Tiny(), 3], {}, r"`model` is no network\.\nGot `3`"),
        ({"a": Tiny(), "b": Tiny()}, {"weights": "w.pth"}, "`weights` can only be used with one"),
        (Tiny(), {"transforms": None}, "`transforms=None` should be a list"),
        (Tiny(), {"data": ["a"]}, r"`data=\['a'\]` should be a valid string"),
        (Tiny(), {"preprocessing": {"size": 3}}, r"no argument `size`\. Did you mean `resize`"),
        (Tiny(), {"preprocessing": {"crop": "a"}}, "`crop='a'` should be a valid integer"),
        (Tiny(), {"precision": "fp64"}, "`precision='fp64'` should be"),
    ],
)
def test_wrong_arguments_of_evaluate(model: Any, options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"data": "cifar10-mini", "transforms": "identity"} | options
    with pytest.raises(UsageError, match=message):
        robustcli.evaluate(model, out="run", **arguments)


def test_wrong_arguments_of_other_functions() -> None:
    network: Any = Tiny()
    with pytest.raises(UsageError, match=r"`robustcli.train`[\s\S]*should be a valid string"):
        robustcli.train(network, out="run")
    with pytest.raises(UsageError, match=r"`robustcli.finetune`[\s\S]*no argument `weights`"):
        robustcli.finetune("umamba", out="run", weights="w.pth")
    with pytest.raises(UsageError, match=r"`rule='x'` should be an instance of FreezeRule\."):
        robustcli.finetune("umamba", out="run", rule="x")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`sweep='perhaps'` should be a valid boolean"):
        robustcli.finetune("umamba", out="run", sweep="perhaps")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`formats='onx'` should be 'onnx' or 'torchscript'"):
        robustcli.export(network, formats="onx")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`to='tensorboard'` is no tracker"):
        robustcli.publish("run", "tensorboard")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="No run was passed"):
        robustcli.compare()


def test_the_keys_of_a_dictionary_name_models_of_the_catalogue_too(tmp_path: Path) -> None:
    models = {"first": "resnet-pico", "second": Path("resnet-pico")}
    options = {"out": tmp_path / "run", "limit": 10, "workers": 0}
    run = robustcli.evaluate(models, "cifar10-mini", "identity", **options)  # type: ignore[arg-type]
    assert run.table()["model"].tolist() == ["first", "second"]


def test_defaults_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "robustcli")
    options = {"out": tmp_path / "run", "limit": 10, "workers": 0}
    robustcli.evaluate("resnet-pico", None, "identity", **options)  # type: ignore[arg-type]
    assert any(m.startswith("`--data` is not set; using cifar10-mini") for m in caplog.messages)


@pytest.mark.parametrize("configured", [False, True])
def test_messages_are_printed_unless_the_program_has_configured_logging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, configured: bool
) -> None:
    logger = logging.getLogger("robustcli")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    monkeypatch.setattr(logging.root, "handlers", [logging.NullHandler()] if configured else [])
    for _ in range(2):
        Logged().say("100 % of the photos")
    logger.manager._clear_cache()  # type: ignore[attr-defined]  # of levels, which setLevel fills
    assert capsys.readouterr().err == ("" if configured else "100 % of the photos\n" * 2)


@pytest.mark.parametrize("started", [False, True], ids=["cpu", "cuda"])
def test_functions_keep_the_random_generators_of_the_caller(
    monkeypatch: pytest.MonkeyPatch, *, started: bool
) -> None:
    cuda = {"state": ["before"], "seed": None}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: cuda["state"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: cuda.update(state=states))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: cuda.update(seed=seed))

    def draws(*_: object, **__: object) -> None:
        random.random(), np.random.rand(), torch.manual_seed(3), torch.rand(1)  # noqa: NPY002
        cuda["state"] = ["after"]
        raise UsageError("drawn", "", "")

    monkeypatch.setattr(api, "checked_arguments", draws)
    for seed, call in enumerate(
        (
            lambda: robustcli.evaluate("vmamba-pico", None, "identity", out="run"),
            lambda: robustcli.explain("vmamba-pico", out="run"),
            lambda: robustcli.train("ulvm", out="run"),
            lambda: robustcli.finetune("umamba-pico", out="run"),
            lambda: robustcli.export("vmamba-pico"),
            lambda: robustcli.verify("run"),
        )
    ):
        torch.manual_seed(seed)
        before = random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002
        with pytest.raises(UsageError, match="drawn"):
            call()
        after = random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002
        assert after == before
        assert cuda["state"] == ["before"] if started else cuda["seed"] == seed
