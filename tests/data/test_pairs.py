"""The index of pairs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from robustcli.data.index import ImageRef
from robustcli.data.pairs import PairIndex, PairRef


def _index(*groups: str) -> PairIndex:
    refs = [ImageRef(f"{number}.png", 0, Path("i")) for number in range(len(groups))]
    pairs = [PairRef(ref, ref, group) for ref, group in zip(refs, groups, strict=True)]
    return PairIndex("set", "place", tuple(pairs), "patient", len(pairs))


def test_the_digest_is_that_of_ids_and_groups() -> None:
    assert _index("p", "q").digest == hashlib.sha256(b"0.png\0p\n1.png\0q\n").hexdigest()


def test_groups_are_listed_once_and_sorted() -> None:
    assert _index("q", "p", "q").groups == ("p", "q")


def test_a_part_keeps_the_order_and_counts_the_whole() -> None:
    part = _index("p", "q", "r").part(frozenset({"2.png", "0.png"}), "test part")
    assert [pair.group for pair in part.pairs] == ["p", "r"]
    assert (part.subset, part.available) == ("test part", 3)
