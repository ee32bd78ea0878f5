"""The hub's client: no retries where its host is unknown, and everything put back afterwards."""

import logging
import socket

import pytest
from huggingface_hub import constants

from robustcli.adapters import hub


@pytest.fixture
def no_names(monkeypatch):
    def fail(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr("urllib.request.getproxies", dict)


@pytest.mark.usefixtures("no_names")
def test_an_unknown_host_is_not_asked():
    assert hub.unreachable() == "the network knows no `huggingface.co` (Name or service not known)"
    with hub.hub(offline=False):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.usefixtures("no_names")
def test_behind_a_proxy_names_need_not_be_known_here(monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy:3128"})
    assert hub.unreachable() is None


def test_a_known_host_is_asked(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    monkeypatch.setattr("urllib.request.getproxies", dict)
    level = logging.getLogger("huggingface_hub").level
    with hub.hub(offline=False):
        assert not constants.HF_HUB_OFFLINE
        assert logging.getLogger("huggingface_hub").level == logging.ERROR
    assert logging.getLogger("huggingface_hub").level == level


@pytest.mark.usefixtures("no_names")
def test_the_reason_is_said():
    assert hub.why_none(OSError("x"), offline=True) == "`--offline` forbids the network"
    assert "knows no `huggingface.co`" in hub.why_none(OSError("x"), offline=False)


def test_other_reasons_are_the_clients_own(monkeypatch):
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    assert hub.why_none(OSError("401 Unauthorized"), offline=False) == "OSError: 401 Unauthorized"
