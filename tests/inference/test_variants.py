"""Inference with merging at the first member and with frames that see both ways, against training.

The reference is the forward pass of training over the whole conversation, without a cache.
"""

import jax
import numpy as np
import pytest

from elva_jax import testing
from elva_jax.config.serialize import freeze
from elva_jax.inference.scoring import Choice
from elva_jax.models.elva import Elva, merging_of
from elva_jax.video.layout import Text, TokenLayout, build_layout, pack

QUESTION, OPTIONS = "What moves?", ("red square", "no", "up")
KEYS = {"merge_survivor": "first", "frame_attention": "bidirectional", "attention": "xla"}


@pytest.fixture(scope="module")
def variant():
    return testing.tiny_model(**KEYS)


@pytest.fixture(scope="module")
def shown(variant, videos):
    """Two videos whose frames have different numbers of tokens."""
    return [(variant.read_media(videos[n]),) for n in (0, 2)]


@pytest.fixture(scope="module")
def prefilled(variant, shown):
    return variant.prefill(shown)


def scores(prefilled):
    rows = prefilled.score([[Choice(QUESTION, OPTIONS)]] * 2)
    return np.array([[score.total for score in row[0]] for row in rows])


def test_answers_equal_the_forward_pass_token_by_token(variant, shown, prefilled):
    model = Elva(variant.model_config)
    params = testing.random_params(freeze(testing.tiny_config(**KEYS)).model)

    @jax.jit
    def forward(patches, layout):
        out = model.apply({"params": params}, patches, layout, merging=True)
        return model.apply({"params": params}, out.hidden, method="head"), out.survivor

    seen = set()
    for media, (answer,) in zip(shown, prefilled.generate([[QUESTION]] * 2, 6), strict=True):
        ids = list(answer.tokens)
        parts = [*variant.prompt_parts(QUESTION, media), Text(tuple(ids))]
        layout = build_layout(parts)
        patches = np.zeros((1, 64, 192), np.uint8)
        patches[0, : len(media[0].patches)] = media[0].patches
        batched = TokenLayout.stack([pack([layout], 192)])
        logits, survivor = forward(patches, batched)
        before = np.arange(layout.length - len(ids) - 1, layout.length - 1)
        at_answer = np.asarray(logits)[0, np.asarray(survivor)[0, before]]
        assert at_answer[:, : len(variant.tokenizer)].argmax(-1).tolist() == ids
        seen.update(ids)
    assert len(seen) > 3, "weights too weak to tell tokens apart: the comparison would prove little"


def test_prefill_in_chunks_equals_prefill_in_one_piece(variant, shown, prefilled, monkeypatch):
    """No chunk ends where a frame of both rows does."""
    monkeypatch.setattr(variant.engine, "prefill_chunk", 25)
    chunked = variant.prefill(shown)
    np.testing.assert_array_equal(chunked.prefix.tokens, prefilled.prefix.tokens)
    np.testing.assert_allclose(scores(chunked), scores(prefilled), atol=1e-5)


def test_the_keys_matter(variant, shown, prefilled):
    """Each of them changes the likelihoods, so that the comparisons above prove something."""
    own = scores(prefilled)
    last = merging_of(testing.tiny_model().model_config)
    causal = testing.tiny_model(merge_survivor="first")
    for other in (variant.prefill(shown, merging=last), causal.prefill(shown)):
        assert np.abs(scores(other) - own).max() > 1e-3
