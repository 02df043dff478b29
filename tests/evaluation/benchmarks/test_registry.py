"""Tests of the table of benchmarks."""

import pytest

from elva_jax.errors import ConfigError
from elva_jax.evaluation.benchmarks import registry


def test_names_are_found_in_order_and_once():
    found = registry.find(["videomme_subtitles", "videomme", "videomme"])
    assert [benchmark.name for benchmark in found] == ["videomme_subtitles", "videomme"]
    assert all(name == benchmark.name for name, benchmark in registry.BENCHMARKS.items())


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(ConfigError, match="--tasks vidomme: no such benchmark; did you mean video"):
        registry.find(["vidomme"])
    with pytest.raises(ConfigError, match="names no benchmark"):
        registry.find([])


def test_a_group_stands_for_its_members():
    found = [benchmark.name for benchmark in registry.find(["mvbench", "tempcompass"])]
    assert found[:2] == ["mvbench", "tempcompass_multi_choice"]
    assert len(found) == 5
