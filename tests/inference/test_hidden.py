"""Tests of hidden states against the model's modules, run layer by layer on the unpadded prompt."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elva_jax.errors import ConfigError, LayoutError
from elva_jax.models.elva import Elva, merging_of
from elva_jax.ops import merging as merging_ops
from elva_jax.ops.merging import MergeLayer, Merging
from elva_jax.video.layout import TokenLayout, build_layout

QUESTION = "What colour is the circle?"


def every_other(neighbors, rule):
    """A policy that merges every token at an even index of its tube into the next one."""
    return neighbors.place % 2 == 0


RULES = {
    "off": False,
    "on": True,
    "before_all": Merging((MergeLayer(0, "pool", ratio=0.5),)),
    "own": Merging((MergeLayer(2, every_other),), merge_lines=True),
}


def layer_by_layer(model, params, visual, merging):
    """Hidden states, layouts, sizes and survivors after each layer, and the final states."""
    elva = Elva(model.model_config)
    layout = build_layout(model.prompt_parts(QUESTION, [visual]))
    layout = TokenLayout(*map(jnp.asarray, layout))

    @partial(jax.jit, static_argnums=(0, 3))
    def apply(function, x, layout, *args):
        return elva.apply({"params": params}, x, layout, *args, method=function)

    def one_layer(module, x, layout, index):
        batched = jax.tree.map(lambda field: field[None], layout)
        x = module.decoder.layers(x[None], batched.position, batched.segment, index, index + 1)
        return x[0]

    rules = {rule.before_layer: rule for rule in merging.layers}
    x = apply("embed", visual.patches[None], jax.tree.map(lambda field: field[None], layout))[0]
    size = jnp.ones(layout.length)
    survivor = np.arange(layout.length)
    found = [(x, layout, size, survivor)]
    for index in range(model.model_config.num_layers):
        if index in rules:
            merged = merging_ops.merge(
                x, layout, size, rules[index], merge_lines=merging.merge_lines
            )
            n = int(merged.stats.survivors)
            x, size = merged.x[:n], merged.size[:n]
            layout = jax.tree.map(lambda field, n=n: field[:n], merged.layout)
            survivor = np.asarray(merged.survivor)[survivor]
        x = apply(one_layer, x, layout, index)
        found.append((x, layout, size, survivor))
    return found, apply(lambda module, x, _: module.final_norm(x), x[None], None)[0]


@pytest.mark.parametrize("name", RULES)
def test_every_layer_equals_the_modules_run_separately(model, params, shown, name):
    merging = RULES[name]
    if isinstance(merging, bool):
        rules = merging_of(model.model_config) if merging else Merging()
    else:
        rules = merging
    visual = shown[2][0]
    hidden = model.hidden_states([visual], QUESTION, merging=merging)
    expected, final = layer_by_layer(model, params, visual, rules)
    assert list(hidden.states) == [0, 1, 2, 3]
    assert len(hidden.blocks) == len(rules.layers) + (name != "before_all")
    for layer, (x, layout, size, survivor) in enumerate(expected):
        block = hidden.block(layer)
        np.testing.assert_allclose(hidden.states[layer], x, rtol=2e-4, atol=2e-5)
        for field, ours, theirs in zip(layout._fields, block.layout, layout, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=field)
        np.testing.assert_array_equal(block.size, size)
        np.testing.assert_array_equal(block.survivor, survivor)
    np.testing.assert_allclose(hidden.final, final, rtol=2e-4, atol=2e-5)
    lengths = [len(hidden.states[layer]) for layer in range(4)]
    assert (len(set(lengths)) > 1) == (name != "off"), "merging must matter"


@pytest.mark.parametrize("merging", [False, True])
def test_last_state_equals_that_of_the_forward_pass(model, shown, whole_forward, merging):
    visual = shown[0][0]
    hidden = model.hidden_states([visual], QUESTION, layers=[3], merging=merging)
    _, out = whole_forward((visual,), QUESTION, (), merging)
    block = hidden.blocks[-1]
    length, total = block.layout.length, hidden.layout.length
    np.testing.assert_allclose(hidden.final, out.hidden[0, :length], rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(block.survivor, out.survivor[0, :total])
    np.testing.assert_array_equal(block.size, out.size[0, :length])
    merged = [block.merged for block in hidden.blocks if block.merged is not None]
    for ours, theirs in zip(merged, out.merges, strict=True):
        # All fields but the padding, because the reference has a longer row.
        for name in set(theirs._fields) - {"padding"}:
            assert getattr(ours, name) == int(getattr(theirs, name)[0]), name


def test_custom_policy_is_used_for_answers(model, shown):
    """A policy without merges gives the answers of the unmerged model; one with merges does not."""

    def nothing(neighbors, rule):
        return neighbors.place < 0

    media, options = [shown[0][0]], ["red", "4"]
    plain = model.score(media, QUESTION, options, merging=False)
    same = model.score(media, QUESTION, options, merging=Merging((MergeLayer(1, nothing),)))
    other = model.score(media, QUESTION, options, merging=Merging((MergeLayer(1, every_other),)))
    assert same == plain
    assert other != plain


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, v: m.hidden_states(v, QUESTION, layers=[4]), ConfigError, "0 … 3"),
        (lambda m, v: m.hidden_states(v, QUESTION, layers=[-1]), ConfigError, "0 … 3"),
        (lambda m, v: m.hidden_states(v, " "), LayoutError, "prompt is empty"),
        (
            lambda m, v: m.hidden_states(v, QUESTION, merging=Merging((MergeLayer(9),))),
            ConfigError,
            "increase within",
        ),
    ],
)
def test_errors(model, shown, call, error, message):
    with pytest.raises(error, match=message):
        call(model, shown[3][0])
