"""The curves of several trainings beside each other."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.reports.document import Block, Figure, Heading, text


def zoo_curves(figures: Sequence[Figure]) -> list[Block]:
    """The section; empty before any epoch has ended."""
    return [Heading(2, text("How the trainings went")), *figures] if figures else []
