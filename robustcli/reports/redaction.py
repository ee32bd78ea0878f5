"""Removes secrets and paths of home folders from data that leaves the machine."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import robustcli

_SECRETS = re.compile(
    r"\b(?:hf|sk|ghp|gho|github_pat|glpat|xox[bp]|wandb_v\d)[-_][A-Za-z0-9_-]{16,}"
    r"|\bAKIA[0-9A-Z]{16}\b"
)
_NAMED_SECRET = re.compile(
    r"((?:token|secret|password|passwd|api[-_]?key|access[-_]?key)[\"']?\s*[=:]\s*[\"']?)"
    r"[^\s\"'&]+",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(\w://)[^/\s:@]+:[^/\s@]+@")
_SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
_HOMES = re.compile(
    r"(?:(?<=://)|(?<![A-Za-z0-9+/=.~_-]))(?:/(?:home|Users)/[^/\s\"'`<>:]+|/root(?![\w.-])"
    r"|[A-Za-z]:[\\/]+Users[\\/]+[^\\/\s\"'`<>:]+)"
)
_HIDDEN = "***"


class Redactor:
    """Removes secrets and private paths from texts.

    Args:
        home: The user's home folder; None for that of this process.
        environment: Environment variables; values under names such as `HF_TOKEN` are secrets. None
            for the variables of this process.
    """

    def __init__(
        self, home: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        variables = os.environ if environment is None else environment
        secrets = {
            value
            for name, value in variables.items()
            if _SECRET_VARIABLE.search(name) and len(value) >= 8
        }
        self._secrets = sorted(secrets, key=len, reverse=True)
        package = Path(robustcli.__file__).parent
        home = (home or Path.home()).absolute()
        homes = {str(home): "~", str(home.resolve()): "~"}  # can be links
        places = {str(Path.cwd()): "", str(package.parent): "", **homes}
        self._places = sorted(places.items(), key=lambda pair: len(pair[0]), reverse=True)

    def text(self, text: str) -> str:
        """`text` with private parts removed.

        Home folders become `~`, secrets are hidden, and paths below the working folder become
        relative.
        """
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        text = _SECRETS.sub(_HIDDEN, text)
        text = _NAMED_SECRET.sub(rf"\g<1>{_HIDDEN}", text)
        text = _IN_URL.sub(rf"\g<1>{_HIDDEN}@", text)
        for place, shown in self._places:
            if len(place) > 1:
                start = rf"(?:(?<=://)|(?<![\w.~+/=-])){re.escape(place)}"
                text = re.sub(rf"{start}[\\/]", f"{shown}/" if shown else "", text)
                text = re.sub(rf"{start}(?![\w.-])", shown or ".", text)
        return _HOMES.sub("~", text)

    def path(self, value: str) -> str:
        """`value`, which can be a path: other absolute paths are reduced to their last part."""
        cleaned = self.text(value)
        absolute = re.match(r"(?:/|[A-Za-z]:[\\/]).*[\\/]([^\\/]+)[\\/]?$", cleaned)
        return f".../{absolute[1]}" if absolute else cleaned

    def command(self, command: str) -> str:
        """A recorded command with every word cleaned by `path`."""
        lines = []
        for line in command.splitlines():
            try:
                words = shlex.split(line)
            except ValueError:
                words = line.split()
            lines.append(" ".join(self._word(word) for word in words))
        return "\n".join(lines)

    def _word(self, word: str) -> str:
        option, sign, value = word.partition("=")
        if sign and option.startswith("-"):
            return self.text(f"{option}={self.path(value)}")
        return self.path(word)

    def value(self, value: Any) -> Any:
        """`value` of a record with every text in it cleaned by `path`."""
        if isinstance(value, str):
            return self.path(value)
        if isinstance(value, Mapping):
            return {self.path(str(key)): self.value(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(entry) for entry in value]
        return value
