from robustcli.reports.document import Figure
from robustcli.reports.sections.cases import cases
from tests.reports.sections.told import told


def test_pictures_follow_the_heading() -> None:
    page = told(cases([Figure("figures/cases-a.png", "Of a.")]))
    assert page.startswith("## Best, median and worst cases\n\n![Of a.](figures/cases-a.png)")


def test_their_absence_is_said() -> None:
    assert "None: the run holds no pictures" in told(cases([]))
