"""Commands of `make demo` and of the workflow of GitHub Actions in `docs/studies.md`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from tests.cli.conftest import Robust

ROOT = Path(__file__).parents[2]
MAKEFILE = ROOT / "Makefile"


def demo_commands() -> list[list[str]]:
    """The arguments of `robust` in the rule `demo`."""
    rule = re.search(r"^demo:.*\n((?:\t.*\n)+)", MAKEFILE.read_text("utf-8"), re.MULTILINE)
    assert rule is not None
    lines = [shlex.split(line.replace("$(DEMO)", "demo")) for line in rule[1].splitlines()]
    assert {line[0] for line in lines} == {"$(BIN)/robust"}
    return [line[1:] for line in lines]


def test_the_demo_ends_with_a_verdict_and_its_p_value(robust: Robust) -> None:
    first, *others = demo_commands()
    assert first[first.index("--transform") + 1] == "paper21"
    first[first.index("--transform") + 1] = "gaussian_*"
    assert robust(*first, "--limit", "40", "--workers", "0").code == 0
    last = [robust(*command) for command in others][-1]
    assert last.code == 0
    untouched, verdict = last.out.splitlines()[-2:]
    assert re.search(r"adjusted p (=|<) [\d.]+, n = 40\.$", untouched)
    assert re.search(r"vmamba-pico .* resnet-pico .* on the transform", verdict)
    page = Path("demo", "report.md").read_text("utf-8")
    assert "adjusted p" in page


PAGE = (ROOT / "docs" / "studies.md").read_text("utf-8")
BLOCKS = re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
INPUTS = {
    "actions/checkout": set(),
    "actions/setup-python": {"python-version"},
    "actions/upload-artifact": {"name", "path"},
}
"""Inputs of the workflow's actions, of those that their `action.yml` names."""


def steps() -> list[dict[str, Any]]:
    """The steps of the only job of the workflow."""
    (job,) = yaml.safe_load(dict(BLOCKS)[".github/workflows/robustness.yaml"])["jobs"].values()
    return list(job["steps"])


def test_the_actions_get_inputs_that_they_know() -> None:
    used = [step for step in steps() if "uses" in step]
    for step in used:
        action, _, version = step["uses"].partition("@")
        assert re.fullmatch(r"v\d+", version)
        assert set(step.get("with", {})) == INPUTS[action]
    assert used[-1]["if"] == "always()", "the report is kept where the gate fails"


def test_the_command_of_the_workflow_runs_with_the_study_file_of_the_page(robust: Robust) -> None:
    (command,) = (step["run"] for step in steps() if step.get("run", "").startswith("robust "))
    Path("studies").mkdir()
    Path("studies", "gate.yaml").write_text(dict(BLOCKS)["studies/gate.yaml"], "utf-8")
    outcome = robust(*shlex.split(command)[1:], "--dry-run")
    assert outcome.code == 0
    assert "fail-under" in outcome.out
    upload = steps()[-1]["with"]["path"]
    assert f"--out {upload}" in command
