"""The examples in docstrings print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import segdpo

MODULES = [module.name for module in pkgutil.walk_packages(segdpo.__path__, "segdpo.")]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_things_have_some():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for thing in (segdpo.PairScores, segdpo.score_pairs, segdpo.PreferenceLoss):
        assert any(test.examples for test in finder.find(thing))
