"""What is said about folders inside a data set (the rest: where it is raised)."""

from __future__ import annotations

from pathlib import Path

from robustcli.data.index import ImageRef
from robustcli.data.pair_advice import no_such_folder
from robustcli.data.pairs import PairIndex, PairRef


def _index(*ids: str) -> PairIndex:
    refs = [ImageRef(name, 0, Path(name)) for name in ids]
    return PairIndex(
        "set", "place", tuple(PairRef(ref, ref, ref.image_id) for ref in refs), "image"
    )


def test_the_largest_folders_are_shown() -> None:
    ids = [f"f{folder}/{number}.png" for folder in range(7) for number in range(folder + 1)]
    error = no_such_folder("my/set", _index(*ids), "x")
    assert error.what == "`my/set` has no folder `x`."
    assert error.why == "Its folders: `f6` (7), `f5` (6), `f4` (5), `f3` (4), `f2` (3) and others."
    assert error.todo.startswith("Write `--data my/set:FOLDER`")


def test_a_set_without_folders_says_so() -> None:
    assert no_such_folder("set", _index("a.png"), "x").why == "It has no folders."
