"""Builders of segmenters."""

from __future__ import annotations

import pytest

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.otsu import Otsu
from robustcli.adapters.seg_builders import SEG_BUILDERS
from robustcli.core.errors import UsageError


def test_every_segmenter_of_the_catalogue_has_one() -> None:
    builders = {entry.builder for entry in CATALOGUE.values() if entry.task == "seg"}
    assert builders | {"smp"} == set(SEG_BUILDERS)


def test_the_baseline_has_nothing_to_load_and_nothing_to_set() -> None:
    otsu = SEG_BUILDERS["otsu"]
    assert otsu.load is None
    network = otsu.fresh("otsu", {})
    assert isinstance(network, Otsu)
    assert not network.training
    assert list(network.parameters()) == []
    with pytest.raises(UsageError, match=r"`otsu` takes no `bins=\.\.\.`"):
        otsu.fresh("otsu", {"bins": 3})
