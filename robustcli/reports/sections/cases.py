"""Single cases as pictures."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.reports.document import Block, Figure, Heading, Paragraph, text


def cases(figures: Sequence[Figure]) -> list[Block]:
    """The section; one sentence where no pictures were kept."""
    heading = Heading(2, text("Best, median and worst cases"))
    if figures:
        return [heading, *figures]
    return [heading, Paragraph(text("None: the run holds no pictures of untransformed images."))]
