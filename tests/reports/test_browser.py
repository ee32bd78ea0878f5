"""report.html in headless Chromium: clicks, keys, and visible content."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustcli.reports.html import to_html
from robustcli.reports.render import render
from tests.builders import IDENTITY, RunPlan, build_run, model, paper21
from tests.reports.browser import CHROMIUM, Browser
from tests.reports.finetune_runs import FinetunePlan, build_finetuning
from tests.reports.mask_runs import MaskPlan, build_masks, segmenter
from tests.reports.train_runs import build_training

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (set CHROMIUM to its program)"),
]

HOSTILE = "</script><script>alert(1)</script>|\"'`=1+1"
SORTED_PAGE = """# Sorting

| name | value | time | few | date |
|:--|--:|--:|--:|:--|
| a9 | 75.5 (70.1\N{EN DASH}80.7) | 1 h 5 min | > 5 | 2024-10-02 |
| a10 | **9.25-10.5** | 48 min 28 s | 5 | 2024-9-30 |
| b | \N{EN DASH} | 231 ms | 1 | 2024-10-01 |
| C | 1,234.5 | 12.0 s | < 0.001 | 2023-01-01 |
| d | -3.5 (-4.0 to -3.0) | 3 h 0 min | 0.0009 | 2024-10-03 |
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, blank_figures: None) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    models = (model("vmamba-b"), model(HOSTILE))
    modes = FinetunePlan(modes=("scratch", "full", "freeze"))
    segmenters = (segmenter("ulvm_v5"), segmenter("unet"))
    runs = {
        "evaluation": build_run(
            folder / "cls", RunPlan(models=models, transforms=(IDENTITY, *paper21()[:10]))
        ),
        "segmenters": build_masks(folder / "seg", MaskPlan(models=segmenters)),
        "training": build_training(folder / "train"),
        "fine-tuning": build_finetuning(folder / "tune", modes),
    }
    for run in runs.values():
        render(run)
    return {name: run / "report.html" for name, run in runs.items()}


def texts(browser: Browser, selector: str) -> list[str]:
    visible_texts: list[str] = browser.js(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent.trim())"
    )
    return visible_texts


@pytest.mark.parametrize("name", ["evaluation", "segmenters", "training", "fine-tuning"])
def test_a_page_asks_for_nothing_complains_of_nothing_and_fits_a_phone(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    browser.requests.clear()
    browser.complaints.clear()
    for width, dark in ((1300, False), (700, True), (360, False)):
        browser.open(pages[name], width=width, dark=dark)
        page_width, room = browser.js("[document.documentElement.scrollWidth, innerWidth]")
        assert page_width <= room == width
        assert browser.js("(window.scrollTo(999, 0), window.scrollX)") == 0
    assert {url for url in browser.requests if not url.startswith("data:")} == {
        pages[name].resolve().as_uri()
    }
    assert browser.complaints == []
    assert browser.js("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_the_policy_stops_what_a_page_would_ask_for(
    browser: Browser, pages: dict[str, Path]
) -> None:
    """Proves that the browser would record a request if the page made one."""
    browser.open(pages["training"])
    browser.requests.clear()
    browser.complaints.clear()
    assert browser.js("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'stopped')")
    assert any("Content Security Policy" in text for text in browser.complaints)
    assert browser.js(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        "document.body.append(s); return window.ran ?? 0; })()"
    ) == 0  # fmt: skip


def test_a_name_of_code_is_shown_and_not_run(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["evaluation"])
    assert HOSTILE in texts(browser, "thead th")
    assert browser.js("document.scripts.length") == 1


@pytest.mark.parametrize(
    ("column", "downwards", "missing"),
    [
        (0, ["d", "C", "b", "a10", "a9"], []),
        (1, ["C", "a9", "a10", "d"], ["b"]),
        (2, ["d", "a9", "a10", "C", "b"], []),
        (3, ["a9", "a10", "b", "C", "d"], []),
        (4, ["d", "a9", "b", "a10", "C"], []),
    ],
)
def test_columns_are_sorted_by_what_they_mean(
    browser: Browser, tmp_path: Path, column: int, downwards: list[str], missing: list[str]
) -> None:
    """Intervals are sorted by number, times by length, dashes come last in both directions."""
    page = tmp_path / "sorted.html"
    page.write_text(to_html(SORTED_PAGE, tmp_path), "utf-8")
    browser.open(page)
    original = texts(browser, "tbody th")
    orders = {}
    for _ in range(2):
        browser.click("thead .sort", column)
        state = browser.js(f"document.querySelectorAll('thead th')[{column}].ariaSort")
        orders[state] = texts(browser, "tbody th")
        assert state in texts(browser, "[aria-live]")[0]
    if column in (0, 4):
        assert list(orders) == ["ascending", "descending"]
    else:
        assert list(orders) == ["descending", "ascending"]
    assert orders["descending"] == downwards + missing
    assert orders["ascending"] == downwards[::-1] + missing
    browser.click("thead .sort", column)
    assert texts(browser, "tbody th") == original
    assert browser.js("document.querySelector('[aria-sort]')") is None


def test_the_keyboard_skips_to_the_content_and_sorts(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["evaluation"])
    browser.key("Tab", 9)
    assert browser.js("document.activeElement.className") == "skip"
    assert browser.js("document.activeElement.getBoundingClientRect().top") >= 0
    browser.js("document.querySelectorAll('.sort')[3].focus()")
    browser.key("Enter", 13, "\r")
    assert browser.js("document.querySelectorAll('thead th')[3].ariaSort") == "descending"
    style = "getComputedStyle(document.activeElement).outlineStyle"
    browser.key("Tab", 9)
    assert browser.js(style) == "solid", "the focused element must be visible"


def test_a_filter_leaves_rows_with_all_its_words(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["evaluation"])
    body_rows = "[...document.querySelector('.tools + .scroll').querySelectorAll('tbody tr')]"
    browser.js("document.querySelector('.tools input').focus()")
    browser.call("Input.insertText", text="GAUSSIAN noise")
    visible_rows = f"{body_rows}.filter(r => r.offsetParent).map(r => r.cells[0].textContent)"
    assert browser.js(visible_rows) == ["additive_gaussian_noise"]
    assert texts(browser, ".tools span")[0] == "1 of 11 rows"
    browser.media("print")
    assert len(browser.js(visible_rows)) == 11, "a filter must not hide rows in print"
    browser.media("screen")
    browser.js("document.querySelector('.tools input').value = ''")
    browser.call("Input.insertText", text=" ")
    assert len(browser.js(visible_rows)) == 11
    assert texts(browser, ".tools span")[0] == "11 rows"


def test_a_picture_is_enlarged_and_escape_gives_the_focus_back(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["training"])
    browser.js("document.querySelectorAll('.zoom')[1].focus()")
    browser.key("Enter", 13, "\r")
    assert browser.js("document.querySelector('dialog').open")
    width = browser.js("document.querySelectorAll('.zoom img')[1].getBoundingClientRect().width")
    large = browser.js("document.querySelector('dialog img').getBoundingClientRect().width")
    assert large > width
    assert browser.js("document.querySelector('dialog').contains(document.activeElement)")
    browser.key("Escape", 27)
    assert not browser.js("document.querySelector('dialog').open")
    assert browser.js("document.activeElement === document.querySelectorAll('.zoom')[1]")


def test_a_cell_opens_its_photos_beside_the_clean_ones(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["evaluation"])
    cell = browser.js(
        "[...document.querySelectorAll('a.photos')].findIndex("
        f"a => a.dataset.model === {json.dumps(HOSTILE)}"
        "&& a.closest('tr').cells[0].textContent === 'affine')"
    )
    browser.click("a.photos", cell)
    assert browser.js("document.querySelector('dialog').open")
    assert texts(browser, "#dialog-title")[0].startswith(f"affine, {HOSTILE}: ")
    assert texts(browser, "dialog p")[0].startswith("1 photo of 60 images")
    assert texts(browser, "dialog .label") == ["clean", "affine"]
    clean, transformed = browser.js("[...document.querySelectorAll('dialog img')].map(i => i.src)")
    assert clean != transformed
    first = texts(browser, "dialog .answers li:first-child")
    assert all(text.startswith(HOSTILE) for text in first)
    assert "right" in first[0]
    assert "75.0\N{NO-BREAK SPACE}%" in first[0]
    browser.click(".close")
    assert not browser.js("document.querySelector('dialog').open")
    assert browser.js("document.activeElement.className") == "photos"


def test_light_and_dark_have_contrast_and_the_switch_wins(
    browser: Browser, pages: dict[str, Path]
) -> None:
    """WCAG 2.2, 1.4.3: a ratio of 4.5 for every colour of text on every background."""
    background = "getComputedStyle(document.body).backgroundColor"
    for dark in (False, True):
        browser.open(pages["evaluation"], dark=dark)
        browser.js("try { localStorage.clear() } catch {}")
        browser.open(pages["evaluation"], dark=dark)
        assert (luminance(browser.js(background)) < 0.2) == dark
        for _ in range(2):
            inks = luminances(browser, "--ink", "--soft", "--link", "--good", "--bad")
            grounds = luminances(browser, "--paper", "--raised", "--hover")
            for ink, ground in itertools.product(inks, grounds):
                lower, higher = sorted((inks[ink], grounds[ground]))
                assert (higher + 0.05) / (lower + 0.05) >= 4.5, (ink, ground, dark)
            light_luminance = luminance(browser.js(background))
            browser.click(".theme")
            assert (luminance(browser.js(background)) < 0.2) != (light_luminance < 0.2)
    browser.js("try { localStorage.clear() } catch {}")


def luminances(browser: Browser, *names: str) -> dict[str, float]:
    script = (
        "(name => { const e = document.createElement('i'); e.style.color = `var(${name})`;"
        "document.body.append(e); const c = getComputedStyle(e).color; e.remove(); return c; })"
    )
    return {name: luminance(browser.js(f"{script}('{name}')")) for name in names}


def luminance(colour: str) -> float:
    """Returns the relative luminance of `rgb(r, g, b)`. Source: WCAG 2.2, definitions."""
    channels = [int(number) / 255 for number in colour.strip("rgba()").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_without_scripts_it_is_a_page_with_photos_at_its_end(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.scripts(allowed=False)
    try:
        browser.open(pages["evaluation"], width=360)
        page_width, room = browser.js("[document.documentElement.scrollWidth, innerWidth]")
        assert page_width <= room
        assert texts(browser, "button, input, dialog") == []
        assert browser.js(
            "[...document.querySelectorAll('a[href^=\"#\"]')].every("
            "a => document.getElementById(a.hash.slice(1)))"
        )
        browser.click("a.photos", 3)
        assert browser.js("location.hash") == "#photos-2"
    finally:
        browser.scripts(allowed=True)


@pytest.mark.parametrize("name", ["evaluation", "segmenters", "training", "fine-tuning"])
def test_a_screen_reader_finds_its_way(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    nodes = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"]
    ]
    roles = [role for role, _ in nodes]
    assert roles.count("main") == roles.count("navigation") == 1
    for role, label in nodes:
        if role in ("image", "button", "link", "table", "region", "searchbox", "dialog"):
            assert label.strip(), f"a {role} without a name"
    assert roles.count("table") >= 3
    assert browser.js("document.documentElement.lang") == "en"
    ids = browser.js("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    tags = browser.js("[...document.querySelectorAll('main :is(h1, h2, h3)')].map(e => e.tagName)")
    levels = [int(tag[1]) for tag in tags]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_paper_shows_everything_and_no_controls(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["fine-tuning"], dark=True)
    browser.media("print")
    hidden_parts = ".side, .skip, .tools, dialog"
    assert browser.js(
        f"[...document.querySelectorAll('{hidden_parts}')].every(e => e.offsetParent === null)"
    )
    assert browser.js(
        "[...document.querySelectorAll('.scroll')].every(e => e.scrollHeight <= e.clientHeight + 1)"
    )
    assert luminance(browser.js("getComputedStyle(document.body).color")) < 0.01
    browser.media("screen")
