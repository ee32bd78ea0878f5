from pathlib import Path

import pandas as pd

from robustcli.reports.document import Heading, Mono, Strong, text
from robustcli.reports.pages.page import page_of, write_page


def test_the_title_is_plain_and_all_four_files_are_written(tmp_path: Path) -> None:
    title = text("Dice of ", Mono("a<b"), " is ", Strong("high"))
    page = page_of(pd.DataFrame({"dice": [0.5]}), title, [Heading(1, title)])
    assert page.document.title == "Dice of a<b is high"
    assert write_page(page, tmp_path / "new") == tmp_path / "new" / "report.md"
    assert (tmp_path / "new/report.md").read_text() == "# Dice of `a<b` is **high**\n"
    assert "<title>Dice of a&lt;b is high</title>" in (tmp_path / "new/report.html").read_text()
    assert (tmp_path / "new/results.csv").read_text() == "dice\n0.5\n"
    assert (tmp_path / "new/results.json").is_file()
