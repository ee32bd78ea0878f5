"""The one structure that `report.md` and `report.html` are both written from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Mono:
    """Text to be shown letter for letter: names, paths, hashes."""

    text: str


@dataclass(frozen=True)
class Strong:
    """Text that must not be overlooked."""

    text: str


Span: TypeAlias = str | Mono | Strong
Text: TypeAlias = tuple[Span, ...]


@dataclass(frozen=True)
class Heading:
    """A title; `level` 1 is the document's."""

    level: Literal[1, 2, 3]
    content: Text


@dataclass(frozen=True)
class Paragraph:
    """A run of text."""

    content: Text


@dataclass(frozen=True)
class Listing:
    """An unordered list."""

    items: tuple[Text, ...]


@dataclass(frozen=True)
class Table:
    """A table; the first `left` columns hold text, the others numbers (set to the right)."""

    header: tuple[Text, ...]
    rows: tuple[tuple[Text, ...], ...]
    left: int = 1


@dataclass(frozen=True)
class Figure:
    """A picture: its path relative to the run directory, and what it shows in words."""

    path: str
    caption: str


@dataclass(frozen=True)
class Code:
    """Lines to be copied letter for letter."""

    text: str


Block: TypeAlias = Heading | Paragraph | Listing | Table | Figure | Code


@dataclass(frozen=True)
class Document:
    """A title in plain text and the blocks below and including its heading."""

    title: str
    blocks: tuple[Block, ...] = field(default=())


def text(*spans: Span) -> Text:
    """`spans` as one text."""
    return spans


def marked(words: str) -> Text:
    """`words` of a record as one text, in which what stands between backticks is a Mono."""
    parts = words.split("`")
    if len(parts) % 2 == 0:  # one backtick has no partner
        return (words,)
    return tuple(Mono(part) if n % 2 else part for n, part in enumerate(parts) if part)


def cells(*values: Span) -> tuple[Text, ...]:
    """Table cells of one span each."""
    return tuple((value,) for value in values)


def joined(parts: Sequence[Span], separator: str = ", ") -> Text:
    """`parts` with `separator` between them."""
    spans: list[Span] = []
    for part in parts:
        spans += [separator, part] if spans else [part]
    return tuple(spans)
