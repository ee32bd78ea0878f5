"""What every index of a data set has, whatever is known of its images: masks or classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Member(Protocol):
    """One image: what names it, what it belongs to, and the part that the data says it is in."""

    @property
    def image_id(self) -> str:
        """The same on every machine."""

    @property
    def group(self) -> str:
        """What is never in two parts."""

    @property
    def split(self) -> str | None:
        """`train`, `val` or `test` where the data says so itself; else None."""


class Indexed(Protocol):
    """The images of a data set, sorted by id; see `ImageIndex` and `PairIndex` for the words."""

    @property
    def name(self) -> str:
        """What the data set is called in tables."""

    @property
    def location(self) -> str:
        """Where it lies on this machine."""

    @property
    def subset(self) -> str | None:
        """In words, which part was taken; None for all."""

    @property
    def demonstration(self) -> bool:
        """Whether it is a small set for trying."""

    @property
    def grouping(self) -> str:
        """What a group is, in the singular."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what is known of every image."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of how the data were read, a line each."""

    @property
    def members(self) -> Sequence[Member]:
        """The images."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, each once, sorted."""

    def part(self, ids: frozenset[str], subset: str) -> Indexed:
        """The images whose id is in `ids`, under the words `subset`."""


IndexT = TypeVar("IndexT", bound=Indexed)
