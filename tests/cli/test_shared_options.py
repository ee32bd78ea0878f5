"""The value types of options, and options put together."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from robustcli.cli.shared_options import Assignment, Assignments, Numbers, together


def converted(kind: click.ParamType, text: str) -> Any:
    """What the option type makes of `text`."""
    return kind.convert(text, None, None)


@pytest.mark.parametrize(
    ("kind", "text", "numbers"),
    [
        (Numbers(int), "1,3,5", (1, 3, 5)),
        (Numbers(int), "2", (2,)),
        (Numbers(int), " 1, 2 ", (1, 2)),
        (Numbers(float, 3), "0.5,0.25,1", (0.5, 0.25, 1.0)),
        (Numbers(float), "-1e-3", (-0.001,)),
    ],
)
def test_numbers(kind: Numbers, text: str, numbers: tuple[float, ...]) -> None:
    assert converted(kind, text) == numbers
    assert kind.convert(numbers, None, None) == numbers


@pytest.mark.parametrize("text", ["", "1,", "1;2", "one", "1.5", "1 2"])
def test_what_is_not_numbers(text: str) -> None:
    with pytest.raises(
        click.BadParameter, match=f"`{text}` is not a comma-separated list of numbers"
    ):
        converted(Numbers(int), text)


@pytest.mark.parametrize(("text", "count"), [("0.5", 1), ("1,2", 2), ("1,2,3,4", 4)])
def test_a_wrong_count_of_numbers(text: str, count: int) -> None:
    with pytest.raises(click.BadParameter, match=rf"`{text}`: expected 3 numbers, got {count}\."):
        converted(Numbers(float, 3), text)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("pad_type=same", ("pad_type", "same")),
        ("num_classes=10", ("num_classes", 10)),
        ("depths=(1, 2)", ("depths", (1, 2))),
        ("gate=True", ("gate", True)),
        ("rate=0.1", ("rate", 0.1)),
        ("name='10'", ("name", "10")),
        ("none=None", ("none", None)),
        ("empty=", ("empty", "")),
        ("text=a=b", ("text", "a=b")),
        ("path=/a b/c", ("path", "/a b/c")),
        ("odd={[]: 1}", ("odd", "{[]: 1}")),
        ("call=__import__('os').getcwd()", ("call", "__import__('os').getcwd()")),
    ],
)
def test_assignments_are_literals_or_text_and_never_code(
    text: str, pair: tuple[str, object]
) -> None:
    found = converted(Assignment(), text)
    assert found == pair
    assert type(found[1]) is type(pair[1])
    assert Assignment().convert(pair, None, None) == pair


@pytest.mark.parametrize("text", ["", "key", "=value", "="])
def test_what_is_not_an_assignment(text: str) -> None:
    with pytest.raises(click.BadParameter, match=f"`{text}` is not KEY=VALUE"):
        converted(Assignment(), text)


def test_options_put_together_keep_their_order_in_the_help() -> None:
    several = together(click.option("--first"), click.option("--second"), click.option("--third"))

    @click.command()
    @several
    def command(first: str, second: str, third: str) -> None:
        click.echo(f"{first} {second} {third}")

    output = CliRunner().invoke(command, ["--third", "c", "--first", "a", "--second", "b"])
    assert output.output == "a b c\n"
    shown = CliRunner().invoke(command, ["--help"]).output
    places = [shown.index(name) for name in ("--first", "--second", "--third", "--help")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("partition=gpu,time=60", {"partition": "gpu", "time": "60"}),
        ("exclude=n1,n2,array=3", {"exclude": "n1,n2", "array": "3"}),
        ("constraint=a=b", {"constraint": "a=b"}),
    ],
)
def test_assignments_are_texts_by_key(text: str, pairs: dict[str, str]) -> None:
    assert Assignments().convert(text, None, None) == pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "`gpu` is not KEY=VALUE"),
        ("=1", "is not KEY=VALUE"),
        ("a=1,a=2", "contains `a` twice"),
    ],
)
def test_assignments_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(click.BadParameter, match=message):
        Assignments().convert(text, None, None)
