"""The threads of the CPU scan: torch's pool, and Python threads where it cannot be borrowed."""

from __future__ import annotations

import ctypes
import os
import threading

import pytest
import torch

from robustcli.models.scan import cpu
from tests.models.scan.cases import image, ss2d_by


@pytest.fixture
def threads():
    """Sets torch's number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def without_openmp(monkeypatch):
    monkeypatch.setattr(cpu, "_openmp", lambda: None)


def callers(count, **options):
    """The thread ids that a run calls its entry from, and what it passes on."""
    found, lock = [], threading.Lock()

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def entry(work):
        with lock:
            found.append((threading.get_native_id(), work))

    cpu.run(ctypes.cast(entry, ctypes.c_void_p).value, 4711, **options)
    assert len(found) == count
    assert {work for _, work in found} == {4711}
    return [thread for thread, _ in found]


def test_one_thread_is_the_caller(threads):
    threads(1)
    assert callers(1) == [threading.get_native_id()]


def test_little_work_is_done_by_the_caller(threads):
    threads(2)
    assert callers(1, alone=True) == [threading.get_native_id()]


@pytest.mark.skipif(cpu._openmp() is None, reason="torch's OpenMP pool is not in reach")
def test_two_threads_are_torchs_own(threads):
    threads(2)
    torch.ones(1 << 20).add_(1)  # torch's pool starts
    before = set(os.listdir("/proc/self/task")) if os.path.isdir("/proc") else None  # noqa: PTH208, PTH112
    found = callers(2)
    assert threading.get_native_id() in found
    if before is not None:
        assert {str(thread) for thread in found} <= before  # none was started for us


@pytest.mark.usefixtures("without_openmp")
def test_python_threads_take_over(threads):
    threads(3)
    assert threading.get_native_id() in callers(3)


@pytest.mark.usefixtures("without_openmp")
def test_python_threads_compute_the_same_bits(threads):
    arguments = image(2, 50, 20, 15, 2)  # too much for the caller alone
    threads(1)
    expected = ss2d_by(cpu, **arguments)
    threads(3)
    assert torch.equal(ss2d_by(cpu, **arguments), expected)


def test_says_which_threads_it_runs_in(monkeypatch):
    monkeypatch.setattr(cpu, "_openmp", lambda: print)
    assert cpu.describe() == "in torch's OpenMP threads"
    monkeypatch.setattr(cpu, "_openmp", lambda: None)
    assert (
        "torch's OpenMP pool is not accessible (it has no `GOMP_parallel`, as on Windows)"
        in cpu.describe()
    )


def test_a_library_without_the_function_is_no_pool(monkeypatch):
    """As on Windows: torch's library is called otherwise, or another OpenMP is linked with it."""
    cpu._openmp.cache_clear()
    try:
        monkeypatch.setattr(ctypes, "CDLL", lambda path: object())
        assert cpu._openmp() is None
        cpu._openmp.cache_clear()
        monkeypatch.setattr(cpu, "_LIBRARIES", ())
        assert cpu._openmp() is None
    finally:
        cpu._openmp.cache_clear()
