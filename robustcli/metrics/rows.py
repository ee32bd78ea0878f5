"""The common images of several tables of rows, which all paired scores use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pandas as pd


def have_same_images(frames: Sequence[pd.DataFrame]) -> bool:
    """Whether all tables contain the same images (`image_id`), in any order."""
    first = frames[0]["image_id"]
    return all(
        _in_same_order(first, frame["image_id"]) or set(first) == set(frame["image_id"])
        for frame in frames[1:]
    )


def common_images(frames: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The rows of the images that all tables contain, in the order of the last table.

    Raises:
        ValueError: A table contains an image twice.
    """
    last = frames[-1]["image_id"]
    if all(_in_same_order(last, frame["image_id"]) for frame in frames) and last.is_unique:
        return list(frames)
    # Converted to Python strings, because lookups of Arrow strings are several times slower.
    indexes = [pd.Index(frame["image_id"].to_numpy(dtype=object)) for frame in frames]
    for index in indexes:
        if not index.is_unique:
            image_id = index[index.duplicated()][0]
            raise ValueError(f"The image `{image_id}` has several rows in one table.")
    shared = reduce(lambda common, ids: common[common.isin(ids)], indexes[:-1], indexes[-1])
    return [
        frame.iloc[index.get_indexer(shared)] for frame, index in zip(frames, indexes, strict=True)
    ]


def _in_same_order(first: pd.Series[str], second: pd.Series[str]) -> bool:
    return len(first) == len(second) and bool(np.all(first.array == second.array))
