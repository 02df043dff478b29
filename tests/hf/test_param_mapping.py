"""Tests of name tables against NumPy, and of the error that lists all problems."""

import numpy as np
import pytest

from elva_jax.errors import ConvertError
from elva_jax.hf.param_mapping import Rule, Table, plan

RNG = np.random.default_rng(0)
F32 = np.dtype(np.float32)


def noise(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("pattern", "shape", "ours"),
    [
        ("", (3, 5), lambda x: x),
        ("o i -> i o", (3, 5), lambda x: x.T),
        ("(h d) c -> c h d", (12, 5), lambda x: x.T.reshape(5, 4, 3)),
        ("c (h d) -> h d c", (5, 12), lambda x: x.T.reshape(4, 3, 5)),
        ("(h d) -> h d", (12,), lambda x: x.reshape(4, 3)),
        ("c t p q -> (p q t) c", (5, 3, 2, 2), lambda x: x.transpose(2, 3, 1, 0).reshape(12, 5)),
        ("1 1 c -> 1 c", (1, 1, 5), lambda x: x[0]),
    ],
)
def test_axes_are_mapped_in_both_directions(pattern, shape, ours):
    table = Table((Rule("p", "t", pattern),), {"h": 4, "d": 3, "p": 2, "q": 2, "t": 3})
    rule, value = table.rules[0], noise(*shape)
    np.testing.assert_array_equal(table.to_ours(rule, value), ours(value))
    assert table.their_shape(rule, ours(value).shape) == shape
    ((name, back),) = table.to_theirs("p", ours(value))
    assert name == "t"
    np.testing.assert_array_equal(back, value)


def test_parameters_that_are_parts_of_one_tensor():
    rules = tuple(
        Rule(name, "qkv", "(h d) c -> c h d", part=(k, 3)) for k, name in enumerate("qkv")
    )
    table, value = Table(rules, {"h": 4, "d": 3}), noise(36, 5)
    for k, rule in enumerate(rules):
        np.testing.assert_array_equal(
            table.to_ours(rule, value), value[12 * k : 12 * k + 12].T.reshape(5, 4, 3)
        )
        assert table.their_shape(rule, (5, 4, 3)) == (36, 5)
    assert [rule.ours for rule, _ in table.match("qkv")] == ["q", "k", "v"]
    with pytest.raises(ConvertError, match="q: the table of names has no tensor of its own"):
        list(table.to_theirs("q", value))


def test_layers_are_stacked_and_the_prefix_may_be_absent():
    table = Table((Rule("layers/w", "model.layers.{}.w", "o i -> i o"),), prefix="model.")
    value = noise(2, 3, 4)
    assert [name for name, _ in table.to_theirs("layers/w", value)] == [
        "model.layers.0.w",
        "model.layers.1.w",
    ]
    for prefix in ("model.", ""):
        shapes = {f"{prefix}layers.{i}.w": (4, 3) for i in range(2)}
        sources = plan(table, shapes, dict.fromkeys(shapes, F32), {"layers/w": (2, 3, 4)}, "here")
        assert sources["layers/w"].names == tuple(shapes)
    assert not table.match("layers.x.w")
    assert not table.match("model.layers.0.w.more")
    assert not table.match("other.layers.0.w")


def test_one_error_lists_all_problems():
    table = Table(
        (
            Rule("embed", "embed", "vocab d -> vocab d"),
            Rule("layers/w", "layers.{}.w", "o i -> i o"),
            Rule("layers/b", "layers.{}.b", optional=True),
            Rule("layers/n", "layers.{}.n"),
            Rule("norm", "norm"),
            Rule("scale", "scale"),
        ),
        ignored=(r"position_ids",),
    )
    wanted = {
        "embed": (10, 4),
        "layers/w": (3, 4, 8),
        "layers/b": (3, 8),
        "layers/n": (3, 4),
        "norm": (4,),
        "scale": (4,),
    }
    shapes = {
        "embed": (8, 4),
        **{f"layers.{i}.{x}": s for i in range(3) for x, s in (("w", (8, 4)), ("n", (4,)))},
        "norm": (4,),
    }
    shapes |= {"position_ids": (1,), "scale": (4,)}
    dtypes = dict.fromkeys(shapes, F32)
    good = plan(table, shapes, dtypes, wanted, "here")
    assert good["layers/b"].names == (None,) * 3
    bad = {
        name: shape for name, shape in shapes.items() if name != "norm" and not name.endswith(".n")
    }
    bad |= {"layers.1.w": (8, 5), "layers.3.w": (8, 4), "head": (4,), "embed": (11, 4)}
    with pytest.raises(ConvertError) as caught:
        plan(table, bad, {**dict.fromkeys(bad, F32), "scale": np.dtype(np.int8)}, wanted, "here")
    message = str(caught.value)
    assert "\n" not in message
    for problem in (
        "layers.{}.n [4] is missing for {} = 0 … 2",
        "norm [4] is missing",
        "layers.3.w [8, 4] is unexpected",
        "head [4] is unexpected",
        "embed is [11, 4], expected [10, 4]",
        "layers.1.w is [8, 5], expected [8, 4]",
        "scale is int8, not a float",
    ):
        assert problem in message
    assert message.count(";") == 7  # one of them is in the advice about int8
