from robustcli.reports.document import Figure
from robustcli.reports.sections.zoo_curves import zoo_curves
from tests.reports.sections.told import told


def test_the_curves_have_a_section_where_there_are_any() -> None:
    page = told(zoo_curves([Figure("figures/dice_curves.png", "Dice.")]))
    assert page.startswith("## How the trainings went\n\n![Dice.](figures/dice_curves.png)")
    assert zoo_curves([]) == []
