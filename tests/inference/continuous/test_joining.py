"""Which requests are fed together."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from elva_jax import testing
from elva_jax.inference.continuous.grid import make_grid
from elva_jax.inference.continuous.joining import BATCHED, Joining
from elva_jax.inference.continuous.prefixes import PrefixEntry, PrefixStore
from elva_jax.inference.continuous.programs import Programs
from elva_jax.inference.continuous.requests import EngineSettings
from elva_jax.inference.continuous.slots import Static
from elva_jax.inference.kv_cache import PrefixCache
from elva_jax.models.elva import with_merging
from elva_jax.ops.merging import NO_MERGING


@pytest.fixture(scope="module")
def joining():
    model = testing.tiny_model()
    small = dataclasses.replace(
        with_merging(model.model_config, NO_MERGING),
        num_kv_heads=1,
        head_dim=2,
        num_layers=1,
        max_position=4 * BATCHED,
    )
    grid = make_grid(small, EngineSettings(slots=4, joins=4, context=2 * BATCHED, smallest=8))
    programs = Programs(Static(small, 0, ()), model.engine.weights, None)
    return Joining(model, programs, grid, PrefixStore(0))


def entry(name):
    """A prefix whose keys say its name; one in capitals is long."""
    length = 2 * BATCHED if name.isupper() else 8
    filled = np.full((1, 1, length, 2), ord(name), np.float32)
    layer = PrefixCache(filled, filled, np.ones((1, length), bool))
    return PrefixEntry(key=name, layers=(layer,), lengths=(length,), tokens=(), length=length)


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ("abcd", ["a b c d"]),
        ("aaaa", ["aaaa"]),
        ("abab", ["a a b b"]),
        ("aab", ["a a b"]),
        ("aaaabb", ["aaaa", "bb"]),
        ("aabbccdd", ["a a b b", "c c d d"]),
        ("AAb", ["AA", "b"]),  # copies of a long prefix cost more than a program
        ("AAbbc", ["AA", "bb", "c"]),
    ],
)
def test_short_prefixes_are_copied_where_that_saves_a_group(joining, asked, rows):
    entries = {name: entry(name) for name in asked}
    groups = joining.groups([SimpleNamespace(entry=entries[name], name=name) for name in asked])
    found = [" ".join("".join(each.name for each in row) for row in g.rows) for g in groups]
    assert found == rows
    for group in groups:
        layer = group.layers[0]
        for row, requests in enumerate(group.rows):
            held = np.asarray(layer.k[row, 0])[np.asarray(layer.valid[row])]
            assert set(held.ravel()) == {float(ord(requests[0].name))}
