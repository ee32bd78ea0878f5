"""What every report consists of, how it becomes files, and of which kind a run is."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
from markdown_it import MarkdownIt
from markdown_it.token import Token

from robustcli.core.io import write_text
from robustcli.core.rundir import RECORD_FILE

KINDS = ("cls", "seg", "train", "finetune")
"""Of runs: evaluations of classifiers and of segmenters, trainings, fine-tunings."""


def kind_of(run: Path) -> str:
    """`train`, `finetune`, or the task of an evaluation; `cls` where that cannot be read."""
    try:
        head = json.loads((run / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "cls"  # reading it as an evaluation tells the user what is wrong
    if not isinstance(head, dict):
        return "cls"
    kind = head["kind"] if head.get("kind") in ("train", "finetune") else head.get("task")
    return kind if kind in KINDS else "cls"


@dataclass(frozen=True)
class Page:
    """A report: its numbers for other programs, and its Markdown.

    The figures that the Markdown names are drawn already.

    Args:
        results: For `results.csv` and `results.json`.
        markdown: For `report.md` and `report.html`.
        files: The contents of further files, by name.
    """

    results: pd.DataFrame
    markdown: str
    files: Mapping[str, str] = field(default_factory=dict)


def write_page(page: Page, folder: Path) -> Path:
    """Writes the files of `page` to `folder`; the path of report.md."""
    write_results(folder, page.results)
    for name, content in page.files.items():
        write_text(folder / name, content)
    write_text(folder / "report.html", to_html(page.markdown, folder))
    write_text(folder / "report.md", page.markdown)
    return folder / "report.md"


def write_results(run: Path, table: pd.DataFrame) -> None:
    """Writes `results.csv` and `results.json` durably; the same table gives the same bytes.

    Args:
        run: Directory of the run.
        table: `metrics.table` of the run; a missing number is empty in CSV and null in JSON.
    """
    write_text(run / "results.csv", to_csv(table))
    write_text(run / "results.json", to_json(table))


def to_csv(table: pd.DataFrame) -> str:
    """`table` as CSV; a missing number is empty."""
    return str(table.to_csv(index=False, lineterminator="\n"))


def to_json(table: pd.DataFrame) -> str:
    """`table` as a JSON array with one record per row; shares are fractions in [0, 1].

    Raises:
        ValueError: A number is infinite, which JSON cannot say.
    """
    records = table.astype(object).where(table.notna(), None).to_dict(orient="records")
    return json.dumps(records, indent=1, allow_nan=False) + "\n"


# A Markdown page as one self-contained HTML file: its pictures are inside it.


STYLE = """
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.05rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; vertical-align: top; }
th { border-bottom: 2px solid #888; }
[style="text-align:left"] { overflow-wrap: anywhere; min-width: 5em; }
tbody tr:hover { background: #f3f6fa; }
code, pre { font: 0.9em/1.4 ui-monospace, Menlo, Consolas, monospace; background: #f3f3f3; }
code { padding: 0 0.2em; overflow-wrap: anywhere; }
pre { padding: 0.7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
pre code { padding: 0; font: inherit; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; }
figcaption { font-size: 0.9rem; color: #444; }
@media print { body { max-width: none; } figure, tr { break-inside: avoid; } }
""".strip()


def to_html(markdown: str, folder: Path) -> str:
    """The whole page; its title is the text of the first heading.

    Args:
        markdown: With a heading, and with each picture followed by its caption in italics. HTML in
            it is shown, not obeyed.
        folder: Where the paths of its pictures start.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    heading = next(token for token in tokens if token.type == "inline")
    title = "".join(child.content for child in heading.children or ())
    body = parser.renderer.render(list(_dressed(tokens, folder)), parser.options, {})
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def _dressed(tokens: Sequence[Token], folder: Path) -> Iterator[Token]:
    """`tokens` with tables that scroll on their own, and pictures with captions as figures."""
    waiting = iter(enumerate(tokens))
    for index, token in waiting:
        picture = _picture(tokens[index : index + 3])
        if picture is not None:
            yield _raw(_figure(picture, folder))
            for _ in range(5):  # the rest of the paragraphs of the picture and of its caption
                next(waiting)
            continue
        if token.type == "table_open":
            yield _raw('<div class="wide">')
        yield token
        if token.type == "table_close":
            yield _raw("</div>\n")


def _picture(paragraph: Sequence[Token]) -> Token | None:
    """The picture that is all of a paragraph, None for other paragraphs."""
    if [token.type for token in paragraph] != ["paragraph_open", "inline", "paragraph_close"]:
        return None
    children = paragraph[1].children or []
    return children[0] if [child.type for child in children] == ["image"] else None


def _figure(image: Token, folder: Path) -> str:
    path = folder / unquote(str(image.attrs["src"]))
    picture = base64.b64encode(path.read_bytes()).decode("ascii")
    caption = escape("".join(child.content for child in image.children or ()))
    return (
        f'<figure><img src="data:image/png;base64,{picture}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def _raw(content: str) -> Token:
    return Token("html_block", "", 0, content=content)
