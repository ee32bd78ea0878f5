"""Waiting threads sleep soon, unless the user says how they wait."""

import os

import pytest

from robustcli.core.threads import wait_briefly


@pytest.mark.parametrize(
    ("said", "spin"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_what_a_user_said_stays(monkeypatch, said, spin):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == spin
