"""README and `docs`: links lead to files and headings, commands parse, `formats.md` is complete."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from robustcli.cli.main import main
from robustcli.evaluation.record import EVALUATION, RunRecord, Session, TransformRecord
from robustcli.metrics.columns import ROW_SCHEMAS, TABLE_COLUMNS
from robustcli.tasks.record import (
    DatasetRecord,
    MaskPreprocessingRecord,
    MasksRecord,
    ModelRecord,
    PreprocessingRecord,
)

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [
    *(REPOSITORY / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
_BLOCK = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return _BLOCK.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub names them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found[anchor] = found.get(anchor, -1) + 1
    return {f"{a}-{n}" if n else a for a, last in found.items() for n in range(last + 1)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    inline = re.findall(r"\[[^]]*\]\(([^)\s]+)\)", prose(page))
    links = [*inline, *re.findall(r"^\[[^]\d]+\]: (\S+)$", prose(page), re.MULTILINE)]
    for link in (link for link in links if not re.match(r"https?:", link)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def commands(page: Path) -> Iterator[str]:
    """The words after `robust` of the commands in blocks of code, and not of other programs.

    Left out are commands with `...` for other options or with optional parts in brackets, and YAML.
    """
    blocks = [match[0] for match in _BLOCK.finditer(page.read_text("utf-8"))]
    for block in (text.replace("\\\n", " ") for text in blocks if "```yaml" not in text):
        for line in block.splitlines():
            match = re.search(r"(?:^\$? ?|\buntil |-m |\bsrun .*)robust(?:cli)? (.*)", line.strip())
            if match and not re.search(r" \.\.\.( |$)|(^|/)\.\.\.|\[", match[1]):
                yield re.split(r"; do |\s[|>] ", match[1])[0]


COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]


def parse(command: click.Command, name: str, words: list[str], above: click.Context | None) -> None:
    """Parses the `words` after `name` as click does, without running the command."""
    if not isinstance(command, click.Group):
        command.make_context(name, words, parent=above)
        return
    context = click.Context(command, info_name=name, parent=above)
    _, inner, rest = command.resolve_command(context, words)
    assert inner is not None
    parse(inner, words[0], rest, context)


def test_the_documented_commands_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option exists, and its value is of the kind that it accepts."""
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) > 140
    for page, command in COMMANDS:
        words = shlex.split(command, comments=True)
        if "--config" in words:
            continue  # `test_documented_commands.py` runs study files
        try:
            parse(main, "robust", words, None)
        except click.ClickException as error:
            pytest.fail(f"{page}: robust {command}\n{error.format_message()}")


RECORDS: tuple[type[BaseModel], ...] = (
    *(RunRecord, DatasetRecord, MasksRecord, ModelRecord, TransformRecord, Session),
    *(PreprocessingRecord, MaskPreprocessingRecord),
)


def test_the_page_of_file_formats_names_every_file_key_and_column_of_an_evaluation() -> None:
    page = (REPOSITORY / "docs" / "formats.md").read_text("utf-8")
    of_files, of_keys = page.partition("## run.json")[::2]
    names = {word for quoted in re.findall(r"`([^`\n]+)`", of_files) for word in quoted.split("/")}
    files = {*EVALUATION.folders, *EVALUATION.files, "run.json"}
    assert files - names - {"figures"} == set()
    keys = {key for record in RECORDS for key in record.model_fields}
    columns = {name for task in TABLE_COLUMNS for name in TABLE_COLUMNS[task]}
    columns |= {name for task in ROW_SCHEMAS for name in ROW_SCHEMAS[task].names}
    quoted = set(re.findall(r"`([\w.\[\]]+)`", of_keys))
    named = {*quoted, *(name.removesuffix("[]") for name in quoted)}
    ends = {f"{base}{end}" for base in named for end in ("_low", "_high")}
    assert (keys | columns) - named - ends == set()
