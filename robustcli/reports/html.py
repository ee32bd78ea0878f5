"""Converts a Markdown page to one self-contained HTML file with its images, style and script.

The page loads nothing from outside, and its Content-Security-Policy forbids it. Without its script
it is a readable plain page; the script sorts and filters tables, enlarges images and opens photos.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from jinja2 import Environment
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape
from PIL import Image

from robustcli.core.io import reading
from robustcli.core.names import counted
from robustcli.data.mask_classes import as_rgb
from robustcli.reports.cell_photos import Photo, PhotoSheet
from robustcli.reports.markdown import TEMPLATES, template_environment
from robustcli.tasks.record import PANELS_FOLDER

MOST_BYTES = 5_000_000
"""Largest size of a page; images that do not fit are left out, which the page reports."""
_CHART = 0.4  # share of white pixels from which an image counts as a chart, not as photos
_CHART_SCALE = 1.5  # pixels of a chart per page pixel, so that all charts have letters of one size
_LONG_NAME = 32  # characters; longer names, such as hashes and paths, may break in tables
_PANEL_QUALITY = 85  # WebP quality of 100, at which thin lines and small letters are sharp
_LONGEST_PHOTO = 256  # pixels of the longer side


def to_html(
    markdown: str, folder: Path, photos: PhotoSheet | None = None, files: Sequence[str] = ()
) -> str:
    """The complete page as HTML; its title is the text of the first heading.

    Args:
        markdown: Must have a heading; each image is followed by its caption in italics. HTML in it
            is escaped.
        folder: Folder to which image paths are relative.
        photos: Photos that are linked from the cells of the tables.
        files: Quoted names of the report's files, which the head of the page lists.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    _link_to_pages(tokens)
    heading = next(token for token in tokens if token.type == "inline")
    room = _ImageBudget(MOST_BYTES - len(markdown.encode()) * 3 - len(_style()) - len(_script()))
    dressing = _Dressing(folder, room, photos)
    body = parser.renderer.render(list(dressing.dressed(tokens)), parser.options, {})
    cells = [] if photos is None else _photo_cells(photos, room)
    if photos is not None and not cells:
        return to_html(
            markdown, folder, files=files
        )  # tables must not link to photos that are missing
    chapters = [
        *dressing.chapters,
        *([_Heading("photos", "Photos behind the cells")] * bool(cells)),
    ]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=_text(heading),
            policy=_policy(),
            files=files,
            style=Markup(_style()),
            script=Markup(_script()),
            chapters=chapters,
            body=Markup(body),
            cells=cells,
            clean=cells[0].anchor if cells else "",
            sheet=photos,
            swatches=[] if photos is None else _swatches(photos.classes),
        )
    )


def _link_to_pages(tokens: Sequence[Token]) -> None:
    """Changes links to reports of other runs (`.../report.md`) to their HTML files."""
    for link in (child for token in tokens for child in token.children or ()):
        target = str(link.attrs.get("href", "")) if link.type == "link_open" else ""
        if target.endswith("/report.md") and ":" not in target:
            link.attrs["href"] = f"{target.removesuffix('.md')}.html"


@cache
def _environment() -> Environment:
    environment = template_environment(TEMPLATES, keep_trailing_newline=True)
    environment.filters["counted"] = counted
    return environment


@cache
def _style() -> str:
    return "\n" + (TEMPLATES / "report.css").read_text(encoding="utf-8")


@cache
def _script() -> str:
    return "\n" + (TEMPLATES / "report.js").read_text(encoding="utf-8")


def _policy() -> str:
    """A policy that allows only the page's style and script, by hash, and images as data."""
    style, script = (
        base64.b64encode(hashlib.sha256(content.encode()).digest()).decode("ascii")
        for content in (_style(), _script())
    )
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; "
        f"script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'"
    )


# Images, within the size limit.


@dataclass
class _ImageBudget:
    """The remaining budget for the page's images, in bytes."""

    left: int

    def take(self, count: int) -> bool:
        """Takes `count` bytes if they fit; returns whether they do."""
        fits = count <= self.left
        self.left -= count if fits else 0
        return fits


@dataclass(frozen=True)
class _Embedded:
    """An image embedded in the page.

    Args:
        uri: Content as a `data:` URI.
        width: Displayed width in CSS pixels.
        height: Displayed height in CSS pixels.
        chart: Whether it is a drawing on white, which dark mode may invert.
    """

    uri: str
    width: int
    height: int
    chart: bool = False


def _drawing(path: Path) -> _Embedded:
    """The image `path`, compressed without loss: as WebP if that is smaller than the file.

    Images in a folder PANELS_FOLDER consist of photos: they are compressed with loss and never
    inverted.
    """
    picture, content = _decoded(path), path.read_bytes()
    if path.parent.name == PANELS_FOLDER:
        packed = io.BytesIO()
        picture.save(packed, "WEBP", quality=_PANEL_QUALITY, method=4)
        return _Embedded(_uri(packed.getvalue(), "webp"), *picture.size)
    white = picture.resize((200, 200), Image.Resampling.NEAREST).histogram()
    packed = io.BytesIO()
    picture.save(packed, "WEBP", lossless=True, method=4, quality=75)
    kind = "png"
    if packed.tell() < len(content):
        content, kind = packed.getvalue(), "webp"
    chart = min(white[255], white[511], white[767]) > _CHART * 200 * 200
    scale = _CHART_SCALE if chart else 1
    width, height = (round(side / scale) for side in picture.size)
    return _Embedded(_uri(content, kind), width, height, chart)


def _photograph(path: Path) -> _Embedded:
    """The image `path`, reduced in size and compressed as a photo."""
    picture = _decoded(path)
    picture.thumbnail((_LONGEST_PHOTO, _LONGEST_PHOTO), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    small = max(picture.size) < 96  # small images, in which single pixels matter
    picture.save(packed, "WEBP", lossless=small, quality=80, method=4)
    return _Embedded(_uri(packed.getvalue(), "webp"), *_legible(*picture.size))


def _legible(width: int, height: int) -> tuple[int, int]:
    """The displayed size of an image of `width` x `height` pixels; tiny ones are enlarged."""
    times = max(1, round(128 / max(width, height)))
    return times * width, times * height


def _decoded(path: Path) -> Image.Image:
    todo = "Remove the file: the report is then written without this picture."
    with reading(path, todo), Image.open(path) as picture:
        if picture.mode == "RGBA":
            flat = Image.new("RGBA", picture.size, "white")
            return Image.alpha_composite(flat, picture).convert("RGB")
        return picture.convert("RGB")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


# The text of the page.


@dataclass
class _Heading:
    """A heading of the table of contents, with the headings below it."""

    anchor: str
    title: str
    sections: list[_Heading] = field(default_factory=list)


@dataclass
class _Dressing:
    """Makes the page's HTML accessible: figures, tables with captions, anchors."""

    folder: Path
    room: _ImageBudget
    photos: PhotoSheet | None
    chapters: list[_Heading] = field(default_factory=list)
    anchors: set[str] = field(default_factory=lambda: {"photos", "content", "dialog-title"})
    captions: dict[str, int] = field(default_factory=dict)
    heading: str = ""

    def dressed(self, tokens: Sequence[Token]) -> Iterator[Token]:
        """`tokens` with HTML figures, named headings and accessible tables."""
        waiting = iter(enumerate(tokens))
        for index, token in waiting:
            image = _image(tokens[index : index + 3])
            if image is not None:
                yield _raw(self._figure(image))
                for _ in range(5):  # the other tokens of the image and of its caption
                    next(waiting)
            elif token.type == "heading_open":
                self._name(token, _text(tokens[index + 1]))
                yield token
            elif token.type == "table_open":
                end = next(n for n in range(index, len(tokens)) if tokens[n].type == "table_close")
                yield from self._table(tokens[index : end + 1])
                for _ in range(end - index):
                    next(waiting)
            else:
                yield token

    def _name(self, token: Token, title: str) -> None:
        self.heading = title
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "part"
        number = 1
        anchor = stem
        while anchor in self.anchors:
            number += 1
            anchor = f"{stem}-{number}"
        self.anchors.add(anchor)
        token.attrSet("id", anchor)
        if token.tag == "h2":
            self.chapters.append(_Heading(anchor, title))
        elif token.tag == "h3" and self.chapters:
            self.chapters[-1].sections.append(_Heading(anchor, title))

    def _figure(self, image: Token) -> str:
        path = self.folder / unquote(str(image.attrs["src"]))
        caption = escape("".join(child.content for child in image.children or ()))
        picture = _drawing(path)
        if not self.room.take(len(picture.uri)):
            file = escape(path.relative_to(self.folder).as_posix())
            size = f"{len(picture.uri) / 1e6:.1f} MB"
            return (
                f'<p class="left-out">Not included in this file because of its size ({size}): '
                f"the picture <code>{file}</code> in the same folder. {caption}</p>\n"
            )
        return (
            f'<figure class="picture{" chart" if picture.chart else ""}"><img src="{picture.uri}" '
            f'alt="{caption}" width="{picture.width}" height="{picture.height}">'
            f'<figcaption aria-hidden="true">{caption}</figcaption></figure>\n'
        )

    def _table(self, tokens: Sequence[Token]) -> Iterator[Token]:
        """A scrollable table with a caption, row headers, and links to photos."""
        number = self.captions[self.heading] = self.captions.get(self.heading, 0) + 1
        caption = escape(self.heading + (f" ({number})" if number > 1 else ""))
        yield _raw(f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">\n')
        yield tokens[0]
        yield _raw(f'<caption class="hidden">{caption}</caption>\n')
        columns: list[str] = []
        row: list[str] = []
        for index, token in enumerate(tokens[1:], 1):
            link = ""
            if token.type == "tr_open":
                row = []
            elif token.type in ("th_open", "td_open"):
                row.append(_text(tokens[index + 1]))
                _mark_cell(token, tokens[index + 2], first=len(row) == 1)
                _allow_breaks(tokens[index + 1])
                if token.type == "th_open":
                    columns.append(row[-1])
                elif len(row) > 1 and columns[0] == "transform" and self.photos is not None:
                    link = _link(self.photos, row[0], columns[len(row) - 1])
            yield token
            if link:
                yield _raw(link, "html_inline")
                tokens[index + 1].meta["linked"] = True
            elif token.meta.get("linked"):
                yield _raw("</a>", "html_inline")
        yield _raw("</div>\n")


def _mark_cell(opening: Token, closing: Token, *, first: bool) -> None:
    """Sets the alignment of a cell, and makes the first cell of a row its header."""
    left = "left" in str(opening.attrs.pop("style", "left"))
    opening.attrSet("class", "text" if left else "num")
    row_header = opening.type == "td_open" and first and left
    if row_header or opening.type == "th_open":
        opening.tag = closing.tag = "th"
        opening.attrSet("scope", "row" if row_header else "col")


def _allow_breaks(inline: Token) -> None:
    """Lets long names, such as hashes and paths, break across lines."""
    for child in inline.children or ():
        if child.type == "code_inline" and len(child.content) > _LONG_NAME:
            child.attrSet("class", "long")


def _link(photos: PhotoSheet, label: str, model: str) -> str:
    """The start tag of a link to the photos of a cell; empty if it has none."""
    for number, cell in enumerate(photos.cells, 1):
        if cell.label == label and any(model == a.model for p in cell.photos for a in p.answers):
            return f'<a class="photos" href="#photos-{number}" data-model="{escape(model)}">'
    return ""


def _image(paragraph: Sequence[Token]) -> Token | None:
    """The image, if it is the only content of the paragraph; else None."""
    if [token.type for token in paragraph] != ["paragraph_open", "inline", "paragraph_close"]:
        return None
    children = paragraph[1].children or []
    return children[0] if [child.type for child in children] == ["image"] else None


def _text(inline: Token) -> str:
    """The plain text of a heading or a cell."""
    return "".join(child.content for child in inline.children or ())


def _raw(content: str, kind: str = "html_block") -> Token:
    return Token(kind, "", 0, content=content)


# Photos linked from the table cells.

_OPACITY = 110  # opacity of a predicted mask, of 255


@dataclass(frozen=True)
class _ShownAnswer:
    model: str
    words: str
    right: bool | None
    mask: str


@dataclass(frozen=True)
class _ShownPhoto:
    number: int
    name: str
    picture: _Embedded
    answers: list[_ShownAnswer]


@dataclass(frozen=True)
class _ShownCell:
    anchor: str
    label: str
    photos: list[_ShownPhoto]


def _photo_cells(sheet: PhotoSheet, room: _ImageBudget) -> list[_ShownCell]:
    """The cells with as many photos as fit, the same photos in each; empty if none fits."""
    shown: Mapping[str, list[_ShownPhoto]] = {cell.label: [] for cell in sheet.cells}
    count = 0
    for number in range(1, sheet.most + 1):
        row = {
            cell.label: _shown(photo, bool(sheet.classes))
            for cell in sheet.cells
            for photo in cell.photos
            if photo.number == number
        }
        if not room.take(sum(map(_weight, row.values()))):
            break
        count += bool(row)
        for label, photo in row.items():
            shown[label].append(photo)
    if not count:
        return []
    return [
        _ShownCell(f"photos-{number}", cell.label, shown[cell.label])
        for number, cell in enumerate(sheet.cells, 1)
    ]


def _shown(photo: Photo, classes: bool) -> _ShownPhoto:
    answers = [
        _ShownAnswer(a.model, a.words, a.right, "" if a.mask is None else _overlay(a.mask, classes))
        for a in photo.answers
    ]
    return _ShownPhoto(photo.number, photo.name, _photograph(photo.path), answers)


def _weight(photo: _ShownPhoto) -> int:
    """Size of a photo in the page, in bytes."""
    answers = sum(len(a.mask) + len(a.model) + len(a.words) + 120 for a in photo.answers)
    return len(photo.picture.uri) + answers + 500


def _swatches(classes: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The name of each class, and an image of its colour as data URI.

    Images are used because the page's policy forbids inline styles.
    """
    swatches = []
    for name, colour in classes:
        content = io.BytesIO()
        Image.new("RGB", (1, 1), as_rgb(colour)).save(content, "PNG")
        swatches.append((name, _uri(content.getvalue(), "png")))
    return swatches


def _overlay(path: Path, classes: bool) -> str:
    """The mask `path` as an image to overlay on its photo, transparent outside of the mask.

    The file contains 0 and 255, or with `classes` class indices, whose palette is kept.
    """
    content = io.BytesIO()
    if classes:
        with Image.open(path) as indices:
            opaque = bytes([0, *[_OPACITY] * 255])
            indices.save(content, "PNG", transparency=opaque, optimize=True)
        return _uri(content.getvalue(), "png")
    picture = _decoded(path).convert("L").point(lambda value: int(value > 127))
    picture.putpalette([0, 0, 0, 224, 64, 251])
    picture.save(content, "PNG", transparency=bytes([0, _OPACITY]), bits=1, optimize=True)
    return _uri(content.getvalue(), "png")
