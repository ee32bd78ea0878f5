"""A part of the pairs that is the same on every machine: a pure function of ids and seed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from robustcli.core.errors import UsageError
from robustcli.core.seeds import identity_seed
from robustcli.data.pairs import PairIndex, PairRef
from robustcli.data.subset import within


def take_pairs(index: PairIndex, *, limit: int | None, seed: int) -> PairIndex:
    """At most `limit` pairs of `index`, spread evenly over its groups, sorted by id.

    Each pair has a place in its group, drawn from its id and the seed alone; all first places come
    first, in an order of their own, then all second ones. So a smaller limit takes a part of what a
    larger one takes. Of every split that the data gives, the very first pair goes before all.

    Args:
        index: The whole data set.
        limit: Pairs at most; None for all.
        seed: Which pairs; the same seed takes the same pairs.

    Raises:
        UsageError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(
            f"`--limit {limit}` takes no images.",
            "Expected a whole number from 1.",
            "Leave out `--limit` to take all images.",
        )
    if limit is None or limit >= len(index.pairs):
        return index
    kept = _ranked(index, seed)[:limit]
    return replace(
        index,
        pairs=tuple(sorted(kept, key=lambda pair: pair.image_id)),
        subset=within(index, f"{limit} images spread over the {index.grouping}s, seed {seed}"),
    )


def _ranked(index: PairIndex, seed: int) -> list[PairRef]:
    keyed = {pair.image_id: identity_seed(seed, pair.image_id) for pair in index.pairs}
    groups: dict[str, list[PairRef]] = defaultdict(list)
    for pair in sorted(index.pairs, key=lambda pair: (keyed[pair.image_id], pair.image_id)):
        groups[pair.group].append(pair)
    placed = [(rank, pair) for members in groups.values() for rank, pair in enumerate(members)]
    placed.sort(key=lambda one: (one[0], keyed[one[1].image_id], one[1].image_id))
    ranked = [pair for _, pair in placed]
    firsts = {pair.split: pair for pair in reversed(ranked)}
    return sorted(ranked, key=lambda pair: firsts[pair.split] is not pair)
