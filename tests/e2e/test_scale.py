"""The simulation of many workers compared with known results, and its page."""

from __future__ import annotations

import importlib
import math
import re
import shlex
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml
from torch.distributed.run import get_args_parser

from robustcli.cli.main import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text("utf-8")
RATE = 0.7  # failures per second
RUNS = 2000


@pytest.fixture(scope="module")
def scale() -> Iterator[ModuleType]:
    """Imports the script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("scale")


def check_mean(scale: ModuleType, expected: float, *case: object) -> None:
    """Compares the mean run time of many runs with `expected`, within four standard errors."""
    times = [scale.Simulation(*case, seed).run().elapsed for seed in range(RUNS)]
    error = statistics.stdev(times) / math.sqrt(RUNS)
    assert statistics.mean(times) == pytest.approx(expected, abs=4 * error)
    assert error < expected / 20


@pytest.mark.parametrize("policy", ["one job", "torchrun", "array", "free"])
@pytest.mark.parametrize("turns", [1, 4])
def test_one_worker_without_failures_takes_the_sum(
    scale: ModuleType, policy: str, turns: int
) -> None:
    job = scale.Job(images=300, cells=5, models=2, images_per_second=10.0, turns=turns)
    cluster = scale.Cluster(start=7.0, read=0.25, write=0.5)
    outcome = scale.Simulation(job, cluster, 1, policy, 0).run()
    files = 3 * 5 * 3  # blocks, cells, predictions of two models and image statistics
    planning = max(0.0, files * 0.25 - 7.0) if policy == "free" else files * 0.25
    assert job.files == files
    assert outcome.elapsed == pytest.approx(7 + planning + 300 * 5 * 2 / 10 + files * 0.5)
    assert outcome.spent["useful"] == pytest.approx(300 * 5 * 2 / 10)
    assert outcome.spent["writing"] == pytest.approx(files * 0.5)
    assert outcome.efficiency == pytest.approx(300 / outcome.elapsed)
    assert outcome.lost == 0


@pytest.mark.parametrize("workers", [2, 3, 7, 1000])
def test_without_failures_the_end_is_that_of_the_largest_share(
    scale: ModuleType, workers: int
) -> None:
    """Blocks of one size: in any policy each worker gets every n-th of the equal pieces."""
    job = scale.Job(images=128 * 60, cells=4, models=1, images_per_second=128.0)
    parts = min(
        4,
        math.ceil(workers * 4 / 60),
        # Blocks are divided if there are too few.
    )
    pieces = [math.ceil((4 - first) / parts) for _ in range(60) for first in range(parts)]
    longest = max(sum(pieces[rank::workers]) for rank in range(workers))
    for policy in ("one job", "torchrun", "array"):
        outcome = scale.Simulation(job, scale.Cluster(), workers, policy, 0).run()
        assert outcome.elapsed == pytest.approx(longest)
    free_policy = scale.Simulation(job, scale.Cluster(), workers, "free", 0).run()
    assert math.ceil(60 * 4 / workers) <= free_policy.elapsed + 1e-9 <= longest + 1e-6


def test_pieces_that_restart_take_what_renewal_theory_says(scale: ModuleType) -> None:
    """(e^(rt) - 1) / r for a piece of length t that restarts at each failure of rate r."""
    job = scale.Job(images=128, cells=1, models=1, images_per_second=128.0)  # one second
    cluster = scale.Cluster(crash=1 / RATE)
    for policy in ("one job", "torchrun", "array", "free"):
        check_mean(scale, (math.exp(RATE) - 1) / RATE, job, cluster, 1, policy)


def test_what_is_durable_is_not_computed_again(scale: ModuleType) -> None:
    """n pieces with start R and downtime D: (1/r + D) ((e^rR - 1) + n e^rR (e^rt - 1))."""
    n, start_seconds, downtime = 3, 0.5, 0.8
    job = scale.Job(images=128, cells=n, models=1, images_per_second=128.0)
    cluster = scale.Cluster(start=start_seconds, preempt=1 / RATE, away=downtime)
    restart = math.exp(RATE * start_seconds)
    expected = (1 / RATE + downtime) * (restart - 1 + n * restart * (math.exp(RATE) - 1))
    for policy in ("array", "free"):
        check_mean(scale, expected, job, cluster, 1, policy)


def test_torchrun_starts_all_again_when_one_fails(scale: ModuleType) -> None:
    """Two workers with one piece each fail together, at twice the rate."""
    job = scale.Job(images=128, cells=2, models=1, images_per_second=128.0)
    cluster = scale.Cluster(crash=1 / RATE)
    expected = (math.exp(2 * RATE) - 1) / (2 * RATE)
    check_mean(scale, expected, job, cluster, 2, "torchrun")


def test_one_job_computes_the_share_of_a_dead_worker_by_the_next_command(scale: ModuleType) -> None:
    """Worker 0's failure ends a round, worker 1's leaves its piece: E1 (2 - q), q = e^-rt."""
    job = scale.Job(images=128, cells=2, models=1, images_per_second=128.0)
    survival = math.exp(-RATE)
    solo_seconds = (1 - survival) / (RATE * survival)
    cluster = scale.Cluster(crash=1 / RATE)
    check_mean(scale, solo_seconds * (2 - survival), job, cluster, 2, "one job")


@pytest.mark.parametrize("policy", ["one job", "torchrun", "array", "free"])
@pytest.mark.parametrize("turns", [1, 3])
def test_all_paid_time_is_booked_once(scale: ModuleType, policy: str, turns: int) -> None:
    job = scale.Job(images=128 * 30, cells=6, models=2, images_per_second=64.0, turns=turns)
    cluster = scale.Cluster(
        start=5.0, crash=600.0, repeat=3.0, slow_share=0.3, slowness=1.5, read=0.001, write=0.01,
        files_per_second=50.0,
    )  # fmt: skip
    outcome = scale.Simulation(job, cluster, 5, policy, 1).run()
    assert outcome.ended
    assert outcome.spent["useful"] == pytest.approx(job.seconds)
    assert all(seconds >= 0 for seconds in outcome.spent.values())
    assert outcome.spent["lost"] > 0
    if policy != "array":  # with `array`, a worker is not paid after its share
        assert outcome.paid == pytest.approx(5 * outcome.elapsed)
    else:
        assert outcome.paid < 5 * outcome.elapsed
    downtime = replace(cluster, crash=math.inf, preempt=600.0, away=30.0)
    outcome = scale.Simulation(job, downtime, 5, policy, 1).run()
    assert outcome.spent["useful"] == pytest.approx(job.seconds)
    assert outcome.paid < 5 * outcome.elapsed


def test_the_file_system_bounds_the_speed(scale: ModuleType) -> None:
    job = scale.Job(images=128 * 50, cells=8, models=3, images_per_second=1e9)
    cluster = scale.Cluster(files_per_second=100.0)
    outcome = scale.Simulation(job, cluster, 64, "free", 0).run()
    assert outcome.elapsed == pytest.approx(job.files / 100.0, rel=1e-3)


def test_runs_repeat_and_seeds_differ(scale: ModuleType) -> None:
    job = scale.Job(images=128 * 20, cells=4, models=1, images_per_second=64.0)
    cluster = scale.Cluster(start=2.0, crash=100.0, slow_share=0.2)
    first, repeated, other_seed = (
        scale.Simulation(job, cluster, 4, "free", seed).run() for seed in (0, 0, 1)
    )
    assert first == repeated != other_seed


def test_who_is_free_helps_where_machines_are_slow(scale: ModuleType) -> None:
    job = scale.Job(images=128 * 64, cells=4, models=1, images_per_second=64.0)
    cluster = scale.Cluster(slow_share=0.2)
    array_policy, free_policy = (
        scale.summary(job, cluster, 8, p, range(20)) for p in ("array", "free")
    )
    assert free_policy.hours[0] < 0.75 * array_policy.hours[0]


def test_a_run_that_does_not_get_on_is_given_up(scale: ModuleType) -> None:
    job = scale.Job(images=128, cells=2, models=1, images_per_second=1.0)
    simulation = scale.Simulation(job, scale.Cluster(crash=1.0), 2, "torchrun", 0).run()
    assert not simulation.ended
    line = scale.summary(job, scale.Cluster(crash=1.0), 2, "torchrun", range(3))
    assert "100% aborted" in scale.table([line])


def test_spread_is_that_of_numpy(scale: ModuleType) -> None:
    import numpy as np

    values = [float(value) for value in np.random.default_rng(0).normal(size=19)]
    assert scale.spread(values) == pytest.approx(np.quantile(values, [0.5, 0.05, 0.95]))


def blocks(language: str) -> list[str]:
    """Returns the code blocks of the page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_the_arithmetic_of_the_page_is_that_of_the_job(scale: ModuleType) -> None:
    job = scale.Job()
    predictions = job.images * job.cells * job.models
    numbers = {
        f"{job.images:,} images",
        f"{-(-job.images // job.block)} blocks",
        f"{job.files:,} files",
        f"{predictions:,} predictions",
        f"{job.seconds / 3600:.1f} GPU hours",
    }
    assert {number for number in numbers if number not in PAGE} == set()


def evaluations() -> list[list[str]]:
    """Returns the arguments of each `robust eval` of the page, without its launcher."""
    bash = "\n".join(blocks("bash")).replace("\\\n", " ")
    args = "".join(CONTAINER["args"])
    commands = re.findall(r"\brobust(?:cli)? eval ([^;\n#]*)", f"{bash}\n{args}")
    return [shlex.split(command) for command in commands]


DOCUMENTS = [d for block in blocks("yaml") for d in yaml.safe_load_all(block)]
BY_KIND = {document["kind"]: document for document in DOCUMENTS}
POD = BY_KIND["Job"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def test_commands_of_the_page_have_options_that_exist() -> None:
    commands = [c for c in evaluations() if "--engine" not in c]  # engines are tested separately
    assert len(commands) == 5
    command = main.get_command(click.Context(main), "eval")
    assert command is not None
    for arguments in commands:
        context = command.make_context("eval", arguments)
        assert context.params["models"] == ("vmamba-b", "swin-b", "convnext-b")
        assert context.params["transforms"] == ("paper21",)


def test_the_manifest_of_kubernetes_is_a_job_whose_pods_meet_at_the_first() -> None:
    assert set(BY_KIND) == {"Service", "Job"}
    service, job = BY_KIND["Service"], BY_KIND["Job"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert POD["subdomain"] == service["metadata"]["name"]
    assert POD["restartPolicy"] == "OnFailure"
    volumes = {volume["name"] for volume in POD["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == volumes
    container_arguments = shlex.split("".join(CONTAINER["args"]))
    assert container_arguments[:2] == ["exec", "torchrun"]
    options = get_args_parser().parse_args(container_arguments[2:])
    assert int(options.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    host = f"{job['metadata']['name']}-0.{POD['subdomain']}"
    assert (options.rdzv_backend, options.rdzv_endpoint) == ("c10d", f"{host}:29500")
    assert (options.module, options.training_script) == (True, "robustcli")
