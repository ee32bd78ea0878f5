"""Pages from templates: text of users is displayed literally in Markdown and HTML."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest
from PIL import Image

from robustcli.reports import markdown
from robustcli.reports.evaluation_page import evaluation_report
from robustcli.reports.finetuning_page import finetuning_report
from robustcli.reports.html import to_html
from robustcli.reports.markdown import (
    Picture,
    code,
    from_template,
    joined,
    marked,
    mono,
    settings_in_words,
)
from robustcli.reports.pages import run_kind
from robustcli.reports.render import report_page
from robustcli.reports.training_page import training_report
from robustcli.reports.zoo_page import zoo_report
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.finetune_runs import FinetunePlan, build_finetuning
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter
from tests.reports.train_runs import TrainPlan, build_training

pytestmark = pytest.mark.usefixtures("blank_figures")

HOSTILE = (
    "<b> a|b [x](y)",
    "fast_snowy _x_ **y** `z`",
    "two\nlines\r\n\n# three",
    "`tick` \\ & ~ &amp; \\| ``|",
    "# no heading",
    "- no item",
    "1. no item",
    "2) no item",
    "> no quotation",
    "---",
    "===",
    "| a | b |",
    "<script>alert(1)</script>",
    "![p](http://x/y.png) <http://x>",
    "\ue000\ue001\ue002",
)


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(markdown, "TEMPLATES", tmp_path)
    monkeypatch.setattr(markdown, "_environment", markdown._environment.__wrapped__)
    return tmp_path


class Outline(HTMLParser):
    """Collects the text per tag and checks that every tag is closed where it was opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.images: list[dict[str, str | None]] = []
        self.aligned: list[str | None] = []
        self.feed(page)
        self.close()
        assert self.open == []
        page_tags = ("style", "script", "caption", "a")  # added by the page, not by its Markdown
        self.texts = [(tag, data) for tag, data in self.texts if tag not in page_tags]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        if tag in ("th", "td"):
            self.aligned.append(dict(attrs).get("class"))
        if tag not in ("meta", "img"):
            row = tag == "th" and dict(attrs).get("scope") == "row"
            self.open.append("td" if row else tag)  # the header of a row is one of its cells

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() in (tag, "td" if tag == "th" else tag)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))

    @property
    def text(self) -> str:
        """Returns the displayed text and the title."""
        return "".join(data for _, data in self.texts)

    def text_in(self, *tags: str) -> str:
        return "".join(data for tag, data in self.texts if tag in tags)


def visible(value: str) -> str:
    """Returns the displayed form of `value`: on one line, without private characters."""
    return " ".join(value.translate(markdown._NOT_IN_VALUES).split())


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    ("template", "tag"),
    [
        ("# T\n\n{{ value }}", "p"),
        ("# T\n\n{{ value|mono }}", "code"),
        ("# T\n\n- {{ value }}", "li"),
        ("# T\n\n- {{ value|mono }}", "code"),
        ("# T\n\n| a | b |\n|:--|--:|\n| {{ value }} | |\n", "td"),
        ("# T\n\n| a | b |\n|:--|--:|\n| {{ value|mono }} | |\n", "code"),
        ("# T\n\n*{{ value }}*", "em"),
        ("# T\n\n**{{ value }}**", "strong"),
    ],
)
def test_values_are_shown_letter_for_letter(
    templates: Path, value: str, template: str, tag: str
) -> None:
    (templates / "t.md.j2").write_text(template)
    page = from_template("t", value=value)
    outline = Outline(to_html(page, templates))
    body = [
        (element, text) for element, text in outline.texts if element not in ("title", "h1", "th")
    ]
    assert {element for element, _ in body} == {tag}
    assert outline.text_in(tag) == visible(value)
    assert outline.images == []


@pytest.mark.parametrize("value", HOSTILE)
def test_a_title_is_shown_letter_for_letter(templates: Path, value: str) -> None:
    (templates / "t.md.j2").write_text("# Dice of {{ value|mono }} and {{ value }} is **high**")
    page = Outline(to_html(from_template("t", value=value), templates))
    assert page.text_in("title") == f"Dice of {visible(value)} and {visible(value)} is high"


@pytest.mark.parametrize("value", ["robust eval", "a ``` b", "x > 1\n\n\n  y  |  z", "# a\n- b"])
def test_commands_keep_every_letter(templates: Path, value: str) -> None:
    (templates / "t.md.j2").write_text("# T\n\n{{ value|code }}\n")
    page = from_template("t", value=value)
    assert value in page
    outline = Outline(to_html(page, templates))
    assert outline.texts[2:] == [("code", f"{value}\n")]


NAME = "a|b<i>*x*_y_`c[z](u)&amp;~q"


def dataset(name: str) -> dict[str, object]:
    return {"name": name, "location": f"/x/{name}", "subset": f"only {name}", "images": 99}


def evaluation_page(run: Path, name: str) -> str:
    plan = RunPlan(
        models=(model(name), model("b")),
        transforms=(IDENTITY, *paper21()[:1]),
        dataset={**dataset(name), "images": 60},
        skipped=[("x`|y/photo-00001.jpeg", f"# {name}")],
        record={"command": f"robust eval --model '{name}'"},
    )
    return evaluation_report(build_run(run, plan)).markdown


def mask_page(run: Path, name: str) -> str:
    plan = MaskPlan(
        models=(segmenter(name), segmenter("b")),
        transforms=(IDENTITY, *paper21()[:1]),
        dataset=dataset(name),
        record={"command": f"robust eval --model '{name}'"},
    )
    return evaluation_report(build_masks(run, plan)).markdown


def record(name: str) -> dict[str, object]:
    return {"model": name, "command": f"robust train --model '{name}'", "device": name}


def training(run: Path, name: str) -> Path:
    recipe = {"name": name, "loss": name, "augmentation": f"- {name}"}
    changes = {**record(name), "arguments": {"act": name}, "chosen_why": f"# {name}"}
    plan = TrainPlan(model=name, recipe=recipe, dataset=dataset(name), record=changes)
    return build_training(run, plan)


def training_page(run: Path, name: str) -> str:
    return training_report(training(run, name)).markdown


def zoo_page(run: Path, name: str) -> str:
    runs = [training(run / folder, name) for folder in ("in|1", "in*2*")]
    return zoo_report(runs, run).markdown


def finetuning_page(run: Path, name: str) -> str:
    tensors = ((f"{name}.A_log", (64, 16), True, 2e-8), (name, (64,), False, 4e-7))
    changes = {"pretrained": f"- {name}", "profile": f"/x/{name}", "heads": [name]}
    plan = FinetunePlan(
        modes=("full", "freeze"),
        tensors=tensors,
        record={**record(name), **changes},
        training=TrainPlan(model=name, dataset=dataset(name)),
    )
    return finetuning_report(build_finetuning(run, plan)).markdown


@pytest.mark.parametrize(
    "render_page",
    [
        *(evaluation_page, mask_page, training_page, finetuning_page),
        pytest.param(zoo_page, marks=pytest.mark.slow),  # ten seconds: the pictures of a zoo
    ],
)
def test_whole_pages_withstand_hostile_names(
    tmp_path: Path, render_page: Callable[[Path, str], str]
) -> None:
    """A name of special characters appears wherever a plain one does, as text only."""
    outlines = []
    for name in ("harmless", NAME):
        folder = tmp_path / name[:5].replace("|", "")
        outlines.append(Outline(to_html(render_page(folder, name), folder)))
    plain_page, hostile_page = outlines
    assert hostile_page.text.count(NAME) == plain_page.text.count("harmless") >= 8
    assert {tag for tag, _ in hostile_page.texts} == {tag for tag, _ in plain_page.texts}
    assert len(hostile_page.aligned) == len(plain_page.aligned), "a name must not split a cell"
    assert len(hostile_page.images) == len(plain_page.images)


CELLS = (IDENTITY, *paper21()[:2], *imagenet_c()[:2])
RUNNING: dict[str, object] = {"status": "running"}
SEVERITIES = (IDENTITY, *paper21()[:2], *paper21(1)[:1], *paper21(4)[:1])


@pytest.mark.parametrize(
    "plan",
    [
        *(
            RunPlan(transforms=cells, done=done, samples=False, record=RUNNING)
            for cells, done in (((IDENTITY,), 0.5), (paper21()[:1], 0.5), (CELLS, 0.5), (CELLS, 0))
        ),
        *(
            MaskPlan(transforms=SEVERITIES, done=done, groups=groups, record=RUNNING)
            for done, groups in ((0.0, 8), (0.5, 1), (0.5, 8))
        ),
        TrainPlan(measured=False, finished=1),
        FinetunePlan(modes=("full",), unmeasured=("full",), record=RUNNING),
        FinetunePlan(modes=("full",), waiting=("full",), profiled=0, decided=False),
    ],
)
def test_a_report_of_an_unfinished_run_can_be_made(
    tmp_path: Path, plan: RunPlan | MaskPlan | TrainPlan | FinetunePlan
) -> None:
    if isinstance(plan, RunPlan):
        build_run(tmp_path, plan)
    elif isinstance(plan, MaskPlan):
        build_masks(tmp_path, plan)
    elif isinstance(plan, TrainPlan):
        build_training(tmp_path, plan)
    else:
        build_finetuning(tmp_path, plan)
        assert run_kind(tmp_path) == "finetune"
    page = report_page(tmp_path)
    assert "**Partial run.**" in page.markdown
    assert "nan" not in page.markdown
    assert page.terminal
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", page.markdown)
    assert all((tmp_path / picture).is_file() for picture in pictures)


def test_marks_of_records_are_kept_where_they_have_a_partner() -> None:
    assert marked("part of `a_b` and `c`.") == "part of `a_b` and `c`."
    assert marked("no * marks") == r"no \* marks"
    assert marked("a lone ` mark") == r"a lone \` mark"


def test_numbers_that_are_not_known_are_a_dash(templates: Path) -> None:
    (templates / "t.md.j2").write_text("# T\n\n{{ value }}, {{ -0.5 }}, {{ dash }}")
    page = from_template("t", value=None)
    assert page == "# T\n\n\N{EN DASH}, -0.5, \N{EN DASH}\n"


def test_a_value_that_does_not_exist_is_an_error(templates: Path) -> None:
    (templates / "t.md.j2").write_text("# {{ title }}")
    with pytest.raises(jinja2.UndefinedError, match="title"):
        from_template("t")


def test_parts_are_joined_and_settings_are_named() -> None:
    assert joined(["a*", mono("b*")], " + ") == "a\\* + `b*`"
    assert joined([]) == ""
    assert settings_in_words({"bridge": False, "act": "gelu"}) == 'bridge=false, act="gelu"'
    assert code("x") == "```text\ue001x\ue001```"


def test_templates_may_be_wrapped_and_indented(templates: Path) -> None:
    (templates / "t.md.j2").write_text(
        "# T\n\n\n\n  A sentence\n    on two  lines.\n\n{% if true %}\n  - one\n    more\n\n"
        "{% endif %}\n\n- two\n\n| name | n |\n  |:--|--:|\n  | {{ value }} | 1 |\n| c | 22 |\n"
    )
    assert from_template("t", value="a|b").splitlines() == [
        *("# T", "", "A sentence on two lines.", "", "- one more", "- two", ""),
        *("| name   |   n |", "|:-------|----:|", "| a\\|b   |   1 |", "| c      |  22 |"),
    ]


def test_a_table_without_rows_has_its_header(templates: Path) -> None:
    (templates / "t.md.j2").write_text("# T\n\n| name | n |\n{{ rule(1, 1) }}\n")
    outline = Outline(to_html(from_template("t"), templates))
    assert [text for tag, text in outline.texts if tag == "th"] == ["name", "n"]


def test_text_is_set_to_the_left_and_numbers_to_the_right(tmp_path: Path) -> None:
    page = "# T\n\n| name | n |\n|:--|--:|\n| a | 1 |\n"
    assert Outline(to_html(page, tmp_path)).aligned == ["text", "num"] * 2


def test_pictures_are_inside_the_page_with_their_captions(templates: Path) -> None:
    (templates / "figures").mkdir()
    Image.new("RGB", (1, 1), (9, 8, 7)).save(templates / "figures/a (b)_.png")
    macros = Path(markdown.__file__).parent / "templates" / "macros.md.j2"
    (templates / "macros.md.j2").write_text(macros.read_text())
    text = '{% from "macros.md.j2" import pictures %}\n# T\n\n{{ pictures([picture]) }}\n\nAfter.'
    (templates / "t.md.j2").write_text(text)
    caption = 'Says "*hello*" <b>'
    page = from_template("t", picture=Picture("figures/a (b)_.png", caption))
    outline = Outline(to_html(page, templates))
    (image,) = outline.images
    kind, _, content = str(image["src"]).partition(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as shown_picture:
        assert shown_picture.convert("RGB").getpixel((0, 0)) == (9, 8, 7)
    assert image["alt"] == caption
    assert outline.texts[2:] == [("figcaption", caption), ("p", "After.")]


def test_html_in_markdown_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    outline = Outline(to_html("# T\n\n<b>x</b>\n", tmp_path))
    assert outline.texts[2:] == [("p", "<b>x</b>")]
