"""The workflow of GitHub Actions in `docs/studies.md`, as far as a machine of ours can run it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from tests.cli.conftest import Robust

PAGE = (Path(__file__).parents[2] / "docs" / "studies.md").read_text("utf-8")
BLOCKS = re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
INPUTS = {
    "actions/checkout": set(),
    "actions/setup-python": {"python-version"},
    "actions/upload-artifact": {"name", "path"},
}
"""Inputs of the workflow's actions, of those that their `action.yml` names."""


def steps() -> list[dict[str, Any]]:
    """Of the only job."""
    (job,) = yaml.safe_load(dict(BLOCKS)[".github/workflows/robustness.yaml"])["jobs"].values()
    return list(job["steps"])


def test_the_actions_get_inputs_that_they_know() -> None:
    used = [step for step in steps() if "uses" in step]
    for step in used:
        action, _, version = step["uses"].partition("@")
        assert re.fullmatch(r"v\d+", version)
        assert set(step.get("with", {})) == INPUTS[action]
    assert used[-1]["if"] == "always()", "the report is kept where the gate fails"


def test_its_command_runs_with_the_study_file_of_the_page(robust: Robust) -> None:
    (command,) = (step["run"] for step in steps() if step.get("run", "").startswith("robust "))
    Path("studies").mkdir()
    Path("studies", "gate.yaml").write_text(dict(BLOCKS)["studies/gate.yaml"], "utf-8")
    outcome = robust(*shlex.split(command)[1:], "--dry-run")
    assert outcome.code == 0
    assert "fail-under" in outcome.out
    upload = steps()[-1]["with"]["path"]
    assert f"--out {upload}" in command
