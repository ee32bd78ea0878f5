from robustcli.reports.document import Mono, cells, joined, text


def test_parts_are_joined_with_a_separator_between_them() -> None:
    assert joined([Mono("a"), "b", Mono("c")], " + ") == (Mono("a"), " + ", "b", " + ", Mono("c"))
    assert joined([]) == ()


def test_cells_are_texts_of_one_span() -> None:
    assert cells("a", Mono("b")) == (text("a"), text(Mono("b")))
