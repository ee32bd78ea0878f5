import pandas as pd

from robustcli.reports.measure import DICE, TOP1


def test_top1_is_told_in_percent_and_dice_as_a_fraction() -> None:
    assert (TOP1.show(0.5, 10), DICE.show(0.5, 10)) == ("50.0", "0.500")
    assert TOP1.show_range(0.25, 0.5, 10, "-") == "25.0-50.0"
    assert DICE.show_range(0.25, 0.5, 10, "-") == "0.250-0.500"
    assert (TOP1.title, DICE.title) == ("Top-1", "Dice")


def test_where_there_is_no_interval_its_ends_are_the_number() -> None:
    rows = pd.DataFrame(
        {"dice": [0.5, 0.6], "dice_low": [0.4, float("nan")], "dice_high": [0.7, float("nan")]}
    )
    low, high = DICE.ends(rows)
    assert (list(low), list(high)) == ([0.4, 0.6], [0.7, 0.6])
