"""Builders of `robust eval`."""

from __future__ import annotations

import pytest

from robustcli.adapters.builders import BUILDERS, OFFICIAL, PICO
from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.load import ModelRequest, load_classifier


def test_every_entry_of_the_catalogue_has_one() -> None:
    classifiers = [entry for entry in CATALOGUE.values() if entry.task == "cls"]
    assert {entry.builder for entry in classifiers} == set(BUILDERS)


def test_preprocessing_is_that_of_the_official_evaluations() -> None:
    assert (OFFICIAL.resize, OFFICIAL.crop, OFFICIAL.interpolation) == (256, 224, "bicubic")
    assert (OFFICIAL.mean, OFFICIAL.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (PICO.resize, PICO.crop) == (32, 32)


@pytest.mark.parametrize("name", ["vim-t", "vim-s-plus", "vim-b"])
def test_a_vim_is_a_classifier_with_the_official_preprocessing(name: str) -> None:
    request = ModelRequest(name, arguments={"depth": 1, "dim": 16}, untrained=True)
    model = load_classifier(request)
    assert model.preprocessing == OFFICIAL
    assert (model.facts.family, model.facts.builder) == ("vim", f"vim:{name}")
    assert model.facts.scans


def test_a_vim_for_larger_images_gets_larger_images() -> None:
    arguments = {"depth": 1, "dim": 16, "img_size": 384}
    own = load_classifier(ModelRequest("vim-t", arguments=arguments, untrained=True)).preprocessing
    assert (own.resize, own.crop) == (438, 384)
