"""The order of a page's sections."""

from robustcli.reports.pages import Page
from tests.reports.page_parts import titles


def sections(page: Page) -> list[str]:
    return titles(page.markdown)
