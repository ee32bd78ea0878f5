import pandas as pd

from robustcli.reports.sections.relaxed import (
    relaxed_cells,
    relaxed_note,
    relaxed_source,
    relaxed_words,
)
from tests.reports.sections.told import told

DASH = "\N{EN DASH}"


def test_data_without_a_tolerance_show_nothing() -> None:
    assert (relaxed_note(None), relaxed_source(None)) == ([], ())


def test_the_note_says_how_far_near_is() -> None:
    assert "within 3 pixels of a true one" in told(relaxed_note(3))
    assert "within 1 pixel of a true one" in told(relaxed_note(1))


def test_a_number_that_does_not_exist_is_a_dash() -> None:
    numbers = pd.Series(
        {
            **dict.fromkeys(
                (f"relaxed_precision{end}" for end in ("", "_low", "_high")), float("nan")
            ),
            "relaxed_recall": 0.25,
            "relaxed_recall_low": 0.125,
            "relaxed_recall_high": 0.5,
        }
    )
    assert relaxed_words(numbers) == f"{DASH} and 0.250 (0.125{DASH}0.500)"
    assert relaxed_cells(numbers) == ((DASH,), (f"0.250 (0.125{DASH}0.500)",))


def test_the_foot_names_the_tolerance_and_the_thesis() -> None:
    (foot,) = relaxed_source(3)
    assert "3 pixels, as V. Mnih, Machine Learning for Aerial Image Labeling, PhD" in str(foot[0])
