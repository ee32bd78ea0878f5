from robustcli.reports.document import Mono, cells, joined, marked, text


def test_parts_are_joined_with_a_separator_between_them() -> None:
    assert joined([Mono("a"), "b", Mono("c")], " + ") == (Mono("a"), " + ", "b", " + ", Mono("c"))
    assert joined([]) == ()


def test_cells_are_texts_of_one_span() -> None:
    assert cells("a", Mono("b")) == (text("a"), text(Mono("b")))


def test_what_stands_between_backticks_is_shown_letter_for_letter() -> None:
    assert marked("part of `a_b` and `c`.") == ("part of ", Mono("a_b"), " and ", Mono("c"), ".")
    assert marked("no marks") == ("no marks",)
    assert marked("a lone ` mark") == ("a lone ` mark",)
