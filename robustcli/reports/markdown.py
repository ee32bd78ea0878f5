"""Markdown pages from the templates in `templates/`.

A template contains sentences, lists and tables in Markdown; inserted values are escaped, so that
they are shown unchanged. Templates can be indented and their lines wrapped freely: `tidy` joins the
lines of a paragraph and aligns the columns of tables.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from inspect import isfunction
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from tabulate import tabulate

from robustcli.core.names import counted, printable, unknown_spread
from robustcli.metrics.class_scores import FEWEST_CALIBRATED, FEWEST_PER_CLASS
from robustcli.metrics.intervals import FEWEST_UNITS
from robustcli.reports import numbers
from robustcli.reports.findings import HEADS
from robustcli.reports.scoring import DICE, IOU, RELAXED, relaxed_words

TEMPLATES = Path(__file__).parent / "templates"
# Placeholders for characters of values until a page is laid out: in a table, a pipe needs a
# backslash even within code; line breaks and spaces of commands must be preserved.
_KEPT = {"|": "\ue000", "\n": "\ue001", " ": "\ue002"}
_NOT_IN_VALUES = str.maketrans(dict.fromkeys(_KEPT.values(), "\N{REPLACEMENT CHARACTER}"))
_KEEP = {ord(character): placeholder for character, placeholder in _KEPT.items()}
_PIPE = _KEPT["|"]


@dataclass(frozen=True)
class Picture:
    """A picture of a page: its path relative to the page, and its caption."""

    path: str
    caption: str

    @property
    def link(self) -> Markup:
        """The path, quoted for a Markdown link."""
        return Markup(quote(self.path))


def from_template(template: str, **values: object) -> str:
    """Renders the template `template`.md.j2 with `values` to Markdown, one line per paragraph.

    Raises:
        jinja2.UndefinedError: The template uses a name that is not in `values`.
    """
    return tidy(_environment().get_template(f"{template}.md.j2").render(values))


def moved_page(page: str, folder: Path, place: Path) -> str:
    """`page` of the folder `folder`, with links for a file in the folder `place`.

    Only links to files that exist relative to `folder` are changed.
    """

    def moved(link: re.Match[str]) -> str:
        target = folder / unquote(link[1])
        if not target.exists():
            return link[0]
        return f"]({quote(Path(os.path.relpath(target.resolve(), place.resolve())).as_posix())})"

    return re.sub(r"\]\(([^()\s]+)\)", moved, page)


def template_environment(folder: Path, **settings: Any) -> Environment:
    """The environment of report templates: unknown names are errors, all values are escaped.

    Args:
        folder: Folder of the templates.
        settings: Further settings of Jinja's environment, as the output language requires.
    """
    return Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        **settings,
    )


@cache
def _environment() -> Environment:
    # With autoescape, macros and filters return Markup, which here means finished Markdown.
    environment = template_environment(TEMPLATES, finalize=escaped)
    # Every function of `numbers` is a filter: `{{ row.dice|fraction }}`.
    shown = [
        *vars(numbers).values(),
        code,
        counted,
        joined,
        marked,
        mono,
        settings_in_words,
        unknown_spread,
    ]
    environment.filters |= {func.__name__: func for func in shown if isfunction(func)}
    environment.globals.update(
        class_heads=HEADS,
        dash=numbers.MISSING,
        dice=DICE,
        fewest_calibrated=FEWEST_CALIBRATED,
        fewest_per_class=FEWEST_PER_CLASS,
        fewest_units=FEWEST_UNITS,
        iou=IOU,
        relaxed=RELAXED,
        relaxed_words=relaxed_words,
        rule=rule,
    )
    return environment


# Values as Markdown.


def escaped(value: object) -> Markup:
    """`value` on one line, with all characters escaped that are special in Markdown.

    Markup is finished Markdown and is not changed; None, an unknown number, becomes a dash.
    """
    if isinstance(value, Markup):
        return value
    line = printable(re.sub(r"\s+", " ", numbers.MISSING if value is None else str(value)))
    line = re.sub(r"([\\`*<\[\]~&]|(?<!\w)_|_(?!\w))", r"\\\1", line.translate(_NOT_IN_VALUES))
    # At the start of a paragraph: marks of headings, lists, quotations or rules.
    line = re.sub(r"^( ?)(#{1,6}(?= |$)|[-+](?= |$)|>|-{3,}$)", r"\1\\\2", line)
    line = re.sub(r"^( ?\d+)([.)](?= |$))", r"\1\\\2", line)
    return Markup(line.replace("|", _PIPE))


def mono(value: object) -> Markup:
    """`value` as inline code, shown unchanged: for names, paths, hashes."""
    content = printable(" ".join(str(value).translate(_NOT_IN_VALUES).split())) or " "
    fence = "`" * (1 + _longest_run_of_backticks(content))
    pad = " " if len(fence) > 1 else ""
    return Markup(f"{fence}{pad}{content.replace('|', _PIPE)}{pad}{fence}")


def marked(words: str) -> Markup:
    """`words` of a record; text between backticks becomes inline code."""
    parts = words.split("`")
    if len(parts) % 2 == 0:  # one backtick has no partner
        return escaped(words)
    shown = (mono(part) if n % 2 else escaped(part) for n, part in enumerate(parts) if part)
    return Markup("").join(shown)


def code(value: str) -> Markup:
    """Lines as a code block, for copying."""
    fence = "`" * max(3, 1 + _longest_run_of_backticks(value))
    block = f"text\n{printable(value.translate(_NOT_IN_VALUES))}\n".translate(_KEEP)
    return Markup(f"{fence}{block}{fence}")


def joined(values: Iterable[object], separator: str = ", ") -> Markup:
    """`values` escaped and joined by `separator`, which is Markdown."""
    return Markup(separator).join(escaped(value) for value in values)


def settings_in_words(values: Mapping[str, object]) -> str:
    """`values` in the notation of configurations: `bridge=false, act="gelu"`."""
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in values.items())


def rule(left: int, right: int) -> Markup:
    """The rule line of a table: `left` columns of text, then `right` columns of numbers."""
    return Markup("|" + ":--|" * left + "--:|" * right)


def _longest_run_of_backticks(content: str) -> int:
    return max((len(run) for run in re.findall("`+", content)), default=0)


# The layout of a page.


def tidy(rendered: str) -> str:
    """A template's output with one line per paragraph and item, and with aligned tables."""
    blocks = [_block(block) for block in re.split(r"\n\s*\n", rendered.strip())]
    shown = "\n\n".join(blocks) + "\n"
    shown = re.sub(r"(\n- .*)\n(?=\n- )", r"\1", shown)  # an omitted item must not split a list
    for character, placeholder in _KEPT.items():
        shown = shown.replace(placeholder, character)
    return shown


def _block(block: str) -> str:
    lines: list[str] = []
    for line in filter(None, (re.sub(" +", " ", line).strip() for line in block.split("\n"))):
        if lines and not line.startswith(("|", "- ", "#")):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return _aligned(lines) if lines and lines[0].startswith("|") else "\n".join(lines)


def _aligned(lines: list[str]) -> str:
    """An aligned table from its header, rule and row lines."""
    rows = [
        [cell.strip().replace(_PIPE, r"\|") for cell in line.split("|")[1:-1]] for line in lines
    ]
    header, rule, *body = rows
    align = ["left" if cell.startswith(":") else "right" for cell in rule]
    return tabulate(
        body,
        headers=header,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=align if body else None,
    )
