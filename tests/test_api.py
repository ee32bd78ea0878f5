"""The package's own functions: there on use, and nothing heavy before."""

from __future__ import annotations

import subprocess
import sys

import pytest

import robustcli
from robustcli import api
from robustcli.adapters.networks import create_model
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
