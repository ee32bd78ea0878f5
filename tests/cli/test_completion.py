"""Completion in real shells: the lines of `docs/quickstart.md`, typed words, what is offered."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
TYPED = {
    "robust ev": ["eval"],
    "robust eval --model vmamba-p": ["vmamba-pico"],
    "robust train seg --model umamba-e": ["umamba-enc"],
}
# What a shell does at the Tab key; zsh's own functions need a terminal, and are stood in for.
ASKING = {
    "bash": """
        complete -p robust >/dev/null || exit 1
        ask() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _robust_completion robust
                 printf '%s\\n' "${{COMPREPLY[@]}}"; echo .; }}
        {asked}
    """,
    "zsh": """
        _describe() {{ print -rl -- "${{(@)${{(P)3}}%%:*}}"; }}
        compadd() {{ print -rl -- "${{(@)${{(P)@[-1]}}}}"; }}
        (( ${{_comps[robust]+1}} )) || exit 1
        ask() {{ words=("$@"); CURRENT=$#; _robust_completion; echo .; }}
        {asked}
    """,
    "fish": """
        function ask; complete --do-complete "$argv" | string split --fields 1 \\t; echo .; end
        {asked}
    """,
}
START = {"zsh": "autoload -Uz compinit && compinit -D\n"}


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which `robust` is this source."""
    command = tmp_path / "bin" / "robust"
    command.parent.mkdir()
    command.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from robustcli.cli.main import main\nmain(prog_name='robust')\n"
    )
    command.chmod(0o755)
    return f"{command.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("shell", ASKING)
def test_shells_offer_commands_and_names(shell: str, path: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here; the answers that it shows are tested above it")
    (line,) = re.findall(rf"(?m)^(.*_ROBUST_COMPLETE={shell}_source.*?)\s+#", QUICKSTART)
    asked = "\n".join(f"ask {words}" for words in TYPED)
    script = f"{START.get(shell, '')}{line}\n{ASKING[shell].format(asked=asked)}"
    environment = {"PATH": path, "HOME": str(tmp_path), "TERM": "dumb", "LANG": "C.UTF-8"}
    done = subprocess.run(
        [shell, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    offered = [part.split() for part in done.stdout.split("\n.\n")[: len(TYPED)]]
    assert offered == list(TYPED.values()), done.stderr
    assert "rror" not in done.stderr


@pytest.mark.parametrize("shell", ASKING)
def test_the_script_names_its_function_and_parses(shell: str, path: str) -> None:
    environment = {**os.environ, "PATH": path, "_ROBUST_COMPLETE": f"{shell}_source"}
    done = subprocess.run(["robust"], env=environment, capture_output=True, text=True, check=True)
    assert "_robust_completion" in done.stdout
    assert f"_ROBUST_COMPLETE={shell}_complete" in done.stdout
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True)
